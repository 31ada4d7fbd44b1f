"""Train the small audio encoder: `python -m vasa_hf.training.train_audio_encoder --output DIR --max-minutes 25`.

The encoder is a `transformers.Wav2Vec2Model` of 2.2M parameters. It learns to tell phones apart on synthetic speech,
whose phone times are exact, and to say where lips are. With `--data DIR` it also hears real voices: the talking clips
there (`clips.npz` with `mouth`, `clips/*.mp4`) teach it what lips do with them, `speech/*` what a clean voice is under
noise.

    samples -> Wav2Vec2Model -> [B, 2T, hidden] -> phone      (synthetic; cross-entropy)
                                                -> lip opening, width, closure of the phone (synthetic)
                                                -> log-mel spectrum without the noise (all)
                     mean of two -> [B, T, hidden] -> lip gap and mouth width of the speaker (real clips)

The heads are thrown away. # Not in the paper: VASA-1 takes a published Wav2Vec2; all of this page is ours.
"""

import logging
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import Wav2Vec2Config, Wav2Vec2Model

from vasa_hf.data.face_pairs import people_of_clips
from vasa_hf.data.shards import training_folder
from vasa_hf.data.synthetic.speech import PHONES, articulation, available_engines, random_speech
from vasa_hf.processors.audio import VasaAudioProcessor, feature_geometry, resample, window_features
from vasa_hf.training.loop import LoopOptions, Player, option, parse_options, train

logger = logging.getLogger(__name__)

SAMPLING_RATE, FRAME = 16_000, 640
NUM_MELS = 24
WINDOWS = (36, 44, 62)  # frames a sample; 62 = 10 of context, 50 of a motion window, 2 of look-ahead


@dataclass
class AudioEncoderOptions(LoopOptions):
    """Options of the training."""

    data: str | None = option(
        None, "folder with clips.npz, clips/, identities.csv, speech/; none: synthetic speech alone"
    )
    audio_cache: str | None = option(
        None, "npz of the clips' sound, name -> int16 at 16 kHz, made if it does not exist"
    )
    num_utterances: int = option(2000, "synthetic utterances to speak before the training")
    real_share: float = option(0.5, "share of real clips among the samples")
    validation_people: int = option(3, "people of the clips kept for validation, those with the fewest of at least 20")
    learning_rate: float = option(1e-3, "peak learning rate")
    phone_weight: float = option(1.0, "weight of the cross-entropy of phones")
    articulation_weight: float = option(1.0, "weight of the articulation of synthetic phones")
    mel_weight: float = option(0.1, "weight of the clean log-mel spectrum")
    mouth_weight: float = option(1.5, "weight of the lip gap and mouth width of real clips")
    hidden_size: int = option(192, "width of the transformer")
    num_layers: int = option(4, "layers of the transformer")
    train_filter_bank: bool = option(False, "train the convolutions too; without it a step costs half")
    max_steps: int = option(20_000, "optimiser steps of the whole run")
    batch_size: int = option(20, "samples a batch")
    sample_every: int = option(400, "steps between validations; 0 for the last one alone")
    checkpoint_every: int = option(0, "steps between checkpoints; 0 for the last one alone")
    ema_decay: float = option(0.995, "decay of the averaged weights")
    mixed_precision: str = option("bf16", "no, fp16 or bf16")


def small_config(hidden_size: int = 192, num_layers: int = 4) -> Wav2Vec2Config:
    """Configuration of the embedded encoder: stride 320 like every Wav2Vec2, but four convolutions instead of seven.

    The first one is long enough for a filter bank (10 ms) and has a stride of 20 instead of 5, which costs a third of
    the usual stack. Nothing is normalised over time: a feature depends on what sounds near it, silence stays silence.
    """
    return Wav2Vec2Config(
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        intermediate_size=4 * hidden_size,
        conv_dim=(120, 160, 160, 160),
        conv_kernel=(160, 4, 4, 8),
        conv_stride=(20, 2, 2, 4),
        num_feat_extract_layers=4,
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=16,
        initializer_range=0.05,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
        apply_spec_augment=False,
    )


@torch.no_grad()
def init_filter_bank(encoder: Wav2Vec2Model, low_hz: float = 80.0, high_hz: float = 7400.0) -> None:
    """Start the convolutions as a filter bank of envelopes on the mel scale: raw samples teach one only after hours.

    First layer: each band three times, a third of a period apart, so that their rectified sum is a smooth envelope. Its
    layer norm divides by the level of all bands; what the biases add is the level under which sound counts as silence.
    Further layers: averages over time of each band; offsets of the layer norm keep the levels off the flat part of the
    GELU, a different one for each copy of the bands.
    """
    convs = [layer.conv for layer in encoder.feature_extractor.conv_layers]
    norms = [layer.layer_norm for layer in encoder.feature_extractor.conv_layers]
    channels, _, width = convs[0].weight.shape
    bands = channels // 3
    mel = torch.linspace(2595 * math.log10(1 + low_hz / 700), 2595 * math.log10(1 + high_hz / 700), bands + 1)
    hz = 700 * (10 ** (mel / 2595) - 1)
    time = (torch.arange(width) - (width - 1) / 2) / SAMPLING_RATE
    convs[0].weight.zero_()
    for band in range(bands):
        sigma = min(0.5 / (math.pi * float(hz[band + 1] - hz[band])), width / 5 / SAMPLING_RATE)
        envelope = torch.exp(-0.5 * (time / sigma) ** 2)
        envelope *= 20.0 * math.sqrt(float(hz[band]) / 500 + 0.3) / envelope.sum()  # voices lose 6 dB an octave
        for third in range(3):
            kernel = envelope * torch.cos(2 * math.pi * (hz[band] * time + third / 3))
            convs[0].weight[3 * band + third, 0] = kernel - envelope * kernel.sum() / envelope.sum()
    convs[0].bias.normal_(0.0, 0.03)
    norms[0].weight.fill_(2.0)
    for index, (conv, norm) in enumerate(zip(convs[1:], norms[1:], strict=True)):
        conv.weight.mul_(0.1)
        conv.bias.zero_()
        window = torch.hann_window(conv.weight.shape[2] + 2, periodic=False)[1:-1]
        window /= window.sum()
        for out in range(conv.weight.shape[0]):
            if index == 0:
                band = out % bands
                conv.weight[out, 3 * band : 3 * band + 3] += window
            else:
                conv.weight[out, out] += window
        copies = torch.arange(conv.weight.shape[0]) // bands
        norm.bias.copy_((1.5 - copies) if index == 0 else torch.full_like(norm.bias, 1.5))


class Heads(nn.Module):
    """Linear read-outs, so that what they find is plain in the features."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.phone = nn.Linear(hidden_size, len(PHONES))
        self.articulation = nn.Linear(hidden_size, 3)
        self.mel = nn.Linear(hidden_size, NUM_MELS)
        self.mouth_deviation = nn.Linear(hidden_size, 2)
        nn.init.zeros_(self.mouth_deviation.weight)

    def mouth(self, features: Tensor) -> Tensor:
        """Lip gap and mouth width, in the units of `Clip`, as deviations from a typical mouth."""
        deviation = self.mouth_deviation(features)
        return deviation * deviation.new_tensor([1.0, 0.1]) + deviation.new_tensor([0.5, 1.0])


# --- data -----------------------------------------------------------------------------------------------------------


def augment(clean: np.ndarray, rng: np.random.Generator, other: np.ndarray | None = None) -> np.ndarray:
    """Put a voice into a room, behind a microphone, into noise and through a bad line; times do not change.

    Args:
        clean (`np.ndarray` of shape `(n,)`): Voice at 16 kHz.
        rng (`np.random.Generator`): Source of all choices.
        other (`np.ndarray` of shape `(n,)`, *optional*): Another voice, for babble in the background.

    Returns:
        `np.ndarray` of shape `(n,)`, float32.
    """
    n = len(clean)
    size = n + 8192
    hz = np.fft.rfftfreq(size, 1 / SAMPLING_RATE)
    spectrum = np.fft.rfft(clean, size)
    if rng.random() < 0.4:  # room: direct sound and an exponential tail of 0.1 to 0.5 s
        length = 8000
        tail = rng.standard_normal(length) * np.exp(-6.9 * np.arange(length) / (SAMPLING_RATE * rng.uniform(0.1, 0.5)))
        tail *= rng.uniform(0.05, 0.6) / math.sqrt(float((tail**2).sum()))
        tail[: int(rng.integers(8, 200))] = 0
        tail[0] = 1.0
        spectrum *= np.fft.rfft(tail, size)
    if rng.random() < 0.6:  # microphone: a tilt and two bumps
        octave = np.log2(np.maximum(hz, 50) / 1000)
        gain_db = rng.uniform(-3, 3) * octave
        for _ in range(2):
            gain_db += rng.normal(0, 4) * np.exp(-0.5 * ((octave - rng.uniform(-3, 3)) / 0.7) ** 2)
        spectrum *= 10 ** (gain_db / 20)
    if rng.random() < 0.3:  # band limits of a telephone or of a low bit rate
        low, high = rng.uniform(20, 300), rng.uniform(3000, 7500)
        spectrum *= 1 / (1 + np.exp((low - hz) / 20)) / (1 + np.exp((hz - high) / 100))
    out = np.fft.irfft(spectrum, size)[:n].astype(np.float32)
    level = max(float(np.sqrt(np.mean(clean**2))), 1e-3)
    if rng.random() < 0.6:  # coloured noise at 0 to 40 dB
        colour = np.fft.rfft(rng.standard_normal(n)) / np.maximum(np.fft.rfftfreq(n, 1 / 1000), 1) ** rng.uniform(0, 1)
        noise = np.fft.irfft(colour, n)
        out += (noise * level * 10 ** (-rng.uniform(3, 40) / 20) / (noise.std() + 1e-9)).astype(np.float32)
    if other is not None and rng.random() < 0.15:
        out += other * np.float32(level * 10 ** (-rng.uniform(10, 30) / 20) / (np.sqrt(np.mean(other**2)) + 1e-6))
    if rng.random() < 0.15:  # codec: 8 or fewer bits on a logarithmic scale
        steps = 2.0 ** rng.integers(5, 8)
        peak = np.abs(out).max() + 1e-6
        coded = np.round(np.sign(out) * np.log1p(255 * np.abs(out) / peak) / np.log(256) * steps) / steps
        out = (np.sign(coded) * (256 ** np.abs(coded) - 1) / 255 * peak).astype(np.float32)
    return out


@dataclass
class Clip:
    """Sound of one talking clip with the mouth of its speaker, a row a frame."""

    samples: np.ndarray  # [640 N] float32
    mouth: np.ndarray  # [N, 2] lip gap and width, / the speaker's own


def load_clips(folder: Path, audio_cache: Path | None = None) -> dict[str, list[tuple[str, Clip]]]:
    """Talking clips of each person, without those that make no sound.

    Args:
        folder (`Path`): With `clips.npz`, `clips/<name>.mp4` and `identities.csv`.
        audio_cache (`Path`, *optional*): File for the decoded sound of all clips.

    Returns:
        `dict` from the person to `[(name, Clip), ...]`. The lip gap is divided by the 90th percentile of the person's,
        the width by the median: people differ in the size of their lips, microphones do not tell.
    """
    table = np.load(folder / "clips.npz")
    names, offsets, mouth = [str(n) for n in table["names"]], table["offsets"], table["mouth"].astype(np.float32)
    if audio_cache is not None and audio_cache.exists():
        sound = np.load(audio_cache)
    else:
        processor = VasaAudioProcessor(SAMPLING_RATE)
        sound = {n: np.int16(32767 * processor.load(folder / "clips" / f"{n}.mp4").clip(-1, 1)) for n in names}
        if audio_cache is not None:
            np.savez(audio_cache, **sound)
    rows: dict[str, list[int]] = {}
    for index, person in enumerate(people_of_clips(folder, names)):
        rows.setdefault(person, []).append(index)
    people = {}
    for person, indices in rows.items():
        own = np.concatenate([mouth[offsets[i] : offsets[i + 1]] for i in indices])
        scale = np.array([max(0.05, np.percentile(own[:, 0], 90)), np.median(own[:, 1])], np.float32)
        clips = []
        for i in indices:
            length = int(offsets[i + 1] - offsets[i])
            samples = sound[names[i]][: length * FRAME].astype(np.float32) / 32768
            if np.sqrt(np.mean(samples**2)) > 2e-3:
                samples = np.pad(samples, (0, length * FRAME - len(samples)))
                clips.append((names[i], Clip(samples, mouth[offsets[i] : offsets[i + 1]] / scale)))
        if clips:
            people[person] = clips
    return people


def make_utterances(count: int, seed: int, held_out: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
    """Speak `count` random utterances: `[(samples at 16 kHz, phone ids at 50 Hz), ...]`; speeds vary with the pitch."""
    rng = np.random.default_rng(seed)
    utterances = []
    for _ in range(count):
        speech = random_speech(rng, held_out)
        samples, stretch = speech.samples, 1.0
        if rng.random() < 0.5:
            rate = int(rng.integers(85, 118)) * 160  # sounds like another throat
            samples, stretch = resample(samples, SAMPLING_RATE, rate), rate / SAMPLING_RATE
        num = len(samples) // 320
        utterances.append(
            (samples[: num * 320].astype(np.float16), speech.phone_ids(num, 50 * stretch).astype(np.int8))
        )
    return utterances


class SpeechDataset(Dataset):
    """Windows of synthetic speech, of talking clips and of plain recordings; sample `i` depends on `i` alone.

    Samples of one batch have the same length, one of `WINDOWS`.
    """

    def __init__(
        self,
        options: AudioEncoderOptions,
        utterances: list[tuple[np.ndarray, np.ndarray]],
        clips: list[Clip],
        recordings: list[np.ndarray],
    ):
        self.options, self.utterances, self.clips, self.recordings = options, utterances, clips, recordings
        share = np.sqrt([float(len(clip.mouth)) for clip in clips])
        self.clip_shares = share / share.sum() if clips else None

    def __len__(self) -> int:
        return self.options.max_steps * self.options.batch_size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.options.seed, index])
        frames = WINDOWS[index // self.options.batch_size % len(WINDOWS)]
        mouth, known = np.zeros((frames, 2), np.float32), np.zeros(frames, np.float32)
        phones = np.full(2 * frames, -1, np.int64)
        if self.clips and rng.random() < self.options.real_share:
            clip = self.clips[rng.choice(len(self.clips), p=self.clip_shares)]
            first = int(rng.integers(-10, max(-10, len(clip.mouth) + 2 - frames) + 1))
            clean = cut(clip.samples, first * FRAME, frames * FRAME)
            begin, end = max(first, 0), min(first + frames, len(clip.mouth))
            mouth[begin - first : end - first] = clip.mouth[begin:end]
            known[begin - first : end - first] = 1
        elif self.recordings and rng.random() < 0.1:
            samples = self.recordings[rng.integers(len(self.recordings))]
            clean = cut(samples, int(rng.integers(0, max(1, len(samples) - frames * FRAME))), frames * FRAME)
        else:
            clean, phones = self.synthetic(rng, frames)
        clean = clean * np.float32(10 ** (rng.uniform(-20, 6) / 20) * 0.5 / max(float(np.abs(clean).max()), 0.02))
        other = self.synthetic(rng, frames)[0] if rng.random() < 0.2 else None
        samples = augment(clean, rng, other) if rng.random() < 0.85 else clean
        return {
            "samples": torch.from_numpy(np.clip(samples, -1, 1).astype(np.float32)),
            "clean": torch.from_numpy(clean.astype(np.float32)),
            "phones": torch.from_numpy(phones),
            "articulation": torch.from_numpy(articulation(np.maximum(phones, 0))),
            "mouth": torch.from_numpy(mouth),
            "known": torch.from_numpy(known),
        }

    def synthetic(self, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Utterances with pauses between them, cut to the window."""
        samples, phones, total = [], [], 0
        while total < 2 * frames + 60:
            gap = int(rng.integers(0, 25))
            speech, ids = self.utterances[rng.integers(len(self.utterances))]
            speech = speech.astype(np.float32) * np.float32(10 ** (rng.uniform(-6, 3) / 20))
            samples += [np.zeros(gap * 320, np.float32), speech]
            phones += [np.zeros(gap, np.int64), ids.astype(np.int64)]
            total += gap + len(ids)
        first = int(rng.integers(0, total - 2 * frames + 1))
        return (
            np.concatenate(samples)[first * 320 : (first + 2 * frames) * 320],
            np.concatenate(phones)[first : first + 2 * frames],
        )


def cut(samples: np.ndarray, start: int, length: int) -> np.ndarray:
    """`samples[start : start + length]` with zeros beyond the ends."""
    inside = samples[max(start, 0) : max(start + length, 0)]
    left = min(max(-start, 0), length)
    return np.pad(inside, (left, length - left - len(inside)))


# --- losses ---------------------------------------------------------------------------------------------------------


def log_mel(samples: Tensor, num_mels: int = NUM_MELS) -> Tensor:
    """Log-mel spectrum at 50 Hz of `[B, n]` samples: `[B, n / 320, num_mels]`, about zero mean and unit variance."""
    window = torch.hann_window(512, device=samples.device)
    padded = F.pad(samples, (96, 96 + 320))
    frames = padded.unfold(1, 512, 320)[:, : samples.shape[1] // 320]
    power = torch.fft.rfft(frames * window).abs().square()  # [B, frames, 257]
    return (torch.log(power @ _mel_bank(num_mels).to(power) + 1e-4) + 3.0) / 4.0


def _mel_bank(num_mels: int) -> Tensor:
    edges = torch.linspace(2595 * math.log10(1 + 60 / 700), 2595 * math.log10(1 + 7600 / 700), num_mels + 2)
    hz = (700 * (10 ** (edges / 2595) - 1))[None]
    bins = torch.linspace(0, SAMPLING_RATE / 2, 257)[:, None]
    rise = (bins - hz[:, :-2]) / (hz[:, 1:-1] - hz[:, :-2])
    fall = (hz[:, 2:] - bins) / (hz[:, 2:] - hz[:, 1:-1])
    return torch.minimum(rise, fall).clamp_min(0)


def correlation(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Pearson correlation along the last axis where `weight` is 1, less where a signal deviates by 0.1 or less.

    Without that floor the gradient of a prediction that is still flat would drown all other losses.
    """
    total = weight.sum(-1, keepdim=True).clamp_min(1)
    a = (a - (a * weight).sum(-1, keepdim=True) / total) * weight
    b = (b - (b * weight).sum(-1, keepdim=True) / total) * weight
    floor = 0.01 * total.squeeze(-1)
    return (a * b).sum(-1) / ((a.square().sum(-1) + floor) * (b.square().sum(-1) + floor)).sqrt()


def training_loss(modules: dict[str, nn.Module], batch: dict[str, Tensor], options: AudioEncoderOptions):
    """Sum of the losses at the head of this file, and each alone for the log."""
    encoder, heads = modules["encoder"], modules["heads"]
    samples = batch["samples"]
    num = samples.shape[1] // 320
    pad = feature_geometry(encoder.config)[1] - 320
    hidden = encoder(F.pad(samples, (pad // 2, pad - pad // 2))).last_hidden_state.float()  # [B, 2T, hidden]
    losses = {"mel": F.l1_loss(heads.mel(hidden).float(), log_mel(batch["clean"]))}

    spoken = batch["phones"] >= 0  # [B, 2T]
    if spoken.any():
        logits = heads.phone(hidden[spoken]).float()
        target = batch["phones"][spoken]
        losses["phone"] = F.cross_entropy(logits, target, label_smoothing=0.05)
        losses["articulation"] = F.smooth_l1_loss(
            heads.articulation(hidden[spoken]).float(), batch["articulation"][spoken], beta=0.1
        )
    known = batch["known"]
    if known.any():
        mouth = heads.mouth(hidden.unflatten(1, (num // 2, 2)).mean(2)).float()  # [B, T, 2]
        # Widths vary by a few percent: ten times as large they count like the gap.
        unit = torch.tensor([1.0, 10.0], device=mouth.device)
        distance = F.smooth_l1_loss(mouth * unit, batch["mouth"] * unit, beta=0.5, reduction="none").sum(-1) * known
        real = known.sum(1) > 1
        match = correlation(mouth[real][..., 0], batch["mouth"][real][..., 0], known[real])
        losses["mouth"] = 0.5 * distance.sum() / known.sum() + 0.5 * (1 - match.mean())
    weights = {name: getattr(options, f"{name}_weight") for name in losses}
    total = sum(weights[name] * value for name, value in losses.items())
    logs = {name: value.detach() for name, value in losses.items()}
    if spoken.any():
        logs["accuracy"] = (logits.detach().argmax(-1) == target).float().mean()
    if known.any():
        logs["lip_correlation"] = match.detach().mean()
    return total, logs


# --- validation and the run -----------------------------------------------------------------------------------------


@torch.no_grad()
def validate(encoder: nn.Module, heads: nn.Module, utterances: list, clips: list[Clip]) -> dict[str, float]:
    """Accuracy of phones on utterances, and correlation of predicted with true lip gaps within clips."""
    values: dict[str, float] = {}
    right = total = 0
    for samples, phones in utterances:
        num = len(phones) // 2 * 2
        window = torch.from_numpy(samples[: num * 320].astype(np.float32))[None]
        pad = feature_geometry(encoder.config)[1] - 320
        hidden = encoder(F.pad(window.to(encoder.device), (pad // 2, pad - pad // 2))).last_hidden_state
        guess = heads.phone(hidden)[0].argmax(-1).cpu().numpy()
        right, total = right + int((guess == phones[:num]).sum()), total + num
    if total:
        values["phone_accuracy"] = right / total
    scores = []
    for clip in clips:
        features = window_features(encoder, torch.from_numpy(clip.samples)[None], 0, len(clip.mouth))
        guess = heads.mouth(features)[0, :, 0].cpu().numpy()
        if clip.mouth[:, 0].std() > 1e-3:
            scores.append(float(np.corrcoef(guess, clip.mouth[:, 0])[0, 1]))
    if scores:
        values["lip_correlation"] = float(np.mean(scores))
    return values


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train and save `audio_encoder` (fp16), `audio_processor` and `heads.safetensors` in `output`.

    Args:
        arguments (`list[str]`, *optional*, defaults to the process' own): Command line.

    Returns:
        `dict[str, float]`: Last logged losses.
    """
    options = parse_options(AudioEncoderOptions, arguments, __doc__.split("\n")[0])
    if not available_engines():
        raise ImportError("a speech synthesiser is needed: `apt install libespeak-ng1` or `apt install flite`.")
    utterances = make_utterances(options.num_utterances, options.seed)
    held_out = make_utterances(max(4, min(80, options.num_utterances // 10)), options.seed + 1, held_out=True)
    clips, validation, recordings = [], [], []
    if options.data:
        folder = training_folder(options.data)
        people = load_clips(folder, Path(options.audio_cache) if options.audio_cache else None)
        sizes = Counter({person: len(own) for person, own in people.items() if len(own) >= 20})
        kept = {person for person, _ in sizes.most_common()[::-1][: options.validation_people]}
        for person, own in people.items():
            (validation if person in kept else clips).extend(clip for _, clip in own)
        processor = VasaAudioProcessor(SAMPLING_RATE)
        recordings = [processor.load(path) for path in sorted((folder / "speech").glob("*.*"))]
    print(f"{len(utterances)} utterances, {len(clips)} + {len(validation)} clips, {len(recordings)} recordings")

    torch.manual_seed(options.seed)
    encoder = Wav2Vec2Model(small_config(options.hidden_size, options.num_layers))
    init_filter_bank(encoder)
    if not options.train_filter_bank:
        encoder.freeze_feature_encoder()
    modules = {"encoder": encoder, "heads": Heads(options.hidden_size)}
    players = [
        Player("audio", ("encoder", "heads"), lambda m, b, step: training_loss(m, b, options), options.learning_rate)
    ]

    def on_log(step: int, values: dict[str, float]) -> None:
        print(step, " ".join(f"{name} {value:.3f}" for name, value in values.items()), flush=True)

    def on_sample(modules: dict[str, nn.Module], step: int, folder: Path) -> None:
        values = validate(modules["encoder"], modules["heads"], held_out, validation)
        print(step, "validation", " ".join(f"{name} {value:.3f}" for name, value in values.items()), flush=True)
        save(modules["encoder"], modules["heads"], folder)

    dataset = SpeechDataset(options, utterances, clips, recordings)
    return train(options, modules, players, dataset, ("encoder", "heads"), on_log, on_sample).logs


def save(encoder: nn.Module, heads: nn.Module, folder: Path) -> None:
    """Write the encoder in fp16 with its processor, and beside them the heads, which only evaluation needs."""
    half = Wav2Vec2Model(encoder.config)
    half.load_state_dict(encoder.state_dict())
    half.half().save_pretrained(folder / "audio_encoder")
    VasaAudioProcessor().save_pretrained(folder / "audio_processor")
    save_file(heads.state_dict(), folder / "heads.safetensors")


if __name__ == "__main__":
    main()

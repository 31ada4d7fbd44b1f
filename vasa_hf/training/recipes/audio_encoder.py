"""Train the small audio encoder: `vasa-hf train audio_encoder --output DIR --max-minutes 25`.

The encoder is a `transformers.Wav2Vec2Model` of 2 to 4M parameters. It learns to tell phones apart on synthetic speech,
whose phone times are exact, and to say where lips are. With `--data DIR ...` it also hears real voices: the talking
clips there (`clips.npz` with `mouth`, `clips/*.mp4`) teach it what lips do with them, `speech/*` what a clean voice is
under noise. With `--teacher` it learns from noisy windows what Whisper hears in whole clean recordings.

    samples -> Wav2Vec2Model -> [B, 2T, hidden] -> phone      (synthetic; cross-entropy)
                                                -> lip opening, width, closure of the phone (synthetic)
                                                -> log-mel spectrum without the noise (all)
                                                -> the teacher's states without the noise (all)
                     mean of two -> [B, T, hidden] -> lip gap and mouth width of the speaker (real clips)

The heads are thrown away. # Not in the paper: VASA-1 takes a published Wav2Vec2; all of this page is ours.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import Wav2Vec2Config, Wav2Vec2Model

from vasa_hf.data.clip_files import list_clips
from vasa_hf.data.shards import training_folder
from vasa_hf.data.speech_teacher import TeacherTargets, load_teacher
from vasa_hf.data.synthetic.speech import PHONES, articulation, available_engines, random_speech
from vasa_hf.hub import resolve
from vasa_hf.processors.audio import VasaAudioProcessor, feature_geometry, resample
from vasa_hf.training.loop import Player, TrainingState, print_log
from vasa_hf.training.options import LoopOptions, option
from vasa_hf.training.saving import save_components, train_and_save

logger = logging.getLogger(__name__)

SAMPLING_RATE, FRAME = 16_000, 640
NUM_MELS = 24
WINDOWS = (36, 44, 62)  # frames a sample; 62 = 10 of context, 50 of a motion window, 2 of look-ahead


@dataclass
class AudioEncoderOptions(LoopOptions):
    """Options of the training."""

    initial: str | None = option(None, "audio encoder folder to start from, such as vasa-small/audio_encoder")
    teacher: str | None = option(None, "Whisper to learn from: a CTranslate2 folder, or a transformers folder or name")
    data: list[str] = option([], "folders with clips.npz, clips/, identities.csv, or speech/; none: synthetic speech")
    audio_cache: str | None = option(None, "npz of the clips' audio, path -> int16 at 16 kHz, made if not there")
    num_utterances: int = option(2000, "synthetic utterances to speak before the training")
    real_share: float = option(0.5, "share of real clips among the samples")
    recording_share: float = option(0.1, "share of the files of speech/ among the other samples")
    stretched_copies: int = option(0, "copies of each real clip at another speed and pitch")
    validation_people: int = option(3, "people of the clips kept for validation, those with the fewest of at least 20")
    learning_rate: float = 1e-3
    phone_weight: float = option(1.0, "weight of the cross-entropy of phones")
    articulation_weight: float = option(1.0, "weight of the articulation of synthetic phones")
    mel_weight: float = option(0.1, "weight of the clean log-mel spectrum")
    mouth_weight: float = option(1.5, "weight of the lip gap and mouth width of real clips")
    teacher_weight: float = option(4.0, "weight of the teacher's states")
    hidden_size: int = option(192, "width of the transformer, and number of components of the teacher's states")
    num_layers: int = option(4, "layers of the transformer; those that `initial` lacks begin as identity")
    train_filter_bank: bool = option(False, "train the convolutions too; without it a step costs half")
    max_steps: int = 20_000
    batch_size: int = 20
    sample_every: int = option(400, "steps between validations; 0 for only the last one")
    checkpoint_every: int = 0
    ema_decay: float = 0.995
    mixed_precision: str = "bf16"
    save_dtype: str = "float16"


def small_config(hidden_size: int = 192, num_layers: int = 4) -> Wav2Vec2Config:
    """Configuration of the embedded encoder: stride 320 like every Wav2Vec2, but four convolutions instead of seven.

    The first one is long enough for a filter bank (10 ms) and has a stride of 20 instead of 5, which costs a third of
    the usual stack. Nothing is normalised over time: a feature depends on the audio near it, silence stays silence.
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
    layer norm divides by the level of all bands; what the biases add is the level under which audio counts as silence.
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
        self.teacher = nn.Linear(hidden_size, hidden_size)
        self.phone = nn.Linear(hidden_size, len(PHONES))
        self.articulation = nn.Linear(hidden_size, 3)
        self.mel = nn.Linear(hidden_size, NUM_MELS)
        self.mouth_deviation = nn.Linear(hidden_size, 2)
        nn.init.zeros_(self.mouth_deviation.weight)

    def save(self, path: Path) -> None:
        """Write the weights as one safetensors file, in float32."""
        save_file(self.state_dict(), path)

    def mouth(self, features: Tensor) -> Tensor:
        """Lip gap and mouth width, in the units of `Voice`, as deviations from a typical mouth."""
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
    if rng.random() < 0.4:  # room: direct signal and an exponential tail of 0.1 to 0.5 s
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
class Voice:
    """Audio with what is known of it, from its start; a frame has two phones and two of the teacher's states."""

    samples: np.ndarray  # [640 N]
    mouth: np.ndarray | None = None  # [N, 2] lip gap and width, / the speaker's own
    phones: np.ndarray | None = None  # [2 N] indices into PHONES
    teacher: np.ndarray | None = None  # [2 N, size]

    def __len__(self) -> int:
        return len(self.samples) // FRAME


@contextmanager
def load_sound(cache: str | None) -> Iterator[dict[str, np.ndarray]]:
    """Audio of `audio_cache`; what the context adds is kept there too."""
    sound = dict(np.load(cache)) if cache and Path(cache).exists() else {}
    known = len(sound)
    yield sound
    if cache and len(sound) > known:
        np.savez(cache, **sound)


def load_clips(folder: Path, sound: dict[str, np.ndarray]) -> dict[str, list[Voice]]:
    """Talking clips of each person, without silent ones.

    Args:
        folder (`Path`): With `clips.npz`, `clips/<name>.mp4` and `identities.csv`.
        sound (`dict`): Decoded audio, path -> int16 `(n,)` at 16 kHz; what is not there is decoded and added.

    Returns:
        `dict` from folder/person to the clips. The lip gap is divided by the 90th percentile of the person's,
        the width by the median: people differ in the size of their lips, microphones do not tell.
    """
    files = list_clips(folder, labelled=True)
    with np.load(folder / "clips.npz") as table:
        offsets, mouth = table["offsets"], table["mouth"].astype(np.float32)
    rows: dict[str, list[int]] = {}
    for index, clip in enumerate(files):
        rows.setdefault(f"{folder}/{clip.person}", []).append(index)
    people = {}
    for person, indices in rows.items():
        own = np.concatenate([mouth[offsets[i] : offsets[i + 1]] for i in indices])
        scale = np.array([max(0.05, np.percentile(own[:, 0], 90)), np.median(own[:, 1])], np.float32)
        clips = []
        for i in indices:
            path, length = str(files[i].path), files[i].num_frames
            if path not in sound:
                sound[path] = np.int16(32767 * files[i].read_audio().clip(-1, 1))
            samples = sound[path][: length * FRAME].astype(np.float32) / 32768
            if len(samples) and np.sqrt(np.mean(samples**2)) > 2e-3:
                samples = np.pad(samples, (0, length * FRAME - len(samples)))
                clips.append(Voice(samples, mouth[offsets[i] : offsets[i + 1]] / scale))
        if clips:
            people[person] = clips
    return people


def split_people(
    people: dict[str, list[Voice]], count: int, least: int = 20
) -> tuple[dict[str, list[Voice]], dict[str, list[Voice]]]:
    """Keep `count` people out, those with the fewest clips but at least `least`: `(the others, those kept out)`."""
    sizes = Counter({person: len(own) for person, own in people.items() if len(own) >= least})
    kept = {person for person, _ in sizes.most_common()[::-1][:count]}
    return (
        {person: own for person, own in people.items() if person not in kept},
        {person: own for person, own in people.items() if person in kept},
    )


def load_voices(options: AudioEncoderOptions) -> tuple[list[Voice], list[Voice], list[Voice]]:
    """Clips for training, clips of other people for validation, and recordings without a face, of all `data`."""
    people: dict[str, list[Voice]] = {}
    recordings = []
    processor = VasaAudioProcessor(SAMPLING_RATE)
    with load_sound(options.audio_cache) as sound:
        for folder in map(training_folder, options.data):
            if (folder / "clips.npz").exists():
                people |= load_clips(folder, sound)
            for path in sorted((folder / "speech").glob("*.*")):
                samples = processor.load(path)
                recordings.append(Voice(samples[: len(samples) // FRAME * FRAME]))
    clips, validation = (
        [clip for own in part.values() for clip in own] for part in split_people(people, options.validation_people)
    )
    return clips, validation, recordings


def stretch(voice: Voice, rate: int) -> Voice:
    """A clip as if it had been recorded at `rate` Hz: faster and higher below 16,000, and its mouth with it."""
    samples = resample(voice.samples, SAMPLING_RATE, rate)
    num = len(samples) // FRAME
    at = (np.arange(num) + 0.5) * SAMPLING_RATE / rate - 0.5
    mouth = [np.interp(at, np.arange(len(voice)), voice.mouth[:, c]) for c in range(2)]
    return Voice(samples[: num * FRAME], np.stack(mouth, 1).astype(np.float32))


def random_rate(rng: np.random.Generator) -> int:
    """A rate for `resample` that gives a voice of another pitch."""
    return int(rng.integers(85, 118)) * 160


def make_utterances(count: int, seed: int, held_out: bool = False) -> list[Voice]:
    """Speak `count` random utterances, float16 with phones; speeds vary with the pitch."""
    rng = np.random.default_rng(seed)
    utterances = []
    for _ in range(count):
        speech = random_speech(rng, held_out)
        samples, ratio = speech.samples, 1.0
        if rng.random() < 0.5:
            rate = random_rate(rng)
            samples, ratio = resample(samples, SAMPLING_RATE, rate), rate / SAMPLING_RATE
        num = len(samples) // FRAME
        phones = speech.phone_ids(2 * num, 50 * ratio).astype(np.int8)
        utterances.append(Voice(samples[: num * FRAME].astype(np.float16), phones=phones))
    return utterances


def add_targets(groups: list[list[Voice]], teacher: Callable[[np.ndarray], np.ndarray], size: int) -> None:
    """Write into each voice what the teacher hears in it; the components are those of the first group."""
    taught = [[teacher(voice.samples.astype(np.float32)) for voice in group] for group in groups]
    targets = TeacherTargets.fit(taught[0], size)
    for group, features in zip(groups, taught, strict=True):
        for voice, own in zip(group, features, strict=True):
            voice.teacher = targets(own)


class SpeechDataset(Dataset):
    """Windows of synthetic speech, of talking clips and of plain recordings; sample `i` depends on `i` alone.

    Samples of one batch have the same length, one of `WINDOWS`.
    """

    def __init__(
        self, options: AudioEncoderOptions, utterances: list[Voice], clips: list[Voice], recordings: list[Voice]
    ):
        self.options, self.utterances, self.clips, self.recordings = options, utterances, clips, recordings
        self.shares = {}
        for name, voices in (("clips", clips), ("recordings", recordings)):
            share = np.sqrt([float(len(voice)) for voice in voices])
            self.shares[name] = share / share.sum() if voices else None

    def __len__(self) -> int:
        return self.options.max_steps * self.options.batch_size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.options.seed, index])
        frames = WINDOWS[index // self.options.batch_size % len(WINDOWS)]
        kind = None
        if self.clips and rng.random() < self.options.real_share:
            kind = "clips"
        elif self.recordings and rng.random() < self.options.recording_share:
            kind = "recordings"
        if kind:
            voices = getattr(self, kind)
            voice = voices[rng.choice(len(voices), p=self.shares[kind])]
            first = int(rng.integers(-10, max(-10, len(voice) + 2 - frames) + 1))
        else:
            voice = self.join_utterances(rng, frames)
            first = int(rng.integers(0, len(voice) - frames + 1))
        clean = cut(voice.samples, first * FRAME, frames * FRAME).astype(np.float32)
        clean = clean * np.float32(10 ** (rng.uniform(-20, 6) / 20) * 0.5 / max(float(np.abs(clean).max()), 0.02))
        other = self.join_utterances(rng, frames).samples[: len(clean)] if rng.random() < 0.2 else None
        samples = augment(clean, rng, other) if rng.random() < 0.85 else clean

        phones = cut(voice.phones, 2 * first, 2 * frames, -1) if voice.phones is not None else np.full(2 * frames, -1)
        mouth, known = np.zeros((frames, 2), np.float32), np.zeros(frames, np.float32)
        if voice.mouth is not None:
            mouth, known = cut(voice.mouth, first, frames), cut(np.ones(len(voice), np.float32), first, frames)
        sample = {
            "samples": np.clip(samples, -1, 1).astype(np.float32),
            "clean": clean,
            "phones": phones.astype(np.int64),
            "articulation": articulation(np.maximum(phones, 0)),
            "mouth": mouth,
            "known": known,
        }
        if voice.teacher is not None:
            sample["teacher"] = cut(voice.teacher, 2 * first, 2 * frames, np.nan)  # unknown beyond the ends
        return {name: torch.from_numpy(value) for name, value in sample.items()}

    def join_utterances(self, rng: np.random.Generator, frames: int) -> Voice:
        """Utterances with pauses between them, longer than the window; the teacher does not hear pauses."""
        parts, total = [], 0
        while total < frames + 30:
            utterance, gap = self.utterances[rng.integers(len(self.utterances))], int(rng.integers(0, 13))
            loud = utterance.samples.astype(np.float32) * np.float32(10 ** (rng.uniform(-6, 3) / 20))
            pause = Voice(np.zeros(gap * FRAME, np.float32), phones=np.zeros(2 * gap, np.int8))
            if utterance.teacher is not None:
                pause.teacher = np.full((2 * gap, utterance.teacher.shape[1]), np.nan, np.float16)
            parts += [pause, replace(utterance, samples=loud)]
            total += gap + len(utterance)
        names = ["samples", "phones"] + ["teacher"] * (parts[0].teacher is not None)
        return Voice(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def cut(values: np.ndarray, start: int, length: int, fill: float = 0) -> np.ndarray:
    """`values[start : start + length]` with `fill` beyond the ends."""
    inside = values[max(start, 0) : max(start + length, 0)]
    left = min(max(-start, 0), length)
    around = [(left, length - left - len(inside))] + [(0, 0)] * (values.ndim - 1)
    return np.pad(inside, around, constant_values=fill)


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
        said = batch["phones"][spoken]
        losses["phone"] = F.cross_entropy(logits, said, label_smoothing=0.05)
        losses["articulation"] = F.smooth_l1_loss(
            heads.articulation(hidden[spoken]).float(), batch["articulation"][spoken], beta=0.1
        )
    if "teacher" in batch:
        known = batch["teacher"].isfinite().all(-1)  # [B, 2T]
        losses["teacher"] = F.mse_loss(heads.teacher(hidden[known]).float(), batch["teacher"][known].float())
    known = batch["known"]
    if known.any():
        mouth = heads.mouth(hidden.unflatten(1, (num // 2, 2)).mean(2)).float()  # [B, T, 2]
        # Widths vary by a few percent: ten times as large they count like the gap.
        unit = torch.tensor([1.0, 10.0], device=mouth.device)
        mouth, target = mouth * unit, batch["mouth"] * unit
        distance = F.smooth_l1_loss(mouth, target, beta=0.5, reduction="none").sum(-1) * known
        real = known.sum(1) > 1
        match = correlation(mouth[real].mT, target[real].mT, known[real][:, None])  # [B', 2]
        losses["mouth"] = 0.5 * distance.sum() / known.sum() + 0.5 * (1 - match.mean())
    weights = {name: getattr(options, f"{name}_weight") for name in losses}
    total = sum(weights[name] * value for name, value in losses.items())
    logs = {name: value.detach() for name, value in losses.items()}
    if spoken.any():
        logs["accuracy"] = (logits.detach().argmax(-1) == said).float().mean()
    if known.any():
        logs["gap_correlation"], logs["width_correlation"] = match.detach().mean(0)
    return total, logs


# --- validation and the run -----------------------------------------------------------------------------------------


@torch.no_grad()
def validate(encoder: nn.Module, heads: nn.Module, utterances: list[Voice], clips: list[Voice]) -> dict[str, float]:
    """Accuracy of phones on utterances; on clips, correlation of predicted with true gaps and widths within each.

    With a teacher also `teacher`, the mean squared error of its states on the clips (their variance is 1).
    """
    values: dict[str, list[float]] = {}
    pad = feature_geometry(encoder.config)[1] - 320
    for voice in utterances:
        window = torch.from_numpy(voice.samples.astype(np.float32))[None]
        hidden = encoder(F.pad(window.to(encoder.device), (pad // 2, pad - pad // 2))).last_hidden_state
        guess = heads.phone(hidden)[0].argmax(-1).cpu().numpy()
        values.setdefault("phone_accuracy", []).extend(guess == voice.phones)
    for voice in clips:
        window = torch.from_numpy(voice.samples)[None].to(encoder.device)
        hidden = encoder(F.pad(window, (pad // 2, pad - pad // 2))).last_hidden_state
        guess = heads.mouth(hidden.unflatten(1, (len(voice), 2)).mean(2))[0].cpu().numpy()
        if voice.mouth[:, 0].std() > 1e-3:
            for column, name in enumerate(("gap_correlation", "width_correlation")):
                values.setdefault(name, []).append(np.corrcoef(guess[:, column], voice.mouth[:, column])[0, 1])
        if voice.teacher is not None:
            error = heads.teacher(hidden)[0].cpu().numpy() - voice.teacher
            values.setdefault("teacher", []).append(np.square(error).mean())
    return {name: float(np.mean(value)) for name, value in values.items()}


def make_encoder(options: AudioEncoderOptions) -> Wav2Vec2Model:
    """A new encoder with a filter bank, or that of `initial`, which may get more layers.

    Raises:
        ValueError: If `initial` has another width, or more layers.
    """
    encoder = Wav2Vec2Model(small_config(options.hidden_size, options.num_layers))
    if options.initial is None:
        init_filter_bank(encoder)
        return encoder
    start = Wav2Vec2Model.from_pretrained(resolve(options.initial), dtype=torch.float32)
    size = (start.config.hidden_size, start.config.num_hidden_layers)
    if size[0] != options.hidden_size or size[1] > options.num_layers:
        raise ValueError(
            f"`initial` must have `hidden_size` {options.hidden_size} and at most `num_layers` {options.num_layers};"
            f" {options.initial!r} has {size[0]} and {size[1]}."
        )
    for layer in encoder.encoder.layers[size[1] :]:  # both branches of a new layer add nothing at first
        for last in (layer.attention.out_proj, layer.feed_forward.output_dense):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    encoder.load_state_dict({**encoder.state_dict(), **start.state_dict()})
    return encoder


def run(options: AudioEncoderOptions) -> TrainingState:
    """Train and save `audio_encoder/`, `audio_processor/` and `heads.safetensors`, which only evaluation needs."""
    if not available_engines():
        raise ImportError("a speech synthesiser is needed: `apt install libespeak-ng1` or `apt install flite`.")
    torch.manual_seed(options.seed)
    encoder = make_encoder(options)
    teacher = load_teacher(options.teacher) if options.teacher else None
    utterances = make_utterances(options.num_utterances, options.seed)
    held_out = make_utterances(max(4, min(80, options.num_utterances // 10)), options.seed + 1, held_out=True)
    clips, validation, recordings = load_voices(options)
    rng = np.random.default_rng(options.seed)
    clips += [stretch(clip, random_rate(rng)) for _ in range(options.stretched_copies) for clip in clips]
    if teacher:
        add_targets([clips or utterances, utterances, validation, recordings], teacher, options.hidden_size)
    print(f"{len(utterances)} utterances, {len(clips)} + {len(validation)} clips, {len(recordings)} recordings")

    if not options.train_filter_bank:
        encoder.freeze_feature_encoder()
    modules: dict[str, nn.Module] = {"encoder": encoder, "heads": Heads(options.hidden_size)}
    learnt = tuple(modules)
    player = Player(
        "audio",
        learnt,
        lambda modules, batch, step: training_loss(modules, batch, options),
        options.learning_rate,
        weight_decay=options.weight_decay,
    )

    def components() -> dict[str, Any]:
        return {
            "audio_encoder": modules["encoder"],
            "audio_processor": VasaAudioProcessor(),
            "heads.safetensors": modules["heads"],
        }

    def on_sample(modules: dict[str, nn.Module], step: int, folder: Path) -> None:
        values = validate(modules["encoder"], modules["heads"], held_out, validation)
        print_log(step, {f"validation {name}": value for name, value in values.items()})
        save_components(folder, components(), options.save_dtype)

    dataset = SpeechDataset(options, utterances, clips, recordings)
    return train_and_save(options, modules, [player], dataset, learnt, components, on_sample=on_sample)

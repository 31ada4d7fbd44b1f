"""Lip sync: SyncNet's confidence S_C and distance S_D, and the same two numbers from the project's sync expert.

Source: Chung and Zisserman, "Out of time: automated lip sync in the wild", 2016, as the public code computes them
(`joonson/syncnet_python`); VASA-1 §4.1 reports both.

```
images or motion -> an embedding per window -\
                                              mean distance for each shift of the audio -> S_D: the minimum,
audio            -> an embedding per window -/                                             S_C: median minus minimum
```

S_C and S_D use the best shift, so a constant delay does not change them; `offset_frames` shows it. `aligned_confidence`
is S_C at shift 0; it falls when the audio is late. Numbers of different networks are not comparable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLES_PER_FRAME = 640  # 16 kHz, 25 frames per second
SYNCNET_FRAMES, SYNCNET_COLUMNS = 5, 20  # a window of SyncNet: 0.2 s of images, of MFCC columns
MIN_PAIRS = 4  # shifts that leave fewer windows are skipped
SILENCE_RMS = 1e-3


@dataclass
class SyncScore:
    """Sync of lips and audio in one clip.

    Attributes:
        confidence (`float`): S_C, median of the mean distances over all shifts minus the minimum; higher is better.
        distance (`float`): S_D, the minimal mean distance; lower is better.
        offset_frames (`int`): Its shift; positive if the audio comes too early, as in SyncNet's code.
        aligned_confidence (`float`): Median minus the mean distance at shift 0.
        aligned_distance (`float`): Mean distance at shift 0.
        distances (`torch.Tensor` of shape `(2 * max_shift + 1,)`): Mean distance of images at frame t and audio at
            frame t + s for s from `-max_shift` to `max_shift`; NaN where the clip is too short.
    """

    confidence: float
    distance: float
    offset_frames: int
    aligned_confidence: float
    aligned_distance: float
    distances: Tensor


def sync_score(
    visual_embeds: Tensor,  # [N, E]
    audio_embeds: Tensor,  # [N, E]
    max_shift: int = 15,
    padding: str = "none",
) -> SyncScore:
    """Compute S_C, S_D and the offset from the embeddings of one clip's windows.

    Args:
        visual_embeds (`torch.Tensor` of shape `(windows, dim)`): Embeddings of images or lip motion, one per frame.
        audio_embeds (`torch.Tensor` of shape `(windows, dim)`): Embeddings of the audio, one per frame.
        max_shift (`int`, defaults to 15): Maximal shift of the audio in frames, in both directions.
        padding (`str`, defaults to "none"): "none" compares existing windows only; "zeros" adds zero vectors at the
            ends, as the public SyncNet code does.

    Raises:
        ValueError: If the shapes differ, there are fewer than 4 windows, or `padding` is unknown.
    """
    if visual_embeds.ndim != 2 or visual_embeds.shape != audio_embeds.shape:
        raise ValueError(
            "`visual_embeds` and `audio_embeds` must have the same shape (windows, dim), got "
            f"{tuple(visual_embeds.shape)} and {tuple(audio_embeds.shape)}."
        )
    windows = len(visual_embeds)
    if windows < MIN_PAIRS:
        raise ValueError(f"`visual_embeds` must have at least {MIN_PAIRS} windows, got {windows}: clip too short.")
    if padding not in ("none", "zeros"):
        raise ValueError(f"`padding` must be 'none' or 'zeros', got {padding!r}.")
    visual, audio = visual_embeds.double(), F.pad(audio_embeds.double(), (0, 0, max_shift, max_shift))
    distances = torch.full((2 * max_shift + 1,), float("nan"), dtype=torch.float64)
    for index, shift in enumerate(range(-max_shift, max_shift + 1)):
        first, last = (0, windows) if padding == "zeros" else (max(0, -shift), min(windows, windows - shift))
        if last - first >= MIN_PAIRS:
            pairs = F.pairwise_distance(visual[first:last], audio[index + first : index + last])
            distances[index] = pairs.mean()
    median, aligned = distances.nanmedian(), distances[max_shift]
    minimum, index = distances.nan_to_num(float("inf")).min(0)
    return SyncScore(
        confidence=float(median - minimum),
        distance=float(minimum),
        offset_frames=max_shift - int(index),
        aligned_confidence=float(median - aligned),
        aligned_distance=float(aligned),
        distances=distances,
    )


def check_audio(samples: Tensor | np.ndarray, frames: int | None = None) -> Tensor:
    """Return audio as a float tensor `(n,)`; raises `ValueError` if it is invalid or silent.

    Args:
        samples (`torch.Tensor` or `numpy.ndarray` of shape `(n,)`): Mono at 16 kHz, full scale = 1.
        frames (`int`, *optional*): Frames that the audio must cover (all but a last fraction of one).
    """
    samples = torch.as_tensor(samples).detach().float().cpu()
    if samples.ndim == 2 and len(samples) == 1:
        samples = samples[0]
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"`samples` must have shape (n,), mono at 16 kHz, got {tuple(samples.shape)}.")
    if not torch.isfinite(samples).all():
        raise ValueError("`samples` must be finite, got NaN or infinite samples.")
    if samples.square().mean().sqrt() < SILENCE_RMS:
        raise ValueError(f"`samples` must not be silent, got a root mean square under {SILENCE_RMS}.")
    if frames is not None and len(samples) <= (frames - 1) * SAMPLES_PER_FRAME:
        raise ValueError(
            f"`samples` must last as long as the motion, {frames} frames = {frames * SAMPLES_PER_FRAME} samples, "
            f"got {len(samples)}."
        )
    return samples


def _cut_audio(samples: Tensor | np.ndarray, frames: int) -> Tensor:
    """Cut audio to a number of frames, `(1, 640 * frames)`; a last fraction of a frame may be missing."""
    samples = check_audio(samples, frames)[: frames * SAMPLES_PER_FRAME]
    return F.pad(samples, (0, frames * SAMPLES_PER_FRAME - len(samples)))[None]


@torch.no_grad()
def expert_embeds(
    expert, motion: Tensor | np.ndarray, samples: Tensor | np.ndarray
) -> tuple[Tensor, Tensor]:  # each [N, E]
    """Embed lips and audio of one clip by the project's sync expert.

    Args:
        expert (`SyncExpert`): From `models.sync_expert`.
        motion (`torch.Tensor` or `numpy.ndarray` of shape `(frames, M)` or `(1, frames, M)`): At 25 frames per second.
        samples (`torch.Tensor` or `numpy.ndarray` of shape `(n,)`): Mono at 16 kHz, full scale = 1; cut to the length
            of the motion.
    """
    motion = torch.as_tensor(motion).detach().float()
    motion = motion[None] if motion.ndim == 2 else motion
    if motion.ndim != 3 or len(motion) != 1:
        raise ValueError(f"`motion` must be that of one clip, (frames, channels), got {tuple(motion.shape)}.")
    samples = _cut_audio(samples, motion.shape[1]).to(expert.device)
    visual, audio = expert(motion.to(expert.device), samples, return_dict=False)
    return visual[0].float().cpu(), audio[0].float().cpu()


def expert_sync(expert, motion: Tensor | np.ndarray, samples: Tensor | np.ndarray, max_shift: int = 15) -> SyncScore:
    """Score the sync of one clip by the project's sync expert, from motion and audio.

    Distances lie in [0, 2] and are not comparable with SyncNet's.

    Args:
        expert (`SyncExpert`): From `models.sync_expert`.
        motion (`torch.Tensor` or `numpy.ndarray` of shape `(frames, M)` or `(1, frames, M)`): At 25 frames per second.
        samples (`torch.Tensor` or `numpy.ndarray` of shape `(n,)`): Mono at 16 kHz, full scale = 1.
        max_shift (`int`, defaults to 15): Frames that the audio is shifted by, either way.

    Raises:
        ValueError: If the clip is too short, silent, or its audio is shorter than the motion.
    """
    return sync_score(*expert_embeds(expert, motion, samples), max_shift)


def sync_study(
    embeds: Sequence[tuple[Tensor, Tensor]], max_shift: int = 15, seed: int = 0
) -> dict[str, float | list[float]]:
    """Check how well a network separates right from wrong audio on clips that are in sync.

    Args:
        embeds (`Sequence` of pairs): Embeddings `(windows, dim)` of images or lips and of audio for each clip, see
            `expert_embeds`.
        max_shift (`int`, defaults to 15): Maximal shift in frames.
        seed (`int`, defaults to 0): Seed of the choice of wrong audio.

    Returns:
        `dict`: means of S_C, S_D and aligned S_C for the clips, and with the audio of other clips (`shuffled_...`); the
        mean cosine by shift from 0 to `max_shift` (`cosine_by_shift`); the shares of clips whose offset is found
        exactly and within one frame (`offset_exact`, `offset_within_1`); `auc_shuffled` and `auc_shifted`: how often
        the right audio has a smaller distance than another clip's, and than its own shifted by 5 or more frames.
    """
    if len(embeds) < 2:
        raise ValueError(f"`embeds` must hold at least two clips, got {len(embeds)}.")
    scores = [sync_score(visual, audio, max_shift) for visual, audio in embeds]
    rng, wrong = np.random.default_rng(seed), []
    for index, (visual, _) in enumerate(embeds):
        for other in rng.permutation(len(embeds))[:9]:
            common = min(len(visual), len(embeds[other][1]))
            if other != index:
                wrong.append(sync_score(visual[:common], embeds[other][1][:common], max_shift))
    result = {}
    for prefix, some in (("", scores), ("shuffled_", wrong)):
        for name in ("confidence", "aligned_confidence", "distance", "aligned_distance"):
            result[prefix + name] = float(np.mean([getattr(score, name) for score in some]))
    cosines = [_cosines(visual, audio, max_shift) for visual, audio in embeds]
    by_shift = torch.stack([score.distances for score in scores]).numpy()  # [clips, shifts]
    far = by_shift[:, np.abs(np.arange(-max_shift, max_shift + 1)) >= 5]
    offsets = np.abs([score.offset_frames for score in scores])
    right = np.array([score.aligned_distance for score in scores])
    return {
        **result,
        "cosine_by_shift": [round(float(value), 4) for value in np.nanmean(cosines, 0)],
        "offset_exact": float((offsets == 0).mean()),
        "offset_within_1": float((offsets <= 1).mean()),
        "auc_shuffled": float((right[:, None] < np.array([score.aligned_distance for score in wrong])).mean()),
        "auc_shifted": float((right[:, None] < far[~np.isnan(far)]).mean()),
    }


def _cosines(visual: Tensor, audio: Tensor, max_shift: int) -> list[float]:
    """Mean cosine of windows 0, 1, ... frames apart, in both directions."""
    table = F.normalize(visual, dim=-1) @ F.normalize(audio, dim=-1).T
    apart = [torch.cat([table.diagonal(shift), table.diagonal(-shift)]) for shift in range(max_shift + 1)]
    return [float(values.mean()) if len(values) >= MIN_PAIRS else math.nan for values in apart]


def mfcc(samples: np.ndarray | Tensor, sampling_rate: int = 16_000) -> np.ndarray:  # [columns, 13]
    """Mel-frequency cepstra as the public SyncNet uses them: 13 numbers 100 times per second.

    These are the defaults of `python_speech_features.mfcc`: pre-emphasis 0.97, rectangular windows of 25 ms every
    10 ms, 512-point power spectrum, 26 triangles between 0 and half the rate whose corners are whole bins, logarithm,
    orthonormal DCT-II, lifter 22, and the logarithm of the window's energy instead of the first cepstrum. Samples have
    16-bit scale, as that code reads them from a file.

    Args:
        samples (`numpy.ndarray` or `torch.Tensor` of shape `(n,)`): Mono, full scale = 1.
        sampling_rate (`int`, defaults to 16000): In Hz.
    """
    samples = np.asarray(samples, np.float64)
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"`samples` must have shape (n,), got {samples.shape}.")
    signal = np.round(samples * 32768).clip(-32768, 32767)
    signal = np.append(signal[0], signal[1:] - 0.97 * signal[:-1])
    length, step, size, filters = round(0.025 * sampling_rate), round(0.01 * sampling_rate), 512, 26
    columns = 1 + max(0, math.ceil((len(signal) - length) / step))
    signal = np.pad(signal, (0, (columns - 1) * step + length - len(signal)))
    windows = np.lib.stride_tricks.sliding_window_view(signal, length)[::step]  # [columns, length]
    power = np.abs(np.fft.rfft(windows, size)) ** 2 / size

    mel = np.linspace(0.0, 2595 * np.log10(1 + sampling_rate / 2 / 700), filters + 2)
    corner = np.floor((size + 1) * 700 * (10 ** (mel / 2595) - 1) / sampling_rate)
    bins = np.arange(size // 2 + 1)
    rise = (bins - corner[:-2, None]) / (corner[1:-1] - corner[:-2])[:, None]
    fall = (corner[2:, None] - bins) / (corner[2:] - corner[1:-1])[:, None]
    bands = power @ np.minimum(rise, fall).clip(0).T
    tiny = np.finfo(float).eps
    bands = np.log(np.where(bands == 0, tiny, bands))  # [columns, 26]

    order = np.arange(13)[:, None]
    cosine = np.cos(np.pi * order * (np.arange(filters) + 0.5) / filters) * np.sqrt(2 / filters)
    cosine[0] /= np.sqrt(2)
    cepstra = bands @ cosine.T * (1 + 11 * np.sin(np.pi * np.arange(13) / 22))
    energy = power.sum(1)
    cepstra[:, 0] = np.log(np.where(energy == 0, tiny, energy))
    return cepstra


def syncnet_crops(
    frames: np.ndarray,  # [T, H, W, 3]
    boxes: np.ndarray,  # [T, 4]
    size: int = 224,
    crop_scale: float = 0.4,
) -> np.ndarray:  # [T, size, size, 3]
    """Cut face crops as the public SyncNet pipeline: 1.4 boxes wide, from half a box above its centre to 0.9 below.

    The box's centre and size are smoothed by a median over 13 frames; pixels outside the image are grey (110).
    Deviation: the median repeats the first and last values at the ends, where the public code uses zeros.

    Args:
        frames (`numpy.ndarray` of shape `(frames, height, width, 3)`): RGB, uint8.
        boxes (`numpy.ndarray` of shape `(frames, 4)`): Face boxes x0, y0, x1, y1 in pixels.
        size (`int`, defaults to 224): Side of the crops.
        crop_scale (`float`, defaults to 0.4): Margin around the box.
    """
    frames, boxes = np.asarray(frames), np.asarray(boxes, np.float64)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"`frames` must be uint8 (frames, height, width, 3), got {frames.dtype} {frames.shape}.")
    if boxes.shape != (len(frames), 4) or not (boxes[:, 2:] > boxes[:, :2]).all():
        raise ValueError(f"`boxes` must be x0, y0, x1, y1 for each of {len(frames)} frames, got {boxes.shape}.")
    track = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2], 1)
    track = np.concatenate([track, (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True) / 2], 1)  # x, y, half a side
    padded = np.pad(track, ((6, 6), (0, 0)), mode="edge")
    track = np.median(np.lib.stride_tricks.sliding_window_view(padded, 13, axis=0), axis=-1)
    crops = []
    for frame, (x, y, half) in zip(frames, track, strict=True):
        pad = int(half * (1 + 2 * crop_scale))
        image = np.pad(frame, ((pad, pad), (pad, pad), (0, 0)), constant_values=110)
        top, bottom = int(y + pad - half), int(y + pad + half * (1 + 2 * crop_scale))
        left, right = int(x + pad - half * (1 + crop_scale)), int(x + pad + half * (1 + crop_scale))
        face = torch.from_numpy(image[max(top, 0) : bottom, max(left, 0) : right]).permute(2, 0, 1)[None].float()
        face = F.interpolate(face, (size, size), mode="bilinear", align_corners=False)
        crops.append(face[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
    return np.stack(crops)


@torch.no_grad()
def syncnet_score(
    syncnet,
    crops: np.ndarray,  # [T, 224, 224, 3]
    samples: Tensor | np.ndarray,  # [n]
    max_shift: int = 15,
    batch_size: int = 20,
) -> SyncScore:
    """Compute S_C and S_D of one clip by SyncNet, in the steps of its public code.

    Args:
        syncnet (`SyncNet`): From `models.syncnet`, with converted weights.
        crops (`numpy.ndarray` of shape `(frames, 224, 224, 3)`): RGB, uint8, 25 per second, see `syncnet_crops`.
        samples (`torch.Tensor` or `numpy.ndarray` of shape `(n,)`): Mono at 16 kHz, full scale = 1.
        max_shift (`int`, defaults to 15): Frames that the audio is shifted by, either way.
        batch_size (`int`, defaults to 20): Windows at a time.

    Raises:
        ValueError: If the clip is too short or silent, or the crops have another size.
    """
    crops = np.asarray(crops)
    if crops.ndim != 4 or crops.shape[1:] != (224, 224, 3) or crops.dtype != np.uint8:
        raise ValueError(f"`crops` must be uint8 (frames, 224, 224, 3), got {crops.dtype} {crops.shape}.")
    samples = check_audio(samples)
    windows = min(len(crops), len(samples) // SAMPLES_PER_FRAME) - SYNCNET_FRAMES
    if windows < MIN_PAIRS:
        raise ValueError(
            f"`crops` must have at least {SYNCNET_FRAMES + MIN_PAIRS} frames with audio, got {len(crops)}."
        )
    cepstra = torch.from_numpy(mfcc(samples).T.copy()).float()  # [13, columns]
    visual, audio = [], []
    for first in range(0, windows, batch_size):
        starts = range(first, min(windows, first + batch_size))
        faces = np.stack([crops[start : start + SYNCNET_FRAMES] for start in starts])  # [N, 5, 224, 224, 3]
        faces = torch.from_numpy(faces).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0
        columns = torch.stack([cepstra[:, 4 * start : 4 * start + SYNCNET_COLUMNS] for start in starts])[:, None]
        output = syncnet(faces.to(syncnet.device), columns.to(syncnet.device), return_dict=False)
        visual.append(output[0].float().cpu())
        audio.append(output[1].float().cpu())
    return sync_score(torch.cat(visual), torch.cat(audio), max_shift, padding="zeros")

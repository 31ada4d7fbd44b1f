"""Motion of heads, lips, lids and eyes: amount, smoothness, and distance from true or requested motion.

Most functions take `FaceTrack`s. Frames without a face are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vasa_hf.geometry.landmarks import rows
from vasa_hf.metrics.faces import FaceTrack

PIXELS = 256  # distances in pixels are for an image of this side
FPS = 25
SAMPLES_PER_FRAME = 640
CLOSED_LIDS = 0.6  # relative to the usual opening in the clip
CLOSED_LIPS = 0.03  # relative to the distance of the outer eye corners
PAUSE_MARGIN = 5  # frames, 0.2 s: lips open before speech and close after it


def _mean(values: Tensor, found: Tensor, what: str) -> float:
    values = values[found]
    if not len(values):
        raise ValueError(f"`{what}` must show a face in enough frames, got none.")
    return float(values.mean())


def _find_common(track: FaceTrack, truth: FaceTrack) -> Tensor:
    if len(track) != len(truth):
        raise ValueError(f"`track` and `truth` must have the same length, got {len(track)} and {len(truth)} frames.")
    return track.found & truth.found


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    """Angle in degrees of the rotation from `a` to `b`: rotations `(..., 3, 3)` -> `(...)`."""
    cosine = ((a.mT @ b).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    # The cosine is imprecise for small angles: the sine comes from the antisymmetric part.
    turn = a.mT @ b - b.mT @ a
    sine = torch.stack([turn[..., 2, 1], turn[..., 0, 2], turn[..., 1, 0]], -1).norm(dim=-1) / 2
    return torch.atan2(sine, cosine).rad2deg()


def pose_variation(track: FaceTrack) -> float:
    """ΔP, VASA-1 §4.1: the mean angle between the head's rotations in adjacent frames, in degrees.

    # Not in the paper: the unit, and the definition of the angle; this is the angle of the relative rotation.

    Args:
        track (`FaceTrack`): Track of a video at 25 frames per second.
    """
    rotation = track.rotation
    return _mean(angle_between(rotation[:-1], rotation[1:]), track.found[:-1] & track.found[1:], "track")


def keypoint_distance(track: FaceTrack, truth: FaceTrack) -> float:
    """AKD: mean distance of the 162 landmarks from the true ones, in pixels at 256².

    Args:
        track (`FaceTrack`): Generated face.
        truth (`FaceTrack`): True face, same number of frames.
    """
    both = _find_common(track, truth)
    return _mean((track.landmarks - truth.landmarks).norm(dim=-1).mean(-1) * PIXELS, both, "track")


def pose_error(track: FaceTrack, truth: FaceTrack) -> float:
    """Mean angle between the head's rotation and the true one, in degrees."""
    both = _find_common(track, truth)
    return _mean(angle_between(track.rotation, truth.rotation), both, "track")


def gaze_error(track: FaceTrack, wanted: Tensor) -> float:
    """Mean angle between the gaze and the requested gaze, in degrees (E_θg of VASA-1's Table 4).

    Args:
        track (`FaceTrack`): Generated face.
        wanted (`torch.Tensor` of shape `(2,)` or `(frames, 2)`): Requested yaw and pitch in radians.
    """
    seen, wanted = _direction(track.gaze), _direction(wanted.expand(len(track), 2))
    return _mean((seen * wanted).sum(-1).clamp(-1, 1).acos().rad2deg(), track.found, "track")


def _direction(angles: Tensor) -> Tensor:
    """Convert yaw and pitch `(..., 2)` to unit vectors."""
    yaw, pitch = angles.unbind(-1)
    return torch.stack([yaw.sin() * pitch.cos(), pitch.sin(), yaw.cos() * pitch.cos()], -1)


def distance_error(track: FaceTrack, wanted_scale: Tensor | float) -> float:
    """Mean relative error of the head's distance, from its size: |requested scale / measured scale - 1|.

    Args:
        track (`FaceTrack`): Generated face.
        wanted_scale (`torch.Tensor` of shape `(frames,)` or `float`): Requested size of the head.
    """
    return _mean((wanted_scale / track.scale - 1).abs(), track.found, "track")


def motion_stability(track: FaceTrack) -> float:
    """MSI (StableFace, Ling et al. 2022; used by GAIA): the reciprocal of the variance of the landmarks' acceleration.

    # Not in the papers: the units (here pixels at 256², frames), and the mean of the variances of the points' x and y
    # before the reciprocal, so that one still point does not make the index infinite.

    Args:
        track (`FaceTrack`): At least 4 frames with a face.
    """
    points = track.landmarks * PIXELS
    acceleration = points[2:] - 2 * points[1:-1] + points[:-2]
    acceleration = acceleration[track.found[2:] & track.found[1:-1] & track.found[:-2]]
    if len(acceleration) < 2:
        raise ValueError(f"`track` must have 4 frames with a face, got {int(track.found.sum())}.")
    return 1 / max(float(acceleration.var(0).mean()), 1e-6)


def smoothness(frames: Tensor) -> float:
    """How well the neighbours predict a frame: 1 minus the mean difference from their average.

    VBench's motion smoothness (MoDA's "Smo") with the average instead of a frame interpolation network.

    Args:
        frames (`torch.Tensor` of shape `(frames, 3, height, width)`): RGB in [0, 1].
    """
    if len(frames) < 3:
        raise ValueError(f"`frames` must be at least 3, got {len(frames)}.")
    middle = frames[1:-1:2]
    return 1 - float((middle - (frames[:-2:2] + frames[2::2]) / 2).abs().mean())


def blink_rate(track: FaceTrack, closed: float = CLOSED_LIDS) -> float:
    """Blinks per minute: how often the lids fall below a share of their usual opening, with hysteresis.

    # Not in the paper: VASA-1 shows blinks but does not count them.

    Args:
        track (`FaceTrack`): Track of a video at 25 frames per second, at least 10 frames with a face.
        closed (`float`, defaults to 0.6): That share; larger for detectors that miss fully closed eyes.
    """
    openness = track.eye_open[track.found]
    if len(openness) < 10:
        raise ValueError(f"`track` must have 10 frames with a face, got {len(openness)}.")
    share, shut, blinks = openness / openness.quantile(0.8), False, 0
    for value in share.tolist():
        if not shut and value < closed:
            shut, blinks = True, blinks + 1
        elif shut and value > (1 + closed) / 2:
            shut = False
    return blinks * 60 * FPS / len(openness)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of two series `(frames,)`.

    Raises:
        ValueError: If one of them is constant: the correlation is undefined.
    """
    if len(a) != len(b) or len(a) < 5:
        raise ValueError(f"`a` and `b` must have the same length of at least 5, got {len(a)} and {len(b)}.")
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    if min(a.norm(), b.norm()) < 1e-9:
        raise ValueError("`a` and `b` must change over time, got a constant.")
    return float((a @ b) / (a.norm() * b.norm()))


def lip_correlation(track: FaceTrack, truth: FaceTrack) -> float:
    """Correlation over time of the lip gap with the true (or driving) one; 0 for lips that do not move."""
    both = _find_common(track, truth)
    gap = track.lip_gap[both]
    if len(gap) and float(gap.std()) < 1e-6:
        return 0.0
    return correlation(gap, truth.lip_gap[both])


def signal_correlation(signal: Callable[[FaceTrack], Tensor], track: FaceTrack, truth: FaceTrack) -> float:
    """Correlation over time of a signal with the driving one; 0 for one that does not move.

    Args:
        signal (`Callable`): Track to `(frames,)`, such as `mouth_skew`.
        track (`FaceTrack`): The generated face.
        truth (`FaceTrack`): The driving face.
    """
    both = _find_common(track, truth)
    made = signal(track)[both]
    return 0.0 if len(made) and float(made.std()) < 1e-6 else correlation(made, signal(truth)[both])


def mouth_skew(track: FaceTrack) -> Tensor:
    """Height of the left over the right corner of the mouth along the line of the eyes, `(frames,)`, 0 if level."""
    points = track.landmarks
    across = points[:, rows(263)[0]] - points[:, rows(33)[0]]
    corners = points[:, rows(291)[0]] - points[:, rows(61)[0]]
    return (across[:, 0] * corners[:, 1] - across[:, 1] * corners[:, 0]) / across.square().sum(1).clamp_min(1e-9)


def eye_yaw(track: FaceTrack) -> Tensor:
    """Yaw of the eyes relative to the head, `(frames,)`, radians: side glances."""
    return track.gaze[:, 0] - track.pose[:, 0]


def seam_roughness(motion: Tensor, seams: Sequence[int], reach: int = 2) -> float:
    """Mean second difference of motion at seams of windows over that elsewhere: 1 if seams cannot be found.

    Args:
        motion (`torch.Tensor` of shape `(frames, channels)`): Generated; each channel counts in units of its own.
        seams (`Sequence[int]`): First frames of all windows but the first.
        reach (`int`, defaults to 2): Frames on either side of a seam that belong to it.

    Raises:
        ValueError: If there is no seam, or the motion stands still elsewhere.
    """
    if not len(seams):
        raise ValueError("the motion has one window, and no seam.")
    rough = (motion.diff(dim=0, n=2) / motion.std(0).clamp_min(1e-6)).abs().mean(1)  # frame i + 1
    frames = torch.arange(1, len(motion) - 1)
    near = ((frames[:, None] - torch.as_tensor(seams)).abs() <= reach).any(1)
    if near.all() or float(rough[~near].mean()) <= 0:
        raise ValueError("the motion stands still away from seams.")
    return float(rough[near].mean() / rough[~near].mean())


def mean_lip_gap(track: FaceTrack) -> float:
    """Mean gap of the inner lips relative to the distance of the outer eye corners."""
    return _mean(track.lip_gap, track.found, "track")


def loudness(samples: Tensor, num_frames: int) -> Tensor:
    """Root mean square of the audio in each frame, `(frames,)`; silence after its end.

    Args:
        samples (`torch.Tensor` of shape `(n,)`): Mono at 16 kHz.
        num_frames (`int`): Frames at 25 per second.
    """
    samples = samples[: num_frames * SAMPLES_PER_FRAME].float()
    samples = torch.nn.functional.pad(samples, (0, num_frames * SAMPLES_PER_FRAME - len(samples)))
    return samples.unflatten(0, (num_frames, -1)).square().mean(1).sqrt()


def silent_frames(samples: Tensor, num_frames: int, hold: int = 3) -> Tensor:
    """Frames inside pauses, `(frames,)` bool: 30 dB below the loudest, with `hold` such frames before and after.

    Args:
        samples (`torch.Tensor` of shape `(n,)`): Mono at 16 kHz.
        num_frames (`int`): Frames at 25 per second.
        hold (`int`): Margin in frames, because lips open before speech and close after it.
    """
    level = loudness(samples, num_frames)
    loud = level > max(float(level.max()) * 10 ** (-30 / 20), 1e-4)
    near = torch.nn.functional.max_pool1d(loud[None, None].float(), 2 * hold + 1, 1, hold)[0, 0]
    return near == 0


def closed_in_silence(track: FaceTrack, samples: Tensor) -> float:
    """Share of silent frames with a closed mouth: lip gap below 0.03 outer eye distances, 0.2 s or more from speech.

    Args:
        track (`FaceTrack`): Generated face.
        samples (`torch.Tensor` of shape `(n,)`): Its audio, mono at 16 kHz.

    Raises:
        ValueError: If the audio has no pause.
    """
    silent = silent_frames(samples, len(track), PAUSE_MARGIN) & track.found
    if not silent.any():
        raise ValueError(f"`samples` must have a pause of {2 * PAUSE_MARGIN + 1} frames, got none.")
    return _mean((track.lip_gap < CLOSED_LIPS).float(), silent, "track")


def control_response(asked: Tensor, measured: Tensor) -> dict[str, float]:
    """Fit a line to a measured quantity as a function of a control.

    Args:
        asked (`torch.Tensor` of shape `(n,)`): Values of the control, not all equal.
        measured (`torch.Tensor` of shape `(n,)`): Measured values, in the same unit.

    Returns:
        `dict` with `slope` (1: the measured change equals the requested one), `correlation` (0 if nothing changes), and
        `error` (mean absolute difference).
    """
    a, m = asked.double(), measured.double()
    if len(a) != len(m) or len(a) < 2 or float(a.std()) == 0:
        raise ValueError(f"`asked` must hold different values, as many as `measured`, got {asked.tolist()}.")
    slope = float(((a - a.mean()) * (m - m.mean())).sum() / (a - a.mean()).square().sum())
    spread = float(m.std())
    fit = slope * float(a.std()) / spread if spread > 1e-9 else 0.0
    return {"slope": slope, "correlation": fit, "error": float((m - a).abs().mean())}

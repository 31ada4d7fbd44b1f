"""The CAPP score of VASA-1 §4.1 and the two studies of what it measures (Tables 2 and 3).

The score of a clip is the mean over its windows of the cosine between the embeddings of head motion and of audio; about
0 for audio of another person. Scores of different networks are not comparable: the paper's rows, printed for reference,
are from a network trained on 2,000 hours and from windows of 3 seconds.

Poses that are estimated from landmarks nod with the jaw, and a network can learn lip sync from that.
`training.recipes.capp.remove_lips` removes it, and `--study ... --lips` prints the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# VASA-1 Table 2 (frames of shift) and Table 3 (factor on the pose differences), on VoxCeleb2.
PAPER_SHIFT = {0: 0.608, 1: 0.462, 2: 0.206, 3: 0.069, 4: 0.082}
PAPER_SCALE = {0.2: 0.368, 0.5: 0.584, 1.0: 0.608, 1.5: 0.587, 3.0: 0.505}

Clip = tuple[Tensor | np.ndarray, Tensor | np.ndarray]  # pose or motion [T, >= 3], audio features [T, A]


def _windows(values: Tensor | np.ndarray, window: int, stride: int, name: str) -> Tensor:
    """Cut one clip into windows, [N, window, C]."""
    values = torch.as_tensor(values).detach().float()
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    if values.ndim != 2:
        raise ValueError(f"`{name}` must be that of one clip, (frames, channels), got {tuple(values.shape)}.")
    if len(values) < window:
        raise ValueError(f"`{name}` must have at least the {window} frames of a window, got {len(values)}.")
    return values.unfold(0, window, stride).transpose(1, 2)


def _window_pairs(
    capp, pose: Tensor | np.ndarray, audio: Tensor | np.ndarray, stride: int | None
) -> tuple[Tensor, Tensor]:  # [N, window, C], [N, window, A]
    window = capp.config.window
    stride = max(1, window // 2) if stride is None else stride
    poses, features = _windows(pose, window, stride, "pose"), _windows(audio, window, stride, "audio")
    if len(np.squeeze(pose)) != len(np.squeeze(audio)):
        raise ValueError(
            f"`pose` and `audio` must have the same number of frames, got {len(np.squeeze(pose))} and "
            f"{len(np.squeeze(audio))}."
        )
    return poses - poses[:, :1], features  # normalisation would amplify the rounding errors of a still head


@torch.no_grad()
def _scores(capp, poses: Tensor, features: Tensor, batch_size: int = 128) -> Tensor:  # [N]
    """Cosine of each pair of windows."""
    scores = []
    for pose, audio in zip(poses.split(batch_size), features.split(batch_size), strict=True):
        pose_embeds, audio_embeds = capp(pose.to(capp.device), audio.to(capp.device), return_dict=False)
        scores.append((pose_embeds * audio_embeds).sum(-1).float().cpu())
    return torch.cat(scores)


def capp_score(capp, pose: Tensor | np.ndarray, audio: Tensor | np.ndarray, stride: int | None = None) -> float:
    """CAPP score of one clip, the mean cosine over its windows, in [-1, 1].

    Args:
        capp (`Capp`): From `models.capp`.
        pose (`torch.Tensor` or `numpy.ndarray` of shape `(frames, >= 3)`): Yaw, pitch, roll (radians) first, 25 per
            second, such as motion.
        audio (`torch.Tensor` or `numpy.ndarray` of shape `(frames, audio_dim)`): Features of the audio encoder.
        stride (`int`, *optional*): Frames between windows, defaults to half a window.

    Raises:
        ValueError: If the clip is shorter than a window or the lengths differ.
    """
    return float(_scores(capp, *_window_pairs(capp, pose, audio, stride)).mean())


def _long_enough(capp, clips: Sequence[Clip], spare: int) -> list[Clip]:
    kept = [clip for clip in clips if len(np.squeeze(clip[0])) >= capp.config.window + spare]
    if not kept:
        raise ValueError(f"`clips` must hold a clip of at least {capp.config.window + spare} frames, got none.")
    return [(np.asarray(np.squeeze(pose)), np.asarray(np.squeeze(audio))) for pose, audio in kept]


def _mean_score(capp, clips: Sequence[Clip], stride: int | None) -> float:
    """Mean over all windows of all clips."""
    pairs = [_window_pairs(capp, pose, audio, stride) for pose, audio in clips]
    poses, features = (torch.cat(windows) for windows in zip(*pairs, strict=True))
    return float(_scores(capp, poses[..., :3], features).mean())


def shift_study(
    capp, clips: Sequence[Clip], shifts: Sequence[int] = (0, 1, 2, 3, 4), stride: int | None = None
) -> dict[int, float]:
    """Mean score when pose and audio are shifted against each other (VASA-1 Table 2).

    Every shift uses the same frames of pose; clips too short for the largest shift are skipped.

    Args:
        capp (`Capp`): From `models.capp`.
        clips (`Sequence` of pairs): Pose and audio features of each clip.
        shifts (`Sequence[int]`, defaults to (0, 1, 2, 3, 4)): Frames; each in both directions.
        stride (`int`, *optional*): See `capp_score`.
    """
    spare = max(abs(shift) for shift in shifts)
    clips = _long_enough(capp, clips, 2 * spare)

    def score_shifted(shift: int) -> float:
        shifted = [
            (pose[spare : len(pose) - spare], audio[spare + shift : len(audio) - spare + shift])
            for pose, audio in clips
        ]
        return _mean_score(capp, shifted, stride)

    return {shift: (score_shifted(shift) + score_shifted(-shift)) / 2 for shift in shifts}


def scale_poses(pose: Tensor | np.ndarray, factor: float) -> Tensor:
    """Scale the pose differences between consecutive frames (VASA-1 Table 3), from the first frame on.

    Args:
        pose (`torch.Tensor` or `numpy.ndarray` of shape `(frames, channels)`): One clip.
        factor (`float`): 1 keeps the pose, 0 freezes it.
    """
    pose = torch.as_tensor(pose).float()
    return pose[:1] + factor * (pose - pose[:1])


def scale_study(
    capp, clips: Sequence[Clip], factors: Sequence[float] = (0.2, 0.5, 1.0, 1.5, 3.0), stride: int | None = None
) -> dict[float, float]:
    """Mean score when the head motion is scaled (VASA-1 Table 3).

    Args:
        capp (`Capp`): From `models.capp`.
        clips (`Sequence` of pairs): Pose and audio features of each clip.
        factors (`Sequence[float]`, defaults to (0.2, 0.5, 1.0, 1.5, 3.0)): On the differences between frames.
        stride (`int`, *optional*): See `capp_score`.
    """
    clips = _long_enough(capp, clips, 0)
    return {
        factor: _mean_score(capp, [(scale_poses(pose, factor), audio) for pose, audio in clips], stride)
        for factor in factors
    }


def shuffled_capp(capp, clips: Sequence[Clip], stride: int | None = None, rounds: int = 4) -> float:
    """Mean score of every pose with the audio of other clips; about 0 for a good network.

    Args:
        capp (`Capp`): From `models.capp`.
        clips (`Sequence` of pairs): Pose and audio features of at least two clips.
        stride (`int`, *optional*): See `capp_score`.
        rounds (`int`, defaults to 4): Maximal number of other clips for each pose.
    """
    clips = _long_enough(capp, clips, 0)
    if len(clips) < 2:
        raise ValueError(f"`clips` must hold at least two clips of a window's length, got {len(clips)}.")
    pairs = []
    for step in range(1, min(rounds, len(clips) - 1) + 1):
        for index, (pose, _) in enumerate(clips):
            audio = clips[(index + step) % len(clips)][1]
            common = min(len(pose), len(audio))
            pairs.append((pose[:common], audio[:common]))
    return _mean_score(capp, pairs, stride)

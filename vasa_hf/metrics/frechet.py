"""Fréchet distances between sets of features: FID of images, FVD of 25-frame clips.

FID and FVD of the papers use Inception and I3D features. The same formula with other features gives other numbers and
needs another name.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FVD_FRAMES, FVD_SIZE = 25, 224  # VASA-1 §4.1


def frechet_distance(features: Tensor, truth: Tensor) -> float:
    """Fréchet distance of two Gaussians fitted to features: |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½).

    Source: Heusel et al. 2017, Eq. 6. Deviation: none.

    Args:
        features (`torch.Tensor` of shape `(samples, dim)`): Features of generated images or videos.
        truth (`torch.Tensor` of shape `(samples, dim)`): Features of real ones; any number of samples.

    Raises:
        ValueError: If the dimensions differ, or a set has fewer than two samples.
    """
    if features.ndim != 2 or truth.ndim != 2 or features.shape[1] != truth.shape[1]:
        raise ValueError(
            f"`features` and `truth` must be (samples, dim), got {tuple(features.shape)} and {tuple(truth.shape)}."
        )
    if min(len(features), len(truth)) < 2:
        raise ValueError(f"`features` must hold at least 2 samples, got {len(features)} against {len(truth)}.")
    features, truth = features.double(), truth.double()
    gap = (features.mean(0) - truth.mean(0)).square().sum()
    a, b = features.T.cov(), truth.T.cov()
    a, b = (c.reshape(features.shape[1], -1) for c in (a, b))
    # The eigenvalues of a product of two covariances are real and not negative, up to rounding.
    roots = torch.linalg.eigvals(a @ b).real.clamp_min(0).sqrt().sum()
    return float(gap + a.trace() + b.trace() - 2 * roots)


def cut_clips(video: Tensor, frames: int = FVD_FRAMES) -> Tensor:
    """Cut a video into consecutive clips without overlap: `(clips, frames, 3, height, width)`.

    Args:
        video (`torch.Tensor` of shape `(frames, 3, height, width)`): The video.
        frames (`int`, defaults to 25): Frames of each clip.

    Raises:
        ValueError: If the video is shorter than one clip.
    """
    count = len(video) // frames
    if count == 0:
        raise ValueError(f"`video` must have at least {frames} frames, got {len(video)}: shorter than a window.")
    return video[: count * frames].unflatten(0, (count, frames))


@torch.no_grad()
def video_features(network, video: Tensor) -> Tensor:
    """Compute features of 25-frame clips of a video at 224²: `(clips, dim)`.

    Args:
        network (`Callable`): Clips `(batch, 3, 25, 224, 224)` in [-1, 1] to features `(batch, dim)`; see `load_i3d`.
        video (`torch.Tensor` of shape `(frames, 3, height, width)`): RGB in [0, 1], at least 25 frames.
    """
    features = []
    for clip in cut_clips(video):
        clip = F.interpolate(clip, (FVD_SIZE, FVD_SIZE), mode="bilinear", antialias=True, align_corners=False)
        features.append(network(clip.transpose(0, 1)[None] * 2 - 1).float().cpu())
    return torch.cat(features)

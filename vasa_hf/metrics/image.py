"""Metrics of images against true images: PSNR, SSIM, L1, and feature distances.

All images are RGB float `(frames, 3, height, width)` in [0, 1]; every function returns one number per frame.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BATCH = 1  # the CPU's cache holds four blurred images per colour


def _check_pair(images: Tensor, truth: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.shape != truth.shape:
        raise ValueError(
            "`images` and `truth` must have the same shape (frames, 3, height, width), "
            f"got {tuple(images.shape)} and {tuple(truth.shape)}."
        )


def box_mask(
    boxes: Tensor,  # [T, 4]
    size: int | tuple[int, int],
) -> Tensor:
    """Make masks with weight 1 for every pixel that a box touches: `(frames, 1, height, width)`.

    Args:
        boxes (`torch.Tensor` of shape `(frames, 4)`): x0, y0, x1, y1 as fractions of the image.
        size (`int` or `tuple[int, int]`): Side, or height and width, in pixels.
    """
    height, width = (size, size) if isinstance(size, int) else size
    x0, y0, x1, y1 = (boxes * boxes.new_tensor([width, height, width, height])).unbind(-1)
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    columns = (x >= x0.floor()[:, None]) & (x < x1.ceil()[:, None])  # [T, W]
    rows = (y >= y0.floor()[:, None]) & (y < y1.ceil()[:, None])  # [T, H]
    return (rows[:, None, :, None] & columns[:, None, None, :]).float()


def psnr(images: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, `(frames,)`; infinite for equal images.

    Args:
        images (`torch.Tensor` of shape `(frames, 3, height, width)`): Generated images.
        truth (`torch.Tensor` of shape `(frames, 3, height, width)`): True images.
        mask (`torch.Tensor` of shape `(frames, 1, height, width)`, *optional*): Weights of the pixels.
    """
    _check_pair(images, truth)
    error = (images - truth).square().mean(1, keepdim=True)
    if mask is None:
        return -10 * error.mean((1, 2, 3)).log10()
    return -10 * ((error * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))).log10()


def l1(images: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference, `(frames,)`, of colours in [0, 1]."""
    _check_pair(images, truth)
    return (images - truth).abs().mean((1, 2, 3))


def ssim(images: Tensor, truth: Tensor, sigma: float = 1.5, kernel_size: int = 11) -> Tensor:
    """Structural similarity, `(frames,)`: mean over colours and all positions where the window fits.

    Source: Wang et al. 2004, Eq. 13. Deviation: none. torchmetrics gives the same value at each of these positions
    (tested); its convolution takes ten times as long, and its mean includes the border.

    Args:
        images (`torch.Tensor` of shape `(frames, 3, height, width)`): Generated images.
        truth (`torch.Tensor` of shape `(frames, 3, height, width)`): True images.
        sigma (`float`, defaults to 1.5): Standard deviation of the Gaussian window in pixels.
        kernel_size (`int`, defaults to 11): Side of the window.
    """
    _check_pair(images, truth)
    if min(images.shape[-2:]) < kernel_size:
        raise ValueError(f"`images` must be at least {kernel_size} pixels wide and high, got {tuple(images.shape)}.")
    line = gaussian_line(sigma, kernel_size)
    chunks = zip(images.split(BATCH), truth.split(BATCH), strict=True)
    return torch.cat([_ssim_maps(a, b, line).mean((1, 2, 3)) for a, b in chunks])


def gaussian_line(sigma: float, kernel_size: int) -> tuple[float, ...]:
    """Weights of a Gaussian window along one axis; their sum is 1."""
    distance = torch.arange(kernel_size, dtype=torch.float64) - (kernel_size - 1) / 2
    line = torch.exp(-0.5 * (distance / sigma) ** 2)
    return tuple((line / line.sum()).tolist())


def blur(images: Tensor, weights: Sequence[float]) -> Tensor:
    """Filter both axes where the window fits: `(..., height, width)` -> `(..., height - k + 1, width - k + 1)`.

    Sums of shifted images, several times as fast as a convolution of one channel and twice as fast as products with
    matrices that are nearly all zeros.
    """
    for axis in (-2, -1):
        count = images.shape[axis] - len(weights) + 1
        blurred = images.narrow(axis, 0, count) * weights[0]
        for shift, weight in enumerate(weights[1:], 1):
            blurred.add_(images.narrow(axis, shift, count), alpha=weight)
        images = blurred
    return images


def _ssim_maps(x: Tensor, y: Tensor, line: Sequence[float]) -> Tensor:
    """SSIM of each position where the window fits: `(frames, 3, height - k + 1, width - k + 1)`."""
    mean_x, mean_y, squares, product = blur(torch.stack([x, y, x * x + y * y, x * y]), line)
    means, cross = mean_x**2 + mean_y**2, mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * cross + c1) * (2 * (product - cross) + c2)
    return value / ((means + c1) * (squares - means + c2))


def feature_distance(maps: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
    """Distance between feature maps, `(frames,)`: mean squared difference, summed over the maps.

    This is not LPIPS and has another scale; it needs no LPIPS weights.

    Args:
        maps (`Sequence[torch.Tensor]` of shape `(frames or 1, channels, height, width)`): Features of generated images,
            such as `FaceRecognizer.feature_maps`, which have unit power.
        truth (`Sequence[torch.Tensor]` of shape `(frames, channels, height, width)`): Features of true images.
    """
    pairs = zip(maps, truth, strict=True)
    return torch.stack([(a.float() - b.float()).square().mean((1, 2, 3)) for a, b in pairs]).sum(0)

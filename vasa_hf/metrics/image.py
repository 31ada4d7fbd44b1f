"""Pictures against pictures: PSNR, SSIM, L1, and distances between features of a network.

All pictures are RGB float `(frames, 3, height, width)` in [0, 1]; every function returns one number a frame.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH = 8


def _check_pair(pictures: Tensor, truth: Tensor) -> None:
    if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape != truth.shape:
        raise ValueError(
            "`pictures` and `truth` must have the same shape (frames, 3, height, width), "
            f"got {tuple(pictures.shape)} and {tuple(truth.shape)}."
        )


def box_mask(
    boxes: Tensor,  # [T, 4]
    size: int | tuple[int, int],
) -> Tensor:
    """Weight 1 for every pixel that a box touches: `(frames, 1, height, width)`.

    Args:
        boxes (`torch.Tensor` of shape `(frames, 4)`): x0, y0, x1, y1 as fractions of the picture.
        size (`int` or `tuple[int, int]`): Side, or height and width, in pixels.
    """
    height, width = (size, size) if isinstance(size, int) else size
    x0, y0, x1, y1 = (boxes * boxes.new_tensor([width, height, width, height])).unbind(-1)
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    columns = (x >= x0.floor()[:, None]) & (x < x1.ceil()[:, None])  # [T, W]
    rows = (y >= y0.floor()[:, None]) & (y < y1.ceil()[:, None])  # [T, H]
    return (rows[:, None, :, None] & columns[:, None, None, :]).float()


def psnr(pictures: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, `(frames,)`; infinite for equal pictures.

    Args:
        pictures (`torch.Tensor` of shape `(frames, 3, height, width)`): What is judged.
        truth (`torch.Tensor` of shape `(frames, 3, height, width)`): What it should be.
        mask (`torch.Tensor` of shape `(frames, 1, height, width)`, *optional*): Weights of the pixels.
    """
    _check_pair(pictures, truth)
    error = (pictures - truth).square().mean(1, keepdim=True)
    if mask is None:
        return -10 * error.mean((1, 2, 3)).log10()
    return -10 * ((error * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))).log10()


def l1(pictures: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference, `(frames,)`, of colours in [0, 1]."""
    _check_pair(pictures, truth)
    return (pictures - truth).abs().mean((1, 2, 3))


def ssim(pictures: Tensor, truth: Tensor, sigma: float = 1.5, kernel_size: int = 11) -> Tensor:
    """Structural similarity, `(frames,)`: mean over colours and all places where the window fits.

    Source: Wang et al. 2004, Eq. 13. Deviation: none. torchmetrics' function has the same number at each of these
    places (tested); its convolution takes ten times as long, and its mean takes in the border.

    Args:
        pictures (`torch.Tensor` of shape `(frames, 3, height, width)`): What is judged.
        truth (`torch.Tensor` of shape `(frames, 3, height, width)`): What it should be.
        sigma (`float`, defaults to 1.5): Standard deviation of the Gaussian window in pixels.
        kernel_size (`int`, defaults to 11): Its side.
    """
    _check_pair(pictures, truth)
    if min(pictures.shape[-2:]) < kernel_size:
        raise ValueError(
            f"`pictures` must be at least {kernel_size} pixels wide and high, got {tuple(pictures.shape)}."
        )
    distance = torch.arange(kernel_size, dtype=pictures.dtype, device=pictures.device) - (kernel_size - 1) / 2
    line = torch.exp(-0.5 * (distance / sigma) ** 2)
    line = line / line.sum()
    bands = [_band(line, side) for side in pictures.shape[-2:]]
    # A few at a time: four blurred pictures for each colour of each frame.
    parts = zip(pictures.split(BATCH), truth.split(BATCH), strict=True)
    return torch.cat([_ssim_maps(a, b, *bands).mean((1, 2, 3)) for a, b in parts])


def _band(line: Tensor, side: int) -> Tensor:
    """The filter as a matrix `(side - k + 1, side)`: two products blur faster than a convolution of one channel."""
    rows = torch.arange(side - len(line) + 1, device=line.device)[:, None]
    band = line.new_zeros(len(rows), side)
    return band.scatter_(1, rows + torch.arange(len(line), device=line.device), line.expand(len(rows), -1))


def _ssim_maps(x: Tensor, y: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """SSIM of each place where the window fits: `(frames, 3, height - k + 1, width - k + 1)`."""
    stacked = torch.stack([x, y, x * x + y * y, x * y])
    mean_x, mean_y, squares, product = down @ stacked @ across.T
    means = mean_x**2 + mean_y**2
    covariance = product - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return value / ((means + c1) * (squares - means + c2))


@torch.no_grad()
def perceptual_distance(network, pictures: Tensor, truth: Tensor) -> Tensor:
    """Distance of feature maps, `(frames,)`: mean square difference of unit-power features, summed over the maps.

    Not LPIPS, and on another scale: for when its weights are not at hand.

    Args:
        network (`FaceRecognizer` or another with `feature_maps`): Pictures in [-1, 1] to feature maps.
        pictures (`torch.Tensor` of shape `(frames, 3, height, width)`): What is judged.
        truth (`torch.Tensor` of shape `(frames, 3, height, width)`): What it should be.
    """
    _check_pair(pictures, truth)
    maps = zip(network.feature_maps(pictures * 2 - 1), network.feature_maps(truth * 2 - 1), strict=True)
    return torch.stack([(a.float() - b.float()).square().mean((1, 2, 3)) for a, b in maps]).sum(0)


@torch.no_grad()
def identity_similarity(network, pictures: Tensor, source: Tensor) -> Tensor:
    """Cosine of identity embeddings, `(frames,)`: 1 is the same person as far as the network can tell.

    Args:
        network (`FaceRecognizer` or another): Pictures in [-1, 1] to embeddings `(frames, dim)`.
        pictures (`torch.Tensor` of shape `(frames, 3, height, width)`): What is judged.
        source (`torch.Tensor` of shape `(1 or frames, 3, height, width)`): The person.
    """
    return F.cosine_similarity(network(pictures * 2 - 1).float(), network(source * 2 - 1).float())

"""Matting of a portrait without a network: GrabCut, with a guided filter for a soft edge.

Not in the paper: VASA-3D trains on the portrait's background; an avatar for all views needs a portrait without one.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_ROUNDS = 6  # of GrabCut
_EDGE = 1 / 40  # width of the soft edge around GrabCut's edge, relative to the image's side
_SURE = 0.9  # alpha above which the colour of a pixel is the person's


def cut_out(
    image: Tensor,  # [3, S, S]
    sure: Tensor,  # [S, S]
    likely: Tensor,  # [S, S]
) -> tuple[Tensor, Tensor]:
    """Separate a person from the background.

    Source: Rother et al. 2004 (GrabCut), He et al. 2010 (guided filter).

    Args:
        image (`torch.Tensor` of shape `(3, size, size)`): RGB in [0, 1].
        sure (`torch.Tensor` of shape `(size, size)`): bool, pixels of the person.
        likely (`torch.Tensor` of shape `(size, size)`): bool, probable pixels of the person; all others are probably
            background.

    Returns:
        The person's colours `(3, size, size)`, without those of the background at the edge, and alpha `(size, size)`
        in [0, 1].

    Raises:
        ValueError: If shapes differ, or no pixel is sure, or none can be background.
    """
    if image.ndim != 3 or len(image) != 3 or not image.shape[1:] == sure.shape == likely.shape:
        shapes = ", ".join(str(tuple(value.shape)) for value in (image, sure, likely))
        raise ValueError(f"`image` must be (3, size, size), `sure` and `likely` (size, size), got {shapes}.")
    if not sure.any() or (sure | likely).all():
        raise ValueError("`sure` must contain a pixel, and some pixel must be in neither `sure` nor `likely`.")
    marks = torch.full(sure.shape, cv2.GC_PR_BGD, dtype=torch.uint8)
    marks[likely] = cv2.GC_PR_FGD
    marks[_border(sure.shape[0]) & ~likely] = cv2.GC_BGD
    marks[sure] = cv2.GC_FGD
    array = (image * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1].copy()
    found, models = marks.numpy().copy(), (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.setRNGSeed(0)  # the same image gives the same matte
    cv2.grabCut(array, found, None, *models, _ROUNDS, cv2.GC_INIT_WITH_MASK)
    mask = _keep_person((found == cv2.GC_FGD) | (found == cv2.GC_PR_FGD), sure.numpy())
    alpha = _soften(image, torch.from_numpy(mask).float())
    return spread_colours(image, alpha > _SURE), alpha


def _border(size: int) -> Tensor:
    """Mask of the upper two thirds of the image's border."""
    rim = torch.zeros(size, size, dtype=torch.bool)
    width = max(size // 64, 1)
    rim[:width], rim[: 2 * size // 3, :width], rim[: 2 * size // 3, -width:] = True, True, True
    return rim


def _keep_person(mask: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """Keep the connected components of the person, without holes."""
    _, labels = cv2.connectedComponents(mask.astype(np.uint8))
    mask = np.isin(labels, np.unique(labels[sure & mask])) & mask
    _, labels, sizes, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = sizes[:, cv2.CC_STAT_AREA] < mask.size / 200
    return mask | (small[labels] & ~mask)


def _soften(image: Tensor, mask: Tensor) -> Tensor:
    """Compute alpha that follows the image's edges near those of the mask."""
    radius = max(round(_EDGE * len(mask)), 1)
    guide = image.mean(0)[None, None]
    alpha = mask[None, None]

    def mean(value: Tensor) -> Tensor:
        return F.avg_pool2d(value, 2 * radius + 1, 1, radius, count_include_pad=False)

    slope = (mean(guide * alpha) - mean(guide) * mean(alpha)) / (mean(guide * guide) - mean(guide).square() + 1e-3)
    soft = mean(slope) * guide + mean(mean(alpha) - slope * mean(guide))
    near = mean(alpha)
    soft = torch.where(near > 0.98, torch.ones(()), torch.where(near < 0.02, torch.zeros(()), soft))
    return ((soft[0, 0] - 0.1) / 0.8).clamp(0, 1)


def spread_colours(image: Tensor, known: Tensor) -> Tensor:
    """Fill pixels of an image `(3, size, size)` that are not `known` `(size, size)` with colours of nearby pixels."""
    colours, weight = image * known, known.float()[None]
    total, count = colours, weight
    for radius in (1, 2, 4, 8, 16, 32, 64):
        pool = {"kernel_size": 2 * radius + 1, "stride": 1, "padding": radius}
        missing = count < 1e-3
        total = total + missing * F.avg_pool2d(colours[None], **pool)[0]
        count = count + missing * F.avg_pool2d(weight[None], **pool)[0]
    return torch.where(known, image, total / count.clamp_min(1e-6))

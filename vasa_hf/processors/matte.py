"""Cutting a person out of a portrait, without a network: GrabCut, its edge softened by a guided filter.

Not in the paper: VASA-3D trains on the portrait's own background; an avatar that one walks around needs none.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_ROUNDS = 6  # of GrabCut
_EDGE = 1 / 40  # of the picture's side: how far from GrabCut's edge the matte may be soft
_SURE = 0.9  # a pixel with more alpha than this has a colour of its own


def cut_out(
    image: Tensor,  # [3, S, S]
    sure: Tensor,  # [S, S]
    likely: Tensor,  # [S, S]
) -> tuple[Tensor, Tensor]:
    """Tell a person from what is behind.

    Source: Rother et al. 2004 (GrabCut), He et al. 2010 (guided filter).

    Args:
        image (`torch.Tensor` of shape `(3, size, size)`): RGB in [0, 1].
        sure (`torch.Tensor` of shape `(size, size)`): bool, pixels that are the person's.
        likely (`torch.Tensor` of shape `(size, size)`): bool, pixels that probably are; all others probably are not.

    Returns:
        The person's colours `(3, size, size)`, at the edge without the background's, and alpha `(size, size)` in
        [0, 1].

    Raises:
        ValueError: If shapes differ, or nothing is sure or nothing can be background.
    """
    if image.ndim != 3 or len(image) != 3 or not image.shape[1:] == sure.shape == likely.shape:
        shapes = ", ".join(str(tuple(value.shape)) for value in (image, sure, likely))
        raise ValueError(f"`image` must be (3, size, size), `sure` and `likely` (size, size), got {shapes}.")
    if not sure.any() or (sure | likely).all():
        raise ValueError("`sure` must hold a pixel, and one must be neither in it nor in `likely`.")
    marks = torch.full(sure.shape, cv2.GC_PR_BGD, dtype=torch.uint8)
    marks[likely] = cv2.GC_PR_FGD
    marks[_border(sure.shape[0]) & ~likely] = cv2.GC_BGD
    marks[sure] = cv2.GC_FGD
    picture = (image * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1].copy()
    found, models = marks.numpy().copy(), (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.setRNGSeed(0)  # the same picture gives the same matte
    cv2.grabCut(picture, found, None, *models, _ROUNDS, cv2.GC_INIT_WITH_MASK)
    mask = _one_piece((found == cv2.GC_FGD) | (found == cv2.GC_PR_FGD), sure.numpy())
    alpha = _softened(image, torch.from_numpy(mask).float())
    return spread_colours(image, alpha > _SURE), alpha


def _border(size: int) -> Tensor:
    """The upper two thirds of the picture's rim."""
    rim = torch.zeros(size, size, dtype=torch.bool)
    width = max(size // 64, 1)
    rim[:width], rim[: 2 * size // 3, :width], rim[: 2 * size // 3, -width:] = True, True, True
    return rim


def _one_piece(mask: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """The piece that holds the person, without holes."""
    _, labels = cv2.connectedComponents(mask.astype(np.uint8))
    mask = np.isin(labels, np.unique(labels[sure & mask])) & mask
    _, labels, sizes, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = sizes[:, cv2.CC_STAT_AREA] < mask.size / 200
    return mask | (small[labels] & ~mask)


def _softened(image: Tensor, mask: Tensor) -> Tensor:
    """Alpha that follows the picture's edges near the mask's."""
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
    """A picture `(3, size, size)` whose pixels that are not `known` `(size, size)` get the colours of those near."""
    colours, weight = image * known, known.float()[None]
    total, count = colours, weight
    for radius in (1, 2, 4, 8, 16, 32, 64):
        pool = {"kernel_size": 2 * radius + 1, "stride": 1, "padding": radius}
        missing = count < 1e-3
        total = total + missing * F.avg_pool2d(colours[None], **pool)[0]
        count = count + missing * F.avg_pool2d(weight[None], **pool)[0]
    return torch.where(known, image, total / count.clamp_min(1e-6))

"""Images of face landmarks, what GAIA's motion encoder sees (§4.2: x_m). Pure tensors.

Each part of the face is drawn as lines into one of the three channels; parts that come close to each other lie in
different channels:

    0  oval, brows, outer lips        1  eyes, nose        2  irises, inner lips

# Not in the paper: what the image looks like. Lines are smooth to a fraction of a pixel, so that small motion shows.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from vasa_hf.geometry.landmarks import CLOSED_GROUPS, GROUPS, NUM_LANDMARKS

_NOSE = GROUPS["nose"]  # bridge to tip, base, right and left wing
_LINES = {
    **{name: (channel, GROUPS[name], name in CLOSED_GROUPS) for name, channel in (("oval", 0), ("lips_outer", 0))},
    **{name: (0, GROUPS[name], True) for name in ("left_brow", "right_brow")},
    **{name: (1, GROUPS[name], True) for name in ("left_eye", "right_eye")},
    **{
        f"nose {i}": (1, _NOSE[part], False)
        for i, part in enumerate((slice(10), slice(10, 14), slice(14, 19), slice(19, 24)))
    },
    **{name: (2, GROUPS[name][1:], True) for name in ("left_iris", "right_iris")},  # without the centres
    "lips_inner": (2, GROUPS["lips_inner"], True),
}


@functools.cache
def _segments() -> tuple[Tensor, Tensor, Tensor]:
    """First and last landmark and channel of each line, `(segments,)` each."""
    first: list[int] = []
    last: list[int] = []
    channels: list[int] = []
    for channel, points, closed in _LINES.values():
        ends = (*points[1:], points[0]) if closed else points[1:]
        first += points[: len(ends)]
        last += ends
        channels += [channel] * len(ends)
    return torch.tensor(first), torch.tensor(last), torch.tensor(channels)


def draw_landmarks(
    landmarks: Tensor,  # [B, 162, 2]
    size: int,
    points_per_line: int = 16,
) -> Tensor:
    """Draw landmarks as images.

    Args:
        landmarks (`torch.Tensor` of shape `(batch, 162, 2)`): x, y in fractions of the crop; what lies outside is cut.
        size (`int`): Side of the images.
        points_per_line (`int`, defaults to 16): A line is drawn as that many points, each weighted by its share of it.

    Returns:
        `torch.Tensor` of shape `(batch, 3, size, size)` in [-1, 1].

    Raises:
        ValueError: If the shape is another.
    """
    if landmarks.ndim != 3 or landmarks.shape[1:] != (NUM_LANDMARKS, 2):
        raise ValueError(f"`landmarks` must have shape (batch, {NUM_LANDMARKS}, 2), got {tuple(landmarks.shape)}.")
    batch, (first, last, channels) = len(landmarks), (x.to(landmarks.device) for x in _segments())
    points = landmarks.float() * size - 0.5  # in pixels, centres at whole numbers
    start, end = points[:, first], points[:, last]  # [B, S, 2]
    place = (torch.arange(points_per_line, device=points.device) + 0.5) / points_per_line
    drawn = start[:, :, None] + (end - start)[:, :, None] * place[:, None]  # [B, S, n, 2]
    ink = ((end - start).norm(dim=-1, keepdim=True) / points_per_line).expand(drawn.shape[:-1])  # pixels of line
    corner = drawn.floor()
    share = drawn - corner
    canvas = points.new_zeros(batch, 3 * size * size)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = corner[..., 0] + dx, corner[..., 1] + dy
        weight = (share[..., 0] if dx else 1 - share[..., 0]) * (share[..., 1] if dy else 1 - share[..., 1]) * ink
        inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
        index = (channels[:, None] * size + y.clamp(0, size - 1)) * size + x.clamp(0, size - 1)
        canvas.scatter_add_(1, index.long().flatten(1), (weight * inside).flatten(1))
    return canvas.clamp(max=1.0).view(batch, 3, size, size) * 2 - 1

"""Motion of the irises by template matching: detects small eye rotations that a landmark detector misses.

# Not in the papers, which take gaze from a trained network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vasa_hf.geometry.landmarks import IRIS_RADIUS, eye_openness, rows
from vasa_hf.metrics.faces import FaceTrack

DETAIL = 48  # samples per eye width
TEMPLATE, REACH = (10, 8), (16, 10)  # half sizes of the template and of the search area, x and y, in samples
MIN_CORRELATION = 0.5  # a worse match is no iris, but for example a lid
EYES = ((33, 133, 468), (362, 263, 473))  # corners from left to right, iris


def iris_shift(still: Tensor, moved: Tensor, still_track: FaceTrack, moved_track: FaceTrack) -> Tensor:
    """Median shift of the irises between two videos, relative to the eye corners.

    Each eye of each frame is cut out along its corners; the iris of `still` is searched in `moved` by normalised
    cross-correlation with sub-sample precision. Frames with closed eyes in either video are skipped.

    Args:
        still (`torch.Tensor` of shape `(frames, 3, size, size)`): RGB in [0, 1].
        moved (`torch.Tensor` of the same shape): The same head with another gaze.
        still_track (`FaceTrack`): The face in `still`.
        moved_track (`FaceTrack`): The face in `moved`.

    Returns:
        `torch.Tensor` of shape `(2,)`: x, y in eye widths, to the right and down.

    Raises:
        ValueError: If lengths differ, or no iris is found again.
    """
    if not len(still) == len(moved) == len(still_track) == len(moved_track):
        raise ValueError(f"`moved` must have the {len(still)} frames of `still` and their tracks, got {len(moved)}.")
    shifts = []
    for index, (left, right, iris) in enumerate(EYES):
        seen = still_track.found & moved_track.found
        for track in (still_track, moved_track):
            seen = seen & (eye_openness(track.landmarks)[:, index] > 0.15)
        if not seen.any():
            continue
        pairs = ((still, still_track), (moved, moved_track))
        first, second = (_eyes(video[seen], track.landmarks[seen][:, rows(left, right)]) for video, track in pairs)
        points = still_track.landmarks[seen][:, rows(left, right, iris)]
        along = points[:, 1] - points[:, 0]
        offset = points[:, 2] - points[:, :2].mean(1)
        across = torch.stack([-along[:, 1], along[:, 0]], 1)
        place = torch.stack([(offset * along).sum(1), (offset * across).sum(1)], 1) / along.square().sum(1)[:, None]
        for eye, other, (x, y) in zip(first, second, (place * DETAIL).round().int().tolist(), strict=True):
            if (found := _match(eye, other, x, y)) is not None:
                shifts.append(found)
    if not shifts:
        raise ValueError("`moved` must show irises that `still` shows, but none was found again.")
    return torch.stack(shifts).median(0).values / DETAIL


def angle_of_shift(shift: Tensor) -> Tensor:
    """Convert a shift of the irises to yaw and pitch in radians: yaw > 0 to the image's left, pitch > 0 down."""
    return (shift * shift.new_tensor([-1, 1]) / IRIS_RADIUS).clamp(-0.95, 0.95).asin()


def _eyes(video: Tensor, corners: Tensor) -> Tensor:
    """Cut out upright, centred grey eyes `[F, H, W]`, `DETAIL` samples per eye width."""
    half_x, half_y = (DETAIL // 2 + TEMPLATE[0] + REACH[0], DETAIL // 4 + TEMPLATE[1] + REACH[1])
    x, y = torch.meshgrid(torch.arange(-half_x, half_x + 1.0), torch.arange(-half_y, half_y + 1.0), indexing="xy")
    along = (corners[:, 1] - corners[:, 0])[:, None, None] / DETAIL  # [F, 1, 1, 2]
    across = torch.stack([-along[..., 1], along[..., 0]], -1)
    grid = corners.mean(1)[:, None, None] + x[..., None] * along + y[..., None] * across
    return F.grid_sample(video.mean(1, keepdim=True), grid * 2 - 1, padding_mode="border", align_corners=False)[:, 0]


def _match(eye: Tensor, other: Tensor, x: int, y: int) -> Tensor | None:
    """Shift in samples of the iris at x, y of the first eye `[H, W]` in the other eye."""
    height, width = eye.shape
    x, y = x + width // 2, y + height // 2
    (tx, ty), (rx, ry) = TEMPLATE, REACH
    x, y = min(max(x, tx + rx), width - 1 - tx - rx), min(max(y, ty + ry), height - 1 - ty - ry)
    template = eye[y - ty : y + ty + 1, x - tx : x + tx + 1].flatten()
    area = other[y - ty - ry : y + ty + ry + 1, x - tx - rx : x + tx + rx + 1]
    patches = F.unfold(area[None, None], (2 * ty + 1, 2 * tx + 1))[0].mT  # [shifts, pixels]
    patches, template = patches - patches.mean(1, keepdim=True), template - template.mean()
    scores = patches @ template / (patches.norm(dim=1) * template.norm()).clamp_min(1e-6)
    best = int(scores.argmax())
    if scores[best] < MIN_CORRELATION:
        return None
    scores = scores.view(2 * ry + 1, 2 * rx + 1)
    row, column = divmod(best, 2 * rx + 1)
    return torch.tensor([column - rx + _find_peak(scores[row], column), row - ry + _find_peak(scores[:, column], row)])


def _find_peak(values: Tensor, index: int) -> float:
    """Offset of the vertex of the parabola through three values from the middle one, in [-0.5, 0.5]."""
    if not 0 < index < len(values) - 1:
        return 0.0
    before, here, after = values[index - 1 : index + 2].tolist()
    bend = before - 2 * here + after
    return 0.0 if math.isclose(bend, 0.0, abs_tol=1e-9) else 0.5 * (before - after) / bend

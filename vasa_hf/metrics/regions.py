"""Quality of mouth and eyes: sharpness, distance from the truth, flicker, and teeth between closed lips.

Not in the papers, which measure whole images. Landmarks define the regions:

```
outline   inner lips, lids                     pixels of the image itself, without resampling
square    mouth: centre of the lips, side of one outer eye distance; eye: middle of its corners, half of that side;
          turned with the line of the eyes     resampled
columns   five across the lips, from the outer edge of the upper one to the outer edge of the lower one
```
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vasa_hf.geometry.crops import crop_matrix, landmark_box, sampling_grid
from vasa_hf.geometry.landmarks import GROUPS, eye_openness, rows
from vasa_hf.metrics.faces import BATCH, FaceTrack
from vasa_hf.metrics.motion import CLOSED_LIPS
from vasa_hf.metrics.sharpness import laplacian_sharpness

OPEN_LIPS = 0.1  # lip gap over the distance of the outer eye corners
OPEN_EYES = 0.15  # lid gap over eye width
EYES = ("left_eye", "right_eye")
NETWORK_SIDE = 128  # of squares for the recogniser, whose input is 128 x 128
FLICKER_SIDE = 64  # near the size of the mouth in an image of 256 x 256
_SMOOTH = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # over frames
_CORNERS = {"left_eye": rows(33, 133), "right_eye": rows(362, 263)}
_OUTER_CORNERS = rows(33, 263)
# Outer edge of the upper lip, both edges of the gap, outer edge of the lower lip: [5 columns, 4]
_COLUMNS = [rows(*ids) for ids in ((39, 81, 178, 181), (37, 82, 87, 84), (0, 13, 14, 17), (267, 312, 317, 314),
                                   (269, 311, 402, 405))]  # fmt: skip


def _check(frames: Tensor, track: FaceTrack) -> None:
    if frames.ndim != 4 or frames.shape[1] != 3 or len(frames) != len(track):
        raise ValueError(
            f"`frames` must have shape (frames, 3, size, size), as many as the {len(track)} of `track`, "
            f"got {tuple(frames.shape)}."
        )


def outline_mask(
    outlines: Tensor,  # [T, N, 2]
    size: tuple[int, int],
) -> Tensor:
    """Make masks of the pixels whose centres lie inside closed outlines: `(frames, 1, height, width)`, bool.

    Args:
        outlines (`torch.Tensor` of shape `(frames, points, 2)`): x, y in pixels, in drawing order.
        size (`tuple[int, int]`): Height and width.
    """
    y = torch.arange(size[0], device=outlines.device)[:, None] + 0.5  # [H, 1]
    x = torch.arange(size[1], device=outlines.device) + 0.5  # [W]
    inside = torch.zeros(len(outlines), *size, dtype=torch.bool, device=outlines.device)
    for a, b in zip(outlines.unbind(1), outlines.roll(-1, 1).unbind(1), strict=True):  # even-odd rule
        (ax, ay), (bx, by) = a[:, :, None, None].unbind(1), b[:, :, None, None].unbind(1)  # [T, 1, 1] each
        crossed = (ay > y) != (by > y)  # [T, H, 1]
        inside ^= crossed & (x < ax + (y - ay) / (by - ay) * (bx - ax))
    return inside[:, None]


def outline_sharpness(
    frames: Tensor,  # [T, 3, H, W]
    outlines: Tensor,  # [T, N, 2]
) -> Tensor:
    """Mean absolute Laplacian inside closed outlines, `(frames,)`; NaN if an outline contains no pixel.

    Args:
        frames (`torch.Tensor` of shape `(frames, 3, height, width)`): RGB in [0, 1].
        outlines (`torch.Tensor` of shape `(frames, points, 2)`): x, y as fractions of the image, in drawing order.
    """
    pairs = zip(frames.split(BATCH), outlines.split(BATCH), strict=True)
    return torch.cat([_outline_sharpness(*pair) for pair in pairs])


def _outline_sharpness(frames: Tensor, outlines: Tensor) -> Tensor:
    height, width = frames.shape[-2:]
    outlines = outlines * outlines.new_tensor([width, height])
    box = landmark_box(outlines.flatten(0, 1))
    x0, y0 = (max(int(value) - 1, 0) for value in box[:2])  # a margin of one pixel for the Laplacian
    x1, y1 = int(box[2]) + 2, int(box[3]) + 2
    window = frames[:, :, y0:y1, x0:x1]
    if min(window.shape[-2:]) < 3:
        return frames.new_full((len(frames),), torch.nan)
    return laplacian_sharpness(window, outline_mask(outlines - outlines.new_tensor([x0, y0]), window.shape[-2:]))


def mouth_sharpness(frames: Tensor, track: FaceTrack) -> float:
    """Mean absolute Laplacian inside the inner lips, for frames with the lips at least 0.1 eye distances apart.

    Divide it by that of the true frames with the same `track`.

    Args:
        frames (`torch.Tensor` of shape `(frames, 3, height, width)`): RGB in [0, 1].
        track (`FaceTrack`): Positions of the lips.

    Raises:
        ValueError: If the mouth is never open.
    """
    _check(frames, track)
    return _mean(_sharpness(frames, track, "lips_inner", track.lip_gap >= OPEN_LIPS), "an open mouth")


def eye_sharpness(frames: Tensor, track: FaceTrack) -> float:
    """Mean absolute Laplacian inside the eye openings, over all open eyes; otherwise as `mouth_sharpness`."""
    _check(frames, track)
    seen = eye_openness(track.landmarks) > OPEN_EYES
    values = [_sharpness(frames, track, name, seen[:, number]) for number, name in enumerate(EYES)]
    return _mean(torch.cat(values), "open eyes")


def _sharpness(frames: Tensor, track: FaceTrack, group: str, seen: Tensor) -> Tensor:
    seen = seen & track.found
    if not seen.any():
        return frames.new_zeros(0)
    return outline_sharpness(frames[seen], track.landmarks[seen][:, GROUPS[group]])


def _mean(values: Tensor, what: str) -> float:
    values = values[values.isfinite()]
    if not len(values):
        raise ValueError(f"`track` must show {what} in at least one frame, got none.")
    return float(values.mean())


def region_squares(
    landmarks: Tensor,  # [T, 162, 2]
    name: str,
) -> Tensor:
    """Centre, side and angle of the square around the mouth or an eye, `(frames, 4)`.

    Args:
        landmarks (`torch.Tensor` of shape `(frames, 162, 2)`): x, y.
        name (`str`): "mouth", "left_eye" or "right_eye".
    """
    left, right = landmarks[:, _OUTER_CORNERS].unbind(1)
    along = right - left
    angle, side = torch.atan2(along[:, 1], along[:, 0]), along.norm(dim=1)
    center = landmarks[:, _CORNERS.get(name, GROUPS["lips_outer"])].mean(1)
    return torch.cat([center, (side if name == "mouth" else side / 2)[:, None], angle[:, None]], 1)


def cut_squares(
    frames: Tensor,  # [T, 3, H, W]
    squares: Tensor,  # [T, 4]
    size: int,
) -> Tensor:
    """Cut the squares of `region_squares` to images of `size`, `(frames, 3, size, size)`."""
    grid = sampling_grid(crop_matrix(squares[:, :2], squares[:, 2], squares[:, 3]), size, (1, 1))
    return F.grid_sample(frames, grid, padding_mode="border", align_corners=False)


def cut_mouth(frames: Tensor, landmarks: Tensor) -> Tensor:
    """Cut the squares of the mouth for a network, `(frames, 3, 128, 128)`.

    Args:
        frames (`torch.Tensor` of shape `(frames, 3, height, width)`): RGB in [0, 1].
        landmarks (`torch.Tensor` of shape `(frames, 162, 2)`): x, y as fractions of the image.
    """
    return cut_squares(frames, region_squares(landmarks, "mouth"), NETWORK_SIDE)


def cut_eyes(frames: Tensor, landmarks: Tensor) -> Tensor:
    """Cut the middle halves of both eyes' squares, the left eye above the right one; otherwise as `cut_mouth`."""
    middle = slice(NETWORK_SIDE // 4, NETWORK_SIDE * 3 // 4)
    return torch.cat(
        [cut_squares(frames, region_squares(landmarks, eye), NETWORK_SIDE)[:, :, middle] for eye in EYES], 2
    )


def mouth_flicker(frames: Tensor, track: FaceTrack) -> float:
    """Mean absolute second difference over time of pixels in squares that follow the mouth.

    The squares follow the landmarks smoothed over five frames, to suppress the detector's noise. Divide it by that of
    the true frames. Moving lips add to it and blur reduces it: compare it together with `mouth_sharpness`.

    Args:
        frames (`torch.Tensor` of shape `(frames, 3, height, width)`): RGB in [0, 1].
        track (`FaceTrack`): The face in these frames.

    Raises:
        ValueError: If no three consecutive frames show a face.
    """
    _check(frames, track)
    if len(frames) < 3:
        raise ValueError(f"`frames` must be at least 3, got {len(frames)}.")
    squares = _smooth(region_squares(track.landmarks, "mouth"), _SMOOTH)
    seen = track.found & squares.isfinite().all(1)
    pixels = cut_squares(frames, squares.nan_to_num(), FLICKER_SIDE)
    change = (pixels[2:] - 2 * pixels[1:-1] + pixels[:-2]).abs().mean((1, 2, 3))
    return _mean(change[seen[2:] & seen[1:-1] & seen[:-2]], "a face in three consecutive frames, also")


def _smooth(values: Tensor, weights: Sequence[float]) -> Tensor:
    """Weighted mean over neighbouring frames, `(frames, n)`; the ends are extrapolated linearly."""
    reach = len(weights) // 2
    before = 2 * values[:1] - values[1 : reach + 1].flip(0)
    after = 2 * values[-1:] - values[-reach - 1 : -1].flip(0)
    padded = torch.cat([before, values, after])
    return sum(weight * padded[shift : shift + len(values)] for shift, weight in enumerate(weights))


def lip_line_whiteness(
    frames: Tensor,  # [T, 3, H, W]
    landmarks: Tensor,  # [T, 162, 2]
) -> Tensor:
    """How much whiter the gap between the lips is than the lips, `(frames,)`: negative for closed lips.

    Whiteness is the smallest of red, green and blue (lips have little green and blue, a dark gap has nothing). The
    middle of the gap is compared with the middles of both lips; the result is the median of five columns.

    Args:
        frames (`torch.Tensor` of shape `(frames, 3, height, width)`): RGB in [0, 1].
        landmarks (`torch.Tensor` of shape `(frames, 162, 2)`): x, y as fractions of the image.
    """
    columns = landmarks[:, _COLUMNS]  # [T, 5, 4, 2]
    points = torch.stack([(columns[:, :, i] + columns[:, :, i + 1]) / 2 for i in range(3)], 1)  # [T, 3, 5, 2]
    white = F.grid_sample(frames, points * 2 - 1, padding_mode="border", align_corners=False).amin(1)  # [T, 3, 5]
    return (white[:, 1] - (white[:, 0] + white[:, 2]) / 2).median(1).values


def teeth_on_shut_lips(frames: Tensor, track: FaceTrack, wanted: FaceTrack | None = None) -> float:
    """Share of frames with lips that should be closed in which the line between them is whiter than the lips.

    Args:
        frames (`torch.Tensor` of shape `(frames, 3, height, width)`): RGB in [0, 1].
        track (`FaceTrack`): Positions of the lips.
        wanted (`FaceTrack`, *optional*): Track whose lips are closed when they should be; `track` by default.

    Raises:
        ValueError: If the lips should never be closed.
    """
    _check(frames, track)
    wanted = track if wanted is None else wanted
    shut = track.found & wanted.found & (wanted.lip_gap < CLOSED_LIPS)
    return _mean((lip_line_whiteness(frames[shut], track.landmarks[shut]) > 0).float(), "shut lips")

"""Fine-grained control of the expression: named shifts of LivePortrait's keypoints (MoDA Fig. 6).

# Not in the paper: which points a name moves, and how far. Directions follow what the points of the public weights are
known to sit on (lips, lids, irises, brows, cheeks); amounts are in canonical coordinates, in which the outer corners of
the eyes are about 0.4 apart, so that 1 is clear and natural. x goes to the image's right, y down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vasa_hf.checks import is_finite_number
from vasa_hf.geometry.keypoints import NUM_KEYPOINTS
from vasa_hf.motion.keyframes import Keyframes, parse_keyframes

# Name -> keypoint -> shift (x, y, z) at strength 1. 14 and 20: corners of the mouth, 12 and 17: upper lip, 6 and 19:
# lower lip, 13 and 16: upper lids, 11 and 15: irises, 1 and 2: brows, 3 and 4: jaw, 9: chin.
EDITS: dict[str, dict[int, tuple[float, float, float]]] = {
    "smile": {
        14: (0.014, -0.016, 0),
        20: (-0.014, -0.016, 0),
        17: (0, -0.003, 0),
        13: (0, 0.003, 0),
        16: (0, 0.003, 0),
    },
    "mouth_open": {19: (0, 0.03, 0), 6: (0, 0.035, 0), 9: (0, 0.035, 0), 17: (0, -0.003, 0)},
    "pucker": {14: (-0.022, 0, -0.01), 20: (0.022, 0, -0.01), 6: (0, -0.003, -0.01), 12: (0, 0.003, -0.01)},
    "mouth_x": {point: (0.02, 0, 0) for point in (6, 12, 14, 17, 19, 20)},
    "brow": {1: (0, -0.022, 0), 2: (0, -0.022, 0)},
    "frown": {1: (0.008, 0.012, 0), 2: (-0.008, 0.012, 0)},
    "blink": {13: (0, 0.03, 0), 16: (0, 0.03, 0)},
    "wink_left": {13: (0, 0.03, 0), 20: (0, -0.006, 0)},
    "wink_right": {16: (0, 0.03, 0), 14: (0, -0.006, 0)},
    # Radians: an eyeball of 12 mm under lids; > 0 looks to the image's left, and down. Lids follow the eyes down.
    "gaze_yaw": {11: (-0.053, 0, 0), 15: (-0.053, 0, 0)},
    "gaze_pitch": {11: (0, 0.053, 0), 15: (0, 0.053, 0), 13: (0, 0.035, 0), 16: (0, 0.035, 0)},
}
MAX_STRENGTH = 2.0
Edits: TypeAlias = Mapping[str, float]
ExpressionControl: TypeAlias = Edits | Sequence[tuple[float, Edits]]


def parse_expression(expression: ExpressionControl | None) -> Keyframes | None:
    """Check the edits of a call.

    Args:
        expression (`dict[str, float]` or `[(seconds, edits), ...]` or `None`):
            Strength of each edit, such as `{"smile": 0.5}`, in [-2, 2]; or keyframes of that, linear in between.

    Returns:
        `Keyframes` with a channel for each of `EDITS`, or `None` without any.

    Raises:
        ValueError: If a name is unknown, or a strength out of range.
    """
    return parse_keyframes("expression", f"a dict with strengths of {list(EDITS)}", expression, _parse_strengths)


def expression_shift(track: Keyframes, start_frame: int, num_frames: int, fps: float) -> Tensor:
    """Shift of each keypoint in each frame, before the head's rotation.

    Args:
        track (`Keyframes`): From `parse_expression`.
        start_frame (`int`): Place of the first frame in the video.
        num_frames (`int`): Number of frames.
        fps (`float`): Frames per second.

    Returns:
        `torch.Tensor` of shape `(frames, 21, 3)`.
    """
    shifts = torch.zeros(len(EDITS), NUM_KEYPOINTS, 3)
    for shift, points in zip(shifts, EDITS.values(), strict=True):
        for point, value in points.items():
            shift[point] = torch.tensor(value, dtype=torch.float32)
    seconds = torch.arange(start_frame, start_frame + num_frames, dtype=torch.float64) / float(fps)
    return torch.einsum("fe,ekx->fkx", track.at(seconds).float(), shifts)


def _parse_strengths(value: Any) -> Sequence[float] | None:
    if not isinstance(value, Mapping):
        return None
    for name, strength in value.items():
        if name not in EDITS:
            raise ValueError(f"`expression` knows the names {list(EDITS)}, got {name!r}.")
        if not is_finite_number(strength) or abs(strength) > MAX_STRENGTH:
            raise ValueError(f"`expression` must have strengths in [-2, 2], got {strength!r} for {name!r}.")
    return [float(value.get(name, 0.0)) for name in EDITS]

"""The motion of LivePortrait's keypoints as a tensor, and the controls that all generators of such motion share.

A portrait's motion is a `MotionSpec({"expression": 63})`: angles in radians of `geometry/rotations.py`, place and scale
in fractions of the crop, and the shifts of the 21 keypoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from vasa_hf.checks import check_number
from vasa_hf.geometry.keypoints import KeypointMotion, euler_degrees
from vasa_hf.geometry.rotations import euler_from_matrix, matrix_from_euler
from vasa_hf.motion import MotionSpec, to_relative
from vasa_hf.motion.controls import place_motion
from vasa_hf.motion.keyframes import Keyframes
from vasa_hf.pipelines.expression_edits import ExpressionControl, expression_shift, parse_expression
from vasa_hf.pipelines.inputs import Subject
from vasa_hf.pipelines.motion_generator import MAX_HEAD_MOTION
from vasa_hf.processors.image import FaceCrop

KEYPOINT_SPEC = MotionSpec({"expression": 63})


@dataclass
class KeypointPortrait(Subject):
    """A portrait prepared by `prepare_portrait`; give it as `image` to save that work.

    Attributes:
        feature_3d (`torch.Tensor` of shape `(1, channels, depth, height, width)`): Its appearance.
        keypoints (`KeypointMotion`): Its own keypoints; one row.
        picture (`torch.Tensor` of shape `(3, height, width)`): The whole image in [-1, 1].
        crop (`FaceCrop`): Where the face's square lies in it.
        size (`int`): Side of the rendered frames.
    """

    feature_3d: Tensor
    keypoints: KeypointMotion
    picture: Tensor
    crop: FaceCrop
    size: int

    @property
    def motion(self) -> Tensor:
        """Its own pose and expression, `(1, 69)`, float32."""
        return motion_of(self.keypoints)

    @property
    def output_size(self) -> int:
        """Side of the square frames in pixels."""
        return self.size


@dataclass(frozen=True)
class HeadControls:
    """Controls of a talking head that LivePortrait renders.

    Args:
        expression (`dict[str, float]` or `[(seconds, edits), ...]`, *optional*):
            Edits that are added, such as `{"smile": 0.5}`: `vasa_hf.pipelines.expression_edits.EDITS`.
        head_motion (`float`, defaults to 1.0): Amount of head movement. # Not in the paper.
    """

    expression: ExpressionControl | None = None
    head_motion: float = 1.0

    def check(self) -> None:
        """Raise `ValueError` for values out of range."""
        parse_expression(self.expression)
        check_number("head_motion", self.head_motion, 0.0, MAX_HEAD_MOTION)

    def apply(self, motions: Iterable[KeypointMotion], subject: KeypointPortrait, fps: int) -> Iterator[Tensor]:
        """Yield the motion `(1, frames, 69)` of consecutive keypoints, with these controls applied."""
        start, own, edits = 0, subject.motion, parse_expression(self.expression)
        for keypoints in motions:
            motion = apply_edits(motion_of(keypoints), edits, start, fps)[None]
            if self.head_motion != 1.0:
                motion = place_motion(to_relative(motion, own), own, start, fps, self.head_motion)
            yield motion
            start += motion.shape[1]


def motion_of(keypoints: KeypointMotion) -> Tensor:
    """Convert keypoint motion to a tensor `(frames, 69)`, see `KEYPOINT_SPEC`, float32."""
    angles = euler_from_matrix(keypoints.rotation.float().mT)
    place = (keypoints.t[:, :2].float() + 1) / 2  # from [-1, 1] to fractions of the crop
    return torch.cat([angles, place, keypoints.scale.float() / 2, keypoints.exp.float().flatten(1)], dim=-1)


def keypoints_of(motion: Tensor, kp: Tensor) -> KeypointMotion:
    """Inverse of `motion_of`, for canonical keypoints `(1, 21, 3)`."""
    pitch, yaw, roll = euler_degrees(matrix_from_euler(*motion[:, :3].unbind(-1)).mT)
    place = torch.nn.functional.pad(motion[:, 3:5] * 2 - 1, (0, 1))
    exp = motion[:, 6:].unflatten(1, (-1, 3))
    return KeypointMotion(kp.expand(len(motion), -1, -1), exp, motion[:, 5:6] * 2, place, pitch, yaw, roll)


def apply_edits(motion: Tensor, track: Keyframes | None, start_frame: int, fps: Fraction | float) -> Tensor:
    """Add edits of the expression to a motion `(frames, 69)`, see `parse_expression`; they turn with the head."""
    if track is None:
        return motion
    shift = expression_shift(track, start_frame, len(motion), float(fps)).to(motion)
    turned = shift @ matrix_from_euler(*motion[:, :3].unbind(-1)).mT
    return torch.cat([motion[:, :6], motion[:, 6:] + turned.flatten(1)], dim=-1)

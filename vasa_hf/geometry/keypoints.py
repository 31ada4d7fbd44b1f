"""Implicit keypoints of LivePortrait: 21 points of a face, and the transfer of motion between faces.

A face has canonical points, a displacement of each by the expression, a head rotation, a scale and a translation::

      . z (depth)
     /
    o-----> x (right)       points = scale * (canonical @ R + expression) + (t_x, t_y, 0)
    |
    v y (down)              R = (R_z(roll) R_y(yaw) R_x(pitch)).T, angles in degrees, points are rows

x and y span the renderer's image from -1 to 1. The points of lips, eyes and brows were learned; the index groups below
were found in the trained renderer.

Source: LivePortrait §3.1-3.3 (Eq. 2, 4, 8, 9); the axes and the groups of points are those of the public weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

NUM_KEYPOINTS = 21
MOTION_DIM = 70  # expression 63 | scale | translation 3 | pitch, yaw, roll in degrees
POSE_BINS = 66
DEGREES_PER_BIN, FIRST_BIN_DEGREES = 3.0, -97.5

LIP_KEYPOINTS = (6, 12, 14, 17, 19, 20)
EYE_KEYPOINTS = (11, 13, 15, 16, 18)
REGIONS = ("all", "expression", "pose", "lips", "eyes")

# Coordinates that can be copied from another face: all others also contain the shape of the face.
ABSOLUTE_COORDINATES = {
    "xyz": (1, 2, 6, *range(11, 21)),
    "y": (3, 4, 9),
    "z": (5, 8, 9),
}
# Pairs of the 203 landmarks: across the opening, along it.
LEFT_EYE, RIGHT_EYE, LIPS = ((6, 18), (0, 12)), ((30, 42), (24, 36)), ((90, 102), (48, 66))


@dataclass
class KeypointMotion:
    """Motion of faces, one per row, as the motion extractor predicts it.

    Args:
        kp (`torch.Tensor` of shape `(batch, 21, 3)`): Canonical keypoints of the person.
        exp (`torch.Tensor` of shape `(batch, 21, 3)`): Displacement by the expression.
        scale (`torch.Tensor` of shape `(batch, 1)`): Size in the image.
        t (`torch.Tensor` of shape `(batch, 3)`): Translation; its z is not used.
        pitch (`torch.Tensor` of shape `(batch,)`): Degrees.
        yaw (`torch.Tensor` of shape `(batch,)`): Degrees.
        roll (`torch.Tensor` of shape `(batch,)`): Degrees.
    """

    kp: Tensor
    exp: Tensor
    scale: Tensor
    t: Tensor
    pitch: Tensor
    yaw: Tensor
    roll: Tensor

    def __len__(self) -> int:
        return len(self.exp)

    def __getitem__(self, index: slice | Tensor | list[int]) -> KeypointMotion:
        """Select some of the faces; an `int` would drop the batch axis and raises `ValueError`."""
        if isinstance(index, int):
            raise ValueError(f"`index` must keep the batch axis, such as {index}:{index + 1}, got {index}.")
        return KeypointMotion(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, *args: Any, **kwargs: Any) -> KeypointMotion:
        """Move or cast every tensor, see `torch.Tensor.to`."""
        return KeypointMotion(*(getattr(self, field.name).to(*args, **kwargs) for field in fields(self)))

    def expand(self, batch: int) -> KeypointMotion:
        """Expand one face to a batch, without a copy."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return KeypointMotion(*(value.expand(batch, *value.shape[1:]) for value in tensors))

    @classmethod
    def cat(cls, motions: Sequence[KeypointMotion]) -> KeypointMotion:
        """Concatenate the rows of several motions."""
        return cls(*(torch.cat([getattr(motion, field.name) for motion in motions]) for field in fields(cls)))

    @property
    def rotation(self) -> Tensor:
        """Head rotations `(batch, 3, 3)`, for points as rows: `points @ rotation`."""
        return euler_matrix(self.pitch, self.yaw, self.roll)

    def to_vector(self) -> Tensor:
        """Convert to the 70 numbers of MoDA and JoyVASA, `(batch, 70)`: expression, scale, translation, angles."""
        angles = torch.stack([self.pitch, self.yaw, self.roll], -1)
        return torch.cat([self.exp.flatten(1), self.scale, self.t, angles], -1)

    @classmethod
    def from_vector(cls, vector: Tensor, kp: Tensor) -> KeypointMotion:
        """Inverse of `to_vector`.

        Args:
            vector (`torch.Tensor` of shape `(batch, 70)`): Motion, not normalised.
            kp (`torch.Tensor` of shape `(batch or 1, 21, 3)`): Canonical keypoints of the person.

        Raises:
            ValueError: If a shape is wrong.
        """
        if vector.ndim != 2 or vector.shape[1] != MOTION_DIM:
            raise ValueError(f"`vector` must have shape (batch, {MOTION_DIM}), got {tuple(vector.shape)}.")
        if kp.ndim != 3 or len(kp) not in (1, len(vector)) or kp.shape[1:] != (NUM_KEYPOINTS, 3):
            raise ValueError(f"`kp` must have shape ({len(vector)} or 1, {NUM_KEYPOINTS}, 3), got {tuple(kp.shape)}.")
        exp, scale, t, angles = vector.split([3 * NUM_KEYPOINTS, 1, 3, 3], -1)
        kp = kp.expand(len(vector), NUM_KEYPOINTS, 3)
        return cls(kp, exp.unflatten(1, (NUM_KEYPOINTS, 3)), scale, t, *angles.unbind(-1))


def head_pose_degrees(logits: Tensor) -> Tensor:
    """Decode the expected angle from the bins of a head-pose classifier.

    Args:
        logits (`torch.Tensor` of shape `(batch, 66)`): Logits of bins of 3 degrees; a tensor of another size holds
            decoded angles and is returned unchanged.

    Returns:
        `torch.Tensor` of shape `(batch,)` in degrees.
    """
    if logits.ndim != 2 or logits.shape[1] != POSE_BINS:
        return logits
    bins = torch.arange(POSE_BINS, device=logits.device, dtype=torch.float32)
    expected = (logits.float().softmax(-1) * bins).sum(-1)
    return (expected * DEGREES_PER_BIN + FIRST_BIN_DEGREES).to(logits.dtype)


def euler_matrix(pitch: Tensor, yaw: Tensor, roll: Tensor) -> Tensor:
    """Rotation for points as rows, `(R_z R_y R_x).T`.

    Args:
        pitch (`torch.Tensor` of shape `(...)`): About x, degrees.
        yaw (`torch.Tensor` of shape `(...)`): About y, degrees.
        roll (`torch.Tensor` of shape `(...)`): About z, degrees.

    Returns:
        `torch.Tensor` of shape `(..., 3, 3)`.
    """
    x, y, z = (angle * (math.pi / 180) for angle in (pitch, yaw, roll))
    sin_x, sin_y, sin_z, cos_x, cos_y, cos_z = x.sin(), y.sin(), z.sin(), x.cos(), y.cos(), z.cos()
    columns = [  # of R_z R_y R_x; its columns are the rows of the result
        [cos_z * cos_y, sin_z * cos_y, -sin_y],
        [cos_z * sin_y * sin_x - sin_z * cos_x, sin_z * sin_y * sin_x + cos_z * cos_x, cos_y * sin_x],
        [cos_z * sin_y * cos_x + sin_z * sin_x, sin_z * sin_y * cos_x - cos_z * sin_x, cos_y * cos_x],
    ]
    return torch.stack([torch.stack(column, -1) for column in columns], -2)


def euler_degrees(rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse of `euler_matrix`, for yaw within +-90 degrees: pitch, yaw, roll in degrees.

    Args:
        rotation (`torch.Tensor` of shape `(..., 3, 3)`): Rotations for points as rows.
    """
    pitch = torch.atan2(rotation[..., 1, 2], rotation[..., 2, 2])
    yaw = torch.atan2(-rotation[..., 0, 2], torch.hypot(rotation[..., 1, 2], rotation[..., 2, 2]))
    roll = torch.atan2(rotation[..., 0, 1], rotation[..., 0, 0])
    return pitch * (180 / math.pi), yaw * (180 / math.pi), roll * (180 / math.pi)


def transform_keypoints(motion: KeypointMotion) -> Tensor:
    """Compute the keypoints in the image.

    Source: LivePortrait Eq. 2. Deviation: none; the z of the translation is not used, as in the public code.

    Args:
        motion (`KeypointMotion`): Faces.

    Returns:
        `torch.Tensor` of shape `(batch, 21, 3)`.
    """
    points = motion.scale[..., None] * (motion.kp @ motion.rotation + motion.exp)
    return torch.cat([points[..., :2] + motion.t[:, None, :2], points[..., 2:]], -1)


def _check_region(region: str) -> None:
    if region not in REGIONS:
        raise ValueError(f"`region` must be one of {REGIONS}, got {region!r}.")


def _expression_in_region(source: Tensor, driving: Tensor, region: str) -> Tensor:
    """Return the driving expression at the points of a region, the source's elsewhere."""
    if region in ("all", "expression"):
        return driving
    keep = torch.ones(NUM_KEYPOINTS, 1, dtype=torch.bool, device=source.device)
    keep[list({"pose": (), "lips": LIP_KEYPOINTS, "eyes": EYE_KEYPOINTS}[region])] = False
    return torch.where(keep, source, driving)


def relative_motion(
    source: KeypointMotion, driving: KeypointMotion, first: KeypointMotion, region: str = "all"
) -> KeypointMotion:
    """Move the source by the change of the driving face since its first frame.

    Source: LivePortrait Eq. 8 (`R = R_d,i R_d,0^T R_s`, and so on). Deviation: none.

    Args:
        source (`KeypointMotion`): The face to animate, one row or one for each frame.
        driving (`KeypointMotion`): The driving frames.
        first (`KeypointMotion`): The first driving frame, one row.
        region (`str`, defaults to `"all"`): The part that moves, one of `REGIONS`; the rest keeps the source's motion.
            Scale belongs to `"all"` only.

    Returns:
        `KeypointMotion` with a row for each driving frame.

    Raises:
        ValueError: If `region` is unknown.
    """
    _check_region(region)
    source, first = source.expand(len(driving)), first.expand(len(driving))
    moved = replace(source, exp=_expression_in_region(source.exp, source.exp + driving.exp - first.exp, region))
    if region in ("all", "pose"):
        rotation = driving.rotation @ first.rotation.mT @ source.rotation
        pitch, yaw, roll = euler_degrees(rotation)
        moved = replace(moved, t=source.t + driving.t - first.t, pitch=pitch, yaw=yaw, roll=roll)
    return replace(moved, scale=source.scale * driving.scale / first.scale) if region == "all" else moved


def absolute_motion(source: KeypointMotion, driving: KeypointMotion, region: str = "all") -> KeypointMotion:
    """Copy the head pose and expression of the driving face to the source, at the source's scale.

    Only coordinates without the shape of a face are copied, see `ABSOLUTE_COORDINATES`.

    Source: the public code of LivePortrait. # Not in the paper.

    Args:
        source (`KeypointMotion`): The face to animate, one row or one for each frame.
        driving (`KeypointMotion`): The driving frames.
        region (`str`, defaults to `"all"`): The part that moves, one of `REGIONS`; the rest keeps the source's motion.

    Returns:
        `KeypointMotion` with a row for each driving frame.

    Raises:
        ValueError: If `region` is unknown.
    """
    _check_region(region)
    source = source.expand(len(driving))
    taken = torch.zeros(NUM_KEYPOINTS, 3, dtype=torch.bool, device=source.exp.device)
    for axes, points in ABSOLUTE_COORDINATES.items():
        for axis in axes:
            taken[list(points), "xyz".index(axis)] = True
    exp = torch.where(taken, driving.exp, source.exp)
    moved = replace(source, exp=_expression_in_region(source.exp, exp, region))
    if region in ("all", "pose"):
        moved = replace(moved, t=driving.t, pitch=driving.pitch, yaw=driving.yaw, roll=driving.roll)
    return moved


def hull_volume(points: Tensor) -> Tensor:
    """Volume of the convex hull of some points in general position (no four in one plane of the hull).

    Args:
        points (`torch.Tensor` of shape `(batch, points, 3)`): At least 4 points.

    Returns:
        `torch.Tensor` of shape `(batch,)`.
    """
    centred = (points - points.mean(1, keepdim=True)).double()
    triples = torch.tensor(list(itertools.combinations(range(points.shape[1]), 3)), device=points.device)
    a, b, c = (centred[:, triples[:, i]] for i in range(3))  # [B, T, 3]
    normal = torch.linalg.cross(b - a, c - a)
    height = (normal * a).sum(-1)  # of the plane over the centre, which lies within
    # A triple is a face of the hull if no point lies beyond its plane; its own three points need the tolerance.
    beyond = torch.einsum("btx,bpx->btp", normal, centred) * height.sign()[..., None]
    slack = 1e-9 * normal.norm(dim=-1, keepdim=True) * centred.norm(dim=-1).amax(1)[:, None, None]
    face = (beyond <= height.abs()[..., None] + slack).all(-1)
    return ((height.abs() * face).sum(-1) / 6).to(points.dtype)


def expression_friendly_scale(kp_source: Tensor, kp_first: Tensor) -> Tensor:
    """Ratio of the face sizes of source and driving frames, to scale the motion in proportion.

    The driving keypoints are then `kp_source + (kp_driving - kp_first) * scale`.

    Source: the public code of LivePortrait. # Not in the paper.

    Args:
        kp_source (`torch.Tensor` of shape `(batch, 21, 3)`): Transformed keypoints of the source.
        kp_first (`torch.Tensor` of shape `(batch, 21, 3)`): Those of the first driving frame.

    Returns:
        `torch.Tensor` of shape `(batch, 1, 1)`.
    """
    return (hull_volume(kp_source) / hull_volume(kp_first)).sqrt()[:, None, None]


def _openness(landmarks: Tensor, pairs: tuple[tuple[int, int], tuple[int, int]]) -> Tensor:
    if landmarks.ndim != 3 or landmarks.shape[1:] != (203, 2):
        raise ValueError(f"`landmarks` must have shape (batch, 203, 2), got {tuple(landmarks.shape)}.")
    across, along = ((landmarks[:, i] - landmarks[:, j]).norm(dim=-1, keepdim=True) for i, j in pairs)
    return across / (along + 1e-6)


def eye_ratios(landmarks: Tensor) -> Tensor:
    """Openness of the eyes: height over width, `(batch, 2)`, left then right.

    Args:
        landmarks (`torch.Tensor` of shape `(batch, 203, 2)`): LivePortrait's landmarks, in pixels.
    """
    return torch.cat([_openness(landmarks, LEFT_EYE), _openness(landmarks, RIGHT_EYE)], -1)


def lip_ratio(landmarks: Tensor) -> Tensor:
    """Openness of the lips: height over width, `(batch, 1)`.

    Args:
        landmarks (`torch.Tensor` of shape `(batch, 203, 2)`): LivePortrait's landmarks, in pixels.
    """
    return _openness(landmarks, LIPS)

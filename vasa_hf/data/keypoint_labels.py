"""Implicit keypoints that are not implicit: LivePortrait's 21 keypoints, taught by landmark labels.

LivePortrait learns its keypoints without labels from 69M frames. # Not in the paper: with minutes of video the small
renderer's keypoints are anchored to landmarks, so that warps are right from the first step. The anchors keep the
meaning that the public weights' indices have been found to have (lips 6 12 14 17 19 20, eyes 11 13 15 16 18, brows 1 2,
nothing of the driver's for 0 7 10), so that absolute driving, regions and retargeting do for both what they say.

    labels:       points = scale * (canonical + shape + z_dyn @ basis) @ R.T + t         fractions of the crop
    LivePortrait: x      = s * (x_c @ R + exp) + t                                       [-1, 1]
"""

import torch
from torch import Tensor

from vasa_hf.data.landmark_dynamics import LandmarkDynamics
from vasa_hf.geometry.keypoints import KeypointMotion, euler_degrees
from vasa_hf.geometry.rotations import matrix_from_euler

# Landmark (MediaPipe's numbering) of each keypoint; left and right as in the image.
ANCHORS = (
    10,  # 0 forehead
    105,  # 1 left brow
    334,  # 2 right brow
    172,  # 3 left jaw
    397,  # 4 right jaw
    152,  # 5 neck: below and behind the chin, see NECK
    17,  # 6 lower lip's lower rim
    234,  # 7 left side of the face
    4,  # 8 tip of the nose
    152,  # 9 chin
    454,  # 10 right side of the face
    468,  # 11 left iris
    0,  # 12 upper lip's upper rim
    159,  # 13 left upper lid
    291,  # 14 right corner of the mouth
    473,  # 15 right iris
    386,  # 16 right upper lid
    13,  # 17 upper lip's lower rim
    168,  # 18 between the eyes
    14,  # 19 lower lip's upper rim
    61,  # 20 left corner of the mouth
)
NECK = 5
NECK_OFFSET = (0.0, 0.35, 0.45)  # from the chin, eye distances; it stays when the jaw moves
UNIT = 0.4  # of LivePortrait's coordinates for the distance of the outer eye corners: makes scales about 1.3


def keypoints_from_labels(dynamics: LandmarkDynamics, landmarks: Tensor, motion: Tensor) -> KeypointMotion:
    """Keypoints of labelled frames.

    Args:
        dynamics (`LandmarkDynamics`): Splits shapes into person and expression.
        landmarks (`torch.Tensor` of shape `(batch, 162, 2)`): Fractions of the crop.
        motion (`torch.Tensor` of shape `(batch, 34)`): Yaw, pitch, roll, tx, ty, scale, z_dyn of the same frames.

    Returns:
        `KeypointMotion`: What an ideal motion extractor would say of each frame; `t` has z = 0.
    """
    canonical, rotation = dynamics.canonical[dynamics.tensors["ids"]].to(motion), matrix_from_euler(*motion[:, :3].T)
    planar = (landmarks - motion[:, None, 3:5]) / motion[:, 5, None, None] - (canonical @ rotation.mT)[..., :2]
    shape = planar @ torch.linalg.inv(rotation[:, :2, :2]).mT - _shift(dynamics, motion)
    return keypoints_from_motion(dynamics, anchor(dynamics, shape), motion)


def anchor(dynamics: LandmarkDynamics, shape: Tensor) -> Tensor:
    """Canonical keypoints `(batch, 21, 3)` of faces at rest, `shape` `(batch, 162, 2)` off the canonical face."""
    rows, canonical = _rows(dynamics), dynamics.canonical[list(ANCHORS)].to(shape)
    points = canonical + torch.nn.functional.pad(shape[:, rows], (0, 1))
    points[:, NECK] += points.new_tensor(NECK_OFFSET)
    return UNIT * points


def keypoints_from_motion(dynamics: LandmarkDynamics, keypoints: Tensor, motion: Tensor) -> KeypointMotion:
    """Keypoint motion of faces with canonical keypoints `(batch, 21, 3)` under labelled motion `(batch, 34)`."""
    rotation = matrix_from_euler(*motion[:, :3].T)
    moved = torch.nn.functional.pad(_shift(dynamics, motion)[:, _rows(dynamics)], (0, 1))
    moved[:, NECK] = 0
    pitch, yaw, roll = euler_degrees(rotation.mT)
    return KeypointMotion(
        kp=keypoints,
        exp=UNIT * moved @ rotation.mT,
        scale=2 * motion[:, 5:6] / UNIT,
        t=torch.nn.functional.pad(2 * motion[:, 3:5] - 1, (0, 1)),
        pitch=pitch,
        yaw=yaw,
        roll=roll,
    )


def _shift(dynamics: LandmarkDynamics, motion: Tensor) -> Tensor:
    """How far z_dyn moves each landmark in the plane of the face, `(batch, 162, 2)`."""
    return (motion[:, 6:] @ dynamics.tensors["basis"].to(motion)).unflatten(1, (-1, 2))


def _rows(dynamics: LandmarkDynamics) -> list[int]:
    row = {int(number): index for index, number in enumerate(dynamics.ids)}
    return [row[number] for number in ANCHORS]

"""From motion measured in images to the parameters of a head: what a head must do to show it. Pure functions.

Not in the paper: VASA-3D learns both mappings from nothing (Eqs. 1-2). These are where our M^e and M^p start.

```
         camera                  p = R c        head at canonical place c, turned; canonical units
        (0, 0, -D)               crop = s (p_x, p_y) + t                       how VASA-1's z_pose is meant
           o------------> z      crop = 1/2 + f (X, Y) / (Z + D)               what the fixed camera sees
      D = distance       head    equal at the head's origin if Z = f k / s - D,  (X, Y) = (t - 1/2) k / s
```
f is the camera's focal length in images, k centimetres are one canonical unit. Far from that origin the camera's
perspective adds what the crop's parallel projection leaves out.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vasa_hf.geometry.cameras import DEFAULT_FOV_RAD
from vasa_hf.geometry.landmarks import GROUPS, NUM_LANDMARKS, fit_similarity
from vasa_hf.geometry.quaternions import quaternion_from_matrix
from vasa_hf.geometry.rotations import matrix_from_euler
from vasa_hf.head.fit import landmark_weights
from vasa_hf.head.parametric import JOINTS, ParametricHead
from vasa_hf.head.skinning import rotation_from_vector

_JAW_UNIT_RAD = 0.3  # a jaw this far open counts, in the ridge, as an expression at weight 1


def rotation_vector(
    matrix: Tensor,  # [..., 3, 3]
) -> Tensor:
    """Inverse of `rotation_from_vector`: axis times angle in radians, `(..., 3)`, up to half a turn."""
    quats = quaternion_from_matrix(matrix)
    quats = torch.where(quats[..., :1] < 0, -quats, quats)
    length = quats[..., 1:].norm(dim=-1, keepdim=True)
    return 2 * torch.atan2(length, quats[..., :1]) * F.normalize(quats[..., 1:], dim=-1)


@dataclasses.dataclass
class CanonicalPlace:
    """Where the landmarks' canonical face lies in a head: `head points ~ unit_cm * canonical @ rotation.T + origin`.

    Args:
        rotation (`torch.Tensor` of shape `(3, 3)`): Head from canonical.
        origin (`torch.Tensor` of shape `(3,)`): Of the canonical face, in the head's centimetres.
        unit_cm (`torch.Tensor` of shape `()`): Distance of the outer eye corners.
    """

    rotation: Tensor
    origin: Tensor
    unit_cm: Tensor


def place_canonical(
    head: ParametricHead,
    canonical: Tensor,  # [162, 3]
    shape: Tensor | None = None,  # [1, S]
) -> CanonicalPlace:
    """Lay the canonical face on a head at rest.

    Args:
        head (`ParametricHead`): Any.
        canonical (`torch.Tensor` of shape `(162, 3)`): Mean face, outer eye corners one unit apart.
        shape (`torch.Tensor` of shape `(1, S)`, *optional*): Shape coefficients.

    Raises:
        ValueError: If `canonical` is of another shape.
    """
    if canonical.shape != (NUM_LANDMARKS, 3):
        raise ValueError(f"`canonical` must have shape {(NUM_LANDMARKS, 3)}, got {tuple(canonical.shape)}.")
    points = head(shape=shape).vertices[0, head.landmarks]
    return CanonicalPlace(*fit_similarity(points, canonical[: len(points)].to(points)))


def place_from_picture(
    place: CanonicalPlace,
    pose: Tensor,  # [6]
    rotation: Tensor,  # [3, 3]
    translation: Tensor,  # [2] or [3]
    scale: Tensor,  # []
) -> CanonicalPlace:
    """The place by which one image's pose puts the head exactly where a fit of the head to that image has put it.

    Args:
        place (`CanonicalPlace`): Of the mean face; the image does not show how deep in the head the origin is.
        pose (`torch.Tensor` of shape `(6,)`): z_pose of the image.
        rotation (`torch.Tensor` of shape `(3, 3)`): Of the fit (`FittedHead`): crop = scale * head @ R.T + translation.
        translation (`torch.Tensor` of shape `(2,)` or `(3,)`): Of the fit, fractions of the crop.
        scale (`torch.Tensor` of shape `()`): Of the fit, fractions of the crop for a centimetre.
    """
    turned = rotation @ place.origin
    turned = torch.cat([(pose[3:5] - translation[:2]) / scale, turned[2:]])
    at = rotation.mT @ matrix_from_euler(*pose[:3])
    return CanonicalPlace(at, rotation.mT @ turned, pose[5] / scale)


def pose_of_crop(
    pose: Tensor,  # [B, 6]
    joints: Tensor,  # [5, 3]
    place: CanonicalPlace,
    distance_cm: float = 100.0,
    fov_rad: float = DEFAULT_FOV_RAD,
    neck_share: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Head parameters that bring a head before a fixed camera to a pose in the crop; geometry as drawn above.

    Args:
        pose (`torch.Tensor` of shape `(batch, 6)`):
            Yaw, pitch, roll (radians), tx, ty, scale (fractions of the crop; the scale counts as 0.02 at least).
        joints (`torch.Tensor` of shape `(5, 3)`): Of the head at rest, in the order of `JOINTS`.
        place (`CanonicalPlace`): What poses are about.
        distance_cm (`float`, *optional*, defaults to 100.0): From the camera to the world's origin.
        fov_rad (`float`, *optional*, defaults to 20 degrees): Field of view of the square image.
        neck_share (`float`, *optional*, defaults to 0.5): Part of the rotation that the neck makes, the rest is global.

    Returns:
        neck and global rotation vectors and translation in centimetres, each `(batch, 3)`.

    Raises:
        ValueError: If `pose` has another shape.
    """
    if pose.ndim != 2 or pose.shape[1] != 6:
        raise ValueError(f"`pose` must have shape (batch, 6), got {tuple(pose.shape)}.")
    vector = rotation_vector(matrix_from_euler(*pose[:, :3].unbind(-1)) @ place.rotation.mT)
    neck, rest = neck_share * vector, (1 - neck_share) * vector
    focal = 0.5 / math.tan(fov_rad / 2)
    width_cm = place.unit_cm / pose[:, 5:].clamp_min(0.02)  # of the image, where the head is
    wanted = torch.cat([(pose[:, 3:5] - 0.5) * width_cm, focal * width_cm - distance_cm], dim=1)
    # A point v of the skull goes to R_rest (R_neck (v - pivot) + pivot - root) + root + translation.
    root, pivot = joints[JOINTS.index("global")], joints[JOINTS.index("neck")]
    bent = (place.origin - pivot) @ rotation_from_vector(neck).mT + pivot - root
    translation = wanted - root - (rotation_from_vector(rest) @ bent[..., None])[..., 0]
    return neck, rest, translation


def expression_of_displacements(
    head: ParametricHead,
    displacements: Tensor,  # [K, 162, 2]
    place: CanonicalPlace,
    shape: Tensor | None = None,  # [1, S]
    ridge: float = 0.05,
) -> Tensor:
    """Expression parameters that move a head's landmarks as wished, by least squares about the face at rest.

    Args:
        head (`ParametricHead`): Any.
        displacements (`torch.Tensor` of shape `(K, 162, 2)`):
            How far landmarks of the frontal face go, x and y in canonical units; irises last.
        place (`CanonicalPlace`): Where they lie in the head.
        shape (`torch.Tensor` of shape `(1, S)`, *optional*): Shape coefficients.
        ridge (`float`, *optional*, defaults to 0.05): How strongly parameters are held near zero, square centimetres.

    Returns:
        `torch.Tensor` of shape `(K, E + 9)`: expression coefficients, rotation vectors of the person's left and right
        eye, and of the jaw: psi, theta^eye, theta^jaw of Eq. 1.

    Raises:
        ValueError: If `displacements` are of another shape.
    """
    if displacements.ndim != 3 or displacements.shape[1:] != (NUM_LANDMARKS, 2):
        raise ValueError(
            f"`displacements` must have shape (codes, {NUM_LANDMARKS}, 2), got {tuple(displacements.shape)}."
        )
    moves = place.unit_cm * displacements @ place.rotation[:2, :2].mT  # centimetres
    weight = landmark_weights().to(moves)[:, None]
    rest = head(shape=shape).vertices[0]
    step = 0.01
    jaws = head(shape=shape, jaw=step * torch.eye(3, device=rest.device, dtype=rest.dtype)).vertices - rest
    columns = torch.cat([head.expression_basis[:, head.landmarks], jaws[:, head.landmarks] * (_JAW_UNIT_RAD / step)])
    columns = (columns[..., :2] * weight).flatten(1)  # [E + 3, 304]
    system = columns @ columns.mT + ridge * torch.eye(len(columns), device=rest.device, dtype=rest.dtype)
    goal = (moves[:, : len(weight)] * weight).flatten(1)
    found = torch.linalg.solve(system, columns @ goal.mT).mT
    expression, jaw = found[:, :-3], found[:, -3:] * _JAW_UNIT_RAD
    eyes = []
    for group in ("right_iris", "left_iris"):  # the person's left eye is the image's right one
        x, y = (moves[:, GROUPS[group][0]] / head.eye_radius_cm).unbind(-1)
        eyes.append(torch.stack([y, -x, torch.zeros_like(x)], dim=-1))
    return torch.cat([expression, *eyes, jaw], dim=1)

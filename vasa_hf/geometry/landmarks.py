"""Face landmarks, and measurements from them: pose, openness, gaze, expressions. Pure tensors.

The 162 points are a subset of the 478 of MediaPipe's face mesh, in ascending order of their mesh ids. "Left" and
"right" are those of the image, so the left eye belongs to the right half of the person's face.

```
          oval 10                     x to the right, y down, z away from the viewer
     brow        brow                 pose: points ~ scale * canonical @ R.T + t
   left eye    right eye              canonical: neutral mean face, outer eye corners one unit apart
          nose                        "crop" coordinates: fractions of the square crop, (0, 0) the
          lips                        top-left corner of the top-left pixel
          oval 152
```
"""

import math

import torch
from torch import Tensor

from vasa_hf.geometry.rotations import euler_from_matrix, matrix_from_euler

LIPS_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
LIPS_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
LEFT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
RIGHT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
LEFT_BROW = (70, 63, 105, 66, 107, 55, 65, 52, 53, 46)
RIGHT_BROW = (300, 293, 334, 296, 336, 285, 295, 282, 283, 276)
NOSE = (168, 6, 197, 195, 5, 4, 1, 19, 94, 2, 98, 97, 326, 327, 294, 278, 344, 440, 275, 45, 220, 115, 48, 64)
OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149,
        150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)  # fmt: skip
LEFT_IRIS = (468, 469, 470, 471, 472)  # centre first
RIGHT_IRIS = (473, 474, 475, 476, 477)

_MESH_IDS = {
    "lips_outer": LIPS_OUTER,
    "lips_inner": LIPS_INNER,
    "left_eye": LEFT_EYE,
    "right_eye": RIGHT_EYE,
    "left_brow": LEFT_BROW,
    "right_brow": RIGHT_BROW,
    "nose": NOSE,
    "oval": OVAL,
    "left_iris": LEFT_IRIS,
    "right_iris": RIGHT_IRIS,
    # The points that hardly move with expression: used to fit the pose.
    "rigid": (*LEFT_EYE, *RIGHT_EYE, *NOSE, 10, 152, 234, 454, 127, 356),
}
LANDMARK_IDS: tuple[int, ...] = tuple(sorted({i for ids in _MESH_IDS.values() for i in ids}))
NUM_LANDMARKS = len(LANDMARK_IDS)
_INDEX = {mesh_id: index for index, mesh_id in enumerate(LANDMARK_IDS)}
#: Name of a part of the face -> its rows in the 162 points, in drawing order.
GROUPS: dict[str, tuple[int, ...]] = {name: tuple(_INDEX[i] for i in ids) for name, ids in _MESH_IDS.items()}
#: The groups that are closed outlines when drawn.
CLOSED_GROUPS = ("lips_outer", "lips_inner", "left_eye", "right_eye", "left_brow", "right_brow", "oval")
EXPRESSIONS = ("angry", "disgusted", "fearful", "happy", "sad", "surprised")


def rows(*mesh_ids: int) -> list[int]:
    """Rows of MediaPipe mesh ids in the 162 points."""
    return [_INDEX[i] for i in mesh_ids]


def mirror_permutation(
    canonical: Tensor,  # [162, 3]
) -> Tensor:
    """Order of the points in the mirrored image, from the symmetry of the canonical face.

    Returns:
        `torch.Tensor` of shape `(162,)`: `mirrored_points = points_with_flipped_x[permutation]`.

    Raises:
        ValueError: If the canonical face has no left-right symmetry.
    """
    mirrored = canonical * canonical.new_tensor([-1.0, 1.0, 1.0])
    permutation = torch.cdist(canonical, mirrored).argmin(dim=1)
    if not torch.equal(permutation[permutation], torch.arange(len(canonical), device=canonical.device)):
        raise ValueError("`canonical` must be left-right symmetric so that each point has one mirror point.")
    return permutation


# --- pose -----------------------------------------------------------------------------------------------------------


def fit_similarity(
    points: Tensor,  # [..., N, 3]
    canonical: Tensor,  # [N, 3]
) -> tuple[Tensor, Tensor, Tensor]:
    """Least-squares rotation, translation and scale with `points ~ scale * canonical @ R.T + t`.

    Source: Umeyama 1991, Eq. 40-42. Deviation: none.

    Returns:
        rotation (`torch.Tensor` of shape `(..., 3, 3)`), translation (`(..., 3)`) and scale (`(...)`).
    """
    mean, mean_canonical = points.mean(dim=-2), canonical.mean(dim=-2)
    a, b = points - mean.unsqueeze(-2), canonical - mean_canonical
    u, singular, vh = torch.linalg.svd(a.transpose(-1, -2) @ b)
    sign = torch.ones_like(singular)
    sign[..., 2] = torch.linalg.det(u @ vh).sign()
    rotation = u @ (sign.unsqueeze(-1) * vh)
    scale = (singular * sign).sum(dim=-1) / b.square().sum()
    translation = mean - scale.unsqueeze(-1) * (rotation @ mean_canonical)
    return rotation, translation, scale


def fit_pose(
    points: Tensor,  # [..., N, 2]
    canonical: Tensor,  # [N, 3]
    rotation: Tensor,  # [..., 3, 3]
    steps: int = 4,
) -> tuple[Tensor, Tensor, Tensor]:
    """Refine a head pose so that the projected canonical face matches 2D points (scaled orthography).

    Each step fills in the unknown depths from the current pose and fits a similarity.

    Args:
        points (`torch.Tensor` of shape `(..., N, 2)`): Detected points, best only those of `GROUPS["rigid"]`.
        canonical (`torch.Tensor` of shape `(N, 3)`): The same points of the canonical face.
        rotation (`torch.Tensor` of shape `(..., 3, 3)`): First guess.
        steps (`int`, *optional*, defaults to 4): Number of iterations.

    Returns:
        rotation (`(..., 3, 3)`), translation (`(..., 3)`, its z is that of a face whose canonical origin lies at 0) and
        scale (`(...)`), in the units of `points`.
    """
    extent = (canonical[..., :2] - canonical[..., :2].mean(dim=-2)).norm(dim=-1).mean()
    scale = (points - points.mean(dim=-2, keepdim=True)).norm(dim=-1).mean(dim=-1) / extent
    translation = torch.zeros_like(points[..., 0, :1])
    for _ in range(steps):
        depth = scale[..., None] * (canonical @ rotation.transpose(-1, -2))[..., 2]
        rotation, translation, scale = fit_similarity(torch.cat([points, depth.unsqueeze(-1)], dim=-1), canonical)
    return rotation, translation, scale


def transform_pose(
    pose: Tensor,  # [..., 7]
    matrix: Tensor,  # [..., 3, 3]
) -> Tensor:
    """Transform a pose (yaw, pitch, roll, tx, ty, tz, scale) by an image similarity such as `crop_from_image`."""
    factor = matrix[..., :2, 0].norm(dim=-1)
    turn = torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])
    rotation = matrix_from_euler(torch.zeros_like(turn), torch.zeros_like(turn), turn) @ matrix_from_euler(
        pose[..., 0], pose[..., 1], pose[..., 2]
    )
    xy = (matrix[..., :2, :2] @ pose[..., 3:5, None])[..., 0] + matrix[..., :2, 2]
    depth_and_scale = pose[..., 5:7] * factor.unsqueeze(-1)
    return torch.cat([euler_from_matrix(rotation), xy, depth_and_scale], dim=-1)


# --- measures -------------------------------------------------------------------------------------------------------


def _gap(points: Tensor, first: int, second: int) -> Tensor:
    a, b = rows(first, second)
    return (points[..., a, :2] - points[..., b, :2]).norm(dim=-1)


def eye_openness(points: Tensor) -> Tensor:
    """Lid gap over eye width, `(..., 162, 2)` -> `(..., 2)`, left eye first: about 0.3 open, below 0.15 closed."""
    left = _gap(points, 159, 145) / _gap(points, 33, 133).clamp_min(1e-6)
    right = _gap(points, 386, 374) / _gap(points, 263, 362).clamp_min(1e-6)
    return torch.stack([left, right], dim=-1)


def mouth_openness(points: Tensor) -> Tensor:
    """Gap of the inner lips and width of the mouth, relative to the distance of the outer eye corners, `(..., 2)`."""
    measures = torch.stack([_gap(points, 13, 14), _gap(points, 61, 291)], dim=-1)
    return measures / _gap(points, 33, 263).clamp_min(1e-6).unsqueeze(-1)


def iris_offset(points: Tensor) -> Tensor:
    """Iris centre minus eye centre over eye width, `(..., 162, 2)` -> `(..., 2 eyes, 2 xy)`, left eye first."""
    out = []
    for iris, corner_a, corner_b in ((468, 33, 133), (473, 362, 263)):
        center, a, b = (points[..., i, :2] for i in rows(iris, corner_a, corner_b))
        out.append((center - (a + b) / 2) / (a - b).norm(dim=-1, keepdim=True).clamp_min(1e-6))
    return torch.stack(out, dim=-2)


# In eye widths: distance of the iris centre from the eyeball's centre (anatomy: 11.5 mm of 29 mm), distance of the eye
# corners in front of the eyeball's centre, and height of the iris above them when people look into the camera (both
# fitted to the presenters of the training clips, who read from a screen in front of it).
IRIS_RADIUS, _CORNER_DEPTH, _IRIS_RAISE = 0.40, 0.145, 0.073


def gaze_angles(
    points: Tensor,  # [..., 162, 2]
    pose: Tensor,  # [..., 7] or [..., 3]: yaw, pitch, roll first
) -> Tensor:
    """Gaze from the irises: `(..., 2)` yaw and pitch in radians, (0, 0) is into the camera.

    yaw > 0 looks to the image's left, pitch > 0 down, as for the head. Mean of both eyes, weighted by their visible
    width; head roll is removed. Deviation: not in the paper, which takes gaze from a separate network.
    """
    yaw, roll = pose[..., 0], pose[..., 2]
    offset = iris_offset(points)
    c, s = roll.cos().unsqueeze(-1), roll.sin().unsqueeze(-1)
    x = offset[..., 0] * c + offset[..., 1] * s
    y = offset[..., 1] * c - offset[..., 0] * s
    widths = torch.stack([_gap(points, 33, 133), _gap(points, 362, 263)], dim=-1)
    weight = widths.square() / widths.square().sum(dim=-1, keepdim=True).clamp_min(1e-12)
    x, y = (x * weight).sum(dim=-1), (y * weight).sum(dim=-1)
    sin_yaw = (_CORNER_DEPTH * yaw.sin() - x * yaw.cos()) / IRIS_RADIUS
    sin_pitch = (y * yaw.cos() + _IRIS_RAISE) / IRIS_RADIUS
    return torch.stack([sin_yaw.clamp(-0.95, 0.95).asin(), sin_pitch.clamp(-0.95, 0.95).asin()], dim=-1)


def frontal_points(
    points: Tensor,  # [..., 162, 2]
    pose: Tensor,  # [..., 7]
    canonical: Tensor,  # [162, 3]
) -> Tensor:
    """Rotate points to a frontal view, in canonical units, with the depths of the canonical face."""
    rotation = matrix_from_euler(pose[..., 0], pose[..., 1], pose[..., 2])
    flat = (points - pose[..., None, 3:5]) / pose[..., None, 6:7]
    flat = flat - (canonical[:, 2:] @ rotation[..., None, :2, 2])
    return flat @ torch.linalg.inv(rotation[..., :2, :2]).transpose(-1, -2)


#: Mean and standard deviation of the shape measures in the labels of the training data.
_MEASURES: dict[str, tuple[float, float]] = {
    "corner_lift": (0.005, 0.038),
    "mouth_width": (0.555, 0.085),
    "jaw_drop": (0.050, 0.066),
    "brow_height": (0.255, 0.033),
    "inner_brow": (0.004, 0.020),
    "brow_distance": (0.285, 0.020),
    "lid_opening": (0.106, 0.025),
    "upper_lip": (-0.149, 0.033),
}
#: Weights of the measures for each expression, after the usual descriptions of facial actions.
_EXPRESSION_WEIGHTS: dict[str, dict[str, float]] = {
    "angry": {"brow_height": -1.0, "inner_brow": -0.6, "brow_distance": -0.8, "corner_lift": -0.4, "lid_opening": 0.2},
    "disgusted": {
        "upper_lip": 1.0,
        "brow_height": -0.5,
        "lid_opening": -0.6,
        "corner_lift": -0.5,
        "brow_distance": -0.3,
    },
    "fearful": {"inner_brow": 0.8, "lid_opening": 0.9, "brow_distance": -0.5, "mouth_width": 0.4, "corner_lift": -0.5},
    "happy": {"corner_lift": 1.0, "mouth_width": 0.8, "lid_opening": -0.2},
    "sad": {"corner_lift": -1.0, "inner_brow": 0.5, "lid_opening": -0.4, "mouth_width": -0.2, "jaw_drop": -0.2},
    "surprised": {"brow_height": 1.0, "lid_opening": 0.7, "jaw_drop": 0.8, "mouth_width": -0.4},
}


def shape_measures(
    frontal: Tensor,  # [..., 162, 2]
) -> dict[str, Tensor]:
    """Measure mouth corner lift, brow height and so on in `frontal_points`, in canonical units.

    Larger is higher, wider or more open.
    """

    def y(*ids: int) -> Tensor:
        return frontal[..., rows(*ids), 1].mean(dim=-1)

    eye_line = y(33, 133, 362, 263)
    return {
        "corner_lift": y(0, 17, 13, 14) - y(61, 291),
        "mouth_width": _gap(frontal, 61, 291),
        "jaw_drop": _gap(frontal, 13, 14),
        "brow_height": eye_line - y(70, 63, 105, 66, 107, 300, 293, 334, 296, 336),
        "inner_brow": y(70, 63, 300, 293) - y(55, 107, 285, 336),
        "brow_distance": _gap(frontal, 55, 285),
        "lid_opening": (_gap(frontal, 159, 145) + _gap(frontal, 386, 374)) / 2,
        "upper_lip": y(0, 37, 267) * -1 + y(2),
    }


def expression_scores(
    points: Tensor,  # [..., 162, 2]
    pose: Tensor,  # [..., 7]
    canonical: Tensor,  # [162, 3]
) -> dict[str, Tensor]:
    """Scores in [0, 1] of six expressions, from the shape of lips, lids and brows.

    These are geometric proxies, not a trained classifier: each score is the sigmoid of a weighted sum of the deviations
    of `shape_measures` from the mean face, which scores about 0.1. A person with naturally low brows scores higher for
    anger: use differences between frames of one person instead of single values. Deviation: not in the paper, which
    takes emotions from a separate network.

    Args:
        points (`torch.Tensor` of shape `(..., 162, 2)`): Landmarks, any unit.
        pose (`torch.Tensor` of shape `(..., 7)`): Head pose in the same unit.
        canonical (`torch.Tensor` of shape `(162, 3)`): Mean face.

    Returns:
        `dict` of name -> `torch.Tensor` of shape `(...)`, names in `EXPRESSIONS`.
    """
    measures = shape_measures(frontal_points(points, pose, canonical))
    deviation = {name: (measures[name] - mean) / spread for name, (mean, spread) in _MEASURES.items()}
    scores = {}
    for name in EXPRESSIONS:
        weights = _EXPRESSION_WEIGHTS[name]
        norm = math.sqrt(sum(weight**2 for weight in weights.values()))
        total = sum((w * deviation[k] for k, w in weights.items()), start=points.new_zeros(()))
        scores[name] = torch.sigmoid(1.8 * (total / norm - 1.2))
    return scores

"""FLAME's head, from a file that `vasa-hf convert flame` wrote.

Source: Li et al. 2017; VASA-3D §3.1. Shape, expression, joints, weights and pose correctives are FLAME's, in the
project's axes and centimetres: FLAME's parameters keep their meaning, rotation vectors are multiplied by `FLAME_AXES`.
`registration` finds the vertices of the landmarks, the regions and the named expressions. Teeth, gums and tongue, which
FLAME lacks, are appended to its vertices.

Tested with synthetic files in FLAME's format (the built-in head and ICT-FaceKit's), because the real files need a
licence that this project does not have.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from vasa_hf.geometry.landmarks import NUM_LANDMARKS, rows
from vasa_hf.head.parametric import FLAME_AXES, JOINTS, NAMED, REGIONS, ParametricHead
from vasa_hf.head.registration import Registration, Target, find_largest_part, named_expressions, register
from vasa_hf.head.rigging import skin_regions
from vasa_hf.head.template import mouth_parts
from vasa_hf.head.whole import whole_head

FORMAT = "flame"
_ARRAYS = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "f")
_FOUND = ("landmarks", "regions", "named", "origin_cm")
_MAX_DISTANCE_CM = 1.0  # mean distance of landmarks from the surface above which the file is not a known head


def flame_head(path: str | Path) -> ParametricHead:
    """Read a converted FLAME file.

    Args:
        path (`str` or `Path`): The `.safetensors` file; missing landmarks are computed, which takes some seconds.

    Raises:
        ValueError: If it is another kind of file.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"`path` must be a file that `vasa-hf convert flame` wrote, but {path} is not.")
        names = set(file.keys())
        if missing := [name for name in _ARRAYS if name not in names]:
            raise ValueError(f"`path` must hold {', '.join(_ARRAYS)}, but {missing} are missing in {path}.")
        arrays = {name: file.get_tensor(name) for name in names}
    num_shapes = int(metadata["num_shapes"])
    if any(name not in arrays for name in _FOUND):
        arrays |= complete(arrays, num_shapes)[0]
    return _add_mouth(_build_head(arrays, num_shapes))


def complete(arrays: dict[str, Tensor], num_shapes: int) -> tuple[dict[str, Tensor], float]:
    """Compute what a FLAME file lacks: landmarks, regions, named expressions, origin.

    Args:
        arrays (`dict` of `str` to `torch.Tensor`): FLAME's arrays, by its names.
        num_shapes (`int`): Number of columns of `shapedirs` that belong to the shape.

    Returns:
        The new arrays, and the mean distance in centimetres of the landmarks from their vertices.

    Raises:
        ValueError: If the built-in head cannot be registered to it.
    """
    count, joints = len(arrays["v_template"]), len(JOINTS)
    expressions = arrays["shapedirs"].shape[2] - num_shapes
    blank = {
        "landmarks": torch.zeros(NUM_LANDMARKS - 10, dtype=torch.long),
        "regions": torch.zeros(len(arrays["f"]), dtype=torch.long),
        "named": torch.zeros(len(NAMED), expressions + 3),
        "origin_cm": torch.zeros(3),
    }
    head, reference = _build_head(arrays | blank, num_shapes), whole_head()
    target = Target(head.template, head.faces, head.joint_regressor, head.skinning_weights)
    if not bool((target.joints[3, 0] - target.joints[4, 0]) > 1) or target.skinning_weights.shape[1] != joints:
        raise ValueError("`arrays` must be of an upright head whose joints 3 and 4 are its left and right eye.")
    found = register(reference, target)
    if not found.distance_cm < _MAX_DISTANCE_CM:
        raise ValueError(
            f"`arrays` must be a head: the landmarks are {found.distance_cm:.1f} cm from its surface, "
            f"but at most {_MAX_DISTANCE_CM} cm are allowed."
        )
    head.landmarks.copy_(found.landmarks)
    out = {
        "landmarks": found.landmarks,
        "regions": _regions(head, reference, found, count),
        "named": named_expressions(reference, head, found),
        "origin_cm": found.translation,
    }
    return out, found.distance_cm


def _build_head(arrays: dict[str, Tensor], num_shapes: int) -> ParametricHead:
    """Convert FLAME's arrays to the project's axes, with the origin of the canonical face."""
    axes = 100 * torch.tensor(FLAME_AXES)
    signs = torch.tensor(FLAME_AXES)
    basis = arrays["shapedirs"].permute(2, 0, 1) * axes
    turned = (signs[:, None] * signs).flatten().repeat(len(JOINTS) - 1)  # of each entry of the rotation matrices
    correctives = arrays["posedirs"].permute(2, 0, 1) * axes * turned[:, None, None]
    template = arrays["v_template"] * axes - arrays["origin_cm"]
    eyes = [template[arrays["weights"][:, joint] > 0.5] for joint in (3, 4)]
    radius = torch.cat([(ball - ball.mean(0)).norm(dim=1) for ball in eyes]).median() if min(map(len, eyes)) else 1.2
    return ParametricHead(
        template=template,
        shape_basis=basis[:num_shapes].contiguous(),
        expression_basis=basis[num_shapes:].contiguous(),
        faces=arrays["f"].long(),
        regions=arrays["regions"].long(),
        joint_regressor=arrays["J_regressor"],
        skinning_weights=arrays["weights"],
        landmarks=arrays["landmarks"].long(),
        named=arrays["named"],
        pose_basis=correctives.contiguous(),
        eye_radius_cm=float(radius),
    )


def _regions(head: ParametricHead, reference: ParametricHead, found: Registration, count: int) -> Tensor:
    """Region [F] of each triangle: eyes by their joints, skin by its position, inside of the mouth by the reference."""
    points = head.template[head.landmarks]
    region = skin_regions(head.template[head.faces].mean(1), points[rows(152)[0]], points[rows(10)[0]])
    moving = reference.region("face", "neck", "scalp", "mouth")
    other = reference.regions[moving][found.nearest]
    on_skin = find_largest_part(head.faces, count)[head.faces].all(1)
    mouth = torch.tensor([REGIONS.index("mouth"), REGIONS.index("teeth")])
    region = torch.where(~on_skin | torch.isin(other, mouth), REGIONS.index("mouth"), region)
    for name in ("left_eye", "right_eye"):
        ball = (head.skinning_weights[:, JOINTS.index(name)] > 0.5)[head.faces].all(1)
        region[ball] = REGIONS.index(name)
    return region


def _add_mouth(head: ParametricHead) -> ParametricHead:
    """Add teeth and gums behind the lips, unless the head has them."""
    if head.region("teeth").any():
        return head
    face = torch.zeros(NUM_LANDMARKS, 3)
    face[: NUM_LANDMARKS - 10] = head.template[head.landmarks]
    points, faces, is_tooth, lower = mouth_parts(face)
    count, new = len(head.template), len(points)
    lips = head.landmarks[rows(78, 308, 13, 14)]  # teeth follow the lips of another shape
    shapes = head.shape_basis[:, lips].mean(1, keepdim=True).expand(-1, new, -1)
    weights = torch.zeros(new, len(JOINTS))
    weights[:, JOINTS.index("jaw")], weights[:, JOINTS.index("neck")] = lower, 1 - lower
    kind = torch.where(is_tooth[faces].all(1), REGIONS.index("teeth"), REGIONS.index("mouth"))
    return ParametricHead(
        template=torch.cat([head.template, points]),
        shape_basis=torch.cat([head.shape_basis, shapes], 1),
        expression_basis=torch.cat(
            [
                head.expression_basis,
                head.expression_basis.new_zeros(1, new, 3).expand(len(head.expression_basis), -1, -1),
            ],
            1,
        ),
        faces=torch.cat([head.faces, faces + count]),
        regions=torch.cat([head.regions, kind]),
        joint_regressor=torch.cat([head.joint_regressor, torch.zeros(len(JOINTS), new)], 1),
        skinning_weights=torch.cat([head.skinning_weights, weights]),
        landmarks=head.landmarks,
        named=head.named,
        pose_basis=torch.cat([head.pose_basis, torch.zeros(len(head.pose_basis), new, 3)], 1),
        eye_radius_cm=float(head.eye_radius_cm),
    )

"""ICT-FaceKit's head (USC ICT, MIT licence), in the project's axes."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vasa_hf.geometry.landmarks import rows
from vasa_hf.head.mesh import HeadMesh
from vasa_hf.head.parametric import JOINTS, NAMED, REGIONS, ParametricHead
from vasa_hf.head.rigging import (
    below_skull,
    fit_hinge,
    measure_following,
    regressor,
    skin_regions,
    turn_offsets,
    weights_of_joints,
)

# Vertex of each landmark except the irises, in the order of `LANDMARK_IDS`: the nearest vertices after a fit of the
# head's identity to the mean face of the labels, on lid margins and inner lips only vertices of the margin.
ICT_LANDMARKS = (
    0, 4553, 1147, 4857, 4839, 1307, 2243, 1851, 5533, 5517, 5518, 4777, 291, 1507, 2081, 5695, 5610, 4859, 1946,
    4766, 1032, 496, 324, 2003, 1899, 5708, 493, 4868, 1415, 2044, 1860, 268, 5702, 5606, 5656, 5711, 5957, 5966,
    5836, 5826, 1051, 4555, 5802, 2076, 4870, 1864, 1914, 1401, 1856, 4863, 1885, 377, 1528, 765, 1511, 1515, 5890,
    1496, 2199, 1673, 966, 1518, 1521, 1530, 1535, 1537, 1962, 1542, 1544, 281, 1509, 978, 758, 1532, 330, 5867, 5841,
    5622, 5579, 4948, 4527, 4980, 1239, 1545, 4434, 2532, 3721, 4275, 6200, 6115, 5317, 4146, 5231, 3252, 2737, 2565,
    4203, 4099, 6213, 2734, 5326, 3629, 4240, 4060, 2509, 6207, 6111, 6161, 6216, 6461, 6470, 6341, 6331, 3271, 6307,
    4270, 5328, 4064, 4114, 3615, 4056, 5321, 4085, 2618, 3742, 3006, 3725, 3729, 6395, 3710, 4390, 3880, 3732, 3735,
    3744, 3749, 3751, 4162, 3756, 3758, 2522, 3723, 2999, 3746, 2571, 6372, 6346, 6127, 6084, 5434, 3457, 3759,
)  # fmt: skip
# Origin of the landmarks' canonical face in the neutral head, from the same fit.
_ICT_ORIGIN = (0.0, -2.38, -9.92)
_AXES = np.array([1.0, -1.0, -1.0], np.float32)  # the file has y up and z towards the viewer
_SKIN, _BACK, _TEETH, _MOUTH = "M_Face", "M_BackHead", "M_Teeth", "M_GumsTongue"
_EYES = ("M_ScleraRight", "M_ScleraLeft")  # the image's left eye is the person's right one
_IRISES = ("M_IrisRight", "M_IrisLeft")


@dataclasses.dataclass
class _Arrays:
    neutral: np.ndarray
    identity: np.ndarray
    expression: np.ndarray
    expression_names: tuple[str, ...]
    faces: np.ndarray
    material: np.ndarray
    names: list[str]

    def part(self, *materials: str) -> np.ndarray:
        """Faces of these materials."""
        return self.faces[np.isin(self.material, [self.names.index(name) for name in materials])]

    def vertices_of(self, *materials: str) -> np.ndarray:
        part = self.part(*materials)
        return np.unique(part[part >= 0])


def _read(path: str | Path, num_identities: int) -> _Arrays:
    with np.load(path, allow_pickle=False) as file:
        needed = ("neutral", "faces", "identity", "expression", "expression_names", "material", "material_names")
        if missing := [name for name in needed if name not in file]:
            raise ValueError(f"`path` must hold the arrays {', '.join(needed)}, but {missing} are missing.")
        arrays = _Arrays(
            neutral=file["neutral"].astype(np.float32),
            identity=file["identity"][:num_identities].astype(np.float32),
            expression=file["expression"].astype(np.float32),
            expression_names=tuple(str(name) for name in file["expression_names"]),
            faces=file["faces"],
            material=file["material"],
            names=[str(name) for name in file["material_names"]],
        )
    count, faces = len(arrays.neutral), arrays.faces
    shapes = {
        "neutral": (arrays.neutral.shape, (count, 3)),
        "identity": (arrays.identity.shape[1:], (count, 3)),
        "expression": (arrays.expression.shape, (len(arrays.expression_names), count, 3)),
        "material": (arrays.material.shape, (len(faces),)),
        "faces": (faces.shape[1:], (4,)),
    }
    for name, (found, expected) in shapes.items():
        if found != expected:
            raise ValueError(f"`path`: {name} must be of shape {expected}, but is {found}.")
    if faces.min() < -1 or faces.max() >= count or count <= max(ICT_LANDMARKS):
        raise ValueError(f"`path`: faces must index its {count} vertices, and those hold all landmarks.")
    if absent := [name for name in (_SKIN, _BACK, _TEETH, _MOUTH, *_EYES, *_IRISES) if name not in arrays.names]:
        raise ValueError(f"`path`: material_names must hold {absent}, but has {arrays.names}.")
    if not all(np.isfinite(value).all() for value in (arrays.neutral, arrays.identity, arrays.expression)):
        raise ValueError("`path` must hold finite numbers, but some are not.")
    return arrays


def ict_mesh(path: str | Path, num_identities: int = 60) -> HeadMesh:
    """Read `ict_facekit.npz` as the linear head for rendered talkers.

    Args:
        path (`str` or `Path`): The file; its fields are those of ICT-FaceKit's export.
        num_identities (`int`, *optional*, defaults to 60): Number of identity shapes, in order of variance.

    Raises:
        ValueError: If arrays are missing or do not match.
    """
    arrays = _read(path, num_identities)
    centers = np.zeros((2, len(arrays.neutral)), np.float32)
    for row, name in enumerate(_EYES):
        ball = arrays.vertices_of(name)
        centers[row, ball] = 1 / len(ball)
    teeth = np.zeros(len(arrays.neutral), bool)
    teeth[arrays.vertices_of(_TEETH)] = True
    return HeadMesh(
        vertices=torch.from_numpy(arrays.neutral * _AXES),
        identity=torch.from_numpy(arrays.identity * _AXES),
        expression=torch.from_numpy(arrays.expression * _AXES),
        expression_names=arrays.expression_names,
        skin=triangles(arrays.part(_SKIN)),
        inside=triangles(arrays.part(_TEETH, _MOUTH)),
        teeth=torch.from_numpy(teeth),
        eye_centers=torch.from_numpy(centers),
        eye_radius_cm=_eye_radius(arrays.neutral[centers[0] > 0]),
        landmarks=torch.tensor(ICT_LANDMARKS),
        origin_cm=torch.tensor(_ICT_ORIGIN),
    ).compact()


def _eye_radius(ball: np.ndarray) -> float:
    return float(np.ptp(ball, axis=0)[:2].mean()) / 2


def ict_head(path: str | Path, num_identities: int = 60) -> ParametricHead:
    """Read `ict_facekit.npz` as a whole head with joints.

    The file has no joints: the jaw's axis is that of the lower teeth in jawOpen, and the skinning weights come from the
    same shape. The rest of jawOpen stays in the shape, so that weight 1 gives the file's vertices. The origin is that
    of the landmarks' canonical face, as for the built-in head.

    Args:
        path (`str` or `Path`): The file.
        num_identities (`int`, *optional*, defaults to 60): Number of identity shapes.

    Raises:
        ValueError: If arrays are missing or do not match.
    """
    arrays = _read(path, num_identities)
    if absent := [name for name in NAMED if name not in arrays.expression_names]:
        raise ValueError(f"`path`: expression_names must hold {absent}, but has {arrays.expression_names}.")
    materials = {"face": (_SKIN,), "scalp": (_BACK,), "mouth": (_MOUTH,), "teeth": (_TEETH,)}
    for index, side in enumerate(("right_eye", "left_eye")):
        materials[side] = (_EYES[index], _IRISES[index])
    parts = {region: triangles(arrays.part(*names)) for region, names in materials.items()}
    faces = torch.cat(list(parts.values()))
    used, number = faces.unique(), torch.zeros(len(arrays.neutral), dtype=torch.long)
    number[used] = torch.arange(len(used))
    landmarks = number[torch.tensor(ICT_LANDMARKS)]
    vertices = torch.from_numpy(arrays.neutral * _AXES)[used] - torch.tensor(_ICT_ORIGIN)
    balls = {side: torch.isin(torch.arange(len(used)), number[parts[side]]) for side in ("left_eye", "right_eye")}
    others = [name for name in arrays.expression_names if name not in NAMED]
    order = [arrays.expression_names.index(name) for name in (*NAMED, *others)]
    expression = torch.from_numpy(arrays.expression * _AXES)[order][:, used]
    expression[:, balls["left_eye"] | balls["right_eye"]] = 0  # joints rotate the eyeballs
    named = torch.cat([torch.eye(len(NAMED), len(order)), torch.zeros(len(NAMED), 3)], 1)

    opened = expression[NAMED.index("jawOpen")]
    teeth = torch.isin(torch.arange(len(used)), number[parts["teeth"]])
    teeth &= opened.norm(dim=1) > 0.7 * opened[teeth].norm(dim=1).amax()
    vector, hinge_cm = fit_hinge(vertices[teeth], (vertices + opened)[teeth])
    jaw = measure_following(opened, turn_offsets(vertices, vector, hinge_cm))
    chin, top = (vertices[landmarks[row]] for row in rows(152, 10))
    base = float(vertices[:, 1].amax())
    skin = torch.cat([number[parts["face"]], number[parts["scalp"]]])
    root = torch.zeros(len(used))
    root[skin] = below_skull(vertices, chin, base)[skin]
    weights = weights_of_joints(root, jaw, balls["left_eye"], balls["right_eye"])
    regions = [torch.full((len(f),), REGIONS.index(region)) for region, f in parts.items()]
    regions[0], regions[1] = skin_regions(vertices[skin].mean(1), chin, top).split(
        [len(parts["face"]), len(parts["scalp"])]
    )
    positions = (chin + torch.tensor([0.0, 5.8, 9.0]), chin + torch.tensor([0.0, -0.6, 10.0]), hinge_cm)
    outside = torch.isin(torch.arange(len(used)), skin)
    regress = torch.zeros(len(JOINTS), len(used))
    for row, position in enumerate(positions):
        regress[row, outside] = regressor(position * torch.tensor([0.0, 1.0, 1.0]), vertices[outside], 600)
    for side, ball in balls.items():
        regress[JOINTS.index(side)] = ball.float() / ball.sum()
    named[NAMED.index("jawOpen"), -3:] = vector
    head = ParametricHead(
        template=vertices,
        shape_basis=torch.from_numpy(arrays.identity * _AXES)[:, used],
        expression_basis=expression,
        faces=number[faces],
        regions=torch.cat(regions),
        joint_regressor=regress,
        skinning_weights=weights,
        landmarks=landmarks,
        named=named,
        eye_radius_cm=_eye_radius(vertices[balls["left_eye"]].numpy()),
    )
    left = head.expression_basis[NAMED.index("jawOpen")]
    wanted = vertices + left
    left -= left.clone()
    for _ in range(4):  # skinning rotates the offsets, too: the error falls to a third in each step
        shape, pose = head.named_expression(jawOpen=1.0)
        left += wanted - head(expression=shape, jaw=pose).vertices[0]
    return head


def triangles(faces: np.ndarray) -> Tensor:
    """Split quads [F, 4] (last entry -1: a triangle) into triangles [T, 3]."""
    quads = faces[faces[:, 3] >= 0]
    parts = [faces[:, :3], quads[:, [0, 2, 3]]]
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))

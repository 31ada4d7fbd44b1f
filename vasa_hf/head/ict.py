"""ICT-FaceKit's head (USC ICT, MIT licence): its arrays checked and turned to the project's axes."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vasa_hf.head.mesh import HeadMesh

# Vertex of each landmark that is no iris, in the order of `LANDMARK_IDS`. Found by fitting the head's identity to the
# mean face of the labels and taking nearest vertices, on the lid margins and inner lips those of the margin.
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
# Where the origin of the landmarks' canonical face lies in the neutral head, from the same fit.
_ICT_ORIGIN = (0.0, -2.38, -9.92)
_AXES = np.array([1.0, -1.0, -1.0], np.float32)  # the file has y up and z towards the viewer
_SKIN, _TEETH, _MOUTH = "M_Face", "M_Teeth", "M_GumsTongue"
_EYES = ("M_ScleraRight", "M_ScleraLeft")  # the picture's left eye is the person's right one


def ict_mesh(path: str | Path, num_identities: int = 60) -> HeadMesh:
    """Read `ict_facekit.npz`.

    Args:
        path (`str` or `Path`): The file; its fields are those of ICT-FaceKit's export (see below).
        num_identities (`int`, *optional*, defaults to 60): How many identity shapes to keep; they come in order of
            variance.

    Raises:
        ValueError: If arrays are missing or do not fit together.
    """
    with np.load(path, allow_pickle=False) as file:
        needed = ("neutral", "faces", "identity", "expression", "expression_names", "material", "material_names")
        if missing := [name for name in needed if name not in file]:
            raise ValueError(f"`path` must hold the arrays {', '.join(needed)}, but {missing} are missing.")
        neutral, faces, material = file["neutral"], file["faces"], file["material"]
        names = [str(name) for name in file["material_names"]]
        expression_names = tuple(str(name) for name in file["expression_names"])
        count = len(neutral)
        shapes = {
            "neutral": (neutral.shape, (count, 3)),
            "identity": (file["identity"].shape[1:], (count, 3)),
            "expression": (file["expression"].shape, (len(expression_names), count, 3)),
            "material": (material.shape, (len(faces),)),
            "faces": (faces.shape[1:], (4,)),
        }
        for name, (found, expected) in shapes.items():
            if found != expected:
                raise ValueError(f"`path`: {name} must be of shape {expected}, but is {found}.")
        if faces.min() < -1 or faces.max() >= count or count <= max(ICT_LANDMARKS):
            raise ValueError(f"`path`: faces must index its {count} vertices, and those hold all landmarks.")
        if absent := [name for name in (_SKIN, _TEETH, _MOUTH, *_EYES) if name not in names]:
            raise ValueError(f"`path`: material_names must hold {absent}, but has {names}.")

        def part(*materials: str) -> np.ndarray:
            return faces[np.isin(material, [names.index(name) for name in materials])]

        centers = np.zeros((2, count), np.float32)
        for row, name in enumerate(_EYES):
            ball = np.unique(part(name)[part(name) >= 0])
            centers[row, ball] = 1 / len(ball)
        width = np.ptp(neutral[centers[0] > 0], axis=0)[:2].mean()
        teeth = np.zeros(count, bool)
        teeth[part(_TEETH)[part(_TEETH) >= 0]] = True
        mesh = HeadMesh(
            vertices=torch.from_numpy(neutral.astype(np.float32) * _AXES),
            identity=torch.from_numpy(file["identity"][:num_identities].astype(np.float32) * _AXES),
            expression=torch.from_numpy(file["expression"].astype(np.float32) * _AXES),
            expression_names=expression_names,
            skin=triangles(part(_SKIN)),
            inside=triangles(part(_TEETH, _MOUTH)),
            teeth=torch.from_numpy(teeth),
            eye_centers=torch.from_numpy(centers),
            eye_radius_cm=float(width) / 2,
            landmarks=torch.tensor(ICT_LANDMARKS),
            origin_cm=torch.tensor(_ICT_ORIGIN),
        )
    if not all(t.isfinite().all() for t in (mesh.vertices, mesh.identity, mesh.expression)):
        raise ValueError("`path` must hold finite numbers, but some are not.")
    return mesh.compact()


def triangles(faces: np.ndarray) -> Tensor:
    """Quads [F, 4] (-1 in the last place: a triangle) as triangles [T, 3]."""
    quads = faces[faces[:, 3] >= 0]
    parts = [faces[:, :3], quads[:, [0, 2, 3]]]
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))

"""A parametric head for rendered talkers: the arrays of ICT-FaceKit, checked, turned to the project's axes, and fitted.

Not in the paper: VASA-1 trains on real videos alone. Heads are in centimetres, x right, y down, z away from the viewer,
so `points ~ scale * vertices @ R.T + t` with the rotations of `vasa_hf.geometry` as for the landmarks' canonical face.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vasa_hf.geometry.landmarks import GROUPS, LANDMARK_IDS, fit_pose

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
NUM_SKIN_LANDMARKS = len(LANDMARK_IDS) - 10  # the last ten are the irises


@dataclasses.dataclass
class HeadMesh:
    """A head that can be anyone and make any face: `vertices + identity weights + expression weights`.

    Attributes:
        vertices (`torch.Tensor` of shape `(V, 3)`): The neutral mean head in centimetres.
        identity (`torch.Tensor` of shape `(I, V, 3)`): Offsets, weights about N(0, 1).
        expression (`torch.Tensor` of shape `(E, V, 3)`): Offsets, weights 0..1.
        expression_names (`tuple` of `str`): ARKit-like names; `_L` and `_R` are the person's own left and right.
        skin (`torch.Tensor` of shape `(F, 3)`): Triangles of face and front neck, open at eyes and mouth.
        inside (`torch.Tensor` of shape `(G, 3)`): Triangles of teeth, gums and tongue; may be empty.
        teeth (`torch.Tensor` of shape `(V,)`): True for vertices of teeth.
        eye_centers (`torch.Tensor` of shape `(2, V)`): Weights that average vertices to the balls' centres.
        eye_radius_cm (`float`): Radius of the balls.
        landmarks (`torch.Tensor` of shape `(152,)`): Vertices of the landmarks that are no irises.
        origin_cm (`torch.Tensor` of shape `(3,)`): Origin of the landmarks' canonical face in this head.
    """

    vertices: Tensor
    identity: Tensor
    expression: Tensor
    expression_names: tuple[str, ...]
    skin: Tensor
    inside: Tensor
    teeth: Tensor
    eye_centers: Tensor
    eye_radius_cm: float
    landmarks: Tensor
    origin_cm: Tensor

    @classmethod
    def load(cls, path: str | Path, num_identities: int = 60) -> "HeadMesh":
        """Read `ict_facekit.npz`.

        Args:
            path (`str` or `Path`): The file; its fields are those of ICT-FaceKit's export (see `Attributes`).
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
            mesh = cls(
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

    def compact(self) -> "HeadMesh":
        """The same head without vertices that nothing uses."""
        used = torch.zeros(len(self.vertices), dtype=torch.bool)
        for index in (self.skin.flatten(), self.inside.flatten(), self.landmarks):
            used[index] = True
        used |= self.eye_centers.sum(0) > 0
        number = used.cumsum(0) - 1
        return dataclasses.replace(
            self,
            vertices=self.vertices[used],
            identity=self.identity[:, used],
            expression=self.expression[:, used],
            skin=number[self.skin],
            inside=number[self.inside],
            teeth=self.teeth[used],
            eye_centers=self.eye_centers[:, used],
            landmarks=number[self.landmarks],
        )

    def index(self, name: str) -> int:
        """Row of an expression shape."""
        if name not in self.expression_names:
            raise ValueError(f"`name` must be one of {', '.join(self.expression_names)}, but is {name!r}.")
        return self.expression_names.index(name)


def triangles(faces: np.ndarray) -> Tensor:
    """Quads [F, 4] (-1 in the last place: a triangle) as triangles [T, 3]."""
    quads = faces[faces[:, 3] >= 0]
    parts = [faces[:, :3], quads[:, [0, 2, 3]]]
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals [V, 3] that point outwards; zero where no triangle is."""
    a, b, c = vertices[faces].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total.index_add_(0, faces[:, corner], normal)
    return torch.nn.functional.normalize(total, dim=-1)


@dataclasses.dataclass
class FittedHead:
    """A head laid on a picture: `points ~ scale * vertices @ rotation.T + translation`, fractions of the picture.

    Attributes:
        vertices (`torch.Tensor` of shape `(V, 3)`): Identity and expression of the picture, in centimetres.
        expression (`torch.Tensor` of shape `(E,)`): Weights of its expression.
        rotation (`torch.Tensor` of shape `(3, 3)`), translation (`(3,)`), scale (`(,)`): Head to picture.
        error (`float`): Mean distance of the labelled landmarks before the last, exact correction, in centimetres.
    """

    vertices: Tensor
    expression: Tensor
    rotation: Tensor
    translation: Tensor
    scale: Tensor
    error: float

    def project(self, vertices: Tensor) -> Tensor:
        """Vertices [N, 3] to picture fractions [N, 3]."""
        return self.scale * vertices @ self.rotation.mT + self.translation


def fit_head(
    mesh: HeadMesh,
    landmarks: Tensor,  # [162, 2]
    rotation: Tensor,  # [3, 3]
    steps: int = 6,
    identity_ridge: float = 0.1,
    expression_ridge: float = 0.8,
) -> FittedHead:
    """Find identity, expression and pose of the head in a picture from labelled landmarks.

    Pose and shape are fitted in turns by (ridge) least squares under scaled orthography. What is left of the landmarks'
    distances is then removed by a smooth bend of the head in the picture plane, so that they end up exactly in place.

    Args:
        mesh (`HeadMesh`): The parametric head.
        landmarks (`torch.Tensor` of shape `(162, 2)`): Fractions of the picture.
        rotation (`torch.Tensor` of shape `(3, 3)`): First guess of the head's rotation.
        steps (`int`, *optional*, defaults to 6): How often pose and shape take turns.
        identity_ridge (`float`, *optional*, defaults to 0.1): How strongly identity weights are held near zero.
        expression_ridge (`float`, *optional*, defaults to 0.8): The same for expression weights.

    Returns:
        `FittedHead`.
    """
    seen = landmarks[:NUM_SKIN_LANDMARKS]
    base = mesh.vertices[mesh.landmarks]
    # Pupils are no skin, and gaze shapes would steal from blinks.
    free = torch.tensor([not name.startswith(("Pupil", "eyeLook")) for name in mesh.expression_names])
    basis = torch.cat([mesh.identity[:, mesh.landmarks], mesh.expression[free][:, mesh.landmarks]])
    count = len(mesh.identity)
    ridge = torch.cat([torch.full((count,), identity_ridge), torch.full((int(free.sum()),), expression_ridge)])
    weight = landmark_weights()[:, None]
    weights = torch.zeros(len(basis))
    for _ in range(steps):
        shape = base + torch.tensordot(weights, basis, 1)
        rotation, translation, scale = fit_pose(seen, shape, rotation, steps=2)
        target = (seen - translation[:2]) / scale - base @ rotation[:2].mT
        columns = ((basis @ rotation[:2].mT) * weight).flatten(1)  # [K, 304]
        system = columns @ columns.mT + torch.diag(ridge)
        weights = torch.linalg.solve(system, columns @ (target * weight).flatten())
        weights[count:] = weights[count:].clamp(0, 1)
        rest = (
            columns
            @ ((target - torch.tensordot(weights[count:], basis[count:], 1) @ rotation[:2].mT) * weight).flatten()
        )
        weights[:count] = torch.linalg.solve(system[:count, :count], rest[:count])
    shape = base + torch.tensordot(weights, basis, 1)
    rotation, translation, scale = fit_pose(seen, shape, rotation, steps=3)
    expression = torch.zeros(len(mesh.expression_names))
    expression[free] = weights[count:]
    vertices = mesh.vertices + torch.tensordot(weights[:count], mesh.identity, 1)
    vertices = vertices + torch.tensordot(expression, mesh.expression, 1)
    head = FittedHead(vertices, expression, rotation, translation, scale, 0.0)
    placed = head.project(vertices)
    residual = seen - placed[mesh.landmarks, :2]
    head.error = float(residual.norm(dim=-1).mean() / scale)
    # The middle parts of lids are near one another: the spread is made stiff enough not to fold between them.
    spread = spreading(placed[mesh.landmarks, :2], placed[:, :2], reach=12 * float(scale), softness=0.5 * float(scale))
    bend = torch.cat([spread @ residual, torch.zeros(len(placed), 1)], 1) / scale
    head.vertices = vertices + bend @ rotation  # back into the head's frame: rotation.T on the left
    return head


def landmark_weights() -> Tensor:
    """How much each of the 152 points counts in the fit: lids and lips more, the outline less."""
    weight = torch.ones(NUM_SKIN_LANDMARKS)
    for group, value in (("oval", 0.5), ("left_eye", 1.5), ("right_eye", 1.5), ("lips_inner", 1.5)):
        weight[list(GROUPS[group])] = value
    return weight


def spreading(points: Tensor, queries: Tensor, reach: float, softness: float, stiffness: float = 3e-6) -> Tensor:
    """Weights [Q, K] that spread values known at points [K, 2] over the picture, exact at the points but for stiffness.

    A multiquadric interpolant with a free constant; beyond `reach` of the nearest point it fades to nothing.
    """

    def kernel(distance: Tensor) -> Tensor:
        return -torch.sqrt(distance**2 + softness**2) / reach

    count = len(points)
    system = torch.ones(count + 1, count + 1, dtype=torch.float64)
    system[:count, :count] = kernel(torch.cdist(points.double(), points.double())) + stiffness * torch.eye(count)
    system[count, count] = 0
    distance = torch.cdist(queries.double(), points.double())
    values = torch.cat([kernel(distance), torch.ones(len(queries), 1, dtype=torch.float64)], 1)
    weights = values @ torch.linalg.inv(system)[:, :count]
    beyond = (distance.amin(1) / reach - 0.1).clamp_min(0)
    return (weights * torch.exp(-4 * beyond**2)[:, None]).float()

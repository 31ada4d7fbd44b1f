"""Registration of the built-in head to another head: transfers landmarks and expressions. Not in the paper.

```
1  eye joints                           -> first similarity
2  nearest points of the face           -> similarity, iterated (ICP)
3  nearest points, jaws slightly open   -> smooth deformation, from stiff to soft
4  nearest vertex of each landmark, lids on lid margins, lips on the same lip
5  motion of the landmarks              -> expression and jaw of the other head by least squares
```
"""

import dataclasses

import torch
from torch import Tensor

from vasa_hf.geometry.landmarks import GROUPS, fit_similarity
from vasa_hf.head.mesh import vertex_normals
from vasa_hf.head.parametric import NAMED, PARENTS, ParametricHead
from vasa_hf.head.rigging import neighbour_mean, smooth
from vasa_hf.head.skinning import rotation_from_vector, skin

_OPEN_RAD = 0.2  # of both jaws, so that the two lips are not confused
_STEPS = (300, 300, 150, 150, 80, 80, 40, 40, 20, 20, 10, 10)  # smoothing steps of each round
_JAW_LIMIT_RAD = 0.6


@dataclasses.dataclass
class Target:
    """A head without landmarks and names, as in FLAME's file, in centimetres, y down, z away.

    Attributes:
        vertices (`torch.Tensor` of shape `(V, 3)`): The mean head.
        faces (`torch.Tensor` of shape `(F, 3)`): Triangles.
        joint_regressor (`torch.Tensor` of shape `(5, V)`): Joints from vertices.
        skinning_weights (`torch.Tensor` of shape `(V, 5)`): Rows sum to one.
    """

    vertices: Tensor
    faces: Tensor
    joint_regressor: Tensor
    skinning_weights: Tensor

    @property
    def joints(self) -> Tensor:
        """Positions of the joints, [5, 3]."""
        return self.joint_regressor @ self.vertices

    def open_jaw(self) -> Tensor:
        """Return the vertices [V, 3] with the jaw slightly open."""
        vectors = torch.zeros(1, 5, 3)
        vectors[0, 2, 0] = _OPEN_RAD
        rotations = rotation_from_vector(vectors)
        return skin(self.vertices[None], self.joints[None], rotations, PARENTS, self.skinning_weights)[0][0]


@dataclasses.dataclass
class Registration:
    """Result of a registration.

    Attributes:
        landmarks (`torch.Tensor` of shape `(152,)`): Vertices of the target.
        rotation (`torch.Tensor` of shape `(3, 3)`), translation (`(3,)`), scale (`(,)`): Reference to target.
        distance_cm (`float`): Mean distance of the deformed reference's landmarks from those vertices.
        nearest (`torch.Tensor` of shape `(F,)`): Nearest triangle of the reference's skin for each triangle.
    """

    landmarks: Tensor
    rotation: Tensor
    translation: Tensor
    scale: Tensor
    distance_cm: float
    nearest: Tensor


def label_components(faces: Tensor, count: int) -> Tensor:
    """Number each of `count` vertices by its connected component in triangles [F, 3]."""
    label = torch.arange(count)
    while True:
        low = label[faces].amin(1)
        new = label.scatter_reduce(0, faces.flatten(), low.repeat_interleave(3), "amin")
        new = new[new]
        if torch.equal(new, label):
            return label
        label = new


def find_largest_part(faces: Tensor, count: int) -> Tensor:
    """Mask of the vertices in the largest connected component: the skin."""
    label = label_components(faces, count)
    used = torch.zeros(count, dtype=torch.bool)
    used[faces] = True
    return used & (label == label[used].mode().values)


def register(reference: ParametricHead, target: Target) -> Registration:
    """Register the reference to the target.

    Args:
        reference (`ParametricHead`): Head with known landmarks; the built-in head.
        target (`Target`): The other head.
    """
    skin_part = find_largest_part(target.faces, len(target.vertices))
    candidates = skin_part.nonzero()[:, 0]
    opened, rest = target.open_jaw(), reference(jaw=torch.tensor([[_OPEN_RAD, 0.0, 0.0]]))  # both with an open jaw
    normals = vertex_normals(opened, target.faces)
    moving = reference.faces[reference.region("face", "neck", "scalp", "mouth")]
    own = reference.region("face")
    face = reference.faces[own].unique()[::2]
    rotation, translation, scale = _align_eyes(rest.joints[0], target.joints)
    candidates = candidates[opened[candidates, 2] < target.joints[2, 2] + 3 * scale]  # the front, not the nape
    points = rest.vertices[0]
    for _ in range(20):
        placed = scale * points @ rotation.mT + translation
        index, trust = _match(placed, moving, face, opened, normals, candidates, 4.0)
        kept = face[trust]
        rotation, translation, scale = fit_similarity(opened[index[trust]], points[kept])
    placed = scale * points @ rotation.mT + translation
    loose = reference.landmarks
    nearest_own = torch.cdist(points[loose], points[face]).argmin(1)
    mean = neighbour_mean(moving, len(placed))
    for steps in _STEPS:
        index, trust = _match(placed, moving, face, opened, normals, candidates, 2.0)
        bend, weight = torch.zeros_like(placed), torch.zeros(len(placed), 1)
        bend[face[trust]] = opened[index[trust]] - placed[face[trust]]
        weight[face[trust]] = 1.0
        spread = smooth(torch.cat([bend, weight], 1), mean, steps)
        bend = spread[:, :3] / spread[:, 3:].clamp_min(1e-3)
        bend[loose] = bend[face[nearest_own]]
        placed = placed + bend
    landmarks = _snap(
        placed[loose], opened, normals, target, candidates, vertex_normals(placed, moving)[face[nearest_own]]
    )
    distance = float((placed[loose] - opened[landmarks]).norm(dim=1).mean())
    middles, goals = placed[moving].mean(1), opened[target.faces].mean(1)
    nearest = torch.cat([torch.cdist(part, middles).argmin(1) for part in goals.split(1024)])
    return Registration(landmarks, rotation, translation, scale, distance, nearest)


def _align_eyes(own: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute an upright similarity from the joints of the eyes."""
    scale = (other[3] - other[4]).norm() / (own[3] - own[4]).norm()
    return torch.eye(3), other[3:].mean(0) - scale * own[3:].mean(0), scale


def _match(
    placed: Tensor, moving: Tensor, face: Tensor, goal: Tensor, normals: Tensor, candidates: Tensor, reach: float
) -> tuple[Tensor, Tensor]:
    """Find the nearest vertex of the goal for each vertex of the face, and those that are close in direction, too."""
    facing = vertex_normals(placed, moving)[face]
    # Positions and normals are searched together: a rotation by 90 degrees counts like 1.4 cm.
    own, other = torch.cat([placed[face], facing], 1), torch.cat([goal[candidates], normals[candidates]], 1)
    index = torch.cat([torch.cdist(part, other).argmin(1) for part in own.split(1024)])
    index = candidates[index]
    trust = ((facing * normals[index]).sum(1) > 0.6) & ((placed[face] - goal[index]).norm(dim=1) < reach)
    return index, trust


def _snap(points: Tensor, goal: Tensor, normals: Tensor, target: Target, candidates: Tensor, facing: Tensor) -> Tensor:
    """Find a vertex [152] for each landmark."""
    jaw = target.skinning_weights[candidates, 2]
    cost = torch.cdist(points, goal[candidates]) + 0.2 * torch.cdist(facing, normals[candidates])
    lips = list(GROUPS["lips_inner"])
    lower, upper = lips[1:10], lips[11:]
    middle = jaw[cost[lips[1:10]].argmin(1)].amax() / 2  # FLAME's lower lip follows the jaw nearly completely
    cost[lower] += 3.0 * (jaw < middle)
    cost[upper] += 3.0 * (jaw > middle)
    return candidates[cost.argmin(1)]


# --- expressions ------------------------------------------------------------------------------------------------------


def named_expressions(
    reference: ParametricHead, target: ParametricHead, found: Registration, ridge: float = 0.02, rounds: int = 4
) -> Tensor:
    """Fit expression coefficients and jaw pose [len(NAMED), E + 3] of each named expression, by least squares.

    The target's landmarks should move as the reference's, rotated and scaled by the registration.

    Args:
        reference (`ParametricHead`): Head with named expressions.
        target (`ParametricHead`): The other head; its `named` is ignored.
        found (`Registration`): Registration of the two.
        ridge (`float`, *optional*, defaults to 0.02): Regularisation of the coefficients.
        rounds (`int`, *optional*, defaults to 4): Gauss-Newton steps; the jaw's rotation is not linear.
    """
    count = len(target.expression_basis)
    wanted, keep = [], reference.landmarks
    for name in NAMED:
        expression, jaw = reference.named_expression(**{name: 1.0})
        moved = reference(expression=expression, jaw=jaw).vertices[0, keep] - reference.template[keep]
        wanted.append(found.scale * moved @ found.rotation.mT)
    wanted = torch.stack(wanted)  # [N, 152, 3]

    def motion(rows: Tensor) -> Tensor:
        posed = [
            target(expression=row[None, :count], jaw=row[None, count:]).vertices[0, target.landmarks] for row in rows
        ]
        return torch.stack(posed) - target.template[target.landmarks]

    step = torch.cat([torch.zeros(3, count), 0.1 * torch.eye(3)], 1)
    columns = torch.cat([target.expression_basis[:, target.landmarks], motion(step) / 0.1])
    columns = columns.flatten(1).double()  # [E + 3, 456]
    # A unit of expression is one standard deviation; a radian of the jaw moves much more: its ridge is ten times
    # larger.
    damping = torch.cat([torch.full((count,), ridge), torch.full((3,), 10 * ridge)]).double() * wanted.shape[1] / 10
    inverse = torch.linalg.inv(columns @ columns.mT + torch.diag(damping))
    rows = torch.zeros(len(NAMED), count + 3)
    for _ in range(rounds):
        missing = (wanted - motion(rows)).flatten(1).double()
        rows = rows + ((missing @ columns.mT - rows.double() * damping) @ inverse).float()
        rows[:, count:] = rows[:, count:].clamp(-_JAW_LIMIT_RAD, _JAW_LIMIT_RAD)
    return rows

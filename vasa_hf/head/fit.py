"""Laying a head on a picture: identity, expression and pose from labelled landmarks. Not in the paper."""

import dataclasses

import torch
from torch import Tensor

from vasa_hf.geometry.landmarks import GROUPS, fit_pose
from vasa_hf.head.mesh import NUM_SKIN_LANDMARKS, HeadMesh
from vasa_hf.head.parametric import ParametricHead


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
    bend_stiffness: float = 3e-6,
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
        bend_stiffness (`float`, *optional*, defaults to 3e-6): How far the last bend may miss the landmarks to be
            smooth; by the default it passes through them.

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
    unit = float(scale)
    spread = spreading(placed[mesh.landmarks, :2], placed[:, :2], 12 * unit, 0.5 * unit, bend_stiffness)
    bend = torch.cat([spread @ residual, torch.zeros(len(placed), 1)], 1) / scale
    head.vertices = vertices + bend @ rotation  # back into the head's frame: rotation.T on the left
    return head


@torch.no_grad()
def personal_head(
    head: ParametricHead,
    landmarks: Tensor,  # [162, 2]
    rotation: Tensor,  # [3, 3]
) -> tuple[ParametricHead, FittedHead]:
    """The head whose mean is the person of a picture, with the face at rest; expressions and joints as before.

    The fit is stiffer than that of a photograph's wearer: the head will be seen from all sides and in other
    expressions, so it must stay a face where the landmarks are uncertain. Hence a part of a broad smile stays in the
    person: pictures with a calm face are best.

    Args:
        head (`ParametricHead`): Any.
        landmarks (`torch.Tensor` of shape `(162, 2)`): Fractions of the picture.
        rotation (`torch.Tensor` of shape `(3, 3)`): First guess of the head's rotation.

    Returns:
        The person's head, and where it lies in the picture: `fitted.project(person(...).vertices[0])`, with the
        picture's own expression `fitted.expression` by the names of `NAMED`.
    """
    mesh = head.as_mesh(60)
    fitted = fit_head(mesh, landmarks, rotation, expression_ridge=3.0, bend_stiffness=0.01)
    neutral = fitted.vertices - torch.tensordot(fitted.expression, mesh.expression, 1)
    for name in ("left_eye", "right_eye"):  # the fit bends all that is seen; eyeballs stay round
        ball = head.faces[head.region(name)].unique()
        rest = head.template[ball]
        neutral[ball] = rest - rest.mean(0) + neutral[ball].mean(0)
    state = dict(head.named_buffers()) | {"template": neutral, "eye_radius_cm": float(head.eye_radius_cm)}
    return ParametricHead(**state), fitted


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

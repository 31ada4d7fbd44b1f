"""Fitting of a head to an image: identity, expression and pose from landmarks. Not in the paper."""

import dataclasses

import torch
from torch import Tensor

from vasa_hf.geometry.landmarks import GROUPS, fit_pose
from vasa_hf.head.mesh import NUM_SKIN_LANDMARKS, HeadMesh
from vasa_hf.head.parametric import ParametricHead


@dataclasses.dataclass
class FittedHead:
    """A head fitted to an image: `points ~ scale * vertices @ rotation.T + translation`, fractions of the image.

    Attributes:
        vertices (`torch.Tensor` of shape `(V, 3)`): Identity and expression of the image, in centimetres.
        expression (`torch.Tensor` of shape `(E,)`): Expression weights.
        rotation (`torch.Tensor` of shape `(3, 3)`), translation (`(3,)`), scale (`(,)`): Head to image.
        error (`float`): Mean distance of the landmarks before the final correction, in centimetres.
    """

    vertices: Tensor
    expression: Tensor
    rotation: Tensor
    translation: Tensor
    scale: Tensor
    error: float

    def project(self, vertices: Tensor) -> Tensor:
        """Project vertices [N, 3] to image fractions [N, 3]."""
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
    """Fit identity, expression and pose of a head to the landmarks of an image.

    Pose and shape are fitted in turn by (ridge) least squares under scaled orthography. A smooth deformation of the
    head in the image plane then removes the remaining distances, so that the landmarks match exactly.

    Args:
        mesh (`HeadMesh`): The parametric head.
        landmarks (`torch.Tensor` of shape `(162, 2)`): Fractions of the image.
        rotation (`torch.Tensor` of shape `(3, 3)`): First guess of the head's rotation.
        steps (`int`, *optional*, defaults to 6): Iterations of pose and shape.
        identity_ridge (`float`, *optional*, defaults to 0.1): Regularisation of identity weights.
        expression_ridge (`float`, *optional*, defaults to 0.8): Regularisation of expression weights.
        bend_stiffness (`float`, *optional*, defaults to 3e-6): Smoothness of the final deformation; with the default it
            passes through the landmarks.

    Returns:
        `FittedHead`.
    """
    seen = landmarks[:NUM_SKIN_LANDMARKS]
    base = mesh.vertices[mesh.landmarks]
    # Pupils are not skin, and gaze shapes would explain a part of blinks.
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
    # The middles of the lids are close to each other: stiff enough to avoid folds between them.
    unit = float(scale)
    spread = spread_weights(placed[mesh.landmarks, :2], placed[:, :2], 12 * unit, 0.5 * unit, bend_stiffness)
    bend = torch.cat([spread @ residual, torch.zeros(len(placed), 1)], 1) / scale
    head.vertices = vertices + bend @ rotation  # to the head's frame: rotation.T on the left
    return head


@torch.no_grad()
def personal_head(
    head: ParametricHead,
    landmarks: Tensor,  # [162, 2]
    rotation: Tensor,  # [3, 3]
) -> tuple[ParametricHead, FittedHead]:
    """Fit a head to the person of an image: its template is the person's neutral face; the rest does not change.

    The regularisation is stronger than in `fit_head`: the head is rendered from all sides and with other expressions,
    so uncertain landmarks must not distort it. A part of a broad smile therefore remains in the template: images with a
    neutral face are best.

    Args:
        head (`ParametricHead`): The head.
        landmarks (`torch.Tensor` of shape `(162, 2)`): Fractions of the image.
        rotation (`torch.Tensor` of shape `(3, 3)`): First guess of the head's rotation.

    Returns:
        The person's head, and its position in the image: `fitted.project(person(...).vertices[0])`, with the image's
        expression `fitted.expression` by the names of `NAMED`.
    """
    mesh = head.as_mesh(60)
    fitted = fit_head(mesh, landmarks, rotation, expression_ridge=3.0, bend_stiffness=0.01)
    neutral = fitted.vertices - torch.tensordot(fitted.expression, mesh.expression, 1)
    for name in ("left_eye", "right_eye"):  # the fit deforms all vertices; eyeballs stay round
        ball = head.faces[head.region(name)].unique()
        rest = head.template[ball]
        neutral[ball] = rest - rest.mean(0) + neutral[ball].mean(0)
    state = dict(head.named_buffers()) | {"template": neutral, "eye_radius_cm": float(head.eye_radius_cm)}
    return ParametricHead(**state), fitted


def landmark_weights() -> Tensor:
    """Weights of the 152 points in the fit: more for lids and lips, less for the outline."""
    weight = torch.ones(NUM_SKIN_LANDMARKS)
    for group, value in (("oval", 0.5), ("left_eye", 1.5), ("right_eye", 1.5), ("lips_inner", 1.5)):
        weight[list(GROUPS[group])] = value
    return weight


def spread_weights(points: Tensor, queries: Tensor, reach: float, softness: float, stiffness: float = 3e-6) -> Tensor:
    """Compute weights [Q, K] that interpolate values at points [K, 2] over the image, exact up to `stiffness`.

    A multiquadric interpolant with a free constant; it fades to 0 beyond `reach` of the nearest point.
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

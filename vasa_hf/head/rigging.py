"""Joints, skinning weights and regions for meshes that only have shapes. Not in the paper, which uses FLAME's.

The skinning weights of the jaw come from a shape that opens it: the offset of each vertex relative to a rigid rotation
of the lower teeth. The neck bends between the base of the skull and the end of the mesh.
"""

import torch
from torch import Tensor

from vasa_hf.geometry.landmarks import fit_similarity
from vasa_hf.head.skinning import rotation_from_vector


def fit_hinge(
    rest: Tensor,  # [N, 3]
    moved: Tensor,  # [N, 3]
) -> tuple[Tensor, Tensor]:
    """Fit the rotation about an axis parallel to x that best explains the motion of points.

    Args:
        rest (`torch.Tensor` of shape `(N, 3)`): Points of a rigid part, such as the lower teeth.
        moved (`torch.Tensor` of shape `(N, 3)`): The same points after the motion.

    Returns:
        Rotation vector (`torch.Tensor` of shape `(3,)`), only x, and a point of the axis (`(3,)`), with x = 0.
    """
    rotation, translation, _ = fit_similarity(moved, rest)
    angle = torch.atan2(rotation[2, 1] - rotation[1, 2], rotation[1, 1] + rotation[2, 2])
    vector = torch.stack([angle, torch.zeros_like(angle), torch.zeros_like(angle)])
    shift = moved.mean(0) - rotation_from_vector(vector) @ rest.mean(0)
    fixed = torch.eye(2, dtype=rest.dtype) - rotation_from_vector(vector)[1:, 1:]
    return vector, torch.cat([shift[:1] * 0, torch.linalg.solve(fixed, shift[1:])])


def turn_offsets(points: Tensor, vector_rad: Tensor, pivot: Tensor) -> Tensor:
    """Compute the offsets [N, 3] of a rotation of points [N, 3]."""
    return (points - pivot) @ rotation_from_vector(vector_rad).mT + pivot - points


def measure_following(offsets: Tensor, rigid: Tensor) -> Tensor:
    """Estimate the share [N] in [0, 1] of a rigid motion's offsets [N, 3] in other offsets [N, 3]."""
    return ((offsets * rigid).sum(1) / rigid.square().sum(1).clamp_min(1e-9)).clamp(0, 1)


def neighbour_mean(
    faces: Tensor,  # [F, 3]
    count: int,
) -> Tensor:
    """Build the matrix that averages the neighbours of a vertex; a vertex without any keeps its value.

    Args:
        faces (`torch.Tensor` of shape `(F, 3)`): Triangles, which define the neighbours.
        count (`int`): Number of vertices.

    Returns:
        Sparse `torch.Tensor` of shape `(count, count)`.
    """
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = torch.cat([edges, edges.flip(1)]).unique(dim=0)
    degree = torch.bincount(edges[:, 0], minlength=count)
    alone = (degree == 0).nonzero().expand(-1, 2)
    edges = torch.cat([edges, alone])
    weights = 1 / degree.clamp_min(1)[edges[:, 0]].float()
    return torch.sparse_coo_tensor(edges.T, weights, (count, count), check_invariants=True).coalesce()


def smooth(
    values: Tensor,  # [V, C]
    mean: Tensor,  # [V, V]
    steps: int,
) -> Tensor:
    """Move values half way to the mean of their neighbours, several times.

    Args:
        values (`torch.Tensor` of shape `(V, C)`): One row per vertex.
        mean (sparse `torch.Tensor` of shape `(V, V)`): From `neighbour_mean`.
        steps (`int`): Number of iterations.
    """
    for _ in range(steps):
        values = 0.5 * values + 0.5 * torch.sparse.mm(mean, values)
    return values


def smoothstep(x: Tensor) -> Tensor:
    """0 below 0, 1 above 1, smooth between."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def skin_regions(
    middle: Tensor,  # [F, 3]
    chin: Tensor,  # [3]
    top: Tensor,  # [3]
) -> Tensor:
    """Classify triangles of the skin by position: face (0), scalp (1) or neck (2).

    The face ends at the hair, in front of the ears, and at the edge of the jaw; ears belong to the scalp.

    Args:
        middle (`torch.Tensor` of shape `(F, 3)`): Middles of the triangles, centimetres, y down, z away.
        chin (`torch.Tensor` of shape `(3,)`): Lowest point of the chin (landmark 152).
        top (`torch.Tensor` of shape `(3,)`): Upper end of the face (landmark 10).
    """
    y, z = middle[:, 1], middle[:, 2] - chin[2]
    # From below the chin to the angle of the jaw and the nape.
    edge = torch.where(
        z > 8, chin[1] - 2.6 - 0.1 * (z - 8), (chin[1] + 0.5 - 0.55 * z.clamp_min(0)).clamp_min(chin[1] - 3)
    )
    face = (y > top[1] - 0.6) & (z < 6)
    return torch.where(y > edge, 2, torch.where(face, 0, 1))


def below_skull(
    vertices: Tensor,  # [V, 3]
    chin: Tensor,  # [3]
    base_cm: float,
) -> Tensor:
    """Weight of the root joint for each vertex when the neck bends, [V] in [0, 1].

    Args:
        vertices (`torch.Tensor` of shape `(V, 3)`): Centimetres, y down, z away.
        chin (`torch.Tensor` of shape `(3,)`): Lowest point of the chin.
        base_cm (`float`): y of the neck's end.
    """
    # The skull ends lower behind the chin than at the nape.
    behind = smoothstep((vertices[:, 2] - chin[2] - 3) / 10)
    end = chin[1] + 1.2 - 3.5 * behind
    return smoothstep((vertices[:, 1] - end) / (base_cm - 0.5 - end).clamp_min(2.0))


def regressor(
    point: Tensor,  # [3]
    vertices: Tensor,  # [V, 3]
    count: int = 200,
) -> Tensor:
    """Compute smooth weights [V] of the nearest vertices whose weighted mean is a joint, for affine motion too.

    Args:
        point (`torch.Tensor` of shape `(3,)`): Position of the joint.
        vertices (`torch.Tensor` of shape `(V, 3)`): The mesh.
        count (`int`, *optional*, defaults to 200): Number of vertices with a weight.
    """
    near = (vertices - point).norm(dim=1).topk(min(count, len(vertices)), largest=False).indices
    system = torch.cat([torch.ones(1, len(near)), (vertices[near] - point).mT]).double()
    system[1:] /= system[1:].abs().amax()
    goal = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    out = vertices.new_zeros(len(vertices))
    out[near] = (system.mT @ torch.linalg.solve(system @ system.mT, goal)).to(out.dtype)
    return out


def weights_of_joints(root: Tensor, jaw: Tensor, left_eye: Tensor, right_eye: Tensor) -> Tensor:
    """Combine skinning weights [V, 5]: first eyes, then root, then jaw; the skull has the rest.

    Args:
        root (`torch.Tensor` of shape `(V,)`): Weight of the root, 0..1.
        jaw (`torch.Tensor` of shape `(V,)`): Weight of the jaw, relative to the rest without the root.
        left_eye (`torch.Tensor` of shape `(V,)`): True for the person's left eyeball.
        right_eye (`torch.Tensor` of shape `(V,)`): True for the right one.
    """
    ball = left_eye | right_eye
    root = torch.where(ball, torch.zeros(()), root)
    jaw = torch.where(ball, torch.zeros(()), jaw * (1 - root))
    return torch.stack([root, (1 - root - jaw) * ~ball, jaw, left_eye.float(), right_eye.float()], 1)

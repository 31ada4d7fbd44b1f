"""A linear head mesh with identity and expression shapes, named as in ARKit; for rendered talkers.

Not in the paper: VASA-1 trains on real videos only. Heads are in centimetres, x right, y down, z away from the viewer,
so `points ~ scale * vertices @ R.T + t` with the rotations of `vasa_hf.geometry` as for the landmarks' canonical face.
The head with joints of VASA-3D is `vasa_hf.head.parametric.ParametricHead`.
"""

import dataclasses

import torch
from torch import Tensor

from vasa_hf.geometry.landmarks import LANDMARK_IDS

NUM_SKIN_LANDMARKS = len(LANDMARK_IDS) - 10  # the last ten are the irises


@dataclasses.dataclass
class HeadMesh:
    """A linear head model: `vertices + identity weights + expression weights`.

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
        landmarks (`torch.Tensor` of shape `(152,)`): Vertices of the landmarks, without irises.
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

    def compact(self) -> "HeadMesh":
        """Return the head without unused vertices."""
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


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Compute unit normals [V, 3] that point outwards; zero for vertices without a triangle."""
    a, b, c = vertices[faces].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total.index_add_(0, faces[:, corner], normal)
    return torch.nn.functional.normalize(total, dim=-1)

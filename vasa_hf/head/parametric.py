"""A whole head with joints: FLAME's formula for any mesh. VASA-3D binds its Gaussians to its triangles.

Source: VASA-3D §3.1 (which uses FLAME), Li et al. 2017. The same class holds FLAME's head (`vasa_hf.head.flame`),
ICT-FaceKit's (`vasa_hf.head.ict`) and the built-in one (`vasa_hf.head.whole`).

Centimetres; x right, y down, z away from the viewer; rotations as rotation vectors in radians. FLAME's axes (y up, z
towards the viewer) differ by a rotation of 180 degrees about x: the same pose there is `pose * FLAME_AXES`. A positive
rotation about x opens the jaw in both.
"""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vasa_hf.geometry.landmarks import NUM_LANDMARKS
from vasa_hf.head.mesh import HeadMesh
from vasa_hf.head.skinning import rotation_from_vector, skin

JOINTS = ("global", "neck", "jaw", "left_eye", "right_eye")  # left and right are the person's, as in FLAME
PARENTS = (-1, 0, 1, 1, 1)
FLAME_AXES = (1.0, -1.0, -1.0)
#: Names of the numbers in `ParametricHead.regions`.
REGIONS = ("face", "scalp", "neck", "left_eye", "right_eye", "mouth", "teeth")
# Not in the paper: eyes and the inside of the mouth belong to Omega_face, because z_dyn moves them.
_OMEGA_FACE, _OMEGA_NECK = ("face", "left_eye", "right_eye", "mouth", "teeth"), ("neck",)
_PAIRS = (
    "mouthSmile mouthStretch mouthFrown mouthDimple mouthPress mouthUpperUp mouthLowerDown cheekSquint noseSneer "
    "eyeBlink eyeSquint eyeWide eyeLookDown eyeLookUp browDown browInnerUp browOuterUp"
).split()
#: Named expressions of every head; `_L` and `_R` are the person's left and right.
NAMED = (
    *"jawOpen jawLeft jawRight mouthClose mouthFunnel mouthPucker mouthLeft mouthRight mouthRollLower".split(),
    *"mouthRollUpper mouthShrugLower mouthShrugUpper".split(),
    *(f"{name}_{side}" for name in _PAIRS for side in "LR"),
)
FORMAT = "vasa_hf.head"


@dataclasses.dataclass
class PosedHead:
    """A head in a batch of states.

    Attributes:
        vertices (`torch.Tensor` of shape `(batch, V, 3)`): Centimetres.
        joints (`torch.Tensor` of shape `(batch, 5, 3)`): Positions in the order of `JOINTS`.
        triangles (`torch.Tensor` of shape `(batch, F, 3, 3)`): Corners of each triangle, last axis xyz.
    """

    vertices: Tensor
    joints: Tensor
    triangles: Tensor


class ParametricHead(nn.Module):
    """A head with shape, expression and pose. It has only buffers and no trainable parameters.

    Args:
        template (`torch.Tensor` of shape `(V, 3)`): The mean head.
        shape_basis (`torch.Tensor` of shape `(S, V, 3)`): Offsets by shape coefficients.
        expression_basis (`torch.Tensor` of shape `(E, V, 3)`): Offsets by expression coefficients.
        faces (`torch.Tensor` of shape `(F, 3)`): Triangles, anticlockwise from outside.
        regions (`torch.Tensor` of shape `(F,)`): Number in `REGIONS` of each triangle.
        joint_regressor (`torch.Tensor` of shape `(5, V)`): Joints from vertices.
        skinning_weights (`torch.Tensor` of shape `(V, 5)`): Weight of each joint for each vertex.
        landmarks (`torch.Tensor` of shape `(152,)`): Vertices of the landmarks, without irises.
        named (`torch.Tensor` of shape `(len(NAMED), E + 3)`): Expression coefficients and jaw pose of each name.
        pose_basis (`torch.Tensor` of shape `(36, V, 3)`, *optional*): FLAME's pose correctives.
        eye_radius_cm (`float`, *optional*, defaults to 1.2): Radius of the eyeballs.

    Raises:
        ValueError: If shapes do not match or an index is out of range.
    """

    def __init__(
        self,
        template: Tensor,
        shape_basis: Tensor,
        expression_basis: Tensor,
        faces: Tensor,
        regions: Tensor,
        joint_regressor: Tensor,
        skinning_weights: Tensor,
        landmarks: Tensor,
        named: Tensor,
        pose_basis: Tensor | None = None,
        eye_radius_cm: float = 1.2,
    ):
        super().__init__()
        count, joints = len(template), len(JOINTS)
        if pose_basis is None:
            pose_basis = template.new_zeros(0, count, 3)
        shapes = {
            "template": (template, (count, 3)),
            "shape_basis": (shape_basis, (len(shape_basis), count, 3)),
            "expression_basis": (expression_basis, (len(expression_basis), count, 3)),
            "faces": (faces, (len(faces), 3)),
            "regions": (regions, (len(faces),)),
            "joint_regressor": (joint_regressor, (joints, count)),
            "skinning_weights": (skinning_weights, (count, joints)),
            "landmarks": (landmarks, (NUM_LANDMARKS - 10,)),
            "named": (named, (len(NAMED), len(expression_basis) + 3)),
            "pose_basis": (pose_basis, (9 * (joints - 1) if len(pose_basis) else 0, count, 3)),
        }
        for name, (value, expected) in shapes.items():
            if value.shape != expected:
                raise ValueError(f"`{name}` must be of shape {expected}, but is {tuple(value.shape)}.")
            self.register_buffer(name, value)
        self.register_buffer("eye_radius_cm", torch.tensor(float(eye_radius_cm)))
        for name, value, limit in (
            ("faces", faces, count),
            ("regions", regions, len(REGIONS)),
            ("landmarks", landmarks, count),
        ):
            if not value.is_meta and len(value) and not 0 <= int(value.min()) <= int(value.max()) < limit:
                raise ValueError(f"`{name}` must lie in 0..{limit - 1}, but has {value.min()}..{value.max()}.")

    # --- sizes and masks ----------------------------------------------------------------------------------------------

    @property
    def sizes(self) -> dict[str, int]:
        """Arguments of `ParametricHead.empty` for a head of the same size, for a config."""
        return {
            "num_vertices": len(self.template),
            "num_triangles": len(self.faces),
            "num_shapes": len(self.shape_basis),
            "num_expressions": len(self.expression_basis),
            "num_pose_offsets": len(self.pose_basis),
        }

    @classmethod
    def empty(
        cls,
        num_vertices: int,
        num_triangles: int,
        num_shapes: int,
        num_expressions: int,
        num_pose_offsets: int = 0,
    ) -> "ParametricHead":
        """Make a head of zeros, for `load_state_dict`.

        Args:
            num_vertices (`int`): V.
            num_triangles (`int`): F.
            num_shapes (`int`): S.
            num_expressions (`int`): E.
            num_pose_offsets (`int`, *optional*, defaults to 0): 36 for a head with FLAME's correctives, else 0.
        """
        return cls(
            template=torch.zeros(num_vertices, 3),
            shape_basis=torch.zeros(num_shapes, num_vertices, 3),
            expression_basis=torch.zeros(num_expressions, num_vertices, 3),
            faces=torch.zeros(num_triangles, 3, dtype=torch.long),
            regions=torch.zeros(num_triangles, dtype=torch.long),
            joint_regressor=torch.zeros(len(JOINTS), num_vertices),
            skinning_weights=torch.zeros(num_vertices, len(JOINTS)),
            landmarks=torch.zeros(NUM_LANDMARKS - 10, dtype=torch.long),
            named=torch.zeros(len(NAMED), num_expressions + 3),
            pose_basis=torch.zeros(num_pose_offsets, num_vertices, 3),
        )

    def region(self, *names: str) -> Tensor:
        """Mask [F] of the triangles in the regions of these names."""
        if unknown := [name for name in names if name not in REGIONS]:
            raise ValueError(f"`names` must be among {', '.join(REGIONS)}, but hold {unknown}.")
        numbers = torch.tensor([REGIONS.index(name) for name in names], device=self.regions.device)
        return torch.isin(self.regions, numbers)

    @property
    def omega_face(self) -> Tensor:
        """Mask [F] of the triangles whose Gaussians D^e deforms: skin of the face, eyes, inside of the mouth."""
        return self.region(*_OMEGA_FACE)

    @property
    def omega_neck(self) -> Tensor:
        """Mask [F] of the triangles whose Gaussians D^p deforms."""
        return self.region(*_OMEGA_NECK)

    # --- posing -------------------------------------------------------------------------------------------------------

    def forward(
        self,
        shape: Tensor | None = None,  # [B, S]
        expression: Tensor | None = None,  # [B, E]
        neck: Tensor | None = None,  # [B, 3]
        jaw: Tensor | None = None,  # [B, 3]
        eyes: Tensor | None = None,  # [B, 6]
        global_pose: Tensor | None = None,  # [B, 3]
        translation: Tensor | None = None,  # [B, 3]
    ) -> PosedHead:
        """Pose the head; omitted arguments are zero, and a batch of 1 is expanded.

        Args:
            shape (`torch.Tensor` of shape `(batch, S)`, *optional*): May have fewer than S coefficients.
            expression (`torch.Tensor` of shape `(batch, E)`, *optional*): May have fewer than E.
            neck (`torch.Tensor` of shape `(batch, 3)`, *optional*): Rotation vector, radians.
            jaw (`torch.Tensor` of shape `(batch, 3)`, *optional*): Rotation vector, radians; +x opens.
            eyes (`torch.Tensor` of shape `(batch, 6)`, *optional*): Rotation vectors of left, then right eye.
            global_pose (`torch.Tensor` of shape `(batch, 3)`, *optional*): Rotation vector about the root joint.
            translation (`torch.Tensor` of shape `(batch, 3)`, *optional*): Centimetres.

        Returns:
            `PosedHead`.

        Raises:
            ValueError: If the shape of an argument is wrong.
        """
        poses = {"global_pose": global_pose, "neck": neck, "jaw": jaw}
        given = {"shape": shape, "expression": expression, **poses, "eyes": eyes, "translation": translation}
        widths = {"shape": len(self.shape_basis), "expression": len(self.expression_basis), "eyes": 6}
        batch = max((len(value) for value in given.values() if value is not None), default=1)
        for name, value in given.items():
            width = widths.get(name, 3)
            fits = value is None or (value.ndim == 2 and len(value) in (1, batch) and value.shape[1] <= width)
            if not fits or (value is not None and name not in ("shape", "expression") and value.shape[1] != width):
                raise ValueError(f"`{name}` must be of shape ({batch}, {width}), but is {tuple(value.shape)}.")
        zero = self.template.new_zeros(batch, 3)
        eyes = zero.repeat(1, 2) if eyes is None else eyes.expand(batch, 6)
        vectors = [zero if value is None else value.expand(batch, 3) for value in poses.values()]
        rotations = rotation_from_vector(torch.stack([*vectors, eyes[:, :3], eyes[:, 3:]], 1))
        person = self._add_offsets(self.template[None], shape, self.shape_basis).expand(batch, -1, -1)
        joints = self.joint_regressor @ person
        rest = self._add_offsets(person, expression, self.expression_basis)
        vertices, joints = skin(rest, joints, rotations, PARENTS, self.skinning_weights, self.pose_basis)
        if translation is not None:
            vertices, joints = vertices + translation[:, None], joints + translation[:, None]
        return PosedHead(vertices, joints, vertices[:, self.faces])

    @staticmethod
    def _add_offsets(vertices: Tensor, weights: Tensor | None, basis: Tensor) -> Tensor:
        if weights is None or not weights.shape[1]:
            return vertices
        return vertices + (weights @ basis[: weights.shape[1]].flatten(1)).unflatten(1, (-1, 3))

    def named_expression(self, **weights: float | Tensor) -> tuple[Tensor, Tensor]:
        """Expression coefficients `(batch, E)` and jaw pose `(batch, 3)` of named expressions.

        Args:
            **weights (`float` or `torch.Tensor` of shape `(batch,)`): Weight 0..1 by a name of `NAMED`.

        Raises:
            ValueError: If a name is unknown.
        """
        if unknown := [name for name in weights if name not in NAMED]:
            raise ValueError(f"`weights` must be named as in {', '.join(NAMED)}, but hold {unknown}.")
        total = self.named.new_zeros(1, self.named.shape[1])
        for name, weight in weights.items():
            total = total + torch.as_tensor(weight).to(total).reshape(-1, 1) * self.named[NAMED.index(name)]
        return total[:, :-3], total[:, -3:]

    # --- other forms --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def as_mesh(self, num_identities: int | None = None) -> HeadMesh:
        """Convert to the linear head with the same vertices, for `fit_head` and the rendered talkers.

        Named expressions become offsets at weight 1. The skin is that of the face and of the front of the neck.

        Args:
            num_identities (`int`, *optional*): Number of shapes; by default all.
        """
        columns = self.named.shape[1] - 3
        rest = self.template
        moved = [self(expression=row[None, :columns], jaw=row[None, columns:]).vertices[0] - rest for row in self.named]
        joints = self.joint_regressor @ rest
        front = rest[self.faces][..., 2].mean(1) < joints[JOINTS.index("neck"), 2]
        centers = self.joint_regressor[[JOINTS.index("right_eye"), JOINTS.index("left_eye")]]
        teeth = torch.zeros(len(rest), dtype=torch.bool)
        teeth[self.faces[self.region("teeth")]] = True
        return HeadMesh(
            vertices=rest,
            identity=self.shape_basis[:num_identities],
            expression=torch.stack(moved),
            expression_names=NAMED,
            skin=self.faces[self.region("face") | (self.region("neck") & front)],
            inside=self.faces[self.region("mouth", "teeth")],
            teeth=teeth,
            eye_centers=centers,  # the image's left eye comes first: the person's right one
            eye_radius_cm=float(self.eye_radius_cm),
            landmarks=self.landmarks,
            origin_cm=torch.zeros(3),
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file.

        Args:
            path (`str` or `Path`): The file.
        """
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, path, metadata={"format": FORMAT, "sizes": json.dumps(self.sizes)})

    @classmethod
    def load(cls, path: str | Path) -> "ParametricHead":
        """Read a file that `save` wrote.

        Args:
            path (`str` or `Path`): The file.

        Raises:
            ValueError: If it is another kind of file.
        """
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"`path` must be a head that `ParametricHead.save` wrote, but {path} is not.")
            head = cls.empty(**json.loads(metadata["sizes"]))
            head.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return head

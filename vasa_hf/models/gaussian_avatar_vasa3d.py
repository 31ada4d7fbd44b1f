r"""VASA-3D's avatar (§3.1): one person's Gaussians on a head, driven by VASA-1's motion.

```
            M^e (Eq. 1)                             mesh of the head        G = Gaussians bound to its triangles
  z_dyn  ----------------> expression, eyes, jaw --.                              |
  z_pose ----------------> neck, global, transl. ---+--> base deformation ---->   G'
            M^p (Eq. 2)                                                           |
  D^e(g, z_dyn, eps_exp)    face (Eq. 3) --.                                      |
  D^p(g, z_pose, eps_pose)  neck (Eq. 4) ---+--> delta (mu, r, s, c, alpha) -->   G''
```
World: centimetres, x right, y down, z away (`geometry/cameras.py`). `portrait_camera` shows what the crop shows.

Details that the paper does not give:
# Not in the paper: "three fully connected layers, with 256 hidden units per layer" are two hidden layers and an output.
# Not in the paper: D^e and D^p take Gaussians, and apply their deltas, on the head at rest: with its shape, without
  expression and pose. A delta then turns and grows with its triangle, so it is the same from every side. Positions are
  encoded relative to the region's box, rotation as a quaternion, scale as a logarithm, opacity in [0, 1].
# Not in the paper: deltas add to the position in centimetres, the quaternion, the logarithm of the scale, RGB and the
  logit of the opacity; they start at zero. Colours do not depend on the view.
# Not in the paper: z is normalised by saved statistics; M^p and M^e start from known geometry (`fit_motion`).
# Not in the paper (`pose_prior`, small preset): M^p adds to that geometry, which is then exact from the start.
"""

import dataclasses
import math
import os
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from vasa_hf.gaussians.binding import TriangleFrames, place_on_mesh, triangle_frames, world_from_local
from vasa_hf.gaussians.export import save_gaussians
from vasa_hf.gaussians.scene import Gaussians
from vasa_hf.geometry.cameras import DEFAULT_FOV_RAD, Cameras, orbit_cameras
from vasa_hf.geometry.quaternions import quaternion_from_matrix, quaternion_multiply
from vasa_hf.head.driving import CanonicalPlace, expression_of_displacements, place_canonical, pose_of_crop
from vasa_hf.head.loading import load_parametric_head
from vasa_hf.head.mean_face import mean_face
from vasa_hf.head.parametric import ParametricHead, PosedHead
from vasa_hf.motion import POSE_DIM

#: Rows of a Gaussian: position, quaternion, log scale, logit of the opacity, RGB.
WIDTHS = {"means": 3, "quats": 4, "scales": 3, "opacities": 1, "colors": 3}
ENCODING_LEVELS = 4  # L of the positional encoding (§3.1)
_FEATURES = 6 * ENCODING_LEVELS + sum(WIDTHS.values()) - 3
_TRANSLATION_CM = 10.0  # M^p's translation is in this unit, so that its outputs are alike in size
_OVERLAP = 1.2  # new discs are so much larger than their share of the surface, so that none of it shines through
_HEADROOM = 6.0  # deviations of z_dyn within which M^e starts linear
#: Least spread of the poses that M^p starts from: 1 standard deviation of angles, place and scale over its mean.
_POSE_SPREAD = (0.35, 0.25, 0.2, 0.08, 0.08, 0.2)
# For the embedded small VASA-1 (`model_cards/vasa-small`): 27 ms a frame on one core.
SMALL_CONFIG = {"num_gaussians": 20_000, "motion_dim": 34, "hidden_size": 128, "pose_prior": True}
# FLAME 2020's sizes.
_PAPER_HEAD = {
    "num_vertices": 5023,
    "num_triangles": 9976,
    "num_shapes": 300,
    "num_expressions": 100,
    "num_pose_offsets": 36,
}


@dataclasses.dataclass
class Vasa3DGaussianAvatarOutput(BaseOutput):
    """Gaussians of a batch of frames, in the world.

    Attributes:
        gaussians (`Gaussians`): To be rendered: G'' of the paper, or G' where `deform=False`.
        base (`Gaussians`, *optional*): G', after base deformation alone; with `return_base=True`.
        expression (`torch.Tensor` of shape `(batch, E + 9)`): eps_exp: expression, rotation vectors of eyes and jaw.
        pose (`torch.Tensor` of shape `(batch, 9)`):
            eps_pose: rotation vectors of neck and head, translation in 10 cm.
    """

    gaussians: Gaussians
    base: Gaussians | None = None
    expression: Tensor | None = None
    pose: Tensor | None = None


@dataclasses.dataclass
class Vasa3DRestState:
    """What does not change from frame to frame: the head at rest, and the Gaussian inputs of D^e and D^p.

    Attributes:
        rows (`torch.Tensor` of shape `(gaussians, 14)`): Gaussians in their triangles' frames, columns as in `WIDTHS`.
        regions (`tuple`): For face and neck: rows of the Gaussians `(n,)`, what D's first layer makes of them
            `(n, hidden)`, and what takes a delta into the triangles' frames (rotation `(n, 3, 3)` over size,
            quaternion `(n, 4)`).
        joints (`torch.Tensor` of shape `(5, 3)`): Of the head.
    """

    rows: Tensor
    regions: tuple[tuple[Tensor, Tensor, Tensor, Tensor], ...]
    joints: Tensor


def encode_position(
    position: Tensor,  # [..., 3]
    levels: int = ENCODING_LEVELS,
) -> Tensor:
    """Sinusoidal encoding: sin(2^k pi x), cos(2^k pi x) for k = 0..levels - 1.

    Source: Mildenhall et al. 2020 Eq. 4, VASA-3D §3.1 with L = 4. Deviation: none.

    Args:
        position (`torch.Tensor` of shape `(..., 3)`): About [-1, 1].
        levels (`int`, *optional*, defaults to 4): L.

    Returns:
        `torch.Tensor` of shape `(..., 6 * levels)`.
    """
    frequency = math.pi * 2.0 ** torch.arange(levels, dtype=position.dtype, device=position.device)
    angle = (position[..., None, :] * frequency[:, None]).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class DeformationField(nn.Module):
    """D of Eqs. 3-4: what each Gaussian does, from what it is and the frame's codes; starts at zero.

    The first layer is one product over the Gaussians, which frames share, plus one over the codes.

    Args:
        code_dim (`int`): Width of z and eps together.
        hidden_size (`int`): Hidden units.
    """

    def __init__(self, code_dim: int, hidden_size: int):
        super().__init__()
        self.gaussian_in = nn.Linear(_FEATURES, hidden_size, bias=False)
        self.code_in = nn.Linear(code_dim, hidden_size)
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, sum(WIDTHS.values()))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, gaussians: Tensor, code: Tensor) -> Tensor:
        """Deltas `(batch, n, 14)` for codes `(batch, c)`, of Gaussians after `gaussian_in` `(n, hidden)`."""
        hidden = F.relu(gaussians + self.code_in(code)[:, None], inplace=True)
        return self.out(F.relu(self.hidden(hidden), inplace=True))


class Vasa3DGaussianAvatar(ModelMixin, ConfigMixin):
    """A person as Gaussians that VASA-1's motion moves. The defaults are the paper's sizes, with FLAME's head.

    A new one is made by `Vasa3DGaussianAvatar.from_head`; the constructor alone makes an empty one to load into.

    Args:
        num_gaussians (`int`, defaults to 200,000): Number of Gaussians (the maximum of appendix A).
        head_sizes (`dict[str, int]`, *optional*): `ParametricHead.sizes` of the head within; FLAME's if left out.
        motion_dim (`int`, defaults to 518): Channels of a motion frame: 6 of z_pose, the rest of z_dyn.
        motion_space (`str`, defaults to "vasa1"): Name of the face model whose z_dyn this avatar was fitted to.
        hidden_size (`int`, defaults to 256): Hidden units of M^e, M^p, D^e and D^p (paper).
        camera_distance_cm (`float`, defaults to 100.0): From the portrait's camera to the world's origin.
        fov_rad (`float`, defaults to 20 degrees): Field of view of the portrait's camera.
        pose_prior (`bool`, defaults to False): Whether M^p adds to the known geometry of z_pose. # Not in the paper.
        head_name (`str`, defaults to "built-in"): Which head is within, such as "FLAME 2020"; for readers alone.

    Raises:
        ValueError: If the motion is too narrow.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        num_gaussians: int = 200_000,
        head_sizes: dict[str, int] | None = None,
        motion_dim: int = 518,
        motion_space: str = "vasa1",
        hidden_size: int = 256,
        camera_distance_cm: float = 100.0,
        fov_rad: float = DEFAULT_FOV_RAD,
        pose_prior: bool = False,
        head_name: str = "built-in",
    ):
        super().__init__()
        if motion_dim <= POSE_DIM:
            raise ValueError(f"`motion_dim` must be more than {POSE_DIM}, the channels of the pose, got {motion_dim}.")
        head_sizes = dict(_PAPER_HEAD if head_sizes is None else head_sizes)
        dynamics_dim, expression_dim = motion_dim - POSE_DIM, head_sizes["num_expressions"] + 9
        self.head = ParametricHead.empty(**head_sizes)
        self.shape = nn.Parameter(torch.zeros(head_sizes["num_shapes"]))
        self.register_buffer("triangles", torch.zeros(num_gaussians, dtype=torch.long))
        self.means = nn.Parameter(torch.zeros(num_gaussians, 3))
        self.quats = nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(num_gaussians, 1))
        self.scales = nn.Parameter(torch.zeros(num_gaussians, 3))  # logarithms
        self.opacities = nn.Parameter(torch.zeros(num_gaussians))  # logits
        self.colors = nn.Parameter(torch.zeros(num_gaussians, 3))
        self.motion_to_expression = _three_layers(dynamics_dim, hidden_size, expression_dim)  # M^e
        self.motion_to_pose = _three_layers(POSE_DIM, hidden_size, 9)  # M^p
        self.deform_face = DeformationField(dynamics_dim + expression_dim, hidden_size)  # D^e
        self.deform_neck = DeformationField(POSE_DIM + 9, hidden_size)  # D^p
        if pose_prior:
            nn.init.zeros_(self.motion_to_pose[-1].weight)
            nn.init.zeros_(self.motion_to_pose[-1].bias)
        self.register_buffer("motion_mean", torch.zeros(motion_dim))
        self.register_buffer("motion_std", torch.ones(motion_dim))
        self.register_buffer("own_motion", torch.zeros(motion_dim))  # of the portrait; all 0 until it is set
        # Canonical face in the head (`CanonicalPlace`): rotation, origin, unit.
        self.register_buffer("canonical_rotation", torch.eye(3))
        self.register_buffer("canonical_origin", torch.zeros(3))
        self.register_buffer("canonical_unit_cm", torch.tensor(8.9))
        self.register_buffer("region_boxes", torch.tensor([[0.0, 0.0, 0.0, 1.0]]).repeat(2, 1))  # xyz, half side

    @classmethod
    def from_head(
        cls,
        head: ParametricHead | None = None,
        num_gaussians: int = 20_000,
        face_share: float = 0.6,
        **config,
    ) -> "Vasa3DGaussianAvatar":
        """A grey avatar: Gaussians all over a head, at rest whatever the motion, until it is fitted.

        Args:
            head (`ParametricHead`, *optional*): Copied into the avatar; the built-in one if left out.
            num_gaussians (`int`, *optional*, defaults to 20,000): One for each triangle at least.
            face_share (`float`, *optional*, defaults to 0.6): Part of them on Omega_face, if triangles allow it.
            **config: Other arguments of the class.

        Raises:
            ValueError: If there are fewer Gaussians than triangles.
        """
        head = load_parametric_head() if head is None else head
        avatar = cls(num_gaussians=num_gaussians, head_sizes=head.sizes, **config)
        avatar.head.load_state_dict(head.state_dict())
        if num_gaussians < len(head.faces):
            raise ValueError(f"`num_gaussians` must be at least {len(head.faces)}, the triangles, got {num_gaussians}.")
        face = head.omega_face
        on_face = min(max(round(face_share * num_gaussians), int(face.sum())), num_gaussians - int((~face).sum()))
        parts = []
        for mask, count in ((face, on_face), (~face, num_gaussians - on_face)):
            if count:
                new, triangles = place_on_mesh(head.template, head.faces[mask], count)
                parts.append((new, mask.nonzero()[:, 0][triangles]))
        triangles = torch.cat([part[1] for part in parts])
        order = triangles.argsort(stable=True)
        new = {name: torch.cat([getattr(part[0], name) for part in parts])[order] for name in WIDTHS}
        new["scales"] = (_OVERLAP * new["scales"]).clamp_min(1e-8).log()
        new["opacities"] = new["opacities"].logit()
        avatar.set_gaussians({name: nn.Parameter(value) for name, value in new.items()}, triangles[order])
        for row, mask in enumerate((head.omega_face, head.omega_neck)):
            if mask.any():
                corners = head.template[head.faces[mask].flatten()]
                low, high = corners.amin(dim=0), corners.amax(dim=0)
                avatar.region_boxes[row] = torch.cat([(low + high) / 2, (high - low).amax()[None] / 2])
        avatar.set_place(place_canonical(head, mean_face().to(head.template)))
        return avatar

    @torch.no_grad()
    def set_place(self, place: CanonicalPlace) -> None:
        """Say where in the head the canonical face lies that poses are about, in place of the mean face's place.

        Args:
            place (`CanonicalPlace`): Such as `place_from_picture` finds for the portrait.
        """
        self.canonical_rotation.copy_(place.rotation)
        self.canonical_origin.copy_(place.origin)
        self.canonical_unit_cm.copy_(place.unit_cm)

    @property
    def place(self) -> CanonicalPlace:
        """Where in the head the canonical face lies."""
        return CanonicalPlace(self.canonical_rotation, self.canonical_origin, self.canonical_unit_cm)

    # --- Gaussians for the optimisation ---------------------------------------------------------------------

    @property
    def gaussian_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters with a row for each Gaussian, as `gaussians/densify.py` takes them."""
        return {name: getattr(self, name) for name in WIDTHS}

    def set_gaussians(self, parameters: Mapping[str, nn.Parameter], triangles: Tensor) -> None:
        """Take over Gaussians, any number, such as those of `apply_density`.

        Args:
            parameters (mapping of names to `torch.nn.Parameter`): As `gaussian_parameters` gives them.
            triangles (`torch.Tensor` of shape `(gaussians,)`): Which triangle each is bound to.

        Raises:
            ValueError: If names or shapes do not fit.
        """
        shapes = {name: (len(triangles), width) for name, width in WIDTHS.items()} | {"opacities": (len(triangles),)}
        got = {name: tuple(value.shape) for name, value in parameters.items()}
        if got != shapes:
            raise ValueError(f"`parameters` must be {shapes} for these `triangles`, got {got}.")
        for name, value in parameters.items():
            setattr(self, name, value)
        self.triangles = triangles
        self.register_to_config(num_gaussians=len(triangles))

    # --- steps of the animation ---------------------------------------------------------------------------------------

    def check_motion(self, motion: Tensor) -> None:
        """Raise `ValueError` unless `motion` is of shape `(batch, motion_dim)`."""
        if motion.ndim != 2 or motion.shape[1] != self.config.motion_dim:
            raise ValueError(f"`motion` must have shape (batch, {self.config.motion_dim}), got {tuple(motion.shape)}.")

    def check_motion_space(self, motion_space: str) -> None:
        """Raise `ValueError` unless the avatar was fitted to motion of this name: the numbers would mean other things.

        Args:
            motion_space (`str`): Name of the face model that the motion is for.
        """
        if motion_space != self.config.motion_space:
            raise ValueError(
                f"`motion_space` must be {self.config.motion_space!r}, for which this avatar was fitted, got "
                f"{motion_space!r}: fit the avatar again with that model, or load the other one."
            )

    @property
    def portrait_camera(self) -> Cameras:
        """The fixed camera that shows what the crop of VASA-1 shows; orbits about the origin go round the head."""
        cameras = orbit_cameras(0.0, distance=self.config.camera_distance_cm, fov_rad=self.config.fov_rad)
        return cameras.to(device=self.means.device)

    def head_parameters(self, motion: Tensor, joints: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """M^e and M^p (Eqs. 1-2).

        Args:
            motion (`torch.Tensor` of shape `(batch, motion_dim)`): z_pose and z_dyn.
            joints (`torch.Tensor` of shape `(5, 3)`, *optional*): Of the head at rest, from `rest_state`.

        Returns:
            eps_exp `(batch, E + 9)` and eps_pose `(batch, 9)`, as in `Vasa3DGaussianAvatarOutput`.
        """
        self.check_motion(motion)
        normal = self.normalize(motion)
        expression, pose = self.motion_to_expression(normal[:, POSE_DIM:]), self.motion_to_pose(normal[:, :POSE_DIM])
        if self.config.pose_prior:
            pose = pose + self.compute_known_pose(motion, joints)
        return expression, pose

    def compute_known_pose(self, motion: Tensor, joints: Tensor | None = None) -> Tensor:
        """eps_pose `(batch, 9)` by the geometry of the crop alone (`head/driving.py`); arguments as above."""
        joints = self.head(shape=self.shape[None]).joints[0] if joints is None else joints
        camera = {"distance_cm": self.config.camera_distance_cm, "fov_rad": self.config.fov_rad}
        neck, turn, translation = pose_of_crop(motion[:, :POSE_DIM], joints, self.place, **camera)
        return torch.cat([neck, turn, translation / _TRANSLATION_CM], dim=1)

    def normalize(self, motion: Tensor) -> Tensor:
        """Bring motion to the zero mean and unit deviation that the networks work with."""
        return (motion - self.motion_mean) / self.motion_std

    def pose_head(self, expression: Tensor, pose: Tensor) -> PosedHead:
        """The mesh for eps_exp and eps_pose, in the world."""
        return self.head(
            shape=self.shape[None],
            expression=expression[:, :-9],
            eyes=expression[:, -9:-3],
            jaw=expression[:, -3:],
            neck=pose[:, :3],
            global_pose=pose[:, 3:6],
            translation=_TRANSLATION_CM * pose[:, 6:],
        )

    def rest_state(self) -> Vasa3DRestState:
        """What frames share; pass it to `forward` when nothing is learnt any more, to save its cost at each frame."""
        quats = F.normalize(self.quats, dim=-1)
        rows = torch.cat([self.means, quats, self.scales, self.opacities[:, None], self.colors], dim=1)
        head = self.head(shape=self.shape[None])
        frames = triangle_frames(head.vertices[0], self.head.faces)
        turns = quaternion_from_matrix(frames.rotation)
        masks = (self.head.omega_face, self.head.omega_neck)
        regions = []
        for field, mask, box in zip((self.deform_face, self.deform_neck), masks, self.region_boxes, strict=True):
            index = mask[self.triangles].nonzero()[:, 0]
            at = self.triangles[index]
            size, rotation = frames.scale[at, None].clamp_min(1e-6), frames.rotation[at]
            means = frames.origin[at] + size * (rotation @ self.means[index, :, None])[..., 0]
            features = [
                encode_position((means - box[:3]) / box[3]),
                quaternion_multiply(turns[at], quats[index]),
                self.scales[index] + size.log(),
                self.opacities[index, None].sigmoid(),
                self.colors[index],
            ]
            inverse = turns[at] * turns.new_tensor([1.0, -1.0, -1.0, -1.0])
            local_from_rest = rotation.transpose(1, 2) / size[..., None]
            regions.append((index, field.gaussian_in(torch.cat(features, dim=1)), local_from_rest, inverse))
        return Vasa3DRestState(rows, tuple(regions), head.joints[0])

    def forward(
        self,
        motion: Tensor,  # [B, motion_dim]
        deform: bool = True,
        return_base: bool = False,
        rest: Vasa3DRestState | None = None,
    ) -> Vasa3DGaussianAvatarOutput:
        """Gaussians of each frame.

        Args:
            motion (`torch.Tensor` of shape `(batch, motion_dim)`): z_pose and z_dyn of each frame.
            deform (`bool`, *optional*, defaults to True): Whether to add the VAS deformation (Eqs. 3-4).
            return_base (`bool`, *optional*, defaults to False): Whether to return G' too.
            rest (`Vasa3DRestState`, *optional*): What `rest_state` gave for the present parameters.

        Returns:
            `Vasa3DGaussianAvatarOutput`.

        Raises:
            ValueError: If `motion` is of another shape.
        """
        rest = self.rest_state() if rest is None else rest
        expression, pose = self.head_parameters(motion, rest.joints)
        frames = self._frames(expression, pose)
        base = self._in_world(rest.rows, frames) if return_base or not deform else None
        if not deform:
            return Vasa3DGaussianAvatarOutput(base, base if return_base else None, expression, pose)
        motion = self.normalize(motion)
        codes = [torch.cat([motion[:, POSE_DIM:], expression], 1), torch.cat([motion[:, :POSE_DIM], pose], 1)]
        rows = rest.rows.expand(len(motion), -1, -1)
        for field, code, region in zip((self.deform_face, self.deform_neck), codes, rest.regions, strict=True):
            index, features, local_from_rest, inverse = region
            delta = field(features, code)
            means = (local_from_rest @ delta[..., :3, None])[..., 0]
            quats = quaternion_multiply(inverse, delta[..., 3:7])
            rows = rows.index_add(1, index, torch.cat([means, quats, delta[..., 7:]], dim=-1))
        return Vasa3DGaussianAvatarOutput(self._in_world(rows, frames), base, expression, pose)

    def base_deformation(self, expression: Tensor, pose: Tensor, rest: Vasa3DRestState | None = None) -> Gaussians:
        """G' for eps_exp `(batch, E + 9)` and eps_pose `(batch, 9)` that one sets oneself, rather than M^e and M^p."""
        rows = (self.rest_state() if rest is None else rest).rows
        return self._in_world(rows, self._frames(expression, pose))

    def _frames(self, expression: Tensor, pose: Tensor) -> TriangleFrames:
        return triangle_frames(self.pose_head(expression, pose).vertices, self.head.faces)

    def _in_world(self, rows: Tensor, frames: TriangleFrames) -> Gaussians:
        """Rows [([B,] N, 14)] in the frames of their triangles to Gaussians in the world."""
        means, quats, scales, opacities, colors = rows.split(list(WIDTHS.values()), dim=-1)
        local = Gaussians(means, quats, scales.exp(), opacities[..., 0].sigmoid(), colors)
        return world_from_local(local, self.triangles, frames)

    # --- files for other programs -------------------------------------------------------------------------------------

    @property
    def neutral_motion(self) -> Tensor:
        """Motion `(motion_dim,)` of the head upright, with the expression that it has in the portrait."""
        motion = self.own_motion.clone()
        motion[:3] = 0.0
        return motion

    @torch.no_grad()
    def export(self, path: str | os.PathLike, motion: Tensor | None = None) -> None:
        """Write the Gaussians of one frame for other programs, which show them but cannot move them.

        Args:
            path (`str` or `os.PathLike`): File to write, `.ply` (3DGS) or `.splat` (web viewers).
            motion (`torch.Tensor` of shape `(motion_dim,)`, *optional*): Of the frame; defaults to `neutral_motion`.

        Raises:
            ValueError: If the suffix is another, or `motion` of another shape.
        """
        motion = self.neutral_motion if motion is None else motion
        gaussians = self(motion.to(self.own_motion)[None]).gaussians
        save_gaussians(gaussians.map(lambda value: value[0]), path)

    # --- where M^e and M^p start --------------------------------------------------------------------------------------

    def fit_motion(
        self,
        motions: Tensor,  # [N, motion_dim]
        displacements: Tensor,  # [motion_dim - 6, 162, 2]
        steps: int = 300,
        generator: torch.Generator | None = None,
    ) -> dict[str, float]:
        """Let M^e and M^p start where the head already moves as the motion says, before any image is fitted.

        M^p learns the geometry of the crop (`head/driving.py`): the head stands before `portrait_camera` so that its
        canonical face appears at scale * canonical @ R.T + t. With `pose_prior` it has nothing to learn. M^e becomes
        the linear function of z_dyn whose expression moves landmarks as `displacements` say.

        Args:
            motions (`torch.Tensor` of shape `(N, motion_dim)`): Motion as it will come; its mean and spread are kept.
            displacements (`torch.Tensor` of shape `(motion_dim - 6, 162, 2)`):
                How far landmarks move for one unit of each channel of z_dyn, in canonical units.
            steps (`int`, *optional*, defaults to 300): Of the descent by which M^p learns.
            generator (`torch.Generator`, *optional*): Of the poses that it learns from.

        Returns:
            Root mean square errors: `expression`, `pose_rad`, `translation_cm`.

        Raises:
            ValueError: If shapes do not fit.
        """
        if motions.ndim != 2 or motions.shape[1] != self.config.motion_dim or len(motions) < 2:
            expected = f"(two frames or more, {self.config.motion_dim})"
            raise ValueError(f"`motions` must have shape {expected}, got {tuple(motions.shape)}.")
        if len(displacements) != self.config.motion_dim - POSE_DIM:
            expected = self.config.motion_dim - POSE_DIM
            raise ValueError(f"`displacements` must have {expected} rows, one a channel, got {len(displacements)}.")
        with torch.no_grad():
            self.measure_motion(motions)
            # [motion_dim - 6, E + 9]
            directions = expression_of_displacements(self.head, displacements, self.place, self.shape[None])
            mean, std = self.motion_mean[POSE_DIM:], self.motion_std[POSE_DIM:]
            _make_linear(self.motion_to_expression, (directions * std[:, None]).mT, mean @ directions)
            normal = torch.zeros(8192, self.config.motion_dim, dtype=std.dtype)
            # Uniform within 2.5 deviations.
            normal[:, :POSE_DIM] = torch.rand(8192, POSE_DIM, generator=generator, dtype=std.dtype) * 5 - 2.5
            poses = self.motion_mean + self.motion_std * normal.to(std.device)
            poses[:, POSE_DIM - 1].clamp_min_(0.3 * float(self.motion_mean[POSE_DIM - 1]))
            targets = self.compute_known_pose(poses)
        if not self.config.pose_prior:
            _fit(self.motion_to_pose, self.normalize(poses)[:, :POSE_DIM], targets, steps, generator)
        with torch.no_grad():
            expression, _ = self.head_parameters(motions)
            _, pose = self.head_parameters(poses)
        errors = {
            "expression": expression - motions[:, POSE_DIM:] @ directions,
            "pose_rad": (pose - targets)[:, :6],
            "translation_cm": _TRANSLATION_CM * (pose - targets)[:, 6:],
        }
        return {name: float(error.square().mean().sqrt()) for name, error in errors.items()}

    def measure_motion(self, motions: Tensor) -> None:
        """Set the statistics of the motion; poses count as spread over the range that users may choose.

        Args:
            motions (`torch.Tensor` of shape `(N, motion_dim)`): Motion as it will come.
        """
        mean, std = motions.mean(dim=0), motions.std(dim=0).clamp_min(1e-3)
        spread = std.new_tensor(_POSE_SPREAD)
        spread[-1] *= mean[POSE_DIM - 1]
        std[:POSE_DIM] = torch.maximum(std[:POSE_DIM], spread)
        self.motion_mean.copy_(mean)
        self.motion_std.copy_(std)
        if not self.own_motion.any():
            self.own_motion.copy_(mean)


def _three_layers(inputs: int, hidden_size: int, outputs: int) -> nn.Sequential:
    layers = (nn.Linear(inputs, hidden_size), nn.ReLU(), nn.Linear(hidden_size, hidden_size), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(hidden_size, outputs))


@torch.no_grad()
def _make_linear(mlp: nn.Sequential, weight: Tensor, bias: Tensor) -> None:
    """Make `mlp(x)` start as `weight @ x + bias` for `x` within `_HEADROOM` deviations; other units stay as they are.

    One unit of each layer carries one output, lifted so far that its ReLU is never at rest.
    """
    first, second, last = mlp[0], mlp[2], mlp[4]
    count, hidden_size = len(weight), len(first.weight)
    if count > hidden_size:
        raise ValueError(f"`hidden_size` must be at least {count}, the outputs of M^e, got {hidden_size}.")
    size = weight.norm(dim=1).clamp_min(1e-6)
    first.weight[:count], first.bias[:count] = weight / size[:, None], _HEADROOM
    second.weight[:count], second.weight[:, :count] = 0.0, 0.0
    second.weight[:count, :count], second.bias[:count] = torch.eye(count).to(weight), 0.0
    last.weight.zero_()
    last.weight[:, :count] = size.diag()
    last.bias.copy_(bias - _HEADROOM * size)


def _fit(mlp: nn.Sequential, inputs: Tensor, targets: Tensor, steps: int, generator: torch.Generator | None) -> None:
    """Make `mlp(inputs)` the targets: the last layer by least squares, then all by Adam, the last again."""

    @torch.no_grad()
    def solve_last() -> None:
        hidden = mlp[:-1](inputs).double()
        hidden = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)
        ridge = 1e-6 * len(hidden) * torch.eye(hidden.shape[1], dtype=hidden.dtype, device=hidden.device)
        weight = torch.linalg.solve(hidden.mT @ hidden + ridge, hidden.mT @ targets.double())
        mlp[-1].weight.copy_(weight[:-1].mT)
        mlp[-1].bias.copy_(weight[-1])

    solve_last()
    scale = targets.std(dim=0).clamp_min(1e-3)
    optimizer = torch.optim.Adam(mlp.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(inputs), (512,), generator=generator).to(inputs.device)
            loss = ((mlp(inputs[rows]) - targets[rows]) / scale).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    solve_last()
    mlp.zero_grad()

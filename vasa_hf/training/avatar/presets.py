"""Settings of an avatar's fit: the paper's, and two that take minutes.

Every number of VASA-3D §3.3 and appendix A is a field here; the paper's values are the defaults. Learning rates of the
Gaussians are those of GaussianAvatars (Qian et al. 2024), whose Gaussians live in the frames of triangles as ours do:
a triangle's size is the unit of positions and scales, so that no centimetres enter.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from vasa_hf.checks import check_number, shorten
from vasa_hf.gaussians.densify import DensityConfig
from vasa_hf.models.gaussian_avatar_vasa3d import SMALL_CONFIG

_SMALL_AVATAR = {name: SMALL_CONFIG[name] for name in ("hidden_size", "pose_prior")}


@dataclass(frozen=True)
class AvatarPreset:
    """How an avatar is fitted. Weights of 0 leave a loss out; `..._every` is the number of iterations between its uses.

    Attributes:
        size (`int`): Side of the images, where the face model can make it.
        num_gaussians (`int`): At the start. # Not in the paper.
        head (`str`, *optional*): File of the parametric head: FLAME's (`vasa-hf convert flame`, the paper's),
            `ict_facekit.npz`, or one of `ParametricHead.save`; the built-in head if left out.
        from_scratch (`bool`): The paper's start: grey Gaussians on the mean head, and networks that know nothing. Else
            the mesh is laid on the portrait, wears its colours and hair, and already moves. # Not in the paper.
        avatar (`dict`): Further sizes of `Vasa3DGaussianAvatar`.
        motion_minutes (`float`): How much motion is made (paper: 10 hours).
        num_frames (`int`): Frames rendered of it, at most.
        jpeg_quality (`int`): Of the frames on disk, 1 to 100; 0 keeps them raw, 0.8 MB each at 512 pixels.
        rebase_videos (`bool`): Whether motion of a clip is moved to begin at the portrait's own pose; the paper renders
            the clip's own latents (§3.2).
        limit_turn (`bool`): Whether frames are left out in which the head is turned further than a small VASA-1 can
            draw, see `MOST_TURN`. # Not in the paper.
        sweep_share (`float`): Part of the motion that sweeps the head's pose. # Not in the paper.
        motion_steps (`int`): Denoising steps of the motion.
        iterations (`int`), sharpen_iterations (`int`): Without and then with the CAS loss.
        max_minutes (`float`, *optional*): Wall-clock time of everything.
        frames_share (`float`): Part of `max_minutes` after which no more frames are rendered.
        batch_size (`int`): Frames an iteration, of each process (paper: 4 on 4 GPUs).
        deform (`bool`): Whether there is VAS deformation; off for Table 1's "Basic".
        lpips (`str`, *optional*): Converted LPIPS weights (`vasa_hf.convert.lpips`); without them the feature maps of
            the embedded face recogniser.
        sds (*optional*): Text-to-image pipeline of diffusers, its folder or its name on the Hub.
        densify_from, densify_until, densify_every, max_gaussians (`int`): See `DensityConfig`; every 0: never.
        opacity_reset_every (`int`): See `DensityConfig.reset_interval`; 0: never.
        weight_anchor (`float`): Keeps sides that neither the portrait nor VASA-1's frames show as the start has them;
            in place of L_sds where there is no text-to-image model. # Not in the paper.
        lr_head (`float`): Learning rate of M^e and M^p; `lr_deform` of D^e and D^p.
        final_lr_ratio (`float`): Learning rates at the end, where they have fallen exponentially.
        checkpoint_every, preview_every, log_every (`int`): Iterations between them; 0 for none.
        mixed_precision (`str`): Of the loss networks: no or bf16.
    """

    size: int = 512
    num_gaussians: int = 20_000
    head: str | None = None
    from_scratch: bool = False
    avatar: dict[str, Any] = field(default_factory=dict)
    motion_minutes: float = 600.0
    num_frames: int = 900_000
    jpeg_quality: int = 95
    rebase_videos: bool = False
    limit_turn: bool = False
    sweep_share: float = 0.0
    motion_steps: int = 10
    iterations: int = 200_000
    sharpen_iterations: int = 20_000
    max_minutes: float | None = None
    frames_share: float = 0.3
    batch_size: int = 1
    deform: bool = True
    lpips: str | None = None
    sds: Any = None
    # Appendix A.
    weight_ssim: float = 0.1
    weight_perceptual: float = 1.0
    weight_adversarial: float = 0.001
    weight_sds: float = 1.0
    weight_consist: float = 0.01
    weight_sharpen: float = 10.0
    weight_anchor: float = 0.0  # not in the paper
    weight_position: float = 0.01  # GaussianAvatars §3.3
    weight_scaling: float = 1.0  # GaussianAvatars §3.3
    base_every: int = 1
    ssim_every: int = 1
    perceptual_every: int = 1
    adversarial_every: int = 1
    consist_every: int = 1
    anchor_every: int = 3
    sds_every: int = 10
    sds_guidance: float = 10.0
    sds_scale: float = 0.001
    sds_t_min: float = 0.02
    sds_t_max: float = 0.98
    sds_decay: float = 0.98
    sds_decay_every: int = 2_000
    densify_from: int = 10_000
    densify_until: int = 100_000
    densify_every: int = 2_000
    max_gaussians: int = 200_000
    opacity_reset_every: int = 60_000
    lr_means: float = 5e-3
    lr_quats: float = 1e-3
    lr_scales: float = 1.7e-2
    lr_opacities: float = 5e-2
    lr_colors: float = 7e-4  # 2.5e-3 for the constant spherical harmonic, which counts 0.28
    lr_shape: float = 1e-4
    lr_head: float = 1e-4
    lr_deform: float = 5e-4
    lr_discriminator: float = 1e-4
    final_lr_ratio: float = 0.05
    checkpoint_every: int = 5_000
    preview_every: int = 5_000
    log_every: int = 50
    mixed_precision: str = "no"

    @property
    def total_iterations(self) -> int:
        """Iterations with and without sharpening."""
        return self.iterations + self.sharpen_iterations

    def density(self) -> DensityConfig:
        """When Gaussians are added and removed."""
        never = self.total_iterations + 1
        return DensityConfig(
            start=self.densify_from if self.densify_every else never,
            stop=self.densify_until,
            interval=self.densify_every or 1,
            max_gaussians=self.max_gaussians,
            reset_interval=self.opacity_reset_every or never,
        )


#: Not in the paper: all but "paper".
PRESETS = {
    "paper": AvatarPreset(),
    "fast-gpu": AvatarPreset(
        num_gaussians=60_000,
        avatar=_SMALL_AVATAR,
        motion_minutes=4.0,
        num_frames=4_000,
        rebase_videos=True,
        limit_turn=True,
        sweep_share=0.2,
        iterations=6_000,
        sharpen_iterations=500,
        max_minutes=5.0,
        batch_size=2,
        weight_anchor=1.5,
        adversarial_every=2,
        densify_from=500,
        densify_until=4_000,
        densify_every=500,
        opacity_reset_every=0,
        lr_colors=2.5e-3,
        lr_head=2e-4,
        lr_deform=1e-3,
        checkpoint_every=1_000,
        preview_every=1_000,
    ),
    "fast": AvatarPreset(
        size=256,
        num_gaussians=SMALL_CONFIG["num_gaussians"],
        avatar=_SMALL_AVATAR,
        motion_minutes=0.5,
        num_frames=320,
        jpeg_quality=0,
        rebase_videos=True,
        limit_turn=True,
        sweep_share=0.4,
        motion_steps=5,
        iterations=1_500,
        sharpen_iterations=0,
        max_minutes=4.5,
        weight_adversarial=0.0,
        weight_sds=0.0,
        weight_consist=0.0,
        weight_anchor=1.5,
        base_every=2,
        ssim_every=4,
        perceptual_every=4,
        densify_every=0,
        max_gaussians=SMALL_CONFIG["num_gaussians"],
        opacity_reset_every=0,
        lr_means=1.5e-2,
        lr_quats=5e-3,
        lr_colors=5e-3,
        lr_head=5e-4,
        lr_deform=2e-3,
        checkpoint_every=250,
        preview_every=250,
        log_every=10,
    ),
}
#: Rows of Table 1, from the top; each adds one thing to the row above.
ABLATIONS: dict[str, dict[str, Any]] = {
    "basic": {"deform": False, "weight_sds": 0.0, "weight_consist": 0.0, "sharpen_iterations": 0},
    "vas_deform": {"weight_sds": 0.0, "weight_consist": 0.0, "sharpen_iterations": 0},
    "sds": {"weight_consist": 0.0, "sharpen_iterations": 0},
    "consist": {"sharpen_iterations": 0},
    "cas": {},
}


# Of settings that memory or disk must hold.
LARGEST = {
    "size": 2048,
    "num_gaussians": 5_000_000,
    "max_gaussians": 20_000_000,
    "num_frames": 10_000_000,
    "batch_size": 1024,
    "jpeg_quality": 100,
    "motion_steps": 1000,
    "motion_minutes": 60_000,
}


def choose_preset(preset: str | AvatarPreset, ablation: str | None = None, **overrides: Any) -> AvatarPreset:
    """A preset with some fields changed.

    Args:
        preset (`str` or `AvatarPreset`): "paper", "fast-gpu", "fast", or one's own.
        ablation (`str`, *optional*): A row of Table 1: "basic", "vas_deform", "sds", "consist" or "cas".
        **overrides: Fields of `AvatarPreset`.

    Raises:
        ValueError: If a name is unknown, or a value impossible or of another type.
    """
    if not isinstance(preset, AvatarPreset):
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ValueError(f"`preset` must be one of {list(PRESETS)} or an AvatarPreset, got {shorten(preset)}.")
        preset = PRESETS[preset]
    if ablation is not None and (not isinstance(ablation, str) or ablation not in ABLATIONS):
        raise ValueError(f"`ablation` must be one of {list(ABLATIONS)}, got {shorten(ablation)}.")
    fields = {item.name: item for item in dataclasses.fields(AvatarPreset)}
    if unknown := overrides.keys() - fields.keys():
        raise ValueError(f"`overrides` must be fields of AvatarPreset, got {sorted(unknown)}.")
    for name, value in overrides.items():
        _check_setting(name, value, fields[name].type)
    preset = dataclasses.replace(preset, **(ABLATIONS[ablation] if ablation else {}), **overrides)
    for name in ("size", "num_gaussians", "num_frames", "motion_minutes", "motion_steps", "iterations", "batch_size"):
        if not getattr(preset, name) > 0:
            raise ValueError(f"`{name}` must be more than 0, got {getattr(preset, name)!r}.")
    if preset.mixed_precision not in ("no", "bf16"):
        raise ValueError(f"`mixed_precision` must be no or bf16, got {preset.mixed_precision!r}.")
    for name, item in fields.items():
        negative = item.type in ("int", "float", "float | None") and (getattr(preset, name) or 0) < 0
        if negative or (name.endswith("_every") and not isinstance(getattr(preset, name), int)):
            raise ValueError(f"`{name}` must be 0 or more, got {getattr(preset, name)!r}.")
    return preset


def _check_setting(name: str, value: Any, kind: str) -> None:
    """Raise `ValueError` unless a value is of the type of its field, as that is annotated, and not too large."""
    if kind == "Any" or (value is None and kind.endswith("None")):
        return
    kind = kind.split(" | ")[0].split("[")[0]
    if kind in ("int", "float"):
        check_number(name, value, 0, LARGEST.get(name, 100_000_000), whole=kind == "int")
    elif not isinstance(value, {"bool": bool, "str": str, "dict": dict}[kind]):
        raise ValueError(f"`{name}` must be of type {kind}, got {shorten(value)}.")

"""Motion sequences: named channels with units, relative motion, files, change of frame rate.

A motion tensor has shape `(..., frames, 6 + D)`:

    0:3  rotation     yaw, pitch, roll of the head, radians
    3:5  translation  x, y of the head's origin, fractions of the square crop (x right, y down)
    5:6  scale        size of one canonical unit, fraction of the crop
    6:   dynamics     z_dyn of VASA-1 §3.1, unitless, about unit standard deviation

VASA-1's motion is X = [z_pose, z_dyn]; here z_pose = motion[..., :6] and z_dyn = motion[..., 6:].
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vasa_hf.checks import check_number, parse_json, shorten
from vasa_hf.files import staging

POSE_DIM = 6
MAX_WIDTH = 65_536  # of a part of z_dyn


@dataclass(frozen=True)
class MotionSpec:
    """Names and widths of the channels of a motion tensor.

    Args:
        dynamics (`dict[str, int]`, defaults to one part `dynamics` of width 512):
            Name and width of each part of z_dyn, in order.
    """

    dynamics: dict[str, int] = field(default_factory=lambda: {"dynamics": 512})

    def __post_init__(self) -> None:
        taken = {"rotation", "translation", "scale"}
        if not isinstance(self.dynamics, dict) or not self.dynamics or taken & self.dynamics.keys():
            raise ValueError(
                "`dynamics` must map names other than rotation, translation and scale to widths, "
                f"got {shorten(self.dynamics)}."
            )
        for width in self.dynamics.values():
            check_number("dynamics", width, 1, MAX_WIDTH, whole=True)

    @property
    def dynamics_dim(self) -> int:
        """Width of z_dyn."""
        return sum(self.dynamics.values())

    @property
    def dim(self) -> int:
        """Width of the whole motion vector."""
        return POSE_DIM + self.dynamics_dim

    @property
    def slices(self) -> dict[str, slice]:
        """Channel slice of each part, in order."""
        slices = {"rotation": slice(0, 3), "translation": slice(3, 5), "scale": slice(5, 6)}
        start = POSE_DIM
        for name, width in self.dynamics.items():
            slices[name] = slice(start, start + width)
            start += width
        return slices

    @property
    def units(self) -> dict[str, str]:
        """Unit of each part."""
        units = {"rotation": "radians", "translation": "fractions of the crop", "scale": "fraction of the crop"}
        return {**units, **dict.fromkeys(self.dynamics, "unitless")}

    def pack(self, parts: dict[str, Tensor]) -> Tensor:
        """Join named parts `(..., width)` to one motion tensor `(..., dim)`."""
        if set(parts) != set(self.slices):
            raise ValueError(f"`parts` must have exactly the names {list(self.slices)}, got {list(parts)}.")
        for name, channels in self.slices.items():
            if parts[name].shape[-1] != channels.stop - channels.start:
                raise ValueError(
                    f"`parts` expects {channels.stop - channels.start} channels for {name!r}, "
                    f"got shape {tuple(parts[name].shape)}."
                )
        return torch.cat([parts[name] for name in self.slices], dim=-1)

    def unpack(self, motion: Tensor) -> dict[str, Tensor]:
        """Split a motion tensor `(..., dim)` into its named parts (views)."""
        self.check(motion)
        return {name: motion[..., channels] for name, channels in self.slices.items()}

    def check(self, motion: Tensor) -> None:
        """Raise `ValueError` unless `motion` has this specification's width."""
        if motion.ndim < 1 or motion.shape[-1] != self.dim:
            raise ValueError(f"`motion` must have {self.dim} channels last, got shape {tuple(motion.shape)}.")


def _expand_reference(motion: Tensor, reference: Tensor) -> Tensor:
    if reference.ndim == motion.ndim - 1:
        reference = reference.unsqueeze(-2)
    if reference.ndim != motion.ndim or reference.shape[-1] != motion.shape[-1] or reference.shape[-2] != 1:
        raise ValueError(
            f"`reference` must have shape (batch, channels) or (batch, 1, channels) for motion of shape "
            f"{tuple(motion.shape)}, got {tuple(reference.shape)}."
        )
    return reference


def to_relative(motion: Tensor, reference: Tensor) -> Tensor:
    """Express the pose relative to a reference frame, so that it does not depend on the person's place in the crop.

    # Not in the paper: VASA-1 does not say how poses are normalized between people.

    Args:
        motion (`torch.Tensor` of shape `(batch, frames, channels)`): Absolute motion.
        reference (`torch.Tensor` of shape `(batch, channels)` or `(batch, 1, channels)`): Motion of the reference.

    Returns:
        `torch.Tensor` of the shape of `motion`: differences of the angles in radians, of the translation in canonical
        units of the reference, natural logarithm of the ratio of scales; dynamics unchanged.
    """
    reference = _expand_reference(motion, reference)
    rotation = motion[..., 0:3] - reference[..., 0:3]
    translation = (motion[..., 3:5] - reference[..., 3:5]) / reference[..., 5:6]
    log_scale = torch.log(motion[..., 5:6] / reference[..., 5:6])
    return torch.cat([rotation, translation, log_scale, motion[..., POSE_DIM:]], dim=-1)


def from_relative(relative: Tensor, reference: Tensor) -> Tensor:
    """Undo `to_relative`, with the same or another person's reference."""
    reference = _expand_reference(relative, reference)
    rotation = relative[..., 0:3] + reference[..., 0:3]
    translation = relative[..., 3:5] * reference[..., 5:6] + reference[..., 3:5]
    scale = torch.exp(relative[..., 5:6]) * reference[..., 5:6]
    return torch.cat([rotation, translation, scale, relative[..., POSE_DIM:]], dim=-1)


def resample_motion(
    motion: Tensor, from_fps: Fraction | float, to_fps: Fraction | float, num_frames: int | None = None
) -> Tensor:
    """Change the frame rate by linear interpolation in time.

    Args:
        motion (`torch.Tensor` of shape `(..., frames, channels)`): Frame `i` is at `i / from_fps` seconds.
        from_fps (`float` or `fractions.Fraction`): Frame rate of `motion`.
        to_fps (`float` or `fractions.Fraction`): Frame rate wanted.
        num_frames (`int`, *optional*, defaults to the same duration, rounded):
            Number of frames wanted. Beyond the last frame the motion holds still.

    Returns:
        `torch.Tensor` of shape `(..., num_frames, channels)`.
    """
    if from_fps <= 0 or to_fps <= 0:
        raise ValueError(f"`from_fps` and `to_fps` must be positive, got {from_fps} and {to_fps}.")
    length = motion.shape[-2]
    if num_frames is None:
        num_frames = max(1, round(length * to_fps / from_fps))
    if from_fps == to_fps and num_frames == length:
        return motion
    ratio = float(from_fps / to_fps)
    place = (torch.arange(num_frames, device=motion.device, dtype=torch.float64) * ratio).clamp(max=length - 1)
    left = place.floor().long()
    right = (left + 1).clamp(max=length - 1)
    weight = (place - left).to(motion.dtype).unsqueeze(-1)
    return torch.lerp(motion.index_select(-2, left), motion.index_select(-2, right), weight)


def save_motion(
    path: str | os.PathLike,
    motion: Tensor,
    spec: MotionSpec,
    fps: Fraction | float,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a motion as safetensors: tensor `motion`, the rest in the header.

    Args:
        path (`str` or `os.PathLike`): File to write; appears whole or not at all.
        motion (`torch.Tensor` of shape `(frames, channels)` or `(batch, frames, channels)`): Absolute motion.
        spec (`MotionSpec`): Names of the channels.
        fps (`float` or `fractions.Fraction`): Frame rate.
        metadata (`dict[str, str]`, *optional*): More entries for the header, such as the seed.
    """
    spec.check(motion)
    header = {
        **(metadata or {}),
        "format": "vasa_hf.motion",
        "fps": str(fps),
        "dynamics": json.dumps(spec.dynamics),
    }
    with staging(path) as folder:
        # Not `save_file`: its files are readable by their owner alone.
        (folder / Path(path).name).write_bytes(save({"motion": motion.detach().float().cpu().contiguous()}, header))


def load_motion(path: str | os.PathLike) -> tuple[Tensor, MotionSpec, Fraction, dict[str, str]]:
    """Read what `save_motion` wrote.

    Returns:
        `tuple`: motion (float32), its `MotionSpec`, frames per second and the other metadata.

    Raises:
        ValueError: If the file is no motion file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            if header.pop("format", None) != "vasa_hf.motion" or "motion" not in file.keys():
                raise ValueError(f"`path` must be a motion file of vasa_hf, but {str(path)!r} holds something else.")
            motion = file.get_tensor("motion")
    except SafetensorError as error:
        raise ValueError(f"`path` must be a safetensors file, but {str(path)!r} cannot be read: {error}") from error
    if missing := {"dynamics", "fps"} - header.keys():
        raise ValueError(f"`path` must be a motion file with {sorted(missing)[0]!r} in its header, got {str(path)!r}.")
    spec = MotionSpec(parse_json(header.pop("dynamics"), "dynamics"))
    spec.check(motion)
    if motion.ndim < 2 or motion.numel() == 0 or not motion.is_floating_point() or not motion.isfinite().all():
        raise ValueError(f"`path` must hold finite motion of one frame or more, {str(path)!r} does not.")
    return motion, spec, _parse_rate(header.pop("fps")), header


def _parse_rate(text: str) -> Fraction:
    """Parse a header's frame rate, a number or a ratio; `1e999999999` would take forever without the pattern."""
    rate = Fraction(text) if re.fullmatch(r"\d{1,9}(\.\d{0,20}|/0*[1-9]\d{0,8})?", text) else Fraction(0)
    if not 1 <= rate <= 1000:
        raise ValueError(f"`fps` of a motion file must be a number in [1, 1000], got {shorten(text)}.")
    return rate

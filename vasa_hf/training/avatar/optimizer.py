"""The optimiser of an avatar: a learning rate for each kind of parameter, and a state that is saved without pickles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vasa_hf.models.gaussian_avatar_vasa3d import WIDTHS, Vasa3DGaussianAvatar
from vasa_hf.training.avatar.presets import AvatarPreset


def make_optimizer(avatar: Vasa3DGaussianAvatar, preset: AvatarPreset) -> torch.optim.Optimizer:
    """Adam with a group for each kind of parameter; epsilon as in 3DGS, whose gradients are small."""
    groups = [(name, [getattr(avatar, name)]) for name in (*WIDTHS, "shape")]
    groups.append(("head", [*avatar.motion_to_expression.parameters(), *avatar.motion_to_pose.parameters()]))
    groups.append(("deform", [*avatar.deform_face.parameters(), *avatar.deform_neck.parameters()]))
    rates = [getattr(preset, f"lr_{name}") for name, _ in groups]
    return torch.optim.Adam(
        [
            {"params": parameters, "lr": rate, "base_lr": rate}
            for (_, parameters), rate in zip(groups, rates, strict=True)
        ],
        eps=1e-15,
    )


def optimizer_tensors(
    prefix: str, optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]
) -> dict[str, Tensor]:
    """State of an optimiser as named tensors.

    Args:
        prefix (`str`): Before each name.
        optimizer (`torch.optim.Optimizer`): Optimizer to read the state from.
        names (mapping of `torch.nn.Parameter` to `str`): Of its parameters.
    """
    return {
        f"{prefix}.{names[parameter]}#{key}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer(
    prefix: str, optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """Take over what `optimizer_tensors` gave.

    Args:
        prefix (`str`): Before each name.
        optimizer (`torch.optim.Optimizer`): Changed in place.
        parameters (mapping of `str` to `torch.nn.Parameter`): Its parameters by name.
        tensors (mapping of `str` to `torch.Tensor`): These, and others that are left alone.
    """
    for name, value in tensors.items():
        if name.startswith(f"{prefix}.") and "#" in name:
            parameter, key = name.removeprefix(f"{prefix}.").split("#")
            # Adam counts its steps on the CPU.
            optimizer.state[parameters[parameter]][key] = value.cpu() if key == "step" else value

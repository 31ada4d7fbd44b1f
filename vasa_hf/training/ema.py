"""Exponential moving average of a module's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """Slow copy of a module's parameters, kept in float32; buffers are taken as they are.

    # Not in the paper: VASA-1 names no averaging. It is standard for diffusion models and for warping networks.

    Args:
        module (`torch.nn.Module`): Module to average the weights of.
        decay (`float`, defaults to 0.999): Weight of the old average in one update.
    """

    def __init__(self, module: nn.Module, decay: float = 0.999):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"`decay` must lie in [0, 1), got {decay}.")
        self.decay = decay
        self.updates = 0
        self.shadow: dict[str, Tensor] = {
            name: value.detach().clone().float() for name, value in module.named_parameters()
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take one step towards the module's present weights."""
        self.updates += 1
        # The first updates forget fast, else the average would carry the random initial weights for long.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in module.named_parameters():
            self.shadow[name].lerp_(value.detach().float(), 1.0 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the averaged weights into `module`."""
        for name, value in module.named_parameters():
            value.copy_(self.shadow[name])

    @contextmanager
    def apply(self, module: nn.Module) -> Iterator[nn.Module]:
        """Let `module` carry the averaged weights inside a `with` block, then give it its own back."""
        own = {name: value.detach().clone() for name, value in module.named_parameters()}
        self.copy_to(module)
        try:
            yield module
        finally:
            with torch.no_grad():
                for name, value in module.named_parameters():
                    value.copy_(own[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average and the number of updates as one flat dict of tensors (fit for safetensors)."""
        return {**self.shadow, "ema.updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ValueError: If names differ from those of the followed module.
        """
        names = set(state) - {"ema.updates"}
        if names != set(self.shadow):
            odd = sorted(names ^ set(self.shadow))[:4]
            raise ValueError(f"`state` must hold the followed module's parameters, but these differ: {odd}.")
        self.updates = int(state["ema.updates"])
        for name, value in self.shadow.items():
            value.copy_(state[name])

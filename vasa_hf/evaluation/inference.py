"""A faster face detector: the same network, equal results up to rounding."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from vasa_hf import FaceAnalyzer


class PointwiseConv(nn.Module):
    """A 1x1 convolution as a matrix product: torch's convolution is slow with channels last.

    Args:
        convolution (`torch.nn.Conv2d`): With kernel size, stride and groups of 1.
        channels_last (`bool`): Memory format of the result.
    """

    def __init__(self, convolution: nn.Conv2d, channels_last: bool):
        super().__init__()
        self.weight, self.bias = nn.Parameter(convolution.weight.detach().flatten(1)), cast(Tensor, convolution.bias)
        self.channels_last = channels_last

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, Cin, H, W] -> [B, Cout, H, W]."""
        if self.channels_last:
            return F.linear(hidden_states.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)
        pixels = hidden_states.flatten(2)
        weight = self.weight.expand(len(pixels), -1, -1)
        return torch.baddbmm(self.bias[:, None], weight, pixels).unflatten(2, hidden_states.shape[2:])


def optimize_detector(analyzer: FaceAnalyzer) -> FaceAnalyzer:
    """Return a copy of a face analyzer that is a fifth faster on a CPU.

    Normalisations are folded into convolutions; the memory format is channels last, except for the heat maps.

    Args:
        analyzer (`FaceAnalyzer`): In evaluation mode.
    """
    quick = copy.deepcopy(analyzer)
    for name in ("detector", "landmarker"):
        network: Any = fuse(getattr(quick, name))
        for path, layer in list(network.named_modules()):
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
                network.set_submodule(path, PointwiseConv(layer, channels_last=path != "heat"))
        setattr(quick, name, network.to(memory_format=torch.channels_last))
    return quick

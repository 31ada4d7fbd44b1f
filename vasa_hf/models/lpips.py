"""LPIPS (Zhang et al. 2018) with the public weights, on AlexNet or VGG-16 written out here: torchvision is not needed.

The weights are not part of this package; `vasa-hf convert lpips` puts the public files of backbone and linear layers
into one safetensors file.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

FILE_NAME = "lpips.safetensors"
# Convolutions (in, out, kernel, stride, padding), "R" for ReLU, max pooling (kernel, stride); layers are numbered as in
# torchvision. Then the layers whose output is compared.
BACKBONES = {
    "alex": (
        [(3, 64, 11, 4, 2), "R", (3, 2), (64, 192, 5, 1, 2), "R", (3, 2), (192, 384, 3, 1, 1), "R"]
        + [(384, 256, 3, 1, 1), "R", (256, 256, 3, 1, 1), "R"],
        (1, 4, 7, 9, 11),
    ),
    "vgg": (
        [(3, 64, 3, 1, 1), "R", (64, 64, 3, 1, 1), "R", (2, 2), (64, 128, 3, 1, 1), "R", (128, 128, 3, 1, 1), "R"]
        + [(2, 2), (128, 256, 3, 1, 1), "R", (256, 256, 3, 1, 1), "R", (256, 256, 3, 1, 1), "R", (2, 2)]
        + [(256, 512, 3, 1, 1), "R", (512, 512, 3, 1, 1), "R", (512, 512, 3, 1, 1), "R", (2, 2)]
        + [(512, 512, 3, 1, 1), "R", (512, 512, 3, 1, 1), "R", (512, 512, 3, 1, 1), "R"],
        (3, 8, 15, 22, 29),
    ),
}


class Lpips(nn.Module):
    """Weighted distance of unit-length features of five layers.

    Args:
        backbone (`str`): "alex" or "vgg".
    """

    def __init__(self, backbone: str = "alex"):
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"`backbone` must be one of {list(BACKBONES)}, got {backbone!r}.")
        plan, self.taps = BACKBONES[backbone]
        layers: list[nn.Module] = []
        for entry in plan:
            if entry == "R":
                layers.append(nn.ReLU())
            else:
                layers.append(nn.MaxPool2d(*entry) if len(entry) == 2 else nn.Conv2d(*entry))
        self.features = nn.Sequential(*layers)
        widths = [plan[tap - 1][1] for tap in self.taps]
        self.weights = nn.ParameterList(nn.Parameter(torch.full((width,), 1 / width)) for width in widths)
        # ImageNet's mean and spread, for colours in [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Lpips:
        """Load converted weights; which backbone they are of is seen from their number.

        Args:
            path (`str` or `os.PathLike`): The file, or the folder that holds `lpips.safetensors`.

        Raises:
            ValueError: If there is no such file or it holds something else.
        """
        file = Path(path) / FILE_NAME if os.path.isdir(path) else Path(path)
        if not file.is_file():
            raise ValueError(f"`lpips` must be a folder with {FILE_NAME} (vasa_hf.convert.lpips), got {str(path)!r}.")
        try:
            state = load_file(file)
        except SafetensorError as error:
            raise ValueError(f"`lpips` must be a safetensors file, {str(file)!r} is none: {error}") from error
        network = cls("vgg" if "features.28.weight" in state else "alex")
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"`lpips` must hold the tensors of LPIPS, {str(file)!r} does not: {error}") from error
        return network.eval().requires_grad_(False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Features of the five layers, unit length at each place; `images` in [0, 1]."""
        hidden_states, kept = (images * 2 - 1 - self.shift) / self.scale, []
        for index, layer in enumerate(self.features):
            hidden_states = layer(hidden_states)
            if index in self.taps:
                kept.append(hidden_states / (hidden_states.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return kept

    @torch.no_grad()
    def forward(self, images: Tensor, truth: Tensor) -> Tensor:
        """Distance, `(frames,)`.

        Args:
            images (`torch.Tensor` of shape `(frames, 3, height, width)`): RGB in [0, 1].
            truth (`torch.Tensor` of shape `(frames, 3, height, width)`): RGB in [0, 1].
        """
        device = self.shift.device
        pairs = zip(self.maps(images.to(device)), self.maps(truth.to(device)), self.weights, strict=True)
        return sum(((a - b).square() * w.view(1, -1, 1, 1)).sum(1).mean((1, 2)) for a, b, w in pairs).cpu()

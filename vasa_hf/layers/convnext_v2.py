"""ConvNeXt V2 (arXiv 2301.00808) with several heads: the tensor names are those of the authors' code.

transformers has the same network with other names; LivePortrait's weights use these.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of `(batch, channels, height, width)`."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Same shape."""
        channels_last = hidden_states.permute(0, 2, 3, 1)
        return F.layer_norm(channels_last, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    """Scales each channel by its energy over the image, relative to the mean energy (Eq. 1-3).

    Args:
        channels (`int`): Channels, last.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, hidden_states: Tensor) -> Tensor:  # [B, H, W, C]
        """Same shape."""
        energy = torch.linalg.vector_norm(hidden_states, dim=(1, 2), keepdim=True)
        relative = energy / (energy.mean(-1, keepdim=True) + 1e-6)
        return hidden_states * (1 + self.gamma * relative) + self.beta


class ConvNextV2Block(nn.Module):
    """Depthwise 7x7, then a pointwise network of four times the width, with a skip.

    Args:
        channels (`int`): Channels in and out.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.grn = GlobalResponseNorm(4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Same shape, `(batch, channels, height, width)`."""
        x = self.norm(self.dwconv(hidden_states).permute(0, 2, 3, 1))
        x = self.pwconv2(self.grn(F.gelu(self.pwconv1(x))))
        return hidden_states + x.permute(0, 3, 1, 2)


class ConvNextV2(nn.Module):
    """Image to vectors; stride 32.

    Args:
        in_channels (`int`): Channels of the image.
        depths (`tuple[int, ...]`): Blocks of each stage.
        dims (`tuple[int, ...]`): Width of each stage.
        heads (`dict[str, int]`): Name to length of each vector; the layer is called `fc_<name>`.
    """

    def __init__(self, in_channels: int, depths: tuple[int, ...], dims: tuple[int, ...], heads: dict[str, int]):
        super().__init__()
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        width = in_channels
        for index, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            if index == 0:
                down = [nn.Conv2d(width, dim, 4, 4), LayerNorm2d(dim, eps=1e-6)]
            else:
                down = [LayerNorm2d(width, eps=1e-6), nn.Conv2d(width, dim, 2, 2)]
            self.downsample_layers.append(nn.Sequential(*down))
            self.stages.append(nn.Sequential(*(ConvNextV2Block(dim) for _ in range(depth))))
            width = dim
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head_names = tuple(heads)
        for name, length in heads.items():
            setattr(self, f"fc_{name}", nn.Linear(width, length))
        self.apply(self._initialise)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def features(self, image: Tensor) -> Tensor:
        """Compute the input of the heads from images `(batch, in_channels, height, width)`: `(batch, dims[-1])`."""
        x = image
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        return self.norm(x.mean((2, 3)))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Encode images.

        Args:
            image (`torch.Tensor` of shape `(batch, in_channels, height, width)`): Sides divisible by 32.

        Returns:
            `dict[str, torch.Tensor]`: Vectors `(batch, length)` by the heads' names.
        """
        x = self.features(image)
        return {name: getattr(self, f"fc_{name}")(x) for name in self.head_names}

"""Residual convolution blocks in two and three dimensions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv(dims: int, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    layer = nn.Conv2d if dims == 2 else nn.Conv3d
    return layer(in_channels, out_channels, kernel, stride, kernel // 2)


class ResBlock(nn.Module):
    """Pre-activation residual block, optionally modulated by a code.

    Args:
        dims (`int`): 2 for images, 3 for volumes.
        in_channels (`int`): Channels in.
        out_channels (`int`): Channels out; a 1x1 convolution joins the skip when it differs.
        code_dim (`int`, *optional*): Width of a code that scales and shifts the features between the convolutions.
        norm (`bool`): Group normalisation before each convolution. Off for the large feature maps of small presets,
            where it takes longer than the convolutions.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, code_dim: int | None = None, norm: bool = True):
        super().__init__()
        group = lambda channels: nn.GroupNorm(min(8, channels), channels) if norm else nn.Identity()  # noqa: E731
        self.norm1, self.norm2 = group(in_channels), group(out_channels)
        self.conv1 = _conv(dims, in_channels, out_channels)
        self.conv2 = _conv(dims, out_channels, out_channels)
        self.skip = _conv(dims, in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.modulation = nn.Linear(code_dim, 2 * out_channels) if code_dim else None
        # A near-identity initialisation keeps deep stacks without normalisation stable.
        nn.init.normal_(self.conv2.weight, std=1e-3)
        nn.init.zeros_(self.conv2.bias)
        if self.modulation is not None:
            nn.init.normal_(self.modulation.weight, std=0.02)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, hidden_states: Tensor, code: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch, in_channels, ...)`): Features.
            code (`torch.Tensor` of shape `(batch, code_dim)`, *optional*): Modulating code.

        Returns:
            `torch.Tensor` of shape `(batch, out_channels, ...)`.
        """
        x = self.conv1(F.leaky_relu(self.norm1(hidden_states), 0.2))
        x = self.norm2(x)
        if self.modulation is not None:
            scale, shift = self.modulation(code).chunk(2, 1)
            shape = (*scale.shape, *[1] * (x.ndim - 2))
            x = x * (1 + scale.view(shape)) + shift.view(shape)
        return self.skip(hidden_states) + self.conv2(F.leaky_relu(x, 0.2))


class UpBlock2d(nn.Module):
    """Double the resolution by a convolution and pixel shuffle.

    Args:
        in_channels (`int`): Channels in.
        out_channels (`int`): Channels out.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1)
        # The four sub-pixels start equal, without a checkerboard.
        with torch.no_grad():
            self.conv.weight.copy_(self.conv.weight[::4].repeat_interleave(4, 0))
            self.conv.bias.zero_()

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map `(batch, in_channels, height, width)` to `(batch, out_channels, 2 * height, 2 * width)`."""
        return F.pixel_shuffle(self.conv(F.leaky_relu(hidden_states, 0.2)), 2)


class ImageEncoder(nn.Module):
    """Strided convolutions and global pooling from an image to a vector: the identity encoder.

    Args:
        image_size (`int`): Side of the network's input; larger images are reduced by averaging.
        channels (`list[int]`): Width after each halving.
        out_dim (`int`): Length of the vector.
        blocks (`int`): Residual blocks at each resolution.
    """

    def __init__(self, image_size: int, channels: list[int], out_dim: int, blocks: int = 1):
        super().__init__()
        self.image_size = image_size
        layers: list[nn.Module] = []
        width = 3
        for index, channel in enumerate(channels):
            layers.append(_conv(2, width, channel, 5 if index == 0 else 3, stride=2))
            layers += [ResBlock(2, channel, channel, norm=False) for _ in range(blocks if index else 0)]
            width = channel
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(width, 256), nn.LeakyReLU(0.2), nn.Linear(256, out_dim))

    def forward(self, image: Tensor) -> Tensor:
        """Encode images.

        Args:
            image (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [-1, 1].

        Returns:
            `torch.Tensor` of shape `(batch, out_dim)`.
        """
        if image.shape[-1] != self.image_size:
            image = F.interpolate(image, self.image_size, mode="area")
        return self.head(F.leaky_relu(self.trunk(image), 0.2).mean((2, 3)))

"""Residual backbone with a top-down pyramid, and features at predicted points: for networks that measure faces."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv(in_channels: int, out_channels: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out_channels)
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip; the first may halve the resolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = _conv(in_channels, out_channels, stride)
        self.conv2 = _conv(out_channels, out_channels)
        changes = stride != 1 or in_channels != out_channels
        self.skip = _conv(in_channels, out_channels, kernel=1) if changes else None
        self.pool = nn.AvgPool2d(stride) if stride != 1 else nn.Identity()

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, Cin, H, W] -> [B, Cout, H / stride, W / stride]."""
        skip = hidden_states if self.skip is None else self.skip(self.pool(hidden_states))
        hidden_states = F.relu(self.conv1(hidden_states))
        return F.relu(self.conv2(hidden_states) + skip)


class PyramidBackbone(nn.Module):
    """Residual stages at strides 4, 8, 16, 32 and a top-down pyramid that ends at stride `2 ** (2 + finest)`."""

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], pyramid_channels: int, finest: int):
        super().__init__()
        self.finest = finest
        self.stem = _conv(3, widths[0], stride=2)
        stages = []
        for index, depth in enumerate(depths):
            channels_in, channels = widths[index], widths[index + 1]
            blocks = [ResidualBlock(channels_in, channels, stride=2)]
            blocks += [ResidualBlock(channels, channels) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.lateral = nn.ModuleList(nn.Conv2d(width, pyramid_channels, 1) for width in widths[1 + finest :])
        self.smooth = _conv(pyramid_channels, pyramid_channels)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> finest pyramid level [B, P, H / s, W / s], deepest stage [B, C, H / 32, W / 32]."""
        hidden_states = F.relu(self.stem(image))
        levels = []
        for stage in self.stages:
            hidden_states = stage(hidden_states)
            levels.append(hidden_states)
        top_down = None
        for lateral, level in zip(reversed(self.lateral), reversed(levels[self.finest :]), strict=True):
            side = lateral(level)
            top_down = side if top_down is None else side + F.interpolate(top_down, size=side.shape[-2:])
        return F.relu(self.smooth(top_down)), hidden_states


def expected_position(heat: Tensor) -> Tensor:
    """Soft argmax of heat maps.

    Args:
        heat (`torch.Tensor` of shape `(batch, points, height, width)`): Logits.

    Returns:
        `torch.Tensor` of shape `(batch, points, 2)`: x, y as fractions of the image, float32.
    """
    return mean_position(heat_weights(heat))


def heat_weights(heat: Tensor) -> Tensor:
    """Convert heat maps of logits to weights, float32, with sum 1 over each map; same shape."""
    return heat.float().flatten(2).softmax(dim=-1).unflatten(2, heat.shape[-2:])


def mean_position(weights: Tensor) -> Tensor:
    """Centre of mass of weights `(batch, points, height, width)`: `(batch, points, 2)`, see `expected_position`."""
    height, width = weights.shape[-2:]
    x = (torch.arange(width, device=weights.device, dtype=torch.float32) + 0.5) / width
    y = (torch.arange(height, device=weights.device, dtype=torch.float32) + 0.5) / height
    return torch.stack([(weights.sum(2) * x).sum(-1), (weights.sum(3) * y).sum(-1)], dim=-1)


class PointEncoder(nn.Module):
    """Maps an image to a vector by learned points and the features at these points.

    The backbone and heat maps have the shape of the face analyzer's landmarker, so they can start from its weights.

    Args:
        image_size (`int`): Side of the network's input.
        zoom (`float`): Share of the image's side that is used, around the centre.
        widths (`list[int]`): Backbone widths, stem and four stages.
        depths (`list[int]`): Residual blocks of the stages.
        pyramid_channels (`int`): Channels of the pyramid.
        points (`int`): Number of points.
        out_dim (`int`, *optional*): Length of the vector; without it only `features` works.
    """

    HIDDEN = 256

    def __init__(
        self,
        image_size: int,
        zoom: float,
        widths: list[int],
        depths: list[int],
        pyramid_channels: int,
        points: int,
        out_dim: int | None = None,
    ):
        super().__init__()
        self.image_size, self.zoom = image_size, zoom
        self.learns_statistics = False
        self.backbone = PyramidBackbone(widths, depths, pyramid_channels, finest=0)
        self.heat = nn.Conv2d(pyramid_channels, points, 1)
        self.reduce = nn.Conv1d(pyramid_channels, 16, 1)
        self.head = nn.Sequential(nn.Linear(points * 18 + widths[-1], self.HIDDEN), nn.LeakyReLU(0.2))
        if out_dim is not None:
            self.head.append(nn.Linear(self.HIDDEN, out_dim))
        self.train()

    def train(self, mode: bool = True) -> "PointEncoder":
        """Keep the landmarker's batch statistics: batches of one video are not representative.

        With `learns_statistics`, for weights that no landmarker has trained, they are learned as usual.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not self.learns_statistics:
                module.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Map images `(batch, 3, height, width)` in [-1, 1] to `(batch, out_dim)`."""
        return self.head[2](self.features(image)[0])

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features `(batch, 256)`, and points relative to the centre, in tenths of the image `(batch, 2 n)`."""
        image = self._cut_centre(image)
        features, deepest = self.backbone(image)
        points = expected_position(self.heat(features))
        # The positions must not follow the gradient of the features sampled there: detached.
        grid = (points.detach() * 2 - 1)[:, :, None]
        seen = F.grid_sample(features.float(), grid, align_corners=False)[..., 0].to(features.dtype)
        seen = self.reduce(seen).flatten(1)
        # Relative to the centre in tenths of the image: about unit scale for the head.
        place = (points - 0.5).flatten(1).to(seen.dtype) * 10
        return self.head[:2](torch.cat([place, seen, deepest.mean((2, 3))], 1)), place

    def _cut_centre(self, image: Tensor) -> Tensor:
        """Cut out the centre and resize it to `image_size`, antialiased if it shrinks."""
        side = image.shape[-1]
        margin = round(side * (1 - self.zoom) / 2)
        image = image[..., margin : side - margin, margin : side - margin]
        if image.shape[-1] == self.image_size:
            return image
        antialias = image.shape[-1] > self.image_size and image.dtype == torch.float32
        return F.interpolate(image, self.image_size, mode="bilinear", antialias=antialias, align_corners=False)


class PointDetector(nn.Module):
    """`PointEncoder` with several heads: an alternative to `ConvNextV2` that learns the parts of a face sooner.

    Args:
        heads (`dict[str, int]`): Name to length of each vector; the layer is called `fc_<name>`.
        points (`int`): Number of points.
        **encoder: Other arguments of `PointEncoder`.
    """

    def __init__(self, heads: dict[str, int], points: int, **encoder: Any):
        super().__init__()
        self.encoder = PointEncoder(**encoder, points=points)
        self.head_names = tuple(heads)
        for name, length in heads.items():
            setattr(self, f"fc_{name}", nn.Linear(PointEncoder.HIDDEN + 2 * points, length))

    def features(self, image: Tensor) -> Tensor:
        """Compute the heads' input from images `(batch, 3, height, width)` in [0, 1]: `(batch, 256 + 2 points)`."""
        return torch.cat(self.encoder.features(2 * image - 1), 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map images `(batch, 3, height, width)` in [0, 1] to vectors `(batch, length)` by the heads' names."""
        x = self.features(image)
        return {name: getattr(self, f"fc_{name}")(x) for name in self.head_names}

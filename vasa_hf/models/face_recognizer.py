"""A small face recogniser: the identity of a face, and feature maps for the perceptual loss.

Not in the paper: VASA-1 §3.1 takes its identity features (`l_cross_id`) and its base method's perceptual features from
pretrained networks. `pretrained_features.py` loads those; this one was trained for this project, is small enough to be
embedded, and works offline. All have the same two methods:

```
image [-1, 1] -> feature_maps -> [f_1, f_2, ...]        perceptual_loss(network.feature_maps, ...)
              -> forward      -> identity, unit length  cross_identity_loss(network, ...)
```
"""

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


def unit_channels(features: Tensor) -> Tensor:
    """Divide a feature map by the root mean square over its channels at each place, so that all levels weigh alike.

    Args:
        features (`torch.Tensor` of shape `(batch, channels, height, width)`): Feature map.
    """
    power = features.float().square().mean(1, keepdim=True)
    return (features.float() * (power + 1e-6).rsqrt()).to(features.dtype)


def _check_image(image: Tensor) -> None:
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"`image` must have shape (batch, 3, height, width), got {tuple(image.shape)}.")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a skip; the first may halve the resolution.

    Args:
        in_channels (`int`): Channels in.
        out_channels (`int`): Channels out.
        stride (`int`): 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.pool = nn.AvgPool2d(stride) if stride != 1 else nn.Identity()
        changes = stride != 1 or in_channels != out_channels
        self.skip = nn.Conv2d(in_channels, out_channels, 1, bias=False) if changes else nn.Identity()
        nn.init.constant_(self.norm2.weight, 0.5)  # a quieter start for the sum with the skip

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, Cin, H, W] -> [B, Cout, H / stride, W / stride]."""
        x = F.leaky_relu(self.norm1(self.conv1(hidden_states)), 0.1)
        return F.leaky_relu(self.norm2(self.conv2(x)) + self.skip(self.pool(hidden_states)), 0.1)


class FaceRecognizer(ModelMixin, ConfigMixin):
    """Identity embedding and feature maps of standard face crops.

    Trained with a margin softmax (`vasa_hf.training.recipes.face_recognizer`). The last map is weighed place by place
    (a depthwise convolution over all of it) instead of averaged: in a face crop the middle says who it is.

    Args:
        image_size (`int`, defaults to 128): Side of the input image; other sizes are averaged to it.
        widths (`tuple[int, ...]`): Channels of the stem (stride 2) and of each stage after it (stride 2 more).
        depths (`tuple[int, ...]`): Residual blocks of each stage.
        embedding_dim (`int`, defaults to 128): Length of the identity embedding.
        num_feature_maps (`int`, defaults to 4): How many maps `feature_maps` returns, from the stem on.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 128,
        widths: tuple[int, ...] = (16, 32, 64, 128, 192),
        depths: tuple[int, ...] = (1, 1, 2, 1),
        embedding_dim: int = 128,
        num_feature_maps: int = 4,
    ):
        super().__init__()
        if len(widths) != len(depths) + 1:
            raise ValueError(f"`depths` must have one entry less than `widths`, got {depths} and {widths}.")
        if image_size % 2 ** len(widths):
            raise ValueError(f"`image_size` must be a multiple of {2 ** len(widths)}, got {image_size}.")
        if not 1 <= num_feature_maps <= len(widths):
            raise ValueError(f"`num_feature_maps` must lie in 1..{len(widths)}, got {num_feature_maps}.")
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]))
        stages = []
        for channels_in, channels, depth in zip(widths[:-1], widths[1:], depths, strict=True):
            blocks = [ResidualBlock(channels_in, channels, stride=2)]
            blocks += [ResidualBlock(channels, channels) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        cells = image_size // 2 ** len(widths)
        self.pool = nn.Conv2d(widths[-1], widths[-1], cells, groups=widths[-1], bias=False)
        self.pool_norm = nn.BatchNorm1d(widths[-1])
        self.head = nn.Linear(widths[-1], embedding_dim)

    def _maps(self, image: Tensor, count: int) -> list[Tensor]:
        _check_image(image)
        if tuple(image.shape[-2:]) != (self.config.image_size,) * 2:
            image = F.interpolate(image, self.config.image_size, mode="area")
        maps = [F.leaky_relu(self.stem(image), 0.1)]
        for stage in self.stages[: count - 1]:
            maps.append(stage(maps[-1]))
        return maps

    def feature_maps(self, image: Tensor) -> list[Tensor]:
        """Feature maps from fine to coarse, each divided by its root mean square over the channels.

        Args:
            image (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [-1, 1], a standard face crop.

        Returns:
            `list[torch.Tensor]`: For 128 x 128: sides 64, 32, 16 and 8.
        """
        return [unit_channels(features) for features in self._maps(image, self.config.num_feature_maps)]

    def forward(self, image: Tensor) -> Tensor:
        """Identity embedding.

        Args:
            image (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [-1, 1], a standard face crop.

        Returns:
            `torch.Tensor` of shape `(batch, embedding_dim)`, unit length: compare by dot product.
        """
        pooled = self.pool(self._maps(image, len(self.config.widths))[-1])[:, :, 0, 0]
        return F.normalize(self.head(self.pool_norm(pooled)), dim=1)

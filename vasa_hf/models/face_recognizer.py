"""A small face recogniser: the identity of a face, and feature maps for the perceptual loss.

Not in the paper: VASA-1 §3.1 takes its identity features (`l_cross_id`) and its base method's perceptual features from
pretrained networks. Online, `pretrained_features` loads such a network from the Hub; this one was trained for this
project, is small enough to be embedded, and works offline. Both have the same two methods:

```
image [-1, 1] -> feature_maps -> [f_1, f_2, ...]        perceptual_loss(network.feature_maps, ...)
              -> forward      -> identity, unit length  cross_identity_loss(network, ...)
```
"""

import os

import torch
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


class PretrainedFeatures(nn.Module):
    """A transformers vision backbone with the interface of `FaceRecognizer`. Frozen; gradients reach the image.

    Args:
        backbone (`transformers.PreTrainedModel`): Vision model that returns hidden states.
        mean (`tuple[float, ...]`): Mean of RGB in [0, 1] that the backbone expects.
        std (`tuple[float, ...]`): Standard deviation of RGB in [0, 1] that the backbone expects.
        image_size (`int`): Side of the backbone's input image.
        num_feature_maps (`int`, defaults to 4): How many hidden states are used, spread evenly up to the last.
    """

    def __init__(
        self,
        backbone: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        image_size: int,
        num_feature_maps: int = 4,
    ):
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.image_size, self.num_feature_maps = image_size, num_feature_maps
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "PretrainedFeatures":
        """Stay in evaluation mode: a loss network must not change, nor drop features at random."""
        return super().train(False)

    def _run(self, image: Tensor):
        _check_image(image)
        if tuple(image.shape[-2:]) != (self.image_size,) * 2:
            image = F.interpolate(image, (self.image_size,) * 2, mode="bilinear", antialias=True)
        pixels = (((image + 1) / 2 - self.mean) / self.std).to(next(self.backbone.parameters()).dtype)
        return self.backbone(pixels, output_hidden_states=True)

    def _square(self, hidden: Tensor) -> Tensor:
        """Tokens [B, extra + side², C] as a map [B, C, side, side]; maps stay as they are."""
        if hidden.ndim == 4:
            return hidden
        side = int(hidden.shape[1] ** 0.5)  # class and register tokens come first
        return hidden[:, -side * side :].mT.unflatten(2, (side, side))

    def _maps(self, output) -> list[Tensor]:
        states = getattr(output, "reshaped_hidden_states", None) or output.hidden_states
        last = len(states) - 1  # state 0 is the patch embedding or the stem
        count = max(1, min(self.num_feature_maps, last))
        return [self._square(states[round((index + 1) * last / count)]) for index in range(count)]

    def feature_maps(self, image: Tensor) -> list[Tensor]:
        """Feature maps, each divided by its root mean square over the channels.

        Args:
            image (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [-1, 1].
        """
        return [unit_channels(features) for features in self._maps(self._run(image))]

    def forward(self, image: Tensor) -> Tensor:
        """Unit-length vector `(batch, dim)`: the backbone's pooled output, or the mean of its last map.

        Args:
            image (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [-1, 1].
        """
        output = self._run(image)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            pooled = self._maps(output)[-1].mean((2, 3))
        return F.normalize(pooled.flatten(1).float(), dim=1)


def pretrained_features(
    name: str | os.PathLike, num_feature_maps: int = 4, local_files_only: bool = False
) -> FaceRecognizer | PretrainedFeatures:
    """Load a network for the perceptual and identity losses; frozen, in evaluation mode.

    Args:
        name (`str` or `os.PathLike`): Folder of a `FaceRecognizer`, or folder or Hub name of a transformers vision
            model with safetensors weights ("microsoft/resnet-50", "facebook/dinov2-small").
        num_feature_maps (`int`, defaults to 4): How many feature maps of a transformers model are used.
        local_files_only (`bool`, defaults to `False`): Use the cache alone, do not connect to the Hub.

    Raises:
        ValueError: If it cannot be loaded, or is not a vision model.
    """
    name = os.fspath(name)
    if os.path.isfile(os.path.join(name, "config.json")):
        config = FaceRecognizer.load_config(name)
        if config.get("_class_name") == "FaceRecognizer":
            return FaceRecognizer.from_pretrained(name, torch_dtype=torch.float32).eval().requires_grad_(False)

    from transformers import AutoModel
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        # Safetensors only: older checkpoints of other kinds would have to be unpickled.
        backbone = AutoModel.from_pretrained(name, local_files_only=local_files_only, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`name` must be a folder or the Hub name of a vision model with safetensors weights, got {name!r}, which "
            "could not be loaded. Without a network give a local folder, a model that is already in the cache, or the "
            f"embedded `face_recognizer`. Cause: {error}"
        ) from error
    backbone = getattr(backbone, "vision_model", backbone)  # CLIP and its kin
    if getattr(backbone, "main_input_name", None) != "pixel_values":
        raise ValueError(f"`name` must be a vision model, but {name!r} is a {type(backbone).__name__}.")
    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(name, local_files_only=local_files_only)
    except OSError:  # no preprocessor_config.json
        processor = {}
    size = processor.get("crop_size") or processor.get("size") or getattr(backbone.config, "image_size", None) or 224
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or 224
    return PretrainedFeatures(
        backbone,
        mean=processor.get("image_mean", (0.485, 0.456, 0.406)),
        std=processor.get("image_std", (0.229, 0.224, 0.225)),
        image_size=size[0] if isinstance(size, (list, tuple)) else size,
        num_feature_maps=num_feature_maps,
    )

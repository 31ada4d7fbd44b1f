"""LivePortrait's renderer: an image's appearance as a volume, its motion as keypoints, and an image from both.

```
source  [3, 256, 256]  -> F -> feature volume [32, 16, 64, 64] ------------.
source, driving        -> M -> keypoints, expression, pose -> transform    |
                                       x_s [21, 3]  x_d [21, 3]            v
                                           '-> stitching ->'---------> W: flow, warp [256, 64, 64] -> G -> [3, 512, 512]
```

Source: LivePortrait (arXiv 2407.03168) §3.1-3.3. The submodules of `LivePortraitRenderer` and the tensors below each of
them have the names and shapes of the public weights, so that conversion is renaming alone; G's spectral norm is folded
into the weights, because it only scales them once training is over.

# Not in the paper: all that only the weights tell, such as layer widths; sampling on a grid made for
`align_corners=True` with `align_corners=False`; and how an untrained one starts (`_initialise_heads`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional as F

from vasa_hf.geometry.keypoints import (
    NUM_KEYPOINTS,
    POSE_BINS,
    KeypointMotion,
    head_pose_degrees,
    transform_keypoints,
)
from vasa_hf.layers.convnext_v2 import ConvNextV2
from vasa_hf.layers.dense_motion import ConvBlock, DenseMotionNetwork
from vasa_hf.layers.pyramid import PointDetector
from vasa_hf.layers.spade import SpadeResBlock
from vasa_hf.models.backends.renderer_liveportrait import FastGenerator, FastWarping

# The official sizes are the defaults. The small one is for CPUs: no doublings in G, since their shortcuts pass through
# norms that lose brightness and colour; so it learns to copy what it sees within minutes. The tiny one is for tests.
SMALL_CONFIG = {
    "image_size": 256,
    "block_expansion": 16,
    "max_features": 64,
    "num_down_blocks": 2,
    "feature_channels": 32,
    "feature_depth": 2,
    "num_resblocks": 0,
    "motion_depths": (1, 2, 2, 1),
    "motion_dims": (24, 48, 96, 160, 224),
    "motion_points": 162,
    "hourglass_block_expansion": 8,
    "hourglass_max_features": 128,
    "hourglass_num_blocks": 4,
    "compress_channels": 1,
    "mask_kernel_size": 3,
    "warped_channels": 80,
    "generator_channels": 80,
    "generator_num_blocks": 1,
    "generator_out_channels": 80,
    "spade_channels": 24,
    "num_up_blocks": 0,
    "upscale": 4,
    "unshuffle": True,
}
TINY_CONFIG = {
    **SMALL_CONFIG,
    "image_size": 64,
    "block_expansion": 4,
    "max_features": 8,
    "feature_channels": 4,
    "feature_depth": 2,
    "num_resblocks": 1,
    "motion_depths": (1, 1, 1, 1),
    "motion_dims": (4, 8, 8, 8),
    "motion_points": None,
    "hourglass_block_expansion": 4,
    "hourglass_max_features": 16,
    "hourglass_num_blocks": 2,
    "generator_out_channels": 8,
    "spade_channels": 4,
}
PRESETS: dict[str, dict] = {"paper": {}, "small": SMALL_CONFIG, "tiny": TINY_CONFIG}


@dataclass
class LivePortraitOutput(BaseOutput):
    """A driven image and what drove it.

    Attributes:
        image (`torch.Tensor` of shape `(batch, 3, H, W)`): RGB in [0, 1].
        kp_source (`torch.Tensor` of shape `(batch, 21, 3)`): Keypoints of the source in the image.
        kp_driving (`torch.Tensor` of shape `(batch, 21, 3)`): Keypoints the source was moved to.
        deformation (`torch.Tensor` of shape `(batch, depth, h, w, 3)`): Where the volume was sampled, xyz.
        occlusion (`torch.Tensor` of shape `(batch, 1, h, w)`): What is visible, from 0 to 1.
    """

    image: Tensor
    kp_source: Tensor
    kp_driving: Tensor
    deformation: Tensor
    occlusion: Tensor


class VolumeResBlock(nn.Module):
    """Two convolutions of a volume, each behind batch norm and ReLU, and a skip.

    Args:
        channels (`int`): Channels in and out.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm3d(channels)
        self.norm2 = nn.BatchNorm3d(channels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Same shape, `(batch, channels, depth, height, width)`."""
        x = self.conv1(F.relu(self.norm1(hidden_states)))
        return hidden_states + self.conv2(F.relu(self.norm2(x)))


class AppearanceFeatureExtractor(nn.Module):
    """F: image to feature volume (§3.1).

    Args:
        widths (`list[int]`): Channels at full size, and after each halving.
        feature_channels (`int`): Channels of the volume.
        feature_depth (`int`): Depth of the volume.
        num_resblocks (`int`): Residual blocks of the volume.
        unshuffle (`bool`): Halve by moving pixels to channels before a block, not by averaging after it.
    """

    def __init__(
        self, widths: list[int], feature_channels: int, feature_depth: int, num_resblocks: int, unshuffle: bool
    ):
        super().__init__()
        self.feature_channels, self.unshuffle = feature_channels, unshuffle
        self.first = ConvBlock(2, 3, widths[0])
        pairs = zip(widths, widths[1:], strict=False)
        more = 4 if unshuffle else 1
        self.down_blocks = nn.ModuleList(ConvBlock(2, more * before, after) for before, after in pairs)
        self.second = nn.Conv2d(widths[-1], feature_channels * feature_depth, 1)
        self.resblocks_3d = nn.Sequential()
        for index in range(num_resblocks):
            self.resblocks_3d.add_module(f"3dr{index}", VolumeResBlock(feature_channels))

    def forward(self, image: Tensor) -> Tensor:
        """Map `(batch, 3, height, width)` in [0, 1] to `(batch, feature_channels, feature_depth, h, w)`."""
        x = self.first(image)
        for block in self.down_blocks:
            x = block(F.pixel_unshuffle(x, 2)) if self.unshuffle else F.avg_pool2d(block(x), 2)
        return self.resblocks_3d(self.second(x).unflatten(1, (self.feature_channels, -1)))


class MotionExtractor(nn.Module):
    """M: image to canonical keypoints, expression and pose (§3.1).

    Args:
        depths (`tuple[int, ...]`): Blocks of each stage.
        dims (`tuple[int, ...]`): Width of each stage.
        points (`dict`, *optional*): Of a `PointDetector` in place of `ConvNextV2`; `dims` begins with its stem.
    """

    def __init__(self, depths: tuple[int, ...], dims: tuple[int, ...], points: dict[str, Any] | None = None):
        super().__init__()
        heads = {"kp": 3 * NUM_KEYPOINTS, "scale": 1, "pitch": POSE_BINS, "yaw": POSE_BINS, "roll": POSE_BINS}
        heads |= {"t": 3, "exp": 3 * NUM_KEYPOINTS}
        if points is None:
            self.detector = ConvNextV2(3, depths, dims, heads)
        else:
            self.detector = PointDetector(widths=list(dims), depths=list(depths), heads=heads, **points)
        self._initialise_heads()

    def _initialise_heads(self) -> None:
        """Start at scale 1, in the middle, with little expression, so that keypoints are spread from the first step."""
        for name in ("scale", "t", "exp"):
            nn.init.trunc_normal_(getattr(self.detector, f"fc_{name}").weight, std=0.002)
        nn.init.ones_(self.detector.fc_scale.bias)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Raw heads of `(batch, 3, height, width)` in [0, 1]: logits of the angles, flat keypoints."""
        return self.detector(image)


class WarpingModule(nn.Module):
    """W: moves a feature volume from the source's keypoints to the driving ones and flattens it (§3.1).

    Args:
        dense_motion (`DenseMotionNetwork`): Makes the flow.
        volume_channels (`int`): Channels times depth of the volume.
        out_channels (`int`): Channels of the flat result.
    """

    def __init__(self, dense_motion: DenseMotionNetwork, volume_channels: int, out_channels: int):
        super().__init__()
        self.dense_motion_network = dense_motion
        self.third = ConvBlock(2, volume_channels, out_channels, negative_slope=0.01)
        self.fourth = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `LivePortraitRenderer.warp`."""
        deformation, occlusion, _ = self.dense_motion_network(feature_3d, kp_source, kp_driving)
        warped = F.grid_sample(feature_3d.float(), deformation, align_corners=False).to(feature_3d.dtype)
        return self.fourth(self.third(warped.flatten(1, 2))) * occlusion, deformation, occlusion


class SpadeGenerator(nn.Module):
    """G: flat warped features to an image; the features also modulate every layer (§3.1).

    Args:
        in_channels (`int`): Channels in.
        channels (`int`): Channels of the blocks at the features' size; halved at each doubling.
        num_up_blocks (`int`): Doublings before the last layer.
        out_channels (`int`): Channels before the last layer.
        num_middle_blocks (`int`): Blocks at the features' size.
        hidden_channels (`int`): See `Spade`.
        upscale (`int`): By how much the last layer enlarges.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_up_blocks: int,
        out_channels: int,
        num_middle_blocks: int,
        hidden_channels: int,
        upscale: int,
    ):
        super().__init__()
        self.num_middle_blocks, self.num_up_blocks, self.upscale = num_middle_blocks, num_up_blocks, upscale
        widths = [channels // 2**index for index in range(num_up_blocks)] + [out_channels]
        self.fc = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        for index in range(num_middle_blocks):
            block = SpadeResBlock(widths[0], widths[0], in_channels, hidden_channels)
            self.add_module(f"G_middle_{index}", block)
        for index in range(num_up_blocks):
            block = SpadeResBlock(widths[index], widths[index + 1], in_channels, hidden_channels)
            self.add_module(f"up_{index}", block)
        last = nn.Conv2d(out_channels, 3 * upscale**2, 3, padding=1)
        # The public code has a bare convolution where nothing is enlarged.
        self.conv_img = last if upscale == 1 else nn.Sequential(last, nn.PixelShuffle(upscale))

    @property
    def blocks(self) -> list[tuple[SpadeResBlock, bool]]:
        """Residual blocks in order, and whether the features are doubled before them."""
        middle = [(self.get_submodule(f"G_middle_{index}"), False) for index in range(self.num_middle_blocks)]
        return middle + [(self.get_submodule(f"up_{index}"), True) for index in range(self.num_up_blocks)]

    def forward(self, feature: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to RGB in [0, 1], `(batch, 3, 2**num_up_blocks * upscale * h, ...)`."""
        x = self.fc(feature)
        for block, doubled in self.blocks:
            x = block(F.interpolate(x, scale_factor=2, mode="nearest") if doubled else x, feature)
        return self.conv_img(F.leaky_relu(x, 0.2)).sigmoid()


class RetargetingNetwork(nn.Module):
    """Small network from keypoints and what is wanted of them to displacements (§3.3).

    Args:
        in_features (`int`): Numbers in.
        hidden (`tuple[int, ...]`): Widths between.
        out_features (`int`): Numbers out.
    """

    def __init__(self, in_features: int, hidden: tuple[int, ...], out_features: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((in_features, *hidden), (*hidden, out_features), strict=True):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.mlp = nn.Sequential(*layers[:-1])

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map tensors, each flattened to `(batch, n)` and joined, to `(batch, out_features)`."""
        return self.mlp(torch.cat([value.flatten(1) for value in inputs], -1))


class LivePortraitRenderer(ModelMixin, ConfigMixin):
    """F, M, W, G and the three small networks of LivePortrait in one model; the defaults are the public weights' sizes.

    Args:
        image_size (`int`, defaults to 256): Side of the images that go in. Other sizes work, too, if they are
            divisible by `size_multiple`.
        block_expansion (`int`, defaults to 64): Channels at full size; doubled at each halving.
        max_features (`int`, defaults to 512): Most channels of F.
        num_down_blocks (`int`, defaults to 2): Halvings from the image to the volume.
        feature_channels (`int`, defaults to 32): Channels C of the volume.
        feature_depth (`int`, defaults to 16): Depth D of the volume.
        num_resblocks (`int`, defaults to 6): Residual blocks of F.
        motion_depths (`tuple[int, ...]`, defaults to `(3, 3, 9, 3)`): Blocks of M's stages.
        motion_dims (`tuple[int, ...]`, defaults to `(96, 192, 384, 768)`): Widths of M's stages.
        hourglass_block_expansion (`int`, defaults to 32): Half the channels of the hourglass' first block.
        hourglass_max_features (`int`, defaults to 1024): Most channels of the hourglass.
        hourglass_num_blocks (`int`, defaults to 5): Halvings of the hourglass.
        compress_channels (`int`, defaults to 4): Channels of the volume of the input of the hourglass.
        mask_kernel_size (`int`, defaults to 7): Of the convolution that mixes the keypoints' shifts; odd.
        occlusion_kernel_size (`int`, defaults to 7): Of the convolution that says what is visible; odd.
        warped_channels (`int`, *optional*): Channels from W to G; F's last width if left out.
        generator_channels (`int`, *optional*): G's channels at the volume's size; twice those if left out.
        generator_num_blocks (`int`, defaults to 6): G's blocks at the volume's size.
        num_up_blocks (`int`, *optional*): G's doublings; as many as F's halvings if left out.
        generator_out_channels (`int`, defaults to 64): G's channels before the last layer.
        spade_channels (`int`, defaults to 128): Channels within G's norms.
        upscale (`int`, defaults to 2): By how much G's last layer enlarges.
        unshuffle (`bool`, defaults to `False`): Whether F halves images by moving pixels to channels. # Not in the
            paper: averages lose detail, which widths of hundreds of channels and long training encode all the same.
        motion_points (`int`, *optional*): M is a `PointDetector` of this number of points instead of a ConvNeXt V2, and
            `motion_dims` begins with its stem. # Not in the paper: the mean over an image, which is all that
            ConvNeXt's heads see, tells where parts of a face are after days of training, not hours.
        motion_pyramid_channels (`int`, defaults to 64): Its channels where it finds points.
        motion_image_size (`int`, defaults to 160): Side of its input image.
        motion_zoom (`float`, defaults to 0.75): Share of the image's side that is its input, about the middle.
    """

    _no_split_modules = ("SpadeResBlock", "ConvNextV2Block")

    @register_to_config
    def __init__(
        self,
        image_size: int = 256,
        block_expansion: int = 64,
        max_features: int = 512,
        num_down_blocks: int = 2,
        feature_channels: int = 32,
        feature_depth: int = 16,
        num_resblocks: int = 6,
        motion_depths: tuple[int, ...] = (3, 3, 9, 3),
        motion_dims: tuple[int, ...] = (96, 192, 384, 768),
        hourglass_block_expansion: int = 32,
        hourglass_max_features: int = 1024,
        hourglass_num_blocks: int = 5,
        compress_channels: int = 4,
        mask_kernel_size: int = 7,
        occlusion_kernel_size: int = 7,
        warped_channels: int | None = None,
        generator_channels: int | None = None,
        generator_num_blocks: int = 6,
        num_up_blocks: int | None = None,
        generator_out_channels: int = 64,
        spade_channels: int = 128,
        upscale: int = 2,
        unshuffle: bool = False,
        motion_points: int | None = None,
        motion_pyramid_channels: int = 64,
        motion_image_size: int = 160,
        motion_zoom: float = 0.75,
    ):
        super().__init__()
        for name, size in (("mask", mask_kernel_size), ("occlusion", occlusion_kernel_size)):
            if size % 2 == 0:
                raise ValueError(f"`{name}_kernel_size` must be odd, got {size}.")
        if image_size <= 0 or image_size % self.size_multiple:
            raise ValueError(f"`image_size` must be divisible by {self.size_multiple}, got {image_size}.")
        widths = [min(max_features, block_expansion * 2**level) for level in range(num_down_blocks + 1)]
        warped_channels = warped_channels or widths[-1]
        self.appearance_feature_extractor = AppearanceFeatureExtractor(
            widths, feature_channels, feature_depth, num_resblocks, unshuffle
        )
        points = {"pyramid_channels": motion_pyramid_channels, "image_size": motion_image_size, "zoom": motion_zoom}
        self.motion_extractor = MotionExtractor(
            tuple(motion_depths), tuple(motion_dims), {"points": motion_points, **points} if motion_points else None
        )
        dense_motion = DenseMotionNetwork(
            NUM_KEYPOINTS,
            feature_channels,
            feature_depth,
            compress_channels,
            hourglass_block_expansion,
            hourglass_max_features,
            hourglass_num_blocks,
            mask_kernel_size,
            occlusion_kernel_size,
        )
        self.warping_module = WarpingModule(dense_motion, feature_channels * feature_depth, warped_channels)
        self.spade_generator = SpadeGenerator(
            warped_channels,
            generator_channels or 2 * warped_channels,
            num_down_blocks if num_up_blocks is None else num_up_blocks,
            generator_out_channels,
            generator_num_blocks,
            spade_channels,
            upscale,
        )
        numbers = 3 * NUM_KEYPOINTS
        self.stitching = RetargetingNetwork(2 * numbers, (128, 128, 64), numbers + 2)
        self.retargeting_lip = RetargetingNetwork(numbers + 2, (128, 128, 64), numbers)
        self.retargeting_eye = RetargetingNetwork(numbers + 3, (256, 256, 128, 128, 64), numbers)

        self._fast: tuple[FastWarping, FastGenerator] | None = None

    @torch.no_grad()
    def optimize_for_inference(self, enabled: bool = True) -> LivePortraitRenderer:
        """Prepare `warp` and `decode` for speed on a CPU; the results are the same up to rounding.

        At official size this takes 2.6 GB more memory and some seconds. It serves float32 and images of `image_size`
        while gradients are off; everything else goes the ordinary way. What is saved stays the same. Training, moving
        and casting the model undo it, as prepared weights would be out of date; after changing weights yourself, call
        this again.

        Args:
            enabled (`bool`, defaults to `True`): `False` undoes it.

        Returns:
            The model itself.

        Raises:
            ValueError: If the model is training, not on a CPU, not float32, or its volumes cannot be tiled.
        """
        self._fast = None
        if not enabled:
            return self
        side = self.config.image_size // 2**self.config.num_down_blocks
        if self.training or self.device.type != "cpu" or self.dtype != torch.float32 or side % 4:
            state = f"{'training' if self.training else 'eval'}, {self.device}, {self.dtype}, volumes {side} wide"
            raise ValueError(f"`enabled` needs eval mode, a CPU, float32 and volumes divisible by 4, got {state}.")
        warping, generator = self.warping_module, self.spade_generator
        size = (self.config.feature_depth, side, side)
        last = generator.conv_img if generator.upscale == 1 else generator.conv_img[0]
        with torch.inference_mode(False):
            self._fast = (
                FastWarping(warping.dense_motion_network, warping.third, warping.fourth, size),
                FastGenerator(generator.fc, generator.blocks, last, generator.upscale),
            )
        return self

    def train(self, mode: bool = True) -> LivePortraitRenderer:
        """Like `torch.nn.Module.load_state_dict`; undoes `optimize_for_inference`.

        Args:
            mode (`bool`, defaults to `True`): Whether to train.
        """
        if mode:
            self._fast = None
        return super().train(mode)

    def _apply(self, *args, **kwargs) -> LivePortraitRenderer:
        self._fast = None  # the weights are about to move or change type
        return super()._apply(*args, **kwargs)

    def _is_fast(self, *inputs: Tensor) -> bool:
        """Whether what `optimize_for_inference` prepared serves these maps or volumes."""
        side = self.config.image_size // 2**self.config.num_down_blocks
        return (
            self._fast is not None
            and not torch.is_grad_enabled()
            and all(value.dtype == torch.float32 and value.shape[-2:] == (side, side) for value in inputs)
        )

    @property
    def size_multiple(self) -> int:
        """What the sides of images must be divisible by."""
        config = self.config
        motion = 1 if config.motion_points else 2 ** (len(config.motion_dims) + 1)
        return max(2 ** (config.num_down_blocks + config.hourglass_num_blocks), motion)

    @property
    def output_size(self) -> int:
        """Side of the images that come out, for ones of `image_size`."""
        doublings = self.spade_generator.num_up_blocks - self.config.num_down_blocks
        return round(self.config.image_size * 2.0**doublings) * self.config.upscale

    def _check_image(self, image: Tensor, name: str = "image") -> None:
        multiple = self.size_multiple
        if image.ndim != 4 or image.shape[1] != 3 or any(side == 0 or side % multiple for side in image.shape[2:]):
            expected = f"(batch, 3, height, width) with sides divisible by {multiple}"
            raise ValueError(f"`{name}` must have shape {expected}, got {tuple(image.shape)}.")

    @staticmethod
    def _check_keypoints(**keypoints: Tensor) -> None:
        for name, value in keypoints.items():
            if value.ndim != 3 or value.shape[1:] != (NUM_KEYPOINTS, 3):
                raise ValueError(f"`{name}` must have shape (batch, {NUM_KEYPOINTS}, 3), got {tuple(value.shape)}.")

    @apply_forward_hook
    def encode_appearance(self, image: Tensor) -> Tensor:
        """F: the appearance of images as feature volumes.

        Args:
            image (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [0, 1].

        Returns:
            `torch.Tensor` of shape `(batch, feature_channels, feature_depth, h, w)`.

        Raises:
            ValueError: If the shape is another.
        """
        self._check_image(image)
        return self.appearance_feature_extractor(image.to(self.dtype))

    @apply_forward_hook
    def extract_motion(self, image: Tensor) -> KeypointMotion:
        """M: what moves in images, with the angles decoded to degrees.

        Args:
            image (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [0, 1].

        Returns:
            `KeypointMotion` with a row for each image.

        Raises:
            ValueError: If the shape is another.
        """
        self._check_image(image)
        heads = self.motion_extractor(image.to(self.dtype))
        angles = (head_pose_degrees(heads[name]) for name in ("pitch", "yaw", "roll"))
        kp, exp = (heads[name].unflatten(1, (NUM_KEYPOINTS, 3)) for name in ("kp", "exp"))
        return KeypointMotion(kp, exp, heads["scale"], heads["t"], *angles)

    @apply_forward_hook
    def stitch(self, kp_source: Tensor, kp_driving: Tensor) -> Tensor:
        """Driving keypoints, moved so that shoulders and hair meet the image that the crop goes back to (Eq. 6).

        Args:
            kp_source (`torch.Tensor` of shape `(batch, 21, 3)`): Keypoints of the source.
            kp_driving (`torch.Tensor` of shape `(batch, 21, 3)`): Keypoints to reach.

        Returns:
            `torch.Tensor` of shape `(batch, 21, 3)`.

        Raises:
            ValueError: If a shape is another.
        """
        self._check_keypoints(kp_source=kp_source, kp_driving=kp_driving)
        delta = self.stitching(kp_source, kp_driving)
        points, shift = delta[:, :-2].unflatten(1, (NUM_KEYPOINTS, 3)), delta[:, -2:]
        return kp_driving + points + F.pad(shift, (0, 1))[:, None]

    @apply_forward_hook
    def retarget_lips(self, kp_source: Tensor, source_ratio: Tensor, target_ratio: Tensor) -> Tensor:
        """How keypoints move for lips to open so far (Eq. 9).

        Args:
            kp_source (`torch.Tensor` of shape `(batch, 21, 3)`): Keypoints of the source.
            source_ratio (`torch.Tensor` of shape `(batch, 1)`): How open they are, see `lip_ratio`.
            target_ratio (`torch.Tensor` of shape `(batch, 1)`): How open they shall be.

        Returns:
            `torch.Tensor` of shape `(batch, 21, 3)`, to be added.

        Raises:
            ValueError: If a shape is another.
        """
        self._check_keypoints(kp_source=kp_source)
        self._check_ratio("source_ratio", source_ratio, 1)
        self._check_ratio("target_ratio", target_ratio, 1)
        return self.retargeting_lip(kp_source, source_ratio, target_ratio).unflatten(1, (NUM_KEYPOINTS, 3))

    @apply_forward_hook
    def retarget_eyes(self, kp_source: Tensor, source_ratios: Tensor, target_ratio: Tensor) -> Tensor:
        """How keypoints move for eyes to open so far (Eq. 8).

        Args:
            kp_source (`torch.Tensor` of shape `(batch, 21, 3)`): Keypoints of the source.
            source_ratios (`torch.Tensor` of shape `(batch, 2)`): How open the left and the right are, see `eye_ratios`.
            target_ratio (`torch.Tensor` of shape `(batch, 1)`): How open both shall be.

        Returns:
            `torch.Tensor` of shape `(batch, 21, 3)`, to be added.

        Raises:
            ValueError: If a shape is another.
        """
        self._check_keypoints(kp_source=kp_source)
        self._check_ratio("source_ratios", source_ratios, 2)
        self._check_ratio("target_ratio", target_ratio, 1)
        return self.retargeting_eye(kp_source, source_ratios, target_ratio).unflatten(1, (NUM_KEYPOINTS, 3))

    @staticmethod
    def _check_ratio(name: str, ratio: Tensor, count: int) -> None:
        if ratio.ndim != 2 or ratio.shape[1] != count:
            raise ValueError(f"`{name}` must have shape (batch, {count}), got {tuple(ratio.shape)}.")

    @apply_forward_hook
    def warp(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W: move a feature volume, the first half of `render`.

        Args:
            feature_3d (`torch.Tensor` of shape `(batch, feature_channels, feature_depth, h, w)`): Appearance.
            kp_source (`torch.Tensor` of shape `(batch, 21, 3)`): Keypoints of the source.
            kp_driving (`torch.Tensor` of shape `(batch, 21, 3)`): Keypoints to reach.

        Returns:
            Warped features `(batch, c, h, w)`, sampling positions `(batch, feature_depth, h, w, 3)` xyz, and what is
            visible `(batch, 1, h, w)` from 0 to 1.

        Raises:
            ValueError: If a shape is another.
        """
        channels, depth, multiple = (
            self.config.feature_channels,
            self.config.feature_depth,
            2**self.config.hourglass_num_blocks,
        )
        sides = feature_3d.shape[3:]
        if feature_3d.ndim != 5 or feature_3d.shape[1:3] != (channels, depth) or any(side % multiple for side in sides):
            expected = f"(batch, {channels}, {depth}, height, width) with sides divisible by {multiple}"
            raise ValueError(f"`feature_3d` must have shape {expected}, got {tuple(feature_3d.shape)}.")
        self._check_keypoints(kp_source=kp_source, kp_driving=kp_driving)
        module = self._fast[0] if self._is_fast(feature_3d) else self.warping_module
        return module(feature_3d, kp_source, kp_driving)

    @apply_forward_hook
    def decode(self, out: Tensor) -> Tensor:
        """G: image of warped features, the second half of `render`.

        Args:
            out (`torch.Tensor` of shape `(batch, c, h, w)`): From `warp`.

        Returns:
            `torch.Tensor` of shape `(batch, 3, output_size, output_size)` for images of `image_size`: RGB in [0, 1].
        """
        return (self._fast[1] if self._is_fast(out) else self.spade_generator)(out)

    @apply_forward_hook
    def render(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> Tensor:
        """W and G: the source with its keypoints moved.

        Args:
            feature_3d (`torch.Tensor` of shape `(batch, feature_channels, feature_depth, h, w)`): Appearance.
            kp_source (`torch.Tensor` of shape `(batch, 21, 3)`): Keypoints of the source.
            kp_driving (`torch.Tensor` of shape `(batch, 21, 3)`): Keypoints to reach.

        Returns:
            `torch.Tensor` of shape `(batch, 3, output_size, output_size)` for images of `image_size`: RGB in [0, 1].

        Raises:
            ValueError: If a shape is another.
        """
        return self.decode(self.warp(feature_3d, kp_source, kp_driving)[0])

    def forward(self, source: Tensor, driving: Tensor, return_dict: bool = True) -> LivePortraitOutput | tuple:
        """Reenact: the appearance of one image with all the motion of another, as in training (§3.1).

        Args:
            source (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [0, 1].
            driving (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [0, 1].
            return_dict (`bool`, defaults to `True`): Whether to return a `LivePortraitOutput`.

        Raises:
            ValueError: If a shape is another.
        """
        self._check_image(source, "source")
        self._check_image(driving, "driving")
        feature_3d = self.encode_appearance(source)
        kp_source = transform_keypoints(self.extract_motion(source))
        kp_driving = transform_keypoints(self.extract_motion(driving))
        out, deformation, occlusion = self.warp(feature_3d, kp_source, kp_driving)
        results = (self.decode(out), kp_source, kp_driving, deformation, occlusion)
        return LivePortraitOutput(*results) if return_dict else results

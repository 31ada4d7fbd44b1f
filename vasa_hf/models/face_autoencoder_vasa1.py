"""VASA-1's face latent space (paper §3.1, on MegaPortraits' 3D-aided reenactment).

    image --E_app--> posed volume --W_src, P_src^-1--> canonical V_app --G3d-->  V_app
          --E_id---> z_id        --E_pose--> z_pose (yaw, pitch, roll, tx, ty, scale)     --E_dyn--> z_dyn

    D(V_app, z_id, z_pose, z_dyn):  target voxel --P^-1--> canonical --W_dyn--> neutral canonical -> V_app -> 2D decoder

P is the rigid warp by head pose, W_src and W_dyn are non-rigid warps made from (z_id, z_dyn) by two generators.

# Not in the paper (left unsaid, chosen here): the volume's extents and units (`layers/volume_warp.py`); pose includes
# translation and scale of the crop, so the head's distance is part of z_pose; layer widths.
# Not in the paper (`source_passthrough`, small preset): the two warps are composed into one flow from the target's
# pixels to the source's, its depth chosen by a learned weight; the source's own pixels, moved by this flow or left in
# place (background), are blended with the decoder's image under a learned mask, so a photograph keeps its detail.
# Not in the paper (`motion_basis`, small preset): at half resolution the flow is refined by a learned field for each
# channel of z_dyn, times how far that channel is from the source's. Irises and lids are finer than the warps' grids.
# Not in the paper (`region_refiners`, small preset): mouth and eyes are repainted at more detail, see
# `layers/region_refiner.py`.
"""

from dataclasses import dataclass, fields

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional as F

from vasa_hf.layers.blocks import ImageEncoder, ResBlock, UpBlock2d
from vasa_hf.layers.pyramid import PointEncoder
from vasa_hf.layers.region_refiner import REGIONS, RegionRefiner, add_region, cut_region, region_transform
from vasa_hf.layers.volume_warp import (
    canonical_from_posed,
    displace,
    from_volume_grid,
    identity_grid,
    posed_from_canonical,
    to_volume_grid,
    warp_volume,
)

POSE_DIM = 6
# Of `keep_still_pixels`, from surely to not at all or back: change of colour in [-1, 1], averaged over a twelfth of the
# side; the unmoved source's share; the moved source's share of both, plus the head's shift times a factor. Chosen by
# PSNR and sharpness on the clips and portraits of the evaluation, so their figures are a little optimistic.
_STILL_CHANGE = (0.03, 0.08)
_STILL_UNMOVED = (0.05, 0.2)
_STILL_MOVED = (0.5, 0.8)
_STILL_SHIFT = 16.0
_SHOULDERS = (0.62, 0.78)  # rows from where the shift counts, of the side: a standard crop has its chin at 0.8

# About 200M parameters at 512 x 512 (paper §4); `volume_*` and the encoder follow MegaPortraits' 96 x 16 x 64 x 64.
PAPER_CONFIG = {
    "image_size": 512,
    "encoder_channels": [64, 128, 256, 512],
    "volume_channels": 96,
    "volume_depth": 16,
    "num_volume_blocks": 6,
    "warp_channels": [512, 256, 128, 64, 32],
    "warp_size": 64,
    "decoder_channels": [512, 256, 128, 64],
    "num_decoder_blocks": 8,
    "identity_channels": [64, 128, 256, 512, 512],
    "num_identity_blocks": 2,
    "identity_size": 256,
    "motion_widths": [64, 128, 256, 512, 512],
    "motion_depths": [2, 2, 2, 2],
    "motion_pyramid_channels": 128,
    "motion_points": 162,
    "pose_size": 256,
    "dynamics_size": 256,
    "dynamics_zoom": 0.75,
    "identity_dim": 512,
    "dynamics_dim": 512,
    "source_passthrough": False,
    "motion_basis": False,
    "region_refiners": None,
    "motion_space": "vasa1",
}
SMALL_CONFIG = {
    "image_size": 256,
    "encoder_channels": [12, 24, 48, 96],
    "volume_channels": 16,
    "volume_depth": 8,
    "num_volume_blocks": 2,
    "warp_channels": [48, 32, 16],
    "warp_size": 32,
    "decoder_channels": [80, 48, 24, 12],
    "num_decoder_blocks": 2,
    "identity_channels": [32, 64, 96, 128, 128],
    "num_identity_blocks": 1,
    "identity_size": 128,
    "motion_widths": [24, 48, 96, 160, 224],
    "motion_depths": [1, 2, 2, 1],
    "motion_pyramid_channels": 64,
    "motion_points": 162,
    "pose_size": 96,
    "dynamics_size": 160,
    "dynamics_zoom": 0.75,
    "identity_dim": 64,
    "dynamics_dim": 28,
    "source_passthrough": True,
    "motion_basis": True,
    "region_refiners": {"mouth": [48, 80, 112], "eyes": [32, 64, 96]},
    "motion_space": "vasa-small",
}
# For tests.
TINY_CONFIG = {
    **SMALL_CONFIG,
    "image_size": 64,
    "encoder_channels": [4, 8, 8, 8],
    "volume_channels": 4,
    "volume_depth": 4,
    "warp_channels": [8, 8],
    "warp_size": 8,
    "decoder_channels": [8, 8, 8, 4],
    "identity_channels": [8, 8, 8, 8],
    "identity_size": 32,
    "motion_widths": [4, 8, 8, 8, 8],
    "motion_depths": [1, 1, 1, 1],
    "motion_pyramid_channels": 8,
    "motion_points": 8,
    "pose_size": 32,
    "dynamics_size": 32,
    "identity_dim": 8,
    "region_refiners": {"mouth": [4, 8, 8], "eyes": [4, 8, 8]},
}
PRESETS = {"paper": PAPER_CONFIG, "small": SMALL_CONFIG, "tiny": TINY_CONFIG}


@dataclass
class FaceAppearance:
    """What a portrait contributes: everything but the motion to come.

    Attributes:
        volume (`torch.Tensor` of shape `(batch, channels, depth, height, width)`): Canonical appearance, V_app.
        identity (`torch.Tensor` of shape `(batch, identity_dim)`): z_id.
        source (`torch.Tensor` of shape `(batch, 3, height, width)`): The portrait's crop, RGB in [-1, 1].
        motion (`torch.Tensor` of shape `(batch, 6 + dynamics_dim)`): The portrait's own z_pose and z_dyn.
        source_field (`torch.Tensor` of shape `(batch, 3, D, H, W)`): W_src, canonical units.
        features (`list[torch.Tensor]`): The encoder's images, fine to coarse, for the pass-through decoder.
        region_features (`list[torch.Tensor]` of shape `(batch, crops, channels, height, width)`): Of the refiners.
    """

    volume: Tensor
    identity: Tensor
    source: Tensor
    motion: Tensor
    source_field: Tensor
    features: list
    region_features: list

    def map(self, function) -> "FaceAppearance":
        """Apply a function to every tensor."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return FaceAppearance(
            **{k: [function(x) for x in v] if isinstance(v, list) else function(v) for k, v in values.items()}
        )

    def expand(self, batch: int) -> "FaceAppearance":
        """View a batch of one as `batch` equal ones."""
        return self.map(lambda x: x.expand(batch, *x.shape[1:]))

    def to(self, *args, **kwargs) -> "FaceAppearance":
        """Move or cast every tensor."""
        return self.map(lambda x: x.to(*args, **kwargs))


@dataclass
class Vasa1FaceAutoencoderOutput(BaseOutput):
    """Decoded image and how it came about.

    Attributes:
        sample (`torch.Tensor` of shape `(batch, 3, size, size)`): Image in [-1, 1].
        flow (`torch.Tensor` of shape `(batch, size, size, 2)`, *optional*): Source position of each target pixel, xy
            in [-1, 1]; only with `source_passthrough`.
        blend (`torch.Tensor` of shape `(batch, 3, size, size)`, *optional*): Shares of moved source, unmoved source and
            decoder; only with `source_passthrough`.
        generated (`torch.Tensor` of shape `(batch, 3, size, size)`, *optional*): The decoder's own image.
    """

    sample: Tensor
    flow: Tensor | None = None
    blend: Tensor | None = None
    generated: Tensor | None = None


class WarpGenerator(nn.Module):
    """A code to a displacement field over the canonical volume.

    Args:
        code_dim (`int`): Width of the code.
        channels (`list[int]`): Width at each resolution, coarse to fine.
        depth (`int`): Depth of the field.
        size (`int`): Height and width of the field.
        norm (`bool`): Group normalisation.
    """

    def __init__(self, code_dim: int, channels: list[int], depth: int, size: int, norm: bool):
        super().__init__()
        levels = len(channels) - 1
        self.sizes = [(max(depth >> (levels - i), 2), size >> (levels - i)) for i in range(levels + 1)]
        d, s = self.sizes[0]
        self.constant = nn.Parameter(torch.randn(1, channels[0], d, s, s))
        pairs = zip(channels[:-1], channels[1:], strict=True)
        self.reduce = nn.ModuleList([nn.Identity(), *(nn.Conv3d(a, b, 1) for a, b in pairs)])
        self.blocks = nn.ModuleList(ResBlock(3, c, c, code_dim, norm) for c in channels)
        self.out = nn.Conv3d(channels[-1], 3, 3, padding=1)
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)

    def forward(self, code: Tensor) -> Tensor:
        """Map `(batch, code_dim)` to `(batch, 3, depth, size, size)` in canonical units."""
        device = code.device.type
        x = self.constant.expand(len(code), -1, -1, -1, -1)
        for reduce, block, (d, s) in zip(self.reduce, self.blocks, self.sizes, strict=True):
            x = reduce(x)
            if x.shape[-1] != s:
                x = F.interpolate(x, (d, s, s), mode="nearest")
            # oneDNN's bf16 gradients of tiny volumes are at times NaN.
            with torch.autocast(device, enabled=s > 8 and torch.is_autocast_enabled(device)):
                x = block(x.to(self.constant.dtype), code.to(self.constant.dtype))
        with torch.autocast(device, enabled=False):  # positions want the precision
            return self.out(F.leaky_relu(x, 0.2).to(self.constant.dtype))


class AppearanceEncoder(nn.Module):
    """An image to its posed feature volume, keeping the feature images on the way.

    Args:
        channels (`list[int]`): Width at full, half, quarter and eighth resolution.
        volume_channels (`int`): Channels of the volume.
        volume_depth (`int`): Depth of the volume.
        norm (`bool`): Group normalisation.
    """

    def __init__(self, channels: list[int], volume_channels: int, volume_depth: int, norm: bool):
        super().__init__()
        self.stem = nn.Conv2d(3, channels[0], 3, padding=1)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(channels[:-1], channels[1:], strict=True))
        self.blocks = nn.ModuleList(ResBlock(2, c, c, norm=norm) for c in channels[1:])
        self.to_volume = nn.Conv2d(channels[-1], volume_channels * volume_depth, 1)
        self.depth = volume_depth

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode images of shape `(batch, 3, size, size)` to a volume and feature images, fine to coarse."""
        x = self.stem(image)
        features = []
        for down, block in zip(self.downs, self.blocks, strict=True):
            x = block(down(F.leaky_relu(x, 0.2)))
            features.append(x)
        volume = self.to_volume(F.leaky_relu(x, 0.2)).unflatten(1, (-1, self.depth))  # [B, C, D, H, W]
        return volume, features


class Vasa1FaceAutoencoder(ModelMixin, ConfigMixin):
    """Encoders and decoder of VASA-1's face latent space.

    Args:
        image_size (`int`): Side of the square image.
        encoder_channels (`list[int]`): Appearance encoder's widths at full, 1/2, 1/4 and 1/8 resolution.
        volume_channels (`int`): Channels of the appearance volume (height and width are `image_size / 8`).
        volume_depth (`int`): Depth of the volumes and warps.
        num_volume_blocks (`int`): 3D residual blocks on the canonical volume.
        warp_channels (`list[int]`): Widths of the warp generators, coarse to fine, each level twice as fine.
        warp_size (`int`): Height and width of the non-rigid warp fields.
        decoder_channels (`list[int]`): Decoder widths from 1/8 to full resolution.
        num_decoder_blocks (`int`): Residual blocks at 1/8 resolution, modulated by z_id and z_dyn.
        identity_channels (`list[int]`): Widths of the identity encoder, one for each halving.
        num_identity_blocks (`int`): Its residual blocks for each resolution.
        identity_size (`int`): Side of its input image.
        motion_widths (`list[int]`): Widths of the pose and dynamics encoders' backbones, stem and four stages.
        motion_depths (`list[int]`): Residual blocks of their stages.
        motion_pyramid_channels (`int`): Channels of their pyramids.
        motion_points (`int`): Points they find and look at.
        pose_size (`int`): Side of the input image of the pose encoder.
        dynamics_size (`int`): Side of the input image of the dynamics encoder.
        dynamics_zoom (`float`): Share of the image's side that is the input of the dynamics encoder.
        identity_dim (`int`): Length of z_id.
        dynamics_dim (`int`): Length of z_dyn.
        source_passthrough (`bool`): Blend warped source pixels into the output. # Not in the paper.
        motion_basis (`bool`): Refine the flow by a field for each channel of z_dyn. # Not in the paper.
        region_refiners (`dict[str, list[int]]`, *optional*): Widths of the network that repaints each region, of
            `layers.region_refiner.REGIONS`. # Not in the paper.
        motion_space (`str`): Name of what z_dyn means, to be changed when its encoder is trained again: avatars that
            were fitted to other motion are refused by it. # Not in the paper.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        image_size: int = 512,
        encoder_channels: list[int] = (64, 128, 256, 512),
        volume_channels: int = 96,
        volume_depth: int = 16,
        num_volume_blocks: int = 6,
        warp_channels: list[int] = (512, 256, 128, 64, 32),
        warp_size: int = 64,
        decoder_channels: list[int] = (512, 256, 128, 64),
        num_decoder_blocks: int = 8,
        identity_channels: list[int] = (64, 128, 256, 512, 512),
        num_identity_blocks: int = 2,
        identity_size: int = 256,
        motion_widths: list[int] = (64, 128, 256, 512, 512),
        motion_depths: list[int] = (2, 2, 2, 2),
        motion_pyramid_channels: int = 128,
        motion_points: int = 162,
        pose_size: int = 256,
        dynamics_size: int = 256,
        dynamics_zoom: float = 0.75,
        identity_dim: int = 512,
        dynamics_dim: int = 512,
        source_passthrough: bool = False,
        motion_basis: bool = False,
        region_refiners: dict[str, list[int]] | None = None,
        motion_space: str = "vasa1",
    ):
        super().__init__()
        if image_size % 8 or image_size < 16:
            raise ValueError(f"`image_size` must be a multiple of 8 of at least 16, got {image_size}.")
        if len(encoder_channels) != 4 or len(decoder_channels) != 4:
            raise ValueError("`encoder_channels` and `decoder_channels` must have 4 entries, one for each resolution.")
        if min(pose_size, dynamics_size) < 32:
            raise ValueError(f"`pose_size` and `dynamics_size` must be at least 32, got {pose_size}, {dynamics_size}.")
        if motion_basis and not source_passthrough:
            raise ValueError("`motion_basis` refines the flow of `source_passthrough`, which must be on.")
        if unknown := set(region_refiners or {}) - set(REGIONS):
            raise ValueError(f"`region_refiners` must name some of {sorted(REGIONS)}, got {sorted(unknown)}.")
        norm = not source_passthrough
        code_dim = identity_dim + dynamics_dim
        self.appearance_encoder = AppearanceEncoder(encoder_channels, volume_channels, volume_depth, norm)
        self.identity_encoder = ImageEncoder(identity_size, identity_channels, identity_dim, num_identity_blocks)
        backbone = (motion_widths, motion_depths, motion_pyramid_channels, motion_points)
        self.pose_encoder = PointEncoder(pose_size, 1.0, *backbone, POSE_DIM)
        self.dynamics_encoder = PointEncoder(dynamics_size, dynamics_zoom, *backbone, dynamics_dim)
        self.source_warp = WarpGenerator(code_dim, warp_channels, volume_depth, warp_size, norm)
        self.target_warp = WarpGenerator(code_dim, warp_channels, volume_depth, warp_size, norm)
        self.volume_blocks = nn.ModuleList(
            ResBlock(3, volume_channels, volume_channels, norm=norm) for _ in range(num_volume_blocks)
        )

        c = decoder_channels
        static = encoder_channels[-1] if source_passthrough else 0
        self.merge = nn.Conv2d(volume_channels * volume_depth + static, c[0], 3, padding=1)
        self.decoder_blocks = nn.ModuleList(ResBlock(2, c[0], c[0], code_dim, norm) for _ in range(num_decoder_blocks))
        self.ups = nn.ModuleList(UpBlock2d(a, b) for a, b in zip(c[:-1], c[1:], strict=True))
        if source_passthrough:
            self.depth_weight = nn.Conv2d(volume_channels * volume_depth, volume_depth, 3, padding=1)
            extra = [encoder_channels[2], encoder_channels[1], 3]  # moved source at 1/4, 1/2 and full resolution
            self.flow_heads = nn.ModuleList(nn.Conv2d(width, 2, 3, padding=1) for width in c[1:3])
            for head in self.flow_heads:
                nn.init.normal_(head.weight, std=1e-4)
                nn.init.zeros_(head.bias)
            if motion_basis:
                self.basis_head = nn.Conv2d(c[2], 2 * dynamics_dim, 3, padding=1)
                nn.init.normal_(self.basis_head.weight, std=1e-4)
                nn.init.zeros_(self.basis_head.bias)
        else:
            extra = [0, 0, 0]
        self.fuse = nn.ModuleList(
            nn.Conv2d(width + more, width, 3, padding=1) for width, more in zip(c[1:], extra, strict=True)
        )
        self.fine_blocks = nn.ModuleList(ResBlock(2, width, width, norm=norm) for width in c[1:3])
        self.to_rgb = nn.Conv2d(c[3], 6 if source_passthrough else 3, 3, padding=1)
        if source_passthrough:
            with torch.no_grad():  # start from the moved source: the warp is learnt first
                self.to_rgb.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 2.0, 0.0, -2.0]))
        self.refiners = nn.ModuleDict(
            {
                name: RegionRefiner(region, identity_dim + 2 * dynamics_dim + 6, list(region_refiners[name]))
                for name, region in REGIONS.items()
                if name in (region_refiners or {})
            }
        )
        self.gradient_checkpointing = False

    @property
    def motion_dim(self) -> int:
        """Length of a motion vector: z_pose and z_dyn."""
        return POSE_DIM + self.config.dynamics_dim

    @apply_forward_hook
    def encode_pose(self, image: Tensor) -> Tensor:
        """Head pose of images in [-1, 1]: `(batch, 6)`; yaw, pitch, roll in radians, tx, ty, scale of the crop."""
        offset = image.new_tensor([0.0, 0.0, 0.0, 0.5, 0.5, 0.27])
        spread = image.new_tensor([0.2, 0.15, 0.1, 0.05, 0.05, 0.05])
        return offset + spread * self.pose_encoder(image)

    @apply_forward_hook
    def encode_dynamics(self, image: Tensor) -> Tensor:
        """Holistic facial dynamics z_dyn of images in [-1, 1]: `(batch, dynamics_dim)`."""
        return self.dynamics_encoder(image)

    @apply_forward_hook
    def encode_motion(self, image: Tensor) -> Tensor:
        """Pose and dynamics of images in [-1, 1]: `(batch, 6 + dynamics_dim)`."""
        return torch.cat([self.encode_pose(image), self.encode_dynamics(image)], 1)

    @apply_forward_hook
    def encode_appearance(self, image: Tensor, motion: Tensor | None = None) -> FaceAppearance:
        """Canonical appearance volume and identity of portraits.

        Source: VASA-1 §3.1.

        Args:
            image (`torch.Tensor` of shape `(batch, 3, size, size)`): Face crops, RGB in [-1, 1]. With
                `source_passthrough` they may be larger than `image_size`: their pixels are passed at full detail.
            motion (`torch.Tensor` of shape `(batch, 6 + dynamics_dim)`, *optional*): Known pose and dynamics; encoded
                from the image when absent.

        Returns:
            `FaceAppearance`.

        Raises:
            ValueError: If the image is not square RGB, or smaller than `image_size`.
        """
        size = self.config.image_size
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] != image.shape[3] or image.shape[2] < size:
            raise ValueError(
                f"`image` must have shape (batch, 3, size, size) with size at least {size}, got {tuple(image.shape)}."
            )
        source = image
        if image.shape[-1] != size:
            image = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
        motion = self.encode_motion(image) if motion is None else motion
        self._check_motion(motion, len(image))
        identity = self.identity_encoder(image)
        volume, features = self.appearance_encoder(image)
        field = self.source_warp(torch.cat([identity, motion[:, POSE_DIM:].to(identity.dtype)], 1))
        pose = motion[:, :POSE_DIM].float()
        points = from_volume_grid(identity_grid(*volume.shape[2:], like=pose)).expand(len(image), -1, -1, -1, -1)
        volume = warp_volume(volume, posed_from_canonical(displace(points, field), pose))
        for block in self.volume_blocks:
            volume = self._run(block, volume)
        return FaceAppearance(
            volume,
            identity,
            source,
            motion,
            field,
            features if self.config.source_passthrough else [],
            self.encode_regions(source, motion),
        )

    def encode_regions(self, source: Tensor, motion: Tensor) -> list[Tensor]:
        """What the refiners need of portraits: features `(batch, crops, channels, height, width)` of each level."""
        features = []
        for refiner in self.refiners.values():
            region = refiner.region
            crop = cut_region(source, region_transform(motion[:, :POSE_DIM], region), region.size).to(source.dtype)
            features += [x.unflatten(0, (len(source), region.count)) for x in refiner.encode_source(crop)]
        return features

    @apply_forward_hook
    def decode(
        self, appearance: FaceAppearance, motion: Tensor, output_size: int | None = None, return_dict: bool = False
    ) -> Tensor | Vasa1FaceAutoencoderOutput:
        """Image of a person in a given pose and dynamics: D(V_app, z_id, z_pose, z_dyn).

        Source: VASA-1 §3.1.

        Args:
            appearance (`FaceAppearance`): Of the same batch size as `motion`, see `FaceAppearance.expand`.
            motion (`torch.Tensor` of shape `(batch, 6 + dynamics_dim)`): z_pose and z_dyn.
            output_size (`int`, *optional*): Side of the result, defaults to `image_size`. Other sizes need
                `source_passthrough`.
            return_dict (`bool`): Return the flow and blend too.

        Returns:
            `torch.Tensor` of shape `(batch, 3, output_size, output_size)` in [-1, 1], or
            `Vasa1FaceAutoencoderOutput`.

        Raises:
            ValueError: If shapes or sizes do not fit.
        """
        self._check_motion(motion, len(appearance.identity))
        size = self.config.image_size
        output_size = output_size or size
        if output_size != size and not self.config.source_passthrough:
            raise ValueError(f"`output_size` must be {size} without `source_passthrough`, got {output_size}.")
        code = torch.cat([appearance.identity, motion[:, POSE_DIM:].to(appearance.identity.dtype)], 1)
        pose = motion[:, :POSE_DIM].float()
        depth, fine = self.config.volume_depth, self.config.warp_size
        coarse = appearance.volume.shape[-1]
        grid = identity_grid(depth, fine, fine, like=pose)[None]
        points = displace(canonical_from_posed(grid, pose), self.target_warp(code))  # neutral canonical
        coarse_points = points
        if coarse != fine:
            coarse_points = F.interpolate(points.permute(0, 4, 1, 2, 3), (depth, coarse, coarse), mode="area")
            coarse_points = coarse_points.permute(0, 2, 3, 4, 1)
        posed = warp_volume(appearance.volume, to_volume_grid(coarse_points)).flatten(1, 2)  # [B, C*D, H, W]
        if not self.config.source_passthrough:
            x = self.merge(posed)
            for block in self.decoder_blocks:
                x = self._run(block, x, code)
            for index, up in enumerate(self.ups):
                x = self.fuse[index](up(x))
                if index < len(self.fine_blocks):
                    x = self._run(self.fine_blocks[index], x)
            output = Vasa1FaceAutoencoderOutput(sample=torch.tanh(self.to_rgb(F.leaky_relu(x, 0.2))))
        else:
            output = self._decode_passthrough(appearance, motion, code, points, posed, output_size)
        if self.refiners:
            output["sample"] = self.refine_regions(output.sample, appearance, motion)
        return output if return_dict else output.sample

    def refine_regions(self, sample: Tensor, appearance: FaceAppearance, motion: Tensor) -> Tensor:
        """Repaint mouth and eyes of decoded images `(batch, 3, height, width)` in [-1, 1]; the same shape."""
        features = iter(appearance.region_features)
        image, code = sample, region_code(appearance.identity, appearance.motion, motion)
        for refiner in self.refiners.values():
            transform = region_transform(motion[:, :POSE_DIM], refiner.region)
            crop = cut_region(sample, transform, refiner.region.size).to(sample.dtype)
            source = [next(features).flatten(0, 1) for _ in refiner.joins]
            image = add_region(image, refiner(crop, source, code), transform)
        return image.to(sample.dtype)

    def _decode_passthrough(
        self,
        appearance: FaceAppearance,
        motion: Tensor,
        code: Tensor,
        points: Tensor,
        posed: Tensor,
        output_size: int,
    ) -> Vasa1FaceAutoencoderOutput:
        """Compose the warps into a pixel flow and blend moved, unmoved and generated pixels."""
        # Where each target voxel comes from in the source crop, then the depth that is seen: [B, 2, h, w].
        origin = posed_from_canonical(
            displace(points, appearance.source_field), appearance.motion[:, :POSE_DIM].float()
        )
        weight = F.interpolate(
            self.depth_weight(posed).float(), origin.shape[2:4], mode="bilinear", align_corners=False
        )
        flow = (weight.softmax(1)[..., None] * origin[..., :2]).sum(1).permute(0, 3, 1, 2)

        half, quarter, eighth = appearance.features
        x = self.merge(torch.cat([posed, eighth], 1))
        for block in self.decoder_blocks:
            x = self._run(block, x, code)
        x = self.ups[0](x)
        flow = _resize(flow, x.shape[-1])
        x = self.fuse[0](torch.cat([x, _sample(quarter, flow)], 1))
        x = self._run(self.fine_blocks[0], x)
        flow = flow + self.flow_heads[0](F.leaky_relu(x, 0.2)).float()
        x = self.ups[1](x)
        flow = _resize(flow, x.shape[-1])
        x = self.fuse[1](torch.cat([x, _sample(half, flow)], 1))
        x = self._run(self.fine_blocks[1], x)
        flow = flow + self.flow_heads[1](F.leaky_relu(x, 0.2)).float()
        if self.config.motion_basis:
            apart = (motion - appearance.motion)[:, POSE_DIM:].float()
            flow = flow + self._basis_flow(F.leaky_relu(x, 0.2), apart)

        size = self.config.image_size
        source = appearance.source.float()
        small = source if source.shape[-1] == size else F.interpolate(source, size, mode="area")
        flow = _resize(flow, size)
        moved = _sample(small, flow)
        x = self.fuse[2](torch.cat([self.ups[2](x), moved.to(x.dtype)], 1))
        x = self.to_rgb(F.leaky_relu(x, 0.2))
        rgb, blend = x.to(torch.float32, memory_format=torch.contiguous_format).chunk(2, 1)
        generated, blend = torch.tanh(rgb), blend.softmax(1)
        if output_size != size:
            flow, generated, blend = (_resize(t, output_size) for t in (flow, generated, blend))
        if source.shape[-1] != output_size:
            source = F.interpolate(source, output_size, mode="bilinear", antialias=True, align_corners=False)
        if source is not small:
            moved = _sample(source, flow)
        sample = blend[:, :1] * moved + blend[:, 1:2] * source + blend[:, 2:] * generated
        sample = keep_still_pixels(sample, source, blend, (motion - appearance.motion)[:, 3:5].float().norm(dim=1))
        return Vasa1FaceAutoencoderOutput(
            sample=sample.to(code.dtype), flow=flow.permute(0, 2, 3, 1), blend=blend, generated=generated
        )

    def forward(
        self,
        source: Tensor,
        driving: Tensor | None = None,
        source_motion: Tensor | None = None,
        driving_motion: Tensor | None = None,
        return_dict: bool = True,
        motion_only: bool = False,
    ) -> Vasa1FaceAutoencoderOutput | tuple[Tensor] | Tensor:
        """Reconstruct a driving frame from a source frame of the same person.

        Args:
            source (`torch.Tensor` of shape `(batch, 3, size, size)`): Source frame, RGB in [-1, 1].
            driving (`torch.Tensor` of shape `(batch, 3, size, size)`, *optional*): Driving frame; not needed when its
                motion is given.
            source_motion (`torch.Tensor` of shape `(batch, 6 + dynamics_dim)`, *optional*): Known source motion.
            driving_motion (`torch.Tensor` of shape `(batch, 6 + dynamics_dim)`, *optional*): Known driving motion.
            return_dict (`bool`): Return a `Vasa1FaceAutoencoderOutput` rather than a tuple.
            motion_only (`bool`): Only encode the motion of `source` (a forward pass, as data-parallel wrappers need).

        Returns:
            `Vasa1FaceAutoencoderOutput`, a tuple of the image alone, or the motion `(batch, 6 + dynamics_dim)`.
        """
        if motion_only:
            return self.encode_motion(source)
        appearance = self.encode_appearance(source, source_motion)
        motion = self.encode_motion(driving) if driving_motion is None else driving_motion
        output = self.decode(appearance, motion, return_dict=True)
        return output if return_dict else (output.sample,)

    def _basis_flow(self, x: Tensor, apart: Tensor) -> Tensor:
        """Sum of the basis head's fields, each times a channel of `apart` `(batch, dynamics_dim)`: `(batch, 2, h, w)`.

        The sum is taken over the weights, before the convolution: 2 channels instead of 2 for each of z_dyn.
        """
        weight, bias = (p.float().unflatten(0, (2, -1)) for p in (self.basis_head.weight, self.basis_head.bias))
        weight = torch.einsum("cdikl,bd->bcikl", weight, apart).to(x.dtype)
        bias = (apart @ bias.mT).to(x.dtype)
        return torch.cat([F.conv2d(x[i : i + 1], weight[i], bias[i], padding=1) for i in range(len(x))]).float()

    def _check_motion(self, motion: Tensor, batch: int) -> None:
        if motion.shape != (batch, self.motion_dim):
            raise ValueError(f"`motion` must have shape ({batch}, {self.motion_dim}), got {tuple(motion.shape)}.")

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)


def region_code(identity: Tensor, source_motion: Tensor, motion: Tensor) -> Tensor:
    """Code of the region refiners: z_id, z_dyn and rotation of frame and source, `(batch, id + 2 * dynamics + 6)`."""
    limited = [x[:, POSE_DIM:].clamp(-4, 4) for x in (motion, source_motion)]
    turned = [4 * x[:, :3] for x in (motion, source_motion)]
    return torch.cat([identity, *(x.to(identity.dtype) for x in (*limited, *turned))], 1)


def keep_still_pixels(
    sample: Tensor,  # [B, 3, S, S]
    source: Tensor,  # [B, 3, S, S]
    blend: Tensor,  # [B, 3, S, S]
    shift: Tensor,  # [B]
) -> Tensor:
    """Put the source's own pixels where nothing moves, so that background and shoulders stay as sharp as they were.

    Not in the paper. Trained under L1, the decoder never quite predicts that a pixel is still: a share of its own image
    and of moved pixels blurs it. A pixel counts as still if the unmoved source outweighs the moved one and, without
    detail, the blend shows what the source shows there: where a head came or went it shows something else. The further
    the head has gone, the more the unmoved source must outweigh the moved one below the chin, for shoulders go along.

    Args:
        sample (`torch.Tensor` of shape `(batch, 3, size, size)`): The blended image in [-1, 1].
        source (`torch.Tensor` of shape `(batch, 3, size, size)`): The portrait in [-1, 1].
        blend (`torch.Tensor` of shape `(batch, 3, size, size)`): Shares of moved source, unmoved source and decoder.
        shift (`torch.Tensor` of shape `(batch,)`): How far the head is from where it is in the portrait, of the side.

    Returns:
        `torch.Tensor` of shape `(batch, 3, size, size)`: exactly the source where still, exactly the sample where not.
    """
    size = sample.shape[-1]
    moved, unmoved = blend[:, :1], blend[:, 1:2]
    change = F.adaptive_avg_pool2d(sample - source, min(size, 64))
    change = F.avg_pool2d(change, 5, 1, 2, count_include_pad=False).abs().amax(1, keepdim=True)
    still = _resize(1 - _ramp(change, *_STILL_CHANGE), size)
    row = (torch.arange(size, device=sample.device) + 0.5).view(1, 1, -1, 1) / size
    with_head = _STILL_SHIFT * shift.view(-1, 1, 1, 1) * _ramp(row, *_SHOULDERS)
    moved = moved / (moved + unmoved + 1e-6) + with_head
    still = still * _ramp(unmoved, *_STILL_UNMOVED) * (1 - _ramp(moved, *_STILL_MOVED))
    return torch.lerp(sample, source, still)


def _ramp(x: Tensor, low: float, high: float) -> Tensor:
    """0 below `low`, 1 above `high`, smooth between."""
    x = ((x - low) / (high - low)).clamp(0, 1)
    return x * x * (3 - 2 * x)


def _resize(image: Tensor, size: int) -> Tensor:
    if image.shape[-1] == size:
        return image
    return F.interpolate(image, size, mode="bilinear", align_corners=False)


def _sample(image: Tensor, flow: Tensor) -> Tensor:
    """Sample `[B, C, H, W]` at `flow` `[B, 2, h, w]`, xy in [-1, 1], in float32; laid out as convolutions like it."""
    out = F.grid_sample(image.float(), flow.permute(0, 2, 3, 1).float(), padding_mode="border", align_corners=False)
    return out.to(image.dtype, memory_format=torch.channels_last)

"""GAIA's variational autoencoder (§4.2): a frame as appearance of one frame and motion of another.

    x_a(i) image      --E_A, factor 8-->   z_a(i)  [3, 32, 32] --.
                                                                  join --D--> x_a(j)
    x_m(j) landmarks  --E_M, factor 16-->  z_m(j)  [3, 16, 16] --'            (sizes at 256 x 256)

`x_m` is an image of the landmarks, see `vasa_hf.geometry.landmark_pictures`. Motion goes in and out as one vector for
each frame: z_m in the order rows, columns, channels.

# Not in the paper: the widths of the levels other than `d_hidden`; they are chosen so that the presets have the paper's
numbers of parameters. The residual blocks are those of `vasa_hf.layers.blocks`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional as F

from vasa_hf.layers.blocks import ResBlock, UpBlock2d

# Names and (d_hidden, n_layer) of appendix B.1: 80M (128, 2), 700M (256, 4), 1.7B (512, 8).
PAPER_CONFIGS: dict[str, dict[str, Any]] = {
    "80m": {"channels": [128, 256, 256, 512], "motion_channels": [128, 256, 256, 512, 512], "num_layers": 2},
    "700m": {"channels": [256, 256, 1024, 1024], "motion_channels": [256, 256, 1024, 1024, 1024], "num_layers": 4},
    "1.7b": {"channels": [512, 896, 1024, 1024], "motion_channels": [512, 896, 1024, 1024, 1024], "num_layers": 8},
}
# Not in the paper: for CPUs.
SMALL_CONFIG: dict[str, Any] = {
    "channels": [24, 64, 128],
    "motion_channels": [16, 32, 64, 96],
    "num_layers": 2,
    "patch_size": 2,
    "norm": False,
    "source_passthrough": True,
}
# For tests and trial runs.
TINY_CONFIG: dict[str, Any] = {
    **SMALL_CONFIG,
    "image_size": 32,
    "channels": [4, 8, 8],
    "motion_channels": [4, 8, 8, 8],
    "num_layers": 1,
}
# "paper" is that of the main experiments.
PRESETS = {**PAPER_CONFIGS, "paper": PAPER_CONFIGS["700m"], "small": SMALL_CONFIG, "tiny": TINY_CONFIG}
MOTION_INPUTS = ("landmarks", "frame")


@dataclass
class GaiaAutoencoderOutput(BaseOutput):
    """Output of `GaiaAutoencoder`.

    Args:
        sample (`torch.Tensor` of shape `(batch, 3, height, width)`): Decoded frame, about [-1, 1].
        appearance (`DiagonalGaussianDistribution`): Of z_a.
        motion (`DiagonalGaussianDistribution`): Of the driving frame's z_m.
        flow (`torch.Tensor` of shape `(batch, height, width, 2)`, *optional*):
            Where each pixel comes from in the source, xy in [-1, 1]; with `source_passthrough`.
    """

    sample: Tensor
    appearance: DiagonalGaussianDistribution | None = None
    motion: DiagonalGaussianDistribution | None = None
    flow: Tensor | None = None


@dataclass
class GaiaAppearance:
    """What the decoder needs of a person.

    Attributes:
        latent (`torch.Tensor` of shape `(batch, channels, height / 8, width / 8)`): z_a.
        image (`torch.Tensor` of shape `(batch, 3, height, width)`, *optional*): With `source_passthrough`.
        motion (`torch.Tensor` of shape `(batch, motion_dim)`, *optional*): Its own z_m, with `source_passthrough`.
    """

    latent: Tensor
    image: Tensor | None = None
    motion: Tensor | None = None

    def expand(self, count: int) -> GaiaAppearance:
        """The appearance of one person for `count` frames."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return GaiaAppearance(
            **{name: None if x is None else x.expand(count, *x.shape[1:]) for name, x in values.items()}
        )


class GaiaAutoencoder(ModelMixin, ConfigMixin):
    """Disentangles frames into appearance and motion, and decodes them.

    Args:
        image_size (`int`, defaults to 256): Side of the images.
        channels (`list[int]`, defaults to `[128, 256, 256, 512]`): Widths of E_A and D, finest level first.
        motion_channels (`list[int]`, defaults to `[128, 256, 256, 512, 512]`): Widths of E_M, finest level first.
        num_layers (`int`, defaults to 2): Residual blocks of a level.
        latent_channels (`int`, defaults to 3): Channels of both latents.
        patch_size (`int`, defaults to 1): Side of the squares of pixels that the finest level works on.
        norm (`bool`, defaults to `True`): Whether blocks normalize; see `ResBlock`.
        motion_input (`str`, defaults to `"landmarks"`):
            `"frame"` is the paper's ablation without disentanglement: z_m is encoded from the frame itself and
            decoded alone.
        source_passthrough (`bool`, defaults to `False`):
            # Not in the paper: D also sees the source's own z_m, and moves the source's pixels by a flow; a mask
            blends them with the pixels it paints. Small models stay sharp with it.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        image_size: int = 256,
        channels: list[int] = PAPER_CONFIGS["80m"]["channels"],
        motion_channels: list[int] = PAPER_CONFIGS["80m"]["motion_channels"],
        num_layers: int = 2,
        latent_channels: int = 3,
        patch_size: int = 1,
        norm: bool = True,
        motion_input: str = "landmarks",
        source_passthrough: bool = False,
    ):
        super().__init__()
        if motion_input not in MOTION_INPUTS:
            raise ValueError(f"`motion_input` must be one of {MOTION_INPUTS}, got {motion_input!r}.")
        if source_passthrough and (motion_input == "frame" or len(channels) < 2):
            raise ValueError("`source_passthrough` needs `motion_input` 'landmarks' and two `channels` or more.")
        self.factor, self.motion_factor = (patch_size * 2 ** (len(x) - 1) for x in (channels, motion_channels))
        if self.motion_factor < self.factor:
            raise ValueError(f"`motion_channels` must have {len(channels)} levels or more, got {motion_channels}.")
        if image_size % self.motion_factor:
            raise ValueError(f"`image_size` must be a multiple of {self.motion_factor}, got {image_size}.")
        width, self.disentangles = channels[-1], motion_input == "landmarks"
        if self.disentangles:
            self.appearance_encoder = GaiaEncoder(channels, num_layers, latent_channels, patch_size, norm)
            self.appearance_projection = nn.Conv2d(latent_channels, width, 1)
        self.motion_encoder = GaiaEncoder(motion_channels, num_layers, latent_channels, patch_size, norm)
        self.motion_projection = nn.Conv2d(latent_channels, width, 1)
        if source_passthrough:
            self.source_motion_projection = nn.Conv2d(latent_channels, width, 1)
        self.decoder = GaiaDecoder(
            width * (1 + self.disentangles + source_passthrough),
            channels,
            num_layers,
            patch_size,
            norm,
            source_passthrough,
        )

    @property
    def motion_size(self) -> int:
        """Side of z_m."""
        return self.config.image_size // self.motion_factor

    @property
    def motion_dim(self) -> int:
        """Numbers of z_m."""
        return self.config.latent_channels * self.motion_size**2

    @apply_forward_hook
    def encode_appearance(self, image: Tensor, motion: Tensor | None = None) -> GaiaAppearance:
        """Encode a person's appearance, the mode of z_a.

        Args:
            image (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [-1, 1].
            motion (`torch.Tensor` of shape `(batch, motion_dim)`, *optional*): Its z_m, for `source_passthrough`.
        """
        return self._appearance(self._appearance_posterior(image).mode(), image, motion)

    @apply_forward_hook
    def encode_motion(self, picture: Tensor) -> DiagonalGaussianDistribution:
        """Encode motion, the distribution of z_m as a map; see `flatten_motion`.

        Args:
            picture (`torch.Tensor` of shape `(batch, 3, height, width)`):
                Image of the landmarks in [-1, 1]; the frame itself without disentanglement.
        """
        self._check_image("picture", picture)
        return DiagonalGaussianDistribution(self.motion_encoder(picture).float())

    @apply_forward_hook
    def decode(self, appearance: GaiaAppearance, motion: Tensor, return_flow: bool = False) -> Any:
        """Decode frames, D(z_a, z_m).

        Args:
            appearance (`GaiaAppearance`): Of each of the batch.
            motion (`torch.Tensor` of shape `(batch, motion_dim)`): z_m.
            return_flow (`bool`, defaults to `False`): Whether to return the flow, too; `None` without one.

        Returns:
            `torch.Tensor` of shape `(batch, 3, height, width)`, about [-1, 1], or a tuple of it and the flow.
        """
        parts, size = [], appearance.latent.shape[-1]
        if self.disentangles:
            parts.append(self.appearance_projection(appearance.latent.to(self.dtype)))
        parts.append(self._raise_motion("motion", self.motion_projection, motion, len(appearance.latent), size))
        if self.config.source_passthrough:
            own = appearance.motion
            parts.append(self._raise_motion("motion", self.source_motion_projection, own, len(motion), size))
        sample, flow = self.decoder(torch.cat(parts, 1), appearance.image)
        return (sample, flow) if return_flow else sample

    def forward(
        self,
        source: Tensor,  # [B, 3, H, W]
        source_picture: Tensor,  # [B, 3, H, W]
        driving_picture: Tensor,  # [B, 3, H, W]
        sample_posterior: bool = False,
        return_dict: bool = True,
    ) -> GaiaAutoencoderOutput | tuple:
        """Reconstruct frame j from the appearance of frame i.

        Source: GAIA Eq. 1 and 2.

        Args:
            source (`torch.Tensor` of shape `(batch, 3, height, width)`): x_a(i), RGB in [-1, 1].
            source_picture (`torch.Tensor` of the same shape): x_m(i); only seen with `source_passthrough`.
            driving_picture (`torch.Tensor` of the same shape): x_m(j); the frame itself without disentanglement.
            sample_posterior (`bool`, defaults to `False`): Whether to draw latents, for training, or take the modes.
            return_dict (`bool`, defaults to `True`): Whether to return `GaiaAutoencoderOutput` or a tuple.
        """
        appearance, motion = self._appearance_posterior(source), self.encode_motion(driving_picture)
        z_a, z_m = ((x.sample() if sample_posterior else x.mode()) for x in (appearance, motion))
        own = None
        if self.config.source_passthrough:
            own = self.flatten_motion(self.encode_motion(source_picture).mode())
        sample, flow = self.decode(self._appearance(z_a, source, own), self.flatten_motion(z_m), return_flow=True)
        if not return_dict:
            return sample, appearance, motion, flow
        return GaiaAutoencoderOutput(sample, appearance, motion, flow)

    @staticmethod
    def flatten_motion(latent: Tensor) -> Tensor:
        """z_m `(batch, channels, height, width)` as a vector `(batch, motion_dim)`."""
        return latent.permute(0, 2, 3, 1).flatten(1)

    def _appearance_posterior(self, image: Tensor) -> DiagonalGaussianDistribution:
        self._check_image("image", image)
        if self.disentangles:
            return DiagonalGaussianDistribution(self.appearance_encoder(image).float())
        side, channels = image.shape[-1] // self.factor, self.config.latent_channels  # a standard normal: nothing
        return DiagonalGaussianDistribution(torch.zeros(len(image), 2 * channels, side, side, device=image.device))

    def _appearance(self, latent: Tensor, image: Tensor, motion: Tensor | None) -> GaiaAppearance:
        if not self.config.source_passthrough:
            return GaiaAppearance(latent)
        if motion is None:
            raise ValueError("`motion` must be the image's own z_m with `source_passthrough`, got None.")
        return GaiaAppearance(latent, image, motion)

    def _raise_motion(self, name: str, projection: nn.Module, motion: Tensor, batch: int, size: int) -> Tensor:
        """z_m up-sampled to the size of z_a and projected."""
        side, channels = size * self.factor // self.motion_factor, self.config.latent_channels
        if motion.shape != (batch, channels * side**2):
            raise ValueError(f"`{name}` must have shape {(batch, channels * side**2)}, got {tuple(motion.shape)}.")
        latent = motion.to(projection.weight.dtype).unflatten(1, (side, side, channels)).permute(0, 3, 1, 2)
        return projection(F.interpolate(latent, size=(size, size), mode="bilinear", align_corners=False))

    def _check_image(self, name: str, image: Tensor) -> None:
        size = self.config.image_size
        if image.shape[1:] != (3, size, size):
            raise ValueError(f"`{name}` must have shape (batch, 3, {size}, {size}), got {tuple(image.shape)}.")


class GaiaEncoder(nn.Module):
    """E_A or E_M: residual blocks, each level of half the size, to mean and logarithm of the variance of a latent."""

    def __init__(self, channels: list[int], num_layers: int, latent_channels: int, patch_size: int, norm: bool):
        super().__init__()
        self.patch_size = patch_size
        self.conv_in = nn.Conv2d(3 * patch_size**2, channels[0], 3, padding=1)
        layers: list[nn.Module] = []
        for level, width in enumerate(channels):
            # The finest level of an encoder on patches is the most expensive one: a convolution is enough there.
            blocks = num_layers if level or patch_size == 1 else 0
            layers += [ResBlock(2, width, width, norm=norm) for _ in range(blocks)]
            if level + 1 < len(channels):
                layers.append(nn.Conv2d(width, channels[level + 1], 3, stride=2, padding=1))
        self.layers = nn.Sequential(*layers)
        self.conv_out = nn.Conv2d(channels[-1], 2 * latent_channels, 3, padding=1)
        # A variance of one would drown the means of a model that has learnt nothing yet.
        nn.init.constant_(self.conv_out.bias[latent_channels:], -4.0)

    def forward(self, image: Tensor) -> Tensor:
        """Encode `(batch, 3, height, width)` to `(batch, 2 * latent_channels, height / factor, width / factor)`."""
        image = image.to(self.conv_in.weight.dtype)
        patches = F.pixel_unshuffle(image, self.patch_size) if self.patch_size > 1 else image
        return self.conv_out(F.leaky_relu(self.layers(self.conv_in(patches)), 0.2))


class GaiaDecoder(nn.Module):
    """D: residual blocks, each level of twice the size; with pass-through also a flow and a mask."""

    def __init__(
        self, in_channels: int, channels: list[int], num_layers: int, patch_size: int, norm: bool, passthrough: bool
    ):
        super().__init__()
        widths = channels[::-1]
        self.patch_size, self.passthrough = patch_size, passthrough
        self.conv_in = nn.Conv2d(in_channels, widths[0], 1)
        # Coarse levels are cheap: one block more there, two on patches.
        blocks = [num_layers + (1 if patch_size == 1 or level else 2) for level in range(len(widths))]
        if patch_size > 1:
            blocks[-1] = max(1, num_layers - 1)
        self.levels = nn.ModuleList(
            nn.Sequential(*(ResBlock(2, width, width, norm=norm) for _ in range(count)))
            for width, count in zip(widths, blocks, strict=True)
        )
        self.ups = nn.ModuleList(UpBlock2d(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        if passthrough:
            # The flow is made one level above the latents; what it moves is shown to the levels that follow.
            self.flow_stride = patch_size * 2 ** (len(widths) - 2)
            self.flow = nn.Conv2d(widths[1], 2, 3, padding=1)
            self.moved = nn.Conv2d(3 * self.flow_stride**2, widths[1], 3, padding=1)
            nn.init.normal_(self.flow.weight, std=1e-3)
            nn.init.zeros_(self.flow.bias)
        self.conv_out = nn.Conv2d(widths[-1], (3 + passthrough) * patch_size**2, 3, padding=1)

    def forward(
        self,
        latent: Tensor,  # [B, C, h, w]
        source: Tensor | None = None,  # [B, 3, H, W]
    ) -> tuple[Tensor, Tensor | None]:
        """Decode joined latents; returns the frame `(batch, 3, H, W)` and the flow `(batch, H, W, 2)`, if any."""
        hidden_states, flow, moved = self.conv_in(latent), None, None
        for level, blocks in enumerate(self.levels):
            hidden_states = blocks(hidden_states)
            if level == 1 and self.passthrough:
                flow = self._full_flow(hidden_states, source.shape[-1])
                image = source.to(flow.dtype)
                moved = F.grid_sample(image, flow, padding_mode="border", align_corners=False).to(latent.dtype)
                hidden_states = hidden_states + self.moved(F.pixel_unshuffle(moved, self.flow_stride))
            if level + 1 < len(self.levels):
                hidden_states = self.ups[level](hidden_states)
        out = self.conv_out(F.leaky_relu(hidden_states, 0.2))
        out = F.pixel_shuffle(out, self.patch_size) if self.patch_size > 1 else out
        if not self.passthrough:
            return out, None
        mask = (out[:, 3:] + 1.0).sigmoid()  # mostly the source to begin with
        return mask * moved + (1 - mask) * out[:, :3], flow

    def _full_flow(self, hidden_states: Tensor, size: int) -> Tensor:
        """Sampling positions of all pixels, float32: 8 bits of bfloat16 would be half a pixel of 256."""
        shift = self.flow(F.leaky_relu(hidden_states, 0.2)).float()
        shift = F.interpolate(shift, size=(size, size), mode="bilinear", align_corners=False)
        identity = torch.eye(2, 3, device=shift.device).expand(len(shift), -1, -1)
        return F.affine_grid(identity, [len(shift), 3, size, size], align_corners=False) + shift.permute(0, 2, 3, 1)

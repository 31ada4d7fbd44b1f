"""Losses of VASA-3D (§3.3): images of an avatar against VASA-1's frames, and images from where no frame looks.

```
L_recon (Eq. 5)   SSIM and L1                     L_sds              a text-to-image model judges views from all sides
L_perc  (Eq. 6)   LPIPS, patch discriminators     L_consist (Eq. 7)  G'' looks like G' from the side
L_others          position and scale, binding.py  L_cas              the sharpened image is what it should be
```
All images are RGB `(batch, 3, height, width)`, in [0, 1] as far as the renderer keeps to it.
"""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vasa_hf.gaussians.scene import Gaussians
from vasa_hf.geometry.cameras import Cameras, orbit_cameras
from vasa_hf.hub import resolve
from vasa_hf.metrics.image import blur, gaussian_line
from vasa_hf.models.lpips import Lpips
from vasa_hf.models.pretrained_features import pretrained_features

logger = logging.getLogger(__name__)

PROMPT = "human portrait, realistic photography, by DSLR camera"  # §3.3
_SDS_ELEVATION, _CONSIST_ELEVATION = math.radians(22.5), math.radians(15.0)
_CONSIST_AZIMUTH = (math.radians(35.0), math.radians(55.0))
# Not in the paper: brings the distance of the recogniser's feature maps to the size of LPIPS.
_FEATURE_SCALE = 0.1


# --- Eq. 5 ------------------------------------------------------------------------------------------------------------


class _Blur(torch.autograd.Function):
    """Both axes filtered by an even line of weights where it fits; the backward pass is the same filter.

    `metrics.image.blur` alone would keep an image for each of its weights until the backward pass.
    """

    @staticmethod
    def forward(ctx, images: Tensor, weights: tuple[float, ...]) -> Tensor:
        ctx.weights = weights
        return blur(images, weights)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        border = len(ctx.weights) - 1
        return blur(F.pad(gradient, (border,) * 4), ctx.weights), None


def ssim_loss(prediction: Tensor, target: Tensor, sigma: float = 1.5, kernel_size: int = 11) -> Tensor:
    """1 - SSIM, with gradients; its number is that of `metrics.image.ssim`.

    Source: VASA-3D Eq. 5; Wang et al. 2004, Eq. 13.

    Args:
        prediction (`torch.Tensor` of shape `(batch, 3, height, width)`): Rendered.
        target (`torch.Tensor` of shape `(batch, 3, height, width)`): VASA-1's frame; gets no gradient.
        sigma (`float`, *optional*, defaults to 1.5): Standard deviation of the window in pixels.
        kernel_size (`int`, *optional*, defaults to 11): Its side.
    """
    weights = gaussian_line(sigma, kernel_size)
    target = target.detach()
    x, xx, xy = _Blur.apply(torch.cat([prediction, prediction.square(), prediction * target], 1), weights).chunk(3, 1)
    y, yy = _Blur.apply(torch.cat([target, target.square()], 1), weights).chunk(2, 1)
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * x * y + c1) * (2 * (xy - x * y) + c2)
    return 1 - (value / ((x.square() + y.square() + c1) * (xx - x.square() + yy - y.square() + c2))).mean()


def recon_loss(prediction: Tensor, target: Tensor, weight_ssim: float = 0.1) -> Tensor:
    """L_recon: SSIM and L1 (Eq. 5). `weight_ssim` is lambda_ssim; at 0 SSIM is not computed. Arguments as above."""
    absolute = (prediction - target).abs().mean()
    if not weight_ssim:
        return absolute
    return weight_ssim * ssim_loss(prediction, target) + (1 - weight_ssim) * absolute


# --- Eqs. 6 and 7, CAS ------------------------------------------------------------------------------------------------


class PerceptualDistance(nn.Module):
    """LPIPS where its weights are at hand, else a distance of the embedded face recogniser's feature maps.

    Attributes:
        name (`str`): Which of the two: "lpips" or "face_recognizer".

    Args:
        lpips (`str` or `os.PathLike`, *optional*): Converted LPIPS weights; the paper's are those with VGG.
        recognizer (`str` or `os.PathLike`, *optional*, defaults to the embedded one): See `pretrained_features`.
    """

    def __init__(
        self, lpips: str | os.PathLike | None = None, recognizer: str | os.PathLike = "vasa-small/face_recognizer"
    ):
        super().__init__()
        self.name = "face_recognizer" if lpips is None else "lpips"
        self.network = pretrained_features(resolve(recognizer)) if lpips is None else Lpips.load(lpips)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps of images in [0, 1]."""
        return self.network.feature_maps(images * 2 - 1) if self.name != "lpips" else self.network.maps(images)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean distance of images, a scalar; `target` gets no gradient. Both may be repetitions of each other."""
        with torch.no_grad():
            wanted = self.maps(target)
        pairs = list(zip(self.maps(prediction), wanted, strict=True))
        if len(prediction) != len(target):
            pairs = [(a, b.repeat(len(prediction) // len(target), 1, 1, 1)) for a, b in pairs]
        if self.name == "lpips":
            layers = zip(pairs, self.network.weights, strict=True)
            return sum(((a - b).square() * w.view(1, -1, 1, 1)).sum(1).mean() for (a, b), w in layers)
        return _FEATURE_SCALE * sum((a.float() - b.float()).square().mean() for a, b in pairs)


def sharpen(images: Tensor, sharpness: float = 1.0) -> Tensor:
    """AMD's contrast adaptive sharpening: local contrast is raised, least where it is high already.

    Source: FidelityFX CAS 1.0 without scaling, `CAS_BETTER_DIAGONALS`, exact divisions; green's weight for all colours.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`): In [0, 1].
        sharpness (`float`, *optional*, defaults to 1.0): 0 (least) to 1. # Not in the paper.

    Returns:
        `torch.Tensor` of the same shape, in [0, 1].
    """
    if not 0 <= sharpness <= 1:
        raise ValueError(f"`sharpness` must lie in [0, 1], got {sharpness}.")
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    height, width = images.shape[-2:]
    around = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]  # a b c d e f g h i
    green = torch.stack([value[:, 1:2] for value in around])
    cross = green[[1, 3, 4, 5, 7]]
    low, high = cross.amin(0) + green.amin(0), cross.amax(0) + green.amax(0)  # soft, twice as large
    amount = (torch.minimum(low, 2 - high) / high.clamp_min(1e-6)).clamp(0, 1).sqrt()
    weight = amount * (-1 / (8 + (5 - 8) * sharpness))
    neighbours = around[1] + around[3] + around[5] + around[7]
    return ((neighbours * weight + images) / (1 + 4 * weight)).clamp(0, 1)


def sharpening_loss(distance: PerceptualDistance, prediction: Tensor) -> Tensor:
    """L_cas (§3.3): the image should look as it does after `sharpen`."""
    return distance(prediction, sharpen(prediction.detach()))


# --- views ------------------------------------------------------------------------------------------------------------


def consistency_cameras(
    avatar: Any, gaussians: Gaussians, motion: Tensor, generator: torch.Generator | None = None
) -> Cameras:
    """Where Eq. 7 looks from: 35 to 55 degrees aside, on the side away from the training view; 15 up or down at most.

    The azimuth is meant as the face sees it: a training frame is seen at the head's own yaw.

    Args:
        avatar (`Vasa3DGaussianAvatar`): Gives distance and field of view.
        gaussians (`Gaussians`): A batch, which tells where the head is.
        motion (`torch.Tensor` of shape `(batch, channels)`): Of the training frames.
        generator (`torch.Generator`, *optional*): Of the angles; on the CPU.
    """
    yaw = motion[:, 0].detach().float().cpu()
    low, high = _CONSIST_AZIMUTH
    drawn = torch.rand(2, len(motion), generator=generator)
    azimuth = torch.where(yaw > 0, -1.0, 1.0) * (low + (high - low) * drawn[0])
    return cameras_around(avatar, gaussians, azimuth - yaw, _CONSIST_ELEVATION * (2 * drawn[1] - 1))


def random_cameras(avatar: Any, gaussians: Gaussians, generator: torch.Generator | None = None) -> Cameras:
    """Where L_sds looks from: all around, 22.5 degrees up or down at most. Arguments as above."""
    drawn = torch.rand(2, gaussians.batch_size, generator=generator) * 2 - 1
    return cameras_around(avatar, gaussians, math.pi * drawn[0], _SDS_ELEVATION * drawn[1])


def cameras_around(avatar: Any, gaussians: Gaussians, azimuth: Tensor, elevation: Tensor) -> Cameras:
    """A camera for each frame on an orbit about its head, from where it looks as large as from the front.

    Args:
        avatar (`Vasa3DGaussianAvatar`): Gives distance and field of view.
        gaussians (`Gaussians`): A batch of frames.
        azimuth (`torch.Tensor` of shape `(batch,)`): In radians, see `orbit_cameras`.
        elevation (`torch.Tensor` of shape `(batch,)`): In radians.
    """
    center, config = gaussians.means.detach().mean(dim=1).cpu(), avatar.config
    distance = (config.camera_distance_cm + center[:, 2]).clamp_min(0.25 * config.camera_distance_cm)
    cameras = orbit_cameras(azimuth, elevation, distance, center, config.fov_rad)
    return cameras.to(device=gaussians.means.device)


# --- SDS --------------------------------------------------------------------------------------------------------------


class ScoreDistillation(nn.Module):
    """L_sds: a text-to-image model says how images should change to look like its prompt.

    Source: VASA-3D §3.3; Poole et al. 2022 (DreamFusion) Eq. 3 with w(t) = 1 - alpha_bar(t), in the model's latents.

    Args:
        pipeline (`diffusers.DiffusionPipeline`, `str` or `os.PathLike`):
            With a `unet` and a `vae`, as Stable Diffusion 1, 2 and XL; or its folder or name on the Hub.
        prompt (`str`, *optional*, defaults to the paper's): What images should show.
        guidance_scale (`float`, *optional*, defaults to 10.0): Of classifier-free guidance, in diffusers' form.
        gradient_scale (`float`, *optional*, defaults to 0.001): Of the gradient on the latents.

    Raises:
        ValueError: If it cannot be loaded or is of another kind.
    """

    def __init__(
        self, pipeline: Any, prompt: str = PROMPT, guidance_scale: float = 10.0, gradient_scale: float = 0.001
    ):
        super().__init__()
        if isinstance(pipeline, str | os.PathLike):
            from diffusers import DiffusionPipeline

            try:
                pipeline = DiffusionPipeline.from_pretrained(os.fspath(pipeline), use_safetensors=True)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"`sds` must be a text-to-image model, {pipeline!r} cannot be loaded: {error}"
                ) from error
        missing = [name for name in ("unet", "vae", "scheduler", "encode_prompt") if not hasattr(pipeline, name)]
        if missing:
            kind = type(pipeline).__name__
            raise ValueError(f"`sds` must be a pipeline like Stable Diffusion's, {kind} has no {', '.join(missing)}.")
        self.unet = pipeline.unet.eval().requires_grad_(False)
        self.vae = pipeline.vae.eval().requires_grad_(False)
        self.guidance_scale, self.gradient_scale = guidance_scale, gradient_scale
        self.prediction_type = pipeline.scheduler.config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"`sds` must predict epsilon or v, {type(pipeline).__name__} predicts {self.prediction_type}."
            )
        self.register_buffer("alphas", pipeline.scheduler.alphas_cumprod.float(), persistent=False)
        self.image_size = self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._encode_prompt(pipeline, prompt)

    @torch.no_grad()
    def _encode_prompt(self, pipeline: Any, prompt: str) -> None:
        encoded = pipeline.encode_prompt(
            prompt=prompt, device=self.unet.device, num_images_per_prompt=1, do_classifier_free_guidance=True
        )
        self.register_buffer("prompt_embeds", torch.cat([encoded[1], encoded[0]]).float(), persistent=False)
        pooled = len(encoded) == 4  # SDXL
        self.register_buffer(
            "pooled", torch.cat([encoded[3], encoded[2]]).float() if pooled else None, persistent=False
        )

    def predict_noise(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """The noise in `latents` `(batch, C, h, w)` at `timestep` `(batch,)`, guided."""
        count = len(latents)
        extra = {}
        if self.pooled is not None:
            side = self.image_size
            ids = latents.new_tensor([side, side, 0, 0, side, side]).repeat(2 * count, 1)
            pooled = self.pooled.repeat_interleave(count, 0).to(self.unet.dtype)
            extra["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids.to(self.unet.dtype)}
        embeds = self.prompt_embeds.repeat_interleave(count, 0).to(self.unet.dtype)
        doubled, times = torch.cat([latents, latents]).to(self.unet.dtype), torch.cat([timestep, timestep])
        plain, prompted = self.unet(doubled, times, encoder_hidden_states=embeds, **extra).sample.float().chunk(2)
        predicted = plain + self.guidance_scale * (prompted - plain)
        if self.prediction_type == "epsilon":
            return predicted
        alpha = self.alphas[timestep].view(-1, 1, 1, 1)
        return alpha.sqrt() * predicted + (1 - alpha).sqrt() * latents

    def forward(self, images: Tensor, t_min: float, t_max: float, generator: torch.Generator | None = None) -> Tensor:
        """A scalar whose gradient on the latents is that of score distillation; its number means little.

        Args:
            images (`torch.Tensor` of shape `(batch, 3, height, width)`): Rendered.
            t_min (`float`): Least time of the diffusion, in [0, 1].
            t_max (`float`): Largest.
            generator (`torch.Generator`, *optional*): Of time and noise; on the CPU.
        """
        images = F.interpolate(images, (self.image_size,) * 2, mode="bilinear", antialias=True)
        latents = self.vae.encode((images * 2 - 1).to(self.vae.dtype)).latent_dist.mean.float()
        latents = latents * self.vae.config.scaling_factor
        with torch.no_grad():
            time = t_min + (t_max - t_min) * torch.rand(len(latents), generator=generator)
            timestep = (time * len(self.alphas)).long().clamp(0, len(self.alphas) - 1).to(latents.device)
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            alpha = self.alphas[timestep].view(-1, 1, 1, 1)
            predicted = self.predict_noise(alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, timestep)
            gradient = self.gradient_scale * (1 - alpha) * (predicted - noise)
        # d/dlatents of this is `gradient`.
        return (gradient.nan_to_num() * latents).sum() / len(latents)


def sds_t_max(step: int, start: float = 0.98, decay: float = 0.98, every: int = 2_000) -> float:
    """Largest time of the diffusion at an iteration (appendix A): it decays by 0.98 every 2,000."""
    return start * decay ** (step // every)

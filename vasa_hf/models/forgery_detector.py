"""Whether a face video is synthetic (VASA-1 appendix A: a detector of its videos, 97.8 % accurate).

```
T face crops --RGB, and what a blur takes away--> 4 convolutional stages, a vector a frame --mean, spread, mean of
             differences over time--> linear -> logit > 0: synthetic
```
# Not in the paper: the network. Small, so that it can be embedded: 0.6M parameters, 1.2 MB in 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn


@dataclass
class ForgeryDetectorOutput(BaseOutput):
    """Verdict on windows of video.

    Attributes:
        logits (`torch.Tensor` of shape `(batch,)`): Above 0: synthetic.
    """

    logits: Tensor

    @property
    def probability(self) -> Tensor:
        """Probability that a window is synthetic, `(batch,)`, as calibrated on held-out people."""
        return self.logits.sigmoid()


class ForgeryDetector(ModelMixin, ConfigMixin):
    """Tells synthetic windows of face crops from recorded ones; see `vasa_hf.training.recipes.forgery_detector`.

    Args:
        image_size (`int`, defaults to 128): Side of the crops; others are resampled.
        frames (`int`, defaults to 8): Frames of a window.
        widths (`tuple[int, ...]`, defaults to (24, 48, 96, 192)): Channels of the stages, each of which halves.
        dropout (`float`, defaults to 0.0): Before the last layer.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 128,
        frames: int = 8,
        widths: tuple[int, ...] = (24, 48, 96, 192),
        dropout: float = 0.0,
    ):
        super().__init__()
        if frames < 2:
            raise ValueError(f"`frames` must be at least 2, got {frames}.")
        layers: list[nn.Module] = []
        before = 6
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, 2, 1), nn.GroupNorm(8, width), nn.SiLU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(8, width), nn.SiLU()]
            before = width
        self.stages = nn.Sequential(*layers)
        self.drop = nn.Dropout(dropout)  # `dropout` is the config's
        self.head = nn.Linear(3 * before, 1)
        # Of the logits, fitted on held-out people after training: logits / temperature + bias.
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))

    def forward(self, frames: Tensor, return_dict: bool = True) -> ForgeryDetectorOutput | tuple[Tensor]:
        """Judge windows.

        Args:
            frames (`torch.Tensor` of shape `(batch, frames, 3, height, width)`):
                Consecutive standard face crops, RGB in [-1, 1].
            return_dict (`bool`, *optional*, defaults to True): Whether to return an output object.

        Raises:
            ValueError: If the shape is wrong.
        """
        if frames.ndim != 5 or frames.shape[2] != 3 or frames.shape[1] != self.config.frames:
            expected = f"(batch, {self.config.frames}, 3, height, width)"
            raise ValueError(f"`frames` must have shape {expected}, got {tuple(frames.shape)}.")
        batch, count = frames.shape[:2]
        images = frames.flatten(0, 1)
        if images.shape[-1] != self.config.image_size:
            size = (self.config.image_size,) * 2
            images = F.interpolate(images.float(), size, mode="bilinear", antialias=True).to(frames.dtype)
        # Decoders leave traces in what is fine: three pixels' mean takes it away.
        fine = images - F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        hidden_states = self.stages(torch.cat([images, 4 * fine], 1)).mean((2, 3)).unflatten(0, (batch, count))
        spread, change = hidden_states.std(1), hidden_states.diff(dim=1).abs().mean(1)
        pooled = torch.cat([hidden_states.mean(1), spread, change], 1)
        logits = self.head(self.drop(pooled))[:, 0] / self.temperature + self.bias
        return ForgeryDetectorOutput(logits) if return_dict else (logits,)

    @torch.no_grad()
    def judge(self, windows: Tensor, batch_size: int = 16) -> float:
        """Probability that a video is synthetic, from several of its windows.

        Args:
            windows (`torch.Tensor` of shape `(windows, frames, 3, height, width)`): RGB in [-1, 1].
            batch_size (`int`, *optional*, defaults to 16): Windows at a time.
        """
        logits = [self(part.to(self.device, self.dtype)).logits.float() for part in windows.split(batch_size)]
        return float(torch.cat(logits).mean().sigmoid())

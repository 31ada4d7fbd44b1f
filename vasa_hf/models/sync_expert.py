"""A sync expert: do these lips match this audio at this moment?

Not in the VASA papers, which judge sync with SyncNet on images. This one reads the motion latents, as MoDA's ALSE
does ("pretrained in audio and motion features", MoDA §3), so it can judge a generated motion without rendering it, and
its gradient can train a generator.

```
motion [B, T, M] -> lips and their speed -> 3-tap convolutions -\
                                                                 unit vectors [B, T - window + 1, E], one per window
audio [B, 640 T] -> log-mel, 4 per frame -> 3-tap convolutions -/
```

A window is `window` frames long and its vector depends on nothing outside it (no padding, normalisation over channels
alone). The cosine of the two vectors of one window says how well they belong together.

The audio enters as a log-mel spectrogram, not as features of the generator's audio encoder: a metric must not share
the blind spots of the model it judges, and it must stay the same when that encoder is replaced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from vasa_hf.checks import check_number

SAMPLING_RATE = 16_000
SAMPLES_PER_FRAME = 640
COLUMNS_PER_FRAME = 4
HOP, WINDOW_SAMPLES, FFT_SIZE = 160, 400, 512
POWER_FLOOR = 1e-8  # about the power of 16-bit rounding noise in one band


@dataclass
class SyncExpertOutput(BaseOutput):
    """Unit vectors of the windows.

    Attributes:
        motion_embeds (`torch.Tensor` of shape `(batch, frames - window + 1, embed_dim)`): Of the lips.
        audio_embeds (`torch.Tensor` of shape `(batch, frames - window + 1, embed_dim)`): Of the audio.
    """

    motion_embeds: Tensor
    audio_embeds: Tensor


def mel_filters(num_mels: int, low_hz: float = 60.0, high_hz: float = 7600.0) -> Tensor:
    """Triangles of equal height 1, evenly spaced in mel (2595 log10(1 + f / 700)), `(num_mels, 257)`."""
    mel = [2595.0 * math.log10(1.0 + hz / 700.0) for hz in (low_hz, high_hz)]
    edges = 700.0 * (10.0 ** (torch.linspace(*mel, num_mels + 2, dtype=torch.float64) / 2595.0) - 1.0)
    hz = torch.arange(FFT_SIZE // 2 + 1, dtype=torch.float64) * SAMPLING_RATE / FFT_SIZE
    rise = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp_min(0.0).float()


class ChannelNorm(nn.Module):
    """Layer norm over the channels of `(batch, channels, time)`, each moment by itself."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the same shape."""
        return self.norm(hidden_states.mT).mT


class ValidBlock(nn.Module):
    """Residual block of one 3-tap convolution without padding: two moments shorter.

    Args:
        channels (`int`): In and out.
        dropout (`float`): Of the branch.
    """

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = nn.Conv1d(channels, channels, 3)
        self.conv2 = nn.Conv1d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:  # [B, C, T] -> [B, C, T - 2]
        """Return hidden states of the moments that have both neighbours."""
        inner = self.conv2(F.gelu(self.conv1(self.norm(hidden_states))))
        return hidden_states[..., 1:-1] + self.dropout(inner)


class Tower(nn.Module):
    """From a first feature map at the frame rate to one vector a window of `2 * blocks + 1` frames."""

    def __init__(self, first: nn.Module, channels: int, blocks: int, embed_dim: int, dropout: float):
        super().__init__()
        self.first = first
        self.blocks = nn.Sequential(*(ValidBlock(channels, dropout) for _ in range(blocks)))
        self.norm = ChannelNorm(channels)
        self.out = nn.Conv1d(channels, embed_dim, 1)

    def forward(self, features: Tensor) -> Tensor:  # [B, C, T'] -> [B, T - window + 1, E]
        """Return unit vectors."""
        hidden_states = self.out(self.norm(self.blocks(self.first(features))))
        return F.normalize(hidden_states.mT, dim=-1)


class SyncExpert(ModelMixin, ConfigMixin):
    """Embeds lip motion and audio into one space, a vector a window.

    Args:
        motion_dim (`int`, defaults to 34): Channels M of the motion.
        lips (`tuple[int, int]`, defaults to (6, 20)): Channels `[start, stop)` of the motion that are looked at.
        num_mels (`int`, defaults to 40): Bands of the spectrogram.
        hidden_size (`int`, defaults to 128): Channels inside.
        embed_dim (`int`, defaults to 64): Channels E of the vectors.
        window (`int`, defaults to 9): Frames of a window, odd; 9 are 0.36 s.
        dropout (`float`, defaults to 0.0): Of every block, in training.
    """

    @register_to_config
    def __init__(
        self,
        motion_dim: int = 34,
        lips: tuple[int, int] = (6, 20),
        num_mels: int = 40,
        hidden_size: int = 128,
        embed_dim: int = 64,
        window: int = 9,
        dropout: float = 0.0,
    ):
        check_number("window", window, 1, 10_000, whole=True)
        super().__init__()
        if not 0 <= lips[0] < lips[1] <= motion_dim:
            raise ValueError(f"`lips` must be channels [start, stop) within {motion_dim}, got {tuple(lips)}.")
        if window < 5 or window % 2 == 0:
            raise ValueError(f"`window` must be odd and at least 5, got {window}.")
        width, blocks = lips[1] - lips[0], (window - 3) // 2
        self.register_buffer("motion_mean", torch.zeros(width))
        self.register_buffer("motion_std", torch.ones(width))
        self.register_buffer("mel_mean", torch.zeros(num_mels))
        self.register_buffer("mel_std", torch.ones(num_mels))
        self.register_buffer("filters", mel_filters(num_mels), persistent=False)
        # Both have a receptive field of exactly `window` frames: one more on each side for each layer.
        speech = nn.Conv1d(num_mels, hidden_size, 3 * COLUMNS_PER_FRAME, stride=COLUMNS_PER_FRAME)
        self.audio_tower = Tower(speech, hidden_size, blocks, embed_dim, dropout)
        self.motion_tower = Tower(nn.Conv1d(width, hidden_size, 3), hidden_size, blocks, embed_dim, dropout)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))  # of the logits, as in CLIP

    def log_mel(self, samples: Tensor) -> Tensor:
        """Spectrogram of audio, four columns a frame; columns 4t to 4t + 3 are centred within frame t.

        Args:
            samples (`torch.Tensor` of shape `(batch, 640 * frames)`): Mono at 16 kHz, full scale = 1.

        Returns:
            `torch.Tensor` of shape `(batch, 4 * frames, num_mels)`, float32: natural logarithm of the band's power.
        """
        if samples.ndim != 2 or samples.shape[1] % SAMPLES_PER_FRAME or not samples.shape[1]:
            raise ValueError(
                f"`samples` must have shape (batch, {SAMPLES_PER_FRAME} * frames), got {tuple(samples.shape)}."
            )
        side = (WINDOW_SAMPLES - HOP) // 2
        windows = F.pad(samples.float(), (side, side)).unfold(1, WINDOW_SAMPLES, HOP)  # [B, 4T, 400]
        window = torch.hann_window(WINDOW_SAMPLES, device=samples.device)
        power = torch.fft.rfft(windows * window, FFT_SIZE).abs().square() / window.square().sum() / FFT_SIZE
        return torch.log(power @ self.filters.float().T + POWER_FLOOR)

    def encode_motion(self, motion: Tensor) -> Tensor:
        """Unit vectors of the lips' windows.

        Args:
            motion (`torch.Tensor` of shape `(batch, frames, motion_dim)`): Absolute or relative motion, 25 per second;
                only the channels of the lips are used.

        Returns:
            `torch.Tensor` of shape `(batch, frames - window + 1, embed_dim)`.
        """
        config = self.config
        if motion.ndim != 3 or motion.shape[-1] != config.motion_dim or motion.shape[1] < config.window:
            raise ValueError(
                f"`motion` must have shape (batch, frames >= {config.window}, {config.motion_dim}), "
                f"got {tuple(motion.shape)}."
            )
        lips = motion[..., config.lips[0] : config.lips[1]]
        lips = (lips - self.motion_mean) / self.motion_std
        return self.motion_tower(lips.to(self.dtype).mT)

    def encode_mel(self, log_mel: Tensor) -> Tensor:
        """Unit vectors of the audio's windows from `log_mel`'s spectrogram.

        Args:
            log_mel (`torch.Tensor` of shape `(batch, 4 * frames, num_mels)`): See `log_mel`.

        Returns:
            `torch.Tensor` of shape `(batch, frames - window + 1, embed_dim)`.
        """
        least, bands = self.config.window * COLUMNS_PER_FRAME, self.config.num_mels
        if (
            log_mel.ndim != 3
            or log_mel.shape[-1] != bands
            or log_mel.shape[1] < least
            or log_mel.shape[1] % COLUMNS_PER_FRAME
        ):
            raise ValueError(
                f"`log_mel` must have shape (batch, {COLUMNS_PER_FRAME} * frames >= {least}, {bands}), "
                f"got {tuple(log_mel.shape)}."
            )
        return self.audio_tower(((log_mel - self.mel_mean) / self.mel_std).to(self.dtype).mT)

    def encode_audio(self, samples: Tensor) -> Tensor:
        """Unit vectors of the audio's windows, `(batch, frames - window + 1, embed_dim)`.

        Args:
            samples (`torch.Tensor` of shape `(batch, 640 * frames)`): Mono at 16 kHz, full scale = 1.
        """
        return self.encode_mel(self.log_mel(samples))

    def forward(
        self,
        motion: Tensor,
        samples: Tensor | None = None,
        log_mel: Tensor | None = None,
        return_dict: bool = True,
    ) -> SyncExpertOutput | tuple:
        """Embed motion and audio of equal length.

        Args:
            motion (`torch.Tensor` of shape `(batch, frames, motion_dim)`): See `encode_motion`.
            samples (`torch.Tensor` of shape `(batch, 640 * frames)`, *optional*): The audio, see `encode_audio`.
            log_mel (`torch.Tensor` of shape `(batch, 4 * frames, num_mels)`, *optional*): Or its spectrogram.
            return_dict (`bool`, defaults to `True`): Whether to return a `SyncExpertOutput`.
        """
        if (samples is None) == (log_mel is None):
            raise ValueError("`samples` or `log_mel` must be given, not both.")
        motion_embeds = self.encode_motion(motion)
        audio_embeds = self.encode_audio(samples) if log_mel is None else self.encode_mel(log_mel)
        if motion_embeds.shape[:2] != audio_embeds.shape[:2]:
            given, length = ("samples", SAMPLES_PER_FRAME) if log_mel is None else ("log_mel", COLUMNS_PER_FRAME)
            got = tuple((samples if log_mel is None else log_mel).shape)
            raise ValueError(
                f"`{given}` must have {length} steps for each frame of `motion` {tuple(motion.shape)}, got {got}."
            )
        if not return_dict:
            return motion_embeds, audio_embeds
        return SyncExpertOutput(motion_embeds=motion_embeds, audio_embeds=audio_embeds)

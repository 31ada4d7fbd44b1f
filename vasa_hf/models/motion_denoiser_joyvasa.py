"""The motion generator of JoyVASA: a diffusion transformer that turns speech into LivePortrait's motion.

    X_t = noisy motion, W frames of [expression 63, scale, translation 3, pitch, yaw, roll]      output = X_0

    | X_pre x K | X_t x W |     motion tokens, self-attention over all of them
          +           +         every frame attends to its own frame of audio and to no other
    | A_pre x K |  A x W  |     audio: HuBERT's features at the frame rate, projected

Source: the public code of JoyVASA (Cao et al., 2024). There the cross-attention to the audio is masked down to the
diagonal, which leaves of it no more than two linear layers: queries and keys can't matter, and are not kept.

Expression is normalised by mean and deviation, all else by minimum and maximum, both of the training data ("motion
template"); they are saved in the model. Angles are degrees. No encoder is in here: HuBERT is a component next to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from vasa_hf.checks import check_number

EXPRESSION_DIM = 63
POSE_DIM = 7  # scale, translation x y z, pitch, yaw, roll
POSITIONAL_ENCODINGS = ("single_row", "per_frame")


@dataclass
class JoyVasaMotionDenoiserOutput(BaseOutput):
    """Output of `JoyVasaMotionDenoiser`.

    Args:
        sample (`torch.Tensor` of shape `(batch, window, motion_dim)`): Predicted clean motion X_0, normalised.
    """

    sample: Tensor


class JoyVasaMotionDenoiser(ModelMixin, ConfigMixin):
    """Predicts clean motion from noisy motion, audio, and the end of the window before.

    The defaults are those of JoyVASA's training: 7.8M parameters, 8.8M with the queries and keys that have no effect.

    Args:
        motion_dim (`int`, defaults to 70): Channels of a motion frame: 63 of expression, 7 of pose.
        audio_dim (`int`, defaults to 768): Channels of the encoder's features.
        hidden_size (`int`, defaults to 256): Width.
        num_layers (`int`, defaults to 8): Transformer layers.
        num_heads (`int`, defaults to 8): Attention heads.
        ffn_ratio (`int`, defaults to 4): Inner width of the feed-forward parts over `hidden_size`.
        window (`int`, defaults to 100): Frames W of a window.
        context (`int`, defaults to 25): Frames K carried over from the window before.
        num_train_timesteps (`int`, defaults to 50): Diffusion steps.
        positional_encoding (`str`, defaults to `"single_row"`):
            `"per_frame"` tells each token its place. `"single_row"` adds one and the same vector to all of them: a
            fault of JoyVASA's code until December 2025. The public weights are older than its repair, so they must
            have been trained with it, and it is the default.
        pad_mode (`str`, defaults to `"zero"`): How the audio of the last window is filled up: `"zero"`, `"replicate"`.
        fps (`float`, defaults to 25): Frame rate of the motion.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        motion_dim: int = EXPRESSION_DIM + POSE_DIM,
        audio_dim: int = 768,
        hidden_size: int = 256,
        num_layers: int = 8,
        num_heads: int = 8,
        ffn_ratio: int = 4,
        window: int = 100,
        context: int = 25,
        num_train_timesteps: int = 50,
        positional_encoding: str = "single_row",
        pad_mode: str = "zero",
        fps: float = 25.0,
    ):
        check_number("window", window, 1, 10_000, whole=True)
        super().__init__()
        if positional_encoding not in POSITIONAL_ENCODINGS:
            raise ValueError(
                f"`positional_encoding` must be one of {POSITIONAL_ENCODINGS}, got {positional_encoding!r}."
            )
        if pad_mode not in ("zero", "replicate"):
            raise ValueError(f"`pad_mode` must be 'zero' or 'replicate', got {pad_mode!r}.")
        if hidden_size % (2 * num_heads):
            raise ValueError(f"`hidden_size` must be a multiple of twice `num_heads` {num_heads}, got {hidden_size}.")
        self.audio_feature_map = nn.Linear(audio_dim, hidden_size)
        # Null embeddings: of dropped audio, and of what was before the first window.
        self.null_audio_feat = nn.Parameter(torch.randn(1, 1, hidden_size))
        self.start_audio_feat = nn.Parameter(torch.randn(1, context, hidden_size))
        self.start_motion_feat = nn.Parameter(torch.randn(1, context, motion_dim))
        self.feature_proj = nn.Linear(motion_dim, hidden_size)
        self.diff_step_map = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )
        self.layers = nn.ModuleList([_Layer(hidden_size, num_heads, ffn_ratio) for _ in range(num_layers)])
        self.motion_dec = nn.Sequential(
            nn.Linear(hidden_size, hidden_size // 2), nn.GELU(), nn.Linear(hidden_size // 2, motion_dim)
        )
        self.register_buffer("expression_mean", torch.zeros(motion_dim - POSE_DIM))
        self.register_buffer("expression_std", torch.ones(motion_dim - POSE_DIM))
        self.register_buffer("pose_min", torch.zeros(POSE_DIM))
        self.register_buffer("pose_max", torch.ones(POSE_DIM))

    @apply_forward_hook
    def normalize(self, motion: Tensor) -> Tensor:
        """Bring motion `(..., motion_dim)` in LivePortrait's units to the range that the model works with."""
        self._check("motion", motion, (*motion.shape[:-1], self.config.motion_dim))
        expression, pose = motion[..., :-POSE_DIM], motion[..., -POSE_DIM:]
        expression = (expression - self.expression_mean) / (self.expression_std + 1e-9)
        return torch.cat([expression, (pose - self.pose_min) / (self.pose_max - self.pose_min + 1e-9)], dim=-1)

    @apply_forward_hook
    def denormalize(self, sample: Tensor) -> Tensor:
        """Undo `normalize`."""
        self._check("sample", sample, (*sample.shape[:-1], self.config.motion_dim))
        expression, pose = sample[..., :-POSE_DIM], sample[..., -POSE_DIM:]
        expression = expression * self.expression_std + self.expression_mean
        return torch.cat([expression, pose * (self.pose_max - self.pose_min) + self.pose_min], dim=-1)

    @apply_forward_hook
    def project_audio(self, features: Tensor) -> Tensor:
        """Bring the encoder's features `(batch, frames, audio_dim)` to the model's width."""
        self._check("features", features, (*features.shape[:-1], self.config.audio_dim))
        return self.audio_feature_map(features)

    def forward(
        self,
        sample: Tensor,  # [B, W, M]
        timestep: Tensor | float | int,  # [B] or scalar
        audio: Tensor | None = None,  # [B, W, C]
        previous_motion: Tensor | None = None,  # [B, K, M]
        previous_audio: Tensor | None = None,  # [B, K, C]
        drop: dict[str, Tensor] | None = None,
        return_dict: bool = True,
    ) -> JoyVasaMotionDenoiserOutput | tuple[Tensor]:
        """Predict the clean motion.

        Args:
            sample (`torch.Tensor` of shape `(batch, window, motion_dim)`): X_t, noisy normalised motion.
            timestep (`torch.Tensor` of shape `(batch,)` or a number):
                Diffusion step as diffusers count it, 0 to `num_train_timesteps - 1`; JoyVASA counts from 1.
            audio (`torch.Tensor` of shape `(batch, window, hidden_size)`, *optional*):
                A, from `project_audio`; null if left out.
            previous_motion (`torch.Tensor` of shape `(batch, context, motion_dim)`, *optional*):
                X_pre, normalised like `sample`; the learned start if left out.
            previous_audio (`torch.Tensor` of shape `(batch, context, hidden_size)`, *optional*):
                A_pre, from `project_audio`; the learned start if left out.
            drop (`dict[str, torch.Tensor]`, *optional*):
                `audio` to a boolean mask of shape `(batch,)`: these samples get no A, but they do get A_pre.
            return_dict (`bool`, defaults to `True`): Whether to return `JoyVasaMotionDenoiserOutput` or a tuple.
        """
        batch, drop = sample.shape[0], drop or {}
        window, context, width = self.config.window, self.config.context, self.config.hidden_size
        self._check("sample", sample, (batch, window, self.config.motion_dim))
        self._check("audio", audio, (batch, window, width))
        self._check("previous_motion", previous_motion, (batch, context, self.config.motion_dim))
        self._check("previous_audio", previous_audio, (batch, context, width))
        if unknown := set(drop) - {"audio"}:
            raise ValueError(f"`drop` must name the condition 'audio' only, but names {sorted(unknown)}.")

        null = self.null_audio_feat.expand(batch, window, -1)
        audio = null if audio is None else audio
        if "audio" in drop:
            self._check("drop['audio']", drop["audio"], (batch,))
            audio = torch.where(drop["audio"][:, None, None], null, audio)
        start_motion, start_audio = (x.expand(batch, -1, -1) for x in (self.start_motion_feat, self.start_audio_feat))
        motion = torch.cat([start_motion if previous_motion is None else previous_motion, sample], dim=1)
        audio = torch.cat([start_audio if previous_audio is None else previous_audio, audio], dim=1)

        tokens = context + window
        single = self.config.positional_encoding == "single_row"
        positions = torch.full((1,), tokens) if single else torch.arange(tokens)
        step = torch.as_tensor(timestep, device=sample.device).expand(batch) + 1
        time = self.diff_step_map(sinusoids(step, width).to(sample.dtype))
        place = sinusoids(positions.to(sample.device), width).to(sample.dtype)
        hidden_states = self.feature_proj(motion) + place + time[:, None]
        for layer in self.layers:
            hidden_states = layer(hidden_states, audio)
        prediction = self.motion_dec(hidden_states[:, context:])
        return JoyVasaMotionDenoiserOutput(sample=prediction) if return_dict else (prediction,)

    @staticmethod
    def _check(name: str, value: Tensor | None, shape: tuple[int, ...]) -> None:
        if value is not None and tuple(value.shape) != tuple(shape):
            raise ValueError(f"`{name}` must have shape {tuple(shape)}, got {tuple(value.shape)}.")


class _Layer(nn.Module):
    """Self-attention over the motion, each frame's own audio, feed-forward; each is normalised after it is added."""

    def __init__(self, width: int, num_heads: int, ffn_ratio: int):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.audio_value, self.audio_out = nn.Linear(width, width), nn.Linear(width, width)
        self.linear1, self.linear2 = nn.Linear(width, ffn_ratio * width), nn.Linear(ffn_ratio * width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(
        self,
        hidden_states: Tensor,  # [B, N, C]
        audio: Tensor,  # [B, N, C]
    ) -> Tensor:
        attended, _ = self.self_attn(hidden_states, hidden_states, hidden_states, need_weights=False)
        hidden_states = self.norm1(hidden_states + attended)
        hidden_states = self.norm2(hidden_states + self.audio_out(self.audio_value(audio)))
        return self.norm3(hidden_states + self.linear2(F.gelu(self.linear1(hidden_states))))


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sines and cosines `(len(positions), width)` of positions `(n,)`, one after the other in each pair, float32."""
    frequency = torch.exp(torch.arange(0, width, 2, device=positions.device) * (-math.log(10_000.0) / width))
    angle = positions.float()[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def joyvasa_scheduler(num_train_timesteps: int = 50) -> DDPMScheduler:
    """JoyVASA's diffusion: the cosine schedule (Nichol & Dhariwal, 2021), clean motion predicted, every step taken.

    Args:
        num_train_timesteps (`int`, defaults to 50): Diffusion steps K.
    """
    signal = [
        math.cos((step / num_train_timesteps + 0.008) / 1.008 * math.pi / 2) ** 2
        for step in range(num_train_timesteps + 1)
    ]
    betas = [min(max(1 - after / before, 1e-4), 0.999) for before, after in zip(signal[:-1], signal[1:], strict=True)]
    return DDPMScheduler(
        num_train_timesteps=num_train_timesteps, trained_betas=betas, prediction_type="sample", clip_sample=False
    )

"""The motion generator of VASA-1 (§3.2): a diffusion transformer over head pose and facial dynamics.

    X_t = noisy motion, W frames of [z_pose, z_dyn]          H(X_t, t, C) = prediction of X_0
    C = [X_pre, A_pre; A, g, d, e], all joined to the noise along time:

        | g | d | e | X_pre x K | A_pre x K | A x W | X_t x W |   -> transformer encoder ->   X_0 from the last W tokens
        positions:    -K ... -1   -K ... -1   0..W-1   0..W-1        (rotary, so that audio and motion meet in time)

    A  audio features at the frame rate    g  main gaze (yaw, pitch)    d  head distance    e  emotion offset

What the paper leaves open, and what we chose:
# Not in the paper: W = 50, K = 10 frames at 25 fps; pre-norm blocks, feed-forward ratio 4, GELU, rotary positions.
# Not in the paper: half of the heads start out looking at their own time, which lets the lips find their audio early.
# Not in the paper: the timestep's embedding is added to the noisy tokens; kinds of tokens bear learned embeddings.
# Not in the paper: dropped conditions are replaced by learned null tokens; frames outside the mask are never attended.
# Not in the paper: the motion is relative to a reference pose (`vasa_hf.motion.to_relative`); it and the audio features
  are normalised to zero mean and unit deviation by statistics of the training data, which are saved in the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from vasa_hf.checks import check_number
from vasa_hf.layers.attention import TransformerBlock, rotary_angles
from vasa_hf.motion import POSE_DIM, MotionSpec

EMOTIONS = ("angry", "disgusted", "fearful", "happy", "sad", "surprised")
# The paper's size is the default; the small one is for CPUs.
PRESETS: dict[str, dict] = {"paper": {}, "small": {"hidden_size": 192, "num_layers": 6, "num_heads": 6}}
CONDITIONS = ("audio", "gaze", "head_distance", "emotion", "previous")
_ROTARY_THETA = 100.0  # a window and its context span 60 positions


@dataclass
class Vasa1MotionTransformerOutput(BaseOutput):
    """Output of `Vasa1MotionTransformer`.

    Args:
        sample (`torch.Tensor` of shape `(batch, window, motion_dim)`): Predicted clean motion X_0, normalised.
    """

    sample: Tensor


class Vasa1MotionTransformer(ModelMixin, ConfigMixin):
    """Predicts clean motion from noisy motion and conditions; the defaults are the paper's size (about 29M parameters).

    Args:
        motion_dim (`int`, defaults to 518): Channels of a motion frame: 6 of pose, the rest of dynamics.
        audio_dim (`int`, defaults to 768): Channels of the audio features.
        hidden_size (`int`, defaults to 512): Width (paper).
        num_layers (`int`, defaults to 8): Blocks (paper).
        num_heads (`int`, defaults to 8): Attention heads (paper).
        ffn_ratio (`int`, defaults to 4): Inner width of the feed-forward parts over `hidden_size`.
        dropout (`float`, defaults to 0.0): Dropout of the blocks.
        window (`int`, defaults to 50): Frames W of a window.
        context (`int`, defaults to 10): Frames K carried over from the window before.
        fps (`float`, defaults to 25): Frame rate of the motion.
        emotions (`tuple[str, ...]`): Names of the emotion coefficients.
        dynamics (`dict[str, int]` or pairs, *optional*): Parts of z_dyn in order; one part `dynamics` if left out.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        motion_dim: int = 518,
        audio_dim: int = 768,
        hidden_size: int = 512,
        num_layers: int = 8,
        num_heads: int = 8,
        ffn_ratio: int = 4,
        dropout: float = 0.0,
        window: int = 50,
        context: int = 10,
        fps: float = 25.0,
        emotions: tuple[str, ...] = EMOTIONS,
        dynamics: dict[str, int] | list[tuple[str, int]] | None = None,
    ):
        check_number("window", window, 1, 10_000, whole=True)
        super().__init__()
        dynamics = {"dynamics": motion_dim - POSE_DIM} if dynamics is None else dict(dynamics)
        if MotionSpec(dynamics).dim != motion_dim:
            raise ValueError(
                f"`dynamics` must have {motion_dim - POSE_DIM} channels for `motion_dim` {motion_dim}, got {dynamics}."
            )
        # The saved config sorts the keys of a dict, and the order of the parts matters.
        self.register_to_config(dynamics=[[name, width] for name, width in dynamics.items()])
        self.motion_in = nn.Linear(motion_dim, hidden_size)
        self.audio_in = nn.Sequential(nn.Linear(audio_dim, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
        self.gaze_in = nn.Linear(2, hidden_size)
        self.distance_in = nn.Linear(1, hidden_size)
        self.emotion_in = nn.Linear(len(emotions), hidden_size)
        self.time_in = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size), nn.SiLU(), nn.Linear(4 * hidden_size, hidden_size)
        )
        # One row per kind of token: g, d, e, X_pre, A_pre, A, X_t; then the null embeddings of dropped conditions.
        self.kind = nn.Parameter(torch.randn(7, hidden_size) * 0.02)
        self.null = nn.ParameterDict(
            {
                name: nn.Parameter(torch.randn(hidden_size) * 0.02)
                for name in ("audio", "gaze", "head_distance", "emotion", "previous_motion", "previous_audio")
            }
        )
        self.blocks = nn.ModuleList(
            [TransformerBlock(hidden_size, num_heads, ffn_ratio, dropout, num_heads // 2) for _ in range(num_layers)]
        )
        self.norm_out = nn.LayerNorm(hidden_size)
        self.motion_out = nn.Linear(hidden_size, motion_dim)
        self.register_buffer("audio_mean", torch.zeros(audio_dim))
        self.register_buffer("audio_std", torch.ones(audio_dim))
        self.register_buffer("motion_mean", torch.zeros(motion_dim))
        self.register_buffer("motion_std", torch.ones(motion_dim))

    @property
    def motion_spec(self) -> MotionSpec:
        """Names of the motion channels."""
        return MotionSpec(dict(self.config.dynamics))

    @apply_forward_hook
    def normalize(self, relative_motion: Tensor) -> Tensor:
        """Bring relative motion to the zero mean and unit deviation that the model works with."""
        self.motion_spec.check(relative_motion)
        return (relative_motion - self.motion_mean.to(relative_motion)) / self.motion_std.to(relative_motion)

    @apply_forward_hook
    def denormalize(self, sample: Tensor) -> Tensor:
        """Undo `normalize`."""
        self.motion_spec.check(sample)
        return sample * self.motion_std.to(sample) + self.motion_mean.to(sample)

    def forward(
        self,
        sample: Tensor,  # [B, W, M]
        timestep: Tensor | float | int,  # [B] or scalar
        audio: Tensor | None = None,  # [B, W, A]
        previous_motion: Tensor | None = None,  # [B, K, M]
        previous_audio: Tensor | None = None,  # [B, K, A]
        gaze: Tensor | None = None,  # [B, 2] or [B, W, 2]
        head_distance: Tensor | None = None,  # [B, 1] or [B, W, 1]
        emotion: Tensor | None = None,  # [B, E] or [B, W, E]
        frame_mask: Tensor | None = None,  # [B, W]
        drop: dict[str, Tensor] | None = None,
        return_dict: bool = True,
    ) -> Vasa1MotionTransformerOutput | tuple[Tensor]:
        """Predict the clean motion. A condition that is `None` is null.

        Source: VASA-1 §3.2, H(X_t, t, C) of Eq. 1.

        Args:
            sample (`torch.Tensor` of shape `(batch, window, motion_dim)`): X_t, noisy normalised relative motion; a
                window may be shorter than that of the configuration, which equals a mask of its other frames.
            timestep (`torch.Tensor` of shape `(batch,)` or a number): Diffusion step, 0 to 999.
            audio (`torch.Tensor` of shape `(batch, window, audio_dim)`, *optional*): A.
            previous_motion (`torch.Tensor` of shape `(batch, context, motion_dim)`, *optional*):
                X_pre, normalised like `sample`.
            previous_audio (`torch.Tensor` of shape `(batch, context, audio_dim)`, *optional*): A_pre.
            gaze (`torch.Tensor` of shape `(batch, 2)` or `(batch, window, 2)`, *optional*):
                g, main gaze (yaw, pitch) in radians, (0, 0) into the camera. One value a frame is averaged.
            head_distance (`torch.Tensor` of shape `(batch, 1)` or `(batch, window, 1)`, *optional*):
                d, distance over the reference's distance, positive.
            emotion (`torch.Tensor` of shape `(batch, emotions)` or `(batch, window, emotions)`, *optional*):
                e, weights in [-1, 1] of the names in the config.
            frame_mask (`torch.Tensor` of shape `(batch, window)`, *optional*):
                True where audio and motion exist. The other frames' outputs mean nothing.
            drop (`dict[str, torch.Tensor]`, *optional*):
                Names (`audio`, `gaze`, `head_distance`, `emotion`, `previous`) to boolean masks of shape `(batch,)`:
                for these samples the condition is null.
            return_dict (`bool`, defaults to `True`): Whether to return `Vasa1MotionTransformerOutput` or a tuple.
        """
        batch, drop = sample.shape[0], drop or {}
        window, context = self.config.window, self.config.context
        if sample.ndim == 3 and sample.shape[1]:
            window = min(window, sample.shape[1])
        self._check("sample", sample, [(batch, window, self.config.motion_dim)])
        self._check("audio", audio, [(batch, window, self.config.audio_dim)])
        self._check("previous_motion", previous_motion, [(batch, context, self.config.motion_dim)])
        self._check("previous_audio", previous_audio, [(batch, context, self.config.audio_dim)])
        controls = {"gaze": gaze, "head_distance": head_distance, "emotion": emotion}
        for (name, value), width in zip(controls.items(), (2, 1, len(self.config.emotions)), strict=True):
            self._check(name, value, [(batch, width), (batch, window, width)])
        self._check("frame_mask", frame_mask, [(batch, window)])
        if unknown := set(drop) - set(CONDITIONS):
            raise ValueError(f"`drop` must name conditions of {list(CONDITIONS)}, but names {sorted(unknown)}.")
        for name, mask in drop.items():
            self._check(f"drop[{name!r}]", mask, [(batch,)])

        # Tokens of the conditions, [B, n, C] each. Controls get units in which their usual range is about one.
        gaze = None if gaze is None else self.gaze_in(_mean_over_window(gaze) / 0.2)
        if head_distance is not None:
            head_distance = self.distance_in(_mean_over_window(head_distance).log() / 0.2)
        emotion = None if emotion is None else self.emotion_in(_mean_over_window(emotion) / 0.5)
        audio = None if audio is None else self.audio_in((audio - self.audio_mean) / self.audio_std)
        previous_motion = None if previous_motion is None else self.motion_in(previous_motion)
        if previous_audio is not None:
            previous_audio = self.audio_in((previous_audio - self.audio_mean) / self.audio_std)
        drop_previous = drop.get("previous")
        tokens = [
            self._or_null("gaze", gaze, batch, 1, drop.get("gaze")),
            self._or_null("head_distance", head_distance, batch, 1, drop.get("head_distance")),
            self._or_null("emotion", emotion, batch, 1, drop.get("emotion")),
            self._or_null("previous_motion", previous_motion, batch, context, drop_previous),
            self._or_null("previous_audio", previous_audio, batch, context, drop_previous),
            self._or_null("audio", audio, batch, window, drop.get("audio")),
        ]
        timestep = torch.as_tensor(timestep, device=sample.device).expand(batch)
        time = self.time_in(_timestep_embedding(timestep, self.config.hidden_size).to(sample.dtype))
        tokens.append(self.motion_in(sample) + time[:, None])
        hidden_states = torch.cat([token + self.kind[i] for i, token in enumerate(tokens)], dim=1)  # [B, N, C]

        past = torch.arange(-context, 0, device=sample.device)
        present = torch.arange(window, device=sample.device)
        positions = torch.cat([present.new_zeros(3), past, past, present, present])
        rotary = rotary_angles(positions, self.config.hidden_size // self.config.num_heads, _ROTARY_THETA)
        attention_mask = None
        if frame_mask is not None:
            frame_mask = frame_mask.bool()
            always = frame_mask.new_ones(batch, 3 + 2 * context)
            attention_mask = torch.cat([always, frame_mask, frame_mask], dim=1)[:, None, None, :]
        for block in self.blocks:
            hidden_states = block(hidden_states, rotary, attention_mask)
        prediction = self.motion_out(self.norm_out(hidden_states[:, -window:]))
        if not return_dict:
            return (prediction,)
        return Vasa1MotionTransformerOutput(sample=prediction)

    def _or_null(self, name: str, token: Tensor | None, batch: int, length: int, drop: Tensor | None) -> Tensor:
        """Tokens of a condition, replaced by the learned null token where the condition is absent or dropped."""
        null = self.null[name].expand(batch, length, -1)
        if token is None:
            return null
        return token if drop is None else torch.where(drop[:, None, None], null, token)

    @staticmethod
    def _check(name: str, value: Tensor | None, shapes: list[tuple[int, ...]]) -> None:
        if value is not None and tuple(value.shape) not in shapes:
            expected = " or ".join(str(shape) for shape in shapes)
            raise ValueError(f"`{name}` must have shape {expected}, got {tuple(value.shape)}.")


def _mean_over_window(value: Tensor) -> Tensor:
    """[B, W, n] or [B, n] -> [B, 1, n]: one token a window."""
    return value.mean(dim=1, keepdim=True) if value.ndim == 3 else value[:, None]


def _timestep_embedding(timestep: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding [B, width] of diffusion steps, float32."""
    half = width // 2
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(half, device=timestep.device, dtype=torch.float32) / half)
    angle = timestep.float()[:, None] * frequency
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=-1), (0, width - 2 * half))

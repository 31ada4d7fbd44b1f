"""GAIA's diffusion model (§4.3): a Conformer that turns speech into motion latents, with a predictor of head poses.

    z_s speech --A--> + linear(pose) ---------------------.      pose: given, or P(A(z_s))
    t ------------embedding------.                        |
                                 v                        v
    z_t --linear--> [ + t | feed-forward/2 | self-attention | + speech | cross-attention to z_m(i)
                                           | convolution | feed-forward/2 ] x n --linear--> z_0

A frame of motion is z_m as a vector (`vasa_hf.models.autoencoder_gaia`), or the coordinates of all landmarks for the
models of appendix D.2 and of Table 6 ("w. landmark prediction"). For instructions in words (appendix E) the features
of a text encoder take the place of speech.

# Not in the paper: rotary positions; layer instead of batch normalization; A and P beyond "lightweight" and "several
convolutional layers"; the inner width of the feed-forward parts, which is chosen so that the presets have the paper's
numbers of parameters; guidance, for which speech may be dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, DPMSolverMultistepScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, get_timestep_embedding
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from vasa_hf.layers.attention import apply_rotary, rotary_angles

# Names and (d_hidden, n_layer) of appendix B.1: 180M (512, 6), 600M (1280, 12), 1.2B (2048, 12).
PAPER_CONFIGS: dict[str, dict[str, Any]] = {
    "180m": {"hidden_size": 512, "num_layers": 6, "num_heads": 8, "ffn_dim": 13_056},
    "600m": {"hidden_size": 1280, "num_layers": 12, "num_heads": 16, "ffn_dim": 6_144},
    "1.2b": {"hidden_size": 2048, "num_layers": 12, "num_heads": 16, "ffn_dim": 6_400},
}
# Not in the paper: for CPUs.
SMALL_CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "num_layers": 4,
    "num_heads": 4,
    "ffn_dim": 256,
    "conv_kernel": 15,
    "pose_channels": 64,
    "residual": True,
}
# Smaller, for the models of coordinates and of text.
MINI_CONFIG: dict[str, Any] = {**SMALL_CONFIG, "hidden_size": 64, "num_layers": 3, "ffn_dim": 128, "pose_channels": 32}
# For tests and trial runs.
TINY_CONFIG: dict[str, Any] = {
    **SMALL_CONFIG,
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "ffn_dim": 16,
    "conv_kernel": 3,
    "pose_channels": 8,
}
# "paper" is that of Table 3.
PRESETS = {
    **PAPER_CONFIGS,
    "paper": PAPER_CONFIGS["1.2b"],
    "small": SMALL_CONFIG,
    "mini": MINI_CONFIG,
    "tiny": TINY_CONFIG,
}
POSE_DIM = 3  # yaw, pitch, roll
BACKBONES = ("conformer", "transformer")
CONDITIONINGS = ("add", "attention")
PREDICTIONS = ("latent", "landmarks")
# Not in the paper: beta_t of Eq. 5; linear in t, the variance preserving SDE of Song et al. (2021).
BETA_MIN, BETA_MAX = 0.1, 20.0
SAMPLERS = {"ode": "dpmsolver++", "sde": "sde-dpmsolver++"}


@dataclass
class GaiaMotionDenoiserOutput(BaseOutput):
    """Output of `GaiaMotionDenoiser`.

    Args:
        sample (`torch.Tensor` of shape `(batch, frames, motion_dim)`): Predicted clean motion, normalized.
        pose (`torch.Tensor` of shape `(batch, frames, 3)`): Head pose that P predicts, in radians.
    """

    sample: Tensor
    pose: Tensor


class GaiaMotionDenoiser(ModelMixin, ConfigMixin):
    """Predicts clean motion from noisy motion, speech (or text), a reference frame and the head pose.

    Args:
        motion_dim (`int`, defaults to 768): Numbers of a frame of motion.
        motion_channels (`int`, defaults to 3): Numbers of a token of the reference; divides `motion_dim`.
        audio_dim (`int`, defaults to 768): Channels of the speech features, or of a text encoder.
        hidden_size (`int`, defaults to 512): Width.
        num_layers (`int`, defaults to 6): Conformer blocks.
        num_heads (`int`, defaults to 8): Attention heads.
        ffn_dim (`int`, defaults to 13056): Inner width of the feed-forward parts.
        conv_kernel (`int`, defaults to 31): Frames that a convolution sees, odd.
        speech_layers (`int`, defaults to 2): Convolutions of the speech encoder A.
        pose_layers (`int`, defaults to 4): Convolutions of the pose predictor P.
        pose_channels (`int`, defaults to 256): Width of P.
        backbone (`str`, defaults to `"conformer"`): `"transformer"` is the ablation of Table 9.
        speech_condition (`str`, defaults to `"add"`): How blocks see speech: `"add"` or `"attention"` (Table 9).
        reference_condition (`str`, defaults to `"attention"`): How blocks see the reference, likewise.
        use_pose (`bool`, defaults to `True`): `False` is the ablation "w/o head pose" of Table 6.
        diffusion (`bool`, defaults to `True`): `False` is the ablation "w/o diffusion": noise and time are not seen.
        predicts (`str`, defaults to `"latent"`): What motion is: `"latent"` or `"landmarks"`.
        residual (`bool`, defaults to `False`):
            Whether normalized motion is relative to the reference. # Not in the paper: unseen faces need less data.
        window (`int`, defaults to 125): Frames of a window that is generated.
        context (`int`, defaults to 25): Frames that a window shares with the one before. # Not in the paper.
        fps (`float`, defaults to 25): Frame rate of the motion.
        dropout (`float`, defaults to 0.0): Of every branch.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        motion_dim: int = 768,
        motion_channels: int = 3,
        audio_dim: int = 768,
        hidden_size: int = 512,
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_dim: int = 13_056,
        conv_kernel: int = 31,
        speech_layers: int = 2,
        pose_layers: int = 4,
        pose_channels: int = 256,
        backbone: str = "conformer",
        speech_condition: str = "add",
        reference_condition: str = "attention",
        use_pose: bool = True,
        diffusion: bool = True,
        predicts: str = "latent",
        residual: bool = False,
        window: int = 125,
        context: int = 25,
        fps: float = 25.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        for name, value, known in (
            ("backbone", backbone, BACKBONES),
            ("speech_condition", speech_condition, CONDITIONINGS),
            ("reference_condition", reference_condition, CONDITIONINGS),
            ("predicts", predicts, PREDICTIONS),
        ):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {known}, got {value!r}.")
        if motion_dim % motion_channels:
            raise ValueError(f"`motion_channels` must divide `motion_dim` {motion_dim}, got {motion_channels}.")
        if hidden_size % (2 * num_heads):
            raise ValueError(f"`hidden_size` must be a multiple of twice `num_heads` {num_heads}, got {hidden_size}.")
        if not conv_kernel % 2:
            raise ValueError(f"`conv_kernel` must be odd, got {conv_kernel}.")
        if not 0 <= context <= window:
            raise ValueError(f"`context` must lie in [0, {window}], got {context}.")
        self.proj_in = nn.Linear(motion_dim, hidden_size)
        self.time_proj = Timesteps(hidden_size, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(hidden_size, hidden_size)
        self.speech_encoder = ConvStack(audio_dim, hidden_size, hidden_size, speech_layers)
        self.null_speech = nn.Parameter(0.02 * torch.randn(hidden_size))
        if use_pose:
            self.pose_projection = nn.Linear(POSE_DIM, hidden_size)
            self.pose_predictor = ConvStack(hidden_size, pose_channels, POSE_DIM, pose_layers)
        if reference_condition == "attention":
            self.reference_projection = nn.Linear(motion_channels, hidden_size)
            self.reference_places = nn.Parameter(0.02 * torch.randn(motion_dim // motion_channels, hidden_size))
        else:
            self.reference_projection = nn.Linear(motion_dim, hidden_size)
        attends = "attention" in (speech_condition, reference_condition)
        self.blocks = nn.ModuleList(
            ConformerBlock(hidden_size, num_heads, ffn_dim, conv_kernel, attends, backbone == "conformer", dropout)
            for _ in range(num_layers)
        )
        self.proj_out = nn.Linear(hidden_size, motion_dim)
        self.register_buffer("motion_mean", torch.zeros(motion_dim))
        self.register_buffer("motion_std", torch.ones(motion_dim))
        self.register_buffer("pose_mean", torch.zeros(POSE_DIM))
        self.register_buffer("pose_std", torch.ones(POSE_DIM))

    @apply_forward_hook
    def normalize(self, motion: Tensor, reference: Tensor) -> Tensor:
        """Bring motion `(batch, frames, motion_dim)` to about unit variance, given the reference `(batch, motion_dim)`.

        Args:
            motion (`torch.Tensor` of shape `(batch, frames, motion_dim)`): Motion.
            reference (`torch.Tensor` of shape `(batch, motion_dim)`): Motion of the reference frame.
        """
        self._check("motion", motion, (len(motion), motion.shape[1], self.config.motion_dim))
        own = reference[:, None] if self.config.residual else 0.0
        return (motion - own - self.motion_mean) / self.motion_std

    @apply_forward_hook
    def denormalize(self, sample: Tensor, reference: Tensor) -> Tensor:
        """Undo `normalize`; arguments as there."""
        self._check("sample", sample, (len(sample), sample.shape[1], self.config.motion_dim))
        own = reference[:, None] if self.config.residual else 0.0
        return sample * self.motion_std + self.motion_mean + own

    @apply_forward_hook
    def predict_pose(self, audio: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Head pose that P predicts from speech alone: `(batch, frames, 3)` yaw, pitch, roll in radians.

        Args:
            audio (`torch.Tensor` of shape `(batch, frames, audio_dim)`): Speech features.
            frame_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*): True where there is audio.
        """
        self._check("audio", audio, (len(audio), audio.shape[1], self.config.audio_dim))
        return self._predict_pose(self.speech_encoder(audio, frame_mask), frame_mask)

    def forward(
        self,
        sample: Tensor,  # [B, N, M]
        timestep: Tensor | float | int,  # [B] or scalar
        audio: Tensor | None = None,  # [B, N, A]
        reference: Tensor | None = None,  # [B, M]
        pose: Tensor | None = None,  # [B, N, 3]
        frame_mask: Tensor | None = None,  # [B, N]
        drop: dict[str, Tensor] | None = None,
        return_dict: bool = True,
    ) -> GaiaMotionDenoiserOutput | tuple[Tensor, Tensor]:
        """Predict the clean motion.

        Args:
            sample (`torch.Tensor` of shape `(batch, frames, motion_dim)`): z_t, noisy normalized motion.
            timestep (`torch.Tensor` of shape `(batch,)` or a number): 1000 t - 1, see `vp_marginal`.
            audio (`torch.Tensor` of shape `(batch, frames, audio_dim)`, *optional*): z_s; null if left out.
            reference (`torch.Tensor` of shape `(batch, motion_dim)`): z_m(i), not normalized.
            pose (`torch.Tensor` of shape `(batch, frames, 3)`, *optional*):
                Yaw, pitch, roll in radians; P's prediction if left out.
            frame_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*): True where there are frames.
            drop (`dict[str, torch.Tensor]`, *optional*):
                `audio` to a boolean mask of shape `(batch,)`: these samples have null speech.
            return_dict (`bool`, defaults to `True`): Whether to return `GaiaMotionDenoiserOutput` or a tuple.
        """
        config, (batch, frames), drop = self.config, sample.shape[:2], drop or {}
        self._check("sample", sample, (batch, frames, config.motion_dim))
        self._check("audio", audio, (batch, frames, config.audio_dim))
        self._check("reference", torch.empty(0) if reference is None else reference, (batch, config.motion_dim))
        self._check("pose", pose, (batch, frames, POSE_DIM))
        self._check("frame_mask", frame_mask, (batch, frames))
        if unknown := set(drop) - {"audio"}:
            raise ValueError(f"`drop` knows the condition 'audio', got {sorted(unknown)}.")

        null = self.null_speech.expand(batch, frames, -1)
        speech = null if audio is None else self.speech_encoder(audio, frame_mask)
        if "audio" in drop:
            self._check("drop['audio']", drop["audio"], (batch,))
            speech = torch.where(drop["audio"][:, None, None], null, speech)
        predicted = pose
        if config.use_pose:
            predicted = self._predict_pose(speech, frame_mask)
            pose = predicted if pose is None else pose
            speech = speech + self.pose_projection((pose - self.pose_mean) / self.pose_std)

        step = torch.as_tensor(timestep, device=sample.device).float().expand(batch) + 1
        time = self.time_embedding(self.time_proj(step).to(sample.dtype))[:, None]
        if not config.diffusion:
            sample, time = torch.zeros_like(sample), torch.zeros_like(time)
        added, context, context_mask = self._conditions(speech, reference, frame_mask)
        cosine, sine = rotary_angles(
            torch.arange(frames, device=sample.device), config.hidden_size // config.num_heads, 10_000.0
        )
        places = None
        if config.speech_condition == "attention":
            places = get_timestep_embedding(torch.arange(frames, device=sample.device), config.hidden_size)
            places = places.to(sample.dtype)
        hidden_states = self.proj_in(sample)
        for block in self.blocks:
            hidden_states = block(
                hidden_states + time, added, context, (cosine, sine), frame_mask, context_mask, places
            )
        prediction = self.proj_out(hidden_states)
        predicted = torch.zeros_like(prediction[..., :POSE_DIM]) if predicted is None else predicted
        return GaiaMotionDenoiserOutput(prediction, predicted) if return_dict else (prediction, predicted)

    def _conditions(
        self, speech: Tensor, reference: Tensor, frame_mask: Tensor | None
    ) -> tuple[Tensor | float, Tensor | None, Tensor | None]:
        """What is added to the frames of each block, and the tokens that each block attends to, with their mask."""
        config, added, tokens, masks = self.config, 0.0, [], []
        batch, frames = speech.shape[:2]
        reference = reference.to(speech.dtype)
        if config.speech_condition == "add":
            added = added + speech
        else:
            places = get_timestep_embedding(torch.arange(frames, device=speech.device), config.hidden_size)
            tokens.append(speech + places.to(speech.dtype))
            masks.append(speech.new_ones(batch, frames, dtype=torch.bool) if frame_mask is None else frame_mask)
        if config.reference_condition == "add":
            added = added + self.reference_projection(reference)[:, None]
        else:
            parts = reference.unflatten(1, (-1, config.motion_channels))
            tokens.append(self.reference_projection(parts) + self.reference_places)
            masks.append(torch.ones(parts.shape[:2], dtype=torch.bool, device=parts.device))
        return added, torch.cat(tokens, 1) if tokens else None, torch.cat(masks, 1) if tokens else None

    def _predict_pose(self, speech: Tensor, frame_mask: Tensor | None) -> Tensor:
        if not self.config.use_pose:
            return speech.new_zeros(*speech.shape[:2], POSE_DIM)
        return self.pose_predictor(speech, frame_mask) * self.pose_std + self.pose_mean

    @staticmethod
    def _check(name: str, value: Tensor | None, shape: tuple[int, ...]) -> None:
        if value is not None and tuple(value.shape) != tuple(shape):
            raise ValueError(f"`{name}` must have shape {tuple(shape)}, got {tuple(value.shape)}.")


class ConvStack(nn.Module):
    """Convolutions over time with a linear end: the speech encoder A and the pose predictor P."""

    def __init__(self, in_channels: int, channels: int, out_channels: int, num_layers: int):
        super().__init__()
        self.proj_in = nn.Linear(in_channels, channels)
        self.convs = nn.ModuleList(nn.Conv1d(channels, channels, 3, padding=1) for _ in range(num_layers))
        self.norm = nn.LayerNorm(channels)
        self.proj_out = nn.Linear(channels, out_channels)

    def forward(
        self,
        features: Tensor,  # [B, N, C]
        frame_mask: Tensor | None = None,  # [B, N]
    ) -> Tensor:  # [B, N, out_channels]
        """Map features; frames that are masked are as absent as those beyond the ends."""
        hidden_states = self.proj_in(features)
        for conv in self.convs:
            inner = F.silu(hidden_states)
            inner = inner if frame_mask is None else inner * frame_mask[..., None].to(inner.dtype)
            hidden_states = hidden_states + conv(inner.mT).mT
        return self.proj_out(self.norm(hidden_states))


class ConformerBlock(nn.Module):
    """Feed-forward / 2, self-attention, speech, cross-attention, convolution, feed-forward / 2 (Gulati et al., 2020).

    Without convolution it is a transformer's block: the first feed-forward part is left out, the last is whole.
    """

    def __init__(
        self, width: int, num_heads: int, ffn_dim: int, kernel: int, attends: bool, convolves: bool, dropout: float
    ):
        super().__init__()
        self.convolves = convolves
        self.feed_forward_1 = FeedForward(width, ffn_dim) if convolves else None
        self.self_attention = Attention(width, num_heads)
        self.cross_attention = Attention(width, num_heads) if attends else None
        self.convolution = ConvolutionModule(width, kernel) if convolves else None
        self.feed_forward_2 = FeedForward(width, ffn_dim)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        hidden_states: Tensor,  # [B, N, C]
        added: Tensor | float,  # [B, N, C]
        context: Tensor | None,  # [B, T, C]
        rotary: tuple[Tensor, Tensor],  # each [N, head_dim / 2]
        frame_mask: Tensor | None = None,  # [B, N]
        context_mask: Tensor | None = None,  # [B, T]
        places: Tensor | None = None,  # [N, C]
    ) -> Tensor:
        """Return hidden states of the same shape."""
        if self.feed_forward_1 is not None:
            hidden_states = hidden_states + 0.5 * self.dropout(self.feed_forward_1(hidden_states))
        hidden_states = hidden_states + self.dropout(self.self_attention(hidden_states, None, rotary, frame_mask))
        hidden_states = hidden_states + added
        if self.cross_attention is not None:
            query = hidden_states if places is None else hidden_states + places
            hidden_states = hidden_states + self.dropout(self.cross_attention(query, context, None, context_mask))
        if self.convolution is not None:
            hidden_states = hidden_states + self.dropout(self.convolution(hidden_states, frame_mask))
        share = 0.5 if self.convolves else 1.0
        return self.norm(hidden_states + share * self.dropout(self.feed_forward_2(hidden_states)))


class FeedForward(nn.Module):
    """Pre-norm feed-forward part."""

    def __init__(self, width: int, ffn_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.proj_in, self.proj_out = nn.Linear(width, ffn_dim), nn.Linear(ffn_dim, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map `(batch, frames, width)` to the same shape."""
        return self.proj_out(F.silu(self.proj_in(self.norm(hidden_states))))


class Attention(nn.Module):
    """Pre-norm attention of frames to themselves, with rotary positions, or to other tokens."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.to_out = nn.Linear(width, width)

    def forward(
        self,
        hidden_states: Tensor,  # [B, N, C]
        context: Tensor | None,  # [B, T, C]
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,  # [B, T], true where a key may be seen
    ) -> Tensor:  # [B, N, C]
        """Attend to `context`, or to the frames themselves without one."""
        hidden_states = self.norm(hidden_states)
        context = hidden_states if context is None else context
        query, key, value = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.to_q(hidden_states), *self.to_kv(context).chunk(2, dim=-1))
        )
        if rotary is not None:
            query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
        mask = None if mask is None else mask[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class ConvolutionModule(nn.Module):
    """The Conformer's convolution over time: pointwise with a gate, depthwise, pointwise."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.norm, self.inner_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.proj_in, self.proj_out = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)

    def forward(self, hidden_states: Tensor, frame_mask: Tensor | None) -> Tensor:
        """Map `(batch, frames, width)` to the same shape."""
        gated = F.glu(self.proj_in(self.norm(hidden_states)), dim=-1)
        gated = gated if frame_mask is None else gated * frame_mask[..., None].to(gated.dtype)
        return self.proj_out(F.silu(self.inner_norm(self.depthwise(gated.mT).mT)))


def vp_marginal(t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of z_t for z_0 = 1: `z_t = mean * z_0 + deviation * noise`.

    Source: GAIA Eq. 7. The denoiser's `timestep` at `t` is `1000 * t - 1`.

    Args:
        t (`torch.Tensor`): Times in [0, 1].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, each of the shape of `t`.
    """
    integral = BETA_MIN * t + (BETA_MAX - BETA_MIN) * t.square() / 2  # of beta from 0 to t
    return (-integral / 2).exp(), (-torch.expm1(-integral)).sqrt()


def gaia_scheduler(sampler: str = "ode", num_train_timesteps: int = 1000) -> DPMSolverMultistepScheduler:
    """A solver of GAIA's reverse diffusion, clean motion predicted.

    Step i of n of the scheduler is the time (i + 1) / n of the SDE; its betas are such that the marginals of Eq. 7 hold
    exactly. Others of diffusers' schedulers can be made of its config: DDIM also solves the ODE, DDPM the SDE.
    `ScoreSdeVpScheduler` has other methods, and takes scores alone.

    Args:
        sampler (`str`, defaults to `"ode"`): `"ode"` solves Eq. 9, `"sde"` solves Eq. 8.
        num_train_timesteps (`int`, defaults to 1000): Steps n.

    Raises:
        ValueError: If there is no such sampler.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"`sampler` must be one of {list(SAMPLERS)}, got {sampler!r}.")
    t = [step / num_train_timesteps for step in range(num_train_timesteps + 1)]
    integral = [BETA_MIN * x + (BETA_MAX - BETA_MIN) * x * x / 2 for x in t]
    betas = [-math.expm1(before - after) for before, after in zip(integral[:-1], integral[1:], strict=True)]
    return DPMSolverMultistepScheduler(
        num_train_timesteps=num_train_timesteps,
        trained_betas=betas,
        prediction_type="sample",
        algorithm_type=SAMPLERS[sampler],
    )

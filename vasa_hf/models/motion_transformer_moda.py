"""The motion generator of MoDA (§3.2): a multi-modal diffusion transformer with rectified flow.

    streams    motion (noisy motion ‖ motion before it)   audio   emotion   identity (canonical keypoints)
               each one token a frame; c = time + emotion modulates every block (adaLN)

    four_stream x 3     own weights for each stream, one attention over all 4N tokens
    two_stream x 6      motion | audio + emotion + identity, which share weights from here on
    single_stream x 12  all tokens share weights; attention and feed-forward part side by side
                        -> velocity (noise - motion) of the N motion tokens

Names of the modules are those of the published checkpoint, whose keys have the prefix `talking_head_dit.`.

Where the published code differs from the paper, the defaults follow the code, so that its weights load:
- Paper: rotary positions in all streams. Code: not on emotion and identity in the four-stream blocks
  (`rotary_conditions=True` gives the paper's).
- Paper: wav2vec features. Code: HuBERT's, all 12 layers side by side.
- Paper: about 370M parameters. The published sizes give 373.0M, and 904.3M without coarse-to-fine fusion.

What neither says, and what we chose:
# Not in the paper: `null_audio` is learnt. The published code keeps its null out of the weights and draws it at random.
# Not in the paper: short clips are padded and masked in attention (`frame_mask`); `mask_padding` says that a model was
  trained so, and that the last window of a sequence must be masked, too.
# Not in the paper: the cross-attention variant has self-attention, cross-attention to the embedded conditions, and a
  feed-forward part in each of as many blocks; only the first and last are modulated.
# Not in the paper: `skip_deviation` lets small networks learn: most of the noise has nothing to do with motion, which
  is smooth and of few dimensions, and a network hardly wider than 70 channels cannot pass it all through.
# Not in the paper: modulations and the last layer start at zero, so that every block starts as the identity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from vasa_hf.checks import check_number

EMOTIONS = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
# The published size is the default; the small one is for CPUs.
PRESETS: dict[str, dict] = {
    "paper": {},
    "small": {
        "hidden_size": 128,
        "num_heads": 4,
        "num_four_stream": 1,
        "num_two_stream": 2,
        "num_single_stream": 4,
        "skip_deviation": 0.5,
    },
}
CONDITIONS = ("audio", "emotion")
FUSIONS = ("coarse_to_fine", "four_stream", "motion_auxiliary", "cross_attention")
TIMESTEP_SPACINGS = ("linspace", "trailing")  # of sampling: as MoDA's code; equal steps, as the paper
EXPRESSION_DIM = 63
_ROTARY_THETA = 256.0
_TIME_FREQUENCIES = 128
_STD_FLOOR = 1e-5  # some channels of the published statistics hardly vary; without it they would explode
_Rotary = tuple[Tensor, Tensor]  # cosines and sines, each [N, head_dim]


@dataclass
class ModaMotionTransformerOutput(BaseOutput):
    """Output of `ModaMotionTransformer`.

    Args:
        sample (`torch.Tensor` of shape `(batch, frames, motion_dim)`): Velocity, noise minus clean motion, normalised.
    """

    sample: Tensor


def _time_frequencies(device: torch.device) -> Tensor:
    """10000^(-j / 128), float32.

    The exponential is taken in float64, so that every machine rounds alike: at t = 1000 one unit in the last place of a
    frequency turns its sine by 3e-5.
    """
    exponent = torch.arange(_TIME_FREQUENCIES, device=device, dtype=torch.float32) / _TIME_FREQUENCIES
    return (-math.log(10_000.0) * exponent).double().exp().float()


def _time_features(timestep: Tensor) -> Tensor:
    """Cosines, then sines of times [B], float32 [B, 256]."""
    angle = timestep.float()[:, None] * _time_frequencies(timestep.device)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def _velocity_gain(timestep: Tensor, deviation: float) -> Tensor:
    """E[v | z_t] / z_t, [B, 1, 1], if all channels of all frames were independent and normal of this deviation.

    z_t = (1 - t) z_0 + t noise, v = noise - z_0: cov(v, z_t) / var(z_t).
    """
    t = (timestep.float() / 1000)[:, None, None]
    variance = deviation**2
    return (t - (1 - t) * variance) / (t**2 + (1 - t) ** 2 * variance)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Norm without weights, then scale and shift [B, C] by the conditioning vector."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def _modulation(hidden_size: int, parts: int) -> nn.Sequential:
    layer = nn.Linear(hidden_size, parts * hidden_size)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.SiLU(), layer)


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, N, C] -> [B, heads, N, C / heads]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of [B, heads, N, head_dim], heads joined: [B, N, C]."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


def _rotate(x: Tensor, rotary: _Rotary | None) -> Tensor:
    """Turn neighbouring channel pairs of [B, heads, N, head_dim] by the tokens' positions."""
    return x if rotary is None else apply_rotary_emb(x, rotary, use_real_unbind_dim=-1)


class _Embedding(nn.Module):
    def __init__(self, in_features: int, hidden_size: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(in_features, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class _AudioEmbedding(nn.Module):
    """All layers of the features of a frame, side by side, to one token."""

    def __init__(self, in_features: int, hidden_size: int):
        super().__init__()
        self.proj1 = nn.Linear(in_features, hidden_size)
        self.proj2 = nn.Linear(hidden_size, hidden_size)
        self.proj3 = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.RMSNorm(hidden_size, eps=1e-6)

    def forward(self, audio: Tensor) -> Tensor:  # [B, N, L, A] -> [B, N, C]
        return self.norm(self.proj3(F.relu(self.proj2(F.relu(self.proj1(audio.flatten(2)))))))


class _EmotionEmbedding(nn.Module):
    """One row an emotion, and the last one for none."""

    def __init__(self, num_emotions: int, hidden_size: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_emotions + 1, hidden_size)

    def forward(self, emotion: Tensor) -> Tensor:  # [B] -> [B, C]
        return self.embedding_table(emotion)


class _FeedForward(nn.Module):
    def __init__(self, hidden_size: int, ratio: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, ratio * hidden_size)
        self.fc2 = nn.Linear(ratio * hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class _JointAttention(nn.Module):
    """One attention over the tokens of all streams; each stream has its own projections and norms."""

    def __init__(self, hidden_size: int, num_heads: int, suffixes: tuple[str, ...]):
        super().__init__()
        self.num_heads, self.streams = num_heads, (("xs", ""), *(("au", suffix) for suffix in suffixes))
        for kind, suffix in self.streams:
            setattr(self, f"qkv_{kind}{suffix}", nn.Linear(hidden_size, 3 * hidden_size))
            setattr(self, f"{kind}_q_norm{suffix}", nn.RMSNorm(hidden_size // num_heads, eps=1e-5))
            setattr(self, f"{kind}_k_norm{suffix}", nn.RMSNorm(hidden_size // num_heads, eps=1e-5))
            setattr(self, f"{kind}_proj{suffix}", nn.Linear(hidden_size, hidden_size))

    def forward(self, streams: list[Tensor], rotary: list[_Rotary | None], mask: Tensor | None) -> list[Tensor]:
        queries, keys, values = [], [], []
        for (kind, suffix), stream, turn in zip(self.streams, streams, rotary, strict=True):
            qkv = getattr(self, f"qkv_{kind}{suffix}")(stream)
            query, key, value = (_split_heads(x, self.num_heads) for x in qkv.chunk(3, dim=-1))
            queries.append(_rotate(getattr(self, f"{kind}_q_norm{suffix}")(query), turn))
            keys.append(_rotate(getattr(self, f"{kind}_k_norm{suffix}")(key), turn))
            values.append(value)
        attended = _attend(torch.cat(queries, 2), torch.cat(keys, 2), torch.cat(values, 2), mask)
        parts = attended.split([stream.shape[1] for stream in streams], dim=1)
        return [
            getattr(self, f"{kind}_proj{suffix}")(part)
            for (kind, suffix), part in zip(self.streams, parts, strict=True)
        ]


class _JointBlock(nn.Module):
    """Motion Transformer Block of several streams (§3.2.2): joint attention, own weights for everything else."""

    def __init__(self, hidden_size: int, num_heads: int, ffn_ratio: int, dropout: float, suffixes: tuple[str, ...]):
        super().__init__()
        self.names = ("xs", *(f"audio{suffix}" for suffix in suffixes))
        self.attn1 = _JointAttention(hidden_size, num_heads, suffixes)
        for name in self.names:
            stem, suffix = name.rstrip("123"), name[len(name.rstrip("123")) :]
            setattr(self, f"{stem}_mlp{suffix}", _FeedForward(hidden_size, ffn_ratio))
            setattr(self, f"adaLN_modulation_{name}", _modulation(hidden_size, 6))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, streams: list[Tensor], condition: Tensor, rotary: list[_Rotary | None], mask: Tensor | None
    ) -> list[Tensor]:
        parts = [getattr(self, f"adaLN_modulation_{name}")(condition).chunk(6, dim=-1) for name in self.names]
        inputs = [_modulate(x, *part[:2]) for x, part in zip(streams, parts, strict=True)]
        attended = self.attn1(inputs, rotary, mask)
        results = []
        for name, x, update, (_, _, gate, shift, scale, mlp_gate) in zip(
            self.names, streams, attended, parts, strict=True
        ):
            stem, suffix = name.rstrip("123"), name[len(name.rstrip("123")) :]
            x = x + gate[:, None] * self.dropout(update)
            update = getattr(self, f"{stem}_mlp{suffix}")(_modulate(x, shift, scale))
            results.append(x + mlp_gate[:, None] * self.dropout(update))
        return results


class _SingleBlock(nn.Module):
    """Block of one stream: attention and feed-forward part read the same input and share the last layer."""

    def __init__(self, hidden_size: int, num_heads: int, ffn_ratio: int, dropout: float):
        super().__init__()
        self.num_heads, self.hidden_size = num_heads, hidden_size
        self.attn1 = nn.ModuleDict(
            {name: nn.RMSNorm(hidden_size // num_heads, eps=1e-5) for name in ("xs_q_norm", "xs_k_norm")}
        )
        self.qkv_xs = nn.Linear(hidden_size, (3 + ffn_ratio) * hidden_size)
        self.linear2 = nn.Linear((1 + ffn_ratio) * hidden_size, hidden_size)
        self.adaLN_modulation_xs = _modulation(hidden_size, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor, rotary: _Rotary, mask: Tensor | None) -> Tensor:
        shift, scale, gate = self.adaLN_modulation_xs(condition).chunk(3, dim=-1)
        inner = self.qkv_xs(_modulate(x, shift, scale))
        qkv, inner = inner.tensor_split([3 * self.hidden_size], dim=-1)
        query, key, value = (_split_heads(part, self.num_heads) for part in qkv.chunk(3, dim=-1))
        query, key = _rotate(self.attn1["xs_q_norm"](query), rotary), _rotate(self.attn1["xs_k_norm"](key), rotary)
        attended = _attend(query, key, value, mask)
        update = self.linear2(torch.cat([attended, F.gelu(inner, approximate="tanh")], dim=-1))
        return x + gate[:, None] * self.dropout(update)


class _CrossBlock(nn.Module):
    """Block of the ablation "w/ CABA": motion is the query, the conditions are keys and values and stay unchanged."""

    def __init__(self, hidden_size: int, num_heads: int, ffn_ratio: int, dropout: float):
        super().__init__()
        head_dim, self.num_heads = hidden_size // num_heads, num_heads
        self.to_qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.to_query = nn.Linear(hidden_size, hidden_size)
        self.to_key_value = nn.Linear(hidden_size, 2 * hidden_size)
        self.norms = nn.ModuleList([nn.RMSNorm(head_dim, eps=1e-5) for _ in range(4)])
        self.self_out = nn.Linear(hidden_size, hidden_size)
        self.cross_out = nn.Linear(hidden_size, hidden_size)
        self.mlp = _FeedForward(hidden_size, ffn_ratio)
        self.adaLN_modulation = _modulation(hidden_size, 6)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        conditions: Tensor,
        condition: Tensor,
        rotary: _Rotary,
        condition_rotary: _Rotary,
        mask: Tensor | None,
    ) -> Tensor:
        frames = x.shape[1]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(condition).chunk(6, dim=-1)
        qkv = self.to_qkv(_modulate(x, shift, scale)).chunk(3, dim=-1)
        query, key, value = (_split_heads(part, self.num_heads) for part in qkv)
        query, key = _rotate(self.norms[0](query), rotary), _rotate(self.norms[1](key), rotary)
        attended = _attend(query, key, value, None if mask is None else mask[..., :frames])
        x = x + gate[:, None] * self.dropout(self.self_out(attended))
        query = _split_heads(self.to_query(F.rms_norm(x, x.shape[-1:], eps=1e-6)), self.num_heads)
        key, value = (_split_heads(part, self.num_heads) for part in self.to_key_value(conditions).chunk(2, dim=-1))
        query, key = _rotate(self.norms[2](query), rotary), _rotate(self.norms[3](key), condition_rotary)
        attended = _attend(query, key, value, None if mask is None else mask[..., frames:])
        x = x + self.dropout(self.cross_out(attended))
        return x + mlp_gate[:, None] * self.dropout(self.mlp(_modulate(x, mlp_shift, mlp_scale)))


class _FinalLayer(nn.Module):
    def __init__(self, hidden_size: int, out_features: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size, out_features)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.adaLN_modulation = _modulation(hidden_size, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.linear(_modulate(x, *self.adaLN_modulation(condition).chunk(2, dim=-1)))


class ModaMotionTransformer(ModelMixin, ConfigMixin):
    """Predicts the velocity of rectified flow; the defaults are the published size (373M parameters).

    Args:
        motion_dim (`int`, defaults to 70):
            Channels of a motion frame: expression 63, scale 1, translation 3, pitch, yaw, roll (degrees).
        keypoint_dim (`int`, defaults to 63): Numbers of the canonical keypoints, 21 times xyz.
        hidden_size (`int`, defaults to 768): Width.
        num_heads (`int`, defaults to 12): Attention heads.
        num_four_stream (`int`, defaults to 3): Blocks with own weights for all streams (paper).
        num_two_stream (`int`, defaults to 6): Blocks with two streams (paper).
        num_single_stream (`int`, defaults to 12): Blocks with one stream (paper).
        ffn_ratio (`int`, defaults to 4): Inner width of the feed-forward parts over `hidden_size`.
        audio_layers (`int`, defaults to 12): Layers L of the audio encoder whose features come in.
        audio_dim (`int`, defaults to 768): Channels A of the audio features.
        num_emotions (`int`, defaults to 8): Emotions; the number after the last one means none.
        window (`int`, defaults to 80): Frames of a window (paper).
        overlap (`int`, defaults to 16): Frames that neighbouring windows share.
        fps (`float`, defaults to 25): Frame rate of the motion.
        fusion (`str`, defaults to `"coarse_to_fine"`):
            The paper's model, or an ablation of its Table 3 with as many blocks: `four_stream` (w/o C2F),
            `motion_auxiliary` (w/ MAF: in the two-stream blocks emotion and identity join motion, not audio),
            `cross_attention` (w/ CABA).
        rotary_conditions (`bool`, defaults to `False`):
            Rotary positions on emotion and identity in four-stream blocks, too (paper); published weights have none.
        mask_padding (`bool`, defaults to `False`): Whether padded frames of a window must be masked.
        dropout (`float`, defaults to 0.0): Of the blocks' branches, in training.
        skip_deviation (`float`, *optional*):
            The network predicts what is left of the velocity after the best linear estimate from z_t, for motion of
            this deviation; the published weights predict all of it.
    """

    @register_to_config
    def __init__(
        self,
        motion_dim: int = 70,
        keypoint_dim: int = 63,
        hidden_size: int = 768,
        num_heads: int = 12,
        num_four_stream: int = 3,
        num_two_stream: int = 6,
        num_single_stream: int = 12,
        ffn_ratio: int = 4,
        audio_layers: int = 12,
        audio_dim: int = 768,
        num_emotions: int = 8,
        window: int = 80,
        overlap: int = 16,
        fps: float = 25.0,
        fusion: str = "coarse_to_fine",
        rotary_conditions: bool = False,
        mask_padding: bool = False,
        dropout: float = 0.0,
        skip_deviation: float | None = None,
    ):
        check_number("window", window, 1, 10_000, whole=True)
        super().__init__()
        if skip_deviation is not None and skip_deviation <= 0:
            raise ValueError(f"`skip_deviation` must be positive or None, got {skip_deviation}.")
        if fusion not in FUSIONS:
            raise ValueError(f"`fusion` must be one of {list(FUSIONS)}, got {fusion!r}.")
        if hidden_size % num_heads or (hidden_size // num_heads) % 2:
            raise ValueError(
                f"`num_heads` must divide `hidden_size` into even parts, got {num_heads} heads for {hidden_size}."
            )
        if not 0 <= overlap < window:
            raise ValueError(f"`overlap` must lie in [0, {window}), got {overlap}.")
        self.motion_embedder = _Embedding(2 * motion_dim, hidden_size)
        self.identity_embedder = _Embedding(keypoint_dim, hidden_size)
        self.time_embedder = _Embedding(2 * _TIME_FREQUENCIES, hidden_size)
        self.audio_embedder = _AudioEmbedding(audio_layers * audio_dim, hidden_size)
        self.emo_embedder = _EmotionEmbedding(num_emotions, hidden_size)
        size, total = (hidden_size, num_heads, ffn_ratio, dropout), num_four_stream + num_two_stream + num_single_stream
        if fusion == "cross_attention":
            self.blocks_cross = nn.ModuleList([_CrossBlock(*size) for _ in range(total)])
        else:
            counts = (total, 0, 0) if fusion == "four_stream" else (num_four_stream, num_two_stream, num_single_stream)
            self.blocks4 = nn.ModuleList([_JointBlock(*size, ("1", "2", "3")) for _ in range(counts[0])])
            self.blocks2 = nn.ModuleList([_JointBlock(*size, ("",)) for _ in range(counts[1])])
            self.blocks = nn.ModuleList([_SingleBlock(*size) for _ in range(counts[2])])
        self.final_layer = _FinalLayer(hidden_size, motion_dim)
        self.null_audio = nn.Parameter(torch.randn(audio_dim))
        self.register_buffer("motion_mean", torch.zeros(motion_dim))
        self.register_buffer("motion_std", torch.ones(motion_dim))

    @apply_forward_hook
    def normalize(self, motion: Tensor) -> Tensor:
        """Bring motion `(..., motion_dim)` to the zero mean and unit deviation that the model works with."""
        self._check_width("motion", motion)
        return (motion - self.motion_mean.to(motion)) / (self.motion_std.to(motion) + _STD_FLOOR)

    @apply_forward_hook
    def denormalize(self, sample: Tensor) -> Tensor:
        """Undo `normalize`."""
        self._check_width("sample", sample)
        return sample * (self.motion_std.to(sample) + _STD_FLOOR) + self.motion_mean.to(sample)

    def forward(
        self,
        sample: Tensor,  # [B, N, M]
        timestep: Tensor | float | int,  # [B] or scalar
        audio: Tensor | None = None,  # [B, N, L, A]
        emotion: Tensor | None = None,  # [B]
        keypoints: Tensor | None = None,  # [B, K] or [B, N, K]
        previous_motion: Tensor | None = None,  # [B, M] or [B, N, M]
        frame_mask: Tensor | None = None,  # [B, N]
        drop: dict[str, Tensor] | None = None,
        return_dict: bool = True,
    ) -> ModaMotionTransformerOutput | tuple[Tensor]:
        """Predict the velocity. Audio and emotion may be `None`: they are null then.

        Source: MoDA §3.2, v_theta(z_t, t, c) of Eq. 4.

        Args:
            sample (`torch.Tensor` of shape `(batch, frames, motion_dim)`): z_t, noisy normalised motion; any length.
            timestep (`torch.Tensor` of shape `(batch,)` or a number): t times 1000: 1000 is noise.
            audio (`torch.Tensor` of shape `(batch, frames, audio_layers, audio_dim)`, *optional*):
                Features of every frame.
            emotion (`torch.Tensor` of shape `(batch,)`, *optional*): Numbers in `EMOTIONS`; `num_emotions` is none.
            keypoints (`torch.Tensor` of shape `(batch, keypoint_dim)` or `(batch, frames, keypoint_dim)`):
                Canonical keypoints of the portrait, as the renderer's motion extractor gives them; those of several
                frames are averaged.
            previous_motion (`torch.Tensor` of shape `(batch, motion_dim)` or `(batch, frames, motion_dim)`):
                Normalised motion at the beginning of the window: of the portrait, or of the window before. One for
                all frames, or one a frame.
            frame_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*):
                True where audio and motion exist. The other frames' outputs mean nothing.
            drop (`dict[str, torch.Tensor]`, *optional*):
                `audio`, `emotion` to boolean masks of shape `(batch,)`: for these samples the condition is null.
            return_dict (`bool`, defaults to `True`): Whether to return `ModaMotionTransformerOutput` or a tuple.

        Raises:
            ValueError: If a shape, an emotion or the name of a condition is wrong.
        """
        drop = drop or {}
        self._check_inputs(sample, audio, emotion, keypoints, previous_motion, frame_mask, drop)
        batch, frames, _ = sample.shape
        timestep = torch.as_tensor(timestep, device=sample.device).expand(batch)

        # One token a frame in each stream, [B, N, C].
        emotion = self._or_none(emotion, batch, drop.get("emotion"))
        emotion_embeds = self.emo_embedder(emotion)  # [B, C]
        condition = self.time_embedder(_time_features(timestep).to(sample.dtype)) + emotion_embeds
        if previous_motion.ndim == 2:
            previous_motion = previous_motion[:, None].expand(-1, frames, -1)
        if keypoints.ndim == 3:
            keypoints = keypoints.mean(dim=1)
        streams = [
            self.motion_embedder(torch.cat([previous_motion, sample], dim=-1)),
            self.audio_embedder(self._or_null(audio, batch, frames, drop.get("audio"))),
            emotion_embeds[:, None].expand(-1, frames, -1),
            self.identity_embedder(keypoints)[:, None].expand(-1, frames, -1),
        ]
        head_dim = self.config.hidden_size // self.config.num_heads
        positions = torch.arange(frames, device=sample.device)
        once = get_1d_rotary_pos_embed(head_dim, positions, _ROTARY_THETA, use_real=True)
        rotary = {n: tuple(part.repeat(n, 1) for part in once) for n in (1, 3, 4)}  # positions restart in each stream
        mask = None if frame_mask is None else frame_mask.bool().repeat(1, 4)[:, None, None]  # [B, 1, 1, 4N]

        if self.config.fusion == "cross_attention":
            hidden_states, conditions = streams[0], torch.cat(streams[1:], dim=1)
            for block in self.blocks_cross:
                hidden_states = block(hidden_states, conditions, condition, rotary[1], rotary[3], mask)
        else:
            hidden_states = self._fuse(streams, condition, rotary, mask)
        velocity = self.final_layer(hidden_states[:, :frames], condition)
        if self.config.skip_deviation is not None:
            velocity = velocity + _velocity_gain(timestep, self.config.skip_deviation).to(velocity) * sample
        if not return_dict:
            return (velocity,)
        return ModaMotionTransformerOutput(sample=velocity)

    def _fuse(
        self, streams: list[Tensor], condition: Tensor, rotary: dict[int, _Rotary], mask: Tensor | None
    ) -> Tensor:
        """Coarse-to-fine fusion (§3.2.3) of motion, audio, emotion and identity; motion's tokens come first."""
        turn = rotary[1] if self.config.rotary_conditions else None
        for block in self.blocks4:
            streams = block(streams, condition, [rotary[1], rotary[1], turn, turn], mask)
        motion, audio, emotion, identity = streams
        if self.config.fusion == "motion_auxiliary":
            streams, turns = [torch.cat([motion, emotion, identity], 1), audio], [rotary[3], rotary[1]]
        else:
            streams, turns = [motion, torch.cat([audio, emotion, identity], 1)], [rotary[1], rotary[3]]
        for block in self.blocks2:
            streams = block(streams, condition, turns, mask)
        hidden_states = torch.cat(streams, dim=1)
        for block in self.blocks:
            hidden_states = block(hidden_states, condition, rotary[4], mask)
        return hidden_states

    def _or_null(self, audio: Tensor | None, batch: int, frames: int, drop: Tensor | None) -> Tensor:
        """Audio, replaced by the null feature in every frame and layer where it is absent or dropped."""
        null = self.null_audio.expand(batch, frames, self.config.audio_layers, -1)
        if audio is None:
            return null
        return audio if drop is None else torch.where(drop[:, None, None, None], null, audio)

    def _or_none(self, emotion: Tensor | None, batch: int, drop: Tensor | None) -> Tensor:
        """Numbers of emotions, replaced by the one of none where absent or dropped."""
        none = torch.full((batch,), self.config.num_emotions, device=self.null_audio.device)
        if emotion is None:
            return none
        return emotion if drop is None else torch.where(drop, none, emotion)

    def _check_width(self, name: str, value: Tensor) -> None:
        if value.shape[-1:] != (self.config.motion_dim,):
            raise ValueError(f"`{name}` must have {self.config.motion_dim} channels, got shape {tuple(value.shape)}.")

    def _check_inputs(
        self,
        sample: Tensor,
        audio: Tensor | None,
        emotion: Tensor | None,
        keypoints: Tensor | None,
        previous_motion: Tensor | None,
        frame_mask: Tensor | None,
        drop: dict[str, Tensor],
    ) -> None:
        config = self.config
        if sample.ndim != 3 or sample.shape[-1] != config.motion_dim or not sample.shape[1]:
            raise ValueError(
                f"`sample` must have shape (batch, frames, {config.motion_dim}), got {tuple(sample.shape)}."
            )
        batch, frames, _ = sample.shape
        if unknown := set(drop) - set(CONDITIONS):
            raise ValueError(f"`drop` must name conditions of {list(CONDITIONS)}, but names {sorted(unknown)}.")
        expected = {
            "audio": (audio, [(batch, frames, config.audio_layers, config.audio_dim)]),
            "emotion": (emotion, [(batch,)]),
            "keypoints": (keypoints, [(batch, config.keypoint_dim), (batch, frames, config.keypoint_dim)]),
            "previous_motion": (previous_motion, [(batch, config.motion_dim), (batch, frames, config.motion_dim)]),
            "frame_mask": (frame_mask, [(batch, frames)]),
            **{f"drop[{name!r}]": (mask, [(batch,)]) for name, mask in drop.items()},
        }
        for name, (value, shapes) in expected.items():
            if value is None and name not in ("keypoints", "previous_motion"):
                continue
            if value is None or tuple(value.shape) not in shapes:
                got = None if value is None else tuple(value.shape)
                raise ValueError(f"`{name}` must have shape {' or '.join(map(str, shapes))}, got {got}.")
        if emotion is not None and emotion.is_floating_point():
            raise ValueError(f"`emotion` must be whole numbers 0 to {config.num_emotions}, got {emotion.dtype}.")

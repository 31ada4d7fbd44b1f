"""Self-attention with rotary positions, and the transformer block built on it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rotary_angles(
    positions: Tensor,  # [N]
    head_dim: int,
    theta: float,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary position embedding (Su et al., RoFormer), in float32.

    Args:
        positions (`torch.Tensor` of shape `(tokens,)`): Position of each token, may be negative.
        head_dim (`int`): Channels of one head, even.
        theta (`float`): The slowest pair of channels rotates by about `1 / theta` radians per position.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, each of shape `(tokens, head_dim / 2)`.
    """
    if head_dim % 2:
        raise ValueError(f"`head_dim` must be even for rotary positions, got {head_dim}.")
    half = head_dim // 2
    speed = theta ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)
    angle = positions.float()[:, None] * speed
    return angle.cos(), angle.sin()


def apply_rotary(
    x: Tensor,  # [B, heads, N, head_dim]
    cosine: Tensor,  # [N, head_dim / 2]
    sine: Tensor,  # [N, head_dim / 2]
) -> Tensor:
    """Rotate the channel pairs (c, c + head_dim / 2) of every token by its position."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class TransformerBlock(nn.Module):
    """Pre-norm encoder block: x + attention(norm(x)), then x + feed_forward(norm(x)).

    Args:
        hidden_size (`int`): Channels.
        num_heads (`int`): Heads; must divide `hidden_size` into even parts.
        ffn_ratio (`int`): Inner channels of the feed-forward part relative to `hidden_size`.
        dropout (`float`): Dropout of the outputs of both branches.
        local_heads (`int`, defaults to 0):
            Number of heads that are initialised (by the biases of query and key) to attend to tokens near their own
            position.
    """

    def __init__(self, hidden_size: int, num_heads: int, ffn_ratio: int, dropout: float, local_heads: int = 0):
        super().__init__()
        if hidden_size % num_heads or (hidden_size // num_heads) % 2:
            raise ValueError(
                f"`num_heads` must divide `hidden_size` into even parts, got {num_heads} heads for {hidden_size}."
            )
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(hidden_size)
        self.to_qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.to_out = nn.Linear(hidden_size, hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.ffn_in = nn.Linear(hidden_size, ffn_ratio * hidden_size)
        self.ffn_out = nn.Linear(ffn_ratio * hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        if local_heads:
            # Equal constants in query and key leave sum_f cos(f * distance) of the fast channels: a peak at distance 0,
            # 6 above the logits of far tokens and about two positions wide.
            head_dim, fast = hidden_size // num_heads, max(1, hidden_size // num_heads // 4)
            with torch.no_grad():
                bias = self.to_qkv.bias.view(3, num_heads, head_dim)
                bias[:2, :local_heads] = 0.0
                bias[:2, :local_heads, :fast] = (6.0 * head_dim**0.5 / fast) ** 0.5

    def forward(
        self,
        hidden_states: Tensor,  # [B, N, C]
        rotary: tuple[Tensor, Tensor],  # each [N, head_dim / 2]
        attention_mask: Tensor | None = None,  # [B, 1, 1 or N, N], true where a key may be seen
    ) -> Tensor:
        """Return hidden states of the same shape."""
        batch, tokens, channels = hidden_states.shape
        qkv = self.to_qkv(self.norm1(hidden_states))
        qkv = qkv.view(batch, tokens, 3, self.num_heads, channels // self.num_heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv  # each [B, heads, N, head_dim]
        query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        attended = attended.transpose(1, 2).reshape(batch, tokens, channels)
        hidden_states = hidden_states + self.dropout(self.to_out(attended))
        inner = F.gelu(self.ffn_in(self.norm2(hidden_states)), approximate="tanh")
        return hidden_states + self.dropout(self.ffn_out(inner))

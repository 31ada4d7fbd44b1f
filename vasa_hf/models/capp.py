"""CAPP, "Contrastive Audio and Pose Pretraining" (VASA-1 §4.1): do these head movements belong to this audio?

```
head angles [B, W, >= 3] -> 6-layer transformer -> [B, W, F] -\
                                                               unit vectors [B, W F]; their cosine is the CAPP score
audio features [B, W, A] -> transformer ---------> [B, W, F] -/
```

Source: VASA-1 §4.1: trained "as CLIP", a randomly initialised 6-layer transformer for poses, an audio encoder that
starts from a pretrained Wav2Vec2, windows of 3 seconds.

# Not in the paper: widths; what a pose is (here yaw, pitch and roll, less their mean over the window, and their
differences from frame to frame); how frames become one vector: each gives a few numbers, less their mean over the
window, side by side, so that the cosine is a correlation over time and timing counts from the first step of training
(averaged over the frames, what happens hardly depends on when); where the Wav2Vec2 ends. It is a separate component
here, `transformers.Wav2Vec2Model`, as for the motion generator, and its features at the frame rate come in, so that it
can be the embedded small one or facebook/wav2vec2-base-960h. It stays frozen; the paper only says that it starts from
pretrained weights.
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
from vasa_hf.layers.attention import TransformerBlock, rotary_angles

# The paper's windows and depth with the width of Wav2Vec2-base; and what a CPU trains on clips of a second.
PRESETS = {
    "paper": {"audio_dim": 768, "hidden_size": 512, "num_heads": 8, "audio_layers": 2, "frame_dim": 8, "window": 75},
    "small": {
        "audio_dim": 192,
        "hidden_size": 64,
        "num_heads": 4,
        "audio_layers": 2,
        "frame_dim": 8,
        "window": 20,
        "center_audio": True,
    },
}


@dataclass
class CappOutput(BaseOutput):
    """Unit vectors of the windows.

    Attributes:
        pose_embeds (`torch.Tensor` of shape `(batch, window * frame_dim)`): Of the head movements.
        audio_embeds (`torch.Tensor` of shape `(batch, window * frame_dim)`): Of the audio.
    """

    pose_embeds: Tensor
    audio_embeds: Tensor


class SequenceEncoder(nn.Module):
    """Transformer over the frames of a window, whose outputs side by side are a unit vector."""

    def __init__(self, input_dim: int, hidden_size: int, layers: int, heads: int, frame_dim: int, dropout: float):
        super().__init__()
        self.head_dim = hidden_size // heads
        self.enter = nn.Linear(input_dim, hidden_size)
        self.blocks = nn.ModuleList(TransformerBlock(hidden_size, heads, 4, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.out = nn.Linear(hidden_size, frame_dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:  # [B, W, C] -> [B, W F]
        """Return unit vectors."""
        hidden_states = self.enter(features)
        positions = torch.arange(features.shape[1], device=features.device)
        rotary = rotary_angles(positions, self.head_dim, theta=100.0)
        for block in self.blocks:
            hidden_states = block(hidden_states, rotary)
        frames = self.out(self.norm(hidden_states))  # [B, W, F]
        return F.normalize((frames - frames.mean(1, keepdim=True)).flatten(1), dim=-1)


class Capp(ModelMixin, ConfigMixin):
    """Pose and audio encoders in one space.

    Args:
        audio_dim (`int`, defaults to 768): Channels A of the audio features.
        hidden_size (`int`, defaults to 512): Channels inside.
        num_heads (`int`, defaults to 8): Attention heads.
        pose_layers (`int`, defaults to 6): Depth of the pose encoder (paper).
        audio_layers (`int`, defaults to 2): Depth of what follows the Wav2Vec2.
        frame_dim (`int`, defaults to 8): Numbers F that each frame adds to the vectors.
        window (`int`, defaults to 75): Frames of a window; 75 are the paper's 3 seconds.
        center_audio (`bool`, defaults to `False`): Take from the audio features their mean over the window, so that
            the voice cannot be identified and only the course in time can match. # Not in the paper: where few people
            speak, a network matches voices with manners of moving, which says nothing of alignment.
        dropout (`float`, defaults to 0.0): Of the transformers, in training.
    """

    @register_to_config
    def __init__(
        self,
        audio_dim: int = 768,
        hidden_size: int = 512,
        num_heads: int = 8,
        pose_layers: int = 6,
        audio_layers: int = 2,
        frame_dim: int = 8,
        window: int = 75,
        center_audio: bool = False,
        dropout: float = 0.0,
    ):
        check_number("window", window, 1, 10_000, whole=True)
        super().__init__()
        if window < 5:
            raise ValueError(f"`window` must be at least 5 frames, got {window}.")
        self.register_buffer("pose_std", torch.ones(6))  # of the angles, then of their differences
        self.register_buffer("audio_mean", torch.zeros(audio_dim))
        self.register_buffer("audio_std", torch.ones(audio_dim))
        self.pose_encoder = SequenceEncoder(6, hidden_size, pose_layers, num_heads, frame_dim, dropout)
        self.audio_encoder = SequenceEncoder(audio_dim, hidden_size, audio_layers, num_heads, frame_dim, dropout)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # of the logits, CLIP's start

    @staticmethod
    def pose_features(pose: Tensor) -> Tensor:
        """Angles less their mean over the window, and their differences, `(batch, frames, 6)`, radians.

        Args:
            pose (`torch.Tensor` of shape `(batch, frames, >= 3)`): Yaw, pitch, roll in radians first.
        """
        angles = pose[..., :3]
        change = F.pad(angles.diff(dim=1), (0, 0, 1, 0))
        return torch.cat([angles - angles.mean(1, keepdim=True), change], -1)

    def encode_pose(self, pose: Tensor) -> Tensor:
        """Unit vectors `(batch, window * frame_dim)` of head movements.

        Args:
            pose (`torch.Tensor` of shape `(batch, window, >= 3)`): Yaw, pitch and roll in radians at 25 per second,
                such as motion; further channels are ignored.
        """
        if pose.ndim != 3 or pose.shape[1] != self.config.window or pose.shape[2] < 3:
            raise ValueError(f"`pose` must have shape (batch, {self.config.window}, >= 3), got {tuple(pose.shape)}.")
        return self.pose_encoder((self.pose_features(pose) / self.pose_std).to(self.dtype))

    def encode_audio(self, audio: Tensor) -> Tensor:
        """Unit vectors `(batch, window * frame_dim)` of audio.

        Args:
            audio (`torch.Tensor` of shape `(batch, window, audio_dim)`): Features of the audio encoder, one a frame.
        """
        expected = (self.config.window, self.config.audio_dim)
        if audio.ndim != 3 or tuple(audio.shape[1:]) != expected:
            raise ValueError(
                f"`audio` must have shape (batch, {expected[0]}, {expected[1]}), got {tuple(audio.shape)}."
            )
        mean = audio.mean(1, keepdim=True) if self.config.center_audio else self.audio_mean
        return self.audio_encoder(((audio - mean) / self.audio_std).to(self.dtype))

    def forward(self, pose: Tensor, audio: Tensor, return_dict: bool = True) -> CappOutput | tuple:
        """Embed head movements and audio.

        Args:
            pose (`torch.Tensor` of shape `(batch, window, >= 3)`): See `encode_pose`.
            audio (`torch.Tensor` of shape `(batch, window, audio_dim)`): See `encode_audio`.
            return_dict (`bool`, defaults to `True`): Whether to return a `CappOutput`.
        """
        pose_embeds, audio_embeds = self.encode_pose(pose), self.encode_audio(audio)
        if not return_dict:
            return pose_embeds, audio_embeds
        return CappOutput(pose_embeds=pose_embeds, audio_embeds=audio_embeds)

"""SyncNet (Chung and Zisserman 2016, "Out of time"): five face crops and 0.2 s of audio into one space.

The architecture is that of the public weights `syncnet_v2` (`joonson/syncnet_python`), layer by layer, so that they can
be converted (`convert/syncnet.py`); they are not part of this package.

```
5 crops 224², [-1, 1] RGB -> 3D convolutions (time: first layer alone), 512 -> 2 linear -> 1024
13 MFCC x 20 columns      -> 2D convolutions, 512                           -> 2 linear -> 1024
```
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn


@dataclass
class SyncNetOutput(BaseOutput):
    """Vectors of the windows.

    Attributes:
        face_embeds (`torch.Tensor` of shape `(batch, embed_dim)`): Of the images.
        audio_embeds (`torch.Tensor` of shape `(batch, embed_dim)`): Of the audio.
    """

    face_embeds: Tensor
    audio_embeds: Tensor


def _head(hidden: int, embed_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, embed_dim))


class SyncNet(ModelMixin, ConfigMixin):
    """The two-stream network; the Euclidean distance of its vectors says how far lips and audio are apart.

    Args:
        audio_widths (`tuple[int, ...]`, defaults to (64, 192, 384, 256, 256, 512)): Of the six audio convolutions.
        face_widths (`tuple[int, ...]`, defaults to (96, 256, 256, 256, 256, 512)): Of the six face convolutions.
        embed_dim (`int`, defaults to 1024): Length of the vectors.
    """

    @register_to_config
    def __init__(
        self,
        audio_widths: tuple[int, ...] = (64, 192, 384, 256, 256, 512),
        face_widths: tuple[int, ...] = (96, 256, 256, 256, 256, 512),
        embed_dim: int = 1024,
    ):
        super().__init__()
        for name, widths in (("audio_widths", audio_widths), ("face_widths", face_widths)):
            if len(widths) != 6 or min(widths) < 1:
                raise ValueError(f"`{name}` must be six positive widths, got {tuple(widths)}.")

        def audio(index: int, kernel=3, padding=1) -> list[nn.Module]:
            inputs, outputs = (1, *audio_widths)[index], audio_widths[index]
            return [nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU()]

        def face(index: int, kernel=(1, 3, 3), stride=(1, 1, 1), padding=(0, 1, 1)) -> list[nn.Module]:
            inputs, outputs = (3, *face_widths)[index], face_widths[index]
            return [nn.Conv3d(inputs, outputs, kernel, stride, padding), nn.BatchNorm3d(outputs), nn.ReLU()]

        # The places in the sequences are those of the public weights; the first pooling does nothing.
        self.audio_convs = nn.Sequential(
            *audio(0),
            nn.MaxPool2d(1, 1),
            *audio(1),
            nn.MaxPool2d(3, (1, 2)),
            *audio(2),
            *audio(3),
            *audio(4),
            nn.MaxPool2d(3, 2),
            *audio(5, (5, 4), 0),
        )
        halve = (1, 2, 2)
        self.face_convs = nn.Sequential(
            *face(0, (5, 7, 7), halve, 0),
            nn.MaxPool3d((1, 3, 3), halve),
            *face(1, (1, 5, 5), halve),
            nn.MaxPool3d((1, 3, 3), halve, (0, 1, 1)),
            *face(2),
            *face(3),
            *face(4),
            nn.MaxPool3d((1, 3, 3), halve),
            *face(5, (1, 6, 6), padding=0),
        )
        self.audio_head = _head(audio_widths[-1], embed_dim)
        self.face_head = _head(face_widths[-1], embed_dim)

    def encode_faces(self, faces: Tensor) -> Tensor:
        """Vectors `(batch, embed_dim)` of five crops each.

        Args:
            faces (`torch.Tensor` of shape `(batch, 3, 5, 224, 224)`): RGB in [-1, 1]; inside, as the weights know them,
                BGR from 0 to 255.
        """
        if faces.ndim != 5 or tuple(faces.shape[1:]) != (3, 5, 224, 224):
            raise ValueError(f"`faces` must have shape (batch, 3, 5, 224, 224), got {tuple(faces.shape)}.")
        pixels = (faces.flip(1) + 1) * 127.5
        return self.face_head(self.face_convs(pixels.to(self.dtype)).flatten(1))

    def encode_audio(self, mfcc: Tensor) -> Tensor:
        """Vectors `(batch, embed_dim)` of 0.2 s of audio each.

        Args:
            mfcc (`torch.Tensor` of shape `(batch, 1, 13, 20)`): See `metrics.sync.mfcc`; columns are times.
        """
        if mfcc.ndim != 4 or tuple(mfcc.shape[1:]) != (1, 13, 20):
            raise ValueError(f"`mfcc` must have shape (batch, 1, 13, 20), got {tuple(mfcc.shape)}.")
        return self.audio_head(self.audio_convs(mfcc.to(self.dtype)).flatten(1))

    def forward(self, faces: Tensor, mfcc: Tensor, return_dict: bool = True) -> SyncNetOutput | tuple:
        """Vectors of images and audio.

        Args:
            faces (`torch.Tensor` of shape `(batch, 3, 5, 224, 224)`): See `encode_faces`.
            mfcc (`torch.Tensor` of shape `(batch, 1, 13, 20)`): See `encode_audio`.
            return_dict (`bool`, defaults to `True`): Whether to return a `SyncNetOutput`.
        """
        face_embeds, audio_embeds = self.encode_faces(faces), self.encode_audio(mfcc)
        if not return_dict:
            return face_embeds, audio_embeds
        return SyncNetOutput(face_embeds=face_embeds, audio_embeds=audio_embeds)

"""Feature maps of VGG-19 and VGGFace, for the perceptual loss of VASA-1's base method (MegaPortraits, its ref. [19]).

The architectures are those of the public weights, layer by layer, so that they can be converted (`convert/vgg.py`);
the weights are not part of this package.

```
RGB, normalised -> 2 x conv 3², 64 -> pool -> 2 x 128 -> pool -> 3 or 4 x 256 -> pool -> 512 -> pool -> 512
```
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vasa_hf.models.face_recognizer import unit_channels

# Convolutions of each block.
DEPTHS = {"vgg19": (2, 2, 4, 4, 4), "vggface": (2, 2, 3, 3, 3)}
# What the public weights expect of RGB in [0, 255]: ImageNet's statistics; VGGFace subtracts a mean alone.
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
STATISTICS = {"vgg19": _IMAGENET, "vggface": ((129.1863, 104.7624, 93.5940), (1.0, 1.0, 1.0))}


class VggFeatures(ModelMixin, ConfigMixin):
    """Convolutions of VGG-19 (ImageNet) or VGGFace (VGG-16 on 2,622 people), with the interface of `FaceRecognizer`.

    Source: MegaPortraits §3.1, its L_IN and L_face. Maps are those after the first ReLU of each block.

    Args:
        kind (`str`, defaults to `"vgg19"`): `"vgg19"` or `"vggface"`.
        widths (`tuple[int, ...]`, defaults to (64, 128, 256, 512, 512)): Channels of the five blocks.
        image_size (`int`, *optional*): Side that images are resampled to; None: they stay as they are.
    """

    @register_to_config
    def __init__(
        self,
        kind: str = "vgg19",
        widths: tuple[int, ...] = (64, 128, 256, 512, 512),
        image_size: int | None = None,
    ):
        super().__init__()
        if kind not in DEPTHS:
            raise ValueError(f"`kind` must be one of {list(DEPTHS)}, got {kind!r}.")
        if len(widths) != 5:
            raise ValueError(f"`widths` must be five numbers, got {tuple(widths)}.")
        layers: list[nn.Module] = []
        before, self.taps = 3, []
        for block, (width, depth) in enumerate(zip(widths, DEPTHS[kind], strict=True)):
            layers += [nn.MaxPool2d(2, 2)] * bool(block)
            self.taps.append(len(layers) + 1)
            for _ in range(depth):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
        # What comes after the last map that is read is not computed.
        self.features = nn.Sequential(*layers[: self.taps[-1] + 1])

    def feature_maps(self, image: Tensor) -> list[Tensor]:
        """Five feature maps, from fine to coarse, each divided by its root mean square over the channels.

        # Not in the paper: the division, so that all networks and levels weigh alike.

        Args:
            image (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [-1, 1].

        Returns:
            `list[torch.Tensor]`: Sides 1, 1/2, 1/4, 1/8 and 1/16 of the image's.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"`image` must have shape (batch, 3, height, width), got {tuple(image.shape)}.")
        if self.config.image_size and tuple(image.shape[-2:]) != (self.config.image_size,) * 2:
            image = F.interpolate(image.float(), (self.config.image_size,) * 2, mode="bilinear", antialias=True)
        mean, std = torch.tensor(STATISTICS[self.config.kind], device=image.device).view(2, 1, 3, 1, 1)
        hidden_states = ((image.float() * 127.5 + 127.5 - mean) / std).to(self.dtype)
        maps = []
        for index, layer in enumerate(self.features):
            hidden_states = layer(hidden_states)
            if index in self.taps:
                maps.append(unit_channels(hidden_states))
        return maps

    def forward(self, image: Tensor) -> Tensor:
        """Unit-length mean of the last map, `(batch, widths[-1])`.

        Args:
            image (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [-1, 1].
        """
        return F.normalize(self.feature_maps(image)[-1].mean((2, 3)), dim=1)

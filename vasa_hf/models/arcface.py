"""ArcFace (Deng et al. 2019): the identity network of VASA-1's l_cross_id and of VASA-3D's ID Sim (its ref. [41]).

The architecture is the improved ResNet of the public weights (`deepinsight/insightface`, `arcface_torch`), layer by
layer, so that they can be converted (`convert/arcface.py`); the weights are not part of this package.

```
112² RGB [-1, 1] -> conv 3², norm, PReLU -> 4 stages, each halves -> norm -> linear -> norm -> 512, unit length
```
"""

from __future__ import annotations

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vasa_hf.models.face_recognizer import unit_channels

#: Residual blocks of the four stages of the public sizes.
DEPTHS = {"r18": (2, 2, 2, 2), "r34": (3, 4, 6, 3), "r50": (3, 4, 14, 3), "r100": (3, 13, 30, 3)}
# Left, top and side, in fractions of a standard face crop, of the square that ArcFace's five points are aligned in:
# least squares on the median landmarks of 62,947 frames, near-frontal ones; 0.5 % of the crop is left.
_ALIGNED = (0.2208, 0.2020, 0.5603)


class _Block(nn.Module):
    """Norm, conv, norm, PReLU, conv, norm, and the skip; the second convolution has the stride."""

    def __init__(self, width_in: int, width_out: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.prelu = nn.PReLU(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width_out)
        self.downsample = None
        if stride != 1 or width_in != width_out:
            skip = nn.Conv2d(width_in, width_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(skip, nn.BatchNorm2d(width_out))

    def forward(self, x: Tensor) -> Tensor:
        """[B, Cin, H, W] -> [B, Cout, H / stride, W / stride]."""
        update = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return update + (x if self.downsample is None else self.downsample(x))


class ArcFaceRecognizer(ModelMixin, ConfigMixin):
    """Identity embedding and feature maps of standard face crops, with the interface of `FaceRecognizer`.

    Args:
        depths (`tuple[int, ...]`, defaults to (3, 4, 14, 3)): Residual blocks of each stage, see `DEPTHS`.
        widths (`tuple[int, ...]`, defaults to (64, 64, 128, 256, 512)): Channels of the stem and of each stage.
        embedding_dim (`int`, defaults to 512): Length of the embedding.
        image_size (`int`, defaults to 112): Side of the aligned face.
    """

    @register_to_config
    def __init__(
        self,
        depths: tuple[int, ...] = (3, 4, 14, 3),
        widths: tuple[int, ...] = (64, 64, 128, 256, 512),
        embedding_dim: int = 512,
        image_size: int = 112,
    ):
        super().__init__()
        if len(depths) != 4 or len(widths) != 5:
            raise ValueError(f"`depths` and `widths` must be four and five numbers, got {depths} and {widths}.")
        if image_size % 16:
            raise ValueError(f"`image_size` must be a multiple of 16, got {image_size}.")
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        for stage, depth in enumerate(depths, start=1):
            blocks = [_Block(widths[stage - 1], widths[stage], 2)]
            blocks += [_Block(widths[stage], widths[stage], 1) for _ in range(depth - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.bn2 = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1] * (image_size // 16) ** 2, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)

    def _maps(self, image: Tensor) -> list[Tensor]:
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"`image` must have shape (batch, 3, height, width), got {tuple(image.shape)}.")
        height, width = image.shape[-2:]
        left, top, side = _ALIGNED
        face = image[..., round(top * height) : round((top + side) * height), :]
        face = face[..., round(left * width) : round((left + side) * width)]
        face = F.interpolate(face.float(), (self.config.image_size,) * 2, mode="bilinear", antialias=True)
        maps = [self.prelu(self.bn1(self.conv1(face.to(self.dtype))))]
        for stage in range(1, 5):
            maps.append(getattr(self, f"layer{stage}")(maps[-1]))
        return maps

    def feature_maps(self, image: Tensor) -> list[Tensor]:
        """Maps of the four stages, each divided by its root mean square over the channels.

        Args:
            image (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [-1, 1], a standard face crop.
        """
        return [unit_channels(features) for features in self._maps(image)[1:]]

    def forward(self, image: Tensor) -> Tensor:
        """Identity embedding `(batch, embedding_dim)`, unit length: compare by dot product.

        # Not in the paper: the square that ArcFace's points take in a standard crop on average, not one aligned by
        the five points of each image, so that gradients of a loss reach the image and the head's pose stays.

        Args:
            image (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [-1, 1], a standard face crop.
        """
        hidden_states = self.bn2(self._maps(image)[-1])
        return F.normalize(self.features(self.fc(hidden_states.flatten(1))), dim=1)

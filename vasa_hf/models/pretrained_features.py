"""Networks of the perceptual and identity losses (VASA-1 §3.1), each with the two methods of `FaceRecognizer`.

```
--perceptual, --identity     a folder that holds                                     made by
                             FaceRecognizer, embedded in vasa-small                  vasa-hf train face_recognizer
                             VggFeatures: VGG-19, VGGFace (the base method's)        vasa-hf convert vgg
                             ArcFaceRecognizer (VASA-3D's ID Sim)                    vasa-hf convert arcface
                             any vision model of transformers, or its Hub name
```
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vasa_hf.models.arcface import ArcFaceRecognizer
from vasa_hf.models.face_recognizer import FaceRecognizer, unit_channels
from vasa_hf.models.vgg_features import VggFeatures

_OURS = {kind.__name__: kind for kind in (FaceRecognizer, ArcFaceRecognizer, VggFeatures)}


class PretrainedFeatures(nn.Module):
    """A transformers vision backbone with the interface of `FaceRecognizer`. Frozen; gradients reach the image.

    Args:
        backbone (`transformers.PreTrainedModel`): Vision model that returns hidden states.
        mean (`tuple[float, ...]`): Mean of RGB in [0, 1] that the backbone expects.
        std (`tuple[float, ...]`): Standard deviation of RGB in [0, 1] that the backbone expects.
        image_size (`int`): Side of the backbone's input image.
        num_feature_maps (`int`, defaults to 4): How many hidden states are used, spread evenly up to the last.
    """

    def __init__(
        self,
        backbone: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        image_size: int,
        num_feature_maps: int = 4,
    ):
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.image_size, self.num_feature_maps = image_size, num_feature_maps
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "PretrainedFeatures":
        """Stay in evaluation mode: a loss network must not change, nor drop features at random."""
        return super().train(False)

    def _run(self, image: Tensor):
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"`image` must have shape (batch, 3, height, width), got {tuple(image.shape)}.")
        if tuple(image.shape[-2:]) != (self.image_size,) * 2:
            image = F.interpolate(image, (self.image_size,) * 2, mode="bilinear", antialias=True)
        pixels = (((image + 1) / 2 - self.mean) / self.std).to(next(self.backbone.parameters()).dtype)
        return self.backbone(pixels, output_hidden_states=True)

    def _square(self, hidden: Tensor) -> Tensor:
        """Tokens [B, extra + side², C] as a map [B, C, side, side]; maps stay as they are."""
        if hidden.ndim == 4:
            return hidden
        side = int(hidden.shape[1] ** 0.5)  # class and register tokens come first
        return hidden[:, -side * side :].mT.unflatten(2, (side, side))

    def _maps(self, output) -> list[Tensor]:
        states = getattr(output, "reshaped_hidden_states", None) or output.hidden_states
        last = len(states) - 1  # state 0 is the patch embedding or the stem
        count = max(1, min(self.num_feature_maps, last))
        return [self._square(states[round((index + 1) * last / count)]) for index in range(count)]

    def feature_maps(self, image: Tensor) -> list[Tensor]:
        """Feature maps, each divided by its root mean square over the channels.

        Args:
            image (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [-1, 1].
        """
        return [unit_channels(features) for features in self._maps(self._run(image))]

    def forward(self, image: Tensor) -> Tensor:
        """Unit-length vector `(batch, dim)`: the backbone's pooled output, or the mean of its last map.

        Args:
            image (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [-1, 1].
        """
        output = self._run(image)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            pooled = self._maps(output)[-1].mean((2, 3))
        return F.normalize(pooled.flatten(1).float(), dim=1)


def pretrained_features(
    name: str | os.PathLike, num_feature_maps: int = 4, local_files_only: bool = False
) -> FaceRecognizer | ArcFaceRecognizer | VggFeatures | PretrainedFeatures:
    """Load a network for the perceptual and identity losses; frozen, in evaluation mode.

    Args:
        name (`str` or `os.PathLike`):
            Folder of a `FaceRecognizer`, `ArcFaceRecognizer` or `VggFeatures` (`vasa-hf convert`), or folder or Hub
            name of a transformers vision model with safetensors weights ("microsoft/resnet-50").
        num_feature_maps (`int`, defaults to 4): How many feature maps of a transformers model are used.
        local_files_only (`bool`, defaults to `False`): Use the cache alone, do not connect to the Hub.

    Raises:
        ValueError: If it cannot be loaded, or is not a vision model.
    """
    name = os.fspath(name)
    if os.path.isfile(os.path.join(name, "config.json")):
        kind = _OURS.get(FaceRecognizer.load_config(name).get("_class_name"))
        if kind is not None:
            return kind.from_pretrained(name, torch_dtype=torch.float32).eval().requires_grad_(False)

    from transformers import AutoModel
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        # Safetensors only: older checkpoints of other kinds would have to be unpickled.
        backbone = AutoModel.from_pretrained(name, local_files_only=local_files_only, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`name` must be a folder or the Hub name of a vision model with safetensors weights, got {name!r}, which "
            "could not be loaded. Without a network give a local folder, a model that is already in the cache, or the "
            f"embedded `face_recognizer`. Cause: {error}"
        ) from error
    backbone = getattr(backbone, "vision_model", backbone)  # CLIP and its kin
    if getattr(backbone, "main_input_name", None) != "pixel_values":
        raise ValueError(f"`name` must be a vision model, but {name!r} is a {type(backbone).__name__}.")
    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(name, local_files_only=local_files_only)
    except OSError:  # no preprocessor_config.json
        processor = {}
    size = processor.get("crop_size") or processor.get("size") or getattr(backbone.config, "image_size", None) or 224
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or 224
    return PretrainedFeatures(
        backbone,
        mean=processor.get("image_mean", (0.485, 0.456, 0.406)),
        std=processor.get("image_std", (0.229, 0.224, 0.225)),
        image_size=size[0] if isinstance(size, (list, tuple)) else size,
        num_feature_maps=num_feature_maps,
    )

"""torchvision's VGG-19 (`vgg19-dcbb9e9d.pth`) and VGGFace (`vgg_face_dag.pth`) to safetensors of `VggFeatures`.

Only the convolutions that the perceptual loss reads are kept; the files are read with `weights_only=True`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from torch import nn

from vasa_hf.convert.checkpoint import ConversionReport, match, read_checkpoint, state_dict
from vasa_hf.convert.writing import new_folder
from vasa_hf.models.vgg_features import DEPTHS, VggFeatures


def convert_vgg(
    source: str | os.PathLike, destination: str | os.PathLike, model: VggFeatures | None = None
) -> ConversionReport:
    """Convert either network to a folder for `VggFeatures.from_pretrained`.

    Args:
        source (`str` or `os.PathLike`):
            State dict with `features.N.weight` (VGG-19), or `conv1_1.weight` to `conv5_3.bias` (VGGFace).
        destination (`str` or `os.PathLike`): New folder; only written if every tensor fits.
        model (`VggFeatures`, *optional*): Model to load the tensors into, defaults to the public size.

    Raises:
        ValueError: If the file cannot be read safely or a tensor is missing, unknown or of another shape.
    """
    state = state_dict(read_checkpoint(source), Path(source).name)
    model = model or VggFeatures("vggface" if "conv1_1.weight" in state else "vgg19")
    names = official_names(model)
    report = match(
        {names[name]: tuple(value.shape) for name, value in model.state_dict().items()}, state, may_have=_unread
    )
    report.check({"vgg19": "VGG-19", "vggface": "VGGFace"}[model.config.kind])
    model.load_state_dict({name: state[official] for name, official in names.items()})
    with new_folder(destination) as folder:
        model.eval().save_pretrained(folder)
    return report


def official_names(model: VggFeatures) -> dict[str, str]:
    """Name in the model -> name in the public file."""
    own = list(model.state_dict())
    if model.config.kind == "vgg19":
        return dict(zip(own, own, strict=True))
    layers = [index for index, layer in enumerate(model.features) if isinstance(layer, nn.Conv2d)]
    places = [f"conv{block + 1}_{i + 1}" for block, depth in enumerate(DEPTHS["vggface"]) for i in range(depth)]
    known = dict(zip(layers, places, strict=False))  # the last convolutions are not in the model
    return {
        f"features.{index}.{kind}": f"{place}.{kind}" for index, place in known.items() for kind in ("weight", "bias")
    }


def _unread(name: str) -> str | None:
    """The classifier, and convolutions after the last map that the loss reads."""
    return "not needed" if re.match(r"(classifier|fc\d|features\.3\d|conv5_[2-4])\b", name) else None

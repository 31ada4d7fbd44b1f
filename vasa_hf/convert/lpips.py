"""The public LPIPS weights to one safetensors file.

    python -m vasa_hf.convert.lpips alexnet-owt-7be5be79.pth alex.pth FOLDER

The first file is torchvision's AlexNet or VGG-16, the second the linear layers of the `lpips` package (`weights/v0.1`).
Both are read with `weights_only=True`.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from vasa_hf.convert.checkpoint import ConversionReport, match
from vasa_hf.files import staging
from vasa_hf.models.lpips import FILE_NAME, Lpips


def convert_lpips(
    backbone: str | os.PathLike, linear: str | os.PathLike, destination: str | os.PathLike
) -> ConversionReport:
    """Write `lpips.safetensors`.

    Args:
        backbone (`str` or `os.PathLike`): State dict with `features.N.weight` and `features.N.bias`.
        linear (`str` or `os.PathLike`): State dict with `lin0.model.1.weight` to `lin4.model.1.weight`.
        destination (`str` or `os.PathLike`): Folder; created if it does not exist.

    Raises:
        ValueError: If a file cannot be read or tensors are missing or of another shape.
    """
    features, layers = _read("backbone", backbone), _read("linear", linear)
    network = Lpips("vgg" if "features.28.weight" in features else "alex")
    expected = {name: tuple(value.shape) for name, value in network.features.state_dict(prefix="features.").items()}
    linear_shapes = {f"lin{i}.model.1.weight": (1, len(w), 1, 1) for i, w in enumerate(network.weights)}
    found = {name: value for name, value in layers.items() if name not in features}
    report = match(expected | linear_shapes, features | found, may_have=_unread)
    report.check("LPIPS")
    state = {name: features[name].float().contiguous() for name in expected}
    state |= {f"weights.{i}": layers[name].flatten().float().contiguous() for i, name in enumerate(linear_shapes)}
    target = Path(destination) / FILE_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    with staging(target) as folder:
        save_file(state, folder / target.name)
    return report


def _unread(name: str) -> str | None:
    return "not needed" if name.startswith("classifier.") else None


def _read(argument: str, path: str | os.PathLike) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"`{argument}` must be a state dict saved by torch, got {os.fspath(path)!r}: {error}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"`{argument}` must be a state dict, {os.fspath(path)!r} holds a {type(state).__name__}.")
    return state


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python -m vasa_hf.convert.lpips BACKBONE.pth LINEAR.pth FOLDER")
    print(convert_lpips(*sys.argv[1:]))

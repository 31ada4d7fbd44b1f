"""The public SyncNet weights (`syncnet_v2.model`) as safetensors of `models.syncnet.SyncNet`.

The file is a pickle of tensors. It is read with `weights_only=True`, which builds tensors and nothing else; a file that
asks for more is refused.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vasa_hf.models.syncnet import SyncNet

# Names of the public code -> ours; the places inside the sequences are the same.
PARTS = {"netcnnaud": "audio_convs", "netfcaud": "audio_head", "netcnnlip": "face_convs", "netfclip": "face_head"}
PREFIXES = ("module.", "__S__.", "model.")
# Written by newer versions of torch alone; not used when judging.
OPTIONAL = "num_batches_tracked"


@dataclass
class ConversionReport:
    """What became of each tensor.

    Attributes:
        converted (`list[str]`): Our names of the tensors that were taken over.
        missing (`list[str]`): Our names of tensors that the source lacks.
        unexpected (`list[str]`): Source names that have no place here.
        shapes (`list[str]`): "name: expected shape, got shape" of tensors that do not fit.
    """

    converted: list[str]
    missing: list[str]
    unexpected: list[str]
    shapes: list[str]

    @property
    def complete(self) -> bool:
        """Whether every tensor has found its place."""
        return not (self.missing or self.unexpected or self.shapes)

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} tensors converted"]
        for what in ("missing", "unexpected", "shapes"):
            lines += [f"{what.removesuffix('s')}: {name}" for name in getattr(self, what)]
        return "\n".join(lines)


def read_checkpoint(source: str | os.PathLike) -> dict[str, Tensor]:
    """Tensors of a checkpoint, read without running anything that the file says.

    Args:
        source (`str` or `os.PathLike`): A state dict that torch saved, or a dict that holds one as `state_dict`.

    Raises:
        ValueError: If the file is absent, is no checkpoint, or holds more than tensors.
    """
    source = Path(source)
    if not source.is_file():
        raise ValueError(f"`source` must be a checkpoint file, but there is none at {str(source)!r}.")
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"`source` must be a checkpoint of tensors alone, but {source.name!r} is not: {reason}"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(torch.is_tensor(value) for value in state.values()):
        raise ValueError(f"`source` must hold a dict of tensors, but {source.name!r} does not.")
    return dict(state)


def rename(name: str) -> str | None:
    """Our name of a tensor of the public code, None if it has none."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    part, _, rest = name.partition(".")
    return f"{PARTS[part]}.{rest}" if part in PARTS else None


def match(state: dict[str, Tensor], model: SyncNet) -> tuple[dict[str, Tensor], ConversionReport]:
    """Give each tensor its place in the model.

    Args:
        state (`dict[str, torch.Tensor]`): Tensors by the public code's names.
        model (`SyncNet`): Whose names and shapes count.

    Returns:
        `tuple`: tensors by our names, and the report.
    """
    expected = model.state_dict()
    found: dict[str, Tensor] = {}
    report = ConversionReport([], [], [], [])
    for source_name, value in state.items():
        name = rename(source_name)
        if name not in expected:
            report.unexpected.append(source_name)
        elif value.shape != expected[name].shape:
            report.shapes.append(f"{name}: expected {tuple(expected[name].shape)}, got {tuple(value.shape)}")
        else:
            found[name] = value.to(expected[name].dtype)
            report.converted.append(name)
    wrong_shape = {line.split(":")[0] for line in report.shapes}
    for name in expected.keys() - found.keys() - wrong_shape:
        if name.endswith(OPTIONAL):
            found[name] = torch.zeros_like(expected[name])
        else:
            report.missing.append(name)
    report.missing.sort()
    return found, report


def convert_syncnet(
    source: str | os.PathLike, destination: str | os.PathLike, model: SyncNet | None = None
) -> ConversionReport:
    """Convert a public SyncNet checkpoint to a folder for `SyncNet.from_pretrained`.

    Args:
        source (`str` or `os.PathLike`): `syncnet_v2.model`.
        destination (`str` or `os.PathLike`): Folder to write; nothing is written unless every tensor fits.
        model (`SyncNet`, *optional*): Where the tensors go, defaults to the public size.

    Raises:
        ValueError: If the file cannot be read safely or a tensor is missing, unknown or of another shape; the message
            is the report.
    """
    model = SyncNet() if model is None else model
    tensors, report = match(read_checkpoint(source), model)
    if not report.complete:
        raise ValueError(f"`source` does not fit SyncNet, nothing was written.\n{report}")
    model.load_state_dict(tensors)
    model.eval().save_pretrained(destination)
    return report

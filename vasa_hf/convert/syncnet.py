"""The public SyncNet weights (`syncnet_v2.model`) to safetensors of `models.syncnet.SyncNet`.

The file is a pickle of tensors, read with `weights_only=True`: a file with other objects raises `ValueError`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vasa_hf.convert.checkpoint import ConversionReport, match, read_checkpoint, state_dict
from vasa_hf.convert.writing import new_folder
from vasa_hf.models.syncnet import SyncNet

# Names in the model -> names in the public code; the indices in the sequences are the same.
PARTS = {"audio_convs": "netcnnaud", "audio_head": "netfcaud", "face_convs": "netcnnlip", "face_head": "netfclip"}
PREFIXES = ("module.", "__S__.", "model.")


def official_name(name: str) -> str:
    """Return the public code's name of a tensor of the model."""
    part, _, rest = name.partition(".")
    return f"{PARTS[part]}.{rest}"


def remove_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers used in training."""
    found = {}
    for name, value in state.items():
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        found[name] = value
    return found


def official_shapes(model: SyncNet) -> dict[str, tuple[int, ...]]:
    """Shapes by the public code's names."""
    return {official_name(name): tuple(value.shape) for name, value in model.state_dict().items()}


def _counter(name: str) -> str | None:
    # Only newer versions of torch save it; not used in evaluation mode.
    return "not needed" if name.endswith("num_batches_tracked") else None


def convert_syncnet(
    source: str | os.PathLike, destination: str | os.PathLike, model: SyncNet | None = None
) -> ConversionReport:
    """Convert a public SyncNet checkpoint to a folder for `SyncNet.from_pretrained`.

    Args:
        source (`str` or `os.PathLike`): `syncnet_v2.model`.
        destination (`str` or `os.PathLike`): New folder; only written if every tensor fits.
        model (`SyncNet`, *optional*): Model to load the tensors into, defaults to the public size.

    Raises:
        ValueError: If the file cannot be read safely or a tensor is missing, unknown or of another shape.
    """
    model = SyncNet() if model is None else model
    state = remove_prefixes(state_dict(read_checkpoint(source), Path(source).name))
    report = match(official_shapes(model), state, may_lack=_counter)
    report.check("SyncNet")
    own = model.state_dict()
    model.load_state_dict({name: state.get(official_name(name), torch.zeros_like(own[name])) for name in own})
    with new_folder(destination) as folder:
        model.eval().save_pretrained(folder)
    return report

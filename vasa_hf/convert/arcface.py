"""ArcFace's public backbones (`deepinsight/insightface`, `backbone.pth` of `arcface_torch`) to safetensors.

The file's tensors have the names of `ArcFaceRecognizer`; which size it is is seen from its blocks.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from vasa_hf.convert.checkpoint import ConversionReport, match, read_checkpoint, state_dict
from vasa_hf.convert.syncnet import remove_prefixes
from vasa_hf.convert.writing import new_folder
from vasa_hf.models.arcface import ArcFaceRecognizer


def convert_arcface(
    source: str | os.PathLike, destination: str | os.PathLike, model: ArcFaceRecognizer | None = None
) -> ConversionReport:
    """Convert a public ArcFace backbone to a folder for `ArcFaceRecognizer.from_pretrained`.

    Args:
        source (`str` or `os.PathLike`): State dict of an `iresnet` of 18 to 200 layers.
        destination (`str` or `os.PathLike`): New folder; only written if every tensor fits.
        model (`ArcFaceRecognizer`, *optional*): Model to load the tensors into; by default of the file's depth.

    Raises:
        ValueError: If the file cannot be read safely or a tensor is missing, unknown or of another shape.
    """
    state = remove_prefixes(state_dict(read_checkpoint(source), Path(source).name))
    blocks = [
        [int(found[1]) for name in state if (found := re.match(rf"layer{stage}\.(\d+)\.", name))]
        for stage in (1, 2, 3, 4)
    ]
    if not all(blocks):
        raise ValueError("`source` must have layer1 to layer4 of an iresnet of ArcFace, but some have no tensors.")
    model = model or ArcFaceRecognizer(depths=tuple(max(numbers) + 1 for numbers in blocks))
    report = match(
        {name: tuple(value.shape) for name, value in model.state_dict().items()},
        state,
        # Only newer versions of torch save the counters; they are not used in evaluation mode.
        may_lack=lambda name: "not needed" if name.endswith("num_batches_tracked") else None,
    )
    report.check("ArcFace")
    model.load_state_dict({name: state.get(name, value) for name, value in model.state_dict().items()})
    with new_folder(destination) as folder:
        model.eval().save_pretrained(folder)
    return report

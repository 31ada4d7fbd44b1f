"""Writing of converted models: a complete folder or none, in the layout of diffusers' pipelines."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers

from vasa_hf.files import staging_folder
from vasa_hf.hub import resolve

COMPONENTS = ("audio_encoder", "audio_processor", "image_processor", "motion_transformer", "renderer", "scheduler")
# No checkpoint contains a face detector with a free licence: the embedded one is copied.
FACE_ANALYZER = ("vasa-small/face_analyzer", ["vasa_hf.models.face_analyzer", "FaceAnalyzer"])


@contextmanager
def new_folder(destination: str | os.PathLike) -> Iterator[Path]:
    """Make a temporary folder that is renamed on success and removed on failure.

    Args:
        destination (`str` or `os.PathLike`): Final name: new, or an empty folder.

    Raises:
        ValueError: If the folder is not empty.
    """
    check_destination(destination)
    destination = Path(destination).absolute()
    destination.parent.mkdir(parents=True, exist_ok=True)
    with staging_folder(destination) as folder:
        yield folder


def check_destination(destination: str | os.PathLike) -> None:
    """Raise `ValueError`, before any work, if the destination is not empty.

    Args:
        destination (`str` or `os.PathLike`): Folder to write.

    Raises:
        ValueError: If it is neither new nor an empty folder.
    """
    destination = Path(destination)
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise ValueError(f"`destination` must be a new or an empty folder, got {str(destination)!r}: it is not empty.")


def save_pipeline(
    destination: str | os.PathLike,
    class_name: str,
    components: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write components as a folder for `from_pretrained` of a pipeline.

    Args:
        destination (`str` or `os.PathLike`): New or empty folder.
        class_name (`str`): The pipeline's class.
        components (`Mapping[str, Any]`): Some of `COMPONENTS`, each with a `save_pretrained`.
        config (`Mapping[str, Any]`, *optional*): Options of the pipeline's class.
    """
    embedded, face_analyzer = FACE_ANALYZER
    embedded = resolve(embedded)
    index = {"_class_name": class_name, "_diffusers_version": diffusers.__version__, "face_analyzer": face_analyzer}
    index |= dict(config or {})
    with new_folder(destination) as folder:
        shutil.copytree(embedded, folder / "face_analyzer")
        for name in COMPONENTS:
            component = components.get(name)
            if component is None:
                continue
            component.save_pretrained(folder / name)
            module = type(component).__module__
            library = module if module.startswith("vasa_hf.") else module.split(".")[0]
            index[name] = [library, type(component).__name__]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")

"""Trained components as a pipeline that loads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from vasa_hf.hub import resolve


def save_pipeline(base: str | os.PathLike, target: str | os.PathLike, **components: Any) -> Path:
    """Write a pipeline folder: a known pipeline with some components replaced by newly trained ones.

    The model card of the known pipeline is left behind, since it does not speak of these weights.

    Args:
        base (`str` or `os.PathLike`): Name of an embedded pipeline, or a pipeline folder.
        target (`str` or `os.PathLike`): Folder to write; replaced if it is there.
        components: Name in `model_index.json` -> whatever has `save_pretrained`.

    Raises:
        ValueError: If `base` is no pipeline folder, or has no component of a name.
    """
    base, target = Path(resolve(base)), Path(target)
    if not (base / "model_index.json").is_file():
        raise ValueError(f"`base` must be a pipeline folder with model_index.json, got {str(base)!r}.")
    known = json.loads((base / "model_index.json").read_text())
    if unknown := set(components) - set(known):
        raise ValueError(f"`components` must be among those of {base.name!r}, but {sorted(unknown)} are not.")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(base, partial, ignore=shutil.ignore_patterns("README.md", "images", *components))
    for name, component in components.items():
        component.save_pretrained(partial / name)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target

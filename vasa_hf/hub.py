"""Where the weights that come with the package are. Nothing else of the package knows these paths."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vasa_hf.checks import parse_json, shorten

BASE = "_base"  # in a model_index.json; diffusers ignores private entries
# Component -> names under which earlier versions saved it.
EARLIER_NAMES = {"motion_transformer": ("motion_generator", "motion_denoiser")}
# Name -> what it is, as `vasa-hf info` prints it.
EMBEDDED = {
    "vasa-small": "VASA-1 at 256 x 256 for CPUs",
    "vasa3d-small": "VASA-3D at 256 x 256 for CPUs, with ready avatars; VASA-1 components of vasa-small",
    "moda-small": "MoDA with LivePortrait's renderer at 256 x 256 for CPUs; face and audio models of vasa-small",
}


def embedded_path(name: str) -> Path:
    """Return the folder of an embedded model, whether or not its weights are there.

    Args:
        name (`str`): A key of `EMBEDDED`.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in EMBEDDED:
        raise ValueError(f"`name` must be one of the embedded models {list(EMBEDDED)}, got {name!r}.")
    package = Path(__file__).resolve().parent
    # A wheel carries the folder inside the package; a checkout has it next to the package.
    folders = [package / "model_cards" / name, package.parent / "model_cards" / name]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def base_name(index: Mapping[str, Any]) -> str | None:
    """Name of the model from which a model's missing components come, as its `model_index.json` says.

    Args:
        index (`Mapping[str, Any]`): The content of that file. Earlier versions saved `"talking_face"` for VASA-3D.
    """
    return index.get(BASE, index.get("talking_face"))


def resolve(name_or_path: str | os.PathLike) -> str:
    """Turn the name of an embedded model into its folder; a path or the name of a Hub repository stays as it is.

    An embedded name wins over a folder of that name in the working directory: write `./vasa-small` for that. A part of
    an embedded model is named `vasa-small/motion_transformer`.

    Args:
        name_or_path (`str` or `os.PathLike`): What `from_pretrained` was given.

    Returns:
        `str`: A folder, or the name of a Hub repository.

    Raises:
        FileNotFoundError: If the package was installed without the weights that it should carry.
    """
    name, _, part = os.fspath(name_or_path).partition("/")
    if name not in EMBEDDED:
        return os.fspath(name_or_path)
    folder = embedded_path(name)
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"The embedded weights {name!r} are missing: no model_index.json in {str(folder)!r}. Reinstall vasa-hf "
            "from a complete checkout or wheel."
        )
    return str(folder / part)


def read_index(folder: str | os.PathLike) -> dict[str, Any]:
    """Read a folder's `model_index.json`, with today's names of components; empty if there is none.

    Raises:
        ValueError: If it is no JSON object, or names another model by anything but text.
    """
    file = Path(folder) / "model_index.json"
    if not file.is_file():
        return {}
    index = parse_json(file.read_bytes(), "model_index.json")
    if not isinstance(index, dict):
        raise ValueError(f"`model_index.json` must hold an object, got {shorten(index)}.")
    for name in ("_base", "_class_name", "talking_face"):
        if not isinstance(index.get(name, ""), str):
            raise ValueError(f"`{name}` of model_index.json must be text, got {shorten(index[name])}.")
    return rename_components(index)


def rename_components(index: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `model_index.json` with today's names of components for `EARLIER_NAMES`."""
    today = {earlier: name for name, names in EARLIER_NAMES.items() for earlier in names}
    return {today.get(name, name): entry for name, entry in index.items()}


def component_folder(folder: str | os.PathLike, name: str) -> Path:
    """The subfolder of a component; that of one of its `EARLIER_NAMES` if only that is there."""
    folders = [Path(folder) / known for known in (name, *EARLIER_NAMES.get(name, ()))]
    return next((path for path in folders if path.is_dir()), folders[0])


def component_root(pipeline: str | os.PathLike, name: str) -> str:
    """Folder or Hub repository whose subfolder `name` is a pipeline's component: its own, or that of its base.

    Args:
        pipeline (`str` or `os.PathLike`): Name of an embedded pipeline, a pipeline folder, or a Hub repository.
        name (`str`): Name of the component.
    """
    root = resolve(pipeline)
    base = base_name(read_index(root))
    return resolve(base) if base and not (Path(root) / name).is_dir() else root

"""Loading and saving a pipeline: embedded weights by name, safetensors alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from vasa_hf.hub import resolve

# Options of `from_pretrained` that say where on the Hub to look, and how.
_BASE = "_base"  # diffusers passes over private entries of an index
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


class EmbeddedWeightsMixin:
    """`from_pretrained` and `save_pretrained` of a `DiffusionPipeline`; to be named before it among the bases.

    Attributes:
        model_name (`str`, *optional*): Last part of the name that the pipeline was loaded by.
    """

    model_name: str | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> EmbeddedWeightsMixin:
        """Load a pipeline from the embedded weights, a folder, or the Hub.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Name of embedded weights (`"vasa-small"`, no network), a folder, or a repository of the Hub.
            **kwargs: As for `DiffusionPipeline.from_pretrained`, such as the `revision` of a repository, `token` and
                `local_files_only`. `dtype` defaults to float32.

        Raises:
            ValueError: If there is no such model, if its weights are of another class or shape than it says, or if
                `use_safetensors=False` is asked for: other weights are never loaded here.
        """
        require_safetensors(kwargs)
        options = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        folder = local_folder(pretrained_model_name_or_path, **options)
        try:
            pipeline = super().from_pretrained(folder, **{**borrowed(folder, kwargs), **kwargs})
            for name, component in pipeline.components.items():
                check_weights(name, component)
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, SafetensorError, ValueError) as error:
            name = os.fspath(pretrained_model_name_or_path)
            raise ValueError(
                f"`pretrained_model_name_or_path` must hold a whole pipeline, got {name!r}: {error}"
            ) from error
        if not kwargs.keys() & {"dtype", "torch_dtype"}:  # older versions of diffusers know the second name only
            for component in pipeline.components.values():
                if isinstance(component, torch.nn.Module):
                    component.float()
        pipeline.model_name = Path(os.fspath(pretrained_model_name_or_path)).name
        return pipeline

    def save_pretrained(
        self, save_directory: str | os.PathLike, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """Save all components as safetensors; see `DiffusionPipeline.save_pretrained`.

        Raises:
            ValueError: If `safe_serialization=False` is asked for.
        """
        if not safe_serialization:
            raise ValueError("`safe_serialization` must be True: weights are saved as safetensors only, got False.")
        super().save_pretrained(save_directory, safe_serialization=True, **kwargs)


def borrowed(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Components that a folder lacks and another model lends: the one that its `model_index.json` calls `"_base"`.

    So `moda-small` has its face analyzer and audio encoder from `vasa-small`. Saved again, a pipeline has all of them.

    Args:
        folder (`Path`): A pipeline's.
        given (`Mapping[str, Any]`): Options of `from_pretrained`: a component, or a `dtype`, that is given there.

    Raises:
        ValueError: If the other model is not there.
    """
    index = _read_json(folder / "model_index.json")
    if _BASE not in index:
        return {}
    base = local_folder(index[_BASE])
    theirs, parts = _read_json(base / "model_index.json"), {}
    dtype = {name: given[name] for name in ("dtype", "torch_dtype") if name in given}
    for name, entry in index.items():
        if isinstance(entry, list) and entry[0] and name not in given and not (folder / name).is_dir():
            library, kind = theirs[name]
            component = getattr(import_module(library), kind)
            parts[name] = component.from_pretrained(
                base / name, **(dtype if issubclass(component, torch.nn.Module) else {})
            )
    return parts


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):  # whoever loads the pipeline tells what is wrong with it
        return {}


def require_safetensors(options: dict[str, Any]) -> None:
    """Ask for safetensors in options of `from_pretrained`; raise `ValueError` if they ask for something else."""
    if not options.setdefault("use_safetensors", True):
        raise ValueError("`use_safetensors` must be True: pickled weights are never loaded, got False.")


def local_folder(name_or_path: str | os.PathLike, **hub_options: Any) -> Path:
    """The folder of embedded weights, of a path, or of a repository of the Hub, whose safe files are downloaded whole.

    `DiffusionPipeline.download` would leave out what is no component, and refuses components of other libraries than
    diffusers and transformers.

    Args:
        name_or_path (`str` or `os.PathLike`): What `from_pretrained` was given.
        **hub_options: Some of `HUB_OPTIONS`.

    Raises:
        ValueError: If there is no such folder and no such repository, or it cannot be reached.
    """
    place = resolve(name_or_path)
    if os.path.isdir(place):
        return Path(place)
    try:
        known = {name: hub_options[name] for name in HUB_OPTIONS if hub_options.get(name) is not None}
        return Path(snapshot_download(place, allow_patterns=["*.json", "*.txt", "*.safetensors"], **known))
    except (OSError, ValueError) as error:  # also the Hub's own errors
        raise ValueError(
            f"`pretrained_model_name_or_path` must be an embedded model, a folder or a repository of the Hub, got "
            f"{place!r}: {error}"
        ) from error


def load_model(model_class: type[ModelMixin], name_or_path: str | os.PathLike, **kwargs: Any) -> ModelMixin:
    """Load one model of ours for use: whole, from safetensors, in float32.

    Args:
        model_class (`type`): Its class.
        name_or_path (`str` or `os.PathLike`): A folder or a repository of the Hub.
        **kwargs: As for its `from_pretrained`.

    Raises:
        ValueError: If it cannot be read, or is of another class or shape.
    """
    require_safetensors(kwargs)
    place, kind = resolve(name_or_path), model_class.__name__
    try:
        saved = model_class.load_config(place, **{name: kwargs[name] for name in HUB_OPTIONS if name in kwargs})
        if saved.get("_class_name") != kind:
            raise ValueError(f"it is a {saved.get('_class_name')}")
        model = model_class.from_pretrained(place, **kwargs)
        check_weights(kind, model)
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"`name_or_path` must hold a whole {kind}, got {os.fspath(name_or_path)!r}: {error}"
        ) from error
    return model.float().eval()


def check_weights(name: str, component: Any) -> None:
    """Raise `ValueError` if a model of ours was loaded from files that lack some of its weights.

    diffusers only logs it, and goes on with random numbers: weights of another class would pass.
    """
    folder = Path(component.config.get("_name_or_path") or "") if isinstance(component, ModelMixin) else Path()
    saved = set()
    for file in folder.glob("*.safetensors") if folder.name else ():
        with safe_open(file, "pt") as weights:
            saved.update(weights.keys())
    missing = sorted(component.state_dict().keys() - saved) if saved else []
    if missing:
        raise ValueError(
            f"`{name}` must find all weights of {type(component).__name__} in {str(folder)!r}, but {len(missing)} are "
            f"not there, such as {missing[0]!r}."
        )

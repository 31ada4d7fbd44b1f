"""Loading a pipeline: embedded weights by name, components shared with another model, safetensors only."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers import __version__ as diffusers_version
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.image_processing_base import ImageProcessingMixin

from vasa_hf.checks import shorten
from vasa_hf.hub import BASE, base_name, component_folder, read_index, resolve
from vasa_hf.pipelines.saved_config import check_saved_config

# Options of `from_pretrained` about the Hub.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
INDEX = "model_index.json"
_OPTIONS = ("dtype", "torch_dtype", "variant", "use_safetensors")  # of networks
_LIBRARIES = ("vasa_hf", "diffusers", "transformers")
_PROCESSORS = (FeatureExtractionMixin, ImageProcessingMixin, PreTrainedTokenizerBase)
_COMPONENTS = (ModelMixin, PreTrainedModel, SchedulerMixin, *_PROCESSORS)


@contextlib.contextmanager
def pipeline_errors(name_or_path: str | os.PathLike) -> Iterator[None]:
    """Turn errors in the files of a pipeline into a `ValueError` that names the pipeline."""
    try:
        yield
    except (torch.OutOfMemoryError, ImportError):
        raise
    except Exception as error:  # what a class may raise that is built with foreign settings
        name, reason = shorten(os.fspath(name_or_path), length=200), shorten(error, str, 500)
        raise ValueError(f"`pretrained_model_name_or_path` must hold a whole pipeline, got {name}: {reason}") from error


def load_components(folder: Path, pipeline_class: type, given: Mapping[str, Any], **hub_options: Any) -> dict[str, Any]:
    """Load what diffusers would not: components that a folder lacks, and networks of transformers.

    Components that are not there come from the model that `model_index.json` names in `"_base"`: `moda-small` has its
    face analyzer and audio encoder from `vasa-small`. Saved again, a pipeline has all of them. Networks of transformers
    are loaded here, as only then their missing tensors are known: diffusers continues with random numbers. So are ours,
    for messages that name the component.

    Args:
        folder (`Path`): Folder of a pipeline.
        pipeline_class (`type`): Its class, which names the components.
        given (`Mapping[str, Any]`): Options of `from_pretrained`: components that are not needed, and a `dtype`.
        **hub_options: Some of `HUB_OPTIONS`, for the other model.

    Raises:
        ValueError: If the other model is not there, or either model has a component of a class that is not allowed.
    """
    index, shared, base, components = read_components(folder), {}, folder, {}
    base_model = base_name(index)
    if base_model is not None:
        base = local_folder(base_model, **{**hub_options, "revision": None})
        shared = read_components(base)
    options = {name: given[name] for name in _OPTIONS if name in given}
    parameters = inspect.signature(pipeline_class).parameters
    is_plain = given.keys() <= parameters.keys() | set(_OPTIONS)  # else diffusers places or quantizes our networks
    for name in parameters:
        entry = index.get(name, shared.get(name))
        if not isinstance(entry, list) or not any(entry) or name in given:
            continue
        place = component_folder(folder, name)
        is_shared = not place.is_dir() and base_model is not None
        component = component_class(name, shared.get(name) if is_shared else entry)
        place = component_folder(base, name) if is_shared else place
        check_saved_config(name, component, place)
        is_elsewhere = is_shared or place.name != name
        if is_elsewhere or issubclass(component, PreTrainedModel) or (is_plain and issubclass(component, ModelMixin)):
            components[name] = _load_component(name, component, place, options)
    return components


def _load_component(name: str, component: Any, folder: Path, options: Mapping[str, Any]) -> Any:
    """Load a component, whole; `options` are those of networks."""
    options = {**options, "use_safetensors": True} if issubclass(component, torch.nn.Module) else {}
    missing, unknown = (), ()
    try:
        if issubclass(component, PreTrainedModel):
            loaded, info = component.from_pretrained(folder, output_loading_info=True, **options)
            missing, unknown = info["missing_keys"], info["unexpected_keys"]
        else:
            loaded = component.from_pretrained(folder, **options)
    except (torch.OutOfMemoryError, ImportError):
        raise
    except Exception as error:  # what a class may raise that is built with foreign settings
        kind, reason = component.__name__, shorten(error, str, 500)
        raise ValueError(f"`{name}` must be a whole {kind}, got {str(folder)!r}: {reason}") from error
    for names, what in ((missing, "lacks"), (unknown, "does not know")):
        if names:
            raise ValueError(
                f"`{name}` must be whole, but {component.__name__} {what} {len(names)} of the tensors in "
                f"{str(folder)!r}, such as {min(names)!r}."
            )
    check_weights(name, loaded)
    return loaded


def component_class(name: str, entry: Any) -> Any:
    """The class of a component, as an entry `[module, class]` of a `model_index.json` says.

    Only vasa_hf, diffusers and transformers are imported, and only classes of components are accepted.

    Raises:
        ValueError: If it is another one.
    """
    problem = ValueError(f"`{name}` must be a component of {', '.join(_LIBRARIES)}, got {entry!r}.")
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(part, str) for part in entry):
        raise problem
    if entry[0].split(".")[0] not in _LIBRARIES:
        raise problem
    try:
        found = getattr(import_module(entry[0]), entry[1])
    except (ImportError, AttributeError) as error:
        raise problem from error
    if not isinstance(found, type) or not issubclass(found, _COMPONENTS):
        raise problem
    return found


def read_components(folder: Path) -> dict[str, Any]:
    """The `model_index.json` of a folder, whose components are of allowed classes; empty if there is none.

    Raises:
        ValueError: If it cannot be read, see `vasa_hf.hub.read_index`, or a component is of another class.
    """
    index = read_index(folder)
    for name, entry in index.items():
        if isinstance(entry, list) and not name.startswith("_") and any(part is not None for part in entry):
            component_class(name, entry)
    return index


def save_index(folder: str | os.PathLike, class_name: str, base: str) -> None:
    """Write the `model_index.json` of a pipeline whose components are all those of another model."""
    index = {"_class_name": class_name, "_diffusers_version": diffusers_version, BASE: base}
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def require_safetensors(options: dict[str, Any]) -> None:
    """Set `use_safetensors` in options of `from_pretrained`; raise `ValueError` if it is false."""
    if not options.setdefault("use_safetensors", True):
        raise ValueError("`use_safetensors` must be True: pickled weights are never loaded, got False.")


def local_folder(name_or_path: str | os.PathLike, **hub_options: Any) -> Path:
    """Return the folder of embedded weights, of a path, or of a Hub repository, whose safe files are downloaded.

    `DiffusionPipeline.download` skips files outside components, and refuses components of other libraries than
    diffusers and transformers.

    Args:
        name_or_path (`str` or `os.PathLike`): The argument of `from_pretrained`.
        **hub_options: Some of `HUB_OPTIONS`.

    Raises:
        ValueError: If there is no such folder and no such repository, or it cannot be reached.
    """
    location = resolve(name_or_path)
    if os.path.isdir(location):
        return Path(location)
    try:
        known = {name: hub_options[name] for name in HUB_OPTIONS if hub_options.get(name) is not None}
        return Path(snapshot_download(location, allow_patterns=["*.json", "*.txt", "*.safetensors"], **known))
    except (OSError, ValueError) as error:  # also the Hub's own errors
        raise ValueError(
            f"`pretrained_model_name_or_path` must be an embedded model, a folder or a repository of the Hub, got "
            f"{shorten(location, length=200)}: {shorten(error, str, 500)}"
        ) from error


def load_model(model_class: type[ModelMixin], name_or_path: str | os.PathLike, **kwargs: Any) -> ModelMixin:
    """Load one model for inference: complete, from safetensors, in float32.

    Args:
        model_class (`type`): Its class.
        name_or_path (`str` or `os.PathLike`): A folder or a repository of the Hub.
        **kwargs: As for its `from_pretrained`.

    Raises:
        ValueError: If it cannot be read, or is of another class or shape.
    """
    require_safetensors(kwargs)
    location, kind = resolve(name_or_path), model_class.__name__
    try:
        saved = model_class.load_config(location, **{name: kwargs[name] for name in HUB_OPTIONS if name in kwargs})
        if saved.get("_class_name") != kind:
            raise ValueError(f"it is a {saved.get('_class_name')}")
        if os.path.isdir(location):
            check_saved_config(kind, model_class, Path(location))
        model = model_class.from_pretrained(location, **kwargs)
        check_weights(kind, model)
    except (torch.OutOfMemoryError, ImportError):
        raise
    except Exception as error:  # as in `pipeline_errors`
        name, reason = shorten(os.fspath(name_or_path), length=200), shorten(error, str, 500)
        raise ValueError(f"`name_or_path` must hold a whole {kind}, got {name}: {reason}") from error
    return model.float().eval()


def check_weights(name: str, component: Any) -> None:
    """Raise `ValueError` if a network has weights that are not finite, or was loaded from files of another network's.

    diffusers only logs tensors that are missing or unknown, and continues with random numbers.
    """
    folder = Path(component.config.get("_name_or_path") or "") if isinstance(component, ModelMixin) else Path()
    saved = set()
    for file in folder.glob("*.safetensors") if folder.name else ():
        with safe_open(file, "pt") as weights:
            saved.update(weights.keys())
    own = component.state_dict().keys() if saved else set()
    for strange, what in ((own - saved, "are not there"), (saved - own, "are not known")):
        if strange:
            raise ValueError(
                f"`{name}` must find all weights of {type(component).__name__}, and no others, in {str(folder)!r}, but "
                f"{len(strange)} {what}, such as {min(strange)!r}."
            )
    if isinstance(component, torch.nn.Module):
        for key, value in component.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ValueError(f"`{name}` must have finite weights, but {key!r} holds NaN or infinity.")

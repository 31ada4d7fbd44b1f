"""How every training ends: averaged weights as component folders, and as a pipeline that loads."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn
from torch.utils.data import Dataset

from vasa_hf.hub import BASE, EARLIER_NAMES, read_index, resolve
from vasa_hf.training.loop import Player, TrainingState, print_log, train
from vasa_hf.training.options import LoopOptions

MAX_SHARD_SIZE = "15MB"


def train_and_save(
    options: LoopOptions,
    modules: dict[str, nn.Module],
    players: list[Player],
    dataset: Dataset,
    averaged: tuple[str, ...],
    components: Callable[[], dict[str, Any]],
    pipeline: str | os.PathLike | None = None,
    on_sample: Callable[[dict[str, nn.Module], int, Path], None] | None = None,
    pipeline_class: str | None = None,
    pipeline_config: Mapping[str, Any] | None = None,
) -> TrainingState:
    """Train, let the modules carry their averaged weights, and save what came of it.

    Args:
        options (`LoopOptions`): See there; `save_dtype` is the type of the weights that are written.
        modules (`dict[str, torch.nn.Module]`): See `train`.
        players (`list[Player]`): See `train`.
        dataset (`torch.utils.data.Dataset`): See `train`.
        averaged (`tuple[str, ...]`): Names of the modules whose averaged weights are published.
        components (`Callable`): Called at the end; returns what `save_components` writes.
        pipeline (`str` or `os.PathLike`, *optional*):
            Known pipeline; a copy of it with the new components is written to `output/pipeline`.
        on_sample (`Callable`, *optional*): See `train`.
        pipeline_class (`str`, *optional*): See `save_pipeline`.
        pipeline_config (`Mapping[str, Any]`, *optional*): See `save_pipeline`.

    Returns:
        `TrainingState`: The modules carry the averaged weights, in float32.
    """
    if pipeline:
        read_pipeline_index(pipeline)
    state = train(options, modules, players, dataset, averaged, print_log, on_sample)
    for name in averaged:
        state.ema[name].copy_to(state.modules[name])
    if PartialState().is_main_process:
        made = save_components(options.output, components(), options.save_dtype)
        if pipeline:
            target, config = Path(options.output) / "pipeline", pipeline_config or {}
            save_pipeline(pipeline, target, class_name=pipeline_class, config=config, **made)
    return state


def save_components(folder: str | os.PathLike, components: dict[str, Any], dtype: str = "float32") -> dict[str, Any]:
    """Write components as they are published: models without dropout, in shards of at most 15 MB.

    Args:
        folder (`str` or `os.PathLike`): Where to.
        components (`dict`): Name -> what has `save_pretrained`, or, under a file name, what has `save`.
        dtype (`str`, defaults to "float32"): Type of models' weights, float32 or float16. The models stay as they are.

    Returns:
        `dict`: What was written, for `save_pipeline`.
    """
    written = {}
    for name, component in components.items():
        if _is_model(component):
            component = copy.deepcopy(component).cpu().requires_grad_(True)
            component = component.half() if dtype == "float16" else component.float()
            if hasattr(component, "register_to_config") and "dropout" in component.config:
                component.register_to_config(dropout=0.0)
        _save(component, Path(folder) / name)
        written[name] = component
    return written


def _is_model(component: Any) -> bool:
    return isinstance(component, nn.Module) and hasattr(component, "save_pretrained")


def _save(component: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is_model(component):
        component.save_pretrained(path, max_shard_size=MAX_SHARD_SIZE)
    elif hasattr(component, "save_pretrained"):
        component.save_pretrained(path)
    else:
        component.save(path)
    config = path / "config.json"
    if config.is_file():  # diffusers records the folder that the weights were read from
        values = json.loads(config.read_text())
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def read_pipeline_index(base: str | os.PathLike) -> dict[str, Any]:
    """What the `model_index.json` of a pipeline folder holds.

    Raises:
        ValueError: If there is none.
    """
    index = read_index(resolve(base))
    if not index:
        raise ValueError(f"`pipeline` must be a pipeline folder with model_index.json, got {os.fspath(base)!r}.")
    return index


def save_pipeline(
    base: str | os.PathLike,
    target: str | os.PathLike,
    dropped: Sequence[str] = (),
    class_name: str | None = None,
    shared: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    **components: Any,
) -> Path:
    """Write a pipeline folder: a known pipeline with some components replaced by newly trained ones.

    The model card of the known pipeline is not copied, since it does not describe these weights. Models are written in
    shards of at most 15 MB.

    Args:
        base (`str` or `os.PathLike`): Name of an embedded pipeline, or a pipeline folder.
        target (`str` or `os.PathLike`): Folder to write; replaced if it exists.
        dropped (`Sequence[str]`): Files and components of the known pipeline that are left out.
        class_name (`str`, *optional*): Class of the new pipeline, if it may have components that the known one lacks.
        shared (`Sequence[str]`): Components that are not copied: the new pipeline loads them from the known one.
        config (`Mapping[str, Any]`, *optional*): Options of the new pipeline's class, with its name.
        **components: Name in `model_index.json` -> what has `save_pretrained`; or file name -> what has `save`.

    Raises:
        ValueError: If the known pipeline is not a pipeline folder, or has no component of a name.
    """
    known, name_of_base = read_pipeline_index(base), os.fspath(base)
    base, target = Path(resolve(base)), Path(target)
    models = {name for name, component in components.items() if hasattr(component, "save_pretrained")}
    if (unknown := models - set(known)) and class_name is None:
        raise ValueError(f"`components` must be among those of {base.name!r}, but {sorted(unknown)} are not.")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    replaced = [known for name in components for known in (name, *EARLIER_NAMES.get(name, ()))]
    shutil.copytree(base, partial, ignore=shutil.ignore_patterns("README.md", "images", *dropped, *shared, *replaced))
    for name, component in components.items():
        _save(component, partial / name)
    if class_name is not None:
        kinds = {name: type(components[name]) for name in models}
        ours = {name: kind.__module__ for name, kind in kinds.items() if kind.__module__.startswith("vasa_hf.")}
        known = {name: value for name, value in known.items() if name not in dropped}
        known |= {name: [ours.get(name, kind.__module__.split(".")[0]), kind.__name__] for name, kind in kinds.items()}
        known |= {"_class_name": class_name, **(config or {})}
        if shared:
            known[BASE] = name_of_base
    (partial / "model_index.json").write_text(json.dumps(known, indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target

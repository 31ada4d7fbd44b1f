"""How trainings of one model end: as a component's folder, or a pipeline that loads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import Dataset

from vasa_hf.hub import resolve
from vasa_hf.training.ema import ExponentialMovingAverage
from vasa_hf.training.loop import Player, TrainingState, print_log, train


def published_dtype(name: str) -> torch.dtype:
    """The type that the option `save_dtype` names.

    Raises:
        ValueError: If it is neither float32 nor float16.
    """
    if name not in ("float32", "float16"):
        raise ValueError(f"`save_dtype` must be float32 or float16, got {name!r}.")
    return getattr(torch, name)


def train_and_save(
    options: Any, name: str, model: nn.Module, loss: Any, dataset: Dataset, on_sample: Any = None, **others: nn.Module
) -> TrainingState:
    """Train one model by one loss, and write `output/NAME` with averaged weights. The model itself becomes that.

    Args:
        options (`LoopOptions`): With `learning_rate`, `weight_decay` and `save_dtype`.
        name (`str`): Of the component.
        model (`diffusers.ModelMixin`): A model whose config has `dropout`.
        loss (`Callable`): See `Player`.
        dataset (`torch.utils.data.Dataset`): See `train`.
        on_sample (`Callable`, *optional*): See `train`.
        **others: Modules that the loss uses and nobody trains.
    """
    player = Player(name, (name,), loss, options.learning_rate, weight_decay=options.weight_decay)
    state = train(options, {name: model, **others}, [player], dataset, (name,), print_log, on_sample)
    if PartialState().is_main_process:
        save_averaged(model, state.ema[name], Path(options.output) / name, published_dtype(options.save_dtype))
    return state


def save_averaged(model, average: ExponentialMovingAverage, folder: str | os.PathLike, dtype: torch.dtype) -> None:
    """Write a model as it is published: with averaged weights and without dropout. The model itself becomes that.

    Args:
        model (`diffusers.ModelMixin`): A trained model whose config has `dropout`.
        average (`ExponentialMovingAverage`): Of its weights.
        folder (`str` or `os.PathLike`): Where to.
        dtype (`torch.dtype`): Of the weights.
    """
    average.copy_to(model)
    model.register_to_config(dropout=0.0)
    model.to(dtype=dtype).save_pretrained(folder)


def save_pipeline(base: str | os.PathLike, target: str | os.PathLike, **components: Any) -> Path:
    """Write a pipeline folder: a known pipeline with some components replaced by newly trained ones.

    The model card of the known pipeline is left behind, since it does not speak of these weights. Models are written in
    shards of at most 15 MB.

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
        shards = {"max_shard_size": "15MB"} if isinstance(component, torch.nn.Module) else {}
        component.save_pretrained(partial / name, **shards)
        config = partial / name / "config.json"
        if config.is_file():  # diffusers records the folder that the weights were read from
            values = json.loads(config.read_text())
            values.pop("_name_or_path", None)
            config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target

"""Options of the trainings: dataclasses whose fields are command-line options and keys of JSON files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def option(default: Any, help: str, choices: Collection[str] | None = None) -> Any:
    """Dataclass field with a help text for the command line, and the values it may have where they are known."""
    metadata = {"help": help, "choices": choices}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: default.copy(), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Options:
    """Base of all options: checks those whose values are known."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            choices, value = _metadata(type(self), field.name, "choices"), getattr(self, field.name)
            for chosen in value if isinstance(value, list) else [value]:
                if choices and chosen is not None and chosen not in choices:
                    raise ValueError(f"`{field.name}` must be one of {', '.join(choices)}, got {chosen!r}.")


@dataclass
class LoopOptions(Options):
    """Options that all recipes have; each subclasses it with its own."""

    output: str = option("outputs/run", "folder for checkpoints, logs and sample sheets")
    max_steps: int = option(100_000, "optimiser steps of the whole run; the learning rate ends here")
    max_minutes: float | None = option(None, "end after this many minutes, with the learning rate at its end")
    batch_size: int = option(32, "samples per process and micro-batch")
    gradient_accumulation_steps: int = option(1, "micro-batches per optimiser step")
    mixed_precision: str = option("no", "precision of the arithmetic", ("no", "fp16", "bf16"))
    learning_rate: float = option(3e-4, "peak learning rate")
    weight_decay: float = option(0.01, "weight decay of matrices and kernels; biases and norms have none")
    warmup_steps: int = option(100, "steps of linear warm-up of the learning rate")
    final_lr_ratio: float = option(0.02, "learning rate at the end of the cosine, as a share of its peak")
    lr_schedule: str = option("cosine", "course of the learning rate after warm-up", ("cosine", "inverse_sqrt"))
    max_grad_norm: float = option(1.0, "gradient norm of a player is clipped to this")
    ema_decay: float = option(0.999, "decay of the averaged weights")
    seed: int = option(0, "seed of every random number of the run")
    num_workers: int = option(0, "data loading processes")
    log_every: int = option(20, "steps between log lines")
    sample_every: int = option(1000, "steps between sample sheets; 0 for none")
    checkpoint_every: int = option(1000, "steps between checkpoints; 0 for only the last one")
    resume: bool = option(False, "continue from the newest checkpoint in `output`")
    save_dtype: str = option("float32", "type of the published weights", ("float32", "float16"))
    report_to: str = option("none", "none (a log.jsonl is always written), tensorboard or wandb")
    cpu: bool = option(False, "train on the CPU even if there is a GPU")


def parse_options(
    options_class: type,
    arguments: Sequence[str] | None = None,
    description: str | None = None,
    prog: str | None = None,
) -> Any:
    """Make an options dataclass from the command line: `--batch-size 8`, `--cpu`, `--no-cpu`.

    `--config` names a JSON file of options, or one of `training/configs/` without its ending; the rest of the command
    line has the last word.

    Args:
        options_class (`type`): A dataclass whose fields are made with `option`.
        arguments (`Sequence[str]`, *optional*): What to parse, the command line of the process by default.
        description (`str`, *optional*): Head of the `--help` text.
        prog (`str`, *optional*): Name of the command in it.

    Returns:
        An instance of `options_class`.

    Raises:
        ValueError: If the config is missing, or holds what is no option.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description, formatter_class=_HelpFormatter)
    parser.add_argument("--config", help=f"JSON file of options, or one of {', '.join(sorted(configs()))}")
    hints = typing.get_type_hints(options_class)
    for field in dataclasses.fields(options_class):
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        name, kind = "--" + field.name.replace("_", "-"), hints[field.name]
        if isinstance(kind, types.UnionType):  # `float | None`
            kind = next(part for part in kind.__args__ if part is not types.NoneType)
        text = _metadata(options_class, field.name, "help").replace("%", "%%")
        if choices := _metadata(options_class, field.name, "choices"):
            text = f"{text}: {', '.join(choices)}"
        if kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=default, help=text)
        elif typing.get_origin(kind) in (list, tuple):
            inner = typing.get_args(kind)[0]
            parser.add_argument(name, nargs="*", type=inner, default=default, help=text)
        else:
            parser.add_argument(name, type=kind, default=default, help=text)
    config = parser.parse_known_args(arguments)[0].config
    if config:
        parser.set_defaults(**read_config(config, options_class))
    chosen = vars(parser.parse_args(arguments))
    del chosen["config"]
    return options_class(**chosen)


def configs() -> dict[str, Path]:
    """Name and file of each set of options that comes with the package."""
    return {path.stem: path for path in (Path(__file__).parent / "configs").glob("*.json")}


def read_config(config: str, options_class: type) -> dict[str, Any]:
    """Options of a JSON file, or of a named set; see `parse_options`."""
    path = configs().get(config, Path(config))
    if not path.is_file():
        raise ValueError(f"`config` must be a JSON file or one of {sorted(configs())}, got {config!r}.")
    values = json.loads(path.read_text())
    if unknown := set(values) - {field.name for field in dataclasses.fields(options_class)}:
        raise ValueError(f"`config`: {path.name} holds {sorted(unknown)}, which are no options of this training.")
    return values


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def _metadata(options_class: type, name: str, key: str) -> Any:
    """Help text or choices of a field; a subclass that only changes the default inherits them."""
    for parent in options_class.__mro__:
        field = getattr(parent, "__dataclass_fields__", {}).get(name)
        if field is not None and key in field.metadata:
            return field.metadata[key]
    return "" if key == "help" else None

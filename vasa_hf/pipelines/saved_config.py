"""Configurations of saved components, checked by the signature of the class before anything is built with them."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import ConfigMixin, ModelMixin

from vasa_hf.checks import check_flag, check_number, parse_json, shorten

CONFIG_FILES = ("config.json", "scheduler_config.json", "preprocessor_config.json", "tokenizer_config.json")
MAX_BYTES = 10_000_000
MAX_SIZE = 65_536  # of widths and sides
MAX_COUNT = 1_000_000_000


def check_saved_config(name: str, component: Any, folder: Path) -> None:
    """Raise `ValueError` for the configuration of another class, or with values of wrong type or size.

    diffusers ignores keys that a class does not know, and classes trust the types of the others.

    Args:
        name (`str`): Of the component, for messages.
        component (`type`): Its class.
        folder (`Path`): Where it is saved.
    """
    file = next((folder / file for file in CONFIG_FILES if (folder / file).is_file()), None)
    if file is None:
        raise ValueError(f"`{name}` must have a configuration, but there is none in {str(folder)!r}.")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"`{name}` must have a configuration of at most {MAX_BYTES:,} bytes, got {str(file)!r}.")
    config = parse_json(file.read_bytes(), name)
    if not isinstance(config, dict):
        raise ValueError(f"`{name}` must have a JSON object as its configuration, got {shorten(config)}.")
    if not issubclass(component, ConfigMixin):
        return  # processors check theirs, transformers its own
    is_own, parameters = issubclass(component, ModelMixin), inspect.signature(component.__init__).parameters
    if is_own and config.get("_class_name") != component.__name__:
        raise ValueError(f"`{name}` must be a {component.__name__}, but is a {shorten(config.get('_class_name'))}.")
    hints = typing.get_type_hints(component.__init__)
    for key, value in config.items():
        if key in parameters and value != parameters[key].default:  # some are annotated as what they are seldom
            _check_value(f"{name}.{key}", value, hints.get(key, Any))
        elif is_own and key not in parameters and not key.startswith("_"):
            raise ValueError(f"`{name}` must have settings of {component.__name__} only, got {key!r}.")


def _check_value(name: str, value: Any, hint: Any) -> None:
    """Raise `ValueError` unless a value is of the type that a parameter is annotated with."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return
        kinds = [kind for kind in inner if kind is not type(None)]
        if len(kinds) == 1:
            _check_value(name, value, kinds[0])
    elif hint is bool:
        check_flag(name, value)
    elif hint is int:
        check_number(name, value, 0, MAX_SIZE if name.endswith("size") else MAX_COUNT, whole=True)
    elif hint is float:
        check_number(name, value, -1e30, 1e30)
    elif hint is str and not isinstance(value, str):
        raise ValueError(f"`{name}` must be text, got {shorten(value)}.")
    elif isinstance(origin, type) and issubclass(origin, Mapping) and not isinstance(value, dict):
        raise ValueError(f"`{name}` must be a JSON object, got {shorten(value)}.")
    elif isinstance(origin, type) and issubclass(origin, Sequence):
        if not isinstance(value, list | tuple):
            raise ValueError(f"`{name}` must be a list, got {shorten(value)}.")
        kinds = [kind for kind in inner if kind is not Ellipsis] or [Any]
        for index, one in enumerate(value):
            _check_value(name, one, kinds[min(index, len(kinds) - 1)])

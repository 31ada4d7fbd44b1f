"""Checks of values from files and command lines: their type, size and depth."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Rational, Real
from typing import Any


def check_number(name: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    """Raise `ValueError` unless a value is a number in a range.

    Args:
        name (`str`): Argument to name in the message.
        value (`Any`): The value. `bool` counts as no number.
        low (`float`): Smallest allowed value.
        high (`float`): Largest allowed value.
        whole (`bool`, defaults to `False`): Whether the type must be `int`.
    """
    fits = isinstance(value, int) if whole else isinstance(value, Real) and not _is_fraction(value)
    fits = fits and not isinstance(value, bool)
    if not fits or not low <= value <= high:  # NaN compares as false; huge ints compare without overflow
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"`{name}` must be {kind} in [{low:,}, {high:,}], got {shorten(value)}.")


def _is_fraction(value: Any) -> bool:
    return isinstance(value, Rational) and not isinstance(value, Integral)  # tensors do not compute with it


def check_flag(name: str, value: Any) -> None:
    """Raise `ValueError` unless a value is `True` or `False`; `1`, `"no"` or a tensor is none."""
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, got {shorten(value)}.")


def check_flags(options: Any) -> None:
    """Raise `ValueError` unless each field of a dataclass that is annotated as `bool` holds one."""
    for field in dataclasses.fields(options):
        if field.type in ("bool", bool):
            check_flag(field.name, getattr(options, field.name))


def check_path(name: str, value: Any) -> None:
    """Raise `ValueError` unless a value is the name of a file or folder: `str` or `os.PathLike`."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise ValueError(f"`{name}` must be a path (`str` or `os.PathLike`), got {shorten(value)}.")


def check_callable(name: str, value: Any) -> None:
    """Raise `ValueError` unless a value is `None` or can be called."""
    if value is not None and not callable(value):
        raise ValueError(f"`{name}` must be callable, got {shorten(value)}.")


@contextmanager
def naming(argument: str) -> Iterator[None]:
    """Let errors name this argument where the function that reads it calls it `path`, `audio` or `fps`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(re.sub("^`(path|audio|fps)`", f"`{argument}`", str(error))) from error


def is_finite_number(value: Any) -> bool:
    """Whether a value is an `int` or `float` that fits a `float`, and neither NaN nor infinite."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def parse_json(text: str | bytes, name: str) -> Any:
    """Parse JSON that may be malformed.

    Raises:
        ValueError: If it is not JSON, or is nested too deep.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else shorten(error, str)
        raise ValueError(f"`{name}` must be JSON, but {reason}.") from error


def shorten(value: Any, write: Any = repr, length: int = 80) -> str:
    """Write a value for a message in at most `length` characters, without addresses in memory."""
    try:
        text = write(value)
    except Exception:  # an int of thousands of digits, a value nested too deep, a value with a faulty `repr`
        text = f"a {type(value).__name__} that is too large"
    text = re.sub(" at 0x[0-9a-f]+", "", " ".join(text.split()))
    return text if len(text) <= length else f"{text[: length - 3]}..."

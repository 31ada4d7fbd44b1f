"""Checks of values from files and command lines: their type, size and depth."""

from __future__ import annotations

import json
import math
from numbers import Real
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
    fits = isinstance(value, int if whole else Real) and not isinstance(value, bool)
    if not fits or not low <= value <= high:  # NaN compares as false; huge ints compare without overflow
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"`{name}` must be {kind} in [{low:,}, {high:,}], got {shorten(value)}.")


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


def shorten(value: Any, write: Any = repr) -> str:
    """Write a value for a message in at most 80 characters."""
    try:
        text = write(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, or a value nested too deep
        text = f"a {type(value).__name__} that is too large"
    return text if len(text) <= 80 else f"{text[:77]}..."

"""The page's functions as programs see them: names of functions and fields, for `gradio_client` and for MCP."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

#: What the fields of several functions mean.
FIELDS = {
    "consent": "Whether the people whose face and voice are used agreed to it, or do not exist.",
    "image": "A picture with a face.",
    "audio": "A voice, in any usual format.",
    "face": "Which face of the picture; 0 is the largest.",
}


def named(function: Callable, name: str, fields: Mapping[str, str] | None = None) -> Callable:
    """A function with another name, whose `*arguments` have names, too.

    Args:
        function (`Callable`): May take `*arguments`.
        name (`str`): Its name.
        fields (`Mapping[str, str]`, *optional*): Name of an argument -> what it is. What the function does not name
            itself becomes the names of its `*arguments`, if it has such.
    """

    @functools.wraps(function)
    def generator(*arguments: Any) -> Any:
        yield from function(*arguments)

    @functools.wraps(function)
    def plain(*arguments: Any) -> Any:
        return function(*arguments)

    result = generator if inspect.isgeneratorfunction(function) else plain
    fields = {re.sub(r"\W", "_", field): about for field, about in (fields or {}).items()}
    parameters = inspect.signature(function).parameters
    names = {one.name: one for one in parameters.values() if one.kind != one.VAR_POSITIONAL}
    if len(names) < len(parameters):
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        names |= {field: inspect.Parameter(field, kind) for field in fields if field not in names}
    result.__signature__ = inspect.Signature(list(names.values()))
    result.__name__ = result.__qualname__ = name
    about = "".join(f"    {field}: {text}\n" for field, text in fields.items() if field in names)
    result.__doc__ = inspect.getdoc(function) + (f"\n\nArgs:\n{about}" if about else "")
    return result


def check_mcp() -> None:
    """Raise `ImportError` if functions cannot be served as MCP tools.

    Gradio would serve the page without them, and say so in a line that is easily missed.
    """
    if importlib.util.find_spec("mcp") is None:
        raise ImportError("Serving MCP tools needs the package mcp: pip install 'vasa-hf[mcp]'")


def file_paths(value: Any) -> Iterator[str]:
    """All files that a request names, at any depth of what it sends: values of keys "path"."""
    if isinstance(value, Mapping):
        if isinstance(value.get("path"), str):
            yield value["path"]
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from file_paths(part)


def is_inside(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Whether a file lies under a folder, links followed; says nothing of whether it exists."""
    try:
        path, folder = os.path.realpath(path), os.path.realpath(folder)
        return os.path.commonpath([path, folder]) == folder
    except ValueError:  # a zero byte, or another drive
        return False

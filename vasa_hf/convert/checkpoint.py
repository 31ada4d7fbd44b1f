"""Safe reading of public checkpoints, and checks of every tensor; shared by the converters.

A checkpoint is a folder, a file or a repository of the Hub. Pickles may only contain names on a list, and each name
stands for a holder in this file: no other class is imported, so no foreign code runs. All tensors are compared with
those of the model; if one does not fit, nothing is written.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor

# --- files ------------------------------------------------------------------------------------------------------------


def locate(source: str | os.PathLike, wanted: Sequence[str]) -> Path:
    """Find the folder of a checkpoint; for a repository of the Hub, download the files or use the cache.

    Args:
        source (`str` or `os.PathLike`): A folder, or `owner/name` of a repository.
        wanted (`Sequence[str]`): Patterns of the files to download.

    Raises:
        ValueError: If the folder does not exist, or the repository cannot be reached.
    """
    name = os.fspath(source)
    if os.path.isdir(name):
        return Path(name)
    if os.path.exists(name) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"`source` must be a folder or a repository owner/name of the Hub, got {name!r}.")
    try:
        return Path(snapshot_download(name, allow_patterns=list(wanted)))
    except (OSError, ValueError) as error:  # also the Hub's own errors
        raise ValueError(f"`source` must be a folder or a repository of the Hub, got {name!r}: {error}") from error


def find(folder: Path, patterns: Sequence[str]) -> Path | None:
    """Find the first file of a folder that matches one of the patterns, best pattern first; None without any.

    Args:
        folder (`pathlib.Path`): The folder.
        patterns (`Sequence[str]`): Relative paths, with `*` for any name.
    """
    return next((file for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()), None)


def require(folder: Path, patterns: Sequence[str]) -> Path:
    """Find a file as `find`, which must exist.

    Args:
        folder (`pathlib.Path`): The folder.
        patterns (`Sequence[str]`): Relative paths, with `*` for any name.

    Raises:
        ValueError: If it does not exist.
    """
    path = find(folder, patterns)
    if path is None:
        raise ValueError(f"`source` must hold {' or '.join(patterns)}, but {str(folder)!r} does not.")
    return path


# --- holders of the classes in a pickle -------------------------------------------------------------------------------


class Namespace:
    """Holder of an `argparse.Namespace`: options by name."""

    # torch's unpickler uses these names, too.
    __module__, __qualname__ = "argparse", "Namespace"


class Text(str):
    """Holder of a path of any system: its joined parts."""

    def __new__(cls, *parts: str) -> Text:
        """Join the parts of a path."""
        return str.__new__(cls, "/".join(str(part).strip("/") for part in parts))


class Dtype:
    """Holder of a `numpy.dtype` of plain numbers."""

    __module__, __qualname__ = "numpy", "dtype"

    def __init__(self, code: str = "", *_: object):
        self.code, self.order = str(code), "<"
        if self.code.lstrip("<>=|") not in ("f2", "f4", "f8", "i4", "i8", "u4", "u8", "i2", "u2", "i1", "u1", "b1"):
            raise ValueError(f"`source` must hold arrays of plain numbers, but has one of type {self.code!r}.")

    def __setstate__(self, state: tuple) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def numpy(self) -> np.dtype:
        """Return the type."""
        code = self.code.lstrip("<>=|")
        return np.dtype(code if code[1:] == "1" else self.order + code)


class Array:
    """Holder of a `numpy.ndarray`, or of another object with one `value`."""

    __module__, __qualname__ = "numpy", "ndarray"
    value: Any = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _frombuffer(content, dtype, shape, "F" if fortran else "C").value


class Scalar(Array):
    """Holder of a numpy number."""

    def __init__(self, dtype: Dtype, content: bytes | str):
        self.value = _frombuffer(content, dtype, (), "C").value[()]


def _frombuffer(content: object, dtype: Dtype, shape: tuple, order: str = "C") -> Array:
    content = content.encode("latin1") if isinstance(content, str) else bytes(content)
    array = Array()
    array.value = np.frombuffer(content, dtype.numpy()).reshape(tuple(shape), order=order)
    return array


def _reconstruct(*_: object) -> Array:
    return Array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def unwrap(thing: Any) -> Any:
    """Return the value of a holder; other objects are returned unchanged."""
    return thing.value if isinstance(thing, Array) else thing


# Name in a pickle -> its holder.
ARRAYS: dict[str, Any] = {"numpy.ndarray": Array, "numpy.dtype": Dtype, "_codecs.encode": _encode}
for _core in ("numpy.core", "numpy._core"):
    ARRAYS |= {f"{_core}.multiarray._reconstruct": _reconstruct, f"{_core}.multiarray.scalar": Scalar}
    ARRAYS |= {f"{_core}.numeric._frombuffer": _frombuffer}
OPTIONS: dict[str, Any] = {"argparse.Namespace": Namespace}
for _module in ("pathlib", "pathlib._local"):
    OPTIONS |= {
        f"{_module}.{_name}": Text for _name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    }


def _rename_holder(name: str, holder: Any) -> Any:
    """Make a holder with the name in the pickle, for torch's unpickler."""
    module, _, own = name.rpartition(".")
    if (holder.__module__, holder.__qualname__) == (module, own):
        return holder
    if isinstance(holder, type):
        return type(own, (holder,), {"__module__": module})
    twin = FunctionType(holder.__code__, holder.__globals__, own, holder.__defaults__)
    twin.__module__, twin.__qualname__ = module, own
    return twin


# --- reading ----------------------------------------------------------------------------------------------------------


class _Unpickler(pickle.Unpickler):
    allowed: Mapping[str, Any] = ARRAYS

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.allowed:
            raise ValueError(f"`source` must contain only arrays of numbers, but needs {module}.{name}.")
        return self.allowed[f"{module}.{name}"]

    def persistent_load(self, pid: object) -> Any:
        raise ValueError("`source` must be complete, but refers to another file.")


def read_pickle(path: str | os.PathLike, allowed: Mapping[str, Any] = ARRAYS) -> dict[str, Any]:
    """Read a pickled dict of arrays without running code of the file.

    Args:
        path (`str` or `os.PathLike`): The file.
        allowed (`Mapping[str, Any]`, *optional*): Allowed names, and the holder of each.

    Raises:
        ValueError: If the file does not exist, is no pickled dict, or needs a name that is not on the list.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`source` must be an existing pickled file, got {str(path)!r}.")
    with open(path, "rb") as file:
        unpickler = _Unpickler(file, encoding="latin1")
        unpickler.allowed = allowed
        content = _explain_errors(path, unpickler.load, "a pickle of arrays")
    if not isinstance(content, dict):
        raise ValueError(f"`source` must hold a dict of arrays, but {path.name!r} holds a {type(content).__name__}.")
    return {str(name): unwrap(value) for name, value in content.items()}


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint of torch or safetensors: tensors, arrays and plain options, without running code of the file.

    Args:
        path (`str` or `os.PathLike`): `.safetensors`, or a file of `torch.save` with any other name.

    Returns:
        `dict`: The contents, with arrays as tensors.

    Raises:
        ValueError: If the file does not exist, is no checkpoint, or needs a class that is not on the list.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`source` must be an existing checkpoint file, got {str(path)!r}.")
    if path.suffix == ".safetensors":
        return _explain_errors(path, lambda: load_file(path), "safetensors")
    holders = [_rename_holder(name, holder) for name, holder in (ARRAYS | OPTIONS).items()]
    with torch.serialization.safe_globals(holders):
        content = _explain_errors(
            path, lambda: torch.load(path, map_location="cpu", weights_only=True), "a checkpoint of tensors alone"
        )
    if not isinstance(content, dict):
        raise ValueError(f"`source` must hold a dict of tensors, but {path.name!r} holds a {type(content).__name__}.")
    return {str(name): _tensors(value) for name, value in content.items()}


def _tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _tensors(inner) for name, inner in value.items()}
    value = unwrap(value)
    return torch.from_numpy(np.array(value)) if isinstance(value, (np.ndarray, np.generic)) else value


def _explain_errors(path: Path, read: Callable[[], Any], what: str) -> Any:
    try:
        return read()
    except Exception as error:  # a bad file may fail in any way
        if isinstance(error, ValueError) and str(error).startswith("`source`"):
            raise
        # torch's message recommends to load the file without a check.
        asked = re.search(r"GLOBAL (\S+)|WeightsUnpickler error: (.*)", str(error))
        reason = f"it needs {asked[1]}" if asked and asked[1] else asked[2] if asked else str(error)
        reason = (reason or type(error).__name__).splitlines()[0]
        raise ValueError(f"`source` must be {what}, but {path.name!r} is not: {reason}") from error


def state_dict(content: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, from its usual keys.

    Args:
        content (`dict[str, Any]`): From `read_checkpoint`.
        name (`str`): Name of the file, for messages.

    Raises:
        ValueError: If a value is not a tensor.
    """
    inner = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    if not inner or not all(torch.is_tensor(value) for value in inner.values()):
        raise ValueError(f"`source` must hold a dict of tensors, but {name!r} does not.")
    return dict(inner)


# --- checks -----------------------------------------------------------------------------------------------------------


@dataclass
class TensorRow:
    """One tensor.

    Args:
        name (`str`): Name in the source.
        expected (`tuple[int, ...]`, *optional*): Shape in the model; None if the model does not have it.
        found (`tuple[int, ...]`, *optional*): Shape in the source; None if it is missing.
        outcome (`str`): `converted`, one of `MISFITS`, or the reason why it is not needed.
    """

    name: str
    expected: tuple[int, ...] | None
    found: tuple[int, ...] | None
    outcome: str


MISFITS = ("missing", "extra", "shape", "not finite", "no numbers")


@dataclass
class ConversionReport:
    """Outcome of a conversion.

    Args:
        rows (`list[TensorRow]`, *optional*): One per tensor.
        notes (`list[str]`, *optional*): Notes for the user.
        problems (`list[str]`, *optional*): Other mismatches.
    """

    rows: list[TensorRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether everything fits."""
        return not self.problems and not self.misfits

    @property
    def misfits(self) -> list[TensorRow]:
        """Tensors that do not fit."""
        return [row for row in self.rows if row.outcome in MISFITS]

    def names(self, outcome: str) -> list[str]:
        """Return the names of the tensors with an outcome."""
        return [row.name for row in self.rows if row.outcome == outcome]

    def summary(self) -> str:
        """Return the counts in one line."""
        counts = {outcome: len(self.names(outcome)) for outcome in ("converted", *MISFITS)}
        aside = len(self.rows) - sum(counts.values())
        said = [f"{counts.pop('converted')} tensors converted"]
        said += [f"{count} {outcome}" for outcome, count in counts.items() if count]
        return ", ".join(said + [f"{aside} not needed"] * bool(aside))

    def table(self, rows: Sequence[TensorRow] | None = None) -> str:
        """Format name, expected shape, found shape and outcome of each tensor in columns.

        Args:
            rows (`Sequence[TensorRow]`, *optional*): Rows to format; by default all.
        """
        cells = [("tensor", "expected", "found", "outcome")]
        cells += [
            (r.name, _shape(r.expected), _shape(r.found), r.outcome) for r in (self.rows if rows is None else rows)
        ]
        widths = [max(len(row[i]) for row in cells) for i in range(3)]
        return "\n".join(
            "  ".join((*(text.ljust(w) for text, w in zip(row, widths, strict=False)), row[3])) for row in cells
        )

    def check(self, what: str) -> None:
        """Raise `ConversionError` unless everything fits.

        Args:
            what (`str`): The model, for the message.

        Raises:
            ConversionError: With a table of the mismatches.
        """
        if not self.complete:
            raise ConversionError(what, self)

    def brief(self) -> str:
        """Return the report without the table."""
        return "\n".join([self.summary(), *self.notes, *self.problems])

    def __str__(self) -> str:
        return f"{self.table()}\n{self.brief()}"


class ConversionError(ValueError):
    """Error for a checkpoint that does not fit.

    Args:
        what (`str`): The expected model.
        report (`ConversionReport`): The mismatches.
    """

    def __init__(self, what: str, report: ConversionReport):
        self.report = report
        self.summary = f"`source` does not fit {what}, nothing was written: {report.summary()}."
        lines = [report.table(report.misfits)] if report.misfits else []
        self.table = "\n".join(lines + report.problems)
        super().__init__(f"{self.summary}\n{self.table}")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else " x ".join(map(str, shape)) or "number"


def match(
    expected: Mapping[str, Sequence[int]],
    found: Mapping[str, Any],
    may_lack: Callable[[str], str | None] = lambda name: None,
    may_have: Callable[[str], str | None] = lambda name: None,
) -> ConversionReport:
    """Compare tensors with the expected shapes.

    Args:
        expected (`Mapping[str, Sequence[int]]`): Shapes by the names in the source.
        found (`Mapping[str, torch.Tensor | np.ndarray]`): Tensors of the source.
        may_lack (`Callable`, *optional*): Returns the reason why an expected name may be absent, or None.
        may_have (`Callable`, *optional*): Returns the reason why an unexpected name may be present, or None.
    """
    report = ConversionReport()
    for name, shape in expected.items():
        value = found.get(name)
        outcome = (may_lack(name) or "missing") if value is None else _judge(value, tuple(shape))
        report.rows.append(TensorRow(name, tuple(shape), getattr(value, "shape", None), outcome))
    for name in sorted(found.keys() - expected.keys()):
        report.rows.append(TensorRow(name, None, getattr(found[name], "shape", None), may_have(name) or "extra"))
    return report


def _judge(value: Any, shape: tuple[int, ...]) -> str:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        finite = bool(np.isfinite(value).all())
    elif torch.is_tensor(value):
        finite = bool(torch.isfinite(value).all())
    else:
        return "no numbers"
    return "shape" if tuple(value.shape) != shape else "converted" if finite else "not finite"

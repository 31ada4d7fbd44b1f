"""FLAME's head (`generic_model.pkl`, `flame2023.pkl`, ...) as one safetensors file for `vasa_hf.head.flame`.

FLAME is under its own licence: get the file at https://flame.is.tue.mpg.de; what is converted stays under that licence.
The file is a pickle of numpy arrays, scipy.sparse matrices and chumpy objects. It is read by names on a list alone,
and each name stands for a holder of ours: no foreign class is imported and nothing that the file says is run.

Not tried on the real files, which need that licence: the tests write files in their format.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from vasa_hf.head.flame import FORMAT, complete
from vasa_hf.head.parametric import PARENTS

VERSIONS = ("2017", "2019", "2020", "2023", "unknown")


@dataclasses.dataclass
class FlameSizes:
    """How large the arrays are.

    Attributes:
        vertices (`int`): FLAME's 5023.
        triangles (`int`): FLAME's 9976.
        shapes (`int`): Identity components, the first columns of `shapedirs`.
        expressions (`int`): Expression components, the columns after.
    """

    vertices: int = 5023
    triangles: int = 9976
    shapes: int = 300
    expressions: int = 100

    def shape_of(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array of the file."""
        joints = len(PARENTS)
        return {
            "v_template": (self.vertices, 3),
            "shapedirs": (self.vertices, 3, self.shapes + self.expressions),
            "posedirs": (self.vertices, 3, 9 * (joints - 1)),
            "J_regressor": (joints, self.vertices),
            "weights": (self.vertices, joints),
            "f": (self.triangles, 3),
            "kintree_table": (2, joints),
        }


@dataclasses.dataclass
class FlameReport:
    """What became of each array.

    Attributes:
        converted (`list[str]`): "name: shape" of the arrays that were taken over.
        ignored (`list[str]`): Names in the file that skinning has no use for.
        problems (`list[str]`): What does not fit.
        distance_cm (`float` or `None`): How far our landmarks are from their vertices, in the mean; if looked for.
    """

    converted: list[str]
    ignored: list[str]
    problems: list[str]
    distance_cm: float | None = None

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} arrays converted", *self.converted]
        lines += [f"ignored: {', '.join(self.ignored)}"] if self.ignored else []
        if self.distance_cm is not None:
            lines.append(f"landmarks found: {self.distance_cm:.2f} cm from their vertices in the mean")
        return "\n".join([*lines, *self.problems])


# --- reading the pickle -----------------------------------------------------------------------------------------------


class _Dtype:
    """Holder of a `numpy.dtype`: plain numbers alone."""

    def __init__(self, code: str = "", *_: object):
        self.code, self.order = str(code), "<"
        if self.code.lstrip("<>=|") not in ("f4", "f8", "i4", "i8", "u4", "u8", "i2", "u2", "i1", "u1", "b1"):
            raise ValueError(f"`source` must hold arrays of plain numbers, but has one of type {self.code!r}.")

    def __setstate__(self, state: tuple) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def numpy(self) -> np.dtype:
        code = self.code.lstrip("<>=|")
        return np.dtype(code if code[1:] == "1" else self.order + code)


class _Array:
    """Holder of a `numpy.ndarray`."""

    value = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _frombuffer(content, dtype, shape, "F" if fortran else "C").value


class _Scalar:
    """Holder of a numpy number, or of text where it was text."""

    def __init__(self, dtype: _Dtype, content: bytes | str):
        self.value = _frombuffer(content, dtype, (), "C").value[()]


class _Chumpy:
    """Holder of a `chumpy.ch.Ch`: an array under the name `x`."""

    value = None

    def __setstate__(self, state: dict) -> None:
        self.value = _value(state["x"])


class _Select:
    """Holder of a `chumpy.reordering.Select`: some entries of another one."""

    value = None

    def __setstate__(self, state: dict) -> None:
        picked = np.asarray(_value(state["a"])).ravel()[np.asarray(_value(state["idxs"])).ravel()]
        shape = state.get("preferred_shape")
        self.value = picked if shape is None else picked.reshape(tuple(_value(shape)))


class _Sparse:
    """Holder of a compressed matrix, made dense."""

    value = None
    by_column = True

    def __setstate__(self, state: dict) -> None:
        rows, columns = (int(side) for side in state.get("_shape", state.get("shape")))
        data, index, start = (np.asarray(_value(state[name])) for name in ("data", "indices", "indptr"))
        lines = columns if self.by_column else rows
        if len(start) != lines + 1 or len(index) != len(data) or (np.diff(start) < 0).any() or start[-1] != len(data):
            raise ValueError("`source` holds a sparse matrix whose parts do not fit together.")
        line = np.repeat(np.arange(lines), np.diff(start))
        self.value = np.zeros((rows, columns))
        np.add.at(self.value, (index, line) if self.by_column else (line, index), data)


class _SparseByRow(_Sparse):
    by_column = False


def _frombuffer(content: object, dtype: _Dtype, shape: tuple, order: str = "C") -> _Array:
    content = content.encode("latin1") if isinstance(content, str) else bytes(content)
    array = _Array()
    array.value = np.frombuffer(content, dtype.numpy()).reshape(tuple(shape), order=order)
    return array


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _reconstructor(kind: type, *_: object) -> object:
    return kind()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _value(thing: object) -> object:
    return thing.value if isinstance(thing, (_Array, _Scalar, _Chumpy, _Select, _Sparse)) else thing


_ALLOWED = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "chumpy.ch.Ch": _Chumpy,
    "chumpy.reordering.Select": _Select,
    "copy_reg._reconstructor": _reconstructor,
    "copyreg._reconstructor": _reconstructor,
    "_codecs.encode": _encode,
    "__builtin__.set": set,
    "builtins.set": set,
    "__builtin__.object": object,
    "builtins.object": object,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED |= {f"{_core}.multiarray._reconstruct": _reconstruct, f"{_core}.multiarray.scalar": _Scalar}
    _ALLOWED |= {f"{_core}.numeric._frombuffer": _frombuffer}
for _kind, _holder in (("csc", _Sparse), ("csr", _SparseByRow)):
    for _module in (_kind, f"_{_kind}"):
        _ALLOWED |= {f"scipy.sparse.{_module}.{_kind}_{what}": _holder for what in ("matrix", "array")}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if f"{module}.{name}" not in _ALLOWED:
            raise ValueError(
                f"`source` must hold arrays alone (numpy, scipy.sparse, chumpy), but asks for {module}.{name}."
            )
        return _ALLOWED[f"{module}.{name}"]

    def persistent_load(self, pid: object) -> object:
        raise ValueError("`source` must hold all of its content, but refers to another file.")


def read_pickle(source: str | os.PathLike) -> dict[str, object]:
    """Arrays and texts of a pickled dict, read without running anything that the file says.

    Args:
        source (`str` or `os.PathLike`): FLAME's `.pkl`.

    Raises:
        ValueError: If the file is absent, is no pickled dict, or asks for a class that is not on the list.
    """
    source = Path(source)
    if not source.is_file():
        raise ValueError(f"`source` must be FLAME's .pkl file, but there is none at {str(source)!r}.")
    with open(source, "rb") as file:
        try:
            content = _Unpickler(file, encoding="latin1").load()
        except ValueError as error:
            if str(error).startswith("`source`"):
                raise
            raise ValueError(f"`source` cannot be read, {source.name!r}: {error}") from error
        except Exception as error:  # a pickle may fail in any way
            reason = str(error) or type(error).__name__
            raise ValueError(f"`source` must be a pickle of arrays, but {source.name!r} is not: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"`source` must hold a dict of arrays, but {source.name!r} holds a {type(content).__name__}.")
    return {str(name): _value(value) for name, value in content.items()}


# --- the model --------------------------------------------------------------------------------------------------------


def match(content: dict[str, object], sizes: FlameSizes) -> tuple[dict[str, np.ndarray], FlameReport]:
    """Check each array and bring it into the form that is saved: float32, and triangles as int32.

    Args:
        content (`dict`): What `read_pickle` returned.
        sizes (`FlameSizes`): What the arrays must be like.

    Returns:
        `tuple`: arrays by FLAME's names, and the report; nothing may be used if it has `problems`.
    """
    found: dict[str, np.ndarray] = {}
    report = FlameReport([], sorted(set(content) - set(sizes.shape_of())), [])
    for name, shape in sizes.shape_of().items():
        if name not in content:
            report.problems.append(f"missing: {name}")
            continue
        value = content[name]
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
            report.problems.append(f"no array of numbers: {name} is a {type(value).__name__}")
        elif value.shape != shape:
            report.problems.append(f"shape: {name}: expected {shape}, got {value.shape}")
        elif not np.isfinite(value).all():
            report.problems.append(f"not finite: {name}")
        else:
            found[name] = np.array(value, np.int32 if name == "f" else np.float32, order="C")
            report.converted.append(f"{name}: {shape}")
    if not report.problems:
        report.problems += _inconsistencies(content, found, sizes)
    found.pop("kintree_table", None)
    return found, report


def _inconsistencies(content: dict, found: dict[str, np.ndarray], sizes: FlameSizes) -> list[str]:
    problems = []
    table = np.asarray(content["kintree_table"]).astype(np.int64)
    number = {int(joint): row for row, joint in enumerate(table[1])}
    parents = (-1, *(number.get(int(joint), -1) for joint in table[0, 1:]))
    if parents != PARENTS:
        problems.append(f"joints: expected the parents {PARENTS}, got {parents}")
    if found["f"].min() < 0 or found["f"].max() >= sizes.vertices:
        problems.append(f"f: must index {sizes.vertices} vertices")
    for name, total in (("weights", found["weights"].sum(1)), ("J_regressor", found["J_regressor"].sum(1))):
        if np.abs(total - 1).max() > 1e-3:
            problems.append(f"{name}: rows must sum to 1")
    extent = float(np.ptp(found["v_template"], 0).max())
    if not 0.1 < extent < 1.0:
        problems.append(f"v_template: must be a head in metres, but spans {extent:.3g}")
    return problems


def version_of(source: str | os.PathLike) -> str:
    """FLAME's files do not say their version; their usual names and folders do (`FLAME2020/generic_model.pkl`)."""
    name = "/".join(Path(source).resolve().parts[-2:])
    return next((version for version in VERSIONS[:-1] if version in name), "unknown")


def convert_flame(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    version: str | None = None,
    sizes: FlameSizes | None = None,
    register: bool = True,
) -> FlameReport:
    """Convert a FLAME file to safetensors: FLAME's arrays in its own units and axes, and where our landmarks are on it.

    Args:
        source (`str` or `os.PathLike`): `generic_model.pkl`, `flame2023.pkl`, `flame2023_no_jaw.pkl`, ...
        destination (`str` or `os.PathLike`): The `.safetensors` file to write; nothing is written unless all fits.
        version (`str`, *optional*): One of `VERSIONS`; by default what the file's name says.
        sizes (`FlameSizes`, *optional*): FLAME's by default.
        register (`bool`, *optional*, defaults to `True`): Find landmarks, regions and named expressions now, which
            takes some seconds; else they are found whenever the head is loaded.

    Returns:
        `FlameReport`.

    Raises:
        ValueError: If the file cannot be read safely or an array is missing, of another shape or senseless; the message
            is the report.
    """
    sizes, destination = sizes or FlameSizes(), Path(destination)
    version = version_of(source) if version is None else version
    if version not in VERSIONS:
        raise ValueError(f"`version` must be one of {', '.join(VERSIONS)}, but is {version!r}.")
    if destination.suffix != ".safetensors":
        raise ValueError(f"`destination` must end in .safetensors, but is {str(destination)!r}.")
    arrays, report = match(read_pickle(source), sizes)
    if report.problems:
        raise ValueError(f"`source` is no FLAME head of this size, nothing was written.\n{report}")
    if register:
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
        try:
            found, report.distance_cm = complete(tensors, sizes.shapes)
        except ValueError as error:
            raise ValueError(f"`source` is no FLAME head, nothing was written: {error}") from error
        arrays |= {name: value.numpy() for name, value in found.items()}
    about = {
        "format": FORMAT,
        "version": version,
        "num_shapes": str(sizes.shapes),
        "num_expressions": str(sizes.expressions),
        "jaw": str("no_jaw" not in Path(source).stem).lower(),
    }
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_suffix(".partial")
    save_file(arrays, partial, metadata=about)
    partial.replace(destination)
    return report

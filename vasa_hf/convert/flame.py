"""FLAME's head (`generic_model.pkl`, `flame2023.pkl`, ...) to one safetensors file for `vasa_hf.head.flame`.

FLAME has its own licence: get the file at https://flame.is.tue.mpg.de; the converted file keeps that licence. The file
is a pickle of numpy arrays, scipy.sparse matrices and chumpy objects. Only names on a list are allowed, and each name
stands for a holder in this file: no other class is imported, so no foreign code runs.

Not tested with the real files, which need that licence: the tests write files in their format.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from vasa_hf.convert import checkpoint
from vasa_hf.convert.checkpoint import ARRAYS, Array, ConversionReport, read_pickle, unwrap
from vasa_hf.head.flame import FORMAT, complete
from vasa_hf.head.parametric import PARENTS

VERSIONS = ("2017", "2019", "2020", "2023", "unknown")


@dataclasses.dataclass
class FlameSizes:
    """Sizes of the arrays.

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
        """Return the shape of each array of the file."""
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


# --- reading the pickle -----------------------------------------------------------------------------------------------


class _Chumpy(Array):
    """Holder of a `chumpy.ch.Ch`: an array under the name `x`."""

    def __setstate__(self, state: dict) -> None:
        self.value = unwrap(state["x"])


class _Select(Array):
    """Holder of a `chumpy.reordering.Select`: some entries of another array."""

    def __setstate__(self, state: dict) -> None:
        picked = np.asarray(unwrap(state["a"])).ravel()[np.asarray(unwrap(state["idxs"])).ravel()]
        shape = state.get("preferred_shape")
        self.value = picked if shape is None else picked.reshape(tuple(unwrap(shape)))


class _Sparse(Array):
    """Holder of a compressed matrix, converted to a dense one."""

    by_column = True

    def __setstate__(self, state: dict) -> None:
        rows, columns = (int(side) for side in state.get("_shape", state.get("shape")))
        data, index, start = (np.asarray(unwrap(state[name])) for name in ("data", "indices", "indptr"))
        lines = columns if self.by_column else rows
        if len(start) != lines + 1 or len(index) != len(data) or (np.diff(start) < 0).any() or start[-1] != len(data):
            raise ValueError("`source` must hold valid sparse matrices, but the sizes of one do not match.")
        line = np.repeat(np.arange(lines), np.diff(start))
        self.value = np.zeros((rows, columns))
        np.add.at(self.value, (index, line) if self.by_column else (line, index), data)


class _SparseByRow(_Sparse):
    by_column = False


def _reconstructor(kind: type, *_: object) -> object:
    return kind()


ALLOWED = {
    **ARRAYS,
    "chumpy.ch.Ch": _Chumpy,
    "chumpy.reordering.Select": _Select,
    "copy_reg._reconstructor": _reconstructor,
    "copyreg._reconstructor": _reconstructor,
    "__builtin__.set": set,
    "builtins.set": set,
    "__builtin__.object": object,
    "builtins.object": object,
}
for _kind, _holder in (("csc", _Sparse), ("csr", _SparseByRow)):
    for _module in (_kind, f"_{_kind}"):
        ALLOWED |= {f"scipy.sparse.{_module}.{_kind}_{what}": _holder for what in ("matrix", "array")}


# --- the model --------------------------------------------------------------------------------------------------------


def match(content: dict[str, object], sizes: FlameSizes) -> tuple[dict[str, np.ndarray], ConversionReport]:
    """Check each array and convert it to the saved type: float32, and int32 for triangles.

    Args:
        content (`dict`): From `read_pickle`.
        sizes (`FlameSizes`): Expected sizes.

    Returns:
        `tuple`: arrays by FLAME's names, empty unless all fit, and the report.
    """
    shapes = sizes.shape_of()
    report = checkpoint.match(shapes, content, may_have=lambda name: "not needed")
    if not report.complete:
        return {}, report
    found = {
        name: np.array(content[name], np.int32 if name == "f" else np.float32, order="C")
        for name in shapes
        if name != "kintree_table"
    }
    report.problems += _inconsistencies(content["kintree_table"], found, sizes)
    return found, report


def _inconsistencies(table: np.ndarray, found: dict[str, np.ndarray], sizes: FlameSizes) -> list[str]:
    problems, table = [], table.astype(np.int64)
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


def guess_version(source: str | os.PathLike) -> str:
    """Guess FLAME's version from the usual names of file and folder (`FLAME2020/generic_model.pkl`)."""
    name = "/".join(Path(source).resolve().parts[-2:])
    return next((version for version in VERSIONS[:-1] if version in name), "unknown")


def convert_flame(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    version: str | None = None,
    sizes: FlameSizes | None = None,
    register: bool = True,
) -> ConversionReport:
    """Convert a FLAME file to safetensors: FLAME's arrays in its units and axes, and the vertices of the landmarks.

    Args:
        source (`str` or `os.PathLike`): `generic_model.pkl`, `flame2023.pkl`, `flame2023_no_jaw.pkl`, ...
        destination (`str` or `os.PathLike`): The `.safetensors` file to write; only written if everything fits.
        version (`str`, *optional*): One of `VERSIONS`; by default guessed from the file's name.
        sizes (`FlameSizes`, *optional*): FLAME's by default.
        register (`bool`, *optional*, defaults to `True`): Compute landmarks, regions and named expressions now, which
            takes some seconds; otherwise they are computed whenever the head is loaded.

    Returns:
        `ConversionReport`.

    Raises:
        ValueError: If the file cannot be read safely, or an array is missing, of another shape or invalid.
    """
    sizes, destination = sizes or FlameSizes(), Path(destination)
    version = guess_version(source) if version is None else version
    if version not in VERSIONS:
        raise ValueError(f"`version` must be one of {', '.join(VERSIONS)}, but is {version!r}.")
    if destination.suffix != ".safetensors":
        raise ValueError(f"`destination` must end in .safetensors, but is {str(destination)!r}.")
    arrays, report = match(read_pickle(source, ALLOWED), sizes)
    report.check("FLAME's head")
    if register:
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
        try:
            found, distance_cm = complete(tensors, sizes.shapes)
        except ValueError as error:
            raise ValueError(f"`source` must be a FLAME head, nothing was written: {error}") from error
        arrays |= {name: value.numpy() for name, value in found.items()}
        report.notes.append(f"landmarks found: {distance_cm:.2f} cm from their vertices in the mean")
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

"""Files of Gaussians for other programs: `.ply` as 3DGS writes it, and `.splat` of web viewers.

```
.ply     binary little-endian, float32: x y z, nx ny nz (0), f_dc (constant harmonic), f_rest (the others, all of red
         first), opacity (logit), scale (logarithms), rot (quaternion wxyz)
.splat   32 bytes each, large and opaque first: 3 float32 position, 3 float32 scale, 4 uint8 red, green, blue and
         opacity, 4 uint8 quaternion wxyz as 128 + 128 q; no view dependence
```
The axes stay those of `geometry/cameras.py` (y down), which are also those of most 3DGS files.
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vasa_hf.files import staging
from vasa_hf.gaussians.scene import SH_C0, SH_COEFFICIENTS, Gaussians

#: Margins to opacities and scales whose logit or logarithm is infinite.
_OPACITY_MARGIN, _MIN_SCALE = 1e-6, 1e-12
_MAX_HEADER = 65536
_PLY_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "<i2"),
    **dict.fromkeys(("ushort", "uint16"), "<u2"),
    **dict.fromkeys(("int", "int32"), "<i4"),
    **dict.fromkeys(("uint", "uint32"), "<u4"),
    **dict.fromkeys(("float", "float32"), "<f4"),
    **dict.fromkeys(("double", "float64"), "<f8"),
}
_SPLAT = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])


def save_gaussians(gaussians: Gaussians, path: str | os.PathLike) -> None:
    """Write one set of Gaussians, in the format of the file's suffix.

    Args:
        gaussians (`Gaussians`): Without a batch dimension.
        path (`str` or `os.PathLike`): File to write, `.ply` or `.splat`.

    Raises:
        ValueError: If the suffix is unknown, there is a batch of sets, or numbers are not finite.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SAVERS:
        raise ValueError(f"`path` must end in {' or '.join(SAVERS)}, got {os.fspath(path)!r}.")
    SAVERS[suffix](gaussians, path)


def save_ply(gaussians: Gaussians, path: str | os.PathLike) -> None:
    """Write one set of Gaussians as 3DGS does.

    Args:
        gaussians (`Gaussians`): Without a batch dimension. Plain RGB is stored as the constant harmonic.
        path (`str` or `os.PathLike`): File to write.

    Raises:
        ValueError: If there is a batch of sets, or numbers are not finite.
    """
    gaussians = _check(gaussians)
    harmonics = gaussians.colors if gaussians.has_harmonics else (gaussians.colors[:, None] - 0.5) / SH_C0
    rest = harmonics[:, 1:].transpose(1, 2).flatten(1)  # [N, 3 * (K - 1)]
    opacities = gaussians.opacities[:, None].double().clamp(_OPACITY_MARGIN, 1 - _OPACITY_MARGIN)
    columns = {
        "x y z": gaussians.means,
        "nx ny nz": torch.zeros_like(gaussians.means),
        "f_dc_0 f_dc_1 f_dc_2": harmonics[:, 0],
        " ".join(f"f_rest_{index}" for index in range(rest.shape[1])): rest,
        "opacity": torch.logit(opacities),
        "scale_0 scale_1 scale_2": gaussians.scales.clamp_min(_MIN_SCALE).log(),
        "rot_0 rot_1 rot_2 rot_3": gaussians.quats,
    }
    names = [name for group in columns for name in group.split()]
    table = torch.cat([value.float() for value in columns.values()], dim=1).numpy().astype("<f4")
    properties = "".join(f"property float {name}\n" for name in names)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n{properties}end_header\n"
    _write(path, header.encode("ascii") + table.tobytes())


def load_ply(path: str | os.PathLike) -> Gaussians:
    """Read Gaussians from a `.ply` of 3DGS or of `save_ply`.

    Args:
        path (`str` or `os.PathLike`): File to read.

    Returns:
        `Gaussians`: float32, with colours as spherical harmonics.

    Raises:
        ValueError: If the file is not a `.ply` of Gaussians, is cut off, or holds numbers that are not finite.
    """
    data = Path(path).read_bytes()
    count, dtype, offset = _ply_layout(data, path)
    names = dtype.names or ()
    rest_names = sorted((name for name in names if name.startswith("f_rest_")), key=lambda name: (len(name), name))
    groups = {
        "means": ["x", "y", "z"],
        "dc": [f"f_dc_{index}" for index in range(3)],
        "opacities": ["opacity"],
        "scales": [f"scale_{index}" for index in range(3)],
        "quats": [f"rot_{index}" for index in range(4)],
    }
    missing = [name for group in groups.values() for name in group if name not in names]
    if missing:
        raise _not_gaussians(path, f"its vertices have no {', '.join(missing)}")
    coefficients = 1 + len(rest_names) // 3
    if len(rest_names) % 3 or coefficients not in SH_COEFFICIENTS:
        raise _not_gaussians(path, f"it has {len(rest_names)} properties f_rest, not 0, 9, 24 or 45")
    if len(data) < offset + count * dtype.itemsize:
        raise ValueError(f"`path` must be a whole file, but {path} is cut off.")
    table = np.frombuffer(data, dtype, count, offset)

    def columns(wanted: list[str]) -> Tensor:
        values = np.empty((count, len(wanted)), np.float32)
        for index, name in enumerate(wanted):
            values[:, index] = table[name]
        if not np.isfinite(values).all():
            raise ValueError(f"`path` must hold finite numbers, but {path} has NaN or infinity in {', '.join(wanted)}.")
        return torch.from_numpy(values)

    values = {name: columns(group) for name, group in groups.items()}
    rest = columns(rest_names).reshape(count, 3, coefficients - 1).transpose(1, 2)
    return Gaussians(
        means=values["means"],
        quats=values["quats"],
        scales=values["scales"].exp(),
        opacities=values["opacities"][:, 0].sigmoid(),
        colors=torch.cat([values["dc"][:, None], rest], dim=1).contiguous(),
    )


def save_splat(gaussians: Gaussians, path: str | os.PathLike) -> None:
    """Write one set of Gaussians for web viewers.

    Args:
        gaussians (`Gaussians`): Without a batch dimension. Only the constant spherical harmonic is written.
        path (`str` or `os.PathLike`): File to write.

    Raises:
        ValueError: If there is a batch of sets, or numbers are not finite.
    """
    gaussians = _check(gaussians)
    rgb = gaussians.colors[:, 0] * SH_C0 + 0.5 if gaussians.has_harmonics else gaussians.colors
    quats = torch.nn.functional.normalize(gaussians.quats, dim=-1)
    # Viewers may draw before the file is complete: the largest and most opaque come first.
    order = torch.argsort(gaussians.scales.prod(dim=-1) * gaussians.opacities, descending=True, stable=True)
    table = np.empty(len(gaussians), _SPLAT)
    table["means"], table["scales"] = gaussians.means[order].float().numpy(), gaussians.scales[order].float().numpy()
    rgba = torch.cat([rgb, gaussians.opacities[:, None]], dim=1)
    table["rgba"] = (rgba[order].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    table["quats"] = (quats[order] * 128 + 128).round().clamp(0, 255).to(torch.uint8).numpy()
    _write(path, table.tobytes())


def load_splat(path: str | os.PathLike) -> Gaussians:
    """Read Gaussians from a `.splat`.

    Args:
        path (`str` or `os.PathLike`): File to read.

    Returns:
        `Gaussians`: float32, with plain RGB.

    Raises:
        ValueError: If the file's length or numbers show that it is not a `.splat`.
    """
    data = Path(path).read_bytes()
    if len(data) % _SPLAT.itemsize:
        raise ValueError(f"`path` must be a .splat, {_SPLAT.itemsize} bytes each, but {path} has {len(data)} bytes.")
    table = np.frombuffer(data, _SPLAT)
    means, scales = torch.from_numpy(table["means"].copy()), torch.from_numpy(table["scales"].copy())
    if not (bool(torch.isfinite(means).all()) and bool(torch.isfinite(scales).all()) and bool((scales >= 0).all())):
        raise ValueError(f"`path` must be a .splat, but {path} has invalid positions or scales.")
    rgba = torch.from_numpy(table["rgba"].astype(np.float32) / 255)
    quats = torch.from_numpy((table["quats"].astype(np.float32) - 128) / 128)
    return Gaussians(means, quats, scales, rgba[:, 3].contiguous(), rgba[:, :3].contiguous())


#: Suffix -> function that writes such a file.
SAVERS = {".ply": save_ply, ".splat": save_splat}


def _check(gaussians: Gaussians) -> Gaussians:
    """Check that there is one set of finite numbers, and move it to the CPU."""
    if gaussians.batch_size is not None:
        raise ValueError(
            f"`gaussians` must be one set, got a batch of {gaussians.batch_size}; write one file for each."
        )
    gaussians = gaussians.map(lambda value: value.detach().cpu())
    for name, value in vars(gaussians).items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"`gaussians` must hold finite numbers, but {name} has NaN or infinity.")
    return gaussians


def _write(path: str | os.PathLike, data: bytes) -> None:
    """Write a file, whole or not at all."""
    with staging(path) as folder:
        (folder / Path(path).name).write_bytes(data)


def _not_gaussians(path: str | os.PathLike, reason: str) -> ValueError:
    return ValueError(f"`path` must be a .ply of Gaussians as 3DGS writes it, but {path} is not: {reason}.")


def _ply_layout(data: bytes, path: str | os.PathLike) -> tuple[int, np.dtype, int]:
    """Read the header: number of vertices, fields of a vertex, offset of the data."""
    if not data.startswith((b"ply\n", b"ply\r\n")):
        raise _not_gaussians(path, "it does not begin with 'ply'")
    end = data.find(b"end_header", 0, _MAX_HEADER)
    newline = data.find(b"\n", end) if end >= 0 else -1
    if newline < 0:
        raise _not_gaussians(path, "its header has no end")
    lines = [line.split() for line in data[:end].decode("ascii", errors="replace").splitlines()[1:]]
    lines = [words for words in lines if words and words[0] not in ("comment", "obj_info")]
    if ["format", "binary_little_endian", "1.0"] not in lines:
        raise _not_gaussians(path, "its format is not binary_little_endian 1.0")
    elements = [words for words in lines if words[0] == "element"]
    if not elements or len(elements[0]) != 3 or elements[0][1] != "vertex" or not elements[0][2].isdigit():
        raise _not_gaussians(path, "its first element is not 'vertex'")
    last = lines.index(elements[1]) if len(elements) > 1 else len(lines)
    fields = []
    for words in lines[lines.index(elements[0]) + 1 : last]:
        if len(words) != 3 or words[0] != "property" or words[1] not in _PLY_TYPES:
            raise _not_gaussians(path, f"a line of its header is {' '.join(words)!r}")
        fields.append((words[2], _PLY_TYPES[words[1]]))
    if len({name for name, _ in fields}) != len(fields):
        raise _not_gaussians(path, "properties of its vertices have the same name")
    return int(elements[0][2]), np.dtype(fields), newline + 1

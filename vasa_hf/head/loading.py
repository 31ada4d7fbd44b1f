"""Loading of heads from files of any supported kind."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from vasa_hf.head.flame import flame_head
from vasa_hf.head.ict import ict_head, ict_mesh
from vasa_hf.head.mesh import HeadMesh
from vasa_hf.head.parametric import FORMAT, ParametricHead
from vasa_hf.head.template import template_head
from vasa_hf.head.whole import whole_head

_FLAME_SHAPES = 60  # enough for a portrait's landmarks; shapes are in order of variance


def load_parametric_head(path: str | Path | None = None, canonical: Tensor | None = None) -> ParametricHead:
    """Load a whole head with joints, for VASA-3D.

    Args:
        path (`str`, `Path` or `None`): `ict_facekit.npz`, a FLAME file that `vasa-hf convert flame` wrote, or a file of
            `ParametricHead.save`; `None` for the built-in head.
        canonical (`torch.Tensor` of shape `(478, 3)` or `(162, 3)`, *optional*): Mean face of the built-in head.

    Raises:
        ValueError: If the file is none of these.
    """
    if path is None:
        return whole_head(canonical)
    _check(path)
    if Path(path).suffix == ".npz":
        return ict_head(path)
    with safe_open(path, "pt") as file:
        is_saved_head = (file.metadata() or {}).get("format") == FORMAT
    return ParametricHead.load(path) if is_saved_head else flame_head(path)


def name_head(path: str | Path | None = None) -> str:
    """Name of a head's model, such as "built-in", "ICT-FaceKit" or "FLAME 2020"; arguments as `load_parametric_head`.

    Args:
        path (`str`, `Path` or `None`): The file.

    Raises:
        ValueError: If it is not a file of a head.
    """
    if path is None:
        return "built-in"
    _check(path)
    if Path(path).suffix == ".npz":
        return "ICT-FaceKit"
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    return Path(path).stem if metadata.get("format") == FORMAT else f"FLAME {metadata.get('version', '')}".strip()


def load_head(path: str | Path | None, canonical: Tensor) -> HeadMesh:
    """Load the linear head for rendered talkers.

    Args:
        path (`str`, `Path` or `None`): As for `load_parametric_head`; `None` for the small built-in head.
        canonical (`torch.Tensor` of shape `(478, 3)` or `(162, 3)`): Mean face of the built-in head.

    Raises:
        ValueError: If the file is none of these.
    """
    if path is None:
        return template_head(canonical)
    _check(path)
    return ict_mesh(path) if Path(path).suffix == ".npz" else load_parametric_head(path).as_mesh(_FLAME_SHAPES)


def _check(path: str | Path) -> None:
    if not Path(path).is_file() or Path(path).suffix not in (".npz", ".safetensors"):
        raise ValueError(
            f"`path` must be ict_facekit.npz or a .safetensors file of a head (FLAME's .pkl: first `vasa-hf convert "
            f"flame`), but is {str(path)!r}."
        )

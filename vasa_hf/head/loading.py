"""Which head a file holds."""

from pathlib import Path

from torch import Tensor

from vasa_hf.head.ict import ict_mesh
from vasa_hf.head.mesh import HeadMesh
from vasa_hf.head.template import template_head


def load_head(path: str | Path | None, canonical: Tensor) -> HeadMesh:
    """The head that wears photographs: ICT-FaceKit's from its file, or the built-in one where no file is given.

    Args:
        path (`str`, `Path` or `None`): `ict_facekit.npz`.
        canonical (`torch.Tensor` of shape `(478, 3)` or `(162, 3)`): Mean face, see `template_head`.
    """
    return template_head(canonical) if path is None else ict_mesh(path)

"""Everything in a file that says, or shows, that it is synthetic."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from .content_credentials import read_content_credentials
from .ffmpeg import input_url
from .provenance import read_provenance
from .video import read_video
from .watermark import MARK_THRESHOLD, detect_mark

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


@dataclass(frozen=True)
class Provenance:
    """What was found in a file.

    Args:
        note (`dict`, *optional*): The manifest in its metadata, see `read_provenance`.
        mark_score (`float`): Of the invisible mark, see `detect_mark`.
        c2pa (`dict`, *optional*): Its C2PA manifest, by whomever, see `read_content_credentials`.
        c2pa_checked (`bool`): Whether it was looked for: not without the extra `[c2pa]`.
        is_image (`bool`): Whether it is a still image.
    """

    note: dict[str, Any] | None
    mark_score: float
    c2pa: dict[str, Any] | None
    c2pa_checked: bool
    is_image: bool = False

    @property
    def is_marked(self) -> bool:
        """Whether the invisible mark is there."""
        return self.mark_score > MARK_THRESHOLD

    @property
    def found(self) -> bool:
        """Whether any of them says that vasa_hf made the file; a C2PA manifest counts if its signature holds."""
        signed = self.c2pa is not None and self.c2pa["state"] in ("Valid", "Trusted")
        return self.note is not None or self.is_marked or (signed and self.c2pa["generator"] == "vasa_hf")


def find_provenance(path: str | os.PathLike) -> Provenance:
    """Look for the metadata note, the invisible mark and a C2PA manifest in a video or image file.

    Raises:
        ValueError: If the file is missing, or neither a video nor an image.
    """
    input_url(path)
    image = _read_image(path)
    note = read_provenance(path) if image is None else None
    score = detect_mark(read_video(path) if image is None else image)
    checked = importlib.util.find_spec("c2pa") is not None
    signed = read_content_credentials(path) if checked else None
    return Provenance(note, score, signed, checked, image is not None)


def _read_image(path: str | os.PathLike) -> np.ndarray | None:
    """Return an image's pixels; `None` of a file that is no still image."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            return np.asarray(image.convert("RGB")) if getattr(image, "n_frames", 1) == 1 else None
    except UnidentifiedImageError:
        return None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"`path` must be a whole image or video, got {os.fspath(path)!r}: {error}.") from error

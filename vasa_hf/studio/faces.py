"""Faces of a picture, shown before anything is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from vasa_hf.studio.models import Models, digest


@dataclass(frozen=True)
class FoundFaces:
    """Faces of a picture.

    Args:
        boxes (`list`): x0, y0, x1, y1 of each in pixels of `picture`, the largest first.
        names (`list[str]`): How each is called.
        chosen (`int`): Which one was cut out.
        picture (`PIL.Image.Image`): The picture with boxes, landmarks and the square.
        crop (`PIL.Image.Image`): What the model will see.
    """

    boxes: list[tuple[float, float, float, float]]
    names: list[str]
    chosen: int
    picture: Image.Image
    crop: Image.Image


def nearest(boxes: Sequence[Sequence[float]], x: float, y: float) -> int:
    """Which of the boxes x0, y0, x1, y1 has its middle nearest to a place of the picture."""
    away = [((x0 + x1) / 2 - x) ** 2 + ((y0 + y1) / 2 - y) ** 2 for x0, y0, x1, y1 in boxes]
    return away.index(min(away))


def find_faces(models: Models, path: str, face: int | None = None) -> FoundFaces:
    """Find the faces of a picture, and cut out one as `talk` would.

    Args:
        models (`Models`): What finds them.
        path (`str`): The picture's file.
        face (`int`, *optional*): Which to cut out; the largest by default.

    Raises:
        ValueError: If the picture cannot be read, or shows no face that can be animated.
    """
    pipe = models.faces
    digest(path)
    processor = pipe.image_processor
    picture = processor.load(path)
    faces = pipe.face_analyzer.detect(picture)
    size = tuple(picture.shape[-2:])
    if face is not None and face >= len(faces):
        face = None
    found = processor.choose(faces, size, face)
    crop = processor.crop(picture, found, None, size=pipe.face_autoencoder.config.image_size)
    names = [f"{index + 1}" + (" (largest)" if index == 0 else "") for index in range(len(faces))]
    boxes = [tuple(one.box.tolist()) for one in faces]
    return FoundFaces(boxes, names, face or 0, processor.preview(picture, faces, crop), processor.preview(crop.image))

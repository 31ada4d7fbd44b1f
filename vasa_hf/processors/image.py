"""The image processor: images to face crops, and back.

Not in the paper: VASA-1 trains and tests on face crops. The crop is that of the training clips (`geometry/crops.py`).
"""

import dataclasses
import logging
import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError
from torch import Tensor
from transformers.image_processing_base import ImageProcessingMixin

from vasa_hf.checks import check_number, shorten
from vasa_hf.geometry.crops import (
    PasteWindow,
    crop_region,
    cut_crop,
    paste,
    paste_window,
    standard_crop,
    transform_points,
)
from vasa_hf.geometry.landmarks import CLOSED_GROUPS, GROUPS
from vasa_hf.media.ffmpeg import read_picture

logger = logging.getLogger(__name__)
# Pillow's formats of photos; some of its other formats start external programs (EPS: Ghostscript).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
# Exceptions of Pillow for truncated or invalid files.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, struct.error)
ImageInput = str | os.PathLike | Image.Image | np.ndarray | Tensor
# Keys that transformers adds to the saved config.
_SAVED_BY_TRANSFORMERS = {"image_processor_type", "feature_extractor_type", "processor_class", "_commit_hash"}


@dataclasses.dataclass
class FaceCrop:
    """A square crop of an image, and the transformation back.

    Attributes:
        image (`torch.Tensor` of shape `(3, size, size)`): The crop, RGB in [-1, 1].
        crop_from_image (`torch.Tensor` of shape `(3, 3)`): Image pixels to fractions of the crop, float64.
        image_size (`tuple` of two `int`): Height and width of the image.
        box (`torch.Tensor` of shape `(4,)`, *optional*): Box of the face, if it was detected.
        others (`torch.Tensor` of shape `(faces, 4)`, *optional*): Boxes of other faces, which `paste_back` keeps.
    """

    image: Tensor
    crop_from_image: Tensor
    image_size: tuple[int, int]
    box: Tensor | None = None
    others: Tensor | None = None
    window: PasteWindow | None = dataclasses.field(default=None, repr=False)  # computed at the first paste_back

    @property
    def image_from_crop(self) -> Tensor:
        """Matrix from fractions of the crop to image pixels, `(3, 3)` float64."""
        return torch.linalg.inv(self.crop_from_image)

    @property
    def side(self) -> float:
        """Side of the crop in image pixels."""
        return float(self.image_from_crop[:2, 0].norm())


class FaceImageProcessor(ImageProcessingMixin):
    """Load images of any kind, choose a face, crop it, and paste the result back.

    Args:
        size (`int`, *optional*, defaults to 256): Side of the crop in pixels.
        scale (`float`, *optional*, defaults to 2.0): Side of the crop relative to the larger side of the landmark box.
        shift (`tuple` of two `float`, *optional*, defaults to `(0, 0)`): Shift right and down, relative to the side.
        upright (`bool`, *optional*, defaults to `False`): Whether the crop rotates with the head's roll.
        feather (`float`, *optional*, defaults to 0.12): Width of the paste-back's soft border, relative to the side.
        max_pixels (`int`, *optional*, defaults to 50,000,000): Maximal number of pixels of an image.
        max_side (`int`, *optional*, defaults to 1920): Larger images are shrunk to this longer side.
        min_side (`int`, *optional*, defaults to 64): Minimal shorter side of an image.
        min_face (`int`, *optional*, defaults to 32): Minimal larger side of a face's box in pixels.
        max_yaw_deg (`float`, *optional*, defaults to 60.0): Maximal yaw of a face.
        max_cut_off (`float`, *optional*, defaults to 0.1): Maximal share of landmarks outside of the image.
        background (`tuple` of three `int`, *optional*, defaults to white): Colour behind transparent pixels.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: int = 256,
        scale: float = 2.0,
        shift: Sequence[float] = (0.0, 0.0),
        upright: bool = False,
        feather: float = 0.12,
        max_pixels: int = 50_000_000,
        max_side: int = 1920,
        min_side: int = 64,
        min_face: int = 32,
        max_yaw_deg: float = 60.0,
        max_cut_off: float = 0.1,
        background: Sequence[int] = (255, 255, 255),
        **kwargs: Any,
    ):
        if unknown := sorted(set(kwargs) - _SAVED_BY_TRANSFORMERS):
            raise ValueError(f"`{unknown[0]}` is no option of FaceImageProcessor.")
        for name, value, low, high in (
            ("size", size, 16, 4096),
            ("max_pixels", max_pixels, 1, 1_000_000_000),
            ("max_side", max_side, 16, 16_384),
            ("min_side", min_side, 1, 16_384),
            ("min_face", min_face, 1, 16_384),
        ):
            check_number(name, value, low, high, whole=True)
        check_number("scale", scale, 1.0, 6.0)
        check_number("feather", feather, 0.0, 0.5)
        check_number("max_yaw_deg", max_yaw_deg, 0.0, 180.0)
        check_number("max_cut_off", max_cut_off, 0.0, 1.0)
        for name, values, count, low, high in (("shift", shift, 2, -1.0, 1.0), ("background", background, 3, 0, 255)):
            if not isinstance(values, list | tuple) or len(values) != count:
                raise ValueError(f"`{name}` must be {count} numbers, got {shorten(values)}.")
            for value in values:
                check_number(name, value, low, high, whole=name == "background")
        super().__init__(**kwargs)
        self.size, self.scale, self.shift, self.upright = size, scale, list(shift), upright
        self.feather, self.background = feather, list(background)
        self.max_pixels, self.max_side, self.min_side = max_pixels, max_side, min_side
        self.min_face, self.max_yaw_deg, self.max_cut_off = min_face, max_yaw_deg, max_cut_off

    # --- images -----------------------------------------------------------------------------------------------------

    def __call__(self, image: ImageInput) -> Tensor:
        """Same as `load`."""
        return self.load(image)

    def load(self, image: ImageInput) -> Tensor:
        """Read an image of any kind as RGB.

        EXIF rotation is applied, transparency is blended over `background`, palettes, CMYK, grey and 16-bit images are
        converted, only the first frame of an animation is used, and an image larger than `max_side` is shrunk, with a
        log message.

        Memory: 4 bytes per pixel of an image with 8 bits per colour, less for a JPEG (if at least twice `max_side`, it
        is decoded at 1/2, 1/4 or 1/8), 12 bytes for others; at most `max_pixels` of them. The result has at most 12
        bytes times `max_side` squared.

        Args:
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
                A local file, a PIL image, an array `(height, width[, channels])` or a tensor `(channels, height,
                width)`. Arrays and tensors are uint8, uint16, or float in [0, 1]; 1, 3 or 4 channels.

        Returns:
            `torch.Tensor` of shape `(3, height, width)`, float32 in [-1, 1].

        Raises:
            ValueError: If the image cannot be read, is too large or too small, or has other values.
        """
        picture, (width, height) = self._read(image, self.max_side)
        ratio = self.max_side / max(width, height)
        if ratio >= 1:
            return self._to_rgb(picture).contiguous()
        size = (max(round(width * ratio), 1), max(round(height * ratio), 1))
        logger.info("The image of %dx%d pixels is shrunk to %dx%d.", width, height, *size)
        picture = self._flatten(picture)
        if isinstance(picture, Tensor):
            return F.interpolate(picture[None], size=size[::-1], mode="bilinear", antialias=True)[0]
        return self._to_rgb(picture.resize(size, Image.Resampling.BILINEAR))  # antialiased, still in 8 bits

    def _read(self, image: ImageInput, least_side: float) -> tuple[Image.Image | Tensor, tuple[int, int]]:
        """Read an upright image, possibly reduced to a longer side of at least `least_side`, and its full size."""
        if isinstance(image, str | os.PathLike):
            return self._open(image, least_side)
        if isinstance(image, Image.Image):
            self._check_size(image.width, image.height)
            picture = _decode(image, "the given PIL image")
        elif isinstance(image, np.ndarray | Tensor):
            picture = self._from_array(image)
        else:
            kind = type(image).__name__
            raise ValueError(f"`image` must be a file, a PIL image, an array or a tensor, but is a {kind}.")
        return picture, picture.size if isinstance(picture, Image.Image) else (picture.shape[2], picture.shape[1])

    def _open(self, path: str | os.PathLike, least_side: float) -> tuple[Image.Image, tuple[int, int]]:
        path = Path(path)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise ValueError(f"`image` must be an image file, but {str(path)!r} {what}.")
        if _is_for_ffmpeg(path):
            picture = Image.fromarray(read_picture(path, self.max_pixels))
            self._check_size(*picture.size)
            return picture, picture.size
        with open_image(path) as image:
            width, height = image.size
            self._check_size(width, height)
            ratio = least_side / max(width, height)
            if ratio < 1:  # a JPEG can be decoded at 1/2, 1/4 or 1/8 of its size; others stay as they are
                image.draft(None, (math.ceil(width * ratio), math.ceil(height * ratio)))
            picture = _decode(image, repr(str(path)))
        turned = (width > height) != (picture.width > picture.height)
        return picture, (height, width) if turned else (width, height)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise ValueError(f"`image` must have at most {self.max_pixels:,} pixels, but has {width}x{height}.")
        if min(width, height) < self.min_side:
            raise ValueError(f"`image` must be at least {self.min_side} pixels on each side, but is {width}x{height}.")

    def _from_array(self, image: np.ndarray | Tensor) -> Image.Image | Tensor:
        if isinstance(image, Tensor):
            array = image.detach().cpu()
            array = array.float().numpy() if array.is_floating_point() else array.numpy()
            layout, channels_first = "(channels, height, width)", True
        else:
            array, layout, channels_first = image, "(height, width) or (height, width, channels)", False
        shape = tuple(array.shape)
        array = array.transpose(1, 2, 0) if channels_first and array.ndim == 3 else array
        array = array[..., None] if array.ndim == 2 and not channels_first else array
        if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
            raise ValueError(f"`image` must be of shape {layout} with 1, 3 or 4 channels, but is {shape}.")
        self._check_size(array.shape[1], array.shape[0])
        if array.dtype == np.uint8:
            return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 else array))
        if array.dtype == np.uint16:
            values = array.astype(np.float32) / 65535
        elif np.issubdtype(array.dtype, np.floating):
            values = array.astype(np.float32)
            if not np.isfinite(values).all():
                raise ValueError("`image` must hold finite numbers, but has NaN or infinity.")
            if values.min() < 0 or values.max() > 1:
                raise ValueError(
                    f"`image` must hold values in [0, 1] if float, but has {values.min():.3g} to {values.max():.3g}."
                )
        else:
            raise ValueError(f"`image` must be uint8, uint16 or float, but is {array.dtype}.")
        picture = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
        if len(picture) == 4:
            ground = torch.tensor(self.background).view(3, 1, 1) / 255
            picture = picture[:3] * picture[3:] + ground * (1 - picture[3:])
        return picture.expand(3, -1, -1) * 2 - 1

    def _flatten(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        """Convert to opaque RGB: a PIL image for 8 bits per colour, else a tensor in [-1, 1]."""
        if isinstance(image, Tensor):
            return image
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            values = np.asarray(image).astype(np.float32)
            limit = 65535 if image.mode != "F" or values.max() > 255 else 255 if values.max() > 1 else 1
            if not np.isfinite(values).all() or values.min() < 0 or values.max() > limit:
                raise ValueError(f"`image` of mode {image.mode} must hold values in [0, {limit}].")
            return torch.from_numpy(values / limit * 2 - 1).expand(3, -1, -1).contiguous()
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            image = image.convert("RGBA")
            ground = Image.new("RGBA", image.size, (*self.background, 255))
            image = Image.alpha_composite(ground, image)
        return image.convert("RGB")

    def _to_rgb(self, image: Image.Image | Tensor) -> Tensor:
        image = self._flatten(image)
        if isinstance(image, Tensor):
            return image
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1.0

    # --- faces --------------------------------------------------------------------------------------------------------

    def choose(self, faces: Sequence[Any], image_size: tuple[int, int], face: int | None = None) -> Any:
        """Choose the face to animate and check it.

        Args:
            faces (`Sequence` of `DetectedFace`): Result of `FaceAnalyzer.detect`, largest first.
            image_size (`tuple` of two `int`): Height and width of the image.
            face (`int`, *optional*): Index of the face; by default the largest (0), with a warning if there are more.

        Returns:
            `DetectedFace`.

        Raises:
            ValueError: If there is no face, or the chosen one is too small, cut off, or turned away.
        """
        if not faces:
            raise ValueError(
                "`image` must show a face, but none was found. Give the position of the face: `box=(x0, y0, x1, y1)`."
            )
        if face is None and len(faces) > 1:
            sizes = ", ".join(f"{i}: {f.side:.0f} px" for i, f in enumerate(faces))
            logger.warning("%d faces were found (%s); the largest is used. Choose with `face=1`.", len(faces), sizes)
        index = 0 if face is None else face
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(faces):
            raise ValueError(f"`face` must be 0 to {len(faces) - 1}, as {len(faces)} were found, but is {face!r}.")
        self.check_face(faces[index], image_size)
        return faces[index]

    def check_face(self, face: Any, image_size: tuple[int, int]) -> None:
        """Raise a `ValueError` if a `DetectedFace` is too small, cut off by the border, or turned away."""
        if face.side < self.min_face:
            raise ValueError(
                f"`image` must show a face of at least {self.min_face} pixels, but it has only {face.side:.0f}."
            )
        height, width = image_size
        x, y = face.landmarks.unbind(dim=-1)
        outside = ((x < 0) | (x > width) | (y < 0) | (y > height)).float().mean().item()
        if outside > self.max_cut_off:
            raise ValueError(
                f"`image` must show the whole face, but {outside:.0%} of it is cut off by the border of the image."
            )
        yaw_deg = math.degrees(float(face.pose[0]))
        if abs(yaw_deg) > self.max_yaw_deg:
            raise ValueError(
                f"`image` must show a face turned by at most {self.max_yaw_deg:.0f} degrees, "
                f"but this one is turned by {abs(yaw_deg):.0f} degrees."
            )

    # --- crops --------------------------------------------------------------------------------------------------------

    def crop(
        self,
        image: Tensor,  # [3, H, W]
        face: Any | None = None,
        box: Sequence[float] | Tensor | None = None,
        size: int | None = None,
        scale: float | None = None,
        shift: Sequence[float] | None = None,
        angle_rad: float | None = None,
        original: ImageInput | None = None,
        others: Sequence[Any] = (),
    ) -> FaceCrop:
        """Crop the standard square around a face, or a shifted, scaled and rotated one.

        A small face in an image that `load` has shrunk is cropped from the full image if `original` is given. Memory:
        as in `load`, and 12 bytes for each pixel of the full image that the square covers.

        Args:
            image (`torch.Tensor` of shape `(3, height, width)`): A loaded image in [-1, 1].
            face (`DetectedFace`, *optional*): The face.
            box (`Sequence` of four `float`, *optional*): Box x0, y0, x1, y1 of the face in pixels, instead of `face`.
            size (`int`, *optional*): Side of the result in pixels; by default the saved one, as for the next two.
            scale (`float`, *optional*): Side of the square relative to the larger side of the box.
            shift (`Sequence` of two `float`, *optional*): Shift right and down in sides of the square.
            angle_rad (`float`, *optional*): Clockwise rotation; by default the head's roll if `upright` is on, else 0.
            original (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*): The source
                of `image`.
            others (`Sequence` of `DetectedFace`, *optional*): Other faces, for `paste_back`.

        Returns:
            `FaceCrop`; its matrix and size are those of `image`.

        Raises:
            ValueError: If `box` is not inside the image, or a number is out of range.
        """
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"`image` must be of shape (3, height, width), but is {tuple(image.shape)}.")
        size = self.size if size is None else size
        if not isinstance(size, int) or not 16 <= size <= 4096:
            raise ValueError(f"`size` must be a whole number of 16 to 4096 pixels, but is {shorten(size)}.")
        height, width = image.shape[-2:]
        image_from_crop = self.find_square((height, width), face, box, scale, shift, angle_rad)
        finest = (image.float(), image_from_crop)
        if original is not None and max(height, width) == self.max_side:  # longer ones were shrunk to this
            finest = self._finest(original, image, image_from_crop, size)
        square = cut_crop(finest[0], finest[1].float(), size)
        crop = FaceCrop(square, torch.linalg.inv(image_from_crop), (height, width))
        if face is not None and others:
            crop.box, crop.others = face.box, torch.stack([other.box for other in others])
        return crop

    def find_square(
        self,
        image_size: tuple[int, int],
        face: Any | None = None,
        box: Sequence[float] | Tensor | None = None,
        scale: float | None = None,
        shift: Sequence[float] | None = None,
        angle_rad: float | None = None,
    ) -> Tensor:
        """Where `crop` cuts in an image of `image_size` (height, width): `image_from_crop`, `(3, 3)` float64.

        The other arguments and the errors are those of `crop`.
        """
        scale = self.scale if scale is None else scale
        shift = self.shift if shift is None else shift
        if not 1.0 <= scale <= 6.0:
            raise ValueError(f"`scale` must be 1.0 to 6.0, but is {scale!r}.")
        if len(shift) != 2 or not all(-1 <= value <= 1 for value in shift):
            raise ValueError(f"`shift` must be two numbers in [-1, 1], but is {tuple(shift)}.")
        if box is not None:
            around = self.check_box(box, image_size)
        elif face is not None:
            around = face.box
        else:
            raise ValueError("`face` or `box` must be given.")
        if angle_rad is None:
            turn_with_head = self.upright and face is not None
            angle_rad = float(face.pose[2]) if turn_with_head else 0.0
        if not -math.pi <= angle_rad <= math.pi:
            raise ValueError(f"`angle_rad` must be -pi to pi, but is {angle_rad!r}.")
        return standard_crop(around.double(), scale, tuple(shift), angle_rad)

    def _finest(self, original: ImageInput, image: Tensor, image_from_crop: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Read the region of the full image that a crop covers, and the crop's matrix in it; `image` if it suffices."""
        side, (height, width) = float(image_from_crop[:2, 0].norm()), image.shape[-2:]
        if side >= size:
            return image.float(), image_from_crop
        picture, _ = self._read(original, max(height, width) * size / side)
        is_tensor = isinstance(picture, Tensor)
        full_height, full_width = picture.shape[-2:] if is_tensor else (picture.height, picture.width)
        scale = torch.diag(image_from_crop.new_tensor([full_width / width, full_height / height, 1.0]))
        (left, top, right, bottom), matrix = crop_region(scale @ image_from_crop, (full_height, full_width))
        if is_tensor:
            return picture[:, top:bottom, left:right].float(), matrix
        return self._to_rgb(picture.crop((left, top, right, bottom))), matrix

    def check_box(self, box: Sequence[float] | Tensor, image_size: tuple[int, int]) -> Tensor:
        """Convert a box to a tensor `(4,)`; raises `ValueError` if it is invalid or outside of the image."""
        try:
            around = torch.as_tensor(box, dtype=torch.float32).flatten()
        except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise ValueError(
                f"`box` must be four numbers (x0, y0, x1, y1) in pixels, but is {shorten(box)}."
            ) from error
        if len(around) != 4 or not torch.isfinite(around).all():
            raise ValueError(f"`box` must be four numbers (x0, y0, x1, y1) in pixels, but is {shorten(box)}.")
        x0, y0, x1, y1 = around.tolist()
        height, width = image_size
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            given = (x0, y0, x1, y1)
            raise ValueError(f"`box` must be x0 < x1 <= {width} and y0 < y1 <= {height} in pixels, but is {given}.")
        if max(x1 - x0, y1 - y0) < self.min_face:
            raise ValueError(f"`box` must be at least {self.min_face} pixels, but is {x1 - x0:.0f}x{y1 - y0:.0f}.")
        return around

    def paste_back(
        self,
        image: Tensor,  # [3, H, W]
        crop_image: Tensor,  # [3, S, S] or [B, 3, S, S]
        crop: FaceCrop,
    ) -> Tensor:
        """Blend a generated crop into the full image with a soft mask.

        Where the new content equals the crop, the pixels of the image do not change, nor do those of other detected
        faces.

        Args:
            image (`torch.Tensor` of shape `(3, height, width)`): The image of the crop.
            crop_image (`torch.Tensor` of shape `([batch,] 3, size, size)`): New content, any size.
            crop (`FaceCrop`): Position of the crop.

        Returns:
            `torch.Tensor` of shape `([batch,] 3, height, width)` in the image's full resolution.
        """
        if tuple(image.shape[-2:]) != tuple(crop.image_size):
            raise ValueError(
                f"`image` must be the cropped image, {tuple(crop.image_size)}, but is {tuple(image.shape[-2:])}."
            )
        if crop_image.ndim not in (3, 4) or crop_image.shape[-1] != crop_image.shape[-2]:
            raise ValueError(f"`crop_image` must be ([batch,] 3, size, size), but is {tuple(crop_image.shape)}.")
        if crop.window is None:
            crop.window = paste_window(crop.image_from_crop, crop.image_size, self.feather, crop.box, crop.others)
        own, size = crop.image.to(crop_image), crop_image.shape[-1]
        if own.shape[-1] != size:
            own = F.interpolate(own[None], size=(size, size), mode="bilinear", antialias=True)[0]
        if crop_image.ndim == 3:
            return paste(image, crop_image, crop.window, own)
        return torch.stack([paste(image, one, crop.window, own) for one in crop_image])

    def preview(
        self,
        image: Tensor,
        faces: Sequence[Any] = (),
        crop: FaceCrop | None = None,
        labels: Sequence[str] | None = None,
    ) -> Image.Image:
        """Draw boxes, labels and landmarks of the faces and the outline of the crop.

        Labels are index and score by default; others are drawn large enough to be read on a small preview.
        """
        picture = to_pil(image)
        draw = ImageDraw.Draw(picture)
        width = max(1, round(max(picture.size) / 400))
        for index, face in enumerate(faces):
            for name, group in GROUPS.items():
                if name == "rigid":
                    continue
                points = [tuple(p) for p in face.landmarks[list(group)].tolist()]
                if name in CLOSED_GROUPS:
                    draw.line([*points, points[0]], fill=(80, 220, 120), width=width)
                for x, y in points:
                    r = width * 0.8
                    draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 220, 0))
            box = face.box.tolist()
            draw.rectangle(box, outline=(255, 140, 0), width=width)
            if labels is None:
                corner = (box[0] + 2 * width, box[1] + 2 * width)
                draw.text(corner, f"{index}: {face.score:.2f}", fill=(255, 140, 0))
            else:  # above the box, so that the face stays visible
                size = max(14, round(max(picture.size) / 16))
                place = {"xy": (box[0], max(box[1], size)), "text": labels[index], "font_size": size, "anchor": "lb"}
                draw.rectangle(draw.textbbox(**place), fill=(255, 140, 0))
                draw.text(**place, fill="black")
        if crop is not None:
            corners = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]], dtype=torch.float64)
            outline = [tuple(p) for p in transform_points(crop.image_from_crop, corners).tolist()]
            draw.line(outline, fill=(60, 140, 255), width=2 * width)
        return picture


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Decode an image and apply its EXIF rotation; raises `ValueError` for damaged files."""
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except _DAMAGE as error:
        raise ValueError(f"`image` must be an intact image file, but {name} is damaged: {error}.") from error


def _is_for_ffmpeg(path: Path) -> bool:
    """Whether a file is HEIC or JPEG XL, or AVIF that this version of Pillow cannot read."""
    try:
        with open(path, "rb") as file:
            begin = file.read(12)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"`image` must be a file that can be read, got {str(path)!r}: {reason}.") from error
    if begin[4:8] == b"ftyp":
        Image.init()
        brand = begin[8:12]
        return brand in _HEIC_BRANDS or (brand in (b"avif", b"avis") and "AVIF" not in Image.OPEN)
    return begin.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL "))


def open_image(path: str | os.PathLike) -> Image.Image:
    """Open an image file of one of `FORMATS`, without decoding it.

    Raises:
        ValueError: If it is no image, is damaged, or has more pixels than Pillow accepts.
    """
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # AVIF needs Pillow 11.3
    try:
        return Image.open(path, formats=known)
    except UnidentifiedImageError as error:
        kinds = ", ".join(known)
        raise ValueError(
            f"`image` must be an image file (HEIC, JPEG XL, {kinds}), but {str(path)!r} is not."
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"`image` must have fewer pixels: {error}.") from error
    except _DAMAGE as error:
        raise ValueError(f"`image` must be an intact image file, but {str(path)!r} is damaged: {error}.") from error


def to_pil(image: Tensor) -> Image.Image:
    """Convert [3, H, W] in [-1, 1] to a PIL image."""
    array = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(array.permute(1, 2, 0).numpy())

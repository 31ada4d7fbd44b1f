"""Messages between a client and `vasa-hf serve`; `docs/serve.md` describes them.

Text messages are JSON objects with a `type`. A binary message of a client is speech, one of the server is a frame or a
part of an MP4.
"""

from __future__ import annotations

import base64
import binascii
import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vasa_hf.checks import check_number, parse_json, shorten

if TYPE_CHECKING:  # clients read this file, too: it needs no torch
    from vasa_hf.live.session import LiveFrame

VERSION = 1
HEADER = struct.Struct("<BBHIII")  # kind 1, flags, milliseconds late, index, bytes of the JPEG, bytes of the audio
FRAME, FRAGMENT, SPEAKING = 1, 2, 1
MAX_TEXT_BYTES = 12 * 2**20
MAX_AUDIO_BYTES = 4 * 2**20
MAX_IMAGE_BYTES = 8 * 2**20
MAX_IMAGE_PIXELS = 50_000_000
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
OUTPUTS = ("jpeg", "fmp4")
FIELDS = {
    "start": {"consent", "image", "upload", "example", "rate", "token", "controls", "quality", "output"},
    "end_of_speech": set(),
    "interrupt": set(),
    "set": {"controls"},
    "speak": set(),
    "listen": set(),
    "say": {"text", "voice"},
    "stats": set(),
    "close": set(),
}


@dataclass(frozen=True)
class Start:
    """The first message of a client.

    Args:
        image (`PIL.Image.Image`, *optional*): The portrait.
        upload (`str`, *optional*): Its id, if it was uploaded before.
        example (`str`, *optional*): Its name, if it is one of the server's. The first one where all three are left out.
        rate (`int`): Rate of the client's audio in Hz.
        controls (`dict`): Constant controls of the motion.
        quality (`int`): Of the JPEG images, 30 to 95.
        output (`str`): What comes back: frames (`"jpeg"`), or parts of an MP4 (`"fmp4"`).
    """

    image: Image.Image | None
    upload: str | None
    example: str | None
    rate: int
    controls: dict[str, Any]
    quality: int
    output: str


def read_message(text: str) -> dict[str, Any]:
    """Read a client's JSON message.

    Raises:
        ValueError: If it is no object, or has an unknown type or field.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise ValueError(f"A message must have at most {MAX_TEXT_BYTES} bytes, got {len(text)}.")
    message = parse_json(text, "message")
    kind = message.get("type") if isinstance(message, dict) else None
    if not isinstance(kind, str) or kind not in FIELDS:
        raise ValueError(f"`type` must be one of {', '.join(FIELDS)}, got {shorten(kind)}.")
    if unknown := set(message) - FIELDS[kind] - {"type"}:
        raise ValueError(f"`{sorted(unknown)[0]}` is no field of a message {kind!r}.")
    return message


def read_start(message: dict[str, Any]) -> Start:
    """Check a `start` message and decode its image.

    Raises:
        ValueError: If a field cannot be used, or consent is missing.
    """
    if message.get("type") != "start":
        raise ValueError("The first message must be of the type 'start'.")
    if message.get("consent") is not True:
        raise ValueError(
            "`consent` must be true: animate only adults who agreed to it, or people who do not exist; never children."
        )
    rate, quality, output = message.get("rate", 16_000), message.get("quality", 85), message.get("output", "jpeg")
    check_number("rate", rate, 8_000, 96_000, whole=True)
    check_number("quality", quality, 30, 95, whole=True)
    if output not in OUTPUTS:
        raise ValueError(f"`output` must be one of {', '.join(OUTPUTS)}, got {shorten(output)}.")
    faces = {name: message[name] for name in ("image", "upload", "example") if message.get(name) is not None}
    if len(faces) > 1:
        raise ValueError(f"A start must have one of {' and '.join(f'`{name}`' for name in faces)}, not both.")
    for name, value in faces.items():
        if not isinstance(value, str):
            raise ValueError(f"`{name}` must be text, got {shorten(value)}.")
    image = _decode_image(faces["image"]) if "image" in faces else None
    controls = read_controls(message)
    return Start(image, faces.get("upload"), faces.get("example"), rate, controls, quality, output)


def read_token(message: dict[str, Any]) -> str:
    """The token of a `start` message; empty if there is none.

    Raises:
        ValueError: If it is no text.
    """
    token = message.get("token", "")
    if not isinstance(token, str):
        raise ValueError(f"`token` must be text, got {shorten(token)}.")
    return token


def read_controls(message: dict[str, Any]) -> dict[str, Any]:
    """The field `controls`: names and values; lists become tuples.

    Raises:
        ValueError: If it is no object.
    """
    controls = message.get("controls", {})
    if not isinstance(controls, dict):
        raise ValueError(f"`controls` must be an object, got {shorten(controls)}.")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in controls.items()}


def _decode_image(text: str) -> Image.Image:
    """Decode a data URL or bare base64 of an image."""
    encoded = text.partition("base64,")[2] or text
    if len(encoded) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise ValueError(f"`image` must have at most {MAX_IMAGE_BYTES} bytes.")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("`image` must be base64.") from error
    return read_image(data)


def read_image(data: bytes) -> Image.Image:
    """Decode the file of an image.

    Raises:
        ValueError: If it is no whole JPEG, PNG or WebP, or too large.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        if image.width * image.height > MAX_IMAGE_PIXELS:  # before they are decoded
            raise ValueError(
                f"`image` must have at most {MAX_IMAGE_PIXELS:,} pixels, but has {image.width}x{image.height}."
            )
        image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("`image` must be a whole JPEG, PNG or WebP file.") from error
    return image


def read_samples(data: bytes) -> np.ndarray:
    """16-bit samples of a binary message, `(n,)` int16.

    Raises:
        ValueError: If it is too large, or half a sample.
    """
    if len(data) > MAX_AUDIO_BYTES:
        raise ValueError(f"A binary message must have at most {MAX_AUDIO_BYTES} bytes, got {len(data)}.")
    if len(data) % 2:
        raise ValueError(f"A binary message must hold 16-bit samples, got {len(data)} bytes.")
    return np.frombuffer(data, "<i2")


def pack_frame(frame: LiveFrame, quality: int) -> bytes:
    """A frame as a binary message.

    Args:
        frame (`LiveFrame`): Its image is an array.
        quality (`int`): Of the JPEG.
    """
    file = io.BytesIO()
    Image.fromarray(frame.image).save(file, "JPEG", quality=quality)
    jpeg, samples = file.getvalue(), (np.clip(frame.audio, -1, 1) * 32767).round().astype("<i2").tobytes()
    late, size = _milliseconds(frame.late_seconds), (len(jpeg), len(samples))
    return HEADER.pack(FRAME, SPEAKING * frame.is_speaking, late, frame.index, *size) + jpeg + samples


def pack_fragment(index: int, data: bytes, is_speaking: bool, late_seconds: float) -> bytes:
    """A part of an MP4 as a binary message; `index` is that of the last frame that was encoded."""
    return HEADER.pack(FRAGMENT, SPEAKING * is_speaking, _milliseconds(late_seconds), index, len(data), 0) + data


def _milliseconds(seconds: float) -> int:
    return min(max(round(1000 * seconds), 0), 65_535)


@dataclass(frozen=True)
class Frame:
    """A frame as a client reads it.

    Args:
        index (`int`): Frames since the beginning; its time is `index / fps`.
        is_speaking (`bool`): Whether it has speech.
        late_ms (`int`): Milliseconds since it should have left the server.
        jpeg (`bytes`): The image.
        audio (`np.ndarray` of shape `(n,)`, int16): Audio up to its end, at the server's rate.
    """

    index: int
    is_speaking: bool
    late_ms: int
    jpeg: bytes
    audio: np.ndarray


def unpack_frame(data: bytes) -> Frame:
    """Read a binary message of the server.

    Raises:
        ValueError: If it is no frame.
    """
    if len(data) < HEADER.size:
        raise ValueError(f"A frame has at least {HEADER.size} bytes, got {len(data)}.")
    kind, flags, late, index, image_bytes, audio_bytes = HEADER.unpack_from(data)
    if kind != FRAME or len(data) != HEADER.size + image_bytes + audio_bytes:
        raise ValueError("The message is no frame.")
    jpeg = data[HEADER.size : HEADER.size + image_bytes]
    audio = np.frombuffer(data, "<i2", offset=HEADER.size + image_bytes)
    return Frame(index, bool(flags & SPEAKING), late, jpeg, audio)

"""The one way to ffmpeg: moviepy's bundled binary, its errors, and files that appear whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

READ_OPTIONS = ("-nostdin", "-hide_banner", "-protocol_whitelist", "file,pipe")  # a playlist must not open the network


def ffmpeg_path() -> str:
    """Return the ffmpeg program that moviepy uses (imageio-ffmpeg's, unless the user set `FFMPEG_BINARY`)."""
    from moviepy.config import FFMPEG_BINARY  # 0.4 s: paid at the first file, not at import

    return FFMPEG_BINARY


def input_url(path: str | os.PathLike, argument: str = "path") -> str:
    """Return `path` as an ffmpeg address that can't be read as an option or a protocol.

    Raises:
        ValueError: If no file is there, or it is empty.
    """
    if not os.path.isfile(path):
        raise ValueError(f"`{argument}` must be an existing file, got {os.fspath(path)!r}.")
    if os.path.getsize(path) == 0:
        raise ValueError(f"`{argument}` must not be empty, but {os.fspath(path)!r} has 0 bytes.")
    return "file:" + os.path.abspath(path)


def shortened(stderr: bytes) -> str:
    """Return ffmpeg's messages for an error of ours: the first lines tell the cause, the last what came of it."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return " | ".join(lines if len(lines) <= 5 else [*lines[:3], "...", lines[-1]]) or "no message"


def parse_fps(fps: Fraction | float | str) -> Fraction:
    """Return a frame rate as an exact fraction; 23.98, 29.97, 59.94 and the like become n * 1000 / 1001.

    Raises:
        ValueError: If it is no number in [1, 1000].
    """
    try:
        value = Fraction(str(fps)) if isinstance(fps, float) else Fraction(fps)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        value = Fraction(0)
    if not 1 <= value <= 1000:
        raise ValueError(f"`fps` must be a number of frames a second in [1, 1000], got {fps!r}.")
    if value.denominator != 1:
        ntsc = Fraction(round(value * 1001 / 1000) * 1000, 1001)
        # ffmpeg prints, and people write, two or three digits.
        value = ntsc if abs(ntsc - value) < Fraction(6, 1000) else value.limit_denominator(100_000)
    return value


@dataclass(frozen=True)
class VideoInfo:
    """What ffmpeg tells of a video file; `size` is (width, height) as displayed, after rotation."""

    fps: Fraction
    size: tuple[int, int]
    duration_seconds: float | None
    has_audio: bool


def probe_video(path: str | os.PathLike) -> VideoInfo:
    """Decode the first frame of `path` and read the header.

    Raises:
        ValueError: If the file is missing, empty, unreadable or has no picture.
    """
    command = [ffmpeg_path(), *READ_OPTIONS, "-i", input_url(path), *frame_options("null"), "-frames:v", "1", "pipe:1"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    header = done.stderr.decode("utf-8", "replace").split("\nOutput #")[0]
    if not done.stdout:
        if "matches no streams" in header:
            raise ValueError(f"`path` must be a file with a picture, but {os.fspath(path)!r} has no video stream.")
        raise ValueError(f"`path` must be a readable video, got {os.fspath(path)!r}: {shortened(done.stderr)}")
    _, width, height = done.stdout[:32].split(maxsplit=3)[:3]
    streams = re.findall(r"^\s+Stream #\d.*?: (Video|Audio): (.*)$", header, re.MULTILINE)
    video = next(text for kind, text in streams if kind == "Video" and "(attached pic)" not in text)
    # "fps" is the average, "tbr" a guess from the time base for streams that do not tell.
    rate = re.search(r"([\d.]+)(k?) fps", video) or re.search(r"([\d.]+)(k?) tbr", video)
    fps = Fraction(rate[1]) * (1000 if rate[2] else 1) if rate else Fraction(0)
    duration = re.search(r"^\s+Duration: (\d+):(\d+):(\d+\.\d+)", header, re.MULTILINE)
    seconds = int(duration[1]) * 3600 + int(duration[2]) * 60 + float(duration[3]) if duration else None
    return VideoInfo(
        # Some streams give a clock rate (90k) or nothing: 25 is what ffmpeg itself assumes then.
        fps=parse_fps(fps) if 1 <= fps <= 240 else Fraction(25),
        size=(int(width), int(height)),
        duration_seconds=seconds,
        has_audio=any(kind == "Audio" for kind, _ in streams),
    )


def frame_options(filters: str) -> list[str]:
    """Return output options that give upright square-pixel RGB frames, each with its own PPM header."""
    scale = "scale=w='trunc(iw*sar+0.5)':h=ih:flags=bicubic+accurate_rnd+full_chroma_int,setsar=1"
    codec = ["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24"]
    return ["-map", "0:V:0", "-an", "-sn", "-vf", f"{filters},{scale}", *codec]


@contextmanager
def staging(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder beside `path`; what is there under the name of `path` at the end takes its place.

    After an exception, Ctrl-C included, the folder goes and `path` is as it was.

    Raises:
        ValueError: If the folder of `path` does not exist, or `path` is a folder.
    """
    path = Path(path).absolute()  # ffmpeg would read a relative `a:b.mp4` as protocol `a`
    if not path.parent.is_dir():
        raise ValueError(f"`path` must lie in an existing folder, got {str(path)!r}.")
    if path.is_dir():
        raise ValueError(f"`path` must name a file, but {str(path)!r} is a folder.")
    folder = Path(tempfile.mkdtemp(prefix=f".{path.stem[:32]}-", dir=path.parent))
    try:
        yield folder
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)

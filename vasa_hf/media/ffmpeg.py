"""The one way to ffmpeg: moviepy's bundled binary, its errors, and files that appear whole or not at all."""

from __future__ import annotations

import math
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from vasa_hf.checks import shorten
from vasa_hf.files import staging as staging

# Containers by ffmpeg's names. None of them names other files, as playlists (hls, dash, concat, sdp, image2 ...) do.
CONTAINERS = (
    "aac,ac3,aiff,amr,ape,apng,asf,au,av1,avi,caf,dts,dv,eac3,flac,flv,gif,h264,hevc,ivf,jpegxl_anim,jpegxl_pipe,m4v,"
    "matroska,mjpeg,mov,mp3,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,png_pipe,rm,tta,voc,w64,wav,webm,webp_anim,"
    "webp_pipe,wtv,wv,yuv4mpegpipe"
)
HDR_TRANSFERS = ("smpte2084", "arib-std-b67")  # PQ and HLG
MAX_PIXELS = 8192 * 8192  # of a frame
MAX_SECONDS = 6 * 3600.0  # of an audio or a video, unless the caller says otherwise
MAX_WAIT_SECONDS = 60.0  # ffmpeg must give something in this time
# Before each input file.
READ_OPTIONS = ("-nostdin", "-hide_banner", "-protocol_whitelist", "file", "-format_whitelist", CONTAINERS)
DECODE_OPTIONS = (*READ_OPTIONS, "-max_pixels", str(MAX_PIXELS))

# Tags of encoded video: players guess the colours of untagged video from its size.
BT709 = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]


class FfmpegError(OSError, RuntimeError):
    """ffmpeg could not write: a full disk, for example; holds its message."""


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


def shorten_stderr(stderr: bytes) -> str:
    """Return ffmpeg's messages for an error of ours: the first lines tell the cause, the last what came of it."""
    text = stderr.decode("utf-8", "replace")
    if "Format not on whitelist" in text:
        return "its container is none of those that are read, such as mp4, mov, webm, mkv, wav, mp3, flac"
    text = re.sub(r" @ 0x[0-9a-f]+", "", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines if len(lines) <= 5 else [*lines[:3], "...", lines[-1]]) or "no message"


def parse_fps(fps: Fraction | float | str) -> Fraction:
    """Return a frame rate as an exact fraction; 23.98, 29.97, 59.94 and the like become n * 1000 / 1001.

    Raises:
        ValueError: If it is no number in [1, 1000].
    """
    text = str(fps).strip() if isinstance(fps, (str, float)) else ""
    try:
        if text and not re.fullmatch(r"\d{0,9}\.?\d{0,20}(/\d{1,9})?", text):
            raise ValueError  # before `Fraction`, which computes 1e999999999 for ever
        value = Fraction(text or fps)
    except (TypeError, ValueError, ArithmeticError, RecursionError):
        value = Fraction(0)
    if not 1 <= value <= 1000:
        raise ValueError(f"`fps` must be a number of frames a second in [1, 1000], got {shorten(fps)}.")
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
    transfer: str | None = None  # of HDR, by ffmpeg's name; none for others


def probe_video(path: str | os.PathLike) -> VideoInfo:
    """Decode the first frame of `path` and read the header.

    Raises:
        ValueError: If the file is missing, empty, unreadable or has no image.
    """
    options = [*frame_options("null"), "-frames:v", "1", "pipe:1"]
    done = run_ffmpeg([*DECODE_OPTIONS, "-i", input_url(path), *options])
    header = done.stderr.decode("utf-8", "replace").split("\nOutput #")[0]
    if not done.stdout:
        if "matches no streams" in header:
            raise ValueError(f"`path` must be a file with an image, but {os.fspath(path)!r} has no video stream.")
        raise ValueError(f"`path` must be a readable video, got {os.fspath(path)!r}: {shorten_stderr(done.stderr)}")
    _, width, height = done.stdout[:32].split(maxsplit=3)[:3]
    streams = re.findall(r"^\s+Stream #\d.*?: (Video|Audio): (.*)$", header, re.MULTILINE)
    video = next(text for kind, text in streams if kind == "Video" and "(attached pic)" not in text)
    # "fps" is the average, "tbr" a guess from the time base for streams that do not tell.
    rate = re.search(r"([\d.]+)(k?) fps", video) or re.search(r"([\d.]+)(k?) tbr", video)
    fps = Fraction(rate[1]) * (1000 if rate[2] else 1) if rate else Fraction(0)
    duration = find_duration(header)
    return VideoInfo(
        # Some streams give a clock rate (90k) or nothing: 25 is what ffmpeg itself assumes then.
        fps=parse_fps(fps) if 1 <= fps <= 240 else Fraction(25),
        size=(int(width), int(height)),
        duration_seconds=duration and duration[0],
        has_audio=any(kind == "Audio" for kind, _ in streams),
        transfer=next((name for name in HDR_TRANSFERS if name in video), None),
    )


def find_duration(header: str) -> tuple[float, float] | None:
    """Duration and start in seconds by ffmpeg's report on a file; `None` where it has none."""
    found = re.search(r"^\s+Duration: (\d+):(\d+):(\d+\.\d+)(?:, start: ([\d.]+))?", header, re.MULTILINE)
    if found is None:
        return None
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]), float(found[4] or 0)


def run_ffmpeg(options: Sequence[str]) -> subprocess.CompletedProcess:
    """Run ffmpeg to its end, with stdout and stderr as bytes.

    Raises:
        ValueError: If it needs longer than `MAX_WAIT_SECONDS`.
    """
    try:
        command = [ffmpeg_path(), *options]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=MAX_WAIT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"The file could not be read within {MAX_WAIT_SECONDS:.0f} seconds.") from error


class Decoder:
    """What ffmpeg makes of a file, as a stream of bytes; a context manager.

    ffmpeg ends with the context, with this process (its output then has no reader, and it reads regular files only),
    and when it gives nothing for `MAX_WAIT_SECONDS`.

    Args:
        options (`Sequence[str]`): After the name of the program.

    Attributes:
        is_stuck (`bool`): Whether it was ended because it gave nothing.
    """

    def __init__(self, options: Sequence[str]):
        self._options, self.is_stuck = options, False
        self._deadline = math.inf
        self._left = threading.Event()

    def __enter__(self) -> Decoder:
        """Start ffmpeg."""
        self._messages = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [ffmpeg_path(), *self._options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            bufsize=1 << 16,
        )
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def read(self, count: int) -> bytes:
        """Next bytes, fewer at the end."""
        return self._wait(self._process.stdout.read, count)

    def readline(self) -> bytes:
        """Next line; empty at the end."""
        return self._wait(self._process.stdout.readline)

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; returns how many bytes there were."""
        return self._wait(self._process.stdout.readinto, buffer)

    def finish(self) -> tuple[int, bytes]:
        """Exit status and messages, after the last byte was read."""
        status = self._wait(self._process.wait)
        self._messages.seek(0)
        return status, self._messages.read(1 << 16)

    def __exit__(self, *_: Any) -> None:
        """End ffmpeg."""
        self._left.set()
        self._process.kill()
        self._process.stdout.close()
        self._process.wait()
        self._messages.close()

    def _wait(self, function: Callable, *arguments: Any) -> Any:
        self._deadline = time.monotonic() + MAX_WAIT_SECONDS
        try:
            return function(*arguments)
        finally:
            self._deadline = math.inf

    def _watch(self) -> None:
        while not self._left.wait(0.5):
            if time.monotonic() > self._deadline:
                self.is_stuck = True
                self._process.kill()


def read_ppm(decoder: Decoder, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
    """The next frame of `-f image2pipe -c:v ppm`, uint8 `(height, width, 3)`; `None` at the end, or if it is cut off.

    Raises:
        ValueError: If it has more than `max_pixels`.
    """
    if not decoder.readline():  # "P6", then "width height", then "255"
        return None
    width, height = map(int, decoder.readline().split())
    decoder.readline()
    if width * height > max_pixels:
        raise ValueError(f"A frame must have at most {max_pixels:,} pixels, got {width}x{height}.")
    frame = np.empty((height, width, 3), np.uint8)
    return frame if decoder.readinto(frame.reshape(-1)) == frame.size else None


def read_picture(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image that ffmpeg knows (HEIC with its tiles, AVIF, JPEG XL), upright, as uint8 `(height, width, 3)`.

    Of several images in the file, the main one is taken; of an animation, the first.

    Raises:
        ValueError: If it cannot be read, or is too large.
    """
    # No `-map`: only without it are tiles put together.
    options = ["-an", "-sn", "-frames:v", "1", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "pipe:1"]
    with Decoder([*DECODE_OPTIONS, "-v", "error", "-i", input_url(path, "image"), *options]) as decoder:
        image = read_ppm(decoder, max_pixels)
        _, stderr = decoder.finish()
    if image is None:
        raise ValueError(f"`image` must be a whole image, got {os.fspath(path)!r}: {shorten_stderr(stderr)}")
    return image


def check_seconds(seconds: float, most: float, argument: str) -> None:
    """Raise `ValueError` for an audio or a video that turns out to be too long."""
    if seconds > most:
        raise ValueError(f"`{argument}` must be at most {most:,.0f} seconds long.")


def tone_map_filters(transfer: str | None) -> str:
    """Return filters, ending in a comma, that bring HDR to the range and colours of other videos; empty for those.

    Reference white is 203 nits (ITU-R BT.2408). Below 30 % of it, where most of a face is, light is left as it is;
    highlights up to 1,000 nits are compressed.
    """
    if transfer is None:
        return ""
    linear = f"zscale=tin={transfer}:min=bt2020nc:pin=bt2020:t=linear:npl=203,format=gbrpf32le,zscale=p=bt709"
    return f"{linear},tonemap=mobius:desat=0:peak=5,zscale=t=bt709:m=bt709:p=bt709:r=tv,format=yuv444p,"


def frame_options(filters: str) -> list[str]:
    """Return output options that give upright square-pixel RGB frames, each with its own PPM header."""
    # Pixels more than eight times as wide as high, or as high as wide, are mistakes or ask for giant frames.
    width = "if(between(sar,0.125,8),trunc(iw*sar+0.5),iw)"
    scale = f"scale=w='{width}':h=ih:flags=bicubic+accurate_rnd+full_chroma_int,setsar=1"
    codec = ["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24"]
    return ["-map", "0:V:0", "-an", "-sn", "-vf", f"{filters},{scale}", *codec]

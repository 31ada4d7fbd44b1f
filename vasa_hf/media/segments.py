"""A video that can be watched while it is written: short MPEG-TS pieces of one encoding, as HLS wants them."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .audio import as_channels
from .ffmpeg import BT709, FfmpegError, ffmpeg_path, parse_fps, shorten_stderr
from .provenance import provenance_tags
from .watermark import embed_mark


@dataclass(frozen=True)
class Segment:
    """One piece.

    Args:
        path (`Path`): A `.ts` file: H.264 from a key frame on, and the AAC that belongs to it.
        seconds (`float`): How long it plays.
    """

    path: Path
    seconds: float


class SegmentWriter:
    """Write frames, with an audio that is known before, as pieces that are whole while the rest is still to come.

    One encoder makes all pieces, so that video and audio continue across their borders. A context manager; an exception
    stops the encoder. The pieces stay: the caller owns the folder.

    Args:
        folder (`str` or `os.PathLike`): Existing folder for the pieces.
        fps (`Fraction`, `float` or `str`): Frames a second.
        size (`tuple[int, int]`): Width and height of the frames; an odd side loses its last line.
        audio (`tuple`, *optional*): Samples as in `load_audio` and their rate.
        seconds (`float`, defaults to 1.0): Length of a piece.
        provenance (`bool` or `dict`, defaults to `True`): As for `VideoWriter`.

    Raises:
        ValueError: If an argument is unfit.
        FfmpegError: If ffmpeg fails; holds its message.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        fps: Fraction | float | str,
        size: tuple[int, int],
        audio: tuple[Any, int] | None = None,
        *,
        seconds: float = 1.0,
        provenance: bool | Mapping[str, Any] = True,
    ):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"`folder` must be an existing folder, got {str(folder)!r}.")
        if not 0.1 <= seconds <= 60:
            raise ValueError(f"`seconds` must lie in [0.1, 60], got {seconds!r}.")
        self.fps, self.size, self.seconds = parse_fps(fps), (int(size[0]), int(size[1])), seconds
        self.provenance = provenance
        self._audio = None if audio is None else (as_channels(audio[0]), int(audio[1]))
        self._ready: list[Segment] = []
        self._lock = threading.Lock()

    def __enter__(self) -> SegmentWriter:
        """Start ffmpeg."""
        self._messages = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages, cwd=self.folder
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, uint8 RGB of shape `(height, width, 3)`."""
        width, height = self.size
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.shape != (height, width, 3):
            got = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise ValueError(f"`frame` must be a uint8 array of shape {(height, width, 3)}, got {got}.")
        if self.provenance is not False:
            frame = embed_mark(frame)
        try:
            self._process.stdin.write(np.ascontiguousarray(frame).data)
        except OSError as error:
            self._process.wait()
            raise FfmpegError(f"ffmpeg stopped: {self._stderr()}") from error

    def take(self) -> list[Segment]:
        """Pieces that became whole since the last call."""
        with self._lock:
            ready, self._ready = self._ready, []
        return ready

    def close(self) -> None:
        """End the last piece; `take` gives what is left."""
        with suppress(OSError):
            self._process.stdin.close()
        if self._process.wait() != 0:
            raise FfmpegError(f"ffmpeg could not encode {str(self.folder)!r}: {self._stderr()}")
        self._listener.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the last piece, or stop at once after an exception."""
        try:
            if kind is None:
                self.close()
        finally:
            self._process.kill()
            with suppress(OSError):
                self._process.stdin.close()
            self._process.wait()
            self._listener.join()
            self._process.stdout.close()
            self._messages.close()

    def _command(self) -> list[str]:
        width, height = self.size
        command = [ffmpeg_path(), "-hide_banner", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-video_size", f"{width}x{height}", "-framerate", str(self.fps), "-i", "pipe:0"]
        if self._audio is not None:
            samples, rate = self._audio
            np.ascontiguousarray(samples.T, dtype="<f4").tofile(self.folder / "audio.f32")
            command += ["-f", "f32le", "-ar", str(rate), "-ac", str(len(samples)), "-i", "audio.f32"]
            # AAC frames must be shorter than what players call a hole: see `VideoWriter`.
            command += ["-map", "1:a", "-c:a", "aac", "-ac", "2", "-b:a", "128k", "-ar", "48000"]
        scale = "crop=trunc(iw/2)*2:trunc(ih/2)*2,scale=out_color_matrix=bt709:out_range=tv"
        command += ["-map", "0:v", "-vf", f"{scale},format=yuv420p", "-c:v", "libx264", "-preset", "veryfast"]
        command += BT709
        # No frame waits for a later one, and each piece begins with a key frame.
        command += ["-tune", "zerolatency", "-crf", "20", "-sc_threshold", "0"]
        command += ["-force_key_frames", f"expr:gte(t,n_forced*{self.seconds})"]
        # The audio, which is all there, must wait for the frames however slowly they come.
        command += ["-max_interleave_delta", "0", "-muxdelay", "0", "-muxpreload", "0"]
        if self.provenance is not False:
            extra = self.provenance if isinstance(self.provenance, Mapping) else {}
            for key, value in provenance_tags(**extra).items():
                command += ["-metadata", f"{key}={value}"]
        command += ["-f", "segment", "-segment_format", "mpegts", "-segment_time", str(self.seconds)]
        return [*command, "-segment_list", "pipe:1", "-segment_list_type", "csv", "%05d.ts"]

    def _listen(self) -> None:
        """Ffmpeg tells of each piece, when it is whole, its name, its beginning and its end."""
        for line in self._process.stdout:
            name, start, stop = line.decode().strip().split(",")
            segment = Segment(self.folder / name, float(stop) - float(start))
            with self._lock:
                self._ready.append(segment)

    def _stderr(self) -> str:
        self._messages.seek(0)
        return shorten_stderr(self._messages.read())

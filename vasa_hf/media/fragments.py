"""A video that is sent while it is made: fragmented MP4, as a browser's MediaSource takes it."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from contextlib import suppress
from fractions import Fraction
from types import TracebackType

import numpy as np

from .ffmpeg import BT709, FfmpegError, ffmpeg_path, parse_fps, shorten_stderr
from .provenance import provenance_tags

#: What `MediaSource.addSourceBuffer` asks for.
MIME = 'video/mp4; codecs="avc1.4D4028,mp4a.40.2"'
FRAGMENT_SECONDS = 0.2
KEY_SECONDS = 2


class FragmentWriter:
    """Write frames with their audio as fragmented MP4 (H.264 + AAC) in memory; a context manager.

    The frames must bear the watermark already; the file's tags say that it is synthetic.

    Args:
        fps (`Fraction`, `float` or `str`): Frames per second.
        size (`tuple[int, int]`): Width and height of the frames; an odd side loses its last line.
        sampling_rate (`int`): Of the mono audio in Hz.

    Raises:
        FfmpegError: If ffmpeg fails; holds its message.
    """

    def __init__(self, fps: Fraction | float | str, size: tuple[int, int], sampling_rate: int):
        self.fps, self.size, self.rate = parse_fps(fps), (int(size[0]), int(size[1])), int(sampling_rate)
        self._made = bytearray()
        self._lock, self._writing = threading.Lock(), threading.Lock()

    def __enter__(self) -> FragmentWriter:
        """Start ffmpeg."""
        self._messages = tempfile.TemporaryFile()
        listen, self._audio = os.pipe()
        self._process = subprocess.Popen(
            self._command(listen),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            pass_fds=[listen],
        )
        os.close(listen)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def write(self, frame: np.ndarray, audio: np.ndarray, times: int = 1) -> None:
        """Append a frame, or more of the same, and the audio up to their end.

        Args:
            frame (`np.ndarray` of shape `(height, width, 3)`): uint8 RGB.
            audio (`np.ndarray` of shape `(n,)`): In [-1, 1]; as long as the frames.
            times (`int`, defaults to 1): How often the frame is shown.
        """
        width, height = self.size
        if frame.dtype != np.uint8 or frame.shape != (height, width, 3):
            raise ValueError(f"`frame` must be uint8 of shape {(height, width, 3)}, got {frame.dtype} {frame.shape}.")
        samples = (np.clip(audio, -1, 1) * 32767).round().astype("<i2")
        try:
            # ffmpeg takes no frames that are ahead of their audio, and no audio that is far ahead of its frames.
            with self._writing:
                for part in np.array_split(samples, times):
                    data = part.tobytes()
                    while data:
                        data = data[os.write(self._audio, data) :]
                    self._process.stdin.write(np.ascontiguousarray(frame).data)
                    self._process.stdin.flush()
        except OSError as error:
            self._process.wait()
            raise FfmpegError(f"ffmpeg stopped: {self._stderr()}") from error

    def take(self) -> bytes:
        """What was made since the last call; fragments may be cut anywhere."""
        with self._lock:
            made, self._made = bytes(self._made), bytearray()
        return made

    def close(self) -> None:
        """End the last fragment; `take` gives what is left."""
        self._end_inputs()
        if self._process.wait() != 0:
            raise FfmpegError(f"ffmpeg could not encode the fragments: {self._stderr()}")
        self._reader.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the last fragment, or stop at once after an exception."""
        try:
            if kind is None:
                self.close()
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop ffmpeg at once; a `write` in another thread raises."""
        self._process.kill()
        self._end_inputs()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._messages.close()

    def _end_inputs(self) -> None:
        with self._writing:
            if self._audio >= 0:
                os.close(self._audio)
                self._audio = -1
            with suppress(OSError):
                self._process.stdin.close()

    def _command(self, audio: int) -> list[str]:
        width, height = self.size
        live = ["-probesize", "32", "-analyzeduration", "0"]  # it begins with the first frame
        command = [ffmpeg_path(), "-hide_banner", "-v", "error", *live, "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-video_size", f"{width}x{height}", "-framerate", str(self.fps), "-i", "pipe:0"]
        command += [*live, "-f", "s16le", "-ar", str(self.rate), "-ac", "1", "-i", f"pipe:{audio}"]
        scale = "crop=trunc(iw/2)*2:trunc(ih/2)*2,scale=out_color_matrix=bt709:out_range=tv"
        command += ["-map", "0:v", "-vf", f"{scale},format=yuv420p", "-c:v", "libx264", "-preset", "veryfast"]
        command += BT709
        command += ["-tune", "zerolatency", "-crf", "20", "-profile:v", "main", "-level", "4.0", "-threads", "1"]
        command += ["-fps_mode", "passthrough", "-g", str(round(KEY_SECONDS * self.fps))]
        command += ["-map", "1:a", "-c:a", "aac", "-ar", "48000", "-b:a", "96k"]
        for key, value in provenance_tags().items():
            command += ["-metadata", f"{key}={value}"]
        command += ["-f", "mp4", "-movflags", "+empty_moov+default_base_moof", "-flush_packets", "1"]
        return [*command, "-frag_duration", str(round(1e6 * FRAGMENT_SECONDS)), "pipe:1"]

    def _read(self) -> None:
        while data := os.read(self._process.stdout.fileno(), 65_536):
            with self._lock:
                self._made += data

    def _stderr(self) -> str:
        self._messages.seek(0)
        return shorten_stderr(self._messages.read())

"""Video files, frame by frame: any container in, H.264 + AAC out, memory independent of the length."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vasa_hf.checks import check_number, naming, shorten

from ..files import VIDEO_SUFFIXES
from .audio import as_channels
from .content_credentials import ContentCredentials
from .ffmpeg import (
    BT709,
    DECODE_OPTIONS,
    MAX_SECONDS,
    Decoder,
    FfmpegError,
    VideoInfo,
    check_seconds,
    ffmpeg_path,
    frame_options,
    input_url,
    parse_fps,
    probe_video,
    read_ppm,
    shorten_stderr,
    staging,
    tone_map_filters,
)
from .lengths import find_missing_end
from .provenance import provenance_tags
from .watermark import embed_mark

logger = logging.getLogger(__name__)


class VideoReader:
    """Iterate over the frames of a video at a constant rate, upright and with square pixels, HDR as ordinary colours.

    Frames come from ffmpeg one at a time. A variable frame rate is resampled by time stamps: frame `i` is what shows at
    `i / fps` seconds (the nearest stored frame), counted from the start of the file, as `load_audio` counts the audio.

    Args:
        path (`str` or `os.PathLike`): Any file with a video stream that ffmpeg reads.
        fps (`Fraction`, `float` or `str`, *optional*, defaults to the file's own average rate):
            Frames a second to deliver.
        max_seconds (`float`, defaults to six hours): Longer videos are refused as soon as so much has been read.
        argument (`str`, defaults to "path"): Its name in messages.

    Attributes:
        fps (`Fraction`): Frames a second delivered.
        size (`tuple[int, int]`): Width and height.
        num_frames (`int` or `None`): Estimate from the header; `None` where it gives no duration.
        has_audio (`bool`): Whether there is an audio track.
        damage (`str` or `None`): What ffmpeg had to say of the file, known when all frames have been read.

    Raises:
        ValueError: If the file is missing, empty, no video, or (while iterating) broken.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        fps: Fraction | float | str | None = None,
        max_seconds: float = MAX_SECONDS,
        argument: str = "path",
    ):
        self.path, self.max_seconds, self.argument = os.fspath(path), max_seconds, argument
        with naming(argument):
            self._info: VideoInfo = probe_video(path)
        self.fps = self._info.fps if fps is None else parse_fps(fps)
        self.size = self._info.size
        self.has_audio = self._info.has_audio
        self.damage: str | None = None

    @property
    def num_frames(self) -> int | None:
        """Estimated number of frames."""
        seconds = self._info.duration_seconds
        return None if seconds is None else max(1, round(seconds * self.fps))

    def resampled(self, fps: Fraction | float | str) -> VideoReader:
        """Return a reader of the same file at another rate."""
        return VideoReader(self.path, fps, self.max_seconds, self.argument)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield frames as uint8 RGB arrays of shape `(height, width, 3)`."""
        tone_map = tone_map_filters(self._info.transfer)
        options = [*DECODE_OPTIONS, "-v", "error", "-i", input_url(self.path)]
        options += [*frame_options(f"fps={self.fps}:start_time=0,{tone_map}".rstrip(",")), "pipe:1"]
        count = 0
        with Decoder(options) as decoder:
            while (frame := read_ppm(decoder)) is not None:
                count += 1
                check_seconds(float(count / self.fps), self.max_seconds, self.argument)
                yield frame
            status, stderr = decoder.finish()
        if decoder.is_stuck:
            raise ValueError(
                f"`{self.argument}` must be a whole video, but {self.path!r} gives nothing after {count} frames."
            )
        missing = (self.num_frames or count) - count
        # ffmpeg calls a cut-off file a success. A few missing frames are common in good ones (the audio may be longer).
        if status != 0 or count == 0 or (stderr and missing > max(5, 0.05 * count)):
            raise ValueError(
                f"`{self.argument}` must be a whole video, but {self.path!r} could be read for {count} frames only "
                f"(expected {self.num_frames or 'some'}): {shorten_stderr(stderr)}"
            )
        if stderr:
            self.damage = shorten_stderr(stderr)
            logger.warning("%s is damaged in places: %s", self.path, self.damage)
        elif (missing_end := find_missing_end(self.path, float(count / self.fps))) is not None:
            self.damage = f"it is cut off: {missing_end}"
            logger.warning("%s is cut off and was read as far as possible: %s.", self.path, missing_end)


def read_video(path: str | os.PathLike, fps: Fraction | float | str | None = None) -> VideoReader:
    """Open a video; see `VideoReader`."""
    return VideoReader(path, fps)


def check_provenance(provenance: Any) -> None:
    """Raise `ValueError` unless this is a `bool` or a dict with text as keys."""
    names = list(provenance) if isinstance(provenance, Mapping) else []
    if not isinstance(provenance, bool | Mapping) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`provenance` must be True, False or a dict with names, got {shorten(provenance)}.")


def check_credentials(credentials: ContentCredentials | None, provenance: bool | Mapping[str, Any]) -> None:
    """Raise `ValueError` for credentials of a video that is to say nothing."""
    if credentials is not None and provenance is False:
        raise ValueError("`credentials` sign what `provenance` says, but `provenance` is False.")


class VideoWriter:
    """Write an MP4 (H.264 yuv420p + AAC), WebM (VP9 + Opus) or GIF frame by frame; a context manager.

    The file appears under its name only when all went well. The audio may come at once or in pieces, before, between
    or after the frames; at the end it is cut or filled with silence to the length of the frames, to the sample. A GIF
    has no audio and no metadata, 256 colours, and frames of whole hundredths of a second.

    Args:
        path (`str` or `os.PathLike`): Target; must end in `.mp4`, `.webm` or `.gif`.
        fps (`Fraction`, `float` or `str`): Frames a second, kept exactly (`Fraction(30000, 1001)`).
        size (`tuple[int, int]`): Width and height of the frames. An odd side is made even by repeating its last line.
        audio (`tuple`, *optional*): Samples as in `load_audio` and their rate.
        provenance (`bool` or `dict`, defaults to `True`):
            Mark each frame invisibly and tag the file as synthetic (see `docs/provenance.md`). A dict adds its entries,
            such as `{"model": "vasa-small"}`, to the manifest.
        credentials (`ContentCredentials`, *optional*): Also sign a C2PA manifest that says the same; MP4 only.
        crf (`int`, defaults to 18): Quality of libx264, 0 (lossless) to 51; that of VP9 is 12 more.
        preset (`str`, defaults to `"veryfast"`): Speed of libx264.

    Raises:
        ValueError: If an argument or a frame is unfit, or no frame was written.
        FfmpegError: If ffmpeg fails; holds its message.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        fps: Fraction | float | str,
        size: tuple[int, int],
        audio: tuple[Any, int] | None = None,
        *,
        provenance: bool | Mapping[str, Any] = True,
        credentials: ContentCredentials | None = None,
        crf: int = 18,
        preset: str = "veryfast",
    ):
        self.path = Path(path)
        self._kind = self.path.suffix.lower()
        if self._kind not in VIDEO_SUFFIXES:
            raise ValueError(f"`path` must end in {' or '.join(VIDEO_SUFFIXES)}, got {str(path)!r}.")
        if credentials is not None and self._kind != ".mp4":
            raise ValueError(f"`credentials` need a file that ends in .mp4, got {str(path)!r}.")
        self.fps = parse_fps(fps)
        if len(size) != 2 or min(size) < 2 or max(size) > 8192:
            raise ValueError(f"`size` must be (width, height), each in [2, 8192], got {size!r}.")
        check_number("crf", crf, 0, 51, whole=True)
        check_provenance(provenance)
        check_credentials(credentials, provenance)
        self.size = (int(size[0]), int(size[1]))
        self.provenance, self.credentials = provenance, credentials
        self.num_frames = 0
        self._first_audio = audio
        self._audio_format: tuple[int, int] | None = None  # channels, rate
        self._crf, self._preset = crf, preset
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> VideoWriter:
        """Start ffmpeg."""
        with ExitStack() as stack:  # left in the reverse order: finish, stop, close, put in place or remove
            self._folder = stack.enter_context(staging(self.path))
            # Whatever the file is called, this is another one; VP9 needs .mp4.
            self._frames = self._folder / ("frames.mp4" if self._kind == ".webm" else "frames.mov")
            self._messages = stack.enter_context(open(self._folder / "messages", "w+b"))
            self._audio_file = stack.enter_context(open(self._folder / "audio.f32", "w+b"))
            self._process = self._start_encoder()
            stack.callback(self._stop_encoder)
            stack.push(lambda kind, error, trace: self._finish() if kind is None else None)
            if self._first_audio is not None:
                self.write_audio(*self._first_audio)
                self._first_audio = None
            self._stack = stack.pop_all()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, uint8 RGB of shape `(height, width, 3)`."""
        width, height = self.size
        if self._process is None:
            raise ValueError("`VideoWriter` must be opened by `with` before `write`.")
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.shape != (height, width, 3):
            got = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise ValueError(f"`frame` must be a uint8 array of shape {(height, width, 3)}, got {got}.")
        if self.provenance is not False:
            frame = embed_mark(frame)
        if width % 2 or height % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        try:
            self._process.stdin.write(np.ascontiguousarray(frame).data)
        except OSError as error:  # the pipe broke: ffmpeg has ended, and has said why
            self._process.wait()
            raise FfmpegError(f"ffmpeg stopped at frame {self.num_frames}: {self._stderr()}") from error
        self.num_frames += 1

    def write_audio(self, audio: Any, sampling_rate: int) -> None:
        """Append audio; samples as in `load_audio`, rate and number of channels the same at each call."""
        samples = as_channels(audio)
        if not np.isfinite(samples).all():
            raise ValueError("`audio` must be finite, got NaN or infinity.")
        audio_format = (samples.shape[0], int(sampling_rate))
        if self._audio_format not in (None, audio_format):
            raise ValueError(f"`audio` must keep its channels and rate {self._audio_format}, got {audio_format}.")
        self._audio_format = audio_format
        self._audio_file.write(np.ascontiguousarray(samples.T, dtype="<f4").data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file, or remove every trace of it after an exception."""
        self._stack.__exit__(kind, error, trace)

    def _start_encoder(self) -> subprocess.Popen:
        width, height = (side + side % 2 for side in self.size)
        command = [ffmpeg_path(), "-hide_banner", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-video_size", f"{width}x{height}", "-framerate", str(self.fps), "-i", "pipe:0"]
        # Tagged BT.709: players guess the matrix of untagged video from its size, and colours then shift.
        scale = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int"
        command += ["-vf", f"{scale},format=yuv420p"]
        command += BT709
        if self._kind == ".webm":
            command += ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "6", "-row-mt", "1"]
            command += ["-b:v", "0", "-crf", str(self._crf + 12)]
        else:
            crf = 0 if self._kind == ".gif" else self._crf  # its colours are chosen when all frames are known
            command += ["-c:v", "libx264", "-preset", self._preset, "-crf", str(crf)]
        command += ["-video_track_timescale", str(self._timescale()), str(self._frames)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._messages)

    def _timescale(self) -> int:
        """Ticks a second: a multiple of the rate's numerator, so that each frame lasts a whole number of them."""
        return self.fps.numerator * max(1, 10_000 // self.fps.numerator)

    def _finish(self) -> None:
        """End the encoder, then join video and audio without encoding the video again."""
        if self.num_frames == 0:
            raise ValueError(f"`frames` must hold at least one frame, got none for {str(self.path)!r}.")
        try:
            self._process.stdin.close()
        except OSError:
            pass  # the exit status below tells
        if self._process.wait() != 0:
            raise FfmpegError(f"ffmpeg could not encode {str(self.path)!r}: {self._stderr()}")
        command = [ffmpeg_path(), "-nostdin", "-hide_banner", "-v", "error", "-i", str(self._frames)]
        if self._audio_format is not None and self._kind != ".gif":
            channels, rate = self._audio_format
            # Growing a file by truncate fills it with zero bytes, which are silence.
            self._audio_file.truncate(round(self.num_frames * rate / self.fps) * channels * 4)
            self._audio_file.flush()
            command += ["-f", "f32le", "-ar", str(rate), "-ac", str(channels), "-i", str(self._folder / "audio.f32")]
            codec = "libopus" if self._kind == ".webm" else "aac"
            command += ["-map", "1:a", "-c:a", codec, "-b:a", f"{96 * min(channels, 2)}k"]
            # An AAC frame is 1024 samples: below 48 kHz that may be longer than a video frame.
            command += ["-ar", "48000"] if rate < 44100 else []
        if self._kind == ".gif":
            command += [
                "-vf",
                "split[a][b];[a]palettegen=stats_mode=diff[p];[b][p]paletteuse=dither=bayer",
                "-loop",
                "0",
            ]
        else:
            command += ["-map", "0:v", "-c:v", "copy", "-video_track_timescale", str(self._timescale())]
        extra = self.provenance if isinstance(self.provenance, Mapping) else {}
        if self.provenance is not False and self._kind != ".gif":
            for key, value in provenance_tags(**extra).items():
                command += ["-metadata", f"{key}={value}"]
        command += ["-movflags", "+faststart"] if self._kind == ".mp4" else []
        command += ["-progress", "pipe:1", str(self._folder / self.path.name)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._messages)
        written = [line.split(b"=")[1].strip() for line in done.stdout.splitlines() if line.startswith(b"frame=")]
        # ffmpeg may end with status 0 though frames were lost (a full disk): count them.
        if done.returncode != 0 or not written or int(written[-1]) != self.num_frames:
            count = written[-1].decode() if written else "no"
            raise FfmpegError(f"ffmpeg wrote {count} of {self.num_frames} frames: {self._stderr()}")
        if self.credentials is not None:
            signed = self._folder / "signed.mov"  # as for the frames: another name than the file's own
            self.credentials.sign(self._folder / self.path.name, signed, extra)
            signed.replace(self._folder / self.path.name)

    def _stop_encoder(self) -> None:
        self._process.kill()
        try:
            self._process.stdin.close()
        except OSError:
            pass
        self._process.wait()
        self._process = None

    def _stderr(self) -> str:
        self._messages.seek(0)
        return shorten_stderr(self._messages.read())

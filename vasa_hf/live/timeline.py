"""The audio of a live session: what waits to be said, and what has a place in time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vasa_hf.motion.streaming import AudioBuffer
from vasa_hf.processors.audio import StreamingResampler


class AudioTrack:
    """One rate of the audio: `waiting` speech, and samples `placed` at their frames.

    Args:
        rate (`int`): Sampling rate in Hz.
        samples_per_frame (`int`): Samples of a frame.
    """

    def __init__(self, rate: int, samples_per_frame: int):
        self.rate, self.unit = rate, samples_per_frame
        self.placed, self.waiting = AudioBuffer(), AudioBuffer()
        self._resampler: StreamingResampler | None = None

    def push(self, samples: np.ndarray, rate: int) -> None:
        """Add speech `(n,)` of any rate."""
        if self._resampler is None:
            self._resampler = StreamingResampler(rate, self.rate)
        self._wait(self._resampler.push(samples))

    def end(self) -> None:
        """End an utterance: the last samples of the resampler wait, too."""
        if self._resampler is not None:
            self._wait(self._resampler.flush())
        self._resampler = None

    def clear(self) -> None:
        """Drop the speech that waits."""
        self.waiting, self._resampler = AudioBuffer(), None

    def frames_waiting(self, is_open: bool) -> int:
        """Frames of speech that can be placed; the last one may be incomplete once an utterance has ended."""
        num_samples = self.waiting.stop - self.waiting.start
        return num_samples // self.unit if is_open else -(-num_samples // self.unit)

    def place(self, is_speech: bool) -> None:
        """Place the next frame: of speech, or of silence."""
        if not is_speech:
            self.placed.append(torch.zeros(1, self.unit))
            return
        start = self.waiting.start
        stop = min(start + self.unit, self.waiting.stop)
        samples = self.waiting.cut(start, stop)
        self.waiting.forget(stop)
        self.placed.append(torch.nn.functional.pad(samples, (0, self.unit - samples.shape[1])))

    def _wait(self, samples: np.ndarray) -> None:
        self.waiting.append(torch.from_numpy(samples.clip(-1.0, 1.0))[None])


class Timeline:
    """The audio of a session at two rates: the encoder's, and that of the listener. Frames count from its beginning.

    Args:
        encoder_rate (`int`): Rate of the motion's audio encoder in Hz.
        sampling_rate (`int`): Rate of the audio that goes with the frames.
        fps (`int`): Frames per second; both rates are multiples of it.
    """

    def __init__(self, encoder_rate: int, sampling_rate: int, fps: int):
        self.fps = fps
        self.encoder, self.output = (AudioTrack(rate, rate // fps) for rate in (encoder_rate, sampling_rate))
        self._tracks = (self.encoder, self.output)
        self.is_open, self._rate = False, 0  # an utterance has begun and not ended; its rate
        self.placed = 0  # frames
        self._speech: set[int] = set()  # frames with speech, of those that are kept

    @property
    def waiting_seconds(self) -> float:
        """Seconds of speech that wait."""
        return (self.encoder.waiting.stop - self.encoder.waiting.start) / self.encoder.rate

    def push(self, samples: np.ndarray, rate: int) -> None:
        """Add speech `(n,)`; begins an utterance.

        Raises:
            ValueError: If an utterance changes its rate.
        """
        if self.is_open and rate != self._rate:
            raise ValueError(f"`sampling_rate` must be {self._rate} until the utterance ends, got {rate}.")
        self.is_open, self._rate = True, rate
        for track in self._tracks:
            track.push(samples, rate)

    def end(self) -> None:
        """End the utterance."""
        self.is_open = False
        for track in self._tracks:
            track.end()

    def clear(self) -> None:
        """Drop the speech that waits, and end the utterance."""
        self.is_open = False
        for track in self._tracks:
            track.clear()

    def frames_waiting(self) -> int:
        """Frames of speech that can be placed now."""
        return min(track.frames_waiting(self.is_open) for track in self._tracks)

    def place(self, is_speech: bool) -> None:
        """Place the next frame."""
        if is_speech:
            self._speech.add(self.placed)
        for track in self._tracks:
            track.place(is_speech)
        self.placed += 1

    def is_speech(self, frame: int) -> bool:
        """Whether a placed frame has speech."""
        return frame in self._speech

    @property
    def speech_stop(self) -> int:
        """Frame after the last one with speech, of those that are kept."""
        return max(self._speech, default=-1) + 1

    def truncate(self, frame: int) -> None:
        """Take back what is placed at `frame` and later; speech of it is lost."""
        for track in self._tracks:
            track.placed.truncate(frame * track.unit)
        self.placed = min(self.placed, frame)
        self._speech = {one for one in self._speech if one < frame}

    def fade_out(self, frame: int) -> None:
        """Let the listener's audio end within a frame from `frame` on; what is placed later is silent."""
        start = frame * self.output.unit - self.output.placed.start
        tail = self.output.placed.samples[:, start:]
        ramp = torch.linspace(1, 0, self.output.unit)[: tail.shape[1]]
        faded = torch.nn.functional.pad(tail[:, : len(ramp)] * ramp, (0, tail.shape[1] - len(ramp)))
        self.output.placed.samples = torch.cat([self.output.placed.samples[:, :start], faded], dim=1)

    def forget(self, frame: int) -> None:
        """Drop what was placed before `frame`."""
        for track in self._tracks:
            track.placed.forget(frame * track.unit)
        self._speech = {one for one in self._speech if one >= frame}

    def encoder_audio(self, start: int, stop: int) -> Tensor:
        """Samples `(1, n)` of frames for the encoder; zeros before the beginning."""
        return self.encoder.placed.cut(start * self.encoder.unit, stop * self.encoder.unit)

    def output_audio(self, start: int, stop: int) -> np.ndarray:
        """Samples `(n,)` of frames for the listener."""
        return self.output.placed.cut(start * self.output.unit, stop * self.output.unit)[0].numpy()


def check_samples(name: str, samples: Any) -> np.ndarray:
    """Samples `(n,)` or `(channels, n)` as mono float32 `(n,)`.

    Raises:
        ValueError: If they are no numbers, not finite, or of another shape.
    """
    array = np.asarray(samples.detach().cpu() if isinstance(samples, Tensor) else samples)
    if array.dtype == np.int16:
        array = array.astype(np.float32) / 32768
    if array.dtype.kind not in "fiu" or array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[0] > 8):
        raise ValueError(f"`{name}` must be samples (n,) or (channels, n), int16 or in [-1, 1], got {array.shape}.")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"`{name}` must be finite, got NaN or infinity.")
    return array if array.ndim == 1 else array.mean(0)

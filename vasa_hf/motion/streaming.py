"""Chunked audio input and motion output, with the same numbers as for whole files."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vasa_hf.motion.windows import MotionWindows, OverlappedWindows


class AudioBuffer:
    """Samples of which only the part still needed is kept. Positions count from the beginning of the audio.

    Args:
        batch (`int`, defaults to 1): Number of audios, which arrive together.
    """

    def __init__(self, batch: int = 1):
        self.start = 0
        self.samples = torch.zeros(batch, 0)

    @property
    def stop(self) -> int:
        """Samples that have arrived."""
        return self.start + self.samples.shape[1]

    def append(self, samples: Tensor) -> None:
        """Add samples `(batch, n)`."""
        self.samples = torch.cat([self.samples, samples.to(self.samples)], dim=1)

    def cut(self, start: int, stop: int) -> Tensor:
        """Return samples `(batch, stop - start)`: zeros before the beginning and beyond what has arrived."""
        if self.start > max(start, 0):
            raise ValueError(f"`start` must be at least {self.start} (earlier samples are forgotten), got {start}.")
        inside = self.samples[:, max(start, 0) - self.start : max(stop - self.start, 0)]
        left = min(max(-start, 0), stop - start)
        return F.pad(inside, (left, stop - start - left - inside.shape[1]))

    def truncate(self, stop: int) -> None:
        """Drop samples from `stop` on; later ones are appended there."""
        self.samples = self.samples[:, : max(stop - self.start, 0)]

    def forget(self, before: int) -> None:
        """Drop samples that no later `cut` will ask for."""
        drop = min(max(before - self.start, 0), self.samples.shape[1])
        if drop:
            self.samples = self.samples[:, drop:].clone()
            self.start += drop


def audio_windows(
    audio: Iterable[Tensor], windows: MotionWindows | OverlappedWindows, samples_per_frame: int, before: int, after: int
) -> Iterator[tuple[slice, Tensor]]:
    """Cut the audio of each window out of chunks of any length, as soon as it has arrived.

    A short last window gets the audio of a whole one (zeros beyond the end), so that audios of unequal lengths give
    the same in a batch as alone.

    Args:
        audio (`Iterable` of `torch.Tensor` of shape `(batch, n)`): The chunks.
        windows (`MotionWindows` or `OverlappedWindows`): Plans the windows.
        samples_per_frame (`int`): Samples of one frame.
        before (`int`): Frames of audio before a window.
        after (`int`): Frames of audio after it.

    Yields:
        `tuple`: the window's frames, and samples of shape `(batch, (before + size + after) * samples_per_frame)`.
    """
    buffer = None
    end: list[Tensor | None] = [None]
    for samples in itertools.chain(audio, end):
        finished = samples is None
        if samples is not None:
            buffer = AudioBuffer(len(samples)) if buffer is None else buffer
            buffer.append(samples)
        if buffer is None:
            return
        known = -(-buffer.stop // samples_per_frame) if finished else buffer.stop // samples_per_frame - after
        for window in windows.take(known, finished):
            size = windows.window if window.start else windows.first_window
            start, stop = window.start - before, window.start + size + after
            cut = buffer.cut(start * samples_per_frame, stop * samples_per_frame)
            buffer.forget((windows.position - before) * samples_per_frame)
            yield window, cut


class MotionResampler:
    """`vasa_hf.motion.resample_motion` for a motion in chunks: linear in time, frame `i` at `i / fps` seconds.

    Args:
        from_fps (`Fraction` or `int`): Frame rate of the chunks.
        to_fps (`Fraction` or `int`): Frame rate wanted.
    """

    def __init__(self, from_fps: Fraction | int, to_fps: Fraction | int):
        self.ratio = float(Fraction(from_fps) / Fraction(to_fps))
        self.num_given = 0
        self.start = 0  # frame of `pending[:, 0]`
        self.pending: Tensor | None = None

    def push(self, motion: Tensor) -> Tensor:
        """Add frames `(batch, n, channels)`; return the resampled frames that lie between known ones, possibly none."""
        self.pending = motion if self.pending is None else torch.cat([self.pending, motion], dim=1)
        newest = self.start + self.pending.shape[1] - 1
        stop = math.floor(newest / self.ratio) + 1
        while (stop - 1) * self.ratio > newest:  # the division was rounded up
            stop -= 1
        return self._frames_until(stop)

    def flush(self, num_frames: int) -> Tensor:
        """Return the rest of `num_frames` in total; beyond the last frame the motion holds still."""
        return self._frames_until(num_frames)

    def _frames_until(self, stop: int) -> Tensor:
        if self.pending is None:
            raise ValueError("`push` must be called before `flush`.")
        newest = self.start + self.pending.shape[1] - 1
        place = (torch.arange(self.num_given, max(stop, self.num_given), dtype=torch.float64) * self.ratio).clamp(
            max=newest
        )
        left = place.floor().long()
        right = (left + 1).clamp(max=newest)
        weight = (place - left).to(self.pending)[:, None]
        left, right = ((index - self.start).to(self.pending.device) for index in (left, right))
        frames = torch.lerp(self.pending.index_select(1, left), self.pending.index_select(1, right), weight)
        self.num_given = max(stop, self.num_given)
        keep_from = min(math.floor(self.num_given * self.ratio), newest)
        self.pending = self.pending[:, keep_from - self.start :]
        self.start = keep_from
        return frames


def resample_chunks(
    motions: Iterable[Tensor], from_fps: Fraction | int, to_fps: Fraction | int, num_frames: Callable[[], int]
) -> Iterator[Tensor]:
    """Change the frame rate of a motion in chunks.

    Args:
        motions (`Iterable` of `torch.Tensor` of shape `(batch, n, channels)`): Its chunks.
        from_fps (`Fraction` or `int`): Their frame rate.
        to_fps (`Fraction` or `int`): Frame rate wanted.
        num_frames (`Callable`): Gives the total number of frames; called when the chunks have ended.

    Yields:
        `torch.Tensor` of shape `(batch, n, channels)` with at least one frame.
    """
    resampler = MotionResampler(from_fps, to_fps)
    for motion in motions:
        frames = resampler.push(motion)
        if frames.shape[1]:
            yield frames
    if resampler.pending is not None:
        frames = resampler.flush(num_frames())
        if frames.shape[1]:
            yield frames


def map_ahead(function: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Iterator[Any]:
    """`map` that works on several items at a time, each in its own thread; results come in order.

    torch's threads split each operation and then wait for the slowest of them. Items in parallel do not wait: this is
    nearly twice as fast where other programs use the cores, too.

    Args:
        function (`Callable`): Called for each item. Set modes such as `no_grad` inside: they hold for one thread.
        items (`Iterable`): Its arguments.
        workers (`int`): Threads; torch's own are divided among them. 1 is plain `map`.

    Yields:
        Its results.
    """
    if workers < 2:
        yield from map(function, items)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(threads // workers, 1),))
    pending: deque = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > workers:  # one waits, so that no thread is idle while the caller uses a result
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # for later threads; the setting of this one has not changed

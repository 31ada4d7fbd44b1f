"""Buffers that let audio arrive in pieces and motion leave in pieces, with the same numbers as for whole files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor


class AudioBuffer:
    """Samples of which only the part still needed is kept. Positions count from the beginning of the sound.

    Args:
        batch (`int`, defaults to 1): Number of sounds, which arrive together.
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

    def forget(self, before: int) -> None:
        """Drop samples that no later `cut` will ask for."""
        drop = min(max(before - self.start, 0), self.samples.shape[1])
        if drop:
            self.samples = self.samples[:, drop:].clone()
            self.start += drop


class MotionResampler:
    """`vasa_hf.motion.resample_motion` for a motion in pieces: linear in time, frame `i` at `i / fps` seconds.

    Args:
        from_fps (`Fraction` or `int`): Frame rate of the pieces.
        to_fps (`Fraction` or `int`): Frame rate wanted.
    """

    def __init__(self, from_fps: Fraction | int, to_fps: Fraction | int):
        self.ratio = float(Fraction(from_fps) / Fraction(to_fps))
        self.num_given = 0
        self.start = 0  # frame of `pending[:, 0]`
        self.pending: Tensor | None = None

    def push(self, motion: Tensor) -> Tensor:
        """Take the next frames `(batch, n, channels)` and return those that lie between known ones; possibly none."""
        self.pending = motion if self.pending is None else torch.cat([self.pending, motion], dim=1)
        newest = self.start + self.pending.shape[1] - 1
        stop = math.floor(newest / self.ratio) + 1
        while (stop - 1) * self.ratio > newest:  # the division was rounded up
            stop -= 1
        return self._frames_until(stop)

    def flush(self, num_frames: int) -> Tensor:
        """Return the rest of `num_frames` in all; beyond the last frame that came the motion holds still."""
        return self._frames_until(num_frames)

    def _frames_until(self, stop: int) -> Tensor:
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


def resampled(
    motions: Iterable[Tensor], from_fps: Fraction | int, to_fps: Fraction | int, num_frames: Callable[[], int]
) -> Iterator[Tensor]:
    """Change the frame rate of a motion in pieces.

    Args:
        motions (`Iterable` of `torch.Tensor` of shape `(batch, n, channels)`): Its pieces.
        from_fps (`Fraction` or `int`): Their frame rate.
        to_fps (`Fraction` or `int`): Frame rate wanted.
        num_frames (`Callable`): Gives the total number of frames; called when the pieces have ended.

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

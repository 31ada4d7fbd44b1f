"""Keyframes: how gaze, head distance, emotion, edits of the expression and cameras change over time.

A user gives one value for the whole video, or keyframes `[(seconds, value), ...]`; before the first and after the last
the value holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from vasa_hf.checks import is_finite_number, shorten


@dataclass(frozen=True)
class Keyframes:
    """Values at increasing times.

    Args:
        seconds (`torch.Tensor` of shape `(keys,)`): Increasing times of the keyframes, float64.
        values (`torch.Tensor` of shape `(keys, channels)`): Their values, float64.
        interpolation (`str`, defaults to `"linear"`):
            Between two keyframes: `"linear"`; `"hold"` keeps the first one's value; `"smooth"` is cubic and stays in
            the range of the two.
    """

    seconds: Tensor
    values: Tensor
    interpolation: str = "linear"

    @property
    def duration(self) -> float:
        """Time of the last keyframe in seconds."""
        return float(self.seconds[-1])

    def at(self, seconds: Tensor) -> Tensor:
        """Values `(times, channels)` at times `(times,)`."""
        if len(self.seconds) == 1:
            return self.values.expand(len(seconds), -1)
        seconds = seconds.to(self.seconds).clamp(self.seconds[0], self.seconds[-1])
        right = torch.searchsorted(self.seconds, seconds, right=True)
        if self.interpolation == "hold":
            return self.values[right - 1]
        right = right.clamp(1, len(self.seconds) - 1)
        left = right - 1
        weight = ((seconds - self.seconds[left]) / (self.seconds[right] - self.seconds[left]))[:, None]
        if self.interpolation == "linear":
            return torch.lerp(self.values[left], self.values[right], weight)
        return self._smooth(left, weight)

    def _smooth(self, left: Tensor, x: Tensor) -> Tensor:
        """Cubic values at a share `x` `(times, 1)` of the way from keyframe `left` to the next.

        Slopes at the keyframes are harmonic means of those at both sides, or 0 at a turn and at both ends (Fritsch and
        Butland 1984): between two keyframes nothing leaves the range of the two.
        """
        step = self.seconds.diff()[:, None]
        slope = self.values.diff(dim=0) / step
        before, after = slope[:-1], slope[1:]
        same = before * after > 0
        inner = torch.where(same, 2 * before * after / torch.where(same, before + after, 1.0), 0.0)
        still = torch.zeros_like(slope[:1])
        tangent = torch.cat([still, inner, still])
        rise = x * x * (3 - 2 * x)  # of the cubic Hermite basis, as the next two
        leave, arrive = x * (1 - x) ** 2, x * x * (x - 1)
        bend = step[left] * (leave * tangent[left] + arrive * tangent[left + 1])
        return torch.lerp(self.values[left], self.values[left + 1], rise) + bend

    def mean(self, start_frame: int, stop_frame: int, fps: Fraction | float) -> Tensor:
        """Mean `(channels,)` over the frames of a window, float32: a window has one token for each control."""
        frames = torch.arange(start_frame, max(stop_frame, start_frame + 1), dtype=torch.float64)
        return self.at(frames / float(fps)).mean(0).float()


def parse_keyframes(
    name: str, form: str, control: Any, parse: Callable[[Any], Sequence[float] | None]
) -> Keyframes | None:
    """Check one control: a constant value, or keyframes.

    Args:
        name (`str`): Name of the argument, for errors.
        form (`str`): Form of a value, for errors.
        control (`Any`): What the user gave; `None` gives `None`.
        parse (`Callable`): Turns a value into numbers; `None` for a value of another form.

    Raises:
        ValueError: If it is neither, or the times do not increase.
    """
    if control is None:
        return None
    constant = parse(control)
    if constant is not None:
        return Keyframes(torch.zeros(1, dtype=torch.float64), torch.tensor([constant], dtype=torch.float64))
    problem = ValueError(
        f"`{name}` must be {form}, or keyframes [(seconds, value), ...] of that, got {shorten(control)}."
    )
    if isinstance(control, str | Mapping) or not isinstance(control, Sequence) or not control:
        raise problem
    seconds, values = [], []
    for key in control:
        if not isinstance(key, Sequence) or isinstance(key, str) or len(key) != 2 or not is_finite_number(key[0]):
            raise problem
        value = parse(key[1])
        if value is None:
            raise problem
        seconds.append(float(key[0]))
        values.append(value)
    check_times(name, seconds)
    return Keyframes(torch.tensor(seconds, dtype=torch.float64), torch.tensor(values, dtype=torch.float64))


def check_times(name: str, seconds: Sequence[float]) -> None:
    """Raise `ValueError` unless times are increasing from 0."""
    if seconds[0] < 0 or any(b <= a for a, b in zip(seconds[:-1], seconds[1:], strict=True)):
        raise ValueError(
            f"`{name}` must have keyframes at rising times from 0 seconds on, got {shorten(list(seconds))}."
        )

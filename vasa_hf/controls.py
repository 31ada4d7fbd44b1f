"""Controls of the talking face: main gaze, head distance and emotion, constant or keyframed (VASA-1 §3.2).

A control is one value for the whole video, or keyframes `[(seconds, value), ...]`: linear in between, still before the
first and after the last. `None` leaves the choice to the model (the condition is null).

# Not in the paper: limits of the values, keyframes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_GAZE_RAD = 0.8
HEAD_DISTANCE_RANGE = (0.5, 2.0)
# What the motion transformer has seen in training (`data/clips.py`); see `ControlTrack.learnt_distance`.
LEARNT_HEAD_DISTANCE = (0.8, 1.25)


@dataclass(frozen=True)
class ControlTrack:
    """One control over time.

    Attributes:
        seconds (`torch.Tensor` of shape `(keys,)`): Times of the keyframes, rising, float64.
        values (`torch.Tensor` of shape `(keys, channels)`): Values there, float64.
    """

    seconds: Tensor
    values: Tensor

    def at(self, seconds: Tensor) -> Tensor:
        """Values `(times, channels)` at times `(times,)`."""
        if len(self.seconds) == 1:
            return self.values.expand(len(seconds), -1)
        seconds = seconds.to(self.seconds).clamp(self.seconds[0], self.seconds[-1])
        right = torch.searchsorted(self.seconds, seconds, right=True).clamp(1, len(self.seconds) - 1)
        start, stop = self.seconds[right - 1], self.seconds[right]
        weight = ((seconds - start) / (stop - start))[:, None]
        return torch.lerp(self.values[right - 1], self.values[right], weight)

    def learnt_distance(self) -> ControlTrack:
        """The part of a head distance that the model is asked for.

        Beyond `LEARNT_HEAD_DISTANCE` the condition has no effect any more; a pipeline scales the head by the rest.
        """
        return ControlTrack(self.seconds, self.values.clamp(*LEARNT_HEAD_DISTANCE))

    def mean(self, start_frame: int, stop_frame: int, fps: Fraction | float) -> Tensor:
        """Mean `(channels,)` over the frames of a window, float32: a window has one token for each control."""
        frames = torch.arange(start_frame, max(stop_frame, start_frame + 1), dtype=torch.float64)
        return self.at(frames / float(fps)).mean(0).float()


def parse_controls(
    gaze: Any = None, head_distance: Any = None, emotion: Any = None, emotions: Sequence[str] = ()
) -> dict[str, ControlTrack | None]:
    """Check the controls of a call.

    Args:
        gaze (`tuple[float, float]` or keyframes, *optional*):
            Yaw and pitch of the main gaze in radians, (0, 0) into the camera; yaw > 0 looks to the picture's left,
            pitch > 0 down.
        head_distance (`float` or keyframes, *optional*): Distance from the camera over that of the portrait.
        emotion (`dict[str, float]` or keyframes, *optional*): Weights in [-1, 1]; names left out are 0.
        emotions (`Sequence[str]`): Names that the model knows, in its order.

    Returns:
        `dict` with the keys `gaze`, `head_distance` and `emotion`.

    Raises:
        ValueError: If a value is malformed, unknown or out of range.
    """
    return {
        "gaze": _track("gaze", "(yaw, pitch) in radians", gaze, _gaze_value),
        "head_distance": _track("head_distance", "a number", head_distance, _distance_value),
        "emotion": _track("emotion", "a dict of weights", emotion, lambda value: _emotion_value(value, emotions)),
    }


def _track(name: str, form: str, control: Any, parse: Callable[[Any], list[float] | None]) -> ControlTrack | None:
    if control is None:
        return None
    constant = parse(control)
    if constant is not None:
        return ControlTrack(torch.zeros(1, dtype=torch.float64), torch.tensor([constant], dtype=torch.float64))
    problem = ValueError(f"`{name}` must be {form}, or keyframes [(seconds, value), ...] of that, got {control!r}.")
    if isinstance(control, str | Mapping) or not isinstance(control, Sequence) or not control:
        raise problem
    seconds, values = [], []
    for key in control:
        if not isinstance(key, Sequence) or isinstance(key, str) or len(key) != 2 or not _is_number(key[0]):
            raise problem
        value = parse(key[1])
        if value is None:
            raise problem
        seconds.append(float(key[0]))
        values.append(value)
    if seconds[0] < 0 or any(b <= a for a, b in zip(seconds[:-1], seconds[1:], strict=True)):
        raise ValueError(f"`{name}` must have keyframes at rising times from 0 seconds on, got {seconds}.")
    return ControlTrack(torch.tensor(seconds, dtype=torch.float64), torch.tensor(values, dtype=torch.float64))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _gaze_value(value: Any) -> list[float] | None:
    if isinstance(value, np.ndarray | Tensor):
        value = value.tolist()
    if not isinstance(value, Sequence) or len(value) != 2 or not all(_is_number(angle) for angle in value):
        return None
    if max(abs(angle) for angle in value) > MAX_GAZE_RAD:
        raise ValueError(
            f"`gaze` must lie in [-{MAX_GAZE_RAD}, {MAX_GAZE_RAD}] radians ({math.degrees(MAX_GAZE_RAD):.0f} degrees), "
            f"got {tuple(value)}."
        )
    return [float(angle) for angle in value]


def _distance_value(value: Any) -> list[float] | None:
    if not _is_number(value):
        return None
    low, high = HEAD_DISTANCE_RANGE
    if not low <= value <= high:
        raise ValueError(
            f"`head_distance` must lie in [{low}, {high}] (1 is the portrait's own distance), got {value!r}."
        )
    return [float(value)]


def _emotion_value(value: Any, emotions: Sequence[str]) -> list[float] | None:
    if not isinstance(value, Mapping):
        return None
    for name, weight in value.items():
        if name not in emotions:
            raise ValueError(f"`emotion` knows the names {list(emotions)}, got {name!r}.")
        if not _is_number(weight) or abs(weight) > 1:
            raise ValueError(f"`emotion` must have weights in [-1, 1], got {weight!r} for {name!r}.")
    return [float(value.get(name, 0.0)) for name in emotions]

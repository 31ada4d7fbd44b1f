"""Controls of the talking face: main gaze, head distance and emotion, constant or keyframed (VASA-1 §3.2).

From what the user writes (`parse_controls`) to the conditions of a window and the place of the head in the picture.

A control is one value for the whole video, or keyframes `[(seconds, value), ...]`: linear in between, still before the
first and after the last. `None` leaves the choice to the model (the condition is null).

# Not in the paper: limits of the values, keyframes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vasa_hf.checks import is_finite_number
from vasa_hf.motion import POSE_DIM, from_relative, to_relative

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
        "gaze": parse_track("gaze", "(yaw, pitch) in radians", gaze, _gaze_value),
        "head_distance": parse_track("head_distance", "a number", head_distance, _distance_value),
        "emotion": parse_track("emotion", "a dict of weights", emotion, lambda value: _emotion_value(value, emotions)),
    }


def window_controls(
    controls: Mapping[str, ControlTrack | None], start_frame: int, stop_frames: Sequence[int], fps: Fraction | float
) -> dict[str, Tensor | None]:
    """Conditions `(batch, channels)` of one window: each control averaged over its frames.

    Args:
        controls (`Mapping`): As `parse_controls` gives it.
        start_frame (`int`): First frame of the window.
        stop_frames (`Sequence[int]`): Its end for each of the batch.
        fps (`Fraction` or `float`): Frames a second.
    """
    tracks = dict(controls)
    if tracks["head_distance"] is not None:
        tracks["head_distance"] = tracks["head_distance"].learnt_distance()
    return {
        name: None if track is None else torch.stack([track.mean(start_frame, stop, fps) for stop in stop_frames])
        for name, track in tracks.items()
    }


def place_motion(
    relative: Tensor,
    own: Tensor,
    start_frame: int,
    fps: Fraction | float,
    head_motion: float = 1.0,
    head_distance: ControlTrack | None = None,
) -> Tensor:
    """Put generated motion onto a portrait's own pose.

    # Not in the paper: `head_motion` scales the head's movement about the portrait's pose at the wanted distance.
    # Not in the paper: distances beyond `LEARNT_HEAD_DISTANCE` are reached by scaling; within, the model does it.

    Args:
        relative (`torch.Tensor` of shape `(1, frames, channels)`): Motion relative to the portrait's pose.
        own (`torch.Tensor` of shape `(1, channels)`): The portrait's own motion.
        start_frame (`int`): Place of its first frame in the video.
        fps (`Fraction` or `float`): Frames a second.
        head_motion (`float`, defaults to 1.0): 0 holds the head still, 1 leaves it as generated.
        head_distance (`ControlTrack`, *optional*): The wanted distance.

    Returns:
        `torch.Tensor` of shape `(1, frames, channels)`: absolute motion.
    """
    num_frames = relative.shape[1]
    rest = relative.new_zeros(num_frames, POSE_DIM)  # the head at the wanted distance, not moving
    beyond = rest[:, 5:6].clone()
    if head_distance is not None:
        seconds = torch.arange(start_frame, start_frame + num_frames, dtype=torch.float64) / fps
        distance, learnt = head_distance.at(seconds), head_distance.learnt_distance().at(seconds)
        rest[:, 5:6], beyond = -distance.log().to(rest), (learnt / distance).log().to(rest)
    pose, dynamics = relative[..., :POSE_DIM].clone(), relative[..., POSE_DIM:]
    pose[..., 5:6] += beyond
    if head_motion != 1.0:
        pose = rest + head_motion * (pose - rest)
    return from_relative(torch.cat([pose, dynamics], dim=-1), own.to(relative.device))


def rebase_motion(motion: Tensor, own: Tensor) -> Tensor:
    """Start an absolute motion `(1, frames, channels)` from a portrait's own pose and dynamics `(1, channels)`."""
    own, first = own.to(motion), motion[:, 0]
    relative = to_relative(motion, first)
    dynamics = relative[..., POSE_DIM:] - first[:, None, POSE_DIM:] + own[:, None, POSE_DIM:]
    return from_relative(torch.cat([relative[..., :POSE_DIM], dynamics], dim=-1), own)


def parse_track(name: str, form: str, control: Any, parse: Callable[[Any], list[float] | None]) -> ControlTrack | None:
    """Check one control: a constant value, or keyframes.

    Args:
        name (`str`): Of the argument, for errors.
        form (`str`): What a value looks like, likewise.
        control (`Any`): What the user gave; `None` gives `None`.
        parse (`Callable`): Turns a value into numbers, or gives `None` if it is none.

    Raises:
        ValueError: If it is neither, or the times do not rise.
    """
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
        if not isinstance(key, Sequence) or isinstance(key, str) or len(key) != 2 or not is_finite_number(key[0]):
            raise problem
        value = parse(key[1])
        if value is None:
            raise problem
        seconds.append(float(key[0]))
        values.append(value)
    if seconds[0] < 0 or any(b <= a for a, b in zip(seconds[:-1], seconds[1:], strict=True)):
        raise ValueError(f"`{name}` must have keyframes at rising times from 0 seconds on, got {seconds}.")
    return ControlTrack(torch.tensor(seconds, dtype=torch.float64), torch.tensor(values, dtype=torch.float64))


def _gaze_value(value: Any) -> list[float] | None:
    if isinstance(value, np.ndarray | Tensor):
        value = value.tolist()
    if not isinstance(value, Sequence) or len(value) != 2 or not all(is_finite_number(angle) for angle in value):
        return None
    if max(abs(angle) for angle in value) > MAX_GAZE_RAD:
        raise ValueError(
            f"`gaze` must lie in [-{MAX_GAZE_RAD}, {MAX_GAZE_RAD}] radians ({math.degrees(MAX_GAZE_RAD):.0f} degrees), "
            f"got {tuple(value)}."
        )
    return [float(angle) for angle in value]


def _distance_value(value: Any) -> list[float] | None:
    if not is_finite_number(value):
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
        if not is_finite_number(weight) or abs(weight) > 1:
            raise ValueError(f"`emotion` must have weights in [-1, 1], got {weight!r} for {name!r}.")
    return [float(value.get(name, 0.0)) for name in emotions]

"""Controls of the talking face: main gaze, head distance and emotion, constant or keyframed (VASA-1 §3.2).

From a call's arguments (`parse_controls`) to the conditions of a window and the place of the head in the image.

A control is one value for the whole video, or keyframes, linear in between. `None` leaves the choice to the model (the
condition is null).

# Not in the paper: limits of the values, keyframes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from vasa_hf.checks import is_finite_number
from vasa_hf.motion.keyframes import Keyframes, parse_keyframes
from vasa_hf.motion.spec import POSE_DIM, from_relative, to_relative

MAX_GAZE_RAD = 0.8
HEAD_DISTANCE_RANGE = (0.5, 2.0)
# The range of the motion transformer's training (`data/motion_sequences.py`); see `clamp_distance`.
LEARNT_HEAD_DISTANCE = (0.8, 1.25)
NEUTRAL = "neutral"
EMOTION_FORM = "a name or a dict of weights"
# The two names that systems have for the same emotion.
SAME_EMOTIONS = {
    "angry": "anger",
    "disgusted": "disgust",
    "fearful": "fear",
    "happy": "happiness",
    "sad": "sadness",
    "surprised": "surprise",
}
SAME_EMOTIONS |= {noun: adjective for adjective, noun in SAME_EMOTIONS.items()}


Angles: TypeAlias = Sequence[float] | np.ndarray | Tensor
Emotion: TypeAlias = str | Mapping[str, float]
GazeControl: TypeAlias = Angles | Sequence[tuple[float, Angles]]
DistanceControl: TypeAlias = float | Sequence[tuple[float, float]]
EmotionControl: TypeAlias = Emotion | Sequence[tuple[float, Emotion | None]]


def clamp_distance(track: Keyframes) -> Keyframes:
    """Clamp a head distance to the range that the model knows.

    Beyond `LEARNT_HEAD_DISTANCE` the condition has no more effect; a pipeline scales the head by the rest.
    """
    return Keyframes(track.seconds, track.values.clamp(*LEARNT_HEAD_DISTANCE))


def parse_controls(
    gaze: GazeControl | None = None,
    head_distance: DistanceControl | None = None,
    emotion: EmotionControl | None = None,
    emotions: Sequence[str] = (),
) -> dict[str, Keyframes | None]:
    """Check the controls of a call.

    Args:
        gaze (`tuple[float, float]` or keyframes, *optional*):
            Yaw and pitch of the main gaze in radians, (0, 0) into the camera; yaw > 0 looks to the image's left,
            pitch > 0 down.
        head_distance (`float` or keyframes, *optional*): Distance from the camera over that of the portrait.
        emotion (`str`, `dict[str, float]` or keyframes, *optional*): Weights in [-1, 1], or one name; see
            `emotion_weights`.
        emotions (`Sequence[str]`): Names that the model knows, in its order.

    Returns:
        `dict` with the keys `gaze`, `head_distance` and `emotion`.

    Raises:
        ValueError: If a value is malformed, unknown or out of range.
    """
    return {
        "gaze": parse_keyframes("gaze", "(yaw, pitch) in radians", gaze, _parse_gaze),
        "head_distance": parse_keyframes("head_distance", "a number", head_distance, _parse_distance),
        "emotion": parse_keyframes("emotion", EMOTION_FORM, emotion, lambda value: emotion_weights(value, emotions)),
    }


def window_controls(
    controls: Mapping[str, Keyframes | None], start_frame: int, stop_frames: Sequence[int], fps: Fraction | float
) -> dict[str, Tensor | None]:
    """Conditions `(batch, channels)` of one window: each control averaged over its frames.

    Args:
        controls (`Mapping`): As `parse_controls` gives it.
        start_frame (`int`): First frame of the window.
        stop_frames (`Sequence[int]`): Its end for each of the batch.
        fps (`Fraction` or `float`): Frames per second.
    """
    tracks = dict(controls)
    if tracks["head_distance"] is not None:
        tracks["head_distance"] = clamp_distance(tracks["head_distance"])
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
    head_distance: Keyframes | None = None,
) -> Tensor:
    """Put generated motion onto a portrait's own pose.

    # Not in the paper: `head_motion` scales the head's movement about the portrait's pose at the wanted distance.
    # Not in the paper: distances beyond `LEARNT_HEAD_DISTANCE` are reached by scaling; within, the model does it.

    Args:
        relative (`torch.Tensor` of shape `(1, frames, channels)`): Motion relative to the portrait's pose.
        own (`torch.Tensor` of shape `(1, channels)`): The portrait's own motion.
        start_frame (`int`): Place of its first frame in the video.
        fps (`Fraction` or `float`): Frames per second.
        head_motion (`float`, defaults to 1.0): 0 holds the head still, 1 leaves it as generated.
        head_distance (`Keyframes`, *optional*): The wanted distance.

    Returns:
        `torch.Tensor` of shape `(1, frames, channels)`: absolute motion.
    """
    num_frames = relative.shape[1]
    rest = relative.new_zeros(num_frames, POSE_DIM)  # the head at the wanted distance, not moving
    beyond = rest[:, 5:6].clone()
    if head_distance is not None:
        seconds = torch.arange(start_frame, start_frame + num_frames, dtype=torch.float64) / float(fps)
        distance, learnt = head_distance.at(seconds), clamp_distance(head_distance).at(seconds)
        rest[:, 5:6], beyond = -distance.log().to(rest), (learnt / distance).log().to(rest)
    pose, dynamics = relative[..., :POSE_DIM].clone(), relative[..., POSE_DIM:]
    pose[..., 5:6] += beyond
    if head_motion != 1.0:
        pose = rest + head_motion * (pose - rest)
    return from_relative(torch.cat([pose, dynamics], dim=-1), own.to(relative.device))


def rebase_motion(motion: Tensor, own: Tensor, neutral: int = 0) -> Tensor:
    """Start an absolute motion from a portrait's own pose and dynamics.

    Args:
        motion (`torch.Tensor` of shape `(1, frames, channels)`): Absolute motion.
        own (`torch.Tensor` of shape `(1, channels)`): The portrait's.
        neutral (`int`, defaults to 0): The frame in which head and face are as in the portrait. Translation and scale
            count from the first one in any case.

    Returns:
        `torch.Tensor` of the shape of `motion`.
    """
    own, first, rest = own.to(motion), motion[:, 0], motion[:, neutral]
    reference = torch.cat([rest[..., :3], first[..., 3:POSE_DIM], rest[..., POSE_DIM:]], dim=-1)
    relative = to_relative(motion, reference)
    dynamics = relative[..., POSE_DIM:] - reference[:, None, POSE_DIM:] + own[:, None, POSE_DIM:]
    return from_relative(torch.cat([relative[..., :POSE_DIM], dynamics], dim=-1), own)


def _parse_gaze(value: Any) -> list[float] | None:
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


def _parse_distance(value: Any) -> list[float] | None:
    if not is_finite_number(value):
        return None
    low, high = HEAD_DISTANCE_RANGE
    if not low <= value <= high:
        raise ValueError(
            f"`head_distance` must lie in [{low}, {high}] (1 is the portrait's own distance), got {value!r}."
        )
    return [float(value)]


def emotion_weights(value: Any, emotions: Sequence[str]) -> list[float] | None:
    """Weights of the emotions that a model knows, in its order; `None` for a value of another form.

    Args:
        value (`str` or `dict[str, float]`):
            A name, which has the weight 1, or weights in [-1, 1] by name; names left out are 0. The names are the
            model's own, or their forms in `SAME_EMOTIONS`; `"neutral"` alone is no emotion, where the model has none.
        emotions (`Sequence[str]`): Names that the model knows.

    Raises:
        ValueError: If a name is unknown, or a weight out of range.
    """
    if isinstance(value, str):
        value = {} if value == NEUTRAL and NEUTRAL not in emotions else {value: 1.0}
    if not isinstance(value, Mapping):
        return None
    known = {form: name for name in emotions for form in (name, SAME_EMOTIONS.get(name))}
    weights = dict.fromkeys(emotions, 0.0)
    for name, weight in value.items():
        if name not in known or name is None:
            raise ValueError(f"`emotion` knows the names {list(emotions)}, got {name!r}.")
        if not is_finite_number(weight) or abs(weight) > 1:
            raise ValueError(f"`emotion` must have weights in [-1, 1], got {weight!r} for {name!r}.")
        weights[known[name]] = float(weight)
    return list(weights.values())


def parse_emotion_label(emotion: EmotionControl | None, emotions: Sequence[str]) -> Keyframes:
    """Check the emotion of a model that knows one at a time.

    Args:
        emotion (`str`, `dict[str, float]`, `[(seconds, emotion), ...]` or `None`):
            See `emotion_weights`; the largest weight counts. `None` leaves the choice to the model. Keyframes hold.
        emotions (`Sequence[str]`): Names that the model knows.

    Returns:
        `Keyframes` of numbers in `emotions`; their count is the model's own choice.

    Raises:
        ValueError: If it is none of these.
    """
    own_choice = float(len(emotions))

    def label(value: Any) -> list[float] | None:
        if value is None:
            return [own_choice]
        weights = emotion_weights(value, emotions)
        if weights is None:
            return None
        if max(weights) > 0:
            return [float(weights.index(max(weights)))]
        return [float(emotions.index(NEUTRAL)) if NEUTRAL in emotions else own_choice]

    zero, choice = torch.zeros(1, dtype=torch.float64), torch.full((1, 1), own_choice, dtype=torch.float64)
    track = parse_keyframes("emotion", EMOTION_FORM, emotion, label) or Keyframes(zero, choice)
    seconds, values = track.seconds, track.values
    if seconds[0] > 0:
        seconds, values = torch.cat([zero, seconds]), torch.cat([choice, values])
    return Keyframes(seconds, values, "hold")

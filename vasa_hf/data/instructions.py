"""Pairs of instruction and action for GAIA's text model (appendix E.1): "please smile" and landmarks that do.

The paper cuts them out of recordings with spoken instructions. Here actions are composed, and found:

# Not in the paper: landmarks of real frames are moved by a known amount of head pose and of z_dyn
(`compose_instructions`), so that a pair is exact; and windows of real clips in which an action is measured get its
instruction (`find_instructions`). Left and right are the person's own, as in speech.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vasa_hf.data.clips import MotionPriors
from vasa_hf.data.face_pairs import motion_of
from vasa_hf.data.landmark_dynamics import PARTS, FaceLabels, LandmarkDynamics
from vasa_hf.data.landmark_sequences import LandmarkMotion
from vasa_hf.geometry.landmarks import EXPRESSIONS, frontal_points, shape_measures
from vasa_hf.motion import POSE_DIM


@dataclass(frozen=True)
class Action:
    """Something that a face can be asked to do.

    Args:
        phrases (`tuple[str, ...]`): Ways to ask for it; the first is the usual one.
        pose (`tuple[float, float, float]`): Change of yaw, pitch and roll in radians.
        dynamics (`Mapping[str, float]`): Weights of directions of z_dyn, see `action_directions`.
        swings (`float`): Swings there and back a second; 0 holds the pose.
        sign (`tuple[str, float]`): Measure that changes, see `measure_actions`, and by how much at least.
    """

    phrases: tuple[str, ...]
    pose: tuple[float, float, float] = (0.0, 0.0, 0.0)
    dynamics: Mapping[str, float] | None = None
    swings: float = 0.0
    sign: tuple[str, float] | None = None


# yaw > 0: to the image's left, the person's right; pitch > 0: down; roll > 0: clockwise, the person's left shoulder.
ACTIONS: dict[str, Action] = {
    "smile": Action(("please smile", "smile", "give me a smile", "look happy"), (0, 0, 0), {"happy": 1.2},
                    sign=("corner_lift", 0.03)),
    "turn_left": Action(("turn your head left", "please turn left", "look to your left", "turn to the left"),
                        (-0.4, 0, 0), sign=("yaw", -0.2)),
    "turn_right": Action(("turn your head right", "please turn right", "look to your right", "turn to the right"),
                         (0.4, 0, 0), sign=("yaw", 0.2)),
    "look_up": Action(("look up", "please look up", "raise your head", "lift your chin"), (0, -0.25, 0),
                      sign=("pitch", -0.15)),
    "look_down": Action(("look down", "please look down", "lower your head", "bow your head"), (0, 0.25, 0),
                        sign=("pitch", 0.15)),
    "tilt_left": Action(("tilt your head left", "lean your head to the left", "please tilt left"), (0, 0, 0.25),
                        sign=("roll", 0.15)),
    "tilt_right": Action(("tilt your head right", "lean your head to the right", "please tilt right"), (0, 0, -0.25),
                         sign=("roll", -0.15)),
    "open_mouth": Action(("open your mouth wide", "open your mouth", "please open your mouth", "say ah"), (0, 0, 0),
                         {"open": 1.0}, sign=("mouth", 0.15)),
    "surprised": Action(("look surprised", "please look surprised", "be surprised", "show surprise"), (0, -0.05, 0),
                        {"surprised": 1.2, "open": 0.3}),
    "sad": Action(("look sad", "please look sad", "be sad", "make a sad face"), (0, 0.06, 0), {"sad": 1.2}),
    "angry": Action(("look angry", "please look angry", "be angry", "make an angry face"), (0, 0.04, 0),
                    {"angry": 1.2}),
    "close_eyes": Action(("close your eyes", "please close your eyes", "shut your eyes"), (0, 0, 0), {"blink": 1.0}),
    "nod": Action(("nod your head", "please nod", "nod", "say yes with your head"), (0, 0.18, 0), swings=1.2),
    "shake": Action(("shake your head", "please shake your head", "say no with your head"), (0.25, 0, 0), swings=1.0),
}  # fmt: skip
NAMES = tuple(ACTIONS)


def action_directions(priors: MotionPriors, labels: FaceLabels, codes: Tensor) -> dict[str, Tensor]:
    """Directions of z_dyn `(28,)` by name: each emotion, `blink`, and `open` for a mouth wide open.

    Args:
        priors (`MotionPriors`): With `emotion` and `blink`.
        labels (`FaceLabels`): Frames of clips.
        codes (`torch.Tensor` of shape `(frames, 28)`): Their z_dyn.

    Raises:
        ValueError: If `priors` lack something.
    """
    for name in ("emotion", "blink"):
        if getattr(priors, name) is None:
            raise ValueError(f"`priors` must have the direction `{name}`, got none.")
    gap = labels.mouth[:, 0]
    wide = codes[gap >= gap.quantile(0.98)].median(0).values - codes[gap <= gap.quantile(0.2)].median(0).values
    wide[PARTS["lips"] :] = 0.0
    # From the widest of speech, a lip gap of about 0.2, to a mouth wide open.
    directions = {"open": 2.0 * wide, "blink": torch.from_numpy(priors.blink).float()}
    for name, direction in zip(EXPRESSIONS, torch.from_numpy(priors.emotion).float(), strict=True):
        directions[name] = direction
    return directions


def compose_instructions(
    labels: FaceLabels,
    people: list[str],
    dynamics: LandmarkDynamics,
    priors: MotionPriors,
    count: int,
    frames: int = 75,
    seed: int = 0,
) -> LandmarkMotion:
    """Make clips of landmarks that follow instructions, `action` of each clip in turn.

    Args:
        labels (`FaceLabels`): Frames to start from.
        people (`list[str]`): One person's name for each clip of `labels`.
        dynamics (`LandmarkDynamics`): Moves landmarks.
        priors (`MotionPriors`): With `emotion` and `blink`.
        count (`int`): Clips to make.
        frames (`int`, defaults to 75): Frames of each.
        seed (`int`): Seed.
    """
    rng, codes = np.random.default_rng(seed), dynamics.encode(labels, people)
    directions, motion = action_directions(priors, labels, codes), motion_of(labels, codes)
    calm = torch.nonzero((labels.mouth[:, 0] < 0.02) & (labels.eye_open.mean(1) > 0.2))[:, 0].numpy()
    calm = calm if len(calm) else np.arange(len(motion))
    points, poses = [], []
    for clip in range(count):
        action, row = ACTIONS[NAMES[clip % len(NAMES)]], int(rng.choice(calm))
        amount = _course(rng, frames, action.swings) * rng.uniform(0.8, 1.2)
        offset = torch.zeros(motion.shape[1])
        offset[:3] = torch.tensor(action.pose)
        for name, weight in (action.dynamics or {}).items():
            offset[POSE_DIM:] += weight * directions[name]
        target = motion[row] + amount[:, None] * offset
        target[:, :3] += _drift(rng, frames)
        if "blink" not in (action.dynamics or {}):
            target[:, POSE_DIM:] += _blinks(rng, frames)[:, None] * directions["blink"]
        source = labels.landmarks[row].expand(frames, -1, -1)
        points.append(dynamics.move(source, motion[row].expand(frames, -1), target))
        poses.append(target[:, :3])
    return LandmarkMotion(
        torch.cat(points).numpy(),
        torch.cat(poses).numpy(),
        np.arange(count + 1) * frames,
        action=np.arange(count) % len(NAMES),
    )


def find_instructions(
    labels: FaceLabels, frames: int = 75, step: int = 10, most: int = 60, seed: int = 0
) -> LandmarkMotion | None:
    """Windows of real clips in which an action happens, with its number; `None` if there is none.

    An action happens where its measure has changed, from the first frames to the second half of the window, by `sign`.

    Args:
        labels (`FaceLabels`): Frames of clips.
        frames (`int`, defaults to 75): Frames of a window.
        step (`int`, defaults to 10): Frames between the windows that are looked at.
        most (`int`, defaults to 60): Windows of one action that are kept, chosen at random.
        seed (`int`): Seed.
    """
    measures, found = measure_actions(labels.landmarks, labels.pose, labels.canonical[labels.ids]), []
    for first, last in zip(labels.offsets[:-1], labels.offsets[1:], strict=True):
        for start in range(int(first), int(last) - frames + 1, step):
            changes = {
                name: float(track[start + frames // 2 : start + frames].mean() - track[start : start + 5].mean())
                for name, track in measures.items()
            }
            for number, action in enumerate(ACTIONS.values()):
                name, least = action.sign or ("yaw", np.inf)
                if changes[name] * np.sign(least) >= abs(least):
                    found.append((start, number))
    if not found:
        return None
    rng, kept = np.random.default_rng(seed), []
    for number in range(len(ACTIONS)):
        of_action = [start for start, action in found if action == number]
        chosen = rng.permutation(of_action)[:most] if of_action else ()
        kept += [(int(start), number) for start in sorted(chosen)]
    found = kept
    rows = np.concatenate([np.arange(start, start + frames) for start, _ in found])
    return LandmarkMotion(
        labels.landmarks[rows].numpy(),
        labels.pose[rows, :3].numpy(),
        np.arange(len(found) + 1) * frames,
        action=np.array([number for _, number in found]),
    )


def measure_actions(landmarks: Tensor, pose: Tensor, canonical: Tensor) -> dict[str, Tensor]:
    """Tracks `(frames,)` that tell whether an action is done: yaw, pitch, roll, mouth, corner_lift.

    Args:
        landmarks (`torch.Tensor` of shape `(frames, 162, 2)`): Any unit.
        pose (`torch.Tensor` of shape `(frames, 7)`): Head pose in the same unit.
        canonical (`torch.Tensor` of shape `(162, 3)`): Mean face.
    """
    shape = shape_measures(frontal_points(landmarks, pose, canonical))
    yaw, pitch, roll = pose[:, :3].unbind(1)
    tracks = {"yaw": yaw, "pitch": pitch, "roll": roll}
    return {**tracks, "mouth": shape["jaw_drop"], "corner_lift": shape["corner_lift"]}


def _course(rng: np.random.Generator, frames: int, swings: float) -> Tensor:
    """How far an action has come at each frame: it begins within half a second, then holds or swings."""
    time = torch.arange(frames) - int(rng.integers(3, 12))
    rise = (time / rng.uniform(8, 18)).clamp(0, 1)
    rise = rise * rise * (3 - 2 * rise)
    return rise * (2 * torch.pi * swings * time.clamp_min(0) / 25).sin() if swings else rise


def _drift(rng: np.random.Generator, frames: int) -> Tensor:
    """Slow drift of the head, `(frames, 3)`, about half a degree."""
    place = torch.arange(frames)[:, None] / 25
    rate, phase = torch.from_numpy(rng.uniform(0.1, 0.5, 3)).float(), torch.from_numpy(rng.uniform(0, 6.3, 3)).float()
    drift = 0.01 * (2 * torch.pi * rate * place + phase).sin()
    return drift - drift[:1]


def _blinks(rng: np.random.Generator, frames: int) -> Tensor:
    """Shut lids, `(frames,)` in [0, 1]: about one blink of a third of a second in four seconds."""
    shut = torch.zeros(frames)
    for centre in np.flatnonzero(rng.random(frames) < 0.01):
        shut = torch.maximum(shut, (1 - (torch.arange(frames) - centre).abs() / 4).clamp_min(0))
    return shut

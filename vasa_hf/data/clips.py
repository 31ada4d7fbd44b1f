"""Training samples for the motion transformer, made from labelled or encoded clips.

`MotionData` holds the motion and audio features of many clips. `MotionSequences` turns them into samples of one window
with its context and conditions. The paper cuts windows out of clips of 2 to 10 seconds. Where clips are shorter, or
show nobody silent, sequences are composed:

# Not in the paper: clips of one person are joined by pauses in which the lips ease into a shut neutral face; some
# sequences are silence alone; mirroring; slow head drift and nods, small saccades and blinks are added where the clips
# are too short to hold them; gaze, distance and emotion are shifted by known amounts, so that their conditions mean
# something exact even if the clips hardly vary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from vasa_hf.data.face_pairs import people_of_clips
from vasa_hf.data.landmark_dynamics import PARTS, FaceLabels, LandmarkDynamics, person_of_frames
from vasa_hf.motion import POSE_DIM, MotionSpec, to_relative

# Standard deviation in frames of the Gaussian that takes label noise off each part; lips stay fast.
SMOOTHING = {"rotation": 2.0, "translation": 2.0, "scale": 2.5, "lips": 0.7, "lids": 0.8, "brows": 2.0, "gaze": 1.2}


# Clips of 3 s hold head motion, blinks, pauses and glances of their own: none are added.
LONG_FRAMES = 75


@dataclass
class MotionData:
    """Motion and audio features of clips, frames one after another.

    Attributes:
        motion (`numpy.ndarray` of shape `(frames, motion_dim)`): Absolute motion.
        audio (`numpy.ndarray` of shape `(frames, audio_dim)`): Audio features.
        offsets (`numpy.ndarray` of shape `(clips + 1,)`): Clip `i` owns frames `offsets[i]:offsets[i + 1]`.
        person (`numpy.ndarray` of shape `(clips,)`): Number of the person in each clip.
        speaks (`numpy.ndarray` of shape `(clips,)`): Whether the clip has sound that belongs to the face.
        silence (`numpy.ndarray` of shape `(recordings, frames, audio_dim)`): Features of near-silent recordings.
    """

    motion: np.ndarray
    audio: np.ndarray
    offsets: np.ndarray
    person: np.ndarray
    speaks: np.ndarray
    silence: np.ndarray

    def __post_init__(self) -> None:
        clips, frames = len(self.offsets) - 1, int(self.offsets[-1])
        for name, expected in (("motion", frames), ("audio", frames), ("person", clips), ("speaks", clips)):
            if len(getattr(self, name)) != expected:
                raise ValueError(f"`{name}` must have {expected} rows, got shape {getattr(self, name).shape}.")
        if self.silence.ndim != 3 or self.silence.shape[-1] != self.audio.shape[-1] or not len(self.silence):
            raise ValueError(
                f"`silence` must have shape (recordings, frames, {self.audio.shape[-1]}), got {self.silence.shape}."
            )

    def save(self, path: str | os.PathLike) -> None:
        """Write everything as one safetensors file."""
        save_file({item.name: torch.from_numpy(np.array(getattr(self, item.name))) for item in fields(self)}, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> MotionData:
        """Read what `save` wrote."""
        tensors = load_file(path)
        expected = {item.name for item in fields(cls)}
        if set(tensors) != expected:
            raise ValueError(f"`path`: {Path(path).name} must hold {sorted(expected)}, got {sorted(tensors)}.")
        return cls(**{name: tensor.numpy() for name, tensor in tensors.items()})

    def joined(self, others: Sequence[MotionData]) -> MotionData:
        """These clips and then those of others, whose people are other people.

        Args:
            others (`Sequence` of `MotionData`): Such as talkers of `data.synthetic.talkers`; their silence is not used.

        Raises:
            ValueError: If the widths of motion or audio features differ.
        """
        parts = [self, *others]
        for name in ("motion", "audio"):
            widths = [getattr(part, name).shape[1] for part in parts]
            if len(set(widths)) > 1:
                raise ValueError(f"`others` must have {name} of {widths[0]} channels as these clips, got {widths[1:]}.")
        starts = np.cumsum([0, *(part.offsets[-1] for part in parts)])
        people = np.cumsum([0, *(part.person.max() + 1 for part in parts)])
        return MotionData(
            motion=np.concatenate([part.motion for part in parts]),
            audio=np.concatenate([part.audio for part in parts]),
            offsets=np.concatenate(
                [[0], *(part.offsets[1:] + start for part, start in zip(parts, starts[:-1], strict=True))]
            ),
            person=np.concatenate([part.person + first for part, first in zip(parts, people[:-1], strict=True)]),
            speaks=np.concatenate([part.speaks for part in parts]),
            silence=self.silence,
        )


@dataclass
class MotionPriors:
    """Known directions in the space of z_dyn that the composition of samples uses. Each may be missing.

    Attributes:
        flip (`numpy.ndarray` of shape `(motion_dim, motion_dim)`): Mirrors relative motion: `m @ flip.T`.
        neutral (`numpy.ndarray` of shape `(dynamics_dim,)`): z_dyn of a calm face with the mouth shut and open eyes.
        blink (`numpy.ndarray` of shape `(dynamics_dim,)`): What shutting both eyes adds to z_dyn.
        gaze (`numpy.ndarray` of shape `(2, dynamics_dim)`):
            Change of z_dyn by one radian of yaw (> 0 to the picture's left, as for heads) and of pitch (> 0 down).
        emotion (`numpy.ndarray` of shape `(emotions, dynamics_dim)`): What each emotion adds to z_dyn at weight 1.
    """

    flip: np.ndarray | None = None
    neutral: np.ndarray | None = None
    blink: np.ndarray | None = None
    gaze: np.ndarray | None = None
    emotion: np.ndarray | None = None

    @classmethod
    def load(cls, path: str | os.PathLike) -> MotionPriors:
        """Read a safetensors file whose tensors bear the attributes' names."""
        tensors = load_file(path)
        if unknown := set(tensors) - {item.name for item in fields(cls)}:
            raise ValueError(f"`path`: {Path(path).name} holds unknown tensors {sorted(unknown)}.")
        return cls(**{name: tensor.float().numpy() for name, tensor in tensors.items()})

    def save(self, path: str | os.PathLike) -> None:
        """Write those that are there as a safetensors file."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        tensors = {
            name: torch.from_numpy(np.array(value)).float() for name, value in values.items() if value is not None
        }
        save_file(tensors, path)


def motion_from_labels(
    folder: str | os.PathLike, head: str | os.PathLike | None = None, dynamics: str | os.PathLike | None = None
) -> tuple[np.ndarray, MotionPriors]:
    """Motion of labelled clips by the landmark model that teaches the small face autoencoder, and priors.

    Args:
        folder (`str` or `os.PathLike`):
            Holds `clips.npz`; `identities.csv` (clip,identity) and `portraits.npz` if there are any.
        head (`str` or `os.PathLike`, *optional*): `ict_facekit.npz`; without it there are no emotion directions.
        dynamics (`str` or `os.PathLike`, *optional*): Saved `LandmarkDynamics` that defines z_dyn; fitted when absent.

    Returns:
        `tuple[numpy.ndarray, MotionPriors]`: motion of shape `(frames, 34)` and the priors.
    """
    folder = Path(folder)
    clips, portraits = FaceLabels.load(folder / "clips.npz"), folder / "portraits.npz"
    portraits = FaceLabels.load(portraits) if portraits.exists() else None
    people = people_of_clips(folder, clips.names)
    model = LandmarkDynamics.load(dynamics) if dynamics else LandmarkDynamics.fit(clips, people, portraits)
    person = person_of_frames(clips, people)
    codes = model.encode(clips, people)  # z_dyn, [F, 28]
    motion = torch.cat([clips.pose[:, :5], clips.pose[:, 6:7], codes], 1)

    # Everyone opens the eyes in a way of their own; shut and open are shares of that.
    usual = torch.stack([clips.eye_open.mean(1)[person == i].quantile(0.7) for i in range(int(person.max()) + 1)])
    openness = clips.eye_open.mean(1) / usual[person]
    start = np.cumsum([0, *PARTS.values()])
    lids, gaze = int(start[1]), int(start[3])  # parts: lips, lids, brows, gaze
    blink = codes[openness < 0.35].median(0).values - codes[openness > 0.85].median(0).values
    blink[:lids], blink[gaze:] = 0.0, 0.0
    neutral = codes[(clips.mouth[:, 0] < 0.01) & (openness > 0.85)].median(0).values
    neutral[gaze:] = 0.0
    flip = torch.block_diag(torch.diag(torch.tensor([-1.0, 1, -1, -1, 1, 1])), model.tensors["mirror"])
    directions = model.gaze_directions() * torch.tensor([[-1.0], [1.0]])  # yaw > 0 to the picture's left here
    emotion = None if head is None else model.emotion_directions(head)[1].numpy()
    return motion.numpy(), MotionPriors(flip.numpy(), neutral.numpy(), blink.numpy(), directions.numpy(), emotion)


def smooth_in_time(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing along the first axis, with the ends continued point-symmetrically (slopes are kept).

    Args:
        values (`numpy.ndarray` of shape `(frames, channels)`): One clip.
        sigma (`float`): Standard deviation in frames.
    """
    if sigma <= 0 or len(values) < 3:
        return values
    radius = min(int(3 * sigma + 0.5), len(values) - 1)
    if radius == 0:
        return values
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    head = 2 * values[:1] - values[radius:0:-1]
    tail = 2 * values[-1:] - values[-2 : -radius - 2 : -1]
    padded = np.concatenate([head, values, tail])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=0)  # [T, C, 2r + 1]
    return (windows @ (kernel / kernel.sum())).astype(values.dtype)


def rows_at(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows at fractional places, by linear interpolation; the ends are held.

    Args:
        values (`numpy.ndarray` of shape `(rows, channels)`): At least two rows.
        places (`numpy.ndarray` of shape `(count,)`): Row numbers.
    """
    places = places.clip(0, len(values) - 1)
    left = np.minimum(places.astype(int), len(values) - 2)
    weight = (places - left)[:, None].astype(np.float32)
    return values[left] * (1 - weight) + values[left + 1] * weight


def main_gaze(gaze: np.ndarray, bin_rad: float = 0.08) -> np.ndarray:
    """Main gaze of a clip by a histogram (VASA-1 §3.2: "a simple histogram-based clustering algorithm").

    # Not in the paper: the bins' size, and that the mean is taken over the fullest bin with its neighbours.

    Args:
        gaze (`numpy.ndarray` of shape `(frames, 2)`): Yaw and pitch in radians.
        bin_rad (`float`, defaults to 0.08): Side of a bin.

    Returns:
        `numpy.ndarray` of shape `(2,)`.
    """
    bins = np.floor(gaze / bin_rad).astype(int)
    bins -= bins.min(0) - 1  # room for a neighbour on each side
    counts = np.zeros(bins.max(0) + 2, dtype=int)
    np.add.at(counts, tuple(bins.T), 1)
    neighbourhood = sum(np.roll(counts, shift, (0, 1)) for shift in [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    fullest = np.array(np.unravel_index(neighbourhood.argmax(), counts.shape))
    return gaze[(np.abs(bins - fullest) <= 1).all(1)].mean(0)


class MotionSequences(Dataset):
    """Samples of the motion transformer: `dataset[i]` is a pure function of the seed and `i`, for any `i >= 0`.

    A sample is a dict of float32 tensors: `motion` (window, motion_dim) relative to the clip's mean pose, `audio`
    (window, audio_dim), `previous_motion` (context, motion_dim), `previous_audio`, `gaze` (2,), `head_distance` (1,),
    `emotion` (emotions,), and of booleans: `frame_mask` (window,), `drop_<condition>` () for the five conditions.

    Args:
        data (`MotionData`): Clips.
        spec (`MotionSpec`): Channels of the motion. Easing of the lips and smoothing go by its part names.
        priors (`MotionPriors`): Known directions; what is missing is not composed.
        window (`int`): Frames W.
        context (`int`): Frames K.
        num_emotions (`int`): Width of e.
        seed (`int`): Seed.
        natural (`float`, defaults to 0.35): Share of samples cut out of one clip, without pauses.
        silent (`float`, defaults to 0.16): Share of samples that are silence alone.
        drop_condition (`float`, defaults to 0.1): Drop probability of each condition (paper).
        drop_previous (`float`, defaults to 0.5): Drop probability of X_pre and A_pre (paper).
        drop_audio_tail (`float`, defaults to 0.15): How often the last frames are dropped.
        exact (`numpy.ndarray` of shape `(clips,)`, *optional*): True for clips without label noise, such as talkers:
            they are not smoothed, which would blur their nods.
        exact_share (`float`, *optional*): Share of the samples that start in such clips; by their length if left out.
    """

    def __init__(
        self,
        data: MotionData,
        spec: MotionSpec,
        priors: MotionPriors,
        window: int,
        context: int,
        num_emotions: int,
        seed: int = 0,
        natural: float = 0.35,
        silent: float = 0.16,
        drop_condition: float = 0.1,
        drop_previous: float = 0.5,
        drop_audio_tail: float = 0.15,
        exact: np.ndarray | None = None,
        exact_share: float | None = None,
    ):
        self.data, self.spec, self.priors = data, spec, priors
        self.window, self.context, self.num_emotions, self.seed = window, context, num_emotions, seed
        self.natural, self.silent = natural, silent
        self.drop_condition, self.drop_previous, self.drop_audio_tail = drop_condition, drop_previous, drop_audio_tail
        self.exact = np.zeros(len(data.person), bool) if exact is None else np.asarray(exact, bool)
        if len(self.exact) != len(data.person):
            raise ValueError(f"`exact` must have {len(data.person)} entries, got {len(self.exact)}.")
        self.neutral = np.zeros(spec.dim, np.float32)
        if priors.neutral is not None:
            self.neutral[POSE_DIM:] = priors.neutral
        # Lips close within 4 frames of a pause; everything else moves on calmly.
        self.ease_frames = np.full(spec.dim, 10.0, np.float32)
        if "lips" in spec.dynamics:
            self.ease_frames[spec.slices["lips"]] = 4.0
        if priors.gaze is not None:
            self.gaze_from_z = np.linalg.pinv(priors.gaze).astype(np.float32)  # [D, 2]
        self.motion, self.main_gaze = self._relative_clips()
        lengths = np.diff(data.offsets)
        self.share = lengths / lengths.sum()
        if exact_share is not None:
            if not self.exact.any() or self.exact.all() or not 0 <= exact_share <= 1:
                raise ValueError(f"`exact_share` must be in 0..1 and needs exact and other clips, got {exact_share}.")
            for chosen, share in ((self.exact, exact_share), (~self.exact, 1 - exact_share)):
                self.share[chosen] *= share / self.share[chosen].sum()
        self.long = lengths >= LONG_FRAMES
        self.clips_of = {person: np.flatnonzero(data.person == person) for person in np.unique(data.person)}
        length = window + context
        self.slow, self.fast = _smoothing_matrix(length, 14.0), _smoothing_matrix(length, 4.0)

    def __len__(self) -> int:
        return 2**40

    def _relative_clips(self) -> tuple[np.ndarray, np.ndarray]:
        """Smoothed motion relative to each clip's mean pose, with the main gaze taken out of z_dyn."""
        relative = np.empty_like(self.data.motion, dtype=np.float32)
        gaze = np.zeros((len(self.data.offsets) - 1, 2), np.float32)
        for i, (start, stop) in enumerate(zip(self.data.offsets[:-1], self.data.offsets[1:], strict=True)):
            clip = torch.from_numpy(np.asarray(self.data.motion[start:stop], dtype=np.float32))
            clip = to_relative(clip[None], clip.mean(0, keepdim=True))[0].numpy()
            for name, channels in ({} if self.exact[i] else self.spec.slices).items():
                clip[:, channels] = smooth_in_time(clip[:, channels], SMOOTHING.get(name, 0.7))
            if self.priors.gaze is not None:
                self._hold_gaze_in_blinks(clip)
                gaze[i] = main_gaze((clip[:, POSE_DIM:] - self.neutral[POSE_DIM:]) @ self.gaze_from_z)
                clip[:, POSE_DIM:] -= gaze[i] @ self.priors.gaze
            relative[start:stop] = clip
        return relative, gaze

    def _hold_gaze_in_blinks(self, clip: np.ndarray) -> None:
        """Irises cannot be seen through shut lids: replace z_dyn's gaze there by what lies around it, in place."""
        if self.priors.blink is None:
            return
        seen = self._shut_share(clip) < 0.4
        if seen.any() and not seen.all():
            frames = np.arange(len(clip))
            for channel in POSE_DIM + np.flatnonzero(np.abs(self.priors.gaze).sum(0)):
                clip[:, channel] = np.interp(frames, frames[seen], clip[seen, channel])

    def _shut_share(self, motion: np.ndarray) -> np.ndarray:
        """How far the lids are on their way from the neutral face (0) to shut (1), [T]."""
        direction = self.priors.blink
        return (motion[:, POSE_DIM:] - self.neutral[POSE_DIM:]) @ direction / (direction @ direction)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, index])
        has_previous = rng.random() >= self.drop_previous
        length = self.window + (self.context if has_previous else 0)
        kind = rng.random()
        first = rng.choice(len(self.share), p=self.share)
        own = bool(self.long[first]) and kind >= self.silent
        if own or kind < self.natural or self.priors.neutral is None:
            motion, audio, pause, speaks = self._cut(rng, first, length)
        else:
            motion, audio, pause, speaks = self._compose(
                rng, first, length, self.long[first] or kind < self.natural + self.silent
            )

        valid = len(motion)
        if rng.random() < self.drop_audio_tail:
            valid = min(valid, length - int(rng.integers(1, self.window)))
        if valid < length:  # repeats the last frame where nothing is known; masked
            motion = np.concatenate([motion, np.repeat(motion[-1:], length - len(motion), 0)])
            audio = np.concatenate([audio, np.zeros((length - len(audio), audio.shape[1]), np.float32)])
            pause = np.concatenate([pause, np.repeat(pause[-1:], length - len(pause))])
        motion = motion.copy()
        flipped = self.priors.flip is not None and rng.random() < 0.5
        if flipped:
            motion = motion @ self.priors.flip.T
        if not own:
            self._add_head_motion(rng, motion, pause)
            self._add_blinks(rng, motion, pause)
        conditions = self._add_controls(rng, motion, self.main_gaze[first], flipped)

        drop = {name: rng.random() < self.drop_condition for name in ("audio", "gaze", "head_distance", "emotion")}
        drop["audio"] = drop["audio"] or not speaks
        drop["previous"] = not has_previous
        skip = length - self.window
        previous_motion, previous_audio = motion[:skip], audio[:skip]
        if not has_previous:
            previous_motion = np.zeros((self.context, motion.shape[1]), np.float32)
            previous_audio = np.zeros((self.context, audio.shape[1]), np.float32)
        arrays = {
            "motion": motion[skip:],
            "audio": audio[skip:],
            "previous_motion": previous_motion,
            "previous_audio": previous_audio,
            **conditions,
        }
        sample = {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in arrays.items()}
        sample["frame_mask"] = torch.arange(skip, length) < max(valid, skip + 1)
        return {**sample, **{f"drop_{name}": torch.tensor(bool(value)) for name, value in drop.items()}}

    def _cut(self, rng: np.random.Generator, clip: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """A piece of one clip: motion, audio, where the face pauses, whether the sound belongs to it."""
        start, stop = self.data.offsets[clip : clip + 2]
        first = int(rng.integers(start, max(start, stop - length) + 1))
        rows = slice(first, min(first + length, stop))
        audio = np.asarray(self.data.audio[rows], np.float32)
        return self.motion[rows], audio, np.zeros(len(audio), np.float32), bool(self.data.speaks[clip])

    def _silence(self, rng: np.random.Generator, frames: int, recording: int) -> np.ndarray:
        """Audio features of silence, [frames, A]."""
        pool = self.data.silence[recording]
        place = (int(rng.integers(len(pool))) + np.arange(frames)) % len(pool)
        return np.asarray(pool[place], np.float32)

    def _compose(
        self, rng: np.random.Generator, clip: int, length: int, silent: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """Clips of one person joined by pauses; or a pause alone."""
        rest = self.neutral + np.where(self.ease_frames < 10, 0.08, 0.0).astype(np.float32) * rng.standard_normal(
            self.spec.dim
        ).astype(np.float32)
        recording = int(rng.integers(len(self.data.silence)))
        if silent:
            pause = np.repeat(rest[None], length, 0)
            return pause, self._silence(rng, length, recording), np.ones(length, np.float32), True
        candidates = self.clips_of[self.data.person[clip]]
        speaks = bool(self.data.speaks[clip])
        motions: list[np.ndarray | None] = []  # None: a pause, filled when both neighbours are known
        audios: list[np.ndarray] = []
        total, in_pause = -int(rng.integers(0, 30)), rng.random() < 0.5
        skip = -total
        while total < length:
            if in_pause:
                frames = int(rng.integers(3, 9) if rng.random() < 0.4 else rng.integers(9, 45))
                motions.append(None)
                audios.append(self._silence(rng, frames, recording))
            else:
                start, stop = self.data.offsets[clip : clip + 2]
                frames = int(min(stop - start, rng.integers(length // 3, length + 1)))
                first = int(rng.integers(start, stop - frames + 1))
                motions.append(self.motion[first : first + frames])
                audios.append(np.asarray(self.data.audio[first : first + frames], np.float32))
                clip = int(rng.choice(candidates))
            total, in_pause = total + frames, not in_pause
        pieces, pauses = [], []
        for i, (motion, audio) in enumerate(zip(motions, audios, strict=True)):
            if motion is None:
                before = motions[i - 1][-1] if i else None
                after = motions[i + 1][0] if i + 1 < len(motions) else None
                motion = ease_through(rest, before, after, len(audio), self.ease_frames)
            pieces.append(motion)
            pauses.append(np.full(len(audio), float(motions[i] is None), np.float32))
        rows = slice(skip, skip + length)
        return np.concatenate(pieces)[rows], np.concatenate(audios)[rows], np.concatenate(pauses)[rows], speaks

    def _add_head_motion(self, rng: np.random.Generator, motion: np.ndarray, pause: np.ndarray) -> None:
        """Slow drift, and nods that go with busy lips; the eyes stay on their target while the head drifts."""
        length, noise = len(motion), lambda rows, width: rng.standard_normal((rows, width)).astype(np.float32)
        slow, fast = self.slow[:length], self.fast[:length]
        amount = (0.4 + rng.random() * 0.9) * (1.5 if pause.all() else 1.0)
        drift = slow @ noise(slow.shape[1], 6) * np.array([0.035, 0.025, 0.02, 0.045, 0.035, 0.01], np.float32)
        small = fast @ noise(fast.shape[1], 3) * np.array([0.004, 0.006, 0.004], np.float32)
        if "lips" in self.spec.dynamics:
            lips = motion[:, self.spec.slices["lips"]]
            speed = np.abs(np.diff(lips, axis=0, prepend=lips[:1])).mean(1)
            busy = np.minimum(np.convolve(speed, np.hanning(11)[1:-1] / 5.0, mode="same"), 0.6)
        else:
            busy = 0.3 * (1 - pause)
        drift[:, :3] += small * (0.4 + 3.0 * busy[:, None])
        drift[:, 1] += 0.05 * (busy - busy.mean())
        drift *= amount
        motion[:, :6] += drift
        if self.priors.gaze is not None:
            jumps = rng.random(length) < 1.0 / 35.0
            targets = noise(length + 1, 2) * np.array([0.02, 0.012], np.float32)
            gaze = targets[np.cumsum(jumps)] - 0.8 * drift[:, :2]
            motion[:, POSE_DIM:] += gaze @ self.priors.gaze

    def _add_blinks(self, rng: np.random.Generator, motion: np.ndarray, pause: np.ndarray) -> None:
        """Blinks at 10 to 25 a minute where the clip has none of its own near, more in pauses."""
        if self.priors.blink is None:
            return
        own = self._shut_share(motion)
        # Few sampling steps draw too little of what is rare and has no cause, so silence needs much in excess.
        rate = rng.uniform(10, 25) / (60 * 25) * (1 + 3.5 * pause)
        shape = [0.5, 1.0, *([1.0] * int(rng.integers(1, 3))), 0.8, 0.5, 0.22, 0.06]
        closed = np.zeros(len(motion) + len(shape), np.float32)
        for start in np.flatnonzero(rng.random(len(motion)) < rate):
            near = slice(max(0, start - 10), start + 16)
            if (own[near] > 0.45).any() or closed[near].any():
                continue
            closed[start : start + len(shape)] = np.array(shape, np.float32) * rng.uniform(0.85, 1.0)
        # Lids that are half shut already have less way to go.
        amount = closed[: len(motion)] * np.clip(1.0 - np.maximum(own, 0.0), 0.0, 1.0)
        motion[:, POSE_DIM:] += amount[:, None] * self.priors.blink

    def _add_controls(
        self, rng: np.random.Generator, motion: np.ndarray, gaze: np.ndarray, flipped: bool
    ) -> dict[str, np.ndarray]:
        """Shift gaze, distance and emotion by known amounts and return the conditions g, d and e."""
        gaze = gaze * np.array([-1.0 if flipped else 1.0, 1.0], np.float32)
        if self.priors.gaze is not None:
            if rng.random() < 0.6:
                gaze = gaze + rng.uniform([-0.35, -0.2], [0.35, 0.2])
            motion[:, POSE_DIM:] += gaze @ self.priors.gaze
        log_scale = rng.uniform(-0.25, 0.25) if rng.random() < 0.6 else 0.0
        motion[:, 5] += log_scale
        emotion = np.zeros(self.num_emotions, np.float32)
        if self.priors.emotion is not None and rng.random() < 0.5:
            chosen = rng.choice(self.num_emotions, size=1 + (rng.random() < 0.3), replace=False)
            emotion[chosen] = rng.uniform(-0.5, 1.0, len(chosen))
            motion[:, POSE_DIM:] += emotion @ self.priors.emotion
        return {"gaze": gaze, "head_distance": np.array([np.exp(-log_scale)]), "emotion": emotion}


def ease_through(
    rest: np.ndarray, before: np.ndarray | None, after: np.ndarray | None, frames: int, ease_frames: np.ndarray
) -> np.ndarray:
    """Motion of a pause: from the last frame before it to rest, and on to the first frame after it.

    Args:
        rest (`numpy.ndarray` of shape `(channels,)`): What the pause settles into.
        before (`numpy.ndarray` of shape `(channels,)`, *optional*): Frame before the pause; rest if left out.
        after (`numpy.ndarray` of shape `(channels,)`, *optional*): Frame after the pause; rest if left out.
        frames (`int`): Length of the pause.
        ease_frames (`numpy.ndarray` of shape `(channels,)`): Frames each channel takes to settle.

    Returns:
        `numpy.ndarray` of shape `(frames, channels)`.
    """
    motion = np.repeat(rest[None], frames, 0)
    span = np.minimum(ease_frames, frames) + 1.0
    step = np.arange(1, frames + 1, dtype=np.float32)[:, None]
    left = np.clip(1.0 - step / span, 0.0, 1.0)
    left = left * left * (3.0 - 2.0 * left)
    if before is not None:
        motion = motion + left * (before - rest)
    if after is not None:
        motion = motion + left[::-1] * (after - rest)
    return motion.astype(np.float32)


def _smoothing_matrix(length: int, sigma: float) -> np.ndarray:
    """Matrix [length, length + 6 sigma] that turns white noise into smooth noise of unit deviation."""
    pad = int(3 * sigma)
    distance = np.arange(length)[:, None] + pad - np.arange(length + 2 * pad)[None]
    kernel = np.exp(-0.5 * (distance / sigma) ** 2)
    return (kernel / np.sqrt((kernel**2).sum(1, keepdims=True))).astype(np.float32)

"""Training samples for the motion transformer: windows of `MotionData`, each with its context and conditions.

The paper cuts windows out of clips of 2 to 10 seconds. Where clips are shorter, or have no silence, sequences are
composed:

# Not in the paper: short clips of one person are joined by pauses in which the lips ease into a shut neutral face; some
# sequences are silence alone; composed pauses and silence have slow head drift, breath, nods, small saccades and
# blinks, real motion is never added to unless `add_idle_motion` or `add_blinks` says so; mirroring; gaze, distance and
# emotion may be shifted by known amounts, so that their conditions mean something exact even if the clips hardly vary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from vasa_hf.data.clips import SMOOTHING, MotionData, MotionPriors, smooth_in_time
from vasa_hf.motion import POSE_DIM, MotionSpec, to_relative

# Clips of 3 s hold head motion, blinks, pauses and glances of their own: they are not joined.
LONG_FRAMES = 75
# A pause of a second is long enough to be a sample of silence.
PAUSE_FRAMES = 25
# What a sample is; `sample["kind"]` is the index. "pause" is real silence, "silence" composed.
KINDS = ("clip", "joined", "pause", "silence")


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
    `emotion` (emotions,), of booleans: `frame_mask` (window,), `translates` () (false where the square follows the
    head), `drop_<condition>` () for the five conditions, and `kind` () int64, an index of `KINDS`:

    - "pause" and "silence", together a share `silent`: no speech. A pause is cut out of a clip that is
      silent for a second; silence is composed: a calm face with idle motion. Each is half of the share; if there is no
      pause in the clips (or no `priors.neutral`), the other is all of it.
    - "clip", a share `natural` of what starts in short clips: cut out of one clip.
    - "joined", the rest of it: short clips of one person with composed pauses between them. Clips of 3 s have pauses
      of their own: what starts in them is never joined but "clip", and so is everything without `priors.neutral`.

    The conditions g, d and e are measured (VASA-1 §3.2) where the data has `gaze`, `head_distance` and `expression`:
    main gaze of the clip by a histogram, mean distance and mean coefficients of the window.
    # Not in the paper: coefficients are less their mean over the person's clips, so that e = 0 is that person's usual
    # face; where nothing is known of a condition, it is dropped.

    Args:
        data (`MotionData`): Clips.
        spec (`MotionSpec`): Channels of the motion. Easing of the lips and smoothing go by its part names.
        priors (`MotionPriors`): Known directions; what is missing is not composed.
        window (`int`): Frames W.
        context (`int`): Frames K.
        num_emotions (`int`): Width of e.
        seed (`int`): Seed.
        natural (`float`, defaults to 0.35): See above.
        silent (`float`, defaults to 0.16): See above.
        drop_condition (`float`, defaults to 0.1): Drop probability of each condition (paper).
        drop_previous (`float`, defaults to 0.5): Drop probability of X_pre and A_pre (paper).
        drop_audio_tail (`float`, defaults to 0.15): How often the last frames are dropped.
        exact (`numpy.ndarray` of shape `(clips,)`, *optional*): True for clips without label noise, such as talkers:
            they are not smoothed, which would blur their nods.
        exact_share (`float`, *optional*):
            Share of the clips and joined clips that start in such clips; by their length if left out.
        smoothing (`float`, defaults to 1.0): How much of `SMOOTHING` is applied to the other clips; 0 for none.
        add_idle_motion (`bool`, defaults to `False`): Whether head motion, saccades and blinks are added to the real
            motion of short clips, and not only to pauses and silence that are composed.
        add_blinks (`bool`, defaults to `False`): Whether real motion gets blinks where it has none near.
        idle_blinks (`float`, defaults to 3.5): Excess of blinks in composed pauses, as a share of the rate in speech.
        measured (`bool`, defaults to `True`): Whether conditions are read from the data.
        shifted (`bool`, defaults to `True`):
            Whether gaze, distance and emotion of motion and conditions are shifted by known amounts along `priors`.

    Raises:
        ValueError: If shares or arrays do not fit.
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
        smoothing: float = 1.0,
        add_idle_motion: bool = False,
        add_blinks: bool = False,
        idle_blinks: float = 3.5,
        measured: bool = True,
        shifted: bool = True,
    ):
        self.data, self.spec, self.priors = data, spec, priors
        self.window, self.context, self.num_emotions, self.seed = window, context, num_emotions, seed
        if min(natural, silent) < 0 or natural + silent > 1:
            raise ValueError(f"`natural` and `silent` must be shares, at most 1 together, got {natural} and {silent}.")
        self.natural, self.silent = natural, silent
        self.drop_condition, self.drop_previous, self.drop_audio_tail = drop_condition, drop_previous, drop_audio_tail
        self.smoothing, self.add_idle_motion, self.add_blinks, self.idle_blinks, self.shifted = (
            smoothing,
            add_idle_motion,
            add_blinks,
            idle_blinks,
            shifted,
        )
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
        self.measured_gaze, self.measured = self._measured_conditions(measured)
        lengths = np.diff(data.offsets)
        self.share = lengths / lengths.sum()
        if exact_share is not None:
            if not self.exact.any() or self.exact.all() or not 0 <= exact_share <= 1:
                raise ValueError(f"`exact_share` must be in 0..1 and needs exact and other clips, got {exact_share}.")
            for chosen, share in ((self.exact, exact_share), (~self.exact, 1 - exact_share)):
                self.share[chosen] *= share / self.share[chosen].sum()
        self.long = lengths >= LONG_FRAMES
        self.clips_of = {person: np.flatnonzero(data.person == person) for person in np.unique(data.person)}
        self.pauses = self._find_pauses()
        self.pause_share = (self.pauses[:, 1] - self.pauses[:, 0]) / max(
            1, (self.pauses[:, 1] - self.pauses[:, 0]).sum()
        )
        length = window + context
        self.slow, self.fast = _smoothing_matrix(length, 14.0), _smoothing_matrix(length, 4.0)

    def __len__(self) -> int:
        return 2**40

    def _relative_clips(self) -> tuple[np.ndarray, np.ndarray]:
        """Motion relative to each clip's mean pose, smoothed, with the main gaze taken out of z_dyn."""
        relative = np.empty_like(self.data.motion, dtype=np.float32)
        gaze = np.zeros((len(self.data.offsets) - 1, 2), np.float32)
        for i, (start, stop) in enumerate(zip(self.data.offsets[:-1], self.data.offsets[1:], strict=True)):
            clip = torch.from_numpy(np.asarray(self.data.motion[start:stop], dtype=np.float32))
            clip = to_relative(clip[None], clip.mean(0, keepdim=True))[0].numpy()
            for name, channels in ({} if self.exact[i] else self.spec.slices).items():
                clip[:, channels] = smooth_in_time(clip[:, channels], self.smoothing * SMOOTHING.get(name, 0.5))
            if self.priors.gaze is not None:
                self._hold_gaze_in_blinks(clip)
                gaze[i] = main_gaze((clip[:, POSE_DIM:] - self.neutral[POSE_DIM:]) @ self.gaze_from_z)
                clip[:, POSE_DIM:] -= gaze[i] @ self.priors.gaze
            relative[start:stop] = clip
        return relative, gaze

    def _measured_conditions(self, measured: bool) -> tuple[np.ndarray, np.ndarray]:
        """Main gaze of clips [clips, 2]; distance and coefficients of frames [F, 1 + emotions]. NaN: unknown."""
        data, frames = self.data, int(self.data.offsets[-1])
        gaze = np.full((len(data.person), 2), np.nan, np.float32)
        values = np.full((frames, 1 + self.num_emotions), np.nan, np.float32)
        if measured and data.gaze is not None:
            for i, (start, stop) in enumerate(zip(data.offsets[:-1], data.offsets[1:], strict=True)):
                seen = np.asarray(data.gaze[start:stop], np.float32)
                seen = seen[np.isfinite(seen).all(1)]
                if len(seen):
                    gaze[i] = main_gaze(seen)
        if measured and data.head_distance is not None:
            values[:, 0] = data.head_distance
        if measured and data.expression is not None:
            if data.expression.shape[1] != self.num_emotions:
                raise ValueError(
                    f"`data` must have {self.num_emotions} coefficients of emotion, got {data.expression.shape[1]}."
                )
            values[:, 1:] = data.expression
            person = np.repeat(data.person, np.diff(data.offsets))
            for number in np.unique(person):
                values[person == number, 1:] -= _mean_of_known(values[person == number, 1:])
        return gaze, values

    def _find_pauses(self) -> np.ndarray:
        """First frame, end and clip of each pause of a second or more, [pauses, 3]."""
        if self.data.quiet is None:
            return np.zeros((0, 3), int)
        found = []
        for clip, (start, stop) in enumerate(zip(self.data.offsets[:-1], self.data.offsets[1:], strict=True)):
            change = np.diff(np.concatenate([[0], self.data.quiet[start:stop].astype(int), [0]]))
            found += [
                (start + first, start + last, clip)
                for first, last in zip(np.flatnonzero(change > 0), np.flatnonzero(change < 0), strict=True)
                if last - first >= PAUSE_FRAMES and self.data.speaks[clip]
            ]
        return np.array(found, int).reshape(-1, 3)

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
        first = int(rng.choice(len(self.share), p=self.share))
        kind = self._draw_kind(rng, first)
        if kind == "pause":
            start, stop, first = self.pauses[rng.choice(len(self.pauses), p=self.pause_share)]
            piece = self._cut(rng, start, stop, length)
        elif kind == "clip":
            piece = self._cut(rng, *self.data.offsets[first : first + 2], length)
        elif kind == "joined":
            piece = self._join(rng, first, length)
        else:
            piece = self._compose_silence(rng, length)
        motion, audio, pause, measured = piece
        speaks = kind == "silence" or bool(self.data.speaks[first])
        gaze, measured_gaze = (
            (np.zeros(2), np.full(2, np.nan))
            if kind == "silence"
            else (
                self.main_gaze[first],
                self.measured_gaze[first],
            )
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
        everywhere = kind == "silence" or (self.add_idle_motion and kind != "pause" and not self.long[first])
        idle = np.ones_like(pause) if everywhere else _fade_in_pauses(pause)
        if idle.any():
            self._add_head_motion(rng, motion, pause, idle)
        if idle.any() or self.add_blinks:
            self._add_blinks(rng, motion, pause, (idle > 0) | self.add_blinks)
        skip = length - self.window
        mirror = np.array([-1.0 if flipped else 1.0, 1.0], np.float32)
        conditions, known = self._make_conditions(
            rng, motion, gaze * mirror, measured_gaze * mirror, _mean_of_known(measured[skip:valid])
        )

        drop = {name: rng.random() < self.drop_condition for name in ("audio", "gaze", "head_distance", "emotion")}
        drop |= {name: drop[name] or not known[name] for name in known}
        drop["audio"] = drop["audio"] or not speaks
        drop["previous"] = not has_previous
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
        sample["kind"] = torch.tensor(KINDS.index(kind))
        translates = kind == "silence" or self.data.translates is None or self.data.translates[first]
        sample["translates"] = torch.tensor(bool(translates))
        return {**sample, **{f"drop_{name}": torch.tensor(bool(value)) for name, value in drop.items()}}

    def _draw_kind(self, rng: np.random.Generator, clip: int) -> str:
        """What a sample shall be; see the class."""
        value, composes = rng.random(), self.priors.neutral is not None
        if value < self.silent and (len(self.pauses) or composes):
            return "pause" if len(self.pauses) and (not composes or value < self.silent / 2) else "silence"
        # Below `silent` again only if there is no silence at all.
        return "clip" if value < self.silent + self.natural or self.long[clip] or not composes else "joined"

    def _cut(
        self, rng: np.random.Generator, start: int, stop: int, length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A piece of the frames [start, stop): motion, audio, composed pauses (none), measured conditions."""
        first = int(rng.integers(start, max(start, stop - length) + 1))
        rows = slice(first, min(first + length, stop))
        audio = np.asarray(self.data.audio[rows], np.float32)
        return self.motion[rows], audio, np.zeros(len(audio), np.float32), self.measured[rows]

    def _silence(self, rng: np.random.Generator, frames: int, recording: int) -> np.ndarray:
        """Audio features of silence, [frames, A]."""
        pool = self.data.silence[recording]
        place = (int(rng.integers(len(pool))) + np.arange(frames)) % len(pool)
        return np.asarray(pool[place], np.float32)

    def _rest(self, rng: np.random.Generator) -> np.ndarray:
        """A calm face with the mouth shut, a little different each time, [M]."""
        lips = np.where(self.ease_frames < 10, 0.08, 0.0)
        return (self.neutral + lips * rng.standard_normal(self.spec.dim)).astype(np.float32)

    def _compose_silence(
        self, rng: np.random.Generator, length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A calm face that has yet to be given idle motion; what is returned is as for `_cut`."""
        audio = self._silence(rng, length, int(rng.integers(len(self.data.silence))))
        unknown = np.full((length, self.measured.shape[1]), np.nan, np.float32)
        return np.repeat(self._rest(rng)[None], length, 0), audio, np.ones(length, np.float32), unknown

    def _join(
        self, rng: np.random.Generator, clip: int, length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Clips of one person joined by pauses; what is returned is as for `_cut`."""
        rest, recording = self._rest(rng), int(rng.integers(len(self.data.silence)))
        candidates = self.clips_of[self.data.person[clip]]
        candidates = candidates[(self.data.speaks[candidates] == self.data.speaks[clip]) & ~self.long[candidates]]
        motions: list[np.ndarray | None] = []  # None: a pause, filled when both neighbours are known
        audios: list[np.ndarray] = []
        measured: list[np.ndarray] = []
        total, in_pause = -int(rng.integers(0, 30)), rng.random() < 0.5
        skip = -total
        while total < length:
            if in_pause:
                frames = int(rng.integers(3, 9) if rng.random() < 0.4 else rng.integers(9, 45))
                motions.append(None)
                audios.append(self._silence(rng, frames, recording))
                measured.append(np.full((frames, self.measured.shape[1]), np.nan, np.float32))
            else:
                start, stop = self.data.offsets[clip : clip + 2]
                frames = int(min(stop - start, rng.integers(length // 3, length + 1)))
                first = int(rng.integers(start, stop - frames + 1))
                motions.append(self.motion[first : first + frames])
                audios.append(np.asarray(self.data.audio[first : first + frames], np.float32))
                measured.append(self.measured[first : first + frames])
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
        return tuple(np.concatenate(parts)[rows] for parts in (pieces, audios, pauses, measured))

    def _add_head_motion(
        self, rng: np.random.Generator, motion: np.ndarray, pause: np.ndarray, idle: np.ndarray
    ) -> None:
        """Drift, breath and nods, in place; the eyes stay on their target while the head drifts.

        Args:
            rng (`numpy.random.Generator`): Source of chance.
            motion (`numpy.ndarray` of shape `(frames, channels)`): Changed.
            pause (`numpy.ndarray` of shape `(frames,)`): 1 where the face is composed.
            idle (`numpy.ndarray` of shape `(frames,)`): How much of it is added, 0 to 1.
        """
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
        # People breathe 12 to 18 times a minute, which lifts the head a little; now and then they nod.
        breath = np.sin(2 * np.pi * (rng.uniform(12, 18) / 1500 * np.arange(length) + rng.random()))
        drift[:, 1] += rng.uniform(0.002, 0.005) * breath + pause * _listening_nods(rng, length)
        drift[:, 4] += rng.uniform(0.002, 0.005) * breath
        drift *= idle[:, None]
        motion[:, :6] += drift
        if self.priors.gaze is not None:
            jumps = rng.random(length) < 1.0 / 35.0
            targets = noise(length + 1, 2) * np.array([0.02, 0.012], np.float32)
            gaze = idle[:, None] * targets[np.cumsum(jumps)] - 0.8 * drift[:, :2]
            motion[:, POSE_DIM:] += gaze @ self.priors.gaze

    def _add_blinks(self, rng: np.random.Generator, motion: np.ndarray, pause: np.ndarray, allowed: np.ndarray) -> None:
        """Blinks at 10 to 25 a minute where they are allowed and the clip has none of its own near, more in pauses."""
        if self.priors.blink is None:
            return
        own = self._shut_share(motion)
        # Few sampling steps draw too little of what is rare and has no cause, so silence needs much in excess.
        rate = rng.uniform(10, 25) / (60 * 25) * (1 + self.idle_blinks * pause)
        shape = [0.5, 1.0, *([1.0] * int(rng.integers(1, 3))), 0.8, 0.5, 0.22, 0.06]
        closed = np.zeros(len(motion) + len(shape), np.float32)
        for start in np.flatnonzero(rng.random(len(motion)) < rate):
            near = slice(max(0, start - 10), start + 16)
            whole = allowed[start : start + len(shape)].all()
            if not whole or (own[near] > 0.45).any() or closed[near].any():
                continue
            closed[start : start + len(shape)] = np.array(shape, np.float32) * rng.uniform(0.85, 1.0)
        # Lids that are half shut already have less way to go.
        amount = closed[: len(motion)] * np.clip(1.0 - np.maximum(own, 0.0), 0.0, 1.0)
        motion[:, POSE_DIM:] += amount[:, None] * self.priors.blink

    def _make_conditions(
        self,
        rng: np.random.Generator,
        motion: np.ndarray,
        gaze: np.ndarray,
        measured_gaze: np.ndarray,
        measured: np.ndarray,
    ) -> tuple[dict[str, np.ndarray], dict[str, bool]]:
        """The conditions g, d and e, and which of them are known; `motion` is shifted in place if it shall be.

        Args:
            rng (`numpy.random.Generator`): Source of chance.
            motion (`numpy.ndarray` of shape `(frames, channels)`): Motion without its main gaze, which is put back.
            gaze (`numpy.ndarray` of shape `(2,)`): Main gaze by z_dyn.
            measured_gaze (`numpy.ndarray` of shape `(2,)`): Measured main gaze, NaN if unknown.
            measured (`numpy.ndarray` of shape `(1 + emotions,)`): Mean distance and coefficients, NaN if unknown.
        """
        can_shift = {
            "gaze": self.shifted and self.priors.gaze is not None,
            "head_distance": self.shifted,
            "emotion": self.shifted and self.priors.emotion is not None,
        }
        found = {"gaze": measured_gaze, "head_distance": measured[:1], "emotion": measured[1:]}
        known = {name: can_shift[name] or bool(np.isfinite(value).all()) for name, value in found.items()}
        # What is not measured is known by z_dyn, or taken to be usual.
        usual = {"gaze": gaze, "head_distance": np.ones(1), "emotion": np.zeros(self.num_emotions)}
        found = {name: np.where(np.isfinite(value), value, usual[name]) for name, value in found.items()}
        if self.priors.gaze is not None:
            shift = rng.uniform([-0.35, -0.2], [0.35, 0.2]) if can_shift["gaze"] and rng.random() < 0.6 else np.zeros(2)
            motion[:, POSE_DIM:] += (gaze + shift) @ self.priors.gaze
            found["gaze"] = found["gaze"] + shift
        if can_shift["head_distance"] and rng.random() < 0.6:
            log_scale = rng.uniform(-0.25, 0.25)
            motion[:, 5] += log_scale
            found["head_distance"] = found["head_distance"] * np.exp(-log_scale)
        if can_shift["emotion"] and rng.random() < 0.5:
            emotion = np.zeros(self.num_emotions)
            chosen = rng.choice(self.num_emotions, size=1 + (rng.random() < 0.3), replace=False)
            emotion[chosen] = rng.uniform(-0.5, 1.0, len(chosen))
            motion[:, POSE_DIM:] += emotion @ self.priors.emotion
            found["emotion"] = found["emotion"] + emotion
        return found, known


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the rows that are not NaN, column by column; NaN where there is none."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)


def _fade_in_pauses(pause: np.ndarray, frames: int = 10) -> np.ndarray:
    """How much of a composed pause's idle motion is there, [T]: 0 on real frames, 1 at `frames` from the nearest."""
    real = np.flatnonzero(pause == 0)
    if not len(real) or len(real) == len(pause):
        return pause.copy()
    share = np.clip((np.abs(np.arange(len(pause))[:, None] - real).min(1) - 0.5) / frames, 0.0, 1.0)
    return (share * share * (3.0 - 2.0 * share)).astype(np.float32)


def _listening_nods(rng: np.random.Generator, length: int) -> np.ndarray:
    """Pitch of some 6 bouts a minute of one to three nods, 1 to 2 degrees deep, radians [length]."""
    nods = np.zeros(length + 40, np.float32)
    for start in np.flatnonzero(rng.random(length) < 6 / 1500):
        for repeat in range(int(rng.integers(1, 4))):
            nods[start + 9 * repeat : start + 9 * repeat + 13] += rng.uniform(0.017, 0.035) * np.hanning(13)
    return nods[:length]


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

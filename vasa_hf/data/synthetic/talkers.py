"""Talkers who do not exist: synthesised speech, and how a face and head move with it.

`python -m vasa_hf.data.synthetic.talkers --minutes 60 --head FILE --pipeline FOLDER --output FILE` writes motion and
audio features for `train motion_transformer --talkers` and `train capp --talkers`.

```
random voice, sentences, pauses -> Speech -> visemes -> lips
                                          -> prosody -> nods on accents, posture at phrases, brows
                     blinks, saccades, aversions, emotion, idle motion (their own chance, tied to phrases)
```
# Not in the paper: VASA-1 learns all of this from videos. Numbers come from the literature on gaze, blinks and head
motion in speech and were set so that heads turn as far per frame as those of the longer real clips do.
"""

import argparse
import dataclasses
import logging
import time as clock
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from vasa_hf.data.clips import MotionData, encode_audio, silent_recordings
from vasa_hf.data.face_pairs import people_of_clips
from vasa_hf.data.filters import speaking
from vasa_hf.data.landmark_dynamics import (
    EMOTION_SHAPES,
    PARTS,
    FaceLabels,
    LandmarkDynamics,
    person_of_frames,
)
from vasa_hf.data.synthetic.head_points import HeadPoints, HeadTrack, random_face
from vasa_hf.data.synthetic.prosody import RATE, Prosody, measure_prosody
from vasa_hf.data.synthetic.speech import Speech, Voice, random_text, random_voice
from vasa_hf.data.synthetic.visemes import FPS, articulate, mouth_shapes
from vasa_hf.head.loading import load_head
from vasa_hf.hub import resolve
from vasa_hf.motion import POSE_DIM

logger = logging.getLogger(__name__)
SAMPLES_PER_FRAME = 640
CLIP_SECONDS = (4.0, 12.0)
CLIPS_A_TALKER = 3
_EMOTIONS = tuple(EMOTION_SHAPES)
_LIPS_AND_LIDS = PARTS["lips"] + PARTS["lids"]


@dataclasses.dataclass
class Manner:
    """How a person talks. Angles in degrees, times in seconds.

    Attributes:
        voice (`Voice`): Their voice.
        mouth (`float`): How far they open the mouth.
        nod (`float`): Depth of a nod on an accent of strength 1.
        beat (`float`): Sideways beat on an accent.
        posture (`float`): Deviation of yaw between phrases.
        lead (`float`): How long before an accented vowel the nod starts.
        tilt (`float`): Roll that goes with yaw.
        blinks (`float`): Blinks a minute.
        brows (`float`): How often and far brows rise on accents.
        aversion (`float`): Share of gaze away from the camera.
        emotion (`str`): Of the six, or "neutral".
        intensity (`float`): Of the emotion.
        asymmetry (`float`): Share by which the left side does more.
        rest (`numpy.ndarray` of shape `(3,)`): yaw, pitch, roll at rest.
    """

    voice: Voice
    mouth: float
    nod: float
    beat: float
    posture: float
    lead: float
    tilt: float
    blinks: float
    brows: float
    aversion: float
    emotion: str
    intensity: float
    asymmetry: float
    rest: np.ndarray


def random_manner(rng: np.random.Generator, held_out: bool = False) -> Manner:
    """Draw a random person; `held_out` takes voices that are not used in training."""
    lively = float(np.exp(rng.normal() * 0.35))
    emotional = rng.random() < 0.4
    return Manner(
        voice=random_voice(rng, held_out, words_per_minute=(120, 215)),
        mouth=float(np.clip(rng.normal(1.0, 0.18), 0.6, 1.5)),
        nod=2.6 * lively * float(np.exp(rng.normal() * 0.2)),
        beat=1.2 * lively * float(np.exp(rng.normal() * 0.3)),
        posture=3.0 * lively,
        lead=float(rng.normal(0.07, 0.012)),
        tilt=float(rng.normal(0, 0.3)),
        blinks=float(rng.uniform(12, 26)),
        brows=float(rng.uniform(0.1, 0.8)),
        aversion=float(rng.uniform(0.03, 0.3)),
        emotion=str(rng.choice(_EMOTIONS)) if emotional else "neutral",
        intensity=float(rng.uniform(0.2, 0.7)) if emotional else 0.0,
        asymmetry=float(rng.normal(0, 0.15)),
        rest=rng.normal(size=3) * np.radians([5.0, 2.5, 2.0]) + np.radians([0.0, 3.0, 0.0]),
    )


# --- audio ----------------------------------------------------------------------------------------------------------


def random_script(rng: np.random.Generator, voice: Voice, seconds: float) -> Speech:
    """Sentences with pauses between them, `seconds` long: a listener's or speaker's turn with its silences.

    Loudness wanders by some decibels, some words are stressed, and the level and noise of the recording vary.
    """
    rate, limit = 16_000, round(seconds * FPS) * SAMPLES_PER_FRAME
    position = rng.uniform(1.5, min(4.0, seconds / 2)) if rng.random() < 0.12 else rng.uniform(0.0, 0.7)
    samples, phones = np.zeros(limit, np.float32), [("sil", 0.0, float(position))]
    while position < seconds - 0.3:
        said = voice.say(random_text(rng, voice.language, int(rng.integers(3, 12))))
        begin = round(position * rate)
        part = said.samples[: max(0, limit - begin)]
        samples[begin : begin + len(part)] += part
        phones += [(phone, start + position, end + position) for phone, start, end in said.phones]
        position += len(said.samples) / rate
        pause = float(rng.uniform(0.05, 0.5) if rng.random() < 0.6 else rng.uniform(0.5, 2.0))
        phones.append(("sil", position, position + pause))
        position += pause
    phones = [(phone, start, min(end, seconds)) for phone, start, end in phones if start < seconds]
    merged: list[tuple[str, float, float]] = []
    for phone, start, end in phones:  # silences that meet are one
        if merged and merged[-1][0] == phone == "sil":
            merged[-1] = ("sil", merged[-1][1], end)
        elif end > start:
            merged.append((phone, start, end))
    time = np.arange(limit) / rate
    knots = np.arange(0, seconds + 1, 0.3)
    samples *= 10 ** (np.interp(time, knots, rng.normal(0, 3.5, len(knots))) / 20).astype(np.float32)
    level = 10 ** (rng.uniform(-28, -15) / 20)
    samples *= level / (np.sqrt((samples**2).mean()) + 1e-6)
    samples += 10 ** (rng.uniform(-85, -50) / 20) * rng.standard_normal(limit).astype(np.float32)
    return Speech(samples.clip(-1, 1), rate, merged, voice.name)


# --- head -----------------------------------------------------------------------------------------------------------


def _follow(target: np.ndarray, seconds: float) -> np.ndarray:
    """Critically damped second-order filter, [n] or [n, c] at `RATE`; settles to 60 % in about `seconds`."""
    step = 1 - np.exp(-2.0 / (seconds * RATE))
    out = np.empty_like(target, dtype=np.float64)
    first = second = np.array(target[0], np.float64)
    for i, value in enumerate(target):
        first = first + step * (value - first)
        second = second + step * (first - second)
        out[i] = second
    return out


def _wander(rng: np.random.Generator, count: int, channels: int, seconds: float) -> np.ndarray:
    """Smooth noise of unit deviation, [count, channels] at `RATE`."""
    spacing = seconds * RATE
    knots = rng.standard_normal((int(count / spacing) + 4, channels))
    place = np.arange(count) / spacing + rng.random()
    left = place.astype(int)
    share = (place - left)[:, None]
    share = share * share * (3 - 2 * share)
    return (knots[left] * (1 - share) + knots[left + 1] * share) * 1.25


def head_rotation(rng: np.random.Generator, manner: Manner, prosody: Prosody, count: int) -> np.ndarray:
    """yaw, pitch, roll [count, 3] in radians at `RATE`: what the voice does to the head, and what the head does anyway.

    A nod starts `manner.lead` before the vowel of an accent, is fastest near the vowel's start and deepest some 0.05 s
    into it; the longer real clips show the same order (downward speed leads loudness by 2 to 4 frames).
    """
    time = np.arange(count) / RATE
    loudness = np.pad(prosody.loudness, (0, max(0, count - len(prosody.loudness))))[:count]
    voice = np.pad(prosody.pitch, (0, max(0, count - len(prosody.pitch))))[:count]
    talking = np.zeros(count)
    posture = np.zeros((count, 3))  # targets, in degrees
    # Between phrases the head settles; at each start it rises and takes another direction, then sinks to the end.
    direction = rng.choice([-1.0, 1.0])
    for start, end in prosody.phrases:
        part = (time >= start - 0.15) & (time < end + 0.1)
        talking[part] = 1.0
        direction = -direction if rng.random() < 0.7 else direction
        yaw = direction * abs(rng.normal(0, manner.posture))
        posture[time >= start - 0.15] = [yaw, 0.0, manner.tilt * yaw + rng.normal(0, 0.5 * manner.posture)]
        share = ((time - start) / max(end - start, 0.3)).clip(0, 1)
        posture[part, 1] += (manner.nod * (-0.5 + 1.1 * share))[part]
    angles = _follow(posture, 0.55)
    talking = _follow(talking, 0.2)
    angles += _wander(rng, count, 3, 1.6) * np.array([1.0, 0.7, 0.5]) * (0.5 + 0.5 * talking)[:, None]
    angles += _wander(rng, count, 3, 0.45) * np.array([0.12, 0.12, 0.08])
    # Louder is lower, a higher voice lifts the chin.
    calm = loudness - _follow(loudness, 1.0)
    angles[:, 1] += manner.nod * (0.7 * _follow(calm, 0.09) - 0.8 * _follow(voice * talking, 0.12))
    beats, sign = np.zeros(count), rng.choice([-1.0, 1.0])
    for start, strength in prosody.accents:
        angles[:, 1] += manner.nod * strength * _nod(time - start + manner.lead + rng.normal(0, 0.008))
        if strength > 0.75:
            sign = -sign if rng.random() < 0.75 else sign
            beats[time >= start - manner.lead] = sign * strength * manner.beat
    beats = _follow(beats - _follow(beats, 0.8), 0.12)
    angles[:, 0] += beats
    angles[:, 2] += 0.5 * beats * (1.0 if manner.tilt > 0 else -1.0)
    _add_listening_nods(rng, angles, talking, time)
    return np.radians(angles) + manner.rest


def _nod(time: np.ndarray, rise: float = 0.085) -> np.ndarray:
    """Down by 1 within about `rise` + 0.03 s, then back, a little beyond and to rest."""
    time = time.clip(0)
    fast = time / rise * np.exp(1 - time / rise)
    slow = time / 0.3 * np.exp(1 - time / 0.3)
    return 1.15 * fast - 0.35 * slow


def _add_listening_nods(rng: np.random.Generator, angles: np.ndarray, talking: np.ndarray, time: np.ndarray) -> None:
    """A listener nods once or twice now and then, in place."""
    quiet = talking < 0.1
    for index in np.flatnonzero(quiet & (rng.random(len(time)) < 0.25 / RATE)):
        for repeat in range(int(rng.integers(1, 4))):
            angles[:, 1] += rng.uniform(0.8, 2.0) * _nod(time - time[index] - 0.35 * repeat, 0.13)


# --- eyes and brows -------------------------------------------------------------------------------------------------


def blink_share(rng: np.random.Generator, manner: Manner, phrases: np.ndarray, num_frames: int) -> np.ndarray:
    """Share of the lid gap that is closed, [num_frames]: log-normal intervals, drawn to the ends of phrases.

    Lids close within 2 to 3 frames, stay shut for one or two and open within 4 to 6.
    """
    time = (np.arange(num_frames) + 0.5) / FPS
    closed, ends = np.zeros(num_frames), phrases[:, 1] if len(phrases) else np.zeros(0)
    mean, spread, last = 60 / manner.blinks, 0.6, -9.0
    at = rng.random() * mean
    while at < time[-1]:
        start = at
        if len(ends) and rng.random() < 0.5:
            nearest = ends[np.abs(ends - at).argmin()]
            start = nearest + rng.uniform(-0.05, 0.15) if abs(nearest - at) < 0.7 else at
        if start - last > 0.6:
            shut, closing, opening = rng.uniform(0.05, 0.08), rng.uniform(0.08, 0.12), rng.uniform(0.16, 0.24)
            down = ((time - start + closing) / closing).clip(0, 1)
            up = (1 - (time - start - shut) / opening).clip(0, 1)
            # Lids start up fast and come to rest slowly.
            closed = np.maximum(closed, np.minimum(down * down * (3 - 2 * down), up**1.6))
            last = start
        at += float(np.exp(rng.normal(np.log(mean) - spread**2 / 2, spread)))
    return closed


def gaze_targets(rng: np.random.Generator, manner: Manner, phrases: np.ndarray, num_frames: int) -> np.ndarray:
    """Where the eyes look in the world, yaw and pitch [num_frames, 2] in radians; (0, 0) is the camera.

    Fixations of 0.3 to 3 s joined by saccades of 21 ms + 2.2 ms a degree (the main sequence); most stay near the
    camera, those that do not begin more often with a phrase, when people think.
    """
    time = (np.arange(num_frames) + 0.5) / FPS
    gaze, at, here = np.zeros((num_frames, 2)), 0.0, rng.normal(size=2) * [0.02, 0.015]
    gaze[:] = here
    while at < time[-1]:
        at += float(np.clip(np.exp(rng.normal(-0.1, 0.7)), 0.3, 3.0))
        thinking = bool(len(phrases)) and np.abs(phrases[:, 0] - at).min() < 0.4
        if rng.random() < manner.aversion * (1.8 if thinking else 0.9):
            target = np.array([rng.choice([-1, 1]) * rng.uniform(0.08, 0.4), rng.normal(0.03, 0.08)])
        else:
            target = rng.normal(size=2) * [0.035, 0.022]
        seconds = 0.021 + 0.0022 * np.degrees(np.linalg.norm(target - here))
        share = ((time - at) / seconds + 0.5).clip(0, 1)[:, None]
        gaze += (share * share * (3 - 2 * share)) * (target - here)
        here = target
    return gaze


def _brow_raise(rng: np.random.Generator, manner: Manner, prosody: Prosody, count: int) -> np.ndarray:
    """Brow raise [count] at `RATE`: on some accents, held for part of a phrase."""
    time, target = np.arange(count) / RATE, np.zeros(count)
    for start, strength in prosody.accents:
        if rng.random() < 0.5 * manner.brows * strength:
            part = (time >= start - 0.1) & (time < start + rng.uniform(0.15, 0.6))
            target[part] = np.maximum(target[part], manner.brows * strength * rng.uniform(0.3, 0.8))
    return _follow(target, 0.1)


# --- all together ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Talker:
    """A recording and what the face does with it.

    Attributes:
        speech (`Speech`): Audio and phones.
        track (`HeadTrack`): What the head does, 25 frames per second.
        prosody (`Prosody`): Accents and phrases that it followed.
        emotion (`numpy.ndarray` of shape `(frames, 6)`): Intensities in the order of `EMOTION_SHAPES`.
    """

    speech: Speech
    track: HeadTrack
    prosody: Prosody
    emotion: np.ndarray


def talk(rng: np.random.Generator, manner: Manner, points: HeadPoints, seconds: float) -> Talker:
    """Make the motion and the audio of a person who talks.

    Args:
        rng (`numpy.random.Generator`): Source of chance.
        manner (`Manner`): How.
        points (`HeadPoints`): The head that will show it; its own face is what everything is added to.
        seconds (`float`): For how long.
    """
    speech = random_script(rng, manner.voice, seconds)
    return perform(rng, manner, points, speech, len(speech.samples) // SAMPLES_PER_FRAME)


def perform(rng: np.random.Generator, manner: Manner, points: HeadPoints, speech: Speech, num_frames: int) -> Talker:
    """Move a head to a given speech; arguments as for `talk`."""
    prosody = measure_prosody(speech)
    count = num_frames * RATE // FPS

    def average_frames(values: np.ndarray) -> np.ndarray:
        return values.reshape(num_frames, RATE // FPS, *values.shape[1:]).mean(1)

    intensity = average_frames((0.75 + 0.25 * _wander(rng, count, 1, 1.2)).clip(0, 1.3))[:, 0] * manner.intensity
    shapes: dict[str, np.ndarray] = {}
    for name, weight in EMOTION_SHAPES.get(manner.emotion, {}).items():
        shapes[name] = (weight * intensity).clip(0, 1)
    raised = average_frames(_brow_raise(rng, manner, prosody, count))
    for name, weight in (("browInnerUp", 0.6), ("browOuterUp", 0.35)):
        shapes[name] = shapes.get(name, 0) + weight * raised
    loud = np.pad(prosody.loudness, (0, max(0, count - len(prosody.loudness))), mode="edge")[:count]
    amplitude = manner.mouth * (0.75 + 0.35 * average_frames(_follow(loud, 0.3)))
    gaps = points.gap_of_shape()
    lips = mouth_shapes(
        articulate(speech, num_frames),
        gaps,
        points.own_gap,
        amplitude,
        sum(weight * gaps.get(name, 0.0) for name, weight in shapes.items()),
    )
    for name, weight in lips.items():
        shapes[name] = shapes.get(name, 0) + weight
    # Mouths are seldom quite straight while they talk.
    slant = average_frames(_wander(rng, count, 1, 0.5))[:, 0] * 0.06 + 0.3 * manner.asymmetry
    for name, sign in (("Left", 1.0), ("Right", -1.0)):
        sideways = (sign * slant).clip(0, 0.3) * (0.3 + 2.0 * lips["jawOpen"])
        shapes[f"mouth{name}"], shapes[f"jaw{name}"] = sideways, 0.5 * sideways * (1 - lips["mouthClose"]).clip(0, 1)
    rotation = average_frames(head_rotation(rng, manner, prosody, count))
    gaze = gaze_targets(rng, manner, prosody.phrases, num_frames)
    # The head follows where the eyes go, slowly and part of the way; the eyes make up for what the head does.
    rotation[:, :2] += 0.3 * average_frames(_follow(np.repeat(gaze, RATE // FPS, 0), 0.35))
    in_head = gaze - 0.9 * (rotation[:, :2] - points.pose[:2].numpy())
    closed = blink_share(rng, manner, prosody.phrases, num_frames)
    drift = average_frames(_wander(rng, count, 3, 2.5)) * [0.006, 0.005, 0.01]
    names, columns = [], []
    for name, weight in {**shapes, "eyeBlink": closed}.items():
        for side, factor in (("", 1.0), ("_L", 1 + manner.asymmetry), ("_R", 1 - manner.asymmetry)):
            if name + side in points.names:
                own = 0.0 if name == "eyeBlink" else float(points.own[points.names.index(name + side)])
                even = name == "eyeBlink" or name.startswith(("mouthPress", "mouthLower", "mouthUpper"))
                names.append(name + side)
                columns.append(np.clip(own + weight * (1.0 if even else factor), 0, 1))
    as_tensor = lambda values: torch.from_numpy(np.ascontiguousarray(values, np.float32))  # noqa: E731
    track = HeadTrack(
        tuple(names),
        as_tensor(np.stack(columns, 1)),
        as_tensor(rotation),
        as_tensor(in_head.clip([-0.55, -0.35], [0.55, 0.35])),
        as_tensor(drift[:, :2]),
        as_tensor(np.exp(drift[:, 2])),
    )
    emotion = np.zeros((num_frames, len(_EMOTIONS)))
    if manner.emotion in _EMOTIONS:
        emotion[:, _EMOTIONS.index(manner.emotion)] = intensity
    return Talker(speech, track, prosody, emotion)


# --- a file of them -------------------------------------------------------------------------------------------------


def talkers(
    faces: list[HeadPoints], minutes: float, seed: int = 0, held_out: bool = False
) -> Iterator[tuple[int, HeadPoints, Talker]]:
    """Talkers one clip after another: number of the person, their head, what they do.

    Args:
        faces (`list` of `HeadPoints`): Heads to draw from.
        minutes (`float`): How much of it.
        seed (`int`, defaults to 0): Clip `i` of seed `s` is always the same.
        held_out (`bool`, defaults to `False`): Take the voices that training never hears.
    """
    frames, person = 0, 0
    while frames < minutes * 60 * FPS:
        rng = np.random.default_rng([seed, person, int(held_out)])
        manner, points = random_manner(rng, held_out), faces[int(rng.integers(len(faces)))]
        for _ in range(CLIPS_A_TALKER):
            talker = talk(rng, manner, points, float(rng.uniform(*CLIP_SECONDS)))
            frames += len(talker.track)
            yield person, points, talker
        person += 1


def _measures(labels: FaceLabels, group: np.ndarray) -> np.ndarray:
    """Lip gap, mouth width and how far the lids are shut, [frames, 3], less the mean of each group of frames."""
    shut = 1 - labels.eye_open.mean(1).numpy() / 0.36
    return _center(np.concatenate([labels.mouth.numpy(), shut[:, None]], 1), group)


def _center(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    count = np.bincount(group)[:, None]
    mean = np.stack([np.bincount(group, column) for column in values.T], 1) / count
    return values - mean[group]


class RealFaces:
    """How z_dyn of lips and lids goes with lip gap, mouth width and lids in real clips.

    A mesh opens mouths and shuts lids in its own way. Talkers that are mixed with real clips take over theirs: what the
    three measures explain linearly is replaced, the rest stays.

    Args:
        folder (`Path`): Holds `clips.npz` and `identities.csv`.
        dynamics (`LandmarkDynamics`): What z_dyn means.
    """

    def __init__(self, folder: Path, dynamics: LandmarkDynamics):
        labels = FaceLabels.load(folder / "clips.npz")
        people = people_of_clips(folder, labels.names)
        group = person_of_frames(labels, people).numpy()
        codes = _center(dynamics.encode(labels, people).numpy(), group)
        self.slope = np.linalg.lstsq(_measures(labels, group), codes, rcond=None)[0][:, :_LIPS_AND_LIDS]  # [3, 20]

    def take_over(self, codes: np.ndarray, measures: np.ndarray) -> np.ndarray:
        """Codes [F, 28] of talkers whose measures [F, 3] are these, corrected."""
        own = np.linalg.lstsq(measures, codes - codes.mean(0), rcond=None)[0][:, :_LIPS_AND_LIDS]
        codes = codes.copy()
        codes[:, :_LIPS_AND_LIDS] += measures @ (self.slope - own)
        return codes.astype(np.float32)


def motion_data(
    clips: Iterator[tuple[int, HeadPoints, Talker]],
    dynamics: LandmarkDynamics,
    encode: Callable[[np.ndarray, int], np.ndarray],
    silence: np.ndarray,
    real: RealFaces | None = None,
) -> MotionData:
    """Motion and audio features of talkers as training takes them.

    Args:
        clips (iterator of `tuple`): From `talkers`.
        dynamics (`LandmarkDynamics`): What z_dyn means.
        encode (`Callable`): Samples `[n]` and number of frames -> audio features `[frames, channels]`.
        silence (`numpy.ndarray` of shape `(recordings, frames, channels)`): Features of silence.
        real (`RealFaces`, *optional*): Faces whose manner of opening mouths and shutting lids to take over.
    """
    motions, audios, quiet, measures, people, start, frames = [], [], [], [], [], clock.monotonic(), 0
    for person, points, talker in clips:
        motion, labels = points.motion(talker.track, dynamics)
        motions.append(motion.numpy())
        measures.append(_measures(labels, np.zeros(len(motion), int)))
        audios.append(encode(talker.speech.samples, len(motion)))
        quiet.append(~speaking(torch.from_numpy(talker.speech.samples), len(motion)).numpy())
        people.append(person)
        frames += len(motion)
        if len(motions) % 50 == 0:
            speed = frames / FPS / (clock.monotonic() - start)
            logger.info("%d clips, %.1f minutes, %.0f x real time", len(motions), frames / FPS / 60, speed)
    motion = np.concatenate(motions).astype(np.float32)
    if real is not None:
        motion[:, POSE_DIM:] = real.take_over(motion[:, POSE_DIM:], np.concatenate(measures))
    return MotionData(
        motion=motion,
        audio=np.concatenate(audios),
        offsets=np.cumsum([0, *map(len, motions)]),
        person=np.array(people),
        speaks=np.ones(len(people), bool),
        silence=silence,
        quiet=np.concatenate(quiet),
    )


def main() -> None:
    """Write motion and audio features of talkers for training."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--head", type=Path, help="ict_facekit.npz; the built-in head if left out")
    parser.add_argument("--pipeline", default="vasa-small", help="pipeline whose audio encoder listens")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--dynamics", type=Path, help="landmark dynamics; the pipeline's if left out")
    parser.add_argument("--data", type=Path, help="labelled real clips, whose way of opening mouths is taken over")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--faces", type=int, default=12, help="different heads")
    parser.add_argument("--held-out", action="store_true", help="voices that training never hears, to judge with")
    parser.add_argument("--window", type=int, default=50, help="frames that audio is encoded in, as in the pipeline")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.pipeline = Path(resolve(options.pipeline))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from transformers import Wav2Vec2Model

    from vasa_hf.processors.audio import VasaAudioProcessor

    dynamics = LandmarkDynamics.load(options.dynamics or options.pipeline / "landmark_dynamics.safetensors")
    processor = VasaAudioProcessor.from_pretrained(options.pipeline, subfolder="audio_processor")
    encoder = Wav2Vec2Model.from_pretrained(options.pipeline, subfolder="audio_encoder").eval()
    encode = lambda samples, frames: encode_audio(processor, encoder, samples, frames, options.window)  # noqa: E731
    rng = np.random.default_rng([options.seed, int(options.held_out), 1])
    mesh = load_head(options.head, dynamics.canonical)
    faces = [random_face(mesh, dynamics, rng) for _ in range(options.faces)]
    silence = np.stack([encode(samples, 75) for samples in silent_recordings(24, 75)])
    clips = talkers(faces, options.minutes, options.seed, options.held_out)
    real = RealFaces(options.data, dynamics) if options.data else None
    data = motion_data(clips, dynamics, encode, silence, real)
    data.save(options.output)
    logger.info("%s: %d clips, %d frames", options.output, len(data.person), len(data.motion))


if __name__ == "__main__":
    main()

"""Motion and audio features of labelled or encoded clips, and what is known of z_dyn.

`MotionData` holds many clips, `MotionPriors` directions of z_dyn that mean something; `motion_from_labels` makes motion
and priors of landmark labels. `motion_sequences.py` makes training samples of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from vasa_hf.data.face_pairs import choose_share, people_of_clips
from vasa_hf.data.landmark_dynamics import GAZE_STRENGTH, PARTS, FaceLabels, LandmarkDynamics, person_of_frames
from vasa_hf.data.shards import training_folder
from vasa_hf.metrics.motion import SAMPLES_PER_FRAME

# Standard deviation in frames of the Gaussian that takes label noise off each part, for `smoothing` 1.
# `python -m vasa_hf.training.smoothing_cost` measures what it takes away.
SMOOTHING = {"rotation": 0.7, "translation": 1.0, "scale": 1.5, "lips": 0.5, "lids": 0.5, "brows": 1.0, "gaze": 0.7}
# Arrays of `MotionData` with a row for each clip; all others but `offsets` and `silence` have one for each frame.
PER_CLIP = ("person", "speaks", "translates")
# Arrays that may be missing, and what stands for them where only some of the joined sets have them.
OPTIONAL = {"quiet": False, "translates": True, "gaze": np.nan, "head_distance": np.nan, "expression": np.nan}


@dataclass
class MotionData:
    """Motion and audio features of clips, frames one after another.

    Attributes:
        motion (`numpy.ndarray` of shape `(frames, motion_dim)`): Absolute motion.
        audio (`numpy.ndarray` of shape `(frames, audio_dim)`): Audio features.
        offsets (`numpy.ndarray` of shape `(clips + 1,)`): Clip `i` owns frames `offsets[i]:offsets[i + 1]`.
        person (`numpy.ndarray` of shape `(clips,)`): Number of the person in each clip.
        speaks (`numpy.ndarray` of shape `(clips,)`): Whether the clip has audio that belongs to the face.
        silence (`numpy.ndarray` of shape `(recordings, frames, audio_dim)`): Features of near-silent recordings.
        quiet (`numpy.ndarray` of shape `(frames,)`, *optional*): Whether there is no speech.
        translates (`numpy.ndarray` of shape `(clips,)`, *optional*):
            Whether translation is the head's own; not where the square follows the head.
        gaze (`numpy.ndarray` of shape `(frames, 2)`, *optional*):
            Yaw and pitch of the eyes in radians, as `vasa-hf prepare` measures them. NaN where unknown, as below.
        head_distance (`numpy.ndarray` of shape `(frames,)`, *optional*): Distance over that of the clip's median frame.
        expression (`numpy.ndarray` of shape `(frames, emotions)`, *optional*): Emotion coefficients.
    """

    motion: np.ndarray
    audio: np.ndarray
    offsets: np.ndarray
    person: np.ndarray
    speaks: np.ndarray
    silence: np.ndarray
    quiet: np.ndarray | None = None
    translates: np.ndarray | None = None
    gaze: np.ndarray | None = None
    head_distance: np.ndarray | None = None
    expression: np.ndarray | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value, expected = getattr(self, item.name), self.rows_of(item.name)
            if expected is not None and value is not None and len(value) != expected:
                raise ValueError(f"`{item.name}` must have {expected} rows, got shape {value.shape}.")
        if self.silence.ndim != 3 or self.silence.shape[-1] != self.audio.shape[-1] or not len(self.silence):
            raise ValueError(
                f"`silence` must have shape (recordings, frames, {self.audio.shape[-1]}), got {self.silence.shape}."
            )

    def rows_of(self, name: str) -> int | None:
        """Number of rows of an array: one for each clip or each frame; `None` for those that belong to neither."""
        if name in ("offsets", "silence"):
            return None
        return len(self.offsets) - 1 if name in PER_CLIP else int(self.offsets[-1])

    def save(self, path: str | os.PathLike) -> None:
        """Write what is there as one safetensors file."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        save_file(
            {name: torch.from_numpy(np.array(value)) for name, value in values.items() if value is not None}, path
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> MotionData:
        """Read what `save` wrote."""
        tensors = load_file(path)
        names = {item.name for item in fields(cls)}
        if not names - set(OPTIONAL) <= set(tensors) <= names:
            raise ValueError(
                f"`path`: {Path(path).name} must hold {sorted(names - set(OPTIONAL))} and may hold {sorted(OPTIONAL)}, "
                f"got {sorted(tensors)}."
            )
        return cls(**{name: tensor.numpy() for name, tensor in tensors.items()})

    def take(self, share: float) -> MotionData:
        """Keep a share of the clips, always the same ones.

        Raises:
            ValueError: If the share is not in (0, 1].
        """
        used = choose_share(len(self.person), share)
        if used.all():
            return self
        frames, values = np.repeat(used, np.diff(self.offsets)), {}
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and item.name not in ("offsets", "silence"):
                value = value[used if item.name in PER_CLIP else frames]
            values[item.name] = value
        return MotionData(**{**values, "offsets": np.cumsum([0, *np.diff(self.offsets)[used]])})

    def join(self, others: Sequence[MotionData]) -> MotionData:
        """These clips and then those of others, whose people are other people.

        Args:
            others (`Sequence` of `MotionData`): Such as talkers of `data.synthetic.talkers`; their silence is not used.

        Raises:
            ValueError: If the widths of motion or audio features differ.
        """
        parts = [self, *others]
        for name in ("motion", "audio", "gaze", "expression"):
            widths = [getattr(part, name).shape[1] for part in parts if getattr(part, name) is not None]
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
            **{name: _join_optional(parts, name, missing) for name, missing in OPTIONAL.items()},
        )


def _join_optional(parts: Sequence[MotionData], name: str, missing: bool | float) -> np.ndarray | None:
    """An optional array of all parts, filled where a part has none; `None` if no part has it."""
    known = [getattr(part, name) for part in parts if getattr(part, name) is not None]
    if not known:
        return None
    fill = lambda part: np.full((part.rows_of(name), *known[0].shape[1:]), missing, known[0].dtype)  # noqa: E731
    return np.concatenate([fill(part) if getattr(part, name) is None else getattr(part, name) for part in parts])


@dataclass
class MotionPriors:
    """Known directions in the space of z_dyn that the composition of samples uses. Each may be missing.

    Attributes:
        flip (`numpy.ndarray` of shape `(motion_dim, motion_dim)`): Mirrors relative motion: `m @ flip.T`.
        neutral (`numpy.ndarray` of shape `(dynamics_dim,)`): z_dyn of a calm face with the mouth shut and open eyes.
        blink (`numpy.ndarray` of shape `(dynamics_dim,)`): What shutting both eyes adds to z_dyn.
        gaze (`numpy.ndarray` of shape `(2, dynamics_dim)`):
            Change of z_dyn by one radian of yaw (> 0 to the image's left, as for heads) and of pitch (> 0 down).
        emotion (`numpy.ndarray` of shape `(emotions, dynamics_dim)`): What each emotion adds to z_dyn at weight 1.
    """

    flip: np.ndarray | None = None
    neutral: np.ndarray | None = None
    blink: np.ndarray | None = None
    gaze: np.ndarray | None = None
    emotion: np.ndarray | None = None

    @classmethod
    def load(cls, path: str | os.PathLike) -> MotionPriors:
        """Read a safetensors file whose tensors have the attributes' names."""
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


def data_folders(data: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """Folders that trainers read: one or several, each of clips or of shards (see `training_folder`)."""
    several = [data] if isinstance(data, (str, os.PathLike)) else data
    return [training_folder(folder) for folder in several]


def join_labels(parts: Sequence[FaceLabels]) -> FaceLabels:
    """Labels of several folders, frames one after another.

    Raises:
        ValueError: If they are about other landmarks or another canonical face.
    """
    first, starts = parts[0], np.cumsum([0, *(part.offsets[-1] for part in parts)])
    for part in parts[1:]:
        same_face = torch.allclose(part.canonical[first.ids], first.canonical[first.ids], atol=1e-4)
        if not np.array_equal(part.ids, first.ids) or not same_face:
            raise ValueError("`parts` must have the same landmarks and canonical face: label them with one tool.")
    offsets = [part.offsets[1:] + start for part, start in zip(parts, starts[:-1], strict=True)]
    return FaceLabels(
        **{
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("landmarks", "pose", "iris_offset", "eye_open", "mouth")
        },
        offsets=np.concatenate([[0], *offsets]),
        names=[name for part in parts for name in part.names],
        ids=first.ids,
        canonical=first.canonical,
    )


def motion_from_labels(
    data: str | os.PathLike | Sequence[str | os.PathLike],
    head: str | os.PathLike | None = None,
    dynamics: str | os.PathLike | None = None,
) -> tuple[np.ndarray, MotionPriors]:
    """Motion of labelled clips by the landmark model that teaches the small face autoencoder, and priors.

    Args:
        data (`str`, `os.PathLike` or a sequence of them):
            One or several folders that hold `clips.npz`; `identities.csv` and `portraits.npz` if there are any. People
            of different folders are different people.
        head (`str` or `os.PathLike`, *optional*): `ict_facekit.npz`; without it there are no emotion directions.
        dynamics (`str` or `os.PathLike`, *optional*): Saved `LandmarkDynamics` that defines z_dyn; fitted when absent.

    Returns:
        `tuple[numpy.ndarray, MotionPriors]`: motion of shape `(frames, 34)` and the priors.
    """
    folders = data_folders(data)
    parts = [FaceLabels.load(folder / "clips.npz") for folder in folders]
    clips, people = join_labels(parts), []
    for number, (folder, part) in enumerate(zip(folders, parts, strict=True)):
        people += [f"{number} {person}" for person in people_of_clips(folder, part.names)]
    portraits = next((path for path in (folder / "portraits.npz" for folder in folders) if path.exists()), None)
    portraits = FaceLabels.load(portraits) if portraits else None
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
    # Here yaw > 0 is to the image's left.
    directions = model.gaze_directions() * torch.tensor([[-1.0], [1.0]]) * torch.tensor(GAZE_STRENGTH)[:, None]
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


def silent_recordings(count: int, frames: int, seed: int = 0) -> list[np.ndarray]:
    """Recordings of nothing: digital silence, then white, reddish and humming noise at -90 to -55 dB."""
    rng = np.random.default_rng(seed)
    length = frames * SAMPLES_PER_FRAME
    recordings = [np.zeros(length, np.float32)]
    while len(recordings) < count:
        spectrum = np.fft.rfft(rng.standard_normal(length))
        spectrum *= (1.0 + np.arange(len(spectrum)) / 50.0) ** -rng.uniform(0.0, 1.2)
        noise = np.fft.irfft(spectrum, length)
        noise /= noise.std()
        if rng.random() < 0.3:
            noise = noise + np.sin(2 * np.pi * rng.choice([50, 60, 100]) * np.arange(length) / 16_000)
        recordings.append((noise * 10 ** (rng.uniform(-90, -55) / 20)).astype(np.float32))
    return recordings


@torch.no_grad()
def encode_audio(processor, encoder: torch.nn.Module, samples: np.ndarray, frames: int, window: int) -> np.ndarray:
    """Audio features of one clip, window by window as the pipeline computes them, [T, A] float16."""
    values = torch.from_numpy(samples)[None].to(encoder.device)
    starts = range(0, frames, window)
    features = [processor.window_features(encoder, values, start, min(window, frames - start)) for start in starts]
    return torch.cat(features, 1)[0].float().cpu().numpy().astype(np.float16)

"""Pairs of frames of one person, with landmarks and motion, for the face autoencoder.

Reads the folder layout `clips/*.mp4 + clips.npz + identities.csv` (or shards of it) and, where they are, portraits
`portraits/*.jpg + portraits.npz` and rendered faces (`data/synthetic/rendered_faces.py`). Frames are decoded once into
a memory-mapped array, or, where the disk has no room for that (196 kB per frame), each time they are drawn.
"""

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vasa_hf.data.landmark_dynamics import PARTS, FaceLabels, LandmarkDynamics, UnlabelledDynamics
from vasa_hf.data.shards import training_folder
from vasa_hf.motion import POSE_DIM

OPEN, CLOSED = 0.05, 0.015  # gap of the lips, of the distance of the outer eye corners
LIDS = slice(PARTS["lips"], PARTS["lips"] + PARTS["lids"])


def decode_frames(data: Path, labels: FaceLabels, folder: str, target: Path | None, size: int = 256) -> np.ndarray:
    """Decode all clips or portraits into one `(frames, size, size, 3)` uint8 array on disk, once.

    Args:
        data (`Path`): Folder that holds `folder`.
        labels (`FaceLabels`): Names and frame counts.
        folder (`str`): `clips` or `portraits`, of videos or images.
        target (`Path`, *optional*): The `.npy` file; used as it is when it exists. Without it frames stay in memory.
        size (`int`): Side of the frames.

    Returns:
        `numpy.ndarray`: Memory map opened for reading, or an array.

    Raises:
        ValueError: If a file is missing, or `target` holds other frames.
    """
    shape = (int(labels.offsets[-1]), size, size, 3)
    if target is None or not target.exists():
        from vasa_hf.media.video import VideoReader  # heavy, and needed once

        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".partial")
        frames = np.empty(shape, np.uint8) if target is None else np.lib.format.open_memmap(partial, "w+", "u1", shape)
        for index, name in enumerate(labels.names):
            first, last = labels.offsets[index : index + 2]
            path = next(iter(sorted((data / folder).glob(f"{name}.*"))), None)
            if path is None:
                raise ValueError(f"`data`: there is no file {folder}/{name}.* for the label of that name.")
            if path.suffix.lower() in (".mp4", ".mov", ".mkv", ".webm"):
                pictures = list(VideoReader(path))
            else:
                with Image.open(path) as image:
                    pictures = [np.asarray(image.convert("RGB"))]
            for row in range(first, last):  # a clip may hold a frame less than its labels
                frames[row] = _resize(pictures[min(row - first, len(pictures) - 1)], size)
        if target is None:
            return frames
        frames.flush()
        partial.rename(target)
    frames = np.load(target, mmap_mode="r")
    if frames.shape != shape:
        raise ValueError(f"`target` must hold frames of shape {shape}, but {target} holds {frames.shape}.")
    return frames


def cache_file(cache: Path, data: Path, folder: str, size: int) -> Path:
    """Where decoded frames of a folder are kept; frames of 256 pixels have no size in their name."""
    return cache / (f"{data.name}_{folder}.npy" if size == 256 else f"{data.name}_{folder}_{size}.npy")


class StreamedFrames:
    """Frames of labelled clips, decoded whenever they are asked for: `frames[row]` is `(size, size, 3)` uint8.

    Args:
        data (`Path`): Folder that holds `clips`.
        labels (`FaceLabels`): Names and frame counts.
        size (`int`): Side of the frames.
    """

    def __init__(self, data: Path, labels: FaceLabels, size: int = 256):
        self.data, self.labels, self.size = data, labels, size

    def __len__(self) -> int:
        return int(self.labels.offsets[-1])

    def __getitem__(self, row: int) -> np.ndarray:
        """Decode a clip up to the row."""
        from vasa_hf.media.video import VideoReader

        clip = int(np.searchsorted(self.labels.offsets, row, "right")) - 1
        reader = iter(VideoReader(self.data / "clips" / f"{self.labels.names[clip]}.mp4"))
        for _ in range(row - int(self.labels.offsets[clip]) + 1):
            picture = next(reader, None)
            if picture is None:  # a clip may hold a frame less than its labels
                break
            last = picture
        reader.close()
        return _resize(last, self.size)


def _resize(picture: np.ndarray, size: int) -> np.ndarray:
    if picture.shape[:2] == (size, size):
        return picture
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS))


class FacePairs(Dataset):
    """Source and driving frames of the same clip, of one rendered face, or one portrait twice.

    Sample `i` is a function of `i` and the seed: a dict of `source` and `driving` (uint8, `(3, size, size)`), their
    `*_landmarks` `(162, 2)` and `*_motion` `(34,)`, another frame's `other_motion` `(34,)`, `is_portrait`,
    `is_rendered`, `is_opening` (a portrait with an open mouth, and `other_motion` with a closed one) and `is_closing`
    (the source has an open mouth, the driving frame a closed one). With `others` that frame is of another person, and
    there are `other` and `other_landmarks` too. Without labels of z_dyn motions are the pose alone, `(6,)`.

    Args:
        data (`str` or `Path`): Folder with clips and labels, and portraits if there are any; or shards.
        cache (`str` or `Path`): Folder for decoded frames.
        seed (`int`): Seed of the draws.
        portrait_share (`float`): Share of samples that are portraits.
        long_clip_share (`float`): Share of clip samples taken from clips of more than 60 frames.
        dynamics (`str` or `Path`, *optional*): Saved `LandmarkDynamics` that defines z_dyn; fitted when absent.
        rendered (`str` or `Path`, *optional*): Folder of faces rendered from this data: averted gaze, closed eyes and
            turned heads, which recorded clips seldom show.
        rendered_share (`float`): Share of samples that are rendered faces.
        stream (`bool`): Decode the clips' frames whenever they are drawn, rather than once into `cache`.
        opening_share (`float`): Share of the portraits with `is_opening`: the source is the portrait with its mouth
            closed by a warp, the driving frame is the portrait with its own teeth.
        closing_share (`float`): Share of the portraits and of the clips with `is_closing`.
        size (`int`): Side of the frames.
        labels_dynamics (`bool`): Whether landmarks give z_dyn. Without it portraits, whose driver is made by moving
            landmarks, cannot be drawn.
        others (`bool`): Whether samples have a frame of another person.
        data_share (`float`): Share of the clips that are drawn from, always the same ones.

    Raises:
        ValueError: If portraits are asked for and cannot be drawn, or there is only one person but `others` is on.
    """

    def __init__(
        self,
        data: str | Path,
        cache: str | Path,
        seed: int = 0,
        portrait_share: float = 0.25,
        long_clip_share: float = 0.3,
        dynamics: str | Path | None = None,
        rendered: str | Path | None = None,
        rendered_share: float = 0.35,
        stream: bool = False,
        opening_share: float = 0.0,
        closing_share: float = 0.0,
        size: int = 256,
        labels_dynamics: bool = True,
        others: bool = False,
        data_share: float = 1.0,
    ):
        data, cache = training_folder(data), Path(cache)
        self.size, self.others = size, others
        self.seed, self.portrait_share, self.long_clip_share = seed, portrait_share, long_clip_share
        self.clips = FaceLabels.load(data / "clips.npz")
        people = people_of_clips(data, self.clips.names)
        portrait_labels = data / "portraits.npz"
        self.portraits = FaceLabels.load(portrait_labels) if portrait_labels.exists() else None
        if self.portraits is None and portrait_share:
            raise ValueError(f"`portrait_share` must be 0 where there are no portraits, got {portrait_share}.")
        if portrait_share and not labels_dynamics:
            raise ValueError(f"`portrait_share` must be 0 where z_dyn is learned, got {portrait_share}.")
        # Weights in training mean by z_dyn what this model says: keep it with them, never fit it again next to them.
        self.dynamics: LandmarkDynamics | UnlabelledDynamics
        if not labels_dynamics:
            self.dynamics, self.portraits = UnlabelledDynamics(self.clips), None
        elif dynamics is None:
            self.dynamics = LandmarkDynamics.fit(self.clips, people, self.portraits)
        else:
            self.dynamics = LandmarkDynamics.load(dynamics)
        if stream:
            self.frames = StreamedFrames(data, self.clips, size)
        else:
            self.frames = decode_frames(data, self.clips, "clips", cache_file(cache, data, "clips", size), size)
        self.clip_motion = motion_of(self.clips, self.dynamics.encode(self.clips, people))
        if self.portraits is not None:
            target = cache_file(cache, data, "portraits", size)
            self.pictures = decode_frames(data, self.portraits, "portraits", target, size)
            self.portrait_motion = motion_of(self.portraits, self.dynamics.encode(self.portraits))
            self.open_portraits = np.flatnonzero(self.portraits.mouth[:, 0] > OPEN)
        self.person = np.repeat(np.unique(people, return_inverse=True)[1], np.diff(self.clips.offsets))  # of frames
        used, lengths = choose_share(len(self.clips.names), data_share), np.diff(self.clips.offsets)
        self.rows = np.flatnonzero(np.repeat(used, lengths))
        if others and len(np.unique(self.person[self.rows])) < 2:
            raise ValueError("`others` needs clips of at least two people; identities.csv names one.")
        self.long, self.short = np.flatnonzero(used & (lengths > 60)), np.flatnonzero(used & (lengths <= 60))
        gaps = self.clips.mouth[:, 0]
        self.closed_frames = self.rows[gaps[self.rows] < CLOSED]
        can_open = self.portraits is not None and len(self.open_portraits) and len(self.closed_frames)
        self.opening_share = opening_share if can_open else 0.0
        self.closing_share, self.can_close = closing_share, can_open
        spans = [(gaps[a:b] > OPEN).any() and (gaps[a:b] < CLOSED).any() for a, b in pairwise(self.clips.offsets)]
        self.closing_clips = np.flatnonzero(used & np.array(spans))
        self.rendered_share = rendered_share if rendered else 0.0
        if rendered:
            self.rendered = FaceLabels.load(Path(rendered) / "rendered.npz")
            self.rendered_frames = np.load(Path(rendered) / "rendered.npy", mmap_mode="r")
            self.rendered_motion = motion_of(self.rendered, self.dynamics.encode(self.rendered))
        if rendered and labels_dynamics:
            # What a face looks like at rest is known from the photograph it wears.
            of_clips = self.dynamics.neutral_shapes(self.clips, people)[self.clips.offsets[:-1]]
            at_rest = dict(zip(self.clips.names, of_clips, strict=True))
            if self.portraits is not None:
                at_rest |= zip(self.portraits.names, self.dynamics.neutral_shapes(self.portraits), strict=True)
            neutral = torch.stack([at_rest[name] for name in self.rendered.names])
            neutral = neutral.repeat_interleave(torch.from_numpy(np.diff(self.rendered.offsets)), 0)
            self.rendered_motion = motion_of(self.rendered, self.dynamics.encode(self.rendered, neutral=neutral))

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Draw sample `index`."""
        rng = np.random.default_rng([self.seed, index])
        kind = rng.random()
        is_portrait = kind < self.portrait_share
        is_rendered = not is_portrait and kind < self.portrait_share + self.rendered_share
        other, person = int(self.rows[rng.integers(len(self.rows))]), -1
        is_opening = is_portrait and rng.random() < self.opening_share
        can_close = self.can_close if is_portrait else len(self.closing_clips) and not is_rendered
        is_closing = bool(self.closing_share and can_close and not is_opening and rng.random() < self.closing_share)
        if is_portrait and (is_opening or is_closing):
            other = int(rng.choice(self.closed_frames))
        if is_portrait:
            moves_lips = is_opening or is_closing
            row = int(rng.choice(self.open_portraits) if moves_lips else rng.integers(len(self.pictures)))
            rows, pictures, labels, motion = (row, row), self.pictures, self.portraits, self.portrait_motion
        elif is_rendered:
            face = int(rng.integers(len(self.rendered.names)))
            rows = rng.choice(np.arange(*self.rendered.offsets[face : face + 2]), 2, replace=False)
            pictures, labels, motion = self.rendered_frames, self.rendered, self.rendered_motion
        elif is_closing:
            first, last = self.clips.offsets[(clip := int(rng.choice(self.closing_clips))) : clip + 2]
            gaps = self.clips.mouth[first:last, 0]
            rows = [first + int(rng.choice(np.flatnonzero(kind))) for kind in (gaps > OPEN, gaps < CLOSED)]
            person = self.person[rows[0]]
            pictures, labels, motion = self.frames, self.clips, self.clip_motion
        else:
            pool = self.long if rng.random() < self.long_clip_share or not len(self.short) else self.short
            clip = int(rng.choice(pool if len(pool) else self.short))
            first, last = self.clips.offsets[clip : clip + 2]
            source = int(rng.integers(first, last))
            person = self.person[source]
            # Prefer a driver that differs: neighbouring frames teach little, and blinks are rare.
            candidates = rng.integers(first, last, 6)
            apart = (self.clip_motion[candidates] - self.clip_motion[source]).abs()
            criterion = rng.random()
            mouth = (self.clips.mouth[candidates, 0] - self.clips.mouth[source, 0]).abs()  # shut and open mouths
            lids = (self.clips.eye_open[candidates] - self.clips.eye_open[source]).abs().mean(1)
            if self.dynamics.dim:
                lids, face = apart[:, POSE_DIM:][:, LIDS].mean(1), apart[:, POSE_DIM:].mean(1)
            else:
                face = 5 * (mouth + lids)  # about as large as the mean of standardised codes
            if criterion < 0.3:
                score = lids
            elif criterion < 0.5:
                score = mouth
            else:
                score = face + 10 * apart[:, :3].mean(1)
            driver = int(candidates[int(score.argmax())] if rng.random() < 0.75 else candidates[0])
            rows, pictures, labels, motion = (source, driver), self.frames, self.clips, self.clip_motion
        kinds = {"is_portrait": is_portrait, "is_rendered": is_rendered}
        kinds |= {"is_opening": is_opening, "is_closing": is_closing}
        sample = {name: torch.tensor(value) for name, value in kinds.items()}
        while self.others and self.person[other] == person:
            other = int(self.rows[rng.integers(len(self.rows))])
        sample["other_motion"] = self.clip_motion[other]
        frames = [("source", rows[0], pictures, labels), ("driving", rows[1], pictures, labels)]
        if self.others:
            frames.append(("other", other, self.frames, self.clips))
        for name, row, images, points in frames:
            sample[name] = torch.from_numpy(np.array(_resize(images[row], self.size))).permute(2, 0, 1)
            sample[f"{name}_landmarks"] = points.landmarks[row]
        sample["source_motion"], sample["driving_motion"] = (motion[row] for row in rows)
        return sample


def choose_share(count: int, share: float) -> np.ndarray:
    """Which of `count` clips belong to a share of them, `(count,)` bool: the same for every run, at least one.

    Raises:
        ValueError: If the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"`data_share` must be in (0, 1], got {share}.")
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(0).permutation(count)[: max(1, round(share * count))]] = True
    return chosen


def people_of_clips(data: Path, names: list[str]) -> list[str]:
    """One person's name a clip, by `identities.csv`; a clip not named there is a person of its own.

    Raises:
        ValueError: If the header of `identities.csv` is neither `clip,identity` nor `clip,person`.
    """
    known = {}
    if (data / "identities.csv").exists():
        with open(data / "identities.csv", newline="") as file:
            reader = csv.DictReader(file)
            column = next((name for name in ("identity", "person") if name in (reader.fieldnames or [])), None)
            if column is None or "clip" not in reader.fieldnames:
                raise ValueError(
                    "`data`: identities.csv must have the header clip,identity or clip,person, "
                    f"got {reader.fieldnames}."
                )
            known = {row["clip"]: row[column] for row in reader}
    return [known.get(name, f"clip {name}") for name in names]


def motion_of(labels: FaceLabels, dynamics: Tensor) -> Tensor:
    """Motion vectors: yaw, pitch, roll, tx, ty, scale, then the dynamics code."""
    return torch.cat([labels.pose[:, :5], labels.pose[:, 6:7], dynamics], 1)

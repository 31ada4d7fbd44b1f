"""Pairs of frames of one person, with landmarks and motion, for the face autoencoder.

Reads the folder layout `clips/*.mp4 + clips.npz + identities.csv` (or shards of it) and, where they are, portraits
`portraits/*.jpg + portraits.npz` and rendered faces (`data/synthetic/rendered_faces.py`). Frames are decoded once into
a memory-mapped array, or, where the disk has no room for that (196 kB per frame), each time they are drawn.
"""

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vasa_hf.data.landmark_dynamics import PARTS, FaceLabels, LandmarkDynamics
from vasa_hf.data.shards import training_folder
from vasa_hf.motion import POSE_DIM

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
                frames[row] = _resized(pictures[min(row - first, len(pictures) - 1)], size)
        if target is None:
            return frames
        frames.flush()
        partial.rename(target)
    frames = np.load(target, mmap_mode="r")
    if len(frames) != len(labels.landmarks):
        raise ValueError(f"`target` must hold {len(labels.landmarks)} frames, but {target} holds {len(frames)}.")
    return frames


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
        return _resized(last, self.size)


def _resized(picture: np.ndarray, size: int) -> np.ndarray:
    if picture.shape[:2] == (size, size):
        return picture
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS))


class FacePairs(Dataset):
    """Source and driving frames of the same clip, of one rendered face, or one portrait twice.

    Sample `i` is a function of `i` and the seed: a dict of `source` and `driving` (uint8, `(3, size, size)`), their
    `*_landmarks` `(162, 2)` and `*_motion` `(34,)`, another person's `other_motion` `(34,)`, `is_portrait` and
    `is_rendered`.

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

    Raises:
        ValueError: If portraits are asked for and there are none.
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
    ):
        data, cache = training_folder(data), Path(cache)
        self.seed, self.portrait_share, self.long_clip_share = seed, portrait_share, long_clip_share
        self.clips = FaceLabels.load(data / "clips.npz")
        people = people_of_clips(data, self.clips.names)
        portrait_labels = data / "portraits.npz"
        self.portraits = FaceLabels.load(portrait_labels) if portrait_labels.exists() else None
        if self.portraits is None and portrait_share:
            raise ValueError(f"`portrait_share` must be 0 where there are no portraits, got {portrait_share}.")
        # Weights in training mean by z_dyn what this model says: keep it with them, never fit it again next to them.
        if dynamics is None:
            self.dynamics = LandmarkDynamics.fit(self.clips, people, self.portraits)
        else:
            self.dynamics = LandmarkDynamics.load(dynamics)
        if stream:
            self.frames = StreamedFrames(data, self.clips)
        else:
            self.frames = decode_frames(data, self.clips, "clips", cache / f"{data.name}_clips.npy")
        self.clip_motion = motion_of(self.clips, self.dynamics.encode(self.clips, people))
        if self.portraits is not None:
            self.pictures = decode_frames(data, self.portraits, "portraits", cache / f"{data.name}_portraits.npy")
            self.portrait_motion = motion_of(self.portraits, self.dynamics.encode(self.portraits))
        lengths = np.diff(self.clips.offsets)
        self.long, self.short = np.flatnonzero(lengths > 60), np.flatnonzero(lengths <= 60)
        self.rendered_share = rendered_share if rendered else 0.0
        if rendered:
            self.rendered = FaceLabels.load(Path(rendered) / "rendered.npz")
            self.rendered_frames = np.load(Path(rendered) / "rendered.npy", mmap_mode="r")
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
        other = self.clip_motion[rng.integers(len(self.clip_motion))]
        if is_portrait:
            row = int(rng.integers(len(self.pictures)))
            rows, pictures, labels, motion = (row, row), self.pictures, self.portraits, self.portrait_motion
        elif is_rendered:
            face = int(rng.integers(len(self.rendered.names)))
            rows = rng.choice(np.arange(*self.rendered.offsets[face : face + 2]), 2, replace=False)
            pictures, labels, motion = self.rendered_frames, self.rendered, self.rendered_motion
        else:
            pool = self.long if rng.random() < self.long_clip_share or not len(self.short) else self.short
            clip = int(rng.choice(pool)) if len(pool) else int(rng.integers(len(self.clips.names)))
            first, last = self.clips.offsets[clip : clip + 2]
            source = int(rng.integers(first, last))
            # Prefer a driver that differs: neighbouring frames teach little, and blinks are rare.
            candidates = rng.integers(first, last, 6)
            apart = (self.clip_motion[candidates] - self.clip_motion[source]).abs()
            criterion = rng.random()
            if criterion < 0.3:
                score = apart[:, POSE_DIM:][:, LIDS].mean(1)
            elif criterion < 0.5:
                score = (self.clips.mouth[candidates, 0] - self.clips.mouth[source, 0]).abs()  # shut and open mouths
            else:
                score = apart[:, POSE_DIM:].mean(1) + 10 * apart[:, :3].mean(1)
            driver = int(candidates[int(score.argmax())] if rng.random() < 0.75 else candidates[0])
            rows, pictures, labels, motion = (source, driver), self.frames, self.clips, self.clip_motion
        sample = {
            name: torch.tensor(value) for name, value in (("is_portrait", is_portrait), ("is_rendered", is_rendered))
        }
        sample["other_motion"] = other
        for name, row in zip(("source", "driving"), rows, strict=True):
            sample[name] = torch.from_numpy(np.array(pictures[row])).permute(2, 0, 1)
            sample[f"{name}_landmarks"] = labels.landmarks[row]
            sample[f"{name}_motion"] = motion[row]
        return sample


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

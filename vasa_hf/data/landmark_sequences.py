"""Training samples for GAIA's diffusion models: windows of landmarks, head pose and speech of one clip (§4.3, B.3).

`LandmarkMotion` holds many clips; `LandmarkSequences` cuts windows of 125 to 250 frames out of them at a random place,
with a random frame of the same clip as reference. What a model learns is the latent of E_M, or the coordinates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from vasa_hf.data.clips import MotionData, data_folders, join_labels, smooth_in_time
from vasa_hf.data.face_pairs import choose_share
from vasa_hf.data.landmark_dynamics import FaceLabels

# Standard deviation in frames of the Gaussian that takes label noise off landmarks and head pose.
SMOOTHING = 0.5


@dataclass
class LandmarkMotion:
    """Landmarks, head pose, speech and latents of clips, frames one after another.

    Attributes:
        landmarks (`numpy.ndarray` of shape `(frames, 162, 2)`): Fractions of the crop, float32.
        pose (`numpy.ndarray` of shape `(frames, 3)`): Yaw, pitch, roll in radians.
        offsets (`numpy.ndarray` of shape `(clips + 1,)`): Clip `i` owns frames `offsets[i]:offsets[i + 1]`.
        audio (`numpy.ndarray` of shape `(frames, audio_dim)`, *optional*): Speech features.
        speaks (`numpy.ndarray` of shape `(clips,)`, *optional*): Whether the clip has audio that belongs to the face.
        latent (`numpy.ndarray` of shape `(frames, motion_dim)`, *optional*): z_m of each frame.
        action (`numpy.ndarray` of shape `(clips,)`, *optional*): What the clip shows, see `data/instructions.py`.
    """

    landmarks: np.ndarray
    pose: np.ndarray
    offsets: np.ndarray
    audio: np.ndarray | None = None
    speaks: np.ndarray | None = None
    latent: np.ndarray | None = None
    action: np.ndarray | None = None

    def __post_init__(self) -> None:
        frames, clips = int(self.offsets[-1]), len(self.offsets) - 1
        for name in ("landmarks", "pose", "audio", "speaks", "latent", "action"):
            value, rows = getattr(self, name), clips if name in ("speaks", "action") else frames
            if value is not None and len(value) != rows:
                raise ValueError(f"`{name}` must have {rows} rows, got shape {value.shape}.")

    def save(self, path: str | os.PathLike) -> None:
        """Write what is there as one safetensors file."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        save_file(
            {name: torch.from_numpy(np.array(value)) for name, value in values.items() if value is not None}, path
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> LandmarkMotion:
        """Read what `save` wrote."""
        return cls(**{name: tensor.numpy() for name, tensor in load_file(path).items()})

    def motion(self, predicts: str) -> np.ndarray:
        """What a model learns, `(frames, motion_dim)`: `"latent"` or `"landmarks"`.

        Raises:
            ValueError: If there are no latents.
        """
        if predicts == "landmarks":
            return self.landmarks.reshape(len(self.landmarks), -1)
        if self.latent is None:
            raise ValueError("`latent` must be there to learn latents: encode the landmarks first.")
        return self.latent


def landmark_motion(
    data: str | os.PathLike | Sequence[str | os.PathLike], speech: MotionData, smoothing: float = SMOOTHING
) -> LandmarkMotion:
    """Landmarks and head pose of labelled clips with the speech features of the same frames.

    Args:
        data (`str`, `os.PathLike` or a sequence of them): One or several folders that hold `clips.npz`, or shards.
        speech (`MotionData`): Made of the same folders in the same order.
        smoothing (`float`): See `SMOOTHING`; 0 for none.

    Raises:
        ValueError: If the frames are others.
    """
    labels = join_labels([FaceLabels.load(folder / "clips.npz") for folder in data_folders(data)])
    if not np.array_equal(labels.offsets, speech.offsets):
        raise ValueError(
            f"`speech` must have the {len(labels.names)} clips and {len(labels.landmarks)} frames of `data`, got "
            f"{len(speech.person)} and {len(speech.motion)}."
        )
    landmarks, pose = labels.landmarks.numpy().copy(), labels.pose[:, :3].numpy().copy()
    for values in (landmarks, pose):
        for start, stop in zip(labels.offsets[:-1], labels.offsets[1:], strict=True):
            part = values[start:stop]
            values[start:stop] = smooth_in_time(part.reshape(len(part), -1), smoothing).reshape(part.shape)
    return LandmarkMotion(landmarks, pose, np.asarray(labels.offsets), speech.audio, speech.speaks)


@torch.no_grad()
def encode_landmarks(encode: Callable[[Tensor], Tensor], landmarks: np.ndarray, batch_size: int = 32) -> np.ndarray:
    """Latents `(frames, motion_dim)` of landmarks, float16.

    Args:
        encode (`Callable`): Landmarks `(n, 162, 2)` to latents `(n, motion_dim)`.
        landmarks (`numpy.ndarray` of shape `(frames, 162, 2)`): Fractions of the crop.
        batch_size (`int`): Frames at a time.
    """
    parts = torch.from_numpy(landmarks).split(batch_size)
    return np.concatenate([encode(part).float().cpu().numpy().astype(np.float16) for part in parts])


class LandmarkSequences(Dataset):
    """Windows of clips: `dataset[i]` is a pure function of the seed and `i`.

    A sample is a dict of `motion` (longest, motion_dim), `audio` (longest, audio_dim), `pose` (longest, 3),
    `reference` (motion_dim,), all float32, and of booleans `frame_mask` (longest,) and `drop_audio` ().

    Args:
        data (`LandmarkMotion`): Clips with speech.
        predicts (`str`, defaults to `"latent"`): See `LandmarkMotion.motion`.
        shortest, longest (`int`, defaults to 125 and 250): Frames of a window; shorter clips are taken whole.
        seed (`int`): Seed.
        drop_audio (`float`, defaults to 0.0): How often a sample has no speech. # Not in the paper: for guidance.
        data_share (`float`, defaults to 1.0): Share of the clips that are drawn from, always the same ones.

    Raises:
        ValueError: If the lengths do not rise, or there is no speech.
    """

    def __init__(
        self,
        data: LandmarkMotion,
        predicts: str = "latent",
        shortest: int = 125,
        longest: int = 250,
        seed: int = 0,
        drop_audio: float = 0.0,
        data_share: float = 1.0,
    ):
        if not 1 <= shortest <= longest:
            raise ValueError(f"`shortest` must lie in [1, {longest}], got {shortest}.")
        if data.audio is None:
            raise ValueError("`data` must have speech features, got none.")
        self.data, self.motion = data, data.motion(predicts)
        self.shortest, self.longest, self.seed, self.drop_audio = shortest, longest, seed, drop_audio
        lengths = np.diff(data.offsets) * choose_share(len(data.offsets) - 1, data_share)
        self.share = lengths / lengths.sum()

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Draw sample `index`."""
        rng = np.random.default_rng([self.seed, index])
        clip = int(rng.choice(len(self.share), p=self.share))
        first, last = (int(x) for x in self.data.offsets[clip : clip + 2])
        size = min(int(rng.integers(self.shortest, self.longest + 1)), last - first)
        start = int(rng.integers(first, last - size + 1))
        rows = slice(start, start + size)
        speaks = self.data.speaks is None or bool(self.data.speaks[clip])
        return {
            "motion": _pad(self.motion[rows], self.longest),
            "audio": _pad(self.data.audio[rows], self.longest),
            "pose": _pad(self.data.pose[rows], self.longest),
            "reference": torch.from_numpy(np.array(self.motion[rng.integers(first, last)], np.float32)),
            "frame_mask": torch.arange(self.longest) < size,
            "drop_audio": torch.tensor(not speaks or rng.random() < self.drop_audio),
        }


def _pad(values: np.ndarray, length: int) -> Tensor:
    padded = np.zeros((length, values.shape[1]), np.float32)
    padded[: len(values)] = values
    return torch.from_numpy(padded)

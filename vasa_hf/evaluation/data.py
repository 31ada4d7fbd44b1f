"""The data folder of `vasa-hf eval`: clips, portraits, speech, and optional labels.

```
clips/*.mp4            talking people; with a clips.npz next to the folder: face crops with labels
portraits/*.jpg        faces to animate (optional)
speech/*.flac          voices without video (optional)
identities.csv         clip,identity (optional): clips of the same person
```
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vasa_hf import FaceAnalyzer, VasaAudioProcessor
from vasa_hf.geometry.crops import cut_crop, standard_crop
from vasa_hf.media.audio import load_audio
from vasa_hf.media.video import VideoReader
from vasa_hf.metrics.faces import FaceTrack
from vasa_hf.metrics.motion import SAMPLES_PER_FRAME

PICTURES = {".jpg", ".jpeg", ".png", ".webp"}
VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi"}
SOUNDS = {".flac", ".wav", ".mp3", ".m4a", ".ogg"}


@dataclass
class Clip:
    """One real clip as square face crops.

    Attributes:
        name (`str`): File name without suffix.
        frames (`torch.Tensor` of shape `(frames, 3, size, size)`): RGB in [0, 1].
        samples (`torch.Tensor` of shape `(n,)` or `None`): Mono at 16 kHz, cut to the frames.
        silent_because (`str`): Reason why there are no samples.
        labels (`FaceTrack` or `None`): Landmarks and poses of the data.
    """

    name: str
    frames: Tensor
    samples: Tensor | None
    silent_because: str
    labels: FaceTrack | None


class EvalData:
    """The contents of a data folder.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        limit (`int`, *optional*): Maximal number of clips, portraits and voices, evenly spread.

    Raises:
        ValueError: If the folder does not exist or holds neither clips nor portraits nor speech.
    """

    def __init__(self, folder: str | os.PathLike, limit: int | None = None):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"`data` must be an existing folder, got {os.fspath(folder)!r}.")
        self.clips = _spread(_files(self.folder / "clips", VIDEOS), limit)
        self.portraits = _spread(_files(self.folder / "portraits", PICTURES), limit)
        self.speech = _spread(_files(self.folder / "speech", SOUNDS), limit)
        if not (self.clips or self.portraits or self.speech):
            raise ValueError(f"`data` must hold clips/, portraits/ or speech/, {os.fspath(folder)!r} has none.")
        self.people = {path.stem: path.stem for path in self.clips}
        if (self.folder / "identities.csv").is_file():
            with open(self.folder / "identities.csv", newline="") as file:
                self.people.update({row["clip"]: row["identity"] for row in csv.DictReader(file)})
        self._labels = _read_labels(self.folder / "clips.npz")

    def load_clip(self, path: Path, size: int, analyzer: FaceAnalyzer, audio_processor: VasaAudioProcessor) -> Clip:
        """Read one clip as face crops of `size`, at 25 frames per second and 16 kHz.

        Args:
            path (`Path`): One of `clips`.
            size (`int`): Side of the crops.
            analyzer (`FaceAnalyzer`): Finds the face of a clip without labels.
            audio_processor (`VasaAudioProcessor`): Resamples the audio.

        Raises:
            ValueError: If it cannot be read, shows no face, or does not match its labels.
        """
        images = list(VideoReader(path, 25))
        labels = self._labels.get(path.stem)
        if labels is None:
            frames = _cut_faces(images, size, analyzer)
        else:
            if abs(len(images) - len(labels)) > 1:
                raise ValueError(f"the clip has {len(images)} frames, its labels {len(labels)}.")
            if images[0].shape[0] != images[0].shape[1]:
                raise ValueError(f"a labelled clip must be square face crops, got {images[0].shape[:2]} pixels.")
            frames = torch.stack([to_tensor(frame, size) for frame in images[: len(labels)]])
            labels = labels[: len(frames)]
        samples, because = None, ""
        try:
            samples = load_samples(path, audio_processor)[: len(frames) * SAMPLES_PER_FRAME]
        except ValueError as error:
            because = str(error)
        return Clip(path.stem, frames, samples, because, labels)


def to_tensor(array: np.ndarray, size: int) -> Tensor:
    """Convert a square uint8 image `(height, width, 3)` to `(3, size, size)` in [0, 1]."""
    if array.shape[:2] != (size, size):
        array = np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.LANCZOS))
    return torch.from_numpy(np.array(array)).permute(2, 0, 1).float() / 255


def to_uint8(frames: Tensor) -> list[np.ndarray]:
    """Convert frames `(n, 3, size, size)` in [0, 1] to uint8 images."""
    return list((frames * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy())


def load_samples(path: str | os.PathLike, audio_processor: VasaAudioProcessor) -> Tensor:
    """Load the audio of a file, mono at 16 kHz, `(n,)`."""
    return torch.from_numpy(audio_processor.load(load_audio(path))).reshape(-1)


def _files(folder: Path, suffixes: set[str]) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in suffixes)


def _spread(paths: list[Path], limit: int | None) -> list[Path]:
    if limit is None or len(paths) <= limit:
        return paths
    return [paths[round(index)] for index in np.linspace(0, len(paths) - 1, limit)]


def _read_labels(path: Path) -> dict[str, FaceTrack]:
    if not path.is_file():
        return {}
    with np.load(path) as arrays:
        landmarks = torch.from_numpy((arrays["landmarks"].astype(np.float32) - 8192) / 8192)
        pose, offsets = torch.from_numpy(arrays["pose"].astype(np.float32)), arrays["offsets"]
        found = torch.from_numpy(arrays["found"] if "found" in arrays else np.ones(len(pose), bool))
        return {
            str(name): FaceTrack(landmarks[first:last], pose[first:last], found[first:last])
            for name, first, last in zip(arrays["names"], offsets[:-1], offsets[1:], strict=True)
        }


def _cut_faces(frames: list[np.ndarray], size: int, analyzer: FaceAnalyzer) -> Tensor:
    """Cut all frames by the standard crop around the face in the first frame that shows one."""
    for frame in frames[:: max(1, len(frames) // 8)]:
        if faces := analyzer.detect(frame):
            matrix = standard_crop(faces[0].box)
            break
    else:
        raise ValueError(f"the clip shows no face in its {len(frames)} frames.")
    cut = [cut_crop(torch.from_numpy(frame).permute(2, 0, 1).float() / 255, matrix, size) for frame in frames]
    return torch.stack(cut)

"""The clips of a data folder as files: who is in them, their frames, their audio, what is known of their frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vasa_hf.data.face_pairs import people_of_clips
from vasa_hf.media.ffmpeg import probe_video
from vasa_hf.media.video import VideoReader
from vasa_hf.metrics.motion import SAMPLES_PER_FRAME
from vasa_hf.processors.audio import VasaAudioProcessor

FPS = 25
#: Arrays of `clips.npz` that VASA-1's conditions g, d and e are read from.
CONDITIONS = ("gaze", "head_distance", "expression")


@dataclass(frozen=True)
class ClipFile:
    """A square face crop with its audio, `clips/<name>.mp4` at 25 frames per second.

    Attributes:
        path (`Path`): The video.
        person (`str`): Who it shows, by `identities.csv`.
        num_frames (`int`, *optional*): Frames by `clips.npz`; `None` where there is no such file.
        labels (`dict`): The clip's rows of the arrays in `clips.npz` named by `CONDITIONS`, where they are.
    """

    path: Path
    person: str
    num_frames: int | None = None
    labels: dict[str, np.ndarray] = field(default_factory=dict)

    def read_frames(self, size: int, batch_size: int = 32) -> Iterator[Tensor]:
        """Yield batches of frames `(n, 3, size, size)` in [0, 1], at most `num_frames` in all."""
        batch: list[np.ndarray] = []

        def flush() -> Tensor:
            images = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float() / 255
            batch.clear()
            if images.shape[-2:] != (size, size):
                images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
            return images

        for index, frame in enumerate(VideoReader(self.path, fps=FPS)):
            if index == self.num_frames:
                break
            batch.append(frame)
            if len(batch) == batch_size:
                yield flush()
        if batch:
            yield flush()

    def read_audio(self, num_frames: int | None = None) -> np.ndarray:
        """Mono samples at 16 kHz, float32; cut or padded with zeros to `num_frames` if given. Empty without audio."""
        has_audio = probe_video(self.path).has_audio
        samples = VasaAudioProcessor().load(self.path) if has_audio else np.zeros(0, np.float32)
        if num_frames is None:
            return samples
        return np.pad(samples, (0, num_frames * SAMPLES_PER_FRAME))[: num_frames * SAMPLES_PER_FRAME]


def list_clips(folder: Path, labelled: bool = False) -> list[ClipFile]:
    """List the clips of a folder, in the order of `clips.npz`, or alphabetically where there is no such file.

    Args:
        folder (`Path`): Holds `clips/*.mp4`; `clips.npz` and `identities.csv` if there are any.
        labelled (`bool`, defaults to `False`): Whether `clips.npz` must be there.

    Raises:
        ValueError: If there are no clips, or no `clips.npz` where it must be.
    """
    labels: dict[str, np.ndarray] = {}
    if (folder / "clips.npz").exists():
        with np.load(folder / "clips.npz") as table:
            names, offsets = [str(name) for name in table["names"]], table["offsets"]
            labels = {name: table[name] for name in CONDITIONS if name in table}
        spans: list[slice | None] = [slice(*offsets[i : i + 2]) for i in range(len(names))]
    else:
        if labelled:
            raise ValueError(f"`data` must hold clips.npz with `names` and `offsets`, but {folder.name!r} does not.")
        names = sorted(path.stem for path in (folder / "clips").glob("*.mp4"))
        spans = [None] * len(names)
    if not names:
        raise ValueError(f"`data` must hold clips/*.mp4, but {str(folder)!r} has none.")
    return [
        ClipFile(
            folder / "clips" / f"{name}.mp4",
            person,
            None if span is None else int(span.stop - span.start),
            {} if span is None else {key: values[span] for key, values in labels.items()},
        )
        for name, person, span in zip(names, people_of_clips(folder, names), spans, strict=True)
    ]

"""Training samples of MoDA's motion generator, as the paper makes them: a renderer reads the motion of every frame.

`KeypointData` holds the 70 numbers of each frame (expression 63, scale, translation 3, pitch, yaw, roll in degrees) and
its audio features, and for each clip the person's canonical keypoints and the emotion. `KeypointClips` cuts windows out
of it (paper §4.1.2: 80 frames at random).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from vasa_hf.data.clip_files import ClipFile, list_clips
from vasa_hf.data.emotion_labels import label_clip, load_emotion_classifier
from vasa_hf.geometry.keypoints import MOTION_DIM
from vasa_hf.hub import component_root
from vasa_hf.models.motion_transformer_moda import EMOTIONS

NO_EMOTION = len(EMOTIONS)
_BATCH = 16
_AUDIO_WINDOW = 80  # frames that are encoded together


@dataclass
class KeypointData:
    """Motion and audio features of clips, frames one after another.

    Attributes:
        motion (`torch.Tensor` of shape `(frames, 70)`): Not normalised, float32.
        audio (`torch.Tensor` of shape `(frames, layers, channels)`): Audio features, float16.
        offsets (`torch.Tensor` of shape `(clips + 1,)`): Clip `i` owns frames `offsets[i]:offsets[i + 1]`.
        keypoints (`torch.Tensor` of shape `(clips, 63)`): Canonical keypoints in each clip's first frame.
        emotion (`torch.Tensor` of shape `(clips,)`): Number in MoDA's `EMOTIONS`, or 8 where it is not known.
    """

    motion: Tensor
    audio: Tensor
    offsets: Tensor
    keypoints: Tensor
    emotion: Tensor

    def __post_init__(self) -> None:
        frames, clips = int(self.offsets[-1]), len(self.offsets) - 1
        expected = {"motion": (frames, MOTION_DIM), "keypoints": (clips, 63), "emotion": (clips,)}
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"`{name}` must have shape {shape}, got {tuple(getattr(self, name).shape)}.")
        if self.audio.ndim != 3 or len(self.audio) != frames:
            raise ValueError(f"`audio` must have shape ({frames}, layers, channels), got {tuple(self.audio.shape)}.")

    def save(self, path: str | os.PathLike) -> None:
        """Write everything as one safetensors file."""
        save_file({item.name: getattr(self, item.name).contiguous() for item in fields(self)}, path)

    def rows(self, name: str, first: int, stop: int) -> Tensor:
        """Rows of `motion` or `audio`."""
        return getattr(self, name)[first:stop]

    @classmethod
    def load(cls, path: str | os.PathLike) -> KeypointData:
        """Read what `save` wrote."""
        tensors = load_file(path)
        expected = {item.name for item in fields(cls)}
        if set(tensors) != expected:
            raise ValueError(f"`path`: {Path(path).name} must hold {sorted(expected)}, got {sorted(tensors)}.")
        return cls(**tensors)


class KeypointShards:
    """`KeypointData` in files of some clips each, as `encode_clips` writes them; a window is read when it is drawn.

    Memory holds the numbers of clips, not those of frames: at the paper's size (700 hours) these take 1.2 TB on disk.

    Args:
        folder (`str` or `os.PathLike`): Holds `clips-*.safetensors`.

    Raises:
        ValueError: If there are none.
    """

    def __init__(self, folder: str | os.PathLike):
        self.paths = sorted(Path(folder).glob("clips-*.safetensors"))
        if not self.paths:
            raise ValueError(f"`folder` must hold clips-*.safetensors, but {Path(folder).name!r} has none.")
        parts: dict[str, list[Tensor]] = {"offsets": [], "keypoints": [], "emotion": []}
        for path in self.paths:
            with safe_open(path, "pt") as file:
                for name, values in parts.items():
                    values.append(file.get_tensor(name))
        self.starts = np.cumsum([0, *(int(offsets[-1]) for offsets in parts["offsets"])])  # of the files
        offsets = [own[1:] + int(start) for own, start in zip(parts["offsets"], self.starts[:-1], strict=True)]
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.long), *offsets])
        self.keypoints, self.emotion = torch.cat(parts["keypoints"]), torch.cat(parts["emotion"])

    def rows(self, name: str, first: int, stop: int) -> Tensor:
        """Rows of `motion` or `audio`, all of one clip."""
        file_number = int(np.searchsorted(self.starts, first, "right")) - 1
        start = int(self.starts[file_number])
        with safe_open(self.paths[file_number], "pt") as file:
            return file.get_slice(name)[first - start : stop - start]


class KeypointClips(Dataset):
    """Windows of clips: `dataset[i]` is a pure function of the seed and `i`, for any `i >= 0`.

    A sample is a dict: `motion` (window, 70) not normalised, `previous_motion` (70,), `audio` (window, L, A),
    `keypoints` (63,), `emotion` () int64, `frame_mask` (window,) bool, `drop_audio` and `drop_emotion` () bool. Clips
    shorter than a window are padded and masked.

    Args:
        data (`KeypointData` or `KeypointShards`): Clips.
        window (`int`, defaults to 80): Frames of a window (paper §4.1.2).
        seed (`int`, defaults to 0): Seed.
        drop_audio (`float`, defaults to 0.5): Drop probability of speech (paper §4.1.2).
        drop_emotion (`float`, defaults to 0.1): Drop probability of the emotion (paper §4.1.2).
    """

    def __init__(
        self,
        data: KeypointData | KeypointShards,
        window: int = 80,
        seed: int = 0,
        drop_audio: float = 0.5,
        drop_emotion: float = 0.1,
    ):
        self.data, self.window, self.seed = data, window, seed
        self.drop_audio, self.drop_emotion = drop_audio, drop_emotion
        self.offsets = data.offsets.numpy()
        lengths = np.diff(self.offsets)
        self.share = lengths / lengths.sum()

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, index])
        clip = int(rng.choice(len(self.share), p=self.share))
        start, stop = (int(x) for x in self.offsets[clip : clip + 2])
        first = int(rng.integers(start, max(start, stop - self.window) + 1))
        frames = torch.arange(first, first + self.window)
        # The frame before the window, as from the window before; in a clip's first window its first frame (§3.2.1).
        before, last = max(first - 1, start), min(first + self.window, stop)
        motion, audio = self.data.rows("motion", before, last), self.data.rows("audio", first, last)
        return {
            "motion": motion[frames.clamp(max=stop - 1) - before],
            "previous_motion": motion[0],
            "audio": audio[frames.clamp(max=stop - 1) - first].float(),
            "keypoints": self.data.keypoints[clip],
            "emotion": self.data.emotion[clip],
            "frame_mask": frames < stop,
            "drop_audio": torch.tensor(bool(rng.random() < self.drop_audio)),
            "drop_emotion": torch.tensor(bool(rng.random() < self.drop_emotion)),
        }


@torch.no_grad()
def encode_clips(
    pipeline: str | os.PathLike,
    folders: Sequence[Path],
    output: str | os.PathLike,
    cpu: bool = False,
    clips_per_file: int = 64,
    process: int = 0,
    num_processes: int = 1,
    emotion_classifier: str | os.PathLike | None = None,
) -> None:
    """Read the motion and the audio of all clips with a pipeline's renderer and audio encoder, into files.

    A file appears when it is whole, and one that is there is not made again: an interrupted run continues. With several
    processes each makes its own files.

    Args:
        pipeline (`str` or `os.PathLike`): Pipeline with `renderer`, `audio_encoder` and `audio_processor`.
        folders (`Sequence[Path]`): Folders with `clips/*.mp4`: square face crops with audio at 25 frames per second;
            `emotions.csv` (clip,emotion) with MoDA's names, if there is one, which goes before the classifier.
        output (`str` or `os.PathLike`): Folder for `clips-*.safetensors`, see `KeypointShards`.
        cpu (`bool`, defaults to `False`): Use the CPU even if there is a GPU.
        clips_per_file (`int`, defaults to 64): Clips of a file.
        process (`int`, defaults to 0): Number of this process.
        num_processes (`int`, defaults to 1): Number of processes.
        emotion_classifier (`str` or `os.PathLike`, *optional*):
            Labels the clips (§3.2.1), see `load_emotion_classifier`; without it their emotion is unknown.

    Raises:
        ValueError: If there are no clips, `emotions.csv` names an emotion that MoDA does not know, or `output` holds
            what was read of other clips or by another pipeline.
    """
    from transformers import AutoModel

    from vasa_hf.models.renderer_liveportrait import LivePortraitRenderer
    from vasa_hf.processors.audio import VasaAudioProcessor

    clips = [
        (clip, emotions) for folder in folders for emotions in [read_emotions(folder)] for clip in list_clips(folder)
    ]
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    about: dict = {"pipeline": os.fspath(pipeline), "clips": [str(clip.path) for clip, _ in clips]}
    if emotion_classifier is not None:
        about["emotion_classifier"] = os.fspath(emotion_classifier)
    settings = output / "clips.json"
    if not settings.exists():
        write_whole(settings, lambda path: path.write_text(json.dumps(about, indent=1)))
    elif json.loads(settings.read_text()) != about:
        raise ValueError(f"`output` holds motion of other clips, or read by another pipeline: remove {str(output)!r}.")
    numbers = range(process, math.ceil(len(clips) / clips_per_file), num_processes)
    targets = {number: output / f"clips-{number:06d}.safetensors" for number in numbers}
    missing = {number: path for number, path in targets.items() if not path.exists()}
    if not missing:
        return
    device = "cuda" if torch.cuda.is_available() and not cpu else "cpu"
    load = lambda kind, name: kind.from_pretrained(component_root(pipeline, name), subfolder=name)  # noqa: E731
    renderer = load(LivePortraitRenderer, "renderer").to(device).eval()
    encoder = load(AutoModel, "audio_encoder").to(device).eval()
    processor = load(VasaAudioProcessor, "audio_processor")
    classifier = None if emotion_classifier is None else load_emotion_classifier(emotion_classifier, pipeline, device)
    for number, path in missing.items():
        parts: dict[str, list[Tensor]] = {"motion": [], "audio": [], "keypoints": [], "emotion": []}
        for clip, emotions in clips[number * clips_per_file : (number + 1) * clips_per_file]:
            motion, keypoints = read_motion(renderer, clip)
            samples = torch.from_numpy(clip.read_audio(len(motion)))[None]
            starts = range(0, len(motion), _AUDIO_WINDOW)
            windows = [(start, min(_AUDIO_WINDOW, len(motion) - start)) for start in starts]
            audio = torch.cat([processor.window_features(encoder, samples.to(device), *span) for span in windows], 1)[0]
            parts["motion"].append(motion)
            parts["audio"].append((audio if audio.ndim == 3 else audio[:, None]).half().cpu())
            parts["keypoints"].append(keypoints[:1])
            emotion = emotions.get(clip.path.stem)
            if emotion is None and classifier is not None:
                emotion = label_clip(classifier, clip.read_frames(renderer.config.image_size, _BATCH))
            parts["emotion"].append(torch.tensor([NO_EMOTION if emotion is None else emotion]))
        offsets = torch.tensor([0, *(len(motion) for motion in parts["motion"])]).cumsum(0)
        data = KeypointData(offsets=offsets, **{name: torch.cat(values) for name, values in parts.items()})
        write_whole(path, data.save)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name and rename it, so that it is whole or not there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    write(partial)
    os.replace(partial, path)


def read_motion(renderer, clip: ClipFile) -> tuple[Tensor, Tensor]:
    """Motion `(frames, 70)` and canonical keypoints `(frames, 63)` of a clip."""
    device, motions, keypoints = next(renderer.parameters()).device, [], []
    for images in clip.read_frames(renderer.config.image_size, _BATCH):
        motion = renderer.extract_motion(images.to(device, renderer.dtype))
        motions.append(motion.to_vector().float().cpu())
        keypoints.append(motion.kp.flatten(1).float().cpu())
    return torch.cat(motions), torch.cat(keypoints)


def read_emotions(folder: Path) -> dict[str, int]:
    """Clip -> number of its emotion, by `emotions.csv` of lines `clip,emotion`; empty where there is no such file."""
    path = folder / "emotions.csv"
    if not path.exists():
        return {}
    rows = [line.split(",") for line in path.read_text().splitlines()[1:] if line.strip()]
    if unknown := {row[-1].strip() for row in rows} - set(EMOTIONS):
        raise ValueError(f"`folder`: emotions.csv knows {list(EMOTIONS)}, got {sorted(unknown)}.")
    return {clip: EMOTIONS.index(emotion.strip()) for clip, emotion in rows}

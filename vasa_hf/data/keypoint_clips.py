"""Training samples of MoDA's motion generator, as the paper makes them: a renderer reads the motion of every frame.

`KeypointData` holds the 70 numbers of each frame (expression 63, scale, translation 3, pitch, yaw, roll in degrees) and
its audio features, and for each clip the person's canonical keypoints and the emotion. `KeypointClips` cuts windows out
of it (paper §4.1.2: 80 frames at random).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from vasa_hf.data.clip_files import ClipFile, list_clips
from vasa_hf.data.shards import training_folder
from vasa_hf.geometry.keypoints import MOTION_DIM
from vasa_hf.models.motion_transformer_moda import EMOTIONS

NO_EMOTION = len(EMOTIONS)
_BATCH = 16


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

    @classmethod
    def load(cls, path: str | os.PathLike) -> KeypointData:
        """Read what `save` wrote."""
        tensors = load_file(path)
        expected = {item.name for item in fields(cls)}
        if set(tensors) != expected:
            raise ValueError(f"`path`: {Path(path).name} must hold {sorted(expected)}, got {sorted(tensors)}.")
        return cls(**tensors)


class KeypointClips(Dataset):
    """Windows of clips: `dataset[i]` is a pure function of the seed and `i`, for any `i >= 0`.

    A sample is a dict: `motion` (window, 70) not normalised, `previous_motion` (70,), `audio` (window, L, A),
    `keypoints` (63,), `emotion` () int64, `frame_mask` (window,) bool, `drop_audio` and `drop_emotion` () bool. Clips
    shorter than a window are padded and masked.

    Args:
        data (`KeypointData`): Clips.
        window (`int`, defaults to 80): Frames of a window (paper §4.1.2).
        seed (`int`, defaults to 0): Seed.
        drop_audio (`float`, defaults to 0.5): Drop probability of speech (paper §4.1.2).
        drop_emotion (`float`, defaults to 0.1): Drop probability of the emotion (paper §4.1.2).
    """

    def __init__(
        self, data: KeypointData, window: int = 80, seed: int = 0, drop_audio: float = 0.5, drop_emotion: float = 0.1
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
        inside = frames.clamp(max=stop - 1)
        # The frame before the window, as from the window before; in a clip's first window its first frame (§3.2.1).
        return {
            "motion": self.data.motion[inside],
            "previous_motion": self.data.motion[max(first - 1, start)],
            "audio": self.data.audio[inside].float(),
            "keypoints": self.data.keypoints[clip],
            "emotion": self.data.emotion[clip],
            "frame_mask": frames < stop,
            "drop_audio": torch.tensor(bool(rng.random() < self.drop_audio)),
            "drop_emotion": torch.tensor(bool(rng.random() < self.drop_emotion)),
        }


@torch.no_grad()
def encode_clips(pipeline: str | os.PathLike, folder: str | os.PathLike, cpu: bool = False) -> KeypointData:
    """Read the motion and the audio of all clips with a pipeline's renderer and audio encoder.

    # Not in the paper: emotions come from a classifier there; here from a file, or they are unknown.

    Args:
        pipeline (`str` or `os.PathLike`): Pipeline folder with `renderer`, `audio_encoder` and `audio_processor`.
        folder (`str` or `os.PathLike`): Shards, or a folder with `clips/*.mp4`: square face crops with audio at 25
            frames per second; `emotions.csv` (clip,emotion) with MoDA's names, if there is one.
        cpu (`bool`, defaults to `False`): Use the CPU even if there is a GPU.

    Raises:
        ValueError: If there are no clips, or `emotions.csv` names an emotion that MoDA does not know.
    """
    from transformers import AutoModel

    from vasa_hf.models.renderer_liveportrait import LivePortraitRenderer
    from vasa_hf.processors.audio import VasaAudioProcessor

    folder = training_folder(folder)
    clips = list_clips(folder)
    emotions = read_emotions(folder / "emotions.csv")
    device = "cuda" if torch.cuda.is_available() and not cpu else "cpu"
    renderer = LivePortraitRenderer.from_pretrained(pipeline, subfolder="renderer").to(device).eval()
    encoder = AutoModel.from_pretrained(pipeline, subfolder="audio_encoder").to(device).eval()
    processor = VasaAudioProcessor.from_pretrained(pipeline, subfolder="audio_processor")
    motions, audios, offsets, keypoints = [], [], [0], []
    for clip in clips:
        motion, kp = read_motion(renderer, clip)
        samples = torch.from_numpy(clip.read_audio(len(motion)))[None]
        audio = torch.cat(
            [
                processor.window_features(encoder, samples, start, min(80, len(motion) - start))
                for start in range(0, len(motion), 80)
            ],
            dim=1,
        )[0].cpu()
        motions.append(motion)
        audios.append((audio if audio.ndim == 3 else audio[:, None]).half())
        keypoints.append(kp[0])
        offsets.append(offsets[-1] + len(motion))
    return KeypointData(
        motion=torch.cat(motions),
        audio=torch.cat(audios),
        offsets=torch.tensor(offsets),
        keypoints=torch.stack(keypoints),
        emotion=torch.tensor([emotions.get(clip.path.stem, NO_EMOTION) for clip in clips]),
    )


def read_motion(renderer, clip: ClipFile) -> tuple[Tensor, Tensor]:
    """Motion `(frames, 70)` and canonical keypoints `(frames, 63)` of a clip."""
    device, motions, keypoints = next(renderer.parameters()).device, [], []
    for images in clip.read_frames(renderer.config.image_size, _BATCH):
        motion = renderer.extract_motion(images.to(device, renderer.dtype))
        motions.append(motion.to_vector().float().cpu())
        keypoints.append(motion.kp.flatten(1).float().cpu())
    return torch.cat(motions), torch.cat(keypoints)


def read_emotions(path: Path) -> dict[str, int]:
    """Clip -> number of its emotion, from a file of lines `clip,emotion`; empty where there is no file."""
    if not path.exists():
        return {}
    rows = [line.split(",") for line in path.read_text().splitlines()[1:] if line.strip()]
    if unknown := {row[-1].strip() for row in rows} - set(EMOTIONS):
        raise ValueError(f"`folder`: emotions.csv knows {list(EMOTIONS)}, got {sorted(unknown)}.")
    return {clip: EMOTIONS.index(emotion.strip()) for clip, emotion in rows}

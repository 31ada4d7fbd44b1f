"""What MoDA's two trainings, of the motion generator and of its lip-sync expert, learn from: options and datasets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import Dataset

from vasa_hf.data.clips import MotionData, MotionPriors, data_folders
from vasa_hf.data.keypoint_clips import KeypointClips, KeypointData, KeypointShards, encode_clips
from vasa_hf.data.keypoint_sequences import KeypointSequences, emotion_offsets, load_faces
from vasa_hf.data.landmark_dynamics import LandmarkDynamics
from vasa_hf.geometry.keypoints import LIP_KEYPOINTS
from vasa_hf.hub import resolve
from vasa_hf.training.options import LoopOptions, option

# The lips' 18 of the 63 numbers of the expression.
LIP_CHANNELS = [3 * point + axis for point in LIP_KEYPOINTS for axis in range(3)]


@dataclass
class ModaDataOptions(LoopOptions):
    """Two ways to motion of 70 numbers: read from videos by a renderer, or made of landmark labels and talkers."""

    pipeline: str = option("", "pipeline whose renderer and audio encoder read the clips of --data, as in the paper")
    data: list[str] = option([], "folders with clips/*.mp4, or shards; with clips.npz where labels make the motion")
    emotion_classifier: str | None = option(
        None, "labels clips that emotions.csv does not: image classifier of transformers, or fer's weights"
    )
    prepared: str | None = option(None, "keypoints/ of an earlier run; with labels motion_data.safetensors")
    talkers: list[str] = option([], "files of vasa_hf.data.synthetic.talkers; go with labels")
    talker_share: float | None = option(None, "share of the windows drawn from talkers (default: by their length)")
    priors: str | None = option(None, "safetensors file of known directions in z_dyn; goes with labels")
    landmark_dynamics: str | None = option(None, "landmark dynamics file that defines z_dyn; goes with labels")
    head: str | None = option(None, "ict_facekit.npz, for emotions; goes with labels")
    window: int = option(80, "frames of a window")
    drop_audio: float = option(0.5, "how often a sample has no audio")
    drop_emotion: float = option(0.1, "how often a sample has no emotion")


def make_dataset(options: ModaDataOptions, drop_audio: float | None = None) -> Dataset:
    """The dataset that the options name.

    Args:
        options (`ModaDataOptions`): See there.
        drop_audio (`float`, *optional*): Instead of that of the options.

    Raises:
        ValueError: If what the options name does not suffice.
    """
    drop_audio = options.drop_audio if drop_audio is None else drop_audio
    if options.landmark_dynamics:
        return _make_labelled(options, drop_audio)
    kept = Path(options.prepared or Path(options.output) / "keypoints")
    if not options.prepared:
        if not (options.pipeline and options.data):
            raise ValueError("`prepared`, or `pipeline` and `data`, or `landmark_dynamics` must be given.")
        process = PartialState(cpu=options.cpu)
        own = {"process": process.process_index, "num_processes": process.num_processes}
        own["emotion_classifier"] = options.emotion_classifier
        encode_clips(options.pipeline, data_folders(options.data), kept, options.cpu, **own)
        process.wait_for_everyone()
    data = KeypointShards(kept) if kept.is_dir() else KeypointData.load(kept)
    return KeypointClips(data, options.window, options.seed, drop_audio, options.drop_emotion)


def _make_labelled(options: ModaDataOptions, drop_audio: float) -> KeypointSequences:
    for name in ("prepared", "data", "priors"):
        if not getattr(options, name):
            raise ValueError(f"`{name}` must be given with `landmark_dynamics`.")
    dynamics = LandmarkDynamics.load(resolve(options.landmark_dynamics))
    clips = MotionData.load(options.prepared)
    data = clips.join([MotionData.load(path) for path in options.talkers])
    keypoints, poses = zip(*(load_faces(folder, dynamics) for folder in data_folders(options.data)), strict=True)
    return KeypointSequences(
        data,
        (torch.cat(keypoints), torch.cat(poses)),
        dynamics,
        MotionPriors.load(resolve(options.priors)),
        emotion_offsets(dynamics, options.head) if options.head else None,
        options.window,
        options.seed,
        drop_audio,
        options.drop_emotion,
        exact=np.arange(len(data.person)) >= len(clips.person),  # talkers
        exact_share=options.talker_share,
    )


def as_columns(audio: Tensor, columns: int = 4) -> Tensor:
    """Audio features laid out as the spectrogram of a sync expert, which has four columns per frame.

    Its first layer sees three whole frames at once, so that it does not matter which feature stands in which column.

    Args:
        audio (`torch.Tensor` of shape `(..., frames, layers, channels)`): Audio features.
        columns (`int`, defaults to 4): Of each frame.

    Returns:
        `torch.Tensor` of shape `(..., 4 * frames, layers * channels / 4)`.
    """
    flat = audio.flatten(-2)
    if flat.shape[-1] % columns:
        raise ValueError(
            f"`audio` must have a multiple of {columns} numbers per frame, got shape {tuple(audio.shape)}."
        )
    return flat.unflatten(-1, (columns, -1)).flatten(-3, -2)


def lips_of(motion: Tensor) -> Tensor:
    """The lips' numbers `(..., 18)` of motion `(..., 70)`."""
    return motion[..., torch.tensor(LIP_CHANNELS, device=motion.device)]

"""Motion and audio features of clips, for the trainings that learn from them: options, and how they are computed once.

`OUTPUT/motion_data.safetensors` keeps what was computed; `--prepared` reads it again in another run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vasa_hf.data.clip_files import CONDITIONS, ClipFile, list_clips
from vasa_hf.data.clips import (
    MotionData,
    MotionPriors,
    data_folders,
    encode_audio,
    motion_from_labels,
    silent_recordings,
)
from vasa_hf.data.filters import speaking
from vasa_hf.hub import resolve
from vasa_hf.training.options import LoopOptions, option

SILENT_RECORDINGS, SILENT_FRAMES = 24, 75
LEAST_LEVEL = 3e-3  # root mean square of the samples of a clip that has audio

AudioFeatures = Callable[[np.ndarray, int], np.ndarray]  # samples, frames -> [frames, A] float16


@dataclass
class ClipOptions(LoopOptions):
    """Where motion and audio of clips come from."""

    data: list[str] = option([], "one or several folders with clips/*.mp4, or of shards")
    prepared: str | None = option(None, "file that an earlier run kept of --data, instead of --data")
    motion_cache: str | None = option(None, "motion of all frames of all folders (.npy), computed before")


@dataclass
class MotionDataOptions(ClipOptions):
    """Motion of VASA-1's latent space with the features of its audio encoder."""

    pipeline: str = option("", "pipeline whose face autoencoder and audio encoder read the clips, such as vasa-small")
    moving_crops: list[str] = option([], "those of --data whose square follows the head: translation is not learnt")
    audio_cache: str | None = option(None, "audio features of all frames of all folders (.npy), computed before")
    labels: bool = option(False, "motion and priors from the landmark labels in --data, not by the face autoencoder")
    landmark_dynamics: str | None = option(None, "file that defines z_dyn, such as vasa-small's; goes with --labels")
    head: str | None = option(None, "ict_facekit.npz, for the emotion directions that go with --labels")
    talkers: list[str] = option([], "files of vasa_hf.data.synthetic.talkers to learn from next to the clips")


def prepare_motion_data(options: MotionDataOptions, window: int = 50) -> MotionData:
    """Motion and audio features of all clips, from the prepared file, the caches or the pipeline's models.

    Args:
        options (`MotionDataOptions`): See there.
        window (`int`, defaults to 50): Frames that are encoded together, as the pipeline does.

    Raises:
        ValueError: If the options name neither a prepared file nor clips and a pipeline, or a cache has other frames.
    """
    kept = Path(options.output) / "motion_data.safetensors"
    if options.prepared or kept.exists():
        return MotionData.load(options.prepared or kept)
    if not options.data or not options.pipeline:
        raise ValueError("`data` and `pipeline` must be given unless `prepared` is.")
    folders, motion, audio = data_folders(options.data), None, None
    moving = data_folders(options.moving_crops)
    if not set(moving) <= set(folders):
        raise ValueError(f"`moving_crops` must be among `data`, got {options.moving_crops}.")
    if options.labels:
        dynamics = resolve(options.landmark_dynamics) if options.landmark_dynamics else None
        motion, priors = motion_from_labels(folders, options.head, dynamics)
        kept.parent.mkdir(parents=True, exist_ok=True)
        priors.save(kept.with_name("priors.safetensors"))
    elif options.motion_cache:
        motion = np.load(options.motion_cache)
    if options.audio_cache:
        audio = np.load(options.audio_cache).astype(np.float16)
    features = load_audio_features(options.pipeline, window, options.cpu)
    encode = load_motion_encoder(options.pipeline, options.cpu) if motion is None else None
    data = read_motion(folders, features, encode, motion, audio, moving)
    kept.parent.mkdir(parents=True, exist_ok=True)
    data.save(kept)
    return data


def load_priors(options: MotionDataOptions, priors: str | None) -> MotionPriors | None:
    """Known directions in z_dyn: those of the file `priors`, else those that `labels` wrote; `None` without either."""
    if not priors and not options.labels:
        return None
    return MotionPriors.load(resolve(priors) if priors else Path(options.output) / "priors.safetensors")


def load_audio_features(pipeline: str, window: int, cpu: bool = False) -> AudioFeatures:
    """The audio encoder of a pipeline, as a function from samples to features of frames, window by window."""
    from transformers import Wav2Vec2Model

    from vasa_hf.processors.audio import VasaAudioProcessor

    folder = resolve(pipeline)
    processor = VasaAudioProcessor.from_pretrained(folder, subfolder="audio_processor")
    encoder = Wav2Vec2Model.from_pretrained(folder, subfolder="audio_encoder").to(_device(cpu)).eval()
    return lambda samples, frames: encode_audio(processor, encoder, samples, frames, window)


def load_motion_encoder(pipeline: str, cpu: bool = False) -> Callable[[ClipFile], np.ndarray]:
    """The motion encoders of a pipeline's face autoencoder, as a function from a clip to motion `(frames, M)`."""
    from vasa_hf.models.face_autoencoder_vasa1 import Vasa1FaceAutoencoder

    model = Vasa1FaceAutoencoder.from_pretrained(resolve(pipeline), subfolder="face_autoencoder")
    model = model.to(_device(cpu)).eval()

    @torch.no_grad()
    def encode(clip: ClipFile) -> np.ndarray:
        batches = (images.to(model.device) * 2.0 - 1.0 for images in clip.read_frames(model.config.image_size))
        return np.concatenate([model.encode_motion(images).float().cpu().numpy() for images in batches])

    return encode


def _device(cpu: bool) -> str:
    return "cuda" if torch.cuda.is_available() and not cpu else "cpu"


def read_motion(
    folders: list[Path],
    features: AudioFeatures,
    encode: Callable[[ClipFile], np.ndarray] | None = None,
    motion: np.ndarray | None = None,
    audio: np.ndarray | None = None,
    moving: list[Path] = (),
) -> MotionData:
    """Read all clips of some folders.

    Args:
        folders (`list[Path]`): Folders of clips. People of different folders are different people.
        features (`Callable`): Samples and number of frames to audio features `(frames, A)`.
        encode (`Callable`, *optional*): Clip to motion `(frames, M)`; needed without `motion`.
        motion (`numpy.ndarray` of shape `(frames, M)`, *optional*): Motion of all frames of all folders.
        audio (`numpy.ndarray` of shape `(frames, A)`, *optional*): Audio features of all frames of all folders.
        moving (`list[Path]`): Folders whose square follows the head.

    Raises:
        ValueError: If `motion` or `audio` has other frames than the clips.
    """
    silence = np.stack(
        [features(samples, SILENT_FRAMES) for samples in silent_recordings(SILENT_RECORDINGS, SILENT_FRAMES)]
    )
    parts, first = [], 0
    for folder in folders:
        clips, motions, audios, quiet, frames, speaks = list_clips(folder), [], [], [], [], []
        for clip in clips:
            if motion is None:
                motions.append(encode(clip))
            elif clip.num_frames is None:
                raise ValueError(
                    "`motion_cache` needs `data` with a clips.npz, whose `offsets` say where each clip begins."
                )
            else:
                motions.append(motion[first : first + clip.num_frames].astype(np.float32))
            frames.append(clip.num_frames if motion is not None else len(motions[-1]))
            samples = clip.read_audio(frames[-1])
            # A clip that is quiet throughout shows a face without its audio.
            speaks.append(bool(np.sqrt((samples**2).mean()) > LEAST_LEVEL))
            quiet.append(~speaking(torch.from_numpy(samples), frames[-1]).numpy())
            known = None if audio is None else audio[first : first + frames[-1]]
            audios.append(features(samples, frames[-1]) if known is None else known)
            first += frames[-1]
        check_frames(first, exact=False, motion_cache=motion, audio_cache=audio)
        labels = {
            name: np.concatenate([clip.labels[name][:count] for clip, count in zip(clips, frames, strict=True)])
            for name in CONDITIONS
            if name in clips[0].labels
        }
        parts.append(
            MotionData(
                motion=np.concatenate(motions),
                audio=np.concatenate(audios),
                offsets=np.cumsum([0, *frames]),
                person=np.unique([clip.person for clip in clips], return_inverse=True)[1],
                speaks=np.array(speaks),
                silence=silence,
                quiet=np.concatenate(quiet),
                translates=np.full(len(clips), folder not in moving),
                **labels,
            )
        )
    check_frames(first, motion_cache=motion, audio_cache=audio)
    return parts[0].join(parts[1:])


def check_frames(count: int, exact: bool = True, **caches: np.ndarray | None) -> None:
    """Refuse caches that have other frames than the clips.

    Args:
        count (`int`): Frames of the clips.
        exact (`bool`, defaults to `True`): Whether a cache may not have more.
        **caches: Name of the option -> array, or `None`.

    Raises:
        ValueError: If one of them does not fit.
    """
    for name, values in caches.items():
        if values is not None and (len(values) < count or exact and len(values) != count):
            raise ValueError(f"`{name}` must have the {count} frames of all clips, got {len(values)}.")

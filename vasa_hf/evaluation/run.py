"""One run over one folder: what the protocols ask of the pipeline, the data and the networks.

A pipeline is asked through its public methods (`prepare_portrait`, `animate`, `__call__`, `render`, `encode_video`), so
that every system of this package can be judged alike.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vasa_hf.evaluation.avatars import EvalAvatar
from vasa_hf.evaluation.catalogue import FULL, METRICS, check_names
from vasa_hf.evaluation.data import Clip, EvalData, load_samples, to_uint8
from vasa_hf.evaluation.inference import quick_detector
from vasa_hf.evaluation.scoring import fit_lip_motion
from vasa_hf.geometry.crops import WHOLE_PICTURE_BOX
from vasa_hf.metrics.faces import FaceTrack, measure_faces
from vasa_hf.metrics.motion import FPS, SAMPLES_PER_FRAME


@dataclass
class Truth:
    """What is kept of a real clip after its frames are gone.

    Attributes:
        track (`FaceTrack`): By the analyzer.
        labels (`FaceTrack` or `None`): The data's own.
        latent (`torch.Tensor` of shape `(frames, channels)` or `None`): Motion as the pipeline encodes it.
    """

    track: FaceTrack
    labels: FaceTrack | None
    latent: Tensor | None

    @property
    def best(self) -> FaceTrack:
        """Labels where there are some."""
        return self.track if self.labels is None else self.labels


class Evaluation:
    """One run over one folder.

    Args:
        pipeline (`VasaTalkingFacePipeline` or another with its methods): What is judged.
        data (`str` or `os.PathLike`): See `EvalData`.
        output (`str` or `os.PathLike`): Folder to write to; made if need be.
        networks (`dict`, *optional*): Metric networks by name, see `scoring.ABSENT`.
        metrics (`Sequence[str]`, *optional*): Only these of `METRICS`.
        limit (`int`, *optional*): Take so many clips, portraits and voices at most.
        samples (`int`, defaults to 3): Videos generated for each sound.
        seed (`int`, defaults to 0): Of their random numbers.
        sheets (`bool`, defaults to `True`): Write a picture of frames side by side for each video.
        detector (`FaceAnalyzer` or another, *optional*): Measures faces; the pipeline's analyzer by default.
        avatars (`Mapping`, *optional*): Name -> function that loads an `EvalAvatar`, to be compared with `pipeline`.
        reference (`VasaTalkingFacePipeline`, *optional*): Encodes for the sync expert and CAPP; `pipeline` by default.
    """

    def __init__(
        self,
        pipeline,
        data: str | os.PathLike,
        output: str | os.PathLike,
        networks: dict[str, Any] | None = None,
        metrics: Sequence[str] | None = None,
        limit: int | None = None,
        samples: int = 3,
        seed: int = 0,
        sheets: bool = True,
        detector=None,
        avatars: Mapping[str, Callable[[], EvalAvatar]] | None = None,
        reference=None,
    ):
        check_names(None, metrics)
        self.pipeline, self.data, self.output = pipeline, EvalData(data, limit), Path(output)
        self.model = FULL if avatars else getattr(pipeline, "model_name", None) or type(pipeline).__name__
        self.avatars, self.reference = dict(avatars or {}), reference or pipeline
        self.has_gaze = "gaze" in pipeline.control_names()
        self.asked = set(metrics) if metrics else None
        self.networks = networks or {}
        self.num_samples, self.seed, self.sheets = samples, seed, sheets
        self.detector = detector or quick_detector(pipeline.face_analyzer)
        self.size = pipeline.output_sizes[0]
        self.whole = tuple(self.size * share for share in WHOLE_PICTURE_BOX)
        self.truths: dict[Path, Truth] = {}
        self.seconds, self.cpu_seconds = {"generate": 0.0, "score": 0.0}, {"generate": 0.0, "score": 0.0}

    def load(self, path: Path) -> Clip:
        """One clip as face crops; raises `ValueError` if it is unfit."""
        return self.data.load_clip(path, self.size, self.pipeline.face_analyzer, self.pipeline.audio_processor)

    def first_of(self, paths: Sequence[Path]) -> Clip:
        """The first of these clips that can be read."""
        for path in paths:
            with contextlib.suppress(ValueError, OSError):
                return self.load(path)
        raise ValueError("there is no clip to drive the portrait.")

    def wanted(self, names: Iterable[str]) -> list[str]:
        """Those of the metrics that are asked for."""
        return [name for name in names if self.asked is None or name in self.asked]

    def wanted_values(self, values: dict[str, float]) -> dict[str, float]:
        """Numbers of the metrics that are asked for."""
        return {name: values[name] for name in self.wanted(values)}

    def has(self, network: str) -> bool:
        """Whether a network is there and a metric that needs it is asked for."""
        used = {name for name, metric in METRICS.items() if metric.needs == network}
        return self.networks.get(network) is not None and (self.asked is None or bool(used & self.asked))

    def truth(self, clip: Clip, encode: bool = True) -> Truth:
        """What a detector and the pipeline's encoder see in a real clip; measured once."""
        path = next(path for path in self.data.clips if path.stem == clip.name)
        if path not in self.truths:
            with self.clock("score"):
                self.truths[path] = Truth(self.need_track(clip.frames), clip.labels, None)
        truth = self.truths[path]
        if encode and truth.latent is None:
            with self.clock("generate"):
                truth.latent = self.encode(clip.frames)
        return truth

    def seen(self, frames: Tensor, motion: Tensor) -> Tensor | None:
        """Generated motion `(frames, channels)` as the sync expert knows it: itself, or what is encoded from frames."""
        return motion.cpu() if self.reference is self.pipeline else self.encode(frames)

    def encode(self, frames: Tensor) -> Tensor | None:
        """Motion `(frames, channels)` that the reference's encoder sees in frames, if there is a sync expert for it."""
        if not self.has("sync_expert"):
            return None
        return self.reference.encode_video(to_uint8(frames), box=self.whole, follow=False)[0].cpu()

    def truth_of(self, path: Path) -> Truth:
        """The same for a file."""
        known = self.truths.get(path)
        if known is not None and (known.latent is not None or not self.has("sync_expert")):
            return known
        return self.truth(self.load(path))

    def lip_motion(self) -> Tensor | None:
        """What opening the mouth adds to a motion vector, from the real clips."""
        latents, gaps = [], []
        for path in self.data.clips:
            with contextlib.suppress(ValueError, OSError):
                truth = self.truth_of(path)
                if truth.latent is not None:
                    latents.append(truth.latent)
                    gaps.append(truth.best.lip_gap[: len(truth.latent)])
        return fit_lip_motion(latents, gaps) if latents else None

    def portrait(self, image: Any, box: Sequence[float] | None = None) -> Any:
        """A prepared portrait."""
        with self.clock("generate"):
            return self.pipeline.prepare_portrait(image, box=box)

    def motion(self, portrait: Any, samples: Tensor, **settings: Any) -> Tensor:
        """Motion `(frames, channels)` generated for a sound."""
        sound = (samples.numpy(), SAMPLES_PER_FRAME * FPS)
        return self.pipeline(portrait, sound, output_type="latent", **settings).motion[0].cpu()

    def render(self, portrait: Any, latent: Tensor) -> Tensor:
        """Frames `(frames, 3, size, size)` in [0, 1] of a motion."""
        return self.pipeline.render(portrait, latent, output_type="pt").frames

    def picture(self, portrait: Any) -> Tensor:
        """The crop of a prepared portrait, `(1, 3, size, size)` in [0, 1]."""
        picture = portrait.crop.image[None].float() * 0.5 + 0.5
        if picture.shape[-1] != self.size:
            picture = F.interpolate(picture, self.size, mode="bilinear", antialias=True)
        return picture.clamp(0, 1)

    @functools.cached_property
    def sounds(self) -> list[tuple[str, Tensor]]:
        """Who speaks, and the samples, of all clips and voices that can be heard."""
        sounds = []
        for path in (*self.data.clips, *self.data.speech):
            with contextlib.suppress(ValueError, OSError):
                samples = load_samples(path, self.pipeline.audio_processor)
                sounds.append((self.data.people.get(path.stem, path.stem), samples))
        return sounds

    def wrong_sound(self, person: str, num_frames: int, index: int) -> dict[str, Tensor | None]:
        """A stranger's sound that lasts so long, and its features, as a `Case` has them; none if nobody speaks so long.

        Args:
            person (`str`): Who is speaking.
            num_frames (`int`): Frames to be filled.
            index (`int`): Chooses among the strangers.
        """
        size = num_frames * SAMPLES_PER_FRAME
        others = [samples for who, samples in self.sounds if who != person and len(samples) >= size]
        if not others:
            return {}
        samples = others[7 * index % len(others)][:size]
        features = self.audio_features(samples, num_frames) if self.has("capp") else None
        return {"wrong_samples": samples, "wrong_features": features}

    def audio_features(self, samples: Tensor, num_frames: int) -> Tensor:
        """The audio encoder's features `(frames, dim)`."""
        processor, encoder = self.reference.audio_processor, self.reference.audio_encoder
        with torch.no_grad():
            return processor.window_features(encoder, samples[None], 0, num_frames)[0].float().cpu()

    def canonical(self) -> Tensor:
        """The analyzer's mean face."""
        return self.pipeline.face_analyzer.canonical.float().cpu()

    def need_track(self, frames: Tensor) -> FaceTrack:
        """The face in real frames; raises `ValueError` if the detector sees none."""
        return measure_faces(self.detector, frames)

    def track(self, frames: Tensor) -> FaceTrack | None:
        """The face in generated frames, or `None` if the detector sees none."""
        try:
            return self.need_track(frames)
        except ValueError:
            return None

    @contextlib.contextmanager
    def clock(self, what: str):
        """Count the seconds spent inside as `what`."""
        started, worked = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started
            self.cpu_seconds[what] += time.process_time() - worked

"""One run over one folder: access of the protocols to the pipeline, the data and the networks.

Only the pipeline's public methods are called (`prepare_portrait`, `animate`, `__call__`, `render`, `encode_video`), so
that every system of this package can be evaluated.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vasa_hf.evaluation.avatars import EvalAvatar
from vasa_hf.evaluation.catalogue import FULL, METRICS, check_names
from vasa_hf.evaluation.data import Clip, EvalData, load_samples, to_uint8
from vasa_hf.evaluation.inference import optimize_detector
from vasa_hf.evaluation.scoring import fit_lip_motion
from vasa_hf.geometry.crops import WHOLE_PICTURE_BOX
from vasa_hf.metrics.faces import FaceTrack, measure_faces
from vasa_hf.metrics.motion import FPS, SAMPLES_PER_FRAME


@dataclass
class ReferenceClip:
    """Measurements of a real clip, kept without its frames.

    Attributes:
        track (`FaceTrack`): From the face analyzer.
        labels (`FaceTrack` or `None`): Labels of the data.
        latent (`torch.Tensor` of shape `(frames, channels)` or `None`): Motion as the pipeline encodes it.
    """

    track: FaceTrack
    labels: FaceTrack | None
    latent: Tensor | None

    @property
    def best(self) -> FaceTrack:
        """Labels if there are any, else the track."""
        return self.track if self.labels is None else self.labels


class Evaluation:
    """One run over one folder.

    Args:
        pipeline (`VasaTalkingFacePipeline` or another with its methods): The pipeline.
        data (`str` or `os.PathLike`): See `EvalData`.
        output (`str` or `os.PathLike`): Folder to write to; created if it does not exist.
        networks (`dict`, *optional*): Networks of metrics by name, see `scoring.ABSENT`.
        metrics (`Sequence[str]`, *optional*): Only these names in `METRICS`.
        limit (`int`, *optional*): Maximal number of clips, portraits and voices.
        samples (`int`, defaults to 3): Videos per audio file.
        seed (`int`, defaults to 0): Random seed.
        sheets (`bool`, defaults to `True`): Write an image of frames side by side for each video.
        detector (`FaceAnalyzer` or another, *optional*): Measures faces; by default the pipeline's analyzer.
        avatars (`Mapping`, *optional*): Name -> function that loads an `EvalAvatar`, to compare with `pipeline`.
        reference (`VasaTalkingFacePipeline`, *optional*): Encodes for the sync expert and CAPP; `pipeline` by default.
        transfers (`int`, defaults to 3): Clips of other people that drive each person in `disentangle` (paper: 50).
    """

    def __init__(
        self,
        pipeline: Any,
        data: str | os.PathLike,
        output: str | os.PathLike,
        networks: dict[str, Any] | None = None,
        metrics: Sequence[str] | None = None,
        limit: int | None = None,
        samples: int = 3,
        seed: int = 0,
        sheets: bool = True,
        detector: Any = None,
        avatars: Mapping[str, Callable[[], EvalAvatar]] | None = None,
        reference: Any = None,
        transfers: int = 3,
    ):
        check_names(None, metrics)
        self.pipeline, self.data, self.output = pipeline, EvalData(data, limit), Path(output)
        self.model = FULL if avatars else getattr(pipeline, "model_name", None) or type(pipeline).__name__
        self.avatars, self.reference = dict(avatars or {}), reference or pipeline
        self.has_gaze = "gaze" in pipeline.control_names()
        self.requested = set(metrics) if metrics else None
        self.networks = networks or {}
        self.num_samples, self.seed, self.sheets, self.transfers = samples, seed, sheets, transfers
        self.detector = detector or optimize_detector(pipeline.face_analyzer)
        self.size = pipeline.output_sizes[0]
        self.whole = tuple(self.size * share for share in WHOLE_PICTURE_BOX)
        self.references: dict[Path, ReferenceClip] = {}
        self.seconds, self.cpu_seconds = {"generate": 0.0, "score": 0.0}, {"generate": 0.0, "score": 0.0}

    def load(self, path: Path) -> Clip:
        """Load a clip as face crops; raises `ValueError` if it is unusable."""
        return self.data.load_clip(path, self.size, self.pipeline.face_analyzer, self.pipeline.audio_processor)

    def load_first(self, paths: Sequence[Path]) -> Clip:
        """Load the first of these clips that can be read."""
        for path in paths:
            with contextlib.suppress(ValueError, OSError):
                return self.load(path)
        raise ValueError("there is no clip to drive the portrait.")

    def select_requested(self, names: Iterable[str]) -> list[str]:
        """Select the requested metrics."""
        return [name for name in names if self.requested is None or name in self.requested]

    def select_values(self, values: dict[str, Any]) -> dict[str, Any]:
        """Select the values of the requested metrics."""
        return {name: values[name] for name in self.select_requested(values)}

    def has(self, network: str) -> bool:
        """Whether a network exists and a metric that needs it is requested."""
        used = {name for name, metric in METRICS.items() if metric.needs == network}
        return self.networks.get(network) is not None and (self.requested is None or bool(used & self.requested))

    def measure_reference(self, clip: Clip, encode: bool = True) -> ReferenceClip:
        """Measure a real clip by the detector and the pipeline's encoder, once."""
        path = next(path for path in self.data.clips if path.stem == clip.name)
        if path not in self.references:
            with self.clock("score"):
                self.references[path] = ReferenceClip(self.require_track(clip.frames), clip.labels, None)
        truth = self.references[path]
        if encode and truth.latent is None:
            with self.clock("generate"):
                truth.latent = self.encode(clip.frames)
        return truth

    def encode_generated(self, frames: Tensor, motion: Tensor) -> Tensor | None:
        """Return generated motion `(frames, channels)` for the sync expert: as it is, or encoded from frames."""
        return motion.cpu() if self.reference is self.pipeline else self.encode(frames)

    def encode(self, frames: Tensor) -> Tensor | None:
        """Encode frames to motion `(frames, channels)` by the reference; `None` without a sync expert."""
        if not self.has("sync_expert"):
            return None
        return self.reference.encode_video(to_uint8(frames), box=self.whole, follow=False)[0].cpu()

    def load_reference(self, path: Path) -> ReferenceClip:
        """Load and measure a clip by its path."""
        known = self.references.get(path)
        if known is not None and (known.latent is not None or not self.has("sync_expert")):
            return known
        return self.measure_reference(self.load(path))

    def lip_motion(self) -> Tensor | None:
        """Fit the change of a motion vector by an open mouth to the real clips."""
        latents, gaps = [], []
        for path in self.data.clips:
            with contextlib.suppress(ValueError, OSError):
                truth = self.load_reference(path)
                if truth.latent is not None:
                    latents.append(truth.latent)
                    gaps.append(truth.best.lip_gap[: len(truth.latent)])
        return fit_lip_motion(latents, gaps) if latents else None

    def portrait(self, image: Any, box: Sequence[float] | None = None) -> Any:
        """Prepare a portrait."""
        with self.clock("generate"):
            return self.pipeline.prepare_portrait(image, box=box)

    def motion(self, portrait: Any, samples: Tensor, **settings: Any) -> Tensor:
        """Generate motion `(frames, channels)` for audio."""
        sound = (samples.numpy(), SAMPLES_PER_FRAME * FPS)
        return self.pipeline(portrait, sound, output_type="latent", **settings).motion[0].cpu()

    def render(self, portrait: Any, latent: Tensor) -> Tensor:
        """Render a motion to frames `(frames, 3, size, size)` in [0, 1]."""
        return self.pipeline.render(portrait, latent, output_type="pt").frames

    def crop_portrait(self, portrait: Any) -> Tensor:
        """Return the crop of a prepared portrait, `(1, 3, size, size)` in [0, 1]."""
        crop = portrait.crop.image[None].float() * 0.5 + 0.5
        if crop.shape[-1] != self.size:
            crop = F.interpolate(crop, self.size, mode="bilinear", antialias=True)
        return crop.clamp(0, 1)

    @functools.cached_property
    def all_audio(self) -> list[tuple[str, Tensor]]:
        """Speaker and samples of all clips and voices with audio."""
        audio = []
        for path in (*self.data.clips, *self.data.speech):
            with contextlib.suppress(ValueError, OSError):
                samples = load_samples(path, self.pipeline.audio_processor)
                audio.append((self.data.people.get(path.stem, path.stem), samples))
        return audio

    def pick_wrong_audio(self, person: str, num_frames: int, index: int) -> dict[str, Any]:
        """Pick long enough audio of another person, and its features, as fields of `VideoSample`; may be empty.

        Args:
            person (`str`): The right speaker.
            num_frames (`int`): Minimal length.
            index (`int`): Selects among the other speakers.
        """
        size = num_frames * SAMPLES_PER_FRAME
        others = [samples for name, samples in self.all_audio if name != person and len(samples) >= size]
        if not others:
            return {}
        samples = others[7 * index % len(others)][:size]
        features = self.audio_features(samples, num_frames) if self.has("capp") else None
        return {"other_samples": samples, "other_features": features}

    def audio_features(self, samples: Tensor, num_frames: int) -> Tensor:
        """Compute the audio encoder's features `(frames, dim)`."""
        processor, encoder = self.reference.audio_processor, self.reference.audio_encoder
        with torch.no_grad():
            return processor.window_features(encoder, samples[None], 0, num_frames)[0].float().cpu()

    def canonical(self) -> Tensor:
        """The analyzer's mean face."""
        return self.pipeline.face_analyzer.canonical.float().cpu()

    def require_track(self, frames: Tensor) -> FaceTrack:
        """Measure the face in real frames; raises `ValueError` if the detector finds none."""
        return measure_faces(self.detector, frames)

    def track(self, frames: Tensor) -> FaceTrack | None:
        """Measure the face in generated frames; `None` if the detector finds none."""
        try:
            return self.require_track(frames)
        except ValueError:
            return None

    @contextlib.contextmanager
    def clock(self, what: str) -> Iterator[None]:
        """Add the time of the block to the counter `what`."""
        started, worked = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started
            self.cpu_seconds[what] += time.process_time() - worked

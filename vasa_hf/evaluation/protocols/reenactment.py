"""Protocols in which a video drives a portrait: self-reconstruction and cross-reenactment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vasa_hf.evaluation.catalogue import COPY, PARTS, TRUTH, WARP
from vasa_hf.evaluation.data import Clip, to_uint8
from vasa_hf.evaluation.protocols.base import Protocol
from vasa_hf.evaluation.scoring import VideoSample
from vasa_hf.geometry.thin_plate import warp_by_landmarks
from vasa_hf.motion.streaming import map_ahead

CROSS_FRAMES = 75
ALONE = ("identity", "akd_labels", "lip_correlation", *PARTS["self"][PARTS["self"].index("msi") :])


class SelfReconstruction(Protocol):
    """Every clip, generated from its first frame and its own motion."""

    name = "self"

    def _generate(self) -> None:
        for clip in self.readable_clips():
            with self.record_failure(clip.name):
                self._reconstruct(clip)
        self.score_sets()

    def _reconstruct(self, clip: Clip) -> None:
        """Generate all frames after the first, which is the source."""
        run = self.run
        if len(clip.frames) < 2:
            raise ValueError("the clip has a single frame.")
        first, rest = clip.frames[:1], clip.frames[1:]
        truth = run.measure_reference(clip, encode=False)
        with run.clock("generate"):
            out = run.pipeline.animate(
                to_uint8(first)[0],
                to_uint8(clip.frames),
                relative=False,
                box=run.whole,
                driving_box=run.whole,
                output_type="pt",
            )
        made = out.frames[1:]
        if run.reference is run.pipeline:
            truth.latent = out.motion[0].cpu()  # absolute motion equals the encoded motion
        labels = None if clip.labels is None else clip.labels[1:]
        shared: dict[str, Any] = {"truth": rest, "truth_track": truth.track[1:], "labels": labels, "source": first}
        with run.clock("score"):
            points = truth.best.landmarks
            copied: dict[str, Any] = {"frames": first.expand_as(rest), "track": truth.track.repeat_first(len(rest))}
            real = VideoSample(frames=rest, track=truth.track[1:], labels=labels, source=first)
            videos = [
                ("model", run.model, 0, self.metrics, VideoSample(frames=made, **shared)),
                ("baseline", COPY, 0, self.metrics, VideoSample(**copied, **shared)),
                ("baseline", WARP, 0, self.metrics, VideoSample(frames=_warp(first, points[:1], points[1:]), **shared)),
                ("truth", TRUTH, 0, [name for name in self.metrics if name in ALONE], real),
            ]
            self.keep(clip.name, videos)
        self.sheet(clip.name, first, rest, made, rest)


class CrossReenactment(Protocol):
    """Every portrait with the motion of a clip."""

    name = "cross"

    def _generate(self) -> None:
        run = self.run
        portraits, clips = run.data.portraits, run.data.clips
        for index, path in enumerate(portraits):
            self.report(index, len(portraits), path.stem)
            with self.record_failure(path.stem):
                first = index * len(clips) // len(portraits)
                clip = run.load_first(clips[first:] + clips[:first])
                with run.clock("generate"):
                    portrait = run.pipeline.prepare_portrait(path)
                    frames = clip.frames[:CROSS_FRAMES]
                    made = run.pipeline.animate(
                        portrait, to_uint8(frames), relative=False, driving_box=run.whole, output_type="pt"
                    ).frames
                source = run.crop_portrait(portrait)
                truth = run.measure_reference(clip, encode=False)
                with run.clock("score"):
                    canonical = run.canonical()
                    still, driving = run.require_track(source), truth.track[: len(made)]
                    shared: dict[str, Any] = {"truth_track": driving, "driving": frames[: len(made)], "source": source}
                    target = driving.transplant(still, canonical)
                    copied: dict[str, Any] = {"frames": source.expand_as(made), "track": still.repeat_first(len(made))}
                    warped = _warp(source, still.landmarks, target)
                    videos = [
                        ("model", run.model, 0, self.metrics, VideoSample(frames=made, **shared)),
                        ("baseline", COPY, 0, self.metrics, VideoSample(**copied, **shared)),
                        ("baseline", WARP, 0, self.metrics, VideoSample(frames=warped, **shared)),
                    ]
                    self.keep(path.stem, videos)
                    real = VideoSample(frames=frames, track=driving)
                    kept = ("msi", "smoothness", "delta_pose", "blink_rate", "teeth_when_shut", "found")
                    self.scorer.record("truth", TRUTH, path.stem, 0, self.scorer.score(kept, real))
                    self.scorer.collect(TRUTH, source)  # the portraits are the only real frames of these people
                self.sheet(path.stem, source, frames, made, None)
        self.score_sets()


def _warp(source: Tensor, landmarks: Tensor, target: Tensor) -> Tensor:
    """Warp one image so that its landmarks `(1, 162, 2)` move to `(frames, 162, 2)`."""

    def warp(some: Tensor) -> Tensor:
        return warp_by_landmarks(source.expand(len(some), -1, -1, -1), landmarks.expand(len(some), -1, -1), some)

    # A spline takes megabytes per frame: larger chunks exceed the cache.
    chunks = list(map_ahead(warp, target.split(4), torch.get_num_threads()))
    return torch.cat(chunks).clamp(0, 1)

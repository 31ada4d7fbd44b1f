"""Protocols in which a video drives a portrait: self-reconstruction and cross-reenactment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vasa_hf.evaluation.catalogue import COPY, PARTS, TRUTH, WARP
from vasa_hf.evaluation.data import Clip, to_uint8
from vasa_hf.evaluation.protocols.base import Protocol
from vasa_hf.evaluation.scoring import Case
from vasa_hf.geometry.thin_plate import warp_by_landmarks
from vasa_hf.motion.streaming import map_ahead

CROSS_FRAMES = 75
ALONE = ("identity", "akd_labels", "lip_correlation", *PARTS["self"][PARTS["self"].index("msi") :])


class SelfReconstruction(Protocol):
    """Every clip made from its first frame and its own motion."""

    name = "self"

    def _generate(self) -> None:
        for clip in self.readable_clips():
            with self.reasons(clip.name):
                self._reconstruct(clip)
        self.score_sets()

    def _reconstruct(self, clip: Clip) -> None:
        """The first frame as source, all others to be made."""
        run = self.run
        if len(clip.frames) < 2:
            raise ValueError("the clip has a single frame.")
        first, rest = clip.frames[:1], clip.frames[1:]
        truth = run.truth(clip, encode=False)
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
            truth.latent = out.motion[0].cpu()  # absolute motion is what the encoder sees
        labels = None if clip.labels is None else clip.labels[1:]
        shared: dict[str, Any] = {"truth": rest, "truth_track": truth.track[1:], "labels": labels, "source": first}
        with run.clock("score"):
            points = truth.best.landmarks
            copied: dict[str, Any] = {"frames": first.expand_as(rest), "track": truth.track.held(len(rest))}
            real = Case(frames=rest, track=truth.track[1:], labels=labels, source=first)
            videos = [
                ("model", run.model, 0, self.metrics, Case(frames=made, **shared)),
                ("baseline", COPY, 0, self.metrics, Case(**copied, **shared)),
                ("baseline", WARP, 0, self.metrics, Case(frames=_warped(first, points[:1], points[1:]), **shared)),
                ("truth", TRUTH, 0, [name for name in self.metrics if name in ALONE], real),
            ]
            self.keep(clip.name, videos)
        self.sheet(clip.name, first, rest, made, rest)


class CrossReenactment(Protocol):
    """Every portrait with a clip's movements."""

    name = "cross"

    def _generate(self) -> None:
        run = self.run
        portraits, clips = run.data.portraits, run.data.clips
        for index, path in enumerate(portraits):
            self.say(index, len(portraits), path.stem)
            with self.reasons(path.stem):
                first = index * len(clips) // len(portraits)
                clip = run.first_of(clips[first:] + clips[:first])
                with run.clock("generate"):
                    portrait = run.pipeline.prepare_portrait(path)
                    frames = clip.frames[:CROSS_FRAMES]
                    made = run.pipeline.animate(
                        portrait, to_uint8(frames), relative=False, driving_box=run.whole, output_type="pt"
                    ).frames
                source = run.picture(portrait)
                truth = run.truth(clip, encode=False)
                with run.clock("score"):
                    canonical = run.canonical()
                    still, driving = run.need_track(source), truth.track[: len(made)]
                    shared: dict[str, Any] = {"truth_track": driving, "driving": frames[: len(made)], "source": source}
                    target = driving.transplanted(still, canonical)
                    copied: dict[str, Any] = {"frames": source.expand_as(made), "track": still.held(len(made))}
                    warped = _warped(source, still.landmarks, target)
                    videos = [
                        ("model", run.model, 0, self.metrics, Case(frames=made, **shared)),
                        ("baseline", COPY, 0, self.metrics, Case(**copied, **shared)),
                        ("baseline", WARP, 0, self.metrics, Case(frames=warped, **shared)),
                    ]
                    self.keep(path.stem, videos)
                    real = Case(frames=frames, track=driving)
                    kept = ("msi", "smoothness", "delta_pose", "blink_rate", "teeth_when_shut", "found")
                    self.scorer.record("truth", TRUTH, path.stem, 0, self.scorer.score(kept, real))
                    self.scorer.collect(TRUTH, source)  # of real faces there are the portraits alone
                self.sheet(path.stem, source, frames, made, None)
        self.score_sets()


def _warped(source: Tensor, landmarks: Tensor, target: Tensor) -> Tensor:
    """One picture warped so that its landmarks `(1, 162, 2)` come to lie at `(frames, 162, 2)`."""

    def warp(some: Tensor) -> Tensor:
        return warp_by_landmarks(source.expand(len(some), -1, -1, -1), landmarks.expand(len(some), -1, -1), some)

    # A spline holds megabytes a frame: with more of them it leaves the cache.
    parts = list(map_ahead(warp, target.split(4), torch.get_num_threads()))
    return torch.cat(parts).clamp(0, 1)

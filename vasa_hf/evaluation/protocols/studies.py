"""The protocol that checks the learned metrics and the detector on real clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vasa_hf.evaluation.protocols.base import Protocol
from vasa_hf.metrics import motion as measures
from vasa_hf.metrics.capp import PAPER_SCALE, PAPER_SHIFT, scale_study, shift_study, shuffled_capp
from vasa_hf.metrics.faces import FaceTrack
from vasa_hf.metrics.motion import SAMPLES_PER_FRAME
from vasa_hf.metrics.sync import expert_embeds, sync_study


class Studies(Protocol):
    """Response of the learned metrics to real clips, unchanged and with errors added."""

    name = "studies"

    def _generate(self) -> None:
        run = self.run
        pairs, embeds, tracks = [], [], []
        for clip in self.readable_clips():
            with self.record_failure(clip.name):
                truth = run.measure_reference(clip)
                if clip.labels is not None:
                    tracks.append((truth.track, clip.labels))
                if clip.samples is None:
                    raise ValueError(clip.silent_because)
                if run.has("capp"):
                    pairs.append((truth.best.pose, run.audio_features(clip.samples, len(clip.frames))))
                if run.has("sync_expert") and truth.latent is not None:
                    latent = truth.latent[: -(-len(clip.samples) // SAMPLES_PER_FRAME)]
                    embeds.append(expert_embeds(run.networks["sync_expert"], latent, clip.samples))
        ours, paper = "ours", "VASA-1"
        with run.clock("score"):
            if run.has("capp"):
                try:
                    values: dict[str, Any] = {
                        f"CAPP ±{shift}": v for shift, v in shift_study(run.networks["capp"], pairs).items()
                    }
                    scaled = scale_study(run.networks["capp"], pairs)
                    values |= {f"CAPP ×{factor:g}": value for factor, value in scaled.items()}
                    values["CAPP shuffled"] = shuffled_capp(run.networks["capp"], pairs)
                except ValueError as error:
                    values = {"CAPP ±0": str(error)}
                self.scorer.record("model", ours, "*", "*", values)
            else:
                self.scorer.record("model", ours, "*", "*", {"CAPP ±0": self.scorer.absent(("capp",))["capp"]})
            if run.has("sync_expert"):
                try:
                    study: dict[str, Any] = sync_study(embeds)
                    curve = study.pop("cosine_by_shift")
                    values = {f"sync {name}": value for name, value in study.items()}
                    values |= {f"sync cosine ±{shift}": value for shift, value in enumerate(curve[:9])}
                except ValueError as error:
                    values = {"sync cosine ±0": str(error)}
                self.scorer.record("model", ours, "*", "*", values)
        self.scorer.record("model", ours, "*", "*", _check_detector(tracks))
        printed: dict[str, Any] = {f"CAPP ±{shift}": value for shift, value in PAPER_SHIFT.items()}
        printed |= {f"CAPP ×{factor:g}": value for factor, value in PAPER_SCALE.items()}
        self.scorer.record("paper", paper, "*", "*", printed)


def _check_detector(tracks: Sequence[tuple[FaceTrack, FaceTrack]]) -> dict[str, float]:
    """Compare the detector with the labels of real clips: its errors limit the metrics that use it."""
    if not tracks:
        return {}
    both = [seen.found & labels.found for seen, labels in tracks]
    values = {}
    for name, key, what in (("detector AKD px", "landmarks", 256), ("detector pose error °", "rotation", None)):
        pairs = zip(tracks, both, strict=True)
        points = [(getattr(a, key)[ok], getattr(b, key)[ok]) for (a, b), ok in pairs]
        seen, true = (torch.cat(parts) for parts in zip(*points, strict=True))
        error = measures.angle_between(seen, true) if what is None else (seen - true).norm(dim=-1) * what
        values[name] = float(error.mean())
    for name, key, axis in (
        ("lip gap", "lip_gap", None),
        ("lids", "eye_open", None),
        ("gaze yaw", "gaze", 0),
        ("gaze pitch", "gaze", 1),
    ):
        measured: list[Tensor] = []
        expected: list[Tensor] = []
        for (a, b), ok in zip(tracks, both, strict=True):
            x, y = (getattr(track, key)[ok] for track in (a, b))
            x, y = (x, y) if axis is None else (x[:, axis], y[:, axis])
            measured.append(x - x.mean())  # within clips: people differ
            expected.append(y - y.mean())
        line = measures.control_response(torch.cat(expected), torch.cat(measured))
        values[f"detector {name}, correlation"], values[f"detector {name}, slope"] = line["correlation"], line["slope"]
    return values

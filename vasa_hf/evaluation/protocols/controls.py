"""Protocols of settings and controls: ablations of guidance and steps, response to controls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vasa_hf.evaluation.catalogue import ABLATIONS, CONTROL_METRICS, NO_CONTROL
from vasa_hf.evaluation.protocols.base import Protocol
from vasa_hf.evaluation.scoring import VideoSample
from vasa_hf.geometry.landmarks import EXPRESSIONS
from vasa_hf.metrics import motion as measures
from vasa_hf.metrics.faces import FaceTrack
from vasa_hf.metrics.gaze import angle_of_shift, iris_shift

ABLATION_SECONDS = 10
LOOK_STRIDE = 10  # ablations and controls measure every tenth frame
ABLATION_GAZE = ((0.25, 0.0), (-0.25, 0.0), (0.0, 0.15))
CONTROL_GAZE = ((-0.3, 0.0), (0.3, 0.0), (0.0, -0.2), (0.0, 0.2))
CONTROL_DISTANCE = (0.8, 1.25)
CONTROL_PORTRAITS, CONTROL_SECONDS = 4, 2
# What a pipeline that ignores its controls would have.
_IGNORED = {name: 0.0 for name in ("gaze_yaw_slope", "gaze_pitch_slope", "iris_yaw_slope", "iris_pitch_slope")}
_IGNORED |= {"distance_slope": 0.0, "emotion_change": 0.0, "emotion_hit": 1 / len(EXPRESSIONS)}
_IGNORED |= {"gaze_control_error": float(np.abs(np.array(CONTROL_GAZE)).sum(1).mean() * 180 / np.pi)}
_IGNORED |= {"distance_control_error": float(np.abs(np.log(CONTROL_DISTANCE)).mean())}


class Ablations(Protocol):
    """The settings of VASA-1's Table 4."""

    name = "ablations"

    def _generate(self) -> None:
        run = self.run
        portrait = self.first_portrait()
        if portrait is None:
            return
        voices = list(self.voices(ABLATION_SECONDS))
        self.score_real_video()
        for number, (audio_scale, gaze_scale, steps) in enumerate(ABLATIONS):
            system = f"{run.model}, λ_A = {audio_scale:g}, λ_g = {gaze_scale:g}, {steps} steps"
            for index, (name, samples) in enumerate(voices):
                self.report(number * len(voices) + index, len(ABLATIONS) * len(voices), f"{system}: {name}")
                with self.record_failure(name, system):
                    gaze = ABLATION_GAZE[index % len(ABLATION_GAZE)]
                    settings = {
                        "guidance_scale": {"audio": audio_scale, "gaze": gaze_scale},
                        "num_inference_steps": steps,
                        "gaze": gaze,
                    }
                    self._ablate(system, name, portrait, samples, index, settings)
        self.score_sets()

    def _ablate(
        self, system: str, name: str, portrait: Any, samples: Tensor, index: int, settings: dict[str, Any]
    ) -> None:
        run = self.run
        with run.clock("generate"):
            generator = torch.Generator().manual_seed(run.seed + index)
            latent = run.motion(portrait, samples, generator=generator, **settings)
            frames = run.render(portrait, latent) if self.needs_frames else None
            some = run.render(portrait, latent[::LOOK_STRIDE]) if frames is None else frames[::LOOK_STRIDE]
        with run.clock("score"):
            track = run.track(some)
            seen = tuple(name for name in self.metrics if name not in CONTROL_METRICS)
            values = self.score_motion(seen, latent, samples)
            values |= self.score_frames(system, frames, samples)
            scale = float(run.require_track(run.crop_portrait(portrait)).scale[0])
            looked = VideoSample(track=track, wanted_gaze=torch.tensor(settings["gaze"]), wanted_scale=scale)
            values |= self.scorer.score(CONTROL_METRICS, looked)
            self.scorer.record("model", system, name, 0, values)


class Controls(Protocol):
    """Response of a face to gaze, distance and emotion."""

    name = "controls"

    def _generate(self) -> None:
        run = self.run
        voices = list(self.voices(CONTROL_SECONDS))[:1]
        if not voices:
            return
        paths = run.data.portraits[:: max(1, len(run.data.portraits) // CONTROL_PORTRAITS)][:CONTROL_PORTRAITS]
        for number, path in enumerate(paths):
            self.report(number, len(paths), path.stem)
            with self.record_failure(path.stem):
                portrait = run.portrait(path)

                def look(portrait: Any = portrait, **settings: Any) -> tuple[Tensor, FaceTrack]:
                    with run.clock("generate"):
                        generator = torch.Generator().manual_seed(run.seed)
                        latent = run.motion(portrait, voices[0][1], generator=generator, **settings)
                        some = run.render(portrait, latent[LOOK_STRIDE // 2 :: LOOK_STRIDE])
                    with run.clock("score"):
                        return some, run.require_track(some)

                values = self._respond(look)
                self.scorer.record("model", run.model, path.stem, 0, run.select_values(values))
                ignored = {name: value for name, value in _IGNORED.items() if name in values}
                self.scorer.record("baseline", NO_CONTROL, path.stem, 0, run.select_values(ignored))

    def _respond(self, look: Callable[..., tuple[Tensor, FaceTrack]]) -> dict[str, float]:
        """Measure the response of one portrait to each control that the pipeline has."""
        still, neutral = look()
        controls = set(self.run.pipeline.control_names())
        values: dict[str, float] = {}
        if "gaze" in controls:
            values |= self._look_around(look, still, neutral)
        if "head_distance" in controls:
            values |= self._come_near(look, neutral)
        if "emotion" in controls:
            values |= self._feel(look, neutral)
        return values

    def _look_around(self, look: Callable[..., Any], still: Tensor, neutral: FaceTrack) -> dict[str, float]:
        gaze, seen = {(0.0, 0.0): neutral}, {(0.0, 0.0): neutral.gaze[neutral.found].mean(0)}
        irises = {(0.0, 0.0): torch.zeros(2)}
        for asked in CONTROL_GAZE:
            frames, track = look(gaze=asked)
            gaze[asked], seen[asked] = track, track.gaze[track.found].mean(0)
            with contextlib.suppress(ValueError):  # closed eyes show no iris
                irises[asked] = angle_of_shift(iris_shift(still, frames, neutral, track))
        values: dict[str, float] = {}
        for axis, name in enumerate(("yaw", "pitch")):
            along = [asked for asked in gaze if asked[1 - axis] == 0]
            wanted = torch.tensor([key[axis] for key in along])
            line = measures.control_response(wanted, torch.stack([seen[key][axis] for key in along]))
            values[f"gaze_{name}_slope"] = line["slope"]
            if all(key in irises for key in along):
                line = measures.control_response(wanted, torch.stack([irises[key][axis] for key in along]))
                values[f"iris_{name}_slope"] = line["slope"]
        errors = [measures.gaze_error(gaze[asked], torch.tensor(asked)) for asked in CONTROL_GAZE]
        return values | {"gaze_control_error": sum(errors) / len(errors)}

    def _come_near(self, look: Callable[..., Any], neutral: FaceTrack) -> dict[str, float]:
        base = neutral.scale[neutral.found].mean()
        sizes = [(look(head_distance=d)[1], -np.log(d)) for d in CONTROL_DISTANCE]
        measured = torch.stack([(track.scale[track.found].mean() / base).log() for track, _ in sizes])
        wanted = torch.tensor([size for _, size in sizes], dtype=torch.float32)
        line = measures.control_response(wanted, measured)
        return {"distance_slope": line["slope"], "distance_control_error": line["error"]}

    def _feel(self, look: Callable[..., Any], neutral: FaceTrack) -> dict[str, float]:
        """Each expression by the pipeline's own name: MoDA's `happiness` is `happy`."""
        canonical, own = self.run.canonical(), {name[:3]: name for name in self.run.pipeline.emotions}
        calm = neutral.expressions(canonical)[neutral.found].mean(0)
        rises, hits = [], []
        for index, expression in enumerate(EXPRESSIONS):
            if expression[:3] not in own:
                continue
            track = look(emotion={own[expression[:3]]: 1.0})[1]
            rise = track.expressions(canonical)[track.found].mean(0) - calm
            rises.append(float(rise[index]))
            hits.append(float(rise.argmax() == index))
        if not rises:
            return {}
        return {"emotion_change": sum(rises) / len(rises), "emotion_hit": sum(hits) / len(hits)}

"""The part `disentangle` of `vasa-hf eval`: what moves with another person's motion (VASA-1 §4.3, Fig. 4).

```
target: of each person the first frame that is nearest to frontal      source: clips of other people, at random
all motion of the source on the target  -> identity                    l_cross_id: 0.72 -> 0.80 of 108 x 50 clips
its dynamics alone, with the target's pose -> what stays, what comes   l_consist: side glances and skewed lips
```
# Not in the paper: numbers for Fig. 4, which shows images.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vasa_hf.evaluation.data import to_uint8
from vasa_hf.evaluation.protocols.base import EXCERPT_FRAMES, Protocol
from vasa_hf.evaluation.scoring import VideoSample
from vasa_hf.metrics import motion as measures
from vasa_hf.motion import POSE_DIM

SHOWN = ("pose_kept", "lips_come", "skew_comes", "eyes_come")


class Disentanglement(Protocol):
    """Every person with the motion of clips of others; `run.transfers` clips each (paper: 50)."""

    name = "disentangle"

    def _generate(self) -> None:
        targets = self._frontal_frames()
        for number, (person, (name, frame)) in enumerate(targets.items()):
            self.report(number, len(targets), name)
            people = self.run.data.people
            others = [path for path in self.run.data.clips if people[path.stem] != person]
            random.Random(f"{self.run.seed} {person}").shuffle(others)
            with self.record_failure(name):
                if not others:
                    raise ValueError("there are no clips of other people.")
                portrait = self.run.portrait(to_uint8(frame)[0], self.run.whole)
                for path in others[: self.run.transfers]:
                    with self.record_failure(f"{name} < {path.stem}"):
                        self._transfer(f"{name} < {path.stem}", portrait, frame, path)

    def _frontal_frames(self) -> dict[str, tuple[str, Tensor]]:
        """Person -> clip and its first frame `(1, 3, size, size)`, of all clips that which is nearest to frontal."""
        found: dict[str, tuple[float, str, Tensor]] = {}
        for clip in self.readable_clips():
            with self.record_failure(clip.name):
                with self.run.clock("score"):
                    turn = float(self.run.require_track(clip.frames[:1]).pose[0, :2].norm())
                person = self.run.data.people[clip.name]
                if person not in found or turn < found[person][0]:
                    found[person] = turn, clip.name, clip.frames[:1].clone()
        return {person: (name, frame) for person, (_, name, frame) in found.items()}

    def _transfer(self, item: str, portrait: Any, frame: Tensor, path: Path) -> None:
        """Score one target with one source."""
        run = self.run
        clip = run.load(path)
        driving = run.measure_reference(clip, encode=False).track[:EXCERPT_FRAMES]
        with run.clock("generate"):
            motion = run.pipeline.encode_video(to_uint8(clip.frames[:EXCERPT_FRAMES]), box=run.whole, follow=False)
            motion = motion[0].float().cpu()
            made = run.render(portrait, motion)
            still = torch.cat([portrait.motion[:, :POSE_DIM].cpu().expand(len(motion), -1), motion[:, POSE_DIM:]], 1)
            held = run.render(portrait, still)
        with run.clock("score"):
            values = self.scorer.score(("identity_transfer",), VideoSample(frames=made, source=frame))
            track, own = run.track(held), run.require_track(frame).repeat_first(len(held))
            shown: dict[str, Any] = dict.fromkeys(SHOWN, "the detector finds no face in the generated frames")
            if track is not None:
                shown = {
                    "pose_kept": measures.pose_error(track, own),
                    "lips_come": measures.lip_correlation(track, driving),
                    "skew_comes": measures.signal_correlation(measures.mouth_skew, track, driving),
                    "eyes_come": measures.signal_correlation(measures.eye_yaw, track, driving),
                }
            values |= run.select_values(shown)
            self.scorer.record("model", run.model, item, 0, values)
            self.scorer.forget()
        self.sheet(item.replace(" < ", "_by_"), frame, clip.frames[: len(held)], held, None)

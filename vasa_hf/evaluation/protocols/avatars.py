"""The part `avatars` of `vasa-hf eval`: VASA-3D against VASA-1.

Each avatar and VASA-1 render the same motion of the same portrait on the same plain background, from the portrait's
camera. VASA-1's frames are the reference (VASA-3D, Tables 1 and A), and its own numbers are the upper bound (Table 2).
The motion comes from audio and clips that are in no training data.

# Not in the paper: three seconds of each; G' is the trained avatar without its VAS deformation, not one that is trained
without it; identity from the side; the still frame as a baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vasa_hf.evaluation.avatars import EvalAvatar
from vasa_hf.evaluation.catalogue import BASE, FULL, NOT_DEFINED, STILL, VASA1
from vasa_hf.evaluation.data import to_tensor, to_uint8
from vasa_hf.evaluation.protocols.base import Protocol
from vasa_hf.evaluation.scoring import SCORES, VideoSample
from vasa_hf.metrics.motion import SAMPLES_PER_FRAME
from vasa_hf.motion.controls import rebase_motion

FRAMES = 75  # of each motion: 3 seconds
MAX_CLIPS = 6  # evenly spread
SIDE_DEG = (30, 45)  # to both sides
SIDE_STRIDE = 5  # side views of every fifth frame
# Metrics that VASA-1's frames have without an avatar.
ALONE = ("identity", "sync_c", "sync_d", "expert_c", "expert_d", "expert_offset", "msi", "delta_pose", "found")


@dataclass
class DrivingMotion:
    """Speech or a clip that drives the avatars.

    Attributes:
        name (`str`): Name of the file.
        samples (`torch.Tensor` of shape `(n,)` or `None`): The audio, mono at 16 kHz.
        motion (`torch.Tensor` of shape `(1, frames, channels)` or `None`): Absolute motion of the clip.
        why_silent (`str`): Reason why there is no audio.
    """

    name: str
    samples: Tensor | None
    motion: Tensor | None = None
    why_silent: str = ""


class Avatars(Protocol):
    """Every avatar with every driving audio and clip."""

    name = "avatars"

    def _generate(self) -> None:
        run = self.run
        motions = self._load_motions()
        for number, (name, load) in enumerate(run.avatars.items()):
            self.report(number, len(run.avatars), name)
            with self.record_failure(name, FULL):
                if not motions:
                    raise ValueError("there is no audio and no clip to drive the avatar.")
                avatar = load()
                scale = avatar.cutout.width / run.size
                portrait = run.portrait(avatar.portrait(), [scale * value for value in run.whole])
                source = to_tensor(np.asarray(avatar.portrait()), run.size)[None]
                for index, motion in enumerate(motions):
                    item = f"{name}: {motion.name}"
                    with self.record_failure(item, FULL):
                        self._compare(item, avatar, portrait, source, motion, 1000 * number + index)
        self.score_sets(VASA1)

    def _load_motions(self) -> list[DrivingMotion]:
        """Load clips and voices; files that cannot be read get rows with the reason."""
        run = self.run
        motions, clips = [], run.data.clips
        chosen = {clips[round(i)] for i in torch.linspace(0, len(clips) - 1, min(MAX_CLIPS, len(clips))).tolist()}
        for path in sorted(chosen):
            with self.record_failure(path.stem, FULL), run.clock("generate"):
                clip = run.load(path)
                frames = clip.frames[:FRAMES]
                motion = run.pipeline.encode_video(to_uint8(frames), box=run.whole, follow=False).cpu()
                samples = None if clip.samples is None else clip.samples[: len(frames) * SAMPLES_PER_FRAME]
                motions.append(DrivingMotion(path.stem, samples, motion, clip.silent_because))
        if run.data.speech:
            voices = self.voices(FRAMES * SAMPLES_PER_FRAME // 16_000)
            motions += [DrivingMotion(name, samples) for name, samples in voices]
        return motions

    def _compare(
        self, item: str, avatar: EvalAvatar, portrait: Any, source: Tensor, drive: DrivingMotion, index: int
    ) -> None:
        """Score one avatar with one motion: G'', G', a still frame, and VASA-1's frames."""
        run = self.run
        with run.clock("generate"):
            if drive.motion is None:
                generator = torch.Generator().manual_seed(run.seed + index)
                motion = run.motion(portrait, cast(Tensor, drive.samples), generator=generator)
            else:
                motion = rebase_motion(drive.motion, portrait.motion.float().cpu())[0]
            motion = motion[:FRAMES]
            truth = run.render(portrait, motion)
            full, base = avatar.show(motion, 0.0, True), avatar.show(motion, 0.0, False)
            sides = {angle: _side_views(avatar, motion, angle) for angle in SIDE_DEG}
        with run.clock("score"):
            track = run.track(truth)
            samples = None if drive.samples is None else drive.samples[: len(motion) * SAMPLES_PER_FRAME]
            lacks = {"samples": f"{NOT_DEFINED}: {drive.why_silent or 'no audio'}"}
            lacks |= {"truth_track": "the detector finds no face in VASA-1's frames"}
            shared: dict[str, Any] = {
                "truth": truth,
                "truth_track": track,
                "source": source,
                "samples": samples,
                "lacks": lacks,
            }
            still, latent = full[:1].expand_as(full), run.encode(full[:1])
            latent = None if latent is None else latent.expand(len(full), -1)
            videos = [
                ("model", FULL, 0, self.metrics, VideoSample(frames=full, latent=run.encode(full), **shared)),
                ("model", BASE, 0, self.metrics, VideoSample(frames=base, latent=run.encode(base), **shared)),
                ("baseline", STILL, 0, self.metrics, VideoSample(frames=still, latent=latent, **shared)),
            ]
            own = {**shared, "truth": None, "truth_track": None}
            real = VideoSample(frames=truth, track=track, latent=run.encode(truth), **own)
            self.keep(item, [*videos, ("truth", VASA1, 0, [name for name in self.metrics if name in ALONE], real)])
            for angle, frames in sides.items():
                if run.has("face_recognizer"):
                    value = SCORES["identity"](self.scorer, VideoSample(frames=frames, source=source))
                    self.scorer.record("model", FULL, item, 0, run.select_values({f"identity_{angle}": value}))
        self.sheet(item.replace(": ", "_").replace("/", "_"), source, truth, full, truth)


def _side_views(avatar: EvalAvatar, motion: Tensor, angle_deg: float) -> Tensor:
    """Render some frames from the left, then from the right."""
    return torch.cat([avatar.show(motion[::SIDE_STRIDE], side * angle_deg, True) for side in (-1, 1)])

"""The part `avatars` of `vasa-hf eval`: VASA-3D against VASA-1.

Each avatar and VASA-1 render the same motion of the same portrait on the same plain background, from the portrait's
camera. VASA-1's frames are the reference (VASA-3D, Table 1), and its own numbers are the upper bound (Table 2).
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
from vasa_hf.evaluation.catalogue import BASE, FULL, NOT_DEFINED, STILL, TRUTH, VASA1
from vasa_hf.evaluation.data import Clip, to_tensor, to_uint8
from vasa_hf.evaluation.protocols.base import Protocol
from vasa_hf.evaluation.scoring import SCORES, VideoSample
from vasa_hf.metrics.motion import FPS, SAMPLES_PER_FRAME
from vasa_hf.motion.controls import rebase_motion

FRAMES = 75  # of each motion: 3 seconds
PART_FRAMES = 250  # of a real video that are held at a time
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
                source = portrait_image(avatar, run.size)
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


class RealVideos(Protocol):
    """Every avatar that was fitted to a frame of a clip, with the whole motion of that clip (Table A).

    # Not in the paper: what the avatar does not cover is taken from the real frame in all rows, since avatars have no
    background.
    """

    name = "real"

    def _generate(self) -> None:
        run = self.run
        clips = {path.stem: path for path in run.data.clips}
        for number, (name, load) in enumerate(run.avatars.items()):
            self.report(number, len(run.avatars), name)
            if name not in clips:
                why = f"{NOT_DEFINED}: no clip has the name of the avatar, see --fit"
                self.scorer.record("model", FULL, name, "*", dict.fromkeys(run.select_requested(self.metrics), why))
                continue
            with self.record_failure(name, FULL):
                avatar, clip = load(), run.load(clips[name])
                scale = avatar.cutout.width / run.size
                portrait = run.portrait(avatar.portrait(), [scale * value for value in run.whole])
                with run.clock("generate"):
                    motion = run.pipeline.encode_video(to_uint8(clip.frames), box=run.whole, follow=False)[0].cpu()
                for start in range(0, len(motion), PART_FRAMES):
                    item = f"{name}@{start // FPS}s"
                    with self.record_failure(item, FULL):
                        self._compare(item, avatar, portrait, clip, motion, slice(start, start + PART_FRAMES))

    def _compare(self, item: str, avatar: EvalAvatar, portrait: Any, clip: Clip, motion: Tensor, part: slice) -> None:
        """Score G'' and VASA-1 against some real frames."""
        run, truth, motion = self.run, clip.frames[part], motion[part]
        with run.clock("generate"):
            shown, cover = avatar.show(motion, 0.0, True), cast(Any, avatar.cover)(motion)
            grey = torch.tensor(avatar.background).view(3, 1, 1)
            made = (shown + (1 - cover) * (truth - grey)).clamp(0, 1)
            vasa1 = cover * run.render(portrait, motion) + (1 - cover) * truth
        with run.clock("score"):
            samples = None
            if clip.samples is not None:
                samples = clip.samples[part.start * SAMPLES_PER_FRAME :][: len(motion) * SAMPLES_PER_FRAME]
            shared: dict[str, Any] = {"samples": samples, "source": portrait_image(avatar, run.size)}
            shared["lacks"] = {"samples": f"{NOT_DEFINED}: {clip.silent_because or 'no audio'}"}
            track = run.require_track(truth)
            judged = {**shared, "truth": truth, "truth_track": track}
            videos = [
                ("model", FULL, 0, self.metrics, VideoSample(frames=made, latent=run.encode(made), **judged)),
                ("baseline", VASA1, 0, self.metrics, VideoSample(frames=vasa1, latent=run.encode(vasa1), **judged)),
            ]
            real = VideoSample(frames=truth, track=track, latent=run.encode(truth), **shared)
            self.keep(item, [*videos, ("truth", TRUTH, 0, [name for name in self.metrics if name in ALONE], real)])
        self.sheet(item, shared["source"], truth, made, truth)


def portrait_image(avatar: EvalAvatar, size: int) -> Tensor:
    """The portrait on its plain background, `(1, 3, size, size)` in [0, 1]."""
    return to_tensor(np.asarray(avatar.portrait()), size)[None]


def _side_views(avatar: EvalAvatar, motion: Tensor, angle_deg: float) -> Tensor:
    """Render some frames from the left, then from the right."""
    return torch.cat([avatar.show(motion[::SIDE_STRIDE], side * angle_deg, True) for side in (-1, 1)])

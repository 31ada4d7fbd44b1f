"""The part `avatars` of `vasa-hf eval`: VASA-3D against the VASA-1 that it was fitted to.

Each avatar and VASA-1 make the same motions of the same portrait, cut out and put on the same plain background; the
avatar is seen by the portrait's camera. VASA-1's frames are what the avatar should show (VASA-3D, Tables 1 and A), and
its own numbers are the upper bound (Table 2). The motions come from sounds and clips that no fit has seen.

# Not in the paper: three seconds of each; G' is the trained avatar without its VAS deformation, rather than one trained
without; identity from aside; the still frame as a baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vasa_hf.controls import rebase_motion
from vasa_hf.evaluation.avatars import EvalAvatar
from vasa_hf.evaluation.catalogue import BASE, FULL, NOT_DEFINED, STILL, VASA1
from vasa_hf.evaluation.data import picture, to_uint8
from vasa_hf.evaluation.protocols.base import Protocol
from vasa_hf.evaluation.scoring import SCORES, Case
from vasa_hf.metrics.motion import SAMPLES_PER_FRAME

FRAMES = 75  # of each motion: 3 seconds
MOST_CLIPS = 6  # evenly spread
SIDE_DEG = (30, 45)  # to both sides
SIDE_STRIDE = 5  # side views of every fifth frame
# What VASA-1's frames can be asked for without an avatar beside them.
ALONE = ("identity", "sync_c", "sync_d", "expert_c", "expert_d", "expert_offset", "msi", "delta_pose", "found")


@dataclass
class Drive:
    """What moves the avatars: a voice, or a clip's face.

    Attributes:
        name (`str`): Of the file.
        samples (`torch.Tensor` of shape `(n,)` or `None`): The sound, mono at 16 kHz.
        motion (`torch.Tensor` of shape `(1, frames, channels)` or `None`): Of the clip's face, absolute.
        why_silent (`str`): Why there is no sound.
    """

    name: str
    samples: Tensor | None
    motion: Tensor | None = None
    why_silent: str = ""


class Avatars(Protocol):
    """Every avatar with every driving sound and clip."""

    name = "avatars"

    def _generate(self) -> None:
        run = self.run
        drives = self._drives()
        for number, (who, load) in enumerate(run.avatars.items()):
            self.say(number, len(run.avatars), who)
            with self.reasons(who, FULL):
                if not drives:
                    raise ValueError("there is no sound and no clip to drive the avatar.")
                avatar = load()
                scale = avatar.cutout.width / run.size
                portrait = run.portrait(avatar.portrait(), [scale * value for value in run.whole])
                source = picture(np.asarray(avatar.portrait()), run.size)[None]
                for index, drive in enumerate(drives):
                    item = f"{who}: {drive.name}"
                    with self.reasons(item, FULL):
                        self._judge(item, avatar, portrait, source, drive, 1000 * number + index)
        self.score_sets(VASA1)

    def _drives(self) -> list[Drive]:
        """Motions of clips, and sounds, that can be read; the others get rows that say why."""
        run = self.run
        drives, clips = [], run.data.clips
        chosen = {clips[round(i)] for i in torch.linspace(0, len(clips) - 1, min(MOST_CLIPS, len(clips))).tolist()}
        for path in sorted(chosen):
            with self.reasons(path.stem, FULL), run.clock("generate"):
                clip = run.load(path)
                frames = clip.frames[:FRAMES]
                motion = run.pipeline.encode_video(to_uint8(frames), box=run.whole, follow=False).cpu()
                samples = None if clip.samples is None else clip.samples[: len(frames) * SAMPLES_PER_FRAME]
                drives.append(Drive(path.stem, samples, motion, clip.silent_because))
        if run.data.speech:
            voices = self.voices(FRAMES * SAMPLES_PER_FRAME // 16_000)
            drives += [Drive(name, samples) for name, samples in voices]
        return drives

    def _judge(self, item: str, avatar: EvalAvatar, portrait: Any, source: Tensor, drive: Drive, index: int) -> None:
        """One avatar with one motion: G'', G', one frame held, and VASA-1's own frames."""
        run = self.run
        with run.clock("generate"):
            if drive.motion is None:
                motion = run.motion(portrait, drive.samples, generator=torch.Generator().manual_seed(run.seed + index))
            else:
                motion = rebase_motion(drive.motion, portrait.motion.float().cpu())[0]
            motion = motion[:FRAMES]
            wanted = run.render(portrait, motion)
            full, base = avatar.show(motion, 0.0, True), avatar.show(motion, 0.0, False)
            sides = {angle: _side_views(avatar, motion, angle) for angle in SIDE_DEG}
        with run.clock("score"):
            track = run.track(wanted)
            heard = None if drive.samples is None else drive.samples[: len(motion) * SAMPLES_PER_FRAME]
            lacks = {"samples": f"{NOT_DEFINED}: {drive.why_silent or 'no sound'}"}
            lacks |= {"truth_track": "our detector sees no face in VASA-1's frames"}
            shared = {"truth": wanted, "truth_track": track, "source": source, "samples": heard, "lacks": lacks}
            still, held = full[:1].expand_as(full), run.encode(full[:1])
            held = None if held is None else held.expand(len(full), -1)
            videos = [
                ("model", FULL, 0, self.metrics, Case(frames=full, latent=run.encode(full), **shared)),
                ("model", BASE, 0, self.metrics, Case(frames=base, latent=run.encode(base), **shared)),
                ("baseline", STILL, 0, self.metrics, Case(frames=still, latent=held, **shared)),
            ]
            own = {**shared, "truth": None, "truth_track": None}
            real = Case(frames=wanted, track=track, latent=run.encode(wanted), **own)
            self.keep(item, [*videos, ("truth", VASA1, 0, [name for name in self.metrics if name in ALONE], real)])
            for angle, frames in sides.items():
                if run.has("face_recognizer"):
                    value = SCORES["identity"](self.scorer, Case(frames=frames, source=source))
                    self.scorer.record("model", FULL, item, 0, run.wanted_values({f"identity_{angle}": value}))
        self.sheet(item.replace(": ", "_").replace("/", "_"), source, wanted, full, wanted)


def _side_views(avatar: EvalAvatar, motion: Tensor, angle_deg: float) -> Tensor:
    """Some frames from both sides, one view after the other."""
    return torch.cat([avatar.show(motion[::SIDE_STRIDE], side * angle_deg, True) for side in (-1, 1)])

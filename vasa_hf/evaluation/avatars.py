"""The part `avatars` of `vasa-hf eval`: VASA-3D against the VASA-1 that it was fitted to.

Each avatar and VASA-1 make the same motions of the same portrait, cut out and put on the same plain background; the
avatar is seen by the portrait's camera. VASA-1's frames are what the avatar should show (VASA-3D, Tables 1 and A), and
its own numbers are the upper bound (Table 2). The motions come from sounds and clips that no fit has seen.

# Not in the paper: three seconds of each; G' is the trained avatar without its VAS deformation, rather than one trained
without; identity from aside; the still frame as a baseline.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vasa_hf.controls import rebase_motion
from vasa_hf.evaluation.catalogue import NOT_DEFINED, PARTS, STILL, VASA1
from vasa_hf.evaluation.data import picture, to_uint8
from vasa_hf.evaluation.scoring import SCORES, Case
from vasa_hf.metrics.motion import SAMPLES_PER_FRAME

if TYPE_CHECKING:
    from vasa_hf.evaluation.evaluate import Evaluation

FRAMES = 75  # of each motion: 3 seconds
MOST_CLIPS = 6  # evenly spread
SIDE_DEG = (30, 45)  # to both sides
SIDE_STRIDE = 5  # side views of every fifth frame
BACKGROUND = (0.9, 0.9, 0.9)  # one of those that avatars are fitted on
FULL, BASE = "VASA-3D, G'' (ours)", "VASA-3D, G' (ours, base deformation alone)"
# What VASA-1's frames can be asked for without an avatar beside them.
ALONE = ("identity", "sync_c", "sync_d", "expert_c", "expert_d", "expert_offset", "msi", "delta_pose", "found")


@dataclass
class Sitter:
    """One avatar, as the evaluation uses it.

    Attributes:
        cutout (`PIL.Image.Image`): The portrait's crop, RGBA, transparent where the person is not.
        background (three `float`): RGB in [0, 1] of all pictures.
        show (`Callable`):
            `show(motion, azimuth_deg, deform) -> frames (frames, 3, size, size)` in [0, 1]; azimuth 0 is the portrait's
            camera, and without `deform` there is G' alone.
    """

    cutout: Image.Image
    background: Sequence[float]
    show: Callable[[Tensor, float, bool], Tensor]

    def portrait(self) -> Image.Image:
        """The portrait on the background."""
        plain = Image.new("RGBA", self.cutout.size, tuple(round(255 * value) for value in self.background))
        return Image.alpha_composite(plain, self.cutout.convert("RGBA")).convert("RGB")


def open_sitter(pipe: Any, name: str, folder: str | os.PathLike, size: int) -> Sitter:
    """Make an avatar ready to be judged.

    Args:
        pipe (`Vasa3DAvatarPipeline`): Loads and renders it.
        name (`str`): Of the avatar, or its folder.
        folder (`str` or `os.PathLike`): Where its files are, among them `portrait.png`, the cut-out portrait.
        size (`int`): Side of the pictures.

    Raises:
        ValueError: If the avatar cannot be loaded, or its portrait is not there.
    """
    avatar, path = pipe.load_avatar(name), Path(folder) / "portrait.png"
    if not path.is_file():
        raise ValueError(f"{path.name} is not in the avatar's folder {str(folder)!r}; `vasa-hf fit` writes it there.")
    cutout = Image.open(path)
    cutout.load()
    if cutout.mode != "RGBA" or cutout.width != cutout.height:
        raise ValueError(f"{path.name} must be a square RGBA picture, got {cutout.mode} of {cutout.size} pixels.")
    base = copy.deepcopy(avatar)  # the same without VAS deformation: G' is its G''
    for field in (base.deform_face, base.deform_neck):
        for parameter in field.out.parameters():
            torch.nn.init.zeros_(parameter)

    def show(motion: Tensor, azimuth_deg: float, deform: bool) -> Tensor:
        camera = [(0.0, float(azimuth_deg), 0.0, 1.0)]
        options = {"camera": camera, "background": BACKGROUND, "output_size": size, "output_type": "pt"}
        return pipe.render(avatar if deform else base, motion, **options).frames

    return Sitter(cutout, BACKGROUND, show)


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


def avatars(run: Evaluation) -> None:
    """Every avatar with every driving sound and clip."""
    part, names = "avatars", PARTS["avatars"]
    drives = _drives(run, part, names)
    for number, (who, load) in enumerate(run.avatars.items()):
        run.say(part, number, len(run.avatars), who)
        with run.reasons(part, who, names, FULL):
            if not drives:
                raise ValueError("there is no sound and no clip to drive the avatar.")
            sitter = load()
            scale = sitter.cutout.width / run.size
            portrait = run.portrait(sitter.portrait(), [scale * value for value in run.whole])
            source = picture_of(sitter, run.size)
            for index, drive in enumerate(drives):
                item = f"{who}: {drive.name}"
                with run.reasons(part, item, names, FULL):
                    _judge(run, part, item, sitter, portrait, source, drive, 1000 * number + index)
    run.score_sets(part, names, VASA1)


def _drives(run: Evaluation, part: str, names: Sequence[str]) -> list[Drive]:
    """Motions of clips, and sounds, that can be read; the others get rows that say why."""
    drives, clips = [], run.data.clips
    chosen = {clips[round(i)] for i in torch.linspace(0, len(clips) - 1, min(MOST_CLIPS, len(clips))).tolist()}
    for path in sorted(chosen):
        with run.reasons(part, path.stem, names, FULL), run.clock("generate"):
            clip = run.load(path)
            frames = clip.frames[:FRAMES]
            motion = run.pipeline.encode_video(to_uint8(frames), box=run.whole).cpu()
            samples = None if clip.samples is None else clip.samples[: len(frames) * SAMPLES_PER_FRAME]
            drives.append(Drive(path.stem, samples, motion, clip.silent_because))
    if run.data.speech:
        voices = run.voices(part, names, FRAMES * SAMPLES_PER_FRAME // 16_000)
        drives += [Drive(name, samples) for name, samples in voices]
    return drives


def _judge(
    run: Evaluation, part: str, item: str, sitter: Sitter, portrait: Any, source: Tensor, drive: Drive, index: int
) -> None:
    """One avatar with one motion: G'', G', one frame held, and VASA-1's own frames."""
    names = PARTS[part]
    with run.clock("generate"):
        if drive.motion is None:
            motion = run.motion(portrait, drive.samples, generator=torch.Generator().manual_seed(run.seed + index))
        else:
            motion = rebase_motion(drive.motion, portrait.motion.float().cpu())[0]
        motion = motion[:FRAMES]
        wanted = run.render(portrait, motion)
        full, base = sitter.show(motion, 0.0, True), sitter.show(motion, 0.0, False)
        sides = {angle: _side_views(sitter, motion, angle) for angle in SIDE_DEG}
    with run.clock("score"):
        track = run.track(wanted)
        heard = None if drive.samples is None else drive.samples[: len(motion) * SAMPLES_PER_FRAME]
        lacks = {"samples": f"{NOT_DEFINED}: {drive.why_silent or 'no sound'}"}
        lacks |= {"truth_track": "our detector sees no face in VASA-1's frames"}
        shared = {"truth": wanted, "truth_track": track, "source": source, "samples": heard, "lacks": lacks}
        still = full[:1].expand_as(full)
        videos = [
            ("model", FULL, 0, names, Case(frames=full, latent=_seen(run, full), **shared)),
            ("model", BASE, 0, names, Case(frames=base, latent=_seen(run, base), **shared)),
            ("baseline", STILL, 0, names, Case(frames=still, latent=_seen(run, full[:1], len(full)), **shared)),
        ]
        own = {**shared, "truth": None, "truth_track": None}
        real = Case(frames=wanted, track=track, latent=_seen(run, wanted), **own)
        run.keep(part, item, [*videos, ("truth", VASA1, 0, [name for name in names if name in ALONE], real)])
        for angle, frames in sides.items():
            if run.has("face_recognizer"):
                value = SCORES["identity"](run.scorer, Case(frames=frames, source=source))
                run.scorer.record(part, "model", FULL, item, 0, run.wanted_values({f"identity_{angle}": value}))
    run.sheet(part, item.replace(": ", "_").replace("/", "_"), source, wanted, full, wanted)


def _side_views(sitter: Sitter, motion: Tensor, angle_deg: float) -> Tensor:
    """Some frames from both sides, one view after the other."""
    return torch.cat([sitter.show(motion[::SIDE_STRIDE], side * angle_deg, True) for side in (-1, 1)])


def _seen(run: Evaluation, frames: Tensor, count: int = 1) -> Tensor | None:
    """Motion `(frames, channels)` that the pipeline's encoder sees in frames, for the sync expert."""
    if not run.has("sync_expert"):
        return None
    motion = run.pipeline.encode_video(to_uint8(frames), box=run.whole)[0].cpu()
    return motion.expand(count, -1) if count > 1 else motion


def picture_of(sitter: Sitter, size: int) -> Tensor:
    """The portrait on its background, `(1, 3, size, size)` in [0, 1]."""
    return picture(np.asarray(sitter.portrait()), size)[None]

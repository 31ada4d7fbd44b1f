"""Protocol of GAIA's controls (§5.4, appendices D and E): head pose, landmarks that are held, instructions."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from vasa_hf.evaluation.catalogue import NO_CONTROL, NOT_DEFINED
from vasa_hf.evaluation.protocols.base import Protocol
from vasa_hf.geometry.landmark_motion import transfer_landmarks
from vasa_hf.geometry.landmarks import EXPRESSIONS, frontal_points, shape_measures
from vasa_hf.metrics import motion as measures
from vasa_hf.metrics.faces import FaceTrack
from vasa_hf.motion.keyframes import Keyframes
from vasa_hf.pipelines.motion_gaia import ALL_BUT_MOUTH_AND_JAW, LandmarkEdit, encode_landmarks

PORTRAITS, SECONDS, STRIDE = 10, 3, 5  # as many portraits as in appendix E.2; every fifth frame is measured
POSES = ((0.3, 0.0, 0.0), (-0.3, 0.0, 0.0), (0.0, 0.2, 0.0), (0.0, -0.2, 0.0), (0.0, 0.0, 0.2), (0.0, 0.0, -0.2))
# Instruction -> what is measured, and the change from which it counts as followed; radians, canonical units or scores.
# Actions that swing are measured by the deviation of the angle.
INSTRUCTIONS: dict[str, tuple[str, float]] = {
    "please smile": ("corner_lift", 0.03),
    "turn your head left": ("yaw", -0.2),
    "turn your head right": ("yaw", 0.2),
    "look up": ("pitch", -0.15),
    "look down": ("pitch", 0.15),
    "tilt your head left": ("roll", 0.15),
    "tilt your head right": ("roll", -0.15),
    "open your mouth wide": ("jaw_drop", 0.15),
    "look surprised": ("surprised", 0.1),
    "look sad": ("sad", 0.1),
    "look angry": ("angry", 0.1),
    "close your eyes": ("lid_opening", -0.04),
    "nod your head": ("pitch swing", 0.05),
    "shake your head": ("yaw swing", 0.05),
}
_NEEDS = {
    "landmark_denoiser": ("held_error", "held_shift", "lip_gap_range"),
    "text_denoiser": ("instruction_effect", "instruction_followed"),
}


class MotionControls(Protocol):
    """What head pose, held landmarks and instructions do to the frames of ten portraits."""

    name = "motion_controls"

    def _generate(self) -> None:
        run = self.run
        for part, names in _NEEDS.items():
            if getattr(run.pipeline, part, None) is None:
                why = f"{NOT_DEFINED}: a pipeline without {part}"
                self.scorer.record("model", run.model, "*", "*", dict.fromkeys(run.select_requested(names), why))
        paths = run.data.portraits[:: max(1, len(run.data.portraits) // PORTRAITS)][:PORTRAITS]
        voice = next((samples for _, samples in self.voices(SECONDS)), None)
        for number, path in enumerate(paths):
            self.report(number, len(paths), path.stem)
            with self.record_failure(path.stem):
                portrait = run.portrait(path)
                if voice is not None:
                    self._control_speech(path.stem, portrait, voice, number)
                if getattr(run.pipeline, "text_denoiser", None) is not None:
                    self._instruct(path.stem, portrait)

    def _look(self, portrait: Any, voice: Tensor | None, **settings: Any) -> tuple[Tensor, FaceTrack]:
        """Motion of a call, and the face in its frames `STRIDE // 2 :: STRIDE`."""
        run = self.run
        with run.clock("generate"):
            generator = torch.Generator().manual_seed(run.seed)
            if voice is None:
                made = run.pipeline(portrait, output_type="latent", generator=generator, **settings)
                latent = made.motion[0].cpu()
            else:
                latent = run.motion(portrait, voice, generator=generator, **settings)
            frames = run.render(portrait, latent[STRIDE // 2 :: STRIDE])
        with run.clock("score"):
            return latent, run.require_track(frames)

    def _control_speech(self, item: str, portrait: Any, voice: Tensor, number: int) -> None:
        run, free = self.run, self._look(portrait, voice)[1]
        values, ignored = {}, {}
        errors = [(self._look(portrait, voice, pose=pose)[1], torch.tensor(pose)) for pose in POSES]
        values["pose_constant_error"] = fmean([_pose_error(track, pose) for track, pose in errors])
        ignored["pose_constant_error"] = fmean([_pose_error(free, pose) for _, pose in errors])
        yaws = torch.stack([track.pose[track.found, 0].mean() for track, _ in errors[:2]])
        values["pose_yaw_slope"] = float((yaws[0] - yaws[1]) / (POSES[0][0] - POSES[1][0]))
        if run.data.clips:
            clip = run.data.clips[number % len(run.data.clips)]
            driver = run.load_reference(clip).best
            times = torch.arange(len(driver), dtype=torch.float64) / measures.FPS
            poses = Keyframes(times, driver.pose[:, :3].double())
            latent, track = self._look(portrait, voice, pose=poses)
            wanted = latent[STRIDE // 2 :: STRIDE, :3]  # as asked: the clip's last pose holds
            values["pose_video_error"] = _pose_error(track, wanted)
            ignored["pose_video_error"] = _pose_error(free, wanted)
            if getattr(run.pipeline, "landmark_denoiser", None) is not None:
                values |= self._hold(portrait, voice, driver)
        self.scorer.record("model", run.model, item, 0, run.select_values(values))
        self.scorer.record("baseline", NO_CONTROL, item, 0, run.select_values(ignored))

    def _hold(self, portrait: Any, voice: Tensor, driver: FaceTrack) -> dict[str, float]:
        """All landmarks but mouth and jaw follow a driver while the mouth follows the voice (Fig. 3b)."""
        run, held = self.run, list(ALL_BUT_MOUTH_AND_JAW)
        own = (portrait.landmarks.float().cpu(), portrait.pose.float().cpu())
        wanted, _ = transfer_landmarks(*own, driver.landmarks, driver.pose, run.canonical())
        latent, track = self._look(portrait, voice, edit_landmarks=LandmarkEdit(wanted))
        with run.clock("generate"):  # the same frames, painted from the driver's landmarks alone
            shown = wanted[torch.arange(len(latent)).clamp(max=len(wanted) - 1)][STRIDE // 2 :: STRIDE]
            motion = latent[STRIDE // 2 :: STRIDE].clone()
            with torch.no_grad():
                drawn = encode_landmarks(run.pipeline.autoencoder, shown.to(run.pipeline.device))
            motion[:, 6:] = drawn.float().cpu()
            frames = run.render(portrait, motion)
        with run.clock("score"):
            painted = run.require_track(frames)
        both = track.found & painted.found
        distance = lambda a, b: float((256 * (a - b)[both][:, held]).norm(dim=-1).mean())  # noqa: E731
        gap = track.lip_gap[track.found]
        return {
            "held_error": distance(track.landmarks, shown),
            "held_shift": distance(track.landmarks, painted.landmarks),
            "lip_gap_range": float(gap.quantile(0.9) - gap.quantile(0.1)),
        }

    def _instruct(self, item: str, portrait: Any) -> None:
        run = self.run
        for text, (name, least) in INSTRUCTIONS.items():
            track = self._look(portrait, None, text=text, seconds=SECONDS)[1]
            effect = action_change(track, run.canonical(), name) / least
            values = {"instruction_effect": effect, "instruction_followed": float(effect >= 1)}
            self.scorer.record("model", f"{run.model}: {text}", item, 0, run.select_values(values))


def action_change(track: FaceTrack, canonical: Tensor, name: str) -> float:
    """Change of a measure from the beginning of a track to its second half; of a swing, its deviation there.

    Args:
        track (`FaceTrack`): The face.
        canonical (`torch.Tensor` of shape `(162, 3)`): Mean face.
        name (`str`): `yaw`, `pitch`, `roll`, one of these with ` swing`, a name of `shape_measures`, or an expression.
    """
    angle, _, swings = name.partition(" ")
    if angle in ("yaw", "pitch", "roll"):
        values = track.pose[:, ("yaw", "pitch", "roll").index(angle)]
    elif name in EXPRESSIONS:
        values = track.expressions(canonical)[:, EXPRESSIONS.index(name)]
    else:
        values = shape_measures(frontal_points(track.landmarks, track.pose, canonical))[name]
    later = values[len(values) // 2 :][track.found[len(values) // 2 :]]
    if swings:
        return float(later.std())
    return float(later.mean() - values[track.found][0])


def _pose_error(track: FaceTrack, wanted: Tensor) -> float:
    """Mean angle in degrees to head poses `(3,)` or `(frames, 3)` in radians."""
    pose = track.pose.clone()
    pose[:, :3] = wanted
    return measures.pose_error(track, FaceTrack.of(track.landmarks, pose))

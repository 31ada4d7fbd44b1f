"""Motion from speech by GAIA's diffusion model (§4.3), and its three kinds of control (§5.4, appendices D and E).

    audio --Wav2Vec2--> z_s --windows, reverse diffusion--> z_m of every frame      pose=: instead of P's prediction
    audio --> coordinates, some of them held at every step --drawn, E_M--> z_m      edit_landmarks=
    words --CLIP--> features instead of z_s --reverse diffusion--> z_m              text=

# Not in the paper: windows. The last frames of a window are the first ones of the next, held at every reverse step as
edited landmarks are.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedModel

from vasa_hf.checks import is_finite_number
from vasa_hf.geometry.landmark_pictures import draw_landmarks
from vasa_hf.geometry.landmarks import GROUPS, NUM_LANDMARKS, rows
from vasa_hf.models.autoencoder_gaia import GaiaAutoencoder
from vasa_hf.models.motion_denoiser_gaia import POSE_DIM, GaiaMotionDenoiser
from vasa_hf.motion import MotionSpec
from vasa_hf.motion.keyframes import Keyframes, check_times, parse_keyframes
from vasa_hf.motion.windows import MotionWindows, ShortWindows
from vasa_hf.pipelines.inputs import Subject
from vasa_hf.pipelines.motion_generator import Sampling, denoise, encode_windows, initial_noise, set_timesteps
from vasa_hf.processors.audio import VasaAudioProcessor

MAX_POSE_RAD = 1.2
_JAW = rows(361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172, 58, 132)
MOUTH_AND_JAW = tuple(sorted({*GROUPS["lips_outer"], *GROUPS["lips_inner"], *_JAW}))
#: Landmarks that Fig. 3b holds.
ALL_BUT_MOUTH_AND_JAW = tuple(sorted(set(range(NUM_LANDMARKS)) - set(MOUTH_AND_JAW)))


@dataclass(frozen=True)
class LandmarkEdit:
    """Landmarks that are held, as a control.

    Args:
        landmarks (`torch.Tensor` of shape `(162, 2)` or `(frames, 162, 2)`):
            Fractions of the subject's crop, at 25 frames per second; the last frame holds.
        hold (`Sequence[int | str]`, defaults to all but mouth and jaw):
            Rows of the landmarks, or names of `vasa_hf.geometry.landmarks.GROUPS`.
    """

    landmarks: Tensor
    hold: Sequence[int | str] = ALL_BUT_MOUTH_AND_JAW

    @property
    def held(self) -> list[int]:
        """Rows that are held, rising."""
        return sorted({row for part in self.hold for row in (GROUPS[part] if isinstance(part, str) else (part,))})

    def check(self) -> None:
        """Raise `ValueError` for other shapes and unknown landmarks."""
        points = self.landmarks
        if not isinstance(points, Tensor) or points.ndim not in (2, 3) or points.shape[-2:] != (NUM_LANDMARKS, 2):
            got = tuple(points.shape) if isinstance(points, Tensor) else type(points).__name__
            raise ValueError(f"`edit_landmarks` must have landmarks ([frames,] {NUM_LANDMARKS}, 2), got {got}.")
        if not len(points) or not bool(torch.isfinite(points).all()):
            raise ValueError("`edit_landmarks` must have finite landmarks of one frame or more, got others.")
        for part in self.hold:
            known = part in GROUPS if isinstance(part, str) else isinstance(part, int) and 0 <= part < NUM_LANDMARKS
            if not known:
                known_names = f"rows below {NUM_LANDMARKS} or names of {list(GROUPS)}"
                raise ValueError(f"`edit_landmarks` must hold {known_names}, got {part!r}.")

    def at(self, start: int, frames: int) -> Tensor:
        """Landmarks `(frames, 162, 2)` of frames from `start` on."""
        points = self.landmarks if self.landmarks.ndim == 3 else self.landmarks[None]
        return points[torch.arange(start, start + frames).clamp(0, len(points) - 1)]


@dataclass(frozen=True)
class GaiaControls:
    """Controls of GAIA's motion. `None` leaves a choice to the model.

    Args:
        pose (`tuple[float, float, float]`, `[(seconds, pose), ...]`, `Keyframes`, `str` or `os.PathLike`, *optional*):
            Yaw, pitch and roll of the head in radians: constant, keyframes, or those of a video file. Yaw > 0 turns to
            the image's left, pitch > 0 down, roll > 0 clockwise.
        edit_landmarks (`LandmarkEdit`, `str` or `os.PathLike`, *optional*):
            Landmarks to hold, or a video file whose motion all landmarks but those of mouth and jaw follow.
        text (`str` or `[(seconds, text), ...]`, *optional*):
            Instructions such as `"please smile"`, that take the place of speech; `audio` may then be left out.
        seconds (`float`, defaults to 3.0): Length of a video with `text` and without `audio`.
    """

    pose: Any = None
    edit_landmarks: Any = None
    text: Any = None
    seconds: float = 3.0


class GaiaMotionGenerator:
    """Generates motion from speech; see `MotionGenerator`.

    Args:
        model (`GaiaMotionDenoiser`): Predicts clean motion.
        scheduler (`diffusers.SchedulerMixin`): From `gaia_scheduler`, or another one made of its config; copied.
        audio_encoder (`transformers.PreTrainedModel`): Audio features.
        audio_processor (`VasaAudioProcessor`): Knows the rates.
        autoencoder (`GaiaAutoencoder`): Encodes landmarks.
        device (`torch.device`): Where the models run.
        landmark_model (`GaiaMotionDenoiser`, *optional*): Predicts landmark coordinates, for `edit_landmarks`.
        text_models (`tuple`, *optional*): Denoiser, CLIP text model and tokenizer, for `text`.
    """

    emotions: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ("audio",)
    default_guidance_scale: Mapping[str, float] = {}  # none, as in the paper
    default_steps = 20
    overlap = lead_frames = 0

    def __init__(
        self,
        model: GaiaMotionDenoiser,
        scheduler: SchedulerMixin,
        audio_encoder: PreTrainedModel,
        audio_processor: VasaAudioProcessor,
        autoencoder: GaiaAutoencoder,
        device: torch.device,
        landmark_model: GaiaMotionDenoiser | None = None,
        text_models: tuple[GaiaMotionDenoiser, PreTrainedModel, Any] | None = None,
    ):
        self.model, self.scheduler, self.device = model, copy.deepcopy(scheduler), device
        self.audio_encoder, self.audio_processor, self.autoencoder = audio_encoder, audio_processor, autoencoder
        self.landmark_model, self.text_models = landmark_model, text_models
        self.spec = MotionSpec({"latent": autoencoder.motion_dim})
        self.first_window_range = (max(model.config.context, 1), model.config.window)

    def check(self, controls: GaiaControls) -> None:
        """Raise `ValueError` for controls that are malformed, unknown or out of range."""
        parse_pose(controls.pose)
        if controls.text is not None:
            parse_text(controls.text)
            if self.text_models is None:
                raise ValueError("`text` needs a pipeline with `text_denoiser`, `text_encoder` and `text_tokenizer`.")
            if controls.edit_landmarks is not None:
                raise ValueError("`edit_landmarks` must be None where `text` is given, got both.")
        if controls.edit_landmarks is not None:
            if not isinstance(controls.edit_landmarks, LandmarkEdit):
                kind = type(controls.edit_landmarks).__name__
                raise ValueError(f"`edit_landmarks` must be a LandmarkEdit or a video file, got {kind}.")
            controls.edit_landmarks.check()
            if self._landmark_model() is None:
                raise ValueError("`edit_landmarks` needs a pipeline with a `landmark_denoiser`.")

    def windows(self, first_window: int | None = None, short: int | None = None) -> MotionWindows:
        """Plan of the windows of one sequence; see `MotionGenerator.windows`."""
        if short is not None:
            return ShortWindows(short, self.model.config.context)
        return MotionWindows(self.model.config.window, self.model.config.context, first_window)

    @torch.no_grad()
    def generate(
        self, audio: Iterable[Tensor], subjects: Sequence[Any], controls: GaiaControls, sampling: Sampling
    ) -> Iterator[Tensor]:
        """Generate the motion of subjects, window by window.

        Args:
            audio (`Iterable[torch.Tensor]`): Chunks `(batch, n)` of mono audio at the encoder's rate.
            subjects (`Sequence[GaiaPortrait]`): Of each of the batch.
            controls (`GaiaControls`): Controls of the call.
            sampling (`Sampling`): Settings.

        Yields:
            `torch.Tensor` of shape `(batch, frames, channels)`, float32, absolute.
        """
        windows, model = sampling.windows or self.windows(sampling.first_window), self._model(controls)
        own = torch.cat([subject.motion for subject in subjects]).to(self.device)  # [B, 6 + latent]
        reference = own[:, 6:]
        if model.config.predicts == "landmarks":
            reference = torch.stack([subject.landmarks.flatten() for subject in subjects]).to(self.device)
        chunks = encode_windows(audio, windows, self.audio_processor, self.audio_encoder, sampling.num_frames)
        for index, (window, features, ends) in enumerate(chunks):
            sample = partial(
                self.sample_window,
                model=model,
                reference=reference,
                index=index,
                start=window.start,
                lengths=[end - window.start for end in ends],
                controls=controls,
                sampling=sampling,
            )
            made = windows.generate(features, sample)[:, : window.stop - window.start].to(self.device).float()
            motion = model.denormalize(made[..., :-POSE_DIM], reference)
            latent = self._encode(motion, controls, window.start) if model.config.predicts == "landmarks" else motion
            pose = self._read_pose(controls, window.start, made.shape[1])  # exact, also where a window's seam fades
            pose = made[..., -POSE_DIM:] if pose is None else pose.expand(len(made), -1, -1)
            place = own[:, None, 3:6].expand(-1, made.shape[1], -1)
            yield torch.cat([pose, place, latent.float()], dim=-1)
            if sampling.is_interrupted():
                return

    def place(self, windows: Iterable[Tensor], subject: Subject, controls: GaiaControls) -> Iterator[Tensor]:
        """Yield windows as they are: they were generated for the subject."""
        yield from windows

    @torch.no_grad()
    def sample_window(
        self,
        audio: Tensor,  # [B, W, A]
        frame_mask: Tensor,  # [B, W]
        previous_motion: Tensor | None,  # [B, K, M + 3]
        previous_audio: Tensor | None,  # [B, K, A]
        *,
        model: GaiaMotionDenoiser,
        reference: Tensor,  # [B, M]
        index: int,
        start: int,
        lengths: Sequence[int],
        controls: GaiaControls,
        sampling: Sampling,
    ) -> Tensor:  # [B, W, M + 3]
        """Denoise the motion of one window, with its head pose last; see `MotionWindows.generate`."""
        device, (batch, window) = self.device, audio.shape[:2]
        past = 0 if previous_motion is None else previous_motion.shape[1]
        limits = torch.tensor(lengths, device=device).clamp_min(1)[:, None]
        mask = frame_mask.to(device) & (torch.arange(window, device=device) < limits)
        mask = torch.cat([mask.new_ones(batch, past), mask], dim=1)
        window_audio = audio if previous_audio is None else torch.cat([previous_audio, audio], dim=1)
        speech = window_audio.to(device, model.dtype)
        if controls.text is not None:
            speech = self._text_features(controls, start - past, batch, past + window)

        pose = self._read_pose(controls, start - past, past + window)
        if pose is not None:
            pose = pose.expand(batch, -1, -1)
        else:
            pose = model.predict_pose(speech, mask).float()
            if previous_motion is not None:
                pose = torch.cat([previous_motion[..., -POSE_DIM:].to(pose), pose[:, past:]], dim=1)

        noise = initial_noise(sampling, index, (batch, window, model.config.motion_dim), device)
        if past:
            shape = (batch, past, model.config.motion_dim)
            noise = torch.cat([randn_tensor(shape, generator=sampling.generator, device=device), noise], dim=1)
        known, held = self._known(model, reference, noise, previous_motion, controls, start)
        timesteps = set_timesteps(self.scheduler, sampling, self.default_steps, device)
        conditions = {"audio": speech, "reference": reference.to(model.dtype), "pose": pose.to(model.dtype)}
        scales = {**self.default_guidance_scale, **(sampling.guidance_scale or {})}
        hold = replace(sampling, on_step=self._hold(sampling, timesteps, known, held, noise))
        made = denoise(model, self.scheduler, timesteps, noise, conditions, scales, hold, window_audio, frame_mask=mask)
        return torch.cat([made, pose], dim=-1)[:, past:]

    def _read_pose(self, controls: GaiaControls, start: int, frames: int) -> Tensor | None:
        """The control `pose` at frames from `start` on, `(frames, 3)`; `None` if it is the model's choice."""
        track = parse_pose(controls.pose)
        if track is None:
            return None
        seconds = torch.arange(start, start + frames, dtype=torch.float64) / float(self.audio_processor.fps)
        return track.at(seconds).to(self.device, torch.float32)

    def _model(self, controls: GaiaControls) -> GaiaMotionDenoiser:
        if controls.text is not None and self.text_models is not None:
            return self.text_models[0]
        model = None if controls.edit_landmarks is None else self._landmark_model()
        return self.model if model is None else model

    def _landmark_model(self) -> GaiaMotionDenoiser | None:
        return self.model if self.model.config.predicts == "landmarks" else self.landmark_model

    def _known(
        self,
        model: GaiaMotionDenoiser,
        reference: Tensor,
        noise: Tensor,  # [B, K + W, M]
        previous_motion: Tensor | None,
        controls: GaiaControls,
        start: int,
    ) -> tuple[Tensor, Tensor]:
        """Normalized values that are known, and where they are: the frames before, and landmarks that are held."""
        known, held = torch.zeros_like(noise), torch.zeros_like(noise, dtype=torch.bool)
        past = 0 if previous_motion is None else previous_motion.shape[1]
        if controls.edit_landmarks is not None:
            points = controls.edit_landmarks.at(start - past, noise.shape[1]).flatten(1).to(noise)
            known = model.normalize(points.expand(len(noise), -1, -1), reference).to(noise)
            held.unflatten(2, (-1, 2))[:, :, controls.edit_landmarks.held] = True
        if previous_motion is not None:
            known[:, :past] = previous_motion[..., :-POSE_DIM].to(noise)
            held[:, :past] = True
        return known, held

    def _hold(self, sampling: Sampling, timesteps: Tensor, known: Tensor, held: Tensor, noise: Tensor) -> Any:
        """After each reverse step: what is known takes its place, with the noise of the next step (appendix D.2)."""
        steps = itertools.count(1)

        def on_step(timestep: Tensor, latents: Tensor, audio: Tensor) -> Tensor:
            if sampling.on_step is not None:
                latents = sampling.on_step(timestep, latents, audio)
            step, target = next(steps), known
            if step < len(timesteps):
                target = self.scheduler.add_noise(known, noise, timesteps[step].expand(len(known)))
            return torch.where(held, target, latents)

        return on_step

    def _encode(self, motion: Tensor, controls: GaiaControls, start: int) -> Tensor:
        """Coordinates `(batch, frames, 324)` to z_m, exactly as edited where they are held."""
        points = motion.unflatten(2, (-1, 2))
        if controls.edit_landmarks is not None:
            edit, points = controls.edit_landmarks, points.clone()
            points[:, :, edit.held] = edit.at(start, points.shape[1])[:, edit.held].to(points)
        frames = points.flatten(0, 1).split(16)
        return torch.cat([encode_landmarks(self.autoencoder, part) for part in frames]).unflatten(0, points.shape[:2])

    def _text_features(self, controls: GaiaControls, start: int, batch: int, frames: int) -> Tensor:
        """Pooled features of the instruction that holds at each frame, `(batch, frames, text_dim)`."""
        assert self.text_models is not None  # see `check`
        model, encoder, tokenizer = self.text_models
        seconds, texts = parse_text(controls.text)
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        pooled = encoder(tokens.to(self.device)).pooler_output
        times = (torch.arange(start, start + frames) / float(self.audio_processor.fps)).clamp_min(0)
        current = torch.searchsorted(torch.tensor(seconds), times, right=True).clamp_min(1) - 1
        return pooled[current].to(model.dtype).expand(batch, -1, -1)


def encode_landmarks(autoencoder: GaiaAutoencoder, landmarks: Tensor) -> Tensor:
    """z_m `(frames, motion_dim)` of landmarks `(frames, 162, 2)`, float32."""
    picture = draw_landmarks(landmarks, autoencoder.config.image_size).to(autoencoder.dtype)
    return autoencoder.flatten_motion(autoencoder.encode_motion(picture).mode()).float()


def parse_pose(pose: Any) -> Keyframes | None:
    """Check the control `pose`; a `Keyframes` stays as it is.

    Raises:
        ValueError: If it is malformed or out of range.
    """
    if isinstance(pose, Keyframes):
        return pose

    def value(angles: Any) -> list[float] | None:
        angles = angles.tolist() if hasattr(angles, "tolist") else angles
        if not isinstance(angles, Sequence) or isinstance(angles, str) or len(angles) != POSE_DIM:
            return None
        if not all(is_finite_number(angle) for angle in angles):
            return None
        if max(abs(angle) for angle in angles) > MAX_POSE_RAD:
            raise ValueError(f"`pose` must lie in [-{MAX_POSE_RAD}, {MAX_POSE_RAD}] radians, got {tuple(angles)}.")
        return [float(angle) for angle in angles]

    return parse_keyframes("pose", "(yaw, pitch, roll) in radians", pose, value)


def parse_text(text: Any) -> tuple[list[float], list[str]]:
    """Check the control `text`: times at which instructions begin, and the instructions.

    Raises:
        ValueError: If it is malformed.
    """
    keys = [(0.0, text)] if isinstance(text, str) else text
    problem = ValueError(f"`text` must be words, or keyframes [(seconds, words), ...], got {text!r}.")
    if not isinstance(keys, Sequence) or not keys:
        raise problem
    for key in keys:
        if not isinstance(key, Sequence) or len(key) != 2 or not is_finite_number(key[0]):
            raise problem
        if not isinstance(key[1], str) or not key[1].strip():
            raise problem
    seconds = [float(second) for second, _ in keys]
    check_times("text", seconds)
    return seconds, [words for _, words in keys]

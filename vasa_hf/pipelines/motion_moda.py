"""Motion from speech by MoDA's transformer (paper §3.3; what it leaves unsaid, as its code).

    audio --encoder--> A, a vector (or one per layer) for each frame
    windows of 80 frames, 16 shared; each: noise --10 steps of rectified flow, Eq. 8--> motion, given A, emotion,
    the portrait's keypoints, and the frame before the window (at first the portrait's own)
    -> joined, pose smoothed --absolute driving--> the portrait moves

Motion is 70 numbers per frame: expression 63, scale, translation 3, pitch, yaw, roll in degrees.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from diffusers import SchedulerMixin
from torch import Tensor
from transformers import PreTrainedModel

from vasa_hf.geometry.keypoints import KeypointMotion, absolute_motion
from vasa_hf.models.motion_transformer_moda import CONDITIONS, EMOTIONS, ModaMotionTransformer
from vasa_hf.motion.controls import EmotionControl, parse_emotion_label
from vasa_hf.motion.keyframes import Keyframes
from vasa_hf.motion.windows import OverlappedWindows, hold_after, join_windows
from vasa_hf.pipelines.keypoint_motion import KEYPOINT_SPEC, HeadControls, KeypointPortrait
from vasa_hf.pipelines.motion_generator import Sampling, denoise, encode_windows, initial_noise, set_timesteps
from vasa_hf.processors.audio import VasaAudioProcessor

POSE = slice(63, 70)
_SCALE, _TRANSLATION = slice(63, 64), slice(64, 67)
# Not in the paper: the public code opens the gaze a little in every frame; y of the eyes' keypoints.
GAZE_OFFSETS = {11: 0.0025, 13: 0.00075, 15: 0.0025, 16: 0.00075}


@dataclass(frozen=True)
class ModaControls(HeadControls):
    """Controls of MoDA's motion, and those of every talking head: `expression`, `head_motion`.

    Args:
        emotion (`str`, `dict[str, float]`, keyframes of them, *optional*):
            One of `emotions`, such as `"happiness"`, or weights, of which the largest counts: a window has one emotion.
            `None`: the emotion of the voice. Keyframes hold until the next.
    """

    emotion: EmotionControl | None = None


class ModaMotionGenerator:
    """Generates motion from speech; see `MotionGenerator`.

    Args:
        model (`ModaMotionTransformer`): Predicts the velocity.
        scheduler (`FlowMatchEulerDiscreteScheduler` or another of diffusers' for flows): Sampler; copied.
        audio_encoder (`transformers.PreTrainedModel`): Audio features.
        audio_processor (`VasaAudioProcessor`): Knows the rates.
        device (`torch.device`): Where the model runs.
        gaze_offset (`bool`, defaults to `False`): Open the gaze as MoDA's code does; see `GAZE_OFFSETS`.
        timestep_spacing (`str`, defaults to `"linspace"`): See `spaced_sigmas`.
    """

    spec = KEYPOINT_SPEC
    conditions: tuple[str, ...] = CONDITIONS
    default_guidance_scale: Mapping[str, float] = {"audio": 0.2}  # the code's cfg_scale 1.2
    default_steps = 10  # §3.3
    lead_frames = 0

    def __init__(
        self,
        model: ModaMotionTransformer,
        scheduler: SchedulerMixin,
        audio_encoder: PreTrainedModel,
        audio_processor: VasaAudioProcessor,
        device: torch.device,
        gaze_offset: bool = False,
        timestep_spacing: str = "linspace",
    ):
        self.model, self.scheduler, self.device = model, copy.deepcopy(scheduler), device
        self.audio_encoder, self.audio_processor, self.gaze_offset = audio_encoder, audio_processor, gaze_offset
        self.timestep_spacing = timestep_spacing
        self.emotions, self.overlap = EMOTIONS[: model.config.num_emotions], model.config.overlap
        self.first_window_range = (model.config.overlap + 1, model.config.window)

    def check(self, controls: ModaControls) -> None:
        """Raise `ValueError` for controls that are malformed, unknown or out of range."""
        controls.check()
        self._emotion_track(controls)

    def windows(self, first_window: int | None = None, short: int | None = None) -> OverlappedWindows:
        """Plan of the windows of one sequence; see `MotionGenerator.windows`."""
        if short is not None:
            self.overlap = 0
            return OverlappedWindows(short, self.overlap, smoothed=POSE)
        return OverlappedWindows(self.model.config.window, self.overlap, first_window, POSE)

    @torch.no_grad()
    def generate(
        self, audio: Iterable[Tensor], subjects: Sequence[KeypointPortrait], controls: ModaControls, sampling: Sampling
    ) -> Iterator[Tensor]:
        """Generate motion window by window.

        Args:
            audio (`Iterable[torch.Tensor]`): Chunks `(batch, n)` of mono audio at the encoder's rate.
            subjects (`Sequence[KeypointPortrait]`): Of each of the batch.
            controls (`ModaControls`): Controls of the call.
            sampling (`Sampling`): Settings.

        Yields:
            `torch.Tensor` of shape `(batch, frames, 70)`, float32. Frames that neighbours share are in both.
        """
        portraits = KeypointMotion.cat([subject.keypoints for subject in subjects])
        windows, track, fps = (
            sampling.windows or self.windows(sampling.first_window),
            self._emotion_track(controls),
            self.audio_processor.fps,
        )
        own, ratio = rescale_to_mean_face(portraits, self.model)
        chunks = encode_windows(audio, windows, self.audio_processor, self.audio_encoder, sampling.num_frames)
        for index, (window, features, ends) in enumerate(chunks):
            middles = [(window.start + max(end, window.start + 1)) / 2 / fps for end in ends]
            sample = partial(
                self.sample_window,
                index=index,
                first_motion=self.model.normalize(own),
                keypoints=portraits.kp.flatten(1),
                emotion=track.at(torch.tensor(middles, dtype=torch.float64))[:, 0].long(),
                lengths=[end - window.start for end in ends],
                sampling=sampling,
            )
            features = features if features.ndim == 4 else features[:, :, None]  # [B, N, L, A]
            motion = windows.generate(features, sample)[:, : window.stop - window.start]
            motion = self.model.denormalize(motion.float())
            motion[..., 63:67] *= ratio[:, None]
            yield motion
            if sampling.is_interrupted():
                return

    def place(self, windows: Iterable[Tensor], subject: KeypointPortrait, controls: ModaControls) -> Iterator[Tensor]:
        """Join windows to one motion and put it onto a portrait: absolute motion `(1, frames, 69)`."""

        def drive() -> Iterator[KeypointMotion]:
            for motion in join_windows(windows, self.overlap, POSE):
                driving = KeypointMotion.from_vector(motion[0], subject.keypoints.kp)
                if self.gaze_offset:
                    exp = driving.exp.clone()
                    exp[:, list(GAZE_OFFSETS), 1] += exp.new_tensor(list(GAZE_OFFSETS.values()))
                    driving = replace(driving, exp=exp)
                yield absolute_motion(subject.keypoints, driving)

        yield from controls.apply(drive(), subject, self.audio_processor.fps)

    @torch.no_grad()
    def sample_window(
        self,
        audio: Tensor,  # [B, W, L, A]
        frame_mask: Tensor,  # [B, W]
        previous_motion: Tensor | None,  # [B, 70]
        previous_audio: None = None,
        *,
        index: int = 0,
        first_motion: Tensor,  # [B, 70]
        keypoints: Tensor,  # [B, 63]
        emotion: Tensor,  # [B]
        lengths: Sequence[int],
        sampling: Sampling,
    ) -> Tensor:
        """Denoise the motion of one window (Eq. 8); see `OverlappedWindows.generate`."""
        model, device, shared = self.model, self.device, {}
        conditions = {"audio": audio, "emotion": emotion, "keypoints": keypoints}
        conditions["previous_motion"] = first_motion if previous_motion is None else previous_motion
        conditions = {
            name: value.to(device, model.dtype if value.is_floating_point() else None)
            for name, value in conditions.items()
        }
        limits = torch.tensor(lengths, device=device)[:, None].clamp(min=1)
        frame_mask = frame_mask.to(device) & (torch.arange(audio.shape[1], device=device) < limits)
        if model.config.mask_padding:
            frame_mask[:, 0] = True  # an entry of a batch that has ended: nothing to attend to gives NaN
            shared["frame_mask"] = frame_mask
        if sampling.timesteps is None and sampling.sigmas is None:
            steps = sampling.num_inference_steps or self.default_steps
            sampling = replace(sampling, sigmas=spaced_sigmas(self.scheduler, steps, self.timestep_spacing))
        timesteps = set_timesteps(self.scheduler, sampling, self.default_steps, device)
        latents = initial_noise(sampling, index, (*audio.shape[:2], model.config.motion_dim), device)
        scales = {**self.default_guidance_scale, **(sampling.guidance_scale or {})}
        latents = denoise(model, self.scheduler, timesteps, latents, conditions, scales, sampling, audio, **shared)
        return hold_after(latents, limits[:, 0]) if shared else latents

    def _emotion_track(self, controls: ModaControls) -> Keyframes:
        return parse_emotion_label(controls.emotion, self.emotions)


def spaced_sigmas(scheduler: SchedulerMixin, num_inference_steps: int, timestep_spacing: str) -> list[float] | None:
    """Noise levels that sampling begins its steps at, or `None` for the scheduler's own.

    Args:
        scheduler (`diffusers.SchedulerMixin`): Of flow matching.
        num_inference_steps (`int`): N of Eq. 2.
        timestep_spacing (`str`):
            As diffusers names them. `"trailing"`: N equal steps, 1, 1 - 1/N, ..., 1/N (paper, Eq. 2). `"linspace"`: the
            scheduler's own, as in MoDA's code; those of `FlowMatchEulerDiscreteScheduler` end at 0.001, so that
            nine steps of ten do the work.

    Raises:
        ValueError: If the scheduler takes no noise levels.
    """
    if timestep_spacing == "linspace":
        return None
    if "sigmas" not in inspect.signature(scheduler.set_timesteps).parameters:
        kind = type(scheduler).__name__
        raise ValueError(f"`timestep_spacing` must be 'linspace' for {kind}, which has its own, got 'trailing'.")
    return [1 - step / num_inference_steps for step in range(num_inference_steps)]


def rescale_to_mean_face(portraits: KeypointMotion, model: ModaMotionTransformer) -> tuple[Tensor, Tensor]:
    """Rescale portraits to the mean size, `(batch, 70)`, and return how much larger they are, `(batch, 1)`.

    # Not in the paper: MoDA's code divides scale and translation by the portrait's scale over the mean one.
    """
    vector = portraits.to_vector().float()
    vector[:, 66] = 0  # t_z is never applied
    mean = model.denormalize(torch.zeros_like(vector))  # not `model.motion_mean`, which may be offloaded
    ratio = (vector[:, _SCALE] + 1e-5) / (mean[:, _SCALE] + 1e-5)
    vector[:, 63:67] /= ratio
    return vector, ratio

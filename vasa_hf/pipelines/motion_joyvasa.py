"""Motion from speech by JoyVASA's denoiser: windows, sampling, smoothing.

    audio  | 2 frames of silence | n frames | 1 frame of silence |     cut into windows of W frames, the last filled up
    each window -> HuBERT -> A        X_t = noise -> X_0, given A, the window's past, and a scale of guidance
    -> units of LivePortrait -> pose smoothed -> n frames -> the portrait moves relative to the motion's first frame

Source: JoyVASA's public code. All windows begin with the same noise, each is denoised with noise of its own.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from torch import Tensor
from transformers import PreTrainedModel

from vasa_hf.geometry.keypoints import LIP_KEYPOINTS, KeypointMotion, relative_motion
from vasa_hf.models.motion_denoiser_joyvasa import POSE_DIM, JoyVasaMotionDenoiser
from vasa_hf.motion.streaming import audio_windows
from vasa_hf.motion.windows import MotionWindows
from vasa_hf.pipelines.keypoint_motion import KEYPOINT_SPEC, HeadControls, KeypointPortrait
from vasa_hf.pipelines.motion_generator import Sampling, denoise, initial_noise, set_timesteps
from vasa_hf.processors.audio import VasaAudioProcessor, frame_features

LEAD_FRAMES, TAIL_FRAMES = 2, 1  # of silence around the audio
SMOOTHING = 0.01


class JoyVasaMotionGenerator:
    """Generates motion from speech; see `MotionGenerator`.

    Args:
        model (`JoyVasaMotionDenoiser`): Predicts clean motion.
        scheduler (`diffusers.SchedulerMixin`): From `joyvasa_scheduler`, or another one with its config; copied.
        audio_encoder (`transformers.HubertModel`): JoyVASA's own, with the model's `audio_dim` channels.
        audio_processor (`VasaAudioProcessor`): Knows the rates.
        device (`torch.device`): Where the model runs.
        smoothing (`float`, *optional*, defaults to 0.01): Weight of a new pose in its moving average.
        trim (`bool`, defaults to `True`):
            Leave out the frames of the silence around the audio, so that frame 0 belongs to sample 0. JoyVASA's code
            keeps them: its mouths are two frames late.
    """

    spec = KEYPOINT_SPEC
    emotions: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ("audio",)
    default_guidance_scale: Mapping[str, float] = {"audio": 1.8}  # JoyVASA's cfg_scale is 1 more
    overlap, lead_frames = 0, LEAD_FRAMES

    def __init__(
        self,
        model: JoyVasaMotionDenoiser,
        scheduler: SchedulerMixin,
        audio_encoder: PreTrainedModel,
        audio_processor: VasaAudioProcessor,
        device: torch.device,
        smoothing: float | None = SMOOTHING,
        trim: bool = True,
    ):
        self.model, self.scheduler, self.device = model, copy.deepcopy(scheduler), device
        self.audio_encoder, self.audio_processor = audio_encoder, audio_processor
        self.smoothing, self.trim = smoothing, trim
        self.default_steps = model.config.num_train_timesteps  # all that it was trained with
        self.first_window_range = (model.config.window, model.config.window)  # it makes whole windows only

    def check(self, controls: HeadControls) -> None:
        """Raise `ValueError` for controls that are malformed, unknown or out of range."""
        controls.check()

    def windows(self, first_window: int | None = None, short: int | None = None) -> MotionWindows:
        """Plan of the windows of one sequence; see `MotionGenerator.windows`."""
        if short is not None:
            raise ValueError("JoyVASA makes whole windows of motion only: it has no live sessions.")
        return MotionWindows(self.model.config.window, self.model.config.context, first_window, seam_frames=0)

    @torch.no_grad()
    def generate(
        self, audio: Iterable[Tensor], subjects: Sequence[KeypointPortrait], controls: HeadControls, sampling: Sampling
    ) -> Iterator[Tensor]:
        """Generate motion window by window.

        Args:
            audio (`Iterable[torch.Tensor]`): Chunks `(batch, n)` of mono audio, 16 kHz, full scale = 1.
            subjects (`Sequence[KeypointPortrait]`): Of each of the batch; this motion is the same for all.
            controls (`HeadControls`): Applied by `place`.
            sampling (`Sampling`): Settings. Beyond its own length an entry of a batch is silent.

        Yields:
            `torch.Tensor` of shape `(batch, frames, 70)`: expression 63, scale, translation 3, pitch, yaw, roll in
            degrees.
        """
        model, unit, windows = self.model, self.audio_processor.samples_per_frame, self.windows(sampling.first_window)
        noise, pose, skip = None, None, LEAD_FRAMES if self.trim else 0
        for window, samples in audio_windows(_pad_silence(audio, unit, tail=not self.trim), windows, unit, 0, 0):
            if noise is None:
                noise = initial_noise(sampling, 0, (len(samples), windows.window, model.config.motion_dim), self.device)
            size = window.stop - window.start
            if model.config.pad_mode == "replicate":  # else the rest is zeros already
                samples = F.pad(samples[:, : size * unit], (0, (windows.window - size) * unit), mode="replicate")
            features = frame_features(self.audio_encoder, samples, windows.window, padding="reflect")
            features = model.project_audio(features.to(self.device, model.dtype))
            # A whole window is generated; the frames beyond the audio's end are removed here.
            motion = windows.generate(
                features,
                lambda audio, _, *past, noise=noise: self.sample_window(noise, audio, *past, sampling=sampling),
            )[:, :size]
            motion = model.denormalize(motion.float())
            if self.smoothing is not None:
                pose = smooth(motion[..., -POSE_DIM:], self.smoothing, None if pose is None else pose[:, -1])
                motion = torch.cat([motion[..., :-POSE_DIM], pose], dim=-1)
            kept, skip = motion[:, skip:], max(skip - motion.shape[1], 0)
            if kept.shape[1]:
                yield kept
            if sampling.is_interrupted():
                return

    def place(self, windows: Iterable[Tensor], subject: KeypointPortrait, controls: HeadControls) -> Iterator[Tensor]:
        """Put a motion onto a portrait, relative to its first frame, but the lips as they are: `(1, frames, 69)`."""

        def drive() -> Iterator[KeypointMotion]:
            first, lips = None, list(LIP_KEYPOINTS)
            for motion in windows:
                driving = KeypointMotion.from_vector(motion[0], subject.keypoints.kp)
                first = driving[:1] if first is None else first
                relative = relative_motion(subject.keypoints, driving, first)
                exp = relative.exp.clone()
                exp[:, lips] = driving.exp[:, lips]
                yield replace(relative, exp=exp)

        yield from controls.apply(drive(), subject, self.audio_processor.fps)

    @torch.no_grad()
    def sample_window(
        self,
        noise: Tensor,  # [B, W, M]
        audio: Tensor,  # [B, W, C]
        previous_motion: Tensor | None = None,  # [B, K, M]
        previous_audio: Tensor | None = None,  # [B, K, C]
        *,
        sampling: Sampling,
    ) -> Tensor:  # [B, W, M]
        """Denoise one window that begins with given noise; past audio is never dropped."""
        conditions = {"audio": audio, "previous_motion": previous_motion, "previous_audio": previous_audio}
        conditions = {name: None if x is None else x.to(self.model.dtype) for name, x in conditions.items()}
        timesteps = set_timesteps(self.scheduler, sampling, self.default_steps, noise.device)
        scales = {**self.default_guidance_scale, **(sampling.guidance_scale or {})}
        return denoise(self.model, self.scheduler, timesteps, noise, conditions, scales, sampling, audio)


def _pad_silence(audio: Iterable[Tensor], samples_per_frame: int, tail: bool) -> Iterator[Tensor]:
    """The chunks of an audio with silence before it; with `tail`, also after it, cut to whole frames."""
    chunks = iter(audio)
    first = next(chunks)
    lead = first.new_zeros(len(first), LEAD_FRAMES * samples_per_frame)
    if not tail:
        yield from itertools.chain([lead, first], chunks)
        return
    end = first.new_zeros(len(first), TAIL_FRAMES * samples_per_frame)
    whole = torch.cat([lead, first, *chunks, end], dim=1)
    yield whole[:, : whole.shape[1] // samples_per_frame * samples_per_frame]


def smooth(
    values: Tensor,  # [B, N, D]
    weight: float,
    before: Tensor | None = None,  # [B, D]
) -> Tensor:  # [B, N, D]
    """Exponential moving average along time.

    Args:
        values (`torch.Tensor` of shape `(batch, frames, channels)`): Values over time.
        weight (`float`): Weight of a new value in (0, 1].
        before (`torch.Tensor` of shape `(batch, channels)`, *optional*): The average so far; the first value if None.
    """
    average, averages = before, []
    for value in values.unbind(1):
        average = value if average is None else weight * value + (1 - weight) * average
        averages.append(average)
    return torch.stack(averages, dim=1)

"""Motion from speech by VASA-1's diffusion transformer (paper §3.2 and §3.3).

    audio --Wav2Vec2--> A, one per frame --windows of W frames, Eq. 2--> X = [z_pose, z_dyn] at 25 frames per second
                                                    X relative --onto the subject's own pose--> X

# Not in the paper: the generated head pose is relative to the subject's own; `head_motion`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import SchedulerMixin
from torch import Tensor
from transformers import PreTrainedModel

from vasa_hf.checks import check_number
from vasa_hf.models.motion_transformer_vasa1 import Vasa1MotionTransformer
from vasa_hf.motion.controls import (
    DistanceControl,
    EmotionControl,
    GazeControl,
    parse_controls,
    place_motion,
    window_controls,
)
from vasa_hf.motion.guidance import GUIDANCE_NAMES
from vasa_hf.motion.keyframes import Keyframes
from vasa_hf.motion.windows import MotionWindows, ShortWindows
from vasa_hf.pipelines.inputs import Subject
from vasa_hf.pipelines.motion_generator import (
    MAX_HEAD_MOTION,
    Sampling,
    denoise,
    encode_windows,
    initial_noise,
    set_timesteps,
)
from vasa_hf.processors.audio import VasaAudioProcessor


@dataclass(frozen=True)
class Vasa1Controls:
    """Controls of VASA-1's motion. `None` leaves a choice to the model.

    Args:
        gaze (`tuple[float, float]` or `[(seconds, (yaw, pitch)), ...]`, defaults to the camera):
            Main gaze in radians; yaw > 0 to the image's left, pitch > 0 down.
        head_distance (`float` or `[(seconds, distance), ...]`, defaults to 1.0):
            Distance from the camera over the portrait's: the head's size is about its own divided by this. From 0.8 to
            1.25 a condition of the model; beyond, the head is scaled by the rest.
        emotion (`str`, `dict[str, float]` or keyframes of them, defaults to `"neutral"`):
            Offsets in [-1, 1], such as `{"happy": 0.6}`; a name is an offset of 1.
        head_motion (`float`, defaults to 1.0): Amount of head movement. # Not in the paper.
    """

    gaze: GazeControl | None = (0.0, 0.0)
    head_distance: DistanceControl | None = 1.0
    emotion: EmotionControl | None = "neutral"
    head_motion: float = 1.0


class Vasa1MotionGenerator:
    """Generates motion from speech; see `MotionGenerator`.

    Args:
        model (`Vasa1MotionTransformer`): Predicts clean motion.
        scheduler (`DDIMScheduler` or another of diffusers' with `prediction_type="sample"`): Sampler; copied.
        audio_encoder (`transformers.PreTrainedModel`): Audio features.
        audio_processor (`VasaAudioProcessor`): Knows the rates.
        device (`torch.device`): Where the model runs.
    """

    emotions: tuple[str, ...]
    conditions: tuple[str, ...] = GUIDANCE_NAMES
    # VASA-1 §4, "Implementation details": guidance scales, forward-facing gaze, average distance, no emotion offset.
    default_guidance_scale: Mapping[str, float] = {"audio": 0.5, "gaze": 1.0}
    default_steps = 10
    overlap = lead_frames = 0

    def __init__(
        self,
        model: Vasa1MotionTransformer,
        scheduler: SchedulerMixin,
        audio_encoder: PreTrainedModel,
        audio_processor: VasaAudioProcessor,
        device: torch.device,
    ):
        self.model, self.scheduler, self.device = model, copy.deepcopy(scheduler), device
        self.audio_encoder, self.audio_processor = audio_encoder, audio_processor
        config = model.config
        self.spec, self.emotions = model.motion_spec, tuple(config.emotions)
        self.first_window_range = (max(config.context, 1), config.window)

    def check(self, controls: Vasa1Controls) -> None:
        """Raise `ValueError` for controls that are malformed, unknown or out of range."""
        self._tracks(controls)
        check_number("head_motion", controls.head_motion, 0.0, MAX_HEAD_MOTION)

    def windows(self, first_window: int | None = None, short: int | None = None) -> MotionWindows:
        """Plan of the windows of one sequence; see `MotionGenerator.windows`."""
        if short is not None:
            return ShortWindows(short, self.model.config.context)
        return MotionWindows(self.model.config.window, self.model.config.context, first_window)

    @torch.no_grad()
    def generate(
        self, audio: Iterable[Tensor], subjects: Sequence[Subject], controls: Vasa1Controls, sampling: Sampling
    ) -> Iterator[Tensor]:
        """Generate motion relative to a subject's own pose, window by window.

        Args:
            audio (`Iterable[torch.Tensor]`): Chunks `(batch, n)` of mono audio at the encoder's rate.
            subjects (`Sequence[Subject]`): Of each of the batch; this motion is the same for all.
            controls (`Vasa1Controls`): Controls of the call.
            sampling (`Sampling`): Settings.

        Yields:
            `torch.Tensor` of shape `(batch, frames, channels)`, float32.
        """
        windows, tracks = sampling.windows or self.windows(sampling.first_window), self._tracks(controls)
        chunks = encode_windows(audio, windows, self.audio_processor, self.audio_encoder, sampling.num_frames)
        for index, (window, features, ends) in enumerate(chunks):
            sample = partial(
                self.sample_window,
                index=index,
                lengths=[end - window.start for end in ends],
                controls=window_controls(tracks, window.start, ends, self.audio_processor.fps),
                sampling=sampling,
            )
            motion = windows.generate(features, sample)[:, : window.stop - window.start]
            yield self.model.denormalize(motion.float())
            if sampling.is_interrupted():
                return

    def place(self, windows: Iterable[Tensor], subject: Subject, controls: Vasa1Controls) -> Iterator[Tensor]:
        """Put generated motion onto a subject's own pose; see `vasa_hf.motion.controls.place_motion`."""
        start, fps, distance = 0, self.audio_processor.fps, self._tracks(controls)["head_distance"]
        for relative in windows:
            yield place_motion(relative, subject.motion, start, fps, controls.head_motion, distance)
            start += relative.shape[1]

    def _tracks(self, controls: Vasa1Controls) -> dict[str, Keyframes | None]:
        return parse_controls(controls.gaze, controls.head_distance, controls.emotion, self.emotions)

    def sample_window(
        self,
        audio: Tensor,  # [B, W, A]
        frame_mask: Tensor,  # [B, W]
        previous_motion: Tensor | None,  # [B, K, M]
        previous_audio: Tensor | None,  # [B, K, A]
        *,
        index: int,
        lengths: Sequence[int],
        controls: Mapping[str, Tensor | None],
        sampling: Sampling,
    ) -> Tensor:
        """Denoise the motion of one window; see `MotionWindows.generate`."""
        model, device = self.model, self.device
        prepared = {"audio": audio, "previous_motion": previous_motion, "previous_audio": previous_audio, **controls}
        prepared = {name: None if value is None else value.to(device, model.dtype) for name, value in prepared.items()}
        limits = torch.tensor(lengths, device=device)[:, None]
        frame_mask = frame_mask.to(device) & (torch.arange(audio.shape[1], device=device) < limits)
        timesteps = set_timesteps(self.scheduler, sampling, self.default_steps, device)
        latents = initial_noise(sampling, index, (*audio.shape[:2], model.config.motion_dim), device)
        scales = {**self.default_guidance_scale, **(sampling.guidance_scale or {})}
        return denoise(
            model, self.scheduler, timesteps, latents, prepared, scales, sampling, audio, frame_mask=frame_mask
        )

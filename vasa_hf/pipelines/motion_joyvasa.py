"""Motion from speech by JoyVASA's generator: windows, sampling, smoothing. The functions are those of `motion_moda.py`.

    sound  | 2 frames of silence | n frames | 1 frame of silence |     cut into windows of W frames, the last filled up
    each window -> HuBERT -> A        X_t = noise -> X_0, given A, the window's past, and a scale of guidance
    -> units of LivePortrait -> pose smoothed -> n frames -> the portrait moves as the motion since its first frame

Source: JoyVASA's public code. All windows begin with the same noise, each is denoised with noise of its own.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedModel

from vasa_hf.geometry.keypoints import LIP_KEYPOINTS, KeypointMotion, relative_motion
from vasa_hf.guidance import guided_prediction
from vasa_hf.models.motion_denoiser_joyvasa import POSE_DIM, JoyVasaMotionDenoiser
from vasa_hf.processors.audio import VasaAudioProcessor, frame_features
from vasa_hf.streaming import audio_windows
from vasa_hf.windowing import MotionWindows

CONDITIONS = ("audio",)
DEFAULT_GUIDANCE_SCALE = {"audio": 1.8}  # JoyVASA's cfg_scale is 1 more
LEAD_FRAMES, TAIL_FRAMES = 2, 1  # of silence around the sound
SMOOTHING = 0.01


def parse_emotion(emotion: Any, model: JoyVasaMotionDenoiser) -> None:
    """Raise `ValueError` for an emotion: this generator knows none."""
    if emotion is not None:
        raise ValueError(f"`emotion` must be None, as {type(model).__name__} knows none, got {emotion!r}.")


def default_steps(model: JoyVasaMotionDenoiser) -> int:
    """Denoising steps of a window if nothing else is asked for: all that it was trained with."""
    return model.config.num_train_timesteps


def least_window(config: Any) -> int:
    """Fewest frames of a first window: this generator makes whole ones only."""
    return config.window


def count_windows(model: JoyVasaMotionDenoiser, num_frames: int, first_window: int | None = None) -> int:
    """Number of windows that a sequence takes, with the silence before it."""
    return _windows(model).count(num_frames + LEAD_FRAMES)


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """Raise `ValueError` unless the scheduler works with predicted clean motion."""
    got = scheduler.config.get("prediction_type")
    if got != "sample":
        raise ValueError(
            f"`scheduler` must have `prediction_type` 'sample' to fit the `motion_generator`, got {got!r}."
        )


def _windows(model: JoyVasaMotionDenoiser) -> MotionWindows:
    return MotionWindows(model.config.window, model.config.context, seam_frames=0)


@torch.no_grad()
def generate_motion(
    model: JoyVasaMotionDenoiser,
    scheduler: SchedulerMixin,
    processor: VasaAudioProcessor,
    encoder: PreTrainedModel,
    audio: Iterable[Tensor],
    *,
    portraits: KeypointMotion | None = None,
    emotion: None = None,
    guidance_scale: Mapping[str, float] | None = None,
    num_inference_steps: int | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    first_window: int | None = None,
    num_frames: Sequence[int] | None = None,
    on_step: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None = None,
    smoothing: float | None = SMOOTHING,
    trim: bool = True,
) -> Iterator[Tensor]:
    """Generate motion window by window, each as soon as its sound is there.

    Args:
        model (`JoyVasaMotionDenoiser`): Predicts clean motion.
        scheduler (`diffusers.SchedulerMixin`): From `joyvasa_scheduler`, or another one made of its config.
        processor (`VasaAudioProcessor`): Knows the rates.
        encoder (`transformers.HubertModel`): JoyVASA's own, with the model's `audio_dim` channels.
        audio (`Iterable[torch.Tensor]`): Pieces `(batch, n)` of mono sound, 16 kHz, full scale = 1.
        portraits (`KeypointMotion`, *optional*): Not heeded: this generator knows nothing of the person.
        emotion (`None`): It knows none.
        guidance_scale (`Mapping[str, float]`, *optional*): Changes of `DEFAULT_GUIDANCE_SCALE`.
        num_inference_steps (`int`, *optional*): Diffusion steps a window; all that the model was trained with.
        generator (`torch.Generator` or a list of one for each of the batch, *optional*): For the noise.
        first_window (`int`, *optional*): Not heeded, see `least_window`.
        num_frames (`Sequence[int]`, *optional*): Not needed: beyond its own length an entry of a batch hears silence.
        on_step (`Callable`, *optional*):
            `on_step(step, timestep, latents, audio_features) -> latents`; steps count on through the windows.
        smoothing (`float`, *optional*, defaults to 0.01): Weight of a new pose in its moving average.
        trim (`bool`, defaults to `True`):
            Leave out the frames of the silence around the sound, so that frame 0 belongs to sample 0. JoyVASA's code
            keeps them: its mouths are two frames late.

    Yields:
        `torch.Tensor` of shape `(batch, frames, 70)`: expression 63, scale, translation 3, pitch, yaw, roll in degrees.
    """
    unit, steps, noise, pose, skip = processor.samples_per_frame, 0, None, None, LEAD_FRAMES if trim else 0
    window_size, scales = model.config.window, {**DEFAULT_GUIDANCE_SCALE, **(guidance_scale or {})}
    windows = _windows(model)
    for window, heard in audio_windows(_with_silence(audio, unit, tail=not trim), windows, unit, 0, 0):
        if noise is None:
            shape = (len(heard), window_size, model.config.motion_dim)
            noise = randn_tensor(shape, generator=generator, device=model.device, dtype=torch.float32)
        size = window.stop - window.start
        if model.config.pad_mode == "replicate":  # else the rest is zeros already
            heard = F.pad(heard[:, : size * unit], (0, (window_size - size) * unit), mode="replicate")
        features = model.project_audio(frame_features(encoder, heard, window_size, padding="reflect").to(model.dtype))
        sample = partial(
            sample_window,
            model,
            scheduler,
            noise,
            guidance_scale=scales,
            num_inference_steps=num_inference_steps,
            generator=generator,
            on_step=None if on_step is None else lambda step, *args, first=steps: on_step(first + step, *args),
        )
        # All of a window is generated; what lies beyond the sound's end is cut off here.
        motion = windows.generate(features, lambda audio, _, *past, sample=sample: sample(audio, *past))[:, :size]
        steps += len(scheduler.timesteps)
        motion = model.denormalize(motion.float())
        if smoothing is not None:
            pose = smooth(motion[..., -POSE_DIM:], smoothing, None if pose is None else pose[:, -1])
            motion = torch.cat([motion[..., :-POSE_DIM], pose], dim=-1)
        kept, skip = motion[:, skip:], max(skip - motion.shape[1], 0)
        if kept.shape[1]:
            yield kept


def _with_silence(audio: Iterable[Tensor], samples_per_frame: int, tail: bool) -> Iterator[Tensor]:
    """The pieces of a sound with silence before it; with `tail`, also after it, cut to whole frames."""
    pieces = iter(audio)
    first = next(pieces)
    lead = first.new_zeros(len(first), LEAD_FRAMES * samples_per_frame)
    if not tail:
        yield from itertools.chain([lead, first], pieces)
        return
    end = first.new_zeros(len(first), TAIL_FRAMES * samples_per_frame)
    whole = torch.cat([lead, first, *pieces, end], dim=1)
    yield whole[:, : whole.shape[1] // samples_per_frame * samples_per_frame]


def place_motion(
    windows: Iterable[Tensor], portrait: KeypointMotion, model: JoyVasaMotionDenoiser
) -> Iterator[KeypointMotion]:
    """Put a motion onto a portrait: relative to its first frame, but the lips as they are.

    Args:
        windows (`Iterable` of `torch.Tensor` of shape `(1, frames, 70)`): From `generate_motion`, of one of the batch.
        portrait (`KeypointMotion`): Whose face is to move, one row.
        model (`JoyVasaMotionDenoiser`): What generated it.

    Yields:
        `KeypointMotion` with a row for each frame.
    """
    first, lips = None, list(LIP_KEYPOINTS)
    for motion in windows:
        driving = KeypointMotion.from_vector(motion[0], portrait.kp)
        first = driving[:1] if first is None else first
        moved = relative_motion(portrait, driving, first)
        exp = moved.exp.clone()
        exp[:, lips] = driving.exp[:, lips]
        yield replace(moved, exp=exp)


@torch.no_grad()
def sample_window(
    model: JoyVasaMotionDenoiser,
    scheduler: SchedulerMixin,
    noise: Tensor,  # [B, W, M]
    audio: Tensor,  # [B, W, C]
    previous_motion: Tensor | None = None,  # [B, K, M]
    previous_audio: Tensor | None = None,  # [B, K, C]
    *,
    guidance_scale: Mapping[str, float],
    num_inference_steps: int | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    on_step: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:  # [B, W, M]
    """Denoise one window.

    Args:
        model (`JoyVasaMotionDenoiser`): Predicts clean motion.
        scheduler (`diffusers.SchedulerMixin`): See `generate_motion`.
        noise (`torch.Tensor` of shape `(batch, window, motion_dim)`): Where to begin.
        audio (`torch.Tensor` of shape `(batch, window, hidden_size)`): From `project_audio`.
        previous_motion (`torch.Tensor` of shape `(batch, context, motion_dim)`, *optional*): End of the last window.
        previous_audio (`torch.Tensor` of shape `(batch, context, hidden_size)`, *optional*): What was heard there.
        guidance_scale (`Mapping[str, float]`): See `generate_motion`. Past sound is never dropped.
        num_inference_steps (`int`, *optional*): See `generate_motion`.
        generator (`torch.Generator` or a list of one for each of the batch, *optional*): For the noise of the steps.
        on_step (`Callable`, *optional*): See `generate_motion`.

    Returns:
        `torch.Tensor` of shape `(batch, window, motion_dim)`, normalised motion.
    """

    def predict(*arguments: Tensor, **conditions: Tensor) -> Tensor:
        return model(*arguments, **conditions).sample

    conditions = {"audio": audio, "previous_motion": previous_motion, "previous_audio": previous_audio}
    conditions = {name: None if value is None else value.to(model.dtype) for name, value in conditions.items()}
    scheduler.set_timesteps(num_inference_steps or model.config.num_train_timesteps, device=noise.device)
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    sample = noise * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(sample, timestep).to(model.dtype)
        clean = guided_prediction(predict, scaled, conditions, guidance_scale, timestep=timestep)
        sample = scheduler.step(clean.float(), timestep, sample, **options).prev_sample
        if on_step is not None:
            sample = on_step(step, timestep, sample, audio)
    return sample


def smooth(
    values: Tensor,  # [B, N, D]
    weight: float,
    before: Tensor | None = None,  # [B, D]
) -> Tensor:  # [B, N, D]
    """Exponential moving average along time.

    Args:
        values (`torch.Tensor` of shape `(batch, frames, channels)`): What to smooth.
        weight (`float`): Weight of a new value in (0, 1].
        before (`torch.Tensor` of shape `(batch, channels)`, *optional*): The average so far; the first value if None.
    """
    average, averages = before, []
    for value in values.unbind(1):
        average = value if average is None else weight * value + (1 - weight) * average
        averages.append(average)
    return torch.stack(averages, dim=1)

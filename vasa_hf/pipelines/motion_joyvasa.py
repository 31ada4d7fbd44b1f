"""Motion from speech by JoyVASA's generator: windows, sampling, smoothing.

    sound  | 2 frames of silence | n frames | 1 frame of silence |     cut into windows of W frames, the last filled up
    each window -> HuBERT -> A        X_t = noise -> X_0, given A, the window's past, and a scale of guidance
    -> units of LivePortrait -> pose smoothed -> n frames

Source: JoyVASA's public code. All windows begin with the same noise, each is denoised with noise of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedModel

from vasa_hf.guidance import guided_prediction
from vasa_hf.models.motion_denoiser_joyvasa import POSE_DIM, JoyVasaMotionDenoiser
from vasa_hf.processors.audio import frame_features
from vasa_hf.windowing import MotionWindows

SAMPLE_RATE = 16_000
LEAD_SAMPLES, TAIL_SAMPLES = 1280, 640  # silence around the sound
SMOOTHING = 0.01


def generate_motion(
    model: JoyVasaMotionDenoiser,
    scheduler: SchedulerMixin,
    audio_encoder: PreTrainedModel,
    samples: Tensor,  # [B, n]
    *,
    guidance_scale: float = 1.8,
    num_inference_steps: int | None = None,
    smoothing: float | None = SMOOTHING,
    trim: bool = True,
    generator: torch.Generator | None = None,
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> Iterator[Tensor]:  # [B, frames, 70] each
    """Generate the motion of a whole sound, window by window.

    Args:
        model (`JoyVasaMotionDenoiser`): Predicts clean motion.
        scheduler (`diffusers.SchedulerMixin`): From `joyvasa_scheduler`, or another one made of its config.
        audio_encoder (`transformers.HubertModel`): JoyVASA's own, with the model's `audio_dim` channels.
        samples (`torch.Tensor` of shape `(batch, n)`): Mono audio, 16 kHz, full scale = 1.
        guidance_scale (`float`, defaults to 1.8): Stress on the sound, lambda; JoyVASA's `cfg_scale` is 1 more.
        num_inference_steps (`int`, *optional*): Diffusion steps a window; all that the model was trained with.
        smoothing (`float`, *optional*, defaults to 0.01): Weight of a new pose in its moving average.
        trim (`bool`, defaults to `True`):
            Leave out the frames of the silence around the sound, so that frame 0 belongs to sample 0. JoyVASA's code
            keeps them: its mouths are two frames late.
        generator (`torch.Generator`, *optional*): For the noise.
        on_step (`Callable`, *optional*): Called with (step, timestep, noisy motion) after each step of each window.

    Yields:
        `torch.Tensor` of shape `(batch, frames, 70)`: expression 63, scale, translation 3, pitch, yaw, roll in degrees.
    """
    window, context = model.config.window, model.config.context
    per_frame = round(SAMPLE_RATE / model.config.fps)
    first, last = (round(LEAD_SAMPLES / per_frame), samples.shape[1] // per_frame) if trim else (0, None)
    samples = F.pad(samples.to(model.device, torch.float32), (LEAD_SAMPLES, TAIL_SAMPLES))
    num_frames = samples.shape[1] // per_frame
    last = num_frames if last is None else first + max(last, 1)
    shape = (samples.shape[0], window, model.config.motion_dim)
    noise = randn_tensor(shape, generator=generator, device=model.device, dtype=model.dtype)
    pose = None

    def sample(audio: Tensor, _: Tensor, previous_motion: Tensor | None, previous_audio: Tensor | None) -> Tensor:
        past = {"previous_motion": previous_motion, "previous_audio": previous_audio}
        return sample_window(
            model, scheduler, noise, audio, **past, guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps, generator=generator, on_step=on_step,
        )  # fmt: skip

    windows = MotionWindows(window, context, seam_frames=0)
    for piece in windows.take(num_frames, finished=True):
        heard = samples[:, piece.start * per_frame : piece.stop * per_frame]
        missing = (0, window * per_frame - heard.shape[1])
        heard = F.pad(heard, missing, mode="replicate" if model.config.pad_mode == "replicate" else "constant")
        features = frame_features(audio_encoder, heard, window, padding="reflect")
        motion = windows.generate(model.project_audio(features.to(model.dtype)), sample)
        motion = model.denormalize(motion[:, : piece.stop - piece.start]).float()
        if smoothing is not None:
            pose = smooth(motion[..., -POSE_DIM:], smoothing, None if pose is None else pose[:, -1])
            motion = torch.cat([motion[..., :-POSE_DIM], pose], dim=-1)
        kept = motion[:, max(first - piece.start, 0) : max(last - piece.start, 0)]
        if kept.shape[1]:
            yield kept


def sample_window(
    model: JoyVasaMotionDenoiser,
    scheduler: SchedulerMixin,
    noise: Tensor,  # [B, W, M]
    audio: Tensor,  # [B, W, C]
    previous_motion: Tensor | None = None,  # [B, K, M]
    previous_audio: Tensor | None = None,  # [B, K, C]
    *,
    guidance_scale: float = 1.8,
    num_inference_steps: int | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:  # [B, W, M]
    """Denoise one window.

    Args:
        model (`JoyVasaMotionDenoiser`): Predicts clean motion.
        scheduler (`diffusers.SchedulerMixin`): See `generate_motion`.
        noise (`torch.Tensor` of shape `(batch, window, motion_dim)`): Where to begin.
        audio (`torch.Tensor` of shape `(batch, window, hidden_size)`): From `project_audio`.
        previous_motion (`torch.Tensor` of shape `(batch, context, motion_dim)`, *optional*): End of the last window.
        previous_audio (`torch.Tensor` of shape `(batch, context, hidden_size)`, *optional*): What was heard there.
        guidance_scale (`float`, defaults to 1.8): See `generate_motion`. Past sound is never dropped.
        num_inference_steps (`int`, *optional*): See `generate_motion`.
        generator (`torch.Generator`, *optional*): For the noise of the steps.
        on_step (`Callable`, *optional*): See `generate_motion`.

    Returns:
        `torch.Tensor` of shape `(batch, window, motion_dim)`, normalised motion.
    """

    def predict(*arguments: Tensor, **conditions: Tensor) -> Tensor:
        return model(*arguments, **conditions).sample

    conditions = {"audio": audio, "previous_motion": previous_motion, "previous_audio": previous_audio}
    scheduler.set_timesteps(num_inference_steps or model.config.num_train_timesteps, device=noise.device)
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    sample = noise * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(sample, timestep)
        clean = guided_prediction(predict, scaled, conditions, {"audio": guidance_scale}, timestep=timestep)
        sample = scheduler.step(clean, timestep, sample, **options).prev_sample
        if on_step is not None:
            on_step(step, int(timestep), sample)
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

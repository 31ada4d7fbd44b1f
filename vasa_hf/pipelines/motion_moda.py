"""Motion from speech by MoDA's generator: windows, sampling, joining (paper §3.3; what it leaves unsaid, as its code).

    sound --encoder--> A, a vector (or one a layer) for each frame
    windows of 80 frames, 16 shared; each: noise --10 steps of rectified flow, Eq. 8--> motion, given A, emotion,
    the portrait's keypoints, and the frame before the window (at first the portrait's own)
    -> joined, pose smoothed --absolute driving--> the portrait moves

Motion is 70 numbers a frame: expression 63, scale, translation 3, pitch, yaw, roll in degrees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedModel

from vasa_hf.geometry.keypoints import KeypointMotion, absolute_motion
from vasa_hf.guidance import guided_prediction
from vasa_hf.models.motion_transformer_moda import CONDITIONS, EMOTIONS, ModaMotionTransformer
from vasa_hf.processors.audio import VasaAudioProcessor
from vasa_hf.streaming import audio_windows
from vasa_hf.windowing import OverlappedWindows, hold_after, join_windows

DEFAULT_GUIDANCE_SCALE = {"audio": 0.2}  # the code's cfg_scale 1.2
DEFAULT_STEPS = 10  # §3.3
POSE = slice(63, 70)
_SCALE, _TRANSLATION = slice(63, 64), slice(64, 67)
# Not in the paper: the public code opens the gaze a little in every frame; y of the eyes' keypoints.
GAZE_OFFSETS = {11: 0.0025, 13: 0.00075, 15: 0.0025, 16: 0.00075}

__all__ = ["CONDITIONS", "EMOTIONS"]  # told on

EmotionTrack = list[tuple[float, int]]


def default_steps(model: ModaMotionTransformer) -> int:
    """Denoising steps of a window if nothing else is asked for."""
    return DEFAULT_STEPS


def least_window(config: Any) -> int:
    """Fewest frames of a first window."""
    return config.overlap + 1


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """Raise `ValueError` unless the scheduler integrates a flow."""
    if "FlowMatch" not in type(scheduler).__name__ and not getattr(scheduler.config, "use_flow_sigmas", False):
        kind = type(scheduler).__name__
        raise ValueError(f"`scheduler` must be one for flow matching to fit the `motion_generator`, got {kind}.")


def parse_emotion(emotion: Any, model: ModaMotionTransformer) -> EmotionTrack:
    """Check the emotion of a call.

    Args:
        emotion (`str`, `[(seconds, name), ...]` or `None`): One of `EMOTIONS`, `None` for the voice's own, or keyframes
            that hold until the next one.
        model (`ModaMotionTransformer`): Knows how many there are.

    Returns:
        `list[tuple[float, int]]`: Seconds, and the number of the emotion from there on.

    Raises:
        ValueError: If it is none of these.
    """
    names = list(EMOTIONS[: model.config.num_emotions])

    def number(name: Any) -> int:
        if name is not None and name not in names:
            raise ValueError(f"`emotion` must be one of {names} or None, got {name!r}.")
        return len(names) if name is None else names.index(name)

    if emotion is None or isinstance(emotion, str):
        return [(0.0, number(emotion))]
    keys = list(emotion) if isinstance(emotion, Sequence) else []
    if not keys or any(not isinstance(key, Sequence) or isinstance(key, str) or len(key) != 2 for key in keys):
        raise ValueError(f"`emotion` must be a name, None, or keyframes [(seconds, name), ...], got {emotion!r}.")
    times = [seconds for seconds, _ in keys]
    numbers = all(isinstance(seconds, int | float) and seconds >= 0 for seconds in times)
    if not numbers or any(b <= a for a, b in zip(times[:-1], times[1:], strict=True)):
        raise ValueError(f"`emotion` must have keyframes at rising times from 0 seconds on, got {times}.")
    track = [(float(seconds), number(name)) for seconds, name in keys]
    return track if track[0][0] == 0 else [(0.0, len(names)), *track]


def emotion_of(track: EmotionTrack, start_frame: int, stop_frame: int, fps: float) -> int:
    """The emotion that holds in the middle of a window: it has one for all its frames."""
    middle = (start_frame + stop_frame) / 2 / fps
    return [number for seconds, number in track if seconds <= middle][-1]


@torch.no_grad()
def generate_motion(
    model: ModaMotionTransformer,
    scheduler: SchedulerMixin,
    processor: VasaAudioProcessor,
    encoder: PreTrainedModel,
    audio: Iterable[Tensor],
    *,
    portraits: KeypointMotion,
    emotion: Any = None,
    guidance_scale: Mapping[str, float] | None = None,
    num_inference_steps: int = DEFAULT_STEPS,
    generator: torch.Generator | list[torch.Generator] | None = None,
    first_window: int | None = None,
    num_frames: Sequence[int] | None = None,
    on_step: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Generate motion window by window, each as soon as its sound is there.

    Args:
        model (`ModaMotionTransformer`): Predicts the velocity.
        scheduler (`FlowMatchEulerDiscreteScheduler` or another of diffusers' for flows): Sampler.
        processor (`VasaAudioProcessor`): Knows how much of the sound the encoder hears.
        encoder (`transformers.PreTrainedModel`): Audio encoder.
        audio (`Iterable[torch.Tensor]`): Pieces `(batch, n)` of mono sound at the encoder's rate.
        portraits (`KeypointMotion`): Of each of the batch: who it is, and how the motion begins.
        emotion (`str`, keyframes or `None`): See `parse_emotion`.
        guidance_scale (`Mapping[str, float]`, *optional*): Changes of `DEFAULT_GUIDANCE_SCALE`.
        num_inference_steps (`int`, defaults to 10): Denoising steps of each window.
        generator (`torch.Generator` or a list of one for each of the batch, *optional*): Random numbers.
        first_window (`int`, *optional*): Frames of the first window, fewer for an early start.
        num_frames (`Sequence[int]`, *optional*): Frames of each of the batch, where the lengths differ.
        on_step (`Callable`, *optional*):
            `on_step(step, timestep, latents, audio_features) -> latents`; steps count on through the windows.

    Yields:
        `torch.Tensor` of shape `(batch, frames, 70)`, float32: windows for `place_motion`. The frames that neighbours
        share are in both.
    """
    config, track = model.config, parse_emotion(emotion, model)
    windows = OverlappedWindows(config.window, config.overlap, first_window, POSE)
    before, after, unit = processor.context_frames, processor.lookahead_frames, processor.samples_per_frame
    own, ratio = adapted(portraits, model)
    steps = 0
    for window, samples in audio_windows(audio, windows, unit, before, after):
        size = samples.shape[1] // unit - before - after
        features = processor.window_features(encoder, samples, before, size)
        features = features if features.ndim == 4 else features[:, :, None]  # [B, N, L, A]
        ends = [window.stop] * len(samples) if num_frames is None else [min(n, window.stop) for n in num_frames]
        emotions = [emotion_of(track, window.start, max(end, window.start + 1), processor.fps) for end in ends]
        sample = partial(
            sample_window,
            model,
            scheduler,
            first_motion=model.normalize(own),
            keypoints=portraits.kp.flatten(1),
            emotion=torch.tensor(emotions),
            lengths=[end - window.start for end in ends],
            guidance_scale={**DEFAULT_GUIDANCE_SCALE, **(guidance_scale or {})},
            num_inference_steps=num_inference_steps,
            generator=generator,
            on_step=None if on_step is None else lambda step, *args, first=steps: on_step(first + step, *args),
        )
        motion = windows.generate(features, sample)[:, : window.stop - window.start]
        steps += len(scheduler.timesteps)
        motion = model.denormalize(motion.float())
        motion[..., 63:67] *= ratio[:, None]
        yield motion


def adapted(portraits: KeypointMotion, model: ModaMotionTransformer) -> tuple[Tensor, Tensor]:
    """Portraits as if all were of the mean size, `(batch, 70)`, and how much larger they are, `(batch, 1)`.

    # Not in the paper: MoDA's code divides scale and translation by the portrait's scale over the mean one.
    """
    vector = portraits.to_vector().float()
    vector[:, 66] = 0  # t_z is never applied
    ratio = (vector[:, _SCALE] + 1e-5) / (model.motion_mean[_SCALE].to(vector) + 1e-5)
    vector[:, 63:67] /= ratio
    return vector, ratio


@torch.no_grad()
def sample_window(
    model: ModaMotionTransformer,
    scheduler: SchedulerMixin,
    audio: Tensor,  # [B, W, L, A]
    frame_mask: Tensor,  # [B, W]
    previous_motion: Tensor | None,  # [B, 70]
    previous_audio: None = None,
    *,
    first_motion: Tensor,  # [B, 70]
    keypoints: Tensor,  # [B, 63]
    emotion: Tensor,  # [B]
    lengths: Sequence[int],
    guidance_scale: Mapping[str, float],
    num_inference_steps: int = DEFAULT_STEPS,
    generator: torch.Generator | list[torch.Generator] | None = None,
    on_step: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Denoise the motion of one window with any scheduler; see `OverlappedWindows.generate`.

    Source: MoDA Eq. 8.
    """
    device, shared = model.device, {}
    conditions = {"audio": audio, "emotion": emotion, "keypoints": keypoints}
    conditions["previous_motion"] = first_motion if previous_motion is None else previous_motion
    conditions = {
        name: value.to(device, model.dtype if value.is_floating_point() else None) for name, value in conditions.items()
    }
    limits = torch.tensor(lengths, device=device)[:, None].clamp(min=1)
    frame_mask = frame_mask.to(device) & (torch.arange(audio.shape[1], device=device) < limits)
    if model.config.mask_padding:
        frame_mask[:, 0] = True  # an entry of a batch that has ended: nothing to attend to gives NaN
        shared["frame_mask"] = frame_mask
    scheduler.set_timesteps(num_inference_steps, device=device)
    # The sampler's arithmetic stays in float32, whatever the model's.
    shape = (len(audio), audio.shape[1], model.config.motion_dim)
    latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
    for step, timestep in enumerate(scheduler.timesteps):
        velocity = guided_prediction(
            lambda x, **kwargs: model(x, **kwargs).sample,
            latents.to(model.dtype),
            conditions,
            guidance_scale,
            timestep=timestep,
            **shared,
        )
        latents = scheduler.step(velocity.float(), timestep, latents).prev_sample
        if on_step is not None:
            latents = on_step(step, timestep, latents, audio)
    return hold_after(latents, limits[:, 0]) if shared else latents


def count_windows(model: ModaMotionTransformer, num_frames: int, first_window: int | None = None) -> int:
    """Number of windows that a sequence takes."""
    return OverlappedWindows(model.config.window, model.config.overlap, first_window).count(num_frames)


def place_motion(
    windows: Iterable[Tensor], portrait: KeypointMotion, model: ModaMotionTransformer, gaze_offset: bool = False
) -> Iterator[KeypointMotion]:
    """Join windows to one motion and put it onto a portrait.

    Args:
        windows (`Iterable` of `torch.Tensor` of shape `(1, frames, 70)`): From `generate_motion`, of one of the batch.
        portrait (`KeypointMotion`): Whose face is to move, one row.
        model (`ModaMotionTransformer`): Knows how many frames neighbouring windows share.
        gaze_offset (`bool`, defaults to `False`): Open the gaze as MoDA's code does; see `GAZE_OFFSETS`.

    Yields:
        `KeypointMotion` with a row for each frame.
    """
    for motion in join_windows(windows, model.config.overlap, POSE):
        driving = KeypointMotion.from_vector(motion[0], portrait.kp)
        if gaze_offset:
            exp = driving.exp.clone()
            exp[:, list(GAZE_OFFSETS), 1] += exp.new_tensor(list(GAZE_OFFSETS.values()))
            driving = replace(driving, exp=exp)
        yield absolute_motion(portrait, driving)

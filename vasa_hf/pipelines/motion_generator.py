"""Motion from speech: the protocol of all motion generators, and the code that they share.

    audio --windows--> features of each window --denoise, guided--> motion of each window --place--> motion of a subject

`Vasa1MotionGenerator`, `ModaMotionGenerator` and `JoyVasaMotionGenerator` are siblings. A generator belongs to one call
of a pipeline: it has its own scheduler, so that calls in several threads are independent.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedModel

from vasa_hf.checks import check_callable, check_number, is_finite_number, shorten
from vasa_hf.motion import MotionSpec
from vasa_hf.motion.guidance import check_guidance_scale, guided_prediction
from vasa_hf.motion.streaming import audio_windows
from vasa_hf.motion.windows import MotionWindows, OverlappedWindows
from vasa_hf.pipelines.inputs import check_choice, check_components, check_fit, check_generator
from vasa_hf.processors.audio import VasaAudioProcessor

MAX_HEAD_MOTION = 3.0


@dataclass
class SamplingOptions:
    """How motion is sampled.

    Args:
        guidance_scale (`dict[str, float]`, *optional*): One scale for each condition; those that are not named keep the
            system's default. `"audio+emotion"` is one scale for both together.
        num_inference_steps (`int`, *optional*): Denoising steps of each window; the system's own by default.
        timesteps (`Sequence[int]`, *optional*): Timesteps of each window, where the scheduler takes them.
        sigmas (`Sequence[float]`, *optional*): Noise levels of each window, where the scheduler takes them.
        latents (`torch.Tensor` of shape `(batch, window, channels)`, *optional*):
            Noise that every window begins with; `(batch, windows, window, channels)` has one for each.
        generator (`torch.Generator` or list, *optional*): Makes the result repeatable; a list has one per video.
        first_window (`int`, *optional*): Frames of the first window; fewer let the first frames of a stream come
            earlier. # Not in the paper.
    """

    guidance_scale: Mapping[str, float] | None = None
    num_inference_steps: int | None = None
    timesteps: Sequence[int] | None = None
    sigmas: Sequence[float] | None = None
    latents: Tensor | None = None
    generator: torch.Generator | list[torch.Generator] | None = None
    first_window: int | None = None


@dataclass
class Sampling(SamplingOptions):
    """Sampling of one call.

    Attributes:
        num_frames (`Sequence[int]`, *optional*): Frames of each of the batch, where the lengths differ.
        windows (`MotionWindows` or `OverlappedWindows`, *optional*): Plan of the windows, if it is not a new one.
        on_step (`Callable`, *optional*): `on_step(timestep, latents, audio_features) -> latents`.
        is_interrupted (`Callable`): Called after each step; once it returns true, no more motion is made.
    """

    num_frames: Sequence[int] | None = None
    windows: Any = None
    on_step: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    is_interrupted: Callable[[], bool] = lambda: False


class MotionGenerator(Protocol):
    """Generates motion from speech.

    Attributes:
        spec (`MotionSpec`): Meaning of the channels of placed motion.
        emotions (`tuple[str, ...]`): Names that the control `emotion` knows; empty without one.
        conditions (`tuple[str, ...]`): Names that `guidance_scale` knows.
        default_guidance_scale (`Mapping[str, float]`): Scales of conditions that a call does not name.
        default_steps (`int`): Denoising steps of a window.
        first_window_range (`tuple[int, int]`): Fewest and most frames of a first window.
        scheduler (`diffusers.SchedulerMixin`): Sampler, not shared with another generator.
        overlap (`int`): Frames that neighbouring windows share.
        lead_frames (`int`): Frames of silence that are generated before the audio.
    """

    spec: MotionSpec
    emotions: tuple[str, ...]
    conditions: tuple[str, ...]
    default_guidance_scale: Mapping[str, float]
    default_steps: int
    first_window_range: tuple[int, int]
    scheduler: SchedulerMixin
    overlap: int
    lead_frames: int

    def check(self, controls: Any) -> None:
        """Raise `ValueError` for controls that are malformed, unknown or out of range."""

    def windows(self, first_window: int | None = None, short: int | None = None) -> MotionWindows | OverlappedWindows:
        """Plan of the windows of one sequence; with `short`, of windows of that length without overlap."""

    def generate(
        self, audio: Iterable[Tensor], subjects: Sequence[Any], controls: Any, sampling: Sampling
    ) -> Iterator[Tensor]:
        """Yield the motion `(batch, frames, channels)` of each window as soon as its audio `(batch, n)` is there."""

    def place(self, windows: Iterable[Tensor], subject: Any, controls: Any) -> Iterator[Tensor]:
        """Turn the windows of one of the batch into absolute motion `(1, frames, channels)` of its subject."""


def check_speech_components(
    name: str, model: Any, model_class: type, audio_encoder: Any, audio_processor: Any, scheduler: Any
) -> None:
    """Raise `ValueError` if components for motion from speech are of another class, or do not fit each other."""
    check_components(
        {
            name: (model, model_class),
            "audio_encoder": (audio_encoder, PreTrainedModel),  # HuBERT and WavLM have the features of Wav2Vec2
            "audio_processor": (audio_processor, VasaAudioProcessor),
            "scheduler": (scheduler, SchedulerMixin),
        }
    )
    check_fit(name, "audio_dim", model.config.audio_dim, audio_encoder.config.hidden_size, "audio_encoder")
    check_fit("audio_processor", "fps", audio_processor.fps, model.config.fps, name)


def check_sampling(generator: MotionGenerator, sampling: Sampling, batch_size: int = 1) -> None:
    """Raise `ValueError` for settings that do not fit a motion generator."""
    scales = sampling.guidance_scale
    if not isinstance(scales, Mapping | None):
        raise ValueError(f"`guidance_scale` must be a dict with a scale for each condition, got {shorten(scales)}.")
    for name in scales or {}:
        if not set(str(name).split("+")) <= set(generator.conditions):
            raise ValueError(f"`guidance_scale` knows the names {list(generator.conditions)}, got {name!r}.")
    check_guidance_scale(scales or {})
    if sampling.num_inference_steps is not None:
        most_steps = generator.scheduler.config.num_train_timesteps
        check_number("num_inference_steps", sampling.num_inference_steps, 1, most_steps, whole=True)
    if sampling.first_window is not None:
        check_number("first_window", sampling.first_window, *generator.first_window_range, whole=True)
    taken = inspect.signature(generator.scheduler.set_timesteps).parameters
    for name in ("timesteps", "sigmas"):
        if getattr(sampling, name) is not None and name not in taken:
            raise ValueError(f"`{name}` must be None, as {type(generator.scheduler).__name__} takes none.")
        _check_schedule(name, getattr(sampling, name))
    if sampling.latents is not None and (
        not isinstance(sampling.latents, Tensor) or sampling.latents.ndim not in (3, 4)
    ):
        raise ValueError("`latents` must be a tensor (batch, window, channels) or (batch, windows, window, channels).")
    if sampling.latents is not None and not bool(torch.isfinite(sampling.latents).all()):
        raise ValueError("`latents` must be finite, got NaN or infinity.")
    check_generator(sampling.generator, batch_size)


def _check_schedule(name: str, values: Any) -> None:
    """Raise `ValueError` unless timesteps or noise levels are numbers that fall."""
    if values is None:
        return
    values = values.tolist() if isinstance(values, np.ndarray | Tensor) else values
    good = isinstance(values, list | tuple) and 0 < len(values) <= 1000 and all(map(is_finite_number, values))
    if not good or values[-1] < 0 or values[0] > 1e6 or any(b >= a for a, b in zip(values, values[1:], strict=False)):
        raise ValueError(f"`{name}` must be at most 1000 numbers that fall, 0 or more, got {shorten(values)}.")


def check_callback(callback: Any, tensor_inputs: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """Return the names of the tensors that a callback gets.

    Args:
        callback (`Callable` or `PipelineCallback`, *optional*): The argument of a call.
        tensor_inputs (`Sequence[str]`): Requested names; a `PipelineCallback` has its own.
        known (`Sequence[str]`): Names that the pipeline has.

    Raises:
        ValueError: If it is not callable, or a name is unknown.
    """
    check_callable("callback_on_step_end", callback)
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        tensor_inputs = callback.tensor_inputs
    if not isinstance(tensor_inputs, list | tuple):
        got = shorten(tensor_inputs)
        raise ValueError(f"`callback_on_step_end_tensor_inputs` must be a list of names, got {got}.")
    for name in tensor_inputs:
        check_choice("callback_on_step_end_tensor_inputs", name, known)
    return tensor_inputs


def report_steps(
    pipeline: Any, progress_bar: Any, callback: Callable | None, names: Sequence[str]
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Make a `Sampling.on_step` that counts the steps of a call and asks the user's callback for other latents."""
    steps = itertools.count()

    def on_step(timestep: Tensor, latents: Tensor, audio_features: Tensor) -> Tensor:
        progress_bar.update()
        step = next(steps)
        if callback is None:
            return latents
        tensors = {"latents": latents, "audio_features": audio_features}
        chosen = {name: tensors[name] for name in names}
        return (callback(pipeline, step, timestep, chosen) or {}).get("latents", latents)

    return on_step


def set_timesteps(scheduler: SchedulerMixin, sampling: Sampling, default_steps: int, device: torch.device) -> Tensor:
    """Set the steps of a window, and return their timesteps."""
    chosen = {name: getattr(sampling, name) for name in ("timesteps", "sigmas")}
    chosen = {name: list(value) for name, value in chosen.items() if value is not None}
    if not chosen:
        chosen["num_inference_steps"] = sampling.num_inference_steps or default_steps
    scheduler.set_timesteps(**chosen, device=device)
    return scheduler.timesteps


def count_steps(generator: MotionGenerator, sampling: Sampling) -> int:
    """Number of denoising steps of a window."""
    given = sampling.sigmas if sampling.timesteps is None else sampling.timesteps
    return (sampling.num_inference_steps or generator.default_steps) if given is None else len(given)


def encode_windows(
    audio: Iterable[Tensor],
    windows: MotionWindows | OverlappedWindows,
    processor: VasaAudioProcessor,
    encoder: PreTrainedModel,
    num_frames: Sequence[int] | None = None,
) -> Iterator[tuple[slice, Tensor, list[int]]]:
    """Encode the audio of each window as soon as it has arrived.

    Args:
        audio (`Iterable[torch.Tensor]`): Chunks `(batch, n)` of mono audio at the encoder's rate.
        windows (`MotionWindows` or `OverlappedWindows`): Plans the windows.
        processor (`VasaAudioProcessor`): Has the audio context of the encoder around a window.
        encoder (`transformers.PreTrainedModel`): Audio encoder.
        num_frames (`Sequence[int]`, *optional*): Frames of each of the batch, where the lengths differ.

    Yields:
        `tuple`: the window's frames, its features `(batch, frames, ...)`, and its end for each of the batch.
    """
    before, after, unit = processor.context_frames, processor.lookahead_frames, processor.samples_per_frame
    for window, samples in audio_windows(audio, windows, unit, before, after):
        size = samples.shape[1] // unit - before - after
        features = processor.window_features(encoder, samples, before, size)
        ends = [window.stop] * len(samples) if num_frames is None else [min(n, window.stop) for n in num_frames]
        yield window, features, ends


def initial_noise(sampling: Sampling, index: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return the initial noise of a window, float32: the call's `latents`, or random numbers."""
    if sampling.latents is None:
        return randn_tensor(tuple(shape), generator=sampling.generator, device=device, dtype=torch.float32)
    given = (
        sampling.latents
        if sampling.latents.ndim == 3
        else sampling.latents[:, min(index, sampling.latents.shape[1] - 1)]
    )
    given = given[:, : shape[1]].to(device, torch.float32)
    if tuple(given.shape) != tuple(shape):
        raise ValueError(f"`latents` must be of shape {tuple(shape)} for each window, got {tuple(given.shape)}.")
    return given


def denoise(
    model: Any,
    scheduler: SchedulerMixin,
    timesteps: Tensor,
    latents: Tensor,  # [B, W, M]
    conditions: Mapping[str, Tensor | None],
    guidance_scale: Mapping[str, float],
    sampling: Sampling,
    audio: Tensor,  # [B, W, ...]
    **shared: Any,
) -> Tensor:
    """Denoise the motion of one window with any scheduler; its arithmetic stays in float32, whatever the model's.

    Args:
        model (`Any`): The denoiser, see `guided_prediction`.
        scheduler (`diffusers.SchedulerMixin`): Sampler, whose timesteps are set.
        timesteps (`torch.Tensor`): From `set_timesteps`.
        latents (`torch.Tensor` of shape `(batch, window, channels)`): From `initial_noise`.
        conditions (`Mapping[str, torch.Tensor | None]`): On the right device.
        guidance_scale (`Mapping[str, float]`): Of all conditions.
        sampling (`Sampling`): Settings.
        audio (`torch.Tensor`): Features, for the callback.
        **shared: More keyword arguments of the model.

    Returns:
        `torch.Tensor` of shape `(batch, window, channels)`, normalized motion.
    """
    known = inspect.signature(scheduler.step).parameters
    extra = {"generator": sampling.generator} if "generator" in known else {}
    scale_input = getattr(scheduler, "scale_model_input", lambda latents, _: latents)
    latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in timesteps:
        prediction = guided_prediction(
            lambda x, **kwargs: model(x, **kwargs).sample,
            scale_input(latents, timestep).to(model.dtype),
            conditions,
            guidance_scale,
            timestep=timestep,
            **shared,
        )
        latents = scheduler.step(prediction.float(), timestep, latents, **extra).prev_sample
        if sampling.on_step is not None:
            latents = sampling.on_step(timestep, latents, audio)
        if sampling.is_interrupted():
            break
    return latents

"""The base of all talking-head pipelines: image or avatar and audio in, video out; written once for every system.

    image --prepare_subject--> Subject                                         once per person
    audio --motion generator, window by window--> motion of the subject        __call__, stream, talk_to_file
    video --encode_video, transfer_motion--> motion of the subject             animate
    motion that is given --adapt_motion--> motion of the subject               render
                                   motion --render_frames--> frames, audio --> list, stream, file

A system supplies the steps named above and `create_motion_generator`. Its own options of a call are the fields of two
dataclasses: `controls_type`, the controls of its motion, and `view_type`, how a subject is prepared and rendered.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from vasa_hf.checks import check_number
from vasa_hf.controls import rebase_motion
from vasa_hf.media.audio import load_audio, mix_to_mono
from vasa_hf.media.content_credentials import ContentCredentials
from vasa_hf.media.ffmpeg import parse_fps
from vasa_hf.media.video import VideoWriter, check_credentials
from vasa_hf.motion import MotionSpec, resample_motion
from vasa_hf.outputs import TalkingFaceOutput, join_pictures, named_provenance, to_pictures, to_uint8
from vasa_hf.pipelines.inputs import (
    AudioInput,
    AudioSource,
    ImageInput,
    Subject,
    audio_list,
    check_audios,
    check_batch,
    check_choice,
    check_face,
    check_image,
    check_output,
    image_list,
    is_whole_audio,
    listen,
    open_driving,
    read_motion,
    read_sound,
)
from vasa_hf.pipelines.loading import (
    HUB_OPTIONS,
    check_weights,
    load_components,
    local_folder,
    pipeline_errors,
    require_safetensors,
)
from vasa_hf.pipelines.motion_generator import MotionGenerator, Sampling, check_sampling
from vasa_hf.processors.audio import MAX_RATE, MIN_RATE
from vasa_hf.streaming import AudioBuffer, map_ahead, resampled
from vasa_hf.windowing import entry_of_windows, hold_last

FPS = 25  # of motion
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
MAX_DECODE_WORKERS = 4  # on a CPU; each holds the activations of `decode_batch_size` frames


@dataclass(frozen=True)
class FaceView:
    """How a portrait is prepared, and what of it is shown.

    Args:
        face (`int`, *optional*): Which face of the image, 0 is the largest.
        box (`Sequence[float]`, *optional*): x0, y0, x1, y1 of the face in pixels, instead of detecting it.
        output_size (`int`, *optional*): Side of the face's square, one of `output_sizes`.
        paste_back (`bool`, defaults to `False`): Give the whole image, not only the face's square.
    """

    face: int | None = None
    box: Sequence[float] | None = None
    output_size: int | None = None
    paste_back: bool = False

    def check(self, output_sizes: Sequence[int]) -> None:
        """Raise `ValueError` for values out of range."""
        if self.output_size is not None:
            check_choice("output_size", self.output_size, output_sizes)
        check_face(self.face, self.box)


@dataclass(frozen=True)
class Transfer:
    """More options of `animate` and `render`; a system may have some."""

    def check(self) -> None:
        """Raise `ValueError` for values out of range."""


class TalkingHeadPipeline(DiffusionPipeline):
    """What all systems have in common; see the module's diagram.

    Attributes:
        model_name (`str`, *optional*): Last part of the name that the pipeline was loaded by.
        decode_batch_size (`int`, *optional*): Frames rendered at a time; chosen by device if `None`.
        cpu_bfloat16 (`bool`): Render float32 weights under bfloat16 autocast on CPUs that compute it natively.
    """

    subject_name = "image"  # name of the argument with the subject
    subject_type: type[Subject] = Subject
    view_type: type = FaceView
    controls_type: type | None = None
    transfer_type: type = Transfer
    _callback_tensor_inputs = ["latents", "audio_features"]
    model_name: str | None = None
    decode_batch_size: int | None = None
    cpu_bfloat16: bool = True
    _num_timesteps = 0
    _interrupt = False

    # --- what a system supplies ---------------------------------------------------------------------------------------

    @property
    def motion_spec(self) -> MotionSpec:
        """Meaning of the channels of `motion`."""
        raise NotImplementedError

    @property
    def output_sizes(self) -> tuple[int, ...]:
        """Sides of the square that the pipeline can render."""
        raise NotImplementedError

    def create_motion_generator(self) -> MotionGenerator:
        """Create what makes motion of speech, with a copy of the scheduler."""
        raise ValueError(
            f"`audio` needs a pipeline that makes motion of speech; {type(self).__name__} only moves an image by a "
            "driving video or a given motion: see `animate` and `render`."
        )

    def prepare_subject(self, image: Any, view: Any) -> Subject:
        """Read an image (or whatever a system animates) and encode it; a prepared subject stays as it is."""
        raise NotImplementedError

    def encode_video(
        self,
        frames: Iterable[ImageInput],
        face: int | None = None,
        box: Sequence[float] | None = None,
        num_frames: int | None = None,
    ) -> Tensor:
        """Motion `(1, frames, channels)` of the face in a video, float32, absolute.

        Args:
            frames (`Iterable`): Images of one size, as `FaceImageProcessor.load` takes them.
            face (`int`, *optional*): Which face of the first frame, 0 is the largest.
            box (`Sequence[float]`, *optional*): Its box, instead of detecting it.
            num_frames (`int`, *optional*): Their number for the progress bar, if it is known.
        """
        raise NotImplementedError

    def render_frames(
        self, subject: Subject, motion: Tensor, view: Any = None, start_frame: int = 0, fps: Fraction = Fraction(FPS)
    ) -> Iterator[Tensor]:
        """Yield frames `(n, 3, height, width)` in [0, 1] on the CPU of a subject's absolute motion.

        Args:
            subject (`Subject`): Who.
            motion (`torch.Tensor` of shape `(frames, channels)`): Absolute motion.
            view (`Any`, *optional*): A `view_type`; its defaults if `None`.
            start_frame (`int`, defaults to 0): Place of the first frame in the video.
            fps (`Fraction`, defaults to 25): Frames per second of the video.
        """
        raise NotImplementedError

    def encode_driving(
        self, frames: Iterable[ImageInput], face: int | None, box: Sequence[float] | None, num_frames: int | None
    ) -> Any:
        """What `transfer_motion` needs of a driving video."""
        return self.encode_video(frames, face, box, num_frames)

    def transfer_motion(
        self, subject: Subject, driving: Any, relative: bool, fps: Fraction, transfer: Any, view: Any
    ) -> tuple[Tensor, Any]:
        """Motion `(1, frames, channels)` of a subject that follows a driving video, and the view to render it with."""
        return (rebase_motion(driving, subject.motion) if relative else driving), view

    def adapt_motion(self, subject: Subject, motion: Tensor, relative: bool, fps: Fraction, transfer: Any) -> Tensor:
        """A given motion `(1, frames, channels)` as the subject's own."""
        return rebase_motion(motion, subject.motion) if relative else motion

    # --- loading and saving -------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> TalkingHeadPipeline:
        """Load a pipeline from the embedded weights, a folder, or the Hub.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Name of embedded weights (`"vasa-small"`, no network), a folder, or a repository of the Hub.
            **kwargs: As for `DiffusionPipeline.from_pretrained`, such as the `revision` of a repository, `token` and
                `local_files_only`. `dtype` defaults to float32.

        Raises:
            ValueError: If there is no such model, if its weights are of another class or shape than it says, or if
                `use_safetensors=False` is asked for: other weights are never loaded here.
        """
        require_safetensors(kwargs)
        hub_options = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        folder = local_folder(pretrained_model_name_or_path, **hub_options)
        with pipeline_errors(pretrained_model_name_or_path):
            pipeline = super().from_pretrained(
                folder, **{**load_components(folder, cls, kwargs, **hub_options), **kwargs}
            )
            for name, component in pipeline.components.items():
                check_weights(name, component)
        if not kwargs.keys() & {"dtype", "torch_dtype"}:  # older versions of diffusers know the second name only
            for component in pipeline.components.values():
                if isinstance(component, torch.nn.Module):
                    component.float()
        pipeline.model_name = Path(os.fspath(pretrained_model_name_or_path)).name
        return pipeline

    def save_pretrained(
        self, save_directory: str | os.PathLike, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """Save all components as safetensors; see `DiffusionPipeline.save_pretrained`.

        Raises:
            ValueError: If `safe_serialization=False` is asked for.
        """
        if not safe_serialization:
            raise ValueError("`safe_serialization` must be True: weights are saved as safetensors only, got False.")
        super().save_pretrained(save_directory, safe_serialization=True, **kwargs)

    # --- speech -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Subject | list | None = None,
        audio: AudioInput | list | None = None,
        *,
        sampling_rate: int | None = None,
        guidance_scale: Mapping[str, float] | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        latents: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        first_window: int | None = None,
        fps: Fraction | float | str = 25,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict], dict] | PipelineCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **options: Any,
    ) -> TalkingFaceOutput | tuple:
        """Make a talking video, or several.

        Args:
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `Subject` or list of them):
                Portrait: a file, PIL image, array `(height, width, channels)` or tensor `(channels, height, width)`.
            audio (`str`, `os.PathLike`, `np.ndarray`, `torch.Tensor`, `tuple` or a list of them):
                Voice: an audio or video file, samples in [-1, 1], or (samples, rate). One image goes with many audios
                and the other way round.
            sampling_rate (`int`, *optional*, defaults to the encoder's, 16000): Rate of bare samples in Hz.
            guidance_scale (`dict[str, float]`, *optional*):
                One scale for each condition; those that are not named keep the system's default. `"audio+emotion"` is
                one scale for both together.
            num_inference_steps (`int`, *optional*): Denoising steps of each window; the system's own by default.
            timesteps (`Sequence[int]`, *optional*): Timesteps of each window, where the scheduler takes them.
            sigmas (`Sequence[float]`, *optional*): Noise levels of each window, where the scheduler takes them.
            latents (`torch.Tensor` of shape `(batch, window, channels)`, *optional*):
                Noise that every window begins with; `(batch, windows, window, channels)` has one for each.
            generator (`torch.Generator` or list, *optional*): Makes the result repeatable; a list has one per video.
            first_window (`int`, *optional*): See `stream`.
            fps (`Fraction`, `float` or `str`, defaults to 25): Frames per second of the video, e.g. `"30000/1001"`.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"`, or `"latent"` for motion alone.
            return_dict (`bool`, defaults to `True`): Whether to return `TalkingFaceOutput` or `(frames,)`.
            callback_on_step_end (`Callable` or `PipelineCallback`, *optional*):
                `callback(pipe, step, timestep, tensors) -> tensors` after each denoising step of each window. When it
                sets `pipe._interrupt = True`, no more motion is made, and the video holds its last frame.
            callback_on_step_end_tensor_inputs (`Sequence[str]`): Which `tensors`: `latents`, `audio_features`.
            **options: Fields of the pipeline's `controls_type` and `view_type`, which document them.

        Returns:
            `TalkingFaceOutput`. For lists, `frames` and `audio` are lists with an entry for each video. `motion` is at
            25 frames per second; shorter ones of a batch hold their last frame.

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        speech = self.create_motion_generator()
        image, controls, view = self._read_options(image, options, self.controls_type, self.view_type)
        self.check_inputs(image, audio, sampling_rate, view, fps, output_type, speech=True)
        (images, many_images), (audios, many_audios) = image_list(image), audio_list(audio)
        batch_size, single = check_batch(images, audios, self.subject_name), not (many_images or many_audios)
        sampling = Sampling(guidance_scale, num_inference_steps, timesteps, sigmas, latents, generator, first_window)
        check_sampling(speech, sampling, batch_size)
        names = self.check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        speech.check(controls)

        # 1. Everything is read, and faces are found, before anything is generated.
        sounds = [self.prepare_audio(one, sampling_rate) for one in audios]
        subjects = [self.prepare_subject(one, view) for one in images]
        sounds, subjects = (entries * (batch_size // len(entries)) for entries in (sounds, subjects))

        # 2. Motion of all videos together, window by window.
        samples, num_motion_frames = self._join_audio([samples for samples, _, _ in sounds])
        num_windows = speech.count_windows(max(num_motion_frames), first_window)
        given = sigmas if timesteps is None else timesteps
        steps = (num_inference_steps or speech.default_steps) if given is None else len(given)
        self._num_timesteps, self._interrupt = num_windows * steps, False
        with self.progress_bar(total=self._num_timesteps) as progress_bar:
            progress_bar.set_description("motion")
            sampling.on_step = self._on_step(progress_bar, callback_on_step_end, names)
            sampling.num_frames, sampling.is_interrupted = num_motion_frames, lambda: self._interrupt
            windows = list(speech.generate([samples], subjects, controls, sampling))

        # 3. Motion of each subject, then frames.
        fps, rate = parse_fps(fps), self.audio_processor.sampling_rate
        motions, videos = [], []
        for index, subject in enumerate(subjects):
            own = entry_of_windows(windows, index, num_motion_frames[index], speech.overlap)
            motions.append(list(_check_finite(speech.place(own, subject, controls))))
        if output_type == "latent":
            videos = [torch.cat(motion, dim=1)[0] for motion in motions]
        else:
            num_frames = [math.ceil(samples.shape[1] * fps / rate) for samples, _, _ in sounds]
            with self._frames_progress(sum(num_frames)) as progress_bar:
                for subject, motion, count in zip(subjects, motions, num_frames, strict=True):
                    wanted = resampled(motion, self.audio_processor.fps, fps, lambda count=count: count)
                    videos.append(self._render_video(subject, wanted, view, fps, output_type, progress_bar))

        self.maybe_free_model_hooks()
        if not return_dict:
            return (videos[0] if single else videos,)
        if len({rate_of_one for _, _, rate_of_one in sounds}) > 1:  # an output has one rate: the encoder's then
            sounds = [(samples, samples[0].numpy(), rate) for samples, _, _ in sounds]
        return self._output(
            videos[0] if single else videos,
            sounds[0][1] if single else [sound for _, sound, _ in sounds],
            sounds[0][2],
            fps,
            hold_last([torch.cat(motion, dim=1) for motion in motions]),
            self._motion_fps,
        )

    def stream(
        self,
        image: ImageInput | Subject | None = None,
        audio_chunks: Iterable | AudioInput | None = None,
        *,
        sampling_rate: int | None = None,
        guidance_scale: Mapping[str, float] | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        latents: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_window: int | None = None,
        fps: Fraction | float | str = 25,
        output_type: str = "pil",
        **options: Any,
    ) -> Iterator[TalkingFaceOutput]:
        """Make frames while the audio comes in, in constant memory; the same frames as `__call__` makes.

        Arguments are checked, and the image is encoded, before this returns. They are those of `__call__`, but:

        - `image` is one portrait.
        - `audio_chunks` are chunks of any length: arrays `(samples,)`, `(channels, samples)` or `(samples, channels)`,
          (samples, rate); the first of two axes tells which one is that of the channels.
          Frames come as soon as a window of audio and the encoder's look-ahead have arrived. Audio as `__call__` takes
          it is one of its own; a file is read bit by bit, however long it is.
        - `first_window` (`int`, *optional*, defaults to the model's window) is the length of the first window in
          frames; fewer let the first frames come earlier. # Not in the paper.

        Returns:
            Iterator of `TalkingFaceOutput` with a few frames each, the audio that belongs to them (mono, at the
            encoder's rate), and their motion (at `fps`).

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        speech = self.create_motion_generator()
        image, controls, view = self._read_options(image, options, self.controls_type, self.view_type)
        whole = is_whole_audio(audio_chunks)
        if not whole and (isinstance(audio_chunks, bytes) or not isinstance(audio_chunks, Iterable)):
            raise ValueError(f"`audio_chunks` must be an iterable of samples, got {type(audio_chunks).__name__}.")
        self.check_inputs(image, audio_chunks if whole else None, sampling_rate, view, fps, output_type)
        sampling = Sampling(guidance_scale, num_inference_steps, timesteps, sigmas, latents, generator, first_window)
        check_sampling(speech, sampling)
        speech.check(controls)
        if whole:  # read through here, so that a bad one is rejected before the image is encoded
            source = self.open_audio(audio_chunks, sampling_rate)
            audio_chunks = ((block.clip(-1.0, 1.0).mean(0), source.sampling_rate) for block in source)
        with torch.no_grad():
            subject = self.prepare_subject(self._one_subject(image), view)
        self._interrupt = False
        sampling.is_interrupted = lambda: self._interrupt
        chunks = listen(audio_chunks, self.audio_processor, sampling_rate)
        return self._stream(speech, subject, chunks, controls, sampling, view, parse_fps(fps), output_type)

    @torch.no_grad()
    def _stream(
        self,
        speech: MotionGenerator,
        subject: Subject,
        chunks: Iterable[Tensor],
        controls: Any,
        sampling: Sampling,
        view: Any,
        fps: Fraction,
        output_type: str,
    ) -> Iterator[TalkingFaceOutput]:
        rate, buffer, count = self.audio_processor.sampling_rate, AudioBuffer(), 0

        def arriving() -> Iterator[Tensor]:
            for samples in chunks:
                buffer.append(samples)
                yield samples

        windows = speech.generate(arriving(), [subject], controls, sampling)
        ends = lambda: math.ceil(buffer.stop * fps / rate)  # noqa: E731 - known when the audio has ended
        placed = _check_finite(speech.place(windows, subject, controls))
        for motion in resampled(placed, self.audio_processor.fps, fps, ends):
            parts = [motion[0]]
            if output_type != "latent":
                parts = self.render_frames(subject, motion[0], view, count, fps)
            for part in parts:
                frames = part if output_type == "latent" else self.postprocess(part, output_type)
                start, stop = (round(frame * rate / fps) for frame in (count, count + len(part)))
                audio = buffer.cut(start, stop)[0].numpy()
                buffer.forget(stop)
                yield self._output(frames, audio, rate, fps, motion[:, : len(part)], motion_fps=fps)
                motion, count = motion[:, len(part) :], count + len(part)
        self.maybe_free_model_hooks()

    def talk_to_file(
        self,
        path: str | os.PathLike,
        image: ImageInput | Subject | None = None,
        audio: AudioInput | None = None,
        *,
        provenance: bool | Mapping[str, Any] = True,
        crf: int = 18,
        credentials: ContentCredentials | None = None,
        on_frames: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> TalkingFaceOutput:
        """Write a talking video frame by frame: `stream` into a file, with the audio as it was, in constant memory.

        Args:
            path (`str` or `os.PathLike`): The `.mp4` file; appears whole or not at all.
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `Subject`): One portrait.
            audio (`str`, `os.PathLike`, `np.ndarray`, `torch.Tensor` or `tuple`): One voice.
            provenance (`bool` or `dict`, defaults to `True`): See `TalkingFaceOutput.save`.
            crf (`int`, defaults to 18): Quality of H.264, 0 (lossless) to 51.
            credentials (`ContentCredentials`, *optional*): See `TalkingFaceOutput.save`.
            on_frames (`Callable`, *optional*): `on_frames(frames_written, frames_in_all)` from time to time.
            **options: As for `stream`.

        Returns:
            `TalkingFaceOutput` without frames and audio: its motion (at the video's rate) can be saved.
        """
        check_output(path)
        check_number("crf", crf, 0, 51, whole=True)
        check_credentials(credentials, provenance)
        self.create_motion_generator()
        check_audios([audio])
        source = self.open_audio(audio, options.get("sampling_rate"))
        chunks = self.stream(image, source, **{**options, "output_type": "np"})
        fps = parse_fps(options.get("fps", 25))
        num_frames = math.ceil(source.num_samples * fps / source.sampling_rate)
        first, motions = next(chunks), []
        size = (first.frames.shape[2], first.frames.shape[1])
        provenance = named_provenance(provenance, self.model_name)
        marks = {"provenance": provenance, "credentials": credentials}
        with VideoWriter(path, fps, size, **marks, crf=crf) as writer:
            for block in source:
                writer.write_audio(block.mean(0), source.sampling_rate)
            for chunk in itertools.chain([first], chunks):
                for frame in to_uint8(chunk.frames):
                    writer.write(frame)
                motions.append(chunk.motion)
                if on_frames is not None:
                    on_frames(writer.num_frames, num_frames)
        return self._output([], None, None, fps, torch.cat(motions, dim=1), motion_fps=fps)

    # --- other drivers ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def animate(
        self,
        image: ImageInput | Subject | None = None,
        driving_video: str | os.PathLike | Sequence | None = None,
        *,
        relative: bool = True,
        driving_face: int | None = None,
        driving_box: Sequence[float] | None = None,
        fps: Fraction | float | str | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> TalkingFaceOutput | tuple:
        """Let a subject do what the face of a video does.

        One square, around the first frame's face, is cut out of all frames, as the training clips were.

        Args:
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `Subject`): One portrait.
            driving_video (`str`, `os.PathLike` or a sequence of images): A video file, or frames of one size.
            relative (`bool`, defaults to `True`): Add the change since the first driving frame to the subject's own
                pose and expression. Otherwise the driving pose and expression are taken as they are.
            driving_face (`int`, *optional*): `face` of the first driving frame.
            driving_box (`Sequence[float]`, *optional*): `box` of the first driving frame.
            fps (`Fraction`, `float` or `str`, *optional*): Defaults to the video's own rate, 25 for frames.
            output_type (`str`, defaults to `"pil"`): As for `__call__`.
            return_dict (`bool`, defaults to `True`): As for `__call__`.
            **options: Fields of the pipeline's `view_type` and `transfer_type`, which document them.

        Returns:
            `TalkingFaceOutput` with the driving video's audio, if it has any. Its motion can be saved for `render`.

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        image, view, transfer = self._read_options(image, options, self.view_type, self.transfer_type)
        self.check_inputs(image, None, None, view, fps, output_type)
        transfer.check()
        check_face(driving_face, driving_box, "driving_")
        video, fps, num_frames, sound = open_driving(driving_video, fps)
        subject = self.prepare_subject(self._one_subject(image), view)
        driving = self.encode_driving(video, driving_face, driving_box, num_frames)
        motion, view = self.transfer_motion(subject, driving, relative, fps, transfer, view)
        return self._render_motion(subject, motion, fps, view, fps, sound, output_type, return_dict)

    @torch.no_grad()
    def render(
        self,
        image: ImageInput | Subject | None = None,
        motion: Tensor | str | os.PathLike | None = None,
        *,
        motion_fps: Fraction | float | str | None = None,
        relative: bool = False,
        audio: AudioInput | None = None,
        sampling_rate: int | None = None,
        fps: Fraction | float | str = 25,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> TalkingFaceOutput | tuple:
        """Render a given motion: edited, saved by `output.save("motion.safetensors")`, or of another person.

        Args:
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `Subject`): One portrait.
            motion (`torch.Tensor` of shape `([1,] frames, channels)`, `str` or `os.PathLike`): Absolute motion.
            motion_fps (`Fraction`, `float` or `str`, *optional*): Its rate; the file's own, 25 for tensors.
            relative (`bool`, defaults to `False`): Start from the subject's own pose and expression, as `animate` does.
            audio (`str`, `os.PathLike`, `np.ndarray`, `torch.Tensor` or `tuple`, *optional*): Audio of the video.
            sampling_rate (`int`, *optional*, defaults to 16000): Rate of bare samples in Hz.
            fps (`Fraction`, `float` or `str`, defaults to 25): Frames per second of the video.
            output_type (`str`, defaults to `"pil"`): As for `__call__`.
            return_dict (`bool`, defaults to `True`): As for `__call__`.
            **options: Fields of the pipeline's `view_type` and `transfer_type`, which document them.

        Returns:
            `TalkingFaceOutput`.

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        image, view, transfer = self._read_options(image, options, self.view_type, self.transfer_type)
        self.check_inputs(image, audio, sampling_rate, view, fps, output_type)
        transfer.check()
        motion, motion_fps = read_motion(motion, motion_fps, self.motion_spec, self._motion_fps)
        sound = (None, None) if audio is None else read_sound(audio, sampling_rate)
        subject = self.prepare_subject(self._one_subject(image), view)
        motion = self.adapt_motion(subject, motion.to(subject.motion), relative, motion_fps, transfer)
        fps = parse_fps(fps)
        return self._render_motion(subject, motion, motion_fps, view, fps, sound, output_type, return_dict)

    @classmethod
    def control_names(cls) -> list[str]:
        """Names of the controls of the motion that a call takes."""
        return [] if cls.controls_type is None else [field.name for field in dataclasses.fields(cls.controls_type)]

    @property
    def emotions(self) -> tuple[str, ...]:
        """Names that the control `emotion` knows; none where there is no such control."""
        return self.create_motion_generator().emotions

    # --- inputs -------------------------------------------------------------------------------------------------------

    def _read_options(self, image: Any, options: dict[str, Any], *kinds: type) -> tuple[Any, ...]:
        """Sort the options of a call into dataclasses of these kinds; the subject comes first."""
        image, options = self._name_subject(image, options)
        fields = {kind: [field.name for field in dataclasses.fields(kind)] for kind in kinds}
        for name in options:
            if not any(name in names for names in fields.values()):
                known = list(itertools.chain.from_iterable(fields.values()))
                raise ValueError(f"`{name}` is no option here: {type(self).__name__} knows {known}.")
        return image, *(
            kind(**{name: value for name, value in options.items() if name in names}) for kind, names in fields.items()
        )

    def _name_subject(self, image: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if image is None:
            raise ValueError(f"`{self.subject_name}` must be given, got None.")
        return image, options

    def _one_subject(self, image: Any) -> Any:
        images, many = image_list(image)
        if many and len(images) != 1:
            raise ValueError(f"`{self.subject_name}` must be one portrait here, got {len(images)}.")
        return images[0]

    def check_subject(self, image: Any, view: Any, fps: Any) -> None:
        """Raise `ValueError` for what can be seen to be no image, or a subject prepared for something else."""
        check_image(image, self.subject_type, view.output_size)

    def check_inputs(
        self,
        image: Any,
        audio: Any = None,
        sampling_rate: Any = None,
        view: Any = None,
        fps: Any = 25,
        output_type: str = "pil",
        speech: bool = False,
    ) -> None:
        """Raise `ValueError` for what can be seen to be wrong of images, audios and output before any work.

        What is in images and audios is checked when they are read; all before the models run.
        """
        if fps is not None:  # else a driving video's own
            parse_fps(fps)
        view = self.view_type() if view is None else view
        view.check(self.output_sizes)
        images, audios = image_list(image)[0], [None] if audio is None and not speech else audio_list(audio)[0]
        if not images:
            raise ValueError(f"`{self.subject_name}` must be at least one {self.subject_name}, got an empty list.")
        for one in images:
            self.check_subject(one, view, fps)
        if audio is not None or speech:
            check_audios(audios)
        check_batch(images, audios, self.subject_name)
        if sampling_rate is not None:
            check_number("sampling_rate", sampling_rate, MIN_RATE, MAX_RATE, whole=True)
        check_choice("output_type", output_type, OUTPUT_TYPES)

    def check_callback(self, callback: Any, tensor_inputs: Sequence[str]) -> Sequence[str]:
        """Return the names of the tensors that a callback gets.

        Raises:
            ValueError: If it cannot be called with what it asks for.
        """
        if callback is not None and not callable(callback):
            raise ValueError(f"`callback_on_step_end` must be callable, got {type(callback).__name__}.")
        if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
            tensor_inputs = callback.tensor_inputs
        for name in tensor_inputs:
            check_choice("callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs)
        return tensor_inputs

    def find_face(self, picture: Tensor, view: FaceView) -> dict[str, Any]:
        """Where to crop an image `(3, height, width)`: the given box, or the chosen one of the faces found."""
        if view.box is not None:
            return {"box": view.box}
        faces = self.face_analyzer.detect(picture)
        return {"face": self.image_processor.choose(faces, tuple(picture.shape[-2:]), view.face)}

    def prepare_audio(self, audio: AudioInput, sampling_rate: int | None = None) -> tuple[Tensor, np.ndarray, int]:
        """Read an audio of any kind.

        Args:
            audio (`str`, `os.PathLike`, `np.ndarray`, `torch.Tensor` or `tuple`): See `VasaAudioProcessor.load`.
            sampling_rate (`int`, *optional*): Rate of bare samples in Hz, defaults to the processor's.

        Returns:
            `tuple`: samples for the encoder `(1, n)`; the audio as it was, mono `(samples,)`; and its rate.
        """
        sound, rate = load_audio(audio, self._rate_of(audio, sampling_rate))
        samples = self.audio_processor.load((sound, rate))
        return torch.from_numpy(samples)[None], mix_to_mono(sound), rate

    def open_audio(self, audio: AudioInput | AudioSource, sampling_rate: int | None = None) -> AudioSource:
        """Read an audio through and check it, but do not keep it: `prepare_audio` for long files."""
        return audio if isinstance(audio, AudioSource) else AudioSource(audio, self._rate_of(audio, sampling_rate))

    def _rate_of(self, audio: AudioInput, sampling_rate: int | None) -> int | None:
        bare = not isinstance(audio, str | os.PathLike | tuple)
        return self.audio_processor.sampling_rate if bare and sampling_rate is None else sampling_rate

    def _join_audio(self, sounds: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """Pad audios `(1, n)` with zeros to one batch; also the frames of each."""
        longest = max(sound.shape[1] for sound in sounds)
        batch = torch.cat([torch.nn.functional.pad(sound, (0, longest - sound.shape[1])) for sound in sounds])
        return batch, [-(-sound.shape[1] // self.audio_processor.samples_per_frame) for sound in sounds]

    def driving_crops(
        self, frames: Iterable[ImageInput], face: int | None, box: Sequence[float] | None, total: int | None, size: int
    ) -> Iterator[Tensor]:
        """Cut the face of a driving video out of all frames: one square, around the first frame's face.

        Args:
            frames (`Iterable`): Images of one size, as `FaceImageProcessor.load` takes them.
            face (`int`, *optional*): Which face of the first frame, 0 is the largest.
            box (`Sequence[float]`, *optional*): Its box, instead of detecting it.
            total (`int`, *optional*): Their number for the progress bar, if it is known.
            size (`int`): Side of the squares.

        Yields:
            `torch.Tensor` of shape `(3, size, size)` in [-1, 1].

        Raises:
            ValueError: If a frame cannot be read, or the first shows no face.
        """
        around = None
        with self.progress_bar(total=total or 0) as progress_bar:
            progress_bar.set_description("driving")
            for index, frame in enumerate(frames):
                try:
                    picture = self.image_processor.load(frame)
                    around = self.find_face(picture, FaceView(face, box)) if around is None else around
                    crop = self.image_processor.crop(picture, **around, size=size)
                except ValueError as error:
                    raise ValueError(f"`driving_video`, frame {index}: {error}") from error
                yield crop.image
                progress_bar.update()

    # --- sampling and outputs -----------------------------------------------------------------------------------------

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the last call, of all its windows."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the motion of the running call is to end; a callback sets `pipe._interrupt`."""
        return self._interrupt

    def _on_step(self, progress_bar: Any, callback: Callable | None, names: Sequence[str]) -> Callable:
        """What a sampler calls after each step: counts it, and asks the user's callback for other latents."""
        steps = itertools.count()

        def on_step(timestep: Tensor, latents: Tensor, audio_features: Tensor) -> Tensor:
            progress_bar.update()
            step = next(steps)
            if callback is None:
                return latents
            tensors = {"latents": latents, "audio_features": audio_features}
            chosen = {name: tensors[name] for name in names}
            return (callback(self, step, timestep, chosen) or {}).get("latents", latents)

        return on_step

    def decode_ahead(self, decode: Callable[[Tensor], Tensor], motion: Tensor) -> Iterator[Tensor]:
        """`decode` of some frames of a motion `(frames, channels)` after the others; on a CPU, in several threads."""
        on_cpu = self._execution_device.type == "cpu"
        workers = min(torch.get_num_threads(), MAX_DECODE_WORKERS) if on_cpu else 1
        yield from map_ahead(decode, motion.split(self.decode_batch_size or (4 if on_cpu else 16)), workers)

    def decoder_precision(self, model: torch.nn.Module) -> torch.autocast:
        """Autocast for the decoder, where it pays; see `cpu_bfloat16`."""
        wanted = self.cpu_bfloat16 and self._execution_device.type == "cpu" and model.dtype == torch.float32
        return torch.autocast("cpu", torch.bfloat16, enabled=wanted and _cpu_computes_bfloat16())

    def _frames_progress(self, total: int) -> Any:
        progress_bar = self.progress_bar(total=total)
        progress_bar.set_description("frames")
        return progress_bar

    def _render_video(
        self,
        subject: Subject,
        motions: Iterable[Tensor],
        view: Any,
        fps: Fraction,
        output_type: str,
        progress_bar: Any,
    ) -> Any:
        """Frames of motions `(1, frames, channels)` that follow each other, as one video of `output_type`."""
        parts, start = [], 0
        for motion in motions:
            for part in self.render_frames(subject, motion[0], view, start, fps):
                parts.append(self.postprocess(part, output_type))
                progress_bar.update(len(part))
            start += motion.shape[1]
        return join_pictures(parts, output_type)

    def _render_motion(
        self,
        subject: Subject,
        motion: Tensor,
        motion_fps: Fraction,
        view: Any,
        fps: Fraction,
        sound: tuple[np.ndarray | None, int | None],
        output_type: str,
        return_dict: bool,
    ) -> TalkingFaceOutput | tuple:
        """Render one absolute motion `(1, frames, channels)`; the end of `animate` and `render`."""
        (motion,) = _check_finite([motion])
        frames = motion[0]
        if output_type != "latent":
            wanted = resample_motion(motion, motion_fps, fps)
            with self._frames_progress(wanted.shape[1]) as progress_bar:
                frames = self._render_video(subject, [wanted], view, fps, output_type, progress_bar)
        self.maybe_free_model_hooks()
        return self._output(frames, *sound, fps, motion, motion_fps) if return_dict else (frames,)

    @property
    def _motion_fps(self) -> Fraction:
        """Frames per second of generated motion."""
        return Fraction(getattr(getattr(self, "audio_processor", None), "fps", FPS))

    @staticmethod
    def postprocess(frames: Tensor, output_type: str) -> Any:
        """Frames `(n, 3, height, width)` in [0, 1] as PIL images, an array `(n, height, width, 3)`, or as they are."""
        return to_pictures(frames, output_type)

    def _output(
        self,
        frames: Any,
        audio: Any,
        sampling_rate: int | None,
        fps: Fraction,
        motion: Tensor,
        motion_fps: Fraction,
    ) -> TalkingFaceOutput:
        return TalkingFaceOutput(
            frames=frames,
            audio=audio,
            sampling_rate=sampling_rate,
            fps=fps,
            motion=motion,
            motion_spec=self.motion_spec,
            motion_fps=motion_fps,
            model_name=self.model_name,
        )


def _check_finite(motions: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield motions as they are; raise `ValueError` at NaN or infinity, which a renderer may show as black."""
    for motion in motions:
        if not bool(torch.isfinite(motion).all()):
            raise ValueError("`motion` must be finite, but NaN or infinity was computed: are the weights damaged?")
        yield motion


def _cpu_computes_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; others emulate it slowly."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, test, bool)() for test in tests)

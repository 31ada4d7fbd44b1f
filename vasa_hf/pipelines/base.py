"""The base class of all talking-head pipelines: an image or avatar and audio in, a video out.

    image --prepare_subject--> Subject                                         once per person
    audio --motion generator, window by window--> motion of the subject        __call__, stream, talk_to_file
    video --encode_driving, transfer_motion--> motion of the subject           animate
    given motion --adapt_motion--> motion of the subject                       render
                                   motion --render_frames--> frames, audio --> list, stream, file

A system supplies the steps named above and `create_motion_generator`. Its own options of a call are the fields of two
dataclasses: `controls_type`, the controls of its motion, and `view_type`, how a subject is prepared and rendered.

The file is long because each call is written, and documented for users, once for all systems: here.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import PipelineCallback
from torch import Tensor

from vasa_hf.checks import check_flag, check_number, check_path, shorten
from vasa_hf.hub import rename_components
from vasa_hf.media.audio import load_audio, mix_to_mono
from vasa_hf.media.ffmpeg import parse_fps
from vasa_hf.motion import MotionSpec, resample_motion
from vasa_hf.motion.controls import rebase_motion
from vasa_hf.motion.streaming import AudioBuffer, map_ahead, resample_chunks
from vasa_hf.motion.windows import entry_of_windows, hold_last
from vasa_hf.outputs import TalkingFaceOutput, VideoSettings, join_images, to_images, write_video
from vasa_hf.pipelines import inputs
from vasa_hf.pipelines.driving import DrivingFace
from vasa_hf.pipelines.inputs import AudioInput, AudioSource, DrivingVideo, ImageInput, PreparedMotion, Subject
from vasa_hf.pipelines.loading import (
    HUB_OPTIONS,
    check_weights,
    load_components,
    local_folder,
    pipeline_errors,
    require_safetensors,
)
from vasa_hf.pipelines.motion_generator import (
    MotionGenerator,
    Sampling,
    SamplingOptions,
    check_callback,
    check_sampling,
    count_steps,
    report_steps,
)
from vasa_hf.pipelines.options import (
    DrivingOptions,
    FaceView,
    MotionOptions,
    Transfer,
    pop_options,
    read_options,
    show_options,
)
from vasa_hf.processors.audio import MAX_RATE, MIN_RATE

if TYPE_CHECKING:
    from vasa_hf.live.session import LiveSession

FPS = 25  # of motion
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
MAX_DECODE_WORKERS = 4  # on a CPU; each holds the activations of `decode_batch_size` frames


class TalkingHeadPipeline(DiffusionPipeline):
    """The base class of all systems; see the module's diagram.

    Attributes:
        model_name (`str`, *optional*): Last part of the name or path that the pipeline was loaded from.
        decode_batch_size (`int`, *optional*): Frames rendered at a time; chosen by device if `None`.
        cpu_bfloat16 (`bool`): Render float32 weights under bfloat16 autocast on CPUs that compute it natively.
    """

    subject_name = "image"  # name of the argument with the subject
    subject_type: type = Subject
    view_type: type = FaceView
    controls_type: type | None = None
    transfer_type: type = Transfer
    _callback_tensor_inputs = ["latents", "audio_features"]
    model_name: str | None = None
    decode_batch_size: int | None = None
    cpu_bfloat16: bool = True
    _num_timesteps = 0
    _interrupt = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Name a system's own options in the signatures and docstrings of its calls."""
        super().__init_subclass__(**kwargs)
        calls: dict[str, list[type | None]] = {
            "__call__": [cls.controls_type, cls.view_type],
            "stream": [SamplingOptions, cls.controls_type, cls.view_type],
            "animate": [DrivingOptions, cls.view_type, cls.transfer_type],
            "render": [MotionOptions, cls.view_type, cls.transfer_type],
        }
        calls |= {f"{name}_to_file": [*calls[name], VideoSettings] for name in ("animate", "render")}
        calls["talk_to_file"] = [*calls["stream"], VideoSettings]
        for name, kinds in calls.items():
            if name not in vars(cls):
                shown = [kind for kind in kinds if kind is not None]
                setattr(cls, name, show_options(getattr(cls, name), shown, cls.subject_name))

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
        """Create the object that generates motion from speech, with a copy of the scheduler."""
        raise ValueError(
            f"`audio` needs a pipeline that makes motion of speech; {type(self).__name__} only moves an image by a "
            "driving video or a given motion: see `animate` and `render`."
        )

    def prepare_subject(self, image: Any, view: Any) -> Subject:
        """Read an image (or whatever a system animates) and encode it; a prepared subject stays as it is."""
        raise NotImplementedError

    def encode_driving(self, driving: DrivingFace) -> Any:
        """What `transfer_motion` needs of a driving video: motion `(1, frames, channels)`, float32, absolute.

        Args:
            driving (`DrivingFace`): Gives the squares to encode, and completes their motion.
        """
        raise NotImplementedError

    def measure_driving(self, driving: DrivingFace) -> Tensor:
        """What `encode_video` returns: the motion `(1, frames, channels)` of the driving face itself."""
        return self.encode_driving(driving)

    def render_frames(
        self, subject: Any, motion: Tensor, view: Any = None, start_frame: int = 0, fps: Fraction = Fraction(FPS)
    ) -> Iterator[Tensor]:
        """Yield frames `(n, 3, height, width)` in [0, 1] on the CPU of a subject's absolute motion.

        Args:
            subject (`Subject`): A prepared subject.
            motion (`torch.Tensor` of shape `(frames, channels)`): Absolute motion.
            view (`Any`, *optional*): A `view_type`; its defaults if `None`.
            start_frame (`int`, defaults to 0): Place of the first frame in the video.
            fps (`Fraction`, defaults to 25): Frames per second of the video.
        """
        raise NotImplementedError

    def transfer_motion(
        self, subject: Any, driving: Any, neutral: int | None, fps: Fraction, transfer: Any, view: Any
    ) -> tuple[Tensor, Any]:
        """Return the motion `(1, frames, channels)` of a subject that follows a driving video, and its view.

        Args:
            subject (`Subject`): A prepared subject.
            driving (`Any`): The result of `encode_driving`.
            neutral (`int`, *optional*): Frame from which the driver's change is measured; `None` uses the driver's pose
                and expression directly.
            fps (`Fraction`): Frames per second of the driving video.
            transfer (`Any`): A `transfer_type`.
            view (`Any`): A `view_type`.
        """
        return (driving if neutral is None else rebase_motion(driving, subject.motion, neutral)), view

    def adapt_motion(self, subject: Any, motion: Tensor, relative: bool, fps: Fraction, transfer: Any) -> Tensor:
        """Adapt a given motion `(1, frames, channels)` to a subject."""
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
            ValueError: If there is no such model, if its weights do not fit its configuration, or with
                `use_safetensors=False`: pickled weights are never loaded.
        """
        check_path("pretrained_model_name_or_path", pretrained_model_name_or_path)
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

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers, with today's names of components; for `model_index.json` of earlier versions."""
        loaded = super().load_config(*args, **kwargs)
        return rename_components(loaded) if isinstance(loaded, dict) else (rename_components(loaded[0]), *loaded[1:])

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
                Speech: an audio or video file, samples in [-1, 1], or (samples, rate). One image goes with many
                audios, and one audio with many images.
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
            **options: The system's own, see `help` of its class: fields of its `controls_type` and `view_type`.

        Returns:
            `TalkingFaceOutput`. For lists, `frames` and `audio` are lists with an entry for each video. `motion` is at
            25 frames per second; shorter ones of a batch hold their last frame.

        Raises:
            ValueError: If an argument cannot be used; the message names it.
        """
        speech = self.create_motion_generator()
        image, controls, view = self._read_options(image, options, self.controls_type, self.view_type)
        self.check_inputs(image, audio, sampling_rate, view, fps, output_type, speech=True)
        check_flag("return_dict", return_dict)
        (images, many_images), (audios, many_audios) = inputs.list_images(image), inputs.list_audios(audio)
        batch_size = inputs.check_batch(images, audios, self.subject_name)
        sampling = Sampling(guidance_scale, num_inference_steps, timesteps, sigmas, latents, generator, first_window)
        check_sampling(speech, sampling, batch_size)
        names = check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        speech.check(controls)

        # 1. Read all inputs and find the faces, before anything is generated.
        prepared = [self.prepare_audio(one, sampling_rate) for one in audios]
        subjects = [self.prepare_subject(one, view) for one in images]
        prepared, subjects = prepared * (batch_size // len(prepared)), subjects * (batch_size // len(subjects))
        samples = [one for one, _, _ in prepared]
        originals, sampling_rate = [one for _, one, _ in prepared], prepared[0][2]

        # 2. Generate the motion of all videos together, window by window.
        batch, sampling.num_frames = inputs.join_audio(samples, self.audio_processor.samples_per_frame)
        self._interrupt, sampling.is_interrupted = False, lambda: self._interrupt
        num_windows = speech.windows(first_window).count(max(sampling.num_frames) + speech.lead_frames)
        self._num_timesteps = num_windows * count_steps(speech, sampling)
        with self.progress_bar(total=self._num_timesteps) as progress_bar:
            progress_bar.set_description("motion")
            sampling.on_step = report_steps(self, progress_bar, callback_on_step_end, names)
            windows = list(speech.generate([batch], subjects, controls, sampling))
        motions = []
        for index, (subject, length) in enumerate(zip(subjects, sampling.num_frames, strict=True)):
            own = entry_of_windows(windows, index, length, speech.overlap)
            motions.append(list(inputs.check_finite(speech.place(own, subject, controls))))

        # 3. Render the frames of each video.
        fps, rate = parse_fps(fps), self.audio_processor.sampling_rate
        videos = [torch.cat(motion, dim=1)[0] for motion in motions]
        if output_type != "latent":
            counts = [math.ceil(one.shape[1] * fps / rate) for one in samples]
            with self._frames_progress(sum(counts)) as progress_bar:
                for index, (subject, motion, count) in enumerate(zip(subjects, motions, counts, strict=True)):
                    wanted = resample_chunks(motion, self.audio_processor.fps, fps, partial(int, count))
                    videos[index] = self._render_video(subject, wanted, view, fps, output_type, progress_bar)

        self.maybe_free_model_hooks()
        frames = videos if many_images or many_audios else videos[0]
        if not return_dict:
            return (frames,)
        if len({one for _, _, one in prepared}) > 1:  # an output has one rate: the encoder's then
            originals, sampling_rate = [one[0].numpy() for one in samples], rate
        audio = originals if many_images or many_audios else originals[0]
        joined = hold_last([torch.cat(motion, dim=1) for motion in motions])
        return self._output(frames, fps, joined, self._motion_fps, audio, sampling_rate)

    def stream(
        self,
        image: ImageInput | Subject | None = None,
        audio_chunks: Iterable | AudioInput | None = None,
        *,
        sampling_rate: int | None = None,
        fps: Fraction | float | str = 25,
        output_type: str = "pil",
        **options: Any,
    ) -> Iterator[TalkingFaceOutput]:
        """Make frames while the audio comes in, in constant memory; the same frames as `__call__` makes.

        Arguments are checked, and the image is encoded, before this returns. They are those of `__call__`, but:

        - `image` is one portrait.
        - `audio_chunks` are chunks of any length: arrays `(samples,)`, `(channels, samples)` or `(samples, channels)`,
          (samples, rate); the first chunk with two axes decides which one is that of the channels.
          Frames come as soon as a window of audio and the encoder's look-ahead have arrived. Audio as `__call__` takes
          it is one chunk; a file is read in blocks, however long it is.
        - `first_window` may be smaller than the model's window, to let the first frames come earlier.

        Returns:
            Iterator of `TalkingFaceOutput` with a few frames each, the audio that belongs to them (mono, at the
            encoder's rate), and their motion (at `fps`).

        Raises:
            ValueError: If an argument cannot be used; the message names it.
        """
        speech, sampling = self.create_motion_generator(), Sampling(**vars(pop_options(options, SamplingOptions)))
        image, controls, view = self._read_options(image, options, self.controls_type, self.view_type)
        whole = inputs.is_whole_audio(audio_chunks)
        if not whole and (isinstance(audio_chunks, bytes) or not isinstance(audio_chunks, Iterable)):
            raise ValueError(f"`audio_chunks` must be an iterable of samples, got {type(audio_chunks).__name__}.")
        self.check_inputs(image, audio_chunks if whole else None, sampling_rate, view, fps, output_type)
        check_sampling(speech, sampling)
        speech.check(controls)
        if whole:  # check it here, before the image is encoded
            source = self.open_audio(audio_chunks, sampling_rate)
            audio_chunks = ((block.clip(-1.0, 1.0).mean(0), source.sampling_rate) for block in source)
        with torch.no_grad():
            subject = self.prepare_subject(self._one_subject(image), view)
        self._interrupt = False
        sampling.is_interrupted = lambda: self._interrupt
        chunks = inputs.read_chunks(cast(Iterable, audio_chunks), self.audio_processor, sampling_rate)
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

        def buffer_audio() -> Iterator[Tensor]:
            for samples in chunks:
                buffer.append(samples)
                yield samples

        windows = speech.generate(buffer_audio(), [subject], controls, sampling)
        num_frames = lambda: math.ceil(buffer.stop * fps / rate)  # noqa: E731 - known when the audio has ended
        placed = inputs.check_finite(speech.place(windows, subject, controls))
        for motion in resample_chunks(placed, self.audio_processor.fps, fps, num_frames):
            parts: Iterable[Tensor] = [motion[0]]
            if output_type != "latent":
                parts = self.render_frames(subject, motion[0], view, count, fps)
            for part in parts:
                frames = part if output_type == "latent" else self.postprocess(part, output_type)
                start, stop = (round(frame * rate / fps) for frame in (count, count + len(part)))
                audio = buffer.cut(start, stop)[0].numpy()
                buffer.forget(stop)
                yield self._output(frames, fps, motion[:, : len(part)], fps, audio, rate)
                motion, count = motion[:, len(part) :], count + len(part)
        self.maybe_free_model_hooks()

    def live(self, image: Any = None, *, fps: int = FPS, **options: Any) -> LiveSession:
        """Begin a live session: a face that is fed with audio while it is shown; see `vasa_hf.live`.

        Args:
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `Subject`): One portrait.
            fps (`int`, defaults to 25): Frames per second: those of the motion.
            **options: Fields of `LiveSettings`, `SamplingOptions` and of the pipeline's `controls_type` (constant
                values) and `view_type`.

        Returns:
            `LiveSession`, which works until it is closed.

        Raises:
            ValueError: If an argument cannot be used, or the system has no live sessions; the message names it.
        """
        from vasa_hf.live.session import LiveSession, LiveSettings

        settings, sampling = pop_options(options, LiveSettings), Sampling(**vars(pop_options(options, SamplingOptions)))
        image, controls, view = self._read_options(image, options, self.controls_type, self.view_type)
        speech = self.create_motion_generator()
        if fps != self.audio_processor.fps:
            raise ValueError(f"`fps` of a live session must be {self.audio_processor.fps}, got {shorten(fps)}.")
        self.check_inputs(image, view=view)
        check_sampling(speech, sampling)
        speech.check(controls)
        with torch.no_grad():
            subject = self.prepare_subject(self._one_subject(image), view)
        return LiveSession(self, subject, controls, view, sampling, settings)

    def talk_to_file(
        self,
        path: str | os.PathLike,
        image: ImageInput | Subject | None = None,
        audio: AudioInput | None = None,
        *,
        sampling_rate: int | None = None,
        fps: Fraction | float | str = 25,
        **options: Any,
    ) -> TalkingFaceOutput:
        """Write a talking video frame by frame, in constant memory: `stream` into a file, with the original audio.

        Args:
            path (`str` or `os.PathLike`): The `.mp4` file; appears whole or not at all.
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `Subject`): One portrait.
            audio (`str`, `os.PathLike`, `np.ndarray`, `torch.Tensor` or `tuple`): One audio.
            sampling_rate (`int`, *optional*, defaults to the encoder's, 16000): Rate of bare samples in Hz.
            fps (`Fraction`, `float` or `str`, defaults to 25): Frames per second of the video.
            **options: As for `stream`, and the fields of `VideoSettings`.

        Returns:
            `TalkingFaceOutput` without frames and audio: its motion (at the video's rate) can be saved.

        Raises:
            ValueError: If an argument cannot be used; the message names it.
        """
        inputs.check_output(path)
        settings = pop_options(options, VideoSettings)
        self.create_motion_generator()
        inputs.check_audios([audio])
        source = self.open_audio(audio, sampling_rate)
        options |= {"sampling_rate": sampling_rate, "fps": fps, "output_type": "np"}
        chunks = self.stream(image, source, **options)
        fps, motions = parse_fps(fps), []

        def parts() -> Iterator[np.ndarray]:
            for chunk in chunks:
                motions.append(cast(Tensor, chunk.motion))
                yield chunk.frames

        num_frames = math.ceil(source.num_samples * fps / source.sampling_rate)
        write_video(path, parts(), num_frames, fps, source.mono_blocks(), settings, self.model_name)
        return self._output([], fps, torch.cat(motions, dim=1), fps)

    # --- other drivers ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def animate(
        self,
        image: ImageInput | Subject | None = None,
        driving_video: str | os.PathLike | Sequence | None = None,
        *,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> TalkingFaceOutput | tuple:
        """Let a subject do what the face of a video does.

        The face is followed through the video, see `vasa_hf.pipelines.driving`; frames without it are logged.

        Args:
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `Subject`): One portrait.
            driving_video (`str`, `os.PathLike` or a sequence of images): A video file, or frames of one size.
            output_type (`str`, defaults to `"pil"`): As for `__call__`.
            return_dict (`bool`, defaults to `True`): As for `__call__`.
            **options: Fields of `DrivingOptions` and of the pipeline's `view_type` and `transfer_type`.

        Returns:
            `TalkingFaceOutput` with the driving video's audio, if it has any. Its motion can be saved for `render`.

        Raises:
            ValueError: If an argument cannot be used; the message names it.
        """
        check_flag("return_dict", return_dict)
        prepared = self._prepare_animate(image, driving_video, options, output_type, keep_audio=True)
        return self._render_motion(prepared, output_type, return_dict)

    @torch.no_grad()
    def animate_to_file(
        self,
        path: str | os.PathLike,
        image: ImageInput | Subject | None = None,
        driving_video: str | os.PathLike | Sequence | None = None,
        **options: Any,
    ) -> TalkingFaceOutput:
        """Write what `animate` makes frame by frame, with the video's audio: memory grows by the motion alone.

        Args:
            path (`str` or `os.PathLike`): The `.mp4` file; appears whole or not at all.
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `Subject`): One portrait.
            driving_video (`str`, `os.PathLike` or a sequence of images): A video file, or frames of one size.
            **options: As for `animate`, and the fields of `VideoSettings`.

        Returns:
            `TalkingFaceOutput` without frames and audio: its motion can be saved.

        Raises:
            ValueError: If an argument cannot be used; the message names it.
        """
        inputs.check_output(path)
        settings = pop_options(options, VideoSettings)
        return self._write_motion(path, self._prepare_animate(image, driving_video, options), settings)

    def _prepare_animate(
        self, image: Any, video: Any, options: dict[str, Any], output_type: str = "np", keep_audio: bool = False
    ) -> PreparedMotion:
        """Check the arguments of `animate`, and compute the motion; `keep_audio` reads the audio before."""
        kinds = (DrivingOptions, self.view_type, self.transfer_type)
        image, driving, view, transfer = self._read_options(image, options, *kinds)
        self.check_inputs(image, None, None, view, driving.fps, output_type)
        transfer.check()
        inputs.check_face(driving.driving_face, driving.driving_box, "driving_")
        image, source = self._one_subject(image), DrivingVideo(video, driving.fps)
        audio = list(source.mono_blocks()) if keep_audio else source.mono_blocks()
        subject = self.prepare_subject(image, view)
        motion, view = self.follow_video(
            subject,
            source.frames,
            relative=driving.relative,
            face=driving.driving_face,
            box=driving.driving_box,
            num_frames=source.num_frames,
            fps=source.fps,
            transfer=transfer,
            view=view,
        )
        return PreparedMotion(subject, motion, source.fps, view, source.fps, audio)

    @torch.no_grad()
    def render(
        self,
        image: ImageInput | Subject | None = None,
        motion: Tensor | str | os.PathLike | None = None,
        *,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> TalkingFaceOutput | tuple:
        """Render a given motion: edited, saved by `output.save("motion.safetensors")`, or of another person.

        Args:
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `Subject`): One portrait.
            motion (`torch.Tensor` of shape `([1,] frames, channels)`, `str` or `os.PathLike`): Absolute motion.
            output_type (`str`, defaults to `"pil"`): As for `__call__`.
            return_dict (`bool`, defaults to `True`): As for `__call__`.
            **options: Fields of `MotionOptions` and of the pipeline's `view_type` and `transfer_type`.

        Returns:
            `TalkingFaceOutput`.

        Raises:
            ValueError: If an argument cannot be used; the message names it.
        """
        check_flag("return_dict", return_dict)
        return self._render_motion(self._prepare_render(image, motion, options, output_type), output_type, return_dict)

    @torch.no_grad()
    def render_to_file(
        self,
        path: str | os.PathLike,
        image: ImageInput | Subject | None = None,
        motion: Tensor | str | os.PathLike | None = None,
        **options: Any,
    ) -> TalkingFaceOutput:
        """Write what `render` makes frame by frame: memory grows by the motion alone.

        Args:
            path (`str` or `os.PathLike`): The `.mp4` file; appears whole or not at all.
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `Subject`): One portrait.
            motion (`torch.Tensor` of shape `([1,] frames, channels)`, `str` or `os.PathLike`): Absolute motion.
            **options: As for `render`, and the fields of `VideoSettings`.

        Returns:
            `TalkingFaceOutput` without frames and audio: its motion can be saved.

        Raises:
            ValueError: If an argument cannot be used; the message names it.
        """
        inputs.check_output(path)
        settings = pop_options(options, VideoSettings)
        return self._write_motion(path, self._prepare_render(image, motion, options), settings)

    def _prepare_render(
        self, image: Any, motion: Any, options: dict[str, Any], output_type: str = "np"
    ) -> PreparedMotion:
        """Check the arguments of `render`, and adapt the motion."""
        kinds = (MotionOptions, self.view_type, self.transfer_type)
        image, given, view, transfer = self._read_options(image, options, *kinds)
        self.check_inputs(image, given.audio, given.sampling_rate, view, given.fps, output_type)
        transfer.check()
        motion, motion_fps = inputs.read_motion(motion, given.motion_fps, self.motion_spec, self._motion_fps)
        audio = () if given.audio is None else self.open_audio(given.audio, given.sampling_rate).mono_blocks()
        subject = self.prepare_subject(self._one_subject(image), view)
        motion = self.adapt_motion(subject, motion.to(subject.motion), given.relative, motion_fps, transfer)
        return PreparedMotion(subject, motion, motion_fps, view, parse_fps(given.fps), audio)

    @classmethod
    def control_names(cls) -> list[str]:
        """Names of the controls of the motion that a call takes."""
        return [] if cls.controls_type is None else [field.name for field in dataclasses.fields(cls.controls_type)]

    @property
    def emotions(self) -> tuple[str, ...]:
        """Names that the control `emotion` knows; none where there is no such control."""
        return self.create_motion_generator().emotions

    # --- inputs -------------------------------------------------------------------------------------------------------

    def _read_options(self, image: Any, options: dict[str, Any], *kinds: type | None) -> tuple[Any, ...]:
        """The subject, also given by its own name, and the options of a call as dataclasses of these kinds."""
        name = self.subject_name
        named = options.pop(name, None) if name != "image" else None
        if (image is None) == (named is None):
            raise ValueError(f"`{name}` must be given, once: as the first argument or by its name.")
        image = named if image is None else image
        return image, *read_options(options, [kind for kind in kinds if kind is not None], type(self).__name__)

    def _one_subject(self, image: Any) -> Any:
        images, many = inputs.list_images(image)
        if many and len(images) != 1:
            raise ValueError(f"`{self.subject_name}` must be one portrait here, got {len(images)}.")
        return images[0]

    def check_subject(self, image: Any, view: Any, fps: Any) -> None:
        """Raise `ValueError` for a value that is no image, or a subject prepared for another output size."""
        inputs.check_image(image, self.subject_type, view.output_size)

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
        """Check types and options of images, audios and outputs; the content is checked when it is read.

        Raises:
            ValueError: If an argument cannot be used; the message names it.
        """
        if fps is not None:  # else a driving video's own
            parse_fps(fps)
        view = self.view_type() if view is None else view
        view.check(self.output_sizes)
        images = inputs.list_images(image)[0]
        audios = [None] if audio is None and not speech else inputs.list_audios(audio)[0]
        if not images:
            raise ValueError(f"`{self.subject_name}` must be at least one {self.subject_name}, got an empty list.")
        for one in images:
            self.check_subject(one, view, fps)
        if audio is not None or speech:
            inputs.check_audios(audios)
        inputs.check_batch(images, audios, self.subject_name)
        if sampling_rate is not None:
            check_number("sampling_rate", sampling_rate, MIN_RATE, MAX_RATE, whole=True)
        inputs.check_choice("output_type", output_type, OUTPUT_TYPES)

    def find_face(self, image: Tensor, view: FaceView) -> dict[str, Any]:
        """Return where to crop an image `(3, height, width)`: the given box, or one of the detected faces."""
        if view.box is not None:
            return {"box": view.box}
        faces = self.face_analyzer.detect(image)
        chosen = self.image_processor.choose(faces, tuple(image.shape[-2:]), view.face)
        return {"face": chosen, "others": [face for face in faces if face is not chosen]}

    def prepare_audio(self, audio: Any, sampling_rate: int | None = None) -> tuple[Tensor, np.ndarray, int]:
        """Read an audio of any kind.

        Args:
            audio (`str`, `os.PathLike`, `np.ndarray`, `torch.Tensor` or `tuple`): See `VasaAudioProcessor.load`.
            sampling_rate (`int`, *optional*): Rate of bare samples in Hz, defaults to the processor's.

        Returns:
            `tuple`: samples for the encoder `(1, n)`; the original audio, mono `(samples,)`; and its rate.
        """
        original, rate = load_audio(audio, inputs.choose_rate(audio, sampling_rate, self.audio_processor.sampling_rate))
        samples = self.audio_processor.load((original, rate))
        return torch.from_numpy(samples)[None], mix_to_mono(original), rate

    def open_audio(self, audio: Any, sampling_rate: int | None = None) -> AudioSource:
        """Check an audio to its end without keeping it in memory: `prepare_audio` for long files."""
        if isinstance(audio, AudioSource):
            return audio
        default = self.audio_processor.sampling_rate if "audio_processor" in self.components else 16_000
        return AudioSource(audio, inputs.choose_rate(audio, sampling_rate, default))

    @torch.no_grad()
    def encode_video(
        self,
        frames: Iterable[ImageInput],
        face: int | None = None,
        box: Sequence[float] | None = None,
        num_frames: int | None = None,
        follow: bool = True,
    ) -> Tensor:
        """Motion `(1, frames, channels)` of the face in a video, float32, absolute.

        Args:
            frames (`Iterable`): Images of one size, as `FaceImageProcessor.load` takes them.
            face (`int`, *optional*): Which face of the first frame with faces, 0 is the largest.
            box (`Sequence[float]`, *optional*): Its box in the first frame, instead of detecting it.
            num_frames (`int`, *optional*): Their number for the progress bar, if it is known.
            follow (`bool`, defaults to `True`): Whether the square goes with the face; see `DrivingFace`.

        Raises:
            ValueError: If a frame cannot be read, or none shows a face.
        """
        with self._driving_face(frames, face, box, num_frames, follow) as driving:
            return self.measure_driving(driving)

    @contextmanager
    def _driving_face(
        self,
        frames: Iterable[ImageInput],
        face: int | None = None,
        box: Sequence[float] | None = None,
        num_frames: int | None = None,
        follow: bool = True,
    ) -> Iterator[DrivingFace]:
        """The face of a driving video, with a progress bar while it is read."""
        with self.progress_bar(total=num_frames or 0) as progress_bar:
            progress_bar.set_description("driving")
            parts = (self.face_analyzer, self.image_processor)
            yield DrivingFace(frames, *parts, face, box, follow, progress_bar.update)

    @torch.no_grad()
    def follow_video(
        self,
        subject: Subject,
        frames: Iterable[ImageInput],
        *,
        relative: bool = True,
        face: int | None = None,
        box: Sequence[float] | None = None,
        num_frames: int | None = None,
        fps: Fraction = Fraction(FPS),
        transfer: Any = None,
        view: Any = None,
    ) -> tuple[Tensor, Any]:
        """Motion `(1, frames, channels)` of a subject that does what the face of a video does, and how to show it.

        Args:
            subject (`Subject`): A prepared subject.
            frames (`Iterable`): See `encode_video`, also for `face`, `box` and `num_frames`.
            relative (`bool`, defaults to `True`): See `animate`.
            face (`int`, *optional*): Which face.
            box (`Sequence[float]`, *optional*): Its box.
            num_frames (`int`, *optional*): Number of frames.
            fps (`Fraction`, defaults to 25): Frames per second.
            transfer (`Any`, *optional*): A `transfer_type`; its defaults if `None`.
            view (`Any`, *optional*): A `view_type`; its defaults if `None`.

        Returns:
            `tuple`: the motion, and the view to render it with.

        Raises:
            ValueError: As for `encode_video`.
        """
        with self._driving_face(frames, face, box, num_frames) as driving:
            motion = self.encode_driving(driving)
        neutral = driving.neutral if relative else None
        transfer, view = transfer or self.transfer_type(), view or self.view_type()
        return self.transfer_motion(subject, motion, neutral, fps, transfer, view)

    # --- sampling and outputs -----------------------------------------------------------------------------------------

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the last call, of all its windows."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the running call stops making motion; a callback sets `pipe._interrupt`."""
        return self._interrupt

    def decode_ahead(self, decode: Callable[[Tensor], Tensor], motion: Tensor) -> Iterator[Tensor]:
        """Decode a motion `(frames, channels)` a few frames at a time; on a CPU, in several threads."""
        on_cpu = self._execution_device.type == "cpu"
        workers = min(torch.get_num_threads(), MAX_DECODE_WORKERS) if on_cpu else 1
        size = self.decode_batch_size or (4 if on_cpu else 16)
        yield from map_ahead(decode, motion.split(min(size, math.ceil(len(motion) / workers))), workers)

    def decoder_precision(self, model: torch.nn.Module) -> torch.autocast:
        """Return the autocast mode for a decoder, see `cpu_bfloat16`."""
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
        """Render consecutive motions `(1, frames, channels)` to one video of `output_type`."""
        parts, start = [], 0
        for motion in motions:
            for part in self.render_frames(subject, motion[0], view, start, fps):
                parts.append(self.postprocess(part, output_type))
                progress_bar.update(len(part))
            start += motion.shape[1]
        return join_images(parts, output_type)

    def _render_motion(
        self, prepared: PreparedMotion, output_type: str = "pil", return_dict: bool = True
    ) -> TalkingFaceOutput | tuple:
        """Render one motion: the last step of `animate` and `render`."""
        (motion,) = inputs.check_finite([prepared.motion])
        frames, fps = motion[0], prepared.fps
        if output_type != "latent":
            wanted = resample_motion(motion, prepared.motion_fps, fps)
            with self._frames_progress(wanted.shape[1]) as progress_bar:
                frames = self._render_video(prepared.subject, [wanted], prepared.view, fps, output_type, progress_bar)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (frames,)
        return self._output(frames, fps, motion, prepared.motion_fps, *inputs.join_blocks(prepared.audio))

    def _write_motion(
        self, path: str | os.PathLike, prepared: PreparedMotion, settings: VideoSettings
    ) -> TalkingFaceOutput:
        """Write one motion frame by frame: the last step of `animate_to_file` and `render_to_file`."""
        (motion,) = inputs.check_finite([prepared.motion])
        wanted, fps = resample_motion(motion, prepared.motion_fps, prepared.fps)[0], prepared.fps
        parts = self.render_frames(prepared.subject, wanted, prepared.view, 0, fps)
        images = (self.postprocess(part, "np") for part in parts)
        write_video(path, images, len(wanted), fps, prepared.audio, settings, self.model_name)
        self.maybe_free_model_hooks()
        return self._output([], fps, motion, prepared.motion_fps)

    @property
    def _motion_fps(self) -> Fraction:
        """Frames per second of generated motion."""
        return Fraction(getattr(getattr(self, "audio_processor", None), "fps", FPS))

    @staticmethod
    def postprocess(frames: Tensor, output_type: str) -> Any:
        """Convert frames `(n, 3, height, width)` in [0, 1] to `output_type`."""
        return to_images(frames, output_type)

    def _output(
        self, frames: Any, fps: Fraction, motion: Tensor, motion_fps: Fraction, audio: Any = None, rate: Any = None
    ) -> TalkingFaceOutput:
        return TalkingFaceOutput(frames, audio, rate, fps, motion, self.motion_spec, motion_fps, self.model_name)


def _cpu_computes_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; others emulate it slowly."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, test, bool)() for test in tests)

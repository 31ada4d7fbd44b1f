"""The talking-face pipeline of VASA-1 (paper §3): one portrait and one voice in, one video out.

    image --FaceAnalyzer, crop--> portrait --encode_appearance--> V_app, z_id, own motion
    audio --Wav2Vec2--> A, one vector a frame --windows of W frames, Eq. 2--> X = [z_pose, z_dyn] at 25 frames a second
                                   X relative --onto the portrait's own pose--> X --decoder, frame by frame--> pictures

`__call__` is that story for whole files. `stream` tells it while the audio still comes in; both make the same windows
with the same random numbers, so they give the same frames.

# Not in the paper: the generated head pose is relative to the portrait's own pose; other frame rates than 25 by linear
interpolation of the motion; `head_motion`; pasting the face back into the picture. Other drivers: `driving.py`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import Wav2Vec2Model

from vasa_hf.controls import ControlTrack, parse_controls, place_motion, window_controls
from vasa_hf.guidance import check_guidance_scale, guided_prediction
from vasa_hf.media.ffmpeg import parse_fps
from vasa_hf.models.face_analyzer import FaceAnalyzer
from vasa_hf.models.face_autoencoder_vasa1 import Vasa1FaceAutoencoder
from vasa_hf.models.motion_transformer_vasa1 import Vasa1MotionTransformer
from vasa_hf.motion import MotionSpec
from vasa_hf.outputs import TalkingFaceOutput
from vasa_hf.pipelines.driving import FaceDrivingMixin
from vasa_hf.pipelines.inputs import (
    AudioInput,
    ImageInput,
    Performer,
    Portrait,
    audio_list,
    check_batch,
    check_components,
    check_generator,
    check_number,
    image_list,
    is_whole_audio,
    listen,
    only_image,
)
from vasa_hf.pipelines.loading import EmbeddedWeightsMixin
from vasa_hf.pipelines.speaking import SpeakingMixin
from vasa_hf.processors.audio import VasaAudioProcessor
from vasa_hf.processors.image import FaceImageProcessor
from vasa_hf.streaming import audio_windows
from vasa_hf.windowing import MotionWindows, entry_of_windows, hold_last

# VASA-1 §4, "Implementation details": CFG scales, forward-facing gaze, average distance, empty emotion offset.
DEFAULT_GUIDANCE_SCALE = {"audio": 0.5, "gaze": 1.0}
MAX_HEAD_MOTION = 3.0


class VasaTalkingFacePipeline(EmbeddedWeightsMixin, FaceDrivingMixin, SpeakingMixin, DiffusionPipeline):
    """Talking face from one portrait and one voice, after VASA-1.

    Args:
        face_analyzer (`FaceAnalyzer`): Finds faces.
        face_autoencoder (`Vasa1FaceAutoencoder`): Face latent space (paper §3.1).
        audio_encoder (`transformers.Wav2Vec2Model`): Audio features.
        audio_processor (`VasaAudioProcessor`): Brings audio to the encoder's rate.
        image_processor (`FaceImageProcessor`): Loads, crops and pastes back pictures.
        motion_transformer (`Vasa1MotionTransformer`): Diffusion transformer over motion (paper §3.2).
        scheduler (`DDIMScheduler` or another of diffusers' with `prediction_type="sample"`): Sampler.

    Attributes:
        decode_batch_size (`int`, *optional*): Frames decoded at a time; 4 on a CPU, 16 elsewhere if `None`.
        cpu_bfloat16 (`bool`, defaults to `True`):
            Decode float32 weights under bfloat16 autocast on CPUs that compute it natively.

    Example:
        ```python
        pipe = VasaTalkingFacePipeline.from_pretrained("vasa-small")
        out = pipe("portrait.jpg", "speech.wav", generator=torch.Generator().manual_seed(1))
        out.save("out.mp4")
        ```
    """

    model_cpu_offload_seq = "face_analyzer->audio_encoder->motion_transformer->face_autoencoder"
    _callback_tensor_inputs = ["latents", "audio_features"]

    def __init__(
        self,
        face_analyzer: FaceAnalyzer,
        face_autoencoder: Vasa1FaceAutoencoder,
        audio_encoder: Wav2Vec2Model,
        audio_processor: VasaAudioProcessor,
        image_processor: FaceImageProcessor,
        motion_transformer: Vasa1MotionTransformer,
        scheduler: KarrasDiffusionSchedulers,
    ):
        super().__init__()
        self.register_modules(
            face_analyzer=face_analyzer,
            face_autoencoder=face_autoencoder,
            audio_encoder=audio_encoder,
            audio_processor=audio_processor,
            image_processor=image_processor,
            motion_transformer=motion_transformer,
            scheduler=scheduler,
        )
        check_components(face_autoencoder, audio_encoder, audio_processor, motion_transformer, scheduler)

    # --- steps --------------------------------------------------------------------------------------------------------

    def check_sampling(
        self,
        guidance_scale: Any = None,
        num_inference_steps: Any = 10,
        head_motion: Any = 1.0,
        first_window: Any = None,
        generator: Any = None,
        batch_size: int = 1,
    ) -> None:
        """Raise `ValueError` for settings of the motion's generation that are wrong."""
        if not isinstance(guidance_scale, Mapping | None):
            raise ValueError(
                f"`guidance_scale` must be a dict with a scale for each condition, got {guidance_scale!r}."
            )
        check_guidance_scale(guidance_scale or {})
        most_steps = self.scheduler.config.num_train_timesteps
        check_number("num_inference_steps", num_inference_steps, 1, most_steps, whole=True)
        check_number("head_motion", head_motion, 0.0, MAX_HEAD_MOTION)
        if first_window is not None:
            config = self.motion_transformer.config
            check_number("first_window", first_window, max(config.context, 1), config.window, whole=True)
        check_generator(generator, batch_size)

    @property
    def output_sizes(self) -> tuple[int, ...]:
        """Sides of the square that the decoder can make."""
        size = self.face_autoencoder.config.image_size
        return (size, 2 * size) if self.face_autoencoder.config.source_passthrough else (size,)

    @property
    def motion_spec(self) -> MotionSpec:
        """Meaning of the channels of `motion`: head pose and the dynamics of the face autoencoder."""
        return self.motion_transformer.motion_spec

    @torch.no_grad()
    def prepare_portrait(
        self,
        image: ImageInput | Performer,
        face: int | None = None,
        box: Sequence[float] | None = None,
        output_size: int | None = None,
    ) -> Performer:
        """Find the face, crop it and encode its appearance.

        Args:
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `Performer`): The portrait;
                a `Performer`, such as a `Portrait` that is prepared already, stays as it is.
            face (`int`, *optional*): Which face, 0 is the largest.
            box (`Sequence[float]`, *optional*): x0, y0, x1, y1 of the face in pixels, instead of looking for it.
            output_size (`int`, *optional*): Side of the decoded square; one of `output_sizes`.

        Raises:
            ValueError: If the picture cannot be read or shows no face that can be animated.
        """
        if isinstance(image, Performer):
            return image
        model = self.face_autoencoder
        picture = self.image_processor.load(image)
        around = self._find_face(picture, face, box)
        size = output_size or model.config.image_size
        crop = self.image_processor.crop(picture, **around, size=size, original=image)
        appearance = model.encode_appearance(crop.image[None].to(self._execution_device, model.dtype))
        return Portrait(appearance, picture, crop)

    @torch.no_grad()
    def generate_motion(
        self,
        audio: Iterable[Tensor],
        controls: Mapping[str, ControlTrack | None],
        guidance_scale: Mapping[str, float] | None = None,
        num_inference_steps: int = 10,
        generator: torch.Generator | list[torch.Generator] | None = None,
        first_window: int | None = None,
        num_frames: Sequence[int] | None = None,
        on_step: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """Generate motion window by window, each as soon as its audio is there.

        Source: VASA-1 §3.2 and §3.3.

        Args:
            audio (`Iterable[torch.Tensor]`): Pieces `(batch, n)` of mono audio at the encoder's rate.
            controls (`Mapping`): As `parse_controls` gives it.
            guidance_scale (`Mapping[str, float]`, *optional*): Changes of `DEFAULT_GUIDANCE_SCALE`.
            num_inference_steps (`int`): Denoising steps.
            generator (`torch.Generator` or a list of one for each of the batch, *optional*): Random numbers.
            first_window (`int`, *optional*): Frames of the first window, fewer for an early start.
            num_frames (`Sequence[int]`, *optional*): Frames of each of the batch, where the lengths differ.
            on_step (`Callable`, *optional*):
                `on_step(step, timestep, latents, audio_features) -> latents`; steps count on through the windows.

        Yields:
            `torch.Tensor` of shape `(batch, frames, channels)`, float32: motion relative to a portrait's own pose.
        """
        config, processor = self.motion_transformer.config, self.audio_processor
        windows = MotionWindows(config.window, config.context, first_window)
        before, after, unit = processor.context_frames, processor.lookahead_frames, processor.samples_per_frame
        steps = 0
        for window, samples in audio_windows(audio, windows, unit, before, after):
            size = samples.shape[1] // unit - before - after
            features = processor.window_features(self.audio_encoder, samples, before, size)
            ends = [window.stop] * len(samples) if num_frames is None else [min(n, window.stop) for n in num_frames]
            sample_window = partial(
                self.sample_window,
                lengths=[end - window.start for end in ends],
                controls=window_controls(controls, window.start, ends, processor.fps),
                guidance_scale={**DEFAULT_GUIDANCE_SCALE, **(guidance_scale or {})},
                num_inference_steps=num_inference_steps,
                generator=generator,
                on_step=None if on_step is None else lambda step, *args, first=steps: on_step(first + step, *args),
            )
            motion = windows.generate(features, sample_window)[:, : window.stop - window.start]
            steps += len(self.scheduler.timesteps)
            yield self.motion_transformer.denormalize(motion.float())

    @torch.no_grad()
    def sample_window(
        self,
        audio: Tensor,  # [B, W, A]
        frame_mask: Tensor,  # [B, W]
        previous_motion: Tensor | None,  # [B, K, M]
        previous_audio: Tensor | None,  # [B, K, A]
        *,
        lengths: Sequence[int],
        controls: Mapping[str, Tensor | None],
        guidance_scale: Mapping[str, float],
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        on_step: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Denoise the motion of one window with any scheduler; see `MotionWindows.generate`.

        Source: VASA-1 Eq. 2.
        """
        model, device = self.motion_transformer, self._execution_device
        prepared = {"audio": audio, "previous_motion": previous_motion, "previous_audio": previous_audio, **controls}
        prepared = {name: None if value is None else value.to(device, model.dtype) for name, value in prepared.items()}
        limits = torch.tensor(lengths, device=device)[:, None]
        frame_mask = frame_mask.to(device) & (torch.arange(audio.shape[1], device=device) < limits)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        known = inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generator} if "generator" in known else {}
        shape = (len(audio), audio.shape[1], model.config.motion_dim)
        # The sampler's arithmetic stays in float32, whatever the model's.
        latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        latents = latents * self.scheduler.init_noise_sigma
        for step, timestep in enumerate(self.scheduler.timesteps):
            clean = guided_prediction(
                lambda x, **kwargs: model(x, **kwargs).sample,
                self.scheduler.scale_model_input(latents, timestep).to(model.dtype),
                prepared,
                guidance_scale,
                timestep=timestep,
                frame_mask=frame_mask,
            )
            latents = self.scheduler.step(clean.float(), timestep, latents, **extra).prev_sample
            if on_step is not None:
                latents = on_step(step, timestep, latents, audio)
        return latents

    def place_motion(
        self,
        windows: Iterable[Tensor],
        portrait: Performer,
        head_motion: float = 1.0,
        head_distance: ControlTrack | None = None,
    ) -> Iterator[Tensor]:
        """Put generated motion, window by window, onto the portrait's own pose; see `vasa_hf.controls.place_motion`.

        Yields:
            `torch.Tensor` of shape `(1, frames, channels)`: absolute motion.
        """
        start, fps = 0, self.audio_processor.fps
        for relative in windows:
            yield place_motion(relative, portrait.motion, start, fps, head_motion, head_distance)
            start += relative.shape[1]

    @torch.no_grad()
    def decode_frames(
        self,
        portrait: Performer,
        motion: Tensor,  # [T, M]
        paste_back: bool = False,
    ) -> Iterator[Tensor]:
        """Decode absolute motion to pictures, a few frames at a time.

        Args:
            portrait (`Performer`): Who; one that is no `Portrait` draws itself.
            motion (`torch.Tensor` of shape `(frames, channels)`): Pose and dynamics of each frame.
            paste_back (`bool`): Whether to put the face back into the whole picture.

        Yields:
            `torch.Tensor` of shape `(n, 3, height, width)` on the CPU, float32 in [0, 1].
        """
        if not isinstance(portrait, Portrait):
            yield from portrait.draw(motion)
            return
        model, device = self.face_autoencoder, self._execution_device

        @torch.no_grad()
        def decode(part: Tensor) -> Tensor:
            appearance = portrait.appearance.expand(len(part))
            with self.decoder_precision(model):
                frames = model.decode(appearance, part.to(device), output_size=portrait.output_size)
            frames = frames.float().cpu()
            if paste_back:
                frames = self.image_processor.paste_back(portrait.picture, frames, portrait.crop)
            return (frames * 0.5 + 0.5).clamp_(0, 1)

        yield from self.decode_ahead(decode, motion)

    # --- the story ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Performer | list,
        audio: AudioInput | list,
        *,
        sampling_rate: int | None = None,
        gaze: Any = (0.0, 0.0),
        head_distance: Any = 1.0,
        emotion: Any = {},  # noqa: B006 - never written to; says better than None what the default is
        guidance_scale: Mapping[str, float] | None = None,
        num_inference_steps: int = 10,
        head_motion: float = 1.0,
        fps: Fraction | float | str = 25,
        generator: torch.Generator | list[torch.Generator] | None = None,
        face: int | None = None,
        box: Sequence[float] | None = None,
        output_size: int | None = None,
        paste_back: bool = False,
        first_window: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> TalkingFaceOutput | tuple:
        """Make a talking video, or several.

        Args:
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `Performer` or list of them):
                Portrait: a file, PIL image, array `(height, width, channels)` or tensor `(channels, height, width)`.
            audio (`str`, `os.PathLike`, `np.ndarray`, `torch.Tensor`, `tuple` or a list of them):
                Voice: a sound or video file, samples in [-1, 1], or (samples, rate). One image goes with many audios
                and the other way round.
            sampling_rate (`int`, *optional*, defaults to the encoder's, 16000): Rate of bare samples in Hz.
            gaze (`tuple[float, float]` or `[(seconds, (yaw, pitch)), ...]`, defaults to the camera):
                Main gaze in radians; yaw > 0 to the picture's left, pitch > 0 down. `None`: the model chooses.
            head_distance (`float` or `[(seconds, distance), ...]`, defaults to 1.0):
                Distance from the camera over the portrait's: the head's size is about its own divided by this. From 0.8
                to 1.25 a condition of the model; beyond, the head is scaled by the rest. `None`: the model chooses.
            emotion (`dict[str, float]` or `[(seconds, weights), ...]`, defaults to none):
                Offsets in [-1, 1], such as `{"happy": 0.6}`. `None`: the model chooses.
            guidance_scale (`dict[str, float]`, *optional*):
                One scale for each condition (Eq. 2): `audio` (0.5), `gaze` (1.0), `head_distance`, `emotion`,
                `previous` (0).
            num_inference_steps (`int`, defaults to 10): Denoising steps of each window.
            head_motion (`float`, defaults to 1.0): Amount of head movement. # Not in the paper.
            fps (`Fraction`, `float` or `str`, defaults to 25): Frames a second of the video, e.g. `"30000/1001"`.
            generator (`torch.Generator` or list, *optional*): Makes the result repeatable; a list has one a video.
            face (`int`, *optional*): Which face of the picture, 0 is the largest.
            box (`Sequence[float]`, *optional*): x0, y0, x1, y1 of the face in pixels, instead of looking for it.
            output_size (`int`, *optional*): Side of the face's square, one of `output_sizes`.
            paste_back (`bool`, defaults to `False`): Give the whole picture, not only the face's square.
            first_window (`int`, *optional*): See `stream`.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"`, or `"latent"` for motion alone.
            return_dict (`bool`, defaults to `True`): Whether to return `TalkingFaceOutput` or `(frames,)`.
            callback_on_step_end (`Callable`, *optional*):
                `callback(pipe, step, timestep, tensors) -> tensors` after each denoising step of each window.
            callback_on_step_end_tensor_inputs (`Sequence[str]`): Which `tensors`: `latents`, `audio_features`.

        Returns:
            `TalkingFaceOutput`. For lists, `frames` and `audio` are lists with an entry for each video. `motion` is at
            25 frames a second; shorter ones of a batch hold their last frame.

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        self.check_inputs(image, audio, sampling_rate, face, output_size, fps, output_type)
        (images, many_images), (audios, many_audios) = image_list(image), audio_list(audio)
        batch_size, single = check_batch(images, audios), not (many_images or many_audios)
        self.check_sampling(guidance_scale, num_inference_steps, head_motion, first_window, generator, batch_size)
        self.check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        controls = parse_controls(gaze, head_distance, emotion, self.motion_transformer.config.emotions)

        # 1. Everything is read, and faces are found, before anything is generated.
        sounds = [self.prepare_audio(one, sampling_rate) for one in audios]
        portraits = [self.prepare_portrait(one, face, box, output_size) for one in images]
        sounds, portraits = (entries * (batch_size // len(entries)) for entries in (sounds, portraits))

        # 2. Motion of all videos together, window by window.
        samples, num_motion_frames = self._join_audio([samples for samples, _, _ in sounds])
        config = self.motion_transformer.config
        num_windows = MotionWindows(config.window, config.context, first_window).count(max(num_motion_frames))
        with self.progress_bar(total=num_windows * num_inference_steps) as progress_bar:
            progress_bar.set_description("motion")
            on_step = self.on_step(progress_bar, callback_on_step_end, callback_on_step_end_tensor_inputs)
            settings = (guidance_scale, num_inference_steps, generator, first_window)
            windows = list(self.generate_motion([samples], controls, *settings, num_motion_frames, on_step))

        # 3. Motion onto each portrait's own pose, then pictures.
        fps, rate = parse_fps(fps), self.audio_processor.sampling_rate
        num_frames = [math.ceil(samples.shape[1] * fps / rate) for samples, _, _ in sounds]
        motions = []
        for index, portrait in enumerate(portraits):
            relative = entry_of_windows(windows, index, num_motion_frames[index])
            motions.append(list(self.place_motion(relative, portrait, head_motion, controls["head_distance"])))
        videos = self.make_videos(portraits, motions, num_frames, fps, paste_back, output_type)

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
            hold_last([torch.cat(pieces, dim=1) for pieces in motions]),
        )

    def stream(
        self,
        image: ImageInput | Performer,
        audio_chunks: Iterable | AudioInput,
        *,
        sampling_rate: int | None = None,
        gaze: Any = (0.0, 0.0),
        head_distance: Any = 1.0,
        emotion: Any = {},  # noqa: B006 - never written to
        guidance_scale: Mapping[str, float] | None = None,
        num_inference_steps: int = 10,
        head_motion: float = 1.0,
        fps: Fraction | float | str = 25,
        generator: torch.Generator | None = None,
        face: int | None = None,
        box: Sequence[float] | None = None,
        output_size: int | None = None,
        paste_back: bool = False,
        first_window: int | None = None,
        output_type: str = "pil",
    ) -> Iterator[TalkingFaceOutput]:
        """Make frames while the audio comes in, in constant memory; the same frames as `__call__` makes.

        Arguments are checked, and the portrait is encoded, before this returns. They are those of `__call__`, but:

        - `image` is one portrait.
        - `audio_chunks` are pieces of any length: arrays `(samples,)` or `(channels, samples)`, (samples, rate).
          Frames come as soon as a window of audio and the encoder's look-ahead have arrived. Audio as `__call__` takes
          it is one of its own; a file is read bit by bit, however long it is.
        - `first_window` (`int`, *optional*, defaults to the model window) is the length of the first window in frames;
          fewer let the first frames come earlier. # Not in the paper.

        Returns:
            Iterator of `TalkingFaceOutput` with a few frames each, the sound that belongs to them (mono, at the
            encoder's rate), and their motion (at `fps`).

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        whole = is_whole_audio(audio_chunks)
        if not whole and (isinstance(audio_chunks, bytes) or not isinstance(audio_chunks, Iterable)):
            raise ValueError(f"`audio_chunks` must be an iterable of samples, got {type(audio_chunks).__name__}.")
        self.check_inputs(image, audio_chunks if whole else None, sampling_rate, face, output_size, fps, output_type)
        self.check_sampling(guidance_scale, num_inference_steps, head_motion, first_window, generator)
        controls = parse_controls(gaze, head_distance, emotion, self.motion_transformer.config.emotions)
        if whole:  # read through here, so that a bad one is told before the portrait is encoded
            sound = self.open_audio(audio_chunks, sampling_rate)
            audio_chunks = ((block.clip(-1.0, 1.0).mean(0), sound.sampling_rate) for block in sound)
        portrait = self.prepare_portrait(only_image(image), face, box, output_size)
        pieces = listen(audio_chunks, self.audio_processor, sampling_rate)
        settings = (controls, guidance_scale, num_inference_steps, generator, first_window)

        def move(heard: Iterator[Tensor]) -> Iterator[Tensor]:
            relative = self.generate_motion(heard, *settings)
            return self.place_motion(relative, portrait, head_motion, controls["head_distance"])

        return self.speak(portrait, pieces, move, parse_fps(fps), paste_back, output_type)

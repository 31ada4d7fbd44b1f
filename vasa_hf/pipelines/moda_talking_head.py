"""The talking-head pipeline of MoDA: one portrait and one voice in, one video out, through LivePortrait's keypoints.

    image --FaceAnalyzer, crop--> portrait --F, M--> appearance volume, keypoints
    audio --encoder--> A --motion generator, windows of 80 frames--> expression, pose --onto the portrait--> motion
                                          motion --keypoints, stitching--> W, G, frame by frame --> pictures

The motion generator may be MoDA's or JoyVASA's: each has a module that knows its windows, sampling and driving
(`motion_moda.py`, `motion_joyvasa.py`). Without one the pipeline is LivePortrait: it animates by videos and by hand
(`keypoint_driving.py`).

# Not in the paper: `head_motion`, edits of the expression, pasting the face back, other frame rates than 25.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from types import ModuleType
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor
from transformers import PreTrainedModel

from vasa_hf.controls import ControlTrack, place_motion
from vasa_hf.geometry.keypoints import KeypointMotion
from vasa_hf.guidance import check_guidance_scale
from vasa_hf.media.ffmpeg import parse_fps
from vasa_hf.models.face_analyzer import FaceAnalyzer
from vasa_hf.models.motion_denoiser_joyvasa import JoyVasaMotionDenoiser
from vasa_hf.models.motion_transformer_moda import ModaMotionTransformer
from vasa_hf.models.renderer_liveportrait import LivePortraitRenderer
from vasa_hf.motion import MotionSpec, to_relative
from vasa_hf.outputs import TalkingFaceOutput
from vasa_hf.pipelines import motion_joyvasa, motion_moda
from vasa_hf.pipelines.expression_edits import parse_expression
from vasa_hf.pipelines.inputs import (
    AudioInput,
    ImageInput,
    Performer,
    audio_list,
    check_batch,
    check_generator,
    check_number,
    image_list,
    is_whole_audio,
    listen,
    only_image,
)
from vasa_hf.pipelines.keypoint_driving import (
    KEYPOINT_SPEC,
    Drawing,
    KeypointDrivingMixin,
    KeypointPortrait,
    check_drawing,
    edited,
    motion_of,
)
from vasa_hf.pipelines.loading import EmbeddedWeightsMixin
from vasa_hf.pipelines.speaking import SpeakingMixin
from vasa_hf.processors.audio import VasaAudioProcessor
from vasa_hf.processors.image import FaceImageProcessor
from vasa_hf.windowing import entry_of_windows, hold_last

MAX_HEAD_MOTION = 3.0
# What turns sound into motion, by the class of the motion generator.
GENERATORS: dict[type, ModuleType] = {ModaMotionTransformer: motion_moda, JoyVasaMotionDenoiser: motion_joyvasa}


class ModaTalkingHeadPipeline(EmbeddedWeightsMixin, KeypointDrivingMixin, SpeakingMixin, DiffusionPipeline):
    """Talking head from one portrait and one voice, after MoDA; and LivePortrait.

    Args:
        face_analyzer (`FaceAnalyzer`): Finds faces.
        image_processor (`FaceImageProcessor`): Loads, crops and pastes back pictures.
        renderer (`LivePortraitRenderer`): Appearance, keypoints, warping, pictures.
        motion_generator (`ModaMotionTransformer` or `JoyVasaMotionDenoiser`, *optional*): Motion from speech.
        audio_encoder (`transformers.PreTrainedModel`, *optional*): Audio features.
        audio_processor (`VasaAudioProcessor`, *optional*): Brings audio to the encoder's rate.
        scheduler (`FlowMatchEulerDiscreteScheduler` or another that fits the generator, *optional*): Sampler.

    Without the last four, portraits can be animated, but not talk. With a renderer of official size,
    `pipe.renderer.optimize_for_inference()` makes it faster on a CPU; it slows small ones down.

    Example:
        ```python
        pipe = ModaTalkingHeadPipeline.from_pretrained("moda-small")
        out = pipe("portrait.jpg", "speech.wav", emotion="happiness", generator=torch.Generator().manual_seed(1))
        out.save("out.mp4")
        pipe.animate("portrait.jpg", "driving.mp4", region="lips").save("lips.mp4")
        ```
    """

    model_cpu_offload_seq = "face_analyzer->audio_encoder->motion_generator->renderer"
    _optional_components = ["motion_generator", "audio_encoder", "audio_processor", "scheduler"]
    _callback_tensor_inputs = ["latents", "audio_features"]

    def __init__(
        self,
        face_analyzer: FaceAnalyzer,
        image_processor: FaceImageProcessor,
        renderer: LivePortraitRenderer,
        motion_generator: ModaMotionTransformer | JoyVasaMotionDenoiser | None = None,
        audio_encoder: PreTrainedModel | None = None,
        audio_processor: VasaAudioProcessor | None = None,
        scheduler: FlowMatchEulerDiscreteScheduler | None = None,
    ):
        super().__init__()
        self.register_modules(
            face_analyzer=face_analyzer,
            image_processor=image_processor,
            renderer=renderer,
            motion_generator=motion_generator,
            audio_encoder=audio_encoder,
            audio_processor=audio_processor,
            scheduler=scheduler,
        )
        check_components(renderer, motion_generator, audio_encoder, audio_processor, scheduler)

    # --- steps --------------------------------------------------------------------------------------------------------

    @property
    def motion_spec(self) -> MotionSpec:
        """Meaning of the channels of `motion`: head pose, and the shifts of 21 keypoints."""
        return KEYPOINT_SPEC

    @property
    def output_sizes(self) -> tuple[int, ...]:
        """Sides of the square that the renderer can make."""
        return (self.renderer.output_size,)

    @property
    def emotions(self) -> tuple[str, ...]:
        """Names that `emotion` may be; none if the motion generator knows none."""
        return tuple(getattr(self._generating(), "EMOTIONS", ()))

    def check_speech(self) -> None:
        """Raise `ValueError` if this is a renderer alone."""
        if self.motion_generator is None or self.audio_encoder is None:
            raise ValueError(
                "`audio` needs a pipeline with `motion_generator`, `audio_encoder`, `audio_processor` and `scheduler`; "
                "this one has a renderer alone, which `animate`, `render` and `retarget` use."
            )

    def _generating(self) -> ModuleType:
        """The module that belongs to the motion generator."""
        self.check_speech()
        return GENERATORS[type(self.motion_generator)]

    def check_sampling(
        self,
        emotion: Any = None,
        guidance_scale: Any = None,
        num_inference_steps: Any = None,
        head_motion: Any = 1.0,
        first_window: Any = None,
        generator: Any = None,
        batch_size: int = 1,
    ) -> None:
        """Raise `ValueError` for settings of the motion's generation that are wrong."""
        generating, config = self._generating(), self.motion_generator.config
        generating.parse_emotion(emotion, self.motion_generator)
        if not isinstance(guidance_scale, Mapping | None):
            raise ValueError(
                f"`guidance_scale` must be a dict with a scale for each condition, got {guidance_scale!r}."
            )
        for name in guidance_scale or {}:
            if not set(str(name).split("+")) <= set(generating.CONDITIONS):
                raise ValueError(f"`guidance_scale` knows the names {list(generating.CONDITIONS)}, got {name!r}.")
        check_guidance_scale(guidance_scale or {})
        if num_inference_steps is not None:
            most_steps = self.scheduler.config.num_train_timesteps
            check_number("num_inference_steps", num_inference_steps, 1, most_steps, whole=True)
        check_number("head_motion", head_motion, 0.0, MAX_HEAD_MOTION)
        if first_window is not None:
            check_number("first_window", first_window, generating.least_window(config), config.window, whole=True)
        check_generator(generator, batch_size)

    @torch.no_grad()
    def prepare_portrait(
        self,
        image: ImageInput | Performer,
        face: int | None = None,
        box: Sequence[float] | None = None,
        output_size: int | None = None,
    ) -> KeypointPortrait:
        """Find the face, crop it, and encode its appearance and keypoints.

        Args:
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `KeypointPortrait`): The
                portrait; one that is prepared already stays as it is.
            face (`int`, *optional*): Which face, 0 is the largest.
            box (`Sequence[float]`, *optional*): x0, y0, x1, y1 of the face in pixels, instead of looking for it.
            output_size (`int`, *optional*): Side of the square that comes out; one of `output_sizes`.

        Raises:
            ValueError: If the picture cannot be read or shows no face that can be animated.
        """
        if isinstance(image, KeypointPortrait):
            return image
        if isinstance(image, Performer):
            raise ValueError(f"`image` must be a picture or a KeypointPortrait, got {type(image).__name__}.")
        size = output_size or self.renderer.output_size
        picture = self.image_processor.load(image)
        around = self._find_face(picture, face, box)
        crop = self.image_processor.crop(picture, **around, size=size, original=image)
        small = self._to_renderer(crop.image)
        keypoints = self.renderer.extract_motion(small).to(torch.float32)
        return KeypointPortrait(self.renderer.encode_appearance(small), keypoints, picture, crop, size)

    @torch.no_grad()
    def generate_motion(
        self,
        audio: Iterable[Tensor],
        portraits: Sequence[KeypointPortrait],
        emotion: Any = None,
        guidance_scale: Mapping[str, float] | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        first_window: int | None = None,
        num_frames: Sequence[int] | None = None,
        on_step: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """Generate motion window by window, each as soon as its audio is there.

        Args:
            audio (`Iterable[torch.Tensor]`): Pieces `(batch, n)` of mono audio at the encoder's rate.
            portraits (`Sequence[KeypointPortrait]`): Of each of the batch.
            emotion (`str`, keyframes or `None`): See `__call__`.
            guidance_scale (`Mapping[str, float]`, *optional*): Changes of the generator's own.
            num_inference_steps (`int`, *optional*): Denoising steps; the generator's own by default.
            generator (`torch.Generator` or a list of one for each of the batch, *optional*): Random numbers.
            first_window (`int`, *optional*): Frames of the first window, fewer for an early start.
            num_frames (`Sequence[int]`, *optional*): Frames of each of the batch, where the lengths differ.
            on_step (`Callable`, *optional*):
                `on_step(step, timestep, latents, audio_features) -> latents`; steps count on through the windows.

        Yields:
            `torch.Tensor` of shape `(batch, frames, 70)`, float32, for `place_motion`; windows may overlap.
        """
        generating = self._generating()
        yield from generating.generate_motion(
            self.motion_generator,
            self.scheduler,
            self.audio_processor,
            self.audio_encoder,
            audio,
            portraits=KeypointMotion.cat([portrait.keypoints for portrait in portraits]),
            emotion=emotion,
            guidance_scale={**generating.DEFAULT_GUIDANCE_SCALE, **(guidance_scale or {})},
            num_inference_steps=num_inference_steps or generating.default_steps(self.motion_generator),
            generator=generator,
            first_window=first_window,
            num_frames=num_frames,
            on_step=on_step,
        )

    @torch.no_grad()
    def place_motion(
        self,
        windows: Iterable[Tensor],
        portrait: KeypointPortrait,
        head_motion: float = 1.0,
        expression: ControlTrack | None = None,
    ) -> Iterator[Tensor]:
        """Join windows to one motion, and put it onto a portrait.

        Args:
            windows (`Iterable[torch.Tensor]`): From `generate_motion`, of one of the batch: `(1, frames, 70)`.
            portrait (`KeypointPortrait`): Whose face is to move.
            head_motion (`float`, defaults to 1.0): Amount of head movement away from the portrait's pose.
            expression (`ControlTrack`, *optional*): From `parse_expression`.

        Yields:
            `torch.Tensor` of shape `(1, frames, 69)`: absolute motion.
        """
        start, fps, own = 0, self.audio_processor.fps, portrait.motion
        for moved in self._generating().place_motion(windows, portrait.keypoints, self.motion_generator):
            motion = edited(motion_of(moved), expression, start, fps)[None]
            if head_motion != 1.0:
                motion = place_motion(to_relative(motion, own), own, start, fps, head_motion)
            yield motion
            start += motion.shape[1]

    @torch.no_grad()
    def decode_frames(
        self,
        portrait: KeypointPortrait,
        motion: Tensor,  # [T, 69]
        paste_back: bool = False,
        drawing: Drawing | None = None,
    ) -> Iterator[Tensor]:
        """Render absolute motion to pictures, a few frames at a time.

        Args:
            portrait (`KeypointPortrait`): Who.
            motion (`torch.Tensor` of shape `(frames, 69)`): Pose and expression of each frame.
            paste_back (`bool`): Whether to put the face back into the whole picture.
            drawing (`Drawing`, *optional*): Stitching and the like.

        Yields:
            `torch.Tensor` of shape `(n, 3, height, width)` on the CPU, float32 in [0, 1].
        """
        renderer, drawing = self.renderer, drawing or Drawing()

        @torch.no_grad()
        def decode(part: Tensor) -> Tensor:
            source, target = self.driving_keypoints(portrait, part, drawing)
            feature = portrait.feature_3d.expand(len(part), -1, -1, -1, -1)
            warped, _, _ = renderer.warp(feature, source.to(feature), target.to(feature))
            with self.decoder_precision(renderer):
                frames = renderer.decode(warped)
            frames = frames.float().cpu()
            if paste_back:
                frames = self.image_processor.paste_back(portrait.picture, frames * 2 - 1, portrait.crop) * 0.5 + 0.5
            return frames.clamp_(0, 1)

        yield from self.decode_ahead(decode, motion)

    # --- the story ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | KeypointPortrait | list,
        audio: AudioInput | list,
        *,
        sampling_rate: int | None = None,
        emotion: Any = None,
        expression: Any = None,
        guidance_scale: Mapping[str, float] | None = None,
        num_inference_steps: int | None = None,
        head_motion: float = 1.0,
        stitching: bool = True,
        driving_multiplier: float = 1.0,
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
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `KeypointPortrait` or list):
                Portrait: a file, PIL image, array `(height, width, channels)` or tensor `(channels, height, width)`.
            audio (`str`, `os.PathLike`, `np.ndarray`, `torch.Tensor`, `tuple` or a list of them):
                Voice: a sound or video file, samples in [-1, 1], or (samples, rate). One image goes with many audios
                and the other way round.
            sampling_rate (`int`, *optional*, defaults to the encoder's, 16000): Rate of bare samples in Hz.
            emotion (`str`, `[(seconds, name), ...]` or `None`):
                One of `emotions`, such as `"happiness"`; `None`: what the voice tells. Keyframes hold until the next,
                and a window has one emotion.
            expression (`dict[str, float]` or `[(seconds, edits), ...]`, *optional*):
                Edits that are added, such as `{"smile": 0.5}`: `vasa_hf.pipelines.expression_edits.EDITS`.
            guidance_scale (`dict[str, float]`, *optional*):
                One scale for each condition (Eq. 8): `audio` (0.2), `emotion` (0); `audio+emotion` is one scale for
                both together, as in MoDA's code.
            num_inference_steps (`int`, *optional*): Denoising steps of each window; 10 for MoDA.
            head_motion (`float`, defaults to 1.0): Amount of head movement. # Not in the paper.
            stitching (`bool`, defaults to `True`): Fit the shoulders to the portrait's.
            driving_multiplier (`float`, defaults to 1.0): Amount of all movement.
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
        generating = self._generating()
        self.check_inputs(image, audio, sampling_rate, face, output_size, fps, output_type)
        (images, many_images), (audios, many_audios) = image_list(image), audio_list(audio)
        batch_size, single = check_batch(images, audios), not (many_images or many_audios)
        sampling = (emotion, guidance_scale, num_inference_steps)
        self.check_sampling(*sampling, head_motion, first_window, generator, batch_size)
        self.check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        drawing, edits = check_drawing(stitching, driving_multiplier), parse_expression(expression)

        # 1. Everything is read, and faces are found, before anything is generated.
        sounds = [self.prepare_audio(one, sampling_rate) for one in audios]
        portraits = [self.prepare_portrait(one, face, box, output_size) for one in images]
        sounds, portraits = (entries * (batch_size // len(entries)) for entries in (sounds, portraits))

        # 2. Motion of all videos together, window by window.
        samples, num_motion_frames = self._join_audio([samples for samples, _, _ in sounds])
        num_windows = generating.count_windows(self.motion_generator, max(num_motion_frames), first_window)
        steps = num_inference_steps or generating.default_steps(self.motion_generator)
        with self.progress_bar(total=num_windows * steps) as progress_bar:
            progress_bar.set_description("motion")
            on_step = self.on_step(progress_bar, callback_on_step_end, callback_on_step_end_tensor_inputs)
            settings = (*sampling, generator, first_window, num_motion_frames, on_step)
            windows = list(self.generate_motion([samples], portraits, *settings))

        # 3. Motion onto each portrait, then pictures.
        fps, rate = parse_fps(fps), self.audio_processor.sampling_rate
        num_frames = [math.ceil(samples.shape[1] * fps / rate) for samples, _, _ in sounds]
        overlap, motions = getattr(self.motion_generator.config, "overlap", 0), []
        for index, portrait in enumerate(portraits):
            own = entry_of_windows(windows, index, num_motion_frames[index], overlap)
            motions.append(list(self.place_motion(own, portrait, head_motion, edits)))
        videos = self.make_videos(portraits, motions, num_frames, fps, paste_back, output_type, drawing=drawing)

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
        image: ImageInput | KeypointPortrait,
        audio_chunks: Iterable | AudioInput,
        *,
        sampling_rate: int | None = None,
        emotion: Any = None,
        expression: Any = None,
        guidance_scale: Mapping[str, float] | None = None,
        num_inference_steps: int | None = None,
        head_motion: float = 1.0,
        stitching: bool = True,
        driving_multiplier: float = 1.0,
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

        Source: MoDA §3.3. Arguments are checked, and the portrait is encoded, before this returns. They are those of
        `__call__`, but:

        - `image` is one portrait.
        - `audio_chunks` are pieces of any length: arrays `(samples,)` or `(channels, samples)`, (samples, rate).
          Frames come as soon as a window of audio and the encoder's look-ahead have arrived. Audio as `__call__` takes
          it is one of its own; a file is read bit by bit, however long it is.
        - `first_window` (`int`, *optional*, defaults to the model's window) is the length of the first window in
          frames; fewer let the first frames come earlier. # Not in the paper.

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
        self.check_sampling(emotion, guidance_scale, num_inference_steps, head_motion, first_window, generator)
        drawing, edits = check_drawing(stitching, driving_multiplier), parse_expression(expression)
        if whole:  # read through here, so that a bad one is told before the portrait is encoded
            sound = self.open_audio(audio_chunks, sampling_rate)
            audio_chunks = ((block.clip(-1.0, 1.0).mean(0), sound.sampling_rate) for block in sound)
        portrait = self.prepare_portrait(only_image(image), face, box, output_size)
        pieces = listen(audio_chunks, self.audio_processor, sampling_rate)
        settings = (emotion, guidance_scale, num_inference_steps, generator, first_window)

        def move(heard: Iterator[Tensor]) -> Iterator[Tensor]:
            windows = self.generate_motion(heard, [portrait], *settings)
            return self.place_motion(windows, portrait, head_motion, edits)

        return self.speak(portrait, pieces, move, parse_fps(fps), paste_back, output_type, drawing=drawing)


def check_components(renderer: Any, motion_generator: Any, audio_encoder: Any, audio_processor: Any, scheduler: Any):
    """Raise `ValueError` if components are of another class, or do not fit each other."""
    if not isinstance(renderer, LivePortraitRenderer):
        raise ValueError(f"`renderer` must be a LivePortraitRenderer, got {type(renderer).__name__}.")
    speech = {
        "motion_generator": (motion_generator, tuple(GENERATORS)),
        "audio_encoder": (audio_encoder, (PreTrainedModel,)),
        "audio_processor": (audio_processor, (VasaAudioProcessor,)),
        "scheduler": (scheduler, (SchedulerMixin,)),
    }
    missing = [name for name, (component, _) in speech.items() if component is None]
    if motion_generator is None:
        return
    if missing:
        raise ValueError(f"`{missing[0]}` must be given, as a `motion_generator` is.")
    for name, (component, kinds) in speech.items():
        if not isinstance(component, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"`{name}` must be a {wanted}, got {type(component).__name__}.")
    config = motion_generator.config
    for component, name, got, wanted, other in (
        ("motion_generator", "audio_dim", config.audio_dim, audio_encoder.config.hidden_size, "audio_encoder"),
        ("audio_processor", "fps", audio_processor.fps, config.fps, "motion_generator"),
    ):
        if got != wanted:
            raise ValueError(f"`{component}` must have `{name}` {wanted!r} to fit the `{other}`, got {got!r}.")
    GENERATORS[type(motion_generator)].check_scheduler(scheduler)

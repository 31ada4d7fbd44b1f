"""The 3D avatar pipeline of VASA-3D: one portrait and one voice in, a head in, seen from any side, out.

    image --fit: VASA-1 makes frames, Gaussians learn them--> avatar                                  once a person
    audio --VASA-1's motion generator--> X = [z_pose, z_dyn] --avatar (Eqs. 1-4)--> G'' --camera--> pictures

VASA-1 makes the motion (§3.1, "Animation and Rendering"): its pipeline runs inside with these very components, and an
`AvatarView` stands where it expects a portrait. Windows, sound, frame rates, streams and files are thus one code.

# Not in the paper: cameras that move (`camera_paths.py`); generated motion starts from the portrait's own pose.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.schedulers import KarrasDiffusionSchedulers
from PIL import Image
from torch import Tensor
from transformers import Wav2Vec2Model

from vasa_hf.camera_paths import view_cameras
from vasa_hf.controls import parse_controls
from vasa_hf.gaussians.export import SAVERS
from vasa_hf.gaussians.render import render
from vasa_hf.gaussians.scene import Gaussians
from vasa_hf.media.video import VideoReader
from vasa_hf.models.face_analyzer import FaceAnalyzer
from vasa_hf.models.face_autoencoder_vasa1 import Vasa1FaceAutoencoder
from vasa_hf.models.gaussian_avatar_vasa3d import Vasa3DGaussianAvatar
from vasa_hf.models.motion_transformer_vasa1 import Vasa1MotionTransformer
from vasa_hf.outputs import TalkingFaceOutput, named_provenance
from vasa_hf.pipelines.avatar_shelf import AvatarShelfMixin
from vasa_hf.pipelines.avatar_view import WHITE, AvatarView, check_view
from vasa_hf.pipelines.inputs import (
    AudioInput,
    ImageInput,
    Portrait,
    audio_list,
    check_batch,
    check_choice,
    image_list,
    read_motion,
)
from vasa_hf.pipelines.vasa_talking_face import VasaTalkingFacePipeline
from vasa_hf.processors.audio import VasaAudioProcessor
from vasa_hf.processors.image import FaceImageProcessor

AvatarInput = Vasa3DGaussianAvatar | ImageInput


class Vasa3DAvatarPipeline(AvatarShelfMixin, DiffusionPipeline):
    """Talking 3D heads from one portrait, after VASA-3D. The components are VASA-1's.

    Args:
        face_analyzer (`FaceAnalyzer`): Finds faces.
        face_autoencoder (`Vasa1FaceAutoencoder`): Face latent space of VASA-1.
        audio_encoder (`transformers.Wav2Vec2Model`): Audio features.
        audio_processor (`VasaAudioProcessor`): Brings audio to the encoder's rate.
        image_processor (`FaceImageProcessor`): Loads and crops pictures.
        motion_transformer (`Vasa1MotionTransformer`): Diffusion transformer over motion.
        scheduler (`DDIMScheduler` or another of diffusers' with `prediction_type="sample"`): Sampler.

    Attributes:
        draw_batch_size (`int`, *optional*): Frames drawn at a time; 1 on a CPU, 16 elsewhere if `None`.

    Example:
        ```python
        pipe = Vasa3DAvatarPipeline.from_pretrained("vasa3d-small")
        avatar = pipe.fit("portrait.jpg", preset="fast")
        pipe(avatar, "speech.wav", camera="orbit").save("out.mp4")
        ```
    """

    model_cpu_offload_seq = VasaTalkingFacePipeline.model_cpu_offload_seq
    _callback_tensor_inputs = VasaTalkingFacePipeline._callback_tensor_inputs

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
        self._talking_face = VasaTalkingFacePipeline(**self.components)
        self._avatars: dict[str, Path | Vasa3DGaussianAvatar] = {}  # name -> folder, or what was added
        self._loaded: dict[str, Vasa3DGaussianAvatar] = {}
        self.draw_batch_size: int | None = None

    @property
    def talking_face(self) -> VasaTalkingFacePipeline:
        """VASA-1 with these very components, also after one of them was exchanged."""
        for name, component in self.components.items():
            if getattr(self._talking_face, name) is not component:
                setattr(self._talking_face, name, component)
        return self._talking_face

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """As of every pipeline; VASA-1's progress is shown in the same way."""
        super().set_progress_bar_config(**kwargs)
        self.talking_face.set_progress_bar_config(**kwargs)

    # --- steps --------------------------------------------------------------------------------------------------------

    @torch.enable_grad()  # a call has none
    def fit(self, image: ImageInput | Portrait, preset: Any = "fast", **options: Any) -> Vasa3DGaussianAvatar:
        """Make an avatar of a portrait.

        Source: VASA-3D §3.2, §3.3 and appendix A.

        Args:
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): The portrait.
            preset (`str`, defaults to "fast"): "fast" (two CPU cores, minutes), "fast-gpu" or "paper".
            **options: As for `vasa_hf.training.train_gaussian_avatar.fit_avatar`.

        Raises:
            ValueError: If the picture shows no face that an avatar can be made of, or an option is unfit.
        """
        # Here alone a pipeline trains: an avatar is one person's weights, which only exist once there is a portrait.
        from vasa_hf.training.train_gaussian_avatar import fit_avatar

        return fit_avatar(self.talking_face, image, preset, **options).eval()

    def view(
        self,
        avatar: AvatarInput,
        camera: Any = "fixed",
        fps: Fraction | float | str = 25,
        output_size: int = 256,
        background: Sequence[float] = WHITE,
    ) -> AvatarView:
        """Put an avatar before a camera; `draw` of the result turns motion into pictures. Arguments as of `__call__`.

        Raises:
            ValueError: If an argument is unfit, or the camera is inside the head.
        """
        return AvatarView(self._avatar(avatar), camera, fps, output_size, background, self.draw_batch_size)

    # --- the story ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        avatar: AvatarInput | list,
        audio: AudioInput | list,
        *,
        camera: Any = "fixed",
        background: Sequence[float] = WHITE,
        output_size: int = 256,
        sampling_rate: int | None = None,
        gaze: Any = (0.0, 0.0),
        head_distance: Any = 1.0,
        emotion: Any = {},  # noqa: B006 - never written to
        guidance_scale: Mapping[str, float] | None = None,
        num_inference_steps: int = 10,
        head_motion: float = 1.0,
        fps: Fraction | float | str = 25,
        generator: torch.Generator | list[torch.Generator] | None = None,
        first_window: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> TalkingFaceOutput | tuple:
        """Make a talking video, or several. What is not said here is as of `VasaTalkingFacePipeline`.

        Args:
            avatar (`Vasa3DGaussianAvatar`, `str`, `os.PathLike`, a picture, or a list of them):
                An avatar, the name of one (`avatars`), its folder or repository; or a portrait, which is fitted first
                with the preset "fast".
            audio (`str`, `os.PathLike`, `np.ndarray`, `torch.Tensor`, `tuple` or a list of them): Voice.
            camera (`str`, `OrbitCamera`, `CameraKeyframes`, list, `Cameras` or `Callable`, defaults to `"fixed"`):
                `"fixed"` (the portrait's) or `"orbit"`; keyframes `[(seconds, azimuth_deg, elevation_deg, distance)]`;
                one camera in the world; or a function from seconds to one. See `CameraPath`.
            background (`Sequence[float]`, defaults to white): RGB in [0, 1] behind the head.
            output_size (`int`, defaults to 256): Side of the square picture.
            sampling_rate (`int`, *optional*, defaults to the encoder's, 16000): Rate of bare samples in Hz.
            gaze (`tuple[float, float]` or `[(seconds, (yaw, pitch)), ...]`, defaults to ahead): Radians.
            head_distance (`float` or `[(seconds, distance), ...]`, defaults to 1.0): Over the portrait's.
            emotion (`dict[str, float]` or `[(seconds, weights), ...]`, defaults to none): Offsets in [-1, 1].
            guidance_scale (`dict[str, float]`, *optional*): One scale for each condition.
            num_inference_steps (`int`, defaults to 10): Denoising steps of each window.
            head_motion (`float`, defaults to 1.0): Amount of head movement.
            fps (`Fraction`, `float` or `str`, defaults to 25): Frames a second of the video.
            generator (`torch.Generator` or list, *optional*): Makes the result repeatable; a list has one a video.
            first_window (`int`, *optional*): Frames of the first window.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"`, or `"latent"` for motion alone.
            return_dict (`bool`, defaults to `True`): Whether to return `TalkingFaceOutput` or `(frames,)`.
            callback_on_step_end (`Callable`, *optional*):
                `callback(pipe, step, timestep, tensors) -> tensors` after each denoising step of each window.
            callback_on_step_end_tensor_inputs (`Sequence[str]`): Which `tensors`: `latents`, `audio_features`.

        Returns:
            `TalkingFaceOutput`.

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        motion_options = {
            "guidance_scale": guidance_scale,
            "num_inference_steps": num_inference_steps,
            "head_motion": head_motion,
            "first_window": first_window,
            "generator": generator,
        }
        controls = {"gaze": gaze, "head_distance": head_distance, "emotion": emotion}
        (avatars, many), (audios, _) = image_list(avatar), audio_list(audio)
        if not avatars:
            raise ValueError("`avatar` must be at least one avatar, got an empty list.")
        count = check_batch(avatars, audios, "avatar")
        talking_face = self.talking_face

        def check() -> None:  # VASA-1 does it again; but what is wrong must be told before a fit, which takes minutes
            check_view(camera, fps, output_size, background)
            for picture in filter(self._is_portrait, avatars):
                talking_face.check_inputs(picture, audio, sampling_rate, None, None, fps, output_type)
            talking_face.check_sampling(**motion_options, batch_size=count)
            talking_face.check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
            parse_controls(**controls, emotions=self.motion_transformer.config.emotions)
            for one in audios:
                talking_face.open_audio(one, sampling_rate)

        if any(map(self._is_portrait, avatars)):
            avatars = [one if self._is_portrait(one) else self._avatar(one) for one in avatars]
            check()
            avatars = [self.fit(one) if self._is_portrait(one) else one for one in avatars]
        # Each video has a view of its own, which counts its frames.
        views = [self.view(one, camera, fps, output_size, background) for one in avatars * (count // len(avatars))]
        callback = callback_on_step_end
        if callable(callback):
            callback = lambda _, *rest: callback_on_step_end(self, *rest)  # noqa: E731
        result = talking_face(
            views if many or count > 1 else views[0],
            audio,
            sampling_rate=sampling_rate,
            fps=fps,
            output_type=output_type,
            return_dict=return_dict,
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            **controls,
            **motion_options,
        )
        return self._ours(result)

    def stream(
        self,
        avatar: AvatarInput,
        audio_chunks: Iterable | AudioInput,
        *,
        camera: Any = "fixed",
        background: Sequence[float] = WHITE,
        output_size: int = 256,
        fps: Fraction | float | str = 25,
        **options: Any,
    ) -> Iterator[TalkingFaceOutput]:
        """Make frames while the audio comes in, in constant memory; the same frames as `__call__` makes.

        Args:
            avatar (`Vasa3DGaussianAvatar`, `str` or `os.PathLike`): One avatar; no portrait, whose fit takes minutes.
            audio_chunks (`Iterable`, `str`, `os.PathLike`, `np.ndarray`, `torch.Tensor` or `tuple`):
                See `VasaTalkingFacePipeline.stream`.
            camera (`str`, `OrbitCamera`, `CameraKeyframes`, list, `Cameras` or `Callable`): As for `__call__`.
            background (`Sequence[float]`, defaults to white): As for `__call__`.
            output_size (`int`, defaults to 256): As for `__call__`.
            fps (`Fraction`, `float` or `str`, defaults to 25): As for `__call__`.
            **options: As for `VasaTalkingFacePipeline.stream`: controls, sampling, `output_type`.

        Returns:
            Iterator of `TalkingFaceOutput` with a few frames each, their sound and motion.

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        view = self.view(avatar, camera, fps, output_size, background)
        chunks = self.talking_face.stream(view, audio_chunks, fps=fps, **options)
        return (self._ours(chunk) for chunk in chunks)

    def talk_to_file(
        self,
        path: str | os.PathLike,
        avatar: AvatarInput,
        audio: AudioInput,
        *,
        camera: Any = "fixed",
        background: Sequence[float] = WHITE,
        output_size: int = 256,
        fps: Fraction | float | str = 25,
        provenance: bool | Mapping[str, Any] = True,
        **options: Any,
    ) -> TalkingFaceOutput:
        """Write a talking video frame by frame, in constant memory; see `VasaTalkingFacePipeline.talk_to_file`.

        Args:
            path (`str` or `os.PathLike`): The `.mp4` file; appears whole or not at all.
            avatar (`Vasa3DGaussianAvatar`, `str` or `os.PathLike`): One avatar.
            audio (`str`, `os.PathLike`, `np.ndarray`, `torch.Tensor` or `tuple`): One voice.
            camera (`str`, `OrbitCamera`, `CameraKeyframes`, list, `Cameras` or `Callable`): As for `__call__`.
            background (`Sequence[float]`, defaults to white): As for `__call__`.
            output_size (`int`, defaults to 256): As for `__call__`.
            fps (`Fraction`, `float` or `str`, defaults to 25): As for `__call__`.
            provenance (`bool` or `dict`, defaults to `True`): See `TalkingFaceOutput.save`.
            **options: As for `stream`, and `crf` and `on_frames` of VASA-1's `talk_to_file`.

        Returns:
            `TalkingFaceOutput` without frames and sound: its motion can be saved.

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        view = self.view(avatar, camera, fps, output_size, background)
        provenance = named_provenance(provenance, self.model_name)
        result = self.talking_face.talk_to_file(path, view, audio, fps=fps, provenance=provenance, **options)
        return self._ours(result)

    # --- other drivers ------------------------------------------------------------------------------------------------

    def animate(
        self,
        avatar: AvatarInput,
        driving_video: str | os.PathLike | Sequence,
        *,
        camera: Any = "fixed",
        background: Sequence[float] = WHITE,
        output_size: int = 256,
        fps: Fraction | float | str | None = None,
        **options: Any,
    ) -> TalkingFaceOutput | tuple:
        """Let an avatar do what the face of a video does.

        Args:
            avatar (`Vasa3DGaussianAvatar`, `str` or `os.PathLike`): One avatar.
            driving_video (`str`, `os.PathLike` or a sequence of pictures): A video file, or frames of one size.
            camera (`str`, `OrbitCamera`, `CameraKeyframes`, list, `Cameras` or `Callable`): As for `__call__`.
            background (`Sequence[float]`, defaults to white): As for `__call__`.
            output_size (`int`, defaults to 256): As for `__call__`.
            fps (`Fraction`, `float` or `str`, *optional*): Defaults to the video's own rate, 25 for frames.
            **options: As for `VasaTalkingFacePipeline.animate`: `relative`, `driving_face`, `driving_box`,
                `output_type`, `return_dict`.

        Returns:
            `TalkingFaceOutput` with the driving video's sound, if it has any.

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        if fps is None and isinstance(driving_video, str | os.PathLike) and os.path.isfile(driving_video):
            fps = VideoReader(driving_video).fps
        view = self.view(avatar, camera, 25 if fps is None else fps, output_size, background)
        return self._ours(self.talking_face.animate(view, driving_video, fps=fps, **options))

    def render(
        self,
        avatar: AvatarInput,
        motion: Tensor | str | os.PathLike,
        *,
        camera: Any = "fixed",
        background: Sequence[float] = WHITE,
        output_size: int = 256,
        fps: Fraction | float | str = 25,
        **options: Any,
    ) -> TalkingFaceOutput | tuple:
        """Render a given motion: edited, saved by `output.save("motion.safetensors")`, or of another person.

        Args:
            avatar (`Vasa3DGaussianAvatar`, `str` or `os.PathLike`): One avatar.
            motion (`torch.Tensor` of shape `([1,] frames, channels)`, `str` or `os.PathLike`): Absolute motion.
            camera (`str`, `OrbitCamera`, `CameraKeyframes`, list, `Cameras` or `Callable`): As for `__call__`.
            background (`Sequence[float]`, defaults to white): As for `__call__`.
            output_size (`int`, defaults to 256): As for `__call__`.
            fps (`Fraction`, `float` or `str`, defaults to 25): Of the video.
            **options: As for `VasaTalkingFacePipeline.render`: `motion_fps`, `relative`, `audio`, `sampling_rate`,
                `output_type`, `return_dict`.

        Returns:
            `TalkingFaceOutput`.

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        view = self.view(avatar, camera, fps, output_size, background)
        return self._ours(self.talking_face.render(view, motion, fps=fps, **options))

    @torch.no_grad()
    def contact_sheet(
        self,
        avatar: AvatarInput,
        azimuths_deg: Sequence[float] = (-45.0, 0.0, 45.0),
        motion: Tensor | str | os.PathLike | None = None,
        *,
        elevation_deg: float = 0.0,
        output_size: int = 256,
        background: Sequence[float] = WHITE,
    ) -> Image.Image:
        """One picture of an avatar from several sides, a row for each frame of a motion.

        Args:
            avatar (`Vasa3DGaussianAvatar`, `str` or `os.PathLike`): One avatar.
            azimuths_deg (`Sequence[float]`, defaults to `(-45, 0, 45)`): Columns; above 0 from the picture's right.
            motion (`torch.Tensor` of shape `([1,] frames, channels)`, `str` or `os.PathLike`, *optional*):
                Absolute motion; defaults to the portrait's own, one row.
            elevation_deg (`float`, defaults to 0.0): Angle upwards.
            output_size (`int`, defaults to 256): Side of each square.
            background (`Sequence[float]`, defaults to white): RGB in [0, 1].

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        angles = [*azimuths_deg, elevation_deg]
        if len(angles) < 2 or not all(isinstance(angle, int | float) and abs(angle) <= 360 for angle in angles):
            raise ValueError(f"`azimuths_deg` must be one angle or more within 360 degrees, got {azimuths_deg!r}.")
        view = self.view(avatar, output_size=output_size, background=background)
        azimuth = torch.tensor(angles[:-1], dtype=torch.float32)
        rest = (torch.full_like(azimuth, value) for value in (elevation_deg, 1.0))
        cameras = view_cameras(view.camera.portrait, view.camera.center, azimuth, *rest)
        table = [
            torch.cat(list(render(gaussians, cameras, output_size, view.background).color), dim=-1)
            for gaussians in self._gaussians(view.avatar, motion)
        ]
        sheet = torch.cat(table, dim=-2).clamp(0, 1).cpu()
        return Image.fromarray((sheet * 255).round().byte().permute(1, 2, 0).numpy())

    @torch.no_grad()
    def export_sequence(
        self,
        avatar: AvatarInput,
        motion: Tensor | str | os.PathLike,
        folder: str | os.PathLike,
        suffix: str = ".ply",
    ) -> list[Path]:
        """Write a file of Gaussians for each frame of a motion: `00000.ply`, `00001.ply`, ...

        Args:
            avatar (`Vasa3DGaussianAvatar`, `str` or `os.PathLike`): One avatar.
            motion (`torch.Tensor` of shape `([1,] frames, channels)`, `str` or `os.PathLike`): Absolute motion.
            folder (`str` or `os.PathLike`): Where to; must not hold anything. Appears whole or not at all.
            suffix (`str`, defaults to ".ply"): ".ply" (3DGS) or ".splat" (web viewers).

        Returns:
            `list[Path]`: The files.

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        check_choice("suffix", suffix, list(SAVERS))
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"`folder` must be new or empty, but {str(folder)!r} is not.")
        frames, names = self._gaussians(self._avatar(avatar), motion), []
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        partial.mkdir(parents=True)
        try:
            for index, gaussians in enumerate(frames):
                names.append(f"{index:05d}{suffix}")
                SAVERS[suffix](gaussians, partial / names[-1])
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return [folder / name for name in names]

    # --- small parts --------------------------------------------------------------------------------------------------

    def _is_portrait(self, value: Any) -> bool:
        """Whether this is a picture, rather than an avatar or the name of one."""
        if isinstance(value, str | os.PathLike):
            named = os.fspath(value) in self.avatars
            return not named and os.path.isfile(value) and Path(value).suffix.lower() not in SAVERS
        return isinstance(value, Image.Image | np.ndarray | Tensor | Portrait)

    def _avatar(self, avatar: Any) -> Vasa3DGaussianAvatar:
        if isinstance(avatar, str | os.PathLike):
            return self.load_avatar(avatar)
        self.check_avatar(avatar)
        return avatar.to(self._execution_device)

    def _gaussians(
        self, avatar: Vasa3DGaussianAvatar, motion: Tensor | str | os.PathLike | None
    ) -> Iterator[Gaussians]:
        """The Gaussians of each frame of a motion; of the portrait's own if there is none."""
        frames = avatar.own_motion[None]
        if motion is not None:
            spec = self.motion_transformer.motion_spec
            frames = read_motion(motion, None, spec, self.audio_processor.fps)[0][0].to(frames)
        state = avatar.rest_state()
        return (avatar(frame, rest=state).gaussians.map(lambda value: value[0]) for frame in frames.split(1))

    def _ours(self, result: Any) -> Any:
        if isinstance(result, TalkingFaceOutput):
            result.model_name = self.model_name
        return result

"""The 3D avatar pipeline of VASA-3D: an avatar, fitted to one portrait, and speech in; a video from any side out.

    image --fit: VASA-1 makes frames, Gaussians learn them--> avatar                                  once per person
    audio --motion_vasa1.py--> X = [z_pose, z_dyn] --avatar (Eqs. 1-4)--> G'' --camera--> frames

VASA-1 makes the motion (§3.1, "Animation and Rendering"), by the same generator and the same components. The call, the
stream and the other drivers are those of `base.py`; the subject is an `AvatarView`.

# Not in the paper: cameras that move (`motion/camera_paths.py`); generated motion starts from the portrait's own pose.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.schedulers import KarrasDiffusionSchedulers
from PIL import Image
from torch import Tensor
from transformers import Wav2Vec2Model

from vasa_hf.checks import check_number, check_path, shorten
from vasa_hf.files import staging_folder
from vasa_hf.gaussians.export import SAVERS
from vasa_hf.gaussians.render import render
from vasa_hf.gaussians.scene import Gaussians
from vasa_hf.geometry.cameras import view_cameras
from vasa_hf.hub import base_name, read_index
from vasa_hf.models.face_analyzer import FaceAnalyzer
from vasa_hf.models.face_autoencoder_vasa1 import Vasa1FaceAutoencoder
from vasa_hf.models.gaussian_avatar_vasa3d import Vasa3DGaussianAvatar
from vasa_hf.models.motion_transformer_vasa1 import Vasa1MotionTransformer
from vasa_hf.motion import POSE_DIM
from vasa_hf.motion.camera_paths import CameraControl
from vasa_hf.pipelines.avatar_library import AvatarLibrary
from vasa_hf.pipelines.avatar_view import WHITE, AvatarOptions, AvatarView
from vasa_hf.pipelines.base import FPS, TalkingHeadPipeline
from vasa_hf.pipelines.inputs import ImageInput, check_choice, read_motion
from vasa_hf.pipelines.loading import local_folder, save_index
from vasa_hf.pipelines.motion_vasa1 import Vasa1Controls
from vasa_hf.pipelines.vasa_talking_face import Portrait, VasaTalkingFacePipeline, check_vasa1_components
from vasa_hf.processors.audio import VasaAudioProcessor
from vasa_hf.processors.image import FaceImageProcessor

AvatarInput = Vasa3DGaussianAvatar | AvatarView | str | os.PathLike


class Vasa3DAvatarPipeline(TalkingHeadPipeline):
    """Talking 3D heads from one portrait, after VASA-3D. The components are VASA-1's.

    Args:
        face_analyzer (`FaceAnalyzer`): Finds faces.
        face_autoencoder (`Vasa1FaceAutoencoder`): Face latent space of VASA-1.
        audio_encoder (`transformers.Wav2Vec2Model`): Audio features.
        audio_processor (`VasaAudioProcessor`): Brings audio to the encoder's rate.
        image_processor (`FaceImageProcessor`): Loads and crops images.
        motion_transformer (`Vasa1MotionTransformer`): Diffusion transformer over motion.
        scheduler (`DDIMScheduler` or another of diffusers' with `prediction_type="sample"`): Sampler.

    The first argument of a call, also named `avatar`, is a `Vasa3DGaussianAvatar`, the name of one
    (`avatars`), its folder or repository, or a `view`. Options of a call are the fields of `Vasa1Controls` and of
    `AvatarOptions` (`camera`, `background`, `output_size`).

    Attributes:
        draw_batch_size (`int`, *optional*): Frames rendered at a time; 1 on a CPU, 16 elsewhere if `None`.

    Example:
        ```python
        pipe = Vasa3DAvatarPipeline.from_pretrained("vasa3d-small")
        avatar = pipe.fit("portrait.jpg", preset="fast")
        pipe(avatar, "speech.wav", camera="orbit").save("out.mp4")
        ```
    """

    model_cpu_offload_seq = VasaTalkingFacePipeline.model_cpu_offload_seq
    _exclude_from_cpu_offload = VasaTalkingFacePipeline._exclude_from_cpu_offload
    subject_name, subject_type = "avatar", AvatarView
    controls_type, view_type = Vasa1Controls, AvatarOptions
    draw_batch_size: int | None = None
    base_model: str | None = None  # name of the model that has the components

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
        check_vasa1_components(face_autoencoder, audio_encoder, audio_processor, motion_transformer, scheduler)
        self._library = AvatarLibrary(self.check_avatar)

    # Motion is made and encoded as by VASA-1.
    motion_spec = VasaTalkingFacePipeline.motion_spec
    create_motion_generator = VasaTalkingFacePipeline.create_motion_generator
    encode_driving = VasaTalkingFacePipeline.encode_driving

    output_sizes: tuple[int, ...] = ()  # any

    @property
    def talking_face(self) -> VasaTalkingFacePipeline:
        """VASA-1's pipeline with these components, which makes the training frames of a fit."""
        pipeline = VasaTalkingFacePipeline(**self.components)
        pipeline.model_name = self.model_name if self.base_model is None else Path(self.base_model).name
        pipeline.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return pipeline

    # --- loading and saving -------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Vasa3DAvatarPipeline:
        """Load a pipeline and the names of its avatars; see `TalkingHeadPipeline.from_pretrained`.

        A model of VASA-1 gives a pipeline without avatars.
        """
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        folder = local_folder(pretrained_model_name_or_path, **kwargs)
        pipeline.base_model = base_name(read_index(folder))
        pipeline._library.find(folder)
        return pipeline

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        talking_face: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save avatars and components as safetensors.

        Args:
            save_directory (`str` or `os.PathLike`): Folder to write.
            safe_serialization (`bool`, defaults to `True`): Must be true.
            talking_face (`str`, *optional*):
                Name of embedded weights or of a repository with VASA-1's components: they are not saved then, and
                `from_pretrained` loads them from there.
            **kwargs: As for `DiffusionPipeline.save_pretrained`.

        Raises:
            ValueError: If `safe_serialization=False` is asked for.
        """
        if talking_face is not None and kwargs:
            raise ValueError(f"`talking_face` cannot be combined with {sorted(kwargs)}: save first, then upload.")
        if talking_face is None:
            super().save_pretrained(save_directory, safe_serialization, **kwargs)
        else:
            save_index(save_directory, type(self).__name__, talking_face)
        self._library.save(Path(save_directory))

    @property
    def avatars(self) -> list[str]:
        """Names of the avatars that come with these weights or were added."""
        return self._library.names

    def add_avatar(self, name: str, avatar: Vasa3DGaussianAvatar) -> None:
        """Add an avatar under a name, by which it is called and saved.

        Args:
            name (`str`): Letters, digits, `_` and `-`.
            avatar (`Vasa3DGaussianAvatar`): Fitted with these components.

        Raises:
            ValueError: If the name has other characters, or the avatar does not fit these components.
        """
        self._library.add(name, avatar)

    def load_avatar(self, name_or_path: str | os.PathLike, **kwargs: Any) -> Vasa3DGaussianAvatar:
        """Load an avatar.

        Args:
            name_or_path (`str` or `os.PathLike`): One of `avatars`, a folder that `save_pretrained` of an avatar wrote,
                or a repository of the Hub.
            **kwargs: As for `Vasa3DGaussianAvatar.from_pretrained`.

        Raises:
            ValueError: If there is none, or it does not fit these components.
        """
        check_path("name_or_path", name_or_path)
        return self._library.load(os.fspath(name_or_path), **kwargs).to(self._execution_device)

    def check_avatar(self, avatar: Vasa3DGaussianAvatar) -> None:
        """Raise `ValueError` unless the avatar was fitted to the motion that these components make."""
        if not isinstance(avatar, Vasa3DGaussianAvatar):
            raise ValueError(f"`avatar` must be a Vasa3DGaussianAvatar, got {type(avatar).__name__}.")
        avatar.check_motion_space(self.face_autoencoder.config.motion_space)
        wanted, got = self.face_autoencoder.motion_dim, avatar.config.motion_dim
        if got != wanted:
            raise ValueError(f"`avatar` must have `motion_dim` {wanted} to fit the `face_autoencoder`, got {got}.")
        if not avatar.own_motion[POSE_DIM - 1] > 0:
            raise ValueError("`avatar` must be fitted, this one does not know its portrait's pose: see `pipe.fit`.")

    # --- steps --------------------------------------------------------------------------------------------------------

    @torch.enable_grad()  # a call has none
    def fit(self, image: ImageInput | Portrait, preset: Any = "fast", **options: Any) -> Vasa3DGaussianAvatar:
        """Make an avatar of a portrait.

        Source: VASA-3D §3.2, §3.3 and appendix A.

        Args:
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): The portrait.
            preset (`str`, defaults to "fast"): "fast" (two CPU cores, minutes), "fast-gpu" or "paper".
            **options: As for `vasa_hf.training.avatar.fit.fit_avatar`.

        Raises:
            ValueError: If the image shows no face that an avatar can be made of, or an option cannot be used.
        """
        # The only pipeline that trains: an avatar is one person's weights, which exist once there is a portrait.
        from vasa_hf.training.avatar.fit import fit_avatar

        return fit_avatar(self.talking_face, image, preset, **options).eval()

    def view(
        self,
        avatar: AvatarInput,
        camera: CameraControl = "fixed",
        fps: Fraction | float | str | None = None,
        output_size: int = 256,
        background: Sequence[float] = WHITE,
    ) -> AvatarView:
        """Combine an avatar with a camera, to be given as `avatar`. With `fps`, no other rate is accepted.

        Raises:
            ValueError: If an argument cannot be used, or the camera is inside the head.
        """
        options = AvatarOptions(camera, background, output_size)
        return AvatarView(self._load_avatar(avatar), options, fps, self.draw_batch_size)

    def prepare_subject(self, image: AvatarInput, view: AvatarOptions) -> AvatarView:
        """Combine an avatar with the camera; a view stays as it is."""
        if isinstance(image, AvatarView):
            return image
        return AvatarView(self._load_avatar(image), view, None, self.draw_batch_size)

    def render_frames(
        self,
        subject: AvatarView,
        motion: Tensor,
        view: AvatarOptions | None = None,
        start_frame: int = 0,
        fps: Fraction = Fraction(FPS),
    ) -> Iterator[Tensor]:
        """Render absolute motion to frames; see `TalkingHeadPipeline.render_frames`."""
        return subject.draw(motion, start_frame, fps)

    def check_subject(self, image: Any, view: AvatarOptions, fps: Any) -> None:
        """Raise `ValueError` unless this is an avatar, or a view of this rate; a portrait must be fitted first."""
        if isinstance(image, AvatarView):
            image.check_fps(fps)
        elif self._is_portrait(image):
            raise ValueError(
                "`avatar` must be an avatar, got an image: make one of it by `pipe.fit(image)`, which takes minutes."
            )
        elif isinstance(image, str | os.PathLike):
            self._library.check_name(os.fspath(image))
        else:
            self.check_avatar(image)

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
        """Render an avatar from several sides into one image, with a row for each frame of a motion.

        Args:
            avatar (`Vasa3DGaussianAvatar`, `str` or `os.PathLike`): One avatar.
            azimuths_deg (`Sequence[float]`, defaults to `(-45, 0, 45)`): Columns; above 0 from the image's right.
            motion (`torch.Tensor` of shape `([1,] frames, channels)`, `str` or `os.PathLike`, *optional*):
                Absolute motion; defaults to the portrait's own, one row.
            elevation_deg (`float`, defaults to 0.0): Angle upwards.
            output_size (`int`, defaults to 256): Side of each square.
            background (`Sequence[float]`, defaults to white): RGB in [0, 1].

        Raises:
            ValueError: If an argument cannot be used; the message names it.
        """
        if not isinstance(azimuths_deg, list | tuple) or not azimuths_deg:
            raise ValueError(f"`azimuths_deg` must be a list of one angle or more, got {shorten(azimuths_deg)}.")
        for angle in azimuths_deg:
            check_number("azimuths_deg", angle, -360, 360)
        check_number("elevation_deg", elevation_deg, -360, 360)
        view = self.view(avatar, output_size=output_size, background=background)
        azimuth = torch.tensor(azimuths_deg, dtype=torch.float32)
        rest = (torch.full_like(azimuth, value) for value in (elevation_deg, 1.0))
        cameras = view_cameras(view.camera.portrait, view.camera.center, azimuth, *rest)
        table = [
            torch.cat(list(render(gaussians, cameras, output_size, view.background).color), dim=-1)
            for gaussians in self._pose_gaussians(view.avatar, motion)
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
            folder (`str` or `os.PathLike`): Folder to write, new or empty. Appears whole or not at all.
            suffix (`str`, defaults to ".ply"): ".ply" (3DGS) or ".splat" (web viewers).

        Returns:
            `list[Path]`: The files.

        Raises:
            ValueError: If an argument cannot be used; the message names it.
        """
        check_path("folder", folder)
        check_choice("suffix", suffix, list(SAVERS))
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"`folder` must be new or empty, but {str(folder)!r} is not.")
        frames, names = self._pose_gaussians(self._load_avatar(avatar), motion), []
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with staging_folder(folder) as partial:
            for index, gaussians in enumerate(frames):
                names.append(f"{index:05d}{suffix}")
                SAVERS[suffix](gaussians, partial / names[-1])
        return [folder / name for name in names]

    def _is_portrait(self, value: Any) -> bool:
        """Whether this is an image, not an avatar or the name of one."""
        if isinstance(value, str | os.PathLike):
            named = os.fspath(value) in self.avatars
            return not named and os.path.isfile(value) and Path(value).suffix.lower() not in SAVERS
        return isinstance(value, Image.Image | np.ndarray | Tensor | Portrait)

    def _load_avatar(self, avatar: Any) -> Vasa3DGaussianAvatar:
        if isinstance(avatar, str | os.PathLike):
            return self.load_avatar(avatar)
        self.check_avatar(avatar)
        return avatar.to(self._execution_device)

    def _pose_gaussians(
        self, avatar: Vasa3DGaussianAvatar, motion: Tensor | str | os.PathLike | None
    ) -> Iterator[Gaussians]:
        """Yield the Gaussians of each frame of a motion, by default of the portrait's own."""
        frames = avatar.own_motion[None]
        if motion is not None:
            spec = self.motion_transformer.motion_spec
            frames = read_motion(motion, None, spec, self.audio_processor.fps)[0][0].to(frames)
        state = avatar.rest_state()
        return (avatar(frame, rest=state).gaussians.map(lambda value: value[0]) for frame in frames.split(1))

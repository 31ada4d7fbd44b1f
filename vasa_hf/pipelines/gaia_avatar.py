"""The talking-avatar pipeline of GAIA: one portrait and one audio in, one video out.

    image --FaceAnalyzer--> landmarks --E_M--> z_m(i)      image --E_A--> z_a
    audio --motion_gaia.py--> z_m of every frame --D(z_a, z_m)--> frames

A motion is the head pose and z_m; the decoder sees z_m alone. The call, the stream and other drivers are those of
`base.py`.

# Not in the paper: a driving video moves the portrait's landmarks by its change since the first frame
(`relative=True`); the paper's cross-reenactment takes the landmarks of the other face as they are (`relative=False`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel

from vasa_hf.checks import check_number
from vasa_hf.geometry.crops import transform_points
from vasa_hf.geometry.landmark_motion import transfer_landmarks
from vasa_hf.models.autoencoder_gaia import GaiaAppearance, GaiaAutoencoder
from vasa_hf.models.face_analyzer import FaceAnalyzer
from vasa_hf.models.motion_denoiser_gaia import GaiaMotionDenoiser
from vasa_hf.motion import MotionSpec, resample_motion
from vasa_hf.motion.keyframes import Keyframes
from vasa_hf.outputs import TalkingFaceOutput
from vasa_hf.pipelines.base import TalkingHeadPipeline
from vasa_hf.pipelines.driving import DrivingFace
from vasa_hf.pipelines.inputs import DrivingVideo, ImageInput, Subject, check_components, check_fit
from vasa_hf.pipelines.motion_gaia import GaiaControls, GaiaMotionGenerator, LandmarkEdit, encode_landmarks
from vasa_hf.pipelines.motion_generator import check_speech_components
from vasa_hf.pipelines.options import FaceView, Transfer, show_options
from vasa_hf.pipelines.portrait import PortraitPipeline
from vasa_hf.processors.audio import SILENCE_PEAK, VasaAudioProcessor
from vasa_hf.processors.image import FaceCrop, FaceImageProcessor

MAX_TEXT_SECONDS = 60.0


@dataclass
class GaiaPortrait(Subject):
    """A portrait prepared by `prepare_portrait`; give it as `image` to save that work.

    Attributes:
        appearance (`GaiaAppearance`): z_a and what else the decoder needs, a batch of one.
        landmarks (`torch.Tensor` of shape `(162, 2)`): Fractions of the crop.
        pose (`torch.Tensor` of shape `(7,)`): Yaw, pitch, roll, tx, ty, tz, scale in fractions of the crop.
        latent (`torch.Tensor` of shape `(1, motion_dim)`): z_m, float32.
        picture (`torch.Tensor` of shape `(3, height, width)`): The whole image in [-1, 1].
        crop (`FaceCrop`): Where the face's square lies in it.
    """

    appearance: GaiaAppearance
    landmarks: Tensor
    pose: Tensor
    latent: Tensor
    picture: Tensor
    crop: FaceCrop

    @property
    def motion(self) -> Tensor:
        """The portrait's own pose and z_m, `(1, 6 + motion_dim)`, float32 on the CPU."""
        return motion_of(self.pose[None], self.latent)

    @property
    def output_size(self) -> int:
        """Side of the decoded square in pixels."""
        return self.crop.image.shape[-1]


@dataclass(frozen=True)
class DrivingLandmarks:
    """Landmarks `(frames, 162, 2)`, poses `(frames, 7)` and z_m `(frames, motion_dim)` of a video."""

    landmarks: Tensor
    pose: Tensor
    latent: Tensor


class GaiaAvatarPipeline(PortraitPipeline):
    """Talking avatar from one portrait and one audio, after GAIA.

    Args:
        face_analyzer (`FaceAnalyzer`): Finds faces and their landmarks.
        image_processor (`FaceImageProcessor`): Loads, crops and pastes back images.
        autoencoder (`GaiaAutoencoder`): E_A, E_M and D (§4.2).
        audio_encoder (`transformers.PreTrainedModel`): Audio features.
        audio_processor (`VasaAudioProcessor`): Brings audio to the encoder's rate.
        motion_transformer (`GaiaMotionDenoiser`): S, A and P (§4.3).
        scheduler (`DPMSolverMultistepScheduler` or another of diffusers' with `prediction_type="sample"`): Sampler.
        landmark_denoiser (`GaiaMotionDenoiser`, *optional*): Of landmark coordinates, for `edit_landmarks`.
        text_denoiser (`GaiaMotionDenoiser`, *optional*): Of instructions, for `text`.
        text_encoder (`transformers.CLIPTextModel`, *optional*): For `text`.
        text_tokenizer (`transformers.CLIPTokenizer`, *optional*): For `text`.

    Options of a call are the fields of `GaiaControls` (`pose`, `edit_landmarks`, `text`) and of `FaceView`.

    Example:
        ```python
        pipe = GaiaAvatarPipeline.from_pretrained("my-gaia")
        pipe("portrait.jpg", "speech.wav", pose=[(0, (0, 0, 0)), (2, (0.4, 0, 0))]).save("out.mp4")
        pipe("portrait.jpg", text="please smile").save("smile.mp4")
        ```
    """

    model_cpu_offload_seq = (
        "face_analyzer->audio_encoder->text_encoder->motion_transformer->landmark_denoiser->text_denoiser->autoencoder"
    )
    # Their own parameters and buffers are read outside of a layer.
    _exclude_from_cpu_offload = ["face_analyzer", "motion_transformer", "landmark_denoiser", "text_denoiser"]
    _optional_components = ["landmark_denoiser", "text_denoiser", "text_encoder", "text_tokenizer"]
    subject_type = GaiaPortrait
    controls_type = GaiaControls

    def __init__(
        self,
        face_analyzer: FaceAnalyzer,
        image_processor: FaceImageProcessor,
        autoencoder: GaiaAutoencoder,
        audio_encoder: PreTrainedModel,
        audio_processor: VasaAudioProcessor,
        motion_transformer: GaiaMotionDenoiser,
        scheduler: KarrasDiffusionSchedulers,
        landmark_denoiser: GaiaMotionDenoiser | None = None,
        text_denoiser: GaiaMotionDenoiser | None = None,
        text_encoder: CLIPTextModel | None = None,
        text_tokenizer: CLIPTokenizer | None = None,
    ):
        super().__init__()
        self.register_modules(
            face_analyzer=face_analyzer,
            image_processor=image_processor,
            autoencoder=autoencoder,
            audio_encoder=audio_encoder,
            audio_processor=audio_processor,
            motion_transformer=motion_transformer,
            scheduler=scheduler,
            landmark_denoiser=landmark_denoiser,
            text_denoiser=text_denoiser,
            text_encoder=text_encoder,
            text_tokenizer=text_tokenizer,
        )
        check_components({"autoencoder": (autoencoder, GaiaAutoencoder)})
        check_fit(
            "scheduler", "prediction_type", scheduler.config.get("prediction_type"), "sample", "motion_transformer"
        )
        for name, model in (("motion_transformer", motion_transformer), ("landmark_denoiser", landmark_denoiser)):
            if name == "motion_transformer" or model is not None:
                parts = (model, GaiaMotionDenoiser, audio_encoder, audio_processor, scheduler)
                check_speech_components(name, *parts)
        if motion_transformer.config.predicts == "latent":
            got, wanted = motion_transformer.config.motion_dim, autoencoder.motion_dim
            check_fit("motion_transformer", "motion_dim", got, wanted, "autoencoder")
        if landmark_denoiser is not None:
            got = landmark_denoiser.config.predicts
            check_fit("landmark_denoiser", "predicts", got, "landmarks", "motion_transformer")
        if text_denoiser is not None:
            check_components({"text_encoder": (text_encoder, PreTrainedModel)})
            assert text_encoder is not None  # just checked
            got, wanted = text_denoiser.config.audio_dim, text_encoder.config.hidden_size
            check_fit("text_denoiser", "audio_dim", got, wanted, "text_encoder")

    @property
    def output_sizes(self) -> tuple[int, ...]:
        """Sides of the square that the decoder can render."""
        return (self.autoencoder.config.image_size,)

    @property
    def motion_spec(self) -> MotionSpec:
        """Meaning of the channels of `motion`: head pose and z_m."""
        return MotionSpec({"latent": self.autoencoder.motion_dim})

    @partial(show_options, kinds=(GaiaControls, FaceView))
    @wraps(TalkingHeadPipeline.__call__)
    def __call__(self, image: Any = None, audio: Any = None, **options: Any) -> TalkingFaceOutput | tuple:
        """As for all systems; with `text`, `audio` may be left out."""
        if audio is not None or options.get("text") is None:
            return super().__call__(image, audio, **options)
        seconds = options.get("seconds", GaiaControls.seconds)
        check_number("seconds", seconds, 0.2, MAX_TEXT_SECONDS)
        frames = round(seconds * self.audio_processor.fps)
        # Not read, as the text takes its place; louder than what is reported as silent.
        quiet = np.full(frames * self.audio_processor.samples_per_frame, 2 * SILENCE_PEAK, np.float32)
        made = super().__call__(image, quiet, **options)
        if isinstance(made, TalkingFaceOutput):
            made.audio, made.sampling_rate = None, None
        return made

    def create_motion_generator(self) -> GaiaMotionGenerator:
        """Create the object that generates motion from speech, with a copy of the scheduler."""
        text = (self.text_denoiser, self.text_encoder, self.text_tokenizer)
        return GaiaMotionGenerator(
            self.motion_transformer,
            self.scheduler,
            self.audio_encoder,
            self.audio_processor,
            self.autoencoder,
            self._execution_device,
            self.landmark_denoiser,
            None if self.text_denoiser is None else text,
        )

    @torch.no_grad()
    def prepare_subject(self, image: ImageInput | GaiaPortrait, view: FaceView) -> GaiaPortrait:
        """Find the face, crop it and encode its appearance and motion; a prepared portrait stays as it is."""
        if isinstance(image, GaiaPortrait):
            return image
        model, device = self.autoencoder, self._execution_device
        picture = self.image_processor.load(image)
        where = self.find_face(picture, view)
        size = view.output_size or model.config.image_size
        crop = self.image_processor.crop(picture, **where, size=size, original=image)
        boxes = torch.as_tensor(where["box"], dtype=torch.float32)[None] if "box" in where else None
        face = where["face"] if boxes is None else self.face_analyzer.measure(picture, boxes)[0]
        matrix = crop.crop_from_image.float()
        landmarks, pose = transform_points(matrix, face.landmarks), face.pose_in(matrix)
        source = crop.image[None].to(device, model.dtype)
        latent = self._encode_motion(landmarks[None].to(device), source)
        own = latent.to(model.dtype) if model.config.source_passthrough else None
        return GaiaPortrait(model.encode_appearance(source, own), landmarks, pose, latent, picture, crop)

    def _encode_motion(self, landmarks: Tensor, frames: Tensor) -> Tensor:
        """z_m `(n, motion_dim)` of landmarks; of the frames themselves without disentanglement. Float32."""
        if self.autoencoder.disentangles:
            return encode_landmarks(self.autoencoder, landmarks)
        return self.autoencoder.flatten_motion(self.autoencoder.encode_motion(frames).mode()).float()

    @torch.no_grad()
    def encode_driving(self, driving: DrivingFace) -> DrivingLandmarks:
        """Landmarks, poses and z_m of a driving face, all in the first square; see `TalkingHeadPipeline`."""
        size, device, points, poses, latents = self.autoencoder.config.image_size, self._execution_device, [], [], []
        box = torch.tensor([[0.25, 0.3, 0.75, 0.8]]) * size  # of a face in the standard square
        pixels = torch.diag(torch.tensor([1 / size, 1 / size, 1.0]))
        for crop in driving.crops(size):
            face = self.face_analyzer.measure(crop, box)[0]
            points.append(face.landmarks / size)
            poses.append(face.pose_in(pixels))
            if not self.autoencoder.disentangles:
                source = crop[None].to(device, self.autoencoder.dtype)
                latents.append(self._encode_motion(points[-1][None], source).cpu())
        zoom, shift = driving.view
        landmarks, pose = torch.stack(points), torch.stack(poses)
        landmarks = zoom[:, None] * (landmarks - 0.5) + 0.5 + shift[:, None]
        place = zoom * (pose[:, 3:5] - 0.5) + 0.5 + shift
        pose = torch.cat([pose[:, :3], place, pose[:, 5:] * zoom], dim=-1)
        landmarks, pose = driving.fill(landmarks), driving.fill(pose)
        latent = driving.fill(torch.cat(latents)) if latents else self._encode_all(landmarks)
        return DrivingLandmarks(landmarks, pose, latent)

    def _encode_all(self, landmarks: Tensor) -> Tensor:
        """z_m `(frames, motion_dim)` of landmarks, a few at a time, on the CPU."""
        parts = landmarks.to(self._execution_device).split(16)
        return torch.cat([encode_landmarks(self.autoencoder, part).cpu() for part in parts])

    def measure_driving(self, driving: DrivingFace) -> Tensor:
        """Motion `(1, frames, channels)` of a driving face; see `TalkingHeadPipeline.measure_driving`."""
        found = self.encode_driving(driving)
        return motion_of(found.pose, found.latent)[None]

    @torch.no_grad()
    def transfer_motion(
        self,
        subject: GaiaPortrait,
        driving: DrivingLandmarks,
        neutral: int | None,
        fps: Fraction,
        transfer: Transfer,
        view: Any,
    ) -> tuple[Tensor, Any]:
        """Motion `(1, frames, channels)` of a subject that follows a driving video, and the view."""
        if neutral is None or not self.autoencoder.disentangles:
            return motion_of(driving.pose, driving.latent)[None], view
        landmarks, pose = self._follow(subject, driving, neutral)
        return motion_of(pose, self._encode_all(landmarks))[None], view

    def _follow(self, subject: GaiaPortrait, driving: DrivingLandmarks, neutral: int) -> tuple[Tensor, Tensor]:
        """Landmarks and poses of a subject that changes as a driving face does."""
        canonical = self.face_analyzer.canonical.float().cpu()
        own = (subject.landmarks, subject.pose)
        return transfer_landmarks(*own, driving.landmarks, driving.pose, canonical, neutral)

    @torch.no_grad()
    def render_frames(
        self,
        subject: GaiaPortrait,
        motion: Tensor,  # [T, M]
        view: FaceView | None = None,
        start_frame: int = 0,
        fps: Fraction = Fraction(25),
    ) -> Iterator[Tensor]:
        """Decode absolute motion to frames, a few at a time; see `TalkingHeadPipeline.render_frames`."""
        model, device, paste_back = self.autoencoder, self._execution_device, (view or FaceView()).paste_back

        @torch.no_grad()
        def decode(part: Tensor) -> Tensor:
            with self.decoder_precision(model):
                frames = model.decode(subject.appearance.expand(len(part)), part[:, 6:].to(device, model.dtype))
            frames = frames.float().cpu()
            if paste_back:
                frames = self.image_processor.paste_back(subject.picture, frames, subject.crop)
            return (frames * 0.5 + 0.5).clamp_(0, 1)

        yield from self.decode_ahead(decode, motion)

    def read_pose(
        self, video: str | os.PathLike, face: int | None = None, box: Sequence[float] | None = None
    ) -> Keyframes:
        """Head poses of a video, for `pose`.

        Args:
            video (`str` or `os.PathLike`): A video file.
            face (`int`, *optional*): Which face of the first frame, 0 is the largest.
            box (`Sequence[float]`, *optional*): Its box, instead of detecting it.
        """
        opened = DrivingVideo(video)
        with self._driving_face(opened.frames, face, box, opened.num_frames) as driving:
            pose = self.encode_driving(driving).pose
        return Keyframes(torch.arange(len(pose), dtype=torch.float64) / float(opened.fps), pose[:, :3].double())

    def _read_options(self, image: Any, options: dict[str, Any], *kinds: type | None) -> tuple[Any, ...]:
        """As in the base class; head poses and landmarks of a video are read here."""
        image, *read = super()._read_options(image, options, *kinds)
        for index, part in enumerate(read):
            if isinstance(part, GaiaControls):
                read[index] = self._read_videos(image, part, read)
        return (image, *read)

    def _read_videos(self, image: Any, controls: GaiaControls, others: Sequence[Any]) -> GaiaControls:
        if isinstance(controls.pose, str | os.PathLike):
            controls = dataclasses.replace(controls, pose=self.read_pose(controls.pose))
        if isinstance(controls.edit_landmarks, str | os.PathLike):
            video = DrivingVideo(controls.edit_landmarks)
            view = next((part for part in others if isinstance(part, FaceView)), FaceView())
            subject = self.prepare_subject(self._one_subject(image), view)
            with self._driving_face(video.frames, None, None, video.num_frames) as driving:
                found = self.encode_driving(driving)
            landmarks, _ = self._follow(subject, found, driving.neutral)
            landmarks = resample_motion(landmarks.flatten(1), video.fps, self.audio_processor.fps).unflatten(1, (-1, 2))
            controls = dataclasses.replace(controls, edit_landmarks=LandmarkEdit(landmarks))
        return controls


def motion_of(pose: Tensor, latent: Tensor) -> Tensor:
    """Motion `(frames, 6 + motion_dim)` of poses `(frames, 7)` and z_m, float32 on the CPU."""
    return torch.cat([pose[:, :5], pose[:, 6:7], latent.to(pose)], dim=-1).float().cpu()

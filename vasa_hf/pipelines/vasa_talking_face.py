"""The talking-face pipeline of VASA-1 (paper §3): one portrait and one audio in, one video out.

    image --FaceAnalyzer, crop--> portrait --encode_appearance--> V_app, z_id, own motion
    audio --motion_vasa1.py--> X = [z_pose, z_dyn] at 25 frames per second --decoder, frame by frame--> frames

The call, the stream and the other drivers are those of `base.py`.

# Not in the paper: other frame rates than 25 by linear interpolation of the motion; pasting the face back into the
image; a driving video (VASA-1 only shows such transfer, Fig. A.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor
from transformers import Wav2Vec2Model

from vasa_hf.models.face_analyzer import FaceAnalyzer
from vasa_hf.models.face_autoencoder_vasa1 import FaceAppearance, Vasa1FaceAutoencoder
from vasa_hf.models.motion_transformer_vasa1 import Vasa1MotionTransformer
from vasa_hf.motion import MotionSpec
from vasa_hf.pipelines.base import FPS
from vasa_hf.pipelines.driving import DrivingFace
from vasa_hf.pipelines.inputs import ImageInput, Subject, check_components, check_fit
from vasa_hf.pipelines.motion_generator import check_speech_components
from vasa_hf.pipelines.motion_vasa1 import Vasa1Controls, Vasa1MotionGenerator
from vasa_hf.pipelines.options import FaceView
from vasa_hf.pipelines.portrait import PortraitPipeline
from vasa_hf.processors.audio import VasaAudioProcessor
from vasa_hf.processors.image import FaceCrop, FaceImageProcessor


@dataclass
class Portrait(Subject):
    """A portrait prepared by `prepare_portrait`; give it as `image` to save that work.

    Attributes:
        appearance (`FaceAppearance`): The decoder's view of the person, a batch of one.
        picture (`torch.Tensor` of shape `(3, height, width)`): The whole image in [-1, 1].
        crop (`FaceCrop`): Where the face's square lies in it.
    """

    appearance: FaceAppearance
    picture: Tensor
    crop: FaceCrop

    @property
    def motion(self) -> Tensor:
        """The portrait's own pose and dynamics, `(1, 6 + dynamics_dim)`, float32."""
        return self.appearance.motion.float()

    @property
    def output_size(self) -> int:
        """Side of the decoded square in pixels."""
        return self.crop.image.shape[-1]


def check_vasa1_components(
    face_autoencoder: Any, audio_encoder: Any, audio_processor: Any, motion_transformer: Any, scheduler: Any
) -> None:
    """Raise `ValueError` if components are of another class, or do not fit each other."""
    name = "motion_transformer"
    check_components({"face_autoencoder": (face_autoencoder, Vasa1FaceAutoencoder)})
    check_speech_components(name, motion_transformer, Vasa1MotionTransformer, audio_encoder, audio_processor, scheduler)
    got, wanted = motion_transformer.config.motion_dim, face_autoencoder.motion_dim
    check_fit(name, "motion_dim", got, wanted, "face_autoencoder")
    check_fit("scheduler", "prediction_type", scheduler.config.get("prediction_type"), "sample", name)


class VasaTalkingFacePipeline(PortraitPipeline):
    """Talking face from one portrait and one audio, after VASA-1.

    Args:
        face_analyzer (`FaceAnalyzer`): Finds faces.
        face_autoencoder (`Vasa1FaceAutoencoder`): Face latent space (paper §3.1).
        audio_encoder (`transformers.Wav2Vec2Model`): Audio features.
        audio_processor (`VasaAudioProcessor`): Brings audio to the encoder's rate.
        image_processor (`FaceImageProcessor`): Loads, crops and pastes back images.
        motion_transformer (`Vasa1MotionTransformer`): Diffusion transformer over motion (paper §3.2).
        scheduler (`DDIMScheduler` or another of diffusers' with `prediction_type="sample"`): Sampler.

    Options of a call are the fields of `Vasa1Controls` (`gaze`, `head_distance`, `emotion`, `head_motion`) and of
    `FaceView` (`face`, `box`, `output_size`, `paste_back`).

    Example:
        ```python
        pipe = VasaTalkingFacePipeline.from_pretrained("vasa-small")
        out = pipe("portrait.jpg", "speech.wav", generator=torch.Generator().manual_seed(1))
        out.save("out.mp4")
        ```
    """

    model_cpu_offload_seq = "face_analyzer->audio_encoder->motion_transformer->face_autoencoder"
    _exclude_from_cpu_offload = ["motion_transformer"]  # its null tokens are parameters of a module without `forward`
    subject_type = Portrait
    controls_type = Vasa1Controls

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

    @property
    def output_sizes(self) -> tuple[int, ...]:
        """Sides of the square that the decoder can render."""
        size = self.face_autoencoder.config.image_size
        return (size, 2 * size) if self.face_autoencoder.config.source_passthrough else (size,)

    @property
    def motion_spec(self) -> MotionSpec:
        """Meaning of the channels of `motion`: head pose and the dynamics of the face autoencoder."""
        return self.motion_transformer.motion_spec

    def create_motion_generator(self) -> Vasa1MotionGenerator:
        """Create the object that generates motion from speech, with a copy of the scheduler."""
        parts = (self.motion_transformer, self.scheduler, self.audio_encoder, self.audio_processor)
        return Vasa1MotionGenerator(*parts, self._execution_device)

    @torch.no_grad()
    def prepare_subject(self, image: ImageInput | Portrait, view: FaceView) -> Portrait:
        """Find the face, crop it and encode its appearance; a prepared portrait stays as it is."""
        if isinstance(image, Portrait):
            return image
        model = self.face_autoencoder
        picture = self.image_processor.load(image)
        size = view.output_size or model.config.image_size
        crop = self.image_processor.crop(picture, **self.find_face(picture, view), size=size, original=image)
        appearance = model.encode_appearance(crop.image[None].to(self._execution_device, model.dtype))
        return Portrait(appearance, picture, crop)

    @torch.no_grad()
    def encode_driving(self, driving: DrivingFace) -> Tensor:
        """Motion `(1, frames, channels)` of a driving face; see `TalkingHeadPipeline.encode_driving`."""
        model, motions = self.face_autoencoder, []
        for crop in driving.crops(model.config.image_size):
            motions.append(model.encode_motion(crop[None].to(self._execution_device, model.dtype)).float())
        return driving.complete(torch.stack(motions, dim=1))

    @torch.no_grad()
    def render_frames(
        self,
        subject: Portrait,
        motion: Tensor,  # [T, M]
        view: FaceView | None = None,
        start_frame: int = 0,
        fps: Fraction = Fraction(FPS),
    ) -> Iterator[Tensor]:
        """Decode absolute motion to frames, a few at a time; see `TalkingHeadPipeline.render_frames`."""
        model, device, paste_back = self.face_autoencoder, self._execution_device, (view or FaceView()).paste_back

        @torch.no_grad()
        def decode(part: Tensor) -> Tensor:
            appearance = subject.appearance.expand(len(part))
            with self.decoder_precision(model):
                frames = model.decode(appearance, part.to(device), output_size=subject.output_size)
            frames = frames.float().cpu()
            if paste_back:
                frames = self.image_processor.paste_back(subject.picture, frames, subject.crop)
            return (frames * 0.5 + 0.5).clamp_(0, 1)

        yield from self.decode_ahead(decode, motion)

"""The talking-head pipeline of JoyVASA: as MoDA's, with a denoiser whose only condition is the audio.

    audio --motion_joyvasa.py--> expression, pose --relative to its first frame--> motion --LivePortrait--> frames

The call and the stream are those of `base.py`, other drivers and rendering those of `liveportrait.py`.
"""

from __future__ import annotations

from diffusers import DDPMScheduler
from transformers import PreTrainedModel

from vasa_hf.models.face_analyzer import FaceAnalyzer
from vasa_hf.models.motion_denoiser_joyvasa import JoyVasaMotionDenoiser
from vasa_hf.models.renderer_liveportrait import LivePortraitRenderer
from vasa_hf.pipelines.inputs import check_fit
from vasa_hf.pipelines.keypoint_motion import HeadControls
from vasa_hf.pipelines.liveportrait import LivePortraitPipeline
from vasa_hf.pipelines.motion_generator import check_speech_components
from vasa_hf.pipelines.motion_joyvasa import JoyVasaMotionGenerator
from vasa_hf.processors.audio import VasaAudioProcessor
from vasa_hf.processors.image import FaceImageProcessor


class JoyVasaTalkingHeadPipeline(LivePortraitPipeline):
    """Talking head from one portrait and one audio, after JoyVASA.

    Args:
        face_analyzer (`FaceAnalyzer`): Finds faces.
        image_processor (`FaceImageProcessor`): Loads, crops and pastes back images.
        renderer (`LivePortraitRenderer`): Appearance, keypoints, warping, frames.
        motion_transformer (`JoyVasaMotionDenoiser`): Motion from speech.
        audio_encoder (`transformers.PreTrainedModel`): JoyVASA's own, with the generator's `audio_dim` channels.
        audio_processor (`VasaAudioProcessor`): Brings audio to the encoder's rate.
        scheduler (`DDPMScheduler` or another with `prediction_type="sample"`): Sampler.

    Options of a call are the fields of `HeadControls` (`expression`, `head_motion`) and of `KeypointView`.

    Example:
        ```python
        pipe = JoyVasaTalkingHeadPipeline.from_pretrained("my-joyvasa")
        pipe("portrait.jpg", "speech.wav").save("out.mp4")
        ```
    """

    model_cpu_offload_seq = "face_analyzer->audio_encoder->motion_transformer->renderer"
    _exclude_from_cpu_offload = ["motion_transformer"]  # `nn.MultiheadAttention` reads weights of an inner module
    controls_type = HeadControls

    def __init__(
        self,
        face_analyzer: FaceAnalyzer,
        image_processor: FaceImageProcessor,
        renderer: LivePortraitRenderer,
        motion_transformer: JoyVasaMotionDenoiser,
        audio_encoder: PreTrainedModel,
        audio_processor: VasaAudioProcessor,
        scheduler: DDPMScheduler,
    ):
        super().__init__(face_analyzer, image_processor, renderer)
        self.register_modules(
            motion_transformer=motion_transformer,
            audio_encoder=audio_encoder,
            audio_processor=audio_processor,
            scheduler=scheduler,
        )
        parts = (motion_transformer, JoyVasaMotionDenoiser, audio_encoder, audio_processor, scheduler)
        check_speech_components("motion_transformer", *parts)
        prediction_type = scheduler.config.get("prediction_type")
        check_fit("scheduler", "prediction_type", prediction_type, "sample", "motion_transformer")

    def create_motion_generator(self) -> JoyVasaMotionGenerator:
        """Create the object that generates motion from speech, with a copy of the scheduler."""
        parts = (self.motion_transformer, self.scheduler, self.audio_encoder, self.audio_processor)
        return JoyVasaMotionGenerator(*parts, self._execution_device)

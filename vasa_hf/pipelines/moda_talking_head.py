"""The talking-head pipeline of MoDA: one portrait and one audio in, one video out, through LivePortrait's keypoints.

    image --FaceAnalyzer, crop--> portrait --F, M--> appearance volume, keypoints
    audio --motion_moda.py--> expression, pose --onto the portrait--> motion --LivePortrait--> frames

The call and the stream are those of `base.py`, other drivers and rendering those of `liveportrait.py`.

# Not in the paper: `head_motion`, edits of the expression, pasting the face back, other frame rates than 25.
"""

from __future__ import annotations

import os
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import PreTrainedModel

from vasa_hf.models.face_analyzer import FaceAnalyzer
from vasa_hf.models.motion_denoiser_joyvasa import JoyVasaMotionDenoiser
from vasa_hf.models.motion_transformer_moda import TIMESTEP_SPACINGS, ModaMotionTransformer
from vasa_hf.models.renderer_liveportrait import LivePortraitRenderer
from vasa_hf.pipelines.inputs import check_choice
from vasa_hf.pipelines.joyvasa_talking_head import JoyVasaTalkingHeadPipeline
from vasa_hf.pipelines.liveportrait import LivePortraitPipeline
from vasa_hf.pipelines.loading import HUB_OPTIONS, local_folder, pipeline_errors, read_components
from vasa_hf.pipelines.motion_generator import check_speech_components
from vasa_hf.pipelines.motion_moda import ModaControls, ModaMotionGenerator
from vasa_hf.processors.audio import VasaAudioProcessor
from vasa_hf.processors.image import FaceImageProcessor


class ModaTalkingHeadPipeline(LivePortraitPipeline):
    """Talking head from one portrait and one audio, after MoDA.

    Args:
        face_analyzer (`FaceAnalyzer`): Finds faces.
        image_processor (`FaceImageProcessor`): Loads, crops and pastes back images.
        renderer (`LivePortraitRenderer`): Appearance, keypoints, warping, frames.
        motion_transformer (`ModaMotionTransformer`): Motion from speech.
        audio_encoder (`transformers.PreTrainedModel`): Audio features.
        audio_processor (`VasaAudioProcessor`): Brings audio to the encoder's rate.
        scheduler (`FlowMatchEulerDiscreteScheduler` or another of diffusers' for flows): Sampler.
        timestep_spacing (`str`, defaults to `"linspace"`):
            `"trailing"`: N equal steps, as in the paper (Eq. 2). `"linspace"`: those of MoDA's code, the last
            0.001 long.
        gaze_offset (`bool`, defaults to `False`): Open the gaze a little, as MoDA's code does for its weights.

    Options of a call are the fields of `ModaControls` (`emotion`, `expression`, `head_motion`) and of `KeypointView`.

    Example:
        ```python
        pipe = ModaTalkingHeadPipeline.from_pretrained("moda-small")
        out = pipe("portrait.jpg", "speech.wav", emotion="happiness", generator=torch.Generator().manual_seed(1))
        out.save("out.mp4")
        pipe.animate("portrait.jpg", "driving.mp4", region="lips").save("lips.mp4")
        ```
    """

    model_cpu_offload_seq = "face_analyzer->audio_encoder->motion_transformer->renderer"
    controls_type = ModaControls

    def __init__(
        self,
        face_analyzer: FaceAnalyzer,
        image_processor: FaceImageProcessor,
        renderer: LivePortraitRenderer,
        motion_transformer: ModaMotionTransformer,
        audio_encoder: PreTrainedModel,
        audio_processor: VasaAudioProcessor,
        scheduler: FlowMatchEulerDiscreteScheduler,
        timestep_spacing: str = "linspace",
        gaze_offset: bool = False,
    ):
        super().__init__(face_analyzer, image_processor, renderer)
        self.register_modules(
            motion_transformer=motion_transformer,
            audio_encoder=audio_encoder,
            audio_processor=audio_processor,
            scheduler=scheduler,
        )
        check_choice("timestep_spacing", timestep_spacing, TIMESTEP_SPACINGS)
        self.register_to_config(timestep_spacing=timestep_spacing, gaze_offset=bool(gaze_offset))
        parts = (motion_transformer, ModaMotionTransformer, audio_encoder, audio_processor, scheduler)
        check_speech_components("motion_transformer", *parts)
        if "FlowMatch" not in type(scheduler).__name__ and not getattr(scheduler.config, "use_flow_sigmas", False):
            kind = type(scheduler).__name__
            raise ValueError(f"`scheduler` must be one for flow matching to fit the `motion_transformer`, got {kind}.")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> LivePortraitPipeline:
        """Load a pipeline; see `TalkingHeadPipeline.from_pretrained`.

        Earlier versions saved JoyVASA and LivePortrait under this class's name: it is loaded by its class.
        """
        folder = local_folder(
            pretrained_model_name_or_path, **{name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        )
        with pipeline_errors(pretrained_model_name_or_path):
            index = read_components(folder)
        entry = index.get("motion_transformer")
        kind = entry[-1] if isinstance(entry, list) and entry else None
        if index and kind is None:
            return LivePortraitPipeline.from_pretrained(pretrained_model_name_or_path, **kwargs)
        if kind == JoyVasaMotionDenoiser.__name__:
            return JoyVasaTalkingHeadPipeline.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def create_motion_generator(self) -> ModaMotionGenerator:
        """Create the object that generates motion from speech, with a copy of the scheduler."""
        parts = (self.motion_transformer, self.scheduler, self.audio_encoder, self.audio_processor)
        options = {name: self.config[name] for name in ("timestep_spacing", "gaze_offset")}
        return ModaMotionGenerator(*parts, self._execution_device, **options)

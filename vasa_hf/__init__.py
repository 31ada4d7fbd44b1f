"""Talking faces from one portrait and one voice, in the style of diffusers.

The public names below are imported on first use: `import vasa_hf` stays fast and `vasa-hf --help` needs no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "ArcFaceRecognizer": "models.arcface",
    "CameraKeyframes": "motion.camera_paths",
    "Cameras": "geometry.cameras",
    "Capp": "models.capp",
    "FaceAnalyzer": "models.face_analyzer",
    "FaceImageProcessor": "processors.image",
    "FaceRecognizer": "models.face_recognizer",
    "ForgeryDetector": "models.forgery_detector",
    "GaiaAutoencoder": "models.autoencoder_gaia",
    "GaiaAvatarPipeline": "pipelines.gaia_avatar",
    "GaiaMotionDenoiser": "models.motion_denoiser_gaia",
    "JoyVasaMotionDenoiser": "models.motion_denoiser_joyvasa",
    "JoyVasaTalkingHeadPipeline": "pipelines.joyvasa_talking_head",
    "LandmarkEdit": "pipelines.motion_gaia",
    "LivePortraitPipeline": "pipelines.liveportrait",
    "LivePortraitRenderer": "models.renderer_liveportrait",
    "MediaPipeFaceAnalyzer": "models.face_analyzer_mediapipe",
    "ModaMotionTransformer": "models.motion_transformer_moda",
    "ModaTalkingHeadPipeline": "pipelines.moda_talking_head",
    "MotionSpec": "motion.spec",
    "OrbitCamera": "motion.camera_paths",
    "ParametricHead": "head.parametric",
    "SyncExpert": "models.sync_expert",
    "SyncNet": "models.syncnet",
    "TalkingFaceOutput": "outputs",
    "TalkingHeadPipeline": "pipelines.base",
    "Vasa1FaceAutoencoder": "models.face_autoencoder_vasa1",
    "Vasa1MotionTransformer": "models.motion_transformer_vasa1",
    "Vasa3DAvatarPipeline": "pipelines.vasa_3d_avatar",
    "Vasa3DGaussianAvatar": "models.gaussian_avatar_vasa3d",
    "VasaAudioProcessor": "processors.audio",
    "VasaTalkingFacePipeline": "pipelines.vasa_talking_face",
    "VggFeatures": "models.vgg_features",
    "load_motion": "motion.spec",
    "load_parametric_head": "head.loading",
    "orbit_cameras": "geometry.cameras",
    "pretrained_features": "models.pretrained_features",
    "save_motion": "motion.spec",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

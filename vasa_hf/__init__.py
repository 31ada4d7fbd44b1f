"""Talking faces from one portrait and one voice, in the style of diffusers.

The public names below are imported on first use: `import vasa_hf` stays fast and `vasa-hf --help` needs no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "FaceAnalyzer": "models.face_analyzer",
    "FaceImageProcessor": "processors.image",
    "MotionSpec": "motion",
    "TalkingFaceOutput": "outputs",
    "Vasa1FaceAutoencoder": "models.face_autoencoder_vasa1",
    "Vasa1MotionTransformer": "models.motion_transformer_vasa1",
    "VasaAudioProcessor": "processors.audio",
    "VasaTalkingFacePipeline": "pipelines.vasa_talking_face",
    "load_motion": "motion",
    "save_motion": "motion",
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

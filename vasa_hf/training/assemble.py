"""A VASA-1 pipeline from parts that were trained apart: what `vasa-hf assemble` does.

The face autoencoder decides the size of the crops and the meaning of z_dyn, the audio encoder the width and the
normalisation of the audio features. What is not given comes from a known pipeline, where it fits.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from transformers import Wav2Vec2Model

from vasa_hf.hub import resolve
from vasa_hf.models.face_analyzer import FaceAnalyzer
from vasa_hf.models.face_autoencoder_vasa1 import Vasa1FaceAutoencoder
from vasa_hf.models.motion_transformer_vasa1 import Vasa1MotionTransformer
from vasa_hf.processors.audio import VasaAudioProcessor
from vasa_hf.processors.image import FaceImageProcessor
from vasa_hf.training.saving import save_pipeline

#: Files next to a pipeline's components that say what z_dyn means.
MEANING_OF_DYNAMICS = ("landmark_dynamics.safetensors", "motion_priors.safetensors")


def assemble(
    output: str | os.PathLike,
    base: str = "vasa-small",
    face_autoencoder: str | None = None,
    audio_encoder: str | None = None,
    motion_transformer: str | None = None,
    face_analyzer: str | None = None,
) -> list[str]:
    """Write a pipeline folder.

    Args:
        output (`str` or `os.PathLike`): Folder to write, new or empty.
        base (`str`, defaults to "vasa-small"): Pipeline that the other parts come from.
        face_autoencoder (`str`, *optional*): Folder of a trained `Vasa1FaceAutoencoder`.
        audio_encoder (`str`, *optional*): Folder or Hub name of a `Wav2Vec2Model`, such as
            "facebook/wav2vec2-base-960h". Its `preprocessor_config.json` says whether audio is normalised first.
        motion_transformer (`str`, *optional*): Folder of a trained `Vasa1MotionTransformer`; its scheduler is taken
            from `scheduler/` next to it, where that exists.
        face_analyzer (`str`, *optional*): Folder of a trained `FaceAnalyzer`.

    Returns:
        `list[str]`: Components that are missing: `motion_transformer` if that of the base does not fit the other parts
        and none was given. `vasa-hf train motion_transformer --pipeline OUTPUT` then makes a whole pipeline.

    Raises:
        ValueError: If a part cannot be loaded, the motion transformer does not fit, or `output` is not empty.
    """
    check_new_folder(output)
    known = Path(resolve(base))
    parts: dict[str, Any] = {}
    own = Vasa1FaceAutoencoder.load_config(known, subfolder="face_autoencoder")
    dynamics_dim, motion_space = own["dynamics_dim"], own["motion_space"]
    if face_autoencoder is not None:
        model = load_part(Vasa1FaceAutoencoder, face_autoencoder, "face_autoencoder")
        dynamics_dim, motion_space = model.config.dynamics_dim, model.config.motion_space
        processor = FaceImageProcessor.from_pretrained(known, subfolder="image_processor")
        processor.size = model.config.image_size
        parts |= {"face_autoencoder": model, "image_processor": processor}
    if face_analyzer is not None:
        parts["face_analyzer"] = load_part(FaceAnalyzer, face_analyzer, "face_analyzer")
    if audio_encoder is not None:
        parts["audio_encoder"] = load_part(Wav2Vec2Model, audio_encoder, "audio_encoder")
        parts["audio_processor"] = VasaAudioProcessor(do_normalize=_normalizes(audio_encoder))
    audio_config = json.loads((known / "audio_encoder" / "config.json").read_text())
    audio_dim = parts["audio_encoder"].config.hidden_size if audio_encoder else audio_config["hidden_size"]

    wanted = {"motion_dim": 6 + dynamics_dim, "audio_dim": audio_dim}
    if motion_transformer is not None:
        parts["motion_transformer"] = motion = load_part(
            Vasa1MotionTransformer, motion_transformer, "motion_transformer"
        )
        for name, value in wanted.items():
            if motion.config[name] != value:
                raise ValueError(
                    f"`motion_transformer` must have `{name}` {value}, as the face autoencoder and the audio encoder; "
                    f"{motion_transformer!r} has {motion.config[name]}."
                )
        scheduler = Path(resolve(motion_transformer)).parent / "scheduler"
        if scheduler.is_dir():
            parts["scheduler"] = DDIMScheduler.from_pretrained(scheduler)
    config = Vasa1MotionTransformer.load_config(known, subfolder="motion_transformer")
    same_meaning = motion_space == own["motion_space"] and audio_encoder is None
    fits = motion_transformer is not None or (same_meaning and all(config[name] == wanted[name] for name in wanted))
    missing = [] if fits else ["motion_transformer"]
    dropped = [*missing, *(MEANING_OF_DYNAMICS if motion_space != own["motion_space"] else ())]
    save_pipeline(known, output, dropped, **parts)
    return missing


def check_new_folder(output: str | os.PathLike) -> None:
    """Raise `ValueError` if there is something at this path that is not an empty folder."""
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"`output` must be a new or empty folder, got {str(output)!r}.")


def load_part(kind: Any, source: str, argument: str, dtype: torch.dtype = torch.float32) -> Any:
    """Load a trained component of a class; raise `ValueError` with the name of the argument if that fails."""
    try:
        return kind.from_pretrained(resolve(source), torch_dtype=dtype)
    except (OSError, ValueError) as error:
        message = f"`{argument}` must be a folder or name of a {kind.__name__}, got {source!r}: {error}"
        raise ValueError(message) from error


def _normalizes(source: str) -> bool:
    """Whether an encoder expects normalised audio, by the feature extractor saved with it; `False` without one."""
    from transformers.feature_extraction_utils import FeatureExtractionMixin

    try:
        settings, _ = FeatureExtractionMixin.get_feature_extractor_dict(resolve(source))
    except OSError:
        return False
    return bool(settings.get("do_normalize", False))

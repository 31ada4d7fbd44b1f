"""A GAIA pipeline from parts that were trained apart: what `vasa-hf assemble --system gaia` does.

Face analyzer, image processor and the speech features come from a known pipeline: the denoisers were trained on its
audio encoder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from transformers import AutoConfig, CLIPTextModel, CLIPTokenizer

from vasa_hf.hub import resolve
from vasa_hf.models.autoencoder_gaia import GaiaAutoencoder
from vasa_hf.models.motion_denoiser_gaia import GaiaMotionDenoiser, gaia_scheduler
from vasa_hf.processors.image import FaceImageProcessor
from vasa_hf.training.assemble import check_new_folder, load_part
from vasa_hf.training.saving import read_pipeline_index, save_pipeline

#: Components that GAIA takes from the base.
BORROWED = ("face_analyzer", "image_processor", "audio_encoder", "audio_processor")


def assemble_gaia(
    output: str | os.PathLike,
    base: str = "vasa-small",
    *,
    autoencoder: str,
    motion_transformer: str,
    landmark_denoiser: str | None = None,
    text_denoiser: str | None = None,
    share: bool = False,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a pipeline folder that `GaiaAvatarPipeline.from_pretrained` loads.

    Args:
        output (`str` or `os.PathLike`): Folder to write, new or empty.
        base (`str`, defaults to "vasa-small"): Pipeline with the components of `BORROWED`.
        autoencoder (`str`): Folder of a trained `GaiaAutoencoder`.
        motion_transformer (`str`): Folder of a trained `GaiaMotionDenoiser`; its scheduler is taken from `scheduler/`
            next to it, where that exists.
        landmark_denoiser (`str`, *optional*): Folder of one trained with `--predicts landmarks`, for `edit_landmarks`.
        text_denoiser (`str`, *optional*): Folder of one that `gaia_text_denoiser` trained, for `text`; with
            `text_encoder/` and `text_tokenizer/` next to it.
        share (`bool`, defaults to `False`): Name the base in the folder instead of copying its components.
        dtype (`torch.dtype`, defaults to `torch.float32`): Type of the weights that are written.

    Raises:
        ValueError: If a part cannot be loaded or does not fit, or `output` is not empty.
    """
    check_new_folder(output)
    audio_dim = _audio_dim(base)
    parts: dict[str, Any] = {
        "autoencoder": load_part(GaiaAutoencoder, autoencoder, "autoencoder", dtype),
        "motion_transformer": load_part(GaiaMotionDenoiser, motion_transformer, "motion_transformer", dtype),
    }
    size, latent = parts["autoencoder"].config.image_size, parts["autoencoder"].motion_dim
    predicts = parts["motion_transformer"].config.predicts
    _check(parts["motion_transformer"], "motion_transformer", audio_dim, latent if predicts == "latent" else None)
    scheduler = Path(resolve(motion_transformer)).parent / "scheduler"
    parts["scheduler"] = gaia_scheduler()
    if scheduler.is_dir():
        parts["scheduler"] = DPMSolverMultistepScheduler.from_pretrained(scheduler)
    if landmark_denoiser is not None:
        model = load_part(GaiaMotionDenoiser, landmark_denoiser, "landmark_denoiser", dtype)
        if model.config.predicts != "landmarks":
            raise ValueError("`landmark_denoiser` must be trained with --predicts landmarks, got one of latents.")
        _check(model, "landmark_denoiser", audio_dim)
        parts["landmark_denoiser"] = model
    if text_denoiser is not None:
        folder = Path(resolve(text_denoiser)).parent
        model = load_part(GaiaMotionDenoiser, text_denoiser, "text_denoiser", dtype)
        parts["text_encoder"] = load_part(CLIPTextModel, str(folder / "text_encoder"), "text_denoiser", dtype)
        parts["text_tokenizer"] = CLIPTokenizer.from_pretrained(folder / "text_tokenizer")
        _check(model, "text_denoiser", parts["text_encoder"].config.hidden_size, latent)
        parts["text_denoiser"] = model
    processor = FaceImageProcessor.from_pretrained(resolve(base), subfolder="image_processor")
    if processor.size != size:
        processor.size, parts["image_processor"] = size, processor
    index = read_pipeline_index(base)
    unused = [name for name in os.listdir(resolve(base)) if name not in ("model_index.json", *BORROWED)]
    unused += [name for name in index if not name.startswith("_") and name not in BORROWED]
    save_pipeline(base, output, unused, "GaiaAvatarPipeline", BORROWED if share else (), **parts)


def _audio_dim(base: str) -> int:
    return AutoConfig.from_pretrained(Path(resolve(base)) / "audio_encoder").hidden_size


def _check(model: GaiaMotionDenoiser, name: str, audio_dim: int, motion_dim: int | None = None) -> None:
    """Raise `ValueError` for a denoiser of other speech features or another autoencoder."""
    for field, wanted in (("audio_dim", audio_dim), ("motion_dim", motion_dim)):
        if wanted is not None and model.config[field] != wanted:
            raise ValueError(
                f"`{name}` must have `{field}` {wanted}, as the other parts; it has {model.config[field]}."
            )

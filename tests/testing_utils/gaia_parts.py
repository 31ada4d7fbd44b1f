"""GAIA's parts as the trainings write them: tiny, random, and for the speech features of vasa-small."""

import torch

from tests.testing_utils.pipelines import make_gaia_denoiser
from vasa_hf.models.autoencoder_gaia import PRESETS, GaiaAutoencoder
from vasa_hf.models.motion_denoiser_gaia import gaia_scheduler
from vasa_hf.training.recipes.gaia_text_denoiser import GaiaTextOptions, make_text_encoder


def save_text_model(folder, **changes):
    """Write a text denoiser of width 16 with its encoder and tokenizer; returns tokenizer and encoder."""
    torch.manual_seed(1)
    tokenizer, encoder = make_text_encoder(GaiaTextOptions(text_width=16))
    make_gaia_denoiser(**changes).save_pretrained(folder / "text_denoiser")
    encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "text_tokenizer")
    return tokenizer, encoder.eval()


def save_gaia_parts(folder, image_size=32):
    """Write all parts; returns the arguments of `assemble_gaia`."""
    torch.manual_seed(0)
    autoencoder = GaiaAutoencoder(**{**PRESETS["tiny"], "image_size": image_size})
    autoencoder.save_pretrained(folder / "faces" / "autoencoder")
    kinds = {"motion": {}, "landmarks": {"motion_dim": 324, "motion_channels": 2, "predicts": "landmarks"}}
    for name, changes in kinds.items():
        changes = {"motion_dim": autoencoder.motion_dim, "audio_dim": 192, **changes}
        make_gaia_denoiser(**changes).save_pretrained(folder / name / "motion_transformer")
    gaia_scheduler("sde").save_pretrained(folder / "motion" / "scheduler")
    save_text_model(folder / "text", motion_dim=autoencoder.motion_dim)
    return {
        "autoencoder": str(folder / "faces" / "autoencoder"),
        "motion_transformer": str(folder / "motion" / "motion_transformer"),
        "landmark_denoiser": str(folder / "landmarks" / "motion_transformer"),
        "text_denoiser": str(folder / "text" / "text_denoiser"),
    }

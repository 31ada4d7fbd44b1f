"""Reference vectors of MoDA: where they are, and the small model they were made with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vasa_hf.models.motion_transformer_moda import ModaMotionTransformer

MODA = Path(__file__).parents[3] / "shared" / "refvec" / "moda"
needs_vectors = pytest.mark.skipif(not MODA.is_dir(), reason="the reference vectors are not beside this repository")


def as_tensors(name: str) -> dict[str, torch.Tensor]:
    """Arrays of a file of the folder."""
    with np.load(MODA / name) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def moda_small() -> ModaMotionTransformer:
    """The reference's reduced model with its random weights; motion is neither shifted nor scaled."""
    weights = load_file(MODA / "motion_diffusion_small.safetensors")
    prefix = "talking_head_dit."
    state = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    model = ModaMotionTransformer(hidden_size=48, num_heads=4, audio_dim=16)
    state["null_audio"] = weights["null_audio_feat"].flatten()
    state["motion_mean"], state["motion_std"] = torch.zeros(70), torch.ones(70)
    model.load_state_dict(state)
    return model.eval()

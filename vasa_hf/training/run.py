"""The entry of all trainings.

    vasa-hf train RECIPE [options]                                          # one process
    accelerate launch -m vasa_hf.training RECIPE [options]                  # one or more GPUs
    torchrun --nproc_per_node 2 -m vasa_hf.training RECIPE --cpu [options]  # several processes on CPUs

A recipe is a module of `training/recipes/` with a function `run(options)`; the annotation of `options` is the dataclass
that the command line fills. `RECIPE --help` lists its options, `--config NAME` reads a file of `training/configs/`.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from vasa_hf.training.options import parse_options

# Name of the module -> what it trains.
RECIPES = {
    "audio_encoder": "the small audio encoder, on synthetic speech, clips and a teacher's states",
    "capp": "CAPP, the alignment of audio and head pose (VASA-1 §4.1)",
    "face_analyzer": "the face detector and landmark network",
    "face_autoencoder": "VASA-1's face latent space (§3.1)",
    "face_recognizer": "the face recogniser of the identity and perceptual losses",
    "forgery_detector": "the detector of synthetic videos (VASA-1 appendix A)",
    "gaia_autoencoder": "GAIA's variational autoencoder (§4.2)",
    "gaia_motion_denoiser": "GAIA's diffusion models of speech: latents, or landmark coordinates (§4.3, D.2)",
    "gaia_text_denoiser": "GAIA's diffusion model of instructions in words (appendix E)",
    "gaussian_avatar": "a VASA-3D avatar of one portrait",
    "motion_transformer": "VASA-1's motion generator (§3.2)",
    "motion_transformer_moda": "MoDA's motion generator (§3.2.4)",
    "region_refiners": "the networks that repaint mouth and eyes",
    "renderer_liveportrait": "LivePortrait's renderer, MoDA's motion space",
    "sync_expert": "the lip-sync expert of the evaluation",
    "sync_expert_moda": "MoDA's lip-sync expert (ALSE, §3.2.4)",
}


def recipes_help() -> str:
    """A line for each recipe."""
    width = max(map(len, RECIPES))
    return "\n".join(f"  {name:{width}}  {text}" for name, text in RECIPES.items())


def main(arguments: Sequence[str] | None = None) -> Any:
    """Run a recipe and return what its `run` returns.

    Args:
        arguments (`Sequence[str]`, *optional*): Recipe and options, those of the process by default.

    Raises:
        ValueError: If the recipe is unknown or an option does not fit.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__.strip()}\n\nrecipes:\n{recipes_help()}")
        return None
    name, *rest = arguments
    if name not in RECIPES:
        raise ValueError(f"`recipe` must be one of {', '.join(RECIPES)}, got {name!r}.")
    recipe = import_module(f"{__package__}.recipes.{name}")
    options_class = typing.get_type_hints(recipe.run)["options"]
    return recipe.run(parse_options(options_class, rest, recipe.__doc__, prog=f"vasa-hf train {name}"))

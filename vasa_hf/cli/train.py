"""The command `train`: the trainings of the package."""

from __future__ import annotations

import argparse
from typing import Any


def add_commands(command: Any) -> None:
    """Add this module's command to the parser."""
    train = command(
        "train",
        _train,
        "train a network of the package, or fit an avatar, by a recipe",
        "examples:\n"
        "  vasa-hf train                          # the list of recipes\n"
        "  vasa-hf train motion_transformer -h    # the options of one\n"
        "  vasa-hf train motion_transformer --config small_motion_transformer --pipeline vasa-small --data shards "
        "--output motion\n"
        "\nSeveral GPUs: accelerate launch -m vasa_hf.training RECIPE [options]. Guide: vasa_hf/training/README.md\n",
    )
    train.add_argument("recipe", nargs="?", help="name of the training")
    train.add_argument("options", nargs=argparse.REMAINDER, help="options of the recipe")


def _train(chosen: argparse.Namespace) -> None:
    from vasa_hf.training.run import main

    main([chosen.recipe, *chosen.options] if chosen.recipe else ["--help"])

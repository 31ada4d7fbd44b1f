"""The command `assemble`: a pipeline from parts that were trained apart."""

from __future__ import annotations

import argparse
from typing import Any

import vasa_hf


def add_commands(command: Any) -> None:
    """Add this module's command to the parser."""
    make = command(
        "assemble",
        _assemble,
        "make a VASA-1 pipeline of trained parts, of any size",
        "examples:\n"
        "  vasa-hf assemble -o start --face-autoencoder faces/face_autoencoder "
        "--audio-encoder facebook/wav2vec2-base-960h\n"
        "  vasa-hf train motion_transformer --pipeline start --data shards --output motion\n"
        "  vasa-hf talk me.png hello.wav -o out.mp4 --model motion/pipeline\n",
    )
    make.add_argument("-o", "--output", required=True, metavar="DIR", help="pipeline folder to write, new or empty")
    make.add_argument("--base", default="vasa-small", help="pipeline that all other parts come from (%(default)s)")
    make.add_argument("--face-autoencoder", metavar="DIR", help="trained face autoencoder; it decides size and z_dyn")
    make.add_argument("--audio-encoder", metavar="NAME", help="Wav2Vec2 model: a folder or a name on the Hub")
    make.add_argument("--motion-transformer", metavar="DIR", help="trained motion generator")
    make.add_argument("--face-analyzer", metavar="DIR", help="trained face analyzer")


def _assemble(chosen: argparse.Namespace) -> None:
    from vasa_hf.training.assemble import assemble

    names = ("base", "face_autoencoder", "audio_encoder", "motion_transformer", "face_analyzer")
    missing = assemble(chosen.output, **{name: getattr(chosen, name) for name in names})
    if missing:
        print(
            f"{chosen.output}: no motion transformer fits yet; it is made by\n"
            f"  vasa-hf train motion_transformer --pipeline {chosen.output} --data DATA --output MOTION"
        )
        return
    pipe = vasa_hf.VasaTalkingFacePipeline.from_pretrained(chosen.output)
    print(f"{chosen.output}: loads; frames of {pipe.output_sizes[0]} pixels")

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
        "make a VASA-1 or GAIA pipeline of trained parts, of any size",
        "examples:\n"
        "  vasa-hf assemble -o start --face-autoencoder faces/face_autoencoder "
        "--audio-encoder facebook/wav2vec2-base-960h\n"
        "  vasa-hf train motion_transformer --pipeline start --data shards --output motion\n"
        "  vasa-hf talk me.png hello.wav -o out.mp4 --model motion/pipeline\n"
        "  vasa-hf assemble --system gaia -o my-gaia --autoencoder faces/autoencoder --motion-transformer "
        "motion/motion_transformer\n",
    )
    make.add_argument("--system", choices=("vasa1", "gaia"), default="vasa1", help="what is made (%(default)s)")
    make.add_argument("-o", "--output", required=True, metavar="DIR", help="pipeline folder to write, new or empty")
    make.add_argument("--base", default="vasa-small", help="pipeline that all other parts come from (%(default)s)")
    make.add_argument("--face-autoencoder", metavar="DIR", help="trained face autoencoder; it decides size and z_dyn")
    make.add_argument("--audio-encoder", metavar="NAME", help="Wav2Vec2 model: a folder or a name on the Hub")
    make.add_argument("--motion-transformer", metavar="DIR", help="trained motion generator, of both systems")
    make.add_argument("--face-analyzer", metavar="DIR", help="trained face analyzer")
    gaia = make.add_argument_group("gaia", "face analyzer and audio encoder are those of --base")
    gaia.add_argument("--autoencoder", metavar="DIR", help="trained by gaia_autoencoder")
    gaia.add_argument("--landmark-denoiser", metavar="DIR", help="the same with --predicts landmarks; edits landmarks")
    gaia.add_argument("--text-denoiser", metavar="DIR", help="trained by gaia_text_denoiser; follows instructions")
    gaia.add_argument("--share", action="store_true", help="name --base in the folder, do not copy its components")
    gaia.add_argument("--half", action="store_true", help="write float16 weights")


_VASA1 = ("face_autoencoder", "audio_encoder", "motion_transformer", "face_analyzer")
_GAIA = ("autoencoder", "motion_transformer", "landmark_denoiser", "text_denoiser", "share")


def _assemble(chosen: argparse.Namespace) -> None:
    for name in set(_VASA1) - set(_GAIA) if chosen.system == "gaia" else {*_GAIA, "half"} - set(_VASA1):
        if getattr(chosen, name):
            raise ValueError(f"`{name}` has no effect with --system {chosen.system}: leave one of them out.")
    if chosen.system == "gaia":
        _assemble_gaia(chosen)
        return
    from vasa_hf.training.assemble import assemble

    missing = assemble(chosen.output, chosen.base, **{name: getattr(chosen, name) for name in _VASA1})
    if missing:
        print(
            f"{chosen.output}: no motion transformer fits yet; it is made by\n"
            f"  vasa-hf train motion_transformer --pipeline {chosen.output} --data DATA --output MOTION"
        )
        return
    _check_loads("VasaTalkingFacePipeline", chosen.output)


def _assemble_gaia(chosen: argparse.Namespace) -> None:
    for name in ("autoencoder", "motion_transformer"):
        if getattr(chosen, name) is None:
            raise ValueError(f"`{name}` must be given with --system gaia.")
    import torch

    from vasa_hf.training.assemble_gaia import assemble_gaia

    dtype = torch.float16 if chosen.half else torch.float32
    assemble_gaia(chosen.output, chosen.base, dtype=dtype, **{name: getattr(chosen, name) for name in _GAIA})
    _check_loads("GaiaAvatarPipeline", chosen.output)


def _check_loads(name: str, folder: str) -> None:
    pipe = getattr(vasa_hf, name).from_pretrained(folder)
    print(f"{folder}: loads; frames of {pipe.output_sizes[0]} pixels")

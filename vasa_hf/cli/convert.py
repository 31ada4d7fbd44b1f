"""The command `convert`: public checkpoints to safetensors that this package loads."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import Any

from vasa_hf.cli import options as shared

_EXAMPLES = """examples:
  vasa-hf convert liveportrait KwaiVGI/LivePortrait liveportrait
  vasa-hf convert liveportrait KwaiVGI/LivePortrait animals --animals
  vasa-hf convert moda lixinyizju/moda moda --statistics MoDA/src/datasets/mean.pt
  vasa-hf convert joyvasa jdh-algo/JoyVASA joyvasa --renderer KwaiVGI/LivePortrait
  vasa-hf convert syncnet syncnet_v2.model syncnet
  vasa-hf convert lpips alexnet.pth lpips_alex.pth lpips
  vasa-hf convert vgg vgg19-dcbb9e9d.pth vgg19
  vasa-hf convert arcface backbone.pth arcface
  vasa-hf convert flame FLAME2020/generic_model.pkl flame2020.safetensors
then
  vasa-hf talk me.jpg hello.wav -o out.mp4 --system moda --model joyvasa
  vasa-hf fit me.jpg -o me/ --head flame2020.safetensors --lpips lpips

Checkpoints are read without unpickling, so no foreign code runs. A table shows where every tensor went; if one does
not fit, nothing is written.
"""
# Number of source files of each kind.
_SOURCES = {"liveportrait": 1, "moda": 1, "joyvasa": 1, "syncnet": 1, "lpips": 2, "vgg": 1, "arcface": 1, "flame": 1}
# Options of some kinds only, and those kinds.
_OPTIONS = {
    "animals": ("liveportrait",),
    "renderer": ("moda", "joyvasa"),
    "statistics": ("moda",),
    "positional_encoding": ("joyvasa",),
}


def add_commands(command: Any) -> None:
    """Add this module's command to the parser."""
    convert = command(
        "convert", _convert, "convert a public checkpoint to safetensors, without unpickling it", _EXAMPLES
    )
    convert.add_argument("kind", choices=_SOURCES, help="the checkpoint's model")
    convert.add_argument(
        "source", nargs="+", help="folder, Hub repository or file; lpips: backbone, then linear layers"
    )
    convert.add_argument("destination", help="new folder to write; flame: a .safetensors file")
    convert.add_argument("--animals", action="store_true", default=None, help="liveportrait: the weights for animals")
    convert.add_argument("--renderer", help="moda, joyvasa: LivePortrait's weights, if the source has none")
    convert.add_argument("--statistics", metavar="MEAN.pt", help="moda: motion statistics from MoDA's code")
    convert.add_argument(
        "--positional-encoding", help="joyvasa: single_row, as in the public weights (the default), or per_frame"
    )
    convert.add_argument("--quiet", action="store_true", help="print counts only, not every tensor")


def _convert(options: argparse.Namespace) -> int:
    from vasa_hf.convert.checkpoint import ConversionError, ConversionReport

    given = {name: getattr(options, name) for name in _OPTIONS if getattr(options, name) is not None}
    for name in given:
        if options.kind not in _OPTIONS[name]:
            raise ValueError(f"`{name}` is an option of {' and '.join(_OPTIONS[name])}, not of {options.kind}.")
    if len(options.source) != _SOURCES[options.kind]:
        raise ValueError(
            f"`source` must be {_SOURCES[options.kind]} file(s) for {options.kind}, got {len(options.source)}."
        )
    shared.quiet_libraries()
    convert = getattr(import_module(f"vasa_hf.convert.{options.kind}"), f"convert_{options.kind}")
    try:
        result = convert(*options.source, options.destination, **given)
    except ConversionError as error:  # the table first: an error is one line
        print(error.table, file=sys.stderr)
        raise ValueError(error.summary) from error
    print(result.brief() if options.quiet and isinstance(result, ConversionReport) else result)
    return 0

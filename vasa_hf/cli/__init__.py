"""The command `vasa-hf`: parses the command line, calls a pipeline or a function, prints the result.

Results go to stdout, progress and messages to stderr. Exit status: 0 done, 2 bad input (one line says what), 130
stopped by Ctrl-C, 1 any other error. The commands are in the modules next to this one: `talk.py` (videos of a
portrait), `batch.py` (many of them), `avatars.py` (3D), `app.py` (the web page), `serve.py` (live sessions),
`measure.py` (bench, eval), `study.py` (users' judgement), `prepare.py` (data), `train.py` and `assemble.py`
(trainings), `convert.py` (public checkpoints), `push.py` (the Hub).
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

import vasa_hf
from vasa_hf.cli import (
    app,
    assemble,
    avatars,
    batch,
    convert,
    measure,
    options,
    prepare,
    push,
    serve,
    study,
    talk,
    train,
)

_CONSENT = "Animate only adults who agreed to it, or people who do not exist; never children."

# Heavy imports (torch and all that imports it) are inside the commands, so that `vasa-hf --help` is quick.

# Arguments of the package's functions -> the options that set them, where the names differ.
_OPTIONS = {
    "certificate": "c2pa_cert",
    "driving_multiplier": "multiplier",
    "eye_ratio": "eyes",
    "guidance_scale": "guidance",
    "head_distance": "distance",
    "key": "c2pa_key",
    "lip_ratio": "lips",
    "num_gaussians": "gaussians",
    "num_inference_steps": "steps",
    "output_size": "size",
    "overrides": "set",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments (`Sequence[str]`, *optional*): Words after `vasa-hf`; by default those of the process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _build_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what could come next
        import argcomplete

        argcomplete.autocomplete(parser)
    if not arguments:
        parser.print_help()
        return 0
    chosen = parser.parse_args(_join_values(arguments))
    # Read when torch is imported. Threads that wait actively take the cores that ffmpeg and other programs need: twice
    # as slow on a laptop with two busy cores, and no gain on idle ones.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        # SIGTERM cleans up as Ctrl-C does; signals can be caught in the main thread only.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    except ValueError:
        pass
    notes = _log_to_stderr(chosen.parser)
    try:
        status = chosen.run(chosen) or 0
        sys.stdout.flush()  # here, so that a failure is reported
        return status
    except KeyboardInterrupt:
        print("vasa-hf: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, FileNotFoundError, PermissionError, IsADirectoryError) as error:
        print(f"vasa-hf: error: {name_options(' '.join(str(error).split()), chosen.parser)}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a name that is too long, a lost network
        print(f"vasa-hf: error: {' '.join(str(error).split())}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # the rest of the output cannot be printed either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ImportError as error:
        if error.name is not None:  # a broken installation; the package's own errors have no name
            raise
        print(f"vasa-hf: error: {error}", file=sys.stderr)
        return 1
    finally:
        logging.getLogger("vasa_hf").removeHandler(notes)


def name_options(message: str, parser: argparse.ArgumentParser) -> str:
    """Replace arguments in backticks by the options of a command: `box=(x0, y0, x1, y1)` -> `--box X0,Y0,X1,Y1`.

    Args:
        message (`str`): Error or note of the package. Names that are no option of the command stay.
        parser (`argparse.ArgumentParser`): Parser of the command.
    """
    actions: dict[str, argparse.Action] = {}
    for action in parser._actions:
        actions.setdefault(action.dest, action)

    def replace(match: re.Match[str]) -> str:
        name = match[1].replace("-", "_")
        name = parser.get_default("arguments").get(name) or _OPTIONS.get(name, name)
        if (action := actions.get(name)) is None:
            return match[0]
        shown = action.option_strings[-1] if action.option_strings else name
        return f"`{shown} {action.metavar or match[2]}`" if match[2] else f"`{shown}`"

    return re.sub(r"`([\w-]+)(?:\[\d+\])?(?:=([^`]*))?`", replace, message)


def _log_to_stderr(parser: argparse.ArgumentParser) -> logging.Handler:
    """Print the package's notes on its input (several faces, a shrunk image, silent audio)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("vasa-hf: note: %(message)s"))
    handler.format = lambda record: name_options(logging.StreamHandler.format(handler, record), parser)
    logger = logging.getLogger("vasa_hf")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler


def _join_values(arguments: list[str]) -> list[str]:
    """`--gaze -0.1,0` -> `--gaze=-0.1,0`: argparse would read the value as an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in ("--gaze", "--pose"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vasa-hf",
        description="Talking faces from one portrait and one voice (VASA-1, VASA-3D), with embedded weights.",
        epilog=f"`vasa-hf COMMAND --help` shows the options and examples of a command. {_CONSENT}",
    )
    parser.add_argument("--version", action="version", version=f"vasa-hf {vasa_hf.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Any, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
        animates = name in ("talk", "batch", "animate", "render", "fit", "talk3d", "app", "serve")
        about = f"{text}. {_CONSENT}" if animates else text
        added = commands.add_parser(
            name, help=text, description=about, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        added.set_defaults(run=run, parser=added, arguments={})
        options.record_given(added)
        return added

    for module in (talk, batch, avatars, app, serve, measure, study, prepare, train, assemble, convert, push):
        module.add_commands(command)
    return parser

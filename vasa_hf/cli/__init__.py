"""The command `vasa-hf`: parses, calls a pipeline or a function, prints.

Results go to stdout, progress and messages to stderr. Exit status: 0 done, 2 bad input (one line says what), 130
stopped by Ctrl-C, 1 anything else. The commands are in the modules beside this one: `talk.py` (video of a picture),
`avatars.py` (3D), `app.py` (the web page), `measure.py` (bench, eval), `prepare.py` (data), `convert.py` (other
projects' checkpoints), `push.py` (the Hub).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import vasa_hf
from vasa_hf.cli import app, avatars, convert, measure, options, prepare, push, talk

_CONSENT = "Animate only adults who agreed to it, or people who do not exist; never children."

# Heavy imports (torch and what brings it) wait until a command needs them: `vasa-hf --help` is quick.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments (`Sequence[str]`, *optional*): Words after `vasa-hf`, those of the process by default.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    chosen = _parser().parse_args(_with_joined_values(arguments))
    # Read when torch is imported. Threads that wait for each other busily take the cores that ffmpeg, and whatever else
    # runs here, need: twice as slow on a laptop with two busy cores, and no gain on idle ones.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        # A polite kill cleans up as Ctrl-C does; signals can be caught in the main thread only.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    except ValueError:
        pass
    notes = _notes_to_stderr()
    try:
        status = chosen.run(chosen) or 0
        sys.stdout.flush()  # here, where it can be told that it failed
        return status
    except KeyboardInterrupt:
        print("vasa-hf: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, FileNotFoundError, PermissionError, IsADirectoryError) as error:
        print(f"vasa-hf: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a name that is too long, a network that is gone
        print(f"vasa-hf: error: {' '.join(str(error).split())}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # what is still to be printed cannot be, either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ImportError as error:
        if error.name is not None:  # a fault of the installation; ours have no name, and say what to install
            raise
        print(f"vasa-hf: error: {error}", file=sys.stderr)
        return 1
    finally:
        logging.getLogger("vasa_hf").removeHandler(notes)


def _notes_to_stderr() -> logging.Handler:
    """What the package has to say of its input (several faces, a shrunk picture, a silent sound) is said here, too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("vasa-hf: note: %(message)s"))
    logger = logging.getLogger("vasa_hf")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler


def _with_joined_values(arguments: list[str]) -> list[str]:
    """`--gaze -0.1,0` -> `--gaze=-0.1,0`: argparse would take the value for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--gaze":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vasa-hf",
        description="Talking faces from one portrait and one voice (VASA-1, VASA-3D), with embedded weights.",
        epilog=f"`vasa-hf COMMAND --help` tells more about a command. {_CONSENT}",
    )
    parser.add_argument("--version", action="version", version=f"vasa-hf {vasa_hf.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Any, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
        animates = name in ("talk", "animate", "render", "fit", "talk3d", "app")
        about = f"{text}. {_CONSENT}" if animates else text
        added = commands.add_parser(
            name, help=text, description=about, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        added.set_defaults(run=run)
        options.note_given(added)
        return added

    for module in (talk, avatars, app, measure, prepare, convert, push):
        module.add_commands(command)
    return parser

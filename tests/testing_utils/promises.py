"""What every input must come to: a whole result, or one line that names the argument; nothing is left behind."""

import contextlib
import io
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from vasa_hf.cli import main
from vasa_hf.files import temporary_prefix
from vasa_hf.media import VideoReader

MAX_SECONDS = 30  # of one case, on a loaded machine
MAX_MESSAGE = 900  # a path of 4 kB is shortened, a shape is not


def run(*words):
    """Run the command line in this process; its exit status, stdout and the lines of stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in words])
        except SystemExit as error:  # argparse's own
            status = error.code
    return status, out.getvalue(), err.getvalue().replace("\r", "\n").strip().splitlines()


def check_command(folder, *words, output=None):
    """Run a command that writes below `folder`, and hold it to the promise.

    Returns:
        `str`: the error's message, or `""` where there was none: then `output` is a whole video.
    """
    began, before = time.monotonic(), _held(folder)
    status, said, lines = run(*words)
    assert time.monotonic() - began < MAX_SECONDS
    assert _temporary() == [] and _children() == [], (_temporary(), _children())
    if status == 0:
        assert said and not any("vasa-hf: error:" in line for line in lines), lines
        if output is not None:
            assert len(list(VideoReader(output))) > 0
            assert _held(folder) - before <= {os.path.basename(output)}
            Path(output).unlink()
        return ""
    assert status in (1, 2) and said == "", (status, said)
    check_message(lines[-1])
    assert _held(folder) == before, "something was left behind"
    return lines[-1]


def check_message(line):
    """One line that names the argument, and shows nothing of the inside."""
    assert re.match(r"vasa-hf[\w ]*: error: ", line), line
    assert re.search(r"`[\w.\[\]-]+`|argument ", line) and len(line) < MAX_MESSAGE, line
    assert "Traceback" not in line and " @ 0x" not in line and " object at 0x" not in line, line


def check_call(function, *arguments, **options):
    """Call a function, and hold it to the promise.

    Returns:
        `str`: the message of its `ValueError`, or `""` where its result is finite.
    """
    began = time.monotonic()
    try:
        result = function(*arguments, **options)
        for one in result if hasattr(result, "__next__") else [result]:
            _check_finite(one.frames if hasattr(one, "frames") else one)
    except ValueError as error:
        check_message(f"vasa-hf: error: {error}")
        return str(error)
    finally:
        assert time.monotonic() - began < MAX_SECONDS and _children() == []
    return ""


def _check_finite(frames):
    if isinstance(frames, list | tuple):
        for frame in frames:
            _check_finite(frame)
    elif torch.is_tensor(frames):
        assert bool(torch.isfinite(frames).all())
    elif isinstance(frames, np.ndarray):
        assert np.isfinite(frames).all()


def _held(folder):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*")}


def _temporary():
    return [path.name for path in Path(tempfile.gettempdir()).glob(f"{temporary_prefix()}*")]


def _children():
    """Processes of this one that still run, such as ffmpeg; none is known where there is no /proc."""
    try:
        tasks = os.listdir("/proc/self/task")
        numbers = [child for task in tasks for child in Path(f"/proc/self/task/{task}/children").read_text().split()]
    except OSError:
        return []
    names = {number: _command(number) for number in numbers}
    return [name for name in names.values() if "ffmpeg" in name]


def _command(number):
    try:
        return Path(f"/proc/{number}/cmdline").read_text().replace("\0", " ")[:80]
    except OSError:
        return ""


def remove(folder):
    """Empty a folder."""
    for path in Path(folder).iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

"""Files that appear whole or not at all, also when their writer is killed."""

from __future__ import annotations

import csv
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_MARK = "vasa-hf-"
_PROBE = bytes(1 << 16)
_swept: set[tuple[str, bool]] = set()  # once is enough: this process removes its own

VIDEO_SUFFIXES = (".mp4", ".webm", ".gif")  # of videos that can be written


def check_writable(name: str, path: str | os.PathLike) -> None:
    """Raise `ValueError` if a file cannot be written: no folder, no permission, no space, or too long a name.

    Args:
        name (`str`): Argument to name in the message.
        path (`str` or `os.PathLike`): The file, new or to be replaced.
    """
    path = Path(path).absolute()
    try:
        if not path.parent.is_dir():
            raise ValueError(f"`{name}` must lie in an existing folder, got {str(path)!r}.")
        with suppress(FileNotFoundError):
            path.lstat()  # refuses a name that is too long
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "a device"
            raise ValueError(f"`{name}` must be a file that can be written, but {str(path)!r} is {what}.")
        with tempfile.TemporaryFile(prefix=temporary_prefix(), dir=path.parent) as probe:
            probe.write(_PROBE)
            probe.flush()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"`{name}` must be a file that can be written, got {_shorten(path)}: {reason}.") from error


@contextmanager
def staging(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder next to `path`; the file of the same name in it replaces `path` at the end.

    After an exception, Ctrl-C included, the folder is removed and `path` is unchanged. The folder of a killed
    process is removed by the next one that writes there.

    Raises:
        ValueError: If the folder of `path` does not exist, `path` is a folder, or nothing can be written there.
    """
    path = Path(path).absolute()  # ffmpeg would read a relative `a:b.mp4` as protocol `a`
    check_writable("path", path)
    sweep(path.parent, hidden=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{temporary_prefix()}", dir=path.parent))
    try:
        yield folder
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_csv(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]], columns: Iterable[str] | None = None) -> None:
    """Write rows as CSV in UTF-8, whole or not at all; cells that a row lacks are empty.

    Args:
        path (`str` or `os.PathLike`): The file.
        rows (`Sequence[Mapping[str, Any]]`): Cells by column.
        columns (`Iterable[str]`, *optional*): All columns of all rows by default.
    """
    names = list(columns if columns is not None else dict.fromkeys(name for row in rows for name in row))
    with staging(path) as folder, open(folder / Path(path).name, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, names, restval="")
        table.writeheader()
        table.writerows(rows)


@contextmanager
def staging_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder that gets the name `path`, of no or an empty folder, at the end; otherwise as `staging`."""
    path = Path(path).absolute()
    sweep(path.parent, hidden=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{temporary_prefix()}", dir=path.parent))
    try:
        (whole := partial / path.name).mkdir()  # others may read it, unlike the one of `mkdtemp`
        yield whole
        if path.is_dir():
            path.rmdir()
        whole.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder among the system's temporary files. A killed process leaves it to the next one."""
    sweep(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix=temporary_prefix()) as folder:
        yield Path(folder)


def temporary_prefix() -> str:
    """Start of the names of this process's temporary files; from it, others can tell whether the process still runs."""
    return f"{_MARK}{_host_name()}-{os.getpid()}-"


def sweep(folder: str | os.PathLike, hidden: bool = False) -> None:
    """Remove the temporary folders of killed processes of this machine.

    Args:
        folder (`str` or `os.PathLike`): Where to look, not deeper.
        hidden (`bool`, defaults to `False`): Whether the names begin with a dot.
    """
    key = os.path.realpath(folder), hidden
    if os.name != "posix" or key in _swept:  # elsewhere this check would end the process
        return
    _swept.add(key)
    begin = f"{'.' if hidden else ''}{_MARK}{_host_name()}-"
    for path in Path(folder).glob(f"{begin}*"):
        owner = re.match(r"(\d+)-", path.name[len(begin) :])
        if owner and not _is_running(int(owner[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _host_name() -> str:
    return re.sub(r"\W", "", platform.node())[:32] or "host"


def _shorten(path: Path) -> str:
    text = repr(str(path))
    return text if len(text) <= 200 else f"{text[:90]}...{text[-90:]}"

"""Jobs: each has a folder, can be stopped, and tells how far it is."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vasa_hf.files import sweep, temporary_prefix

_STOP = "stop"
_M_ARENA_MAX = -8  # of <malloc.h>


class Stopped(Exception):  # noqa: N818 - no error: someone wanted it
    """The user stopped the job."""


@dataclass(frozen=True)
class Update:
    """How far a job is, and what it has made since the last update.

    Args:
        stage (`str`): What is being done, in words for the user.
        done, total (`int`, defaults to 0): Steps of the stage; a total of 0 is unknown.
        seconds_left (`float`, *optional*): Estimate for the stage.
        segments (`tuple` of `vasa_hf.media.segments.Segment`): Pieces of the video that became whole.
        preview (`Path`, *optional*): A picture of what there is so far.
        files (`dict[str, Path]`): Results, at the end.
    """

    stage: str
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    segments: tuple = ()
    preview: Path | None = None
    files: dict[str, Path] = field(default_factory=dict)


class Job:
    """One piece of work for one user. It is known by its folder alone: another process can stop it, too.

    Args:
        folder (`Path`): For its files.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def stop(self) -> None:
        """Let the next `check` end the work."""
        with contextlib.suppress(FileNotFoundError):  # it has ended already
            (self.folder / _STOP).touch()

    def check(self) -> None:
        """Raise `Stopped` if the user wants no more of it."""
        if (self.folder / _STOP).exists() or not self.folder.exists():
            raise Stopped


class Jobs:
    """All jobs of all users; their files are under one folder that ends with the process.

    Args:
        root (`Path`, *optional*): That folder, a new temporary one by default.
        keep_hours (`float`, defaults to 12): What is `kept` for users who never said that they left goes after that.
    """

    def __init__(self, root: Path | None = None, keep_hours: float = 12.0):
        if root is None:
            sweep(tempfile.gettempdir())  # what servers that were killed have left
            root = tempfile.mkdtemp(prefix=temporary_prefix())
        self.root, self.keep_hours = Path(root), keep_hours
        atexit.register(shutil.rmtree, self.root, ignore_errors=True)

    @contextlib.contextmanager
    def open(self, session: str) -> Iterator[Job]:
        """A job of a user; its folder goes when the context ends, however it ends."""
        self._sweep()
        folder = Path(tempfile.mkdtemp(prefix=f"job-{_plain(session)}-", dir=self.root))
        try:
            yield Job(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def stop(self, session: str) -> int:
        """Stop what runs for a user; returns how many jobs that were."""
        folders = list(self.root.glob(f"job-{_plain(session)}-*"))
        for folder in folders:
            Job(folder).stop()
        return len(folders)

    def kept(self, session: str) -> Path:
        """A folder for what a user made and may use again, such as an avatar."""
        folder = self.root / f"kept-{_plain(session)}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def forget(self, session: str) -> None:
        """The user has left: stop and remove everything of theirs."""
        self.stop(session)
        shutil.rmtree(self.kept(session), ignore_errors=True)

    def _sweep(self) -> None:
        oldest = time.time() - 3600 * self.keep_hours
        for folder in self.root.glob("kept-*"):
            with contextlib.suppress(FileNotFoundError):
                if folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)


def _plain(session: str) -> str:
    """A session's name as a part of a folder's name."""
    return "".join(c if c.isalnum() else "_" for c in session)


def share_one_heap() -> None:
    """Let all threads take memory from one heap, where the allocator is glibc's; to be called before they begin.

    It would give each its own: every thread that ever ran a job then keeps that job's peak, as `malloc_trim` returns
    the free end of the first heap only.
    """
    _tell_libc("mallopt", _M_ARENA_MAX, 1)


def release_memory() -> None:
    """Give memory that a job has freed back to the system, where the allocator (glibc's) would keep it for the next."""
    gc.collect()
    _tell_libc("malloc_trim", 0)


def _tell_libc(function: str, *arguments: int) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other systems have no such function, or no libc
        getattr(ctypes.CDLL(None), function)(*arguments)


class Pace:
    """Time left in a stage, from the time that its steps took."""

    def __init__(self) -> None:
        self._stage, self._began, self._first = None, 0.0, 0

    def left(self, stage: str, done: int, total: int) -> float | None:
        """Seconds that the rest of a stage takes at the pace so far; `None` before two reports of it."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._first = stage, now, done
        steps = done - self._first
        return None if steps <= 0 or total < done else (now - self._began) / steps * (total - done)


def told(job: Job, work: Callable[[Callable[[Any], None]], Any], every: float = 0.5) -> Iterator[Any]:
    """Run `work(tell)` in a thread and yield what it tells; `None` where it told nothing for `every` seconds.

    `tell` raises `Stopped` in the thread once the job is stopped, or nobody listens any more.

    Returns:
        What `work` returned, as the value of `yield from`. Its exception is raised here.
    """
    messages: queue.Queue = queue.Queue()
    left = threading.Event()

    def tell(message: Any) -> None:
        if left.is_set():
            raise Stopped
        job.check()
        messages.put(("told", message))

    def run() -> None:
        try:
            messages.put(("done", work(tell)))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            messages.put(("failed", error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            try:
                kind, value = messages.get(timeout=every)
            except queue.Empty:
                yield None
                continue
            if kind == "done":
                return value
            if kind == "failed":
                raise value
            yield value
    finally:
        left.set()
        thread.join()

"""Jobs: each has a folder, can be stopped, waits its turn, and reports its progress."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import gc
import queue
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vasa_hf.files import sweep, temporary_prefix

_STOP = "stop"
_M_ARENA_MAX = -8  # of <malloc.h>


class Stopped(Exception):  # noqa: N818 - not an error
    """The user stopped the job."""


@dataclass(frozen=True)
class Update:
    """Progress of a job, and what it has made since the last update.

    Args:
        stage (`str`): What is being done, in words for the user.
        done, total (`int`, defaults to 0): Steps of the stage; a total of 0 is unknown.
        seconds_left (`float`, *optional*): Estimate for the stage.
        segments (`tuple` of `vasa_hf.media.segments.Segment`): Finished segments of the video.
        preview (`Path`, *optional*): Image of the result so far.
        files (`dict[str, Path]`): Results, at the end.
        field (`str`, *optional*): Set for an error: the field that has to be changed, or `""`.
    """

    stage: str
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    segments: tuple = ()
    preview: Path | None = None
    files: dict[str, Path] = dataclasses.field(default_factory=dict)
    field: str | None = None


class Job:
    """A job of one user. Its state is its folder alone, so that another process can stop it.

    Args:
        folder (`Path`): For its files.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def stop(self) -> None:
        """Make the next `check` raise."""
        with contextlib.suppress(FileNotFoundError):  # already ended
            (self.folder / _STOP).touch()

    def check(self) -> None:
        """Raise `Stopped` if the user has stopped the job."""
        if self.stopped:
            raise Stopped

    @property
    def stopped(self) -> bool:
        """Whether the user has stopped the job, or it has ended."""
        return (self.folder / _STOP).exists() or not self.folder.exists()


class Jobs:
    """All jobs of all users. Their files are in one folder, which is removed when the process ends.

    Args:
        root (`Path`, *optional*): That folder, a new temporary one by default.
        keep_hours (`float`, defaults to 12): When the files `kept` for a user are removed if the browser never said
            that the user left.
    """

    def __init__(self, root: Path | None = None, keep_hours: float = 12.0):
        if root is None:
            sweep(tempfile.gettempdir())  # files of killed servers
            root = tempfile.mkdtemp(prefix=temporary_prefix())
        self.root, self.keep_hours = Path(root), keep_hours
        atexit.register(shutil.rmtree, self.root, ignore_errors=True)

    @contextlib.contextmanager
    def open(self, session: str) -> Iterator[Job]:
        """Open a job of a user; its folder is removed when the context ends."""
        self._sweep()
        folder = Path(tempfile.mkdtemp(prefix=f"job-{_plain(session)}-", dir=self.root))
        try:
            yield Job(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def stop(self, session: str) -> int:
        """Stop the jobs of a user; returns how many there were."""
        folders = list(self.root.glob(f"job-{_plain(session)}-*"))
        for folder in folders:
            Job(folder).stop()
        return len(folders)

    def kept(self, session: str) -> Path:
        """Folder for files that a user may use again, such as an avatar."""
        folder = self.root / f"kept-{_plain(session)}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def forget(self, session: str) -> None:
        """Stop the jobs of a user who left, and remove their files."""
        self.stop(session)
        shutil.rmtree(self.kept(session), ignore_errors=True)

    def _sweep(self) -> None:
        oldest = time.time() - 3600 * self.keep_hours
        for folder in self.root.glob("kept-*"):
            with contextlib.suppress(FileNotFoundError):
                if folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)


def _plain(session: str) -> str:
    """Session name as part of a folder name."""
    return "".join(c if c.isalnum() else "_" for c in session)


class Line:
    """Jobs that wait for the models: one runs at a time, in order of arrival."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []
        self._lock = threading.Lock()
        self._seconds: deque[float] = deque(maxlen=10)  # of the last jobs

    @contextlib.contextmanager
    def join(self, job: Job) -> Iterator[Turn]:
        """Wait in line; the place is given up when the context ends."""
        turn = Turn(self, job)
        with self._lock:
            self._turns.append(turn)
        try:
            yield turn
        finally:
            with self._lock:
                self._turns.remove(turn)
                if turn.began is not None:
                    self._seconds.append(time.monotonic() - turn.began)

    def ahead(self, turn: Turn) -> list[Turn]:
        """Turns before this one; those of stopped jobs that have not begun do not count."""
        with self._lock:
            before = self._turns[: self._turns.index(turn)]
            ahead = [one for one in before if one.began is not None or not one.job.stopped]
            if not ahead and turn.began is None:
                turn.began = time.monotonic()
            return ahead

    def typical_seconds(self) -> float | None:
        """Mean time of the last jobs, `None` before the first has ended."""
        with self._lock:
            return sum(self._seconds) / len(self._seconds) if self._seconds else None


class Turn:
    """Place of a job in a `Line`.

    Args:
        line (`Line`): The line.
        job (`Job`): The job.

    Attributes:
        began (`float`, *optional*): `time.monotonic()` when it came first.
        seconds_left (`float`, *optional*): Estimate by the running job itself.
    """

    def __init__(self, line: Line, job: Job):
        self.line, self.job = line, job
        self.began: float | None = None
        self.seconds_left: float | None = None

    def wait(self, every: float = 0.5) -> Iterator[Update]:
        """Yield the place in the line and the time to wait, until it is this job's turn.

        Raises:
            Stopped: If the user has stopped the job.
        """
        self.job.check()
        while ahead := self.line.ahead(self):
            typical, first = self.line.typical_seconds(), ahead[0].seconds_left
            first = typical if first is None else first
            known = first is not None and (typical is not None or len(ahead) == 1)
            seconds = first + (len(ahead) - 1) * (typical or 0) if known else None
            yield Update(f"Waiting: place {len(ahead)} in the queue", seconds_left=seconds)
            time.sleep(every)
            self.job.check()


def share_one_heap() -> None:
    """Make all threads use one heap, where the allocator is glibc's; call it before they start.

    By default each thread has its own: every thread that ever ran a job keeps that job's peak, as `malloc_trim` returns
    the free end of the first heap only.
    """
    _call_libc("mallopt", _M_ARENA_MAX, 1)


def release_memory() -> None:
    """Return freed memory to the system, where the allocator (glibc's) would keep it."""
    gc.collect()
    _call_libc("malloc_trim", 0)


def _call_libc(function: str, *arguments: int) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no such function, or no libc
        getattr(ctypes.CDLL(None), function)(*arguments)


class Pace:
    """Estimates the time left in a stage."""

    def __init__(self) -> None:
        self._stage, self._began, self._first = None, 0.0, 0

    def left(self, stage: str, done: int, total: int) -> float | None:
        """Seconds left at the pace so far; `None` at the first report of a stage."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._first = stage, now, done
        steps = done - self._first
        return None if steps <= 0 or total < done else (now - self._began) / steps * (total - done)


def run_in_thread(job: Job, work: Callable[[Callable[[Any], None]], Any], every: float = 0.5) -> Iterator[Any]:
    """Run `work(report)` in a thread and yield what it reports; `None` where nothing came for `every` seconds.

    `report` raises `Stopped` in the thread once the job is stopped or the iterator is closed.

    Returns:
        The result of `work`, as the value of `yield from`. Its exception is raised here.
    """
    messages: queue.Queue = queue.Queue()
    closed = threading.Event()

    def report(message: Any) -> None:
        if closed.is_set():
            raise Stopped
        job.check()
        messages.put(("report", message))

    def run() -> None:
        try:
            messages.put(("done", work(report)))
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
        closed.set()
        thread.join()

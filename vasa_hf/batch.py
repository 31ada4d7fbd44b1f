"""Many jobs over several workers, each of which loads its model once; no job is lost, whatever happens to a worker.

```
jobs --one at a time--> worker processes, or actors of Ray (`batch_ray.py`) --> results as they come
                        one dies: its job has failed, a new worker takes its place
```
`vasa-hf batch` talks with it; it knows nothing of what the jobs are.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

#: Workers that may die one after another before they are ready, until the batch is given up.
MOST_FAILED_STARTS = 3


@dataclass
class JobResult:
    """Outcome of a job.

    Attributes:
        name (`str`): Name of the job.
        error (`str`, *optional*): Why it failed; `None` if it is done.
        value (`Any`): What the worker returned.
    """

    name: str
    error: str | None = None
    value: Any = None


def run_jobs(
    jobs: Mapping[str, Any],
    make_worker: Callable[..., Callable[[Any], Any]],
    arguments: tuple = (),
    workers: int = 1,
) -> Iterator[JobResult]:
    """Run jobs in processes of this machine, and yield their results as they come.

    Args:
        jobs (`Mapping[str, Any]`): Name -> what the worker takes; both can be pickled.
        make_worker (`Callable`): `make_worker(*arguments)` is called once in each worker, and returns a function of a
            job. A function or class of a module, such that other processes find it.
        arguments (`tuple`, *optional*): Its arguments.
        workers (`int`, *optional*, defaults to 1): How many work at the same time.

    Yields:
        `JobResult`: One for each job, in the order in which they end.

    Raises:
        ValueError: If a number is unfit, or no worker can be made.
    """
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1, got {workers}.")
    if not jobs:
        return
    pool = _Pool(make_worker, arguments)
    try:
        yield from pool.run(jobs, min(workers, len(jobs)))
    finally:
        pool.close()


@dataclass(eq=False)
class _Worker:
    """A process and the job that it does."""

    process: Any
    connection: Connection
    job: str | None = None
    is_ready: bool = False


@dataclass
class _Pool:
    """Worker processes. Not `ProcessPoolExecutor`: there, the death of one process fails the jobs of all."""

    make_worker: Callable[..., Callable[[Any], Any]]
    arguments: tuple
    workers: list[_Worker] = field(default_factory=list)

    def run(self, jobs: Mapping[str, Any], count: int) -> Iterator[JobResult]:
        """See `run_jobs`."""
        rest, failed_starts = deque(jobs), 0
        for _ in range(count):
            self._start()
        while self.workers:
            ready = wait([worker.connection for worker in self.workers])
            for worker in [worker for worker in self.workers if worker.connection in ready]:
                try:
                    kind, value = worker.connection.recv()
                except EOFError:  # the process has died
                    self.workers.remove(worker)
                    worker.process.join()
                    reason = f"the worker died with exit code {worker.process.exitcode}"
                    if worker.job is not None:
                        yield JobResult(worker.job, reason)
                    failed_starts = 0 if worker.is_ready else failed_starts + 1
                    if failed_starts >= MOST_FAILED_STARTS:
                        raise ValueError(f"`workers` cannot be started: {reason}.") from None
                    if rest:
                        self._start()
                    continue
                if kind == "broken":
                    raise ValueError(value)
                worker.is_ready = True
                if worker.job is not None:
                    yield JobResult(worker.job, value if kind == "failed" else None, value if kind == "done" else None)
                worker.job = rest.popleft() if rest else None
                if worker.job is None:
                    self.workers.remove(worker)
                    self._stop(worker)
                else:
                    worker.connection.send((jobs[worker.job],))

    def close(self) -> None:
        """End all processes, whatever they do."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
        self.workers = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # not forked: threads of torch do not survive that
        connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.make_worker, self.arguments), daemon=True)
        process.start()
        theirs.close()  # so that the process's death closes the pipe
        self.workers.append(_Worker(process, connection))

    @staticmethod
    def _stop(worker: _Worker) -> None:
        worker.connection.send(None)
        worker.process.join()


def _serve(connection: Connection, make_worker: Callable[..., Callable[[Any], Any]], arguments: tuple) -> None:
    """Work in a process until there are no more jobs."""
    try:
        worker = make_worker(*arguments)
    except Exception as error:  # such as a model that cannot be loaded
        connection.send(("broken", str(error)))
        return
    connection.send(("ready", None))
    while (message := connection.recv()) is not None:
        connection.send(run_job(worker, message[0]))


def run_job(worker: Callable[[Any], Any], job: Any) -> tuple[str, Any]:
    """Return `("done", value)`, or `("failed", why)`: a bad job must not end its worker."""
    try:
        return "done", worker(job)
    except ValueError as error:  # the package's words for bad input
        return "failed", str(error)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"

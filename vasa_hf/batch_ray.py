"""The jobs of `batch.py` on a Ray cluster: `pip install "vasa_hf[ray]"`, `vasa-hf batch --engine ray`.

Each actor makes one worker. Jobs name files that all machines must see under the same path (NFS, Lustre, a mounted
bucket). When an actor dies, its job has failed, and a new actor takes its place. A cluster is joined by `RAY_ADDRESS`;
without it, Ray starts on this machine.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vasa_hf.batch import JobResult, run_job


class _Actor:
    """Ray's actor: makes a worker with its first job."""

    def __init__(self, make_worker: Callable[..., Callable[[Any], Any]], arguments: tuple):
        self.worker = make_worker(*arguments)

    def run(self, job: Any) -> tuple[str, Any]:
        return run_job(self.worker, job)


def run_on_ray(
    jobs: Mapping[str, Any],
    make_worker: Callable[..., Callable[[Any], Any]],
    arguments: tuple = (),
    workers: int = 1,
    gpus: float = 0.0,
) -> Iterator[JobResult]:
    """Run jobs on actors; see `run_jobs`.

    Args:
        jobs (`Mapping[str, Any]`): Name -> job.
        make_worker (`Callable`): Called once in each actor.
        arguments (`tuple`, *optional*): Its arguments.
        workers (`int`, *optional*, defaults to 1): Actors, one core each.
        gpus (`float`, *optional*, defaults to 0.0): GPUs that each actor needs.

    Yields:
        `JobResult`: One for each job.

    Raises:
        ImportError: If Ray is not installed.
        ValueError: If a number is unfit, or no worker can be made.
    """
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1, got {workers}.")
    if not jobs:
        return
    workers = min(workers, len(jobs))
    try:
        import ray
    except ImportError as error:
        raise ImportError('`engine` "ray" needs Ray: pip install "vasa_hf[ray]"') from error
    started = not ray.is_initialized()
    if started:
        # On this machine as many workers as were asked for; a cluster knows its own cores.
        here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers}
        ray.init(log_to_driver=False, include_dashboard=False, **here)
    try:
        kind = ray.remote(num_cpus=1, num_gpus=gpus)(_Actor)
        free = deque(kind.remote(make_worker, arguments) for _ in range(workers))
        rest, running = deque(jobs.items()), {}
        while rest or running:
            while rest and free:
                (name, job), actor = rest.popleft(), free.popleft()
                running[actor.run.remote(job)] = (name, actor)
            done, _ = ray.wait(list(running))
            for reference in done:
                name, actor = running.pop(reference)
                try:
                    outcome, value = ray.get(reference)
                except ray.exceptions.RayActorError as error:
                    reason = str(error).strip()
                    if "creation task" in reason:  # such as a model that cannot be loaded
                        raise ValueError(reason.splitlines()[-1]) from error
                    outcome, value = "failed", "the worker died"
                    actor = kind.remote(make_worker, arguments)  # not a restart: that fails what is sent meanwhile
                free.append(actor)
                yield JobResult(name, value if outcome == "failed" else None, value if outcome == "done" else None)
    finally:
        if started:
            ray.shutdown()

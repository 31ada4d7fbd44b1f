"""A worker of `vasa_hf.batch`; in a file of its own, so that the processes of a test start quickly."""

import os
import time
from pathlib import Path


class Worker:
    """Squares numbers; some jobs are bad input, some an accident, some kill the process.

    Args:
        folder (`Path`): Gets a file for each start.
        broken (`bool`, *optional*, defaults to False): It cannot be made.
    """

    def __init__(self, folder: Path, broken: bool = False):
        if broken:
            raise ValueError("`model` must be a folder.")
        (folder / f"started-{os.getpid()}-{time.monotonic_ns()}").touch()

    def __call__(self, job):
        if job == "bad":
            raise ValueError("`image` must show a face.")
        if job == "accident":
            return 1 / 0
        if job == "die":
            os._exit(7)
        return job * job

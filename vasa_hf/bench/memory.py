"""Memory of the process."""

import os
import sys
from pathlib import Path


def current_memory_mb() -> float | None:
    """Return this process's resident memory; `None` where the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_memory_mb() -> float | None:
    """Return the peak of this process's resident memory; `None` where the system does not report it."""
    try:
        # On Linux, `getrusage` starts from the memory of the parent process.
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 2**10
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)

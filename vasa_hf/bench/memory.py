"""How much memory a process has taken."""

import sys
from pathlib import Path


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far; `None` where the system does not tell."""
    try:
        # The other count, on Linux, begins with the memory of the process that started this one.
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

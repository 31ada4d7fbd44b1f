"""What `/metrics` shows, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left

BOUNDS = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12)  # seconds


class Histogram:
    """How often a time lay within each of `BOUNDS`."""

    def __init__(self) -> None:
        self.counts, self.sum = [0] * (len(BOUNDS) + 1), 0.0

    def add(self, seconds: float) -> None:
        """Count a time."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    def lines(self, name: str) -> list[str]:
        """Its part of the text."""
        lines, total = [f"# TYPE {name} histogram"], 0
        for bound, count in zip([*BOUNDS, "+Inf"], self.counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self.sum:.3f}", f"{name}_count {total}"]


class Counters:
    """Sessions, frames and times of a server; changed in the event loop alone."""

    def __init__(self) -> None:
        self.sessions = self.waiting = 0  # sessions now; connections that have not begun one
        self.totals = {"sessions": 0, "refused": 0, "errors": 0, "frames": 0, "dropped_frames": 0, "audio_seconds": 0.0}
        self.first_frame = Histogram()  # from the first audio of an utterance to its first frame
        self.late = Histogram()  # frames, against their time

    def text(self) -> str:
        """Prometheus' text format."""
        lines = ["# TYPE vasa_hf_sessions gauge", f"vasa_hf_sessions {self.sessions}"]
        for name, value in self.totals.items():
            lines += [f"# TYPE vasa_hf_{name}_total counter", f"vasa_hf_{name}_total {value:g}"]
        lines += self.first_frame.lines("vasa_hf_first_frame_seconds")
        return "\n".join(lines + self.late.lines("vasa_hf_frame_late_seconds")) + "\n"

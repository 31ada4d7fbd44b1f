"""The measurement of `vasa-hf bench live`: a conversation in real time, as an agent holds it.

Turns of about eight seconds: idle, an utterance that arrives at once (as from text to speech), another that arrives in
pieces of 20 ms while it is spoken (as from a microphone), and one that is interrupted after a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from vasa_hf.bench import runs
from vasa_hf.bench.memory import current_memory_mb, peak_memory_mb

TURN_FRAMES = 200
CLOSED_FRAMES = 15  # after an interrupt, in which the lips are measured


def measure(
    model: str = "vasa-small",
    seconds: float = 60.0,
    num_inference_steps: int | None = None,
    output_size: int | None = None,
    device: str = "cpu",
    threads: int | None = None,
    pipeline: str = "VasaTalkingFacePipeline",
) -> dict[str, Any]:
    """Measure this process. Call it once, first thing.

    Args:
        model (`str`): Name for `from_pretrained`.
        seconds (`float`): Length of the session.
        num_inference_steps (`int`, *optional*): Denoising steps; the system's own by default.
        output_size (`int`, *optional*): Side of the face's square.
        device (`str`): Where to run.
        threads (`int`, *optional*): CPU threads.
        pipeline (`str`): Public name of its class.

    Returns:
        `dict`: Times in milliseconds, `p50` and `p95` where there are several; memory in megabytes.
    """
    if seconds < 10:
        raise ValueError(f"`seconds` must be at least 10, got {seconds}.")
    pipe, facts = runs.load_pipeline(pipeline, model, device, threads)
    subject = pipe.prepare_portrait(runs.PORTRAIT, output_size=output_size)
    options = {"num_inference_steps": num_inference_steps, "output_size": output_size}
    times: dict[str, list[float]] = {"first_frame": [], "first_frame_paced": [], "interrupt": [], "av_offset": []}
    depths: list[int] = []
    memory: list[float | None] = []
    mouths: list[list[tuple[float, np.ndarray]]] = []
    with pipe.live(subject, generator=runs.make_generator(), **options) as session:
        user = _User(session, times)
        first = next(session)
        began, cpu = time.monotonic(), time.process_time()
        count, last = 1, first.index
        while time.monotonic() - began < seconds:
            frame = next(session)
            now = time.monotonic()
            count, last = count + 1, frame.index
            times["av_offset"].append(1000 * frame.late_seconds)
            depths.append(session.stats.queued_frames)
            if user.receive(frame, now):
                mouths.append([])
            if mouths and len(mouths[-1]) < CLOSED_FRAMES:
                mouths[-1].append((frame.seconds, frame.image))
            if frame.index // 250 > len(memory) - 1:
                memory.append(current_memory_mb())
        wall, used, stats = time.monotonic() - began, time.process_time() - cpu, session.stats
        if user.speaker is not None:
            user.speaker.join()
    result = {
        "model": model,
        "device": device,
        **facts,
        "machine": runs.describe_machine(),
        "session_seconds": wall,
        "output_size": int(first.image.shape[0]),
        "steady_fps": count / wall,
        "dropped": stats.dropped / (last + 1),
        "starved": stats.starved,
        "stalls": stats.stalls,
        "queue_depth": float(np.mean(depths)),
        "cpu_cores": used / wall,
        "memory_mb": {"first": memory[0], "last": memory[-1], "peak": peak_memory_mb()},
        "mouth_closed_ms": _summarize([_closing_ms(pipe.face_analyzer, images) for images in mouths]),
    }
    return result | {f"{name}_ms": _summarize(values) for name, values in times.items()}


class _User:
    """Plays the agent's part of the conversation, by the frames that it receives."""

    def __init__(self, session: Any, times: dict[str, list[float]]):
        self.session, self.times = session, times
        self.voice, self.rate = runs.load_voice()
        self.waits: tuple[str, float] | None = None  # name of what is measured, and when it began
        self.place = -1
        self.last_sound = 0.0
        self.speaker: threading.Thread | None = None

    def receive(self, frame: Any, now: float) -> bool:
        """Measure, and act at the frames where something happens; true for an interrupt."""
        if self.waits is not None:
            name, began = self.waits
            if name == "interrupt" and frame.audio.any():
                self.last_sound = now + len(frame.audio) / self.session.settings.sampling_rate
            elif name == "interrupt" or frame.is_speaking:
                end = max(self.last_sound, began) if name == "interrupt" else now
                self.times[name].append(1000 * (end - began))
                self.waits = None
        turn, last_place = frame.index // TURN_FRAMES, self.place
        self.place = frame.index % TURN_FRAMES
        if last_place < 30 <= self.place:
            paced = turn % 3 == 1
            self.waits = ("first_frame_paced" if paced else "first_frame", now)
            voice = self.voice[: 5 * self.rate]
            if paced:
                self.speaker = threading.Thread(target=self._speak, args=(voice,), daemon=True)
                self.speaker.start()
            else:
                self.session.push_audio(voice, self.rate)
                self.session.end_of_speech()
        if turn % 3 == 2 and last_place < 75 <= self.place:
            self.waits = ("interrupt", now)
            self.session.interrupt()
            return True
        return False

    def _speak(self, voice: np.ndarray) -> None:
        size, began = self.rate // 50, time.monotonic()
        for start in range(0, len(voice), size):
            time.sleep(max(began + (start + size) / self.rate - time.monotonic(), 0.0))
            self.session.push_audio(voice[start : start + size], self.rate)
        self.session.end_of_speech()


def _closing_ms(analyzer: Any, frames: Sequence[tuple[float, np.ndarray]]) -> float | None:
    """Time from an interrupt until the lips stay at rest, within 2 % of the eyes' distance or 10 % of the opening."""
    gaps = []
    for _, image in frames:
        faces = analyzer.detect(image)
        gaps.append(float(faces[0].mouth_open) if faces else np.nan)
    if len(gaps) < CLOSED_FRAMES or np.isnan(gaps).any():
        return None
    rest = np.median(gaps[-5:])
    open_frames = np.flatnonzero(np.array(gaps) > rest + 0.1 * max(gaps[0] - rest, 0.2))
    closed = open_frames.max() + 1 if len(open_frames) else 0
    return 1000 * (frames[min(closed, CLOSED_FRAMES - 1)][0] - frames[0][0])


def _summarize(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    return {name: float(np.percentile(known, share)) if known else None for name, share in (("p50", 50), ("p95", 95))}


def format_results(results: Sequence[dict[str, Any]]) -> str:
    """Results of `measure` as a text table."""
    names = {
        "first frame of speech that is there, ms": "first_frame_ms",
        "of speech that arrives in time, ms": "first_frame_paced_ms",
        "interrupt until silence, ms": "interrupt_ms",
        "interrupt until the mouth rests, ms": "mouth_closed_ms",
        "frame against its audio's time, ms": "av_offset_ms",
    }
    rows: dict[str, Any] = {
        "threads": "threads",
        "session, s": "session_seconds",
        "output size": "output_size",
        "frames/s": "steady_fps",
        "left out, share": "dropped",
        "starved frames": "starved",
        "stalls": "stalls",
        "ready frames, mean": "queue_depth",
        "cores used": "cpu_cores",
    }
    rows |= {f"{title}, {at}": f"{name}.{at}" for title, name in names.items() for at in ("p50", "p95")}
    rows |= {f"memory at the {name}, MB": f"memory_mb.{name}" for name in ("first", "last", "peak")}
    first = results[0]
    return runs.format_table(f"{first['model']} on {first['device']}: {first['machine']}", results, rows)


if __name__ == "__main__":
    runs.print_measurement(measure)

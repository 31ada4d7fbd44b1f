"""The measurement of `vasa-hf bench serve`: a server in a process of its own, and sessions that talk all the time.

Each session pushes utterances of five seconds, with pauses of two, as text to speech does; frames are counted as they
arrive, and not decoded.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np

from vasa_hf.bench import runs
from vasa_hf.serve.protocol import unpack_frame

UTTERANCE_SECONDS, PAUSE_SECONDS = 5, 2


def measure(
    model: str = "vasa-small",
    seconds: float = 60.0,
    sessions: int = 2,
    output_size: int | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> dict[str, Any]:
    """Measure a server that this starts.

    Args:
        model (`str`): VASA-1 pipeline.
        seconds (`float`): Length of the sessions, after all of them have begun.
        sessions (`int`): How many there are at the same time.
        output_size (`int`, *optional*): Side of the images.
        device (`str`): Where it runs.
        threads (`int`, *optional*): CPU threads of torch.

    Returns:
        `dict`: Times in milliseconds.

    Raises:
        RuntimeError: If the server or a session fails.
    """
    if seconds < 10:
        raise ValueError(f"`seconds` must be at least 10, got {seconds}.")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vasa_hf", "serve", "--model", model, "--device", device, "--port", str(port)]
    command += ["--sessions", str(sessions)]
    command += [] if threads is None else ["--threads", str(threads)]
    command += [] if output_size is None else ["--size", str(output_size)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/healthz", server)
        ready = threading.Barrier(sessions)
        users = [_User(f"ws://127.0.0.1:{port}/v1/live", seconds, ready) for _ in range(sessions)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        if errors := [user.error for user in users if user.error is not None]:
            raise RuntimeError(f"A session failed: {errors[0]}")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            metrics = dict(line.split(" ") for line in answer.read().decode().splitlines() if line[0] != "#")
    finally:
        server.terminate()
        server.wait(timeout=30)
    rates = [user.frames / seconds for user in users]
    firsts = [value for user in users for value in user.firsts]
    lates = [value for user in users for value in user.lates]
    return {
        "model": model,
        "device": device,
        "machine": runs.describe_machine(),
        "threads": threads,
        "sessions": sessions,
        "session_seconds": seconds,
        "fps": {"least": min(rates), "mean": float(np.mean(rates)), "all": sum(rates)},
        "dropped": float(metrics["vasa_hf_dropped_frames_total"]) / max(sum(user.last + 1 for user in users), 1),
        "first_frame_ms": {f"p{share}": float(np.percentile(firsts, share)) for share in (50, 95)},
        "late_ms": {f"p{share}": float(np.percentile(lates, share)) for share in (50, 95)},
    }


def _wait_for(url: str, server: subprocess.Popen) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if server.poll() is not None:
                raise RuntimeError(f"The server ended with status {server.returncode}.") from None
            time.sleep(0.2)
    raise RuntimeError("The server did not start within two minutes.")


class _User(threading.Thread):
    """A client that talks all the time."""

    def __init__(self, address: str, seconds: float, ready: threading.Barrier):
        super().__init__(daemon=True)
        self.address, self.seconds, self.ready = address, seconds, ready
        self.frames, self.last = 0, 0
        self.error: Exception | None = None
        self.firsts: list[float] = []
        self.lates: list[float] = []

    def run(self) -> None:
        try:
            self._talk()
        except Exception as error:  # noqa: BLE001 - raised by `measure`
            self.error = error
            self.ready.abort()

    def _talk(self) -> None:
        from websockets.sync.client import connect

        voice, rate = runs.load_voice()
        data = (np.clip(voice[: UTTERANCE_SECONDS * rate], -1, 1) * 32767).astype("<i2").tobytes()
        with connect(self.address, max_size=None, compression=None) as connection:
            connection.send(json.dumps({"type": "start", "consent": True, "rate": int(rate)}))
            while isinstance(message := connection.recv(timeout=120), str):  # `ready`, and the first frame
                if (event := json.loads(message))["type"] == "error":
                    raise RuntimeError(event["message"])
            self.ready.wait(timeout=120)
            began = time.monotonic()
            next_time, waits_since = began, None
            while (now := time.monotonic()) - began < self.seconds:
                if now >= next_time:
                    connection.send(data)
                    connection.send('{"type": "end_of_speech"}')
                    next_time, waits_since = now + UTTERANCE_SECONDS + PAUSE_SECONDS, now
                message = connection.recv(timeout=30)
                if isinstance(message, str):
                    if (event := json.loads(message))["type"] == "error":
                        raise RuntimeError(event["message"])
                    continue
                frame = unpack_frame(message)
                self.frames, self.last = self.frames + 1, frame.index
                self.lates.append(float(frame.late_ms))
                if waits_since is not None and frame.is_speaking:
                    self.firsts.append(1000 * (time.monotonic() - waits_since))
                    waits_since = None


def format_results(results: Sequence[dict[str, Any]]) -> str:
    """Results of `measure` as a text table."""
    rows: dict[str, Any] = {"threads": "threads", "sessions": "sessions", "length, s": "session_seconds"}
    rows |= {f"frames/s, {name}": f"fps.{name}" for name in ("least", "mean", "all")}
    rows["left out, share"] = "dropped"
    rows |= {f"first frame of speech, ms, {at}": f"first_frame_ms.{at}" for at in ("p50", "p95")}
    rows |= {f"frame after its time, ms, {at}": f"late_ms.{at}" for at in ("p50", "p95")}
    first = results[0]
    return runs.format_table(f"{first['model']} on {first['device']}: {first['machine']}", results, rows)


if __name__ == "__main__":
    runs.print_measurement(measure)

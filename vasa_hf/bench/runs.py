"""Shared by the measurements: fresh processes, loading of a pipeline, the table of the results.

Each measurement runs in a fresh process, because peak memory, loading and thread counts belong to a process.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import vasa_hf

ASSETS = Path(vasa_hf.__file__).parent / "assets"
PORTRAIT = ASSETS / "portrait.jpg"
LOADING_ROWS = {"import, s": "import_seconds", "load, s": "load_seconds"}  # of `load_pipeline`, for a table


def compare(threads: Sequence[int | None], module: str, **settings: Any) -> list[dict[str, Any]]:
    """Run a module's `measure` in a fresh process for each number of threads.

    Args:
        threads (`Sequence[int | None]`): Numbers of CPU threads; `None` for torch's default.
        module (`str`): Full name of the module, such as `vasa_hf.bench.talking`.
        **settings: Arguments of `measure`.

    Returns:
        `list[dict]`: One result for each number, see `measure`.

    Raises:
        ValueError: If a measurement fails; with the last line of its messages.
    """
    results = []
    for count in threads:
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}  # as the command line has it
        if count is not None:
            environment["OMP_NUM_THREADS"] = str(count)
        # The same package, even if it is not installed.
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(Path(vasa_hf.__file__).parents[1]), *filter(None, [environment.get("PYTHONPATH")])]
        )
        command = [sys.executable, "-m", module, json.dumps({**settings, "threads": count})]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise ValueError(f"the measurement with {count or 'default'} threads failed: {lines[-1]}")
        results.append(json.loads(done.stdout.splitlines()[-1]))
    return results


def print_measurement(measure: Callable[..., dict[str, Any]]) -> None:
    """Call `measure` with the settings that `compare` put on the command line, and print the result as JSON."""
    print(json.dumps(measure(**json.loads(sys.argv[1]))))


def load_pipeline(name: str, model: str, device: str, threads: int | None) -> tuple[Any, dict[str, Any]]:
    """Load a pipeline and measure the time.

    Args:
        name (`str`): Public name of its class.
        model (`str`): Name for `from_pretrained`.
        device (`str`): Where to run.
        threads (`int`, *optional*): CPU threads.

    Returns:
        The pipeline, and a `dict` with `threads`, `import_seconds` and `load_seconds`.
    """
    start = time.perf_counter()
    import torch

    pipeline_class = getattr(vasa_hf, name)
    imported = time.perf_counter()
    if threads is not None:
        torch.set_num_threads(threads)
    pipe = pipeline_class.from_pretrained(model).to(device)
    pipe.set_progress_bar_config(disable=True)
    seconds = {"import_seconds": imported - start, "load_seconds": time.perf_counter() - imported}
    return pipe, {"threads": torch.get_num_threads(), **seconds}


def load_voice() -> tuple[Any, int]:
    """Load the demo's voice, `(samples,)`, and its sample rate."""
    from vasa_hf.media import load_audio

    samples, rate = load_audio(ASSETS / "voice.flac")
    return samples[0], rate


def make_generator() -> Any:
    """Make a `torch.Generator` with a fixed seed."""
    import torch

    return torch.Generator().manual_seed(0)


def describe_machine() -> str:
    """The processor and its number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name or platform.machine()}, {os.cpu_count()} cores"


def synchronize(device: Any) -> None:
    """Wait until a GPU has finished; does nothing for a CPU."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def format_table(title: str, results: Sequence[dict[str, Any]], rows: Mapping[str, str | Callable]) -> str:
    """Results of `compare` as a text table, a column for each.

    Args:
        title (`str`): The first line.
        results (`Sequence[dict]`): One for each column.
        rows (`Mapping`):
            Heading -> key in a result, with dots for nested keys, or a function of a result. Keys that a result lacks
            are left out.
    """
    lines, width = [title], max(28, max(map(len, rows)) + 2)
    for heading, key in rows.items():
        if callable(key) or key.split(".")[0] in results[0]:
            values = [key(result) if callable(key) else reduce(getitem, key.split("."), result) for result in results]
            lines.append(f"{heading:<{width}}" + "".join(f"{format_value(value):>12}" for value in values))
    return "\n".join(lines)


def format_pipeline_results(results: Sequence[dict[str, Any]], rows: Mapping[str, str]) -> str:
    """Results of a pipeline's measurement as a text table, see `format_table`."""
    first = results[0]
    title = f"{first['model']} on {first['device']}, {first['num_inference_steps']} steps"
    return format_table(title, results, {"threads": "threads", **rows})


def format_value(value: Any) -> str:
    """A number of the table."""
    if value is None:
        return "unknown"
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"

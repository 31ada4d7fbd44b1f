"""What `vasa-hf bench` measures: load time, latency of the first frame, speed by stage, real-time factor, memory.

Each measurement runs in a fresh process, so that peak memory and loading mean something and threads can be compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vasa_hf
from vasa_hf.metrics.memory import peak_memory_mb

STAGES = ("audio", "motion", "decode", "write")
MOST_FRAMES = 250  # decoded and written for the speed of these stages


def compare(threads: Sequence[int | None], module: str = "vasa_hf.bench", **settings: Any) -> list[dict[str, Any]]:
    """Run `measure` in a fresh process for each number of threads.

    Args:
        threads (`Sequence[int | None]`): Numbers of CPU threads; `None` leaves it to torch.
        module (`str`): Whose `measure`: this module's, or `vasa_hf.bench_3d`.
        **settings: Arguments of `measure`.

    Returns:
        `list[dict]`: One result for each number, see `measure`.

    Raises:
        ValueError: If a measurement fails; holds the end of its messages.
    """
    results = []
    for count in threads:
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}  # as the command line has it
        if count is not None:
            environment["OMP_NUM_THREADS"] = str(count)
        # The package is imported from where this one was, also when it is not installed.
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


def measure(
    model: str = "vasa-small",
    seconds: float = 10.0,
    num_inference_steps: int = 10,
    output_size: int | None = None,
    device: str = "cpu",
    threads: int | None = None,
    pipeline: str = "VasaTalkingFacePipeline",
) -> dict[str, Any]:
    """Measure this process. Call it once, first thing.

    Args:
        model (`str`): Name for `from_pretrained`.
        seconds (`float`): Length of the voice: the demo's, again and again.
        num_inference_steps (`int`): Denoising steps.
        output_size (`int`, *optional*): Side of the face's square.
        device (`str`): Where to run.
        threads (`int`, *optional*): CPU threads.
        pipeline (`str`): Public name of its class.

    Returns:
        `dict`: Times in seconds, rates in frames a second at 25 frames a second of video, memory in megabytes.
    """
    if seconds < 1:
        raise ValueError(f"`seconds` must be at least 1, got {seconds}.")
    start = time.perf_counter()
    import numpy as np
    import torch

    from vasa_hf.media import VideoWriter, load_audio, save_wav

    imported = time.perf_counter()
    if threads is not None:
        torch.set_num_threads(threads)
    pipe = getattr(vasa_hf, pipeline).from_pretrained(model).to(device)
    pipe.set_progress_bar_config(disable=True)
    loaded = time.perf_counter()
    # The peak of loading is not that of running; both count for the process.
    assets = Path(vasa_hf.__file__).parent / "assets"
    voice, rate = load_audio(assets / "voice.flac")
    voice = np.resize(voice[0], round(seconds * rate))
    image = assets / "portrait.jpg"
    options = {"num_inference_steps": num_inference_steps, "output_size": output_size}

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    result = {
        "model": model,
        "device": device,
        "threads": torch.get_num_threads(),
        "audio_seconds": seconds,
        "num_inference_steps": num_inference_steps,
        "import_seconds": imported - start,
        "load_seconds": loaded - imported,
    }

    # A user's first call, cold, with the portrait still to be found and encoded.
    started = time.perf_counter()
    chunks = pipe.stream(image, (voice, rate), generator=generator(), **options)
    portrait_ready = time.perf_counter()
    first = next(chunks)
    result["portrait_seconds"] = portrait_ready - started
    result["first_frame_seconds"] = time.perf_counter() - started
    result["output_size"] = first.frames[0].width
    chunks.close()

    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "voice.wav"
        save_wav(sound, voice, rate)
        started = time.perf_counter()
        pipe.talk_to_file(Path(folder) / "all.mp4", image, sound, generator=generator(), **options)
        total = time.perf_counter() - started
        result["total_seconds"] = total
        result["real_time_factor"] = total / seconds
        # Before the stages are measured one by one, which keeps more in memory than a run does.
        result["peak_memory_mb"] = peak_memory_mb()

        stage_seconds = dict.fromkeys(STAGES, 0.0)
        portrait = pipe.prepare_portrait(image, output_size=output_size)
        samples, _, _ = pipe.prepare_audio((voice, rate))
        num_frames = -(-samples.shape[1] // pipe.audio_processor.samples_per_frame)
        window = pipe.create_motion_generator().windows().window
        started = time.perf_counter()
        with torch.no_grad():
            for first_frame in range(0, num_frames, window):
                pipe.audio_processor.window_features(pipe.audio_encoder, samples, first_frame, window)
        stage_seconds["audio"] = time.perf_counter() - started
        started = time.perf_counter()
        motion = pipe(portrait, (voice, rate), generator=generator(), **{**options, "output_type": "latent"}).motion
        stage_seconds["motion"] = max(time.perf_counter() - started - stage_seconds["audio"], 1e-9)
        # One after the other: in a run, frames are written while the next ones are decoded.
        started = time.perf_counter()
        parts = pipe.decode_frames(portrait, motion[0, :MOST_FRAMES])
        pictures = [np.asarray(picture) for part in parts for picture in pipe.postprocess(part, "pil")]
        stage_seconds["decode"] = time.perf_counter() - started
        started = time.perf_counter()
        with VideoWriter(Path(folder) / "stages.mp4", 25, pictures[0].shape[1::-1]) as writer:
            for picture in pictures:
                writer.write(picture)
        stage_seconds["write"] = time.perf_counter() - started
    counts = {"audio": num_frames, "motion": num_frames, "decode": len(pictures), "write": len(pictures)}
    result["frames_per_second"] = {stage: counts[stage] / stage_seconds[stage] for stage in STAGES}
    return result


def table(results: Sequence[dict[str, Any]]) -> str:
    """Results of `compare` as text, one column each."""
    rows: list[tuple[str, list[Any]]] = [
        ("threads", [result["threads"] for result in results]),
        ("output size", [result["output_size"] for result in results]),
        ("voice, s", [result["audio_seconds"] for result in results]),
        ("import, s", [result["import_seconds"] for result in results]),
        ("load, s", [result["load_seconds"] for result in results]),
        ("find and encode portrait, s", [result["portrait_seconds"] for result in results]),
        ("first frame after load, s", [result["first_frame_seconds"] for result in results]),
    ]
    rows += [(f"{stage}, frames/s", [result["frames_per_second"][stage] for result in results]) for stage in STAGES]
    rows += [
        ("all, s", [result["total_seconds"] for result in results]),
        ("real-time factor", [result["real_time_factor"] for result in results]),
        ("peak memory, MB", [result["peak_memory_mb"] for result in results]),
    ]
    lines = [f"{results[0]['model']} on {results[0]['device']}, {results[0]['num_inference_steps']} steps"]
    lines += [f"{name:<28}" + "".join(f"{cell(value):>12}" for value in values) for name, values in rows]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A number of a table."""
    if value is None:
        return "unknown"
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))

"""What `vasa-hf bench` measures: load time, latency of the first frame, speed by stage, real-time factor, memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vasa_hf.bench import runs
from vasa_hf.bench.memory import peak_memory_mb

STAGES = ("audio", "motion", "decode", "write")
MOST_FRAMES = 250  # decoded and written for the speed of these stages


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
    pipe, facts = runs.load_pipeline(pipeline, model, device, threads)
    # The peak of loading is not that of running; both count for the process.
    import numpy as np
    import torch

    from vasa_hf.media import VideoWriter, save_wav

    voice, rate = runs.load_voice()
    voice = np.resize(voice, round(seconds * rate))
    image = runs.PORTRAIT
    options = {"num_inference_steps": num_inference_steps, "output_size": output_size}
    result = {
        "model": model,
        "device": device,
        "audio_seconds": seconds,
        "num_inference_steps": num_inference_steps,
        **facts,
    }

    # A user's first call, cold, with the portrait still to be found and encoded.
    started = time.perf_counter()
    chunks = pipe.stream(image, (voice, rate), generator=runs.seeded(), **options)
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
        pipe.talk_to_file(Path(folder) / "all.mp4", image, sound, generator=runs.seeded(), **options)
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
        motion = pipe(portrait, (voice, rate), generator=runs.seeded(), **{**options, "output_type": "latent"}).motion
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
    """Results of `runs.compare` as text, one column each."""
    rows = {
        "threads": "threads",
        "output size": "output_size",
        "voice, s": "audio_seconds",
        "import, s": "import_seconds",
        "load, s": "load_seconds",
        "find and encode portrait, s": "portrait_seconds",
        "first frame after load, s": "first_frame_seconds",
        **{f"{stage}, frames/s": f"frames_per_second.{stage}" for stage in STAGES},
        "all, s": "total_seconds",
        "real-time factor": "real_time_factor",
        "peak memory, MB": "peak_memory_mb",
    }
    first = results[0]
    return runs.table(f"{first['model']} on {first['device']}, {first['num_inference_steps']} steps", results, rows)


if __name__ == "__main__":
    runs.print_measurement(measure)

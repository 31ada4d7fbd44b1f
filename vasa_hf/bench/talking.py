"""The measurement of `vasa-hf bench`: load time, latency of the first frame, speed by stage, memory."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from vasa_hf.bench import runs
from vasa_hf.bench.memory import peak_memory_mb
from vasa_hf.files import temporary_folder

STAGES = ("audio", "motion", "decode", "write")
MAX_FRAMES = 250  # frames that are decoded and written to measure these stages


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
        seconds (`float`): Length of the speech: the demo's, repeated.
        num_inference_steps (`int`): Denoising steps.
        output_size (`int`, *optional*): Side of the face's square.
        device (`str`): Where to run.
        threads (`int`, *optional*): CPU threads.
        pipeline (`str`): Public name of its class.

    Returns:
        `dict`: Times in seconds, rates in frames per second, memory in megabytes.
    """
    if seconds < 1:
        raise ValueError(f"`seconds` must be at least 1, got {seconds}.")
    pipe, facts = runs.load_pipeline(pipeline, model, device, threads)
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

    # The first call of a user, which also finds and encodes the portrait.
    started = time.perf_counter()
    chunks = pipe.stream(image, (voice, rate), generator=runs.make_generator(), **options)
    portrait_ready = time.perf_counter()
    first = next(chunks)
    result["portrait_seconds"] = portrait_ready - started
    result["first_frame_seconds"] = time.perf_counter() - started
    result["output_size"] = first.frames[0].width
    chunks.close()

    with temporary_folder() as folder:
        sound = Path(folder) / "voice.wav"
        save_wav(sound, voice, rate)
        started = time.perf_counter()
        pipe.talk_to_file(Path(folder) / "all.mp4", image, sound, generator=runs.make_generator(), **options)
        total = time.perf_counter() - started
        result["total_seconds"] = total
        result["real_time_factor"] = total / seconds
        # Before the single stages, which keep more in memory than a whole run.
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
        latent = {**options, "output_type": "latent"}
        motion = pipe(portrait, (voice, rate), generator=runs.make_generator(), **latent).motion
        stage_seconds["motion"] = max(time.perf_counter() - started - stage_seconds["audio"], 1e-9)
        # In sequence; a whole run writes frames while the next ones are decoded.
        started = time.perf_counter()
        chunks = pipe.decode_frames(portrait, motion[0, :MAX_FRAMES])
        frames = [np.asarray(frame) for chunk in chunks for frame in pipe.postprocess(chunk, "pil")]
        stage_seconds["decode"] = time.perf_counter() - started
        started = time.perf_counter()
        with VideoWriter(Path(folder) / "stages.mp4", 25, frames[0].shape[1::-1]) as writer:
            for frame in frames:
                writer.write(frame)
        stage_seconds["write"] = time.perf_counter() - started
    counts = {"audio": num_frames, "motion": num_frames, "decode": len(frames), "write": len(frames)}
    result["frames_per_second"] = {stage: counts[stage] / stage_seconds[stage] for stage in STAGES}
    return result


ROWS = {
    "output size": "output_size",
    "voice, s": "audio_seconds",
    **runs.LOADING_ROWS,
    "find and encode portrait, s": "portrait_seconds",
    "first frame after load, s": "first_frame_seconds",
    **{f"{stage}, frames/s": f"frames_per_second.{stage}" for stage in STAGES},
    "all, s": "total_seconds",
    "real-time factor": "real_time_factor",
    "peak memory, MB": "peak_memory_mb",
}
format_results = partial(runs.format_pipeline_results, rows=ROWS)


if __name__ == "__main__":
    runs.print_measurement(measure)

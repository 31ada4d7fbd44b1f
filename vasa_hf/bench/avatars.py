"""The measurement of `vasa-hf bench 3d`: speed of deformation and rendering, latency of the first frame, memory.

On a CPU with 20 000 Gaussians at 256 x 256, on CUDA with 200 000 at 512 x 512 (VASA-3D §4.1). Speech drives the
avatar. An avatar with another number of Gaussians gets that many new ones, which take as long as fitted ones.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from vasa_hf.bench import runs
from vasa_hf.bench.memory import peak_memory_mb

SIZES = {"cpu": (256, 20_000), "cuda": (512, 200_000)}  # side of the image, Gaussians
FRAMES = {"cpu": 50, "cuda": 512}


def measure(
    model: str = "vasa3d-small",
    avatar: str | None = None,
    output_size: int | None = None,
    num_gaussians: int | None = None,
    num_inference_steps: int = 10,
    fit: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> dict[str, Any]:
    """Measure this process. Call it once, first thing.

    Args:
        model (`str`): Name for `from_pretrained` of the pipeline.
        avatar (`str`, *optional*): Name or folder; by default the first embedded one.
        output_size (`int`, *optional*): Side of the frames; see `SIZES`.
        num_gaussians (`int`, *optional*): See `SIZES`.
        num_inference_steps (`int`): Denoising steps.
        fit (`str`, *optional*): Also fit an avatar to the package's portrait, with this preset.
        device (`str`): Where to run.
        threads (`int`, *optional*): CPU threads.

    Returns:
        `dict`: Times in seconds, rates in frames per second, memory in megabytes.

    Raises:
        ValueError: If there is no avatar, or an argument is out of range.
    """
    pipe, facts = runs.load_pipeline("Vasa3DAvatarPipeline", model, device, threads)
    import numpy as np
    import torch

    kind = torch.device(device).type
    size, count = output_size or SIZES[kind][0], num_gaussians or SIZES[kind][1]
    if avatar is None and not pipe.avatars:
        raise ValueError(f"`avatar` must be given: {model!r} contains none.")
    subject = resize_avatar(pipe.load_avatar(avatar or pipe.avatars[0]), count).to(device).eval()
    (voice, rate), shortest = runs.load_voice(), max(pipe.motion_transformer.config.context, 1)
    settings = {"num_inference_steps": num_inference_steps, "output_size": size}

    def time_first_frame(**options: Any) -> float:
        begun = time.perf_counter()
        chunks = pipe.stream(subject, (voice, rate), generator=runs.make_generator(), **settings, **options)
        next(chunks)
        spent = time.perf_counter() - begun
        chunks.close()
        return spent

    result = {
        "model": model,
        "device": torch.cuda.get_device_name() if kind == "cuda" else device,
        "num_gaussians": count,
        "output_size": size,
        "num_inference_steps": num_inference_steps,
        **facts,
        "first_frame_cold_seconds": time_first_frame(),
        "first_frame_seconds": min(time_first_frame() for _ in range(3)),
        "first_frame_short_seconds": min(time_first_frame(first_window=shortest) for _ in range(3)),
    }
    motion = pipe(subject, (voice, rate), generator=runs.make_generator(), output_type="latent", **settings).motion[0]
    motion = motion[torch.from_numpy(np.resize(np.arange(len(motion)), FRAMES[kind]))].to(device)
    result["frames_per_second"] = _measure_speeds(pipe, subject, motion, size)
    result["peak_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20 if kind == "cuda" else peak_memory_mb()
    if fit is not None:
        begun = time.perf_counter()
        pipe.fit(runs.PORTRAIT, preset=fit)
        result["fit_seconds"] = time.perf_counter() - begun
    return result


def _measure_speeds(pipe: Any, avatar: Any, motion: Any, size: int) -> dict[str, float]:
    """Frames per second of deformation alone, of rendering alone, and of `pipe.render`, which does both."""
    import torch

    from vasa_hf.gaussians.render import render

    rest, camera = avatar.rest_state(), avatar.portrait_camera
    chunks = motion.split(1 if motion.device.type == "cpu" else 16)
    with torch.no_grad():
        posed = [avatar(chunk, rest=rest).gaussians for chunk in chunks[:10]]
    works: dict[str, Callable[[], Any]] = {
        "deformation": lambda: [avatar(chunk, rest=rest) for chunk in chunks],
        "rendering": lambda: [render(posed[i % 10], camera, size) for i in range(len(chunks))],
        "both": lambda: pipe.render(avatar, motion, output_size=size, output_type="pt"),
    }
    speeds = {}
    for name, work in works.items():
        with torch.no_grad():
            work()  # warm-up: compilation and allocation
            runs.synchronize(motion.device)
            begun = time.perf_counter()
            work()
            runs.synchronize(motion.device)
        speeds[name] = len(motion) / (time.perf_counter() - begun)
    return speeds


def resize_avatar(avatar: Any, num_gaussians: int) -> Any:
    """Return an avatar with the same head and networks and a new set of Gaussians; `avatar` if the number fits.

    Args:
        avatar (`Vasa3DGaussianAvatar`): Any.
        num_gaussians (`int`): Number of Gaussians.
    """
    import torch

    if avatar.config.num_gaussians == num_gaussians:
        return avatar
    avatar = copy.deepcopy(avatar).cpu()
    names = ("motion_dim", "motion_space", "hidden_size", "camera_distance_cm", "fov_rad", "pose_prior")
    config = {name: avatar.config[name] for name in names}
    new = type(avatar).from_head(avatar.head, num_gaussians=num_gaussians, **config)
    rows = {*avatar.gaussian_parameters, "triangles"}
    kept = {name: value for name, value in avatar.state_dict().items() if name not in rows}
    new.load_state_dict(kept, strict=False)
    # Mean colours of the old Gaussians by triangle, so that the person can be recognised.
    total = torch.zeros(len(avatar.head.faces), 4).index_add(
        0, avatar.triangles, torch.cat([avatar.colors.detach(), torch.ones(len(avatar.triangles), 1)], 1)
    )
    with torch.no_grad():
        new.colors.copy_((total[:, :3] / total[:, 3:].clamp_min(1.0))[new.triangles])
    return new


ROWS = {
    "Gaussians": "num_gaussians",
    "output size": "output_size",
    **runs.LOADING_ROWS,
    "first frame after load, s": "first_frame_cold_seconds",
    "first frame again, s": "first_frame_seconds",
    "with a short window, s": "first_frame_short_seconds",
    **{f"{name}, frames/s": f"frames_per_second.{name}" for name in ("deformation", "rendering", "both")},
    "peak memory, MB": "peak_memory_mb",
    "fit, s": "fit_seconds",
}
format_results = partial(runs.format_pipeline_results, rows=ROWS)


if __name__ == "__main__":
    runs.print_measurement(measure)

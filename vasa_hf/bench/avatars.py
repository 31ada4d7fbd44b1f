"""What `vasa-hf bench 3d` measures: how fast an avatar is deformed, rendered, and both; the first frame; memory.

On a CPU with 20 000 Gaussians at 256 x 256, on CUDA with 200 000 at 512 x 512 (VASA-3D §4.1). The motion is that of a
voice; an avatar of another number of Gaussians is covered anew with as many, which costs what a fitted one costs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

from vasa_hf.bench import runs
from vasa_hf.bench.memory import peak_memory_mb

SIZES = {"cpu": (256, 20_000), "cuda": (512, 200_000)}  # side of the picture, Gaussians
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
        avatar (`str`, *optional*): Name or folder; the first of the embedded ones if left out.
        output_size (`int`, *optional*): Side of the pictures; see `SIZES`.
        num_gaussians (`int`, *optional*): See `SIZES`.
        num_inference_steps (`int`): Denoising steps.
        fit (`str`, *optional*): Also fit an avatar to the package's portrait, with this preset.
        device (`str`): Where to run.
        threads (`int`, *optional*): CPU threads.

    Returns:
        `dict`: Times in seconds, rates in frames a second, memory in megabytes.

    Raises:
        ValueError: If there is no avatar, or an argument is unfit.
    """
    pipe, facts = runs.load_pipeline("Vasa3DAvatarPipeline", model, device, threads)
    import numpy as np
    import torch

    kind = torch.device(device).type
    size, count = output_size or SIZES[kind][0], num_gaussians or SIZES[kind][1]
    if avatar is None and not pipe.avatars:
        raise ValueError(f"`avatar` must be given: {model!r} has none of its own.")
    who = with_gaussians(pipe.load_avatar(avatar or pipe.avatars[0]), count).to(device).eval()
    (voice, rate), shortest = runs.load_voice(), max(pipe.motion_transformer.config.context, 1)
    settings = {"num_inference_steps": num_inference_steps, "output_size": size}

    def first_frame(**options: Any) -> float:
        begun = time.perf_counter()
        chunks = pipe.stream(who, (voice, rate), generator=runs.seeded(), **settings, **options)
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
        "first_frame_cold_seconds": first_frame(),
        "first_frame_seconds": min(first_frame() for _ in range(3)),
        "first_frame_short_seconds": min(first_frame(first_window=shortest) for _ in range(3)),
    }
    motion = pipe(who, (voice, rate), generator=runs.seeded(), output_type="latent", **settings).motion[0]
    motion = motion[torch.from_numpy(np.resize(np.arange(len(motion)), FRAMES[kind]))].to(device)
    result["frames_per_second"] = _speeds(pipe, who, motion, size)
    result["peak_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20 if kind == "cuda" else peak_memory_mb()
    if fit is not None:
        begun = time.perf_counter()
        pipe.fit(runs.PORTRAIT, preset=fit)
        result["fit_seconds"] = time.perf_counter() - begun
    return result


def _speeds(pipe: Any, who: Any, motion: Any, size: int) -> dict[str, float]:
    """Frames a second of deformation alone, rendering alone, and of the pipeline's own way of doing both."""
    import torch

    from vasa_hf.gaussians.render import render

    rest, camera = who.rest_state(), who.portrait_camera
    parts = motion.split(1 if motion.device.type == "cpu" else 16)
    with torch.no_grad():
        posed = [who(part, rest=rest).gaussians for part in parts[:10]]
    works: dict[str, Callable[[], Any]] = {
        "deformation": lambda: [who(part, rest=rest) for part in parts],
        "rendering": lambda: [render(posed[i % 10], camera, size) for i in range(len(parts))],
        "both": lambda: pipe.render(who, motion, output_size=size, output_type="pt"),
    }
    speeds = {}
    for name, work in works.items():
        with torch.no_grad():
            work()  # what is compiled or allocated once
            runs.synchronize(motion.device)
            begun = time.perf_counter()
            work()
            runs.synchronize(motion.device)
        speeds[name] = len(motion) / (time.perf_counter() - begun)
    return speeds


def with_gaussians(avatar: Any, num_gaussians: int) -> Any:
    """An avatar with the same head and networks, covered anew with so many Gaussians; itself if it has as many.

    Args:
        avatar (`Vasa3DGaussianAvatar`): Any.
        num_gaussians (`int`): How many.
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
    # The old Gaussians' colours by triangle, so that one sees who it is.
    total = torch.zeros(len(avatar.head.faces), 4).index_add(
        0, avatar.triangles, torch.cat([avatar.colors.detach(), torch.ones(len(avatar.triangles), 1)], 1)
    )
    with torch.no_grad():
        new.colors.copy_((total[:, :3] / total[:, 3:].clamp_min(1.0))[new.triangles])
    return new


def table(results: Sequence[dict[str, Any]]) -> str:
    """Results of `runs.compare` as text, one column each."""
    rows = {
        "threads": "threads",
        "Gaussians": "num_gaussians",
        "output size": "output_size",
        "import, s": "import_seconds",
        "load, s": "load_seconds",
        "first frame after load, s": "first_frame_cold_seconds",
        "first frame again, s": "first_frame_seconds",
        "with a short window, s": "first_frame_short_seconds",
        **{f"{name}, frames/s": f"frames_per_second.{name}" for name in ("deformation", "rendering", "both")},
        "peak memory, MB": "peak_memory_mb",
    }
    first = results[0]
    if "fit_seconds" in first:
        rows["fit, s"] = "fit_seconds"
    return runs.table(f"{first['model']} on {first['device']}, {first['num_inference_steps']} steps", results, rows)


if __name__ == "__main__":
    runs.print_measurement(measure)

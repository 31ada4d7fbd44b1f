"""The measurement of `vasa-hf bench renderer`: LivePortrait's renderer against a plain run of the same weights.

The plain run takes the steps of the public code: separate batch norms, a sampling grid for every keypoint, the
generator's label enlarged for each norm, channels first. The variants run in turn in one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vasa_hf.bench import runs
from vasa_hf.bench.memory import peak_memory_mb

if TYPE_CHECKING:
    from torch import Tensor

    from vasa_hf import LivePortraitRenderer

VARIANTS = ("plain", "ours", "optimised")


def warp_plainly(renderer: LivePortraitRenderer, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> Tensor:
    """W in the steps of the public code; the first result of `LivePortraitRenderer.warp`.

    Args:
        renderer (`LivePortraitRenderer`): Source of the weights.
        feature_3d (`torch.Tensor` of shape `(batch, channels, depth, h, w)`): Appearance.
        kp_source (`torch.Tensor` of shape `(batch, 21, 3)`): Keypoints of the source.
        kp_driving (`torch.Tensor` of shape `(batch, 21, 3)`): Keypoints of the result.
    """
    import torch
    from torch.nn import functional as F  # noqa: N812

    warping = renderer.warping_module
    network = warping.dense_motion_network
    batch, _, depth, height, width = feature_3d.shape
    points = kp_source.shape[1]
    axes = [torch.arange(n, device=feature_3d.device) * (2 / (n - 1)) - 1 for n in (depth, height, width)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)[None, None]  # [1, 1, D, H, W, 3]
    compressed = F.relu(network.norm(network.compress(feature_3d)))
    moved = grid - kp_driving.view(batch, points, 1, 1, 1, 3) + kp_source.view(batch, points, 1, 1, 1, 3)
    motions = torch.cat([grid.expand(batch, 1, *grid.shape[2:]), moved], 1)
    repeated = compressed[:, None].repeat(1, points + 1, 1, 1, 1, 1).flatten(0, 1)
    volumes = F.grid_sample(repeated, motions.flatten(0, 1), align_corners=False).unflatten(0, (batch, points + 1))
    squared = [(grid - kp.view(batch, points, 1, 1, 1, 3)).square().sum(-1) for kp in (kp_driving, kp_source)]
    heatmaps = (-0.5 * squared[0] / 0.01).exp() - (-0.5 * squared[1] / 0.01).exp()
    heatmaps = torch.cat([torch.zeros_like(heatmaps[:, :1]), heatmaps], 1)
    x = torch.cat([heatmaps[:, :, None], volumes], 2).flatten(1, 2)
    skips = [x]
    for block in network.hourglass.encoder.down_blocks:
        x = F.avg_pool3d(F.relu(block.norm(block.conv(x))), (1, 2, 2))
        skips.append(x)
    x = skips.pop()
    for block in network.hourglass.decoder.up_blocks:
        x = F.relu(block.norm(block.conv(F.interpolate(x, scale_factor=(1, 2, 2)))))
        x = torch.cat([x, skips.pop()], 1)
    decoder = network.hourglass.decoder
    x = F.relu(decoder.norm(decoder.conv(x)))
    mask = network.mask(x).softmax(1)
    flow = (motions.permute(0, 1, 5, 2, 3, 4) * mask[:, :, None]).sum(1).permute(0, 2, 3, 4, 1)
    occlusion = network.occlusion(x.flatten(1, 2)).sigmoid()
    flat = F.grid_sample(feature_3d, flow, align_corners=False).flatten(1, 2)
    flat = F.leaky_relu(warping.third.norm(warping.third.conv(flat)), 0.01)
    return warping.fourth(flat) * occlusion


def decode_plainly(renderer: LivePortraitRenderer, feature: Tensor) -> Tensor:
    """G in the steps of the public code.

    Args:
        renderer (`LivePortraitRenderer`): Source of the weights.
        feature (`torch.Tensor` of shape `(batch, channels, h, w)`): From `warp_plainly`.
    """
    from torch.nn import functional as F  # noqa: N812

    def normalise(norm: Any, x: Tensor) -> Tensor:
        normal = F.instance_norm(x)
        activations = norm.mlp_shared(F.interpolate(feature, x.shape[2:], mode="nearest"))
        return normal * (1 + norm.mlp_gamma(activations)) + norm.mlp_beta(activations)

    x = renderer.spade_generator.fc(feature)
    for block, doubled in renderer.spade_generator.blocks:
        x = F.interpolate(x, scale_factor=2) if doubled else x
        skip = x if block.conv_s is None else block.conv_s(normalise(block.norm_s, x))
        x = block.conv_0(F.leaky_relu(normalise(block.norm_0, x), 0.2))
        x = skip + block.conv_1(F.leaky_relu(normalise(block.norm_1, x), 0.2))
    return renderer.spade_generator.conv_img(F.leaky_relu(x, 0.2)).sigmoid()


def measure(
    model: str | None = None,
    config: dict[str, Any] | None = None,
    batch: int = 1,
    repeats: int = 3,
    device: str = "cpu",
    threads: int | None = None,
) -> dict[str, Any]:
    """Measure this process. Call it once, first thing.

    Args:
        model (`str`, *optional*): Folder of a `LivePortraitRenderer`; by default random weights of official size.
        config (`dict`, *optional*): Configuration of the random weights.
        batch (`int`): Frames at a time.
        repeats (`int`): Runs of each variant; the fastest counts.
        device (`str`): Where to run; the optimised variant needs a CPU.
        threads (`int`, *optional*): CPU threads.

    Returns:
        `dict`: Seconds per frame of each stage and variant, maximal differences from the plain run, memory in MB.

    Raises:
        ValueError: If `batch` or `repeats` is less than 1.
    """
    for name, value in (("batch", batch), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    import torch

    from vasa_hf import LivePortraitRenderer

    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    renderer = LivePortraitRenderer(**(config or {})) if model is None else LivePortraitRenderer.from_pretrained(model)
    renderer = renderer.to(device).eval()
    size = renderer.config.image_size
    image = torch.rand(batch, 3, size, size, device=device)
    kp_source, kp_driving = 0.3 * torch.randn(2, batch, 21, 3, device=device)
    cpu = torch.device(device).type == "cpu"
    variants: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]] = {
        "plain": (lambda *inputs: warp_plainly(renderer, *inputs), lambda out: decode_plainly(renderer, out)),
        "ours": (lambda *inputs: renderer.warp(*inputs)[0], renderer.decode),
    }
    if cpu:
        variants["optimised"] = variants["ours"]
    seconds: dict[str, float] = {}

    def measure_time(name: str, run: Callable[[], Tensor]) -> Tensor:
        runs.synchronize(device)
        begun = time.perf_counter()
        result = run()
        runs.synchronize(device)
        spent = (time.perf_counter() - begun) / batch
        seconds[name] = min(spent, seconds.get(name, spent))
        return result

    images, peaks = {}, {}
    with torch.no_grad():
        for _ in range(repeats + 1):
            feature_3d = measure_time("appearance", lambda: renderer.encode_appearance(image))
            measure_time("motion", lambda: renderer.extract_motion(image).kp)
        for variant, (warp, decode) in variants.items():
            prepare = time.perf_counter()
            if cpu:
                renderer.optimize_for_inference(variant == "optimised")
            if variant == "optimised":
                prepare_seconds = time.perf_counter() - prepare
            images[variant] = decode(warp(feature_3d, kp_source, kp_driving))  # warm-up
            peaks[variant] = peak_memory_mb()
        for _ in range(repeats):
            for variant, (warp, decode) in variants.items():
                if cpu and (variant == "optimised") != (renderer._fast is not None):
                    renderer.optimize_for_inference(variant == "optimised")
                    decode(warp(feature_3d, kp_source, kp_driving))
                out = measure_time(f"{variant} warp", partial(warp, feature_3d, kp_source, kp_driving))
                measure_time(f"{variant} decode", partial(decode, out))
    result = {
        "model": model or "random weights",
        "parameters": sum(p.numel() for p in renderer.parameters()),
        "device": device,
        "threads": torch.get_num_threads(),
        "batch": batch,
        "image_size": size,
        "output_size": renderer.output_size,
        "seconds": seconds,
        "differences": {
            variant: (other - images["plain"]).abs().max().item()
            for variant, other in images.items()
            if variant != "plain"
        },
        "peak_memory_mb": peaks,
    }
    return {**result, "prepare_seconds": prepare_seconds} if cpu else result


def format_results(results: Sequence[dict[str, Any]]) -> str:
    """Results of `runs.compare` as a text table, a column for each."""
    first = results[0]
    variants = [variant for variant in VARIANTS if f"{variant} warp" in first["seconds"]]

    def frame_seconds(result: dict[str, Any], variant: str) -> float:
        return result["seconds"][f"{variant} warp"] + result["seconds"][f"{variant} decode"]

    def speedup(result: dict[str, Any], variant: str) -> float:
        return frame_seconds(result, "plain") / frame_seconds(result, variant)

    rows: dict[str, str | Callable[[dict[str, Any]], float]] = {"threads": "threads"}
    rows |= {f"{name}, s": f"seconds.{name}" for name in ("appearance", "motion")}
    for name in variants:
        rows |= {f"{name}: {stage}, s": f"seconds.{name} {stage}" for stage in ("warp", "decode")}
        rows[f"{name}: a frame, s"] = partial(frame_seconds, variant=name)
        if name != "plain":
            rows[f"{name}: times as fast"] = partial(speedup, variant=name)
    rows["optimising, s"] = "prepare_seconds"
    rows |= {f"peak memory, {name}, MB": f"peak_memory_mb.{name}" for name in variants}
    title = f"{first['parameters'] / 1e6:.1f}M parameters on {first['device']}, batch {first['batch']}"
    text = runs.format_table(f"{title}, {first['image_size']} -> {first['output_size']}", results, rows)
    off = [f"{name}: off by at most {first['differences'][name]:.0e} of 1" for name in variants if name != "plain"]
    return "\n".join([text, *off])


if __name__ == "__main__":
    runs.print_measurement(measure)

"""The fast rasterizer for the CPU: tiles, early stop, as many threads as torch, analytic gradients.

The loops are in `cpu_kernels.py`. The threads are Python's, because the compiled kernels release the GIL: unlike
numba's threads they can be used by several callers at once, and after a fork. The result does not depend on their
number.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vasa_hf.gaussians import cpu_kernels as kernels
from vasa_hf.gaussians.scene import Gaussians, view_colors
from vasa_hf.geometry.cameras import Cameras

PARTS_PER_THREAD = 4
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)  # a forked process has none of its parent's threads


def _run_in_threads(work: Callable[[int, int], None]) -> None:
    """Call `work(part, parts)` for all parts, in as many threads as torch uses.

    There are more parts than threads, and an idle thread takes the next part: no thread waits long for a slow one.
    """
    global _pool, _pool_size
    workers = torch.get_num_threads()
    if workers == 1:
        work(0, 1)
        return
    if _pool is None or _pool_size < workers - 1:
        _pool, _pool_size = ThreadPoolExecutor(workers - 1, thread_name_prefix="gaussians"), workers - 1
    parts = workers * PARTS_PER_THREAD
    remaining = itertools.count()  # `next` is atomic

    def take_parts() -> None:
        while (part := next(remaining)) < parts:
            work(part, parts)

    waiting = [_pool.submit(take_parts) for _ in range(workers - 1)]
    take_parts()
    for result in waiting:
        if not result.cancel():  # a thread that has not started has nothing left to do
            result.result()


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    """Convert tensors to float32 arrays, without a copy if they are contiguous."""
    return [tensor.detach().float().contiguous().numpy() for tensor in tensors]


def _camera_numbers(camera: Cameras, size: tuple[int, int]) -> np.ndarray:
    """Pack a camera into 16 numbers, in the order of the kernels."""
    matrix, intrinsics = camera.camera_from_world[0], camera.intrinsics(size)[0]
    parts = [matrix[:3, :3].reshape(-1), matrix[:3, 3], intrinsics.diagonal()[:2], intrinsics[:2, 2]]
    return _arrays(torch.cat(parts))[0]


class _Rasterize(torch.autograd.Function):
    """Gaussians with RGB -> planes of an image, for one camera."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        colors: Tensor,
        probe: Tensor,
        camera: np.ndarray,
        size: tuple[int, int],
        near: float,
    ) -> tuple[Tensor, Tensor]:
        height, width = size
        count = len(means)
        inputs = _arrays(means, quats, scales, opacities, colors, probe)
        splats, radii = np.empty((count, kernels.SPLAT_COLUMNS), np.float32), np.empty(count, np.float32)
        boxes = np.empty((count, 4), np.int32)
        near_plane = np.float32(near)

        def project(part: int, parts: int) -> None:
            first, last = count * part // parts, count * (part + 1) // parts
            kernels.project(first, last, *inputs, camera, width, height, near_plane, splats, boxes, radii)

        _run_in_threads(project)
        tiles_x, tiles_y = -(-width // kernels.TILE), -(-height // kernels.TILE)
        starts, ids = kernels.bin_tiles(kernels.depth_order(splats, radii), boxes, tiles_x, tiles_y)
        image, rest = np.empty((5, height, width), np.float32), np.empty((height, width), np.float32)
        last = np.empty((height, width), np.int32)
        _run_in_threads(lambda *part: kernels.blend(*part, splats, boxes, starts, ids, tiles_x, image, rest, last))

        ctx.geometry, ctx.lists, ctx.kept = (inputs[:3], camera, size), (boxes, starts, ids, tiles_x), (rest, last)
        ctx.splats, ctx.radii = splats, radii
        ctx.dtypes = [tensor.dtype for tensor in (means, quats, scales, opacities, colors, probe)]
        radii_px = torch.from_numpy(radii)
        ctx.mark_non_differentiable(radii_px)
        return torch.from_numpy(image), radii_px

    @staticmethod
    def backward(ctx: Any, d_image: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (inputs, camera, (height, width)), (boxes, starts, ids, tiles_x) = ctx.geometry, ctx.lists
        (d_planes,) = _arrays(d_image)
        splats, radii, count = ctx.splats, ctx.radii, len(ctx.radii)
        d_pairs = np.empty((len(ids), kernels.SPLAT_COLUMNS), np.float32)
        d_splats = np.zeros((count, kernels.SPLAT_COLUMNS), np.float32)
        d_inputs = [np.zeros_like(array) for array in inputs]

        def project(part: int, parts: int) -> None:
            first, last = count * part // parts, count * (part + 1) // parts
            kernels.project_backward(first, last, *inputs, camera, width, height, splats, radii, d_splats, *d_inputs)

        lists = (boxes, starts, ids, tiles_x)
        _run_in_threads(lambda *part: kernels.blend_backward(*part, splats, *lists, *ctx.kept, d_planes, d_pairs))
        kernels.sum_pairs(ids, d_pairs, d_splats)
        _run_in_threads(project)
        arrays = [*d_inputs, d_splats[:, 5], d_splats[:, 6:9], d_splats[:, :2]]
        gradients = [torch.from_numpy(value).to(dtype) for value, dtype in zip(arrays, ctx.dtypes, strict=True)]
        return *gradients, None, None, None


def render_planes(
    gaussians: Gaussians,
    camera: Cameras,
    size: tuple[int, int],
    near: float,
    screen_probe: Tensor | None,  # [N, 2]
) -> tuple[Tensor, Tensor]:
    """Render one image of one set of Gaussians.

    Args:
        gaussians (`Gaussians`): Without a batch dimension.
        camera (`Cameras`): One camera.
        size (`tuple` of two `int`): Height and width.
        near (`float`): Gaussians whose centre is nearer are skipped, in world units.
        screen_probe (`torch.Tensor` of shape `(gaussians, 2)`, *optional*): Added to the centres in pixels.

    Returns:
        Red, green and blue over black, blended depth and alpha `(5, height, width)`, and the radii `(gaussians,)`.
    """
    rgb = view_colors(gaussians.means, gaussians.colors, camera.position[0])
    if screen_probe is None:
        screen_probe = gaussians.means.new_zeros(len(gaussians), 2)
    tensors = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, rgb, screen_probe)
    return _Rasterize.apply(*tensors, _camera_numbers(camera, size), size, near)

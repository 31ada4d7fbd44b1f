"""The fast rasterizer for the CPU: tiles, early stop, all of torch's threads, analytic gradients.

The loops are in `cpu_kernels.py`. Threads are Python's, because the compiled kernels release the GIL: unlike numba's
own they may be used by several callers at once, and after a fork. The result does not depend on their number.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from vasa_hf.gaussians import cpu_kernels as kernels
from vasa_hf.gaussians.scene import Gaussians, view_colors
from vasa_hf.geometry.cameras import Cameras

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)  # a forked process has none of its parent's threads


def _in_threads(work: Callable[[int, int], None]) -> None:
    """Call `work(worker, workers)` for each of torch's threads."""
    global _pool
    workers = torch.get_num_threads()
    if workers > 1 and (_pool is None or _pool._max_workers < workers - 1):
        _pool = ThreadPoolExecutor(workers - 1, thread_name_prefix="gaussians")
    waiting = [_pool.submit(work, worker, workers) for worker in range(1, workers)]
    work(0, workers)
    for result in waiting:
        result.result()


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    """float32 arrays of tensors, without a copy where they are contiguous."""
    return [tensor.detach().float().contiguous().numpy() for tensor in tensors]


def _camera_numbers(camera: Cameras, size: tuple[int, int]) -> np.ndarray:
    """The 16 numbers of a camera in the order of the kernels."""
    matrix, intrinsics = camera.camera_from_world[0], camera.intrinsics(size)[0]
    parts = [matrix[:3, :3].reshape(-1), matrix[:3, 3], intrinsics.diagonal()[:2], intrinsics[:2, 2]]
    return _arrays(torch.cat(parts))[0]


class _Rasterize(torch.autograd.Function):
    """Gaussians with RGB -> planes of a picture, for one camera."""

    @staticmethod
    def forward(ctx, means, quats, scales, opacities, colors, probe, camera, size, near):
        height, width = size
        count = len(means)
        inputs = _arrays(means, quats, scales, opacities, colors, probe)
        splats, radii = np.empty((count, kernels.SPLAT_COLUMNS), np.float32), np.empty(count, np.float32)
        boxes = np.empty((count, 4), np.int32)
        near = np.float32(near)

        def project(worker, workers):
            first, last = count * worker // workers, count * (worker + 1) // workers
            kernels.project(first, last, *inputs, camera, width, height, near, splats, boxes, radii)

        _in_threads(project)
        tiles_x, tiles_y = -(-width // kernels.TILE), -(-height // kernels.TILE)
        starts, ids = kernels.bin_tiles(kernels.depth_order(splats, radii), boxes, tiles_x, tiles_y)
        picture, rest = np.empty((5, height, width), np.float32), np.empty((height, width), np.float32)
        last = np.empty((height, width), np.int32)
        _in_threads(lambda *w: kernels.blend(*w, splats, boxes, starts, ids, tiles_x, picture, rest, last))

        ctx.geometry, ctx.lists, ctx.kept = (inputs[:3], camera, size), (boxes, starts, ids, tiles_x), (rest, last)
        ctx.splats, ctx.radii = splats, radii
        ctx.dtypes = [tensor.dtype for tensor in (means, quats, scales, opacities, colors, probe)]
        radii = torch.from_numpy(radii)
        ctx.mark_non_differentiable(radii)
        return torch.from_numpy(picture), radii

    @staticmethod
    def backward(ctx, d_picture, _):
        (inputs, camera, (height, width)), (boxes, starts, ids, tiles_x) = ctx.geometry, ctx.lists
        (d_picture,) = _arrays(d_picture)
        splats, radii, count = ctx.splats, ctx.radii, len(ctx.radii)
        d_pairs = np.empty((len(ids), kernels.SPLAT_COLUMNS), np.float32)
        d_splats = np.zeros((count, kernels.SPLAT_COLUMNS), np.float32)
        d_inputs = [np.zeros_like(array) for array in inputs]

        def project(worker, workers):
            first, last = count * worker // workers, count * (worker + 1) // workers
            kernels.project_backward(first, last, *inputs, camera, width, height, splats, radii, d_splats, *d_inputs)

        lists = (boxes, starts, ids, tiles_x)
        _in_threads(lambda *w: kernels.blend_backward(*w, splats, *lists, *ctx.kept, d_picture, d_pairs))
        kernels.sum_pairs(ids, d_pairs, d_splats)
        _in_threads(project)
        gradients = [*d_inputs, d_splats[:, 5], d_splats[:, 6:9], d_splats[:, :2]]
        gradients = [torch.from_numpy(value).to(dtype) for value, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return *gradients, None, None, None


def render_planes(
    gaussians: Gaussians,
    camera: Cameras,
    size: tuple[int, int],
    near: float,
    screen_probe: Tensor | None,  # [N, 2]
) -> tuple[Tensor, Tensor]:
    """One picture of one set of Gaussians.

    Args:
        gaussians (`Gaussians`): Without a batch dimension.
        camera (`Cameras`): One camera.
        size (`tuple` of two `int`): Height and width.
        near (`float`): Gaussians whose centre is nearer are left out, in world units.
        screen_probe (`torch.Tensor` of shape `(gaussians, 2)`, *optional*): Added to the centres in pixels.

    Returns:
        Red, green and blue over black, blended depth and alpha `(5, height, width)`, and the radii `(gaussians,)`.
    """
    rgb = view_colors(gaussians.means, gaussians.colors, camera.position[0])
    if screen_probe is None:
        screen_probe = gaussians.means.new_zeros(len(gaussians), 2)
    tensors = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, rgb, screen_probe)
    return _Rasterize.apply(*tensors, _camera_numbers(camera, size), size, near)

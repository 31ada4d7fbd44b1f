"""`render`: Gaussians to images, on any backend."""

from collections.abc import Sequence
from operator import itemgetter

import torch
from torch import Tensor

from vasa_hf.gaussians.scene import NEAR_PLANE, Gaussians, RenderOutput
from vasa_hf.geometry.cameras import Cameras

BACKENDS = ("cuda", "cpu", "reference")


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    size: int | tuple[int, int],
    background: Tensor | Sequence[float] = (0.0, 0.0, 0.0),  # [3] or [images, 3]
    near: float = NEAR_PLANE,
    screen_probe: Tensor | None = None,  # [images, N, 2]
    backend: str | None = None,
) -> RenderOutput:
    """Render Gaussians, with gradients to everything except the cameras.

    One set of Gaussians gives an image for each camera. A batch of sets (the frames of an animation) gives an image for
    each set, with its own camera or one camera for all.

    Source: Kerbl et al. 2023 (3DGS), as gsplat 1.5 rasterizes ("classic").

    Args:
        gaussians (`Gaussians`): What to render.
        cameras (`Cameras`): One or more; constants, see `geometry/cameras.py`.
        size (`int` or `tuple` of two `int`): Side, or height and width, of the images in pixels.
        background (`torch.Tensor` of shape `(3,)` or `(images, 3)`, or three `float`, *optional*, defaults to black):
            RGB behind the Gaussians.
        near (`float`, *optional*, defaults to 0.01): Gaussians whose centre is nearer are skipped, in world units.
        screen_probe (`torch.Tensor` of shape `(images, gaussians, 2)`, *optional*):
            Zeros, added to the Gaussians' positions in pixels: after `backward()` its `grad` is the gradient with
            respect to those positions, for density control.
        backend (`str`, *optional*): `"cuda"` (gsplat), `"cpu"` (tiles, compiled) or `"reference"` (plain torch, slow).
            By default `"cuda"` for Gaussians on a CUDA device, else `"cpu"`.

    Returns:
        `RenderOutput`.

    Raises:
        ValueError: If arguments do not match, or `backend` does not support the Gaussians' device.
        ImportError: If the backend's library is not installed.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    num_images = _count_images(gaussians, cameras, sides)
    height, width = sides
    # At least float32: a network under autocast may return less.
    dtype = torch.promote_types(gaussians.means.dtype, torch.float32)
    gaussians = gaussians.to(dtype)
    means = gaussians.means
    if screen_probe is not None and tuple(screen_probe.shape) != (num_images, len(gaussians), 2):
        expected = (num_images, len(gaussians), 2)
        raise ValueError(f"`screen_probe` must have shape {expected}, got {tuple(screen_probe.shape)}.")
    background = torch.as_tensor(background, dtype=means.dtype, device=means.device)
    if tuple(background.shape) not in ((3,), (num_images, 3)):
        raise ValueError(f"`background` must have shape (3,) or {(num_images, 3)}, got {tuple(background.shape)}.")
    backend = _choose_backend(backend, means.device)
    cameras = cameras.to(device=means.device, dtype=means.dtype)

    if len(gaussians) == 0:
        planes, radii = means.new_zeros(num_images, 5, height, width), means.new_zeros(num_images, 0)
    elif backend == "cuda":
        from vasa_hf.gaussians.cuda import render_planes

        if len(cameras) < num_images:
            cameras = Cameras(*(v.expand(num_images, *v.shape[1:]) for v in vars(cameras).values()))
        planes, radii = render_planes(gaussians, cameras, (height, width), near, screen_probe)
    else:
        planes, radii = _render_one_by_one(backend, gaussians, cameras, (height, width), near, screen_probe, num_images)

    color, depth, alpha = planes.split((3, 1, 1), dim=1)
    color = color + (1 - alpha) * background.reshape(-1, 3, 1, 1)
    return RenderOutput(color, alpha, depth / alpha.clamp_min(1e-10), radii)


def _render_one_by_one(
    backend: str,
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    near: float,
    screen_probe: Tensor | None,
    num_images: int,
) -> tuple[Tensor, Tensor]:
    """Render with a backend that renders one image at a time."""
    if backend == "cpu":
        from vasa_hf.gaussians.cpu import render_planes
    else:
        from vasa_hf.gaussians.reference import render_planes
    planes, radii = [], []
    for index in range(num_images):
        one = gaussians if gaussians.batch_size is None else gaussians.map(itemgetter(index))
        camera = cameras[index if len(cameras) > 1 else 0]
        probe = None if screen_probe is None else screen_probe[index]
        result = render_planes(one, camera, size, near, probe)
        planes.append(result[0])
        radii.append(result[1])
    return torch.stack(planes), torch.stack(radii)


def _count_images(gaussians: Gaussians, cameras: Cameras, size: tuple[int, ...]) -> int:
    """Check the arguments and return the number of images."""
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"`size` must be a positive whole number of pixels, or two of them, got {size}.")
    if len(cameras) == 0 or (gaussians.batch_size not in (None, len(cameras)) and len(cameras) != 1):
        expected = "at least one camera" if gaussians.batch_size is None else f"1 or {gaussians.batch_size} cameras"
        raise ValueError(f"`cameras` must hold {expected} for these Gaussians, got {len(cameras)}.")
    if any(value.requires_grad for value in vars(cameras).values()):
        raise ValueError("`cameras` must be constants: gradients to cameras are not computed; detach them.")
    return len(cameras) if gaussians.batch_size is None else gaussians.batch_size


def _choose_backend(backend: str | None, device: torch.device) -> str:
    if backend is None:
        backend = "cuda" if device.type == "cuda" else "cpu"
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if backend != "reference" and backend != device.type:
        raise ValueError(f"`backend` {backend!r} needs Gaussians on a {backend} device, got {device}.")
    return backend

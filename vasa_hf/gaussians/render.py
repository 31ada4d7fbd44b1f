"""`render`: the one function everyone calls to turn Gaussians into pictures."""

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
    background: Tensor | Sequence[float] = (0.0, 0.0, 0.0),  # [3] or [pictures, 3]
    near: float = NEAR_PLANE,
    screen_probe: Tensor | None = None,  # [pictures, N, 2]
    backend: str | None = None,
) -> RenderOutput:
    """Render Gaussians, with gradients to all that is not a camera.

    One set of Gaussians gives a picture for each camera. A batch of sets (the frames of an animation) gives a picture
    for each set, seen by its own camera or all by one.

    Source: Kerbl et al. 2023 (3DGS), as gsplat 1.5 rasterizes ("classic").

    Args:
        gaussians (`Gaussians`): What to render.
        cameras (`Cameras`): One or more; constants, see `geometry/cameras.py`.
        size (`int` or `tuple` of two `int`): Side, or height and width, of the pictures in pixels.
        background (`torch.Tensor` of shape `(3,)` or `(pictures, 3)`, or three `float`, *optional*, defaults to black):
            RGB behind the Gaussians.
        near (`float`, *optional*, defaults to 0.01): Gaussians whose centre is nearer are left out, in world units.
        screen_probe (`torch.Tensor` of shape `(pictures, gaussians, 2)`, *optional*):
            Zeros, added to the Gaussians' positions in pixels: after `backward()` its `grad` is the gradient with
            respect to those positions, which density control looks at.
        backend (`str`, *optional*): `"cuda"` (gsplat), `"cpu"` (tiles, compiled) or `"reference"` (plain torch, slow).
            By default `"cuda"` for Gaussians on a CUDA device, else `"cpu"`.

    Returns:
        `RenderOutput`.

    Raises:
        ValueError: If arguments do not fit together, or `backend` cannot work with the Gaussians' device.
        ImportError: If the backend's library is not installed.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    pictures = _check_pictures(gaussians, cameras, sides)
    height, width = sides
    # float32 at least, whatever a network under autocast has put out.
    dtype = torch.promote_types(gaussians.means.dtype, torch.float32)
    gaussians = gaussians.to(dtype)
    means = gaussians.means
    if screen_probe is not None and tuple(screen_probe.shape) != (pictures, len(gaussians), 2):
        expected = (pictures, len(gaussians), 2)
        raise ValueError(f"`screen_probe` must have shape {expected}, got {tuple(screen_probe.shape)}.")
    background = torch.as_tensor(background, dtype=means.dtype, device=means.device)
    if tuple(background.shape) not in ((3,), (pictures, 3)):
        raise ValueError(f"`background` must have shape (3,) or {(pictures, 3)}, got {tuple(background.shape)}.")
    backend = _choose_backend(backend, means.device)
    cameras = cameras.to(device=means.device, dtype=means.dtype)

    if len(gaussians) == 0:
        planes, radii = means.new_zeros(pictures, 5, height, width), means.new_zeros(pictures, 0)
    elif backend == "cuda":
        from vasa_hf.gaussians.cuda import render_planes

        if len(cameras) < pictures:
            cameras = Cameras(*(v.expand(pictures, *v.shape[1:]) for v in vars(cameras).values()))
        planes, radii = render_planes(gaussians, cameras, (height, width), near, screen_probe)
    else:
        planes, radii = _render_one_by_one(backend, gaussians, cameras, (height, width), near, screen_probe, pictures)

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
    pictures: int,
) -> tuple[Tensor, Tensor]:
    """Pictures from a backend that makes one at a time."""
    if backend == "cpu":
        from vasa_hf.gaussians.cpu import render_planes
    else:
        from vasa_hf.gaussians.reference import render_planes
    planes, radii = [], []
    for index in range(pictures):
        one = gaussians if gaussians.batch_size is None else gaussians.map(itemgetter(index))
        camera = cameras[index if len(cameras) > 1 else 0]
        probe = None if screen_probe is None else screen_probe[index]
        result = render_planes(one, camera, size, near, probe)
        planes.append(result[0])
        radii.append(result[1])
    return torch.stack(planes), torch.stack(radii)


def _check_pictures(gaussians: Gaussians, cameras: Cameras, size: tuple[int, ...]) -> int:
    """How many pictures come out."""
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

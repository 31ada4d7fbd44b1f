"""Rasterization by gsplat on a CUDA device. The only file that imports gsplat, and only when it is used."""

import math

import torch
from torch import Tensor

from vasa_hf.gaussians.scene import LOW_PASS, Gaussians, view_colors
from vasa_hf.geometry.cameras import Cameras

TILE = 16


def render_planes(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    near: float,
    screen_probe: Tensor | None,  # [C, N, 2]
) -> tuple[Tensor, Tensor]:
    """All pictures of a batch at once; see `cpu.render_planes`, which makes one.

    Args:
        gaussians (`Gaussians`): One set for all cameras, or a batch with one set for each.
        cameras (`Cameras`): One for each picture.
        size (`tuple` of two `int`): Height and width.
        near (`float`): Gaussians whose centre is nearer are left out, in world units.
        screen_probe (`torch.Tensor` of shape `(pictures, gaussians, 2)`, *optional*): Added to the centres in pixels.

    Returns:
        Red, green and blue over black, blended depth and alpha `(pictures, 5, height, width)`, and the radii
        `(pictures, gaussians)`.

    Raises:
        ImportError: If gsplat is not installed.
    """
    try:
        from gsplat import fully_fused_projection, isect_offset_encode, isect_tiles, rasterize_to_pixels
    except ImportError as error:
        raise ImportError("Rendering on CUDA needs gsplat: pip install gsplat") from error

    (height, width), pictures = size, len(cameras)
    shared = gaussians.batch_size is None
    # A batch of sets is gsplat's batch with one camera each: [B, 1, N, ...]; one set has many cameras: [C, N, ...].
    extrinsics, intrinsics = cameras.camera_from_world.contiguous(), cameras.intrinsics(size).contiguous()
    if not shared:
        extrinsics, intrinsics = extrinsics[:, None].contiguous(), intrinsics[:, None].contiguous()
    geometry = [value.contiguous() for value in (gaussians.means, gaussians.quats, gaussians.scales)]
    radii, means2d, depths, conics, _ = fully_fused_projection(
        geometry[0],
        None,
        geometry[1],
        geometry[2],
        extrinsics,
        intrinsics,
        width,
        height,
        eps2d=LOW_PASS,
        near_plane=near,
        opacities=gaussians.opacities.contiguous(),
    )
    count = len(gaussians)
    radii, means2d = radii.reshape(pictures, count, 2), means2d.reshape(pictures, count, 2)
    depths, conics = depths.reshape(pictures, count), conics.reshape(pictures, count, 3)
    if screen_probe is not None:
        means2d = means2d + screen_probe
    means, colors = gaussians.means, gaussians.colors
    if shared:
        means, colors = means.expand(pictures, -1, -1), colors.expand(pictures, *colors.shape)
    rgb = view_colors(means, colors, cameras.position)
    features = torch.cat([rgb, depths[..., None]], dim=-1)
    opacities = gaussians.opacities.expand(pictures, count).contiguous()

    tiles_x, tiles_y = math.ceil(width / TILE), math.ceil(height / TILE)
    _, intersections, ids = isect_tiles(means2d, radii, depths, TILE, tiles_x, tiles_y)
    starts = isect_offset_encode(intersections, pictures, tiles_x, tiles_y)
    blended, alpha = rasterize_to_pixels(
        means2d.contiguous(), conics.contiguous(), features, opacities, width, height, TILE, starts, ids
    )
    planes = torch.cat([blended, alpha], dim=-1).permute(0, 3, 1, 2)
    return planes, radii.amax(dim=-1).float()

"""Rasterization by gsplat on a CUDA device. The only file that imports gsplat, at the first use."""

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
    """Render all images of a batch at once; see `cpu.render_planes`, which renders one.

    Args:
        gaussians (`Gaussians`): One set for all cameras, or a batch with one set for each.
        cameras (`Cameras`): One for each image.
        size (`tuple` of two `int`): Height and width.
        near (`float`): Gaussians whose centre is nearer are skipped, in world units.
        screen_probe (`torch.Tensor` of shape `(images, gaussians, 2)`, *optional*): Added to the centres in pixels.

    Returns:
        Red, green and blue over black, blended depth and alpha `(images, 5, height, width)`, and the radii
        `(images, gaussians)`.

    Raises:
        ImportError: If gsplat is not installed.
    """
    try:
        from gsplat import fully_fused_projection, isect_offset_encode, isect_tiles, rasterize_to_pixels
    except ImportError as error:
        raise ImportError("Rendering on CUDA needs gsplat: pip install gsplat") from error

    (height, width), num_images = size, len(cameras)
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
    radii, means2d = radii.reshape(num_images, count, 2), means2d.reshape(num_images, count, 2)
    depths, conics = depths.reshape(num_images, count), conics.reshape(num_images, count, 3)
    if screen_probe is not None:
        means2d = means2d + screen_probe
    means, colors = gaussians.means, gaussians.colors
    if shared:
        means, colors = means.expand(num_images, -1, -1), colors.expand(num_images, *colors.shape)
    rgb = view_colors(means, colors, cameras.position)
    features = torch.cat([rgb, depths[..., None]], dim=-1)
    opacities = gaussians.opacities.expand(num_images, count).contiguous()

    tiles_x, tiles_y = math.ceil(width / TILE), math.ceil(height / TILE)
    _, intersections, ids = isect_tiles(means2d, radii, depths, TILE, tiles_x, tiles_y)
    starts = isect_offset_encode(intersections, num_images, tiles_x, tiles_y)
    blended, alpha = rasterize_to_pixels(
        means2d.contiguous(), conics.contiguous(), features, opacities, width, height, TILE, starts, ids
    )
    planes = torch.cat([blended, alpha], dim=-1).permute(0, 3, 1, 2)
    return planes, radii.amax(dim=-1).float()

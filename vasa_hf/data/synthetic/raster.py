"""A small z-buffer rasteriser and soft polygons, in plain torch. Pixel (0, 0) has its centre at (0.5, 0.5)."""

import torch
from torch import Tensor


def rasterize(
    points: Tensor,  # [V, 3]
    faces: Tensor,  # [F, 3]
    size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Which triangle is nearest at each pixel centre.

    Every triangle lists the pixels of its bounding box, all lists are tested together, and the nearest hit of each
    pixel is found by one scatter: no loop over triangles. Triangles seen from behind are skipped.

    Args:
        points (`torch.Tensor` of shape `(V, 3)`): x and y in pixels, z away from the viewer.
        faces (`torch.Tensor` of shape `(F, 3)`): Vertex indices, anticlockwise on the screen when seen from outside.
        size (`int`): Side of the square image.

    Returns:
        pixels (`torch.Tensor` of shape `(P,)`): Flat indices of the covered pixels.
        triangles (`torch.Tensor` of shape `(P,)`): Rows of `faces`.
        weights (`torch.Tensor` of shape `(P, 3)`): Barycentric coordinates of the pixel's centre.
    """
    corners = points[faces]  # [F, 3, 3]
    x, y, z = corners.unbind(-1)
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    x0, x1 = (x.amin(1) - 0.5).ceil().clamp_min(0), (x.amax(1) - 0.5).floor().clamp_max(size - 1)
    y0, y1 = (y.amin(1) - 0.5).ceil().clamp_min(0), (y.amax(1) - 0.5).floor().clamp_max(size - 1)
    kept = ((area < -1e-9) & (x1 >= x0) & (y1 >= y0)).nonzero()[:, 0]  # y points down: anticlockwise is negative
    width, height = (x1 - x0 + 1)[kept].long(), (y1 - y0 + 1)[kept].long()
    count = width * height
    owner = torch.repeat_interleave(torch.arange(len(kept)), count)  # [candidates]
    local = torch.arange(len(owner)) - (count.cumsum(0) - count)[owner]
    column = x0[kept].long()[owner] + local % width[owner]
    row = y0[kept].long()[owner] + local // width[owner]
    # Barycentric coordinates are affine in the pixel: a + b * px + c * py for the second and third corner.
    x, y, z, area = x[kept], y[kept], z[kept], area[kept]
    b1, c1 = (y[:, 2] - y[:, 0]) / area, (x[:, 0] - x[:, 2]) / area
    b2, c2 = (y[:, 0] - y[:, 1]) / area, (x[:, 1] - x[:, 0]) / area
    planes = torch.stack([b1, c1, -b1 * x[:, 0] - c1 * y[:, 0], b2, c2, -b2 * x[:, 0] - c2 * y[:, 0]], 1)[owner]
    px, py = column + 0.5, row + 0.5
    w1 = planes[:, 0] * px + planes[:, 1] * py + planes[:, 2]
    w2 = planes[:, 3] * px + planes[:, 4] * py + planes[:, 5]
    w0 = 1 - w1 - w2
    inside = ((w0 >= -1e-4) & (w1 >= -1e-4) & (w2 >= -1e-4)).nonzero()[:, 0]
    owner, pixel = owner[inside], (row * size + column)[inside]
    weights = torch.stack([w0, w1, w2], 1)[inside]
    depth = (weights * z[owner]).sum(1)
    nearest = torch.full((size * size,), torch.inf).scatter_reduce(0, pixel, depth, "amin")
    first = (depth <= nearest[pixel]).nonzero()[:, 0]
    hit = torch.full((size * size,), -1).index_put((pixel[first],), first)  # of equals, one
    pixels = (hit >= 0).nonzero()[:, 0]
    hit = hit[pixels]
    return pixels, kept[owner[hit]], weights[hit]


def soft_polygon(
    polygon: Tensor,  # [N, 2]
    size: int,
    softness: float = 1.0,
) -> tuple[tuple[slice, slice], Tensor]:
    """How much of each pixel lies inside a closed outline.

    Args:
        polygon (`torch.Tensor` of shape `(N, 2)`): Corners in pixels; it need not be convex.
        size (`int`): Side of the square image.
        softness (`float`, *optional*, defaults to 1.0): Width of the ramp at the outline in pixels.

    Returns:
        window (`tuple[slice, slice]`): Rows and columns that the outline touches.
        cover (`torch.Tensor` of shape `(rows, columns)`): In [0, 1]; half on the outline, even where it is a mere line.
    """
    margin = 1 + softness
    low = (polygon.amin(0) - margin).floor().clamp(0, size).long().tolist()
    high = (polygon.amax(0) + margin).ceil().clamp(0, size).long().tolist()
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    x, y = torch.arange(low[0], high[0]) + 0.5, torch.arange(low[1], high[1]) + 0.5
    if not len(x) or not len(y):
        return window, torch.zeros(len(y), len(x))
    x, y = x[None, :, None], y[:, None, None]  # [rows, columns, edges]
    (ax, ay), (bx, by) = polygon.unbind(1), polygon.roll(-1, 0).unbind(1)
    ex, ey = bx - ax, by - ay
    along = (((x - ax) * ex + (y - ay) * ey) / (ex**2 + ey**2).clamp_min(1e-9)).clamp(0, 1)
    distance = torch.hypot(x - ax - along * ex, y - ay - along * ey).amin(-1)
    crosses = ((ay > y) != (by > y)) & (x < ax + (y - ay) * ex / torch.where(ey == 0, torch.ones(()), ey))
    inside = crosses.sum(-1) % 2 == 1
    return window, (0.5 + torch.where(inside, distance, -distance) / softness).clamp(0, 1)

"""Thin-plate splines: smooth warps of an image that move its landmarks."""

import torch
from torch import Tensor
from torch.nn import functional as F

FLOW_SIZE = 48


def warp_by_landmarks(image: Tensor, source: Tensor, target: Tensor, stiffness: float = 1e-3) -> Tensor:
    """Move an image's landmarks by a thin-plate spline; its border stays fixed.

    Args:
        image (`torch.Tensor` of shape `(batch, 3, size, size)`): Images.
        source (`torch.Tensor` of shape `(batch, points, 2)`): Landmarks in the images, fractions of the crop.
        target (`torch.Tensor` of shape `(batch, points, 2)`): New positions.
        stiffness (`float`): Smoothing of the spline.

    Returns:
        `torch.Tensor` of shape `(batch, 3, size, size)`.
    """
    flow = thin_plate_flow(source, target, FLOW_SIZE, stiffness)
    # Bicubic interpolation as a matrix, one axis at a time: several times as fast as in two dimensions.
    cubic = torch.eye(FLOW_SIZE, device=flow.device)[None, None]
    cubic = F.interpolate(cubic, (image.shape[-1], FLOW_SIZE), mode="bicubic", align_corners=False)[0, 0]
    flow = (cubic @ flow.permute(0, 3, 1, 2) @ cubic.T).permute(0, 2, 3, 1)
    return F.grid_sample(image, flow.contiguous(), padding_mode="border", align_corners=False)


def thin_plate_flow(source: Tensor, target: Tensor, size: int, stiffness: float = 1e-3) -> Tensor:
    """Dense backward flow of a thin-plate spline: `(batch, size, size, 2)` source positions, xy in [-1, 1]."""
    ticks = torch.linspace(0, 1, 9, device=source.device)
    edge = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1).reshape(-1, 2)
    edge = edge[((edge == 0) | (edge == 1)).any(1)].expand(len(source), -1, -1)
    points = torch.cat([target, edge], 1)
    values = torch.cat([source - target, torch.zeros_like(edge)], 1)
    kernel = _plate(_squares(points, points)) + stiffness * torch.eye(points.shape[1], device=points.device)
    affine = torch.cat([torch.ones_like(points[..., :1]), points], -1)
    system = torch.cat(
        [torch.cat([kernel, affine], 2), torch.cat([affine.mT, affine.new_zeros(len(points), 3, 3)], 2)], 1
    )
    values = torch.cat([values, values.new_zeros(len(points), 3, 2)], 1)
    if system.is_cuda:
        weights = torch.linalg.solve(system, values)
    else:  # MKL's batched LU of systems of this size fails with several threads
        weights = torch.stack([torch.linalg.solve(a, b) for a, b in zip(system, values, strict=True)])
    axis = (torch.arange(size, device=source.device) + 0.5) / size
    x, y = ((axis[:, None] - points[:, None, :, i]).square() for i in (0, 1))  # [B, size, points]
    radial = _plate((y[:, :, None] + x[:, None]).flatten(1, 2))  # [B, size²: rows of a grid, points]
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(1, -1, 2)
    bend, (shift, turn) = weights[:, :-3], weights[:, -3:].split([1, 2], 1)
    return ((grid + radial @ bend + shift + grid @ turn) * 2 - 1).unflatten(1, (size, size))


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of all pairs: points `(batch, n, 2)` and `(batch, m, 2)` -> `(batch, n, m)`."""
    x, y = (a[:, :, None, axis] - b[:, None, :, axis] for axis in (0, 1))
    return x.square_().add_(y.square_())


def _plate(squares: Tensor) -> Tensor:
    """d² log d of squared distances."""
    return squares.clamp_min(1e-12).log_().mul_(squares).mul_(0.5)

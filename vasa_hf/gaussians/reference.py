"""The rasterizer in plain torch: every Gaussian at every pixel, gradients by autograd. Slow; for tests.

The maths is that of gsplat 1.5's classic rasterization:

```
EWA projection   cov2d = J R cov R^T J^T + 0.3 I      J: the pinhole camera linearised at the Gaussian's centre
alpha            min(0.999, opacity * exp(-d^T cov2d^-1 d / 2)), skipped below 1/255
compositing      front to back by the centre's depth, until the transmittance would fall to 1e-4
```
Source: Kerbl et al. 2023 (3DGS) §4-6; Zwicker et al. 2001 (EWA splatting).
"""

import dataclasses

import torch
from torch import Tensor

from vasa_hf.gaussians.scene import (
    ALPHA_MAX,
    ALPHA_MIN,
    FRUSTUM_MARGIN,
    LOW_PASS,
    MAX_EXTENT,
    TRANSMITTANCE_MIN,
    Gaussians,
    view_colors,
)
from vasa_hf.geometry.cameras import Cameras
from vasa_hf.geometry.quaternions import matrix_from_quaternion

#: Pairs of pixel and Gaussian per chunk, which bounds the memory.
CHUNK_PAIRS = 2**21


@dataclasses.dataclass(eq=False)
class Splats:
    """Gaussians on the screen of one camera.

    Args:
        means2d (`torch.Tensor` of shape `(gaussians, 2)`): Centres in pixels.
        conics (`torch.Tensor` of shape `(gaussians, 3)`): xx, xy and yy of the inverse covariances, 1 / pixels^2.
        depths (`torch.Tensor` of shape `(gaussians,)`): Along the camera's axis, in world units.
        radii (`torch.Tensor` of shape `(gaussians,)`): Reach in whole pixels, 0 if skipped; no gradient.
    """

    means2d: Tensor
    conics: Tensor
    depths: Tensor
    radii: Tensor


def project(
    gaussians: Gaussians,
    camera: Cameras,
    size: tuple[int, int],
    near: float,
) -> Splats:
    """Project one set of Gaussians to one camera.

    Args:
        gaussians (`Gaussians`): Without a batch dimension.
        camera (`Cameras`): One camera.
        size (`tuple` of two `int`): Height and width of the image.
        near (`float`): Gaussians whose centre is nearer are skipped, in world units.
    """
    height, width = size
    rotation, translation = camera.camera_from_world[0, :3, :3], camera.camera_from_world[0, :3, 3]
    intrinsics = camera.intrinsics(size)[0]
    centers = gaussians.means @ rotation.T + translation
    in_front = centers[:, 2] >= near
    # Points behind the camera would put infinities into the gradients of the others.
    centers = torch.where(in_front[:, None], centers, centers.new_tensor([0.0, 0.0, 1.0]))
    depths = centers[:, 2]
    means2d = centers[:, :2] / depths[:, None] * intrinsics.diagonal()[:2] + intrinsics[:2, 2]

    slopes = []  # where the camera is linearised: not far beyond the edges, where the linearisation diverges
    for axis, pixels in ((0, width), (1, height)):
        focal, middle = intrinsics[axis, axis], intrinsics[axis, 2]
        margin = FRUSTUM_MARGIN * 0.5 * pixels
        low, high = -(middle + margin) / focal, (pixels - middle + margin) / focal
        slopes.append((centers[:, axis] / depths).clamp(low, high))
    zero = torch.zeros_like(depths)
    fx, fy = intrinsics[0, 0] / depths, intrinsics[1, 1] / depths
    jacobian = torch.stack([fx, zero, -fx * slopes[0], zero, fy, -fy * slopes[1]], dim=-1).reshape(-1, 2, 3)
    spread = jacobian @ rotation @ (matrix_from_quaternion(gaussians.quats) * gaussians.scales[:, None, :])
    covariance = spread @ spread.transpose(-1, -2)  # [N, 2, 2]
    xx, xy, yy = covariance[:, 0, 0] + LOW_PASS, covariance[:, 0, 1], covariance[:, 1, 1] + LOW_PASS
    determinant = xx * yy - xy * xy
    conics = torch.stack([yy, -xy, xx], dim=-1) / determinant.clamp_min(1e-10)[:, None]

    with torch.no_grad():
        visible = in_front & (gaussians.opacities >= ALPHA_MIN) & (determinant > 0)
        extent = (2 * (gaussians.opacities / ALPHA_MIN).clamp_min(1).log()).sqrt().clamp_max(MAX_EXTENT)
        reach = (extent[:, None] * torch.stack([xx, yy], dim=-1).sqrt()).ceil()
        border = means2d.new_tensor([width, height])
        visible &= ((means2d + reach > 0) & (means2d - reach < border)).all(dim=-1)
        radii = torch.where(visible, reach.amax(dim=-1), 0.0)
    return Splats(means2d, conics, depths, radii)


def rasterize(
    splats: Splats,
    opacities: Tensor,  # [N]
    features: Tensor,  # [N, F]
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Blend splats, front to back.

    Args:
        splats (`Splats`): Projected Gaussians.
        opacities (`torch.Tensor` of shape `(gaussians,)`): In [0, 1].
        features (`torch.Tensor` of shape `(gaussians, features)`): Values to blend, such as RGB.
        size (`tuple` of two `int`): Height and width of the image.

    Returns:
        The blended features `(features, height, width)`, over black, and alpha `(1, height, width)`.
    """
    height, width = size
    order = torch.argsort(splats.depths, stable=True)
    order = order[splats.radii[order] > 0]
    means2d, conics, opacities, features = (
        value[order] for value in (splats.means2d, splats.conics, opacities, features)
    )
    x, y = torch.arange(width, dtype=means2d.dtype) + 0.5, torch.arange(height, dtype=means2d.dtype) + 0.5
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2).to(means2d.device)
    blended, coverage = [], []
    for part in pixels.split(max(CHUNK_PAIRS // max(len(order), 1), 1)):
        dx, dy = (means2d[None] - part[:, None]).unbind(dim=-1)  # [P, N]
        exponent = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
        alpha = (opacities * torch.exp(-exponent)).clamp_max(ALPHA_MAX)
        alpha = torch.where((alpha >= ALPHA_MIN) & (exponent >= 0), alpha, 0.0)
        after = torch.cumprod(1 - alpha, dim=1)
        before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1)
        weights = torch.where(after > TRANSMITTANCE_MIN, alpha * before, 0.0)
        blended.append(weights @ features)
        coverage.append(weights.sum(dim=1, keepdim=True))
    image = torch.cat([torch.cat(blended), torch.cat(coverage)], dim=1).T.reshape(-1, height, width)
    return image[:-1], image[-1:]


def render_planes(
    gaussians: Gaussians,
    camera: Cameras,
    size: tuple[int, int],
    near: float,
    screen_probe: Tensor | None,  # [N, 2]
) -> tuple[Tensor, Tensor]:
    """Render one image of one set of Gaussians: the reference for `cpu.render_planes`."""
    splats = project(gaussians, camera, size, near)
    if screen_probe is not None:
        splats = dataclasses.replace(splats, means2d=splats.means2d + screen_probe)
    rgb = view_colors(gaussians.means, gaussians.colors, camera.position[0])
    features = torch.cat([rgb, splats.depths[:, None]], dim=1)
    return torch.cat(rasterize(splats, gaussians.opacities, features, size)), splats.radii

"""Input and output of rendering, and the constants of all rasterizers.

The axes are those of `geometry/cameras.py`. A Gaussian is an ellipsoid: its axes, rotated by `quats`, have the standard
deviations `scales`. Colours are plain RGB or coefficients of spherical harmonics, as in 3D Gaussian Splatting
(3DGS): `rgb = max(0.5 + sum_k basis_k(direction) * coefficient_k, 0)`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: The classic rasterization of 3DGS as in gsplat 1.5. Compiled into `cpu_kernels.py`: after a change here, save that
#: file again, so that numba does not use old machine code from its cache.
NEAR_PLANE = 0.01  # Gaussians nearer than this are skipped, in world units
LOW_PASS = 0.3  # added to the variances on the screen, in square pixels
FRUSTUM_MARGIN = 0.3  # maximal distance from the image's edge at which the projection is linearised, in half images
ALPHA_MIN = 1 / 255  # a Gaussian whose alpha at a pixel is below this is skipped there
ALPHA_MAX = 0.999
TRANSMITTANCE_MIN = 1e-4  # blending of a pixel stops before its transmittance falls to this
MAX_EXTENT = 3.33  # extent of a Gaussian in standard deviations; ALPHA_MIN at opacity 1
SH_COEFFICIENTS = (1, 4, 9, 16)
SH_C0 = 0.28209479177387814  # the constant spherical harmonic


@dataclasses.dataclass(eq=False)
class Gaussians:
    """One set of Gaussians, or a batch of sets, such as the frames of an animation.

    All fields have the same leading dimensions: none, or `batch`; expand the fields that frames share.

    Args:
        means (`torch.Tensor` of shape `([batch,] gaussians, 3)`): Centres, in world units.
        quats (`torch.Tensor` of shape `([batch,] gaussians, 4)`): Rotations, wxyz; normalised when they are used.
        scales (`torch.Tensor` of shape `([batch,] gaussians, 3)`): Standard deviations, in world units.
        opacities (`torch.Tensor` of shape `([batch,] gaussians)`): In [0, 1].
        colors (`torch.Tensor` of shape `([batch,] gaussians, 3)` or `([batch,] gaussians, coefficients, 3)`):
            RGB in [0, 1], or 1, 4, 9 or 16 coefficients of spherical harmonics (degree 0 to 3) for each channel.

    Raises:
        ValueError: If the shapes do not match.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor

    def __post_init__(self) -> None:
        if self.means.ndim not in (2, 3) or self.means.shape[-1] != 3:
            raise ValueError(f"`means` must have shape ([batch,] gaussians, 3), got {tuple(self.means.shape)}.")
        leading = tuple(self.means.shape[:-1])
        for name, trailing in (("quats", (4,)), ("scales", (3,)), ("opacities", ())):
            shape = tuple(getattr(self, name).shape)
            if shape != leading + trailing:
                raise ValueError(f"`{name}` must have shape {leading + trailing} like `means`, got {shape}.")
        shape = tuple(self.colors.shape)
        harmonics = len(shape) == len(leading) + 2 and shape[-2] in SH_COEFFICIENTS
        if shape[: len(leading)] != leading or shape[-1:] != (3,) or not (harmonics or len(shape) == len(leading) + 1):
            expected = f"{(*leading, 3)} or, for spherical harmonics, {(*leading, '1, 4, 9 or 16', 3)}"
            raise ValueError(f"`colors` must have shape {expected}, got {shape}.")

    def __len__(self) -> int:
        """Number of Gaussians in a set."""
        return self.means.shape[-2]

    @property
    def batch_size(self) -> int | None:
        """Number of sets; None for a single one without a batch dimension."""
        return self.means.shape[0] if self.means.ndim == 3 else None

    @property
    def has_harmonics(self) -> bool:
        """Whether colours are spherical harmonics and so depend on the view."""
        return self.colors.ndim > self.means.ndim

    def map(self, function: Callable[[Tensor], Tensor]) -> "Gaussians":
        """Apply a function to every field: `gaussians.map(lambda value: value[mask])`."""
        return Gaussians(*(function(getattr(self, field.name)) for field in dataclasses.fields(self)))

    def to(self, *args: Any, **kwargs: Any) -> "Gaussians":
        """Return the Gaussians with another device or dtype, see `torch.Tensor.to`."""
        return self.map(lambda value: value.to(*args, **kwargs))


@dataclasses.dataclass(eq=False)
class RenderOutput:
    """Rendered images.

    Args:
        color (`torch.Tensor` of shape `(images, 3, height, width)`): RGB over the background; not clamped.
        alpha (`torch.Tensor` of shape `(images, 1, height, width)`): Coverage in [0, 1).
        depth (`torch.Tensor` of shape `(images, 1, height, width)`):
            Mean distance along the camera's axis of the Gaussians at a pixel, in world units (gsplat's "ED"); 0 without
            any.
        radii (`torch.Tensor` of shape `(images, gaussians)`):
            Extent of each Gaussian on the screen, in pixels; 0 if it is not in the image. No gradient.
    """

    color: Tensor
    alpha: Tensor
    depth: Tensor
    radii: Tensor


def view_colors(
    means: Tensor,  # [..., N, 3]
    colors: Tensor,  # [..., N, 3] or [..., N, K, 3]
    camera_position: Tensor,  # [..., 3]
) -> Tensor:
    """Compute the RGB of Gaussians for a camera position: `(..., gaussians, 3)`."""
    if colors.ndim == means.ndim:
        return colors
    directions = F.normalize(means - camera_position[..., None, :], dim=-1)
    basis = harmonic_basis(directions, colors.shape[-2])
    return ((basis[..., None] * colors).sum(dim=-2) + 0.5).clamp_min(0.0)


def harmonic_basis(
    directions: Tensor,  # [..., 3]
    coefficients: int,
) -> Tensor:
    """Real spherical harmonics of unit vectors, with the order and signs of 3DGS.

    Args:
        directions (`torch.Tensor` of shape `(..., 3)`): Unit vectors from the camera to the Gaussian.
        coefficients (`int`): 1, 4, 9 or 16: degree 0 to 3.

    Returns:
        `torch.Tensor` of shape `(..., coefficients)`.
    """
    x, y, z = directions.unbind(dim=-1)
    basis = [torch.full_like(x, SH_C0)]
    if coefficients > 1:
        basis += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if coefficients > 4:
        xx, yy, zz = x * x, y * y, z * z
        basis += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (3 * zz - 1),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        ]
    if coefficients > 9:
        basis += [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (5 * zz - 1),
            0.3731763325901154 * z * (5 * zz - 3),
            -0.4570457994644658 * x * (5 * zz - 1),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ]
    return torch.stack(basis, dim=-1)

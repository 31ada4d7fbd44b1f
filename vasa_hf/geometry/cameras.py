"""Pinhole cameras that look at a head: extrinsics as in OpenCV and gsplat, and orbits around a point.

World and camera have the axes of `rotations.py`; a camera at azimuth 0 of an orbit sees the face from the front::

        . z (away from the viewer)         camera = camera_from_world @ world     (column vectors)
       /                                         pixel  = focal * (x / z, y / z) + center
      o-----> x (right)
      |                                    A head at rest looks along -z, at the camera of azimuth 0.
      v y (down)

Focal lengths and centres are fractions of the image's width and height, so that a camera is independent of the
resolution: one camera renders a preview and the final image. The centre of the top-left pixel is (0.5, 0.5) pixels.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

#: Not in the papers: a portrait lens; a head of 25 cm fills two thirds of the image from 1 m.
DEFAULT_FOV_RAD = math.radians(20.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Cameras:
    """A batch of pinhole cameras.

    Args:
        camera_from_world (`torch.Tensor` of shape `(cameras, 4, 4)`): Rigid transformations of column vectors.
        focal (`torch.Tensor` of shape `(cameras, 2)`): Focal lengths in fractions of the image's width and height.
        center (`torch.Tensor` of shape `(cameras, 2)`): Principal points in fractions of width and height.

    Raises:
        ValueError: If the shapes do not match.
    """

    camera_from_world: Tensor
    focal: Tensor
    center: Tensor

    def __post_init__(self) -> None:
        count = self.camera_from_world.shape[0] if self.camera_from_world.ndim == 3 else -1
        for name, shape in (("camera_from_world", (4, 4)), ("focal", (2,)), ("center", (2,))):
            value = getattr(self, name)
            if tuple(value.shape) != (count, *shape):
                expected = ", ".join(map(str, ("cameras", *shape)))
                raise ValueError(f"`{name}` must have shape ({expected}), got {tuple(value.shape)}.")

    def __len__(self) -> int:
        return len(self.camera_from_world)

    def __getitem__(self, index: int | slice) -> "Cameras":
        """Select some of the cameras, as a batch: `cameras[2]` holds one camera."""
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        return Cameras(self.camera_from_world[index], self.focal[index], self.center[index])

    @property
    def position(self) -> Tensor:
        """Optical centres in the world, `(cameras, 3)`."""
        rotation, translation = self.camera_from_world[:, :3, :3], self.camera_from_world[:, :3, 3:]
        return -(rotation.transpose(-1, -2) @ translation)[..., 0]

    def intrinsics(self, size: tuple[int, int]) -> Tensor:
        """Matrices in pixels for images of `size` (height, width): `(cameras, 3, 3)`, as OpenCV and gsplat use."""
        matrix = torch.zeros_like(self.camera_from_world[:, :3, :3])
        height, width = size
        for axis, pixels in ((0, width), (1, height)):
            matrix[:, axis, axis] = self.focal[:, axis] * pixels
            matrix[:, axis, 2] = self.center[:, axis] * pixels
        matrix[:, 2, 2] = 1.0
        return matrix

    def project(
        self,
        points: Tensor,  # [N, 3] or [C, N, 3]
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Project points of the world to images of `size` (height, width).

        Args:
            points (`torch.Tensor` of shape `(points, 3)` or `(cameras, points, 3)`): World coordinates.
            size (`tuple` of two `int`): Height and width of the images.

        Returns:
            Pixels `(cameras, points, 2)` and depths `(cameras, points)`; pixels are invalid where the depth is <= 0.
        """
        rotation, translation = self.camera_from_world[:, :3, :3], self.camera_from_world[:, :3, 3]
        seen = points @ rotation.transpose(-1, -2) + translation[:, None]
        pixels = seen @ self.intrinsics(size).transpose(-1, -2)
        return pixels[..., :2] / seen[..., 2:], seen[..., 2]

    def to(self, *args: Any, **kwargs: Any) -> "Cameras":
        """Return the cameras with another device or dtype, see `torch.Tensor.to`."""
        return Cameras(*(getattr(self, field.name).to(*args, **kwargs) for field in dataclasses.fields(self)))


def concatenate_cameras(cameras: list[Cameras]) -> Cameras:
    """Concatenate several batches."""
    return Cameras(*(torch.cat([getattr(c, f.name) for c in cameras]) for f in dataclasses.fields(Cameras)))


def pinhole_cameras(
    camera_from_world: Tensor,  # [C, 4, 4]
    fov_rad: float = DEFAULT_FOV_RAD,
    aspect: float = 1.0,
) -> Cameras:
    """Make cameras whose axis goes through the middle of the image, with square pixels.

    Args:
        camera_from_world (`torch.Tensor` of shape `(cameras, 4, 4)`): Extrinsics.
        fov_rad (`float`, *optional*, defaults to 20 degrees): Vertical field of view.
        aspect (`float`, *optional*, defaults to 1.0): Width over height of the images.

    Raises:
        ValueError: If the field of view is not between 0 and 180 degrees.
    """
    if not 0 < fov_rad < math.pi:
        raise ValueError(f"`fov_rad` must lie between 0 and pi, got {fov_rad}.")
    focal = 0.5 / math.tan(fov_rad / 2)
    pair = camera_from_world.new_tensor([focal / aspect, focal]).expand(len(camera_from_world), 2)
    return Cameras(camera_from_world, pair, torch.full_like(pair, 0.5))


def look_at(
    position: Tensor,  # [..., 3]
    target: Tensor,  # [..., 3]
) -> Tensor:
    """`camera_from_world` of upright cameras at `position` with `target` in the middle of the image.

    Straight from above or below, where upright is undefined, the image's right is the world's x.

    Args:
        position (`torch.Tensor` of shape `(..., 3)`): Optical centres.
        target (`torch.Tensor` of shape `(..., 3)`): Points in the middle of the image.

    Returns:
        `torch.Tensor` of shape `(..., 4, 4)`.

    Raises:
        ValueError: If a camera is at its target.
    """
    position, target = torch.broadcast_tensors(position, target)
    forward = target - position
    distance = forward.norm(dim=-1, keepdim=True)
    if bool((distance <= 0).any()):
        raise ValueError("`position` must differ from `target`, got equal points.")
    forward = forward / distance
    down = torch.zeros_like(forward)
    down[..., 1] = 1.0
    right = torch.linalg.cross(down, forward)
    length = right.norm(dim=-1, keepdim=True)
    right = torch.where(length > 1e-6, right / length.clamp_min(1e-6), right.new_tensor([1.0, 0.0, 0.0]))
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=-2)
    matrix = torch.eye(4, dtype=position.dtype, device=position.device).repeat(*position.shape[:-1], 1, 1)
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = -(rotation @ position[..., None])[..., 0]
    return matrix


def orbit_cameras(
    azimuth_rad: Tensor | float,  # [C]
    elevation_rad: Tensor | float = 0.0,  # [C]
    distance: Tensor | float = 1.0,  # [C]
    target: Tensor | tuple[float, float, float] = (0.0, 0.0, 0.0),  # [3] or [C, 3]
    fov_rad: float = DEFAULT_FOV_RAD,
    aspect: float = 1.0,
) -> Cameras:
    """Make cameras on a sphere around a point, all looking at it.

    A positive azimuth moves the camera to the right of the first image, so that the face seems to turn to the
    image's left, as with a positive yaw; a positive elevation moves it up.

    Args:
        azimuth_rad (`torch.Tensor` of shape `(cameras,)` or `float`): Angle around the vertical axis; 0 is frontal.
        elevation_rad (`torch.Tensor` of shape `(cameras,)` or `float`, *optional*, defaults to 0.0): Angle upwards.
        distance (`torch.Tensor` of shape `(cameras,)` or `float`, *optional*, defaults to 1.0): In world units.
        target (`torch.Tensor` of shape `(3,)` or `(cameras, 3)`, *optional*, defaults to the origin): Centre.
        fov_rad (`float`, *optional*, defaults to 20 degrees): Vertical field of view.
        aspect (`float`, *optional*, defaults to 1.0): Width over height of the images.

    Raises:
        ValueError: If a distance is not positive, or the field of view not between 0 and 180 degrees.
    """
    angles = (torch.as_tensor(value, dtype=torch.float32) for value in (azimuth_rad, elevation_rad, distance))
    azimuth, elevation, radius = torch.broadcast_tensors(*(torch.atleast_1d(value) for value in angles))
    if not bool((radius > 0).all()):
        raise ValueError(f"`distance` must be positive, got {radius.min().item()}.")
    flat = elevation.cos()
    offset = torch.stack([azimuth.sin() * flat, -elevation.sin(), -azimuth.cos() * flat], dim=-1)
    target = torch.as_tensor(target, dtype=offset.dtype, device=offset.device)
    return pinhole_cameras(look_at(target + radius[:, None] * offset, target), fov_rad, aspect)


def view_cameras(
    portrait: Cameras,
    center: Tensor,  # [3]
    azimuth_deg: Tensor,  # [C]
    elevation_deg: Tensor,  # [C]
    distance: Tensor,  # [C]
) -> Cameras:
    """Move the portrait's camera around a point, which keeps its place in the image.

    Args:
        portrait (`Cameras`): One camera.
        center (`torch.Tensor` of shape `(3,)`): The point, in the world.
        azimuth_deg (`torch.Tensor` of shape `(cameras,)`): Angle around the vertical axis.
        elevation_deg (`torch.Tensor` of shape `(cameras,)`): Angle upwards.
        distance (`torch.Tensor` of shape `(cameras,)`): Over the portrait camera's own distance from the point.
    """
    matrix = portrait.camera_from_world[0]
    # An orbit's camera at azimuth and elevation 0 has the axes of the world.
    turn = orbit_cameras(azimuth_deg.deg2rad(), elevation_deg.deg2rad()).camera_from_world[:, :3, :3].to(matrix)
    seen = matrix[:3, :3] @ center + matrix[:3, 3]  # the point as the portrait's camera sees it
    result = torch.eye(4).to(matrix).repeat(len(turn), 1, 1)
    result[:, :3, :3] = matrix[:3, :3] @ turn
    result[:, :3, 3] = distance.to(matrix)[:, None] * seen - result[:, :3, :3] @ center
    return Cameras(result, portrait.focal.expand(len(turn), 2), portrait.center.expand(len(turn), 2))

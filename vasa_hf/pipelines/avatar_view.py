"""An avatar before a camera: what stands where VASA-1 expects a portrait, and draws itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vasa_hf.camera_paths import CameraPath
from vasa_hf.gaussians.render import render
from vasa_hf.geometry.cameras import orbit_cameras
from vasa_hf.media.ffmpeg import parse_fps
from vasa_hf.models.gaussian_avatar_vasa3d import Vasa3DGaussianAvatar, Vasa3DRestState
from vasa_hf.pipelines.inputs import Performer, check_number
from vasa_hf.streaming import map_ahead

MIN_SIZE, MAX_SIZE = 16, 2048
WHITE = (1.0, 1.0, 1.0)
MAX_DRAW_WORKERS = 4  # on a CPU; each holds the Gaussians of `batch_size` frames


class AvatarView(Performer):
    """An avatar before a camera, drawn frame after frame: what stands where VASA-1 expects a portrait.

    Args:
        avatar (`Vasa3DGaussianAvatar`): Who.
        camera (`str`, `OrbitCamera`, `CameraKeyframes`, list, `Cameras` or `Callable`): See `CameraPath`.
        fps (`Fraction`, `float` or `str`, defaults to 25): Frames a second: when a frame is seen.
        output_size (`int`, defaults to 256): Side of the square picture.
        background (`Sequence[float]`, defaults to white): RGB in [0, 1].
        batch_size (`int`, *optional*): Frames drawn at a time; 1 on a CPU, 16 elsewhere if `None`.

    Raises:
        ValueError: If an argument is unfit, or the camera is inside the head.
    """

    def __init__(
        self,
        avatar: Vasa3DGaussianAvatar,
        camera: Any = "fixed",
        fps: Fraction | float | str = 25,
        output_size: int = 256,
        background: Sequence[float] = WHITE,
        batch_size: int | None = None,
    ):
        _check_size(output_size)
        self.avatar, self.fps, self._size = avatar, parse_fps(fps), output_size
        self.background, self.batch_size = _color(background), batch_size
        self.camera = CameraPath(camera, avatar.portrait_camera, *head_sphere(avatar))
        self.num_drawn = 0
        self._rest: Vasa3DRestState | None = None

    @property
    def motion(self) -> Tensor:
        """The portrait's own pose and dynamics, `(1, motion_dim)`, float32."""
        return self.avatar.own_motion[None].float()

    @property
    def output_size(self) -> int:
        """Side of the square picture in pixels."""
        return self._size

    @torch.no_grad()
    def draw(self, motion: Tensor) -> Iterator[Tensor]:
        """Yield pictures `(n, 3, size, size)` in [0, 1], on the CPU, of the next frames' motion `(frames, M)`."""
        device = self.avatar.own_motion.device
        on_cpu = device.type == "cpu"
        if self._rest is None:
            self._rest = self.avatar.rest_state()

        @torch.no_grad()
        def shoot(part_and_cameras: tuple) -> Tensor:
            part, cameras = part_and_cameras
            gaussians = self.avatar(part.to(self.avatar.own_motion), rest=self._rest).gaussians
            return render(gaussians, cameras, self._size, self.background).color.clamp(0, 1).cpu()

        def parts() -> Iterator[tuple]:  # one by one: a camera that is a function is asked as late as can be
            for part in motion.split(self.batch_size or (1 if on_cpu else 16)):
                seconds = torch.arange(self.num_drawn, self.num_drawn + len(part), dtype=torch.float64)
                self.num_drawn += len(part)
                yield part, self.camera(seconds / float(self.fps))

        workers = min(torch.get_num_threads(), MAX_DRAW_WORKERS) if on_cpu else 1
        yield from map_ahead(shoot, parts(), workers)


def check_view(camera: Any, fps: Fraction | float | str, output_size: int, background: Sequence[float]) -> None:
    """Raise `ValueError` for arguments that no avatar can be seen with, before there is one."""
    CameraPath(camera, orbit_cameras(0.0, distance=100.0), torch.zeros(3), 0.0)
    parse_fps(fps)
    _check_size(output_size)
    _color(background)


@torch.no_grad()
def head_sphere(avatar: Vasa3DGaussianAvatar) -> tuple[Tensor, float]:
    """Middle `(3,)` of an avatar's head as in the portrait, in the world, and the radius that holds face and scalp."""
    head = avatar.head
    posed = avatar.pose_head(*avatar.head_parameters(avatar.own_motion[None])).vertices[0]
    corners = posed[head.faces[head.region("face", "scalp")].unique()]
    center = (corners.amin(dim=0) + corners.amax(dim=0)) / 2
    return center, float((corners - center).norm(dim=-1).amax())


def _check_size(output_size: Any) -> None:
    check_number("output_size", output_size, MIN_SIZE, MAX_SIZE, whole=True)


def _color(background: Any) -> tuple[float, ...]:
    """Three numbers in [0, 1]."""
    values = background.tolist() if isinstance(background, np.ndarray | Tensor) else background
    good = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 3
    if not good or not all(isinstance(value, int | float) and 0 <= value <= 1 for value in values):
        raise ValueError(f"`background` must be red, green and blue in [0, 1], got {background!r}.")
    return tuple(float(value) for value in values)

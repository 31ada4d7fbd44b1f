"""An avatar seen by a camera: the subject of `Vasa3DAvatarPipeline`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vasa_hf.checks import check_number, shorten
from vasa_hf.gaussians.render import render
from vasa_hf.media.ffmpeg import parse_fps
from vasa_hf.models.gaussian_avatar_vasa3d import Vasa3DGaussianAvatar, Vasa3DRestState
from vasa_hf.motion.camera_paths import CameraControl, CameraPath
from vasa_hf.motion.streaming import map_ahead
from vasa_hf.pipelines.inputs import Subject

MIN_SIZE, MAX_SIZE = 16, 2048
WHITE = (1.0, 1.0, 1.0)
MAX_DRAW_WORKERS = 4  # on a CPU; each holds the Gaussians of `batch_size` frames


@dataclass(frozen=True)
class AvatarOptions:
    """How an avatar is rendered.

    Args:
        camera (`str`, `OrbitCamera`, `CameraKeyframes`, list, `Cameras` or `Callable`, defaults to `"fixed"`):
            `"fixed"` (the portrait's) or `"orbit"`; keyframes `[(seconds, azimuth_deg, elevation_deg, distance)]`; one
            camera in the world; or a function from seconds to one. See `CameraPath`.
        background (`Sequence[float]`, defaults to white): RGB in [0, 1] behind the head.
        output_size (`int`, defaults to 256): Side of the square frames.
    """

    camera: CameraControl = "fixed"
    background: Sequence[float] = WHITE
    output_size: int = 256

    def check(self, output_sizes: Sequence[int] = ()) -> None:
        """Raise `ValueError` for values out of range: any size will do; an avatar's view checks the camera."""
        check_number("output_size", self.output_size, MIN_SIZE, MAX_SIZE, whole=True)
        _parse_color(self.background)


class AvatarView(Subject):
    """An avatar seen by a camera. It has no state of its own: rendering it twice gives the same frames.

    Args:
        avatar (`Vasa3DGaussianAvatar`): The avatar.
        options (`AvatarOptions`, *optional*): Camera, background and size.
        fps (`Fraction`, `float` or `str`, *optional*): The only rate at which it may be rendered; any if `None`.
        batch_size (`int`, *optional*): Frames rendered at a time; 1 on a CPU, 16 elsewhere if `None`.

    Raises:
        ValueError: If an argument cannot be used, or the camera is inside the head.
    """

    def __init__(
        self,
        avatar: Vasa3DGaussianAvatar,
        options: AvatarOptions | None = None,
        fps: Fraction | float | str | None = None,
        batch_size: int | None = None,
    ):
        options = options or AvatarOptions()
        options.check()
        self.avatar, self.batch_size = avatar, batch_size
        self.fps = None if fps is None else parse_fps(fps)
        self._size, self.background = options.output_size, _parse_color(options.background)
        self.camera = CameraPath(options.camera, avatar.portrait_camera, *head_sphere(avatar))
        self._rest: Vasa3DRestState | None = None

    @property
    def motion(self) -> Tensor:
        """The portrait's own pose and dynamics, `(1, motion_dim)`, float32."""
        return self.avatar.own_motion[None].float()

    @property
    def output_size(self) -> int:
        """Side of the square frames in pixels."""
        return self._size

    def check_fps(self, fps: Fraction | float | str | None) -> None:
        """Raise `ValueError` for another rate than the view was made for; `None` is not known yet."""
        if fps is not None and self.fps not in (None, parse_fps(fps)):
            raise ValueError(f"`fps` must be {self.fps}, as the view was made for, got {fps}.")

    @torch.no_grad()
    def draw(self, motion: Tensor, start_frame: int = 0, fps: Fraction | float | str | None = None) -> Iterator[Tensor]:
        """Yield frames `(n, 3, size, size)` in [0, 1], on the CPU, of consecutive motion.

        Args:
            motion (`torch.Tensor` of shape `(frames, channels)`): Absolute motion.
            start_frame (`int`, defaults to 0): Place of its first frame in the video.
            fps (`Fraction`, `float` or `str`, *optional*): Of the video; defaults to the view's own, or 25.
        """
        fps = parse_fps((self.fps or 25) if fps is None else fps)
        self.check_fps(fps)
        device = self.avatar.own_motion.device
        on_cpu = device.type == "cpu"
        if self._rest is None:
            self._rest = self.avatar.rest_state()

        @torch.no_grad()
        def render_part(part_and_cameras: tuple) -> Tensor:
            part, cameras = part_and_cameras
            gaussians = self.avatar(part.to(self.avatar.own_motion), rest=self._rest).gaussians
            return render(gaussians, cameras, self._size, self.background).color.clamp(0, 1).cpu()

        def parts() -> Iterator[tuple]:  # lazily: a camera function is called as late as possible
            start = start_frame
            for part in motion.split(self.batch_size or (1 if on_cpu else 16)):
                seconds = torch.arange(start, start + len(part), dtype=torch.float64)
                start += len(part)
                yield part, self.camera(seconds / float(fps))

        workers = min(torch.get_num_threads(), MAX_DRAW_WORKERS) if on_cpu else 1
        yield from map_ahead(render_part, parts(), workers)


@torch.no_grad()
def head_sphere(avatar: Vasa3DGaussianAvatar) -> tuple[Tensor, float]:
    """Middle `(3,)` of an avatar's head in the portrait's pose, in the world, and its radius with face and scalp."""
    head = avatar.head
    posed = avatar.pose_head(*avatar.head_parameters(avatar.own_motion[None])).vertices[0]
    corners = posed[head.get_buffer("faces")[head.region("face", "scalp")].unique()]
    center = (corners.amin(dim=0) + corners.amax(dim=0)) / 2
    return center, float((corners - center).norm(dim=-1).amax())


def _parse_color(background: Any) -> tuple[float, ...]:
    """Check a color: three numbers in [0, 1]."""
    values = background.tolist() if isinstance(background, np.ndarray | Tensor) else background
    good = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 3
    if not good or not all(isinstance(value, int | float) and 0 <= value <= 1 for value in values):
        raise ValueError(f"`background` must be red, green and blue in [0, 1], got {shorten(background)}.")
    return tuple(float(value) for value in values)

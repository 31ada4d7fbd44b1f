"""Camera paths: where the camera is at each moment of a video. Fixed, an orbit, keyframes, or a function of the user's.

Views are given relative to the portrait's camera and the middle of the head::

                 . head's middle            azimuth    > 0: to the image's right; the face seems to turn to its left
                /|                          elevation  > 0: up
    distance   / |  1: as in the portrait   distance   2: twice as far, half as large
              /  |
     view    o   o  portrait's camera       azimuth 0, elevation 0, distance 1: exactly the portrait's camera

The middle of the head stays at the portrait's place in the image, wherever the camera is.

# Not in the papers: all of this; VASA-3D shows its avatars from a few fixed sides.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vasa_hf.checks import check_number, is_finite_number, shorten
from vasa_hf.geometry.cameras import Cameras, concatenate_cameras, view_cameras
from vasa_hf.motion.keyframes import Keyframes, check_times

CAMERAS = ("fixed", "orbit")
MAX_SECONDS = 6 * 3600.0  # of a path
MAX_KEYFRAMES = 10_000
_CHECKS_PER_SECOND = 25
_FORMS = (
    f"one of {list(CAMERAS)}, an OrbitCamera, CameraKeyframes or a list of (seconds, azimuth_deg, elevation_deg, "
    "distance), Cameras, or a function of seconds"
)


@dataclass(frozen=True)
class OrbitCamera:
    """A sine from side to side around the head: it begins in front and slows down at both ends.

    Args:
        azimuth_deg (`float`, defaults to 35.0): Largest angle to each side.
        period_seconds (`float`, defaults to 8.0): Time of one whole oscillation.
        elevation_deg (`float`, defaults to 0.0): Angle upwards, the same all the time.
        distance (`float`, defaults to 1.0): Over that of the portrait's camera.

    Raises:
        ValueError: If a number is impossible.
    """

    azimuth_deg: float = 35.0
    period_seconds: float = 8.0
    elevation_deg: float = 0.0
    distance: float = 1.0

    def __post_init__(self) -> None:
        _check_view(self.azimuth_deg, self.elevation_deg, self.distance)
        check_number("period_seconds", self.period_seconds, 0.01, MAX_SECONDS)

    @property
    def duration(self) -> float:
        """Seconds after which the path repeats."""
        return self.period_seconds

    def at(self, seconds: Tensor) -> Tensor:
        """Azimuth and elevation in degrees, and distance `(times, 3)`, at times `(times,)`."""
        azimuth = self.azimuth_deg * torch.sin(2 * math.pi * seconds / self.period_seconds)
        rest = (torch.full_like(azimuth, value) for value in (self.elevation_deg, self.distance))
        return torch.stack([azimuth, *rest], dim=-1)


class CameraKeyframes(Keyframes):
    """A smooth path through given views, without overshooting; constant before the first and after the last.

    Args:
        keyframes (`Sequence` of `(seconds, azimuth_deg, elevation_deg, distance)`): At rising times from 0 seconds on.

    Raises:
        ValueError: If a keyframe is malformed.
    """

    def __init__(self, keyframes: Sequence[Sequence[float]]):
        form = "`camera` must be keyframes [(seconds, azimuth_deg, elevation_deg, distance), ...]"
        if isinstance(keyframes, str) or not isinstance(keyframes, Sequence) or not keyframes:
            raise ValueError(f"{form}, got {shorten(keyframes)}.")
        if len(keyframes) > MAX_KEYFRAMES:
            raise ValueError(f"`camera` must have at most {MAX_KEYFRAMES:,} keyframes, got {len(keyframes):,}.")
        for key in keyframes:
            if (
                isinstance(key, str)
                or not isinstance(key, Sequence)
                or len(key) != 4
                or not all(map(is_finite_number, key))
            ):
                raise ValueError(f"{form}, got {shorten(key)} among them.")
            check_number("seconds", key[0], 0.0, MAX_SECONDS)
            _check_view(*key[1:])
        table = torch.tensor(keyframes, dtype=torch.float64)
        check_times("camera", table[:, 0].tolist())
        super().__init__(table[:, 0].contiguous(), table[:, 1:], "smooth")


CameraControl: TypeAlias = (
    str | OrbitCamera | CameraKeyframes | Sequence[Sequence[float]] | Cameras | Callable[[float], Cameras]
)


class CameraPath:
    """The cameras of a video, from any form of the option `camera`.

    Args:
        camera (`str`, `OrbitCamera`, `CameraKeyframes`, list of keyframes, `Cameras` or `Callable`):
            `"fixed"` (the portrait's camera) or `"orbit"`; one of the paths of this module; one camera in the world;
            or a function from seconds (`float`) to one camera in the world, called while frames are rendered.
        portrait (`Cameras`): The fixed camera.
        center (`torch.Tensor` of shape `(3,)`): Middle of the head, in world coordinates.
        radius (`float`): The smallest distance of a camera from it.

    Raises:
        ValueError: If `camera` is none of these, or is inside the head.
    """

    def __init__(self, camera: CameraControl, portrait: Cameras, center: Tensor, radius: float):
        self.portrait, self.center, self.radius = portrait.to(device="cpu"), center.detach().cpu(), radius
        self._path = self._parse(camera)
        duration = getattr(self._path, "duration", 0.0)
        self(torch.arange(math.floor(duration * _CHECKS_PER_SECOND) + 1, dtype=torch.float64) / _CHECKS_PER_SECOND)

    def _parse(self, camera: Any) -> OrbitCamera | CameraKeyframes | Cameras | Callable[[float], Cameras]:
        if isinstance(camera, Cameras):
            return _one_camera(camera)
        if isinstance(camera, str) and camera in CAMERAS:
            return self.portrait if camera == "fixed" else OrbitCamera()
        if isinstance(camera, list | tuple):
            return CameraKeyframes(camera)
        if not isinstance(camera, OrbitCamera | CameraKeyframes) and not callable(camera):
            raise ValueError(f"`camera` must be {_FORMS}, got {shorten(camera)}.")
        return camera

    def __call__(self, seconds: Tensor) -> Cameras:
        """Cameras at times `(times,)`, on the CPU.

        Raises:
            ValueError: If one of them is inside the head, or a function does not return one camera.
        """
        if isinstance(self._path, Cameras):
            fields = vars(self._path).values()
            cameras = Cameras(*(value.expand(len(seconds), *value.shape[1:]) for value in fields))
        elif isinstance(self._path, OrbitCamera | CameraKeyframes):
            cameras = view_cameras(self.portrait, self.center, *self._path.at(seconds).unbind(-1))
        else:
            cameras = concatenate_cameras([_one_camera(self._path(second)) for second in seconds.tolist()])
        distance = (cameras.position - self.center).norm(dim=-1)
        if bool((distance < self.radius).any()):
            nearest = int(distance.argmin())
            raise ValueError(
                f"`camera` must stay outside of the head, at least {self.radius:.1f} cm from its middle, but is "
                f"{float(distance[nearest]):.1f} cm from it at {float(seconds[nearest]):.2f} seconds."
            )
        return cameras


def _one_camera(camera: Any) -> Cameras:
    if not isinstance(camera, Cameras) or len(camera) != 1:
        got = f"{len(camera)} of them" if isinstance(camera, Cameras) else type(camera).__name__
        raise ValueError(f"`camera` must be, or return, Cameras with one camera, got {got}.")
    camera = camera.to(device="cpu", dtype=torch.float32)
    if not all(bool(torch.isfinite(value).all()) for value in vars(camera).values()):
        raise ValueError("`camera` must be finite, got NaN or infinity.")
    return camera


def _check_view(azimuth_deg: Any, elevation_deg: Any, distance: Any) -> None:
    check_number("azimuth_deg", azimuth_deg, -36_000.0, 36_000.0)
    check_number("elevation_deg", elevation_deg, -90.0, 90.0)
    check_number("distance", distance, 0.01, 100.0)

"""A live viewer in the browser, built on viser: an avatar that talks, seen from any side (`vasa-hf view`).

Every browser has a camera of its own. For each frame the avatar is deformed once, and its view from each camera is
rendered here, by the same `render` that makes videos, and sent as the background image of viser's empty scene. The
browser needs no GPU, and shows the same images as a video.

viser's own Gaussian splats are not used: 20 000 that move are 16 MB per second for each browser, images 0.5 MB; a
browser without a GPU is too slow for them; and its rendering differs from `render`.

The audio is an element of the page that starts at the avatar's position. Browsers play it only after a click.

# Not in the paper, which shows a real-time demo and does not say how it is made.
"""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import math
import socket
import sys
import threading
import time
import warnings
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vasa_hf.gaussians.render import render
from vasa_hf.gaussians.scene import Gaussians
from vasa_hf.geometry.cameras import Cameras, pinhole_cameras
from vasa_hf.geometry.quaternions import matrix_from_quaternion
from vasa_hf.motion import POSE_DIM
from vasa_hf.pipelines.avatar_view import head_sphere

FPS = 25
STILL_SECONDS = 0.3  # a view unchanged for this time is rendered again, sharper
STILL_SCALE, MAX_STILL = 2, 1024
MAX_TURN_DEG = 30  # of the sliders of head and gaze
IDLE_SECONDS = 0.01  # pause between two checks for changes
SETTLE_SECONDS = 0.4  # a slider that changed within this time is still moving


@dataclass
class Playback:
    """Position in an audio, by the clock: late frames are skipped.

    Args:
        duration (`float`): Seconds of the audio; it starts again at its end.
        playing (`bool`, defaults to `True`): Whether time passes.
        speed (`float`, defaults to 1.0): Seconds of the audio per second of the clock.
    """

    duration: float
    playing: bool = True
    speed: float = 1.0

    def __post_init__(self) -> None:
        self._position, self._since = 0.0, time.monotonic()

    @property
    def laps(self) -> int:
        """Number of times that the end was reached since the last change."""
        return int(self._seconds() // self.duration)

    @property
    def position(self) -> float:
        """Seconds from the beginning of the audio."""
        return self._seconds() % self.duration

    def change(self, playing: bool | None = None, speed: float | None = None, position: float | None = None) -> None:
        """Play or pause, play faster or slower, go to a position; `None` leaves a setting."""
        self._position = self.position if position is None else position
        self._since = time.monotonic()
        self.playing = self.playing if playing is None else playing
        self.speed = self.speed if speed is None else speed

    def _seconds(self) -> float:
        return self._position + (time.monotonic() - self._since) * self.speed * self.playing


@dataclass(frozen=True)
class Pose:
    """Changes that the sliders make to the motion, without delay.

    Args:
        yaw_deg, pitch_deg, roll_deg (`float`): Added to the head's angles.
        expression (`float`): Amount of the facial dynamics about their mean; 1 leaves them.
    """

    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    roll_deg: float = 0.0
    expression: float = 1.0

    def apply(self, motion: Tensor, mean: Tensor) -> Tensor:
        """Motion `(frames, channels)` with the sliders' changes.

        Args:
            motion (`torch.Tensor` of shape `(frames, channels)`): As generated.
            mean (`torch.Tensor` of shape `(channels,)`): Of the avatar's motion.
        """
        turn = torch.tensor([self.yaw_deg, self.pitch_deg, self.roll_deg]).deg2rad().to(motion)
        pose, mean = motion[:, :POSE_DIM].clone(), mean[POSE_DIM:]
        pose[:, :3] += turn
        return torch.cat([pose, mean + self.expression * (motion[:, POSE_DIM:] - mean)], dim=1)


class AvatarViewer:
    """Serves a page in which an avatar talks.

    Args:
        avatar (`Vasa3DGaussianAvatar`): The avatar.
        speak (`Callable`):
            `speak(gaze=(yaw, pitch), head_distance=d, emotion={...}) -> motion (frames, channels)` at 25 frames per
            second; called again, in a thread, when one of these is changed.
        sound (`tuple` of `np.ndarray` of shape `(samples,)` and `int`): The speech, and its rate.
        emotions (`Sequence[str]`, *optional*): Names that `speak` knows.
        host (`str`, defaults to `"127.0.0.1"`): Address to listen on; `"0.0.0.0"` lets other machines in.
        port (`int`, defaults to 8080): 0 takes any free one.
        size (`int`, defaults to 384): Height of the images in pixels while something moves.
        background (three `float`, *optional*, defaults to light grey): RGB in [0, 1].

    Raises:
        ValueError: If `port` is taken or an argument is out of range.
        ImportError: If viser is not installed.
    """

    def __init__(
        self,
        avatar: Any,
        speak: Callable[..., Tensor],
        sound: tuple[np.ndarray, int],
        emotions: Sequence[str] = (),
        host: str = "127.0.0.1",
        port: int = 8080,
        size: int = 384,
        background: Sequence[float] = (0.93, 0.93, 0.93),
    ):
        if not 64 <= size <= 2048:
            raise ValueError(f"`size` must lie in [64, 2048], got {size}.")
        self.port = free_port(host, port)
        viser = _import_viser()
        self.avatar, self.speak, self.size, self.background = avatar.eval(), speak, size, tuple(background)
        with torch.no_grad():
            self.rest = avatar.rest_state()
        self.center, self.radius = head_sphere(avatar)
        self.playback = Playback(len(sound[0]) / sound[1])
        self.motion = speak().to(avatar.device)
        self._audio_url = audio_url(*sound)
        self._shown: dict[int, tuple] = {}  # browser -> the last state shown, and when
        self._stopping, self._changed_at, self._laps = threading.Event(), 0.0, 0
        with contextlib.redirect_stdout(io.StringIO()):  # hides viser's banner: the command prints the address
            self.server = viser.ViserServer(host=host, port=self.port, label="vasa_hf", verbose=False)
        self.url = f"http://{'localhost' if host in ('0.0.0.0', '127.0.0.1') else host}:{self.port}"
        self._add_page(emotions)
        self._workers = [threading.Thread(target=work, daemon=True) for work in (self._show_loop, self._speak_loop)]
        for worker in self._workers:
            worker.start()

    # --- images -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def pose_gaussians(self, frame: int, pose: Pose) -> Gaussians:
        """Pose the avatar as in one frame of its motion."""
        motion = pose.apply(self.motion[frame : frame + 1], self.avatar.motion_mean)
        return self.avatar(motion, rest=self.rest).gaussians

    @torch.no_grad()
    def render_image(self, gaussians: Gaussians, cameras: Cameras, height: int, aspect: float = 1.0) -> np.ndarray:
        """Render the view of a camera, uint8 `(height, width, 3)`.

        Args:
            gaussians (`Gaussians`): One frame, from `pose_gaussians`.
            cameras (`Cameras`): One.
            height (`int`): In pixels.
            aspect (`float`, defaults to 1.0): Width over height.
        """
        color = render(gaussians, cameras, (height, max(round(height * aspect), 1)), self.background).color[0]
        return (color.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()

    def _show_loop(self) -> None:
        while not self._stopping.is_set():
            try:
                worked = self._show_all()
            except Exception as error:  # a browser that disconnects must not stop the others
                print(f"vasa-hf: view: {type(error).__name__}: {error}", file=sys.stderr)
                worked = False
                time.sleep(1.0)
            if not worked:
                time.sleep(IDLE_SECONDS)

    def _show_all(self) -> bool:
        """Send each browser what has changed; return whether anything had."""
        browsers = self.server.get_clients()
        for closed in self._shown.keys() - browsers.keys():
            del self._shown[closed]
        if self.playback.playing and self.playback.laps != self._laps:
            self._laps = self.playback.laps
            self._update_audio()
        motion, pose = self.motion, self.pose
        frame = min(int(self.playback.position * FPS), len(motion) - 1)
        gaussians, now, worked = None, time.monotonic(), False
        for number, browser in browsers.items():
            camera = browser.camera
            state = (frame, id(motion), pose, camera.update_timestamp)
            shown, sharp, since = self._shown.get(number, (None, False, now))
            still = shown == state and now - since > STILL_SECONDS
            if shown == state and (sharp or not still):
                continue
            cameras = viser_camera(camera, self.avatar.device)
            if float((cameras.position[0] - self.center).norm()) > self.radius:  # else the camera is inside the head
                gaussians = self.pose_gaussians(frame, pose) if gaussians is None else gaussians
                height = max(self.size, min(STILL_SCALE * self.size, MAX_STILL)) if still else self.size
                image = self.render_image(gaussians, cameras, height, camera.aspect)
                browser.scene.set_background_image(image, format="jpeg", jpeg_quality=90)
            self._shown[number] = (state, still, now if shown != state else since)
            worked = True
        return worked

    # --- speech -------------------------------------------------------------------------------------------------

    def _speak_loop(self) -> None:
        """Generate the motion again after changes of gaze, distance or emotion; only the last change counts."""
        done = self._read_controls()
        while not self._stopping.wait(0.05):
            wanted = self._read_controls()
            if wanted == done or time.monotonic() - self._changed_at < SETTLE_SECONDS:
                continue
            self._status.content = "generating motion …"
            try:
                self.motion = self.speak(**wanted).to(self.avatar.device)
                self._status.content = ""
            except ValueError as error:
                self._status.content = f"**{error}**"
            done = wanted

    def _read_controls(self) -> dict[str, Any]:
        """The controls of the motion generator, from the sliders."""
        emotion = {name: slider.value for name, slider in self._emotions.items() if slider.value}
        gaze = tuple(math.radians(slider.value) for slider in self._gaze)
        return {"gaze": gaze, "head_distance": self._distance.value, "emotion": emotion}

    @property
    def pose(self) -> Pose:
        """The current values of the sliders."""
        return Pose(*(slider.value for slider in self._pose))

    def _update_audio(self) -> None:
        """Play the audio from the avatar's position, or stop it."""
        playing = self.playback.playing and self._audio_on.value
        self._audio.content = (
            audio_element(self._audio_url, self.playback.position, self.playback.speed) if playing else ""
        )

    # --- the page -----------------------------------------------------------------------------------------------------

    def _add_page(self, emotions: Sequence[str]) -> None:
        self.server.gui.configure_theme(show_logo=False, show_share_button=False)
        self.server.gui.main_panel.dock_right()
        self._place_camera()
        self._add_playback()
        self._add_sliders(emotions)
        self.server.on_client_connect(lambda _: self._update_audio())

    def _place_camera(self) -> None:
        """Start from the portrait's view; orbit around the point of its axis nearest to the middle of the head."""
        self.server.scene.set_up_direction("-y")
        camera, first = self.avatar.portrait_camera, self.server.initial_camera
        position, axis = camera.position[0], camera.camera_from_world[0, 2, :3]
        first.position = position.tolist()
        first.look_at = (position + axis * float(axis @ (self.center - position))).tolist()
        first.up, first.fov = (0.0, -1.0, 0.0), self.avatar.config.fov_rad

    def _add_playback(self) -> None:
        gui = self.server.gui
        play = gui.add_button("Pause")
        again = gui.add_button("From the start")
        self._audio_on = gui.add_checkbox("Sound", True, hint="after a click into the page")
        speed = gui.add_slider("Speed", 0.25, 2.0, 0.05, 1.0)
        self._audio = gui.add_html("")
        self._status = gui.add_markdown("")

        def change(**what: Any) -> None:
            self.playback.change(**what)
            play.label = "Pause" if self.playback.playing else "Play"
            self._laps = 0
            self._update_audio()

        play.on_click(lambda _: change(playing=not self.playback.playing))
        again.on_click(lambda _: change(playing=True, position=0.0))
        speed.on_update(lambda _: change(speed=speed.value))
        self._audio_on.on_update(lambda _: self._update_audio())

    def _add_sliders(self, emotions: Sequence[str]) -> None:
        gui, most = self.server.gui, MAX_TURN_DEG
        with gui.add_folder("Pose and expression"):
            turns = [gui.add_slider(f"{name} °", -most, most, 1, 0) for name in ("Yaw", "Pitch", "Roll")]
            self._pose = [*turns, gui.add_slider("Expression", 0.0, 2.0, 0.05, 1.0)]
        with gui.add_folder("Motion (generated again)"):
            self._gaze = [gui.add_slider(f"Gaze {axis} °", -most, most, 1, 0) for axis in ("yaw", "pitch")]
            self._distance = gui.add_slider("Distance", 0.5, 2.0, 0.05, 1.0)
            self._emotions = {name: gui.add_slider(name.capitalize(), -1.0, 1.0, 0.1, 0.0) for name in emotions}
        for slider in (*self._gaze, self._distance, *self._emotions.values()):
            slider.on_update(self._note_change)

    def _note_change(self, _: Any) -> None:
        self._changed_at = time.monotonic()

    def wait(self) -> None:
        """Serve until the process is interrupted; then stop."""
        try:
            while not self._stopping.wait(0.5):
                pass
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop serving; the port is free then."""
        self._stopping.set()
        for worker in self._workers:
            worker.join(timeout=10)
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()


def free_port(host: str, port: int) -> int:
    """Return the port if it is free; any free one for 0.

    viser would silently take the next one, and the user would see another program's page.

    Raises:
        ValueError: If it is taken, may not be used, or there is no such host.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"`port` must lie in [0, 65535], got {port}.")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port closed just now counts as free
            probe.bind((host, port))
            return probe.getsockname()[1]
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"`port` must be free, but {host}:{port} cannot be listened on ({why}).") from error


def viser_camera(camera: Any, device: torch.device | str = "cpu") -> Cameras:
    """Convert viser's camera: both look along z, with y down; viser's quaternion is `world_from_camera`.

    Args:
        camera (`viser.CameraHandle` or anything with `wxyz`, `position`, `fov` and `aspect`): Camera of a browser.
        device (`torch.device` or `str`, *optional*): Device of the result.
    """
    camera_from_world = torch.eye(4, dtype=torch.float64)
    camera_from_world[:3, :3] = matrix_from_quaternion(torch.as_tensor(np.asarray(camera.wxyz, np.float64))).mT
    camera_from_world[:3, 3] = -camera_from_world[:3, :3] @ torch.as_tensor(np.asarray(camera.position, np.float64))
    return pinhole_cameras(camera_from_world[None].float(), camera.fov, camera.aspect).to(device=device)


def audio_url(samples: np.ndarray, rate: int) -> str:
    """Encode an audio `(samples,)` in [-1, 1] as a `data:` address of a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes((np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes())
    return "data:audio/wav;base64," + base64.b64encode(file.getvalue()).decode()


def audio_element(url: str, seconds: float, speed: float) -> str:
    """Write the HTML that plays an audio from a given time."""
    start = f"this.currentTime={seconds:.3f};this.playbackRate={speed:g};this.play()"
    return f'<audio src="{url}" onloadedmetadata="{start}"></audio>'


def _import_viser() -> Any:
    try:
        import viser
    except ImportError as error:
        raise ImportError("The viewer needs viser: pip install 'vasa-hf[viewer]'.") from error
    # Browsers open connections that they do not use, and disconnect while their image is being rendered.
    logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="Queued a BackgroundImageMessage on a closed connection")
    return viser

"""The viewer: its clock, camera and sliders; and its page, in a real browser where there is one."""

import base64
import io
import socket
import time
import urllib.request
import wave
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.testing_utils.avatars import OWN_POSE, make_avatar
from tests.testing_utils.browser import CHROMIUM, open_page
from vasa_hf.geometry.cameras import orbit_cameras
from vasa_hf.geometry.quaternions import quaternion_from_matrix
from vasa_hf.viewer import AvatarViewer, Playback, Pose, audio_url, free_port, viser_camera

pytest.importorskip("viser")
FRAMES, MOTION_DIM = 25, 10


def make_motion(frames=FRAMES, yaw_rad=0.0):
    motion = torch.zeros(frames, MOTION_DIM)
    motion[:, :6] = torch.tensor(OWN_POSE)
    motion[:, 0] = yaw_rad + 0.3 * torch.linspace(0, 6.28, frames).sin()
    return motion


@pytest.fixture
def viewer():
    said = []

    def speak(gaze=(0.0, 0.0), head_distance=1.0, emotion=None):
        said.append({"gaze": gaze, "head_distance": head_distance, "emotion": emotion})
        return make_motion(yaw_rad=float(gaze[0]))

    audio = (0.1 * np.sin(np.arange(16_000) * 0.1).astype(np.float32), 16_000)
    viewer = AvatarViewer(make_avatar(), speak, audio, emotions=("happy",), port=0, size=256)
    viewer.said = said
    yield viewer
    viewer.stop()


def test_playback_goes_on_by_the_clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    playback = Playback(duration=2.0)
    now[0] += 0.5
    assert playback.position == pytest.approx(0.5) and playback.laps == 0
    now[0] += 2.0
    assert playback.position == pytest.approx(0.5) and playback.laps == 1
    playback.change(speed=0.5)
    now[0] += 1.0
    assert playback.position == pytest.approx(1.0) and playback.laps == 0
    playback.change(playing=False)
    now[0] += 7.0
    assert playback.position == pytest.approx(1.0)
    playback.change(playing=True, position=0.0)
    assert playback.position == 0.0


def test_the_camera_of_the_page_is_ours():
    """A camera of viser's form sees points where the orbit camera that it was made from sees them."""
    ours = orbit_cameras(0.7, 0.2, 90.0, fov_rad=0.4, aspect=1.5)
    world_from_camera = ours.camera_from_world[0, :3, :3].T
    wxyz = quaternion_from_matrix(world_from_camera).numpy()
    camera = SimpleNamespace(wxyz=wxyz, position=ours.position[0].numpy(), fov=0.4, aspect=1.5)
    points = torch.randn(20, 3) * 8
    seen = viser_camera(camera).project(points, (64, 96))
    for mine, wanted in zip(seen, ours.project(points, (64, 96)), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-3, rtol=1e-4)


def test_sliders_turn_the_head_and_scale_the_expression():
    motion, mean = make_motion(), torch.randn(MOTION_DIM)
    assert torch.equal(Pose().apply(motion, mean), motion)
    turned = Pose(yaw_deg=10, roll_deg=-5).apply(motion, mean) - motion
    torch.testing.assert_close(turned[0, :3].rad2deg(), torch.tensor([10.0, 0.0, -5.0]), atol=1e-4, rtol=0)
    assert turned[:, 3:].abs().max() == 0
    assert torch.equal(Pose(expression=0).apply(motion, mean)[:, 6:], mean[6:].expand(FRAMES, -1))


def test_sound_comes_back_from_its_address():
    samples = np.linspace(-1, 1, 100, dtype=np.float32)
    with wave.open(io.BytesIO(base64.b64decode(audio_url(samples, 8000).partition(",")[2]))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (8000, 1, 100)
        read = np.frombuffer(file.readframes(100), "<i2") / 32767
    assert np.abs(read - samples).max() < 1e-4


def test_a_taken_or_impossible_port_is_rejected():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match="`port` must be free, but 127.0.0.1:"):
            free_port("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ValueError, match="`port` must lie in"):
        free_port("127.0.0.1", 70_000)
    with pytest.raises(ValueError, match="`port` must be free, but nowhere.invalid"):
        free_port("nowhere.invalid", 8080)
    assert free_port("127.0.0.1", 0) > 0


def test_the_image_is_the_avatar_over_the_background(viewer):
    gaussians = viewer.pose_gaussians(0, Pose())
    image = viewer.render_image(gaussians, viewer.avatar.portrait_camera, 96, 1.0)
    assert image.shape == (96, 96, 3) and (np.abs(image[:3, :3] - 237.0) <= 1).all()
    assert (np.abs(image[40:56, 40:56] - 237.0) > 20).all()
    wide = viewer.render_image(gaussians, viewer.avatar.portrait_camera, 60, 2.0)
    assert wide.shape == (60, 120, 3)


def test_a_stopped_viewer_frees_its_port(viewer):
    assert urllib.request.urlopen(viewer.url, timeout=30).status == 200
    with pytest.raises(ValueError, match="`port` must be free"):
        free_port("127.0.0.1", viewer.port)
    viewer.stop()
    assert free_port("127.0.0.1", viewer.port) == viewer.port


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_page_shows_a_head_that_moves_and_can_be_gone_round(viewer, tmp_path):
    def seen():
        """The part of the page that no panel covers."""
        return np.asarray(page.screenshot(), np.float32)[140:, :560]

    with open_page(viewer.url, tmp_path / "profile") as page:
        # As the portrait's camera sees it, in the middle of a page of 600 pixels' height.
        page.wait_for(lambda: viewer.server.get_clients())
        page.click("Pause")
        page.wait_for(lambda: not viewer.playback.playing)
        frame = int(viewer.playback.position * 25)
        (browser,) = viewer.server.get_clients().values()
        gaussians, camera = viewer.pose_gaussians(frame, Pose()), viewer.avatar.portrait_camera

        def as_the_portrait():
            wanted = viewer.render_image(gaussians, camera, 600, browser.camera.aspect)[140:, :560]
            off, mirrored = (np.abs(image - wanted).mean() for image in (seen(), wanted[:, ::-1]))
            return off < 0.2 * mirrored

        page.wait_for(as_the_portrait)
        still = seen()
        time.sleep(0.5)
        assert np.abs(seen() - still).mean() < 1

        page.click("Play")
        page.wait_for(lambda: np.abs(seen() - still).mean() > 1)
        assert page.wait_for(lambda: page.run("!document.querySelector('audio')?.paused"))

        page.click("Pause")
        page.wait_for(lambda: not viewer.playback.playing)
        page.drag((300, 560), (420, 560))
        page.wait_for(lambda: abs(browser.camera.position[0]) > 5)
        places = browser.camera.position, camera.position[0].numpy()
        now, before = (np.linalg.norm(place - browser.camera.look_at) for place in places)
        assert now == pytest.approx(before, rel=0.02)
        page.wait_for(lambda: np.abs(seen() - still).mean() > 1)
        time.sleep(1.0)  # the view glides to a stop

        # Inside the head there is nothing to see: the last image stays.
        inside = seen()
        browser.camera.position = viewer.center.numpy() + np.array([0.0, 0.0, -0.5 * viewer.radius])
        time.sleep(1.0)
        assert np.abs(seen() - inside).mean() < 1

        viewer._gaze[0].value = 20
        viewer._note_change(None)
        page.wait_for(lambda: viewer.said[-1]["gaze"][0] == pytest.approx(np.deg2rad(20)))
        page.wait_for(lambda: float(viewer.motion[0, 0]) == pytest.approx(np.deg2rad(20), abs=1e-5))

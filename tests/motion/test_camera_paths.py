import math

import pytest
import torch

from vasa_hf import CameraKeyframes, Cameras, OrbitCamera, orbit_cameras
from vasa_hf.motion.camera_paths import CameraPath

CENTER = torch.tensor([1.0, -2.0, 6.0])
PORTRAIT = orbit_cameras(0.0, distance=100.0)
SIZE = (256, 256)


def path(camera, radius=12.0):
    return CameraPath(camera, PORTRAIT, CENTER, radius)


def times(*seconds):
    return torch.tensor(seconds, dtype=torch.float64)


def same(first, second, atol=1e-4):
    for name, value in vars(first).items():
        torch.testing.assert_close(value, getattr(second, name), rtol=1e-4, atol=atol)


# --- paths ------------------------------------------------------------------------------------------------------------


def test_fixed_camera_is_the_portraits_at_all_times():
    cameras = path("fixed")(times(0.0, 3.0, 100.0))
    assert len(cameras) == 3
    for index in range(3):
        same(cameras[index], PORTRAIT)
    other = orbit_cameras(1.0, distance=80.0)
    same(path(other)(times(5.0)), other)


def test_orbit_goes_to_both_sides_and_back():
    orbit = OrbitCamera(azimuth_deg=40.0, period_seconds=4.0, elevation_deg=10.0, distance=1.5)
    views = orbit.at(times(0.0, 1.0, 2.0, 3.0, 4.0))
    expected = [[0.0, 10, 1.5], [40.0, 10, 1.5], [0.0, 10, 1.5], [-40.0, 10, 1.5], [0.0, 10, 1.5]]
    torch.testing.assert_close(views, torch.tensor(expected).double(), rtol=0, atol=1e-5)
    same(path("orbit")(times(1.7)), path(OrbitCamera())(times(1.7)))
    assert path("orbit")(times(2.0)).position[0, 0] > 30  # a quarter of 8 seconds: far to the right


def test_keyframes_are_met_smoothly_and_never_overshot():
    keys = [(0.5, 0.0, 0.0, 1.0), (1.0, 30.0, 0.0, 1.0), (2.0, 40.0, 10.0, 2.0), (2.5, 40.0, 10.0, 2.0)]
    frames = CameraKeyframes([*keys, (4.0, -50.0, 0.0, 0.5)])
    exact = frames.at(times(0.5, 1.0, 2.0, 2.5, 4.0))
    torch.testing.assert_close(exact, torch.tensor([key[1:] for key in [*keys, (4.0, -50.0, 0.0, 0.5)]]).double())
    dense = frames.at(torch.linspace(0, 5, 2001, dtype=torch.float64))
    assert torch.equal(dense[0], exact[0]) and torch.equal(dense[-1], exact[-1])  # still before and after
    rise, rest, fall = dense[:800], dense[800:1000], dense[1000:1600]
    assert (rise.diff(dim=0) >= 0).all() and (rest == exact[2]).all() and (fall.diff(dim=0) <= 0).all()
    # Velocity has no jumps: at 400 samples a second its change is a small part of itself.
    speed = dense[:, 0].diff()
    assert speed.diff().abs().max() < 0.03 * speed.abs().max()
    assert speed[399:401].abs().min() > 0.03  # it does not stop at a keyframe on the way


def test_keyframes_may_go_all_the_way_round():
    views = path([(0, 0, 0, 1), (10, 360, 0, 1)])(times(0.0, 5.0, 10.0))
    same(views[0], views[2], atol=1e-3)
    assert views.position[1, 2] > 90  # behind the head


def test_function_is_asked_for_each_frame():
    asked = []

    def camera(seconds):
        asked.append(seconds)
        return orbit_cameras(0.1 * seconds, distance=90.0)

    follow = path(camera)
    assert asked == [0.0]  # it may show what is now: nothing is asked beforehand but the beginning
    same(follow(times(1.0, 2.0)), orbit_cameras(torch.tensor([0.1, 0.2]), distance=90.0))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "camera",
    [
        OrbitCamera(distance=0.1),
        [(0, 0, 0, 1), (1, 20, 0, 0.05), (2, 40, 0, 1)],
        [(0, 0, 0, 1), (0.01, 20, 0, 1), (100, 40, 0, 0.1)],
        orbit_cameras(0.3, distance=4.0, target=tuple(CENTER.tolist())),
        lambda seconds: orbit_cameras(0.0, distance=0.5, target=tuple(CENTER.tolist())),
    ],
)
def test_camera_inside_the_head_is_told_before_a_frame_is_made(camera):
    message = r"`camera` must stay outside of the head, at least 12.0 cm from its middle, but is \d+.\d cm from it at"
    with pytest.raises(ValueError, match=message):
        path(camera)


def test_function_that_enters_the_head_is_told_when_it_does():
    zoom = path(lambda seconds: orbit_cameras(0.0, distance=100.0 - 30 * seconds, target=tuple(CENTER.tolist())))
    zoom(times(1.0, 2.0))
    with pytest.raises(ValueError, match="10.0 cm from it at 3.00 seconds"):
        zoom(times(2.5, 3.0))


NOT_FINITE = Cameras(torch.full((1, 4, 4), math.nan), PORTRAIT.focal, PORTRAIT.center)


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ("spiral", r"`camera` must be one of \['fixed', 'orbit'\], .*, got 'spiral'"),
        (3, "`camera` must be one of .*, got 3"),
        (None, "`camera` must be one of .*, got None"),
        ([], r"`camera` must be keyframes \[\(seconds, azimuth_deg, elevation_deg, distance\), ...\], got \[\]"),
        ([(0, 0, 0)], r"`camera` must be keyframes .*, got \(0, 0, 0\) among them"),
        ([(0, 0, 0, "far")], "`camera` must be keyframes .*'far'"),
        ([(0, math.nan, 0, 1)], "`camera` must be keyframes .*nan"),
        ([(1, 0, 0, 1), (1, 5, 0, 1)], "`camera` must have keyframes at rising times from 0 seconds on, got .1.0, 1.0"),
        ([(-1, 0, 0, 1)], r"`seconds` must be a number in \[0.0, 21,600.0\], got -1"),
        ([(0, 0, 91, 1)], r"`elevation_deg` must be a number in \[-90.0, 90.0\], got 91"),
        ([(0, 0, 0, 0)], r"`distance` must be a number in \[0.01, 100.0\], got 0"),
        (orbit_cameras(torch.tensor([0.0, 1.0]), distance=90.0), "Cameras with one camera, got 2 of them"),
        (lambda seconds: seconds, "`camera` must be, or return, Cameras with one camera, got float"),
        (NOT_FINITE, "`camera` must be finite, got NaN or infinity"),
    ],
)
def test_bad_cameras_are_rejected(camera, message):
    with pytest.raises(ValueError, match=message):
        path(camera)


def test_bad_orbits_are_rejected():
    for settings, message in (
        ({"period_seconds": 0}, "`period_seconds` must be a number in .*, got 0"),
        ({"azimuth_deg": "wide"}, "`azimuth_deg` must be a number"),
        ({"distance": -1}, "`distance` must be a number"),
    ):
        with pytest.raises(ValueError, match=message):
            OrbitCamera(**settings)

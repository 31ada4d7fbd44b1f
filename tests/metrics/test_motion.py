"""Movement: closed forms, and what must get worse."""

import math

import pytest
import torch

from vasa_hf.geometry.landmarks import LANDMARK_IDS, NUM_LANDMARKS, eye_openness, rows
from vasa_hf.geometry.rotations import matrix_from_euler
from vasa_hf.metrics import motion
from vasa_hf.metrics.faces import FaceTrack

DEGREE = math.pi / 180


def track_of(angles, points=None, scale=0.27):
    """A track of given yaw, pitch, roll `(frames, 3)`."""
    angles = torch.as_tensor(angles, dtype=torch.float32)
    pose = torch.zeros(len(angles), 7)
    pose[:, :3], pose[:, 3:5], pose[:, 6] = angles, 0.5, scale
    if points is None:
        points = torch.rand(NUM_LANDMARKS, 2, generator=torch.Generator().manual_seed(0)).expand(len(angles), -1, -1)
    return FaceTrack.of(points.clone(), pose)


def nodding(frames=50, degrees=1.0):
    angles = torch.zeros(frames, 3)
    angles[:, 1] = torch.arange(frames) * degrees * DEGREE
    return angles


def face_points(gap=0.0, eye=0.3, frames=1, gaze=(0.0, 0.0)):
    """A crude face, `(frames, 162, 2)`: eye corners, lids, irises and lips where they belong; gaps may be a series."""
    gap, eye = torch.as_tensor(gap).expand(frames), torch.as_tensor(eye).expand(frames)
    points = torch.full((frames, NUM_LANDMARKS, 2), 0.5)
    at = {33: (0.35, 0.4), 133: (0.45, 0.4), 362: (0.55, 0.4), 263: (0.65, 0.4), 61: (0.42, 0.7), 291: (0.58, 0.7)}
    for mesh_id, place in at.items():
        points[:, LANDMARK_IDS.index(mesh_id)] = torch.tensor(place)
    for upper, lower, x in ((159, 145, 0.4), (386, 374, 0.6)):
        for mesh_id, sign in ((upper, -0.5), (lower, 0.5)):
            row = LANDMARK_IDS.index(mesh_id)
            points[:, row, 0], points[:, row, 1] = x, 0.4 + sign * 0.1 * eye
    for mesh_id, x in ((468, 0.4), (473, 0.6)):
        points[:, LANDMARK_IDS.index(mesh_id)] = torch.tensor([x + 0.1 * gaze[0], 0.4 + 0.1 * gaze[1]])
    points[:, rows(13)[0]] = torch.tensor([0.5, 0.7])
    points[:, rows(14)[0], 0], points[:, rows(14)[0], 1] = 0.5, 0.7 + 0.3 * gap
    return points


def still(points):
    return track_of(torch.zeros(len(points), 3), points)


def test_angle_between_rotations():
    a = matrix_from_euler(*torch.tensor([0.3, -0.2, 0.1]))
    for degrees in (1e-3, 0.3, 45.0, 179.0):
        b = a @ matrix_from_euler(torch.zeros(()), torch.tensor(degrees * DEGREE), torch.zeros(()))
        assert motion.angle_between(a, b).item() == pytest.approx(degrees, rel=1e-3, abs=2e-5)


def test_pose_variation_is_the_angle_a_frame_and_vanishes_when_frozen():
    assert motion.pose_variation(track_of(nodding(degrees=0.4))) == pytest.approx(0.4, rel=1e-3)
    assert motion.pose_variation(track_of(torch.zeros(10, 3))) == pytest.approx(0, abs=1e-5)


def test_frames_without_a_face_do_not_count():
    track = track_of(nodding(10, 0.5))
    track.pose[4, 1] += 1.0
    track.found[4] = False
    assert motion.pose_variation(track) == pytest.approx(0.5, rel=1e-3)
    track.found[:] = False
    with pytest.raises(ValueError, match="`track` must show a face"):
        motion.pose_variation(track)


def test_keypoint_distance_of_a_known_shift():
    track = track_of(nodding(5))
    moved = FaceTrack.of(track.landmarks + torch.tensor([3.0, 4.0]) / 256, track.pose)
    assert motion.keypoint_distance(moved, track) == pytest.approx(5.0, rel=1e-4)
    further = FaceTrack.of(track.landmarks + torch.tensor([6.0, 8.0]) / 256, track.pose)
    assert motion.keypoint_distance(further, track) > motion.keypoint_distance(moved, track)
    with pytest.raises(ValueError, match="the same length"):
        motion.keypoint_distance(track, track[:3])


def test_pose_error_of_a_frozen_head_is_how_far_the_true_one_turned():
    truth = track_of(nodding(11, 2.0))
    assert motion.pose_error(truth, truth) == pytest.approx(0, abs=1e-3)
    assert motion.pose_error(track_of(torch.zeros(11, 3)), truth) == pytest.approx(10.0, rel=1e-3)


def test_gaze_error_grows_with_the_angle():
    track = still(face_points(frames=3))
    seen = track.gaze[0]
    assert motion.gaze_error(track, seen) == pytest.approx(0, abs=0.05)
    for degrees in (5, 20):
        wanted = seen + torch.tensor([0.0, degrees * DEGREE])
        assert motion.gaze_error(track, wanted) == pytest.approx(degrees, abs=0.05)


def test_distance_error():
    track = track_of(torch.zeros(4, 3), scale=0.25)
    assert motion.distance_error(track, 0.25) == pytest.approx(0, abs=1e-6)
    assert motion.distance_error(track, 0.30) == pytest.approx(0.2, abs=1e-5)


def test_motion_stability_of_a_known_trembling():
    """Points that alternate by ±a have an acceleration of ±4a: variance 16a² but for n / (n - 1)."""
    frames, a = 102, 0.5
    sign = torch.tensor([1.0, -1.0]).repeat(frames // 2)[:, None, None]
    points = torch.full((frames, NUM_LANDMARKS, 2), 0.5) + sign * a / 256
    expected = 1 / (16 * a**2 * 100 / 99)
    assert motion.motion_stability(still(points)) == pytest.approx(expected, rel=1e-3)
    assert motion.motion_stability(still(0.5 + 3 * (points - 0.5))) == pytest.approx(expected / 9, rel=1e-3)
    uniform = torch.linspace(0.3, 0.6, frames)[:, None, None].expand_as(points)
    assert motion.motion_stability(still(uniform)) > 1e3
    with pytest.raises(ValueError, match="4 frames"):
        motion.motion_stability(still(points[:3]))


def test_smoothness_falls_with_jitter():
    ramp = torch.linspace(0, 1, 9)[:, None, None, None].expand(9, 3, 4, 4)
    assert motion.smoothness(ramp) == pytest.approx(1, abs=1e-6)
    jitter = ramp.clone()
    jitter[1::2] += 0.1
    assert motion.smoothness(jitter) == pytest.approx(0.9, abs=1e-6)


def test_blinks_are_counted():
    eye = torch.full((125,), 0.3)
    eye[20:23], eye[60:62], eye[100] = 0.05, 0.1, 0.25  # the last is no blink
    track = still(face_points(eye=eye, frames=125))
    assert eye_openness(track.landmarks).mean(-1)[20].item() == pytest.approx(0.05, abs=1e-3)
    assert motion.blink_rate(track) == pytest.approx(2 * 12)  # two in 5 s
    assert motion.blink_rate(still(face_points(frames=125))) == 0


def test_lip_correlation_falls_when_lips_are_late_or_still():
    gap = 0.1 * (1 + torch.sin(torch.arange(60) * 2 * math.pi / 12))
    truth = still(face_points(gap=gap, frames=60))
    assert truth.lip_gap[3].item() == pytest.approx(gap[3].item(), abs=1e-3)
    assert motion.lip_correlation(truth, truth) == pytest.approx(1, abs=1e-5)
    late = [motion.lip_correlation(still(face_points(gap=gap.roll(k), frames=60)), truth) for k in (1, 3, 6)]
    # a sine k frames late correlates by cos(2 pi k / 12)
    assert late == pytest.approx([math.cos(k * math.pi / 6) for k in (1, 3, 6)], abs=1e-3)
    assert motion.lip_correlation(still(face_points(gap=0.1, frames=60)), truth) == 0


def test_correlation_of_constants_is_reported():
    with pytest.raises(ValueError, match="change over time"):
        motion.correlation(torch.ones(9), torch.arange(9.0))
    with pytest.raises(ValueError, match="same length"):
        motion.correlation(torch.arange(9.0), torch.arange(8.0))


def speech_with_pause():
    """1 s of audio, 1 s of silence, 1 s of audio."""
    sound = 0.3 * torch.sin(torch.arange(48000) * 0.2)
    sound[16000:32000] = 0
    return sound


def test_loudness_and_silence():
    level = motion.loudness(speech_with_pause(), 80)
    assert level[10].item() == pytest.approx(0.3 / math.sqrt(2), rel=1e-2) and level[30] == 0 and level[79] == 0
    silent = motion.silent_frames(speech_with_pause(), 75)
    assert silent.nonzero().flatten().tolist() == list(range(28, 47))


def test_open_mouth_in_silence_is_reported():
    samples = speech_with_pause()
    shut, gaping = still(face_points(frames=75)), still(face_points(gap=0.1, frames=75))
    half = torch.zeros(75)
    half[28:38] = 0.1
    assert motion.closed_in_silence(shut, samples) == 1
    assert motion.closed_in_silence(gaping, samples) == 0
    assert motion.closed_in_silence(still(face_points(gap=half, frames=75)), samples) == pytest.approx(7 / 15)
    near = torch.zeros(75)
    near[25:30] = near[45:50] = 0.1  # within 0.2 s of audio lips may be open
    assert motion.closed_in_silence(still(face_points(gap=near, frames=75)), samples) == 1
    with pytest.raises(ValueError, match="pause"):
        motion.closed_in_silence(shut[:20], samples[:12800])


def test_control_response():
    asked = torch.tensor([-0.3, 0.0, 0.3])
    line = motion.control_response(asked, 0.5 * asked + 0.1)
    assert line["slope"] == pytest.approx(0.5) and line["correlation"] == pytest.approx(1)
    assert line["error"] == pytest.approx((0.25 + 0.1 + 0.05) / 3)
    ignored = motion.control_response(asked, torch.zeros(3))
    assert ignored["slope"] == 0 and ignored["correlation"] == 0 and ignored["error"] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="`asked`"):
        motion.control_response(torch.ones(3), torch.zeros(3))

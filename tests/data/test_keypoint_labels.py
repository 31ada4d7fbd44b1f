import numpy as np
import pytest
import torch

from tests.testing_utils.face_data import make_canonical, make_labels
from vasa_hf.data.clips import MotionData, MotionPriors
from vasa_hf.data.face_pairs import motion_of
from vasa_hf.data.keypoint_labels import ANCHORS, NECK, keypoints_from_labels, keypoints_from_motion
from vasa_hf.data.keypoint_sequences import NO_EMOTION, KeypointSequences, load_faces
from vasa_hf.data.landmark_dynamics import FaceLabels, LandmarkDynamics
from vasa_hf.geometry.keypoints import KeypointMotion, euler_degrees, euler_matrix, transform_keypoints
from vasa_hf.geometry.rotations import matrix_from_euler

SHOWN = [index for index in range(21) if index != NECK]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("labels"), np.random.default_rng(0)
    make_labels(folder / "clips.npz", ["a", "b"], [60, 60], make_canonical(), rng)
    clips = FaceLabels.load(folder / "clips.npz")
    dynamics = LandmarkDynamics.fit(clips, ["a", "b"])
    return folder, clips, dynamics, motion_of(clips, dynamics.encode(clips, ["a", "b"]))


def test_keypoints_lie_on_their_landmarks(labelled):
    _, clips, dynamics, motion = labelled
    points = transform_keypoints(keypoints_from_labels(dynamics, clips.landmarks, motion))
    rows = [list(clips.ids).index(number) for number in ANCHORS]
    torch.testing.assert_close(points[:, SHOWN, :2], (2 * clips.landmarks[:, rows] - 1)[:, SHOWN], atol=1e-5, rtol=0)
    assert (points[:, NECK, 1] > points[:, 9, 1]).all(), "the neck lies below the chin"


def test_a_persons_keypoints_with_another_frames_motion_go_where_the_landmarks_go(labelled):
    _, clips, dynamics, motion = labelled
    own = keypoints_from_labels(dynamics, clips.landmarks[:1], motion[:1])
    moved = transform_keypoints(keypoints_from_motion(dynamics, own.kp.expand(60, -1, -1), motion[:60]))
    source = motion[:1].expand(60, -1)
    expected = dynamics.move(clips.landmarks[:1].expand(60, -1, -1), source, motion[:60])
    rows = [list(clips.ids).index(number) for number in ANCHORS]
    torch.testing.assert_close(moved[:, SHOWN, :2], (2 * expected[:, rows] - 1)[:, SHOWN], atol=1e-5, rtol=0)


def test_angles_make_the_same_rotation_in_liveportraits_order():
    angles = torch.tensor([[0.3, -0.2, 0.1], [-0.9, 0.4, 0.0]])
    rotation = matrix_from_euler(*angles.T)
    torch.testing.assert_close(euler_matrix(*euler_degrees(rotation.mT)), rotation.mT, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def sequences(labelled):
    folder, clips, dynamics, motion = labelled
    rng = np.random.default_rng(1)
    audio = rng.standard_normal((120, 4)).astype(np.float32)
    silence = np.zeros((2, 90, 4), np.float32)
    data = MotionData(motion.numpy(), audio, clips.offsets, np.array([0, 1]), np.array([True, True]), silence)
    priors = MotionPriors(neutral=np.zeros(28, np.float32), gaze=dynamics.gaze_directions().numpy())
    emotions = torch.zeros(8, 28)
    emotions[4, 0] = 50.0

    def make(**changes):
        options = {"emotions": emotions, "window": 20, "seed": 3, **changes}
        return KeypointSequences(data, load_faces(folder, dynamics), dynamics, priors, **options)

    return make


def test_a_sample_is_a_function_of_its_number(sequences):
    first, again, other = sequences()[5], sequences()[5], sequences()[6]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["motion"], other["motion"])
    assert first["motion"].shape == (20, 70) and first["audio"].shape == (20, 1, 4)
    assert first["keypoints"].shape == (63,) and first["previous_motion"].shape == (70,)


def test_the_previous_frame_leads_into_the_window(sequences):
    dataset = sequences(emotional=0.0)
    for index in range(20):
        sample = dataset[index]
        step = (sample["motion"][0] - sample["previous_motion"]).abs().max()
        assert step < (sample["motion"].amax(0) - sample["motion"].amin(0)).max() + 1e-6


def test_emotions_are_what_their_label_says(sequences):
    """Class 4 moves the lips by far more than any talk; no other class and no label does."""
    dataset, seen = sequences(emotional=0.8), set()
    for index in range(60):
        sample = dataset[index]
        seen.add(int(sample["emotion"]))
        exp = KeypointMotion.from_vector(sample["motion"], sample["keypoints"].view(1, 21, 3)).exp
        assert (exp.abs().max() > 0.3) == (sample["emotion"] == 4)
    assert len(seen) >= 8 and NO_EMOTION in seen


def test_speech_is_dropped_half_the_time(sequences):
    dataset = sequences(emotional=0.0)
    dropped = np.mean([bool(dataset[i]["drop_audio"]) for i in range(300)])
    assert 0.42 < dropped < 0.58

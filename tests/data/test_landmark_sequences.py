import numpy as np
import pytest
import torch

from tests.testing_utils.face_data import make_face_data
from vasa_hf.data.clips import MotionData, MotionPriors
from vasa_hf.data.instructions import ACTIONS, NAMES, compose_instructions, find_instructions, measure_actions
from vasa_hf.data.landmark_dynamics import FaceLabels, LandmarkDynamics
from vasa_hf.data.landmark_sequences import LandmarkMotion, LandmarkSequences, encode_landmarks, landmark_motion
from vasa_hf.geometry.landmarks import rows

OFFSETS = np.array([0, 300, 420])


def numbered(**changes):
    """Two clips whose every number is the number of the frame."""
    frames = np.arange(420, dtype=np.float32)
    arrays = {
        "landmarks": np.broadcast_to(frames[:, None, None], (420, 162, 2)).copy(),
        "pose": np.broadcast_to(frames[:, None], (420, 3)).copy(),
        "audio": np.broadcast_to(frames[:, None], (420, 5)).copy(),
        "latent": np.broadcast_to(frames[:, None], (420, 12)).copy(),
        "speaks": np.array([True, False]),
    }
    return LandmarkMotion(offsets=OFFSETS, **{**arrays, **changes})


def test_windows_lie_in_one_clip_and_everything_in_them_belongs_together():
    dataset = LandmarkSequences(numbered())
    sizes, references = set(), set()
    for index in range(60):
        sample, again = dataset[index], dataset[index]
        assert all(torch.equal(sample[name], again[name]) for name in sample)
        mask = sample["frame_mask"]
        size = int(mask.sum())
        frames = sample["motion"][:size, 0]
        assert mask[:size].all() and sample["motion"].shape == (250, 12)
        torch.testing.assert_close(frames, frames[0] + torch.arange(size, dtype=torch.float32))
        for name in ("audio", "pose"):
            assert torch.equal(sample[name][:size, 0], frames) and not sample[name][size:].any()
        second = bool(frames[0] >= 300)
        first, last = (int(x) for x in OFFSETS[second : second + 2])
        assert first <= frames[0] and frames[-1] < last and first <= sample["reference"][0] < last
        assert size == 120 if second else 125 <= size <= 250
        assert bool(sample["drop_audio"]) == second  # nobody speaks there
        sizes.add(size)
        references.add(float(sample["reference"][0]))
    assert len(sizes) > 20 and len(references) > 40


def test_landmarks_can_be_learnt_and_speech_dropped(tmp_path):
    data = numbered(latent=None)
    data.save(tmp_path / "data.safetensors")
    data = LandmarkMotion.load(tmp_path / "data.safetensors")
    dataset = LandmarkSequences(data, "landmarks", 10, 20, drop_audio=0.5)
    samples = [dataset[i] for i in range(80)]
    assert samples[0]["motion"].shape == (20, 324)
    spoken = [bool(s["drop_audio"]) for s in samples if s["motion"][0, 0] < 300]
    assert 0.3 < np.mean(spoken) < 0.7
    with pytest.raises(ValueError, match="`latent`"):
        LandmarkSequences(data)
    with pytest.raises(ValueError, match="`shortest`"):
        LandmarkSequences(data, "landmarks", 30, 20)
    with pytest.raises(ValueError, match="`audio`|speech"):
        LandmarkSequences(numbered(audio=None))
    with pytest.raises(ValueError, match="`pose` must have 420 rows"):
        numbered(pose=np.zeros((3, 3)))


def test_encoding_goes_frame_by_frame():
    data = numbered()
    latent = encode_landmarks(lambda points: points.mean((1, 2))[:, None], data.landmarks, batch_size=33)
    assert latent.dtype == np.float16 and latent.shape == (420, 1)
    np.testing.assert_array_equal(latent[:, 0], np.arange(420))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = make_face_data(tmp_path_factory.mktemp("faces") / "train", size=32)
    labels = FaceLabels.load(folder / "clips.npz")
    dynamics = LandmarkDynamics.fit(labels, ["a", "a", "b"], FaceLabels.load(folder / "portraits.npz"))
    rng = np.random.default_rng(0)
    priors = MotionPriors(blink=rng.normal(0, 1, 28), emotion=rng.normal(0, 1, (6, 28)))
    return folder, labels, dynamics, priors


def test_landmark_motion_joins_labels_and_speech(faces):
    folder, labels, _, _ = faces
    frames = int(labels.offsets[-1])
    speech = MotionData(
        motion=np.zeros((frames, 34), np.float32),
        audio=np.ones((frames, 5), np.float16),
        offsets=labels.offsets,
        person=np.zeros(3, int),
        speaks=np.ones(3, bool),
        silence=np.zeros((1, 4, 5), np.float16),
    )
    data = landmark_motion(folder, speech, smoothing=0)
    np.testing.assert_array_equal(data.landmarks, labels.landmarks.numpy())
    smooth = landmark_motion(folder, speech)
    assert 1e-4 < np.abs(smooth.landmarks - data.landmarks).mean() < 0.05
    speech.offsets = speech.offsets[:-1]
    with pytest.raises(ValueError, match="`speech`"):
        landmark_motion(folder, speech)


def test_composed_clips_do_what_they_are_told(faces):
    _, labels, dynamics, priors = faces
    data = compose_instructions(labels, ["a", "a", "b"], dynamics, priors, 2 * len(NAMES), frames=60)
    assert data.landmarks.shape == (60 * 28, 162, 2) and sorted(data.action) == sorted(2 * list(range(14)))
    pose = torch.from_numpy(data.pose).unflatten(0, (28, 60))
    for clip, number in enumerate(data.action):
        action, track = ACTIONS[NAMES[number]], pose[clip]
        moved = track[-20:].mean(0) - track[0]
        if action.swings:
            axis = int(np.argmax(np.abs(action.pose)))
            assert track[:, axis].max() - track[:, axis].min() > abs(action.pose[axis])
            continue
        for axis in range(3):
            assert abs(moved[axis] - action.pose[axis]) < 0.25 * abs(action.pose[axis]) + 0.03
    # The mouth opens where it is asked to, and the head is where the pose says.
    points = torch.from_numpy(data.landmarks).unflatten(0, (28, 60))
    gap = (points[..., rows(14), 1] - points[..., rows(13), 1])[..., 0]
    opened = gap[:, -10:].mean(1) - gap[:, 0]
    wide = [clip for clip, number in enumerate(data.action) if NAMES[number] == "open_mouth"]
    turned = [clip for clip, number in enumerate(data.action) if NAMES[number] == "turn_left"]
    assert opened[wide].min() > opened[turned].abs().max()


def test_real_windows_are_found_by_what_they_show(faces):
    _, labels, _, _ = faces
    canonical = labels.canonical[labels.ids]
    frames = 80
    still = labels.landmarks[:1].expand(frames, -1, -1).clone()
    pose = labels.pose[:1].expand(frames, -1).clone()
    clip = FaceLabels(
        landmarks=still,
        pose=pose,
        iris_offset=torch.zeros(frames, 2, 2),
        eye_open=torch.zeros(frames, 2),
        mouth=torch.zeros(frames, 2),
        offsets=np.array([0, frames]),
        names=["x"],
        ids=labels.ids,
        canonical=labels.canonical,
    )
    assert find_instructions(clip) is None
    clip.pose = pose.clone()
    clip.pose[20:, 0] -= 0.3
    found = find_instructions(clip)
    assert [NAMES[number] for number in found.action] == ["turn_left"] and len(found.landmarks) == 75
    assert measure_actions(clip.landmarks, clip.pose, canonical)["yaw"][40] < -0.2

import numpy as np
import pytest
import torch

from tests.testing_utils.face_data import make_canonical, make_labels
from vasa_hf.data.landmark_dynamics import FaceLabels, LandmarkDynamics, unposed_landmarks


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("labels"), np.random.default_rng(0)
    canonical = make_canonical()
    make_labels(folder / "clips.npz", ["a", "b"], [60, 60], canonical, rng)
    make_labels(folder / "portraits.npz", [str(i) for i in range(10)], [1] * 10, canonical, rng)
    clips, portraits = (FaceLabels.load(folder / f"{name}.npz") for name in ("clips", "portraits"))
    return clips, LandmarkDynamics.fit(clips, ["a", "b"], portraits)


def test_unposing_removes_the_pose(fitted):
    clips, _ = fitted
    shape = unposed_landmarks(clips)
    # What is left is the 0.02 of expression noise and the lip's opening, not the +-0.1 rad of pose.
    assert shape.std() < 0.03


def test_codes_have_unit_scale_and_move_the_landmarks(fitted):
    clips, model = fitted
    codes = model.encode(clips, ["a", "b"])
    assert codes.shape == (120, 28) and 0.5 < codes.std() < 1.5
    motion = torch.cat([clips.pose[:, :5], clips.pose[:, 6:7], codes], 1)
    still = (clips.landmarks[:1] - clips.landmarks).norm(dim=-1).mean()
    moved = model.move(clips.landmarks[:1].expand(120, -1, -1), motion[:1].expand(120, -1), motion)
    assert (moved - clips.landmarks).norm(dim=-1).mean() < 0.5 * still


def test_gaze_channels_follow_the_irises(fitted):
    clips, model = fitted
    codes = model.encode(clips)
    directions = model.gaze_directions()
    assert directions.shape == (2, 28) and (directions[:, :24] == 0).all()
    right = torch.corrcoef(torch.stack([codes[:, 24], clips.iris_offset[:, 0, 0]]))[0, 1]
    assert right > 0.99 and directions[0, 24] > 0
    # A small turn moves the iris as `gaze_angles` reads it: 0.4 eye widths a radian.
    moved = 0.1 * directions[:, 24:].reshape(2, 2, 2) * model.tensors["iris_std"]  # [axis, eye, xy] in eye widths
    torch.testing.assert_close(moved[[0, 1], :, [0, 1]], torch.full((2, 2), 0.04))


def test_channels_keep_their_sign_with_another_number_of_threads(fitted):
    """Eigenvectors flip by chance; weights trained by two fits would then contradict each other."""
    clips, model = fitted
    for part in ("lips", "lids", "brows"):
        assert (model.tensors[f"basis_{part}"].pow(3).sum(0) > 0).all()


def test_save_and_load(fitted, tmp_path):
    clips, model = fitted
    model.save(tmp_path / "dynamics.safetensors")
    again = LandmarkDynamics.load(tmp_path / "dynamics.safetensors")
    torch.testing.assert_close(again.encode(clips), model.encode(clips))

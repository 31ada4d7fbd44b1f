import numpy as np
import pytest
import torch

from tests.testing_utils.face_data import make_canonical, make_labels
from vasa_hf.data.landmark_dynamics import (
    EMOTION_SHAPES,
    EMOTION_STRENGTH,
    ICT_LANDMARKS_68,
    FaceLabels,
    LandmarkDynamics,
    mahalanobis_norm,
    unposed_landmarks,
)


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


@pytest.fixture(scope="module")
def head_file(tmp_path_factory):
    """Head shapes that each move one named group of landmarks by a fixed amount."""
    vertices, moves = 6600, {}
    brows, lids, mouth = range(17, 27), (37, 38, 43, 44), range(48, 68)
    for name in sorted({shape for mixture in EMOTION_SHAPES.values() for shape in mixture} | {"jawOpen"}):
        group = brows if "brow" in name else lids if "eye" in name else mouth
        up = -1.0 if "Down" in name or "Frown" in name or "jaw" in name else 1.0
        moves[name] = np.zeros((vertices, 3), np.float16)
        for number in group:
            moves[name][ICT_LANDMARKS_68[number], 1] = 0.6 * up
    neutral = np.zeros((vertices, 3), np.float32)
    neutral[ICT_LANDMARKS_68[36], 0], neutral[ICT_LANDMARKS_68[45], 0] = -5.0, 5.0  # outer eye corners
    path = tmp_path_factory.mktemp("head") / "head.npz"
    np.savez(path, neutral=neutral, expression=np.stack(list(moves.values())), expression_names=np.array(list(moves)))
    return path


def test_expression_offsets_find_what_emotions_add(fitted):
    """Codes made of a person's own mean, an offset for each emotion, head pose and noise give the offsets back."""
    _, model = fitted
    rng = torch.Generator().manual_seed(0)
    scores = torch.rand(4000, 7, generator=rng).pow(4)
    scores = (scores / scores.sum(1, keepdim=True))[:, :6]
    person = torch.arange(4000) % 3
    pose = 0.2 * torch.randn(4000, 7, generator=rng)
    true = torch.randn(6, 28, generator=rng)
    own = 3 * torch.randn(3, 28, generator=rng)[person]
    noise = 0.3 * torch.randn(4000, 28, generator=rng)
    tilt = pose[:, 1:2] * torch.randn(28, generator=rng)
    found = model.expression_offsets(scores @ true + own + tilt + noise, scores, person, pose)
    expected = model._symmetric(true)
    # The ridge shrinks what few scores tell.
    assert (found - expected).abs().mean() < 0.2 * expected.abs().mean()
    assert (found[:, 24:] == 0).all()


def test_emotion_directions_stay_where_faces_have_been(fitted, head_file):
    """Each part's direction lies within 99 % of the frames before `EMOTION_STRENGTH`, however far the shapes go."""
    _, model = fitted
    codes = torch.randn(5000, 28, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 2, 28)
    offsets = 10 * model._symmetric(torch.randn(6, 28, generator=torch.Generator().manual_seed(1)))
    names, directions = model.emotion_directions(head_file, codes, offsets)
    assert names == sorted(EMOTION_SHAPES) and directions.shape == (6, 28) and (directions[:, 24:] == 0).all()
    seen = model._symmetric(codes)
    start = 0
    strength = torch.tensor([EMOTION_STRENGTH[name] for name in names])
    for number, size in enumerate((14, 6, 4)):
        part = slice(start, start + size)
        directions[:, part] /= strength[:, number, None]
        covariance = torch.cov(seen[:, :24].T)[part, part] + 1e-3 * torch.eye(size)
        limit = mahalanobis_norm(seen[:, part], covariance).quantile(0.99)
        norms = mahalanobis_norm(directions[:, part], covariance)
        assert (norms <= limit * 1.001).all() and norms.max() > 0.99 * limit
        start += size


def test_emotion_directions_move_the_brows_as_the_shapes_do(fitted, head_file):
    """Surprise lifts the brows, anger lowers them, and both are mirror-symmetric to the landmarks' noise."""
    _, model = fitted
    names, directions = model.emotion_directions(head_file)
    moved = (directions @ model.tensors["basis"]).unflatten(1, (-1, 2))
    brows = [list(model.ids).index(n) for n in (70, 63, 105, 66, 107, 336, 296, 334, 293, 300)]
    height = dict(zip(names, -moved[:, brows, 1].mean(1), strict=True))
    assert height["surprised"] > 0 > height["angry"]
    # Real frames in which surprise goes with lowered brows pull the direction down.
    down = torch.zeros(6, 28)
    down[names.index("surprised")] = 3 * directions[names.index("angry")]
    pulled = model.emotion_directions(head_file, offsets=down)[1]
    lifted = -(pulled @ model.tensors["basis"]).unflatten(1, (-1, 2))[names.index("surprised"), brows, 1].mean()
    assert lifted < height["surprised"]

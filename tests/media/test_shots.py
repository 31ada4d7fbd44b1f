"""Cuts are found where the picture changes at once."""

import numpy as np

from vasa_hf.media.shots import CutFinder, shrunk


def test_shots_begin_where_the_picture_changes_and_nowhere_else():
    rng = np.random.default_rng(0)
    scenes = [np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((20, 20, 1))).astype(np.uint8) for _ in range(3)]
    video = [np.roll(scene, shift, 1) for scene in scenes for shift in range(0, 30, 2)]  # pans of 15 frames
    find = CutFinder()
    assert [i for i, frame in enumerate(video) if find(frame)] == [15, 30]
    find = CutFinder()
    noisy = [(frame * 0.5 + rng.integers(0, 127, frame.shape)).astype(np.uint8) for frame in video]
    assert [i for i, frame in enumerate(noisy) if find(frame)] == [15, 30]
    find = CutFinder()
    assert not any(find(np.full((90, 120, 3), level, np.uint8)) for level in range(0, 250, 10))  # light goes up


def test_small_copies_of_any_size_agree():
    frame = np.kron(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), np.ones((30, 40, 3), np.uint8))
    assert np.allclose(shrunk(frame) * 255, np.arange(256).reshape(16, 16, 1), atol=1e-3)
    assert shrunk(np.zeros((8, 8, 3), np.uint8)).shape == (1, 1, 3)

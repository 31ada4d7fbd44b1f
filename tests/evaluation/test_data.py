"""Reading the folder: labels, unlabelled clips, and what does not fit."""

import shutil

import numpy as np
import pytest
import torch

from tests.testing_utils.face_data import make_face_data
from tests.testing_utils.pipelines import make_audio
from vasa_hf import VasaAudioProcessor
from vasa_hf.evaluation.data import EvalData, to_tensor, to_uint8
from vasa_hf.media import VideoWriter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three labelled clips of two people and two portraits; the second clip has audio."""
    folder = make_face_data(tmp_path_factory.mktemp("eval") / "data", size=64)
    with VideoWriter(folder / "clips" / "a_2.mp4", 25, (64, 64), (make_audio(1.0), 16_000), provenance=False) as writer:
        for _ in range(5):
            writer.write(np.full((64, 64, 3), 90, np.uint8))
    return folder


def load(data, name, size=32):
    path = next(path for path in data.clips if path.stem == name)
    return data.load_clip(path, size, None, VasaAudioProcessor())


def test_labels_and_people_come_along(folder):
    data = EvalData(folder)
    assert [path.stem for path in data.clips] == ["a_1", "a_2", "b_1"] and len(data.portraits) == 2
    assert data.people == {"a_1": "a", "a_2": "a", "b_1": "b"}
    clip = load(data, "b_1")
    assert clip.frames.shape == (7, 3, 32, 32) and len(clip.labels) == 7
    with np.load(folder / "clips.npz") as arrays:
        pose, landmarks = arrays["pose"][11:], (arrays["landmarks"][11:].astype(np.float32) - 8192) / 8192
    assert torch.equal(clip.labels.pose, torch.from_numpy(pose))
    assert torch.allclose(clip.labels.landmarks, torch.from_numpy(landmarks))


def test_frames_whose_labels_are_no_face_do_not_count(folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    with np.load(data / "clips.npz") as arrays:
        content = dict(arrays)
    np.savez(data / "clips.npz", **content, found=np.arange(len(content["pose"])) != 12)
    found = [load(EvalData(place), "b_1").labels.found.tolist() for place in (folder, data)]
    assert found == [[True] * 7, [True, False, True, True, True, True, True]]


def test_audio_is_cut_to_the_frames_and_its_absence_told(folder):
    data = EvalData(folder)
    assert load(data, "a_2").samples.shape == (5 * 640,)
    silent = load(data, "a_1")
    assert silent.samples is None and "no audio stream" in silent.silent_because


def test_clips_that_do_not_fit_their_labels_are_reported(folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    for name, size, frames in (("a_1", (64, 64), 9), ("b_1", (80, 64), 7)):
        with VideoWriter(data / "clips" / f"{name}.mp4", 25, size, provenance=False) as writer:
            for _ in range(frames):
                writer.write(np.zeros((size[1], size[0], 3), np.uint8))
    with pytest.raises(ValueError, match="9 frames, its labels 6"):
        load(EvalData(data), "a_1")
    with pytest.raises(ValueError, match="square"):
        load(EvalData(data), "b_1")
    (data / "clips" / "a_2.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="`path`|`video`"):
        load(EvalData(data), "a_2")


def test_a_limit_is_spread_evenly(folder):
    data = EvalData(folder, limit=2)
    assert [path.stem for path in data.clips] == ["a_1", "b_1"]
    assert len(EvalData(folder, limit=9).clips) == 3


def test_images_and_back():
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert np.array_equal(to_uint8(to_tensor(array, 16)[None])[0], array)
    assert to_tensor(array, 8).shape == (3, 8, 8)

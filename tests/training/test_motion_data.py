import dataclasses

import numpy as np
import pytest
import torch

from tests.testing_utils.clips import make_clips
from tests.testing_utils.pipelines import make_vasa1_components
from vasa_hf.training.motion_data import prepare_motion_data
from vasa_hf.training.recipes.motion_transformer import MotionTransformerOptions


def test_motion_and_audio_features_of_a_folder_of_videos(tmp_path):
    """Three real video files through real (tiny) networks; then the file that is kept, and the caches."""
    components = make_vasa1_components()
    for name in ("face_autoencoder", "audio_encoder", "audio_processor"):
        components[name].save_pretrained(tmp_path / "pipe" / name)
    lengths = {"a": 14, "b": 9, "mute": 12}
    make_clips(tmp_path / "data", lengths)
    (tmp_path / "data" / "identities.csv").write_text("clip,identity\na,anna\nb,anna\n")
    options = MotionTransformerOptions(
        pipeline=str(tmp_path / "pipe"), data=str(tmp_path / "data"), output=str(tmp_path / "run"), window=10, cpu=True
    )
    found = prepare_motion_data(options, 10)
    assert found.offsets.tolist() == [0, 14, 23, 35]
    assert found.motion.shape == (35, 10) and found.audio.shape == (35, 16) and found.silence.shape[1:] == (75, 16)
    assert found.person[0] == found.person[1] != found.person[2]
    assert found.speaks.tolist() == [True, True, False]
    with torch.no_grad():
        sound = components["audio_processor"].load(str(tmp_path / "data" / "clips" / "b.mp4"))
        values = torch.from_numpy(np.pad(sound, (0, 6000))[None, : 9 * 640])
        expected = components["audio_processor"].window_features(components["audio_encoder"], values, 0, 9)[0]
    # The features are kept as float16.
    np.testing.assert_allclose(found.audio[14:23], expected.numpy(), atol=5e-3)

    kept = prepare_motion_data(options, 10)
    np.testing.assert_array_equal(kept.motion, found.motion)
    np.save(tmp_path / "motion.npy", found.motion)
    with pytest.raises(ValueError, match="`motion_cache`.*clips.npz"):
        again = dataclasses.replace(options, output=str(tmp_path / "b"), motion_cache=str(tmp_path / "motion.npy"))
        prepare_motion_data(again, 10)
    measured = {"gaze": np.random.default_rng(0).random((35, 2)), "head_distance": np.ones(35)}
    np.savez(tmp_path / "data" / "clips.npz", names=np.array(list(lengths)), offsets=found.offsets, **measured)
    labelled = prepare_motion_data(again, 10)
    np.testing.assert_array_equal(labelled.motion, found.motion)
    np.testing.assert_array_equal(labelled.gaze, measured["gaze"])
    assert labelled.head_distance.shape == (35,) and labelled.expression is None
    assert not labelled.quiet[:14].all() and labelled.quiet[23:].all() and labelled.translates.all()

    # A second folder: other people, whose square follows the head; the caches hold both folders' frames.
    make_clips(tmp_path / "more", {"c": 11})
    (tmp_path / "more" / "identities.csv").write_text("clip,person\nc,anna\n")
    np.savez(tmp_path / "more" / "clips.npz", names=np.array(["c"]), offsets=np.array([0, 11]))
    np.save(tmp_path / "motion.npy", np.concatenate([found.motion, 2 * found.motion[:11]]))
    folders = [str(tmp_path / "data"), str(tmp_path / "more")]
    again = dataclasses.replace(again, data=folders, moving_crops=folders[1:], output=str(tmp_path / "c"))
    both = prepare_motion_data(again, 10)
    assert both.offsets.tolist() == [0, 14, 23, 35, 46] and both.person[3] not in both.person[:3]
    np.testing.assert_array_equal(both.motion[35:], 2 * found.motion[:11])
    np.testing.assert_allclose(both.audio[:35], found.audio, atol=5e-3)
    assert both.translates.tolist() == [True] * 3 + [False] and np.isnan(both.gaze[35:]).all()
    for change in ({"moving_crops": [str(tmp_path)]}, {"data": folders[:1], "moving_crops": []}):
        name = "moving_crops" if "data" not in change else "motion_cache"
        with pytest.raises(ValueError, match=f"`{name}`"):
            prepare_motion_data(dataclasses.replace(again, output=str(tmp_path / "d"), **change), 10)

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.metrics.test_capp import make_data
from vasa_hf.models.capp import Capp
from vasa_hf.training.recipes import capp as recipe
from vasa_hf.training.recipes.capp import (
    CappOptions,
    CappSamples,
    clip_loss,
    remove_lips,
    run,
    studies,
    study_table,
)

SMALL = {"max_steps": 4, "batch_size": 8, "warmup_steps": 1, "log_every": 1, "sample_every": 0, "cpu": True}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    tiny = {"hidden_size": 16, "num_heads": 2, "pose_layers": 2, "audio_layers": 1, "frame_dim": 3, "window": 12}
    monkeypatch.setitem(recipe.PRESETS, "small", tiny)
    make_data().save(tmp_path / "data.safetensors")
    return {"prepared": str(tmp_path / "data.safetensors"), "preset": "small", "output": str(tmp_path / "out"), **SMALL}


def test_samples_are_a_function_of_their_number():
    dataset = CappSamples(make_data(), 12)
    sample, again = dataset[5], CappSamples(make_data(), 12)[5]
    assert sample["pose"].shape == (12, 3) and sample["audio"].shape == (12, 4)
    assert all(torch.equal(sample[name], again[name]) for name in sample)
    assert not torch.equal(sample["pose"], dataset[6]["pose"])


def test_samples_keep_head_and_sound_in_step():
    """Heads follow the audio's first channel, whatever is changed (mirrored, slowed, blurred)."""
    dataset = CappSamples(make_data(), 24)
    for index in range(20):
        sample = dataset[index]
        pose, sound = sample["pose"][:, 0].numpy(), sample["audio"][:, 0].numpy()
        scores = [abs(np.corrcoef(pose[3:-3], sound[3 + lag : 21 + lag])[0, 1]) for lag in range(-3, 4)]
        assert abs(int(np.argmax(scores)) - 3) <= 1 and scores[3] > 0.8


def test_windows_come_from_single_talking_clips():
    data = make_data(clips=3)
    data.speaks[:] = [False, True, False]
    data.motion[:, 2] = np.repeat([1.0, 2.0, 3.0], 40)
    dataset = CappSamples(data, 30, augment=False)
    assert all((dataset[i]["pose"][:, 2] == 2).all() for i in range(20))
    with pytest.raises(ValueError, match="`data`"):
        CappSamples(data, 41)


def test_loss_is_clips():
    """Two pairs, by hand: softmax over sounds for each pose and over poses for each sound."""
    pose = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    audio = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    logits = 2 * pose @ audio.T  # [[1.2, 0], [1.6, 2]]
    rows = -(logits.softmax(1).diagonal().log()).mean()
    columns = -(logits.softmax(0).diagonal().log()).mean()
    loss, accuracy = clip_loss(pose, audio, torch.tensor(2.0))
    assert loss == pytest.approx(float((rows + columns) / 2)) and accuracy == 1.0


def test_a_batch_can_be_overfitted_and_loss_falls():
    torch.manual_seed(0)
    dataset = CappSamples(make_data(), 12)
    model = Capp(audio_dim=4, hidden_size=16, num_heads=2, pose_layers=2, audio_layers=1, frame_dim=3, window=12)
    samples = [dataset[i] for i in range(12)]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    optimizer, losses = torch.optim.Adam(model.parameters(), 5e-3), []
    for _ in range(80):
        loss, accuracy = clip_loss(*model(**batch, return_dict=False), model.log_scale.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0] and accuracy == 1.0


def test_run_trains_saves_and_studies(prepared, tmp_path):
    state = run(CappOptions(**prepared, save_dtype="float16", window_seconds=0.4))
    assert state.step == 4
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert len(log) == 4 and all(np.isfinite(line["capp_loss"]) for line in log)
    model = Capp.from_pretrained(tmp_path / "out" / "capp")
    assert model.config.window == 10 and model.config.dropout == 0.0
    results = run(CappOptions(**prepared, study=str(tmp_path / "out" / "capp")))
    assert set(results["shift"]) == {0, 1, 2, 3, 4} and set(results["scale"]) == {0.2, 0.5, 1.0, 1.5, 3.0}
    assert results["clips"] == {"all": 60, "shift study": 60}
    results = run(CappOptions(**prepared, study=str(tmp_path / "out" / "capp"), hold_out=[3, 7], lips=[6, 8]))
    assert results["clips"]["all"] == 2 and set(results["shift without lips"]) == {0, 1, 2, 3, 4}


def test_people_held_out_are_not_trained_on(prepared):
    with pytest.raises(ValueError, match="`data`.*none"):
        run(CappOptions(**prepared, hold_out=list(range(60))))


def test_table_has_the_papers_rows_beside_ours():
    torch.manual_seed(0)
    model = Capp(audio_dim=4, hidden_size=16, num_heads=2, pose_layers=1, audio_layers=1, frame_dim=3, window=12)
    table = study_table(studies(model.eval(), make_data(clips=6)))
    assert "| VASA-1 | 0.608 | 0.462 | 0.206 | 0.069 | 0.082 |" in table
    assert "| VASA-1 | 0.368 | 0.584 | 0.608 | 0.587 | 0.505 |" in table
    assert "±4" in table and "×0.2" in table


def test_what_lips_explain_is_taken_out_of_the_poses():
    data = make_data(clips=6)
    rng = np.random.default_rng(5)
    data.motion[:, 6:8] = rng.standard_normal((240, 2))
    alone = data.motion.copy()
    data.motion[:, 1] += 0.3 * data.motion[:, 6] - 0.1 * data.motion[:, 7]
    rest = remove_lips(data, (6, 8)).motion
    for clip in range(6):
        left, pure = rest[clip * 40 : clip * 40 + 40, 1], alone[clip * 40 : clip * 40 + 40, 1]
        assert np.corrcoef(left, pure)[0, 1] > 0.9 and left.mean() == pytest.approx(pure.mean(), abs=0.2)
    assert np.array_equal(rest[:, 3:], data.motion[:, 3:])
    assert abs(np.corrcoef(rest[:, 1], data.motion[:, 6])[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("name", "change"),
    [("preset", {"preset": "huge"}), ("save_dtype", {"save_dtype": "int8"}), ("data", {"prepared": None})],
)
def test_wrong_options_raise(prepared, name, change):
    with pytest.raises(ValueError, match=f"`{name}`"):
        run(CappOptions(**{**prepared, **change}))


def test_talkers_are_more_clips_of_other_people(prepared, tmp_path, monkeypatch):
    """Clips of the other file are drawn, too, and its people can be held out by their numbers after the first ones."""
    data = make_data(clips=2)
    data.motion[:, 2] = 7.0
    data.save(tmp_path / "talkers.safetensors")
    seen = []
    real = CappSamples.__getitem__
    monkeypatch.setattr(
        CappSamples, "__getitem__", lambda self, i: seen.append((real(self, i))["pose"][:, 2].mean()) or real(self, i)
    )
    run(CappOptions(**prepared, talkers=[str(tmp_path / "talkers.safetensors")]))
    assert 0 < np.mean([abs(abs(value) - 7.0) < 0.1 for value in seen]) < 1
    joined = make_data().join([data])
    assert joined.person[-1] > make_data().person.max() and joined.offsets[-1] == len(joined.motion)
    with pytest.raises(ValueError, match="`others`"):
        make_data().join([dataclasses.replace(data, audio=data.audio[:, :1], silence=data.silence[..., :1])])

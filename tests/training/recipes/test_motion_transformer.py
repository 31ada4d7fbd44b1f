import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.testing_utils.clips import make_clips
from tests.testing_utils.pipelines import make_vasa1_components
from vasa_hf.data.clips import MotionData, MotionPriors, smooth_in_time
from vasa_hf.data.motion_sequences import MotionSequences, ease_through, main_gaze
from vasa_hf.models.motion_transformer_vasa1 import CONDITIONS, EMOTIONS, Vasa1MotionTransformer
from vasa_hf.motion import MotionSpec
from vasa_hf.pipelines.vasa_talking_face import VasaTalkingFacePipeline
from vasa_hf.training.motion_samples import sample_motion
from vasa_hf.training.options import parse_options
from vasa_hf.training.recipes import motion_transformer as trainer
from vasa_hf.training.recipes.motion_transformer import MotionTransformerOptions, make_scheduler, motion_loss
from vasa_hf.training.saving import save_pipeline

SPEC = MotionSpec({"lips": 2, "lids": 1, "brows": 1, "gaze": 2})


@pytest.fixture
def data():
    """Clips of two people whose first lip channel follows the first audio channel."""
    rng = np.random.default_rng(0)
    lengths = [30, 12, 31, 90, 30]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    audio = smooth_in_time(rng.standard_normal((offsets[-1], 4)), 1.5).astype(np.float32) * 2
    motion = 0.1 * smooth_in_time(rng.standard_normal((offsets[-1], SPEC.dim)), 2.0).astype(np.float32)
    motion[:, 3:5] += 0.5
    motion[:, 5] = 0.25 * np.exp(0.1 * motion[:, 5])
    motion[:, 6] = audio[:, 0] + 1.0
    silence = np.zeros((3, 20, 4), np.float32) - 5.0
    person, speaks = np.array([0, 0, 0, 1, 1]), np.array([True, True, True, True, False])
    return MotionData(motion, audio, offsets, person, speaks, silence)


@pytest.fixture
def priors():
    flip = np.diag([-1.0, 1, -1, -1, 1, 1, 1, -1, 1, 1, -1, 1]).astype(np.float32)
    gaze = np.zeros((2, 6), np.float32)
    gaze[0, 4], gaze[1, 5] = -10.0, 20.0
    emotion = np.zeros((len(EMOTIONS), 6), np.float32)
    emotion[:, 3] = np.arange(1, 7)
    blink = np.array([0, 0, 3.0, 0, 0, 0], np.float32)
    return MotionPriors(flip, np.zeros(6, np.float32), blink, gaze, emotion)


def dataset_of(data, priors, **changes):
    return MotionSequences(data, SPEC, priors, 20, 5, len(EMOTIONS), **changes)


def test_sample_is_a_pure_function_of_its_number(data, priors):
    first, second = dataset_of(data, priors), dataset_of(data, priors)
    first[3], first[7]
    for name, value in first[5].items():
        assert torch.equal(value, second[5][name])
    assert not torch.equal(first[5]["motion"], first[6]["motion"])
    assert not torch.equal(first[5]["motion"], dataset_of(data, priors, seed=1)[5]["motion"])


def test_conditions_are_dropped_as_often_as_the_paper_says(data, priors):
    data.speaks[:] = True
    dataset = dataset_of(data, priors)
    samples = [dataset[i] for i in range(600)]
    # Three standard deviations of 600 draws.
    for name in ("audio", "gaze", "head_distance", "emotion"):
        assert abs(np.mean([bool(sample[f"drop_{name}"]) for sample in samples]) - 0.1) < 0.037
    assert abs(np.mean([bool(sample["drop_previous"]) for sample in samples]) - 0.5) < 0.062


def test_a_clip_without_its_own_sound_never_has_audio(data, priors):
    data.speaks[:] = False
    dataset = dataset_of(data, priors, silent=0.0)
    assert all(dataset[i]["drop_audio"] for i in range(50))


def test_silence_means_shut_lips(data, priors):
    dataset = dataset_of(data, priors, natural=0.0, silent=1.0)
    for i in range(20):
        sample = dataset[i]
        emotion = sample["emotion"] @ torch.from_numpy(priors.emotion)
        assert (sample["audio"][sample["frame_mask"]] == -5.0).all()
        assert (sample["motion"][:, 6:8] - emotion[:2]).abs().max() < 0.4


def test_pauses_between_clips_close_the_lips_and_speech_follows_the_audio(data, priors):
    dataset = dataset_of(data, priors, natural=0.0, silent=0.0)
    closed, spoken = [], []
    for i in range(60):
        sample = dataset[i]
        quiet = (sample["audio"] == -5.0).all(1) & sample["frame_mask"]
        inside = quiet.float().unfold(0, 9, 1).all(1)  # four frames of pause on both sides
        closed.append(sample["motion"][4:-4][inside, 6])
        speech = ~quiet & sample["frame_mask"]
        spoken.append(torch.stack([sample["motion"][speech, 6], sample["audio"][speech, 0]]))
    assert torch.cat(closed).numel() > 50 and torch.cat(closed).abs().max() < 0.4
    assert torch.corrcoef(torch.cat(spoken, 1))[0, 1] > 0.8


def test_controls_shift_the_motion_by_what_they_say(data, priors):
    data.motion[:, 6:] = 0.0
    dataset = dataset_of(data, MotionPriors(gaze=priors.gaze, emotion=priors.emotion))
    distances, gazes, found = [], [], []
    for i in range(80):
        sample = dataset[i]
        valid = sample["frame_mask"]
        found.append(sample["motion"][valid, 9].mean() - sample["emotion"] @ torch.arange(1.0, 7.0))
        distances.append([sample["motion"][valid, 5].mean(), -sample["head_distance"].log().item()])
        gazes.append([sample["motion"][valid, 10].mean() / -10.0, sample["gaze"][0]])
    assert torch.stack(found).abs().max() < 1e-4
    assert np.corrcoef(np.array(distances).T)[0, 1] > 0.95
    assert np.corrcoef(np.array(gazes).T)[0, 1] > 0.9


def test_previous_frames_lead_into_the_window(data, priors):
    dataset = dataset_of(data, priors, natural=0.0, drop_previous=0.0)
    inner, seam = [], []
    for i in range(40):
        sample = dataset[i]
        inner.append(sample["motion"][:, :6].diff(dim=0).abs().mean())
        seam.append((sample["motion"][0, :6] - sample["previous_motion"][-1, :6]).abs().mean())
    assert np.mean(seam) < 1.5 * np.mean(inner)


def test_main_gaze_is_the_most_frequent_one():
    rng = np.random.default_rng(0)
    gaze = np.concatenate([rng.normal([0.2, -0.1], 0.02, (70, 2)), rng.normal([-0.5, 0.3], 0.02, (30, 2))])
    np.testing.assert_allclose(main_gaze(gaze), [0.2, -0.1], atol=0.01)
    np.testing.assert_allclose(main_gaze(gaze[:1]), gaze[0])


def test_smoothing_keeps_straight_lines_and_takes_off_noise():
    line = np.linspace(0, 3, 30)[:, None]
    np.testing.assert_allclose(smooth_in_time(line, 2.0), line, atol=1e-6)
    noise = np.random.default_rng(0).standard_normal((500, 1))
    assert smooth_in_time(noise, 2.0).std() < 0.45
    assert smooth_in_time(line[:2], 2.0).shape == (2, 1)


def test_exact_clips_keep_their_quick_nods(data, priors):
    """Label noise is taken off clips, but not off those that have none."""
    exact = np.arange(len(data.person)) % 2 == 1
    dataset, smoothed = dataset_of(data, priors, exact=exact, smoothing=3.0), dataset_of(data, priors, smoothing=3.0)
    for clip, sharp in enumerate(exact):
        rows = slice(*data.offsets[clip : clip + 2])
        speed, calmer = (np.abs(np.diff(d.motion[rows, :3], axis=0)).mean() for d in (dataset, smoothed))
        assert speed > 1.1 * calmer if sharp else speed == calmer
    with pytest.raises(ValueError, match="`exact`"):
        dataset_of(data, priors, exact=exact[1:])


def test_exact_clips_get_the_share_that_is_asked_for(data, priors):
    exact = np.arange(len(data.person)) % 2 == 1
    for share in (0.0, 0.25, 1.0):
        dataset = dataset_of(data, priors, exact=exact, exact_share=share)
        assert dataset.share[exact].sum() == pytest.approx(share) and dataset.share.sum() == pytest.approx(1)
    for wrong in (1.5, -0.1):
        with pytest.raises(ValueError, match="`exact_share`"):
            dataset_of(data, priors, exact=exact, exact_share=wrong)
    with pytest.raises(ValueError, match="`exact_share`"):
        dataset_of(data, priors, exact_share=0.5)


def test_a_pause_starts_and_ends_where_its_neighbours_are():
    before, after = np.array([1.0, 2.0]), np.array([-1.0, 0.5])
    pause = ease_through(np.zeros(2), before, after, 20, np.array([4.0, 8.0]))
    assert np.abs(pause[0] - before).max() < 0.25 and np.abs(pause[-1] - after).max() < 0.25
    assert np.abs(pause[9]).max() < 1e-6
    assert np.abs(np.diff(pause[:, 0])).max() < 0.5


def test_loss_is_equation_1_over_real_frames():
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    loss, parts = motion_loss(prediction, target, mask, torch.ones(3))
    naive = [
        (prediction[b, t, c] - target[b, t, c]) ** 2 for b in range(2) for t in range(4) if mask[b, t] for c in range(3)
    ]
    torch.testing.assert_close(loss, sum(naive) / len(naive))
    assert torch.equal(loss, parts["position"])


def test_translation_is_learnt_only_where_it_is_the_heads_own(data, priors):
    """The loss's gradient with respect to the model's output is zero where the square follows the head."""
    dataset = dataset_of(data, priors, drop_audio_tail=0.0)
    batch = {name: torch.stack([dataset[i][name] for i in range(4)]) for name in dataset[0]}
    batch["translates"] = torch.tensor([True, False, True, False])
    batch["frame_mask"][:] = True
    model = Vasa1MotionTransformer(SPEC.dim, 4, 32, 2, 2, window=20, context=5, dynamics=SPEC.dynamics)
    loss_of, outputs = trainer.MotionLoss(MotionTransformerOptions(), model), []

    def predict(*arguments):
        outputs.append(torch.zeros(4, 20, SPEC.dim, requires_grad=True))
        return outputs[-1]

    loss_of.predict = predict
    loss_of({"motion_transformer": model}, batch, 0)[0].backward()
    moved = outputs[0].grad.abs().amax(1)  # [4, M]
    assert (moved[1::2, 3:5] == 0).all() and (moved[::2, 3:5] > 0).all()
    assert (moved[:, :3] > 0).all() and (moved[:, 5:] > 0).all()


def test_noise_on_previous_motion_is_an_option_that_the_paper_lacks():
    paper = parse_options(MotionTransformerOptions, ["--config", "paper_motion_transformer"])
    assert (paper.previous_noise, paper.smoothing, paper.silent, paper.shift_conditions) == (0.0, 0.0, 0.0, False)
    small = parse_options(MotionTransformerOptions, ["--config", "small_motion_transformer"])
    assert (small.previous_noise, small.smoothing, small.shift_conditions) == (0.03, 1.0, True)
    model = Vasa1MotionTransformer(SPEC.dim, 4, 32, 2, 2, window=20, context=5, dynamics=SPEC.dynamics)
    seen = []

    def forward(*arguments, previous_motion, **conditions):
        seen.append(previous_motion)
        return SimpleNamespace(sample=torch.zeros(2, 20, SPEC.dim))

    zeros = {name: torch.zeros(2, 20, 4) for name in ("audio", "previous_audio")}
    zeros |= {name: None for name in ("gaze", "head_distance", "emotion", "frame_mask")}
    zeros |= {f"drop_{name}": None for name in CONDITIONS}
    target, previous = torch.zeros(2, 20, SPEC.dim), torch.zeros(2, 500, SPEC.dim)
    for options in (paper, small):
        loss_of = trainer.MotionLoss(options, model)
        loss_of.predict(forward, zeros, target, target, torch.zeros(2, dtype=torch.long), previous)
    assert seen[0].abs().max() == 0 and 0.028 < seen[1].std() < 0.032


def test_one_batch_can_be_overfitted(data, priors):
    dataset = dataset_of(data, priors)
    batch = {name: torch.stack([dataset[i][name] for i in range(4)]) for name in dataset[0]}
    options = MotionTransformerOptions(audio_noise=0.0)
    torch.manual_seed(0)
    model = Vasa1MotionTransformer(SPEC.dim, 4, 32, 2, 2, window=20, context=5, dynamics=SPEC.dynamics)
    trainer.fit_statistics(model, dataset, 50)
    loss_of = trainer.MotionLoss(options, model)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 3e-3), []
    for step in range(250):
        loss, _ = loss_of({"motion_transformer": model}, batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-30:]) < 0.35 * np.mean(losses[:10])


def tiny_run(tmp_path, data, priors, monkeypatch, **changes):
    monkeypatch.setitem(trainer.PRESETS, "tiny", {"hidden_size": 32, "num_layers": 2, "num_heads": 2})
    data.save(tmp_path / "data.safetensors")
    priors.save(tmp_path / "priors.safetensors")
    values = {
        "prepared": str(tmp_path / "data.safetensors"),
        "priors": str(tmp_path / "priors.safetensors"),
        "preset": "tiny",
        "dynamics": [f"{name}={width}" for name, width in SPEC.dynamics.items()],
        "window": 20,
        "context": 5,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "ema_decay": 0.95,
        "warmup_steps": 10,
        "log_every": 10,
        "sample_every": 0,
        "cpu": True,
    }
    return trainer.run(MotionTransformerOptions(**{**values, **changes}))


def test_training_lowers_the_loss_and_the_saved_model_follows_the_audio(tmp_path, data, priors, monkeypatch):
    output = tmp_path / "run"
    tiny_run(
        tmp_path, data, priors, monkeypatch, output=str(output), max_steps=300, learning_rate=6e-3, save_dtype="float16"
    )
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["motion_transformer_loss"] < 0.6 * lines[0]["motion_transformer_loss"]
    assert (output / "samples-00000300.png").stat().st_size > 1000
    assert (output / "scheduler" / "scheduler_config.json").exists()

    model = Vasa1MotionTransformer.from_pretrained(output / "motion_transformer").eval()
    assert list(model.motion_spec.dynamics) == list(SPEC.dynamics) and model.config.dropout == 0.0
    audio = torch.from_numpy(data.audio[73:153].reshape(4, 20, 4))
    motion = sample_motion(model, make_scheduler(), {"audio": audio}, generator=torch.Generator().manual_seed(0))
    lips, sound = motion[..., 6].flatten(), audio[..., 0].flatten()
    assert torch.corrcoef(torch.stack([lips, sound]))[0, 1] > 0.5
    assert torch.corrcoef(torch.stack([lips, sound.roll(13)]))[0, 1] < 0.3


def test_resume_equals_uninterrupted_run(tmp_path, data, priors, monkeypatch):
    arguments = {"checkpoint_every": 4, "batch_size": 4, "max_steps": 8}
    whole = tiny_run(tmp_path, data, priors, monkeypatch, output=str(tmp_path / "whole"), **arguments)

    def stop(step, values):
        raise KeyboardInterrupt

    monkeypatch.setattr("vasa_hf.training.saving.print_log", stop)
    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path, data, priors, monkeypatch, output=str(tmp_path / "cut"), **{**arguments, "log_every": 6})
    monkeypatch.undo()
    resumed = tiny_run(tmp_path, data, priors, monkeypatch, output=str(tmp_path / "cut"), resume=True, **arguments)
    for name, value in whole.modules["motion_transformer"].state_dict().items():
        assert torch.equal(value, resumed.modules["motion_transformer"].state_dict()[name]), name


def test_training_from_a_pipeline_ends_in_a_pipeline_that_loads(tmp_path):
    """Nothing but videos and a pipeline goes in; the new pipeline keeps all other parts."""
    base = VasaTalkingFacePipeline(**make_vasa1_components())
    base.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("A card of other weights.")
    make_clips(tmp_path / "data", {"a": 14, "b": 9, "mute": 12})
    width = base.motion_transformer.motion_spec.dynamics_dim
    known = MotionPriors(gaze=np.eye(2, width, dtype=np.float32), emotion=np.ones((len(EMOTIONS), width), np.float32))
    known.save(tmp_path / "priors.safetensors")
    config = base.motion_transformer.config
    options = MotionTransformerOptions(
        pipeline=str(tmp_path / "base"),
        data=str(tmp_path / "data"),
        initial=str(tmp_path / "base" / "motion_transformer"),
        priors=str(tmp_path / "priors.safetensors"),
        output=str(tmp_path / "run"),
        dynamics=[f"{name}={width}" for name, width in base.motion_transformer.motion_spec.dynamics.items()],
        window=config.window,
        context=config.context,
        batch_size=4,
        max_steps=3,
        sample_every=0,
        cpu=True,
    )
    with pytest.raises(ValueError, match="`gaze`"):  # neither measured nor known
        trainer.run(dataclasses.replace(options, output=str(tmp_path / "blind"), priors=None))
    trainer.run(options)
    assert not (tmp_path / "run" / "pipeline" / "README.md").exists()
    kept = MotionPriors.load(tmp_path / "run" / "pipeline" / "motion_priors.safetensors")
    np.testing.assert_array_equal(kept.gaze, known.gaze)
    loaded = VasaTalkingFacePipeline.from_pretrained(tmp_path / "run" / "pipeline")
    before, after = (p.motion_transformer.state_dict() for p in (base, loaded))
    assert any(not torch.equal(before[name], after[name].float()) for name in before)
    for name, value in base.face_autoencoder.state_dict().items():
        assert torch.equal(value, loaded.face_autoencoder.state_dict()[name].float()), name
    with pytest.raises(ValueError, match="`pipeline`"):
        save_pipeline(tmp_path / "data", tmp_path / "new")
    with pytest.raises(ValueError, match="`components`.*no_such_part"):
        save_pipeline(tmp_path / "base", tmp_path / "new", no_such_part=trainer.make_scheduler())


def test_bad_options_and_data_are_named(tmp_path, data, priors, monkeypatch):
    with pytest.raises(ValueError, match="`dynamics`"):
        tiny_run(tmp_path, data, priors, monkeypatch, output=str(tmp_path / "a"), dynamics=["lips=2"])
    with pytest.raises(ValueError, match="`preset`"):
        tiny_run(tmp_path, data, priors, monkeypatch, output=str(tmp_path / "a"), preset="huge")
    with pytest.raises(ValueError, match="`data` and `pipeline`"):
        trainer.run(MotionTransformerOptions(output=str(tmp_path / "b")))
    with pytest.raises(ValueError, match="`audio`"):
        MotionData(data.motion, data.audio[1:], data.offsets, data.person, data.speaks, data.silence)
    with pytest.raises(ValueError, match="`silence`"):
        MotionData(data.motion, data.audio, data.offsets, data.person, data.speaks, data.silence[..., :2])

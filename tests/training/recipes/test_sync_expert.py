import json

import numpy as np
import pytest
import torch

from vasa_hf.data.clips import MotionData, smooth_in_time
from vasa_hf.media.video import VideoWriter
from vasa_hf.metrics.sync import expert_sync
from vasa_hf.models.sync_expert import SyncExpert
from vasa_hf.training.recipes.sync_expert import (
    SyncExpertOptions,
    SyncSamples,
    contrastive_loss,
    fit_statistics,
    prepare_sync_data,
    run,
    study,
)

BANDS, LIPS = 8, (6, 9)
TINY = {"motion_dim": 9, "lips": LIPS, "num_mels": BANDS, "hidden_size": 24, "embed_dim": 12, "window": 7}


def make_clips(clips, frames=40, seed=0):
    """Sounds whose loudness two lip channels follow; the third says nothing."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(clips):
        loudness = smooth_in_time(rng.standard_normal((frames, 1)), 1.0)[:, 0] * 1.7
        amplitude = 0.05 * np.exp(np.interp((np.arange(frames * 640) + 0.5) / 640 - 0.5, np.arange(frames), loudness))
        samples = (amplitude * rng.standard_normal(frames * 640)).astype(np.float32)
        motion = 0.1 * rng.standard_normal((frames, 9))
        motion[:, 6] += loudness
        motion[:, 7] -= 0.5 * loudness
        result.append((motion.astype(np.float32), samples))
    return result


def make_data(clips=40, seed=0):
    model, pairs = SyncExpert(**TINY), make_clips(clips, seed=seed)
    mels = [model.log_mel(torch.from_numpy(samples)[None])[0].numpy().reshape(40, -1) for _, samples in pairs]
    return MotionData(
        np.concatenate([motion for motion, _ in pairs]),
        np.concatenate(mels),
        np.arange(clips + 1) * 40,
        np.arange(clips),
        np.ones(clips, bool),
        np.zeros((1, 1, 4 * BANDS), np.float32),
    )


def fit(model, dataset, steps, batch_size=16, fixed=False):
    optimizer, losses = torch.optim.AdamW(model.parameters(), 5e-3), []
    for step in range(steps):
        samples = [dataset[(0 if fixed else step * batch_size) + i] for i in range(batch_size)]
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        embeds = model(batch["motion"], log_mel=batch["log_mel"], return_dict=False)
        loss, values = contrastive_loss(*embeds, model.log_scale.exp().clamp(max=100))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, values


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    data = make_data()
    model = SyncExpert(**TINY)
    fit_statistics(model, data)
    fit(model, SyncSamples(data, LIPS, 24), 60)
    return model.eval()


def test_training_teaches_sync_on_new_clips(trained):
    """The whole way in small: in step is better than shifted, frozen or another clip's sound."""
    clips = make_clips(16, seed=1)
    mean = lambda pairs: np.mean([expert_sync(trained, *pair, max_shift=10).aligned_confidence for pair in pairs])  # noqa: E731
    right = mean(clips)
    assert right > 0.2
    assert mean([(motion, np.roll(samples, 5 * 640)) for motion, samples in clips]) < 0.3 * right
    assert mean([(motion[:1].repeat(40, 0), samples) for motion, samples in clips]) < 0.3 * right
    sounds = [samples for _, samples in clips]
    assert mean([(clip[0], sound) for clip, sound in zip(clips, sounds[1:] + sounds[:1], strict=True)]) < 0.3 * right


def test_offset_is_found_with_its_sign(trained):
    """Sound moved three frames later is what SyncNet's code calls an offset of -3."""
    late = [
        expert_sync(trained, motion, np.roll(samples, 3 * 640)).offset_frames
        for motion, samples in make_clips(8, seed=2)
    ]
    early = [
        expert_sync(trained, motion, np.roll(samples, -3 * 640)).offset_frames
        for motion, samples in make_clips(8, seed=2)
    ]
    assert np.median(late) == -3 and np.median(early) == 3


def test_gradient_of_the_motion_points_to_better_sync(trained):
    """What a generator's sync loss needs: a step along the gradient raises the cosine."""
    (motion, samples), (other, _) = make_clips(2, seed=3)
    lips = torch.from_numpy(other)[None].requires_grad_()
    sound = trained.encode_audio(torch.from_numpy(samples)[None]).detach()
    before = (trained.encode_motion(lips) * sound).sum(-1).mean()
    before.backward()
    after = (trained.encode_motion(lips + 5.0 * lips.grad) * sound).sum(-1).mean()
    assert after > before + 0.01 and lips.grad[..., :6].abs().max() == 0


def test_a_batch_can_be_overfitted():
    torch.manual_seed(0)
    data = make_data(12)
    model = SyncExpert(**TINY)
    fit_statistics(model, data)
    losses, values = fit(model, SyncSamples(data, LIPS, 16, augment=False), 80, batch_size=6, fixed=True)
    assert losses[-1] < 0.35 * losses[0] and values["accuracy"] > 0.8


def test_loss_against_a_naive_loop():
    torch.manual_seed(0)
    motion, audio = (torch.nn.functional.normalize(torch.randn(2, 4, 3), dim=-1) for _ in range(2))
    total = {"clips": [], "shifts": []}
    for a, b in ((motion, audio), (audio, motion)):
        for clip in range(2):
            for time in range(4):
                scores = {(c, t): float(5 * a[clip, time] @ b[c, t]) for c in range(2) for t in range(4)}
                for kind in total:
                    rivals = [
                        value
                        for (c, t), value in scores.items()
                        if not (c == clip and abs(t - time) == 1) and (kind == "clips" or c == clip)
                    ]
                    total[kind].append(np.log(np.exp(rivals).sum()) - scores[clip, time])
    loss, values = contrastive_loss(motion, audio, torch.tensor(5.0), shift_weight=0.7)
    assert float(values["clips"]) == pytest.approx(np.mean(total["clips"]), abs=1e-5)
    assert float(values["shifts"]) == pytest.approx(np.mean(total["shifts"]), abs=1e-5)
    assert float(loss) == pytest.approx(np.mean(total["clips"]) + 0.7 * np.mean(total["shifts"]), abs=1e-5)


def test_samples_are_a_function_of_their_number_and_keep_sync():
    """Whatever is changed, lips and sound of a sample stay in step: the lag of their best correlation is zero."""
    data = make_data()
    dataset = SyncSamples(data, LIPS, 24)
    assert all(torch.equal(dataset[3][name], SyncSamples(data, LIPS, 24)[3][name]) for name in ("motion", "log_mel"))
    lags = []
    for index in range(40):
        sample = dataset[index]
        lips = sample["motion"][:, 6].numpy() - 2 * sample["motion"][:, 7].numpy()
        if lips.std() == 0:  # both channels lost
            continue
        sound = sample["log_mel"].mean(1).reshape(24, 4).mean(1).numpy()
        scores = [np.corrcoef(lips[4:-4], sound[4 + lag : 20 + lag])[0, 1] for lag in range(-4, 5)]
        lags.append(int(np.nanargmax(scores)) - 4)
    assert np.mean(np.array(lags) == 0) > 0.7 and abs(np.mean(lags)) < 0.5


def test_mirroring_uses_the_matrix():
    data = make_data(4)
    data.motion[:, 6] = 1.0
    flipped = SyncSamples(data, LIPS, 24, flip=-np.eye(9, dtype=np.float32))
    signs = {float(flipped[index]["motion"][:, 6].mean().sign()) for index in range(20)}
    assert signs == {-1.0, 1.0}


def test_clips_without_sound_are_not_used():
    data = make_data(3)
    data.speaks[:] = False
    with pytest.raises(ValueError, match="`data`"):
        SyncSamples(data, LIPS, 24)


@pytest.fixture
def folder(tmp_path):
    """Real files: four clips with sound, one without."""
    (tmp_path / "clips").mkdir()
    clips = make_clips(5, frames=30)
    for index, (_, samples) in enumerate(clips):
        audio = (samples, 16_000) if index < 4 else None
        with VideoWriter(tmp_path / "clips" / f"c{index}.mp4", 25, (32, 32), audio=audio) as writer:
            for _ in range(30):
                writer.write(np.zeros((32, 32, 3), np.uint8))
    np.savez(tmp_path / "clips.npz", names=np.array([f"c{i}" for i in range(5)]), offsets=np.arange(6) * 30)
    np.save(tmp_path / "motion.npy", np.concatenate([motion for motion, _ in clips]))
    return tmp_path


def options(folder, **changes):
    common = {"max_steps": 3, "batch_size": 4, "warmup_steps": 1, "log_every": 1, "sample_every": 0, "cpu": True}
    common |= {"data": str(folder), "motion_cache": str(folder / "motion.npy"), "output": str(folder / "out")}
    common |= {"lips": [6, 9], "hidden_size": 12, "embed_dim": 6, "window": 7}
    return SyncExpertOptions(**{**common, **changes})


def test_run_prepares_trains_saves_and_judges(folder):
    state = run(options(folder, save_dtype="float16"))
    assert state.step == 3
    log = [json.loads(line) for line in (folder / "out" / "log.jsonl").read_text().splitlines()]
    assert len(log) == 3 and all(np.isfinite(line["sync_expert_loss"]) for line in log)
    data = MotionData.load(folder / "out" / "sync_data.safetensors")
    assert data.speaks.tolist() == [True] * 4 + [False] and data.audio.shape == (150, 160)
    model = SyncExpert.from_pretrained(folder / "out" / "sync_expert", torch_dtype=torch.float32).eval()
    assert model.config.dropout == 0.0 and model.mel_std.std() > 0
    result = run(options(folder, study=str(folder / "out" / "sync_expert")))
    assert result["clips"] == 4 and result == study(model, data)


def test_several_folders_stand_one_after_another(folder):
    np.save(folder / "twice.npy", np.concatenate([np.load(folder / "motion.npy")] * 2))
    several = options(folder, data=[str(folder), str(folder)], motion_cache=str(folder / "twice.npy"))
    data = prepare_sync_data(several)
    assert len(data.speaks) == 10 and len(data.audio) == 300
    np.testing.assert_array_equal(data.audio[:150], data.audio[150:])


@pytest.mark.parametrize("name", ["data", "motion_cache", "save_dtype"])
def test_wrong_options_raise(folder, name):
    np.save(folder / "short.npy", np.zeros((10, 9)))
    wrong = {"data": "", "motion_cache": str(folder / "short.npy"), "save_dtype": "int8"}[name]
    with pytest.raises(ValueError, match=f"`{name}`"):
        run(options(folder, **{name: wrong}))

import numpy as np
import pytest
import torch

from vasa_hf.data.clips import MotionData, smooth_in_time
from vasa_hf.evaluation.scoring import Scorer, VideoSample
from vasa_hf.metrics.capp import (
    PAPER_SCALE,
    PAPER_SHIFT,
    capp_score,
    scale_poses,
    scale_study,
    shift_study,
    shuffled_capp,
)
from vasa_hf.metrics.faces import FaceTrack
from vasa_hf.models.capp import Capp
from vasa_hf.training.recipes.capp import CappLoss, CappOptions, CappSamples, fit_statistics, talking_clips


def make_data(clips=60, frames=40, seed=0):
    """Heads that follow the first two audio channels exactly."""
    rng = np.random.default_rng(seed)
    audio = np.concatenate([smooth_in_time(rng.standard_normal((frames, 4)), 1.0) for _ in range(clips)])
    motion = 0.002 * rng.standard_normal((len(audio), 8))
    motion[:, 0] += 0.05 * audio[:, 0]
    motion[:, 1] += 0.05 * audio[:, 1]
    offsets, people = np.arange(clips + 1) * frames, np.arange(clips)
    speaks, silence = np.ones(clips, bool), np.zeros((1, 1, 4), np.float32)
    return MotionData(motion.astype(np.float32), audio.astype(np.float32), offsets, people, speaks, silence)


@pytest.fixture(scope="module")
def trained():
    """A tiny network after a few seconds of training, and clips that it never saw."""
    torch.manual_seed(0)
    dataset = CappSamples(make_data(), window=16, augment=False)
    model = Capp(audio_dim=4, hidden_size=24, num_heads=2, pose_layers=2, audio_layers=2, frame_dim=3, window=16)
    fit_statistics(model, dataset, 60)
    loss = CappLoss(CappOptions(audio_noise=0.05), model)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(80):
        samples = [dataset[step * 32 + i] for i in range(32)]
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        value, _ = loss({"capp": model}, batch, step)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return model.eval(), talking_clips(make_data(clips=24, seed=1), 16)


def test_shift_lowers_the_score(trained):
    scores = shift_study(*trained, shifts=(0, 1, 2, 4))
    assert scores[0] > scores[1] > scores[2] and scores[0] > 0.4
    assert scores[4] < 0.5 * scores[0]


def test_all_heads_that_hold_still_score_alike():
    """Where they look must not matter, and what rounding leaves of a mean must not be taken for movement."""
    torch.manual_seed(0)
    model = Capp(audio_dim=4, hidden_size=24, num_heads=2, pose_layers=2, audio_layers=1, frame_dim=3, window=75).eval()
    model.pose_std.fill_(1e-6)  # as little movement as counts
    audio = torch.randn(75, 4)
    scores = {capp_score(model, torch.full((75, 3), angle), audio) for angle in (0.1, 0.1237, -0.7071)}
    assert len(scores) == 1


def test_scaling_lowers_the_score(trained):
    scores = scale_study(*trained)
    assert scores[1.0] > scores[0.2] and scores[1.0] > scores[3.0]


def test_strangers_frozen_and_reversed_heads_score_lower(trained):
    model, clips = trained
    right = np.mean([capp_score(model, *clip) for clip in clips])
    assert shuffled_capp(model, clips) < 0.3 * right
    for change in (lambda pose: pose[:1].repeat(len(pose), 0), lambda pose: pose[::-1].copy()):
        assert np.mean([capp_score(model, change(pose), audio) for pose, audio in clips]) < 0.5 * right


def test_evaluation_sets_a_strangers_audio_next_to_the_right_one(trained):
    model, clips = trained
    scorer, names = Scorer({"capp": model}), ("capp", "capp_shuffled")
    scores = []
    for (pose, audio), (_, wrong) in zip(clips, clips[1:] + clips[:1], strict=True):
        track = FaceTrack.of(torch.zeros(len(pose), 162, 2), torch.as_tensor(pose)[:, :7])
        video = VideoSample(track=track, audio_features=torch.as_tensor(audio), other_features=torch.as_tensor(wrong))
        scores.append(scorer.score(names, video))
    right, wrong = (np.mean([score[name] for score in scores]) for name in names)
    assert right == pytest.approx(np.mean([capp_score(model, pose[:, :7], audio) for pose, audio in clips]), abs=1e-5)
    assert wrong < 0.3 * right
    assert (
        "no other features"
        in scorer.score(names, VideoSample(track=track, audio_features=torch.zeros(40, 4)))[names[1]]
    )


def test_score_is_the_mean_cosine_of_the_windows(trained):
    model, clips = trained
    pose, audio = (torch.as_tensor(values) for values in clips[0])
    expected = []
    with torch.no_grad():
        for start in (0, 8, 16, 24):  # 40 frames, windows of 16, half a window apart
            a = model.encode_pose(pose[None, start : start + 16])[0]
            b = model.encode_audio(audio[None, start : start + 16])[0]
            expected.append(float(a @ b / (a.norm() * b.norm())))
    assert capp_score(model, pose, audio) == pytest.approx(np.mean(expected), abs=1e-5)
    assert capp_score(model, pose[None], audio[None]) == pytest.approx(np.mean(expected), abs=1e-5)
    assert capp_score(model, pose, audio, stride=100) == pytest.approx(expected[0], abs=1e-5)


def test_shift_study_is_the_mean_of_both_directions(trained):
    model, clips = trained
    pose, audio = clips[0]
    late = capp_score(model, pose[2:-2], audio[3:-1])
    early = capp_score(model, pose[2:-2], audio[1:-3])
    assert shift_study(model, clips[:1], (1, 2))[1] == pytest.approx((late + early) / 2, abs=1e-5)


def test_scaled_poses_have_scaled_differences():
    pose = np.random.randn(9, 3).astype(np.float32)
    scaled = scale_poses(pose, 0.5)
    np.testing.assert_allclose(np.diff(scaled, axis=0), 0.5 * np.diff(pose, axis=0), atol=1e-6)
    assert np.array_equal(scaled[0], pose[0])
    assert np.array_equal(scale_poses(pose, 0.0), np.repeat(pose[:1], 9, 0))


def test_papers_rows_are_the_papers():
    assert PAPER_SHIFT == {0: 0.608, 1: 0.462, 2: 0.206, 3: 0.069, 4: 0.082}
    assert PAPER_SCALE == {0.2: 0.368, 0.5: 0.584, 1.0: 0.608, 1.5: 0.587, 3.0: 0.505}


@pytest.mark.parametrize(
    ("name", "pose", "audio"),
    [
        ("pose", np.zeros((10, 3)), np.zeros((10, 4))),
        ("audio", np.zeros((20, 3)), np.zeros((10, 4))),
        ("pose", np.zeros((20, 2)), np.zeros((20, 4))),
        ("audio", np.zeros((20, 3)), np.zeros((20, 5))),
        ("audio", np.zeros((20, 3)), np.zeros((21, 4))),
        ("pose", np.zeros((2, 20, 3)), np.zeros((20, 4))),
    ],
)
def test_clips_that_cannot_be_judged_raise(trained, name, pose, audio):
    with pytest.raises(ValueError, match=f"`{name}`"):
        capp_score(trained[0], pose.astype(np.float32), audio.astype(np.float32))


def test_studies_leave_out_short_clips_and_raise_without_any(trained):
    model, clips = trained
    short = (clips[0][0][:12], clips[0][1][:12])
    assert scale_study(model, [clips[1], short], (1.0,)) == scale_study(model, [clips[1]], (1.0,))
    with pytest.raises(ValueError, match="`clips`"):
        shift_study(model, [short])
    with pytest.raises(ValueError, match="`clips`"):
        shuffled_capp(model, [clips[0], short])

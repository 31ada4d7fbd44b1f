import dataclasses

import numpy as np
import pytest
import torch

from vasa_hf.data.clips import MotionData, MotionPriors, join_labels, smooth_in_time
from vasa_hf.data.landmark_dynamics import FaceLabels
from vasa_hf.data.motion_sequences import KINDS, MotionSequences
from vasa_hf.motion import MotionSpec
from vasa_hf.training.recipes.motion_transformer import check_conditions

SPEC = MotionSpec({"lips": 2, "lids": 1, "brows": 1, "gaze": 2})
WINDOW, CONTEXT, EMOTIONS = 20, 5, 6
SHORT, LONG = [30, 31, 30, 32], [90, 120, 100]


def make_clips(lengths, people=1, **arrays):
    """Clips whose features count the frames, so that one knows where a window comes from; silence is -5."""
    rng = np.random.default_rng(0)
    offsets = np.cumsum([0, *lengths])
    audio = np.repeat(np.arange(1.0, offsets[-1] + 1)[:, None], 3, 1).astype(np.float32)
    motion = 0.1 * smooth_in_time(rng.standard_normal((offsets[-1], SPEC.dim)), 2.0).astype(np.float32)
    motion[:, 5] = 0.25 * np.exp(motion[:, 5])
    person = np.arange(len(lengths)) % people
    silence = np.full((2, 20, 3), -5.0, np.float32)
    return MotionData(motion, audio, offsets, person, np.ones(len(lengths), bool), silence, **arrays)


def make_priors(**changes):
    gaze = np.zeros((2, 6), np.float32)
    gaze[0, 4], gaze[1, 5] = -10.0, 20.0
    emotion = np.zeros((EMOTIONS, 6), np.float32)
    emotion[:, 3] = np.arange(1, 7)
    blink = np.array([0, 0, 3.0, 0, 0, 0], np.float32)
    return MotionPriors(
        **{"neutral": np.zeros(6, np.float32), "blink": blink, "gaze": gaze, "emotion": emotion} | changes
    )


def sequences(data, priors=None, **changes):
    return MotionSequences(data, SPEC, priors or make_priors(), WINDOW, CONTEXT, EMOTIONS, **changes)


def kinds_of(dataset, count):
    return np.bincount([int(dataset[i]["kind"]) for i in range(count)], minlength=len(KINDS)) / count


@pytest.mark.parametrize(
    "lengths, expected",
    [
        (SHORT, {"clip": 0.35, "joined": 0.49, "pause": 0.0, "silence": 0.16}),
        (LONG, {"clip": 0.84, "joined": 0.0, "pause": 0.0, "silence": 0.16}),
    ],
)
def test_kinds_have_the_shares_that_the_docstring_names(lengths, expected):
    found = kinds_of(sequences(make_clips(lengths)), 800)
    # Three standard deviations of 800 draws.
    assert np.abs(found - [expected[kind] for kind in KINDS]).max() < 0.054


def test_half_of_the_silence_is_cut_out_of_pauses_where_there_are_any():
    quiet = np.zeros(sum(LONG), bool)
    quiet[20:50] = quiet[130:140] = True  # the second is too short
    dataset = sequences(make_clips(LONG, quiet=quiet))
    assert dataset.pauses.tolist() == [[20, 50, 0]]
    found = dict(zip(KINDS, kinds_of(dataset, 800), strict=True))
    assert abs(found["pause"] - 0.08) < 0.03 and abs(found["silence"] - 0.08) < 0.03
    pauses = [sample for sample in map(dataset.__getitem__, range(200)) if KINDS[sample["kind"]] == "pause"]
    for sample in pauses:
        heard = sample["audio"][sample["frame_mask"], 0]
        assert 20 < heard.min() and heard.max() <= 50 and not torch.isnan(sample["motion"]).any()
    # Without a neutral face nothing can be composed: real pauses are all the silence there is.
    alone = dict(zip(KINDS, kinds_of(sequences(make_clips(LONG, quiet=quiet), MotionPriors()), 400), strict=True))
    assert abs(alone["pause"] - 0.16) < 0.055 and alone["silence"] == 0


@pytest.mark.parametrize("lengths", [SHORT, LONG])
def test_nothing_is_added_to_real_motion_unless_asked_for(lengths):
    """Wherever the sound is a clip's, so is the motion, frame by frame; composed pauses do move."""
    data = make_clips(lengths)
    data.motion[:, 3:5] += 0.5
    dataset = sequences(data, shifted=False, smoothing=0.0, drop_previous=0.0)
    moved, still = [], 0
    for index in range(120):
        sample = dataset[index]
        motion = torch.cat([sample["previous_motion"], sample["motion"]]).numpy()
        row = torch.cat([sample["previous_audio"], sample["audio"]])[:, 0].numpy().astype(int) - 1
        real = (row >= 0) & np.r_[np.ones(CONTEXT, bool), sample["frame_mask"].numpy()]
        # Joined clips have the main gaze of the first.
        np.testing.assert_allclose(motion[real, :10], dataset.motion[row[real], :10], atol=1e-6)
        still += real.sum()
        if KINDS[sample["kind"]] == "silence":
            moved.append(np.ptp(motion[:, :3], axis=0))
    assert still > 1000 and len(moved) > 5
    # A composed silence has head motion of its own: about a degree in 25 frames.
    assert 0.003 < np.mean(moved) < 0.1
    if lengths == SHORT:
        asked = sequences(data, shifted=False, smoothing=0.0, drop_previous=0.0, add_idle_motion=True)
        clips = [i for i in range(60) if KINDS[asked[i]["kind"]] == "clip"]
        assert min(float((asked[i]["motion"][:, :3] - dataset[i]["motion"][:, :3]).abs().max()) for i in clips) > 1e-3


def test_silence_blinks_and_looks_about():
    dataset = sequences(make_clips(LONG), silent=1.0, natural=0.0, drop_audio_tail=0.0, shifted=False, idle_blinks=0.0)
    lids, gaze = [], []
    for index in range(400):
        motion = dataset[index]["motion"].numpy()
        lids.append(motion[:, 8] / 3.0)
        gaze.append(motion[:, 10].std() / 10.0)
    shut = np.array(lids) > 0.45
    blinks = (shut[:, 1:] & ~shut[:, :-1]).sum() / shut[:, 1:].size * 60 * 25
    # 10 to 25 a minute are drawn; those cut off by the window's ends or near another are left out.
    assert 5 < blinks < 25
    assert 0.002 < np.mean(gaze) < 0.05  # radians


def test_real_motion_gets_blinks_only_if_asked_and_nothing_else():
    data = make_clips(LONG)
    plain, asked = (
        sequences(data, silent=0.0, natural=1.0, drop_audio_tail=0.0, shifted=False, add_blinks=add) for add in (0, 1)
    )
    change = torch.stack([asked[i]["motion"] - plain[i]["motion"] for i in range(200)])
    lids = 8
    shut = change[..., lids].abs() > 1.0
    assert 3 < (shut[:, 1:] & ~shut[:, :-1]).sum() / shut.numel() * 60 * 25 < 25  # a minute
    change[..., lids] = 0
    assert change.abs().max() == 0


def test_conditions_are_measured_as_the_paper_says():
    """g: fullest bin of the clip; d and e: means over the window, e about the person's own mean."""
    frames, rng = sum(LONG), np.random.default_rng(1)
    gaze = np.concatenate([np.full((90, 2), [0.3, -0.1]), np.full((120, 2), [-0.2, 0.1]), np.full((100, 2), np.nan)])
    gaze[:20] = [-0.5, 0.5]  # the smaller cluster of the first clip
    distance = rng.uniform(0.8, 1.2, frames).astype(np.float32)
    expression = rng.uniform(0, 1, (frames, EMOTIONS)).astype(np.float32)
    data = make_clips(LONG, gaze=gaze.astype(np.float16), head_distance=distance, expression=expression)
    dataset = sequences(data, MotionPriors(), shifted=False)
    seen = set()
    for index in range(60):
        sample = dataset[index]
        rows = sample["audio"][sample["frame_mask"], 0].numpy().astype(int) - 1
        clip = int(np.searchsorted(data.offsets, rows[0], "right")) - 1
        seen.add(clip)
        assert float(sample["head_distance"]) == pytest.approx(distance[rows].mean(), abs=1e-4)
        expected = expression[rows].mean(0) - expression.mean(0)
        np.testing.assert_allclose(sample["emotion"].numpy(), expected, atol=1e-4)
        if clip == 2:
            assert sample["drop_gaze"]
        else:
            np.testing.assert_allclose(sample["gaze"], [[0.3, -0.1], [-0.2, 0.1]][clip], atol=1e-3)
    assert seen == {0, 1, 2}
    check_conditions(dataset, 60)


def test_mirrored_motion_has_mirrored_gaze():
    gaze = np.full((sum(LONG), 2), [0.3, -0.1], np.float32)
    dataset = sequences(make_clips(LONG, gaze=gaze), MotionPriors(flip=-np.eye(SPEC.dim, dtype=np.float32)))
    signs = set()
    for index in range(30):
        sample = dataset[index]
        row = int(sample["audio"][0, 0]) - 1
        mirrored = bool(torch.sign(sample["motion"][0, 6]) != np.sign(dataset.motion[row, 6]))
        signs.add(mirrored)
        np.testing.assert_allclose(sample["gaze"], [-0.3 if mirrored else 0.3, -0.1], atol=1e-3)
    assert signs == {True, False}


def test_a_condition_that_never_varies_is_named():
    frames = sum(LONG)
    varied = {
        "gaze": np.repeat(np.array([[0.1, 0], [0.3, 0], [-0.2, 0]], np.float32), LONG, 0),
        "head_distance": np.linspace(0.8, 1.2, frames).astype(np.float32),
        "expression": np.random.default_rng(0).random((frames, EMOTIONS)).astype(np.float32),
    }
    check_conditions(sequences(make_clips(LONG, **varied), MotionPriors(), shifted=False), 60)
    for array, name in (("gaze", "gaze"), ("head_distance", "head_distance"), ("expression", "emotion")):
        constant = {**varied, array: np.full_like(varied[array], 0.5)}
        for arrays in (constant, {**varied, array: None}):
            with pytest.raises(ValueError, match=f"`{name}`"):
                check_conditions(sequences(make_clips(LONG, **arrays), MotionPriors(), shifted=False), 60)
    # Known directions are a second source, for gaze and emotion only if there are any.
    check_conditions(sequences(make_clips(LONG)), 60)
    with pytest.raises(ValueError, match="`emotion`"):
        check_conditions(sequences(make_clips(LONG), make_priors(emotion=None)), 60)


def test_sets_that_know_more_and_less_can_be_joined_and_kept(tmp_path):
    known = make_clips(SHORT, 2, gaze=np.ones((sum(SHORT), 2), np.float32), translates=np.zeros(len(SHORT), bool))
    known.save(tmp_path / "known.safetensors")
    known = MotionData.load(tmp_path / "known.safetensors")
    assert known.expression is None and known.gaze.shape == (sum(SHORT), 2)
    others = make_clips(LONG)
    others.audio[:] += 1000
    both = known.join([others])
    assert both.person.tolist() == [0, 1, 0, 1, 2, 2, 2]
    assert np.isfinite(both.gaze[: sum(SHORT)]).all() and np.isnan(both.gaze[sum(SHORT) :]).all()
    assert both.translates.tolist() == [False] * len(SHORT) + [True] * len(LONG)
    assert both.quiet is None and both.expression is None
    dataset = sequences(both, shifted=False)
    for index in range(40):
        sample = dataset[index]
        if KINDS[sample["kind"]] == "clip":
            assert bool(sample["translates"]) == (float(sample["audio"][0, 0]) > 1000)
    with pytest.raises(ValueError, match="`gaze`"):
        dataclasses.replace(known, gaze=known.gaze[1:])
    with pytest.raises(ValueError, match="`natural` and `silent`"):
        sequences(known, natural=0.9, silent=0.2)


def test_labels_of_several_folders_stand_one_after_another():
    def labels(frames, shift=0.0):
        rng = np.random.default_rng(frames)
        tensor = lambda *shape: torch.from_numpy(rng.random(shape).astype(np.float32))  # noqa: E731
        canonical = torch.arange(30.0).view(10, 3) + shift
        shapes = {"landmarks": (4, 2), "pose": (7,), "iris_offset": (2, 2), "eye_open": (2,), "mouth": (2,)}
        arrays = {name: tensor(frames, *shape) for name, shape in shapes.items()}
        offsets, names = np.array([0, 2, frames]), [f"{frames}a", f"{frames}b"]
        return FaceLabels(**arrays, offsets=offsets, names=names, ids=np.arange(4), canonical=canonical)

    first, second = labels(5), labels(7)
    both = join_labels([first, second])
    assert both.offsets.tolist() == [0, 2, 5, 7, 12] and both.names == ["5a", "5b", "7a", "7b"]
    assert torch.equal(both.pose[5:], second.pose) and torch.equal(both.mouth[:5], first.mouth)
    with pytest.raises(ValueError, match="`parts`"):
        join_labels([first, labels(7, shift=1.0)])

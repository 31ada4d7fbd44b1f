import pytest
import torch

from vasa_hf.motion.guidance import guided_prediction


def predict(sample, audio, gaze, previous_motion, previous_audio, timestep, drop):
    """A small nonlinear stand-in for H with null conditions of its own."""
    batch = sample.shape[0]
    keep = {name: ~drop.get(name, torch.zeros(batch, dtype=torch.bool)) for name in ("audio", "gaze", "previous")}
    audio = torch.where(keep["audio"][:, None, None], audio, torch.full_like(audio, 0.3))
    gaze = torch.where(keep["gaze"][:, None], gaze, torch.full_like(gaze, -0.2)) if gaze is not None else 0.1
    past = torch.where(keep["previous"], (previous_motion + previous_audio).mean((1, 2)), 0.0)
    gaze = gaze.sum(1)[:, None, None] if torch.is_tensor(gaze) else gaze
    return torch.tanh(sample + audio) * gaze + past[:, None, None] + timestep


def example():
    torch.manual_seed(0)
    conditions = {
        "audio": torch.randn(2, 4, 3),
        "gaze": torch.randn(2, 2),
        "previous_motion": torch.randn(2, 2, 3),
        "previous_audio": torch.randn(2, 2, 3),
    }
    return torch.randn(2, 4, 3), conditions


def naive(sample, conditions, scales, timestep):
    """Eq. 2 term by term, one sample and one pass at a time."""
    rows = []
    for i in range(len(sample)):
        one = {name: value[i : i + 1] for name, value in conditions.items()}
        full = predict(sample[i : i + 1], **one, timestep=timestep, drop={})
        result = (1 + sum(scales.values())) * full
        for name, scale in scales.items():
            result = result - scale * predict(
                sample[i : i + 1], **one, timestep=timestep, drop={name: torch.tensor([True])}
            )
        rows.append(result)
    return torch.cat(rows)


@pytest.mark.parametrize("scales", [{}, {"audio": 0.5}, {"audio": 0.5, "gaze": 1.0, "previous": 0.25}])
def test_equation_2_against_a_naive_loop(scales):
    sample, conditions = example()
    result = guided_prediction(predict, sample, conditions, scales, timestep=torch.tensor(0.7))
    torch.testing.assert_close(result, naive(sample, conditions, scales, torch.tensor(0.7)))


def test_zero_scale_and_absent_condition_cost_no_pass():
    sample, conditions = example()
    batches = []

    def counting(x, **kwargs):
        batches.append(len(x))
        return predict(x, **kwargs)

    guided_prediction(counting, sample, conditions, {"audio": 0.0, "gaze": 0}, timestep=0.0)
    guided_prediction(counting, sample, {**conditions, "gaze": None}, {"gaze": 1.0}, timestep=0.0)
    guided_prediction(counting, sample, conditions, {"gaze": 1.0, "previous": 1.0}, timestep=0.0)
    assert batches == [2, 2, 6]


@pytest.mark.parametrize("scales", [{"sound": 1.0}, {"audio": -0.1}, {"audio": float("nan")}, {"gaze": float("inf")}])
def test_bad_scales_are_named(scales):
    sample, conditions = example()
    with pytest.raises(ValueError, match="`guidance_scale`"):
        guided_prediction(predict, sample, conditions, scales, timestep=0.0)


def test_two_conditions_may_be_dropped_together():
    """`audio+emotion`: one pass without both, as MoDA's code has it."""
    seen = {}

    def predict(sample, drop, audio, emotion):
        seen.update(drop)
        kept = [
            torch.where(drop[name][:, None], 0.0, value) for name, value in (("audio", audio), ("emotion", emotion))
        ]
        return sample + kept[0] + 10 * kept[1]

    one = torch.ones(2, 1)
    result = guided_prediction(predict, one, {"audio": one, "emotion": one}, {"audio+emotion": 0.5})
    torch.testing.assert_close(result, 1.5 * (one + 11) - 0.5 * one)
    assert seen["audio"].tolist() == seen["emotion"].tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match="`guidance_scale` knows the names"):
        guided_prediction(predict, one, {"audio": one}, {"audio+light": 1.0})

import numpy as np
import pytest

from vasa_hf.data.clips import smooth_in_time
from vasa_hf.training.smoothing_cost import SIGMAS, measure_motion, measure_noise, pose_variation_of, study


@pytest.fixture
def clips():
    """Slow nods, and the same with white noise of 0.01."""
    rng, time = np.random.default_rng(0), np.arange(200)
    clean = [0.3 * np.sin(time[:, None] / 15 + rng.random((1, 3)) * 6) for _ in range(10)]
    return clean, [clip + 0.01 * rng.standard_normal(clip.shape) for clip in clean]


def test_white_noise_is_told_from_motion(clips):
    clean, noisy = clips
    noise, correlation = measure_noise(noisy)
    np.testing.assert_allclose(noise, 0.01, rtol=0.1)
    assert correlation == pytest.approx(-0.75, abs=0.03)
    noise, correlation = measure_noise(clean)
    assert noise.max() < 1e-3 and correlation > 0.9


def test_smoothing_takes_the_differences_before_the_amplitude(clips):
    clean, noisy = clips
    before, after = measure_motion(noisy), measure_motion([smooth_in_time(clip, 2.0) for clip in noisy])
    assert after[0] > 0.97 * before[0] and after[1] < 0.95 * before[1]
    assert after[0] == pytest.approx(np.sqrt(np.mean([clip.var(0).mean() for clip in clean])), rel=0.02)


def test_pose_variation_is_the_mean_turn_between_frames():
    yaw = np.zeros((11, 3), np.float32)
    yaw[:, 0] = np.radians(2.0) * np.arange(11)
    assert pose_variation_of([yaw, yaw[:3] * 0]) == pytest.approx(2.0 * 10 / 12, abs=1e-3)


def test_table_has_all_parts_and_deviations():
    rng = np.random.default_rng(0)
    motion = rng.standard_normal((90, 34)).astype(np.float32) * 0.1
    motion[:, 5] = np.exp(motion[:, 5])
    lines = list(study(motion, np.array([0, 30, 90])))
    assert len(lines) == 2 + 7 and {line.count("|") for line in lines} == {5 + len(SIGMAS)}
    # Nothing is lost without smoothing; of white noise more than half is by two frames.
    assert "1.00 / 1.00" in lines[2] and float(lines[5].split("|")[-2].split("/")[1]) < 0.4

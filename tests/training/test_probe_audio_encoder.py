import numpy as np

from vasa_hf.training.probe_audio_encoder import correlate, fit_ridge, stack_frames


def make_clips(count, seed, delay=0, noise=0.0):
    """Clips whose gap is the first feature of `delay` frames before, and whose width is minus the second's."""
    rng = np.random.default_rng(seed)
    clips = []
    for _ in range(count):
        features = rng.standard_normal((30, 4)).astype(np.float32)
        mouth = np.roll(features[:, :2], delay, 0) * [1.0, -0.01] + rng.standard_normal(2)
        clips.append((features + rng.standard_normal(4), mouth + noise * rng.standard_normal((30, 2)) * [1.0, 0.01]))
    return clips


def test_neighbouring_frames_are_stacked_in_order_without_the_mean():
    features = np.random.default_rng(0).standard_normal((10, 2))
    stacked = stack_frames(features, 2)
    expected = np.array([[features[min(max(t + i, 0), 9)] for i in range(-2, 3)] for t in range(10)]).reshape(10, 10)
    np.testing.assert_allclose(stacked, expected - expected.mean(0), atol=1e-12)


def test_a_mouth_within_three_frames_is_found_and_no_other():
    for delay, low, high in ((0, 0.95, 1), (3, 0.85, 1), (-3, 0.85, 1), (6, -0.15, 0.3)):
        weights = fit_ridge(make_clips(60, 0, delay), 1e-3)
        scores = correlate(weights, make_clips(20, 1, delay))
        assert (scores > low).all() and (scores <= high).all(), (delay, scores)


def test_noise_lowers_the_score_as_it_should():
    weights = fit_ridge(make_clips(60, 0, noise=1.0), 0.1)
    scores = correlate(weights, make_clips(60, 1, noise=1.0))
    np.testing.assert_allclose(scores, np.sqrt(0.5), atol=0.06)  # half of the variance can be known

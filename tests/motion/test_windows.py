import pytest
import torch

from vasa_hf.motion.windows import MotionWindows, OverlappedWindows, hold_after, join_windows, smooth, smooth_seam


def sampler_of(generator, calls=None):
    """Motion that depends on audio, context and noise, as a real sampler's does."""

    def sample_window(audio, frame_mask, previous_motion, previous_audio):
        if calls is not None:
            calls.append((audio, frame_mask, previous_motion, previous_audio))
        start = 0.0 if previous_motion is None else previous_motion[:, -1:] + previous_audio.mean()
        return start + audio.cumsum(1)[..., :2] + 0.1 * torch.randn(*audio.shape[:2], 2, generator=generator)

    return sample_window


def offline(features, **kwargs):
    windows, sampler = MotionWindows(**kwargs), sampler_of(torch.Generator().manual_seed(0))
    parts = [windows.generate(features[:, part], sampler) for part in windows.take(features.shape[1], finished=True)]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 24, 37])
@pytest.mark.parametrize("first_window", [None, 4])
@pytest.mark.parametrize("step", [1, 5, 100])
def test_stream_equals_offline(frames, first_window, step):
    features = torch.randn(2, frames, 3, generator=torch.Generator().manual_seed(1))
    arguments = {"window": 8, "context": 3, "first_window": first_window}
    windows, sampler, parts = MotionWindows(**arguments), sampler_of(torch.Generator().manual_seed(0)), []
    for available in range(0, frames, step):
        parts += [windows.generate(features[:, part], sampler) for part in windows.take(available, finished=False)]
    parts += [windows.generate(features[:, part], sampler) for part in windows.take(frames, finished=True)]
    streamed = torch.cat(parts, 1)
    assert streamed.shape == (2, frames, 2)
    assert torch.equal(streamed, offline(features, **arguments))


def test_context_is_the_end_of_the_window_before():
    features, calls = torch.randn(1, 21, 3), []
    windows, sampler = MotionWindows(8, 3), sampler_of(torch.Generator().manual_seed(0), calls)
    motion = [windows.generate(features[:, part], sampler) for part in windows.take(21, finished=True)]
    assert [part.shape[1] for part in motion] == [8, 8, 5]
    assert calls[0][2] is None and calls[0][3] is None
    for i in (1, 2):
        assert torch.equal(calls[i][2], motion[i - 1][:, -3:])
        assert torch.equal(calls[i][3], features[:, 8 * i - 3 : 8 * i])
    padded, mask = calls[2][:2]
    assert padded.shape == (1, 8, 3) and mask.tolist() == [[True] * 5 + [False] * 3]


def test_first_window_may_be_short():
    windows = MotionWindows(8, 3, first_window=4)
    assert list(windows.take(4, finished=False)) == [slice(0, 4)]
    assert list(windows.take(11, finished=False)) == []
    assert list(windows.take(15, finished=True)) == [slice(4, 12), slice(12, 15)]


def test_seam_shrinks_a_step_and_leaves_the_rest():
    previous = torch.zeros(1, 3, 2)
    motion = torch.ones(1, 10, 2)
    smooth = smooth_seam(previous, motion, 4)
    assert smooth[0, 0, 0] == pytest.approx(0.5)
    assert (smooth.diff(dim=1) >= 0).all()
    assert torch.equal(smooth[:, 4:], motion[:, 4:])
    assert torch.equal(smooth_seam(previous, motion, 0), motion)
    going_on = torch.arange(3.0)[None, :, None], torch.arange(3.0, 8.0)[None, :, None]
    assert (smooth_seam(*going_on, 4) - going_on[1]).abs().max() <= 0.25  # steady motion is hardly touched


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((8, 9), "context"), ((8, 2, 9), "first_window"), ((8, 2, 0), "first_window"), ((8, 2, 8, -1), "seam_frames")],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        MotionWindows(*arguments)


def test_too_long_audio_is_refused():
    with pytest.raises(ValueError, match="`audio`"):
        MotionWindows(8, 2).generate(torch.zeros(1, 9, 3), sampler_of(None))


@pytest.mark.parametrize("first", [4, 10])
def test_count_is_what_take_yields(first):
    for frames in range(1, 45):
        windows = MotionWindows(10, 3, first)
        assert windows.count(frames) == len(list(windows.take(frames, finished=True)))


# --- windows that overlap ---------------------------------------------------------------------------------------------


def overlapped(features, step=None, **kwargs):
    """The joined motion; `step` frames of features arrive at a time."""
    windows, frames = OverlappedWindows(**kwargs), features.shape[1]
    rng = torch.Generator().manual_seed(0)

    def sample(audio, frame_mask, previous_motion, previous_audio):
        assert previous_audio is None and frame_mask.sum(1).max() <= frames
        start = 0.0 if previous_motion is None else previous_motion[:, None]
        return start + audio.cumsum(1)[..., :2] + 0.1 * torch.randn(*audio.shape[:2], 2, generator=rng)

    def made():
        for known in range(step or frames, frames + (step or frames), step or frames):
            for part in windows.take(min(known, frames), finished=known >= frames):
                yield windows.generate(features[:, part], sample)

    return join_windows(made(), windows.overlap, windows.smoothed)


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 8, 9, 13, 14, 24, 37])
@pytest.mark.parametrize("first_window", [None, 4])
@pytest.mark.parametrize("smoothed", [None, slice(0, 1)])
def test_overlapped_stream_equals_offline(frames, first_window, smoothed):
    features = torch.randn(2, frames, 3, generator=torch.Generator().manual_seed(1))
    options = {"window": 8, "overlap": 3, "first_window": first_window, "smoothed": smoothed}
    whole = torch.cat(list(overlapped(features, **options)), 1)
    assert whole.shape == (2, frames, 2)
    for step in (1, 5):
        assert torch.equal(torch.cat(list(overlapped(features, step, **options)), 1), whole)


def test_overlapped_windows_are_counted_and_fade_into_each_other():
    windows = OverlappedWindows(80, 16)
    assert [windows.count(n) for n in (1, 80, 81, 144, 145, 190)] == [1, 1, 2, 2, 3, 3]
    assert [len(list(OverlappedWindows(80, 16).take(n, True))) for n in (1, 80, 81, 144, 145, 190)] == [
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    joined = torch.cat(list(join_windows([torch.zeros(1, 8, 1), torch.ones(1, 6, 1)], 4)), 1)[0, :, 0]
    assert joined.tolist() == [0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    with pytest.raises(ValueError, match=r"`first_window` must lie in \[17, 80\] for `overlap` 16, got 5"):
        OverlappedWindows(80, 16, first_window=5)


def test_smooth_averages_neighbours_in_its_channels_alone():
    motion = torch.randn(2, 6, 3)
    result = smooth(motion, slice(1, 3))
    assert torch.equal(result[..., :1], motion[..., :1])
    for frame in range(6):
        near = motion[:, max(frame - 1, 0) : frame + 2, 1:]
        torch.testing.assert_close(result[:, frame, 1:], near.mean(1))


def test_motions_of_a_batch_hold_still_after_their_own_ends():
    motion = torch.arange(12.0).reshape(2, 6, 1)
    held = hold_after(motion, torch.tensor([3, 6]))
    assert held[0, :, 0].tolist() == [0, 1, 2, 2, 2, 2] and torch.equal(held[1], motion[1])

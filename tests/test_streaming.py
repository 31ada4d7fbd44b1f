from fractions import Fraction

import pytest
import torch

from vasa_hf.motion import resample_motion
from vasa_hf.streaming import AudioBuffer, resampled


def test_buffer_cuts_like_the_whole_with_zeros_around_it():
    samples = torch.arange(1.0, 101.0)[None]
    whole = torch.cat([torch.zeros(1, 30), samples, torch.zeros(1, 30)], dim=1)
    buffer = AudioBuffer()
    for piece in samples.split(7, dim=1):
        buffer.append(piece)
    for start, stop in ((0, 100), (-10, 20), (95, 120), (-30, -5), (40, 41), (110, 130)):
        assert torch.equal(buffer.cut(start, stop), whole[:, start + 30 : stop + 30])
    buffer.forget(60)
    assert buffer.samples.shape[1] == 40 and buffer.stop == 100
    assert torch.equal(buffer.cut(60, 105), whole[:, 90:135])
    with pytest.raises(ValueError, match="`start` must be at least 60 .*got 59"):
        buffer.cut(59, 70)
    buffer.forget(500)
    assert buffer.stop == 100


@pytest.mark.parametrize("fps", [25, 24, 30, 60, 10, 1, Fraction(30000, 1001), Fraction(24000, 1001), Fraction(100, 7)])
@pytest.mark.parametrize("pieces", [(1,) * 23, (10, 10, 3), (23,), (2, 9, 1, 11)])
def test_resampling_in_pieces_equals_the_whole(fps, pieces):
    motion = torch.randn(2, 23, 3)
    count = max(1, round(23 * fps / 25))
    expected = resample_motion(motion, Fraction(25), Fraction(fps), count)
    parts = list(resampled(motion.split(pieces, dim=1), 25, fps, lambda: count))
    assert torch.equal(torch.cat(parts, dim=1), expected)


def test_same_rate_holds_nothing_back():
    motion = torch.randn(1, 6, 3)
    parts = resampled(iter(motion.split(2, dim=1)), 25, 25, lambda: 6)
    assert torch.equal(next(parts), motion[:, :2])


def test_beyond_the_end_motion_holds_still():
    motion = torch.randn(1, 5, 2)
    frames = torch.cat(list(resampled([motion], 25, 25, lambda: 8)), dim=1)
    assert torch.equal(frames[:, 5:], motion[:, -1:].expand(-1, 3, -1))

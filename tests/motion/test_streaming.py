import threading
import time
from fractions import Fraction

import pytest
import torch

from vasa_hf.motion import resample_motion
from vasa_hf.motion.streaming import AudioBuffer, audio_windows, map_ahead, resample_chunks
from vasa_hf.motion.windows import MotionWindows


def test_buffer_cuts_like_the_whole_with_zeros_around_it():
    samples = torch.arange(1.0, 101.0)[None]
    whole = torch.cat([torch.zeros(1, 30), samples, torch.zeros(1, 30)], dim=1)
    buffer = AudioBuffer()
    for chunk in samples.split(7, dim=1):
        buffer.append(chunk)
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
@pytest.mark.parametrize("chunks", [(1,) * 23, (10, 10, 3), (23,), (2, 9, 1, 11)])
def test_resampling_in_chunks_equals_the_whole(fps, chunks):
    motion = torch.randn(2, 23, 3)
    count = max(1, round(23 * fps / 25))
    expected = resample_motion(motion, Fraction(25), Fraction(fps), count)
    parts = list(resample_chunks(motion.split(chunks, dim=1), 25, fps, lambda: count))
    assert torch.equal(torch.cat(parts, dim=1), expected)


def test_same_rate_holds_nothing_back():
    motion = torch.randn(1, 6, 3)
    parts = resample_chunks(iter(motion.split(2, dim=1)), 25, 25, lambda: 6)
    assert torch.equal(next(parts), motion[:, :2])


def test_beyond_the_end_motion_holds_still():
    motion = torch.randn(1, 5, 2)
    frames = torch.cat(list(resample_chunks([motion], 25, 25, lambda: 8)), dim=1)
    assert torch.equal(frames[:, 5:], motion[:, -1:].expand(-1, 3, -1))


def test_sound_of_a_window_comes_as_soon_as_it_is_there():
    audio = torch.arange(1.0, 2 * 25 + 2)[None].repeat(2, 1)  # 25 frames of 2 samples, and one sample more
    received = []

    def chunks():
        for chunk in audio.split(7, dim=1):
            received.append(chunk.shape[1])
            yield chunk

    found = []
    for window, samples in audio_windows(chunks(), MotionWindows(10, 3, 5), 2, before=2, after=1):
        found.append((window, samples, sum(received)))
    padded = torch.nn.functional.pad(audio, (4, 40))
    assert [(window.start, window.stop) for window, _, _ in found] == [(0, 5), (5, 15), (15, 25), (25, 26)]
    for window, samples, so_far in found:
        size = 10 if window.start else 5
        assert torch.equal(samples, padded[:, 2 * window.start : 2 * (window.start + size + 3)])
        needed = min(2 * (window.stop + 1), audio.shape[1])
        assert needed <= so_far < needed + 7


def test_mapping_ahead_keeps_the_order_and_uses_threads():
    begun, threads = [], set()

    def slow(item):
        begun.append(item)
        threads.add((threading.get_ident(), torch.get_num_threads()))
        time.sleep(0.002 * (5 - item % 5))
        return item

    before = torch.get_num_threads()
    results = map_ahead(slow, range(40), workers=3)
    assert next(results) == 0 and len(begun) <= 5  # no more under way than needed
    assert list(results) == list(range(1, 40))
    assert len(threads) == 3 and {count for _, count in threads} == {max(before // 3, 1)}
    assert torch.get_num_threads() == before
    assert list(map_ahead(slow, range(3), workers=1)) == [0, 1, 2]


def test_mapping_ahead_ends_with_an_error_or_its_caller():
    def fail(item):
        time.sleep(0.01)
        return 1 / (item - 3)

    with pytest.raises(ZeroDivisionError):
        list(map_ahead(fail, range(100), workers=2))
    results = map_ahead(fail, range(100), workers=2)
    next(results)
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]

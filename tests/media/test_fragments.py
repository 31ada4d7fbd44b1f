import time

import numpy as np
import pytest

from vasa_hf.media import load_audio, read_provenance, read_video
from vasa_hf.media.ffmpeg import FfmpegError
from vasa_hf.media.fragments import FragmentWriter

RATE, UNIT = 24_000, 960


def test_fragments_are_a_video_whose_image_and_audio_change_together(tmp_path):
    dark, bright = (np.full((64, 65, 3), value, np.uint8) for value in (30, 220))  # an odd side
    tone = 0.5 * np.sin(0.3 * np.arange(UNIT))
    with FragmentWriter(25, (65, 64), RATE) as writer:
        for _ in range(25):
            writer.write(dark, np.zeros(UNIT))
        deadline = time.monotonic() + 20
        parts = [writer.take()]
        while not parts[-1] and time.monotonic() < deadline:  # they come before the end
            time.sleep(0.02)
            parts.append(writer.take())
        early = b"".join(parts)
        writer.write(bright, tone)
        writer.write(bright, np.tile(tone, 3), times=3)
        writer.write(dark, np.zeros(75 * UNIT), times=75)
    assert early[4:8] == b"ftyp" and b"moov" in early
    (tmp_path / "out.mp4").write_bytes(early + writer.take())
    levels = np.array([frame.mean() for frame in read_video(tmp_path / "out.mp4")])
    is_bright = (np.arange(104) >= 25) & (np.arange(104) < 29)
    assert len(levels) == 104 and (levels[~is_bright] < 60).all() and (levels[is_bright] > 190).all()
    audio, rate = load_audio(tmp_path / "out.mp4")
    loud = np.flatnonzero(np.abs(audio[0]) > 0.2) / rate
    assert abs(loud[0] - 1.0) < 0.04 and abs(loud[-1] - 1.16) < 0.04
    assert read_provenance(tmp_path / "out.mp4")["synthetic"] is True


def test_an_exception_stops_the_encoder_and_bad_frames_are_refused():
    with pytest.raises(RuntimeError, match="mine"), FragmentWriter(25, (64, 64), RATE) as writer:
        with pytest.raises(ValueError, match="frame"):
            writer.write(np.zeros((64, 60, 3), np.uint8), np.zeros(UNIT))
        raise RuntimeError("mine")
    assert writer._process.poll() is not None
    with pytest.raises(FfmpegError, match="ffmpeg"), FragmentWriter(25, (64, 64), RATE) as writer:
        writer._process.kill()
        writer._process.wait()
        for _ in range(3):
            writer.write(np.zeros((64, 64, 3), np.uint8), np.zeros(UNIT))

"""Pieces of a video that is still being written."""

import subprocess

import numpy as np
import pytest

from vasa_hf.media.ffmpeg import ffmpeg_path
from vasa_hf.media.segments import SegmentWriter

RATE = 16_000


def tone(seconds):
    return (0.2 * np.sin(np.arange(round(seconds * RATE)) * 0.2)).astype(np.float32)


def frame(index, size=64):
    return np.full((size, size, 3), 2 * index, np.uint8)


def decoded(paths):
    """Frames `(n,)` as their mean grey, and samples, of pieces played one after the other."""
    joined = b"".join(path.read_bytes() for path in paths)
    command = [ffmpeg_path(), "-v", "error", "-f", "mpegts", "-i", "pipe:0"]
    picture = ["-map", "0:v", "-f", "rawvideo", "-pix_fmt", "gray", "pipe:1"]
    sound = ["-map", "0:a", "-f", "f32le", "-ac", "1", "-ar", str(RATE), "pipe:1"]
    frames, samples = (
        subprocess.run([*command, *options], input=joined, capture_output=True, check=True).stdout
        for options in (picture, sound)
    )
    return np.frombuffer(frames, np.uint8).reshape(-1, 64 * 64).mean(1), np.frombuffer(samples, "<f4")


def test_pieces_are_there_before_the_end_and_join_without_a_gap(tmp_path):
    early = []
    with SegmentWriter(tmp_path, 25, (64, 64), (tone(3), RATE), provenance=False) as writer:
        for index in range(75):
            writer.write(frame(index))
            if index == 60:
                while not early:  # ffmpeg's own time
                    early += writer.take()
        writer.close()
        pieces = early + writer.take()
    assert early and len(pieces) == 3
    assert sum(piece.seconds for piece in pieces) == pytest.approx(3, abs=0.1)
    greys, samples = decoded([piece.path for piece in pieces])
    assert len(greys) == 75 and np.abs(greys - 2 * np.arange(75)).max() < 4
    assert len(samples) / RATE == pytest.approx(3, abs=0.1)
    middle = samples[RATE // 4 : -RATE // 4]  # a hole or a click at a border would change the loudness
    loudness = np.abs(middle[: len(middle) // 400 * 400].reshape(-1, 400)).mean(1)
    assert loudness.min() > 0.9 * loudness.max()


def test_no_piece_without_its_frames_and_no_process_after_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="mine"):
        with SegmentWriter(tmp_path, 25, (64, 64), (tone(1), RATE)) as writer:
            writer.write(frame(0))
            raise RuntimeError("mine")
    assert writer._process.poll() is not None
    with pytest.raises(ValueError, match="`frame`"):
        with SegmentWriter(tmp_path, 25, (64, 64)) as writer:
            writer.write(np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="`folder`"):
        SegmentWriter(tmp_path / "none", 25, (64, 64))

"""Media files that are made to read others, to never end, or to fill the memory."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vasa_hf.media import VideoReader, audio_blocks, load_audio, read_provenance, save_wav
from vasa_hf.media import ffmpeg as media_ffmpeg

PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n"
CONCAT = "ffconcat version 1.0\nfile {path}\n"
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"
DASH = '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>{path}</BaseURL></Period></MPD>'


@pytest.mark.parametrize("name", ["a.m3u8", "a.wav", "a.mp4"])
@pytest.mark.parametrize("text", [PLAYLIST, CONCAT, SDP, DASH], ids=["hls", "concat", "sdp", "dash"])
def test_files_that_name_others_are_not_followed(tmp_path, name, text):
    save_wav(tmp_path / "secret.wav", np.full(16000, 0.5), 16000)
    path = tmp_path / name
    path.write_text(text.format(path=tmp_path / "secret.wav"))
    began = time.monotonic()
    for read in (load_audio, VideoReader, read_provenance):
        with pytest.raises(ValueError, match="must be a") as error:  # a playlist without an end was read for ever
            read(path)
        assert "secret" not in str(error.value)
    assert time.monotonic() - began < 30


def test_a_pattern_of_file_names_is_not_followed(ffmpeg, tmp_path):
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x48:d=0.2", "a%d.png")
    (tmp_path / "a%d.png").write_bytes((tmp_path / "a1.png").read_bytes())
    with pytest.raises(ValueError, match="container"):
        VideoReader(tmp_path / "a%d.png")


def test_length_is_counted_while_reading(ffmpeg):
    """A file of some kB may hold an hour of silence."""
    path = ffmpeg("-f", "lavfi", "-i", "anullsrc=r=8000", "-t", 600, "a.flac")
    count = 0
    with pytest.raises(ValueError, match="`audio` must be at most 3 seconds long"):
        for block, rate in audio_blocks(path, max_seconds=3):
            count += block.shape[1] / rate
    assert 2 <= count <= 3
    with pytest.raises(ValueError, match="at most 3 seconds"):
        load_audio(path, max_seconds=3)
    path = ffmpeg("-f", "lavfi", "-i", "color=red:s=64x48:d=60:r=5", "-c:v", "ffv1", "a.mkv")
    frames = iter(VideoReader(path, max_seconds=2))
    assert len([next(frames) for _ in range(10)]) == 10
    with pytest.raises(ValueError, match="`path` must be at most 2 seconds long"):
        next(frames)


def test_a_gap_in_the_time_stamps_is_not_filled_for_ever(ffmpeg):
    ffmpeg("-f", "lavfi", "-i", "sine=r=8000:d=0.5", "a.wav")
    video = ("-f", "lavfi", "-i", "color=red:s=64x48:d=0.2")
    path = ffmpeg(*video, "-itsoffset", "100000", "-i", "a.wav", "-c:a", "pcm_s16le", "a.mkv")
    assert path.stat().st_size < 50_000
    with pytest.raises(ValueError, match="at most 60 seconds"):
        load_audio(path, max_seconds=60)


def test_giant_frames_are_refused(ffmpeg, tmp_path):
    path = ffmpeg("-f", "lavfi", "-i", "color=red:s=16000x8000:d=0.04:r=25", "-c:v", "ffv1", "a.mkv")
    with pytest.raises(ValueError, match="`path` must be a readable video"):
        VideoReader(path)
    path = ffmpeg("-f", "lavfi", "-i", "color=red:s=64x48:d=0.04,setsar=1000", "-c:v", "ffv1", "wide.mkv")
    assert VideoReader(path).size == (64, 48)


def test_a_decoder_that_gives_nothing_is_ended(tmp_path, monkeypatch):
    """Any file may meet a fault of ffmpeg's; here, one that waits."""
    monkeypatch.setattr(media_ffmpeg, "MAX_WAIT_SECONDS", 1.0)
    monkeypatch.setattr(media_ffmpeg, "ffmpeg_path", lambda: sys.executable)
    with media_ffmpeg.Decoder(["-c", "import time; time.sleep(60)"]) as decoder:
        began = time.monotonic()
        assert decoder.read(10) == b"" and decoder.is_stuck
    assert time.monotonic() - began < 10
    with pytest.raises(ValueError, match="within 1 seconds"):
        media_ffmpeg.run_ffmpeg(["-c", "import time; time.sleep(60)"])


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
def test_ffmpeg_ends_with_a_killed_process(ffmpeg):
    path = ffmpeg("-f", "lavfi", "-i", "sine=r=16000:d=120", "-c:a", "pcm_u8", "a.wav")
    script = f"from vasa_hf.media import audio_blocks; b = audio_blocks({str(path)!r}); next(b); print(b.gi_frame."
    script += "f_locals['decoder']._process.pid, flush=True); import time; time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    assert os.path.isdir(f"/proc/{child}")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not os.path.isdir(f"/proc/{child}") or "Z" in open(f"/proc/{child}/stat").read().split()[2]:
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("ffmpeg outlived the process that it read for")

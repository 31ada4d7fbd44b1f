import os
import signal
import struct
import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest

from vasa_hf.media import VideoReader, VideoWriter, load_audio, read_video
from vasa_hf.media.ffmpeg import parse_fps

NTSC = Fraction(30000, 1001)


def gradient(height=48, width=64, level=0):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3, y * 4, np.full_like(x, 60 + level)], -1).clip(0, 255).astype(np.uint8)


def track_seconds(path):
    """Durations of the tracks by name, as the container gives them to players (`hdlr` and edit list or `mdhd`)."""
    data, found = path.read_bytes(), {}

    def boxes(start, end):
        while start < end:
            size, kind = struct.unpack(">I4s", data[start : start + 8])
            yield kind, start + 8, start + size
            start += size

    def inside(kind, start, end):
        return next((s, e) for k, s, e in boxes(start, end) if k == kind)

    moov = inside(b"moov", 0, len(data))
    movie_scale = struct.unpack(">I", data[inside(b"mvhd", *moov)[0] + 12 :][:4])[0]
    for kind, start, end in boxes(*moov):
        if kind == b"trak":
            media = inside(b"mdia", start, end)
            name = data[inside(b"hdlr", *media)[0] + 8 :][:4]
            header = inside(b"mdhd", *media)[0]
            scale, length = struct.unpack(">II", data[header + 12 : header + 20])
            edit = inside(b"elst", *inside(b"edts", start, end))[0]
            presented = struct.unpack(">I", data[edit + 8 : edit + 12])[0] / movie_scale
            found[name] = (Fraction(length, scale), presented)
    return found


@pytest.mark.parametrize(("seconds", "fps"), [(10, 25), (10, NTSC), pytest.param(600, NTSC, marks=pytest.mark.e2e)])
def test_sound_and_picture_last_equally_long(tmp_path, seconds, fps):
    path, frame = tmp_path / "a.mp4", np.full((32, 32, 3), 90, np.uint8)
    count = int(seconds * fps)
    tone = np.sin(np.arange(16000 * seconds + 5000) * 0.2).astype(np.float32)
    with VideoWriter(path, fps, (32, 32), (tone, 16000), provenance=False, preset="ultrafast") as writer:
        for _ in range(count):
            writer.write(frame)
    tracks = track_seconds(path)
    assert tracks[b"vide"][0] == count / Fraction(fps)  # exact: each frame lasts a whole number of ticks
    assert abs(tracks[b"vide"][1] - tracks[b"soun"][1]) < 0.002  # the edit lists count milliseconds
    assert VideoReader(path).fps == fps
    sound, rate = load_audio(path)
    assert abs(sound.shape[1] / rate - count / fps) < 1 / fps
    assert sum(1 for _ in VideoReader(path)) == count


@pytest.mark.parametrize("samples", [4000, 16000, 40000])
def test_sound_is_cut_or_filled_to_the_frames(tmp_path, samples):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 25, (64, 48), (np.full(samples, 0.3), 16000), provenance=False) as writer:
        for _ in range(25):
            writer.write(gradient())
    assert abs(track_seconds(path)[b"soun"][1] - 1.0) < 0.002
    sound, rate = load_audio(path)
    assert abs(sound[0, int(0.9 * rate) :]).max() < 0.4 and (samples > 4000 or abs(sound[0, rate // 2 :]).max() < 0.01)


@pytest.mark.parametrize("name", ["video.mp4", "pictures.mp4", "messages.mp4"])
def test_a_file_may_bear_any_name(tmp_path, name):
    """Also one that the writer might use for itself."""
    with VideoWriter(tmp_path / name, 25, (32, 32), (np.zeros(1600, np.float32), 16_000)) as writer:
        for _ in range(3):
            writer.write(np.full((32, 32, 3), 90, np.uint8))
    assert len(list(read_video(tmp_path / name))) == 3 and os.listdir(tmp_path) == [name]


def test_flash_and_click_stay_together(tmp_path):
    path = tmp_path / "a.mp4"
    click = np.zeros(32000, np.float32)
    click[16000:16080] = 0.9
    with VideoWriter(path, 25, (64, 48), provenance=False) as writer:
        for i in range(50):
            writer.write_audio(click[i * 640 : (i + 1) * 640], 16000)
            writer.write(np.full((48, 64, 3), 255 if i == 25 else 0, np.uint8))
    bright = np.argmax([frame.mean() for frame in VideoReader(path)])
    sound, rate = load_audio(path)
    assert bright == 25 and abs(np.argmax(abs(sound[0])) / rate - 1.0) < 0.01


def test_colours_and_odd_sizes_come_back(tmp_path):
    frame = gradient(47, 63)
    with VideoWriter(tmp_path / "a.mp4", 24, (63, 47), provenance=False, crf=5) as writer:
        writer.write(frame)
    (back,) = read_video(tmp_path / "a.mp4")
    assert back.shape == (48, 64, 3)
    # 4:2:0 chroma and quantisation; a wrong colour matrix would shift by ten levels and more
    assert abs(back[:47, :63].astype(int) - frame).mean() < 2.5


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.webm", "libvpx"), ("a.avi", "mpeg4"), ("a.mkv", "ffv1"), ("a.mov", "mjpeg"), ("a.gif", "gif")],
)
def test_reads_containers_and_codecs(ffmpeg, name, codec):
    path = ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x48:rate=25:duration=1", "-c:v", codec, name)
    reader = VideoReader(path)
    frames = list(reader)
    assert reader.fps == 25 and reader.size == (64, 48) and len(frames) == 25 == reader.num_frames
    assert frames[0].shape == (48, 64, 3) and not reader.has_audio


def test_rotation_and_pixel_shape(ffmpeg):
    ffmpeg("-f", "lavfi", "-i", "color=red:s=64x32:d=0.2,drawbox=0:0:16:16:blue:fill", "a.mp4")
    turned = VideoReader(ffmpeg("-display_rotation", "90", "-i", "a.mp4", "-c", "copy", "turned.mp4"))
    frame = next(iter(turned))
    assert turned.size == (32, 64) and frame.shape == (64, 32, 3)
    assert frame[60, 4].argmax() == 2 and frame[4, 4].argmax() == 0  # the top-left mark, 90 degrees against the clock
    wide = VideoReader(ffmpeg("-f", "lavfi", "-i", "color=red:s=64x32:d=0.2", "-vf", "setsar=2", "wide.mp4"))
    assert wide.size == (128, 32) and next(iter(wide)).shape == (32, 128, 3)


def test_variable_frame_rate_is_resampled_by_time(ffmpeg):
    # Brightness tells the time; 50 fps in the first second, 10 in the second.
    source = "color=black:s=32x32:r=50:d=2,geq=lum='20+100*T':cb=128:cr=128,select='lt(n,50)+not(mod(n,5))'"
    path = ffmpeg("-f", "lavfi", "-i", source, "-fps_mode", "vfr", "-c:v", "ffv1", "-pix_fmt", "yuv420p", "a.mkv")
    for fps in (25, NTSC):
        levels = np.array([frame.mean() for frame in VideoReader(path).resampled(fps)])
        assert abs(len(levels) - 2 * fps) <= 3  # the last frame's duration is not stored
        seconds = (levels / 255 * 219 + 16 - 20) / 100  # limited range
        error = seconds - np.arange(len(levels)) / float(fps)
        assert abs(error[: int(fps)]).max() < 0.03 and abs(error).max() < 0.13 and abs(error.mean()) < 0.05


def test_rate_changes_keep_the_duration(ffmpeg):
    path = ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x48:rate=30000/1001:duration=2", "a.mp4")
    reader = VideoReader(path)
    assert reader.fps == NTSC and len(list(reader)) == 60 and len(list(reader.resampled(25))) == 50


def test_stream_without_duration(ffmpeg):
    reader = VideoReader(ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x48:rate=25:duration=1", "a.h264"))
    assert reader.num_frames is None and len(list(reader)) == 25


def test_unfit_files(ffmpeg, tmp_path):
    path = ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x48:rate=25:duration=4", "-movflags", "+faststart", "a.mp4")
    data = path.read_bytes()
    (tmp_path / "text.mp4").write_text("not a video" * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    sound = ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "sound.mp3")
    for file, message in [
        ("missing.mp4", "`path` must be an existing file"),
        ("text.mp4", "`path` must be a readable video"),
        ("empty.mp4", "0 bytes"),
        (sound.name, "no video stream"),
    ]:
        with pytest.raises(ValueError, match=message):
            VideoReader(tmp_path / file)
    with pytest.raises(ValueError, match="`path` must be a whole video.* frames only"):
        list(VideoReader(tmp_path / "cut.mp4"))


def test_names_that_look_like_options_or_protocols(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-y.mp4", "concat:a.mp4", "mit Leer é.mp4"):
        with VideoWriter(name, 25, (64, 48)) as writer:
            writer.write(gradient())
        assert len(list(VideoReader(name))) == 1


def test_stopping_early_leaves_no_process(ffmpeg):
    reader = iter(VideoReader(ffmpeg("-f", "lavfi", "-i", "testsrc=size=320x240:rate=25:duration=20", "a.mp4")))
    next(reader)
    process = reader.gi_frame.f_locals["decoder"]._process
    reader.close()
    assert process.poll() is not None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception(tmp_path, error):
    path = tmp_path / "a.mp4"
    path.write_text("older")
    with pytest.raises(error), VideoWriter(path, 25, (64, 48), (np.zeros(100), 16000)) as writer:
        writer.write(gradient())
        raise error
    assert os.listdir(tmp_path) == ["a.mp4"] and path.read_text() == "older"


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_leaves_nothing(tmp_path):
    code = (
        "import sys, time, numpy as np; from vasa_hf.media import VideoWriter\n"
        "with VideoWriter(sys.argv[1], 25, (64, 48)) as w:\n"
        "    while True: w.write(np.zeros((48, 64, 3), np.uint8)); print(flush=True); time.sleep(0.01)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a.mp4")], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    child.stdout.readline()
    assert len(os.listdir(tmp_path)) == 1  # at work, under another name
    time.sleep(0.1)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to ffmpeg too
    child.communicate(timeout=30)
    assert child.returncode != 0 and os.listdir(tmp_path) == []


def test_a_failing_ffmpeg_is_an_error_with_its_words(tmp_path):
    for frames in (1, 3000):  # the pipe breaks at the end, or while frames are written
        with pytest.raises(RuntimeError, match="(?i)no-such-preset"):
            with VideoWriter(tmp_path / "a.mp4", 25, (64, 48), preset="no-such-preset") as writer:
                for _ in range(frames):
                    writer.write(gradient())
    assert os.listdir(tmp_path) == []


def test_writer_refuses_unfit_arguments(tmp_path):
    path = tmp_path / "a.mp4"
    for arguments, message in [
        ((tmp_path / "a.avi", 25, (64, 48)), "`path` must end in .mp4"),
        ((path, 0, (64, 48)), "`fps`"),
        ((path, "abc", (64, 48)), "`fps`"),
        ((path, float("nan"), (64, 48)), "`fps`"),
        ((path, 25, (0, 48)), "`size`"),
        ((tmp_path / "no" / "a.mp4", 25, (64, 48)), "existing folder"),
        ((path, 25, (64, 48), (np.full(10, np.nan), 16000)), "`audio` must be finite"),
        ((path, 25, (64, 48)), "`frames` must hold at least one frame"),
    ]:
        with pytest.raises(ValueError, match=message), VideoWriter(*arguments):
            pass
    for frame in (gradient().astype(float), gradient()[:-1], "x"):
        with (
            pytest.raises(ValueError, match="`frame` must be a uint8 array"),
            VideoWriter(path, 25, (64, 48)) as writer,
        ):
            writer.write(frame)
    assert os.listdir(tmp_path) == []


def as_hdr(light, transfer):
    """Signal in [0, 1] of linear BT.709 light `(3,)`, whose white is 203 nits (ITU-R BT.2087, BT.2100, BT.2408)."""
    to_2020 = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
    nits = 203 * np.array(to_2020) @ light
    if transfer == "smpte2084":
        power = (nits / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    display = nits / 1000
    scene = display * (display @ [0.2627, 0.6780, 0.0593]) ** (1 / 1.2 - 1)
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073)


@pytest.mark.parametrize("transfer", ["arib-std-b67", "smpte2084"])
@pytest.mark.parametrize("color", [(192, 138, 106), (127, 127, 127)], ids=["skin", "grey"])
def test_hdr_is_brought_to_ordinary_colours(ffmpeg, tmp_path, transfer, color):
    light = ((np.array(color) / 255 + 0.055) / 1.055) ** 2.4
    pixels = np.broadcast_to(np.round(as_hdr(light, transfer) * 65535).astype("<u2"), (5, 64, 64, 3))
    pixels.tofile(tmp_path / "a.rgb")
    filters = "scale=out_color_matrix=bt2020:out_range=tv,format=yuv420p10le,"
    filters += f"setparams=color_primaries=bt2020:color_trc={transfer}:colorspace=bt2020nc"
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb48le", "-s", "64x64", "-r", 25)
    path = ffmpeg(*raw, "-i", "a.rgb", "-vf", filters, "-c:v", "libx265", "-crf", 5, "hdr.mp4")
    frame = next(iter(VideoReader(path))).astype(float)
    assert np.abs(frame - color).max() < 10
    ffmpeg("-i", path, "-frames:v", 1, "-pix_fmt", "rgb24", "-f", "rawvideo", "plain.rgb")
    plain = np.fromfile(tmp_path / "plain.rgb", np.uint8).reshape(-1, 3).astype(float)
    if transfer == "smpte2084" and color[0] != color[1]:
        assert np.abs(plain - color).max() > 60  # as it was read before


def test_parse_fps():
    assert (
        parse_fps(29.97) == NTSC and parse_fps("23.98") == Fraction(24000, 1001) and parse_fps(12.5) == Fraction(25, 2)
    )
    assert parse_fps("30000/1001") == NTSC and parse_fps(25.0) == 25


@pytest.mark.parametrize("suffix", [".webm", ".gif"])
def test_other_containers(tmp_path, suffix):
    """Every frame is there, marked; WebM has the audio and the note, a GIF neither."""
    from vasa_hf.media import detect_mark, read_provenance
    from vasa_hf.media.watermark import MARK_THRESHOLD

    y, x = np.mgrid[:256, :256]
    path = tmp_path / f"out{suffix}"
    audio = np.sin(np.arange(16_000) * 0.1).astype(np.float32)
    with VideoWriter(path, 25, (256, 256), (audio, 16_000)) as writer:
        for index in range(25):
            grey = 120 + 60 * np.sin(x / 40 + index / 5) * np.cos(y / 50)
            writer.write(np.repeat(grey[..., None], 3, 2).astype(np.uint8))
    reader = VideoReader(path)
    frames = np.stack(list(reader))
    assert frames.shape == (25, 256, 256, 3) and reader.fps == 25
    assert detect_mark(frames) > MARK_THRESHOLD
    assert reader.has_audio is (suffix == ".webm")
    if suffix == ".webm":
        assert read_provenance(path)["synthetic"] is True
        samples, rate = load_audio(path)
        assert abs(samples.shape[1] / rate - 1) < 0.03 and 0.5 < samples.std() / audio.std() < 1.1
    expected = 120 + 60 * np.sin(x / 40) * np.cos(y / 50)
    assert np.abs(frames[0].mean(2) - expected).mean() < 6

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from vasa_hf.live import LiveFrame
from vasa_hf.serve import protocol
from vasa_hf.serve.counters import Counters
from vasa_hf.serve.uploads import KEPT_SECONDS, MAX_UPLOADS, Uploads


def encode(image, kind="PNG"):
    image.save(file := io.BytesIO(), kind)
    return base64.b64encode(file.getvalue()).decode()


def test_a_frame_is_read_as_it_was_packed():
    image = np.full((16, 24, 3), 90, np.uint8)
    audio = np.array([0.0, 0.5, -2.0], np.float32)
    shown = LiveFrame(image, audio, 7, 0.28, True, 0.0124)
    frame = protocol.unpack_frame(protocol.pack_frame(shown, 90))
    assert (frame.index, frame.is_speaking, frame.late_ms) == (7, True, 12)
    assert frame.audio.tolist() == [0, 16384, -32767]
    assert np.abs(np.asarray(Image.open(io.BytesIO(frame.jpeg))).astype(int) - 90).max() <= 2
    late = protocol.unpack_frame(protocol.pack_frame(LiveFrame(image, audio[:0], 2**31, 0.0, False, 1e6), 90))
    assert (late.index, late.is_speaking, late.late_ms, len(late.audio)) == (2**31, False, 65_535, 0)
    fragment = protocol.pack_fragment(7, b"moof", True, 0.0)
    for data in (b"", b"x" * 16, protocol.pack_frame(shown, 90)[:-1], fragment):
        with pytest.raises(ValueError, match="frame"):
            protocol.unpack_frame(data)


def test_a_start_has_what_is_needed():
    message = {"type": "start", "consent": True, "rate": 24_000, "controls": {"gaze": [0.1, 0.0]}}
    message["image"] = "data:image/png;base64," + encode(Image.new("RGB", (8, 6), "red"))
    start = protocol.read_start(protocol.read_message(json.dumps(message)))
    assert start.image.size == (8, 6) and start.rate == 24_000 and start.controls == {"gaze": (0.1, 0.0)}
    assert protocol.read_start({"type": "start", "consent": True}).image is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "message"),
        ("{", "message"),
        ("[1]", "`type`"),
        ('{"type": 5}', "`type`"),
        ('{"type": "dance"}', "`type`"),
        ('{"type": "set", "gaze": [0, 0]}', "`gaze` is no field"),
        ("[" * 100_000, "message"),
        (json.dumps({"type": "say", "text": "a" * protocol.MAX_TEXT_BYTES}), "at most"),
    ],
)
def test_other_text_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        protocol.read_message(text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"type": "end_of_speech"}, "first message"),
        ({"consent": "yes"}, "consent"),
        ({"consent": False}, "never children"),
        ({"rate": 10**9}, "rate"),
        ({"rate": "16000"}, "rate"),
        ({"quality": 100}, "quality"),
        ({"output": "gif"}, "output"),
        ({"output": ["jpeg"]}, "output"),
        ({"upload": 5}, "upload"),
        ({"example": "portrait", "upload": "x"}, "`upload` and `example`"),
        ({"controls": []}, "controls"),
        ({"image": 5}, "image"),
        ({"image": "%%%"}, "image"),
        ({"image": base64.b64encode(b"GIF89a").decode()}, "image"),
        ({"image": encode(Image.new("RGB", (8, 8)), "GIF")}, "image"),
        ({"image": encode(Image.new("RGB", (64, 64)))[:60] + "AAAA"}, "image"),
        ({"image": "A" * (12 * 2**20)}, "at most"),
        ({"image": encode(Image.new("1", (9_000, 6_000)))}, "pixels"),  # a small file of a large image
    ],
)
def test_a_start_that_cannot_be_used_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        protocol.read_start({"type": "start", "consent": True, **changes})


def test_samples():
    assert protocol.read_samples(np.array([1, -2], "<i2").tobytes()).tolist() == [1, -2]
    for data in (b"x", b"xx" * 2**22):
        with pytest.raises(ValueError, match="binary message"):
            protocol.read_samples(data)


def test_uploads_are_few_and_are_forgotten():
    now = [0.0]
    uploads = Uploads(lambda: now[0])
    names = [uploads.add(bytes([number])) for number in range(MAX_UPLOADS + 1)]
    assert len(set(names)) == len(names) and uploads.get(names[-1]) == bytes([MAX_UPLOADS])
    with pytest.raises(ValueError, match="`upload`"):
        uploads.get(names[0])
    now[0] = KEPT_SECONDS + 1
    with pytest.raises(ValueError, match="upload it again"):
        uploads.get(names[-1])


def test_counters_are_prometheus_text():
    counters = Counters()
    for seconds in (0.01, 0.04, 0.3, 100.0):
        counters.late.add(seconds)
    lines = counters.text().splitlines()
    assert all(line.startswith("# TYPE ") or len(line.split(" ")) == 2 for line in lines)
    for line in ('{le="0.02"} 1', '{le="0.04"} 2', '{le="0.32"} 3', '{le="5.12"} 3', '{le="+Inf"} 4'):
        assert f"vasa_hf_frame_late_seconds_bucket{line}" in lines
    assert "vasa_hf_frame_late_seconds_sum 100.350" in lines and "vasa_hf_frame_late_seconds_count 4" in lines

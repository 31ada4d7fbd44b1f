import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from vasa_hf.serve import protocol


def encode(image, kind="PNG"):
    image.save(file := io.BytesIO(), kind)
    return base64.b64encode(file.getvalue()).decode()


def test_a_frame_is_read_as_it_was_packed():
    image = np.full((16, 24, 3), 90, np.uint8)
    audio = np.array([0.0, 0.5, -2.0], np.float32)
    frame = protocol.unpack_frame(protocol.pack_frame(7, image, audio, True, 0.0124, 90))
    assert (frame.index, frame.is_speaking, frame.late_ms) == (7, True, 12)
    assert frame.audio.tolist() == [0, 16384, -32767]
    assert np.abs(np.asarray(Image.open(io.BytesIO(frame.jpeg))).astype(int) - 90).max() <= 2
    late = protocol.unpack_frame(protocol.pack_frame(2**31, image, audio[:0], False, 1e6, 90))
    assert (late.index, late.is_speaking, late.late_ms, len(late.audio)) == (2**31, False, 65_535, 0)
    for data in (b"", b"x" * 16, protocol.pack_frame(0, image, audio, True, 0, 90)[:-1]):
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
        ({"token": 5}, "token"),
        ({"controls": []}, "controls"),
        ({"image": 5}, "image"),
        ({"image": "%%%"}, "image"),
        ({"image": base64.b64encode(b"GIF89a").decode()}, "image"),
        ({"image": encode(Image.new("RGB", (8, 8)), "GIF")}, "image"),
        ({"image": encode(Image.new("RGB", (64, 64)))[:60] + "AAAA"}, "image"),
        ({"image": "A" * (12 * 2**20)}, "at most"),
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

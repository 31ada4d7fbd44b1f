"""Sessions over a real WebSocket: speech in, frames with their audio out; limits, and clients that behave badly."""

import contextlib
import io
import json
import socket as socket_module
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.serve.conftest import FAST, serving
from tests.testing_utils.pipelines import make_image
from vasa_hf.media import load_audio, read_provenance, read_video
from vasa_hf.media.speech import can_speak
from vasa_hf.serve.client import talk
from vasa_hf.serve.connection import MESSAGES_PER_SECOND
from vasa_hf.serve.protocol import FRAGMENT, HEADER, MAX_IMAGE_BYTES, MAX_TEXT_BYTES, unpack_frame

RATE = 16_000


def noise(seconds, seed=0):
    return np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * RATE)).astype(np.float32)


def pcm(samples):
    return (samples * 32767).astype("<i2").tobytes()


@contextlib.contextmanager
def session(address, begin=True, **changes):
    """A connection whose session has begun."""
    with connect(f"ws://{address}/v1/live", max_size=None, compression=None) as socket:
        socket.send(json.dumps({"type": "start", "consent": True, "rate": RATE, **changes}))
        if begin:
            assert read(socket, "ready")["fps"] == 25
        yield socket


def read(socket, kind, seconds=20.0):
    """The next text message of this type; a frame for `frame`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        message = socket.recv(timeout=end - time.monotonic())
        if not isinstance(message, str):
            if kind == "frame":
                return unpack_frame(message)
        elif json.loads(message)["type"] == kind:
            return json.loads(message)
    raise AssertionError(f"no {kind} came")


def end_of(socket):
    """Code and message with which the server ends a connection."""
    said = ""
    try:
        for message in socket:
            if isinstance(message, str) and json.loads(message)["type"] == "error":
                said = json.loads(message)["message"]
    except ConnectionClosed:
        pass
    return socket.close_code, said


def get(address, path):
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
        return answer.read().decode()


def test_speech_comes_back_with_frames(server):
    address, counters = server
    samples = noise(1.0)
    frames = list(talk(f"ws://{address}/v1/live", samples, RATE))
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices)) and all(frame.is_speaking for frame in frames)
    sound = np.concatenate([frame.audio for frame in frames]) / 32768
    assert abs(len(sound) / 24_000 - 1.0) < 0.13  # whole frames
    assert 0.5 < np.sqrt((sound**2).mean()) / np.sqrt((samples**2).mean()) < 1.2
    assert counters.totals["frames"] >= len(frames) and counters.totals["audio_seconds"] >= 1
    assert sum(counters.first_frame.counts) == 1 and 0 < counters.first_frame.sum < 10


def test_it_idles_obeys_and_is_interrupted(server):
    with session(server[0], controls={"gaze": [0.1, 0.0]}) as socket:
        assert not any(read(socket, "frame").is_speaking for _ in range(5))
        socket.send(json.dumps({"type": "set", "controls": {"emotion": "happy", "head_distance": 1.1}}))
        socket.send(json.dumps({"type": "listen"}))
        socket.send(pcm(noise(0.5)))  # not said
        socket.send(json.dumps({"type": "speak"}))
        for _ in range(4):
            socket.send(pcm(noise(5.0)))
        socket.send(json.dumps({"type": "end_of_speech"}))
        while not read(socket, "frame").is_speaking:
            pass
        socket.send(json.dumps({"type": "stats"}))
        assert 10 < read(socket, "stats")["waiting_seconds"] < 20
        socket.send(json.dumps({"type": "interrupt"}))
        frames = [read(socket, "frame") for _ in range(20)]
        assert not any(frame.is_speaking for frame in frames[-5:])
        assert not any(frame.audio.any() for frame in frames[-5:])
        socket.send(json.dumps({"type": "close"}))
        assert end_of(socket) == (1000, "")


def test_events_say_what_the_face_does(server):
    with session(server[0]) as socket:
        assert read(socket, "state")["state"] == "idle"
        socket.send('{"type": "listen"}')
        assert read(socket, "state")["state"] == "listening"
        socket.send('{"type": "speak"}')
        socket.send(pcm(noise(1.0)))
        socket.send('{"type": "end_of_speech"}')
        while (event := read(socket, "state"))["state"] != "speaking":
            pass
        assert read(socket, "frame").index == event["index"]
        assert read(socket, "state")["state"] == "idle"


@pytest.mark.e2e
def test_frames_that_are_left_out_are_told(pipe, monkeypatch):
    render = pipe.render_frames

    def slow(subject, motion, *place):
        time.sleep(0.06 * len(motion))
        yield from render(subject, motion, *place)

    monkeypatch.setattr(pipe, "render_frames", slow)
    with serving(pipe) as (address, _), session(address) as socket:
        told = read(socket, "dropped")
        assert told["frames"] > 0 and read(socket, "frame").index >= told["index"]


@pytest.mark.e2e
def test_a_video_in_fragments(server, tmp_path):
    with session(server[0], output="fmp4") as socket:
        socket.send(pcm(noise(1.0)))
        socket.send('{"type": "end_of_speech"}')
        parts, index = [], 0
        while index < 50:
            if isinstance(message := socket.recv(timeout=20), bytes):
                kind, _, _, index, size, _ = HEADER.unpack_from(message)
                assert kind == FRAGMENT and len(message) == HEADER.size + size
                parts.append(message[HEADER.size :])
        socket.send('{"type": "close"}')
        assert end_of(socket)[0] == 1000
    assert parts[0][4:8] == b"ftyp"
    (tmp_path / "out.mp4").write_bytes(b"".join(parts))
    assert 40 < sum(1 for _ in read_video(tmp_path / "out.mp4")) <= 55
    audio, rate = load_audio(tmp_path / "out.mp4")
    loud = np.flatnonzero(np.abs(audio[0]) > 0.05) / rate
    assert 0.8 < loud[-1] - loud[0] < 1.3
    assert read_provenance(tmp_path / "out.mp4")["synthetic"] is True


def post(address, data, **headers):
    headers = {"content-type": "image/png", **headers}
    return urllib.request.urlopen(urllib.request.Request(f"http://{address}/v1/images", data, headers), timeout=10)


def test_an_uploaded_portrait(pipe):
    Image.fromarray(make_image()).save(file := io.BytesIO(), "PNG")
    with serving(pipe, token="secret") as (address, _):
        token = {"authorization": "Bearer secret"}
        for data, headers, code in (
            (file.getvalue(), {}, 401),
            (b"garbage", token, 422),
            (bytes(MAX_IMAGE_BYTES + 1), token, 413),
            (file.getvalue(), {**token, "content-type": "text/plain"}, 415),
        ):
            with pytest.raises((urllib.error.HTTPError, ConnectionError)) as caught:
                post(address, data, **headers)
            assert getattr(caught.value, "code", code) == code
        with post(address, file.getvalue(), **token) as answer:
            name = json.loads(answer.read())["id"]
        with session(address, upload=name, token="secret") as socket:
            assert read(socket, "frame").jpeg


@pytest.mark.skipif(not can_speak(), reason="espeak-ng is not installed")
def test_typed_text_is_spoken(server):
    with session(server[0]) as socket:
        socket.send(json.dumps({"type": "say", "text": "Hello there."}))
        while not (frame := read(socket, "frame")).is_speaking:
            pass
        sound = [frame.audio] + [read(socket, "frame").audio for _ in range(10)]
        assert np.concatenate(sound).std() > 300


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ("garbage", "message"),
        ('{"type": "dance"}', "`type`"),
        ('{"type": "set", "controls": {"wings": 1}}', "`wings`"),
        ('{"type": "set", "controls": {"gaze": "up"}}', "`gaze`"),
        ('{"type": "set", "controls": {"gaze": [NaN, 0]}}', "`gaze`"),
        ('{"type": "set", "controls": {"gaze": [1' + 400 * "0" + ", 0]}}", "`gaze`"),
        ('{"type": "set", "controls": {"self": 1}}', "self"),
        ('{"type": "set", "controls": {"emotion": {"a": []}}}', "emotion"),
        ('{"type": "start", "consent": true}', "begun already"),
        ('{"type": "say", "text": 5}', "must be text"),
        (b"odd", "16-bit"),
        (pcm(noise(125)), "`samples`"),
    ],
)
def test_a_message_that_cannot_be_used_is_answered_and_the_session_continues(server, sent, said):
    with session(server[0]) as socket:
        socket.send(sent)
        error = read(socket, "error")
        assert said in error["message"] and error["fatal"] is False
        assert read(socket, "frame").index >= 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"consent": False}, "never children"),
        ({"rate": 1}, "rate"),
        ({"image": "AAAA"}, "image"),
        ({"controls": {"gaze": [9, 9]}}, "gaze"),
        ({"upload": "x"}, "upload it again"),
        ({"example": "/etc/passwd"}, "`example` must be one of ['portrait']"),
        ({"controls": {"provenance": False}}, "`provenance` must be one of the controls"),
        ({"type": "interrupt"}, "field"),
    ],
)
def test_a_start_that_cannot_be_used_ends_the_connection(server, changes, said):
    with session(server[0], begin=False, **changes) as socket:
        code, message = end_of(socket)
    assert code == 1008 and said in message


def test_no_message_is_larger_than_allowed(server):
    with session(server[0]) as other:
        read(other, "frame")
        for size in (MAX_TEXT_BYTES + 1, 2**30):
            with session(server[0]) as socket:
                socket.socket.sendall(b"\x82\xff" + size.to_bytes(8, "big") + bytes(4))  # the head of a binary message
                assert end_of(socket)[0] == 1009
        assert read(other, "frame").index > 0  # it is untouched


@pytest.mark.e2e
def test_interrupt_storms_and_bursts(server):
    with session(server[0]) as socket:
        for _ in range(30):
            socket.send(pcm(noise(10.0)[: 2 * RATE]))
            socket.send('{"type": "interrupt"}')
        socket.send('{"type": "stats"}')
        assert read(socket, "stats")["waiting_seconds"] == 0
        first = read(socket, "frame").index
        assert read(socket, "frame").index > first


@pytest.mark.e2e
def test_a_flood_of_messages_is_slowed_down_or_ends_its_session(server, monkeypatch):
    monkeypatch.setattr("vasa_hf.serve.connection.BURST", 20)
    with session(server[0]) as other, session(server[0]) as socket:
        begun = time.monotonic()
        for _ in range(200):
            socket.send(pcm(noise(0.01)))
        socket.send('{"type": "stats"}')
        read(socket, "stats")
        assert time.monotonic() - begun > 180 / MESSAGES_PER_SECOND
        with contextlib.suppress(ConnectionClosed):
            for _ in range(200):
                socket.send('{"type": "interrupt"}')
        assert end_of(socket) == (1008, "More than 200 messages a second came.")
        indices = [read(other, "frame").index for _ in range(5)]
        assert indices == sorted(set(indices))
        other.send('{"type": "close"}')
        assert end_of(other)[0] == 1000


@pytest.mark.e2e
def test_limits(pipe):
    settings = {"max_sessions": 1, "token": "secret", "origins": ["https://example.org"], "start_seconds": 0.3}
    with serving(pipe, **settings, max_minutes=0.03, idle_seconds=1.0, send_seconds=0.5) as (address, counters):
        url = f"ws://{address}/v1/live"
        with session(address, token="secret") as socket:
            with connect(url) as second:
                assert end_of(second) == (1013, "All 1 sessions are taken: try again later.")
            assert json.loads(get(address, "/healthz")) == {"status": "ok", "sessions": 1, "max_sessions": 1}
            code, said = end_of(socket)
            assert code == 1008 and "Nothing came for 1 s" in said
        with session(address, token="secret") as socket:
            for _ in range(8):  # it is never idle
                time.sleep(0.3)
                with contextlib.suppress(ConnectionClosed):
                    socket.send('{"type": "interrupt"}')
            assert "may last 0.03 minutes" in end_of(socket)[1]
        with session(address, begin=False, token="wrong") as socket:
            assert end_of(socket) == (1008, "`token` is not the server's.")
        with connect(url) as socket:
            assert "within 0.3 s" in end_of(socket)[1]
        for origin, is_allowed in ((f"http://{address}", True), ("https://example.org", True), ("https://x.y", False)):
            if is_allowed:
                connect(url, origin=origin).close()
            else:
                with pytest.raises(InvalidStatus), connect(url, origin=origin):
                    pass
        assert "vasa_hf_refused_total 1\n" in get(address, "/metrics")
        wait_for_none(counters)


def wait_for_none(counters):
    wait_for(lambda: counters.sessions == 0)


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.e2e
def test_who_leaves_leaves_nothing(pipe):
    with serving(pipe, options={"window": 4, "num_inference_steps": 2}) as (address, counters):
        with connect(f"ws://{address}/v1/live") as socket:
            socket.send(json.dumps({"type": "start", "consent": True}))
            assert "face" in end_of(socket)[1]  # the tiny model finds none in the example
        wait_for_none(counters)
    with serving(pipe, max_sessions=1) as (address, counters):
        for _ in range(4):  # each finds the only session free again
            with session(address) as socket:
                read(socket, "frame")
                socket.socket.close()  # without a word
            wait_for_none(counters)


def open_raw(address):
    """A connection that this test reads itself: nothing else empties its buffers."""
    host, port = address.split(":")
    raw = socket_module.socket()
    raw.setsockopt(socket_module.SOL_SOCKET, socket_module.SO_RCVBUF, 4096)
    raw.connect((host, int(port)))
    head = f"GET /v1/live HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    raw.sendall(f"{head}Sec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
    assert b" 101 " in raw.recv(4096)
    start = json.dumps({"type": "start", "consent": True, "quality": 95}).encode()
    raw.sendall(bytes([0x81, 0x80 | len(start)]) + bytes(4) + start)
    return raw


@pytest.mark.e2e
def test_who_stops_reading_is_disconnected_and_others_are_untouched(pipe):
    settings = {"send_seconds": 0.5, "options": {**FAST, "realtime": False}}
    with serving(pipe, send_bytes=4096, **settings) as (address, counters), session(address) as other:
        indices = [read(other, "frame").index]
        with open_raw(address):

            def has_ended():
                indices.append(read(other, "frame").index)
                return counters.totals["sessions"] == 2 and counters.sessions == 1

            wait_for(has_ended, seconds=20)
        assert counters.totals["errors"] == 1 and counters.totals["refused"] == 0
        indices += [read(other, "frame").index for _ in range(5)]
        assert indices == list(range(indices[0], indices[0] + len(indices)))
        other.send('{"type": "close"}')
        assert end_of(other)[0] == 1000


def test_pages(server):
    address = server[0]
    assert "<canvas" in get(address, "/")
    info = json.loads(get(address, "/v1/info"))
    assert info["fps"] == 25 and {"gaze", "emotion", "head_distance"} <= set(info["controls"]) and not info["token"]
    paths = json.loads(get(address, "/openapi.json"))["paths"]
    assert {"/healthz", "/metrics", "/v1/info", "/v1/images"} <= set(paths)
    assert "# TYPE vasa_hf_sessions gauge" in get(address, "/metrics")
    with urllib.request.urlopen(f"http://{address}/v1/examples/{info['examples'][0]}", timeout=10) as answer:
        assert Image.open(answer).width > 100
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(address, "/v1/examples/..%2F..%2Fetc%2Fpasswd")

"""What any program may send to the page: answered by a result or one message; who leaves, leaves nothing behind."""

import json
import time
import urllib.error

import pytest

from tests import soak
from tests.testing_utils import hostile
from tests.testing_utils.page_server import PORTRAIT, SETTINGS, save_page_model, serving_page

ODD = (None, 5, -1, 1e308, True, "", "x", "a" * 100_000, "\0", [], [None], {}, {"path": 5}, [[[[[[[[1]]]]]]]])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "model"
    save_page_model(folder)
    return folder


@pytest.fixture(scope="module")
def server(model):
    with serving_page(model.parent / "server", model, "--private") as served:
        yield served


@pytest.fixture(scope="module")
def sent(server, tmp_path_factory):
    """A portrait and a voice that were uploaded."""
    voice = tmp_path_factory.mktemp("sent") / "voice.wav"
    voice.write_bytes(hostile.whole_sound(0.5))
    return server.upload(PORTRAIT), server.upload(voice)


def answer(server, name, *data):
    """The event of an answer, and its text; the status where it is none of the page's."""
    try:
        return server.ask(name, *data)
    except urllib.error.HTTPError as error:
        return f"status {error.code}", error.read().decode()


def check_answers(server, cases):
    """Each is refused by one message without a place of this machine, or done; the server goes on, its log is clean."""
    before = (server.folder / "log").read_text().count("Traceback")
    for name, data in cases:
        event, text = answer(server, name, *data)
        assert event in ("complete", "error", "status 422"), (name, data, event, text[:300])
        if event == "error":
            assert "Traceback" not in text and str(server.folder) not in text and "site-packages" not in text
            assert len(text) < 2000 and text != "null", (name, str(data)[:200], text)
    log = (server.folder / "log").read_text()
    assert log.count("Traceback") == before, log[-2000:]
    assert server.process.poll() is None and server.wait_until_idle() == ([], [])


def test_odd_values(server, sent):
    image, audio = sent
    look, talk = ("tiny", 0, 0, "white"), (True, image, audio, 0, *SETTINGS)
    cases = [("faces", (True, value)) for value in ODD]
    cases += [("export", (value,)) for value in ODD]
    cases += [("look", (*look[:place], value, *look[place + 1 :])) for place in range(4) for value in ODD[1::3]]
    for place in (1, 2, 3, 4, 6, 7, 9, 15, 16, 17, 18, 20):
        cases += [("talk", (*talk[:place], value, *talk[place + 1 :])) for value in (-1e9, "x", ["x"], {"a": 1})]
    check_answers(server, cases)


def test_wrong_numbers_of_values(server, sent):
    cases = [(name, data) for name in ("faces", "look", "talk", "verdict", "shape") for data in ((), (1,) * 40)]
    check_answers(server, cases)


def test_files_that_are_not_what_they_say(server, sent, tmp_path):
    image, audio = sent
    pictures = list(hostile.pictures(tmp_path).values())[::3]
    (tmp_path / "sounds").mkdir()
    sounds = list(hostile.sounds(tmp_path / "sounds").values())[::4]
    cases = [("faces", (True, server.upload(path))) for path in pictures if path.stat().st_size]
    cases += [("talk", (True, image, server.upload(path), 0, *SETTINGS)) for path in sounds if path.stat().st_size]
    cases += [("verdict", ({"video": server.upload(path)},)) for path in sounds[:3] if path.stat().st_size]
    for path in ("/etc/passwd", "/proc/self/environ", "../../log", str(server.folder / "log"), str(PORTRAIT)):
        cases += [("faces", (True, {"path": path, **more})) for more in ({}, {"meta": {"_type": "gradio.FileData"}})]
    check_answers(server, cases)
    for name in ("../../a.jpg", "a\nb.jpg", "a" * 300 + ".jpg"):
        assert server.folder.name in server.upload(PORTRAIT, name)["path"]


def test_a_client_that_leaves_ends_its_job(server, sent, tmp_path):
    """The work of a video of minutes ends soon after its reader is gone, and others are served."""
    image, audio = sent
    (tmp_path / "long.wav").write_bytes(hostile.whole_sound(100.0))
    long = server.upload(tmp_path / "long.wav")
    with server.watch("talk", True, image, long, 0, *SETTINGS):
        end = time.monotonic() + 120
        while not any((job / "talking_face.mp4").parent.exists() for job in server.jobs()):
            assert time.monotonic() < end, "the job did not begin"
            time.sleep(0.05)
        time.sleep(0.5)
        assert server.jobs()
    began = time.monotonic()
    assert server.wait_until_idle(60) == ([], [])
    print(f"the job ended {time.monotonic() - began:.1f} s after its client")
    event, text = answer(server, "talk", True, image, audio, 0, *SETTINGS)
    assert event == "complete" and "mp4" in json.dumps(text)


def test_a_page_that_is_stopped_leaves_nothing(model, tmp_path):
    """Ended politely in the middle of a job; killed, and then swept by the next one."""
    for kill in (False, True):
        with serving_page(tmp_path / "server", model, "--private") as server:
            image = server.upload(PORTRAIT)
            (tmp_path / "long.wav").write_bytes(hostile.whole_sound(60.0))
            with server.watch("talk", True, image, server.upload(tmp_path / "long.wav"), 0, *SETTINGS):
                while not server.jobs():
                    time.sleep(0.05)
                server.process.kill() if kill else server.process.terminate()
                server.process.wait(timeout=60)
        left = [path.name for path in (tmp_path / "server").glob("vasa-hf-*")]
        assert bool(left) == kill
    with serving_page(tmp_path / "server", model, "--private"):
        left = [path.name for path in (tmp_path / "server").glob("vasa-hf-*")]
    assert len(left) == 1 and not list((tmp_path / "server").glob("vasa-hf-*"))


def test_many_users(tmp_path):
    result = soak.soak(tmp_path, users=10, requests=20, warm_up=20)
    assert soak.is_good(result), result

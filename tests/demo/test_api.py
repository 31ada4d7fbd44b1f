"""The page's functions from programs: `gradio_client`, one after the other and ten at once."""

import json
import os
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from gradio_client import Client, handle_file

from vasa_hf.media import read_video

pytestmark = pytest.mark.e2e

# Gaze, distance, emotion; guidance; steps, seed, fps, size, paste back; keyframes.
SETTINGS = (0, 0, 1, "neutral", 0.6, 1, 0.5, 1, 0, 0, 0, 4, 7, "25", 256, False, {"headers": ["seconds"], "data": []})


def resident_bytes(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def client(server):
    return Client(server.url, verbose=False)


def ask(client, portrait, voice):
    return client.predict(True, handle_file(portrait), handle_file(voice), None, *SETTINGS, api_name="/talk")


def test_functions_have_names(client):
    named = set(client.view_api(return_format="dict", print_info=False)["named_endpoints"])
    assert {"/talk", "/faces", "/speak", "/look", "/export", "/shape", "/verdict"} <= named


def test_talk_gives_video_and_settings_and_the_page_knows_its_own(client, portrait, voices):
    video, settings = ask(client, portrait, voices(1))
    video = video["video"] if isinstance(video, dict) else video
    assert len(list(read_video(video))) == 25 and read_video(video).has_audio
    assert json.loads(open(settings).read())["settings"]["seed"] == 7
    assert "made by vasa_hf" in client.predict(handle_file(video), api_name="/verdict")


def test_consent_is_asked_of_programs_too(client, portrait, voices):
    with pytest.raises(Exception, match="agreed"):
        client.predict(False, handle_file(portrait), handle_file(voices(1)), None, *SETTINGS, api_name="/talk")


def post(server, api_name, *data):
    """What the page answers to a request as any program may send it."""
    url, headers = f"{server.url}/gradio_api/call/{api_name}", {"Content-Type": "application/json"}
    sent = urllib.request.Request(url, json.dumps({"data": data}).encode(), headers)
    with urllib.request.urlopen(sent) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/{event}") as answer:
        return answer.read().decode()


@pytest.mark.parametrize("more", [{}, {"meta": {"_type": "gradio.FileData"}}, {"is_stream": True}])
def test_files_of_the_server_are_not_opened(server, portrait, voices, more):
    here, missing = ({"path": path, **more} for path in (portrait, "/nowhere/a.jpg"))
    asked = [
        ("faces", lambda file: (True, file)),
        ("shape", lambda file: (True, file, *[0] * 13)),
        ("talk", lambda file: (True, file, {"path": voices(1), **more}, 0, *SETTINGS)),
        ("verdict", lambda file: ({"video": file, **more},)),
    ]
    for name, arguments in asked:
        answers = [post(server, name, *arguments(file)) for file in (here, missing)]
        assert answers[0] == answers[1] and "upload this file" in answers[0], (name, answers)


@pytest.mark.slow
def test_ten_at_once_queue_and_leave_no_memory_behind(server, client, portrait, voices):
    ask(client, portrait, voices(1))  # what is loaded, and what is kept for next time, is not growth
    time.sleep(2)
    before, results = resident_bytes(server.pid), []

    def one(index):
        results.append(ask(Client(server.url, verbose=False), portrait, voices(1 + index / 10)))

    threads = [threading.Thread(target=one, args=(index,)) for index in range(10)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, _ = time.monotonic() - began, time.sleep(5)
    after = resident_bytes(server.pid)
    print(f"ten requests: {took:.0f} s, memory {before / 2**20:.0f} -> {after / 2**20:.0f} MiB")
    assert len(results) == 10
    assert after < 1.1 * before
    assert not list(server.temporary.glob("vasa-hf-*/job-*"))

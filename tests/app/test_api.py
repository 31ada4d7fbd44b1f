"""The page's functions from programs: `gradio_client`, one after the other and ten at once."""

import json
import os
import threading
import time
from pathlib import Path

import pytest
from gradio_client import Client, handle_file

from vasa_hf.media import read_video

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

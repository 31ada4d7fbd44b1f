"""The page as users meet it: its own process, and a real browser where there is one."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vasa_hf.media import load_audio, save_wav

ROOT = Path(__file__).resolve().parents[2]
WAIT_MS = 120_000  # of loaded machines


@contextlib.contextmanager
def serving(folder, *flags, command=(sys.executable, str(ROOT / "app.py")), cwd=ROOT, **variables):
    """The page in a process of its own, with temporary files where we can count them: `url`, `pid`, `temporary`, `log`.

    Args:
        folder: For temporary files and the log.
        flags: Of the command.
        command: What is run.
        cwd: Where.
        variables: Of its environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "TMPDIR": str(folder), "GRADIO_TEMP_DIR": str(folder / "gradio"), **variables}
    options = ["--port", str(port), "--host", "127.0.0.1", *flags]
    url, log = f"http://127.0.0.1:{port}", folder / "log"
    with open(log, "w") as written:
        process = subprocess.Popen([*command, *options], cwd=cwd, env=environment, stdout=written, stderr=written)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(url, timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.2)
            yield SimpleNamespace(url=url, pid=process.pid, temporary=folder, log=log)
        finally:
            process.terminate()
            process.wait(timeout=30)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """`python app.py`."""
    with serving(tmp_path_factory.mktemp("app")) as served:
        yield served


@pytest.fixture
def page(server, browser):
    """The page in a window of a desktop, loaded; errors of its scripts fail the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(WAIT_MS)
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(server.url, timeout=WAIT_MS)
    page.locator("#consent").wait_for()
    yield page
    page.close()
    assert not wrong


@pytest.fixture(scope="session")
def portrait():
    return str(ROOT / "vasa_hf" / "assets" / "portrait.jpg")


@pytest.fixture(scope="session")
def voices(tmp_path_factory):
    """Seconds -> a file with so much of the package's own voice."""
    folder = tmp_path_factory.mktemp("voices")
    samples, rate = load_audio(ROOT / "vasa_hf" / "assets" / "voice.flac")

    def voice(seconds):
        path = folder / f"{seconds}.wav"
        if not path.exists():
            save_wav(path, np.tile(samples[0], 3)[: round(seconds * rate)], rate)
        return str(path)

    return voice


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory):
    """Where screenshots are kept: in $CI_OUTPUT if that is set."""
    kept = os.environ.get("CI_OUTPUT")
    folder = Path(kept) / "screenshots" if kept else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder

"""The page in a process of its own, with a tiny model, and plain HTTP to ask it as any program may."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

from tests.testing_utils.avatars import make_avatar
from tests.testing_utils.pipelines import make_vasa1_components
from vasa_hf import FaceAnalyzer, FaceImageProcessor, Vasa3DAvatarPipeline
from vasa_hf.hub import embedded_path

ROOT = Path(__file__).resolve().parents[2]
PORTRAIT = ROOT / "vasa_hf" / "assets" / "portrait.jpg"
# Gaze, distance, emotion; guidance; steps, seed, fps, size, paste back; keyframes.
SETTINGS = (0, 0, 1, "neutral", 0.6, 1, 0.5, 1, 0, 0, 0, 2, 7, "25", 32, False, {"headers": ["seconds"], "data": []})


def save_page_model(folder):
    """Tiny random networks, but a real analyzer: the page looks for faces."""
    analyzer = FaceAnalyzer.from_pretrained(embedded_path("vasa-small") / "face_analyzer").float()
    parts = {"face_analyzer": analyzer, "image_processor": FaceImageProcessor(size=32)}
    pipe = Vasa3DAvatarPipeline(**{**make_vasa1_components(), **parts})
    pipe.add_avatar("tiny", make_avatar())
    pipe.save_pretrained(folder)
    return pipe


class PageServer:
    """A page that is served.

    Args:
        process (`subprocess.Popen`): The server.
        port (`int`): Where it listens, on loopback.
        folder (`Path`): Its temporary files, and `log`.
    """

    def __init__(self, process, port, folder):
        self.process, self.port, self.folder = process, port, folder

    def upload(self, path, name=None):
        """Send a file; returns what a field is given."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name or Path(path).name}"\r\n'
        body = f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + Path(path).read_bytes()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        sent = urllib.request.Request(f"{self.url}upload", body + f"\r\n--{boundary}--\r\n".encode(), headers)
        with urllib.request.urlopen(sent, timeout=120) as answer:
            return {"path": json.load(answer)[0], "meta": {"_type": "gradio.FileData"}}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/gradio_api/"

    def begin(self, name, *data):
        """Ask for a function; returns the address of its answer."""
        body, headers = json.dumps({"data": data}).encode(), {"Content-Type": "application/json"}
        sent = urllib.request.Request(f"{self.url}call/{name}", body, headers)
        with urllib.request.urlopen(sent, timeout=120) as answer:
            return f"/gradio_api/call/{name}/{json.load(answer)['event_id']}"

    def ask(self, name, *data):
        """What a function answers: the last event, `complete` or `error`, and its data."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self.begin(name, *data)}", timeout=300) as answer:
            text = answer.read().decode()
        *_, event, data = [line for line in text.splitlines() if line.strip()]
        return event.removeprefix("event: "), data.removeprefix("data: ")

    @contextlib.contextmanager
    def watch(self, name, *data):
        """Begin a function and listen to it by a socket; the connection is cut at the end, however far it is."""
        address = self.begin(name, *data)
        with socket.create_connection(("127.0.0.1", self.port), timeout=120) as connection:
            connection.sendall(f"GET {address} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            yield connection

    def jobs(self):
        """Folders of jobs that run."""
        return list(self.folder.glob("vasa-hf-*/job-*"))

    def children(self):
        """Commands of the processes that the server has started and that still run."""
        found, waiting = [], [self.process.pid]
        while waiting:
            for task in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    for child in map(int, task.read_text().split()):
                        waiting.append(child)
                        found.append(Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")[:100])
        return [command for command in found if command]

    def memory(self):
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def wait_until_idle(self, seconds=60.0):
        """Wait for the end of all jobs and of what they have started; tells what is left."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and (self.jobs() or self.children()):
            time.sleep(0.2)
        return self.jobs(), self.children()


@contextlib.contextmanager
def serving_page(folder, model, *flags):
    """Serve the page with this model."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("GRADIO_TEMP_DIR", None)
    command = [sys.executable, "-m", "vasa_hf.cli", "app", "--model", str(model), "--moda", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), *flags]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(900):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        yield PageServer(process, port, folder)
    finally:
        process.terminate()
        process.wait(timeout=60)

"""A real browser without a window, asked through Chromium's DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# WebGL in software: no GPU is needed, and none is trusted to be there.
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--remote-debugging-port=0", "--no-first-run"),
)


class Page:
    """One page of the browser."""

    def __init__(self, socket: Any, session: str):
        self.socket, self.session, self.numbers = socket, session, itertools.count(1000)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol and wait for its answer."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters, "sessionId": self.session}
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def screenshot(self) -> Image.Image:
        """What the page shows."""
        data = self.ask("Page.captureScreenshot", format="png")["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression in the page; promises are waited for."""
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        return self.ask("Runtime.evaluate", expression=script, **options)["result"].get("value")

    def click(self, text: str) -> None:
        """Click the button with this text, as a user does."""
        find = f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() === {json.dumps(text)})"
        box = self.run(
            f"(() => {{ const r = {find}.getBoundingClientRect(); return [r.x + r.width/2, r.y + r.height/2] }})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def drag(self, start: tuple[float, float], stop: tuple[float, float], steps: int = 8) -> None:
        """Drag with the left button."""
        x, y = start
        self.ask("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", clickCount=1)
        for step in range(1, steps + 1):
            x, y = (a + (b - a) * step / steps for a, b in zip(start, stop, strict=True))
            self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
            time.sleep(0.03)
        self.ask("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)

    def wait_for(self, condition: Any, seconds: float = 60) -> Any:
        """Wait until a function gives something true, and return that."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.2)
        raise AssertionError("the page did not come to it in time")


@contextlib.contextmanager
def open_page(url: str, folder: Path, size: tuple[int, int] = (900, 600)) -> Iterator[Page]:
    """Open a page; the browser ends with the context.

    Args:
        url (`str`): What to open.
        folder (`Path`): For the browser's own files.
        size (`tuple[int, int]`): Width and height of the window.
    """
    from websockets.sync.client import connect

    command = [CHROMIUM, *_OPTIONS, f"--user-data-dir={folder}", f"--window-size={size[0]},{size[1]}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        address = next(filter(None, (re.search(r"ws://\S+", line) for line in process.stderr)))[0]
        with connect(address, max_size=None, proxy=None) as socket:
            browser_ask = {"id": 1, "method": "Target.createTarget", "params": {"url": url}}
            socket.send(json.dumps(browser_ask))
            target = _answer(socket, 1)["targetId"]
            attach = {"targetId": target, "flatten": True}
            socket.send(json.dumps({"id": 2, "method": "Target.attachToTarget", "params": attach}))
            page = Page(socket, _answer(socket, 2)["sessionId"])
            screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
            page.ask("Emulation.setDeviceMetricsOverride", **screen)
            yield page
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answer(socket: Any, number: int) -> dict[str, Any]:
    while True:
        answer = json.loads(socket.recv(timeout=60))
        if answer.get("id") == number:
            return answer["result"]

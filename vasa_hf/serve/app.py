"""The server: one WebSocket a session, a page, health and metrics."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse, PlainTextResponse
from PIL import Image
from starlette.websockets import WebSocketState

import vasa_hf
from vasa_hf.checks import check_number
from vasa_hf.files import temporary_folder
from vasa_hf.live.session import LiveFrame, LiveSession
from vasa_hf.media.audio import load_audio
from vasa_hf.media.speech import VOICES, can_speak, speak
from vasa_hf.serve import protocol

_LOG = logging.getLogger(__name__)
_PAGE = Path(__file__).with_name("page.html")
# Codes of RFC 6455 with which a connection ends.
POLICY, TOO_LARGE, UNEXPECTED, TRY_LATER = 1008, 1009, 1011, 1013
NOTE = "Synthetic video: made by vasa_hf. Its frames are marked invisibly."


@dataclass(frozen=True)
class ServeSettings:
    """Limits of a server.

    Args:
        max_sessions (`int`, defaults to 2): Sessions at the same time; more are refused.
        token (`str`, defaults to ""): What `start` messages must bring, if it is not empty.
        origins (`Sequence[str]`): Origins of web pages, such as `https://example.org`, in addition to the server's.
        max_minutes (`float`, defaults to 30): Length of a session.
        idle_seconds (`float`, defaults to 120): A client that sends nothing for so long is disconnected.
        start_seconds (`float`, defaults to 10): Time for the first message.
        send_seconds (`float`, defaults to 5): Time in which a client must take a frame.
        example (`str`, *optional*): Portrait of clients that send none; the package's own.
        options (`dict`): More options of `pipe.live`.
    """

    max_sessions: int = 2
    token: str = ""
    origins: Sequence[str] = ()
    max_minutes: float = 30.0
    idle_seconds: float = 120.0
    start_seconds: float = 10.0
    send_seconds: float = 5.0
    example: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise `ValueError` for values out of range."""
        check_number("max_sessions", self.max_sessions, 1, 1000, whole=True)
        for name in ("max_minutes", "idle_seconds", "start_seconds", "send_seconds"):
            check_number(name, getattr(self, name), 0.001, 1e6)


class Counters:
    """What `/metrics` shows; changed in the event loop alone."""

    def __init__(self) -> None:
        self.sessions = 0
        self.totals = {"sessions": 0, "refused": 0, "errors": 0, "frames": 0, "dropped_frames": 0, "audio_seconds": 0.0}
        self.first_frame_seconds = 0.0  # of the last session

    def text(self) -> str:
        """Prometheus' text format."""
        lines = ["# TYPE vasa_hf_sessions gauge", f"vasa_hf_sessions {self.sessions}"]
        lines += ["# TYPE vasa_hf_first_frame_seconds gauge"]
        lines += [f"vasa_hf_first_frame_seconds {self.first_frame_seconds:.3f}"]
        for name, value in self.totals.items():
            lines += [f"# TYPE vasa_hf_{name}_total counter", f"vasa_hf_{name}_total {value:g}"]
        return "\n".join(lines) + "\n"


class RefusedError(Exception):
    """A connection ends with this message and code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def create_app(pipe: Any, settings: ServeSettings | None = None) -> FastAPI:
    """Make the web application.

    Args:
        pipe (`TalkingHeadPipeline`): The system whose sessions are served.
        settings (`ServeSettings`, *optional*): Limits.

    Raises:
        ValueError: If a setting is out of range.
    """
    settings = settings or ServeSettings()
    settings.check()
    example = settings.example or str(Path(vasa_hf.__file__).parent / "assets" / "portrait.jpg")
    app = FastAPI(title="vasa_hf live sessions", version=vasa_hf.__version__, description=NOTE)
    counters = app.state.counters = Counters()

    @app.get("/", response_class=HTMLResponse, summary="A page with portrait, microphone and text")
    def page() -> str:
        return _PAGE.read_text(encoding="utf-8")

    @app.get("/healthz", summary="Whether sessions can begin, and how many there are")
    def health() -> dict[str, Any]:
        return {"status": "ok", "sessions": counters.sessions, "max_sessions": settings.max_sessions}

    @app.get("/metrics", response_class=PlainTextResponse, summary="Counters in Prometheus' text format")
    def metrics() -> str:
        return counters.text()

    @app.get("/v1/info", summary="What clients may ask for")
    def info() -> dict[str, Any]:
        return {
            "protocol": protocol.VERSION,
            "fps": int(pipe.audio_processor.fps),
            "controls": list(pipe.control_names()),
            "voices": list(VOICES) if can_speak() else [],
            "token": bool(settings.token),
            "note": NOTE,
        }

    @app.websocket("/v1/live")
    async def live(socket: WebSocket) -> None:
        if not _is_allowed(socket, settings.origins):
            await socket.close(POLICY)
            return
        await socket.accept()
        try:
            if counters.sessions >= settings.max_sessions:
                counters.totals["refused"] += 1
                raise RefusedError(f"All {settings.max_sessions} sessions are taken: try again later.", TRY_LATER)
            counters.sessions += 1
            try:
                await _Connection(pipe, socket, settings, counters, example).run()
            finally:
                counters.sessions -= 1
        except RefusedError as error:
            counters.totals["errors"] += error.code != TRY_LATER
            await _end(socket, str(error), error.code)
        except WebSocketDisconnect:
            pass
        except Exception:
            counters.totals["errors"] += 1
            _LOG.exception("a session failed")
            await _end(socket, "The session failed; the server's log says why.", UNEXPECTED)

    return app


def _is_allowed(socket: WebSocket, origins: Sequence[str]) -> bool:
    """Whether a web page of another place opened the connection; programs send no origin."""
    origin = socket.headers.get("origin")
    return origin is None or origin in origins or urlsplit(origin).netloc == socket.headers.get("host")


async def _end(socket: WebSocket, message: str, code: int) -> None:
    with suppress(RuntimeError, WebSocketDisconnect, OSError, asyncio.TimeoutError):
        if socket.application_state == WebSocketState.CONNECTED:
            await asyncio.wait_for(socket.send_json({"type": "error", "message": message, "fatal": True}), 2)
            await asyncio.wait_for(socket.close(code), 2)


class _Connection:
    """One client: what it sends goes to its session, the session's frames go to it."""

    def __init__(self, pipe: Any, socket: WebSocket, settings: ServeSettings, counters: Counters, example: str):
        self.pipe, self.socket, self.settings, self.counters, self.example = pipe, socket, settings, counters, example
        self.is_listening, self.first_audio = False, 0.0

    async def run(self) -> None:
        """Serve it until it leaves, or a limit ends it."""
        settings, begun = self.settings, time.monotonic()
        start = await self._read_start()
        image = self.example if start.image is None else start.image
        try:
            session = await asyncio.to_thread(self._begin, image, start.controls)
        except ValueError as error:
            raise RefusedError(str(error), POLICY) from error
        self.counters.totals["sessions"] += 1
        tasks: list[asyncio.Task] = []
        try:
            ready = {"type": "ready", "protocol": protocol.VERSION, "fps": session.fps}
            ready |= {"rate": session.settings.sampling_rate, "synthetic": True, "note": NOTE}
            await self.socket.send_json(ready)
            works = self._receive(session, start.rate), self._send(session, start.quality)
            tasks = [asyncio.create_task(work) for work in works]
            left = 60 * settings.max_minutes - (time.monotonic() - begun)
            done, _ = await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise RefusedError(f"A session may last {settings.max_minutes:g} minutes.", POLICY)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.to_thread(session.close)
            await asyncio.gather(*tasks, return_exceptions=True)
            self.counters.totals["dropped_frames"] += session.stats.dropped
        with suppress(RuntimeError):
            await self.socket.close()

    def _begin(self, image: str | Image.Image, controls: dict[str, Any]) -> LiveSession:
        known = self.pipe.control_names()
        for name in controls:
            if name not in known:
                raise ValueError(f"`{name}` must be one of the controls {list(known)}.")
        return self.pipe.live(image, **{**self.settings.options, **controls})

    async def _read_start(self) -> protocol.Start:
        try:
            event = await asyncio.wait_for(self.socket.receive(), self.settings.start_seconds)
        except asyncio.TimeoutError:
            raise RefusedError(
                f"The first message must come within {self.settings.start_seconds:g} s.", POLICY
            ) from None
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        try:
            # The image is decoded elsewhere: other sessions continue.
            start = await asyncio.to_thread(
                lambda: protocol.read_start(protocol.read_message(event.get("text") or "null"))
            )
        except ValueError as error:
            raise RefusedError(str(error), POLICY) from error
        if self.settings.token and not hmac.compare_digest(start.token.encode(), self.settings.token.encode()):
            raise RefusedError("`token` is not the server's.", POLICY)
        return start

    async def _receive(self, session: LiveSession, rate: int) -> None:
        """Hand on what the client sends; what cannot be used is answered, and the session continues."""
        while True:
            try:
                event = await asyncio.wait_for(self.socket.receive(), self.settings.idle_seconds)
            except asyncio.TimeoutError:
                raise RefusedError(f"Nothing came for {self.settings.idle_seconds:g} s.", POLICY) from None
            if event["type"] == "websocket.disconnect":
                return
            try:
                if (data := event.get("bytes")) is not None:
                    await asyncio.to_thread(self._hear, session, data, rate)
                elif await self._follow(session, protocol.read_message(event.get("text") or "")):
                    return
            except (ValueError, TypeError, ImportError) as error:
                await self.socket.send_json({"type": "error", "message": str(error), "fatal": False})

    def _hear(self, session: LiveSession, data: bytes, rate: int) -> None:
        samples = protocol.read_samples(data)
        if not len(samples):
            return
        if self.is_listening:
            session.listen(samples, rate)
        else:
            self.first_audio = self.first_audio or time.monotonic()
            session.push_audio(samples, rate)
            self.counters.totals["audio_seconds"] += len(samples) / rate

    async def _follow(self, session: LiveSession, message: dict[str, Any]) -> bool:
        """Do what a message says; true if the session is to end."""
        kind = message["type"]
        if kind == "end_of_speech":
            session.end_of_speech()
        elif kind == "interrupt":
            session.interrupt()
        elif kind in ("listen", "speak"):
            self.is_listening = kind == "listen"
        elif kind == "set":
            session.set(**protocol.read_controls(message))
        elif kind == "say":
            await asyncio.to_thread(self._say, session, message)
        elif kind == "stats":
            await self.socket.send_json({"type": "stats", **vars(session.stats)})
        elif kind == "start":
            raise ValueError("The session has begun already.")
        return kind == "close"

    def _say(self, session: LiveSession, message: dict[str, Any]) -> None:
        text, voice = message.get("text"), message.get("voice", next(iter(VOICES)))
        if not isinstance(text, str) or not isinstance(voice, str):
            raise ValueError("`text` and `voice` must be text.")
        with temporary_folder() as folder:
            samples, rate = load_audio(speak(text, Path(folder), voice))
        session.push_audio(samples, rate)
        session.end_of_speech()

    async def _send(self, session: LiveSession, quality: int) -> None:
        async for frame in session:
            data = await asyncio.to_thread(_pack, frame, quality)
            try:
                await asyncio.wait_for(self.socket.send_bytes(data), self.settings.send_seconds)
            except asyncio.TimeoutError:
                raise RefusedError(f"A frame was not taken for {self.settings.send_seconds:g} s.", POLICY) from None
            except RuntimeError:  # it has left
                return
            self.counters.totals["frames"] += 1
            if frame.is_speaking and self.first_audio > 0:
                self.counters.first_frame_seconds, self.first_audio = time.monotonic() - self.first_audio, -1.0


def _pack(frame: LiveFrame, quality: int) -> bytes:
    return protocol.pack_frame(frame.index, frame.image, frame.audio, frame.is_speaking, frame.late_seconds, quality)

"""The web application: one WebSocket a session, a page, uploads, health and metrics."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse
from starlette.websockets import WebSocketState

import vasa_hf
from vasa_hf.media.speech import VOICES, can_speak
from vasa_hf.serve import protocol
from vasa_hf.serve.connection import NOTE, Connection
from vasa_hf.serve.counters import Counters
from vasa_hf.serve.settings import POLICY, TRY_LATER, UNEXPECTED, RefusedError, ServeSettings
from vasa_hf.serve.uploads import Uploads

_LOG = logging.getLogger(__name__)
_PAGE = Path(__file__).with_name("page.html")
MAX_WAITING = 16  # connections without a session
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_UPLOAD = {"requestBody": {"required": True, "content": {"image/*": _BINARY}}}


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

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Each session waits for its next frame in a thread: the usual number of them would hold up the others.
        with ThreadPoolExecutor(3 * settings.max_sessions + MAX_WAITING, "vasa_hf serve") as threads:
            asyncio.get_running_loop().set_default_executor(threads)
            yield

    app = FastAPI(title="vasa_hf live sessions", version=vasa_hf.__version__, description=NOTE, lifespan=lifespan)
    counters = app.state.counters = Counters()
    uploads = Uploads()
    _add_pages(app, pipe, settings, counters)

    @app.post("/v1/images", summary="Upload a portrait; a start names its id for ten minutes", openapi_extra=_UPLOAD)
    async def upload(request: Request) -> dict[str, str]:
        # A page of another origin cannot send this type without asking, and is not answered.
        if not request.headers.get("content-type", "").startswith("image/"):
            raise HTTPException(415, "The content type must be image/jpeg, image/png or image/webp.")
        if not _is_token(request.headers.get("authorization", "").removeprefix("Bearer "), settings.token):
            raise HTTPException(401, "The header Authorization must be 'Bearer' and the server's token.")
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > protocol.MAX_IMAGE_BYTES:
                raise HTTPException(413, f"An image must have at most {protocol.MAX_IMAGE_BYTES} bytes.")
        try:
            await asyncio.to_thread(protocol.read_image, bytes(data))
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return {"id": uploads.add(bytes(data))}

    @app.websocket("/v1/live")
    async def live(socket: WebSocket) -> None:
        if not _is_allowed(socket, settings.origins):
            await socket.close(POLICY)
            return
        await socket.accept()
        try:
            await _serve(Connection(pipe, socket, settings, counters, uploads), settings, counters)
        except RefusedError as error:
            counters.totals["refused" if error.code == TRY_LATER else "errors"] += 1
            await _end(socket, str(error), error.code)
        except WebSocketDisconnect:
            pass
        except Exception:
            counters.totals["errors"] += 1
            _LOG.exception("a session failed")
            await _end(socket, "The session failed; the server's log says why.", UNEXPECTED)

    return app


def _add_pages(app: FastAPI, pipe: Any, settings: ServeSettings, counters: Counters) -> None:
    """Add what needs no session."""

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
            "examples": list(settings.examples),
            "voices": list(VOICES) if can_speak() else [],
            "token": bool(settings.token),
            "note": NOTE,
        }

    @app.get("/v1/examples/{name}", response_class=FileResponse, summary="One of the server's portraits")
    def example(name: str) -> FileResponse:
        if name not in settings.examples:
            raise HTTPException(404, "There is no such example: /v1/info has their names.")
        return FileResponse(settings.examples[name])


async def _serve(connection: Connection, settings: ServeSettings, counters: Counters) -> None:
    """Let a connection begin a session while one is free. A client has none before it has sent its token."""

    def check_free() -> None:
        if counters.sessions >= settings.max_sessions:
            raise RefusedError(f"All {settings.max_sessions} sessions are taken: try again later.", TRY_LATER)

    check_free()
    if counters.waiting >= MAX_WAITING:
        raise RefusedError("Too many clients begin sessions at once: try again later.", TRY_LATER)
    counters.waiting += 1
    try:
        start = await connection.read_start(lambda token: _is_token(token, settings.token))
    finally:
        counters.waiting -= 1
    check_free()
    counters.sessions += 1
    try:
        await connection.run(start)
    finally:
        counters.sessions -= 1


def _is_token(given: str, token: str) -> bool:
    """Whether this is the server's token, if it has one; the time does not depend on how much of it is right."""
    return not token or hmac.compare_digest(given.encode(errors="replace"), token.encode())


def _is_allowed(socket: WebSocket, origins: Sequence[str]) -> bool:
    """Whether a web page of another place opened the connection; programs send no origin."""
    origin = socket.headers.get("origin")
    return origin is None or origin in origins or urlsplit(origin).netloc == socket.headers.get("host")


async def _end(socket: WebSocket, message: str, code: int) -> None:
    with suppress(RuntimeError, WebSocketDisconnect, OSError, asyncio.TimeoutError):
        if socket.application_state == WebSocketState.CONNECTED:
            await asyncio.wait_for(socket.send_json({"type": "error", "message": message, "fatal": True}), 2)
            await asyncio.wait_for(socket.close(code), 2)

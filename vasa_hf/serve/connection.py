"""One client of the server: what it sends goes to its session, the session's frames go to it."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect
from PIL import Image

from vasa_hf.files import temporary_folder
from vasa_hf.live.session import LiveFrame, LiveSession
from vasa_hf.media.audio import load_audio
from vasa_hf.media.fragments import MIME, FragmentWriter
from vasa_hf.media.speech import VOICES, speak
from vasa_hf.serve import protocol
from vasa_hf.serve.counters import Counters
from vasa_hf.serve.settings import POLICY, RefusedError, ServeSettings
from vasa_hf.serve.uploads import Uploads

NOTE = "Synthetic video: made by vasa_hf. Its frames are marked invisibly."
TOLD_SECONDS = 1.0  # at least, between two messages of left-out frames
MESSAGES_PER_SECOND, BURST = 200, 400  # of a client: other sessions are not held up


class Connection:
    """One client.

    Args:
        pipe (`TalkingHeadPipeline`): The system whose sessions are served.
        socket (`WebSocket`): An accepted one.
        settings (`ServeSettings`): Limits.
        counters (`Counters`): Of the server.
        uploads (`Uploads`): Of the server.
    """

    def __init__(self, pipe: Any, socket: WebSocket, settings: ServeSettings, counters: Counters, uploads: Uploads):
        self.pipe, self.socket, self.settings, self.counters, self.uploads = pipe, socket, settings, counters, uploads
        self.is_listening, self.state = False, ""
        self._first_audio: float | None = None  # when the utterance that is not shown yet began to arrive

    async def read_start(self, is_token: Callable[[str], bool]) -> protocol.Start:
        """Wait for the first message.

        Args:
            is_token (`Callable`): Whether a token is the server's; nothing else of the message is read before.

        Raises:
            RefusedError: If it does not come in time, or cannot be used.
        """
        seconds = self.settings.start_seconds
        try:
            event = await asyncio.wait_for(self.socket.receive(), seconds)
        except asyncio.TimeoutError:
            raise RefusedError(f"The first message must come within {seconds:g} s.", POLICY) from None
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        try:
            message = protocol.read_message(event.get("text") or "null")
            if not is_token(protocol.read_token(message)):
                raise ValueError("`token` is not the server's.")
            return await asyncio.to_thread(protocol.read_start, message)  # it decodes an image
        except ValueError as error:
            raise RefusedError(str(error), POLICY) from error

    async def run(self, start: protocol.Start) -> None:
        """Hold the session until the client leaves, or a limit ends it.

        Raises:
            RefusedError: If a limit ends it, or it cannot begin.
        """
        begun = time.monotonic()
        try:
            session = await asyncio.to_thread(self._begin, start)
        except ValueError as error:
            raise RefusedError(str(error), POLICY) from error
        self.counters.totals["sessions"] += 1
        tasks: list[asyncio.Task] = []
        try:
            rate = session.settings.sampling_rate
            ready = {"type": "ready", "protocol": protocol.VERSION, "fps": session.fps, "rate": rate}
            ready |= {"output": start.output, "mime": MIME if start.output == "fmp4" else "image/jpeg"}
            await self._send({**ready, "synthetic": True, "note": NOTE})
            tasks = [asyncio.create_task(work) for work in (self._receive(session, start), self._show(session, start))]
            left = 60 * self.settings.max_minutes - (time.monotonic() - begun)
            done, _ = await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise RefusedError(f"A session may last {self.settings.max_minutes:g} minutes.", POLICY)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.to_thread(session.close)
            await asyncio.gather(*tasks, return_exceptions=True)
            self.counters.totals["dropped_frames"] += session.stats.dropped
        with suppress(RuntimeError, WebSocketDisconnect):
            await self.socket.close()

    def _begin(self, start: protocol.Start) -> LiveSession:
        known, examples = self.pipe.control_names(), self.settings.examples
        for name in start.controls:
            if name not in known:
                raise ValueError(f"`{name}` must be one of the controls {list(known)}.")
        image: str | Image.Image | None = start.image
        if start.upload is not None:
            image = protocol.read_image(self.uploads.get(start.upload))
        elif image is None:
            name = next(iter(examples)) if start.example is None else start.example
            if name not in examples:
                raise ValueError(f"`example` must be one of {list(examples)}.")
            image = examples[name]
        return self.pipe.live(image, **{**self.settings.options, **start.controls})

    # --- what the client sends ----------------------------------------------------------------------------------------

    async def _receive(self, session: LiveSession, start: protocol.Start) -> None:
        """Hand on what comes; what cannot be used is answered, and the session continues."""
        taken = {"bytes": 0.0, "text": 0.0}  # until when: each message takes 1 / MESSAGES_PER_SECOND
        while True:
            try:
                event = await asyncio.wait_for(self.socket.receive(), self.settings.idle_seconds)
            except asyncio.TimeoutError:
                raise RefusedError(f"Nothing came for {self.settings.idle_seconds:g} s.", POLICY) from None
            if event["type"] == "websocket.disconnect":
                return
            kind, now = "text" if event.get("bytes") is None else "bytes", time.monotonic()
            taken[kind] = max(taken[kind], now) + 1 / MESSAGES_PER_SECOND
            excess = taken[kind] - now - BURST / MESSAGES_PER_SECOND
            if excess > 0 and kind == "text":  # interrupts without end leave no frames to show
                raise RefusedError(f"More than {MESSAGES_PER_SECOND} messages a second came.", POLICY)
            await asyncio.sleep(max(excess, 0))
            try:
                if (data := event.get("bytes")) is not None:
                    await self._hear(session, protocol.read_samples(data), start.rate)
                elif await self._follow(session, protocol.read_message(event.get("text") or "")):
                    return
            except (ValueError, TypeError, ImportError) as error:
                await self._send({"type": "error", "message": str(error), "fatal": False})

    async def _hear(self, session: LiveSession, samples: Any, rate: int) -> None:
        if not len(samples):
            return
        if self.is_listening:
            await asyncio.to_thread(session.listen, samples, rate)
            return
        began = time.monotonic()
        await asyncio.to_thread(session.push_audio, samples, rate)
        self.counters.totals["audio_seconds"] += len(samples) / rate
        if self._first_audio is None and self.state != "speaking":
            self._first_audio = began

    async def _follow(self, session: LiveSession, message: dict[str, Any]) -> bool:
        """Do what a message says; true if the session is to end."""
        kind = message["type"]
        if kind == "end_of_speech":
            session.end_of_speech()
        elif kind == "interrupt":
            session.interrupt()
            self._first_audio = None
        elif kind in ("listen", "speak"):
            self.is_listening = kind == "listen"
        elif kind == "set":
            session.set(**protocol.read_controls(message))
        elif kind == "say":
            await self._hear_text(session, message)
        elif kind == "stats":
            await self._send({"type": "stats", **vars(session.stats)})
        elif kind == "start":
            raise ValueError("The session has begun already.")
        return kind == "close"

    async def _hear_text(self, session: LiveSession, message: dict[str, Any]) -> None:
        text, voice = message.get("text"), message.get("voice", next(iter(VOICES)))
        if not isinstance(text, str) or not isinstance(voice, str):
            raise ValueError("`text` and `voice` must be text.")
        samples, rate = await asyncio.to_thread(_speak, text, voice)
        self.is_listening = False
        await self._hear(session, samples, rate)
        session.end_of_speech()

    # --- what it gets -------------------------------------------------------------------------------------------------

    async def _show(self, session: LiveSession, start: protocol.Start) -> None:
        pack: Callable[[LiveFrame], bytes] = lambda frame: protocol.pack_frame(frame, start.quality)  # noqa: E731
        fragments = _Fragments(session) if start.output == "fmp4" else None
        try:
            last, dropped, told = -1, 0, 0.0
            async for frame in session:
                await self._tell_state(frame)
                dropped, last = dropped + frame.index - last - 1, frame.index
                if dropped and time.monotonic() - told > TOLD_SECONDS:
                    await self._send({"type": "dropped", "frames": dropped, "index": frame.index})
                    dropped, told = 0, time.monotonic()
                if data := await asyncio.to_thread(fragments.pack if fragments else pack, frame):
                    await self._send(data)
                self.counters.totals["frames"] += 1
                self.counters.late.add(frame.late_seconds)
        finally:
            if fragments is not None:
                await asyncio.to_thread(fragments.stop)

    async def _tell_state(self, frame: LiveFrame) -> None:
        state = "speaking" if frame.is_speaking else "listening" if self.is_listening else "idle"
        if state != self.state:
            self.state = state
            await self._send({"type": "state", "state": state, "index": frame.index})
        if frame.is_speaking and self._first_audio is not None:
            self.counters.first_frame.add(time.monotonic() - self._first_audio)
            self._first_audio = None

    async def _send(self, message: bytes | dict[str, Any]) -> None:
        """Send a message; whoever does not take it in time is disconnected."""
        seconds = self.settings.send_seconds
        sent = self.socket.send_bytes(message) if isinstance(message, bytes) else self.socket.send_json(message)
        try:
            await asyncio.wait_for(sent, seconds)
        except asyncio.TimeoutError:
            raise RefusedError(f"A message was not taken for {seconds:g} s.", POLICY) from None
        except RuntimeError:  # it has left
            raise WebSocketDisconnect from None


class _Fragments:
    """Frames of a session as parts of an MP4; begins with the first frame, whose size it takes."""

    def __init__(self, session: LiveSession):
        self._fps, self._rate = session.fps, session.settings.sampling_rate
        self._writer: FragmentWriter | None = None
        self._last = -1

    def pack(self, frame: LiveFrame) -> bytes:
        if self._writer is None:
            self._writer = FragmentWriter(self._fps, frame.image.shape[1::-1], self._rate).__enter__()
        self._writer.write(frame.image, frame.audio, times=frame.index - self._last)
        self._last = frame.index
        data = self._writer.take()
        return protocol.pack_fragment(frame.index, data, frame.is_speaking, frame.late_seconds) if data else b""

    def stop(self) -> None:
        if self._writer is not None:
            self._writer.stop()


def _speak(text: str, voice: str) -> tuple[Any, int]:
    """Speech `(n,)` of a text, and its rate."""
    try:
        with temporary_folder() as folder:
            samples, rate = load_audio(speak(text, Path(folder), voice))
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        raise ValueError("`text` could not be spoken.") from error
    return samples.mean(0), rate

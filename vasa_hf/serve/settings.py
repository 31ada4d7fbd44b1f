"""Limits of a server, and the errors that end a connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vasa_hf
from vasa_hf.checks import check_number

EXAMPLE = str(Path(vasa_hf.__file__).parent / "assets" / "portrait.jpg")
# Codes of RFC 6455 with which a connection ends.
POLICY, UNEXPECTED, TRY_LATER = 1008, 1011, 1013


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
        examples (`Mapping[str, str]`): Names and files of portraits; the first is that of clients that name none.
        options (`dict`): More options of `pipe.live`.
    """

    max_sessions: int = 2
    token: str = ""
    origins: Sequence[str] = ()
    max_minutes: float = 30.0
    idle_seconds: float = 120.0
    start_seconds: float = 10.0
    send_seconds: float = 5.0
    examples: Mapping[str, str] = field(default_factory=lambda: {"portrait": EXAMPLE})
    options: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise `ValueError` for values out of range."""
        check_number("max_sessions", self.max_sessions, 1, 1000, whole=True)
        for name in ("max_minutes", "idle_seconds", "start_seconds", "send_seconds"):
            check_number(name, getattr(self, name), 0.001, 1e6)
        if not self.token.isascii() or not (self.token or "x").isprintable():
            raise ValueError("`token` must be of printable ASCII characters: it travels in a header, too.")
        if not self.examples:
            raise ValueError("`examples` must have a portrait, got none.")


class RefusedError(Exception):
    """A connection ends with this message and code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code

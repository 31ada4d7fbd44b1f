"""The socket that a server listens on."""

from __future__ import annotations

import socket

STUCK_SECONDS = 30
SEND_BYTES = 2**18


def open_listener(host: str, port: int, send_bytes: int = SEND_BYTES) -> socket.socket:
    """Listen, for connections that keep little and end when the other side takes nothing for `STUCK_SECONDS`.

    The system's usual buffers hold many seconds of frames, which a slow client would get late.

    Args:
        host (`str`): Address of this machine.
        port (`int`): Port; 0 for a free one.
        send_bytes (`int`, defaults to 256 KiB): What the system keeps for a client that is slow.

    Raises:
        ValueError: If the address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(f"`host` and `port` must be free on this machine, got {host}:{port}: {error}.") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; elsewhere the system decides when it gives up
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * STUCK_SECONDS)
    return listener

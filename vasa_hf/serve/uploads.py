"""Images that clients upload before they begin a session."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

MAX_UPLOADS, KEPT_SECONDS = 16, 600.0


class Uploads:
    """The last images, for some minutes, in memory alone.

    Args:
        clock (`Callable`): Seconds of a clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._images: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def add(self, data: bytes) -> str:
        """Keep the file of an image; returns its id."""
        self._forget()
        while len(self._images) >= MAX_UPLOADS:
            self._images.popitem(last=False)
        name = secrets.token_urlsafe(16)
        self._images[name] = self._clock(), data
        return name

    def get(self, name: str) -> bytes:
        """The file of an image.

        Raises:
            ValueError: If it is not there, or no longer.
        """
        self._forget()
        if name not in self._images:
            raise ValueError("`upload` must be the id of an image of the last minutes: upload it again.")
        return self._images[name][1]

    def _forget(self) -> None:
        while self._images and self._clock() - next(iter(self._images.values()))[0] > KEPT_SECONDS:
            self._images.popitem(last=False)

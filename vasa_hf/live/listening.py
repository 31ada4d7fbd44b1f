"""How a listener moves: a nod where the other side pauses. A rule, not a trained model."""

# Not in the paper: VASA-1 names conversation as its use and has no model of a listener.

from __future__ import annotations

import math

import numpy as np

BLOCK_SECONDS = 0.04
MIN_SPEECH, MIN_PAUSE, MIN_BETWEEN = 0.8, 0.25, 1.6  # seconds: of speech before a nod, of pause, from nod to nod
FLOOR_DB, ABOVE_NOISE_DB = -50.0, 9.0  # speech is louder than both
NOD_RAD, NOD_FRAMES = 0.07, 15


class Listener:
    """Finds the moments at which a listener nods: speech, then a pause.

    The level of the noise is the lowest one so far, which rises by 1 dB a second.
    """

    def __init__(self) -> None:
        self._rest = np.zeros(0, np.float32)
        self._noise_db = 0.0
        self._speech = self._pause = 0.0
        self._since_nod = MIN_BETWEEN

    def push(self, samples: np.ndarray, rate: int) -> int:
        """Hear samples `(n,)`; returns the number of nods that they cause."""
        size, nods = round(BLOCK_SECONDS * rate), 0
        samples = np.concatenate([self._rest, samples])
        for start in range(0, len(samples) - size + 1, size):
            level = 10 * math.log10(float(np.mean(samples[start : start + size] ** 2)) + 1e-12)
            self._noise_db = min(self._noise_db + BLOCK_SECONDS, level)
            nods += self._hear(level > max(FLOOR_DB, self._noise_db + ABOVE_NOISE_DB))
        self._rest = samples[len(samples) // size * size :]
        return nods

    def _hear(self, is_speech: bool) -> bool:
        self._since_nod += BLOCK_SECONDS
        if is_speech:
            self._speech, self._pause = self._speech + BLOCK_SECONDS, 0.0
            return False
        self._pause += BLOCK_SECONDS
        if self._pause < MIN_PAUSE or self._speech < MIN_SPEECH:
            return False
        self._speech = 0.0
        if self._since_nod < MIN_BETWEEN:
            return False
        self._since_nod = 0.0
        return True


def nod(frame: int) -> float:
    """Pitch in radians, down > 0, of a nod `frame` frames after its beginning."""
    return NOD_RAD * math.sin(math.pi * frame / NOD_FRAMES) ** 2 if 0 <= frame < NOD_FRAMES else 0.0

"""Where the shots of a video begin."""

from __future__ import annotations

import numpy as np

CUT_LEAST, CUT_RATIO = 0.09, 3.5  # change of the small copy, of its range; and over what it has been of late


class CutFinder:
    """Tells at which frames a new shot begins, frame by frame.

    A frame begins a shot if its small copy differs from the last one by much, and by far more than has been usual over
    the last second: a hand before the camera is much, but not at once.
    """

    def __init__(self):
        self._last: np.ndarray | None = None
        self._usual: list[float] = []

    def __call__(self, frame: np.ndarray) -> bool:
        """Whether a shot begins with this frame, uint8 `(height, width, 3)`; never at the first one."""
        small = shrunk(frame)
        if self._last is None:
            self._last = small
            return False
        difference = float(np.abs(small - self._last).mean())
        self._last = small
        usual = float(np.median(self._usual)) if self._usual else 0.0
        if difference > CUT_LEAST and difference > CUT_RATIO * usual:
            self._usual = []
            return True
        self._usual = [*self._usual[-24:], difference]
        return False


def shrunk(frame: np.ndarray, size: int = 16) -> np.ndarray:
    """Mean colours of `size`² cells (fewer pixels where the image is large), float32 in [0, 1]."""
    height, width = frame.shape[:2]
    part = frame[:: max(1, height // (size * 8)), :: max(1, width // (size * 8))]
    height, width = part.shape[0] // size * size, part.shape[1] // size * size
    if not height or not width:
        return np.asarray(part, np.float32).mean((0, 1), keepdims=True) / 255
    cells = part[:height, :width].reshape(size, height // size, size, width // size, 3)
    return cells.mean((1, 3), dtype=np.float32) / 255

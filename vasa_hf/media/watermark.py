"""An invisible mark in the pixels of a frame, and the test for it.

The mark is a fixed pattern of `GRID` x `GRID` signs, stretched over the frame. In each cell the brightness is moved a
little until it differs from that of the cells around it in the direction of the cell's sign: not at all where it does
so already, by up to `FLAT` grey levels in flat cells, and by more where texture hides it. As the pattern is tied to the
sides of the frame it needs no search after resizing; after cropping, detection looks for the part that is left. It does
not outlive turning, heavy filters, or an attempt to remove it. `docs/provenance.md` has figures.

Detection is a sign test: with r any image computed from the frames alone and p random signs, `<r, p> / |r|` has mean 0,
variance 1, and exceeds t with probability at most exp(-t^2 / 2) (Hoeffding) and at most 3.18 times that of a normal
variable (Bentkus and Dzindzalieta 2015, "A tight Gaussian bound for weighted sums of Rademacher random variables"),
whatever the image is; the largest of n such scores, with at most n times that.
"""

# Not in the paper: VASA-1's note on societal impacts names forgery detection as the safeguard, and no marking.

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

# Chosen on clips of 256 pixels at H.264 crf 32, full and half size, among 32 to 64 cells.
GRID = 40
DETAIL = 4  # samples a side of a cell, to measure texture by
FLAT, TEXTURE, MOST = 1.1, 0.6, 5.0  # how far a cell may move: FLAT + TEXTURE * deviation in it, in grey levels of 255
MARGIN = 3.5  # difference from the cells around that is enough, in grey levels
MAX_RMS = 2.4  # of the mark, in grey levels: with rounding, 40 dB
MARK_THRESHOLD = 3.72  # unmarked videos and images score above it with probability exp(-3.72^2 / 2) = 0.1 % at most
# Parts of a side that cropping may leave: as looked for in the first frame, and in `GROUPS` means of others.
FINE_KEPT, KEPT = (tuple(1 - 0.15 * step / steps for step in range(steps + 1)) for steps in (12, 6))
GROUPS = 4
# Batcher's network, which sorts eight values by comparing pairs.
SORTING = [(0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7), (1, 2), (5, 6)]
SORTING += [(0, 4), (1, 5), (2, 6), (3, 7), (2, 4), (3, 5), (1, 2), (3, 4), (5, 6)]
GAUSSIAN = 3.18  # factor of the bound by a normal variable
# Shares of the allowance for false alarms: all frames, the first, mirrored, each frame, two searches for crops.
ALL, FIRST, MIRRORED, EACH, CROPS = 3, 3, 12, 12, 24


@functools.lru_cache(maxsize=1)
def _signs() -> np.ndarray:
    return np.random.RandomState(0x5A5A).choice([-1.0, 1.0], size=(GRID, GRID)).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _dither(height: int, width: int) -> np.ndarray:
    """Return what is added before rounding down, so that no edges show."""
    return np.random.RandomState(0).random_sample((height, width)).astype(np.float32)


def embed_mark(
    frame: np.ndarray,  # [H, W, 3] uint8
) -> np.ndarray:
    """Return a copy of an RGB frame with the invisible mark (at least 40 dB to the frame)."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"`frame` must be uint8 of shape (height, width, 3), got {frame.dtype} {frame.shape}.")
    height, width = frame.shape[:2]
    blocks = _detail(frame).reshape(GRID, DETAIL, GRID, DETAIL)
    flat = FLAT * min(1.0, math.sqrt(256 / min(height, width)))  # larger cells outlive more
    cells, most = blocks.mean((1, 3)), np.clip(flat + TEXTURE * blocks.std((1, 3)), 0, MOST)
    signs, moved = _signs(), np.zeros((GRID, GRID), np.float32)  # `moved` in the direction of the sign
    for _ in range(3):  # cells change the difference of those around them
        reached = signs * _difference(cells + signs * moved)
        hopeless = reached - moved < -2 * most  # the image's own difference is too large to turn
        moved = np.clip(moved + 0.7 * (MARGIN - reached), 0, np.where(hopeless, np.minimum(most, flat / 2), most))
    # Interpolation lowers the mean of a cell by a sixth.
    shift = np.array(Image.fromarray(1.2 * signs * moved).resize((width, height), Image.Resampling.BICUBIC))
    shift *= min(1.0, MAX_RMS / max(float(np.sqrt(np.square(shift).mean())), 1e-9))
    marked = frame + np.floor(shift + _dither(height, width)).astype(np.int16)[..., None]
    return np.clip(marked, 0, 255, out=marked).astype(np.uint8)


def detect_mark(
    frames: np.ndarray | Iterable[np.ndarray],
    max_frames: int = 50,
) -> float:
    """Score the presence of the mark; above `MARK_THRESHOLD` it is there.

    Tests share the allowance for false alarms: all frames together, the first frame (a key frame: what a coder predicts
    from it carries the mark along with what moves), the same mirrored, each frame, and the first frame and the means of
    some groups as what cropping has left of marked ones. The last take 0.7 s and are made if the others find nothing.

    Args:
        frames (`np.ndarray` of shape `(height, width, 3)` or iterable of them): One frame, or those of a video, uint8.
        max_frames (`int`, defaults to 50): Frames looked at, from the first on.

    Returns:
        `float`: At least 0; an unmarked image scores above s with probability `exp(-s**2 / 2)` at most.
    """
    frames = [frames] if isinstance(frames, np.ndarray) and frames.ndim == 3 else frames
    details = [_detail(frame) for frame in itertools.islice(frames, max_frames)]
    if not details:
        raise ValueError("`frames` must hold at least one frame, got none.")
    evidence = [_evidence(detail.reshape(GRID, DETAIL, GRID, DETAIL).mean((1, 3))) for detail in details]
    total, each = sum(evidence), [_score(one) for one in evidence]
    tests = [(ALL, _score(total)), (FIRST, each[0]), (MIRRORED, _score(total[:, ::-1])), (EACH * len(each), max(each))]
    score = max(_allow_for(*test) for test in tests)
    if score <= MARK_THRESHOLD:
        searches = [(details[:1], FINE_KEPT)]
        if len(details) > 1:
            parts = np.array_split(np.arange(len(details)), min(GROUPS, len(details)))
            searches.append(([np.mean([details[i] for i in part], axis=0) for part in parts], KEPT))
        for images, kept in searches:
            cropped = list(_score_crops(images, kept))
            score = max(score, _allow_for(CROPS * len(cropped), max(cropped)))
    return score


def _allow_for(trials: float, best: float) -> float:
    """Return s so that none of `trials` exceeds `best` but with probability `exp(-s**2 / 2)` at most."""
    chance = -(max(best, 0.0) ** 2) / 2
    tail = math.erfc(max(best, 0.0) / math.sqrt(2)) / 2
    if tail > 0:  # else too small for a float
        chance = min(chance, math.log(GAUSSIAN * tail))
    return math.sqrt(max(-2 * (chance + math.log(trials)), 0.0))


def _score(evidence: np.ndarray) -> float:
    return float((evidence * _signs()).sum() / max(np.sqrt((evidence**2).sum()), 1e-9))


def _score_crops(details: Sequence[np.ndarray], kept_parts: Sequence[float]) -> Iterator[float]:
    """Score images together as each part of a marked frame that leaves one of `kept_parts` of each side.

    A part begins at a whole or a half cell of the pattern; all that differ by whole cells come from one correlation.
    """
    images, spectrum, side = [Image.fromarray(detail) for detail in details], np.fft.rfft2(_signs()), GRID * DETAIL
    parts = []  # of a side: first whole cell, whole cells in sight, where they begin and end, possible shifts
    for kept, begin in itertools.product(kept_parts, (0.0, 0.5)):
        shifts = math.floor(GRID * (1 - kept) - begin + 1e-6) + 1
        if shifts > 0:
            first = math.ceil(begin)
            count = math.floor(GRID * kept - (first - begin) + 1e-6)
            start = (first - begin) / (GRID * kept) * side
            parts.append((first, count, start, min(start + count / (GRID * kept) * side, side), shifts))
    for (top, rows, y0, y1, downs), (left, columns, x0, x1, rights) in itertools.product(parts, parts):
        sizes = {"size": (columns, rows), "resample": Image.Resampling.HAMMING, "box": (x0, y0, x1, y1)}
        evidence = sum(_evidence(np.asarray(image.resize(**sizes))) for image in images)
        shifted = np.fft.irfft2(np.fft.rfft2(evidence, (GRID, GRID)).conj() * spectrum, (GRID, GRID))
        found = shifted[top : top + downs, left : left + rights]
        yield from (found / max(np.sqrt((evidence**2).sum()), 1e-9)).ravel().tolist()


def _detail(frame: np.ndarray) -> np.ndarray:
    """Return the brightness of a frame, `DETAIL` samples to the side of a cell."""
    grey = Image.fromarray(np.asarray(frame)).convert("L").convert("F")
    return np.asarray(grey.resize((GRID * DETAIL, GRID * DETAIL), Image.Resampling.HAMMING))


def _extend(cells: np.ndarray) -> np.ndarray:
    """Repeat the border once."""
    rows, columns = (np.arange(-1, side + 1).clip(0, side - 1) for side in cells.shape)
    return cells[rows[:, None], columns]


def _difference(cells: np.ndarray) -> np.ndarray:
    """Return how far each cell lies from the median of the eight around it."""
    padded, (rows, columns) = _extend(cells), cells.shape
    around = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    ranked = [padded[y : y + rows, x : x + columns] for y, x in around]
    for i, j in SORTING:  # faster than `np.median`
        ranked[i], ranked[j] = np.minimum(ranked[i], ranked[j]), np.maximum(ranked[i], ranked[j])
    return cells - (ranked[3] + ranked[4]) / 2


def _evidence(cells: np.ndarray) -> np.ndarray:
    """Return the differences, limited, and weighted down in busy places, where the image's own are large."""
    difference = _difference(cells)
    padded = _extend(np.abs(difference))
    padded = padded[:-2] + padded[1:-1] + padded[2:]
    busy = (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 9
    return difference / (difference**2 + 16.0) / (busy + 2.0)

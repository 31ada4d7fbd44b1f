"""Telling that a video is synthetic: tags in the file, and an invisible mark in its pixels.

The mark adds a fixed pattern of `GRID` x `GRID` signs, stretched over the frame, to the brightness. Being tied to the
frame's sides it outlives compression and resizing; cropping or turning the picture removes it, as does anyone who sets
out to, and where the whole picture moves a coder carries it along with the picture: then only key frames tell. It is an
aid for honest users and for filters of training data, no proof.

Detection is a sign test: with r any image computed from the frames alone and p random signs, `<r, p> / |r|` has mean 0,
variance 1, and exceeds t with probability at most exp(-t^2 / 2) (Hoeffding) whatever the picture is; the largest of n
such scores, with at most n exp(-t^2 / 2).
"""

# Not in the paper: VASA-1's note on societal impacts names forgery detection as the safeguard, and no marking.

from __future__ import annotations

import datetime
import functools
import json
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from vasa_hf import __version__

from .ffmpeg import READ_OPTIONS, input_url, run_ffmpeg, shortened

# Chosen on H.264 clips at crf 23 and 28, where 24, 32 and 48 cells score lower. At crf 23 real faces of 256 pixels
# score 16 and more, of 128 pixels 7 to 11; smaller frames lose the mark.
GRID = 64
STRENGTH = 1.5  # grey levels of 255
MARK_THRESHOLD = 7.0  # unmarked videos score above it with probability 51 exp(-24.5) = 1.2e-9 at most
SYNTHETIC_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def provenance_tags(**entries: Any) -> dict[str, str]:
    """Return the container tags of a synthetic video: `comment` for people, `description` (JSON) for programs.

    Args:
        entries: Further entries of the manifest, such as `model="vasa-small"`.
    """
    manifest = {
        "tool": "vasa_hf",
        "version": __version__,
        "model": None,
        **entries,
        "synthetic": True,
        "digital_source_type": SYNTHETIC_SOURCE,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    model = f", model {manifest['model']}" if manifest["model"] else ""
    return {"comment": f"AI-generated (vasa_hf {__version__}{model})", "description": json.dumps(manifest)}


def read_provenance(path: str | os.PathLike) -> dict[str, Any] | None:
    """Read the manifest of a video of ours; `None` if it has none (tags are lost when a site re-encodes).

    The mark in the pixels is separate: `detect_mark(read_video(path))`.

    Raises:
        ValueError: If the file is missing or no media file.
    """
    done = run_ffmpeg([*READ_OPTIONS, "-v", "error", "-i", input_url(path), "-f", "ffmetadata", "pipe:1"])
    if done.returncode != 0:
        raise ValueError(f"`path` must be a media file, got {os.fspath(path)!r}: {shortened(done.stderr)}")
    text = done.stdout.decode("utf-8", "replace")
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "description":
            try:
                # ffmetadata escapes = ; # and \ by a backslash, JSON writes line breaks as \n already.
                manifest = json.loads("".join(_unescaped(value)))
            except json.JSONDecodeError:
                return None
            return manifest if isinstance(manifest, dict) and manifest.get("tool") == "vasa_hf" else None
    return None


def _unescaped(text: str) -> Iterable[str]:
    letters = iter(text)
    for letter in letters:
        yield next(letters, "") if letter == "\\" else letter


@functools.lru_cache(maxsize=1)
def _signs() -> np.ndarray:
    return np.random.RandomState(0x5A5A).choice([-1.0, 1.0], size=(GRID, GRID)).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _pattern(height: int, width: int) -> np.ndarray:
    """Return the mark for a frame size, int16 `(height, width, 1)`; rounding is dithered, so that no edges show."""
    smooth = np.asarray(Image.fromarray(_signs()).resize((width, height), Image.Resampling.BICUBIC))
    dither = np.random.RandomState(0).random_sample((height, width))
    return np.floor(smooth.clip(-1, 1) * STRENGTH + dither).astype(np.int16)[..., None]


def embed_mark(
    frame: np.ndarray,  # [H, W, 3] uint8
) -> np.ndarray:
    """Return a copy of an RGB frame with the invisible mark (46 dB to the frame)."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"`frame` must be uint8 of shape (height, width, 3), got {frame.dtype} {frame.shape}.")
    marked = frame + _pattern(*frame.shape[:2])
    return np.clip(marked, 0, 255, out=marked).astype(np.uint8)


def detect_mark(
    frames: np.ndarray | Iterable[np.ndarray],
    max_frames: int = 50,
) -> float:
    """Score the presence of the mark; above `MARK_THRESHOLD` it is there.

    Args:
        frames (`np.ndarray` of shape `(height, width, 3)` or iterable of them): One frame, or those of a video, uint8.
        max_frames (`int`, defaults to 50): Frames looked at, from the first on.

    Returns:
        `float`: Standard deviations above chance; of the sum of all frames or of the best frame, whichever is larger.
    """
    frames = [frames] if isinstance(frames, np.ndarray) and frames.ndim == 3 else frames
    total, count, best = np.zeros((GRID, GRID)), 0, -np.inf
    for frame in frames:
        grey = Image.fromarray(np.asarray(frame)).convert("L").convert("F")
        residual = _residual(np.asarray(grey.resize((GRID, GRID), Image.Resampling.BOX)))
        total += residual
        best = max(best, _score(residual))
        count += 1
        if count == max_frames:
            break
    if count == 0:
        raise ValueError("`frames` must hold at least one frame, got none.")
    return max(best, _score(total))


def _score(residual: np.ndarray) -> float:
    return float((residual * _signs()).sum() / max(np.sqrt((residual**2).sum()), 1e-9))


def _residual(cells: np.ndarray) -> np.ndarray:
    """Return what of each cell its neighbours do not foretell, weighted down where the picture is busy."""
    padded = np.pad(cells, 1, mode="edge")
    around = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    residual = cells - np.median([padded[y : y + GRID, x : x + GRID] for y, x in around], axis=0)
    size = np.pad(np.abs(residual), 1, mode="edge")
    activity = sum(size[y : y + GRID, x : x + GRID] for y in range(3) for x in range(3)) / 9
    return residual / (activity + 1.0) ** 2

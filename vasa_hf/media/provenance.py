"""Tags in a video file that say it is synthetic; the mark in its pixels is in `watermark.py`."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable
from typing import Any

from vasa_hf import __version__

from .ffmpeg import READ_OPTIONS, input_url, run_ffmpeg, shorten_stderr

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
        raise ValueError(f"`path` must be a media file, got {os.fspath(path)!r}: {shorten_stderr(done.stderr)}")
    text = done.stdout.decode("utf-8", "replace")
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key.lower() == "description":  # WebM writes capitals
            try:
                # ffmetadata escapes = ; # and \ by a backslash, JSON writes line breaks as \n already.
                manifest = json.loads("".join(_unescape(value)))
            except json.JSONDecodeError:
                return None
            return manifest if isinstance(manifest, dict) and manifest.get("tool") == "vasa_hf" else None
    return None


def _unescape(text: str) -> Iterable[str]:
    letters = iter(text)
    for letter in letters:
        yield next(letters, "") if letter == "\\" else letter

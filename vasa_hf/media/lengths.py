"""Whether a file is shorter than it says: ffmpeg reads one that was cut off to its end and calls that a success."""

from __future__ import annotations

import os
import re
import struct
from typing import BinaryIO

from .ffmpeg import READ_OPTIONS, find_duration, input_url, run_ffmpeg

UNKNOWN = (0, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)  # of files written as a stream
ROUNDING_BYTES = 16  # writers differ in whether padding counts


def find_missing_end(path: str | os.PathLike, seconds: float) -> str | None:
    """What tells that the end of a file is missing, or `None`.

    Containers with the number of their bytes (WAV, AVI, AIFF, AU, CAF, W64) or an end (Ogg) are looked at; of others
    that hold audio only, the duration in the header. Raw streams (AAC, AC-3, MPEG-TS) tell neither.

    Args:
        path (`str` or `os.PathLike`): An audio file or a video that ffmpeg reads.
        seconds (`float`): How much could be read.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        wanted = _claimed_bytes(file.read(4096))
        if wanted is not None and wanted > size + ROUNDING_BYTES:
            return f"its header tells of {wanted:,} bytes, it has {size:,}"
        file.seek(0)
        if file.read(4) == b"OggS" and not _ogg_ends(file, size):
            return "its last page is missing"
    if wanted is not None:
        return None
    header = run_ffmpeg([*READ_OPTIONS, "-i", input_url(path)]).stderr.decode("utf-8", "replace")
    duration = find_duration(header)
    if duration is None or "Estimating duration" in header or re.search(r"Stream #\d.*?: Video: ", header):
        return None
    claimed = duration[0] - duration[1]
    if claimed - seconds > max(0.5, 0.05 * claimed):
        return f"its header tells of {claimed:.1f} s, it holds {seconds:.1f} s"
    return None


def _claimed_bytes(head: bytes) -> int | None:
    """How long a file must be by its first bytes; `None` if they do not tell."""
    if len(head) < 40:
        return None
    if head[:4] in (b"RIFF", b"RIFX", b"FORM"):
        order = "<" if head[:4] == b"RIFF" else ">"
        (count,) = struct.unpack_from(f"{order}I", head, 4)
        places = [count] if count in UNKNOWN else [count, _data_end(head, order) - 8]
        return None if count in UNKNOWN else max(places) + 8
    if head[:4] == b".snd":
        offset, count = struct.unpack_from(">2I", head, 4)
        return None if count in UNKNOWN else offset + count
    if head[:4] == b"riff":  # Sony Wave64
        (count,) = struct.unpack_from("<Q", head, 16)
        return None if count in UNKNOWN else count
    if head[:4] == b"caff":
        return _caf_bytes(head)
    return None


def _data_end(head: bytes, order: str) -> int:
    """Where the samples of a WAV file end by their own header, as a recorder that was stopped may have left it."""
    place = 12
    while place + 8 <= len(head):
        name, (count,) = head[place : place + 4], struct.unpack_from(f"{order}I", head, place + 4)
        if name == b"data":
            return 0 if count in UNKNOWN else place + 8 + count
        place += 8 + count + count % 2
    return 0


def _caf_bytes(head: bytes) -> int | None:
    place = 8
    while place + 12 <= len(head):
        name, (count,) = head[place : place + 4], struct.unpack_from(">Q", head, place + 4)
        if count in UNKNOWN:
            return None
        place += 12 + count
        if name == b"data":
            return place
    return None


def _ogg_ends(file: BinaryIO, size: int) -> bool:
    """Whether the last page of the file is whole and says that it is the last one of its stream."""
    file.seek(max(0, size - (1 << 17)))
    tail = file.read()
    place = tail.rfind(b"OggS")
    if place < 0 or place + 27 > len(tail):
        return False
    segments = tail[place + 27 : place + 27 + tail[place + 26]]
    return bool(tail[place + 5] & 4) and place + 27 + tail[place + 26] + sum(segments) <= len(tail)

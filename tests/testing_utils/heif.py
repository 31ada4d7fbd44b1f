"""HEIC files as telephones write them, from ffmpeg's HEVC: a grid of tiles that is turned when it is shown."""

import struct
import subprocess

import numpy as np

from vasa_hf.media.ffmpeg import ffmpeg_path


def box(kind, *parts):
    data = b"".join(parts)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def full_box(kind, version, flags, *parts):
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def encode_tile(tile, folder):
    """HEVC of one picture: its `hvcC` box and its data."""
    height, width = tile.shape[:2]
    path = folder / "tile.mp4"
    command = [ffmpeg_path(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-i", "pipe:", "-c:v", "libx265", "-x265-params", "log-level=none:lossless=0:crf=4", "-tag:v", "hvc1"]
    command += ["-pix_fmt", "yuv420p", "-frames:v", "1", str(path)]
    subprocess.run(command, input=np.ascontiguousarray(tile).tobytes(), check=True)
    data = path.read_bytes()

    def find(kind):
        start = data.index(kind) - 4
        return data[start : start + struct.unpack(">I", data[start : start + 4])[0]]

    return find(b"hvcC"), find(b"mdat")[8:]


def write_heic(path, picture, tile=64, quarter_turns=0):
    """Write a picture `(height, width, 3)`, uint8, whose sides are multiples of `tile`, as a grid of HEVC tiles.

    `quarter_turns` are turned counter-clockwise by whoever shows it.
    """
    height, width = picture.shape[:2]
    rows, columns = height // tile, width // tile
    cells = [
        encode_tile(picture[y * tile :][:tile, x * tile :][:, :tile], path.parent)
        for y in range(rows)
        for x in range(columns)
    ]
    count, grid = len(cells), len(cells) + 1
    size = lambda w, h: full_box(b"ispe", 0, 0, struct.pack(">II", w, h))  # noqa: E731
    properties = box(b"ipco", cells[0][0], size(tile, tile), size(width, height), box(b"irot", bytes([quarter_turns])))
    owned = b"".join(struct.pack(">HBBB", i, 2, 0x81, 2) for i in range(1, count + 1))
    owned += struct.pack(">HBBB", grid, 2, 3, 0x84)
    entries = [full_box(b"infe", 2, 1, struct.pack(">HH4sB", i, 0, b"hvc1", 0)) for i in range(1, count + 1)]
    entries.append(full_box(b"infe", 2, 0, struct.pack(">HH4sB", grid, 0, b"grid", 0)))
    description = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)

    def meta(offset):
        places = b""
        for i, (_, data) in enumerate(cells, start=1):
            places += struct.pack(">HHHHII", i, 0, 0, 1, offset, len(data))
            offset += len(data)
        places += struct.pack(">HHHHII", grid, 1, 0, 1, 0, len(description))
        return full_box(
            b"meta", 0, 0,
            full_box(b"hdlr", 0, 0, struct.pack(">I4s12xB", 0, b"pict", 0)),
            full_box(b"pitm", 0, 0, struct.pack(">H", grid)),
            full_box(b"iloc", 1, 0, struct.pack(">BBH", 0x44, 0, grid), places),
            full_box(b"iinf", 0, 0, struct.pack(">H", grid), *entries),
            full_box(b"iref", 0, 0, box(b"dimg", struct.pack(f">HH{count}H", grid, count, *range(1, count + 1)))),
            box(b"iprp", properties, full_box(b"ipma", 0, 0, struct.pack(">I", grid), owned)),
            box(b"idat", description),
        )  # fmt: skip

    head = box(b"ftyp", b"heic", struct.pack(">I", 0), b"mif1", b"heic")
    start = len(head) + len(meta(0)) + 8
    path.write_bytes(head + meta(start) + box(b"mdat", *(data for _, data in cells)))

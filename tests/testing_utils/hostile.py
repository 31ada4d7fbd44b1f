"""Files and folders as broken downloads, mistakes and attackers make them, the same ones each time.

Each function writes into a folder and returns `{name of the case: path}`. Whole files, for comparison, are `whole_*`.
"""

import gzip
import io
import json
import os
import random
import struct
import subprocess
import wave
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save

from tests.testing_utils.pipelines import make_audio, make_image
from vasa_hf.media.ffmpeg import ffmpeg_path

DEEP = b"[" * 100_000
POSIX = os.name == "posix"


def whole_picture(kind="PNG", seed=0, **options):
    """Bytes of a small picture."""
    buffer = io.BytesIO()
    Image.fromarray(make_image(seed)).save(buffer, kind, **options)
    return buffer.getvalue()


def whole_sound(seconds=0.5, rate=16_000):
    """Bytes of a WAV file with a voice-like sound."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(rate)
        file.writeframes((make_audio(seconds, rate=rate) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def encoded(folder, name, *options):
    """Bytes of what ffmpeg makes."""
    command = [ffmpeg_path(), "-v", "error", "-y", *map(str, options), name]
    subprocess.run(command, cwd=folder, check=True, stdin=subprocess.DEVNULL)
    return (Path(folder) / name).read_bytes()


def whole_video(folder, name="whole.mp4", *options):
    """Bytes of a video of six frames with sound."""
    video = ("-f", "lavfi", "-i", "testsrc=size=96x80:rate=25:duration=0.24")
    return encoded(folder, name, *video, "-f", "lavfi", "-i", "sine=r=16000:d=0.24", *options)


def damaged(rng, data, count, begin=0):
    """`count` copies of some bytes: a few changed, cut out, doubled, or cut off."""
    for index in range(count):
        copy = bytearray(data)
        place = rng.randrange(begin, len(copy))
        if index % 4 == 0:
            for _ in range(rng.randrange(1, 20)):
                copy[rng.randrange(begin, len(copy))] = rng.randrange(256)
        elif index % 4 == 1:
            del copy[place : place + rng.randrange(1, 200)]
        elif index % 4 == 2:
            copy[place:place] = copy[place : place + rng.randrange(1, 200)]
        else:
            del copy[place:]
        yield bytes(copy)


def places(folder):
    """What is no regular file, by name: folders, loops of links, pipes, devices."""
    folder = Path(folder)
    (folder / "folder").mkdir()
    made = {"folder": folder / "folder", "missing": folder / "missing", "empty name": Path("")}
    made["zero byte in the name"] = "a\0b"
    made["long name"] = folder / ("a" * 300)
    if POSIX:
        (folder / "loop a").symlink_to(folder / "loop b")
        (folder / "loop b").symlink_to(folder / "loop a")
        (folder / "dangling").symlink_to(folder / "missing")
        os.mkfifo(folder / "pipe")
        made |= {name: folder / name for name in ("loop a", "dangling", "pipe")}
        made |= {device: Path(device) for device in ("/dev/zero", "/dev/full", "/dev/null", "/proc/self/mem")}
    return made


def _write(folder, suffix, contents):
    made = {}
    for index, (name, data) in enumerate(contents.items()):
        made[name] = Path(folder) / f"{index}{suffix}"
        made[name].write_bytes(data)
    return made


def _png(width, height, data=b"", extra=b"", depth=8, color=2):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def pictures(folder):
    """Files that are no picture, or a damaged one."""
    rng = random.Random(1)
    jpeg, png = whole_picture("JPEG", quality=95), whole_picture("PNG")
    contents = {
        "no bytes": b"",
        "one byte": b"\xff",
        "text": b"this is no picture\n",
        "noise": rng.randbytes(5000),
        "sound": whole_sound(),
        "web page": b"<html><body>404 not found</body></html>",
        "vector graphics": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="100" height="100"/></svg>',
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n",
        "pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
        "playlist": b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        "png of 10^10 pixels": _png(100_000, 100_000, b"\0" * 100),
        "png of 0 pixels": _png(0, 0),
        "png of one line": _png(60, 100_000, b"\0" * 100),
        "png without data": _png(96, 88),
        "png of an unknown depth": _png(96, 88, b"\0" * 26_000, depth=3),
        "png with a bomb in its text": _png(
            96, 88, b"\0" * (88 * 289), _text_chunk(zlib.compress(b"a" * 100_000_000, 9))
        ),
        "grey png of 20,000 x 20,000": _png(20_000, 20_000, b"\0" * 1000, color=0),
        "one pixel": _one_pixel(),
        "gif without frames": b"GIF89a\x60\x00\x58\x00\x00\x00\x00;",
        "bmp of a negative width": _bmp(-96, 88),
        "bmp of 2^31 lines": _bmp(96, -(2**31)),
        "tiff that points to itself": b"II*\0\x08\0\0\0\x01\0\0\x01\x04\0\x01\0\0\0\x60\0\0\0\x08\0\0\0",
        "tiff of 10^5 x 10^5": _tiff_header(100_000, 100_000),
        "floats with NaN": _float_tiff(np.nan),
        "floats below 0": _float_tiff(-5.0),
        "heic without a picture": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 200,
        "avif without a picture": b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + b"\0" * 200,
        "jpeg xl without a picture": b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 100,
        "webp that is cut": whole_picture("WEBP")[:60],
        "jpeg 2000 that is cut": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 60,
        "qoi of 10^9 pixels": b"qoif" + struct.pack(">II", 40_000, 25_000) + b"\3\0" + b"\0" * 16,
        "ppm of a negative side": b"P6 -5 5 255\n" + b"\0" * 75,
        "ppm of words": b"P6 wide high 255\n",
        "ppm of 10^12 pixels": b"P6 1000000 1000000 255\n\0",
        "tga of noise": b"\0\0\x0a" + b"\0" * 9 + struct.pack("<HH", 65_535, 65_535) + b"\x18\0" + rng.randbytes(50),
    }
    for kind in ("ICO", "PCX", "DDS", "ICNS", "SGI", "IM", "EPS", "PDF"):  # Pillow reads them; nobody's portrait is one
        contents[kind] = whole_picture(kind)
    contents |= {
        "zip": b"PK\3\4" + png,
        "gzip": gzip.compress(png),
        "png after a byte order mark": b"\xef\xbb\xbf" + png,
        "png with a bomb in its colour profile": whole_picture("PNG", icc_profile=b"a" * 20_000_000),
        "motion": b"\x08\0\0\0\0\0\0\0{}      ",
    }
    contents |= {f"jpeg of {size} bytes": jpeg[:size] for size in (2, 10, 100, 500, len(jpeg) // 2)}
    contents |= {f"png of {size} bytes": png[:size] for size in (8, 30, 60, len(png) // 2)}
    return _write(folder, ".jpg", contents)


def changed_pictures(folder, count):
    """Pictures of several kinds with wrong bytes: some can still be read, and then must give a whole video."""
    rng = random.Random(2)
    kinds = [whole_picture(kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")]
    contents = {}
    for index, data in enumerate(kinds):
        copies = damaged(rng, data, -(-count // len(kinds)))
        contents |= {f"changed {index}, {i}": copy for i, copy in enumerate(copies)}
    return _write(folder, ".png", dict(list(contents.items())[:count]))


def _text_chunk(data):
    body = b"Comment\0\0" + data
    return struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))


def _one_pixel():
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()


def _bmp(width, height):
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def _tiff_header(width, height):
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 200), (279, 4, 10)]
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in tags)
    return b"II*\0\x08\0\0\0" + body + b"\0" * 200


def _float_tiff(value):
    buffer = io.BytesIO()
    picture = np.full((96, 88), 0.5, np.float32)
    picture[40:50] = value
    Image.fromarray(picture, "F").save(buffer, "TIFF")
    return buffer.getvalue()


def _wav(channels=1, rate=16_000, bits=16, data=b"", size=None, kind=1):
    size = len(data) if size is None else size
    block = max(1, channels * bits // 8) & 0xFFFF
    body = struct.pack("<HHIIHH", kind, channels, rate, (rate * block) & 0xFFFFFFFF, block, bits)
    return (
        b"RIFF"
        + struct.pack("<I", 36)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + body
        + b"data"
        + struct.pack("<I", size)
        + data
    )


def sounds(folder):
    """Files that are no sound, or one that nothing can be made of."""
    rng = random.Random(3)
    samples = (make_audio(0.5) * 32767).astype("<i2").tobytes()
    floats = make_audio(0.5).astype("<f4")
    nan, infinite = floats.copy(), floats.copy()
    nan[1000], infinite[1000] = np.nan, np.inf
    contents = {
        "no bytes": b"",
        "text": b"this is no sound\n",
        "noise": rng.randbytes(5000),
        "picture": whole_picture(),
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n",
        "list of files": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "header alone": whole_sound()[:44],
        "half a header": whole_sound()[:20],
        "20 samples": _wav(data=samples[:40]),
        "rate 0": _wav(rate=0, data=samples),
        "rate 2^31": _wav(rate=2**31, data=samples),
        "rate 50": _wav(rate=50, data=samples),
        "0 channels": _wav(channels=0, data=samples),
        "0 bits": _wav(bits=0, data=samples),
        "unknown codec": _wav(kind=0x7777, data=samples),
        "NaN": _wav(bits=32, kind=3, data=nan.tobytes()),
        "infinity": _wav(bits=32, kind=3, data=infinite.tobytes()),
        "video without sound": encoded(folder, "silent.mp4", "-f", "lavfi", "-i", "testsrc=size=64x48:d=0.4"),
        "subtitles": b"1\n00:00:00,000 --> 00:00:01,000\nhello\n",
        "midi": b"MThd\0\0\0\x06\0\0\0\x01\0\x60MTrk\0\0\0\x04\0\xff\x2f\0",
        "mp3 tag alone": b"ID3\x03\0\0\0\0\x0f\x76" + b"\0" * 100,
        "flac header alone": b"fLaC\0\0\0\x22" + b"\0" * 34,
        "ogg page of nothing": b"OggS\0\x02" + b"\0" * 40,
        "wav without a format": whole_sound()[:12] + whole_sound()[36:],
        "wav with a chunk of 2 GB": whole_sound()[:36] + b"LIST\xff\xff\xff\x7f" + whole_sound()[36:],
        "wav after a tag": b"ID3\x03\0\0\0\0\0\x0a" + b"\0" * 10 + whole_sound(),
        "aiff of 4 GB": b"FORM\xff\xff\xff\xffAIFF",
        "samples as JSON": b'{"samples": [0, 0]}',
        "pickled array": b"\x93NUMPY\x01\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "zip": b"PK\3\4" + whole_sound(),
        "playlist of a disc": b'FILE "/etc/passwd" WAVE\n  TRACK 01 AUDIO\n',
        "dash": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        "titles of a disc": b"# VobSub index file, v7",
        "game music": b"NESM\x1a" + b"\0" * 200,
        "tracker music": b"\0" * 1080 + b"M.K." + b"\0" * 1000,
        "script of titles": b"[Script Info]\nTitle: x\n[Events]\n",
    }
    return _write(folder, ".wav", contents)


def changed_sounds(folder, count):
    """Sounds of several kinds with wrong bytes, and headers that claim too much."""
    rng = random.Random(4)
    (Path(folder) / "whole.wav").write_bytes(whole_sound())
    kinds = [(".wav", whole_sound())]
    kinds += [(f".{kind}", encoded(folder, f"whole.{kind}", "-i", "whole.wav")) for kind in ("flac", "mp3", "ogg")]
    made = _write(folder, ".claims.wav", {"data of 4 GB": _wav(data=whole_sound()[44:], size=2**32 - 1)})
    for index, (suffix, data) in enumerate(kinds):
        copies = damaged(rng, data, -(-(count - 1) // len(kinds)))
        made |= _write(folder, suffix, {f"changed {index}, {i}": copy for i, copy in enumerate(copies)})
    return dict(list(made.items())[:count])


def videos(folder):
    """Files that are no video, or one without frames."""
    rng = random.Random(5)
    mp4 = whole_video(folder)
    contents = {
        "no bytes": b"",
        "text": b"this is no video\n",
        "noise": rng.randbytes(5000),
        "sound": whole_sound(),
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n",
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        "without its index": mp4[: mp4.index(b"moov") - 4] if b"moov" in mp4 else mp4[:100],
        "first 40 bytes": mp4[:40],
        "boxes of 2^63 bytes": b"\0\0\0\x18ftypisom\0\0\0\0isommp41\0\0\0\x01moov" + b"\x7f" + b"\xff" * 7,
        "box in itself": b"\0\0\0\x18ftypisom\0\0\0\0isommp41" + b"\0\0\0\x08moov" * 1000,
        "matroska header alone": b"\x1a\x45\xdf\xa3\x93\x42\x82\x88matroska" + b"\0" * 50,
    }
    return _write(folder, ".mp4", contents)


def changed_videos(folder, count):
    """Videos with wrong bytes."""
    rng, made = random.Random(6), {}
    for suffix, options in ((".mp4", ()), (".mkv", ()), (".webm", ("-c:v", "libvpx", "-c:a", "libopus"))):
        data = whole_video(folder, f"video{suffix}", *options)
        copies = damaged(rng, data, -(-count // 3))
        made |= _write(folder, suffix, {f"changed {suffix}, {i}": copy for i, copy in enumerate(copies)})
    return dict(list(made.items())[:count])


def motions(folder, channels=10):
    """Files that are no motion of `channels` channels."""
    rng = random.Random(7)
    header = {"format": "vasa_hf.motion", "fps": "25", "dynamics": json.dumps({"z_dyn": channels - 6})}
    motion = np.zeros((5, channels), np.float32)
    motion[:, 5] = 0.5

    def file(array=motion, name="motion", **changes):
        metadata = {key: value for key, value in {**header, **changes}.items() if value is not None}
        return save({name: array}, metadata)

    def with_header(text, data=b"\0" * 400):
        return struct.pack("<Q", len(text)) + text + data

    claims = {"motion": {"dtype": "F32", "shape": [2**40, channels], "data_offsets": [0, 2**42 * channels]}}
    overlap = {"motion": {"dtype": "F32", "shape": [5, 10], "data_offsets": [300, 100]}}
    nan, huge, still = motion.copy(), motion.copy(), motion.copy()
    nan[2], huge[:, 8], still[:, 5] = np.nan, 1e38, 0.0
    contents = {
        "no bytes": b"",
        "text": b"this is no motion\n",
        "noise": rng.randbytes(3000),
        "pickle": b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93\x8c\x05false\x85R.",
        "other tensors": save({"weight": motion}),
        "other name": file(name="other"),
        "other format": file(format="lerobot"),
        "without a rate": file(fps=None),
        "rate 1/0": file(fps="1/0"),
        "rate 1e999999999": file(fps="1e999999999"),
        "rate of words": file(fps="fast"),
        "without channels": file(dynamics=None),
        "other channels": file(dynamics='{"expression": 63}'),
        "channels of text": file(dynamics='{"z_dyn": "4"}'),
        "channels nested deep": file(dynamics=DEEP.decode()),
        "channels in a list": file(dynamics="[4]"),
        "negative channels": file(dynamics='{"z_dyn": -4}'),
        "two videos": file(np.stack([motion, motion])),
        "no frame": file(motion[:0]),
        "one axis": file(motion[0]),
        "whole numbers": file(motion.astype(np.int32)),
        "another width": file(motion[:, :7]),
        "NaN": file(nan),
        "scale 0": file(still),
        "values of 1e38": file(huge),
        "header of 2^60 bytes": struct.pack("<Q", 2**60) + b"{}",
        "header nested deep": with_header(DEEP),
        "header of no JSON": with_header(b"{motion}"),
        "shape of 2^40": with_header(json.dumps(claims).encode()),
        "offsets that overlap": with_header(json.dumps(overlap).encode()),
    }
    contents |= {f"changed {i}": copy for i, copy in enumerate(damaged(rng, file(), 6))}
    return _write(folder, ".safetensors", contents)


def cameras(folder):
    """Files that hold no keyframes of a camera."""
    texts = {
        "no bytes": b"",
        "text": b"orbit",
        "deep": DEEP,
        "cut": b"[[0, 0, 0, 1",
        "object": b'{"seconds": 0}',
        "number": b"5",
        "null": b"null",
        "no keys": b"[]",
        "empty key": b"[[]]",
        "three numbers": b"[[0, 0, 0]]",
        "words": b'[["a", "b", "c", "d"]]',
        "key of text": b'["abcd"]',
        "null in it": b"[[0, null, 0, 1]]",
        "truth": b"[[0, true, 0, 1]]",
        "NaN": b"[[0, NaN, 0, 1]]",
        "infinity": b"[[0, Infinity, 0, 1]]",
        "1e999": b"[[0, 1e999, 0, 1]]",
        "10^400": b"[[" + b"9" * 400 + b", 0, 0, 1]]",
        "9 x 10^4 digits": b"[[" + b"9" * 90_000 + b", 0, 0, 1]]",
        "times that fall": b"[[1, 0, 0, 1], [0, 0, 0, 1]]",
        "times that stay": b"[[0, 0, 0, 1], [0, 10, 0, 1]]",
        "before 0": b"[[-1, 0, 0, 1]]",
        "inside the head": b"[[0, 0, 0, 0.02]]",
        "through the head": b"[[0, 0, 0, 1], [1, 0, 0, 0.02], [2, 0, 0, 1]]",
        "20,000 keys": json.dumps([[i, 0, 0, 1] for i in range(20_000)]).encode(),
        "bytes of no text": b"\xff\xfe\xfd",
    }
    return _write(folder, ".json", texts)


def targets(folder):
    """Places where no video can be written."""
    folder = Path(folder)
    (folder / "folder.mp4").mkdir()
    (folder / "file").write_text("x")
    made = {
        "folder": folder / "folder.mp4",
        "in no folder": folder / "no" / "out.mp4",
        "in a file": folder / "file" / "out.mp4",
        "long name": folder / ("a" * 300 + ".mp4"),
        "long path": folder / Path(*["b" * 200] * 30) / "out.mp4",
        "other container": folder / "out.avi",
        "no name": folder / "",
        "nothing": "",
    }
    if POSIX:
        os.mkfifo(folder / "pipe.mp4")
        (folder / "full.mp4").symlink_to("/dev/full")
        (folder / "null.mp4").symlink_to("/dev/null")
        (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
        names = {"pipe": "pipe.mp4", "link to /dev/full": "full.mp4", "link to /dev/null": "null.mp4"}
        made |= {name: folder / file for name, file in names.items()} | {"loop of links": folder / "loop.mp4"}
        made |= {"/dev/full": "/dev/full", "/proc": "/proc/out.mp4", "/dev/full as a folder": "/dev/full/out.mp4"}
    return made

"""A client of `vasa-hf serve`: sends speech, writes what comes back.

    python -m vasa_hf.serve.client ws://127.0.0.1:8000/v1/live hello.wav -o out.mp4 --image me.jpg

It is meant to be read: everything that a client needs is in `talk`.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from websockets.sync.client import connect

from vasa_hf.media.audio import load_audio
from vasa_hf.media.video import VideoWriter
from vasa_hf.serve.protocol import Frame, unpack_frame


def talk(address: str, samples: np.ndarray, rate: int, image: bytes | None = None, token: str = "") -> Iterator[Frame]:
    """Let a face say something, and yield its frames until it is done.

    Args:
        address (`str`): Of the server, such as `ws://127.0.0.1:8000/v1/live`.
        samples (`np.ndarray` of shape `(n,)`): Speech in [-1, 1].
        rate (`int`): Its rate in Hz.
        image (`bytes`, *optional*): A JPEG, PNG or WebP file; the server's example if left out.
        token (`str`, *optional*): What the server asks for.

    Raises:
        RuntimeError: If the server refuses; holds its message.
    """
    with connect(address, max_size=None) as socket:
        start = {"type": "start", "consent": True, "rate": rate, "token": token}
        start["image"] = None if image is None else base64.b64encode(image).decode()
        socket.send(json.dumps(start))
        socket.send((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
        socket.send(json.dumps({"type": "end_of_speech"}))
        has_spoken = False
        for message in socket:
            if isinstance(message, str):
                told = json.loads(message)
                if told["type"] == "error":
                    raise RuntimeError(told["message"])
                continue
            frame = unpack_frame(message)
            if has_spoken and not frame.is_speaking:
                return
            has_spoken |= frame.is_speaking
            if has_spoken:
                yield frame


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("audio")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.mp4")
    parser.add_argument("--image")
    parser.add_argument("--token", default="")
    options = parser.parse_args()
    samples, rate = load_audio(options.audio)
    image = None if options.image is None else Path(options.image).read_bytes()
    shown, sound, last = [], [], -1
    for frame in talk(options.address, samples.mean(0), rate, image, options.token):
        picture = np.asarray(Image.open(io.BytesIO(frame.jpeg)))
        shown += [picture] * (1 if last < 0 else frame.index - last)  # frames that were left out
        sound.append(frame.audio)
        last = frame.index
    audio = np.concatenate(sound).astype(np.float32) / 32768
    with VideoWriter(options.output, 25, shown[0].shape[1::-1], (audio, 24_000)) as writer:
        for picture in shown:
            writer.write(picture)


if __name__ == "__main__":
    main()

"""Clips for the forgery detector: recorded people, and the same people as each system makes them.

    python -m vasa_hf.evaluation.forgery_clips --data data/train -o clips --gaia GAIA --each 6

`clips/real` has the recordings, `clips/vasa1`, `moda`, `gaia` and `vasa3d` what the systems make of one frame of a
recording: talking with the voice of any recording, and driven by the motion of one. All files are written in the same
way, at the same size and quality and without marks, so that nothing but the images tells them apart. The name of the
person is the first part of a file's name; those of avatars are the avatars'. What is there is not made again.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vasa_hf import (
    GaiaAvatarPipeline,
    ModaTalkingHeadPipeline,
    Vasa3DAvatarPipeline,
    VasaTalkingFacePipeline,
)
from vasa_hf.files import write_csv
from vasa_hf.geometry.crops import WHOLE_PICTURE_BOX
from vasa_hf.media.audio import load_audio
from vasa_hf.media.video import VideoReader, VideoWriter
from vasa_hf.metrics.motion import FPS
from vasa_hf.outputs import to_uint8

FRAMES = 32  # of a clip, at most
SIZE = 256


def choose_clips(data: Path, each: int, seed: int = 0) -> dict[str, list[Path]]:
    """Person -> at most `each` recordings of a data folder, drawn at random.

    Raises:
        ValueError: If the folder has no `clips/*.mp4`.
    """
    paths = sorted(data.glob("clips/*.mp4"))
    if not paths:
        raise ValueError(f"`data` must have clips/*.mp4, got {str(data)!r}.")
    known: dict[str, str] = {}
    people: dict[str, list[Path]] = {}
    if (data / "identities.csv").exists():
        with open(data / "identities.csv", newline="") as file:
            known = {clip: person for clip, person, *_ in csv.reader(file)}
    for path in paths:
        people.setdefault(known.get(path.stem, path.stem).replace("_", "-"), []).append(path)
    rng = np.random.default_rng(seed)
    return {person: [own[i] for i in rng.permutation(len(own))[:each]] for person, own in people.items()}


def write_clip(path: Path, frames: Iterable[np.ndarray]) -> None:
    """Write square frames `(size, size, 3)` uint8 as all clips here are written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, FPS, (SIZE, SIZE), provenance=False) as writer:
        for frame in islice(frames, FRAMES):
            writer.write(resize(frame))


def make_clips(
    pipe: Any, folder: Path, people: dict[str, list[Path]], voices: Sequence[Path], seed: int = 0
) -> Iterator[Path]:
    """Write what a system makes of each recording, talking and driven in turn, and yield the files.

    Args:
        pipe (`TalkingHeadPipeline`): The system.
        folder (`Path`): Of its clips.
        people (`dict[str, list[Path]]`): As `choose_clips` gives them.
        voices (`Sequence[Path]`): Recordings whose audio and motion drive the people.
        seed (`int`, *optional*, defaults to 0): Seed of every choice.
    """
    box = [SIZE * share for share in WHOLE_PICTURE_BOX]
    for number, (person, recording) in enumerate((person, path) for person, own in people.items() for path in own):
        rng = np.random.default_rng([seed, number])
        driver, kind = voices[int(rng.integers(len(voices)))], ("talks", "driven")[number % 2]
        path = folder / f"{person}_{recording.stem}_{kind}.mp4"
        if path.exists():
            continue
        shown = [resize(frame) for frame in VideoReader(recording, FPS)]
        image, options = shown[rng.integers(len(shown))], {"box": box, "output_type": "np"}
        if kind == "talks":
            audio = trim(*load_audio(driver))
            generator = torch.Generator().manual_seed(number)
            frames = pipe(image, audio, generator=generator, num_inference_steps=10, **options).frames
        else:
            motion = [resize(frame) for frame in VideoReader(driver, FPS)][:FRAMES]
            frames = pipe.animate(image, motion, **options).frames
        write_clip(path, to_uint8(frames))
        yield path


def make_avatar_clips(
    pipe: Vasa3DAvatarPipeline, folder: Path, avatar: str, voices: Sequence[Path], count: int, seed: int = 0
) -> Iterator[Path]:
    """Write an avatar that talks with `count` voices, over plain greys, and yield the files."""
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        path = folder / f"{avatar}_{number:03d}_talks.mp4"
        voice, grey = voices[int(rng.integers(len(voices)))], (float(rng.uniform(0.1, 1.0)),) * 3
        if path.exists():
            continue
        generator = torch.Generator().manual_seed(number)
        options = {"output_size": SIZE, "background": grey, "output_type": "np", "num_inference_steps": 10}
        frames = pipe(avatar, trim(*load_audio(voice)), generator=generator, **options).frames
        write_clip(path, to_uint8(frames))
        yield path


def resize(frame: np.ndarray) -> np.ndarray:
    """A frame of `SIZE` pixels."""
    if frame.shape[:2] == (SIZE, SIZE):
        return frame
    return np.asarray(Image.fromarray(frame).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def trim(audio: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """The first `FRAMES` frames' time of audio `(channels, samples)`."""
    return audio[:, : FRAMES * rate // FPS], rate


def write_real(data: Path, people: dict[str, list[Path]]) -> None:
    """Write the recordings of `people` again, to `data/clips` with `data/identities.csv`."""
    rows = []
    for person, own in people.items():
        for recording in own:
            path = data / "clips" / f"{person}_{recording.stem}.mp4"
            rows.append({"clip": path.stem, "identity": person})
            if not path.exists():
                write_clip(path, VideoReader(recording, FPS))
    write_csv(data / "identities.csv", rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="folders with clips/*.mp4 of recorded people")
    parser.add_argument("-o", "--output", required=True, help="folder")
    parser.add_argument("--each", type=int, default=6, help="recordings of a person (%(default)s)")
    parser.add_argument("--each-real", type=int, help="recordings kept as they are (as many)")
    parser.add_argument("--vasa1", default="vasa-small", help="pipeline, or none (%(default)s)")
    parser.add_argument("--moda", default="moda-small", help="pipeline, or none (%(default)s)")
    parser.add_argument("--gaia", default="none", help="pipeline, or none (%(default)s)")
    parser.add_argument("--vasa3d", default="vasa3d-small", help="pipeline, or none (%(default)s)")
    parser.add_argument("--avatars", nargs="*", default=["mara"], help="ready avatars of it (%(default)s)")
    parser.add_argument("--avatar-clips", type=int, default=60, help="clips of an avatar (%(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    output = Path(options.output)
    people: dict[str, list[Path]] = {}
    real: dict[str, list[Path]] = {}
    for data in map(Path, options.data):
        people |= choose_clips(data, options.each, options.seed)
        real |= choose_clips(data, options.each_real or options.each, options.seed)
    voices = [path for own in people.values() for path in own if VideoReader(path).has_audio]
    write_real(output / "real", real)
    systems = {"vasa1": VasaTalkingFacePipeline, "moda": ModaTalkingHeadPipeline, "gaia": GaiaAvatarPipeline}
    for name, pipeline in systems.items():
        if (model := getattr(options, name)) != "none":
            pipe = pipeline.from_pretrained(model).to(options.device)
            pipe.set_progress_bar_config(disable=True)
            for path in make_clips(pipe, output / name, people, voices, options.seed):
                print(path, flush=True)
    if options.vasa3d != "none":
        pipe = Vasa3DAvatarPipeline.from_pretrained(options.vasa3d).to(options.device)
        pipe.set_progress_bar_config(disable=True)
        for avatar in options.avatars:
            for path in make_avatar_clips(pipe, output / "vasa3d", avatar, voices, options.avatar_clips, options.seed):
                print(path, flush=True)


if __name__ == "__main__":
    main()

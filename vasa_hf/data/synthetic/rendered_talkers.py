"""Rendered talkers as training clips: photographs that speak, with exact labels.

`python -m vasa_hf.data.synthetic.rendered_talkers --data DIR --head FILE --pipeline FOLDER --output DIR` writes shards
(see `vasa_hf.data.shards`); with `--sheet FILE.png` a contact sheet instead.

Each clip: one photograph, one voice (`talkers`), a lamp, a camera (size of the head, colours, noise, sharpness) and
H.264 at a random quality. Labels are those of the head, not of a detector.
"""

import argparse
import dataclasses
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vasa_hf.data.landmark_dynamics import LandmarkDynamics
from vasa_hf.data.shards import ShardWriter
from vasa_hf.data.synthetic.head_points import HeadPoints
from vasa_hf.data.synthetic.heads import RenderedHead
from vasa_hf.data.synthetic.rendered_faces import sources, usable
from vasa_hf.data.synthetic.speech import PHONES
from vasa_hf.data.synthetic.talkers import CLIP_SECONDS, EMOTION_SHAPES, FPS, Talker, random_manner, talk
from vasa_hf.files import temporary_folder
from vasa_hf.geometry.landmarks import eye_openness, gaze_angles, mouth_openness
from vasa_hf.head.loading import load_head
from vasa_hf.head.mesh import HeadMesh
from vasa_hf.hub import resolve
from vasa_hf.media.video import VideoWriter

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Camera:
    """What light and camera do to a clip.

    Attributes:
        light (`tuple` of three `float`): One more lamp, see `HeadState`.
        zoom (`float`): Size of the head over that in the photograph.
        gain (`numpy.ndarray` of shape `(3,)`): On each colour.
        gamma (`float`): Of the brightness.
        noise (`float`): Deviation of the sensor's noise, of 255.
        softness (`float`): Side of the image before it is enlarged again, over its side.
        crf (`int`): Quality of libx264.
    """

    light: tuple[float, float, float]
    zoom: float
    gain: np.ndarray
    gamma: float
    noise: float
    softness: float
    crf: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Camera":
        """A random one; half of the lamps are off."""
        lamp = rng.normal(size=3) * [0.25, 0.2, 0.1] * (rng.random() < 0.5)
        return cls(
            light=tuple(lamp.tolist()),
            zoom=float(np.exp(rng.normal() * 0.05)),
            gain=np.exp(rng.normal(size=3) * 0.03 + rng.normal() * 0.06),
            gamma=float(np.exp(rng.normal() * 0.12)),
            noise=float(rng.exponential(1.5)) if rng.random() < 0.6 else 0.0,
            softness=float(rng.uniform(0.5, 1.0)) if rng.random() < 0.4 else 1.0,
            crf=int(rng.integers(18, 33)),
        )

    def shoot(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A rendered frame `(size, size, 3)` uint8 as this camera sees it."""
        if self.softness < 1:
            side = round(len(image) * self.softness)
            small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
            image = np.asarray(small.resize(image.shape[:2], Image.Resampling.BICUBIC))
        table = 255 * (np.arange(256)[:, None] / 255) ** self.gamma * self.gain  # [256, 3]
        seen = np.stack([table[:, c].astype(np.float32)[image[..., c]] for c in range(3)], -1)
        if self.noise:
            seen += rng.standard_normal(seen.shape, dtype=np.float32) * self.noise
        return (seen + 0.5).clip(0, 255).astype(np.uint8)


@dataclasses.dataclass
class TalkingPhotograph:
    """A photograph that can talk.

    Args:
        mesh (`HeadMesh`): The head that wears it.
        picture (`torch.Tensor` of shape `(side, side, 3)`): uint8 RGB.
        landmarks (`torch.Tensor` of shape `(162, 2)`): Its labelled points, fractions of the image.
        pose (`torch.Tensor` of shape `(7,)`): Its labelled pose.
    """

    mesh: HeadMesh
    picture: Tensor
    landmarks: Tensor
    pose: Tensor

    def __post_init__(self) -> None:
        self.head = RenderedHead(self.mesh, self.picture, self.landmarks, self.pose)
        self.points = HeadPoints(self.head)

    def talk(self, rng: np.random.Generator, camera: Camera, seconds: float, held_out: bool = False) -> Talker:
        """What it says and does; it rests near where the photograph looks."""
        manner = random_manner(rng, held_out)
        rest = 0.85 * self.pose[:3].numpy().astype(np.float64) + rng.normal(size=3) * [0.05, 0.03, 0.02]
        talker = talk(rng, dataclasses.replace(manner, rest=rest), self.points, seconds)
        talker.track.zoom = talker.track.zoom * camera.zoom
        return talker

    def frames(self, talker: Talker, camera: Camera, rng: np.random.Generator, size: int) -> Iterator[np.ndarray]:
        """Its images, uint8 `(size, size, 3)`."""
        for frame in range(len(talker.track)):
            yield camera.shoot(self.head.render(talker.track.state(frame, camera.light), size).image.numpy(), rng)


def talking_photographs(
    mesh: HeadMesh, data: Path, cache: Path, seed: int = 0
) -> Iterator[tuple[str, "TalkingPhotograph"]]:
    """Labelled portraits in random order: open eyes into the camera, lips nearly shut, whole and not far turned."""
    for name, picture, landmarks, pose in sources(data, cache, 0, np.random.default_rng(seed)):
        calm = mouth_openness(landmarks)[0] < 0.05 and gaze_angles(landmarks, pose).abs().amax() < 0.25
        upright = pose[1].abs() < 0.3 and pose[2].abs() < 0.25
        if calm and upright and pose[0].abs() < 0.45 and usable(landmarks, pose, eye_openness(landmarks)):
            yield name, TalkingPhotograph(mesh, torch.from_numpy(np.array(picture)), landmarks, pose)


def clip_labels(photograph: TalkingPhotograph, talker: Talker, dynamics: LandmarkDynamics) -> dict[str, np.ndarray]:
    """Arrays of a clip's `npz`: those of `FaceLabels`, gaze, emotion, speech or not, phones at 50 per second."""
    labels = photograph.points.labels(talker.track, dynamics)
    count = len(talker.track)
    phones = talker.speech.phone_ids(2 * count)
    return {
        "names": np.array(labels.names),
        "offsets": np.array([0, count], np.int32),
        "landmarks": (labels.landmarks * 8192 + 8192).round().clamp(0, 32767).numpy().astype(np.uint16),
        "pose": labels.pose.numpy(),
        "eye_open": labels.eye_open.numpy().astype(np.float16),
        "mouth": labels.mouth.numpy().astype(np.float16),
        "iris_offset": labels.iris_offset.numpy().astype(np.float16),
        "gaze": gaze_angles(labels.landmarks, labels.pose).numpy().astype(np.float16),
        "expression": talker.emotion.astype(np.float16),
        "speech": phones[::2] != PHONES.index("sil"),
        "phones": phones.astype(np.uint8),
        "landmark_ids": labels.ids.astype(np.int16),
        "canonical": labels.canonical.numpy(),
    }


@torch.no_grad()
def write_clip(
    writer: ShardWriter,
    key: str,
    name: str,
    photograph: TalkingPhotograph,
    dynamics: LandmarkDynamics,
    seed: list[int],
    size: int = 256,
    held_out: bool = False,
    seconds: float | None = None,
) -> int:
    """Render one clip into the shards and return its number of frames.

    Args:
        writer (`ShardWriter`): Of the shards.
        key (`str`): The clip's.
        name (`str`): Of the photograph, which is the clip's identity.
        photograph (`TalkingPhotograph`): Who talks.
        dynamics (`LandmarkDynamics`): Knows the canonical face of the labels.
        seed (`list` of `int`): Of voice, motion and camera.
        size (`int`, defaults to 256): Side of the frames.
        held_out (`bool`, defaults to `False`): Voices that training never hears.
        seconds (`float`, *optional*): Length; 4 to 12 seconds if left out.
    """
    rng = np.random.default_rng(seed)
    camera = Camera.draw(rng)
    talker = photograph.talk(rng, camera, seconds or float(rng.uniform(*CLIP_SECONDS)), held_out)
    with temporary_folder() as folder:
        path = Path(folder) / "clip.mp4"
        sound = (talker.speech.samples[None], talker.speech.sampling_rate)
        with VideoWriter(path, FPS, (size, size), sound, provenance=False, crf=camera.crf) as video:
            for frame in photograph.frames(talker, camera, rng, size):
                video.write(frame)
        about = {
            "key": key,
            "identity": name,
            "source": "rendered",
            "voice": talker.speech.voice,
            "frames": len(talker.track),
            "fps": FPS,
            "size": size,
            "expressions": list(EMOTION_SHAPES),
        }
        files = {"mp4": path.read_bytes(), "npz": clip_labels(photograph, talker, dynamics), "json": about}
        writer.write(key, files | {"wav": talker.speech.samples[: len(talker.track) * 640]})
    return len(talker.track)


# --- preview ----------------------------------------------------------------------------------------------------------


def telling_frames(talker: Talker, points: HeadPoints) -> dict[str, int]:
    """Frames that show what a talker can do, by name; what does not occur is missing."""
    track = talker.track
    found = {}
    for name in ("m", "b", "p", "aa", "iy", "uw", "f", "sil"):
        spans = [(end - start, start, end) for phone, start, end in talker.speech.phones if phone == name]
        _, start, end = max(spans, default=(0, 0, 0))  # the longest one
        if (start + end) / 2 * FPS < len(track) and spans:
            found[f"/{name}/"] = int((start + end) / 2 * FPS)
    landmarks, _ = points.landmarks(track)
    found["widest"] = int(mouth_openness(landmarks)[:, 0].argmax())
    found["blink"] = int(eye_openness(landmarks).mean(1).argmin())
    found["gaze aside"] = int(track.gaze[:, 0].abs().argmax())
    found["brows"] = int(track.weights[:, track.names.index("browInnerUp_L")].argmax())
    return found


def contact_sheet(
    photographs: list[TalkingPhotograph], size: int = 224, seconds: float = 6.0, strip: int = 12
) -> Image.Image:
    """One talker a row pair: telling frames, then `strip` frames one after another."""
    from PIL import ImageDraw

    columns = 12
    sheet = Image.new("RGB", (columns * size, 2 * len(photographs) * size))
    draw = ImageDraw.Draw(sheet)
    for row, photograph in enumerate(photographs):
        rng = np.random.default_rng(row)
        camera = Camera.draw(rng)
        talker = photograph.talk(rng, camera, seconds)
        named = list(telling_frames(talker, photograph.points).items())[:columns]
        first = int(talker.prosody.phrases[0, 0] * FPS) if len(talker.prosody.phrases) else 0
        run = [(str(first + k), first + k) for k in range(strip) if first + k < len(talker.track)]
        for line, frames in enumerate((named, run)):
            for column, (label, frame) in enumerate(frames):
                image = photograph.head.render(talker.track.state(frame, camera.light), size).image.numpy()
                place = (column * size, (2 * row + line) * size)
                sheet.paste(Image.fromarray(camera.shoot(image, rng)), place)
                draw.text((place[0] + 4, place[1] + 2), label, fill="yellow")
    return sheet


def main() -> None:
    """Write clips or a contact sheet."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with portraits.npz and portraits/")
    parser.add_argument("--head", type=Path, help="ict_facekit.npz; the built-in head if left out")
    parser.add_argument("--pipeline", default="vasa-small", help="pipeline whose z_dyn is meant")
    parser.add_argument("--output", type=Path, required=True, help="folder of the shards, or the sheet's file")
    parser.add_argument("--sheet", type=int, default=0, help="a contact sheet of this many talkers instead of shards")
    parser.add_argument("--cache", type=Path, help="folder of decoded portraits; without it next to the output")
    parser.add_argument("--minutes", type=float, default=5.0, help="length of all clips together")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--held-out", action="store_true", help="voices that training never hears")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.pipeline = Path(resolve(options.pipeline))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    dynamics = LandmarkDynamics.load(options.pipeline / "landmark_dynamics.safetensors")
    mesh = load_head(options.head, dynamics.canonical)
    photographs = talking_photographs(mesh, options.data, options.cache or options.output.parent, options.seed)
    if options.sheet:
        chosen = [photograph for _, (_, photograph) in zip(range(options.sheet), photographs, strict=False)]
        contact_sheet(chosen).save(options.output)
        return
    frames, clip, start, busy = 0, 0, time.monotonic(), time.process_time()
    with ShardWriter(options.output, about={"made by": "vasa_hf.data.synthetic.rendered_talkers"}) as writer:
        for name, photograph in photographs:
            key = f"talker-{options.seed}-{clip:06d}"
            seed = [options.seed, clip, int(options.held_out)]
            frames += write_clip(writer, key, name, photograph, dynamics, seed, options.size, options.held_out)
            clip += 1
            if clip % 10 == 0 or frames >= options.minutes * 60 * FPS:
                speed = frames / (time.process_time() - busy)
                logger.info("%d clips, %d frames, %.0f s, %.0f frames per second of processor time",
                            clip, frames, time.monotonic() - start, speed)  # fmt: skip
            if frames >= options.minutes * 60 * FPS:
                break


if __name__ == "__main__":
    main()

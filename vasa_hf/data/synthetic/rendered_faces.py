"""A set of rendered faces for training.

`python -m vasa_hf.data.synthetic.rendered_faces --data DIR --head FILE --output DIR` writes it.

Every labelled portrait (and, with `--clip-people`, one frame of as many clips) is worn by the head and rendered with
closed, half-closed and winking eyes, averted gaze, open mouths, emotions and turned heads: rare in photographs.
Writes `rendered.npy`, frames (N, 256, 256, 3) uint8, and `rendered.npz`, labels as in `clips.npz`, a file per person.
"""

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vasa_hf.data.face_pairs import decode_frames
from vasa_hf.data.landmark_dynamics import FULL_EMOTION_SHAPES, FaceLabels
from vasa_hf.data.synthetic.heads import HeadFrame, HeadState, RenderedHead
from vasa_hf.geometry.landmarks import eye_openness
from vasa_hf.head.ict import ict_mesh

logger = logging.getLogger(__name__)
_MOUTH_SHAPES = (
    "mouthFunnel mouthPucker mouthSmile mouthFrown mouthUpperUp mouthLowerDown mouthStretch mouthPress mouthRollLower "
    "mouthRollUpper mouthShrugLower mouthDimple"
).split()
_BROW_SHAPES = ("browDown", "browInnerUp", "browOuterUp", "eyeSquint", "eyeWide", "cheekSquint", "noseSneer")


def random_state(
    pose: Tensor, names: tuple[str, ...], rng: np.random.Generator, emotion_share: float = 0.3
) -> HeadState:
    """Draw what a head does, rare things often.

    Args:
        pose (`torch.Tensor` of shape `(7,)`): The photograph's pose; turns are drawn about it.
        names (`tuple` of `str`): Shapes that the head has.
        rng (`numpy.random.Generator`): Source of chance.
        emotion_share (`float`, defaults to 0.3): Share of states that show one emotion with the whole face.

    Returns:
        `HeadState`.
    """
    expression: dict[str, float] = {}

    def add(name: str, value: float) -> None:
        for side in (f"{name}_L", f"{name}_R", name):
            if side in names:
                expression[side] = float(np.clip(value, 0, 1))

    if rng.random() < emotion_share:
        mixture = FULL_EMOTION_SHAPES[str(rng.choice(sorted(FULL_EMOTION_SHAPES)))]
        strength = rng.uniform(0.4, 1.0)
        for name, weight in mixture.items():
            add(name, strength * weight)
    else:
        lids = rng.random()
        if lids < 0.25:
            add("eyeBlink", rng.uniform(0.9, 1.0))
        elif lids < 0.55:
            add("eyeBlink", rng.uniform(0.1, 0.9))
        elif lids < 0.62:
            expression[("eyeBlink_L", "eyeBlink_R")[rng.integers(2)]] = float(rng.uniform(0.7, 1.0))
        if rng.random() < 0.6:
            add("jawOpen", rng.uniform(0, 0.9) ** 1.5)
        for name in rng.choice(_MOUTH_SHAPES, rng.integers(0, 4), replace=False):
            add(name, rng.uniform(0, 0.7))
        for name in rng.choice(_BROW_SHAPES, rng.integers(0, 3), replace=False):
            add(name, rng.uniform(0, 0.8))
    gaze = (0.0, 0.0)
    if rng.random() < 0.7:
        gaze = tuple(float(v) for v in np.clip(rng.normal(size=2) * [0.28, 0.2], [-0.6, -0.4], [0.6, 0.4]))
    turn = rng.uniform(-1, 1, 3) * [0.4, 0.25, 0.2] * (rng.random() < 0.8)
    rotation = pose[:3] + torch.tensor(turn, dtype=torch.float32)
    rotation[0] = rotation[0].clamp(-0.9, 0.9)
    light = tuple(float(v) for v in rng.normal(size=3) * [0.25, 0.25, 0.1]) if rng.random() < 0.3 else (0.0, 0.0, 0.0)
    return HeadState(
        expression=expression,
        rotation=rotation,
        shift=tuple(float(v) for v in rng.normal(size=2) * 0.02),
        zoom=float(np.exp(rng.normal() * 0.06)),
        gaze=gaze,
        light=light,
    )


def as_labels(frames: list[HeadFrame]) -> dict[str, np.ndarray]:
    """The arrays of `FaceLabels` for rendered frames, in the types and units of `clips.npz`."""

    def stack(name: str) -> np.ndarray:
        return torch.stack([getattr(frame, name) for frame in frames]).numpy().astype(np.float32)

    points = np.clip(np.round(stack("landmarks") * 8192 + 8192), 0, 65535).astype(np.uint16)
    names = ("pose", "eye_open", "mouth", "iris_offset", "gaze", "expression")
    return {"landmarks": points, **{name: stack(name) for name in names}}


def sources(
    data: Path, cache: Path, clip_people: int, rng: np.random.Generator
) -> list[tuple[str, np.ndarray, Tensor, Tensor]]:
    """Name, image, landmarks and pose of the faces to render: every portrait, and a wide-eyed frame of some clips."""
    found = []
    if (data / "portraits.npz").is_file():
        labels = FaceLabels.load(data / "portraits.npz")
        pictures = decode_frames(data, labels, "portraits", cache / f"{data.name}_portraits.npy")
        found += [(n, pictures[i], labels.landmarks[i], labels.pose[i]) for i, n in enumerate(labels.names)]
    if clip_people:
        labels = FaceLabels.load(data / "clips.npz")
        pictures = decode_frames(data, labels, "clips", cache / f"{data.name}_clips.npy")
        for clip in rng.permutation(len(labels.names))[:clip_people]:
            first, last = labels.offsets[clip : clip + 2]
            row = int(first + labels.eye_open[first:last].amin(1).argmax())
            found.append((labels.names[clip], pictures[row], labels.landmarks[row], labels.pose[row]))
    return [found[i] for i in rng.permutation(len(found))]


def usable(landmarks: Tensor, pose: Tensor, eye_open: Tensor) -> bool:
    """Whether a face can be worn: eyes open, not too far turned, inside the image."""
    inside = bool((landmarks > 0.02).all() and (landmarks < 0.98).all())
    return inside and bool(eye_open.amin() > 0.13) and bool(pose[0].abs() < 0.6)


def main() -> None:
    """Read the options from the command line and render."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with portraits.npz and portraits/")
    parser.add_argument("--head", type=Path, required=True, help="ict_facekit.npz")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="folder of decoded frames; without it next to the output")
    parser.add_argument("--people", type=int, default=10_000, help="at most this many faces")
    parser.add_argument("--clip-people", type=int, default=0, help="faces taken from this many clips")
    parser.add_argument("--frames", type=int, default=6, help="frames of each face")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this many minutes, with what there is")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    render_set(options)


@torch.no_grad()
def render_set(options: argparse.Namespace) -> None:
    """Render and write the set that `main` describes."""
    rng = np.random.default_rng(options.seed)
    mesh = ict_mesh(options.head)
    options.output.mkdir(parents=True, exist_ok=True)
    faces = sources(options.data, options.cache or options.output, options.clip_people, rng)
    faces = [face for face in faces if usable(face[2], face[3], eye_openness(face[2]))][: options.people]
    partial = options.output / "rendered.partial.npy"
    shape = (len(faces) * options.frames, 256, 256, 3)
    pictures = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
    frames: list[HeadFrame] = []
    start = time.monotonic()
    for number, (_, picture, landmarks, pose) in enumerate(faces):
        if time.monotonic() - start > 60 * options.minutes:
            faces = faces[:number]
            break
        head = RenderedHead(mesh, torch.from_numpy(np.array(picture)), landmarks, pose)
        for _ in range(options.frames):
            frame = head.render(random_state(pose, mesh.expression_names, rng))
            pictures[len(frames)] = frame.image.numpy()
            frames.append(frame)
            frame.image = frame.image[:0]
        if number % 50 == 49:
            logger.info("%d faces, %d frames, %.0f s", number + 1, len(frames), time.monotonic() - start)
    with np.load(options.data / "portraits.npz") as known:
        fixed = {"landmark_ids": known["landmark_ids"], "canonical": known["canonical"]}
    np.savez(
        options.output / "rendered.npz",
        names=np.array([name for name, *_ in faces]),
        offsets=np.arange(len(faces) + 1) * options.frames,
        **fixed,
        **as_labels(frames),
    )
    np.save(options.output / "rendered.npy", pictures[: len(frames)])
    partial.unlink()


if __name__ == "__main__":
    main()

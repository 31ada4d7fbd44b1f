"""A short talking video made by the embedded weights, and what can go wrong with such a video."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

import vasa_hf
from vasa_hf import FaceAnalyzer, VasaTalkingFacePipeline
from vasa_hf.geometry.landmarks import GROUPS
from vasa_hf.hub import embedded_path
from vasa_hf.media.audio import load_audio
from vasa_hf.media.video import VideoWriter

ASSETS = Path(vasa_hf.__file__).parent / "assets"
FRAMES = 80  # 3.2 s


@lru_cache(maxsize=1)
def talk():
    """Frames uint8 (80, 256, 256, 3) of the shipped portrait speaking, and the voice (51200,) at 16 kHz."""
    pipe = VasaTalkingFacePipeline.from_pretrained("vasa-small")
    pipe.set_progress_bar_config(disable=True)
    samples, rate = load_audio(ASSETS / "voice.flac")
    samples = samples[:, : FRAMES * rate // 25]
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 5, "output_size": 256, "output_type": "np", "generator": generator}
    frames = pipe(ASSETS / "portrait.jpg", (samples, rate), **options).frames
    frames = np.stack([np.asarray(frame) for frame in frames])
    return (frames * 255).round().astype(np.uint8) if frames.dtype != np.uint8 else frames, samples[0]


@lru_cache(maxsize=1)
def analyzer():
    """The embedded analyzer."""
    return FaceAnalyzer.from_pretrained(embedded_path("vasa-small") / "face_analyzer").float().eval()


def write(path, frames, samples=None, **options):
    """Write a video of 25 frames a second without a mark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = None if samples is None else (samples[: len(frames) * 640], 16_000)
    size = (frames[0].shape[1], frames[0].shape[0])
    with VideoWriter(path, 25, size, audio=sound, provenance=False, **options) as writer:
        for frame in frames:
            writer.write(np.ascontiguousarray(frame))


def on_canvas(*sides, size=(256, 480), top=0):
    """Frames beside one another on a coloured ground of (height, width)."""
    ground = Image.fromarray(np.random.default_rng(0).integers(0, 255, (3, 5, 3), dtype=np.uint8))
    ground = np.asarray(ground.resize(size[::-1], Image.Resampling.BICUBIC))
    out = []
    for frames in zip(*sides, strict=False):
        picture, left = ground.copy(), (size[1] - sum(frame.shape[1] for frame in frames)) // (len(frames) + 1)
        place = left
        for frame in frames:
            picture[top : top + frame.shape[0], place : place + frame.shape[1]] = frame
            place += frame.shape[1] + left
        out.append(picture)
    return out


def masked(frames):
    """A plain cloth before mouth, chin and the tip of the nose of each frame."""
    points = analyzer().detect(frames[0])[0].landmarks.numpy()
    nose, oval = points[GROUPS["nose"][5]], points[list(GROUPS["oval"])]
    lower = sorted((p for p in oval if p[1] > nose[1]), key=lambda p: np.arctan2(p[1] - nose[1] - 20, p[0] - nose[0]))
    out = []
    for frame in frames:
        picture = Image.fromarray(frame)
        cloth = picture.copy()
        ImageDraw.Draw(cloth).polygon([tuple(p) for p in lower], fill=(150, 190, 215))
        out.append(np.asarray(cloth.filter(ImageFilter.GaussianBlur(0.6))))
    return out

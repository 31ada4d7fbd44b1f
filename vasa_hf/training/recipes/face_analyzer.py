"""Train `FaceAnalyzer` on labelled crops: `vasa-hf train face_analyzer --data DIR --output DIR`.

`--data` is a folder with `clips.npz`, `clips/*.mp4`, `portraits.npz`, `portraits/*` (either pair may be missing):
square crops with one face each, `landmarks` (frames, 162, 2) uint16 as (value - 8192) / 8192 of the crop, `pose`
(frames, 7) and the `canonical` mesh. `--rendered` adds what `vasa_hf.data.synthetic.rendered_faces` wrote: the closed
eyes, averted gazes and turned heads that photographs lack, with exact labels. Two networks are trained, one after the
other: the landmarker on turned, shifted, scaled and spoilt crops, then the detector on scenes composed of pasted faces
and of backgrounds that hold none.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import Dataset

from vasa_hf.data.face_pairs import decode_frames
from vasa_hf.data.landmark_dynamics import FaceLabels
from vasa_hf.geometry.crops import crop_matrix, landmark_box, sampling_grid, transform_points
from vasa_hf.geometry.landmarks import (
    GROUPS,
    LANDMARK_IDS,
    eye_openness,
    iris_offset,
    mirror_permutation,
    mouth_openness,
    rows,
)
from vasa_hf.geometry.rotations import matrix_from_euler
from vasa_hf.hub import resolve
from vasa_hf.models.face_analyzer import FaceAnalyzer
from vasa_hf.training.loop import Player, TrainingState, checkpoints
from vasa_hf.training.options import LoopOptions, option
from vasa_hf.training.saving import save_components, train_and_save

FRAME_SIZE = 256
PARTS = ("landmarker", "detector")


@dataclasses.dataclass
class FaceAnalyzerOptions(LoopOptions):
    """Options of this recipe; those of all recipes are in `LoopOptions`."""

    data: str = option("data/train", "folder with clips, portraits and labels")
    cache: str | None = option(None, "folder for decoded frames; without it they stay in memory")
    parts: list[str] = option(list(PARTS), "networks to train, one after the other", PARTS)
    initial: str | None = option(None, "folder of an earlier FaceAnalyzer to continue from")
    max_minutes: float | None = option(30.0, "minutes for all parts together")
    max_steps: int = option(1_000_000, "optimiser steps of each part")
    batch_size: int = option(24, "crops per step")
    scenes_per_batch: int = option(12, "scenes per step")
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    max_grad_norm: float = 5.0
    ema_decay: float = 0.998
    mixed_precision: str = "bf16"
    log_every: int = 50
    portrait_share: float = option(0.5, "share of portraits among the faces that are not rendered")
    rendered: str | None = option(None, "folder of rendered faces, see vasa_hf.data.synthetic.rendered_faces")
    rendered_share: float = option(0.35, "share of rendered faces, when there are such")
    clip_stride: int = option(4, "frames of a clip from one that is used to the next: neighbours are nearly the same")
    rare_share: float = option(0.4, "share of frames with closed eyes, averted gaze or an open mouth")
    negative_share: float = option(0.25, "share of crops without a whole face")
    model: str = option("{}", "config of a new FaceAnalyzer as JSON")


# --- data -----------------------------------------------------------------------------------------------------------


class LabelledFaces:
    """Frames [N, 256, 256, 3] uint8 with points [N, 162, 2] in fractions and pose [N, 7].

    Eyes are open and look ahead, mouths are shut in most frames. A network that only sees such ones learns the mean, so
    `rare_share` of the draws are taken from frames of `rare_kinds`, each kind as often.
    """

    def __init__(self, frames: np.ndarray, points: Tensor, pose: Tensor, stride: int = 1, rare_share: float = 0.0):
        self.frames, self.points, self.pose, self.stride = frames, points, pose, stride
        self.rare_share, self.rare = rare_share, rare_kinds(points)

    def __len__(self) -> int:
        return len(self.points)

    def random(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Frames [B, 3, 256, 256] in [-1, 1], points and pose of random rows."""
        index = rng.integers(-(-len(self) // self.stride), size=count) * self.stride
        for i in np.flatnonzero(rng.random(count) < self.rare_share) if self.rare else ():
            index[i] = rng.choice(self.rare[rng.integers(len(self.rare))])
        frames = torch.from_numpy(np.stack([self.frames[i] for i in index])).permute(0, 3, 1, 2)
        return frames.float() / 127.5 - 1.0, self.points[index], self.pose[index]


def rare_kinds(points: Tensor) -> list[np.ndarray]:
    """Rows of the frames [N, 162, 2] with closed or half closed eyes, averted irises, open mouths; no empty kinds."""
    eyes, irises = eye_openness(points).amin(dim=-1), iris_offset(points)
    aside = (irises - irises.median(dim=0).values).norm(dim=-1).amax(dim=-1)
    kinds = (eyes < 0.12, (eyes >= 0.12) & (eyes < 0.2), aside > 0.15, mouth_openness(points)[:, 0] > 0.15)
    return [kind.nonzero()[:, 0].numpy() for kind in kinds if kind.any()]


def read_folder(data: Path, kind: str, cache: Path | None) -> tuple[LabelledFaces, Tensor] | None:
    """Labelled faces of `clips` or `portraits` and the canonical points, or `None` if the folder has none."""
    label_file = data / f"{kind}.npz"
    if not label_file.is_file():
        return None
    labels = np.load(label_file, allow_pickle=False)
    if tuple(labels["landmark_ids"].tolist()) != LANDMARK_IDS:
        raise ValueError(f"`data`: {label_file.name} must hold the {len(LANDMARK_IDS)} landmarks of vasa_hf.")
    rendered = data / f"{kind}.npy"  # rendered frames come as an array
    target = rendered if rendered.is_file() else cache / f"{data.name}_{kind}.npy" if cache else None
    frames = decode_frames(data, FaceLabels.load(label_file), kind, target, FRAME_SIZE)
    if frames.shape[1:3] != (FRAME_SIZE, FRAME_SIZE):
        raise ValueError(f"`cache` must hold frames of {FRAME_SIZE}², but {target} holds {frames.shape[1:3]}.")
    points = torch.from_numpy(labels["landmarks"].astype(np.float32) - 8192) / 8192
    canonical = torch.from_numpy(labels["canonical"][list(LANDMARK_IDS)]).float()
    return LabelledFaces(frames, points, torch.from_numpy(labels["pose"]).float()), canonical


# --- degrading images ----------------------------------------------------------------------------------------------


def _uniform(generator: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.rand(*shape, generator=generator) * (high - low) + low


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change colour, light, sharpness and noise of images [B, 3, H, W] in [-1, 1], each in its own way."""
    batch = len(images)

    def some(chance: float) -> Tensor:
        return (torch.rand(batch, generator=generator) < chance).nonzero()[:, 0]

    images = images.clone()
    chosen = some(0.25)  # low resolution, as that of a small face in a big image
    for i in chosen.tolist():
        small = int(_uniform(generator, 1, low=0.25, high=0.8).item() * images.shape[-1])
        low = F.interpolate(images[i : i + 1], size=(small, small), mode="bilinear", antialias=True)
        images[i : i + 1] = F.interpolate(low, size=images.shape[-2:], mode="bilinear")
    chosen = some(0.15)
    if len(chosen):
        images[chosen] = F.avg_pool2d(F.pad(images[chosen], (1, 1, 1, 1), mode="replicate"), 3, 1)
    chosen = some(0.12)  # JPEG-like: coarse steps in 8x8 blocks' means and detail
    if len(chosen):
        blocks = F.interpolate(F.avg_pool2d(images[chosen], 8), scale_factor=8.0)
        step = _uniform(generator, len(chosen), 1, 1, 1, low=0.05, high=0.2)
        images[chosen] = blocks + ((images[chosen] - blocks) / step).round() * step
    grey = images.mean(dim=1, keepdim=True)
    saturation = _uniform(generator, batch, 1, 1, 1, low=0.5, high=1.4)
    saturation[some(0.12)] = 0.0
    images = grey + (images - grey) * saturation
    tint = 1.0 + 0.15 * torch.randn(batch, 3, 1, 1, generator=generator)
    gain = _uniform(generator, batch, 1, 1, 1, low=0.5, high=1.4)
    gamma = torch.exp(0.3 * torch.randn(batch, 1, 1, 1, generator=generator))
    images = (((images + 1) / 2).clamp(1e-3, 1) ** gamma) * gain * tint
    chosen = some(0.3)  # light from one side
    if len(chosen):
        height, width = images.shape[-2:]
        direction = torch.randn(len(chosen), 2, 1, 1, generator=generator)
        ramp = direction[:, :1] * torch.linspace(-0.5, 0.5, width) + direction[:, 1:] * torch.linspace(
            -0.5, 0.5, height
        ).unsqueeze(-1)
        images[chosen] = images[chosen] * (1 + 0.6 * ramp).clamp(0.2, 2)
    noise = _uniform(generator, batch, 1, 1, 1, low=0.0, high=0.06) * (
        torch.rand(batch, 1, 1, 1, generator=generator) < 0.4
    )
    images = images + noise * torch.randn(images.shape, generator=generator)
    return images.clamp(0, 1) * 2 - 1


def occlude(images: Tensor, generator: torch.Generator) -> Tensor:
    """Cover a part of every fourth image with a flat or borrowed patch."""
    batch, _, height, width = images.shape
    images = images.clone()
    for i in (torch.rand(batch, generator=generator) < 0.25).nonzero()[:, 0].tolist():
        h, w = (int(v) for v in (_uniform(generator, 2, low=0.08, high=0.4) * height).tolist())
        y, x = (int(v * (height - s)) for v, s in zip(torch.rand(2, generator=generator).tolist(), (h, w), strict=True))
        if torch.rand(1, generator=generator) < 0.5:
            patch = torch.rand(3, 1, 1, generator=generator) * 2 - 1
        else:
            other = int(torch.randint(batch, (1,), generator=generator))
            patch = images[other, :, :h, :w].flip(-1)
        images[i, :, y : y + h, x : x + w] = patch
    return images


# --- the landmarker -------------------------------------------------------------------------------------------------


def cut(frames: Tensor, image_from_crop: Tensor, size: int) -> Tensor:
    """Cut crops [B, 3, size, size] out of frames of 256², from smaller copies where the crop shrinks them."""
    grid = sampling_grid(image_from_crop, size, frames.shape[-2:])
    shrink = (image_from_crop[:, :2, 0].norm(dim=-1) / size).tolist()
    return torch.cat([sample(frames[i : i + 1], grid[i : i + 1], shrink[i]) for i in range(len(frames))])


def sample(frame: Tensor, grid: Tensor, shrink: float) -> Tensor:
    """`grid_sample` of one frame from a copy that is as much smaller as the sampling is coarser."""
    level = min(max(int(math.floor(math.log2(shrink) + 0.4)), 0), 3)
    frame = F.avg_pool2d(frame, 2**level) if level else frame
    return F.grid_sample(frame, grid, align_corners=False, padding_mode="border")


def landmark_batch(sets, config, model, permutation, generator, rng) -> dict[str, Tensor]:
    """One training batch of the landmarker: `images`, which are crops, and their true points and poses."""
    frames, points, pose = draw(sets, config.batch_size, config, rng)
    batch = len(frames)
    mirrored = torch.rand(batch, generator=generator) < 0.5
    frames[mirrored] = frames[mirrored].flip(-1)
    points = points.clone()
    points[mirrored] = (points[mirrored] * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0]))[:, permutation]
    rotation = matrix_from_euler(pose[:, 0], pose[:, 1], pose[:, 2])
    flip = torch.tensor([-1.0, 1.0, 1.0])
    rotation[mirrored] = flip[:, None] * rotation[mirrored] * flip
    translation, scale = pose[:, 3:6].clone(), pose[:, 6]
    translation[mirrored, 0] = 1 - translation[mirrored, 0]

    # Half of the crops lie as the second pass sees them, half as a rough detector may give them.
    rough = (torch.rand(batch, generator=generator) < 0.5).float()
    box = landmark_box(points * FRAME_SIZE)
    side = (box[:, 2:] - box[:, :2]).amax(dim=-1)
    spread = torch.randn(batch, generator=generator).clamp(-2, 2)
    side = side * model.config.crop_scale * torch.exp(spread * torch.where(rough > 0, 0.26, 0.05))
    upright = torch.atan2(rotation[:, 1, 0], rotation[:, 1, 1])
    angle = torch.where(
        rough > 0,
        _uniform(generator, batch, low=-0.75, high=0.75),
        upright + 0.06 * torch.randn(batch, generator=generator),
    )
    jitter = _uniform(generator, batch, 2, low=-1, high=1) * torch.where(rough > 0, 0.16, 0.03).unsqueeze(-1)
    center = (box[:, :2] + box[:, 2:]) / 2 + jitter * side.unsqueeze(-1)
    present = torch.rand(batch, generator=generator) >= config.negative_share
    # A third of the negatives are corners of the frame, a third small parts of the face, a third no faces at all.
    kind = torch.randint(3, (batch,), generator=generator)
    corner = torch.randint(2, (batch, 2), generator=generator).float()
    room = torch.minimum(box[:, :2], FRAME_SIZE - box[:, 2:]).amin(dim=-1).clamp_min(12)
    width = (box[:, 2:] - box[:, :2]).amax(dim=-1)
    part = width * _uniform(generator, batch, low=0.15, high=0.6)
    part_center = box[:, :2] + torch.rand(batch, 2, generator=generator) * (box[:, 2:] - box[:, :2])
    corner_side = room * _uniform(generator, batch, low=0.6, high=1.3)
    corner_center = corner * FRAME_SIZE + (0.5 - corner) * corner_side.unsqueeze(-1)
    side = torch.where(present, side, torch.where(kind == 1, part, corner_side))
    center = torch.where(
        present.unsqueeze(-1), center, torch.where(kind.unsqueeze(-1) == 1, part_center, corner_center)
    )

    image_from_crop = crop_matrix(center, side, angle)
    crops = cut(frames, image_from_crop, model.config.crop_size)
    other = (~present & (kind == 2)).nonzero()[:, 0]
    if len(other):
        crops[other] = backgrounds(frames[other], points[other], model.config.crop_size, generator)
    crops = occlude(degrade(crops, generator), generator)
    crop_from_image = torch.linalg.inv(image_from_crop)
    xy = transform_points(crop_from_image, translation[:, None, :2] * FRAME_SIZE)[:, 0]
    z = translation[:, 2] * FRAME_SIZE / side
    return {
        "images": crops,
        "points": transform_points(crop_from_image, points * FRAME_SIZE),
        "rotation": matrix_from_euler(torch.zeros_like(angle), torch.zeros_like(angle), -angle) @ rotation,
        "translation": torch.cat([xy, z[:, None]], dim=-1),
        "scale": scale * FRAME_SIZE / side,
        "present": present.float(),
    }


def draw(sets: dict[str, LabelledFaces], count: int, config: FaceAnalyzerOptions, rng: np.random.Generator):
    """Frames, points and poses of random rows by the shares of the options."""
    real = 1 - config.rendered_share
    portraits = config.portrait_share if "clips" in sets else 1.0
    portraits *= "portraits" in sets
    shares = {"rendered": config.rendered_share, "portraits": real * portraits, "clips": real * (1 - portraits)}
    shares = {kind: shares[kind] + 1e-6 for kind in sets}
    bounds = np.round(np.cumsum(list(shares.values())) / sum(shares.values()) * count).astype(int)
    counts = np.diff(bounds, prepend=0)
    parts = [sets[kind].random(n, rng) for kind, n in zip(shares, counts, strict=True) if n]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


_GAPS = (
    rows(159, 386, 158, 160, 385, 387, 468, 473, 468, 473, 468, 473, 13, 82, 312, 61),
    rows(145, 374, 153, 144, 380, 373, 33, 263, 133, 362, 145, 374, 14, 87, 317, 291),
)
_IRISES = [*GROUPS["left_iris"], *GROUPS["right_iris"]]
# Lids and irises move by hundredths of the face, and all that is said of eyes comes from them.
_GAP_WEIGHTS = torch.tensor([4.0] * 6 + [3.0] * 6 + [2.0] * 4)
_WEIGHTS = torch.ones(len(LANDMARK_IDS))
_WEIGHTS[[*_IRISES, *GROUPS["left_eye"], *GROUPS["right_eye"]]] = 3.0
_WEIGHTS[[*GROUPS["lips_inner"], *GROUPS["lips_outer"]]] = 1.5


def landmark_loss(outputs: tuple[Tensor, ...], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses of the landmarker; distances are in units of the face (its canonical unit)."""
    points, rotation, translation, scale, logit, _ = outputs
    present, unit = batch["present"], batch["scale"][:, None, None]
    inside = ((batch["points"] > 0.01) & (batch["points"] < 0.99)).all(-1).float() * present[:, None]
    # Behind closed lids the iris cannot be located.
    inside[:, _IRISES] *= (eye_openness(batch["points"]) / 0.12).clamp(0.05, 1).repeat_interleave(5, dim=1)
    error = F.smooth_l1_loss(points / unit, batch["points"] / unit, beta=0.01, reduction="none").sum(-1)
    count = inside.sum().clamp_min(1)
    a, b = _GAPS
    both = inside[:, a] * inside[:, b]
    gap_error = ((points[:, a] - points[:, b]) - (batch["points"][:, a] - batch["points"][:, b])).abs().sum(-1) / unit[
        ..., 0
    ]
    faces = present.sum().clamp_min(1)

    def mean(value: Tensor) -> Tensor:
        return (value * present).sum() / faces

    return {
        "points": 4 * (error * inside * _WEIGHTS.to(error)).sum() / count,
        "gaps": 8 * (gap_error * both * _GAP_WEIGHTS.to(gap_error)).sum() / both.sum().clamp_min(1),
        "rotation": mean((rotation - batch["rotation"]).abs().mean(dim=(1, 2))),
        "translation": mean(((translation - batch["translation"]) / unit[..., 0]).abs().mean(dim=-1)),
        "scale": mean((scale.log() - batch["scale"].log()).abs()),
        "present": 0.3 * F.binary_cross_entropy_with_logits(logit, present),
    }


# --- the detector ---------------------------------------------------------------------------------------------------


def backgrounds(frames: Tensor, points: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Images without a face: what lies next to it, mosaics of that, clouds, drawn shapes, and shuffled faces."""
    kinds = (_beside, _mosaic, _clouds, _shapes, _shuffle)
    chosen = torch.multinomial(torch.tensor([0.3, 0.2, 0.15, 0.2, 0.15]), len(frames), True, generator=generator)
    out = []
    for frame, point, kind in zip(frames, points, chosen.tolist(), strict=True):
        box = (landmark_box(point) * FRAME_SIZE).round().int().tolist()
        picture = kinds[kind](frame, box, generator).unsqueeze(0)
        out.append(F.interpolate(picture, size=(size, size), mode="bilinear")[0])
    return torch.stack(out)


def _beside(frame: Tensor, box: list[int], generator: torch.Generator) -> Tensor:
    """A piece of hair, clothes or room."""
    x0, y0, x1, y1 = box
    strips = [frame[:, : max(y0 - 8, 0)], frame[:, y1 + 8 :], frame[:, :, : max(x0 - 8, 0)], frame[:, :, x1 + 8 :]]
    strips = [s for s in strips if min(s.shape[1:]) >= 24] or [frame[:, :8]]
    strip = strips[int(torch.randint(len(strips), (1,), generator=generator))]
    cut_y, cut_x = (int(max(n - 24, 0) * torch.rand(1, generator=generator)) for n in strip.shape[1:])
    piece = strip[:, cut_y:, cut_x:]
    piece = piece.flip(-1) if torch.rand(1, generator=generator) < 0.5 else piece
    return piece.flip(-2) if torch.rand(1, generator=generator) < 0.25 else piece


def _mosaic(frame: Tensor, box: list[int], generator: torch.Generator) -> Tensor:
    """Many such pieces side by side: fine detail and hard edges."""
    count = int(torch.randint(2, 7, (1,), generator=generator))
    width = 256 // count
    tiles = [_beside(frame, box, generator).unsqueeze(0) for _ in range(count * count)]
    tiles = [F.interpolate(tile, size=(width, width), mode="bilinear")[0] for tile in tiles]
    return torch.cat([torch.cat(tiles[i * count : i * count + count], -1) for i in range(count)], -2)


def _clouds(frame: Tensor, box: list[int], generator: torch.Generator) -> Tensor:
    """Noise of all sizes in two colours, one of them the skin's."""
    x0, y0, x1, y1 = box
    skin = frame[:, (y0 + y1) // 2, (x0 + x1) // 2].view(3, 1, 1)
    other = torch.rand(3, 1, 1, generator=generator) * 2 - 1
    picture = torch.zeros(1, 256, 256)
    for level in (3, 6, 12, 25, 50, 100):
        noise = torch.randn(1, 1, level, level, generator=generator) * torch.rand(1, generator=generator)
        picture = picture + F.interpolate(noise, size=(256, 256), mode="bilinear")[0]
    sharp = _uniform(generator, 1, low=0.5, high=12.0)
    return torch.sigmoid(sharp * picture) * (skin - other) + other


def _shapes(frame: Tensor, box: list[int], generator: torch.Generator) -> Tensor:
    """Discs, boxes and lines in the frame's colours, some with two dark spots, as things that are no faces may look."""
    colours = ((frame[:, ::37, ::41].flatten(1).T + 1) * 127.5).byte().tolist()

    def pick(low: float, high: float) -> float:
        return _uniform(generator, 1, low=low, high=high).item()

    def colour() -> tuple[int, ...]:
        return tuple(colours[int(torch.randint(len(colours), (1,), generator=generator))])

    image = Image.new("RGB", (256, 256), colour())
    draw = ImageDraw.Draw(image)
    largest = math.exp(pick(2.3, 4.8))
    for _ in range(int(pick(4, 60))):
        x, y, w = pick(0, 256), pick(0, 256), pick(0.2, 1) * largest
        h, kind = w * pick(0.6, 1.6), pick(0, 1)
        area = (x - w, y - h, x + w, y + h)
        if kind < 0.5:
            draw.ellipse(area, fill=colour(), outline=colour(), width=int(pick(0, 4)))
            if kind < 0.2:
                for dx in (-0.4, 0.4)[: 1 + (kind < 0.1)]:
                    draw.ellipse((x + dx * w - 0.2 * w, y - 0.2 * w, x + dx * w + 0.2 * w, y + 0.2 * w), fill=colour())
        elif kind < 0.75:
            draw.rectangle(area, fill=colour(), outline=colour(), width=int(pick(0, 4)))
        else:
            draw.line((x, y, x + pick(-200, 200), y + pick(-200, 200)), fill=colour(), width=int(pick(1, 8)))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def _shuffle(frame: Tensor, box: list[int], generator: torch.Generator) -> Tensor:
    """Parts of a face in the wrong order are no face."""
    x0, y0, x1, y1 = box
    face = F.interpolate(frame[None, :, max(y0, 0) : y1, max(x0, 0) : x1], size=(96, 96), mode="bilinear")[0]
    tiles = int(torch.randint(2, 6, (1,), generator=generator))
    width = 96 // tiles
    parts = [part for row in face.split(width, 1)[:tiles] for part in row.split(width, 2)[:tiles]]
    order = torch.randperm(len(parts), generator=generator)
    order = order.roll(1) if torch.equal(order, torch.arange(len(parts))) else order
    order = order.tolist()
    return torch.cat(
        [torch.cat([parts[k] for k in order[i * tiles : i * tiles + tiles]], -1) for i in range(tiles)], -2
    )


def scene_batch(sets, config, model, generator, rng) -> dict[str, Tensor]:
    """Composed images `images` [B, 3, S, S] with `boxes` [N, 5]: scene, x0, y0, x1, y1 in pixels."""
    size, batch = model.config.detector_size, config.scenes_per_batch
    counts = rng.choice([0, 1, 1, 2, 3, 4], size=batch)
    frames, points, _ = draw(sets, int(counts.sum()) + batch, config, rng)
    shuffle = torch.from_numpy(rng.permutation(len(frames)))
    frames, points = frames[shuffle], points[shuffle]
    mirrored = torch.rand(len(frames), generator=generator) < 0.5
    frames[mirrored] = frames[mirrored].flip(-1)
    points[mirrored] = points[mirrored] * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
    scenes = backgrounds(frames[:batch], points[:batch], size, generator)
    boxes, taken = [], batch
    for i, count in enumerate(counts.tolist()):
        placed = []
        for _ in range(count):
            frame, point = frames[taken : taken + 1], points[taken] * FRAME_SIZE
            taken += 1
            whole = count == 1 and torch.rand(1, generator=generator) < 0.6
            low, high = (60.0, 250.0) if whole else (18.0, 200.0 / count**0.5)
            target = math.exp(_uniform(generator, 1, low=math.log(low), high=math.log(high)).item()) * size / 256
            found = place(point, target, size, placed, generator)
            if found is None:
                continue
            image_from_scene, box = found
            around = landmark_box(point)
            middle, half = (around[:2] + around[2:]) / 2, (around[2:] - around[:2]) / 2
            reach = (
                torch.full((2,), 4.0 * FRAME_SIZE) if whole else half * _uniform(generator, 2, low=1.15, high=2.2) + 1
            )
            feather = _uniform(generator, 1, low=0.01, high=0.25) * half.amax()
            # Only the part of the scene that the pasted rectangle can touch is computed.
            corners = middle + reach * torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
            touched = landmark_box(transform_points(torch.linalg.inv(image_from_scene), corners)) * size
            u0, v0, u1, v1 = (int(v) for v in touched.clamp(0, size).round().tolist())
            if u1 <= u0 or v1 <= v0:
                continue
            window = torch.tensor([[(u1 - u0) / size, 0, u0 / size], [0, (v1 - v0) / size, v0 / size], [0, 0, 1]])
            grid = sampling_grid((image_from_scene @ window)[None], (v1 - v0, u1 - u0), (FRAME_SIZE, FRAME_SIZE))
            image = sample(frame, grid, float(image_from_scene[:2, 0].norm()) / size)[0]
            pixels = (grid[0] + 1) * FRAME_SIZE / 2
            edge = (FRAME_SIZE / 2 - (pixels - FRAME_SIZE / 2).abs()).clamp_min(0)
            mask = torch.minimum(reach - (pixels - middle).abs(), edge + (4 * FRAME_SIZE if whole else 0))
            mask = (mask / feather).amin(dim=-1).clamp(0, 1)
            scenes[i, :, v0:v1, u0:u1] = scenes[i, :, v0:v1, u0:u1] * (1 - mask) + image * mask
            placed.append(box)
        boxes += [torch.cat([torch.tensor([float(i)]), box]) for box in placed]
    scenes = degrade(scenes, generator)
    for i in (torch.rand(batch, generator=generator) < 0.25).nonzero()[:, 0].tolist():  # the bars of a letterbox
        bar = int(_uniform(generator, 1, low=0.02, high=0.3) * size)
        inner = [b for b in boxes if b[0] == i]
        if torch.rand(1, generator=generator) < 0.5 and all(b[2] > bar for b in inner):
            scenes[i, :, :bar] = 0
        elif all(b[3] < size - bar for b in inner):
            scenes[i, :, :, size - bar :] = 0
    return {"images": scenes, "boxes": torch.stack(boxes) if boxes else torch.zeros(0, 5)}


def place(point: Tensor, target: float, size: int, placed: list[Tensor], generator: torch.Generator):
    """A turn, size and place for a face in a scene: `image_from_scene` and the face's box there, or `None`."""
    for _ in range(8):
        angle = torch.randn(1, generator=generator)[0].clamp(-2, 2) * 0.3
        box = landmark_box(point)
        side = (box[2:] - box[:2]).amax() * size / target
        free = max(target * 0.2, (size - target) / 2 + target * 0.2)  # up to a fifth of the face may be cut off
        middle = size / 2 + _uniform(generator, 2, low=-1, high=1) * free
        turn = crop_matrix(torch.zeros(1, 2), side[None], angle[None])[0]
        center = (box[:2] + box[2:]) / 2 - turn[:2, :2] @ (middle / size - 0.5)
        image_from_scene = crop_matrix(center[None], side[None], angle[None])[0]
        there = landmark_box(transform_points(torch.linalg.inv(image_from_scene), point)) * size
        visible = (there.clamp(0, size)[2:] - there.clamp(0, size)[:2]).prod() / (there[2:] - there[:2]).prod()
        if visible > 0.65 and not any(overlap(there, other) > 0.05 for other in placed):
            return image_from_scene, there
    return None


def overlap(a: Tensor, b: Tensor) -> float:
    """Shared area over the smaller area of two boxes."""
    shared = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp_min(0).prod()
    return float(shared / torch.minimum((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()))


def detector_loss(outputs: Tensor, boxes: Tensor, stride: int) -> dict[str, Tensor]:
    """Centre heat map by the penalty-reduced focal loss; sizes and offsets by L1 in the cells around the centres."""
    batch, _, height, width = outputs.shape
    outputs, device = outputs.float(), outputs.device
    cells = (torch.arange(count, device=device) + 0.5 for count in (height, width))
    y, x = torch.meshgrid(*cells, indexing="ij")
    losses = {"size": outputs.sum() * 0, "offset": outputs.sum() * 0}
    target = torch.zeros(batch, height, width, device=device)
    positive = torch.zeros(batch, height, width, dtype=torch.bool, device=device)
    for scene, x0, y0, x1, y1 in (boxes / boxes.new_tensor([1, *[stride] * 4])).tolist():
        i, center_x, center_y = int(scene), (x0 + x1) / 2, (y0 + y1) / 2
        center_x, center_y = min(max(center_x, 0.5), width - 0.5), min(max(center_y, 0.5), height - 0.5)
        dx, dy = center_x - x, center_y - y
        sigma = max(0.6, 0.07 * max(x1 - x0, y1 - y0))
        target[i] = torch.maximum(target[i], torch.exp(-(dx**2 + dy**2) / (2 * sigma**2)))
        positive[i, int(center_y), int(center_x)] = True
        near = (dx.abs() < max(1.0, sigma)) & (dy.abs() < max(1.0, sigma))
        size = torch.tensor([math.log(x1 - x0), math.log(y1 - y0)], device=device)
        losses["size"] = losses["size"] + (outputs[i, 1:3, near] - size[:, None]).abs().mean()
        offset = torch.stack([(x0 + x1) / 2 - x, (y0 + y1) / 2 - y])[:, near] / (x1 - x0)
        predicted = outputs[i, 3:5, near] / (x1 - x0)
        losses["offset"] = losses["offset"] + 2 * (predicted - offset).abs().mean()
    faces = max(len(boxes), 1)
    losses = {name: value / faces for name, value in losses.items()}
    log_p, log_q = F.logsigmoid(outputs[:, 0]), F.logsigmoid(-outputs[:, 0])
    p = log_p.exp()
    focal = torch.where(positive, -((1 - p) ** 2) * log_p, -((1 - target) ** 4) * p**2 * log_q * ~positive)
    return {"heat": focal.sum() / faces, **losses}


# --- the training ---------------------------------------------------------------------------------------------------


class Batches(Dataset):
    """Whole batches: `dataset[i]` is drawn by random numbers of the seed and `i` alone.

    Args:
        make (`Callable`): `make(generator, rng)` draws one batch.
        seed (`int`): Seed.
    """

    def __init__(self, make: Callable[[torch.Generator, np.random.Generator], dict[str, Tensor]], seed: int):
        self.make, self.seed = make, seed

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, index])
        return self.make(torch.Generator().manual_seed(int(rng.integers(2**31))), rng)


def run(options: FaceAnalyzerOptions) -> dict[str, TrainingState]:
    """Train the parts one after the other and save `face_analyzer/`; returns the state of each."""
    torch.manual_seed(options.seed)
    cache = Path(options.cache) if options.cache else None
    found = {kind: read_folder(Path(options.data), kind, cache) for kind in ("portraits", "clips")}
    if options.rendered:
        found["rendered"] = read_folder(Path(options.rendered), "rendered", cache)
    sets = {kind: part[0] for kind, part in found.items() if part is not None}
    if "clips" in sets:
        sets["clips"].stride = options.clip_stride
    for part in sets.values():
        part.rare_share = options.rare_share
    if not sets:
        raise ValueError(f"`data` must hold clips.npz or portraits.npz, but {options.data} has neither.")
    canonical = next(part[1] for part in found.values() if part is not None)
    if options.initial:
        model = FaceAnalyzer.from_pretrained(resolve(options.initial), torch_dtype=torch.float32)
    else:
        model = FaceAnalyzer(**json.loads(options.model))
    model.canonical.copy_(canonical)
    permutation, stride = mirror_permutation(canonical), model.detector.stride
    makers = {
        "landmarker": lambda *random: landmark_batch(sets, options, model, permutation, *random),
        "detector": lambda *random: scene_batch(sets, options, model, *random),
    }
    states = {}
    for part in options.parts:

        def loss(modules, batch, step, part=part):
            batch = {name: value[0] for name, value in batch.items()}  # a batch is one sample of the dataset
            outputs = modules[part](batch["images"].contiguous(memory_format=torch.channels_last))
            with torch.autocast(batch["images"].device.type, enabled=False):
                boxes = batch.get("boxes")  # the detector's
                values = landmark_loss(outputs, batch) if boxes is None else detector_loss(outputs, boxes, stride)
            return sum(values.values()), values

        net = getattr(model, part).to(memory_format=torch.channels_last)
        player = Player(part, (part,), loss, options.learning_rate, (0.9, 0.999), options.weight_decay)
        minutes = None if options.max_minutes is None else options.max_minutes / len(options.parts)
        folder = Path(options.output) / part
        settings = dataclasses.replace(
            options,
            batch_size=1,
            max_minutes=minutes,
            output=str(folder),
            resume=options.resume and bool(checkpoints(folder)),  # a run may have ended before this part began
        )
        dataset = Batches(makers[part], options.seed)
        states[part] = train_and_save(settings, {part: net}, [player], dataset, (part,), dict)
    if PartialState().is_main_process:
        save_components(options.output, {"face_analyzer": model}, options.save_dtype)
    return states

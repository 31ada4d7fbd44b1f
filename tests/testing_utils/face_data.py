"""A tiny training folder in the real layout: clips with labels, portraits, identities. All of it made up."""

import numpy as np
import torch
from PIL import Image

from vasa_hf.geometry.landmarks import LANDMARK_IDS
from vasa_hf.geometry.rotations import matrix_from_euler
from vasa_hf.media.video import VideoWriter

IDS = list(LANDMARK_IDS)


def make_canonical():
    """A face-like cloud, symmetric as far as the named points go."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.7, 0.7, (478, 3)).astype(np.float32)
    named = {33: (-0.5, -0.13), 263: (0.5, -0.13), 133: (-0.2, -0.12), 362: (0.2, -0.12), 78: (-0.2, 0.6)}
    named |= {308: (0.2, 0.6), 13: (0, 0.58), 14: (0, 0.62), 61: (-0.25, 0.6), 291: (0.25, 0.6)}
    named |= {159: (-0.35, -0.18), 145: (-0.35, -0.08), 386: (0.35, -0.18), 374: (0.35, -0.08)}
    for number, place in named.items():
        points[number, :2] = place
    return points


def make_labels(path, names, lengths, canonical, rng):
    """Write labels of moving heads; returns the poses."""
    count = sum(lengths)
    pose = np.zeros((count, 7), np.float32)
    pose[:, :3] = rng.normal(0, 0.1, (count, 3))
    pose[:, 3:5] = 0.5 + rng.normal(0, 0.02, (count, 2))
    pose[:, 6] = 0.27
    rotation = matrix_from_euler(*torch.from_numpy(pose[:, :3]).unbind(1)).numpy()
    shape = canonical[IDS][None] + rng.normal(0, 0.02, (count, len(IDS), 3)).astype(np.float32) * [1, 1, 0]
    opening = np.abs(rng.normal(0, 0.05, count)).astype(np.float32)
    shape[:, IDS.index(14), 1] += opening
    landmarks = (shape @ rotation.transpose(0, 2, 1))[..., :2] * 0.27 + pose[:, None, 3:5]
    np.savez(
        path,
        names=np.array(names),
        offsets=np.r_[0, np.cumsum(lengths)].astype(np.int32),
        landmarks=np.round(landmarks * 8192 + 8192).astype(np.uint16),
        pose=pose,
        eye_open=np.full((count, 2), 0.3, np.float16) + rng.normal(0, 0.03, (count, 2)).astype(np.float16),
        mouth=np.stack([opening + 0.001, np.full(count, 0.5)], 1).astype(np.float16),
        iris_offset=rng.normal(0, 0.05, (count, 2, 2)).astype(np.float16),
        landmark_ids=np.array(IDS, np.int16),
        canonical=canonical,
    )
    return pose


def make_face_data(folder, size=256):
    """Write three clips of two people and two portraits; returns the folder."""
    rng = np.random.default_rng(1)
    canonical = make_canonical()
    (folder / "clips").mkdir(parents=True)
    (folder / "portraits").mkdir()
    names, lengths = ["a_1", "a_2", "b_1"], [6, 5, 7]
    pose = make_labels(folder / "clips.npz", names, lengths, canonical, rng)
    portrait_pose = make_labels(folder / "portraits.npz", ["p_0", "p_1"], [1, 1], canonical, rng)
    (folder / "identities.csv").write_text("clip,identity\na_1,a\na_2,a\nb_1,b\n")

    def draw(pose):
        y, x = np.mgrid[:size, :size] / size
        place = ((x - pose[3]) ** 2 + (y - pose[4]) ** 2) / 0.05
        picture = np.stack([np.exp(-place), 0.5 + 0.4 * np.sin(20 * (x - pose[3])), y], 2)
        return (picture * 255).clip(0, 255).astype(np.uint8)

    first = 0
    for name, length in zip(names, lengths, strict=True):
        with VideoWriter(folder / "clips" / f"{name}.mp4", 25, (size, size), provenance=False) as writer:
            for row in range(first, first + length):
                writer.write(draw(pose[row]))
        first += length
    for index in range(2):
        Image.fromarray(draw(portrait_pose[index])).save(folder / "portraits" / f"p_{index}.png")
    return folder


def moved(picture, shift):
    """The picture moved to the right, its edge repeated."""
    array = np.asarray(picture)
    return array[:, np.clip(np.arange(array.shape[1]) - shift, 0, None)]

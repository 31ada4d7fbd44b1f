import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from vasa_hf.geometry.landmarks import GROUPS, LANDMARK_IDS, eye_openness, rows
from vasa_hf.models.face_analyzer import FaceAnalyzer
from vasa_hf.training.recipes.face_analyzer import (
    FaceAnalyzerOptions,
    LabelledFaces,
    detector_loss,
    draw,
    landmark_loss,
    overlap,
    rare_kinds,
    read_folder,
    run,
)

TINY = {
    "detector_widths": (4, 8, 8, 8, 8),
    "detector_depths": (1, 1, 1, 1),
    "detector_pyramid_channels": 8,
    "landmarker_widths": (4, 8, 8, 8, 8),
    "landmarker_depths": (1, 1, 1, 1),
    "landmarker_pyramid_channels": 8,
    "detector_size": 64,
    "crop_size": 64,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six drawn faces with labels in the format of the real data."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "portraits").mkdir()
    rng = np.random.default_rng(0)
    half = rng.uniform(-1, 1, (70, 3)) * [0.35, 0.9, 0.3] - [0.4, 0, 0]
    middle = rng.uniform(-1, 1, (22, 3)) * [0, 0.9, 0.3]
    canonical = np.zeros((478, 3), np.float32)
    canonical[list(LANDMARK_IDS)] = np.concatenate([half, half * [-1, 1, 1], middle])
    points, poses = [], []
    for i in range(6):
        center, scale = rng.uniform(0.45, 0.55, 2), rng.uniform(0.2, 0.26)
        face = canonical[list(LANDMARK_IDS), :2] * scale + center
        image = Image.new("RGB", (256, 256), tuple(rng.integers(0, 255, 3).tolist()))
        draw = ImageDraw.Draw(image)
        draw.ellipse([*(face.min(0) * 256).tolist(), *(face.max(0) * 256).tolist()], fill=(230, 180, 150))
        for group, colour in (("left_eye", "white"), ("right_eye", "black"), ("lips_outer", "red")):
            for x, y in (face[list(GROUPS[group])] * 256).tolist():
                draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
        image.save(folder / "portraits" / f"face{i}.png")
        points.append(face)
        poses.append([0, 0, 0, *center, 0, scale])
    np.savez(
        folder / "portraits.npz",
        names=np.array([f"face{i}" for i in range(6)]),
        offsets=np.arange(7),
        landmarks=np.round(np.array(points) * 8192 + 8192).astype(np.uint16),
        pose=np.array(poses, np.float32),
        landmark_ids=np.array(LANDMARK_IDS, np.int16),
        canonical=canonical,
        eye_open=np.full((6, 2), 0.3, np.float16),
        mouth=np.zeros((6, 2), np.float16),
        iris_offset=np.zeros((6, 2, 2), np.float16),
    )
    return folder


def tiny(data, output, **options):
    values = {"batch_size": 6, "scenes_per_batch": 4, "max_steps": 40, "max_minutes": 20.0, "mixed_precision": "no"}
    values |= {"warmup_steps": 5, "log_every": 1, "cpu": True, "model": json.dumps(TINY)}
    return FaceAnalyzerOptions(data=str(data), output=str(output), **{**values, **options})


def losses(folder, part):
    """The loss of each step, from the log."""
    return [json.loads(line)[f"{part}_loss"] for line in (folder / part / "log.jsonl").read_text().splitlines()]


def test_a_short_training_lowers_both_losses_and_saves(data, tmp_path):
    run(tiny(data, tmp_path / "model", learning_rate=1e-2))
    for part in ("landmarker", "detector"):
        history = losses(tmp_path / "model", part)
        assert len(history) == 40
        assert np.mean(history[-8:]) < 0.8 * np.mean(history[:4]), part
    model = FaceAnalyzer.from_pretrained(tmp_path / "model" / "face_analyzer")
    assert model.canonical.abs().sum() > 0


def test_decoded_frames_are_kept_in_the_cache(data, tmp_path):
    (tmp_path / "cache").mkdir()
    options = {"max_steps": 1, "parts": ["landmarker"], "cache": str(tmp_path / "cache")}
    first = run(tiny(data, tmp_path / "a", **options))["landmarker"].logs
    assert np.load(tmp_path / "cache" / f"{data.name}_portraits.npy").shape == (6, 256, 256, 3)
    assert run(tiny(data, tmp_path / "b", **options))["landmarker"].logs == first


def closed(points):
    """The same faces with their lids shut."""
    points = points.clone()
    for upper, lower in ((159, 145), (386, 374)):
        points[:, rows(upper)] = points[:, rows(lower)]
    return points


def test_rare_frames_are_drawn_often(data):
    points = read_folder(data, "portraits", None)[0].points
    many = torch.cat([points] * 20)
    many[7] = closed(many[7:8])[0]
    kinds = rare_kinds(many)
    assert [7] in [kind.tolist() for kind in kinds] and all(len(kind) for kind in kinds)
    frames = np.zeros((len(many), 256, 256, 3), np.uint8)
    drawn = {}
    for share in (0.0, 0.9):
        faces = LabelledFaces(frames, many, torch.zeros(len(many), 7), rare_share=share)
        _, drawn[share], _ = faces.random(64, np.random.default_rng(0))
    shut = {share: (eye_openness(points).amin(1) < 0.05).sum() for share, points in drawn.items()}
    assert shut[0.9] > 10 > shut[0.0]


def test_rendered_faces_join_the_photographs(data, tmp_path):
    with np.load(data / "portraits.npz") as labels:
        np.savez(tmp_path / "rendered.npz", **labels)
    np.save(tmp_path / "rendered.npy", np.full((6, 256, 256, 3), 200, np.uint8))
    rendered = read_folder(tmp_path, "rendered", None)[0]
    sets = {"portraits": read_folder(data, "portraits", None)[0], "rendered": rendered}
    config = tiny(data, tmp_path, rendered_share=0.25)
    frames, points, pose = draw(sets, 40, config, np.random.default_rng(0))
    assert frames.shape == (40, 3, 256, 256) and points.shape == (40, 162, 2) and pose.shape == (40, 7)
    assert (frames.flatten(1).std(1) == 0).sum() == 10
    assert len(draw({"rendered": rendered}, 5, config, np.random.default_rng(0))[0]) == 5
    options = {"max_steps": 2, "parts": ["landmarker"], "rendered": str(tmp_path)}
    assert run(tiny(data, tmp_path / "model", **options))["landmarker"].step == 2


def test_nothing_is_asked_of_irises_behind_closed_lids(data):
    points = read_folder(data, "portraits", None)[0].points
    away = points.clone()
    away[:, rows(468, 473)] += 0.02

    def loss(true, said):
        count = len(true)
        pose = (torch.eye(3).expand(count, 3, 3), torch.zeros(count, 3), torch.full((count,), 0.25))
        batch = dict(zip(("rotation", "translation", "scale"), pose, strict=True))
        batch |= {"points": true, "present": torch.ones(count)}
        return sum(landmark_loss((said, *pose, torch.full((count,), 9.0), None), batch).values())

    open_error, shut_error = loss(points, away) - loss(points, points), loss(closed(points), closed(away))
    assert shut_error < 0.2 * open_error


def test_bad_options(data, tmp_path):
    with pytest.raises(ValueError, match="`data` must hold clips.npz or portraits.npz"):
        run(tiny(tmp_path, tmp_path / "model"))
    with pytest.raises(ValueError, match="`parts` must be one of landmarker, detector"):
        run(tiny(data, tmp_path / "model", parts=["nose"]))


def test_detector_loss_is_small_for_the_right_answer_and_large_for_others():
    boxes = torch.tensor([[0, 16.0, 20.0, 48.0, 60.0]])  # centre (32, 40): in cells (4, 5)
    right = torch.zeros(1, 5, 8, 8)
    right[:, 0] = -12
    right[0, 0, 5, 4] = 12
    right[:, 1], right[:, 2] = np.log(4.0), np.log(5.0)
    y, x = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    right[0, 3], right[0, 4] = 4 - x, 5 - y
    good = sum(detector_loss(right, boxes, 8).values())
    wrong = sum(detector_loss(right.roll(3, dims=-1), boxes, 8).values())
    assert good < 0.05 and wrong > 10 * good
    nothing = right.clone()
    nothing[:, 0] = -12
    empty = detector_loss(nothing, torch.zeros(0, 5), 8)
    assert sum(empty.values()) < 1e-4


def test_overlap_is_a_share_of_the_smaller_box():
    assert overlap(torch.tensor([0.0, 0, 10, 10]), torch.tensor([5.0, 0, 9, 10])) == pytest.approx(1.0)
    assert overlap(torch.tensor([0.0, 0, 10, 10]), torch.tensor([20.0, 0, 30, 10])) == 0

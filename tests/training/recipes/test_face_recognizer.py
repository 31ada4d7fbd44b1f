import json

import numpy as np
import pytest
import torch

from vasa_hf.models.face_recognizer import FaceRecognizer
from vasa_hf.training.recipes.face_recognizer import (
    FaceClasses,
    MarginSoftmax,
    augment,
    margin_loss,
    verification,
    verify_clips,
)
from vasa_hf.training.run import main

TINY = {"image_size": 32, "widths": (8, 12, 16), "depths": (1, 1), "embedding_dim": 16, "num_feature_maps": 2}
BOX = [0.25, 0.25, 0.75, 0.75]


def make_folder(folder, cache, people=4, clips_each=2, portraits=4, seed=0):
    """Labels as on disk and frames as in the cache; a person is a coarse pattern of colours in the face's place."""
    rng = np.random.default_rng(seed)
    corners = np.array([[0.25, 0.25], [0.75, 0.75]]) * 8192 + 8192
    for kind, count, length in (("clips", people * clips_each, 3), ("portraits", portraits, 1)):
        frames = count * length
        persons = people if kind == "clips" else portraits
        owner = np.repeat(np.arange(persons), frames // persons)
        pattern = rng.integers(0, 255, (persons, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
        pictures = rng.integers(0, 255, (frames, 64, 64, 3)).astype(np.uint8)
        pictures[:, 16:48, 16:48] = pattern[owner]
        folder.mkdir(exist_ok=True), cache.mkdir(exist_ok=True)
        np.save(cache / f"{folder.name}_{kind}.npy", pictures.repeat(4, 1).repeat(4, 2))
        np.savez(
            folder / f"{kind}.npz",
            landmarks=np.broadcast_to(corners[None], (frames, 2, 2)).astype(np.uint16),
            pose=np.zeros((frames, 7), np.float32),
            iris_offset=np.zeros((frames, 2, 2), np.float32),
            eye_open=np.zeros((frames, 2), np.float32),
            mouth=np.zeros((frames, 2), np.float32),
            offsets=np.arange(0, frames + 1, length),
            names=np.array([f"{kind}_{index}" for index in range(count)]),
            landmark_ids=np.arange(2),
            canonical=np.zeros((478, 3), np.float32),
        )
    rows = [f"clips_{index},p{index // clips_each:03d}" for index in range(people * clips_each)]
    (folder / "identities.csv").write_text("\n".join(["clip,identity", *rows]))


def test_samples_carry_the_right_person(tmp_path):
    make_folder(tmp_path / "train", tmp_path / "cache")
    dataset = FaceClasses(tmp_path / "train", tmp_path / "cache")
    assert dataset.num_classes == 8
    clips, portraits = (np.load(tmp_path / "cache" / f"train_{kind}.npy") for kind in ("clips", "portraits"))
    faces = {index: clips[6 * index] for index in range(4)} | {4 + index: portraits[index] for index in range(4)}
    seen = set()
    for index in range(60):
        sample = dataset[index]
        label = int(sample["label"])
        seen.add(label)
        face = faces[label][64:192, 64:192].transpose(2, 0, 1)
        np.testing.assert_array_equal(sample["image"][:, 64:192, 64:192], face)
        np.testing.assert_allclose(sample["box"], BOX, atol=1e-3)
    assert seen == set(range(8))
    assert torch.equal(dataset[7]["image"], dataset[7]["image"])


def test_augmentation_stays_in_range_and_varies():
    image = torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8)
    first, second = (augment(image, torch.tensor([BOX] * 16), 32) for _ in range(2))
    assert first.shape == (16, 3, 32, 32) and first.abs().max() <= 1
    assert ((first - second).abs().mean((1, 2, 3)) > 0.05).all()


def test_swapped_surroundings_keep_the_face():
    from vasa_hf.training.recipes.face_recognizer import _swap_surroundings

    x = torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64)])
    grid = torch.nn.functional.affine_grid(torch.eye(2, 3).expand(2, -1, -1), (2, 3, 64, 64), align_corners=False)
    chosen = torch.tensor([True, False]).view(2, 1, 1, 1)
    out = _swap_surroundings(x, torch.tensor([[0.0, 0.0, 0.5, 0.5]] * 2), grid, torch.full((2, 1, 1), 1.1), chosen)
    assert (out[0, :, 8:24, 8:24] == 0).all() and (out[0, :, 40:, 40:] == 1).all()
    assert torch.equal(out[1], x[1])


def test_margin_loss_equals_a_naive_loop():
    cosine, label = torch.rand(5, 7) * 2 - 1, torch.tensor([0, 3, 6, 2, 2])
    expected = 0.0
    for row, right in zip(cosine.tolist(), label.tolist(), strict=True):
        logits = [16 * (value - 0.3 * (index == right)) for index, value in enumerate(row)]
        expected += np.log(np.exp(logits).sum()) - logits[right]
    assert margin_loss(cosine, label, 16.0, 0.3).item() == pytest.approx(expected / 5, rel=1e-4)


def test_verification_on_known_answers():
    assert verification(np.array([0.8, 0.9]), np.array([0.1, 0.2, 0.3]))["auc"] == 1
    assert verification(np.array([0.8, 0.9]), np.array([0.1, 0.2, 0.3]))["eer"] == 0
    same, different = np.array([0.5, 0.7, 0.2]), np.array([0.5, 0.1, 0.6, 0.2])
    wins = np.mean([(a > b) + 0.5 * (a == b) for a in same for b in different])
    assert verification(same, different)["auc"] == pytest.approx(wins)
    noise = np.random.default_rng(0).normal(size=(2, 4000))
    assert verification(*noise)["eer"] == pytest.approx(0.5, abs=0.03)


def test_pairs_of_one_clip_do_not_count():
    # Frames of one clip are equal; the two clips of a person are orthogonal, clips of two people are too.
    embedding = np.eye(4)[[0, 0, 1, 1, 2, 2, 3, 3]]
    clip = np.repeat(np.arange(4), 2)
    assert verify_clips(embedding, clip // 2, clip)["same"] == 0


def test_a_batch_can_be_overfitted():
    model, classes = FaceRecognizer(**TINY), MarginSoftmax(8, 16)
    image, label = torch.rand(8, 3, 32, 32) * 2 - 1, torch.arange(8)
    optimizer = torch.optim.AdamW([*model.parameters(), *classes.parameters()], lr=1e-2)
    for _ in range(60):
        loss = margin_loss(classes(model(image)), label, 16.0, 0.3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert (classes(model.eval()(image)).argmax(1) == label).all()


def test_training_learns_its_people_and_the_saved_folder_measures_the_same(tmp_path, capsys):
    make_folder(tmp_path / "train", tmp_path / "cache")
    make_folder(tmp_path / "eval", tmp_path / "cache", seed=1)
    shared = ["--data", str(tmp_path / "train"), "--cache", str(tmp_path / "cache"), "--cpu"]
    shared += ["--evaluate", str(tmp_path / "eval")]
    run = ["--output", str(tmp_path / "run"), "--max-steps", "60", "--warmup-steps", "5", "--batch-size", "24"]
    run += ["--learning-rate", "0.01", "--scale", "8", "--margin", "0", "--ema-decay", "0.9", "--log-every", "20"]
    main(["face_recognizer", *shared, *run, "--portrait-share", "0", "--model", json.dumps(TINY)])
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["recognizer_loss"] < 0.7 * lines[0]["recognizer_loss"]
    assert lines[-1]["accuracy"] > 0.6  # chance is 0.25; grey, hidden and swapped pictures stay hard
    figures = table(capsys.readouterr().out)
    assert set(figures) == {
        f"{kind}: {network}"
        for kind in ("clips", "clips, face alone", "portraits")
        for network in ("model", "random weights", "pixels")
    }

    main(["face_recognizer", *shared, "--max-steps", "0", "--initial", str(tmp_path / "run" / "face_recognizer")])
    again = table(capsys.readouterr().out)
    for name, values in figures.items():
        if name.endswith(": model"):  # float16 on disk
            assert again[name] == pytest.approx(values, abs=0.01)


def table(report):
    """Row name -> area under the curve, from what the training prints."""
    return {
        line.split(" auc ")[0].strip(): float(line.split(" auc ")[1][:5])
        for line in report.splitlines()
        if " auc " in line
    }


def test_evaluation_alone_needs_a_model():
    with pytest.raises(ValueError, match="`max_steps`.*`initial`"):
        main(["face_recognizer", "--max-steps", "0"])

"""The detector's recipe on videos whose synthetic ones lack what is fine: people and a system are held out."""

import json

import numpy as np
import pytest

from tests.testing_utils.pipelines import make_image
from vasa_hf.media.video import VideoWriter
from vasa_hf.models.forgery_detector import ForgeryDetector
from vasa_hf.training.recipes import forgery_detector as recipe
from vasa_hf.training.recipes.forgery_detector import ForgeryOptions, ForgerySamples, hold_out, read_windows, roc

PEOPLE = ("anna", "ben", "cleo", "dan", "eve")
TINY = {"image_size": 32, "frames": 3, "widths": [8, 16]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Real videos have noise; those of two systems are smooth."""
    folder = tmp_path_factory.mktemp("forgery")
    for system in ("real/clips", "one", "two"):
        (folder / system).mkdir(parents=True)
        for seed, person in enumerate(PEOPLE):
            rng = np.random.default_rng(seed)
            path = folder / system / f"{person}_{system[:3]}.mp4"
            with VideoWriter(path, 25, (32, 32), provenance=False, crf=4) as writer:
                for frame in range(8):
                    image = make_image(seed=seed + frame, size=(32, 32)).astype(float)
                    if system == "real/clips":
                        image += rng.normal(0, 24, image.shape)
                    writer.write(image.clip(0, 255).astype(np.uint8))
    names = "".join(f"{person}_rea,{person}\n" for person in PEOPLE)
    (folder / "real" / "identities.csv").write_text(f"clip,identity\n{names}")
    return folder


def options(folders, output, **changes):
    values = {
        "real": [str(folders / "real")],
        "fake": [str(folders / "one"), str(folders / "two")],
        "held_out_systems": ["two"],
        "held_out_people": 0.4,
        "model": json.dumps(TINY),
        "windows_per_video": 2,
        "output": str(output),
        "batch_size": 8,
        "max_steps": 140,
        "learning_rate": 1e-2,
        "warmup_steps": 5,
        "ema_decay": 0.9,
        "log_every": 20,
        "sample_every": 0,
        "cpu": True,
    }
    return ForgeryOptions(**{**values, **changes})


def test_people_and_systems_are_held_out(folders, tmp_path):
    made = options(folders, tmp_path)
    windows = read_windows(made, 3, 32)
    apart = hold_out(windows, made)
    trained, held = windows.take(~apart), windows.take(apart)
    assert not set(trained.video) & set(held.video) and "two" not in trained.system
    assert len(set(trained.person)) == 3 and set(trained.person).isdisjoint({p for p, s in zip(
        held.person, held.system, strict=True) if s != "two"})  # fmt: skip
    dataset = ForgerySamples(trained)
    shares = np.mean([float(dataset[index]["fake"]) for index in range(200)])
    assert 0.35 < shares < 0.65
    assert dataset[3]["frames"].equal(ForgerySamples(trained)[3]["frames"])
    with pytest.raises(ValueError, match="`held_out_systems`"):
        hold_out(windows, options(folders, tmp_path, held_out_systems=["three"]))
    with pytest.raises(ValueError, match="`fake`"):
        read_windows(options(folders, tmp_path, fake=[]), 3, 32)


def test_folders_that_are_only_judged(folders, tmp_path):
    made = options(
        folders, tmp_path, fake=[str(folders / "one")], judge_fake=[str(folders / "two")], held_out_systems=[]
    )
    windows = read_windows(made, 3, 32)
    apart = hold_out(windows, made)
    held, trained = windows.take(apart), windows.take(~apart)
    assert "two" not in trained.system and held.system.count("two") == windows.system.count("two")
    assert len({person for person, system in zip(held.person, held.system, strict=True) if system != "two"}) == 2


def test_it_learns_and_its_verdicts_are_written(folders, tmp_path):
    recipe.run(options(folders, tmp_path))
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["accuracy"] > 0.8
    found = json.loads((tmp_path / "roc.json").read_text())
    assert set(found) == {"as it is", "JPEG 60, resampled", "JPEG 30, resampled"}
    assert set(found["as it is"]) == {"one", "two", "all"}
    assert found["as it is"]["all"]["auc"] > 0.9  # the other system is smooth, too
    model = ForgeryDetector.from_pretrained(tmp_path / "forgery_detector")
    assert model.config.dropout == 0.0 and float(model.temperature) != 1.0


def test_roc():
    perfect = roc([-2.0, -1.0], [1.0, 3.0])
    assert perfect["auc"] == perfect["accuracy"] == 1.0
    assert perfect["curve"][0] == [0.0, 0.0] and perfect["curve"][-1] == [1.0, 1.0]
    assert roc([0.0, 1.0], [0.0, 1.0])["auc"] == 0.5

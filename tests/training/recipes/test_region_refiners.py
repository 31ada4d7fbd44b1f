import json

import pytest
import torch
from safetensors.torch import load_file

from tests.metrics.test_gaze import video
from tests.training.recipes.test_face_autoencoder import data  # noqa: F401 - fixture
from vasa_hf.geometry.landmarks import rows
from vasa_hf.layers.region_refiner import REGIONS
from vasa_hf.metrics.gaze import iris_shift
from vasa_hf.models.face_autoencoder_vasa1 import Vasa1FaceAutoencoder
from vasa_hf.training.recipes.region_refiners import INNER, RegionCrops, move_irises, region_weight
from vasa_hf.training.run import main


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):  # noqa: F811
    """A short training on made-up clips, from the embedded decoder."""
    output = tmp_path_factory.mktemp("refiners")

    def train(*more, steps=30):
        main(
            f"region_refiners --data {data[0]} --cache {data[1]} --output {output / 'run'} --num-crops 24 --cpu "
            f"--portrait-share 0.3 --batch-size 4 --max-steps {steps} --log-every 10 --adversarial-from 20 "
            f"--warmup-steps 1".split()
            + list(more)
        )
        return output / "run"

    return train(), train


def test_the_loss_falls_and_the_pipeline_holds_the_refiners(run):
    folder, _ = run
    logs = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for name in REGIONS:
        assert logs[1][f"{name}_l1"] < logs[0][f"{name}_l1"]
        assert f"{name}_adversarial" in logs[-1] and f"{name}_adversarial" not in logs[0]
    saved = folder / "pipeline" / "face_autoencoder"
    assert "_name_or_path" not in json.loads((saved / "config.json").read_text())  # no folder of this machine
    assert max(file.stat().st_size for file in saved.iterdir()) < 15.1e6
    model = Vasa1FaceAutoencoder.from_pretrained(saved)
    assert set(model.refiners) == set(REGIONS)
    before = Vasa1FaceAutoencoder.from_pretrained("model_cards/vasa-small/face_autoencoder")
    same = dict(before.named_parameters())
    for key, value in model.named_parameters():  # nothing but the refiners has learnt
        if not key.startswith("refiners"):
            assert torch.equal(value, same[key])


def test_kept_crops_are_used_again_and_some_are_never_learnt_from(run):
    folder, train = run
    crops = load_file(folder / "crops.safetensors")
    dataset = RegionCrops(crops)
    seen = {int(dataset[i]["mouth_true"].long().sum()) for i in range(200)}
    held = {int(row.long().sum()) for row in dataset.held_back()["mouth_true"]}
    assert held and not held & seen
    written = (folder / "crops.safetensors").stat().st_mtime_ns
    train("--resume", steps=31)
    assert (folder / "crops.safetensors").stat().st_mtime_ns == written


def test_importance_is_highest_between_the_lips_and_lids():
    points = torch.full((1, 162, 2), 0.5)
    points[:, rows(78, 308, 13, 14)] = torch.tensor([[0.4, 0.7], [0.6, 0.7], [0.5, 0.68], [0.5, 0.72]])
    weight = region_weight(points, "mouth", 100)[0, 0]
    assert weight[70, 50] >= INNER > weight[76, 50] > weight[20, 50]
    points[:, rows(13, 14)] = torch.tensor([0.5, 0.7])  # shut lips have no inside
    assert region_weight(points, "mouth", 100).max() < INNER


def test_unknown_regions_say_so(tmp_path):
    with pytest.raises(ValueError, match="`regions`"):
        main(["region_refiners", "--regions", "ears", "--output", str(tmp_path), "--cpu"])


@pytest.mark.parametrize("shift", [(0.1, 0.0), (-0.08, 0.03), (0.0, -0.04)])
def test_irises_of_a_frame_move_as_far_as_asked_and_lids_stay(shift):
    still, track = video((0.0, 0.0), frames=2, roll=0.1, lids=0.4)
    moved = move_irises(still * 2 - 1, track.landmarks, torch.tensor([shift] * 2)) / 2 + 0.5
    torch.testing.assert_close(iris_shift(still, moved, track, track), torch.tensor(shift), atol=0.02, rtol=0.2)
    beside = torch.ones(256, 256, dtype=torch.bool)
    beside[75:140, 60:200] = False
    assert (moved - still).abs()[..., beside].max() < 1e-5

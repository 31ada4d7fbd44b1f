"""LivePortrait's names, sizes and outputs, also where the reference vectors are absent."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.convert import golden_liveportrait as golden
from tests.convert.parity import ABSENT, FOLDER
from tests.convert.vectors_liveportrait import MODULES, SPECTRAL, folded
from tests.testing_utils.hash_weights import hash_values, spectral_weight
from vasa_hf.models.renderer_liveportrait import LivePortraitRenderer

GOLDEN = json.loads(golden.FILE.read_text())
PARAMETERS = {
    "appearance_feature_extractor": 836_224,
    "motion_extractor": 28_118_728,
    "warping_module": 45_529_829,
    "spade_generator": 55_365_388,
    "stitching": 45_249,
    "retargeting_lip": 37_311,
    "retargeting_eye": 144_703,
}
needs_vectors = pytest.mark.skipif(not FOLDER.is_dir(), reason=ABSENT)


@pytest.fixture(scope="module")
def official():
    with torch.device("meta"):
        return LivePortraitRenderer()


def test_official_size_has_130_million_parameters(official):
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in official.named_children()} == PARAMETERS
    assert round(sum(PARAMETERS.values()) / 1e6, 1) == 130.1


@pytest.mark.parametrize("name", PARAMETERS)
def test_names_and_shapes_are_the_recorded_ones(official, name):
    assert golden.signature(official.get_submodule(name)) == GOLDEN["official_signatures"][name]


@needs_vectors
@pytest.mark.parametrize("theirs", MODULES)
def test_names_and_shapes_are_the_public_weights(official, theirs):
    entries = json.loads((FOLDER / "liveportrait" / f"keys_{theirs}.json").read_text())["keys"]
    expected = {
        entry["name"].replace("weight_orig", "weight"): entry["shape"]
        for entry in entries
        if not entry["name"].endswith(("weight_u", "weight_v"))
    }
    found = official.get_submodule(MODULES[theirs]).state_dict()
    assert {name: list(value.shape) for name, value in found.items()} == expected


def test_hashes_are_the_recorded_ones():
    values = hash_values("full/appearance_feature_extractor/first.conv.weight", (64, 3, 3, 3)).flatten()
    assert values[:3].round(8).tolist() == [0.17893273, 0.87389765, -0.76410683]


@needs_vectors
@pytest.mark.parametrize("theirs", MODULES)
def test_hashed_weights_are_those_of_the_vectors(theirs):
    expected = folded(load_file(FOLDER / "liveportrait" / f"{theirs}_small.safetensors"))
    found = golden.small().get_submodule(MODULES[theirs]).state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)


def test_spectral_norm_is_not_the_largest_singular_value():
    """The public weights hold it as far as training had found it; who computes it again gets other images."""
    weight = spectral_weight("G_middle_0.conv_0.weight", (32, 32, 3, 3), "spade_generator_small/")
    assert 1.01 < torch.linalg.matrix_norm(weight.flatten(1), 2) < 1.06
    assert SPECTRAL == ("conv_0", "conv_1", "conv_s")


def compare(renderer, recorded):
    found = {name: golden.numbers(value) for name, value in golden.outputs(renderer).items()}
    assert found.keys() == recorded.keys()
    for name, expected in recorded.items():
        # Other processors and numbers of threads sum in another order.
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(expected), rtol=1e-4, atol=2e-5, msg=name)


def test_small_modules_give_the_recorded_numbers():
    compare(golden.small(), GOLDEN["small"])


@pytest.mark.slow
def test_modules_of_official_size_give_the_recorded_numbers():
    compare(golden.official(), GOLDEN["official"])

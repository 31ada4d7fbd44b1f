import json

import pytest
import torch

from tests.testing_utils.face_data import make_face_data
from vasa_hf.models.autoencoder_gaia import GaiaAutoencoder
from vasa_hf.training.options import parse_options, read_config
from vasa_hf.training.recipes.gaia_autoencoder import (
    GaiaAutoencoderOptions,
    discriminator_loss,
    generator_loss,
    run,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    return make_face_data(folder / "train", size=64), folder / "cache"


def train(data, output, *arguments):
    common = ["--data", data[0], "--cache", data[1], "--output", output, "--preset", "tiny", "--cpu", "--batch-size", 4]
    common += ["--log-every", 1, "--sample-every", 0, "--checkpoint-every", 0, "--warmup-steps", 1]
    state = run(parse_options(GaiaAutoencoderOptions, [str(a) for a in [*common, *arguments]]))
    return state.modules["autoencoder"], [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_the_model_is_saved(data, tmp_path):
    model, log = train(data, tmp_path, "--max-steps", 60, "--learning-rate", 3e-3, "--sample-every", 60)
    # Motion of these made-up faces is small and random; what the autoencoder paints is not.
    first, last = (sum(line["l1"] for line in part) for part in (log[:10], log[-10:]))
    assert last < 0.8 * first, (first, last)
    again = GaiaAutoencoder.from_pretrained(tmp_path / "autoencoder", torch_dtype=torch.float32)
    assert again.config.image_size == 32 and again.config.source_passthrough
    for name, value in model.state_dict().items():
        assert torch.equal(value.half().float(), again.state_dict()[name]), name
    assert (tmp_path / "sheet-0000060.png").stat().st_size > 1000


def test_resume_equals_uninterrupted(data, tmp_path):
    _, whole = train(data, tmp_path / "a", "--max-steps", 4)
    train(data, tmp_path / "b", "--max-steps", 4, "--max-minutes", 1e-9)  # ends after its first step
    _, resumed = train(data, tmp_path / "b", "--max-steps", 4, "--resume")
    assert [line["step"] for line in resumed] == [1, 2, 3, 4]
    for one, other in zip(whole, resumed, strict=True):  # weights lie elsewhere in memory: other kernels
        assert one["autoencoder_loss"] == pytest.approx(other["autoencoder_loss"], rel=0.01)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--weight-adversarial", 0.5, "--adversarial-from", 1],
        ["--motion-input", "frame"],
        ["--no-source-passthrough"],
    ],
)
def test_variants_learn_all_parts(data, tmp_path, arguments):
    model, log = train(data, tmp_path, "--max-steps", 2, *arguments)
    assert model.config.source_passthrough == (arguments[0] == "--weight-adversarial")
    assert ("discriminator_loss" in log[0]) == (arguments[0] == "--weight-adversarial")
    assert ("adversarial" in log[1]) == (arguments[0] == "--weight-adversarial")
    assert all(line["kl"] > 0 for line in log)


def test_adversarial_losses_are_those_of_equation_3():
    real, fake = torch.randn(5), torch.randn(5)
    naive = real.sigmoid().log() + (1 - fake.sigmoid()).log()
    torch.testing.assert_close(discriminator_loss([real], [fake]), -naive.mean())
    torch.testing.assert_close(generator_loss([fake]), -fake.sigmoid().log().mean())


def test_the_papers_config_has_the_papers_numbers():
    paper = read_config("paper_gaia_autoencoder", GaiaAutoencoderOptions)
    assert paper["learning_rate"] == 4.5e-6 and paper["final_lr_ratio"] == 1.0  # appendix B.1: constant


def test_unfit_options_say_so(data, tmp_path):
    with pytest.raises(ValueError, match="`perceptual`"):
        train(data, tmp_path, "--weight-perceptual", 1)
    with pytest.raises(ValueError, match="`preset`"):
        train(data, tmp_path, "--preset", "9b")

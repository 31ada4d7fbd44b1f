import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from tests.testing_utils.face_data import make_face_data
from vasa_hf.data.clips import MotionData
from vasa_hf.data.landmark_dynamics import FaceLabels, LandmarkDynamics
from vasa_hf.data.landmark_sequences import LandmarkMotion
from vasa_hf.models.autoencoder_gaia import PRESETS, GaiaAutoencoder
from vasa_hf.models.motion_denoiser_gaia import GaiaMotionDenoiser
from vasa_hf.training.options import parse_options
from vasa_hf.training.recipes import gaia_motion_denoiser, gaia_text_denoiser
from vasa_hf.training.recipes.gaia_motion_denoiser import GaiaDenoiserOptions
from vasa_hf.training.recipes.gaia_text_denoiser import GaiaTextOptions, byte_tokenizer, tokenize


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Labels of real layout, speech features that follow the pose, an autoencoder, and what the text recipe needs."""
    folder = tmp_path_factory.mktemp("gaia")
    make_face_data(folder / "train", size=32)
    labels = FaceLabels.load(folder / "train" / "clips.npz")
    torch.manual_seed(0)
    frames = len(labels.landmarks)
    MotionData(
        motion=np.zeros((frames, 34), np.float32),
        audio=(labels.pose[:, :3] @ torch.randn(3, 5)).numpy().astype(np.float16),
        offsets=labels.offsets,
        person=np.zeros(3, int),
        speaks=np.ones(3, bool),
        silence=np.zeros((1, 4, 5), np.float16),
    ).save(folder / "motion_data.safetensors")
    GaiaAutoencoder(**PRESETS["tiny"]).save_pretrained(folder / "autoencoder")
    dynamics = LandmarkDynamics.fit(labels, ["a", "a", "b"], FaceLabels.load(folder / "train" / "portraits.npz"))
    dynamics.save(folder / "dynamics.safetensors")
    save_file({"blink": torch.randn(28), "emotion": torch.randn(6, 28)}, folder / "priors.safetensors")
    return folder


def train(recipe, options_class, folder, output, *arguments):
    common = ["--data", folder / "train", "--autoencoder", folder / "autoencoder", "--output", output]
    common += ["--preset", "tiny", "--cpu", "--batch-size", 4, "--log-every", 1, "--sample-every", 0]
    common += ["--checkpoint-every", 0, "--warmup-steps", 1, "--window", 10, "--context", 3, "--max-steps", 2]
    recipe.run(parse_options(options_class, [str(a) for a in [*common, *arguments]]))
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def train_speech(folder, output, *arguments):
    prepared = ["--prepared", folder / "motion_data.safetensors", "--shortest", 3, "--longest", 6]
    return train(gaia_motion_denoiser, GaiaDenoiserOptions, folder, output, *prepared, *arguments)


def train_text(folder, output, *arguments):
    known = ["--dynamics", folder / "dynamics.safetensors", "--priors", folder / "priors.safetensors"]
    known += ["--composed", 28, "--frames", 20, "--text-width", 16]
    return train(gaia_text_denoiser, GaiaTextOptions, folder, output, *known, *arguments)


def test_both_terms_fall_and_the_model_is_saved(folder, tmp_path):
    """Speech features are made of the pose here, so that P can learn it."""
    arguments = ["--max-steps", 150, "--learning-rate", 1e-2, "--sample-every", 150, "--drop-audio", 0.1]
    log = train_speech(folder, tmp_path, *arguments)
    for name in ("position", "pose"):
        first, last = (np.mean([line[name] for line in part]) for part in (log[:10], log[-10:]))
        assert last < 0.8 * first, name
    model = GaiaMotionDenoiser.from_pretrained(tmp_path / "motion_transformer")
    assert model.config.motion_dim == 12 and model.config.audio_dim == 5 and model.config.predicts == "latent"
    assert model.pose_std.max() < 0.3 and (tmp_path / "scheduler" / "scheduler_config.json").exists()
    assert (tmp_path / "sheet-0000150.png").exists()


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        (["--predicts", "landmarks"], {"predicts": "landmarks", "motion_dim": 324}),
        (["--no-use-pose"], {"use_pose": False}),
        (["--no-diffusion"], {"diffusion": False}),
        (["--backbone", "transformer", "--speech-condition", "attention"], {"backbone": "transformer"}),
        (["--reference-condition", "add"], {"reference_condition": "add"}),
        (["--speech-condition", "attention", "--reference-condition", "attention"], {"speech_condition": "attention"}),
        (["--speech-condition", "attention", "--reference-condition", "add"], {"reference_condition": "add"}),
        (["--data-share", 0.4], {}),
    ],
)
def test_ablations_and_the_landmark_model_train(folder, tmp_path, arguments, changes):
    log = train_speech(folder, tmp_path, *arguments)
    config = GaiaMotionDenoiser.load_config(tmp_path / "motion_transformer")
    assert all(config[name] == value for name, value in changes.items())
    assert ("pose" in log[-1]) == config["use_pose"]


def test_without_disentanglement_the_frames_are_encoded(folder, tmp_path):
    """Table 6: both models of the ablation, one after the other."""
    GaiaAutoencoder(**{**PRESETS["tiny"], "motion_input": "frame", "source_passthrough": False}).save_pretrained(
        tmp_path / "autoencoder"
    )
    train_speech(folder, tmp_path / "motion", "--autoencoder", tmp_path / "autoencoder")
    kept = LandmarkMotion.load(tmp_path / "motion" / "landmark_motion.safetensors")
    assert kept.latent.shape == (len(kept.landmarks), 12) and kept.latent.std(0).min() > 0
    with pytest.raises(ValueError, match="`autoencoder` must encode landmarks"):  # made-up clips have no frames
        train_text(folder, tmp_path / "text", "--autoencoder", tmp_path / "autoencoder")


def test_text_model_learns_with_a_small_encoder_of_its_own(folder, tmp_path):
    log = train_text(folder, tmp_path, "--max-steps", 600, "--learning-rate", 2e-3, "--sample-every", 600)
    first, last = (np.mean([line["position"] for line in part]) for part in (log[:10], log[-10:]))
    assert last < 0.8 * first
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "text_tokenizer")
    encoder = CLIPTextModel.from_pretrained(tmp_path / "text_encoder").eval()
    model = GaiaMotionDenoiser.from_pretrained(tmp_path / "text_denoiser")
    assert model.config.audio_dim == encoder.config.hidden_size == 16 and model.config.dropout == 0
    # The phrases are told apart: P turns the head to the side that is asked for.
    with torch.no_grad():
        pooled = encoder(tokenize(tokenizer, ["turn your head left", "turn your head right"])).pooler_output
        pose = model.predict_pose(pooled[:, None].expand(-1, 20, -1))
    assert pose[0, 10:, 0].mean() < pose[1, 10:, 0].mean() - 0.1


def test_text_model_with_a_given_encoder_leaves_it_as_it_is(folder, tmp_path):
    train_text(folder, tmp_path / "a")
    encoder = CLIPTextModel.from_pretrained(tmp_path / "a" / "text_encoder")
    byte_tokenizer().save_pretrained(tmp_path / "a" / "text_encoder")
    train_text(folder, tmp_path / "b", "--text-encoder", tmp_path / "a" / "text_encoder")
    again = CLIPTextModel.from_pretrained(tmp_path / "b" / "text_encoder")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in encoder.state_dict().items())


def test_every_text_has_tokens():
    tokenizer = byte_tokenizer()
    tokens = tokenize(tokenizer, ["Please smile!", "tourne la tête à gauche", "微笑"])
    assert tokens.shape == (3, 48) and (tokens[:, 0] == tokenizer.bos_token_id).all()
    # Only the end of the text looks like the end, so nothing was unknown.
    text = tokens[0, 1 : 1 + len("pleasesmile!")]
    assert tokenizer.eos_token_id not in text.tolist()


def test_missing_data_says_so(folder, tmp_path):
    with pytest.raises(ValueError, match="`data` and `prepared`"):
        gaia_motion_denoiser.run(GaiaDenoiserOptions(output=str(tmp_path)))
    with pytest.raises(ValueError, match="`autoencoder`"):
        prepared = str(folder / "motion_data.safetensors")
        data = [str(folder / "train")]
        gaia_motion_denoiser.run(GaiaDenoiserOptions(output=str(tmp_path), data=data, prepared=prepared))
    with pytest.raises(ValueError, match="`data`"):
        gaia_text_denoiser.run(GaiaTextOptions(output=str(tmp_path)))

"""Saved models that are broken, incomplete or made to run something: refused, and nothing of theirs is run."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.testing_utils.promises import check_call, run
from vasa_hf import Vasa3DAvatarPipeline, VasaTalkingFacePipeline

WEIGHTS = {
    "audio_encoder": "model.safetensors",
    "face_autoencoder": "diffusion_pytorch_model.safetensors",
    "motion_transformer": "diffusion_pytorch_model.safetensors",
}
CONFIGS = {
    "audio_encoder": "config.json",
    "audio_processor": "preprocessor_config.json",
    "face_analyzer": "config.json",
    "face_autoencoder": "config.json",
    "image_processor": "preprocessor_config.json",
    "motion_transformer": "config.json",
    "scheduler": "scheduler_config.json",
}
DEEP = "[" * 100_000


@pytest.fixture
def model(whole, tmp_path):
    """A copy to be broken."""
    return shutil.copytree(whole.folder / "vasa1", tmp_path / "model")


def load(folder):
    return check_call(VasaTalkingFacePipeline.from_pretrained, folder)


def change_index(model, **changes):
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, **changes}))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "5", DEEP, '{"a": 1}', '{"_class_name": 5}', '{"_base": ["a"]}', "\0", "9" * 5000]
)
def test_indices_of_no_pipeline(model, text):
    (model / "model_index.json").write_text(text)
    assert "`" in load(model)


@pytest.mark.parametrize(
    "entry",
    [
        ["payload", "Model"],
        ["os", "system"],
        ["vasa_hf.cli", "main"],
        ["vasa_hf..payload", "Model"],
        ["diffusers", "DiffusionPipeline"],
        ["transformers", "AutoModel"],
        ["transformers", "no_such_class"],
        ["transformers.utils", "logging"],
        [None, "Vasa1MotionTransformer"],
        ["vasa_hf"],
        [1, 2],
        "vasa_hf",
        {"a": 1},
        [["vasa_hf"], ["x"]],
    ],
    ids=str,
)
def test_foreign_entries_are_not_imported(model, monkeypatch, tmp_path, entry):
    (tmp_path / "payload.py").write_text("raise SystemExit('the payload ran')")
    monkeypatch.syspath_prepend(tmp_path)
    change_index(model, motion_transformer=entry)
    assert load(model) and "payload" not in sys.modules


@pytest.mark.parametrize("base", ["/nowhere", "../../etc", "no/such/model", "", "a" * 5000, "\0", "vasa-small/../x"])
def test_bases_that_are_not_there(model, base):
    shutil.rmtree(model / "audio_encoder")
    change_index(model, _base=base, audio_encoder=None)
    assert "`" in load(model)


@pytest.mark.parametrize("name", CONFIGS)
def test_missing_and_emptied_components(model, name):
    config = model / name / CONFIGS[name]
    text = config.read_text()
    for broken in ("", "{", "[]", DEEP, "null"):
        config.write_text(broken)
        assert name in load(model)
    config.write_text(text)
    assert load(model) == ""
    shutil.rmtree(model / name)
    assert name in load(model)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("motion_transformer", {"window": "10"}),
        ("motion_transformer", {"window": 10**9}),
        ("motion_transformer", {"hidden_size": 10**7}),
        ("motion_transformer", {"hidden_size": None}),
        ("motion_transformer", {"num_layers": -1}),
        ("motion_transformer", {"num_heads": 0}),
        ("motion_transformer", {"emotions": 5}),
        ("motion_transformer", {"motion_dim": 11}),
        ("motion_transformer", {"audio_dim": 17}),
        ("motion_transformer", {"no_such_key": 1}),
        ("motion_transformer", {"_class_name": "Vasa1FaceAutoencoder"}),
        ("face_autoencoder", {"image_size": "32"}),
        ("face_autoencoder", {"image_size": 10**6}),
        ("face_autoencoder", {"encoder_channels": [4, -4, 8, 8]}),
        ("face_autoencoder", {"encoder_channels": "4488"}),
        ("face_autoencoder", {"dynamics_dim": 2.5}),
        ("face_analyzer", {"detector_size": -64}),
        ("face_analyzer", {"crop_size": "32"}),
        ("audio_encoder", {"hidden_size": "16"}),
        ("audio_encoder", {"num_attention_heads": 0}),
        ("audio_encoder", {"conv_dim": [4, 4]}),
        ("audio_encoder", {"hidden_act": "no_such_function"}),
        ("audio_encoder", {"num_hidden_layers": 2}),
        ("audio_processor", {"sampling_rate": 0}),
        ("audio_processor", {"fps": "25"}),
        ("audio_processor", {"context_frames": 10**9}),
        ("image_processor", {"size": 10**9}),
        ("image_processor", {"scale": float("nan")}),
        ("image_processor", {"background": [0, 0]}),
        ("scheduler", {"num_train_timesteps": -1}),
        ("scheduler", {"num_train_timesteps": "many"}),
        ("scheduler", {"prediction_type": "epsilon"}),
        ("scheduler", {"beta_schedule": "no_such_one"}),
    ],
    ids=str,
)
def test_configs_of_wrong_type_or_size(model, name, changes):
    file = model / name / CONFIGS[name]
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    assert name in load(model) or next(iter(changes)) in load(model)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("how", ["missing", "extra", "shape", "NaN", "cut", "text", "pickle", "other", "none"])
def test_weights(model, name, how):
    file = model / name / WEIGHTS[name]
    tensors = load_file(file)
    key = max(tensors, key=lambda key: tensors[key].numel())
    if how == "missing":
        for lost in list(tensors)[:5]:
            del tensors[lost]
    elif how == "extra":
        tensors["extra.weight"] = torch.zeros(3)
    elif how == "shape":
        tensors[key] = tensors[key][:1].clone()
    elif how == "NaN":
        tensors[key].view(-1)[0] = float("nan")
    elif how == "other":
        tensors = {"weight": torch.zeros(3)}
    save_file(tensors, file, metadata={"format": "pt"})
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "text":
        file.write_text("no weights")
    elif how in ("pickle", "none"):
        file.unlink()
    if how == "pickle":
        torch.save(tensors, model / name / "pytorch_model.bin")
        torch.save(tensors, model / name / "diffusion_pytorch_model.bin")
    assert name in load(model)


@pytest.mark.parametrize("how", ["config", "weights", "motion_space", "unfitted", "head"])
def test_avatars(whole, tmp_path, how):
    model = shutil.copytree(whole.folder / "vasa3d", tmp_path / "model")
    avatar = model / "avatars" / "tiny"
    config, weights = avatar / "config.json", next(avatar.glob("*.safetensors"))
    tensors, values = load_file(weights), json.loads(config.read_text())
    if how == "config":
        values["num_gaussians"] = "many"
    elif how == "motion_space":
        values["motion_space"] = "another"
    elif how == "weights":
        tensors["means"][0] = float("inf")
    elif how == "unfitted":
        tensors["own_motion"].zero_()
    else:
        del tensors[next(key for key in tensors if key.startswith("head"))]
    config.write_text(json.dumps(values))
    save_file(tensors, weights, metadata={"format": "pt"})
    pipe = Vasa3DAvatarPipeline.from_pretrained(model)
    assert "`" in check_call(pipe.load_avatar, "tiny")


def test_a_command_tells_it_in_one_line(model, whole, tmp_path):
    change_index(model, motion_transformer=["payload", "Model"])
    words = ("talk", whole.image, whole.audio, "-o", tmp_path / "out.mp4", "--model", model)
    status, said, lines = run(*words)
    assert (
        status == 2 and said == "" and lines[-1].startswith("vasa-hf: error: ") and "`motion_transformer`" in lines[-1]
    )

"""Components that do not fit each other, and saved pipelines that are damaged."""

import json
import shutil

import pytest

from tests.testing_utils.pipelines import (
    make_vasa1_components,
)
from vasa_hf import VasaTalkingFacePipeline


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"motion_transformer": {"motion_dim": 11, "dynamics": {"dynamics": 5}}},
            "`motion_transformer` must have `motion_dim` 10.*got 11",
        ),
        ({"motion_transformer": {"audio_dim": 8}}, "`motion_transformer` must have `audio_dim` 16.*got 8"),
        ({"motion_transformer": {"fps": 30.0}}, "`audio_processor` must have `fps` 30.0.*got 25"),
        (
            {"scheduler": {"prediction_type": "epsilon"}},
            "`scheduler` must have `prediction_type` 'sample'.*got 'epsilon'",
        ),
    ],
)
def test_components_that_do_not_fit_are_rejected(change, message):
    components = make_vasa1_components()
    for name, settings in change.items():
        config = {key: value for key, value in components[name].config.items() if not key.startswith("_")}
        config.pop("dynamics", None)
        components[name] = type(components[name])(**{**config, **settings})
    with pytest.raises(ValueError, match=message):
        VasaTalkingFacePipeline(**components)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    VasaTalkingFacePipeline(**make_vasa1_components()).save_pretrained(folder)
    return folder


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def copy_other_class(folder):
    change_json(folder / "model_index.json", face_autoencoder=["vasa_hf.models.face_analyzer", "FaceAnalyzer"])
    shutil.rmtree(folder / "face_autoencoder")
    shutil.copytree(folder / "face_analyzer", folder / "face_autoencoder")


def copy_other_weights(folder):
    name = "diffusion_pytorch_model.safetensors"
    shutil.copy(folder / "face_analyzer" / name, folder / "motion_transformer" / name)


def cut_off(folder):
    path = folder / "motion_transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (copy_other_class, "`face_autoencoder` must be a Vasa1FaceAutoencoder, got FaceAnalyzer"),
        (copy_other_weights, "`motion_transformer` must find all weights of Vasa1MotionTransformer, .*, such as "),
        (lambda folder: change_json(folder / "face_autoencoder" / "config.json", identity_dim=8), "expected shape"),
        (lambda folder: change_json(folder / "audio_encoder" / "config.json", intermediate_size=24), "mismatched"),
        (cut_off, "Unable to load weights from .*motion_transformer"),
        (lambda folder: shutil.rmtree(folder / "scheduler"), "scheduler"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "`model_index.json` must be JSON"),
    ],
)
def test_weights_of_another_class_or_shape_are_rejected(saved, tmp_path, spoil, message):
    shutil.copytree(saved, tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(
        ValueError, match=f"(?s)`pretrained_model_name_or_path` must hold a whole pipeline, got '.*{message}"
    ):
        VasaTalkingFacePipeline.from_pretrained(tmp_path / "model")


def test_a_missing_pipeline_is_rejected(saved, tmp_path):
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` must be an embedded model, a folder or a"):
        VasaTalkingFacePipeline.from_pretrained(tmp_path / "nothing")

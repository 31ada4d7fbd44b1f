import json

import numpy as np
import pytest
import torch

from tests.testing_utils.face_data import make_face_data
from vasa_hf.geometry.keypoints import KeypointMotion
from vasa_hf.hub import resolve
from vasa_hf.models.face_autoencoder_vasa1 import Vasa1FaceAutoencoder
from vasa_hf.models.face_recognizer import FaceRecognizer
from vasa_hf.models.renderer_liveportrait import SMALL_CONFIG, TINY_CONFIG, LivePortraitRenderer
from vasa_hf.training.recipes.renderer_liveportrait import (
    STAGES,
    MotionRegressor,
    start_as_copy,
    start_from_dynamics_encoder,
)
from vasa_hf.training.run import main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    return make_face_data(folder / "train"), folder / "cache"


def run(data, output, *arguments):
    common = ["--data", data[0], "--cache", data[1], "--output", output, "--preset", "tiny", "--cpu", "--batch-size", 4]
    common += ["--train-size", 64, "--log-every", 1, "--sample-every", 0, "--checkpoint-every", 0]
    state = main(["renderer_liveportrait", *(str(a) for a in [*common, "--warmup-steps", 1, *arguments])])
    return state.modules["renderer"], [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("stage", "extra", "name"),
    [
        (
            "motion",
            ["--max-steps", 120, "--batch-size", 8, "--portrait-share", 0, "--solve-samples", 0],
            "generator_loss",
        ),
        ("renderer", ["--start-as-copy", "--hold-norms"], "l1"),
        ("joint", ["--weight-adversarial", 0.01], "l1"),
        ("stitching", [], "lips"),
    ],
)
def test_each_stage_lowers_its_loss_and_only_its_parts_learn(data, tmp_path, stage, extra, name):
    torch.manual_seed(0)  # the weights that the training starts from
    model, log = run(data, tmp_path, "--stage", stage, "--max-steps", 30, "--learning-rate", 3e-3, "--seed", 0, *extra)
    first, last = (np.mean([line[name] for line in part]) for part in (log[:6], log[-12:]))
    assert last < 0.95 * first, f"{name} went from {first:.4f} to {last:.4f}"
    again = LivePortraitRenderer.from_pretrained(tmp_path / "renderer").state_dict()
    torch.manual_seed(0)
    start = LivePortraitRenderer(**TINY_CONFIG).half().state_dict()
    changed = {key.split(".")[0] for key in start if not torch.equal(start[key], again[key])}
    assert changed == set(STAGES[stage])


def test_a_new_renderer_can_begin_as_a_copy_of_its_source():
    """Before any training: pictures it was not solved for come back, which random weights turn into grey."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    waves = [0.5 + 0.4 * torch.sin(9 * (x * (i % 5) + y * (i % 7)) + i) for i in range(120)]
    images = torch.stack(waves).view(40, 3, 64, 64)
    still = torch.zeros(8, 21, 3)
    errors = {}
    for copy in (False, True):
        model = LivePortraitRenderer(**TINY_CONFIG)
        if copy:
            start_as_copy(model, images[:32])
        model.eval()
        with torch.no_grad():
            errors[copy] = float((model.render(model.encode_appearance(images[32:]), still, still) - images[32:]).std())
    assert errors[True] < 0.6 * errors[False]


def test_a_perceptual_loss_can_be_added(data, tmp_path):
    faces = FaceRecognizer(image_size=32, widths=(4, 8, 8), depths=(1, 2), embedding_dim=12, num_feature_maps=3)
    faces.save_pretrained(tmp_path / "faces")
    options = ["--perceptual", tmp_path / "faces", "--weight-perceptual", 1, "--max-steps", 1]
    _, log = run(data, tmp_path / "run", *options)
    assert log[0]["perceptual"] > 0


def test_heads_are_solved_for_before_gradients_begin():
    torch.manual_seed(0)
    detector = LivePortraitRenderer(**TINY_CONFIG).motion_extractor.detector
    images = torch.rand(300, 3, 64, 64)
    with torch.no_grad():
        features = detector.features(images)
    mixed = (features - features.mean(0)) / features.std(0) @ torch.randn(features.shape[1], 133)
    labels = KeypointMotion.from_vector(mixed[:, 63:], mixed[:, :63].unflatten(1, (21, 3)))
    regressor = MotionRegressor(detector, labels)
    regressor.solve([(images[:200], labels[:200]), (images[200:], labels[200:])])
    assert regressor.training
    found = regressor.eval()(images) * regressor.deviation + regressor.mean
    assert (found - mixed).std() < 0.05 * mixed.std()


def test_folded_heads_say_what_the_regressor_says():
    torch.manual_seed(0)
    model = LivePortraitRenderer(**TINY_CONFIG)
    angles = (20 * torch.randn(50) for _ in range(3))
    labels = KeypointMotion(
        0.3 * torch.randn(50, 21, 3),
        0.01 * torch.randn(50, 21, 3),
        1 + 0.1 * torch.rand(50, 1),
        torch.randn(50, 3),
        *angles,
    )
    regressor = MotionRegressor(model.motion_extractor.detector, labels)
    images = torch.rand(8, 3, 64, 64)
    regressor.train()(images)  # its norm has seen something
    regressor.eval(), model.eval()
    with torch.no_grad():
        said = regressor.motion(regressor(images))
        regressor.fold()
        read = model.extract_motion(images)
    for name in ("kp", "exp", "scale", "t"):
        torch.testing.assert_close(getattr(read, name), getattr(said, name), atol=1e-5, rtol=1e-4)
    for name in ("pitch", "yaw", "roll"):
        torch.testing.assert_close(getattr(read, name), getattr(said, name), atol=0.05, rtol=0)


def test_motion_can_start_from_where_vasa1_looks():
    model = LivePortraitRenderer(**SMALL_CONFIG)
    detector = model.motion_extractor.detector
    start_from_dynamics_encoder(detector, "vasa-small")
    encoder = Vasa1FaceAutoencoder.from_pretrained(resolve("vasa-small"), subfolder="face_autoencoder").dynamics_encoder
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(detector.features(images), torch.cat(encoder.float().features(2 * images - 1), 1))


def test_bad_options_say_so(data, tmp_path):
    with pytest.raises(ValueError, match="`stage` must be"):
        run(data, tmp_path, "--stage", "all")
    with pytest.raises(ValueError, match="`preset` must be"):
        run(data, tmp_path, "--preset", "huge")
    with pytest.raises(ValueError, match="`motion_from` goes with the stage 'motion'"):
        run(data, tmp_path, "--motion-from", "vasa-small")
    with pytest.raises(ValueError, match="`motion_from` goes with an M of points"):
        run(data, tmp_path, "--stage", "motion", "--motion-from", "vasa-small")
    with pytest.raises(ValueError, match="`perceptual` must name"):
        run(data, tmp_path, "--weight-perceptual", 1)
    with pytest.raises(ValueError, match="`start_as_copy` goes with"):
        run(data, tmp_path, "--start-as-copy", "--preset", "paper")

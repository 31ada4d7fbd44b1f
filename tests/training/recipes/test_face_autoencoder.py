import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import vasa_hf
from tests.testing_utils.face_data import make_face_data
from tests.testing_utils.pipelines import make_vasa1_components
from vasa_hf.data.face_pairs import FacePairs
from vasa_hf.geometry.crops import cut_crop, standard_crop, transform_points
from vasa_hf.geometry.landmarks import LIPS_INNER, rows
from vasa_hf.geometry.thin_plate import warp_by_landmarks
from vasa_hf.hub import embedded_path
from vasa_hf.models.face_analyzer import FaceAnalyzer, to_image_tensor
from vasa_hf.models.face_autoencoder_vasa1 import Vasa1FaceAutoencoder
from vasa_hf.models.face_recognizer import FaceRecognizer
from vasa_hf.training.face_data import LIPS, augment, close_lips, mouth_box, warp_closed
from vasa_hf.training.losses import gaze_loss
from vasa_hf.training.recipes.face_autoencoder import measure_gaze
from vasa_hf.training.run import main

ASSETS = Path(vasa_hf.__file__).parent / "assets"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    return make_face_data(folder / "train"), folder / "cache"


@pytest.fixture(scope="module")
def pairs(data):
    return FacePairs(*data, portrait_share=0.5)


def run(data, output, *arguments):
    common = ["--data", data[0], "--cache", data[1], "--output", output, "--preset", "tiny", "--cpu", "--batch-size", 4]
    common += ["--log-every", 1, "--sample-every", 0, "--checkpoint-every", 0, "--warmup-steps", 1]
    state = main(["face_autoencoder", *(str(a) for a in [*common, *arguments])])
    return state.modules["face_autoencoder"], [
        json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()
    ]


def test_pairs_are_two_frames_of_one_clip(pairs):
    assert pairs.clip_motion.shape == (18, 34)
    for index in range(12):
        first, again = pairs[index], pairs[index]
        assert all(torch.equal(first[name], again[name]) for name in first)
        same = [i for i in range(18) if np.array_equal(pairs.frames[i], first["source"].permute(1, 2, 0).numpy())]
        assert bool(first["is_portrait"]) != bool(same)


def test_frames_have_the_size_asked_for_and_the_other_frame_is_of_another_person(data, pairs):
    large = FacePairs(*data, portrait_share=0, size=320, others=True)
    assert large.frames.shape == (18, 320, 320, 3)
    for index in range(8):
        sample = large[index]
        assert sample["source"].shape == sample["other"].shape == (3, 320, 320)
        rows = [
            next(i for i in range(18) if torch.equal(large.clips.landmarks[i], sample[f"{name}_landmarks"]))
            for name in ("source", "other")
        ]
        assert large.person[rows[0]] != large.person[rows[1]]
        assert torch.equal(sample["other_motion"], large.clip_motion[rows[1]])
    with pytest.raises(ValueError, match="`others` needs clips of at least two people"):
        FacePairs(*data, portrait_share=0, others=True, data_share=0.1)


def test_a_share_of_the_clips_is_drawn_from_that_share_alone(data):
    half = FacePairs(*data, portrait_share=0, data_share=0.34)
    assert len(half.rows) in (5, 6, 7)
    for index in range(20):
        landmarks = half[index]["source_landmarks"]
        assert any(torch.equal(half.clips.landmarks[row], landmarks) for row in half.rows)


def test_streamed_frames_equal_decoded_ones_and_portraits_may_be_absent(data, pairs, tmp_path):
    folder = shutil.copytree(data[0], tmp_path / "data")
    (folder / "portraits.npz").unlink()
    with pytest.raises(ValueError, match="portrait_share"):
        FacePairs(folder, data[1])
    streamed = FacePairs(folder, data[1], portrait_share=0, dynamics=None, stream=True)
    assert len(streamed.frames) == len(pairs.frames)
    for row in (0, 5, len(pairs.frames) - 1):
        assert np.array_equal(streamed.frames[row], pairs.frames[row])
    assert streamed[3]["source"].shape == pairs[3]["source"].shape


def test_rendered_faces_are_drawn_with_the_motion_of_their_labels(data, pairs, tmp_path):
    """The clips themselves stand in for renderings that wear them: the same pictures get nearly the same motion."""
    shutil.copy(data[0] / "clips.npz", tmp_path / "rendered.npz")
    np.save(tmp_path / "rendered.npy", pairs.frames)
    dataset = FacePairs(*data, portrait_share=0.3, rendered=tmp_path, rendered_share=0.7)
    torch.testing.assert_close(dataset.rendered_motion, dataset.clip_motion, atol=1.0, rtol=0)
    samples = [dataset[i] for i in range(60)]
    assert 0.15 < np.mean([bool(s["is_portrait"]) for s in samples]) < 0.45
    for sample in samples:
        if not sample["is_portrait"]:
            assert not torch.equal(sample["source"], sample["driving"])
            row = next(i for i in range(18) if np.array_equal(pairs.frames[i], sample["driving"].permute(1, 2, 0)))
            assert torch.equal(sample["driving_motion"], dataset.rendered_motion[row])


def test_augmentation_keeps_picture_landmarks_and_pose_together(pairs):
    """The bright blob is drawn about (tx, ty): after zoom, roll, shift and mirror the pose must still point to it."""
    samples = [s for s in (pairs[i] for i in range(40)) if not s["is_portrait"]][:8]
    batch = {key: torch.stack([s[key] for s in samples]) for key in samples[0]}
    torch.manual_seed(0)
    out = augment(batch, pairs.dynamics, 128)
    red = out["source"][:, 0]
    for picture, motion in zip(red, out["source_motion"], strict=True):
        bright = (picture > picture.max() - 0.15).nonzero().float().mean(0).flip(0) / 128
        torch.testing.assert_close(bright, motion[3:5], atol=0.02, rtol=0)
    moved = pairs.dynamics.move(out["source_landmarks"], out["source_motion"], out["source_motion"])
    torch.testing.assert_close(moved, out["source_landmarks"], atol=1e-4, rtol=0)


def test_a_mouth_closed_by_a_warp_opens_onto_the_portrait_s_own_pixels(pairs):
    """The driving frame is the portrait itself, and every pixel of it counts; the source's mouth is smaller."""
    dataset = copy.copy(pairs)
    dataset.portrait_share = dataset.opening_share = 1.0
    widest = int(dataset.portraits.mouth[:, 0].argmax())
    dataset.open_portraits, dataset.closed_frames = (
        np.array([widest]),
        np.array([int(pairs.clips.mouth[:, 0].argmin())]),
    )
    samples = [dataset[i] for i in range(4)]
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
    assert batch["is_opening"].all()
    torch.manual_seed(0)
    out = augment(batch, dataset.dynamics, 128, framing=0.0)
    # Without the change of places, by the same random numbers, the portrait is the source and its mouth is hidden.
    torch.manual_seed(0)
    plain = augment({**batch, "is_opening": torch.zeros(4, dtype=torch.bool)}, dataset.dynamics, 128, framing=0.0)
    assert torch.equal(out["driving"], plain["source"]) and torch.equal(out["source"], plain["driving"])
    assert torch.equal(out["driving_motion"], plain["source_motion"])
    gap = {name: mouth_box(out[f"{name}_landmarks"])[2] for name in ("source", "driving")}
    assert (gap["source"] < gap["driving"]).all() and (out["seen"] == 1).all()


def test_a_mouth_that_closes_hides_what_was_between_the_lips():
    """White between dark lips: one spline leaves a line of it, the spline of each lip nothing."""
    if not (embedded_path("vasa-small") / "face_analyzer").is_dir():
        pytest.skip("the embedded weights are not here")
    analyzer = FaceAnalyzer.from_pretrained(embedded_path("vasa-small") / "face_analyzer")
    points = analyzer.canonical[None, :, :2] * 0.4 + torch.tensor([0.5, 0.4])
    for outer, inner in LIPS[1:]:
        points[:, rows(*outer, *inner)] += torch.tensor([0.0, 0.05])  # the lower lip hangs
    picture = Image.new("L", (256, 256))
    ImageDraw.Draw(picture).polygon([tuple(point) for point in (points[0, rows(*LIPS_INNER)] * 256).tolist()], 255)
    image = torch.from_numpy(np.array(picture) / 255).float().expand(1, 3, -1, -1)
    closed = close_lips(points)
    assert mouth_box(closed)[2] < 1e-5 < 0.03 < mouth_box(points)[2]
    white = [warp(image, points, closed).sum() / image.sum() for warp in (warp_by_landmarks, warp_closed)]
    assert white[1] < 0.05 < 0.1 < white[0]


@pytest.mark.parametrize(
    ("stage", "extra", "name"),
    [
        ("encoders", "--max-steps 80 --batch-size 16 --learning-rate 1e-2 --portrait-share 0 --seed 2".split(), "pose"),
        ("renderer", [], "l1"),
        (
            "joint",
            ["--label-share", 0.3, "--weight-adversarial", 0.01, "--weight-consist", 0.1, "--weight-contrastive", 0.01],
            "l1",
        ),
    ],
)
def test_each_stage_lowers_its_loss_and_saves(data, tmp_path, stage, extra, name):
    model, log = run(data, tmp_path, "--stage", stage, "--max-steps", 30, "--learning-rate", 3e-3, *extra)
    first, last = (np.mean([line[name] for line in part]) for part in (log[:6], log[-12:]))
    assert last < 0.95 * first, f"{name} went from {first:.4f} to {last:.4f}"
    again = Vasa1FaceAutoencoder.from_pretrained(tmp_path / "face_autoencoder")
    assert again.config.image_size == model.config.image_size == 64


def test_losses_switch_off_for_ablations(data, tmp_path):
    _, log = run(data, tmp_path / "without", "--stage", "joint", "--max-steps", 1)
    assert "consist" not in log[0] and "adversarial" not in log[0]
    _, log = run(data, tmp_path / "with", "--stage", "joint", "--max-steps", 1, "--weight-consist", 1)
    assert log[0]["consist"] > 0


def test_only_the_named_parts_learn(data, tmp_path):
    run(data, tmp_path / "start", "--max-steps", 1)
    start = tmp_path / "start" / "face_autoencoder"
    run(data, tmp_path, "--initial", start, "--only", "basis_head", "--max-steps", 2, "--learning-rate", 0.1)
    before, after = (
        Vasa1FaceAutoencoder.from_pretrained(folder).state_dict() for folder in (start, tmp_path / "face_autoencoder")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"basis_head.weight", "basis_head.bias"}


def test_losses_of_other_networks_reach_the_decoder(data, tmp_path):
    make_vasa1_components()["face_analyzer"].save_pretrained(tmp_path / "analyzer")
    FaceRecognizer(
        image_size=32, widths=(4, 8, 8), depths=(1, 2), embedding_dim=12, num_feature_maps=3
    ).save_pretrained(tmp_path / "faces")
    networks = ["--perceptual", tmp_path / "faces", "--identity", tmp_path / "faces"]
    networks += ["--gaze-network", tmp_path / "analyzer"]
    weights = ["--weight-perceptual", 1, "--weight-cross-id", 1, "--weight-gaze", 1]
    _, log = run(data, tmp_path / "run", "--stage", "joint", "--max-steps", 2, *networks, *weights)
    assert log[0]["perceptual"] > 0 and {"cross_id", "gaze"} <= set(log[0])  # near 0 while hardly anything moves


def test_gaze_loss_looks_at_the_eyes():
    analyzer = FaceAnalyzer.from_pretrained(embedded_path("vasa-small"), subfolder="face_analyzer").float().eval()
    portrait = to_image_tensor(Image.open(ASSETS / "portrait.jpg"))
    face = analyzer.detect(portrait)[0]
    image_from_crop = standard_crop(face.box)
    crop = cut_crop(portrait, image_from_crop, 256)[None].requires_grad_()
    gaze_loss(measure_gaze(analyzer, crop), face.gaze[None] + 0.3).backward()
    points = transform_points(torch.linalg.inv(image_from_crop), face.landmarks[-10:]) * 256  # the irises
    (x0, y0), (x1, y1) = (points.amin(0) - 12).int().tolist(), (points.amax(0) + 12).int().tolist()
    pull = crop.grad.abs().sum((0, 1))
    assert pull[y0:y1, x0:x1].mean() > 3 * pull.mean()


def test_bad_options_say_so(data, tmp_path):
    with pytest.raises(ValueError, match="`stage` must be"):
        run(data, tmp_path, "--stage", "all")
    with pytest.raises(ValueError, match="`perceptual` must name"):
        run(data, tmp_path, "--weight-perceptual", 1)
    with pytest.raises(ValueError, match="`identity` must name"):
        run(data, tmp_path, "--weight-cross-id", 1)
    with pytest.raises(ValueError, match="`data_share` must be"):
        run(data, tmp_path, "--data-share", 2)
    with pytest.raises(ValueError, match="`portrait_share` must be 0 where z_dyn is learned"):
        run(data, tmp_path, "--model", '{"motion_space": "new"}')
    with pytest.raises(ValueError, match="`gaze_network` must name"):
        run(data, tmp_path, "--weight-gaze", 1)
    with pytest.raises(ValueError, match="`only` must name"):
        run(data, tmp_path, "--only", "nose")

"""Avatars against VASA-1: what is compared with what, from a tiny pipeline with the real analyzer."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.testing_utils.avatars import make_avatar
from vasa_hf import Vasa3DAvatarPipeline
from vasa_hf.evaluation import tables
from vasa_hf.evaluation.avatars import EvalAvatar, load_eval_avatar
from vasa_hf.evaluation.catalogue import BASE, FULL, PAPERS, STILL, VASA1
from vasa_hf.evaluation.evaluate import evaluate
from vasa_hf.gaussians.render import render
from vasa_hf.geometry.crops import WHOLE_PICTURE_BOX
from vasa_hf.models.face_recognizer import FaceRecognizer

SIZE = 64
GREY = (0.9, 0.9, 0.9)


def noisy(frames, amount, seed=0):
    return (frames + amount * torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


@pytest.fixture(scope="module")
def cutout(portrait):
    """The demo portrait, transparent at its edges."""
    y, x = np.mgrid[:128, :128]
    alpha = np.where((x - 64) ** 2 + (y - 64) ** 2 < 60**2, 255, 0).astype(np.uint8)
    return Image.fromarray(np.dstack([np.asarray(portrait), alpha]))


@pytest.fixture(scope="module")
def result(pipeline, data, cutout, tmp_path_factory):
    """An avatar that is VASA-1 with a little noise, worse without deformation, mirrored at its sides; and a bad one."""
    torch.manual_seed(0)
    recognizer = FaceRecognizer(image_size=32, widths=(4, 8), depths=(1,), embedding_dim=4, num_feature_maps=2).eval()
    output, sitter = tmp_path_factory.mktemp("output"), EvalAvatar(cutout, GREY, None)
    box = tuple(128 * share for share in WHOLE_PICTURE_BOX)
    portrait = pipeline.prepare_portrait(sitter.portrait(), box=box)
    asked = []

    def show(motion, azimuth_deg, deform):
        asked.append((azimuth_deg, deform, len(motion)))
        frames = pipeline.render(portrait, motion, output_type="pt").frames
        return noisy(frames.flip(3), 0.2) if azimuth_deg else noisy(frames, 0.02 if deform else 0.08)

    def broken():
        raise ValueError("portrait.png is not there")

    sitters = {"twin": lambda: EvalAvatar(cutout, GREY, show), "broken": broken}
    missing = evaluate(pipeline, data, output, networks={"face_recognizer": recognizer}, avatars=sitters)
    return output, missing, asked


def values(output, system, metric):
    rows = tables.read_rows(output)
    mine = [row for row in rows if (row["system"], row["metric"]) == (system, metric)]
    return {row["item"]: row["value"] for row in mine if row["value"] is not None}


def test_every_drive_is_made_by_all_and_judged_against_vasa1(result):
    output, missing, asked = result
    # The tiny VASA-1 makes no faces.
    assert set(missing) == {
        f"avatars: {name}" for name in ("psnr_face", "akd", "pose_error", "lip_correlation", "gaze_error")
    }
    driven = {"twin: a_good", "twin: b_wide", "twin: d_mute", "twin: e_one", "twin: long", "twin: short"}
    full, base, still = (values(output, system, "psnr") for system in (FULL, BASE, STILL))
    assert set(full) == set(base) == set(still) == driven
    for item in driven:
        # Clipping at black and white takes a little of the noise away.
        assert -20 * np.log10(0.02) - 0.5 < full[item] < -20 * np.log10(0.02) + 3
        assert base[item] < full[item]
    assert not values(output, VASA1, "psnr") and set(values(output, VASA1, "identity")) == driven
    moving = [item for item in driven if item not in ("twin: e_one", "twin: d_mute")]
    assert sum(still[item] for item in moving) < sum(full[item] for item in moving)
    assert values(output, FULL, "l1")["twin: long"] == pytest.approx(0.016, abs=0.003)  # 0.02 sqrt(2 / pi)
    assert set(values(output, FULL, "fid_recognizer")) == {"*"}


def test_sides_are_looked_at_in_the_avatar_alone(result):
    output, _, asked = result
    for metric in ("identity_30", "identity_45"):
        found = values(output, FULL, metric)
        assert len(found) == 6 and not values(output, BASE, metric)
        assert all(found[item] < values(output, FULL, "identity")[item] for item in found)
    assert {azimuth for azimuth, *_ in asked} == {0, -30, 30, -45, 45}
    assert all(deform for azimuth, deform, _ in asked if azimuth) and (0, False, 75) in asked
    assert (45, True, 15) in asked  # every fifth frame


def test_what_is_unfit_is_reported(result):
    output, *_ = result
    whys = {(row["item"], row["why"]) for row in tables.read_rows(output) if row["why"]}
    assert ("broken", "portrait.png is not there") in whys
    assert ("twin: long", "the detector finds no face in VASA-1's frames") in whys
    assert any(item == "c_grey" and "no face" in why for item, why in whys)
    text = (output / "table.md").read_text()
    assert "portrait.png is not there (1 items: broken)" in text and "needs SyncNet" in text


def test_the_papers_rows_are_next_to_ours(result):
    output, *_ = result
    text = (output / "table.md").read_text()
    assert "## Avatars against VASA-1" in text and "## Self-reconstruction" not in text
    for system in (f"| **{FULL}** |", f"| **{BASE}** |", f"| {STILL} |", f"| {VASA1} |"):
        assert system in text
    for system in PAPERS["avatars"]:
        assert f"| *{system}* |" in text
    assert "27.33" in text and "31.11" in text and "0.787" in text
    assert json.loads((output / "table.json").read_text())["runs"]["avatars"]["model"] == FULL
    assert (output / "sheets" / "avatars_twin_a_good.jpg").is_file()


def test_only_the_asked_for_metrics_are_computed(pipeline, data, cutout, tmp_path):
    recognizer = FaceRecognizer(image_size=32, widths=(4, 8), depths=(1,), embedding_dim=4, num_feature_maps=2).eval()
    show = lambda motion, azimuth_deg, deform: torch.rand(len(motion), 3, SIZE, SIZE)  # noqa: E731
    options = {"metrics": ["identity_45"], "networks": {"face_recognizer": recognizer}, "limit": 1, "sheets": False}
    sitters = {"noise": lambda: EvalAvatar(cutout, GREY, show)}
    assert evaluate(pipeline, data, tmp_path, avatars=sitters, **options) == []
    rows = [row for row in tables.read_rows(tmp_path) if row["value"] is not None]
    assert {(row["system"], row["metric"]) for row in rows} == {(FULL, "identity_45")}


def test_parts_are_those_of_the_pipeline(pipeline, data, tmp_path):
    with pytest.raises(ValueError, match="`parts` must be of .*'avatars'.* for this pipeline, got .'self'"):
        evaluate(pipeline, data, tmp_path, ["self"], avatars={"a": None})
    with pytest.raises(ValueError, match="`parts` must be of .*'self'.* for this pipeline, got .'avatars'"):
        evaluate(pipeline, data, tmp_path, ["avatars"])


def test_a_sitter_is_the_avatar_before_the_portraits_background(pipeline, cutout, tmp_path):
    pipe = Vasa3DAvatarPipeline(**pipeline.components)
    pipe.set_progress_bar_config(disable=True)
    avatar = make_avatar()
    torch.nn.init.normal_(avatar.deform_face.out.weight, std=0.1)
    avatar.save_pretrained(tmp_path / "me")
    folder = tmp_path / "me"
    with pytest.raises(ValueError, match="portrait.png is not in the avatar's folder"):
        load_eval_avatar(pipe, str(folder), folder, SIZE)
    cutout.convert("RGB").save(folder / "portrait.png")
    with pytest.raises(ValueError, match="portrait.png must be a square RGBA image, got RGB"):
        load_eval_avatar(pipe, str(folder), folder, SIZE)
    cutout.save(folder / "portrait.png")
    sitter = load_eval_avatar(pipe, str(folder), folder, SIZE)

    motion = avatar.own_motion.expand(2, -1) + torch.tensor([[0.0] * 10, [0.0] * 6 + [1.0] * 4])
    with torch.no_grad():
        wanted = avatar(motion, return_base=True)
    for deform, gaussians in ((True, wanted.gaussians), (False, wanted.base)):
        frames = sitter.show(motion, 0.0, deform)
        expected = render(gaussians, avatar.portrait_camera, SIZE, GREY).color.detach()
        torch.testing.assert_close(frames, expected.clamp(0, 1), atol=2e-3, rtol=0)
    assert (sitter.show(motion, 0.0, True) - sitter.show(motion, 0.0, False)).abs().max() > 0.02
    assert (sitter.show(motion, 45.0, True) - sitter.show(motion, -45.0, True)).abs().mean() > 0.01
    corner = np.asarray(sitter.portrait())[0, 0] / 255
    assert np.abs(corner - 0.9).max() < 0.01
    torch.testing.assert_close(sitter.show(motion, 0.0, True)[0, :, 0, 0], torch.tensor(GREY))


def test_an_avatar_is_judged_against_the_clip_that_it_was_fitted_to(pipeline, data, cutout, tmp_path):
    """Table A: what it does not cover is real; a clip is found by its name, and its rows are in parts of 10 s."""
    sitter = EvalAvatar(cutout, GREY, None)
    portrait = pipeline.prepare_portrait(sitter.portrait(), box=tuple(128 * share for share in WHOLE_PICTURE_BOX))
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, 16:48, 16:48] = 1.0

    def show(motion, azimuth_deg, deform):
        frames = pipeline.render(portrait, motion, output_type="pt").frames
        return mask * frames + (1 - mask) * torch.tensor(GREY).view(3, 1, 1)

    twin = EvalAvatar(cutout, GREY, show, lambda motion: mask.expand(len(motion), -1, -1, -1))
    avatars = {"a_good": lambda: twin, "someone": lambda: twin}
    missing = evaluate(pipeline, data, tmp_path, ["real"], avatars=avatars, sheets=False)
    assert missing == []
    ours, bound = (values(tmp_path, system, "psnr") for system in (FULL, VASA1))
    assert ours.keys() == bound.keys() == {"a_good@0s"}
    # The avatar is VASA-1 here: the same frames inside the mask, the real ones outside.
    assert ours["a_good@0s"] == pytest.approx(bound["a_good@0s"], abs=0.05)
    assert "VASA-3D (Table A)" in (tmp_path / "table.md").read_text()

"""Tab GAIA: requests with a tiny model, and the tab in a real browser."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.testing_utils.gaia_parts import save_gaia_parts
from vasa_hf.demo.compare import compare_systems
from vasa_hf.demo.gaia import CONSTANT, OF_VIDEO, GaiaSettings, make_gaia_video
from vasa_hf.demo.handler import FieldError, RequestHandler
from vasa_hf.demo.models import describe
from vasa_hf.demo.settings import TalkSettings
from vasa_hf.hub import embedded_path
from vasa_hf.media import VideoWriter, read_video
from vasa_hf.training.assemble_gaia import assemble_gaia

from .conftest import serving
from .test_page import agree, open_tab, status, upload, wait_for

pytestmark = pytest.mark.skipif(
    not (embedded_path("vasa-small") / "face_autoencoder").is_dir(), reason="the embedded weights are not here"
)
QUICK = {"steps": 2, "seed": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gaia")
    assemble_gaia(folder / "model", share=True, **save_gaia_parts(folder, image_size=64))
    return str(folder / "model")


@pytest.fixture(scope="module")
def handler(model):
    return RequestHandler(need_consent=False, gaia=model)


def make(handler, tmp_path, portrait, voice, settings, *files):
    """The finished video's frames, whether it has audio, and the settings file."""
    for update in handler.stream(make_gaia_video, "anna", False, portrait, voice, settings, *files):
        if update.files:
            shutil.copy(update.files["video"], tmp_path / "out.mp4")
            about = json.loads(update.files["settings"].read_text())
    reader = read_video(tmp_path / "out.mp4")
    return list(reader), reader.has_audio, about


def test_an_instruction_needs_no_voice(handler, portrait, tmp_path):
    settings = GaiaSettings(text="please smile", seconds=0.4, **QUICK)
    frames, has_audio, about = make(handler, tmp_path, portrait, None, settings)
    assert len(frames) == 10 and not has_audio
    assert about["settings"]["text"] == "please smile" and about["settings"]["seed"] == 1


def test_gaia_is_compared(handler, portrait, voices):
    arguments = (None, portrait, voices(0.4), TalkSettings(steps=2, seed=1), "fixed", ["GAIA"])
    for update in handler.stream(compare_systems, "anna", False, *arguments):
        if update.files:
            frames = list(read_video(update.files["video"]))
            assert json.loads(update.files["settings"].read_text())["settings"]["systems"] == ["GAIA"]
    assert len(frames) == 10 and frames[0].shape == (72, 64, 3)


def test_a_voice_with_a_pose_and_a_reference(handler, portrait, voices, tmp_path):
    image = np.asarray(Image.open(portrait).convert("RGB").resize((256, 256)))
    with VideoWriter(tmp_path / "drive.mp4", 25, (256, 256), provenance=False) as writer:
        for _ in range(3):
            writer.write(image)
    video = str(tmp_path / "drive.mp4")
    settings = GaiaSettings(pose=CONSTANT, yaw_deg=20, **QUICK)
    assert settings.motion_options()["pose"] == pytest.approx((np.radians(20), 0, 0))
    frames, has_audio, about = make(handler, tmp_path, portrait, voices(0.5), settings, None, video)
    assert len(frames) == 13 and has_audio and about["inputs"]["reference_video"]["file"] == "drive.mp4"
    frames, _, about = make(handler, tmp_path, portrait, voices(0.5), GaiaSettings(pose=OF_VIDEO, **QUICK), video)
    assert len(frames) == 13 and about["inputs"]["pose_video"]["file"] == "drive.mp4"
    with pytest.raises(FieldError, match="video for the head pose"):
        make(handler, tmp_path, portrait, voices(0.5), GaiaSettings(pose=OF_VIDEO, **QUICK))
    with pytest.raises(FieldError, match="a voice"):
        make(handler, tmp_path, portrait, None, GaiaSettings(**QUICK))


def test_without_weights_the_page_has_no_gaia(tmp_path, model):
    assert describe("vasa3d-small", gaia=str(tmp_path))["gaia"] is False
    about = describe("vasa3d-small", gaia=model)
    assert about["gaia"] and about["cards"][-1].name == "model"
    assert about["gaia_controls"] == ["landmark_denoiser", "text_denoiser"]


@pytest.mark.e2e
def test_the_tab_in_a_browser(browser, model, portrait, voices, tmp_path, artefacts):
    with serving(tmp_path, "--gaia", model) as served:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(served.url, timeout=120_000)
        agree(page)
        upload(page, portrait, voices(0.5))
        page.get_by_text("One face found.").wait_for()
        # Talk offers the system.
        page.locator("#system").get_by_label("GAIA").check()
        page.get_by_role("button", name="Make it talk").click()
        wait_for(lambda: "Done" in status(page))
        open_tab(page, "GAIA")
        # Each control has its fields.
        assert not page.get_by_label("Yaw (degrees)").first.is_visible()
        page.locator("#gaia-pose").get_by_label("constant").check()
        page.get_by_label("Yaw (degrees)").first.wait_for()
        page.locator("#gaia-pose").get_by_label("of a video").check()
        page.get_by_text("Video for the head pose").first.wait_for()
        assert page.get_by_text("all but mouth and jaw follow it").first.is_visible()
        page.locator("#gaia-pose").get_by_label("predicted").check()
        page.get_by_label("an instruction").check()
        page.locator("#gaia-text input").wait_for()
        page.get_by_role("button", name="Make it move").click()
        wait_for(lambda: "Done" in status(page))
        page.locator("#gaia-video video").wait_for()
        page.screenshot(path=artefacts / "gaia_done.png", full_page=True)
        page.close()

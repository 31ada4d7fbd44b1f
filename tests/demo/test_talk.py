"""Requests from the handler to the file, with the embedded weights."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import vasa_hf
from vasa_hf.demo.avatar import show_fit
from vasa_hf.demo.compare import compare_systems, join_frames
from vasa_hf.demo.handler import MINE, RequestHandler
from vasa_hf.demo.jobs import Update
from vasa_hf.demo.settings import TalkSettings
from vasa_hf.demo.talk import drive_portrait, find_faces, make_talk
from vasa_hf.hub import embedded_path
from vasa_hf.media import load_audio, read_video, save_wav
from vasa_hf.outputs import TalkingFaceOutput

ASSETS = Path(vasa_hf.__file__).parent / "assets"
PORTRAIT = str(ASSETS / "portrait.jpg")
has_weights = pytest.mark.skipif(
    not (embedded_path("vasa-small") / "face_autoencoder").is_dir(), reason="the embedded weights are not here"
)


@pytest.fixture(scope="module")
def handler():
    return RequestHandler(need_consent=False)


@pytest.fixture
def voice(tmp_path):
    """0.8 seconds."""
    samples, rate = load_audio(ASSETS / "voice.flac")
    save_wav(tmp_path / "voice.wav", samples[0, : rate * 4 // 5], rate)
    return str(tmp_path / "voice.wav")


@has_weights
def test_portrait_and_voice_are_encoded_once_and_a_video_drives(handler, voice, tmp_path):
    def talk(*values):
        return handler.stream(make_talk, "anna", False, PORTRAIT, voice, TalkSettings(*values))

    for update in talk():
        if update.files:
            shutil.copy(update.files["video"], tmp_path / "made.mp4")
    models = handler.models
    made = models.portraits.made, models.sounds.made, models.features.made
    assert min(made) > 0
    *_, last = talk(20.0)
    assert last.stage == "Done" and not last.files["video"].exists()
    assert (models.portraits.made, models.sounds.made, models.features.made) == made
    driving = str(tmp_path / "made.mp4")
    for update in handler.stream(drive_portrait, "anna", False, PORTRAIT, driving, TalkSettings()):
        if update.files:
            reader = read_video(update.files["video"])
            assert reader.has_audio and len(list(reader)) == 20
    assert update.stage == "Done"


@has_weights
def test_consent_is_needed_before_anything_else(handler):
    handler.need_consent = True
    try:
        with pytest.raises(ValueError, match="consent box"):
            next(handler.stream(make_talk, "anna", False, "/nowhere.jpg", None, TalkSettings()))
    finally:
        handler.need_consent = False


@has_weights
def test_faces_are_numbered_on_the_image(handler):
    found = find_faces(handler.models, PORTRAIT)
    x, y, *_ = found.boxes[0]
    size = max(found.image.size) // 16
    label = np.asarray(found.image)[round(y) - size : round(y) - 2, round(x) : round(x) + size // 3].reshape(-1, 3)
    assert (label == (255, 140, 0)).all(-1).mean() > 0.3 and (label == 0).all(-1).any()  # a filled label with a number


@has_weights
def test_compare_needs_an_avatar_for_3d_alone(handler, voice):
    arguments = (None, PORTRAIT, voice, TalkSettings(seed=1, steps=2), "fixed")
    with pytest.raises(ValueError, match="avatar"):
        list(handler.stream(compare_systems, "anna", False, *arguments, ["VASA-1", "VASA-3D"]))
    for update in handler.stream(compare_systems, "anna", False, *arguments, ["VASA-1"]):
        if update.files:
            assert read_video(update.files["video"]).size == (256, 256 + 32)  # the name above the frame


def test_compared_systems_are_named_in_the_frames():
    def stream(value):
        frames = np.full((2, 64, 64, 3), value, np.float32)
        yield TalkingFaceOutput(frames=frames, audio=None, fps=25, motion=None)

    one, two = join_frames([stream(0.0), stream(1.0)], ["VASA-1", "MoDA"])
    assert one.shape == (64 + 8, 128, 3) and one.dtype == np.uint8 and (one == two).all()
    assert (one[8:, :64] == 0).all() and (one[8:, 64:] == 255).all()
    left, right = one[:8, :64], one[:8, 64:]
    assert left.min() < 100 and right.min() < 100 and (left != right).any()  # a name each


def test_the_last_preview_of_a_fit_stays(tmp_path):
    image, name = show_fit(Update("Fitting", preview=tmp_path / "preview.png"))
    assert image["value"] == str(tmp_path / "preview.png") and image["visible"]
    for update in (Update("Fitting"), Update("Done", files={"avatar": tmp_path})):
        image, name = show_fit(update)
        assert "value" not in image
    assert name["value"] == MINE

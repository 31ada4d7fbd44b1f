"""The whole way of a request, with the embedded weights."""

import shutil
from pathlib import Path

import pytest

import vasa_hf
from vasa_hf.hub import embedded_path
from vasa_hf.media import load_audio, read_video, save_wav
from vasa_hf.studio.desk import VIDEO, VOICE, Desk

ASSETS = Path(vasa_hf.__file__).parent / "assets"
pytestmark = pytest.mark.skipif(
    not (embedded_path("vasa-small") / "face_autoencoder").is_dir(), reason="the embedded weights are not here"
)


def test_portrait_and_voice_are_encoded_once_and_a_video_drives(tmp_path):
    samples, rate = load_audio(ASSETS / "voice.flac")
    save_wav(tmp_path / "voice.wav", samples[0, : rate * 4 // 5], rate)
    desk, image, voice = Desk(need_consent=False), str(ASSETS / "portrait.jpg"), str(tmp_path / "voice.wav")
    for update in desk.talk("anna", False, image, VOICE, voice, None, None):
        if update.files:
            shutil.copy(update.files["video"], tmp_path / "made.mp4")
    made = desk.models.portraits.made, desk.models.sounds.made, desk.models.features.made
    assert min(made) > 0
    *_, last = desk.talk("anna", False, image, VOICE, voice, None, None, 20.0)
    assert last.stage == "Done" and not last.files["video"].exists()
    assert (desk.models.portraits.made, desk.models.sounds.made, desk.models.features.made) == made
    for update in desk.talk("anna", False, image, VIDEO, None, str(tmp_path / "made.mp4"), None):
        if update.files:
            reader = read_video(update.files["video"])
            assert reader.has_audio and len(list(reader)) == 20
    assert update.stage == "Done"

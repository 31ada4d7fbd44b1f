"""A folder as `vasa-hf eval` reads it, and a tiny pipeline with the real analyzer, which finds its faces."""

import shutil

import pytest
from PIL import Image

from tests.testing_utils.face_data import moved
from tests.testing_utils.pipelines import make_audio, make_vasa1_components
from vasa_hf import FaceAnalyzer, FaceImageProcessor, Vasa1FaceAutoencoder, VasaTalkingFacePipeline
from vasa_hf.hub import embedded_path
from vasa_hf.media import VideoWriter, save_wav

CARD = embedded_path("vasa-small")
ASSETS = CARD.parents[1] / "vasa_hf" / "assets"


@pytest.fixture(scope="session")
def analyzer():
    if not (CARD / "face_analyzer").is_dir():
        pytest.skip("the embedded weights are not here")
    return FaceAnalyzer.from_pretrained(CARD, subfolder="face_analyzer").float().eval()


@pytest.fixture(scope="session")
def portrait():
    """The demo portrait, small."""
    return Image.open(ASSETS / "portrait.jpg").convert("RGB").resize((128, 128), Image.Resampling.LANCZOS)


@pytest.fixture(scope="session")
def data(tmp_path_factory, portrait):
    """Two good clips of unequal length and size, one without a face, one without audio, one of a single frame."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("clips", "portraits", "speech"):
        (folder / name).mkdir()
    grey = Image.new("RGB", (96, 96), (128, 128, 128))
    clips = {"a_good": (portrait, 12, True), "b_wide": (portrait.resize((160, 160)), 9, True)}
    clips |= {"c_grey": (grey, 8, True), "d_mute": (portrait, 8, False), "e_one": (portrait, 1, True)}
    for seed, (name, (picture, frames, sound)) in enumerate(clips.items()):
        audio = (make_audio(frames / 25 + 0.1, seed), 16_000) if sound else None
        with VideoWriter(folder / "clips" / f"{name}.mp4", 25, picture.size, audio, provenance=False) as writer:
            for index in range(frames):
                writer.write(moved(picture, index % 4))
    shutil.copy(ASSETS / "portrait.jpg", folder / "portraits" / "face.jpg")
    grey.save(folder / "portraits" / "grey.png")
    save_wav(folder / "speech" / "long.wav", make_audio(3.1, 7), 16_000)
    save_wav(folder / "speech" / "short.wav", make_audio(1.0, 8), 16_000)
    return folder


@pytest.fixture(scope="session")
def pipeline(analyzer):
    components = make_vasa1_components()
    config = {**components["face_autoencoder"].config, "image_size": 64}
    components |= {"face_autoencoder": Vasa1FaceAutoencoder.from_config(config).eval(), "face_analyzer": analyzer}
    return VasaTalkingFacePipeline(**components | {"image_processor": FaceImageProcessor(size=64)})

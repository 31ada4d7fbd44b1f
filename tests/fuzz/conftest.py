"""Tiny saved pipelines, loaded once, and whole inputs beside them."""

import logging
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.testing_utils import hostile
from tests.testing_utils.avatars import make_avatar
from tests.testing_utils.pipelines import make_image, make_moda_components, make_vasa1_components
from vasa_hf import ModaTalkingHeadPipeline, Vasa3DAvatarPipeline, VasaTalkingFacePipeline
from vasa_hf.cli import options


@pytest.fixture(scope="package")
def whole(tmp_path_factory):
    """Paths of a picture, a sound, a video and three models; their pipelines by `pipe(name)`."""
    folder = tmp_path_factory.mktemp("whole")
    Image.fromarray(make_image()).save(folder / "me.png")
    (folder / "voice.wav").write_bytes(hostile.whole_sound(0.4))
    hostile.whole_video(folder, "clip.mp4")
    kinds = {"vasa1": VasaTalkingFacePipeline, "moda": ModaTalkingHeadPipeline, "vasa3d": Vasa3DAvatarPipeline}
    for name, kind in kinds.items():
        pipe = kind(**(make_moda_components() if name == "moda" else make_vasa1_components()))
        if name == "vasa3d":
            pipe.add_avatar("tiny", make_avatar())
        pipe.save_pretrained(folder / name)

    @lru_cache
    def pipe(name):
        loaded = kinds[name].from_pretrained(folder / name)
        loaded.set_progress_bar_config(disable=True)
        return loaded

    return SimpleNamespace(
        folder=folder, image=folder / "me.png", audio=folder / "voice.wav", video=folder / "clip.mp4", pipe=pipe
    )


@pytest.fixture
def loaded_once(whole, monkeypatch):
    """Let commands take pipelines that are loaded already: what is under test comes after that."""
    load = options.load_pipeline

    def load_pipeline(chosen, name="VasaTalkingFacePipeline"):
        if str(chosen.model).startswith(str(whole.folder)) and chosen.device == "cpu" and chosen.threads is None:
            return whole.pipe(str(chosen.model).removeprefix(f"{whole.folder}/"))
        return load(chosen, name)

    monkeypatch.setattr(options, "load_pipeline", load_pipeline)


@pytest.fixture(autouse=True)
def quiet():
    """Warnings of damaged files are not what is looked at."""
    logging.getLogger("vasa_hf").setLevel(logging.ERROR)
    yield
    logging.getLogger("vasa_hf").setLevel(logging.NOTSET)


@pytest.fixture
def odd():
    """Values that no argument takes, by name."""
    deep = []
    for _ in range(2000):
        deep = [deep]
    return {
        "object": object(),
        "10^400": 10**400,
        "bytes": b"x",
        "NaN": float("nan"),
        "tensor": np.zeros((2, 3)),
        "deep": deep,
        "complex": 1j,
        "words": ["a", None],
        "function": lambda *_: None,
    }

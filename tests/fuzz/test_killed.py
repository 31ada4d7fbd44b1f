"""Commands that are killed at random moments: no half file, what they left is swept, going on equals one go."""

import csv
import json
import os
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.convert.test_syncnet import TINY, public_state
from tests.testing_utils import hostile
from tests.testing_utils.face_data import moved
from tests.testing_utils.killed import Killer
from tests.testing_utils.page_server import PORTRAIT, save_page_model
from tests.testing_utils.pipelines import make_audio
from vasa_hf import FaceImageProcessor, SyncNet, Vasa1FaceAutoencoder, VasaTalkingFacePipeline
from vasa_hf.data import shards
from vasa_hf.media import VideoReader, VideoWriter

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes")
TRIES = 3


@pytest.fixture(scope="module")
def killer(tmp_path_factory):
    with Killer(tmp_path_factory.mktemp("killed")) as killer:
        yield killer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    parts = save_page_model(folder / "vasa3d").components
    autoencoder = Vasa1FaceAutoencoder.from_config({**parts["face_autoencoder"].config, "image_size": 64})
    processor = FaceImageProcessor(size=64)  # large enough for faces to be found in what it makes
    pipe = VasaTalkingFacePipeline(**{**parts, "face_autoencoder": autoencoder, "image_processor": processor})
    pipe.save_pretrained(folder / "vasa1")
    return folder


def moments(seconds, seed):
    """Random moments of a run of so long."""
    rng = random.Random(seed)
    return [rng.uniform(0.02, 0.98) * seconds for _ in range(TRIES)]


def files_of(folder):
    """Everything below a folder: relative path -> bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def unfinished(folder):
    """Names below a folder that only a run in progress has."""
    names = [path.name for path in folder.rglob("*")]
    return [name for name in names if "vasa-hf-" in name or "part" in name.rsplit(".", 1)[-1]]


def frames_of(path):
    return np.stack([frame.astype(np.float32) for frame in VideoReader(path)])


def assert_same_tensors(one, other, atol=0.0):
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name].float(), value.float(), rtol=0, atol=atol)


def test_talk(killer, whole, tmp_path):
    (tmp_path / "voice.wav").write_bytes(hostile.whole_sound(4.0))
    out = tmp_path / "out.mp4"
    words = ["talk", str(whole.image), str(tmp_path / "voice.wav"), "-o", str(out), "--box", "20,20,70,76"]
    words += ["--steps", "1", "--seed", "1", "--model", str(whole.folder / "vasa1")]
    seconds = killer.run("command", words=words)
    whole_video = frames_of(out)
    assert len(whole_video) == 100
    for moment in moments(seconds, 1):
        out.unlink(missing_ok=True)
        killer.run("command", kill_after=moment, words=words)
        # It may have ended before; weights at other places in memory give other last digits.
        assert not out.exists() or np.abs(frames_of(out) - whole_video).mean() < 0.5
    killer.run("command", words=words)
    assert np.abs(frames_of(out) - whole_video).mean() < 0.5
    assert sorted(os.listdir(tmp_path)) == ["out.mp4", "voice.wav"] and killer.left() == []


def test_convert(killer, tmp_path):
    network = SyncNet(**TINY)
    torch.save(public_state(network), tmp_path / "syncnet.model")
    arguments = {"source": tmp_path / "syncnet.model", "destination": tmp_path / "out"}
    seconds = killer.run("convert", **arguments)
    once = files_of(tmp_path / "out")
    for moment in moments(seconds, 2):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        killer.run("convert", kill_after=moment, **arguments)
        assert not (tmp_path / "out").exists() or files_of(tmp_path / "out") == once
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    killer.run("convert", **arguments)
    assert files_of(tmp_path / "out") == once
    assert sorted(os.listdir(tmp_path)) == ["out", "syncnet.model"] and killer.left() == []


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two short clips of the portrait with a voice, as `eval` and `prepare` take them."""
    folder = tmp_path_factory.mktemp("data")
    portrait = Image.open(PORTRAIT).convert("RGB").resize((256, 256), Image.Resampling.LANCZOS)
    (folder / "clips").mkdir()
    for seed, name in enumerate(("a", "b")):
        sound = (make_audio(0.7, seed), 16_000)
        with VideoWriter(folder / "clips" / f"{name}.mp4", 25, (256, 256), sound, provenance=False) as writer:
            for index in range(15):
                writer.write(moved(portrait, index % 4))
    return folder


def test_prepare(killer, clips, tmp_path):
    arguments = {"videos": clips / "clips", "output": tmp_path / "whole"}
    seconds = killer.run("prepare", **arguments)
    arguments["output"] = tmp_path / "killed"
    for moment in moments(seconds, 3):
        killer.run("prepare", kill_after=moment, **arguments)
        if (tmp_path / "killed" / "manifest.json").exists():
            assert shards.check(tmp_path / "killed") == []
    killer.run("prepare", **arguments)
    assert shards.read_manifest(tmp_path / "whole")["samples"] > 0, (tmp_path / "whole" / "clips.csv").read_text()
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert unfinished(tmp_path) == [] and killer.left() == []


def test_train(killer, tmp_path):
    seconds = killer.run("train", folder=tmp_path, output=tmp_path / "whole")
    for moment in moments(seconds, 4):
        killer.run("train", kill_after=moment, folder=tmp_path, output=tmp_path / "killed", resume=True)
        for checkpoint in (tmp_path / "killed").glob("checkpoint-*"):
            json.loads((checkpoint / "progress.json").read_text())
            load_file(checkpoint / "model.safetensors")
    killer.run("train", folder=tmp_path, output=tmp_path / "killed", resume=True)
    whole, killed = (
        next((tmp_path / name / "motion_transformer").glob("*.safetensors")) for name in ("whole", "killed")
    )
    assert_same_tensors(whole, killed, 1e-6)
    assert unfinished(tmp_path) == []


def test_fit(killer, model, tmp_path):
    arguments = {"model": model / "vasa3d", "portrait": PORTRAIT}
    seconds = killer.run("fit", output=tmp_path / "whole", **arguments)
    killed = tmp_path / "killed"
    for moment in moments(seconds, 5):
        resume = (killed / "fit" / "settings.json").exists()
        if not (killed / "config.json").exists():
            killer.run("fit", kill_after=moment, output=killed, resume=resume, **arguments)
        if (killed / "config.json").exists():
            load_file(killed / "diffusion_pytorch_model.safetensors")
    if not (killed / "config.json").exists() or (killed / "fit" / "settings.json").exists():
        killer.run("fit", output=killed, resume=(killed / "fit" / "settings.json").exists(), **arguments)
    weights = "diffusion_pytorch_model.safetensors"
    assert_same_tensors(tmp_path / "whole" / weights, killed / weights, 1e-3)
    assert sorted(os.listdir(killed)) == sorted(os.listdir(tmp_path / "whole"))
    assert unfinished(tmp_path) == [] and killer.left() == []


def test_eval(killer, model, clips, tmp_path):
    arguments = {"model": model / "vasa1", "data": clips}
    seconds = killer.run("evaluate", output=tmp_path / "whole", **arguments)
    for moment in moments(seconds, 6):
        killer.run("evaluate", kill_after=moment, output=tmp_path / "killed", **arguments)
        for table in (tmp_path / "killed").rglob("*.csv"):
            assert len({len(row) for row in csv.reader(open(table, newline=""))}) == 1
    killer.run("evaluate", output=tmp_path / "killed", **arguments)
    same = {name: (tmp_path / "killed" / name).read_text() for name in ("rows/self.csv",)}
    assert same == {name: (tmp_path / "whole" / name).read_text() for name in same}
    assert unfinished(tmp_path) == [] and killer.left() == []

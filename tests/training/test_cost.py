import dataclasses
import re
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vasa_hf.models.face_autoencoder_vasa1 import TINY_CONFIG, Vasa1FaceAutoencoder
from vasa_hf.training.cost import Cost, days, face_autoencoder_cost, main, motion_transformer_cost
from vasa_hf.training.options import LoopOptions, configs, parse_options
from vasa_hf.training.recipes.face_autoencoder import FaceAutoencoderOptions
from vasa_hf.training.recipes.motion_transformer import MotionTransformerOptions


def test_counted_arithmetic_is_that_of_a_real_step():
    """A real forward and backward pass with memory: backward costs about two forwards, the first layer less."""
    options = FaceAutoencoderOptions(preset="tiny")
    parameters, flop, _ = face_autoencoder_cost(options)
    model = Vasa1FaceAutoencoder(**TINY_CONFIG)
    assert parameters == sum(p.numel() for p in model.parameters())
    image = torch.rand(1, 3, 64, 64)
    with FlopCounterMode(display=False) as counter:
        motion = model(image.repeat(2, 1, 1, 1), motion_only=True)
        nn.functional.l1_loss(model(image, image, motion[:1], motion[1:]).sample, image).backward()
    assert counter.get_total_flops() == pytest.approx(flop, rel=0.15)
    more = face_autoencoder_cost(dataclasses.replace(options, weight_consist=1.0, weight_cross_id=1.0)).flop
    assert 1.5 * flop < more < 4 * flop


GRAPHS = """
import torch
from vasa_hf.models.face_autoencoder_vasa1 import PRESETS, Vasa1FaceAutoencoder

torch.set_num_threads(1)
model, kept, sizes = Vasa1FaceAutoencoder(**PRESETS["small"]), [], []
model.refiners.clear()
for count in (2, 8):  # the first ones load what all need
    image = torch.rand(count, 3, 256, 256)
    with torch.autocast("cpu", torch.bfloat16):
        motion = model(image.repeat(2, 1, 1, 1), motion_only=True)
        kept.append(model(image, image, motion[:count], motion[count:]).sample)
    sizes.append(int(open("/proc/self/statm").read().split()[1]) * 4096)
print((sizes[1] - sizes[0]) / 8)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_counted_memory_is_that_of_real_graphs():
    """Memory of a process by graphs that it keeps; it also holds what no backward pass needs."""
    out = subprocess.run([sys.executable, "-c", GRAPHS], capture_output=True, text=True, check=True).stdout
    options = dict.fromkeys(("weight_consist", "weight_contrastive", "weight_cross_id"), 0.0)
    counted = face_autoencoder_cost(FaceAutoencoderOptions(preset="small", **options)).sample_bytes
    assert 0.7 * float(out) < counted < 1.1 * float(out)


def test_batch_that_fits():
    """16 GB: 12 are counted on, 2.2 hold the model, and a sample takes 2."""
    assert Cost(100_000_000, 1.0, 2e9).batch_that_fits(16.0) == 4
    assert Cost(100_000_000, 1.0, 2e9).batch_that_fits(2.0) == 0


@pytest.mark.parametrize("config", [name for name in configs() if name.startswith("small")])
def test_every_recipe_with_a_config_has_a_cost(config, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cost", "--config", config, "--memory", "16"])
    main()
    batch, given = map(int, re.search(r"a batch of (\d+); the config's has (\d+)", capsys.readouterr().out).groups())
    assert batch > given  # all of them fit a T4


def test_paper_sizes():
    """About 200M and 29M parameters (paper §4)."""
    face = parse_options(FaceAutoencoderOptions, ["--config", "paper_face_autoencoder"])
    motion = parse_options(MotionTransformerOptions, ["--config", "paper_motion_transformer"])
    assert face_autoencoder_cost(face)[0] == pytest.approx(200e6, rel=0.1)
    assert motion_transformer_cost(motion)[0] == pytest.approx(29e6, rel=0.05)


def test_days():
    options = LoopOptions(max_steps=1000, batch_size=10)
    assert days(options, 8.64e12, 1, 10.0, 1.0) == pytest.approx(0.1)
    assert days(options, 8.64e12, 4, 10.0, 0.5) == pytest.approx(0.2)  # each GPU has its own batch

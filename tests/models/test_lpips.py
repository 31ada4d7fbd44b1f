"""LPIPS against a loop of its own, with made-up weights in the public files' form."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vasa_hf.convert.lpips import convert_lpips
from vasa_hf.models.lpips import Lpips


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """AlexNet's features and the linear layers with random weights, as the public files name them."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(1)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    state = {"classifier.1.weight": torch.zeros(2, 2)}
    for index, (out, width, side) in shapes.items():
        state[f"features.{index}.weight"] = torch.randn(out, width, side, side) / (width * side**2) ** 0.5
        state[f"features.{index}.bias"] = 0.1 * torch.randn(out)
    linear = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) / c for k, c in enumerate((64, 192, 384, 256, 256))}
    torch.save(state, folder / "alexnet.pth")
    torch.save(linear, folder / "alex.pth")
    return folder, state, linear


def naive(state, linear, a, b):
    """The published formula, layer by layer."""

    def walk(x):
        mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (x - mean.view(1, 3, 1, 1)) / spread.view(1, 3, 1, 1)
        for index, stride, padding, pool in (
            (0, 4, 2, False),
            (3, 1, 2, True),
            (6, 1, 1, True),
            (8, 1, 1, 0),
            (10, 1, 1, 0),
        ):
            x = F.max_pool2d(x, 3, 2) if pool else x
            x = F.relu(F.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], stride, padding))
            yield F.normalize(x, dim=1)

    total = 0
    for k, (x, y) in enumerate(zip(walk(a), walk(b), strict=True)):
        total = total + F.conv2d((x - y) ** 2, linear[f"lin{k}.model.1.weight"]).mean((1, 2, 3))
    return total


def test_converted_weights_give_the_published_formula(files, tmp_path):
    folder, state, linear = files
    report = convert_lpips(folder / "alexnet.pth", folder / "alex.pth", tmp_path)
    assert report.summary() == "15 tensors converted, 1 not needed"
    network = Lpips.load(tmp_path)
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    # The public code rounds ImageNet's constants to three digits in [-1, 1].
    assert torch.allclose(network(a, b), naive(state, linear, a, b), rtol=1e-2)
    assert network(a, a).abs().max() == 0
    near, far = network(a + 0.02 * torch.rand_like(a), a), network(a + 0.3 * torch.rand_like(a), a)
    assert (near < far).all()


def test_vgg_has_the_public_shapes():
    with torch.device("meta"):
        network = Lpips("vgg")
    assert sum(p.numel() for p in network.features.parameters()) == 14_714_688  # of VGG-16's convolutions
    assert [len(weight) for weight in network.weights] == [64, 128, 256, 512, 512]


@pytest.mark.skipif(find_spec("torchmetrics") is None, reason="pip install vasa-hf[eval]")
def test_public_linear_layers_are_read(files, tmp_path):
    """torchmetrics brings the linear layers of the lpips package."""
    folder, _, _ = files
    found = Path(find_spec("torchmetrics").origin).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    if not found.is_file():
        pytest.skip("this torchmetrics brings no LPIPS weights")
    convert_lpips(folder / "alexnet.pth", found, tmp_path)
    network = Lpips.load(tmp_path)
    assert all((weight >= 0).all() and weight.max() > 0 for weight in network.weights)


def test_wrong_files_are_reported(files, tmp_path):
    folder, _, _ = files
    with pytest.raises(ValueError, match="`lpips` must be a folder"):
        Lpips.load(tmp_path)
    with pytest.raises(ValueError, match="does not fit LPIPS(.|\n)*lin0"):
        convert_lpips(folder / "alexnet.pth", folder / "alexnet.pth", tmp_path)
    with pytest.raises(ValueError, match="does not fit LPIPS(.|\n)*features.0"):
        convert_lpips(folder / "alex.pth", folder / "alex.pth", tmp_path)
    (tmp_path / "no.pth").write_bytes(b"no")
    with pytest.raises(ValueError, match="`backbone` must be a state dict"):
        convert_lpips(tmp_path / "no.pth", folder / "alex.pth", tmp_path)
    assert not (tmp_path / "lpips.safetensors").exists()

"""VGG-19, VGGFace and ArcFace: converted from files in the public form, against loops of their own."""

import pytest
import torch
import torch.nn.functional as F

from tests.testing_utils.models import ModelTesterMixin
from vasa_hf.cli import main as command
from vasa_hf.convert.arcface import convert_arcface
from vasa_hf.convert.checkpoint import ConversionError
from vasa_hf.convert.vgg import convert_vgg
from vasa_hf.models.arcface import DEPTHS as ARCFACE_DEPTHS
from vasa_hf.models.arcface import ArcFaceRecognizer
from vasa_hf.models.pretrained_features import pretrained_features
from vasa_hf.models.vgg_features import DEPTHS, VggFeatures
from vasa_hf.training.losses import cross_identity_loss, perceptual_loss
from vasa_hf.training.networks import PerceptualFeatures

WIDTHS = (4, 6, 8, 8, 8)
FACE = {"depths": (1, 2, 1, 1), "widths": (4, 4, 6, 8, 8), "embedding_dim": 12, "image_size": 32}


class TestVggFeatures(ModelTesterMixin):
    model_class = VggFeatures

    def make_config(self):
        return {"widths": WIDTHS}

    def make_inputs(self, model):
        return {"image": torch.rand(2, 3, 32, 32) * 2 - 1}

    def bad_inputs(self, model):
        return [("image", {"image": torch.zeros(shape)}) for shape in ((3, 32, 32), (1, 1, 32, 32))]


class TestArcFaceRecognizer(ModelTesterMixin):
    model_class = ArcFaceRecognizer

    def make_config(self):
        return dict(FACE)

    def make_inputs(self, model):
        return {"image": torch.rand(2, 3, 64, 64) * 2 - 1}

    def bad_inputs(self, model):
        return [("image", {"image": torch.zeros(shape)}) for shape in ((3, 32, 32), (1, 1, 32, 32))]


def vgg_state(kind):
    """The whole network with random weights, as its public file names it."""
    state, index, before = {}, 0, 3
    for block, width in enumerate(WIDTHS):
        for place in range(((2, 2, 4, 4, 4) if kind == "vgg19" else (2, 2, 3, 3, 3))[block]):
            name = f"features.{index}" if kind == "vgg19" else f"conv{block + 1}_{place + 1}"
            state[f"{name}.weight"] = torch.randn(width, before, 3, 3) / before
            state[f"{name}.bias"] = 0.1 * torch.randn(width)
            before, index = width, index + 2
        index += 1  # the pool
    return state | {"classifier.0.weight" if kind == "vgg19" else "fc6.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize("kind", ["vgg19", "vggface"])
def test_vgg_of_a_public_file_gives_the_maps_of_its_formula(kind, tmp_path):
    torch.manual_seed(0)
    state = vgg_state(kind)
    torch.save(state, tmp_path / "vgg.pth")
    report = convert_vgg(tmp_path / "vgg.pth", tmp_path / "vgg", VggFeatures(kind, WIDTHS))
    assert report.complete and len(report.names("converted")) == 2 * (sum(DEPTHS[kind][:4]) + 1)
    network = pretrained_features(tmp_path / "vgg")
    image = torch.rand(2, 3, 32, 32)
    if kind == "vgg19":
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (image - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    else:
        x = image * 255 - torch.tensor([129.186279296875, 104.76238250732422, 93.59396362304688]).view(1, 3, 1, 1)
    wanted, names = [], iter([name.removesuffix(".weight") for name in state if name.endswith("weight")])
    for depth in (2, 2, 4, 4, 4) if kind == "vgg19" else (2, 2, 3, 3, 3):
        x = F.max_pool2d(x, 2) if wanted else x
        for place in range(depth):
            name = next(names)
            x = F.relu(F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1))
            if not place:
                wanted.append(x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt())
    for found, expected in zip(network.feature_maps(image * 2 - 1), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)  # rounded constants

    del state[next(name for name in state if name.endswith("weight"))]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ConversionError, match="1 missing"):
        convert_vgg(tmp_path / "part.pth", tmp_path / "part", VggFeatures(kind, WIDTHS))
    assert not (tmp_path / "part").exists()


def test_arcface_of_a_public_file_gives_the_vector_of_its_formula(tmp_path, capsys):
    torch.manual_seed(0)
    model = ArcFaceRecognizer(**FACE).eval()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) * 0.2 + 0.5 if "running_var" in name else 0.3 * torch.randn_like(value))
    state = {f"module.{name}": value for name, value in model.state_dict().items() if "tracked" not in name}
    torch.save(state, tmp_path / "backbone.pth")
    report = convert_arcface(tmp_path / "backbone.pth", tmp_path / "arcface", ArcFaceRecognizer(**FACE))
    assert report.complete and len(report.names("converted")) == len(state)
    network = pretrained_features(tmp_path / "arcface")

    def norm(x, name):
        get = lambda key: state[f"module.{name}.{key}"]  # noqa: E731
        return F.batch_norm(x, get("running_mean"), get("running_var"), get("weight"), get("bias"))

    def conv(x, name, stride=1, padding=1):
        return F.conv2d(x, state[f"module.{name}.weight"], None, stride, padding)

    image = torch.rand(2, 3, 100, 100) * 2 - 1
    x = F.interpolate(image[..., 20:76, 22:78], (32, 32), mode="bilinear", antialias=True)
    x = F.prelu(norm(conv(x, "conv1"), "bn1"), state["module.prelu.weight"])
    for stage, depth in enumerate(FACE["depths"], start=1):
        for block in range(depth):
            name, stride, skip = f"layer{stage}.{block}", 1 if block else 2, x
            y = norm(conv(norm(x, f"{name}.bn1"), f"{name}.conv1"), f"{name}.bn2")
            y = norm(conv(F.prelu(y, state[f"module.{name}.prelu.weight"]), f"{name}.conv2", stride), f"{name}.bn3")
            if not block:
                skip = norm(conv(x, f"{name}.downsample.0", 2, 0), f"{name}.downsample.1")
            x = y + skip
    x = F.linear(norm(x, "bn2").flatten(1), state["module.fc.weight"], state["module.fc.bias"])
    torch.testing.assert_close(network(image), F.normalize(norm(x, "features")), rtol=1e-3, atol=1e-4)

    # The command finds the depth of a file; widths of another model do not fit, and nothing is written.
    assert command(["convert", "arcface", str(tmp_path / "backbone.pth"), str(tmp_path / "wrong")]) == 2
    assert "does not fit ArcFace" in capsys.readouterr().err and not (tmp_path / "wrong").exists()


def test_public_sizes_on_meta():
    with torch.device("meta"):
        count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
        sizes = [count(ArcFaceRecognizer(depths=ARCFACE_DEPTHS[name])) / 1e6 for name in ("r50", "r100")]
        assert sizes == pytest.approx([43.59, 65.15], abs=0.01)  # as published
        assert count(VggFeatures("vgg19")) == 20_024_384 - 3 * (512 * 512 * 9 + 512)


def test_losses_take_any_of_them_and_pull_towards_the_target(tmp_path):
    torch.manual_seed(0)
    for name, model in (("vgg19", VggFeatures("vgg19", WIDTHS)), ("vggface", VggFeatures("vggface", WIDTHS))):
        model.save_pretrained(tmp_path / name)
    ArcFaceRecognizer(**FACE).save_pretrained(tmp_path / "arcface")
    features = PerceptualFeatures([str(tmp_path / name) for name in ("vgg19", "vggface", "arcface")])
    target, image = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    assert len(features.feature_maps(image)) == 5 + 5 + 4
    identity = pretrained_features(tmp_path / "arcface")
    for loss in (
        lambda x: perceptual_loss(features.feature_maps, x, target),
        lambda x: cross_identity_loss(identity, target, x),
    ):
        moved = image.clone().requires_grad_(True)
        before = loss(moved)
        before.backward()
        assert loss(target) < 1e-5 < before
        step = 1e-3 * moved.grad / moved.grad.std()
        assert loss(image - step) < before

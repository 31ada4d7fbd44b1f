import math

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
)

from tests.testing_utils.models import ModelTesterMixin
from vasa_hf.models.face_recognizer import FaceRecognizer, unit_channels
from vasa_hf.models.pretrained_features import pretrained_features
from vasa_hf.training.losses import cross_identity_loss, perceptual_loss

TINY = {"image_size": 32, "widths": (4, 8, 8), "depths": (1, 2), "embedding_dim": 12, "num_feature_maps": 3}


class TestFaceRecognizer(ModelTesterMixin):
    model_class = FaceRecognizer

    def make_config(self):
        return dict(TINY)

    def make_inputs(self, model):
        return {"image": torch.rand(6, 3, 32, 32) * 2 - 1}

    def bad_inputs(self, model):
        return [("image", {"image": torch.zeros(shape)}) for shape in ((3, 32, 32), (1, 1, 32, 32), (1, 32, 32, 3))]

    def test_identity_has_unit_length_and_does_not_depend_on_the_batch(self):
        model = self.make_model()
        image = self.make_inputs(model)["image"]
        identity = model(image)
        assert identity.shape == (6, 12)
        torch.testing.assert_close(identity.norm(dim=1), torch.ones(6))
        # float32 sums in another order
        torch.testing.assert_close(model(image[2:3]), identity[2:3], atol=1e-5, rtol=1e-4)

    def test_other_sizes_are_averaged(self):
        model = self.make_model()
        image = torch.rand(2, 3, 96, 64) * 2 - 1
        small = image.unflatten(2, (32, 3)).unflatten(4, (32, 2)).mean((3, 5))
        torch.testing.assert_close(model(image), model(small), atol=1e-5, rtol=1e-4)

    def test_feature_maps_halve_and_weigh_alike(self):
        model = self.make_model()
        maps = model.feature_maps(self.make_inputs(model)["image"])
        assert [tuple(m.shape[1:]) for m in maps] == [(4, 16, 16), (8, 8, 8), (8, 4, 4)]
        for features in maps:
            torch.testing.assert_close(features.square().mean(1), torch.ones(6, *features.shape[2:]), atol=1e-2, rtol=0)

    def test_losses_are_zero_for_equal_images_and_pull_towards_the_target(self):
        model = self.make_model().requires_grad_(False)
        target = self.make_inputs(model)["image"]
        assert perceptual_loss(model.feature_maps, target, target) == 0
        assert cross_identity_loss(model, target, target).abs() < 1e-5  # float32 rounding of a cosine of 1
        picture = (target + 0.3 * torch.randn_like(target)).requires_grad_()
        for loss in (
            lambda x: perceptual_loss(model.feature_maps, x, target),
            lambda x: cross_identity_loss(model, target, x),
        ):
            before = loss(picture)
            (gradient,) = torch.autograd.grad(before, picture)
            step = picture - 1e-3 * gradient * math.sqrt(gradient.numel()) / gradient.norm()  # 0.001 a pixel
            assert loss(step) < before

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("depths", {"depths": (1,)}),
            ("image_size", {"image_size": 36}),
            ("num_feature_maps", {"num_feature_maps": 4}),
        ],
    )
    def test_bad_configs_name_the_argument(self, name, changes):
        with pytest.raises(ValueError, match=f"`{name}`"):
            FaceRecognizer(**{**TINY, **changes})


def test_default_size_is_about_a_million_parameters():
    with torch.device("meta"):
        model = FaceRecognizer()
    assert 0.8e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.3e6


def test_unit_channels_is_finite_where_all_channels_are_zero():
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    unit_channels(features).sum().backward()
    assert features.grad.isfinite().all()


def tiny_backbone(kind):
    torch.manual_seed(0)
    tokens = {"hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    if kind == "resnet":
        return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
    if kind == "dinov2":
        return Dinov2Model(Dinov2Config(mlp_ratio=2, **tokens))
    if kind == "swin":
        return SwinModel(
            SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
        )
    text = {
        "vocab_size": 20,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config={"intermediate_size": 16, **tokens}, projection_dim=8))


SHAPES = {
    "resnet": [(8, 56, 56), (16, 28, 28)],
    "dinov2": [(16, 4, 4)] * 4,
    "swin": [(16, 4, 4), (16, 4, 4)],
    "clip": [(16, 4, 4)] * 4,
}


@pytest.mark.parametrize("kind", SHAPES)
def test_transformers_backbones_give_maps_identities_and_gradients(kind, tmp_path):
    tiny_backbone(kind).save_pretrained(tmp_path)
    network = pretrained_features(tmp_path).train()
    assert not network.backbone.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    image = (torch.rand(2, 3, 48, 48) * 2 - 1).requires_grad_()
    maps = network.feature_maps(image)
    assert [tuple(m.shape[1:]) for m in maps] == SHAPES[kind]
    identity = network(image)
    torch.testing.assert_close(identity.norm(dim=1), torch.ones(2))
    target = torch.rand(2, 3, 48, 48) * 2 - 1
    loss = perceptual_loss(network.feature_maps, image, target) + cross_identity_loss(network, target, image)
    loss.backward()
    assert image.grad.abs().sum() > 0


def test_images_are_normalised_as_the_backbone_expects(tmp_path):
    backbone = tiny_backbone("resnet").eval()
    backbone.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "size": {"shortest_edge": 64}}'
    )
    image = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.2, 0.1]))
    with torch.no_grad():
        expected = F.normalize(backbone((image - mean) / std).pooler_output.flatten(1))
        torch.testing.assert_close(pretrained_features(tmp_path)(image * 2 - 1), expected, atol=1e-5, rtol=1e-4)


def test_our_own_folder_is_recognised(tmp_path):
    model = FaceRecognizer(**TINY).eval()
    model.save_pretrained(tmp_path)
    network = pretrained_features(tmp_path)
    image = torch.rand(2, 3, 32, 32)
    assert isinstance(network, FaceRecognizer) and not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    torch.testing.assert_close(network(image), model(image))


def test_a_missing_model_and_a_text_model_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="`name`.*no-such/model.*Without a network"):
        pretrained_features("no-such/model", local_files_only=True)
    text = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(text).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`name` must be a vision model.*BertModel"):
        pretrained_features(tmp_path)

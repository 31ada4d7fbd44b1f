import pytest
import torch
from torch.nn import functional as F

from tests.testing_utils.models import ModelTesterMixin
from vasa_hf.models.autoencoder_gaia import PAPER_CONFIGS, SMALL_CONFIG, GaiaAutoencoder

TINY = {"image_size": 32, "channels": [4, 8, 8], "motion_channels": [4, 8, 8, 8], "num_layers": 1, "patch_size": 2}


def tiny(**changes):
    torch.manual_seed(0)
    return GaiaAutoencoder(**{**TINY, **changes}).eval()


def pictures(count=2, size=32):
    torch.manual_seed(1)
    return [F.interpolate(torch.rand(count, 3, 8, 8), size=size, mode="bilinear") * 2 - 1 for _ in range(3)]


class TestGaiaAutoencoder(ModelTesterMixin):
    model_class = GaiaAutoencoder

    def make_config(self):
        return dict(TINY)

    def make_inputs(self, model):
        return dict(zip(("source", "source_picture", "driving_picture"), pictures(), strict=True))

    def bad_inputs(self, model):
        good = self.make_inputs(model)
        return [
            ("image", {**good, "source": torch.zeros(2, 3, 32, 30)}),
            ("picture", {**good, "driving_picture": torch.zeros(2, 1, 32, 32)}),
        ]


class TestGaiaAutoencoderWithPassthrough(TestGaiaAutoencoder):
    def make_config(self):
        return {**TINY, "source_passthrough": True, "norm": False}


class TestGaiaAutoencoderWithoutDisentanglement(TestGaiaAutoencoder):
    def make_config(self):
        return {**TINY, "motion_input": "frame"}

    def test_only_the_motion_latent_is_decoded(self):
        model, (source, picture, frame) = self.make_model(), pictures()
        out = model(source, picture, frame).sample
        assert torch.equal(model(-source, picture, frame).sample, out)
        assert not torch.equal(model(source, picture, -frame).sample, out)


@pytest.mark.parametrize(("name", "millions"), [("80m", 80), ("700m", 700), ("1.7b", 1700)])
def test_paper_sizes(name, millions):
    """Parameters and latents of appendix B.1: factors 8 and 16, three channels each."""
    with torch.device("meta"):
        model = GaiaAutoencoder(**PAPER_CONFIGS[name])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.05)
    assert (model.factor, model.motion_factor, model.motion_dim) == (8, 16, 16 * 16 * 3)


def test_small_size_and_cost():
    from torch.utils.flop_counter import FlopCounterMode

    model = GaiaAutoencoder(**SMALL_CONFIG).requires_grad_(False)
    assert 2 * sum(p.numel() for p in model.parameters()) < 7e6  # bytes in float16
    assert (model.factor, model.motion_factor, model.motion_dim) == (8, 16, 768)
    appearance = model.encode_appearance(torch.zeros(1, 3, 256, 256), torch.zeros(1, 768))
    assert appearance.latent.shape == (1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model.decode(appearance, torch.zeros(1, 768))
    assert 1e9 < counter.get_total_flops() < 10e9


@pytest.mark.parametrize("passthrough", [True, False])
def test_encode_and_decode_are_the_whole(passthrough):
    model, (source, own, driving) = tiny(source_passthrough=passthrough), pictures()
    with torch.no_grad():
        whole = model(source, own, driving)
        z_own, z_driving = (model.flatten_motion(model.encode_motion(x).mode()) for x in (own, driving))
        assert z_driving.shape == (2, model.motion_dim)
        appearance = model.encode_appearance(source, z_own)
        torch.testing.assert_close(model.decode(appearance, z_driving), whole.sample, atol=1e-5, rtol=0)
        # One person, several frames.
        one = model.encode_appearance(source[:1], z_own[:1])
        both = model.decode(one.expand(2), z_driving)
        torch.testing.assert_close(both[0], whole.sample[0], atol=1e-5, rtol=0)
    assert (whole.flow is not None) == passthrough


def test_appearance_does_not_see_the_driving_frame_nor_motion_the_source():
    model, (source, own, driving) = tiny(), pictures()
    with torch.no_grad():
        out, other = model(source, own, driving), model(-source, -own, driving)
    assert torch.equal(out.motion.mean, other.motion.mean)
    assert (out.appearance.mean - other.appearance.mean).abs().max() > 1e-3


def test_posteriors_are_drawn_and_cost_something():
    model, (source, own, driving) = tiny(), pictures()
    with torch.no_grad():
        torch.manual_seed(0)
        drawn = model(source, own, driving, sample_posterior=True)
        assert not torch.equal(drawn.sample, model(source, own, driving).sample)
    naive = drawn.motion
    wanted = 0.5 * (naive.mean**2 + naive.logvar.exp() - 1 - naive.logvar).sum((1, 2, 3))
    torch.testing.assert_close(naive.kl(), wanted)


def test_the_flow_moves_the_sources_pixels():
    model, (source, own, driving) = tiny(source_passthrough=True), pictures(size=32)
    with torch.no_grad():
        model.decoder.conv_out.weight.zero_()
        model.decoder.conv_out.bias.zero_()
        model.decoder.conv_out.bias[-4:] = 30.0  # the mask of the four pixels of a patch
        model.decoder.flow.weight.zero_()
        still = model(source, own, driving).sample
        model.decoder.flow.bias.copy_(torch.tensor([2 * 4 / 32, 0.0]))  # four pixels from the right
        moved = model(source, own, driving).sample
    torch.testing.assert_close(still, source, atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[..., :28], source[..., 4:], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"image_size": 40}, "image_size"),
        ({"motion_channels": [4, 8]}, "motion_channels"),
        ({"motion_input": "audio"}, "motion_input"),
        ({"motion_input": "frame", "source_passthrough": True}, "source_passthrough"),
    ],
)
def test_bad_configs_say_so(changes, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        tiny(**changes)


def test_bad_motion_says_so():
    model, (source, own, _) = tiny(source_passthrough=True), pictures()
    with pytest.raises(ValueError, match="`motion` must be the image's own"):
        model.encode_appearance(source)
    appearance = model.encode_appearance(source, model.flatten_motion(model.encode_motion(own).mode()))
    with pytest.raises(ValueError, match="`motion` must have shape"):
        model.decode(appearance, torch.zeros(2, 5))

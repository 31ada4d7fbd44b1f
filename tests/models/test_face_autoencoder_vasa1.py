import pytest
import torch
from torch.nn import functional as F

from tests.testing_utils.models import ModelTesterMixin
from vasa_hf.models.face_autoencoder_vasa1 import (
    PAPER_CONFIG,
    SMALL_CONFIG,
    TINY_CONFIG,
    Vasa1FaceAutoencoder,
    keep_still_pixels,
)


def tiny(**changes):
    torch.manual_seed(0)
    return Vasa1FaceAutoencoder(**{**TINY_CONFIG, **changes})


def some_motion(batch, dim=34):
    motion = 0.1 * torch.randn(batch, dim)
    motion[:, 3:6] = torch.tensor([0.5, 0.5, 0.27])
    return motion


class TestVasa1FaceAutoencoder(ModelTesterMixin):
    model_class = Vasa1FaceAutoencoder

    def make_config(self):
        return dict(TINY_CONFIG)

    def make_inputs(self, model):
        torch.manual_seed(1)
        return {"source": torch.rand(2, 3, 64, 64) * 2 - 1, "driving": torch.rand(2, 3, 64, 64) * 2 - 1}

    def bad_inputs(self, model):
        good = self.make_inputs(model)
        return [
            ("image", {**good, "source": torch.zeros(2, 3, 64, 60)}),
            ("image", {**good, "source": torch.zeros(2, 1, 64, 64)}),
            ("motion", {**good, "source_motion": torch.zeros(2, 5)}),
            ("motion", {**good, "driving_motion": torch.zeros(1, 34)}),
        ]


def test_paper_size_is_about_200m_parameters():
    with torch.device("meta"):
        model = Vasa1FaceAutoencoder(**PAPER_CONFIG)
    count = sum(p.numel() for p in model.parameters())
    assert 0.9 * 200e6 < count < 1.1 * 200e6, f"VASA-1 §4 says about 200M, got {count / 1e6:.1f}M"


def test_small_decoder_costs_at_most_10_gflops():
    from torch.utils.flop_counter import FlopCounterMode

    model = Vasa1FaceAutoencoder(**SMALL_CONFIG).requires_grad_(False)
    appearance = model.encode_appearance(torch.zeros(1, 3, 256, 256), some_motion(1))
    with FlopCounterMode(display=False) as counter:
        model.decode(appearance, some_motion(1))
    assert 1e9 < counter.get_total_flops() <= 10e9


@pytest.mark.parametrize("passthrough", [True, False])
def test_shapes_range_and_gradients(passthrough):
    model = tiny(source_passthrough=passthrough, motion_basis=passthrough)
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    output = model(image, image.flip(0)).sample
    assert output.shape == image.shape and output.abs().max() <= 1 + 1e-5
    output.square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent, f"no gradient reaches {silent}"


def test_gradient_checkpointing_changes_nothing():
    model = tiny()
    image, motion = torch.rand(2, 3, 64, 64), some_motion(2)
    model(image, None, motion, motion).sample.mean().backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.enable_gradient_checkpointing()
    model(image, None, motion, motion).sample.mean().backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, plain[name], atol=1e-6, rtol=1e-4)


def test_batch_equals_single_and_expand():
    model = tiny().eval()
    image, motion = torch.rand(2, 3, 64, 64), some_motion(3)
    with torch.inference_mode():
        one = model.encode_appearance(image[:1], some_motion(1))
        both = model.decode(one.expand(3), motion)
        for index in range(3):
            single = model.decode(one, motion[index : index + 1])
            # 1e-4: convolution kernels differ by batch size
            torch.testing.assert_close(single[0], both[index], atol=1e-4, rtol=0)


def test_larger_source_passes_detail_through():
    """What is finer than the model's own size comes from the source, and is not there if the source is small."""

    def likeness(one, other):
        detail = [(image - F.avg_pool2d(image, 5, 1, 2)).flatten() for image in (one, other)]
        return torch.corrcoef(torch.stack(detail))[0, 1]

    model = tiny().eval()
    image, motion = torch.rand(1, 3, 128, 128) * 2 - 1, some_motion(1)
    with torch.inference_mode():
        appearance = model.encode_appearance(image, motion)
        out, small = model.decode(appearance, motion, output_size=128), model.decode(appearance, motion)
        shrunk = model.encode_appearance(F.interpolate(image, size=64, mode="area"), motion)
        blurred = model.decode(shrunk, motion, output_size=128)
    assert out.shape[-1] == blurred.shape[-1] == 128 and small.shape[-1] == 64
    # Random weights pass about half of the source through.
    assert likeness(out, image) > 0.6 and likeness(blurred, image) < 0.4


def test_motion_basis_moves_pixels_as_far_as_its_channel_is_from_the_source():
    model = tiny().eval()
    image, motion = torch.rand(1, 3, 64, 64), some_motion(1)
    driving = motion.clone()
    driving[:, 6 + 24] += 2.0
    with torch.no_grad():
        model.basis_head.weight.zero_()
        appearance = model.encode_appearance(image, motion)
        before = [model.decode(appearance, m, return_dict=True).flow for m in (motion, driving)]
        model.basis_head.bias.unflatten(0, (2, -1))[1, 24] = 0.05  # downwards by 0.05 for each unit of channel 24
        still, moved = (model.decode(appearance, m, return_dict=True).flow for m in (motion, driving))
    assert torch.equal(still, before[0])
    torch.testing.assert_close(moved - before[1], torch.tensor([0.0, 0.1]).expand_as(moved), atol=1e-5, rtol=0)


def shares(moved, unmoved, generated, size=256):
    return torch.tensor([moved, unmoved, generated]).view(1, 3, 1, 1).expand(1, 3, size, size)


def test_still_pixels_are_the_sources_own():
    source = torch.rand(1, 3, 256, 256) - 0.5  # fine texture
    soft = torch.nn.functional.avg_pool2d(source, 5, 1, 2, count_include_pad=False)
    sample, here = 0.6 * source + 0.4 * soft, torch.zeros(1)
    assert torch.equal(keep_still_pixels(sample, source, shares(0.1, 0.6, 0.3), here), source)
    # The moved source outweighs the unmoved one: this is the head.
    assert torch.equal(keep_still_pixels(sample, source, shares(0.6, 0.1, 0.3), here), sample)
    # The decoder alone: nothing says that the source is still there.
    assert torch.equal(keep_still_pixels(sample, source, shares(0.0, 0.03, 0.97), here), sample)


def test_what_a_head_uncovers_is_not_the_sources():
    source = torch.rand(1, 3, 256, 256) * 0.2 - 0.6  # dark hair, left half now background
    sample = source.clone()
    sample[..., :128] += 0.5
    kept = keep_still_pixels(sample, source, shares(0.1, 0.5, 0.4), torch.zeros(1))
    assert torch.equal(kept[..., :128], sample[..., :128]) and torch.equal(kept[..., 140:], source[..., 140:])


def test_shoulders_are_held_less_firmly_the_further_the_head_goes():
    source = torch.rand(1, 3, 256, 256) - 0.5
    sample = torch.nn.functional.avg_pool2d(source, 5, 1, 2, count_include_pad=False)
    blend, shifts = shares(0.3, 0.6, 0.1), (0.0, 0.015, 0.022, 1.0)
    kept = [keep_still_pixels(sample, source, blend, torch.tensor([shift])) for shift in shifts]
    below = [(one - source)[..., 210:, :].abs().mean().item() for one in kept]
    assert below[0] == 0 and below[0] < below[1] < below[2] < below[3]
    assert torch.equal(kept[3][..., 210:, :], sample[..., 210:, :])
    # Above the chin is background, which stays however far the head goes.
    assert all(torch.equal(one[..., :150, :], source[..., :150, :]) for one in kept)


def test_pose_moves_the_image_the_right_way():
    """With untouched (zero) non-rigid warps, tx moves the moved source to the right by as much."""
    model = tiny().eval()
    image = torch.rand(1, 3, 64, 64)
    motion = some_motion(1)
    moved = motion.clone()
    moved[:, 3] += 0.125  # 8 of 64 pixels
    with torch.inference_mode():
        appearance = model.encode_appearance(image, motion)
        still = model.decode(appearance, motion, return_dict=True).flow
        shifted = model.decode(appearance, moved, return_dict=True).flow
    inner = (still - shifted)[:, 16:48, 16:48]
    torch.testing.assert_close(inner[..., 0].mean(), torch.tensor(0.25), atol=0.03, rtol=0)
    assert inner[..., 1].abs().mean() < 0.03


def test_save_and_load(tmp_path):
    model = tiny().eval()
    model.save_pretrained(tmp_path)
    again = Vasa1FaceAutoencoder.from_pretrained(tmp_path)
    image, motion = torch.rand(1, 3, 64, 64), some_motion(1)
    with torch.inference_mode():
        first = model(image, None, motion, motion).sample
        second = again(image, None, motion, motion).sample
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)  # weights lie elsewhere in memory: other kernels


def test_bfloat16_moves_the_image_as_float32_does():
    """The flow is computed from float32 positions: bfloat16's 8 bits would be half a pixel of 256."""
    model = tiny().eval()
    image, motion = torch.rand(1, 3, 64, 64) * 2 - 1, some_motion(2)
    with torch.inference_mode():
        expected = model.decode(model.encode_appearance(image, motion[:1]), motion[1:], return_dict=True)
        half, low = model.to(torch.bfloat16), motion.to(torch.bfloat16)
        result = half.decode(half.encode_appearance(image.to(torch.bfloat16), low[:1]), low[1:], return_dict=True)
    assert result.sample.dtype == torch.bfloat16
    # A quarter of a pixel of 256, in the units of the flow.
    torch.testing.assert_close(result.flow.float(), expected.flow, atol=0.002, rtol=0)
    # Rounding through the decoder: two percent of the image's range.
    assert (result.sample.float() - expected.sample).abs().mean() < 0.02 < 0.1 * expected.sample.std()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode_appearance(torch.zeros(1, 3, 32, 32)), "`image` must have shape"),
        (lambda m: m.encode_appearance(torch.zeros(1, 3, 64, 65)), "`image` must have shape"),
        (lambda m: m.encode_appearance(torch.zeros(1, 3, 64, 64), torch.zeros(1, 5)), "`motion` must have shape"),
    ],
)
def test_bad_shapes_say_so(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny())


def test_bad_configs_say_so():
    with pytest.raises(ValueError, match="`image_size` must be a multiple of 8"):
        tiny(image_size=60)
    with pytest.raises(ValueError, match="`pose_size` and `dynamics_size`"):
        tiny(pose_size=16)
    with pytest.raises(ValueError, match="`output_size` must be 64"):
        model = tiny(source_passthrough=False, motion_basis=False)
        model.decode(model.encode_appearance(torch.zeros(1, 3, 64, 64)), some_motion(1), output_size=128)

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.testing_utils.models import ModelTesterMixin
from vasa_hf.geometry.keypoints import transform_keypoints
from vasa_hf.layers.dense_motion import identity_volume_grid, keypoint_heatmaps, shift_volumes
from vasa_hf.layers.spade import Spade, convolve_enlarged
from vasa_hf.models.renderer_liveportrait import LivePortraitRenderer

TINY = {
    "image_size": 32,
    "block_expansion": 4,
    "max_features": 8,
    "num_down_blocks": 1,
    "feature_channels": 3,
    "feature_depth": 4,
    "num_resblocks": 1,
    "motion_depths": (1, 1),
    "motion_dims": (6, 8),
    "hourglass_block_expansion": 4,
    "hourglass_max_features": 8,
    "hourglass_num_blocks": 2,
    "compress_channels": 2,
    "mask_kernel_size": 3,
    "occlusion_kernel_size": 5,
    "generator_num_blocks": 1,
    "num_up_blocks": 2,
    "generator_out_channels": 6,
    "spade_channels": 5,
}


class TestLivePortraitRenderer(ModelTesterMixin):
    model_class = LivePortraitRenderer
    unreached = ("stitching", "retargeting")  # trained on their own, once all else is

    def make_config(self):
        return dict(TINY)

    def make_inputs(self, model):
        return {"source": torch.rand(2, 3, 32, 32), "driving": torch.rand(2, 3, 32, 32)}

    def bad_inputs(self, model):
        good = self.make_inputs(model)
        return [
            ("source", {**good, "source": torch.zeros(2, 3, 32, 36)}),
            ("source", {**good, "source": torch.zeros(2, 1, 32, 32)}),
            ("driving", {**good, "driving": torch.zeros(3, 32, 32)}),
            ("driving", {**good, "driving": torch.zeros(2, 3, 0, 32)}),
        ]

    def test_keypoints_start_spread_and_at_the_middle(self):
        torch.manual_seed(0)
        model = LivePortraitRenderer(**TINY)
        motion = model.extract_motion(torch.rand(4, 3, 32, 32))
        assert (motion.scale - 1).abs().max() < 0.1 and motion.t.abs().max() < 0.1 and motion.exp.abs().max() < 0.1
        assert motion.yaw.abs().max() < 10
        assert motion.kp.std() > 5 * motion.exp.std()

    def test_motion_may_be_read_at_points(self):
        """Other sizes work as they are looked at through a window of one size; the rim is not seen."""
        torch.manual_seed(0)
        points = {"motion_points": 5, "motion_image_size": 32, "motion_pyramid_channels": 6, "motion_zoom": 0.5}
        dims = {"motion_depths": (1, 1, 1, 1), "motion_dims": (4, 4, 6, 6, 8)}
        model = LivePortraitRenderer(**{**TINY, **points, **dims}).eval()
        assert model.size_multiple == 8
        images = torch.rand(2, 3, 64, 64)
        other = images.clone()
        other[..., :16] = 1 - other[..., :16]
        with torch.no_grad():
            one, two = (transform_keypoints(model.extract_motion(image)) for image in (images, other))
            torch.testing.assert_close(one, two)
            other[..., 24:40, 24:40] = 0
            assert (transform_keypoints(model.extract_motion(other)) - one).abs().max() > 1e-4
            assert model(images, images).image.shape == (2, 3, 256, 256)

    def test_one_step_each_lowers_the_loss(self):
        torch.manual_seed(0)
        model = LivePortraitRenderer(**TINY).train()
        inputs, target = self.make_inputs(model), torch.rand(2, 3, 128, 128)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        losses = []
        for _ in range(8):
            loss = (model(**inputs).image - target).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 1e-3

    def test_render_is_warp_then_decode_and_forward_is_all(self):
        model, inputs = self.make_model(), self.make_inputs(self)
        with torch.no_grad():
            output = model(**inputs)
            source, driving = (transform_keypoints(model.extract_motion(image)) for image in inputs.values())
            feature_3d = model.encode_appearance(inputs["source"])
            torch.testing.assert_close(model.render(feature_3d, source, driving), output.image)
            assert output.image.shape[-1] == model.output_size == 128
            assert output.deformation.shape == (2, 4, 16, 16, 3) and output.occlusion.shape == (2, 1, 16, 16)
            assert 0 <= output.image.min() and output.image.max() <= 1

    def test_batch_is_as_single(self):
        model, inputs = self.make_model(), self.make_inputs(self)
        with torch.no_grad():
            both = model(**inputs).image
            each = [model(**{name: value[i : i + 1] for name, value in inputs.items()}).image for i in range(2)]
        torch.testing.assert_close(torch.cat(each), both, atol=1e-5, rtol=1e-4)

    def test_other_image_sizes_work(self):
        model = self.make_model()
        images = torch.rand(1, 3, 24, 40)
        with torch.no_grad():
            assert model.size_multiple == 8
            assert model(images, images).image.shape == (1, 3, 96, 160)

    def test_stitching_shifts_all_points_alike(self):
        model = self.make_model()
        source, driving = torch.randn(2, 2, 21, 3)
        for parameter in model.stitching.parameters():
            parameter.data.zero_()
        torch.testing.assert_close(model.stitch(source, driving), driving)
        model.stitching.mlp[-1].bias.data[-2:] = torch.tensor([0.5, -0.25])
        moved = model.stitch(source, driving) - driving
        torch.testing.assert_close(moved, torch.tensor([0.5, -0.25, 0.0]).expand(2, 21, 3))

    def test_retargeting_sees_both_ratios(self):
        model = self.make_model()
        points, low, high = torch.randn(2, 21, 3), torch.zeros(2, 1), torch.ones(2, 1)
        closed, opened = model.retarget_lips(points, low, low), model.retarget_lips(points, low, high)
        assert closed.shape == (2, 21, 3) and (closed - opened).abs().max() > 1e-4
        assert (closed - model.retarget_lips(points, high, low)).abs().max() > 1e-4
        eyes = model.retarget_eyes(points, torch.cat([low, high], 1), low)
        assert (eyes - model.retarget_eyes(points, torch.cat([high, low], 1), low)).abs().max() > 1e-4

    @pytest.mark.parametrize(
        ("method", "name", "shapes"),
        [
            ("encode_appearance", "image", [(1, 3, 20, 32)]),
            ("extract_motion", "image", [(1, 4, 32, 32)]),
            ("stitch", "kp_driving", [(1, 21, 3), (1, 20, 3)]),
            ("retarget_lips", "source_ratio", [(1, 21, 3), (1, 2), (1, 1)]),
            ("retarget_eyes", "source_ratios", [(1, 21, 3), (1, 1), (1, 1)]),
            ("retarget_eyes", "target_ratio", [(1, 21, 3), (1, 2), (1, 2)]),
            ("warp", "feature_3d", [(1, 3, 4, 16, 18), (1, 21, 3), (1, 21, 3)]),
            ("warp", "feature_3d", [(3, 4, 16, 16), (1, 21, 3), (1, 21, 3)]),
            ("render", "kp_source", [(1, 3, 4, 16, 16), (1, 63), (1, 21, 3)]),
        ],
    )
    def test_each_part_names_what_does_not_fit(self, method, name, shapes):
        with pytest.raises(ValueError, match=f"`{name}`"):
            getattr(self.make_model(), method)(*(torch.zeros(shape) for shape in shapes))

    @pytest.mark.parametrize(
        ("name", "value"), [("mask_kernel_size", 4), ("occlusion_kernel_size", 2), ("image_size", 36)]
    )
    def test_unfit_config_raises(self, name, value):
        with pytest.raises(ValueError, match=f"`{name}`"):
            LivePortraitRenderer(**{**TINY, name: value})

    def test_unshuffling_keeps_what_an_average_loses(self):
        """A pattern of alternate pixels, which 2x2 averages of a pointwise first layer cannot tell from its mean."""
        flat = torch.full((1, 3, 32, 32), 0.5)
        pattern = flat.clone()
        pattern[..., ::2], pattern[..., 1::2] = 0.25, 0.75
        seen = {}
        for unshuffle in (False, True):
            torch.manual_seed(0)
            extractor = LivePortraitRenderer(**{**TINY, "unshuffle": unshuffle}).eval().appearance_feature_extractor
            with torch.no_grad():
                extractor.first.conv.weight *= torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
                extractor.first.conv.bias.fill_(5)  # within the rectifier's straight part
                assert extractor(flat).shape == (1, 3, 4, 16, 16)
                first = extractor.down_blocks[0].conv
                first.weight *= torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
                first.bias.fill_(50)
                inner = (extractor(pattern) - extractor(flat))[..., 2:-2, 2:-2]
                seen[unshuffle] = inner.abs().max().item()
        assert seen[False] < 1e-4 < 1e-3 < seen[True]

    def test_upscale_of_one_has_the_public_name(self):
        model = LivePortraitRenderer(**{**TINY, "upscale": 1})
        assert model.spade_generator.conv_img.weight.shape == (3, 6, 3, 3)
        assert model.decode(torch.rand(1, 8, 16, 16)).shape == (1, 3, 64, 64)


# Enough channels that the fast convolutions take part; an odd one for what cannot be tiled.
WIDE = {**TINY, "block_expansion": 34, "max_features": 68, "hourglass_block_expansion": 68, "mask_kernel_size": 5}
WIDE.update(hourglass_max_features=70, spade_channels=66, generator_channels=68, generator_out_channels=66)
WIDE.update(image_size=64, num_down_blocks=2)


def fast_inputs(model, batch=2):
    g = torch.Generator().manual_seed(0)
    side = model.config.image_size // 2**model.config.num_down_blocks
    size = (model.config.feature_channels, model.config.feature_depth, side, side)
    volume = torch.randn(batch, *size, generator=g)
    return volume, *(0.3 * torch.randn(2, batch, 21, 3, generator=g))


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        WIDE,
        {**WIDE, "upscale": 1, "num_up_blocks": 1, "mask_kernel_size": 3},
        {**WIDE, "num_up_blocks": 3, "generator_num_blocks": 2, "generator_channels": 136},
        {**WIDE, "num_down_blocks": 1, "num_up_blocks": 0, "generator_out_channels": 68, "hourglass_num_blocks": 3},
        {**WIDE, "num_up_blocks": 1, "generator_out_channels": 68},  # doubled, but as many channels
    ],
)
def test_optimised_for_inference_gives_the_same_images(config):
    torch.manual_seed(0)
    model = LivePortraitRenderer(**config).eval()
    for name, value in model.state_dict().items():  # batch norms that do something
        if name.endswith(("running_mean", "running_var", "norm.weight", "norm.bias")):
            value.copy_(torch.rand_like(value) + 0.5)
    inputs = fast_inputs(model)
    with torch.no_grad():
        ordinary, expected = model.warp(*inputs), model.render(*inputs)
        assert model.optimize_for_inference() is model
        found = model.warp(*inputs)
        assert not torch.equal(found[0], ordinary[0])  # it does take another way
        for ours, theirs in zip(found, ordinary, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.render(*inputs), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(model.render(*inputs), model.render(*inputs), atol=0, rtol=0)
        one = model.render(*(value[1:] for value in inputs))
        torch.testing.assert_close(one, expected[1:], atol=1e-4, rtol=0)


def test_optimising_leaves_what_is_saved_and_is_undone(tmp_path):
    torch.manual_seed(0)
    model = LivePortraitRenderer(**WIDE).eval()
    names, inputs = model.state_dict().keys(), fast_inputs(model)
    with torch.no_grad():
        expected = model.render(*inputs)
        model.optimize_for_inference()
        fast = model.render(*inputs)
        model.save_pretrained(tmp_path)
        assert model.state_dict().keys() == names
        assert torch.equal(LivePortraitRenderer.from_pretrained(tmp_path).eval().render(*inputs), expected)
        assert not torch.equal(fast, expected)
        for undo in (
            lambda: model.optimize_for_inference(False),
            lambda: model.train().eval(),
            lambda: model.to(torch.float64).to(torch.float32),
        ):
            model.optimize_for_inference()
            undo()
            assert torch.equal(model.render(*inputs), expected)
        model.optimize_for_inference()
        wide = torch.rand(1, 3, 64, 96)  # of another size: the ordinary way
        assert model(wide, wide).image.shape == (1, 3, 128, 192)
    assert model.render(*inputs).requires_grad


def test_optimising_what_trains_raises():
    with pytest.raises(ValueError, match="`enabled`.*training"):
        LivePortraitRenderer(**TINY).train().optimize_for_inference()


def test_shifted_volumes_are_what_grid_sample_gives():
    torch.manual_seed(0)
    volume, shifts = torch.randn(2, 3, 4, 6, 8), 0.8 * torch.randn(2, 5, 3)
    grids = identity_volume_grid((4, 6, 8), volume.device) + shifts[:, :, None, None, None]
    expected = torch.stack([F.grid_sample(volume, grids[:, k], align_corners=False) for k in range(5)], 1)
    torch.testing.assert_close(shift_volumes(volume, shifts), expected, atol=1e-5, rtol=1e-5)


def test_shifted_volumes_pass_gradients_as_grid_sample_does():
    torch.manual_seed(0)
    volume = torch.randn(1, 2, 4, 6, 8, dtype=torch.float64).float().requires_grad_()
    shifts = (0.3 * torch.randn(1, 3, 3)).requires_grad_()
    weights = torch.randn(1, 3, 2, 4, 6, 8)
    grids = identity_volume_grid((4, 6, 8), volume.device) + shifts[:, :, None, None, None]
    sampled = torch.stack([F.grid_sample(volume, grids[:, k], align_corners=False) for k in range(3)], 1)
    expected = torch.autograd.grad((sampled * weights).sum(), (volume, shifts))
    found = torch.autograd.grad((shift_volumes(volume, shifts) * weights).sum(), (volume, shifts))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_heatmaps_are_gaussians_of_the_distance():
    keypoints = torch.tensor([[[0.2, -0.4, 0.6], [3.0, 0.0, 0.0]]])
    grid = identity_volume_grid((4, 6, 8), keypoints.device)
    squared = (grid - keypoints[0, :, None, None, None]).square().sum(-1)
    torch.testing.assert_close(keypoint_heatmaps(keypoints, (4, 6, 8))[0], (-squared / 0.02).exp())


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_convolution_of_an_enlarged_map_at_its_own_size(factor):
    torch.manual_seed(0)
    conv, image = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 5, 6)
    expected = conv(F.interpolate(image, scale_factor=factor, mode="nearest"))
    torch.testing.assert_close(convolve_enlarged(image, conv, factor), expected, atol=1e-6, rtol=1e-5)


def test_spade_modulates_by_position():
    torch.manual_seed(0)
    norm, x, label = Spade(4, 3, 5), torch.randn(1, 4, 8, 8), torch.randn(1, 3, 4, 4)
    enlarged = label.repeat_interleave(2, 2).repeat_interleave(2, 3)
    shared = norm.mlp_shared(enlarged)
    normal = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    expected = normal * (1 + norm.mlp_gamma(shared)) + norm.mlp_beta(shared)
    torch.testing.assert_close(norm(x, label), expected, atol=1e-5, rtol=1e-5)

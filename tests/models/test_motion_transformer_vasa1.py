import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from tests.testing_utils.models import ModelTesterMixin
from vasa_hf.layers.attention import apply_rotary, rotary_angles
from vasa_hf.models.motion_transformer_vasa1 import Vasa1MotionTransformer


class TestVasa1MotionTransformer(ModelTesterMixin):
    model_class = Vasa1MotionTransformer
    # `make_inputs` gives every condition; null tokens are tested below.
    unreached = ("null.",)

    def make_config(self):
        return {
            "motion_dim": 11,
            "audio_dim": 7,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "window": 6,
            "context": 2,
            "dynamics": {"lips": 3, "gaze": 2},
        }

    def make_inputs(self, model):
        torch.manual_seed(1)
        return {
            "sample": torch.randn(2, 6, 11),
            "timestep": torch.tensor([3, 800]),
            "audio": torch.randn(2, 6, 7),
            "previous_motion": torch.randn(2, 2, 11),
            "previous_audio": torch.randn(2, 2, 7),
            "gaze": torch.tensor([[0.1, -0.2], [0.3, 0.0]]),
            "head_distance": torch.tensor([[1.2], [0.8]]),
            "emotion": torch.rand(2, 6),
            "frame_mask": torch.tensor([[True] * 6, [True] * 4 + [False] * 2]),
        }

    def bad_inputs(self, model):
        good = self.make_inputs(model)
        bad = {
            "sample": torch.zeros(2, 7, 11),
            "audio": torch.zeros(2, 6, 8),
            "previous_motion": torch.zeros(2, 3, 11),
            "previous_audio": torch.zeros(1, 2, 7),
            "gaze": torch.zeros(2, 3),
            "head_distance": torch.ones(2),
            "emotion": torch.zeros(2, 5),
            "frame_mask": torch.ones(2, 5, dtype=torch.bool),
        }
        cases = [(name, {**good, name: value}) for name, value in bad.items()]
        return [*cases, ("drop", {**good, "drop": {"sound": torch.ones(2, dtype=torch.bool)}})]

    def test_every_condition_changes_the_output_and_none_equals_dropped(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        full = self.run(model, inputs)
        everyone = torch.ones(2, dtype=torch.bool)
        groups = {name: (name,) for name in ("audio", "gaze", "head_distance", "emotion")}
        for name, keys in {**groups, "previous": ("previous_motion", "previous_audio")}.items():
            absent = self.run(model, {key: value for key, value in inputs.items() if key not in keys})
            dropped = self.run(model, {**inputs, "drop": {name: everyone}})
            assert torch.equal(absent, dropped)
            assert (absent - full).abs().max() > 1e-4
            half = self.run(model, {**inputs, "drop": {name: torch.tensor([False, True])}})
            torch.testing.assert_close(half[0], full[0])
            torch.testing.assert_close(half[1], absent[1])

    def test_gradient_reaches_the_null_tokens(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        self.run(model, {"sample": inputs["sample"], "timestep": 5}).square().sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in model.null.parameters())

    def test_frames_outside_the_mask_do_not_matter(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        changed = {**inputs, "sample": inputs["sample"].clone(), "audio": inputs["audio"].clone()}
        changed["sample"][1, 4:], changed["audio"][1, 4:] = 9.0, -9.0
        first, second = self.run(model, inputs), self.run(model, changed)
        torch.testing.assert_close(first[1, :4], second[1, :4])
        torch.testing.assert_close(first[0], second[0])

    def test_a_short_window_equals_a_masked_one(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        short = {**inputs, "frame_mask": None}
        short |= {name: inputs[name][:, :4] for name in ("sample", "audio")}
        torch.testing.assert_close(self.run(model, short)[1], self.run(model, inputs)[1, :4])

    def test_batch_equals_single(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        both = self.run(model, inputs)
        for i in range(2):
            single = self.run(model, {name: value[i : i + 1] for name, value in inputs.items()})
            torch.testing.assert_close(single[0], both[i], rtol=1e-4, atol=1e-5)

    def test_keyframed_controls_are_averaged(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        for name in ("gaze", "head_distance", "emotion"):
            drift = torch.linspace(-0.1, 0.1, 6)[None, :, None]
            framed = {**inputs, name: inputs[name][:, None] + drift}
            torch.testing.assert_close(self.run(model, framed), self.run(model, inputs), rtol=1e-4, atol=1e-5)

    def test_dict_equals_tuple(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        assert torch.equal(model(**inputs).sample, model(**inputs, return_dict=False)[0])

    def test_normalize_round_trip_and_saved(self, tmp_path):
        model = self.make_model()
        model.motion_mean.copy_(torch.randn(11))
        model.motion_std.copy_(torch.rand(11) + 0.5)
        motion = torch.randn(2, 6, 11)
        torch.testing.assert_close(model.denormalize(model.normalize(motion)), motion)
        model.save_pretrained(tmp_path)
        again = Vasa1MotionTransformer.from_pretrained(tmp_path)
        assert torch.equal(again.motion_std, model.motion_std)
        assert again.motion_spec.slices == model.motion_spec.slices
        assert list(again.motion_spec.slices) == ["rotation", "translation", "scale", "lips", "gaze"]
        with pytest.raises(ValueError, match="`motion`"):
            model.normalize(torch.randn(2, 6, 10))

    @pytest.mark.parametrize("scheduler_class", [DDIMScheduler, DPMSolverMultistepScheduler])
    def test_schedulers_recover_a_known_clean_motion(self, scheduler_class):
        """With a perfect prediction every sampler must end at it: checks our settings of the schedule."""
        from vasa_hf.training.recipes.motion_transformer import make_scheduler

        scheduler = scheduler_class.from_config(make_scheduler().config)
        clean, sample = torch.randn(1, 6, 11), torch.randn(1, 6, 11)
        scheduler.set_timesteps(10)
        for timestep in scheduler.timesteps:
            sample = scheduler.step(clean, timestep, sample).prev_sample
        torch.testing.assert_close(sample, clean, rtol=0, atol=0.02)


def test_paper_size_is_about_29_million_parameters():
    with torch.device("meta"):
        model = Vasa1MotionTransformer()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert (model.config.num_layers, model.config.hidden_size, model.config.num_heads) == (8, 512, 8)
    # §4 says "about 29M"; widths of z_dyn and audio features are not given there.
    assert abs(count - 29e6) < 1e6


def test_dynamics_must_fit_the_motion():
    with pytest.raises(ValueError, match="`dynamics`"):
        Vasa1MotionTransformer(motion_dim=11, hidden_size=16, num_layers=1, num_heads=2, dynamics={"lips": 3})


def test_rotary_products_depend_on_distance_alone():
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(i, j):
        turned = [apply_rotary(x, *rotary_angles(torch.tensor([p]), 8, 100.0)) for x, p in ((query, i), (key, j))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(3, -2), product(8, 3))
    assert (product(3, -2) - product(3, -1)).abs() > 1e-3

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from tests.testing_utils.models import ModelTesterMixin
from vasa_hf.models.motion_denoiser_joyvasa import JoyVasaMotionDenoiser, joyvasa_scheduler


class TestJoyVasaMotionDenoiser(ModelTesterMixin):
    model_class = JoyVasaMotionDenoiser
    # `make_inputs` gives every condition and features that are projected already.
    unreached = ("null_audio_feat", "start_", "audio_feature_map")

    def make_config(self):
        sizes = {"motion_dim": 12, "audio_dim": 7, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
        return {**sizes, "window": 6, "context": 2}

    def make_inputs(self, model):
        torch.manual_seed(1)
        return {
            "sample": torch.randn(2, 6, 12),
            "timestep": torch.tensor([3, 40]),
            "audio": torch.randn(2, 6, 16),
            "previous_motion": torch.randn(2, 2, 12),
            "previous_audio": torch.randn(2, 2, 16),
        }

    def bad_inputs(self, model):
        good = self.make_inputs(model)
        bad = {
            "sample": torch.zeros(2, 5, 12),
            "audio": torch.zeros(2, 6, 7),
            "previous_motion": torch.zeros(2, 3, 12),
            "previous_audio": torch.zeros(1, 2, 16),
            "drop": {"sound": torch.ones(2, dtype=torch.bool)},
        }
        return [(name, {**good, name: value}) for name, value in bad.items()]

    def test_gradient_reaches_what_stands_for_absent_conditions(self):
        model = self.make_model()
        sample, features = torch.randn(2, 6, 12), torch.randn(2, 6, 7)
        drop = {"audio": torch.tensor([True, False])}
        model(sample, 5, model.project_audio(features), drop=drop).sample.square().sum().backward()
        parts = [parameter for name, parameter in model.named_parameters() if name.startswith(self.unreached)]
        assert len(parts) == 5 and all(parameter.grad.abs().sum() > 0 for parameter in parts)

    def test_dropped_audio_is_absent_audio_and_the_past_stays(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        full = self.run(model, inputs)
        absent = self.run(model, {**inputs, "audio": None})
        half = self.run(model, {**inputs, "drop": {"audio": torch.tensor([False, True])}})
        torch.testing.assert_close(half[0], full[0])
        torch.testing.assert_close(half[1], absent[1])
        assert (absent - full).abs().max() > 1e-4
        other_past = {**inputs, "audio": None, "previous_audio": -inputs["previous_audio"]}
        assert (self.run(model, other_past) - absent).abs().max() > 1e-4

    def test_a_frame_attends_to_its_own_audio_alone(self):
        """Without self-attention's mixing, audio of another frame must change nothing."""
        model = self.make_model()
        for layer in model.layers:
            torch.nn.init.zeros_(layer.self_attn.out_proj.weight)
        inputs = self.make_inputs(model)
        changed = {**inputs, "audio": inputs["audio"].clone()}
        changed["audio"][:, 3] += 1.0
        difference = (self.run(model, changed) - self.run(model, inputs)).abs().amax((0, 2))
        assert difference[3] > 1e-4 and difference[[0, 1, 2, 4, 5]].max() == 0

    def test_places_matter_only_where_each_frame_has_its_own(self):
        """With one row for all, frames that are swapped along with their audio give the same output, swapped."""
        order = torch.tensor([2, 0, 1, 5, 4, 3])
        for encoding, equal in (("single_row", True), ("per_frame", False)):
            torch.manual_seed(0)
            model = JoyVasaMotionDenoiser(**self.make_config(), positional_encoding=encoding).eval()
            inputs = self.make_inputs(model)
            swapped = {**inputs, "sample": inputs["sample"][:, order], "audio": inputs["audio"][:, order]}
            difference = (self.run(model, swapped) - self.run(model, inputs)[:, order]).abs().max()
            assert (difference < 1e-5) == equal

    def test_batch_equals_single(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        both = self.run(model, inputs)
        for i in range(2):
            single = self.run(model, {name: value[i : i + 1] for name, value in inputs.items()})
            torch.testing.assert_close(single[0], both[i], rtol=1e-4, atol=1e-5)

    def test_normalize_round_trip_and_saved(self, tmp_path):
        model = self.make_model()
        for name in ("expression_mean", "expression_std", "pose_min", "pose_max"):
            getattr(model, name).copy_(torch.rand_like(getattr(model, name)) + ("max" in name))
        model.save_pretrained(tmp_path)
        again = JoyVasaMotionDenoiser.from_pretrained(tmp_path)
        motion = torch.randn(2, 6, 12)
        torch.testing.assert_close(again.denormalize(model.normalize(motion)), motion)
        with pytest.raises(ValueError, match="`motion`"):
            model.normalize(torch.randn(2, 6, 11))

    def test_config_is_checked(self):
        for name, value in {"positional_encoding": "none", "pad_mode": "mirror", "hidden_size": 18}.items():
            with pytest.raises(ValueError, match=f"`{name}`"):
                JoyVasaMotionDenoiser(**{**self.make_config(), name: value})


def test_official_size():
    """8,824,476 parameters less queries and keys of the cross-attention, which cannot have an effect."""
    with torch.device("meta"):
        model = JoyVasaMotionDenoiser()
    queries_and_keys = 8 * (2 * 256 * 256 + 2 * 256)
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_824_476 - queries_and_keys


@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_other_schedulers_recover_a_known_clean_motion(scheduler_class):
    """With a perfect prediction every sampler must end at it, with fewer steps, too."""
    scheduler = scheduler_class.from_config(joyvasa_scheduler().config)
    clean, sample = torch.randn(1, 6, 12), torch.randn(1, 6, 12)
    scheduler.set_timesteps(10)
    for timestep in scheduler.timesteps:
        sample = scheduler.step(clean, timestep, sample).prev_sample
    torch.testing.assert_close(sample, clean, rtol=0, atol=0.1)

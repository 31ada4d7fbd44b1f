import hashlib

import pytest
import torch

from tests.testing_utils.models import ModelTesterMixin
from vasa_hf.models.motion_transformer_moda import FUSIONS, ModaMotionTransformer

PUBLISHED = "ef277a341ed3e101a06d80d0b61577e2fbc55cae93ef97bbad91760ffaed746b"
EVERYONE = torch.ones(2, dtype=torch.bool)


class ModaTester(ModelTesterMixin):
    model_class = ModaMotionTransformer
    fusion = "coarse_to_fine"
    unreached = ("null_audio",)  # `make_inputs` gives audio; the null is tested below

    def make_config(self):
        return {
            "motion_dim": 11,
            "keypoint_dim": 9,
            "hidden_size": 16,
            "num_heads": 2,
            "num_four_stream": 1,
            "num_two_stream": 1,
            "num_single_stream": 2,
            "audio_layers": 3,
            "audio_dim": 5,
            "window": 6,
            "overlap": 2,
            "fusion": self.fusion,
        }

    def make_inputs(self, model):
        torch.manual_seed(1)
        return {
            "sample": torch.randn(2, 6, 11),
            "timestep": torch.tensor([3, 800]),
            "audio": torch.randn(2, 6, 3, 5),
            "emotion": torch.tensor([2, 8]),
            "keypoints": torch.randn(2, 9),
            "previous_motion": torch.randn(2, 11),
            "frame_mask": torch.tensor([[True] * 6, [True] * 4 + [False] * 2]),
        }

    def bad_inputs(self, model):
        good = self.make_inputs(model)
        bad = {
            "sample": torch.zeros(2, 6, 10),
            "audio": torch.zeros(2, 6, 1, 3, 5),
            "emotion": torch.zeros(2),
            "keypoints": torch.zeros(2, 3, 3),
            "previous_motion": None,
            "frame_mask": torch.ones(2, 5, dtype=torch.bool),
            "drop": {"identity": EVERYONE},
        }
        return [(name, {**good, name: value}) for name, value in bad.items()]

    def test_frames_outside_the_mask_do_not_matter(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        changed = {**inputs, "sample": inputs["sample"].clone(), "audio": inputs["audio"].clone()}
        changed["sample"][1, 4:], changed["audio"][1, 4:] = 9.0, -9.0
        short = {**inputs, "sample": inputs["sample"][:, :4], "audio": inputs["audio"][:, :4], "frame_mask": None}
        first = self.run(model, inputs)
        torch.testing.assert_close(first[1, :4], self.run(model, changed)[1, :4])
        torch.testing.assert_close(first[1, :4], self.run(model, short)[1], rtol=1e-4, atol=1e-5)

    def test_every_input_changes_the_output_and_none_equals_dropped(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        full = self.run(model, inputs)
        for name in ("audio", "emotion"):
            absent = self.run(model, {**inputs, name: None})
            assert torch.equal(absent, self.run(model, {**inputs, "drop": {name: EVERYONE}}))
            assert (absent - full)[0].abs().max() > 1e-4
            half = self.run(model, {**inputs, "drop": {name: torch.tensor([True, False])}})
            torch.testing.assert_close(half[1], full[1])
            torch.testing.assert_close(half[0], absent[0])
        for name in ("keypoints", "previous_motion", "timestep"):
            other = self.run(model, {**inputs, name: inputs[name] + 1})
            assert (other - full).abs().max() > 1e-4

    def test_gradient_reaches_the_null_audio(self):
        model = self.make_model()
        self.run(model, {**self.make_inputs(model), "audio": None}).square().sum().backward()
        assert model.null_audio.grad.abs().sum() > 0

    def test_batch_equals_single(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        both = self.run(model, inputs)
        for i in range(2):
            single = self.run(model, {name: value[i : i + 1] for name, value in inputs.items()})
            torch.testing.assert_close(single[0], both[i], rtol=1e-4, atol=1e-5)


class TestModaMotionTransformer(ModaTester):
    def test_dict_equals_tuple(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        assert torch.equal(model(**inputs).sample, model(**inputs, return_dict=False)[0])

    def test_one_value_a_frame(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        drift = torch.linspace(-1, 1, 6)[None, :, None]
        framed = {
            **inputs,
            "keypoints": inputs["keypoints"][:, None] + drift,
            "previous_motion": inputs["previous_motion"][:, None].expand(-1, 6, -1),
        }
        torch.testing.assert_close(self.run(model, framed), self.run(model, inputs), rtol=1e-4, atol=1e-5)

    def test_an_untrained_model_predicts_no_velocity(self):
        """The last layer starts at zero."""
        model = ModaMotionTransformer(**self.make_config())
        assert not self.run(model, self.make_inputs(model)).any()


@pytest.mark.parametrize("deviation", [0.3, 1.0])
def test_the_skip_is_the_best_linear_estimate_of_the_velocity(deviation):
    tester = TestModaMotionTransformer()
    model = ModaMotionTransformer(**tester.make_config(), skip_deviation=deviation).eval()
    inputs = tester.make_inputs(model)
    inputs["timestep"] = torch.tensor([100, 700])
    estimate = tester.run(model, inputs)  # the network itself starts at zero
    clean, noise = deviation * torch.randn(200_000), torch.randn(200_000)
    for i, t in enumerate((0.1, 0.7)):
        z, v = (1 - t) * clean + t * noise, noise - clean
        gain = (v * z).mean() / (z * z).mean()
        torch.testing.assert_close(estimate[i], gain * inputs["sample"][i], rtol=0.05, atol=0.02)


class AblationTester(ModaTester):
    test_save_and_load_in_a_fresh_process = None  # the same code as in the full model, and slow


class TestFourStream(AblationTester):
    fusion = "four_stream"
    # What the last block makes of the conditions is not used.
    unreached = (
        *ModaTester.unreached,
        *(f"blocks4.3.{part}" for part in ("audio_mlp", "attn1.au_proj", "attn1.au_q_norm")),
    )


class TestMotionAuxiliary(AblationTester):
    fusion = "motion_auxiliary"


class TestCrossAttention(AblationTester):
    fusion = "cross_attention"


def test_rotary_positions_on_conditions_tell_emotion_tokens_apart():
    results = []
    for rotary_conditions in (False, True):
        tester = TestModaMotionTransformer()
        torch.manual_seed(0)
        config = {**tester.make_config(), "rotary_conditions": rotary_conditions}
        model = ModaMotionTransformer(**config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.2 * torch.randn_like(parameter))
            results.append(tester.run(model, tester.make_inputs(model)))
    assert (results[0] - results[1]).abs().max() > 1e-4


# MoDA §4.3.2: 370M parameters, 904M without coarse-to-fine fusion; the first is that of the published checkpoint.
@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        ("coarse_to_fine", 372_983_878),
        ("four_stream", 904_421_446),
        ("motion_auxiliary", 372_983_878),
        ("cross_attention", 284_439_622),
    ],
)
def test_parameter_counts(fusion, expected):
    with torch.device("meta"):
        model = ModaMotionTransformer(fusion=fusion)
    assert sum(parameter.numel() for parameter in model.parameters()) - model.null_audio.numel() == expected


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("fusion", {"fusion": "late"}),
        ("num_heads", {"hidden_size": 20, "num_heads": 3}),
        ("overlap", {"window": 6, "overlap": 6}),
        ("skip_deviation", {"skip_deviation": 0.0}),
    ],
)
def test_bad_configs_raise(name, config):
    with pytest.raises(ValueError, match=f"`{name}`"):
        ModaMotionTransformer(**config)


def test_every_fusion_is_tested():
    tested = {ModaTester.fusion, *(tester.fusion for tester in AblationTester.__subclasses__())}
    assert tested == set(FUSIONS)


def test_names_and_shapes_are_those_of_the_published_checkpoint():
    """Its 408 keys, as a digest: a renamed module would make official weights unloadable."""
    with torch.device("meta"):
        state = ModaMotionTransformer().state_dict()
    ours = {"null_audio", "motion_mean", "motion_std"}
    lines = sorted(f"{name} {list(value.shape)}" for name, value in state.items() if name not in ours)
    assert len(lines) == 408
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == PUBLISHED


def test_normalize_round_trip_where_a_channel_never_varies():
    model = TestModaMotionTransformer().make_model()
    model.motion_mean.copy_(torch.randn(11))
    model.motion_std.copy_(torch.rand(11))
    model.motion_std[3] = 0.0  # t_z of the published statistics
    motion = torch.randn(2, 6, 11)
    motion[..., 3] = model.motion_mean[3]
    assert model.normalize(motion).abs().max() < 1e3
    torch.testing.assert_close(model.denormalize(model.normalize(motion)), motion)
    with pytest.raises(ValueError, match="`motion`"):
        model.normalize(torch.randn(2, 6, 10))

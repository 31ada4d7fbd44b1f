import json

import numpy as np
import pytest
import torch

from tests.testing_utils.moda_vectors import MODA, as_tensors, moda_small, needs_vectors
from tests.testing_utils.models import ModelTesterMixin
from vasa_hf.models import motion_transformer_moda
from vasa_hf.models.motion_transformer_moda import FUSIONS, ModaMotionTransformer

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


class TestFourStream(ModaTester):
    fusion = "four_stream"
    # What the last block makes of the conditions is read by nobody.
    unreached = (
        *ModaTester.unreached,
        *(f"blocks4.3.{part}" for part in ("audio_mlp", "attn1.au_proj", "attn1.au_q_norm")),
    )


class TestMotionAuxiliary(ModaTester):
    fusion = "motion_auxiliary"


class TestCrossAttention(ModaTester):
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
    ],
)
def test_bad_configs_raise(name, config):
    with pytest.raises(ValueError, match=f"`{name}`"):
        ModaMotionTransformer(**config)


def test_every_fusion_is_tested():
    tested = {ModaTester.fusion, *(tester.fusion for tester in ModaTester.__subclasses__())}
    assert tested == set(FUSIONS)


@needs_vectors
def test_keys_are_those_of_the_published_checkpoint():
    with torch.device("meta"):
        ours = {name: list(value.shape) for name, value in ModaMotionTransformer().state_dict().items()}
    keys = json.loads((MODA / "keys_motion_diffusion.json").read_text())["keys"]
    prefix = "talking_head_dit."
    theirs = {key["name"].removeprefix(prefix): key["shape"] for key in keys if key["name"].startswith(prefix)}
    for name in ("null_audio", "motion_mean", "motion_std"):
        del ours[name]
    assert ours == theirs


@needs_vectors
@pytest.mark.parametrize("name", ["dit_small_io", "dit_small_len13_io"])
def test_network_equals_the_reference(name, monkeypatch):
    """The machine that made these vectors rounded one of the 128 time frequencies up, by one unit in the last place.

    At t = 1000, and with the weights of this small model, that alone is 2.0e-5 of the output.
    """
    frequencies = motion_transformer_moda._time_frequencies(torch.device("cpu"))
    frequencies[13] = torch.nextafter(frequencies[13], torch.tensor(1.0))
    vectors, model = as_tensors(f"{name}.npz"), moda_small()
    inputs = {
        "sample": vectors["motion"][..., 70:],
        "timestep": vectors["times"],
        "audio": vectors["audio"][:, :, 0],
        "emotion": vectors["emo"],
        "keypoints": vectors["audio_cond"],
        "previous_motion": vectors["motion"][..., :70],
    }
    with torch.no_grad():
        plain = model(**inputs).sample
        monkeypatch.setattr(motion_transformer_moda, "_time_frequencies", lambda device: frequencies)
        output = model(**inputs).sample
    assert (plain - vectors["out"]).abs().max() < 4e-5
    assert (output - vectors["out"]).abs().max() < 2e-5


@needs_vectors
def test_blocks_equal_the_reference():
    vectors, expected, model = (
        as_tensors("dit_small_io.npz"),
        as_tensors("dit_small_intermediates_b0.npz"),
        moda_small(),
    )
    found = {}

    def keep(name, parts=()):
        def hook(module, inputs, output):
            outputs = zip((f"{name}_{part}" for part in parts), output, strict=True) if parts else [(name, output)]
            found.update((key, value[:1]) for key, value in outputs)

        return hook

    model.motion_embedder.register_forward_hook(keep("motion_embed"))
    model.time_embedder.register_forward_hook(keep("time_embed"))
    model.identity_embedder.register_forward_hook(keep("identity_embed"))
    model.audio_embedder.register_forward_hook(keep("audio_embed"))
    for i in (0, 2):
        model.blocks4[i].register_forward_hook(keep(f"block4_{i}", ("motion", "audio", "emo", "identity")))
    for i in (0, 5):
        model.blocks2[i].register_forward_hook(keep(f"block2_{i}", ("motion", "cond")))
    for i in (0, 11):
        model.blocks[i].register_forward_hook(keep(f"block1_{i}"))
    with torch.no_grad():
        model(
            vectors["motion"][..., 70:],
            vectors["times"],
            vectors["audio"][:, :, 0],
            vectors["emo"],
            vectors["audio_cond"],
            vectors["motion"][..., :70],
        )
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert (found[name] - value.reshape(found[name].shape)).abs().max() < 3e-5, name


@needs_vectors
def test_normalisation_equals_the_reference():
    vectors = as_tensors("normalisation_mean_std.npz")
    model = moda_small()
    model.motion_mean.copy_(vectors["mean"][0])
    model.motion_std.copy_(vectors["std"][0])
    raw = vectors["raw_motion"].clone()
    raw[:, 63:67] /= vectors["rescale_ratio"]  # the pipeline's part: everybody has the mean scale here
    np.testing.assert_allclose(model.normalize(raw), vectors["normalised"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(model.denormalize(model.normalize(raw)), raw, rtol=0, atol=1e-6)

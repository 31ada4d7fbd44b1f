import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from tests.testing_utils.models import ModelTesterMixin
from vasa_hf.models.motion_denoiser_gaia import (
    BETA_MAX,
    BETA_MIN,
    PAPER_CONFIGS,
    SMALL_CONFIG,
    GaiaMotionDenoiser,
    gaia_scheduler,
    vp_marginal,
)

TINY = {
    "motion_dim": 12,
    "motion_channels": 3,
    "audio_dim": 7,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_dim": 24,
    "conv_kernel": 3,
    "pose_channels": 8,
    "window": 8,
    "context": 3,
}


class TestGaiaMotionDenoiser(ModelTesterMixin):
    model_class = GaiaMotionDenoiser
    # `make_inputs` gives speech and the true pose, as in training.
    unreached = ("null_speech", "pose_predictor")

    def make_config(self):
        return dict(TINY)

    def make_inputs(self, model):
        torch.manual_seed(1)
        return {
            "sample": torch.randn(2, 9, 12),
            "timestep": torch.tensor([3.5, 900.0]),
            "audio": torch.randn(2, 9, 7),
            "reference": torch.randn(2, 12),
            "pose": torch.randn(2, 9, 3),
        }

    def bad_inputs(self, model):
        good = self.make_inputs(model)
        bad = {
            "sample": torch.zeros(2, 9, 11),
            "audio": torch.zeros(2, 8, 7),
            "reference": torch.zeros(1, 12),
            "pose": torch.zeros(2, 9, 2),
            "frame_mask": torch.ones(2, 8, dtype=torch.bool),
            "drop": {"sound": torch.ones(2, dtype=torch.bool)},
        }
        return [(name, {**good, name: value}) for name, value in bad.items()]

    def test_every_condition_changes_the_prediction(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        out = self.run(model, inputs)
        for name in ("audio", "reference", "pose", "timestep", "sample"):
            assert (self.run(model, {**inputs, name: -inputs[name]}) - out).abs().max() > 1e-4, name

    def test_masked_frames_do_not_matter(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        mask = torch.arange(9).expand(2, -1) < 6
        out = model(**inputs, frame_mask=mask)
        changed = {name: value.clone() for name, value in inputs.items()}
        for name in ("sample", "audio", "pose"):
            changed[name][:, 6:] = 5.0
        other = model(**changed, frame_mask=mask)
        torch.testing.assert_close(out.sample[:, :6], other.sample[:, :6])
        torch.testing.assert_close(out.pose[:, :6], other.pose[:, :6])
        short = model(**{n: v[:, :6] if v.ndim == 3 else v for n, v in inputs.items()})
        torch.testing.assert_close(out.sample[:, :6], short.sample, rtol=1e-4, atol=1e-5)

    def test_batch_equals_single(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        both = self.run(model, inputs)
        for i in range(2):
            single = self.run(model, {name: value[i : i + 1] for name, value in inputs.items()})
            torch.testing.assert_close(single[0], both[i], rtol=1e-4, atol=1e-5)

    def test_dropped_speech_is_absent_speech(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        full, absent = self.run(model, inputs), self.run(model, {**inputs, "audio": None})
        half = self.run(model, {**inputs, "drop": {"audio": torch.tensor([False, True])}})
        torch.testing.assert_close(half[0], full[0])
        torch.testing.assert_close(half[1], absent[1])

    def test_predicted_pose_stands_for_an_absent_one(self):
        model = self.make_model()
        model.pose_std.fill_(0.2)
        inputs = self.make_inputs(model)
        absent = {**inputs, "pose": None}
        predicted = model.predict_pose(inputs["audio"])
        out = model(**absent)
        assert torch.equal(out.pose, predicted)
        assert torch.equal(model(**{**inputs, "pose": predicted}).sample, out.sample)
        out.pose.square().sum().backward()
        missing = [name for name, p in model.pose_predictor.named_parameters() if not p.grad.abs().sum() > 0]
        assert not missing

    def test_normalize_round_trip_and_saved(self, tmp_path):
        for residual in (False, True):
            torch.manual_seed(0)
            model = GaiaMotionDenoiser(**TINY, residual=residual)
            model.motion_mean.normal_()
            model.motion_std.uniform_(0.5, 2)
            model.save_pretrained(tmp_path)
            again = GaiaMotionDenoiser.from_pretrained(tmp_path)
            motion, reference = torch.randn(2, 9, 12), torch.randn(2, 12)
            sample = model.normalize(motion, reference)
            torch.testing.assert_close(again.denormalize(sample, reference), motion)
            moved = model.normalize(motion + 1, reference + 1)
            assert torch.allclose(moved, sample, atol=1e-5) == residual

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("backbone", "lstm"),
            ("speech_condition", "none"),
            ("predicts", "pixels"),
            ("motion_channels", 5),
            ("hidden_size", 18),
            ("conv_kernel", 4),
            ("context", 9),
        ],
    )
    def test_config_is_checked(self, name, value):
        with pytest.raises(ValueError, match=f"`{name}`"):
            GaiaMotionDenoiser(**{**TINY, name: value})


class TestTransformer(TestGaiaMotionDenoiser):
    """The ablation of Table 9; also the other conditionings below."""

    def make_config(self):
        return {**TINY, "backbone": "transformer"}


class TestSpeechByAttention(TestGaiaMotionDenoiser):
    def make_config(self):
        return {**TINY, "speech_condition": "attention"}


class TestReferenceAdded(TestGaiaMotionDenoiser):
    def make_config(self):
        return {**TINY, "reference_condition": "add"}


def test_ablations_do_not_see_what_they_leave_out():
    mixin = TestGaiaMotionDenoiser()
    for change, names in (({"use_pose": False}, ["pose"]), ({"diffusion": False}, ["sample", "timestep"])):
        torch.manual_seed(0)
        model = GaiaMotionDenoiser(**TINY, **change).eval()
        inputs = mixin.make_inputs(model)
        for name in names:
            assert torch.equal(model(**inputs).sample, model(**{**inputs, name: -inputs[name]}).sample)
        assert not torch.equal(model(**inputs).sample, model(**{**inputs, "audio": -inputs["audio"]}).sample)
    assert not GaiaMotionDenoiser(**TINY, use_pose=False).predict_pose(torch.randn(1, 4, 7)).any()


@pytest.mark.parametrize(("name", "millions"), [("180m", 180), ("600m", 600), ("1.2b", 1200)])
def test_paper_sizes(name, millions):
    with torch.device("meta"):
        model = GaiaMotionDenoiser(**PAPER_CONFIGS[name])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.05)


def test_small_size():
    with torch.device("meta"):
        model = GaiaMotionDenoiser(**SMALL_CONFIG)
    assert 2 * sum(p.numel() for p in model.parameters()) < 5e6  # bytes in float16


def test_marginal_is_that_of_the_forward_sde():
    """Euler-Maruyama steps of Eq. 5 from z_0 = 2; 40000 paths know a mean to 0.015."""
    torch.manual_seed(0)
    steps, z = 2000, torch.full((40_000,), 2.0)
    for step in range(steps):
        beta = BETA_MIN + (BETA_MAX - BETA_MIN) * (step + 0.5) / steps
        z = z - 0.5 * beta * z / steps + (beta / steps) ** 0.5 * torch.randn_like(z)
        if step + 1 in (100, 500, 1000, 2000):
            mean, deviation = vp_marginal(torch.tensor((step + 1) / steps))
            assert abs(z.mean() - 2 * mean) < 0.02 and abs(z.std() - deviation) < 0.02


def test_the_scheduler_has_exactly_these_marginals():
    scheduler = gaia_scheduler()
    mean, deviation = vp_marginal(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), mean**2, rtol=2e-3, atol=1e-6)
    noise, clean = torch.randn(1, 5), torch.randn(1, 5)
    scheduler.set_timesteps(10)
    for timestep in scheduler.timesteps:
        noisy = scheduler.add_noise(clean, noise, timestep[None])
        expected = mean[timestep] * clean + deviation[timestep] * noise
        torch.testing.assert_close(noisy, expected.float(), rtol=1e-3, atol=1e-3)


def sample_gaussian(scheduler, steps, mean, deviation, count):
    """Reverse diffusion with the exact E[z_0 | z_t] of z_0 ~ N(mean, deviation^2); returns noise and samples."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count, 1, 1, generator=generator)
    scheduler.set_timesteps(steps)
    z = noise
    for timestep in scheduler.timesteps:
        alpha, sigma = vp_marginal((timestep + 1) / 1000)
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        z = scheduler.step(mean + gain * (z - alpha * mean), timestep, z, generator=generator).prev_sample
    return noise, z


@pytest.mark.parametrize(
    ("kind", "other", "steps"),
    [("ode", None, 50), ("sde", None, 50), ("ode", DDIMScheduler, 100), ("sde", DDPMScheduler, 200)],
)
def test_samplers_find_a_known_gaussian(kind, other, steps):
    scheduler = gaia_scheduler(kind)
    scheduler = other.from_config(scheduler.config, clip_sample=False) if other else scheduler
    mean, deviation = 1.5, 0.4
    noise, samples = sample_gaussian(scheduler, steps, mean, deviation, 20_000)
    # Two percent of the deviation is the samples' own error; steps have one of theirs.
    assert abs(samples.mean() - mean) < 0.03 and abs(samples.std() - deviation) < 0.03
    alpha, sigma = vp_marginal(torch.tensor(1.0))
    path = mean + deviation * (noise - alpha * mean) / (alpha**2 * deviation**2 + sigma**2).sqrt()  # of Eq. 9
    follows = (samples - path).abs().mean() < 0.03
    assert follows == (kind == "ode")


def test_unknown_sampler_says_so():
    with pytest.raises(ValueError, match="`sampler`"):
        gaia_scheduler("euler")

import pytest
import torch

from tests.testing_utils.models import ModelTesterMixin
from vasa_hf.hub import embedded_path
from vasa_hf.models.sync_expert import SyncExpert, mel_filters
from vasa_hf.training.recipes.sync_expert import contrastive_loss

TINY = {"motion_dim": 9, "lips": (6, 9), "num_mels": 8, "hidden_size": 12, "embed_dim": 6, "window": 5}
FOLDER = embedded_path("vasa-small") / "sync_expert"


class TestSyncExpert(ModelTesterMixin):
    model_class = SyncExpert

    def make_config(self):
        return dict(TINY)

    def make_inputs(self, model):
        return {"motion": torch.randn(2, 11, 9), "samples": 0.1 * torch.randn(2, 11 * 640)}

    def bad_inputs(self, model):
        good = self.make_inputs(model)
        mel = torch.zeros(2, 44, 8)
        return [
            ("motion", {**good, "motion": torch.zeros(2, 11, 8)}),
            ("motion", {**good, "motion": torch.zeros(2, 4, 9)}),
            ("motion", {**good, "motion": torch.zeros(11, 9)}),
            ("samples", {**good, "samples": torch.zeros(2, 11 * 640 + 1)}),
            ("samples", {**good, "samples": torch.zeros(2, 12 * 640)}),
            ("samples", {**good, "samples": torch.zeros(11 * 640)}),
            ("samples", {**good, "log_mel": mel}),
            ("samples", {"motion": good["motion"]}),
            ("log_mel", {"motion": good["motion"], "log_mel": mel[:, :-1]}),
            ("log_mel", {"motion": good["motion"], "log_mel": mel[..., :-1]}),
            ("log_mel", {"motion": good["motion"], "log_mel": mel[:, :40]}),
        ]

    def test_gradient_reaches_every_parameter(self):
        model = self.make_model().train()
        loss, _ = contrastive_loss(*model(**self.make_inputs(model), return_dict=False), model.log_scale.exp())
        loss.backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]

    def test_bad_configuration_raises(self):
        for name, value in (("lips", (3, 3)), ("lips", (6, 10)), ("window", 4), ("window", 3)):
            with pytest.raises(ValueError, match=f"`{name}`"):
                SyncExpert(**{**TINY, name: value})

    def test_a_window_sees_its_own_frames_and_nothing_else(self):
        """Vector `i` depends on frames i to i + window - 1: neither more nor fewer, in both streams."""
        model = self.make_model()
        inputs = self.make_inputs(model)
        before = model(**inputs)
        for frame in range(11):
            changed = {name: value.clone() for name, value in inputs.items()}
            changed["motion"][:, frame] += 1.0
            # The middle of the frame, so that the spectrogram's overlapping windows stay inside it.
            changed["samples"][:, frame * 640 + 300 : frame * 640 + 340] += 1.0
            after = model(**changed)
            for old, new in zip(before.to_tuple(), after.to_tuple(), strict=True):
                moved = (old - new).abs().amax((0, 2)) > 1e-5
                assert moved.tolist() == [start <= frame < start + 5 for start in range(7)], frame

    def test_vectors_have_unit_length_and_spectrogram_equals_audio(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        output = model(**inputs)
        assert output.motion_embeds.shape == output.audio_embeds.shape == (2, 7, 6)
        torch.testing.assert_close(output.audio_embeds.norm(dim=-1), torch.ones(2, 7))
        again = model(inputs["motion"], log_mel=model.log_mel(inputs["samples"]))
        torch.testing.assert_close(again.audio_embeds, output.audio_embeds)

    def test_only_the_lips_are_looked_at(self):
        model = self.make_model()
        motion = torch.randn(1, 8, 9)
        other = motion.clone()
        other[..., :6] = 5.0
        assert torch.equal(model.encode_motion(motion), model.encode_motion(other))


def test_spectrogram_of_a_tone():
    """Twice the amplitude is log 4 more power in the tone's band, and that band is the loudest."""
    model = SyncExpert(num_mels=40)
    time = torch.arange(10 * 640) / 16_000
    quiet, loud = (model.log_mel(a * torch.sin(2 * torch.pi * 1000 * time)[None])[0, 4:-4] for a in (0.1, 0.2))
    assert quiet.shape == (32, 40)
    band = quiet.mean(0).argmax()
    assert abs(float(mel_filters(40)[band].argmax()) * 16_000 / 512 - 1000) < 60
    torch.testing.assert_close((loud - quiet)[:, band], torch.full((32,), 4.0).log(), atol=1e-3, rtol=0)
    # Neighbouring bands share every frequency between their centres, so that no frequency is lost.
    total = mel_filters(40).sum(0)[4:220]
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the embedded weights")
def test_embedded_weights_are_small_and_load():
    model = SyncExpert.from_pretrained(FOLDER)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 2 * 2**20
    assert model.config.window * 40 <= 400  # milliseconds: 0.2 to 0.4 s
    assert model.motion_std.float().std() > 0 and model.mel_std.float().std() > 0

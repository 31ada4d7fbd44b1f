import pytest
import torch

from tests.testing_utils.models import ModelTesterMixin
from vasa_hf.hub import embedded_path
from vasa_hf.models.capp import PRESETS, Capp
from vasa_hf.training.recipes.capp import clip_loss

TINY = {"audio_dim": 5, "hidden_size": 8, "num_heads": 2, "pose_layers": 2, "audio_layers": 1, "frame_dim": 3}
TINY["window"] = 7
FOLDER = embedded_path("vasa-small") / "capp"


class TestCapp(ModelTesterMixin):
    model_class = Capp

    def make_config(self):
        return dict(TINY)

    def make_inputs(self, model):
        return {"pose": torch.randn(3, 7, 4), "audio": torch.randn(3, 7, 5)}

    def bad_inputs(self, model):
        good = self.make_inputs(model)
        return [
            ("pose", {**good, "pose": torch.zeros(3, 6, 4)}),
            ("pose", {**good, "pose": torch.zeros(3, 7, 2)}),
            ("pose", {**good, "pose": torch.zeros(7, 3)}),
            ("audio", {**good, "audio": torch.zeros(3, 7, 6)}),
            ("audio", {**good, "audio": torch.zeros(3, 8, 5)}),
            ("audio", {**good, "audio": torch.zeros(7, 5)}),
        ]

    def test_gradient_reaches_every_parameter(self):
        model = self.make_model().train()
        loss, _ = clip_loss(*model(**self.make_inputs(model), return_dict=False), model.log_scale.exp())
        loss.backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]

    def test_where_the_head_points_on_the_whole_does_not_matter(self):
        model = self.make_model()
        pose = torch.randn(2, 7, 3)
        moved = torch.cat([pose + torch.tensor([0.3, -0.2, 0.1]), torch.randn(2, 7, 31)], -1)
        torch.testing.assert_close(model.encode_pose(pose), model.encode_pose(moved), atol=1e-5, rtol=1e-4)

    def test_order_in_time_matters(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        output = model(**inputs)
        turned = model(inputs["pose"].flip(1), inputs["audio"].flip(1))
        for a, b in zip(output.to_tuple(), turned.to_tuple(), strict=True):
            torch.testing.assert_close(a.norm(dim=-1), torch.ones(3))
            assert (a - b).abs().max() > 1e-3

    def test_short_window_raises(self):
        with pytest.raises(ValueError, match="`window`"):
            Capp(**{**TINY, "window": 3})


def test_paper_preset_has_the_papers_depth_and_window():
    with torch.device("meta"):
        model = Capp(**PRESETS["paper"])
    assert len(model.pose_encoder.blocks) == 6
    assert model.config.window == 75
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_626_625


@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the embedded weights")
def test_embedded_weights_are_small_and_load():
    model = Capp.from_pretrained(FOLDER)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 2 * 2**20
    assert len(model.pose_encoder.blocks) == 6

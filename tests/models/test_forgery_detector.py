import torch

from tests.testing_utils.models import ModelTesterMixin
from vasa_hf.models.forgery_detector import ForgeryDetector

TINY = {"image_size": 32, "frames": 3, "widths": (8, 16)}


class TestForgeryDetector(ModelTesterMixin):
    model_class = ForgeryDetector

    def make_config(self):
        return dict(TINY)

    def make_inputs(self, model):
        return {"frames": torch.rand(4, 3, 3, 32, 32) * 2 - 1}

    def bad_inputs(self, model):
        return [("frames", {"frames": torch.zeros(shape)}) for shape in ((2, 3, 32, 32), (1, 2, 3, 32, 32))]

    def test_other_sizes_and_many_windows(self):
        model = self.make_model()
        windows = torch.rand(5, 3, 3, 48, 48) * 2 - 1
        probability = model.judge(windows, batch_size=2)
        assert probability == torch.sigmoid(model(windows).logits.mean()).item()

    def test_size(self):
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in ForgeryDetector().parameters())
        assert 2 * count < 3 * 2**20  # embedded in 16 bits: at most 3 MB

import pytest
import torch

from tests.testing_utils.models import ModelTesterMixin
from vasa_hf.models.syncnet import SyncNet

TINY = {"audio_widths": (2, 3, 4, 3, 3, 6), "face_widths": (2, 3, 3, 3, 3, 5), "embed_dim": 8}


class TestSyncNet(ModelTesterMixin):
    model_class = SyncNet

    def make_config(self):
        return dict(TINY)

    def make_inputs(self, model):
        return {"faces": torch.rand(2, 3, 5, 224, 224) * 2 - 1, "mfcc": 10 * torch.randn(2, 1, 13, 20)}

    def bad_inputs(self, model):
        good = self.make_inputs(model)
        return [
            ("faces", {**good, "faces": torch.zeros(1, 3, 5, 112, 112)}),
            ("faces", {**good, "faces": torch.zeros(3, 5, 224, 224)}),
            ("mfcc", {**good, "mfcc": torch.zeros(1, 1, 20, 13)}),
            ("mfcc", {**good, "mfcc": torch.zeros(1, 13, 20)}),
        ]

    def test_gradient_reaches_every_parameter(self):
        model = self.make_model().train()
        sum(
            (vectors * torch.randn_like(vectors)).sum() for vectors in model(**self.make_inputs(model)).to_tuple()
        ).backward()
        # Constants before a batch norm cancel out: those biases get rounding noise at most.
        missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not [name for name in missing if not name.endswith("bias")]

    def test_red_and_blue_are_distinguished_in_the_weights_order(self):
        """The first convolution must meet BGR from 0 to 255."""
        model = self.make_model()
        seen = []
        model.face_convs[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        faces = torch.full((1, 3, 5, 224, 224), -1.0)
        faces[:, 0] = 1.0  # red
        model.encode_faces(faces)
        assert seen[0][0, :, 0, 0, 0].tolist() == [0.0, 0.0, 255.0]


def test_public_size():
    with torch.device("meta"):
        model = SyncNet()
    assert sum(parameter.numel() for parameter in model.parameters()) == 13_631_616


def test_wrong_widths_raise():
    with pytest.raises(ValueError, match="`face_widths`"):
        SyncNet(face_widths=(1, 2, 3))

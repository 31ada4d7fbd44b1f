"""The system that CONTRIBUTING builds is a whole one: what holds for every pipeline holds for it."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from tests.testing_utils.pipelines import (
    BOX,
    PipelineTesterMixin,
    make_analyzer,
    make_audio,
    make_audio_encoder,
    make_image,
)
from vasa_hf import FaceImageProcessor, VasaAudioProcessor
from vasa_hf.training.recipes.motion_transformer import make_scheduler

GUIDE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"


@pytest.fixture(scope="class")
def example(request, tmp_path_factory):
    """The guide's code as a module."""
    (code,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) <= 200
    path = tmp_path_factory.mktemp("guide") / "nod_talking_head.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("nod_talking_head", path)
    module = sys.modules["nod_talking_head"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    request.cls.module, request.cls.pipeline_class = module, module.NodTalkingHeadPipeline
    yield module
    del sys.modules["nod_talking_head"]


@pytest.mark.usefixtures("example")
class TestNodTalkingHeadPipeline(PipelineTesterMixin):
    options = {"num_inference_steps": 3, "box": BOX}
    # A fresh process knows public names only; half precision and many samplers say something of trained models.
    test_save_and_load_in_a_fresh_process = test_half_precision_is_near_float32 = test_schedulers_can_be_swapped = None

    def make_components(self):
        torch.manual_seed(0)
        return {
            "face_analyzer": make_analyzer().eval(),
            "image_processor": FaceImageProcessor(size=32),
            "audio_encoder": make_audio_encoder().eval(),
            "audio_processor": VasaAudioProcessor(context_frames=2, lookahead_frames=1),
            "motion_model": self.module.NodMotionModel(audio_dim=16, window=10).eval(),
            "scheduler": make_scheduler(),
        }

    def test_the_head_moves_unless_it_is_told_not_to(self):
        pipe = self.make_pipeline()
        frames = self.call(pipe).frames
        assert (frames - frames[:1]).abs().max() > 0.05
        still = self.call(pipe, head_motion=0.0).frames
        assert torch.equal(still, still[:1].expand_as(still))
        with pytest.raises(ValueError, match="`gaze` is no option here: NodTalkingHeadPipeline knows"):
            pipe(make_image(), make_audio(0.5), gaze=(0, 0))

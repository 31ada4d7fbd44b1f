"""`vasa-hf bench serve` with a tiny model and the real analyzer, which finds the face of the example."""

import json

import pytest

from tests.testing_utils.pipelines import make_vasa1_components
from vasa_hf import FaceAnalyzer, FaceImageProcessor, VasaTalkingFacePipeline
from vasa_hf.cli import main
from vasa_hf.hub import embedded_path


@pytest.mark.e2e
@pytest.mark.skipif(not (embedded_path("vasa-small") / "face_analyzer").is_dir(), reason="needs the weights")
def test_two_sessions_are_measured(tmp_path, capsys):
    analyzer = FaceAnalyzer.from_pretrained(embedded_path("vasa-small") / "face_analyzer").float()
    parts = {"face_analyzer": analyzer, "image_processor": FaceImageProcessor(size=32)}
    VasaTalkingFacePipeline(**{**make_vasa1_components(), **parts}).save_pretrained(tmp_path / "model")
    command = ["bench", "serve", "--model", str(tmp_path / "model"), "--sessions", "2", "--seconds", "12"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)[0]
    assert result["sessions"] == 2 and 2 < result["fps"]["least"] <= result["fps"]["mean"] < 26
    assert 20 < result["first_frame_ms"]["p50"] <= result["first_frame_ms"]["p95"] < 10_000
    assert 0 <= result["dropped"] < 0.9
    assert main(["bench", "serve", "--avatar", "x"]) == 2 and "no effect" in capsys.readouterr().err

import json

import pytest
import torch

from tests.models.test_renderer_liveportrait import TINY, WIDE, fast_inputs
from vasa_hf import LivePortraitRenderer
from vasa_hf.bench import avatars, live, marks, runs, serve, talking
from vasa_hf.bench import renderer as bench_renderer
from vasa_hf.cli import main


@pytest.mark.parametrize("module", [avatars, live, marks, bench_renderer, serve, talking])
def test_each_bench_measures_and_formats(module):
    """`vasa-hf bench` calls both, the second after minutes."""
    assert callable(module.measure) and callable(module.format_results)


@pytest.mark.parametrize("config", [TINY, WIDE])
def test_the_plain_run_is_the_same_network(config):
    torch.manual_seed(0)
    renderer = LivePortraitRenderer(**config).eval()
    inputs = fast_inputs(renderer)
    with torch.no_grad():
        out = bench_renderer.warp_plainly(renderer, *inputs)
        torch.testing.assert_close(out, renderer.warp(*inputs)[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(
            bench_renderer.decode_plainly(renderer, out), renderer.decode(out), atol=2e-5, rtol=0
        )


def test_every_variant_is_measured(tmp_path, capsys):
    LivePortraitRenderer(**TINY).save_pretrained(tmp_path / "model")
    words = [
        "bench",
        "renderer",
        "--model",
        str(tmp_path / "model"),
        "--batch",
        "2",
        "--repeats",
        "1",
        "--threads",
        "1",
    ]
    assert main([*words, "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert (result["batch"], result["threads"], result["output_size"]) == (2, 1, 128)
    assert all(seconds > 0 for seconds in result["seconds"].values())
    assert max(result["differences"].values()) < 1e-4
    said = bench_renderer.format_results([result, {**result, "threads": 2}])
    for variant in bench_renderer.VARIANTS:
        assert f"{variant}: a frame, s" in said
    assert "optimised: times as fast" in said and "ours: off by at most" in said


def test_bad_numbers_are_reported(capsys):
    assert main(["bench", "renderer", "--batch", "0"]) == 2
    assert "`--batch` must be at least 1, got 0" in capsys.readouterr().err
    assert main(["bench", "renderer", "--seconds", "3"]) == 2
    assert "`--seconds` has no effect with 'renderer'" in capsys.readouterr().err
    assert main(["bench", "--repeats", "3"]) == 2
    assert "`--repeats` has no effect with '2d'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="`repeats`"):
        bench_renderer.measure(repeats=0)


@pytest.mark.e2e
def test_results_come_from_fresh_processes():
    (result,) = runs.compare([1], "vasa_hf.bench.renderer", config=TINY, repeats=1)
    assert result["model"] == "random weights" and result["image_size"] == 32

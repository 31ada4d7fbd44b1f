"""`vasa-hf eval`: words, exit status, streams."""

import json

import pytest

from tests.testing_utils.pipelines import make_audio, make_vasa1_components
from vasa_hf import VasaTalkingFacePipeline
from vasa_hf.cli import main
from vasa_hf.evaluation import tables
from vasa_hf.media import save_wav


def row(metric, value="", why="", part="self", role="model", item="a"):
    known = {"part": part, "role": role, "system": "m", "item": item, "sample": 0}
    return {**known, "metric": metric, "value": value, "why": why}


@pytest.fixture
def rows(tmp_path):
    """Rows as an evaluation leaves them: PSNR is there, LPIPS has no network, AKD failed."""
    content = [
        row("psnr", 25.0),
        row("lpips", why="needs", item="*"),
        row("akd", why="no face"),
        row("psnr", 24.0, item="b"),
    ]
    (tmp_path / "rows").mkdir()
    tables.write_rows(tmp_path / "rows" / "self.csv", content)
    return tmp_path


def test_tables_are_remade_and_missing_metrics_are_reported(rows, capsys):
    assert main(["eval", "--output", str(rows), "--remake"]) == 1
    said = capsys.readouterr()
    assert said.out == f"{rows / 'table.md'}\n"
    assert "not computed: self: akd" in said.err and "lpips" not in said.err and "psnr" not in said.err
    assert "24.50" in (rows / "table.md").read_text()
    assert json.loads((rows / "table.json").read_text())["summary"][0]["items"] == 2


def test_exit_status_is_zero_if_all_that_was_asked_for_is_there(rows, capsys):
    assert main(["eval", "--output", str(rows), "--remake", "--metrics", "psnr"]) == 0
    assert main(["eval", "--output", str(rows), "--remake", "--metrics", "psnr,lpips"]) == 1
    assert "self: lpips" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "`--data` must be given"),
        (("--data", "nowhere"), "`--data` must be an existing folder"),
        (("--remake", "--metrics", "beauty"), "`--metrics` must be of"),
        (("--remake", "--parts", "selfie"), "`--parts` must be of"),
        (("--data", ".", "--limit", "0"), "`--limit` must be at least 1"),
        (("--remake",), "`--output` must hold rows"),
    ],
)
def test_bad_words_are_reported(words, message, tmp_path, capsys):
    assert main(["eval", "--output", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_faces_gets_tables_that_say_so(tmp_path, capsys):
    """A tiny random model finds no face: nothing can be computed, everything is reported, nothing breaks."""
    VasaTalkingFacePipeline(**make_vasa1_components()).save_pretrained(tmp_path / "model")
    (tmp_path / "data" / "speech").mkdir(parents=True)
    save_wav(tmp_path / "data" / "speech" / "voice.wav", make_audio(0.5), 16_000)
    folders = ("--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"))
    words = ("--pipeline", str(tmp_path / "model"), "--parts", "audio")
    assert main(["eval", *folders, *words]) == 1
    said = capsys.readouterr()
    assert "audio: delta_pose" in said.err and "sync_c" not in said.err
    assert "shorter than a window" in (tmp_path / "out" / "table.md").read_text()

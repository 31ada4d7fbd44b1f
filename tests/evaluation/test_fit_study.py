"""Fig. 3's study with real fits of seconds, of the embedded VASA-1 and the package's portrait and voice."""

import csv

import numpy as np
import pytest

from tests.evaluation.conftest import ASSETS
from vasa_hf import Vasa3DAvatarPipeline
from vasa_hf.evaluation import fit_study
from vasa_hf.media.audio import load_audio, save_wav

SMALL = {"motion_steps": 2, "checkpoint_every": 0, "preview_every": 0}
MINUTES, ITERATIONS = (0.008, 0.016), (2, 12)


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Two halves of the package's voice: one of the fits, one of the test video."""
    folder, (samples, rate) = tmp_path_factory.mktemp("voices"), load_audio(ASSETS / "voice.flac")
    for name, start in (("fit", 0), ("test", 2)):
        save_wav(folder / f"{name}.wav", samples[0, start * rate : (start + 1) * rate], rate)
    return folder


@pytest.mark.training
def test_a_row_for_each_pair_of_sizes_and_no_fit_twice(voices, tmp_path, monkeypatch, capsys):
    pipe = Vasa3DAvatarPipeline.from_pretrained("vasa3d-small")
    sizes = {"minutes": MINUTES, "iterations": ITERATIONS, "test_audio": str(voices / "test.wav"), "preset": "fast"}
    portrait, output = str(ASSETS / "portrait.jpg"), tmp_path / "study"
    rows = fit_study.study_fits(pipe, portrait, output, **sizes, audios=[str(voices / "fit.wav")], **SMALL)
    assert [(row["minutes"], row["iterations"]) for row in rows] == [(m, n) for m in MINUTES for n in ITERATIONS]
    values = np.array([row["psnr"] for row in rows])
    assert (values > 15).all() and (values < 45).all()
    assert (values[1::2] > values[::2] + 0.5).all()  # more iterations are better, as in Fig. 3
    assert {path.name for path in output.iterdir() if path.is_dir()} == {
        f"{m:g}min_{n}" for m in MINUTES for n in ITERATIONS
    }
    assert len(list((output / "0.016min_12" / "fit").glob("log.jsonl"))) == 1
    with open(output / "psnr.csv", newline="") as file:
        assert [float(row["psnr"]) for row in csv.DictReader(file)] == values.tolist()

    def fit(*arguments, **options):
        raise AssertionError("a fit that is there was made again")

    monkeypatch.setattr(Vasa3DAvatarPipeline, "fit", fit)
    command = [portrait, "-o", str(output), "--audios", str(voices / "fit.wav"), "--test-audio", sizes["test_audio"]]
    command += ["--minutes", *map(str, MINUTES), "--iterations", *map(str, ITERATIONS), "--preset", "fast"]
    fit_study.main(command)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| minutes | 2 iterations | 12 iterations |"
    assert lines[2] == f"| 0.008 | {values[0]:.2f} | {values[1]:.2f} |"
    with pytest.raises(SystemExit):  # the package's voice would be both of the fit and of the test
        fit_study.main([portrait, "-o", str(output)])

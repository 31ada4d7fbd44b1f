"""Batches: the engines with workers that fail and die, and `vasa-hf batch` with tiny real models."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from tests.testing_utils.batch_worker import Worker
from tests.testing_utils.pipelines import make_audio, make_image, make_vasa1_components
from vasa_hf import VasaTalkingFacePipeline
from vasa_hf.batch import run_jobs
from vasa_hf.batch_ray import run_on_ray
from vasa_hf.cli import main
from vasa_hf.media import VideoReader, read_provenance, save_wav

ENGINES = ["local", "ray"]


def run(engine, jobs, *arguments):
    if engine == "local":
        return list(run_jobs(jobs, Worker, *arguments))
    pytest.importorskip("ray", reason="needs ray: pip install 'vasa_hf[ray]'")
    return list(run_on_ray(jobs, Worker, *arguments))


@pytest.mark.parametrize("engine", ENGINES)
def test_no_job_is_lost(engine, tmp_path):
    jobs = {str(number): number for number in range(12)} | {"a": "bad", "b": "accident", "c": "die", "d": "die"}
    jobs |= {str(number): number for number in range(12, 20)}
    results = {result.name: result for result in run(engine, jobs, (tmp_path,), 2)}
    assert results.keys() == jobs.keys()
    assert [results[str(number)].value for number in range(20)] == [number**2 for number in range(20)]
    assert results["a"].error == "`image` must show a face." and "ZeroDivisionError" in results["b"].error
    assert "the worker died" in results["c"].error and "the worker died" in results["d"].error
    assert 3 <= len(list(tmp_path.iterdir())) <= 4  # two, and those that took the places of the dead


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_that_cannot_be_loaded_ends_the_batch(engine, tmp_path):
    with pytest.raises(ValueError, match="`model` must be a folder"):
        run(engine, {"a": 1}, (tmp_path, True), 2)
    with pytest.raises(ValueError, match="`workers`"):
        run(engine, {"a": 1}, (tmp_path,), 0)
    assert run(engine, {}) == []


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny model, an image and audio, and 20 rows, one of which has an image that is none."""
    folder = tmp_path_factory.mktemp("batch")
    VasaTalkingFacePipeline(**make_vasa1_components()).save_pretrained(folder / "model")
    Image.fromarray(make_image()).save(folder / "me.png")
    (folder / "poison.png").write_bytes(b"\x89PNG and nothing more")
    save_wav(folder / "voice.wav", make_audio(0.3), 16_000)
    rows = [{"image": "me.png", "audio": "voice.wav", "name": "", "gaze": "", "fps": ""} for _ in range(20)]
    rows[3] |= {"name": "anna", "gaze": "-0.2,0", "fps": "30"}
    rows[11] |= {"image": "poison.png"}
    write_list(folder / "list.csv", rows)
    return folder


def write_list(path, rows):
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def batch(files, output, *extra, rows="list.csv"):
    common = ["--box", "20,20,70,76", "--steps", "2", "--model", str(files / "model"), "--seed", "1"]
    return main(["batch", str(files / rows), "-o", str(output), *common, *extra])


def results_of(output):
    lines = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    return {line["name"]: line for line in lines}, len(lines)


@pytest.mark.e2e
@pytest.mark.parametrize("engine", ENGINES)
def test_twenty_rows_one_of_them_poisoned(files, tmp_path, capsys, engine):
    if engine == "ray":
        pytest.importorskip("ray", reason="needs ray: pip install 'vasa_hf[ray]'")
    output = tmp_path / "videos"
    assert batch(files, output, "--workers", "2", "--engine", engine) == 1
    said = capsys.readouterr()
    assert "19 videos, 1 failed, 0 not made again" in said.out and "00012: `image`" in said.err
    names = sorted(path.stem for path in output.glob("*.mp4"))
    assert len(names) == 19 and "anna" in names and "00012" not in names and "00004" not in names
    video = VideoReader(output / "anna.mp4")
    assert str(video.fps) == "30" and len(list(video)) == 9 and read_provenance(output / "anna.mp4")
    found, lines = results_of(output)
    assert lines == 20 and found["00012"]["error"] and found["anna"]["error"] is None and found["anna"]["seed"] == 1

    # Again: nothing is left to do; a lost video and a changed row are made, others are not touched.
    assert batch(files, output, "--workers", "2", "--engine", engine) == 1
    assert "19 videos, 1 failed, 20 not made again" in capsys.readouterr().out
    assert results_of(output)[1] == 20

    # Failures are a list to give again, once they are repaired.
    repaired = (output / "failures.csv").read_text().replace("poison.png", "me.png")
    assert "name" in repaired and "error" in repaired
    (tmp_path / "again.csv").write_text(repaired)
    assert batch(files, output, "--engine", engine, rows=tmp_path / "again.csv") == 0
    assert len(list(output.glob("*.mp4"))) == 20 and not (output / "failures.csv").exists()


def test_a_batch_goes_on_and_makes_changed_rows_again(files, tmp_path, capsys):
    rows = [{"image": "me.png", "audio": "voice.wav", "gaze": gaze} for gaze in ("", "0.1,0", "none")]
    write_list(files / "short.csv", rows)
    output = tmp_path / "videos"
    assert batch(files, output, rows="short.csv") == 1
    assert "00003: `gaze` must be 2 numbers" in capsys.readouterr().err
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.mp4")}
    assert len(before) == 2
    (output / "00001.mp4").unlink()
    with open(output / "results.jsonl", "a") as log:
        log.write('{"name": "00002", "ro')  # a line that was cut off when the batch was killed
    rows[2]["gaze"] = "0.2,0"
    write_list(files / "short.csv", rows)
    assert batch(files, output, rows="short.csv") == 0
    assert "3 videos, 0 failed, 1 not made again" in capsys.readouterr().out
    assert (output / "00002.mp4").stat().st_mtime_ns == before["00002.mp4"]
    motion = np.array([len(list(VideoReader(path))) for path in sorted(output.glob("*.mp4"))])
    assert (motion == 8).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image\nme.png\n", "columns image and audio"),
        ("image,audio,colour\nme.png,voice.wav,red\n", "got ['colour']"),
        ("image,audio,model\nme.png,voice.wav,x\n", "got ['model']"),
        ("image,audio\nme.png\n", "row 1 has more or fewer"),
        ("image,audio,name\nme.png,voice.wav,a\nme.png,voice.wav,a\n", "row 2 has 'a'"),
        ("image,audio,name\nme.png,voice.wav,../a\n", "row 1 has '../a'"),
    ],
)
def test_a_bad_list_is_refused_before_any_work(files, tmp_path, capsys, text, message):
    (tmp_path / "list.csv").write_text(text)
    assert main(["batch", str(tmp_path / "list.csv"), "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()

"""The page of a user study: blinded, complete, and counted as answered; in a browser where there is one."""

import csv
import json
import re

import pytest

from tests.testing_utils.pipelines import make_image
from vasa_hf.cli import main
from vasa_hf.media import VideoWriter


@pytest.fixture
def folders(tmp_path):
    """Videos of two systems; one more that only one of them has."""
    for number, system in enumerate(("ours", "theirs")):
        (tmp_path / system).mkdir()
        for item in ("anna", "ben", *(["only"] if number else [])):
            with VideoWriter(tmp_path / system / f"{item}.mp4", 25, (64, 64), provenance=False) as writer:
                for frame in range(3):
                    writer.write(make_image(seed=number + frame, size=(64, 64)))
    return tmp_path


def make(folders, *extra):
    systems = [f"{name}={folders / name}" for name in ("ours", "theirs")]
    return main(["study", *systems, "-o", str(folders / "study"), *extra])


def write_answers(path, rows):
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["participant", "kind", "item", "video", "answer"])
        table.writerows(rows)
    return str(path)


def test_a_study_is_blinded_and_counted(folders, capsys):
    assert make(folders) == 0
    assert "4 videos to score, 2 choices" in capsys.readouterr().out
    study = folders / "study"
    page, key = (study / "page" / "index.html").read_text(), json.loads((study / "key.json").read_text())
    assert not re.search("ours|theirs|anna|ben|only", page + " ".join(path.name for path in (study / "page").iterdir()))
    assert {path.name for path in (study / "page").glob("*.mp4")} == set(key) and len(key) == 4
    tasks = json.loads(re.search(r"tasks = (\{.*?\}), study", page)[1])
    for choice in tasks["choices"]:
        assert {key[video]["system"] for video in choice["videos"]} == {"ours", "theirs"}
        assert len({key[video]["item"] for video in choice["videos"]}) == 1

    best = {name: 5 if entry["system"] == "ours" else 2 for name, entry in key.items()}
    rows = [("p1", "score", "item1", video, score) for video, score in best.items()]
    rows += [("p1", "choice", "item1", video, int(best[video] == 5)) for video in best]
    answers = write_answers(folders / "answers-p1.csv", rows)
    other = write_answers(folders / "answers-p2.csv", [("p2", "score", "item1", next(iter(best)), 4)])
    assert main(["study", str(study), "--score", answers, other, "--json"]) == 0
    result = {row["system"]: row for row in json.loads(capsys.readouterr().out)}
    assert result["ours"]["preference"] == 1.0 and result["theirs"]["preference"] == 0.0
    assert {result[name]["participants"] for name in result} == {1, 2}
    qualities = sorted([result["ours"]["quality"], result["theirs"]["quality"]])
    assert qualities in ([2.0, pytest.approx(14 / 3)], [pytest.approx(8 / 3), 5.0])


def test_bad_studies_are_refused(folders, capsys):
    for arguments, message in (
        (["study", f"a={folders / 'ours'}", "-o", str(folders / "study")], "two or more"),
        (["study", "a=none", f"b={folders / 'ours'}", "-o", str(folders / "study")], "existing folders"),
        (["study", f"{folders / 'ours'}", "-o", str(folders / "study")], "NAME=DIR"),
        (["study", str(folders), "--score", "x.csv"], "key.json"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err and not (folders / "study").exists()
    assert make(folders) == 0 and make(folders) == 2
    wrong = write_answers(folders / "wrong.csv", [("p", "score", "i", "other.mp4", 1)])
    assert main(["study", str(folders / "study"), "--score", wrong]) == 2


@pytest.mark.e2e
def test_a_participant_answers_in_a_browser(folders, browser, capsys):
    assert make(folders) == 0
    page = browser.new_page()
    page.goto((folders / "study" / "page" / "index.html").as_uri())
    for step in range(6):
        assert page.locator("#where").inner_text() == f"{step + 1} of 6"
        assert page.locator("#next").is_disabled()
        if step < 4:
            page.locator("input[type=range]").fill(str(1 + step))
        else:
            page.locator("input[type=radio]").first.check()
        page.locator("#next").click()
        if step == 2:
            page.reload()  # answers are kept
    with page.expect_download() as download:
        page.locator("#save").click()
    download.value.save_as(folders / "answers.csv")
    page.close()
    capsys.readouterr()
    assert main(["study", str(folders / "study"), "--score", str(folders / "answers.csv"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert sum(row["preference"] for row in result) == 1.0
    assert sum(row["quality"] for row in result) == 5.0  # 1 + 2 + 3 + 4 over two systems of two videos

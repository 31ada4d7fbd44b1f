"""Clips for the forgery detector: recordings and what systems make of them, written alike."""

import csv

import numpy as np
import pytest

from vasa_hf.evaluation import forgery_clips
from vasa_hf.media import VideoReader, detect_mark, read_provenance
from vasa_hf.media.watermark import MARK_THRESHOLD


@pytest.fixture
def people(data, tmp_path):
    """Three recordings of two people."""
    folder = tmp_path / "data"
    (folder / "clips").mkdir(parents=True)
    for name in ("a_good", "b_wide", "d_mute"):
        (folder / "clips" / f"{name}.mp4").write_bytes((data / "clips" / f"{name}.mp4").read_bytes())
    (folder / "identities.csv").write_text("clip,identity\na_good,anna_k\nd_mute,anna_k\nb_wide,ben\n")
    return folder


def test_clips_are_named_after_people_and_made_once(pipeline, people, tmp_path):
    chosen = forgery_clips.choose_clips(people, each=1)
    assert set(chosen) == {"anna-k", "ben"} and all(len(own) == 1 for own in chosen.values())
    chosen = forgery_clips.choose_clips(people, each=9)
    assert sorted(map(len, chosen.values())) == [1, 2]
    forgery_clips.write_real(tmp_path / "real", chosen)
    with open(tmp_path / "real" / "identities.csv", newline="") as file:
        names = {row["clip"]: row["identity"] for row in csv.DictReader(file)}
    assert names == {"anna-k_a_good": "anna-k", "anna-k_d_mute": "anna-k", "ben_b_wide": "ben"}
    voices = [people / "clips" / "a_good.mp4"]
    made = list(forgery_clips.make_clips(pipeline, tmp_path / "vasa1", chosen, voices))
    assert {path.stem.split("_")[0] for path in made} == {"anna-k", "ben"}
    assert sorted(path.stem.split("_")[-1] for path in made) == ["driven", "talks", "talks"]
    for path in [*made, *sorted((tmp_path / "real" / "clips").iterdir())]:
        frames = np.stack(list(VideoReader(path)))
        assert frames.shape[1:] == (256, 256, 3) and len(frames) >= 8  # all alike, and of their length
        assert read_provenance(path) is None and detect_mark(frames) < MARK_THRESHOLD  # the mark would be learnt
    assert not list(forgery_clips.make_clips(pipeline, tmp_path / "vasa1", chosen, voices))
    with pytest.raises(ValueError, match="`data`"):
        forgery_clips.choose_clips(tmp_path, each=1)

import csv

import numpy as np
import pytest

from vasa_hf.data.select import select_media


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "train"
    (folder / "clips").mkdir(parents=True)
    for name in "abc":
        (folder / "clips" / f"{name}.mp4").write_bytes(name.encode())
    (folder / "sources.csv").write_text(
        "file,repository,path,licence,media\n"
        'clips/a.mp4,x,a,"MIT, yes","clear: by the licence"\nclips/b.mp4,x,b,MIT,unclear\nclips/c.mp4,x,c,MIT,clear\n'
    )
    (folder / "identities.csv").write_text("clip,identity\na,p1\nb,p2\nc,p3\n")
    values = np.arange(9)[:, None] * np.ones(2)
    np.savez(folder / "clips.npz", names=np.array(list("abc")), offsets=np.array([0, 2, 5, 9]), pose=values)
    return folder


def test_only_clear_files_and_their_labels_remain(data, tmp_path):
    output = tmp_path / "clear"
    assert select_media(data, output) == {"clips": 2}
    assert sorted(path.name for path in (output / "clips").iterdir()) == ["a.mp4", "c.mp4"]
    assert (output / "clips" / "c.mp4").read_bytes() == b"c"
    with np.load(output / "clips.npz") as labels:
        assert labels["names"].tolist() == ["a", "c"]
        assert labels["offsets"].tolist() == [0, 2, 6]
        assert labels["pose"][:, 0].tolist() == [0, 1, 5, 6, 7, 8]
    with open(output / "identities.csv") as file:
        assert [row["clip"] for row in csv.DictReader(file)] == ["a", "c"]


def test_bad_arguments_say_so(data, tmp_path):
    with pytest.raises(ValueError, match="`output` must not exist"):
        select_media(data, data)
    with pytest.raises(ValueError, match="`accepted` must leave some file"):
        select_media(data, tmp_path / "none", ("public domain",))

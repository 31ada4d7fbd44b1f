from pathlib import Path

import pytest

from vasa_hf import hub


def test_paths_and_repositories_stay_as_they_are(tmp_path):
    assert hub.resolve(tmp_path) == str(tmp_path)
    assert hub.resolve("./vasa-small") == "./vasa-small"
    assert hub.resolve("someone/vasa-small") == "someone/vasa-small"


def test_unknown_names_are_rejected():
    names = "'vasa-small', 'vasa3d-small', 'moda-small'"
    with pytest.raises(ValueError, match=f"`name` must be one of the embedded models .{names}., got 'vasa-huge'"):
        hub.embedded_path("vasa-huge")


@pytest.mark.parametrize("place", ["wheel", "checkout"])
def test_embedded_names_win_over_folders_of_that_name(tmp_path, monkeypatch, place):
    package = tmp_path / "site" / "vasa_hf"
    package.mkdir(parents=True)
    monkeypatch.setattr(hub, "__file__", str(package / "hub.py"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vasa-small").mkdir()
    with pytest.raises(FileNotFoundError, match="embedded weights 'vasa-small' are missing.*Reinstall"):
        hub.resolve("vasa-small")
    folder = (package if place == "wheel" else package.parent) / "model_cards" / "vasa-small"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    assert Path(hub.resolve("vasa-small")) == folder
    assert Path(hub.resolve("vasa-small/scheduler")) == folder / "scheduler"
    assert Path(hub.embedded_path("vasa-small")) == folder

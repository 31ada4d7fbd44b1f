"""The one entry of all trainings."""

from importlib import import_module
from pathlib import Path

import pytest

import vasa_hf.training
from vasa_hf.cli import main as command
from vasa_hf.training.run import RECIPES, main


def test_every_module_of_recipes_is_a_recipe():
    folder = Path(vasa_hf.training.__file__).parent / "recipes"
    assert sorted(path.stem for path in folder.glob("[a-z]*.py")) == sorted(RECIPES)
    for name in RECIPES:
        assert import_module(f"vasa_hf.training.recipes.{name}").__doc__


def test_the_list_of_recipes_and_the_options_of_one(capsys):
    assert command(["train"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("face_autoencoder", "motion_transformer_moda"))
    with pytest.raises(SystemExit) as stop:
        command(["train", "capp", "--help"])
    assert stop.value.code == 0
    assert "usage: vasa-hf train capp" in (out := capsys.readouterr().out)
    assert "--window-seconds" in out


def test_wrong_recipes_and_options_say_so(capsys, tmp_path):
    with pytest.raises(ValueError, match="`recipe` must be one of.*capp.*'nose'"):
        main(["nose"])
    assert command(["train", "motion_transformer", "--preset", "huge"]) == 2
    assert "`preset` must be one of paper, small" in capsys.readouterr().err
    assert command(["train", "motion_transformer", "--output", str(tmp_path)]) == 2
    assert "`data` and `pipeline` must be given" in capsys.readouterr().err

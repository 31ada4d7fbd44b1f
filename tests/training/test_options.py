"""Options of the trainings, and the configs of the package."""

import json
from dataclasses import dataclass
from importlib import import_module
from typing import get_type_hints

import pytest

from vasa_hf.training.options import LoopOptions, configs, option, parse_options
from vasa_hf.training.run import RECIPES


def test_options_from_the_command_line():
    chosen = parse_options(LoopOptions, ["--batch-size", "3", "--max-minutes", "1.5", "--cpu", "--output", "x"])
    assert (chosen.batch_size, chosen.max_minutes, chosen.cpu, chosen.output) == (3, 1.5, True, "x")
    assert parse_options(LoopOptions, []) == LoopOptions()
    with pytest.raises(SystemExit):
        parse_options(LoopOptions, ["--no-such-option", "1"])


def test_a_config_sets_options_and_the_command_line_has_the_last_word(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"batch_size": 3, "cpu": True}))
    chosen = parse_options(LoopOptions, ["--config", str(tmp_path / "mine.json"), "--batch-size", "5"])
    assert (chosen.batch_size, chosen.cpu) == (5, True)
    (tmp_path / "wrong.json").write_text(json.dumps({"batchsize": 3}))
    for config, message in ((str(tmp_path / "wrong.json"), "batchsize"), ("no_such_config", "paper_")):
        with pytest.raises(ValueError, match=message):
            parse_options(LoopOptions, ["--config", config])


@dataclass
class ColourOptions(LoopOptions):
    colour: str = option("red", "what to paint with", ("red", "blue"))
    learning_rate: float = 0.5


def test_an_option_of_known_values_refuses_others(capsys):
    assert parse_options(ColourOptions, ["--colour", "blue"]).colour == "blue"
    for arguments, name in ((["--colour", "green"], "colour"), (["--save-dtype", "int8"], "save_dtype")):
        with pytest.raises(ValueError, match=f"`{name}` must be one of"):
            parse_options(ColourOptions, arguments)
    with pytest.raises(SystemExit):
        parse_options(ColourOptions, ["--help"], prog="paint")
    text = " ".join(capsys.readouterr().out.split())
    assert "what to paint with: red, blue (default: red)" in text and "peak learning rate (default: 0.5)" in text


@pytest.mark.parametrize("name", sorted(configs()))
def test_the_configs_of_the_package_fit_their_recipes(name):
    preset, recipe = name.split("_", 1)
    options_class = get_type_hints(import_module(f"vasa_hf.training.recipes.{recipe}").run)["options"]
    assert parse_options(options_class, ["--config", name]).preset == preset


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_has_options_with_help(name):
    options_class = get_type_hints(import_module(f"vasa_hf.training.recipes.{name}").run)["options"]
    assert parse_options(options_class, []) == options_class()

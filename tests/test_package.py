"""The package as a whole: fast to import, honest about its names, and carrying what the first command needs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vasa_hf

ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str) -> str:
    """Output of Python code in a process that has imported nothing yet."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_import_brings_no_torch():
    heavy = run_python("import sys, vasa_hf; print({'torch', 'numpy', 'diffusers', 'gradio'} & set(sys.modules))")
    assert heavy == "set()"


@pytest.mark.parametrize("name", vasa_hf.__all__)
def test_public_names_are_there(name):
    value = getattr(vasa_hf, name)
    assert getattr(value, "__name__", name) == name
    assert name in dir(vasa_hf)


def test_public_names_can_be_imported_with_a_star_and_by_name():
    code = "from vasa_hf import *; from vasa_hf import MotionSpec as M; assert M is MotionSpec; print(M.__module__)"
    assert run_python(code) == "vasa_hf.motion.spec"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'vasa_hf' has no attribute 'VasaPipeline'"):
        _ = vasa_hf.VasaPipeline


def test_help_needs_no_torch_and_knows_the_commands():
    code = (
        "import sys\nfrom vasa_hf.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as exit:\n    assert not exit.code\n"
        "assert 'torch' not in sys.modules"
    )
    help_text = run_python(code)
    readme = (ROOT / "README.md").read_text() + (ROOT / "docs" / "usage.md").read_text()
    commands = set(re.findall(r"^vasa-hf (\w+)", readme, flags=re.MULTILINE))
    assert {"talk", "demo", "crop", "info", "bench"} <= commands
    assert all(command in help_text for command in commands)


def test_options_of_the_readme_exist():
    """Every `--option` that the README and the guide show for a command is in that command's help."""
    readme = (ROOT / "README.md").read_text() + (ROOT / "docs" / "usage.md").read_text()
    shown = re.findall(r"^vasa-hf (\w+)((?:[^\n]*\\\n)*[^\n]*)", readme, flags=re.MULTILINE)
    for command, rest in shown:
        options = re.findall(r"(?<=\s)--?[a-z][\w-]*", rest)
        help_text = run_python(
            f"from vasa_hf.cli import main\ntry:\n    main(['{command}', '--help'])\nexcept SystemExit:\n    pass"
        )
        assert all(re.search(rf"(?<![\w-]){option}(?![\w-])", help_text) for option in options), (command, options)


def test_version_is_valid():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", vasa_hf.__version__)


def test_demo_inputs_are_there():
    from PIL import Image

    from vasa_hf.media import load_audio

    assets = Path(vasa_hf.__file__).parent / "assets"
    with Image.open(assets / "portrait.jpg") as portrait:
        assert portrait.mode == "RGB" and min(portrait.size) >= 512
    samples, rate = load_audio(assets / "voice.flac")
    assert rate == 16000 and samples.shape == (1, 102400)
    # Speech, a pause in which a mouth should shut, speech again.
    level = abs(samples[0]).reshape(-1, 640).max(1)
    quiet = "".join("." if value < 0.01 else "#" for value in level)
    assert re.search(r"#\.{15,}#", quiet)
    readme = (assets / "README.md").read_text()
    assert all(path.name in readme for path in assets.iterdir() if path.name != "README.md")


def test_constraints_name_every_dependency():
    """Each requirement of pyproject.toml is pinned to a tested version."""
    lines = re.findall(r'^  "([\w-]+)[<>=]', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert len(lines) == 13
    lines += ["ruff", "pytest", "pytest-xdist", "mypy"]
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert set(lines) <= set(pinned)

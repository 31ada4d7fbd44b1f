"""The notebooks as a reader meets them: they run from a clean kernel, and what is saved in them is what they make.

What is saved is compared with the run by kind: text that was printed, images, tables, errors. Pixels and numbers are
not: they differ in the last digits from one CPU to the next.
"""

import os
import re
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vasa_hf.data.synthetic.speech import available_engines

nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REPOSITORY = "vasa-hf/vasa_hf"
MAX_BYTES = 600_000
#: In pieces, so that this file does not name what it looks for.
MACHINE = re.compile(r"/(?:" + "|".join(("work", "tmp", "home", "root", "Users", "usr", "mnt")) + r")/\w")


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """What a cell left behind: streams by name, results by the richest of their types."""
    found = []
    for output in cell.outputs:
        if output.output_type == "stream":
            found.append(output.name)
        elif output.output_type == "error":
            found.append("error")
        else:
            found.append(sorted(output.data)[0])
    return found


def texts(notebook):
    """All that is written in a notebook: sources and text outputs, without images and embedded videos."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                yield output.text
            for kind, value in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    yield re.sub(r"base64,[\w+/=\s]+", "base64,", value)


def pictures(notebook):
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for kind, value in output.get("data", {}).items():
                if kind.startswith("image/"):
                    yield Image.open(BytesIO(b64decode(value)))


def test_the_notebooks_are_there():
    assert [path.stem for path in PATHS] == [
        "01_talking_face",
        "02_inside_vasa1",
        "03_train_vasa1",
        "04_avatar_3d",
        "06_moda_and_converted_weights",
        "07_evaluate",
        "08_your_own_data",
    ]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_is_saved_as_it_was_run(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size <= MAX_BYTES
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    everything = [kind for cell in cells for kind in kinds(cell)]
    assert "error" not in everything and "stderr" not in everything, "errors or warnings are saved in it"
    for cell in cells:
        shows = re.search(r"^(?:sheet\(|print\(|plt\.show\(|Video\(|Image\(|Markdown\()", cell.source, re.MULTILINE)
        assert not shows or cell.outputs, f"nothing is saved of:\n{cell.source[:200]}"
    saved = list(pictures(notebook))
    assert len(saved) >= 3
    for picture in saved:
        assert np.asarray(picture.convert("L")).std() > 10, "a saved image is empty"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_opens_in_colab_and_tells_nothing_of_a_machine(path):
    notebook = read(path)
    badge = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{path.name}"
    assert badge in notebook.cells[0].source and notebook.cells[0].cell_type == "markdown"
    switch = code_cells(notebook)[0].source
    assert "SMALL = True" in switch and f"git+https://github.com/{REPOSITORY}" in switch
    about = notebook.cells[0].source  # whether its weights are trained
    assert any(word in about for word in ("trained", "**tiny**", "**a few steps"))
    for text in texts(notebook):
        assert not MACHINE.search(text), MACHINE.search(text).group()
        for name in re.findall(r"\]\(([^):]+\.ipynb)\)", text):
            assert name.startswith("05") or (path.parent / name).exists(), f"link to {name}"


@pytest.mark.e2e
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_runs_from_a_clean_kernel(path, tmp_path, monkeypatch):
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    saved, notebook = read(path), read(path)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    client = nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises where a cell does
    speaks = path.stem != "08_your_own_data" or available_engines()  # else it says so
    for before, after in zip(code_cells(saved), code_cells(notebook), strict=True):
        errors = [output.text for output in after.outputs if output.get("name") == "stderr"]
        assert not errors, f"warnings of\n{after.source}\n{errors}"
        assert not speaks or kinds(after) == kinds(before), f"the saved outputs are stale, of\n{after.source}"

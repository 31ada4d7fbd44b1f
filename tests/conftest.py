import os
import random

# Nothing but the tests marked `hub` may reach for the network: a missing file must fail here, not download.
# Set before the libraries that read it are imported; `VASA_HF_TEST_HUB=1 pytest -m hub` lifts it.
if os.environ.get("VASA_HF_TEST_HUB") != "1":
    os.environ["HF_HUB_OFFLINE"] = "1"
# Workers share the cores: one thread each, and one for each process that a test starts. Also without workers, so that a
# test sums in the same order however it is run.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import numpy as np
import pytest
import torch

TESTS = Path(__file__).resolve().parent
# Folders whose tests take long belong to a tier; elsewhere single tests are marked `e2e`.
TIERS = {"fuzz": "e2e", "training": "training"}
BROWSER_OPTIONS = ["--no-sandbox", "--mute-audio", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
BROWSER_OPTIONS += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a microphone that beeps
MAX_WORKERS = 4  # each holds 1 to 2 GB


@pytest.fixture(autouse=True)
def seed():
    """The same random numbers for every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def device():
    """The device to test on: CPU. Tests marked `gpu` compare with it and name "cuda" themselves."""
    return torch.device("cpu")


def pytest_xdist_auto_num_workers(config):
    """One worker a core; none for a few files, which would wait longer for the second than it saves."""
    files = named_on_the_command_line(config)
    few = 0 < len(files) < 4 and all(path.is_file() for path in files)
    return 0 if few else min(os.cpu_count() or 1, MAX_WORKERS)


def named_on_the_command_line(config):
    """Files and folders below `tests` that the user named; none if any name stands for all tests."""
    paths = [Path(name.split("::")[0]).resolve() for name in config.args]
    named = config.args_source == pytest.Config.ArgsSource.ARGS and all(TESTS in path.parents for path in paths)
    return paths if named else []


def pytest_configure(config):
    """Tests named on the command line run whatever their tier, without `-m`."""
    if hasattr(config, "workerinput"):
        return  # a worker has the options of the main process
    if named_on_the_command_line(config) and config.option.markexpr == config.getini("addopts")[-1]:
        config.option.markexpr = "not slow and not gpu and not hub"


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(items):
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if folder in TIERS:
            item.add_marker(TIERS[folder])
    skips = {
        "gpu": (torch.cuda.is_available(), "needs a CUDA device"),
        "hub": (os.environ.get("VASA_HF_TEST_HUB") == "1", "needs the network: VASA_HF_TEST_HUB=1"),
    }
    for item in items:
        for marker, (available, reason) in skips.items():
            if marker in item.keywords and not available:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def browser():
    """One browser for all tests of a worker: a second one cannot be started beside it."""
    from tests.testing_utils.browser import CHROMIUM

    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'vasa-hf[dev]'")
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=BROWSER_OPTIONS)
        yield browser
        browser.close()

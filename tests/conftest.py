import os
import random

# Nothing but the tests marked `hub` may reach for the network: a missing file must fail here, not download.
# Set before the libraries that read it are imported; `VASA_HF_TEST_HUB=1 pytest -m hub` lifts it.
if os.environ.get("VASA_HF_TEST_HUB") != "1":
    os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch


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


def pytest_collection_modifyitems(items):
    skips = {
        "gpu": (torch.cuda.is_available(), "needs a CUDA device"),
        "hub": (os.environ.get("VASA_HF_TEST_HUB") == "1", "needs the network: VASA_HF_TEST_HUB=1"),
    }
    for item in items:
        for marker, (available, reason) in skips.items():
            if marker in item.keywords and not available:
                item.add_marker(pytest.mark.skip(reason=reason))

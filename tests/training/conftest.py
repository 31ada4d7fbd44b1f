"""The embedded pipeline, loaded once for all tests of a worker."""

import pytest

from vasa_hf import VasaTalkingFacePipeline


@pytest.fixture(scope="session")
def pipe():
    """`vasa-small`. Not to be changed by tests."""
    pipe = VasaTalkingFacePipeline.from_pretrained("vasa-small")
    pipe.set_progress_bar_config(disable=True)
    return pipe

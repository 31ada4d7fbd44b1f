"""One tiny pipeline for the tests of a module."""

import pytest

from tests.testing_utils.pipelines import make_vasa1_components
from vasa_hf import VasaTalkingFacePipeline


@pytest.fixture(scope="module")
def pipe():
    pipe = VasaTalkingFacePipeline(**make_vasa1_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe

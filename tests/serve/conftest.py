"""A real server in a thread, with a tiny VASA-1 whose components are real."""

import contextlib
import threading
import time

import pytest
import uvicorn

from tests.testing_utils.pipelines import BOX, make_vasa1_components
from vasa_hf import VasaTalkingFacePipeline
from vasa_hf.serve import ServeSettings, create_app
from vasa_hf.serve.listener import SEND_BYTES, open_listener
from vasa_hf.serve.protocol import MAX_TEXT_BYTES

FAST = {"box": BOX, "window": 4, "num_inference_steps": 2}


@contextlib.contextmanager
def serving(pipe, send_bytes=SEND_BYTES, **settings):
    """Serve sessions of a pipeline; the address of its WebSocket without `ws`, and its counters."""
    settings = {"options": FAST, "max_sessions": 3, **settings}
    app = create_app(pipe, ServeSettings(**settings))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws_max_size=MAX_TEXT_BYTES))
    with open_listener("127.0.0.1", 0, send_bytes) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", app.state.counters
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def pipe():
    pipe = VasaTalkingFacePipeline(**make_vasa1_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def server(pipe):
    with serving(pipe) as served:
        yield served

"""A real server in a thread, with a tiny VASA-1 whose components are real."""

import contextlib
import socket
import threading
import time

import pytest
import uvicorn

from tests.testing_utils.pipelines import BOX, make_vasa1_components
from vasa_hf import VasaTalkingFacePipeline
from vasa_hf.serve import ServeSettings, create_app
from vasa_hf.serve.protocol import MAX_TEXT_BYTES

FAST = {"box": BOX, "window": 4, "num_inference_steps": 2}


@contextlib.contextmanager
def serving(pipe, **settings):
    """Serve sessions of a pipeline; the address of its WebSocket without `ws`."""
    app = create_app(pipe, ServeSettings(**{"options": FAST, **settings}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(app, port=port, log_level="error", ws_max_size=MAX_TEXT_BYTES, ws_max_queue=8)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"127.0.0.1:{port}", app.state.counters
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

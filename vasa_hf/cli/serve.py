"""The command `serve`: live sessions over a WebSocket (`vasa_hf.serve`)."""

from __future__ import annotations

import argparse
import os
from typing import Any

from vasa_hf.checks import check_number
from vasa_hf.cli import options as shared
from vasa_hf.cli.talk import find_system

_EXAMPLES = """examples:
  vasa-hf serve                                       # then open http://127.0.0.1:8000
  vasa-hf serve --system moda --sessions 4 --port 9000
  VASA_HF_TOKEN=secret vasa-hf serve --host 0.0.0.0 --origin https://example.org
"""


def add_commands(command: Any) -> None:
    """Add this module's command to the parser."""
    parser = command("serve", _serve, "serve live sessions over a WebSocket, with a page to try them", _EXAMPLES)
    parser.add_argument("--system", choices=("vasa1", "moda", "gaia"), default="vasa1", help="models (%(default)s)")
    shared.add_model_options(parser, None)
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--portrait", metavar="IMAGE", help="face of clients that send none (the package's example)")
    parser.add_argument("--size", type=int, help="side of the images in pixels (256)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port (%(default)s)")
    parser.add_argument("--sessions", type=int, default=2, help="sessions at the same time (%(default)s)")
    parser.add_argument("--token", help="what clients must send (none, or the environment's VASA_HF_TOKEN)")
    parser.add_argument("--origin", action="append", default=[], help="of other pages that may connect")
    parser.add_argument("--max-minutes", type=float, default=30.0, help="length of a session (%(default)s)")
    parser.add_argument("--idle-seconds", type=float, default=120.0, help="time without a message (%(default)s)")


def _serve(options: argparse.Namespace) -> int:
    check_number("port", options.port, 1, 65_535, whole=True)
    if options.portrait is not None:
        shared.check_files(portrait=options.portrait)
    try:
        import uvicorn

        from vasa_hf.serve import ServeSettings, create_app
        from vasa_hf.serve.protocol import MAX_TEXT_BYTES
    except ImportError as error:
        raise ImportError(f"`vasa-hf serve` needs fastapi, uvicorn and websockets: {error}.") from error

    settings = ServeSettings(
        max_sessions=options.sessions,
        token=options.token or os.environ.get("VASA_HF_TOKEN", ""),
        origins=options.origin,
        max_minutes=options.max_minutes,
        idle_seconds=options.idle_seconds,
        example=options.portrait,
        options={} if options.size is None else {"output_size": options.size},
    )
    settings.check()
    kind, model = find_system(options.system)
    options.model = options.model or model
    pipe = shared.load_pipeline(options, kind)
    pipe.set_progress_bar_config(disable=True)
    print(f"live sessions: http://{options.host}:{options.port}", flush=True)
    # Larger messages end their connection before they are read.
    limits = {"ws_max_size": MAX_TEXT_BYTES, "ws_max_queue": 8}
    uvicorn.run(create_app(pipe, settings), host=options.host, port=options.port, log_level="warning", **limits)
    return 0

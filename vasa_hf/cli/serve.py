"""The command `serve`: live sessions over a WebSocket (`vasa_hf.serve`)."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
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
    help_text = "a face that clients may name; the first is that of clients that send none (the package's example)"
    parser.add_argument("--portrait", metavar="IMAGE", action="append", default=[], help=help_text)
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
    examples = {Path(portrait).stem: portrait for portrait in options.portrait}
    if len(examples) < len(options.portrait):
        raise ValueError("`portrait` must be files of different names.")
    for portrait in options.portrait:
        shared.check_files(portrait=portrait)
    try:
        import uvicorn
        import websockets  # noqa: F401 - uvicorn takes no WebSockets without it

        from vasa_hf.serve import ServeSettings, create_app
        from vasa_hf.serve.listener import open_listener
        from vasa_hf.serve.protocol import MAX_TEXT_BYTES
    except ImportError as error:
        raise ImportError(f"`vasa-hf serve` needs pip install 'vasa-hf[serve]': {error}.") from error

    settings = ServeSettings(
        max_sessions=options.sessions,
        token=options.token or os.environ.get("VASA_HF_TOKEN", ""),
        origins=options.origin,
        max_minutes=options.max_minutes,
        idle_seconds=options.idle_seconds,
        **({"examples": examples} if examples else {}),
        options={} if options.size is None else {"output_size": options.size},
    )
    settings.check()
    kind, model = find_system(options.system)
    options.model = options.model or model
    pipe = shared.load_pipeline(options, kind)
    pipe.set_progress_bar_config(disable=True)
    with open_listener(options.host, options.port) as listener:
        print(f"live sessions: http://{options.host}:{options.port}", flush=True)
        if not settings.token and options.host not in ("127.0.0.1", "localhost", "::1"):
            print("vasa-hf: whoever reaches this address can begin sessions: set --token", file=sys.stderr)
        # Larger messages end their connection before they are read; JPEGs and MP4 cannot be compressed again.
        limits = {"ws_max_size": MAX_TEXT_BYTES, "ws_per_message_deflate": False}
        config = uvicorn.Config(create_app(pipe, settings), log_level="warning", **limits)
        uvicorn.Server(config).run(sockets=[listener])
    return 0

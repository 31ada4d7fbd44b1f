"""The command `app`: the web page (`vasa_hf.demo`)."""

from __future__ import annotations

import argparse
from typing import Any

from vasa_hf.checks import check_number
from vasa_hf.cli.options import find_device

_EXAMPLES = """examples:
  vasa-hf app --open
  vasa-hf app --private                      # no consent box: only you use it
  vasa-hf app --host 0.0.0.0 --port 7860     # for other machines too
  vasa-hf app --mcp                          # also serve its functions as MCP tools
"""


def add_commands(command: Any) -> None:
    """Add this module's command to the parser."""
    parser = command("app", _app, "serve the web page", _EXAMPLES)
    parser.add_argument("--model", default="vasa3d-small", help="embedded name, folder or Hub repository (%(default)s)")
    parser.add_argument(
        "--moda",
        default="moda-small",
        help="MoDA to compare with: name, folder or Hub repository (%(default)s)",
    )
    parser.add_argument(
        "--gaia",
        default="gaia-small",
        help="GAIA: name, folder or Hub repository; the page has no such tab without it (%(default)s)",
    )
    parser.add_argument("--device", help="such as cpu or cuda (cuda if there is one)")
    parser.add_argument("--host", help="address to listen on (127.0.0.1; a Space sets its own)")
    parser.add_argument("--port", type=int, help="port (the first free one from 7860)")
    parser.add_argument("--private", action="store_true", help="leave out the consent box")
    parser.add_argument("--mcp", action="store_true", help="also serve the page's functions as MCP tools")
    parser.add_argument("--share", action="store_true", help="create a public link through Gradio's servers")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def _app(options: argparse.Namespace) -> int:
    from vasa_hf.demo.app import serve

    if options.port is not None:
        check_number("port", options.port, 1, 65_535, whole=True)
    if options.device is not None:
        find_device(options.device)
    page = serve(
        options.model,
        options.moda,
        options.gaia,
        options.device,
        not options.private,
        options.mcp,
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        inbrowser=options.open,
    )
    page.block_thread()
    return 0

"""The command `app`: the web page. The page is in `app.py`, next to the package or, in a wheel, inside it."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import vasa_hf

_EXAMPLES = """examples:
  vasa-hf app --open
  vasa-hf app --private                      # no consent box: only you use it
  vasa-hf app --host 0.0.0.0 --port 7860     # for other machines too
  vasa-hf app --mcp                          # also serve its functions as MCP tools
"""


def add_commands(command: Any) -> None:
    """Add this module's command to the parser."""
    add_options(command("app", _app, "serve the web page", _EXAMPLES))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the page, which `python app.py` has as well."""
    parser.add_argument("--model", default="vasa3d-small", help="embedded name, folder or Hub repository (%(default)s)")
    parser.add_argument(
        "--moda",
        default="moda-small",
        help="MoDA to compare with: name, folder or Hub repository (%(default)s)",
    )
    parser.add_argument("--device", help="such as cpu or cuda (cuda if there is one)")
    parser.add_argument("--host", help="address to listen on (127.0.0.1; a Space sets its own)")
    parser.add_argument("--port", type=int, help="port (the first free one from 7860)")
    parser.add_argument("--private", action="store_true", help="leave out the consent box")
    parser.add_argument("--mcp", action="store_true", help="also serve the page's functions as MCP tools")
    parser.add_argument("--share", action="store_true", help="create a public link through Gradio's servers")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def page() -> ModuleType:
    """Import `app.py`.

    Raises:
        FileNotFoundError: If the package was installed without it.
    """
    package = Path(vasa_hf.__file__).resolve().parent
    # A wheel carries the file inside the package; a checkout has it next to the package.
    file = next((file for file in (package / "app.py", package.parent / "app.py") if file.is_file()), None)
    if file is None:
        raise FileNotFoundError("app.py is missing: reinstall vasa-hf from a complete checkout or wheel.")
    spec = importlib.util.spec_from_file_location("vasa_hf_app", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # Gradio looks up its classes there
    spec.loader.exec_module(module)
    return module


def _app(options: argparse.Namespace) -> int:
    page().serve(options)[0].block_thread()
    return 0

"""Live sessions over a WebSocket: `vasa-hf serve`, see `docs/serve.md`."""

from vasa_hf.serve.app import create_app
from vasa_hf.serve.settings import ServeSettings

__all__ = ["ServeSettings", "create_app"]

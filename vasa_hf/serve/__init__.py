"""Live sessions over a WebSocket: `vasa-hf serve`, see `docs/serve.md`."""

from vasa_hf.serve.app import ServeSettings, create_app

__all__ = ["ServeSettings", "create_app"]

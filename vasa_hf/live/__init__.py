"""Live sessions: a face that talks, listens and idles for as long as a conversation lasts."""

from vasa_hf.live.session import LiveFrame, LiveSession, LiveSettings

__all__ = ["LiveFrame", "LiveSession", "LiveSettings"]

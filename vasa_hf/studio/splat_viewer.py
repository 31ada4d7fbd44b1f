"""The viewer of Gaussians in the page: its files lie beside this one, and what a page must tell it is made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def viewer_parts() -> dict[str, str]:
    """HTML, style and script, as Gradio's HTML component names them."""
    parts = {"html_template": ".html", "css_template": ".css", "js_on_load": ".js"}
    return {name: Path(__file__).with_suffix(suffix).read_text(encoding="utf-8") for name, suffix in parts.items()}


def viewer_camera(camera: Any) -> dict[str, Any]:
    """The portrait's camera and the point that it is carried round, for `splat_viewer.js`.

    Args:
        camera (`CameraPath`): Of an avatar's view.

    Returns:
        `dict`: `center`, the point in the world; `seen`, the same before the camera; `focal`, a fraction of the height.
    """
    matrix = camera.portrait.camera_from_world[0]
    seen = matrix[:3, :3] @ camera.center + matrix[:3, 3]
    return {"center": camera.center.tolist(), "seen": seen.tolist(), "focal": float(camera.portrait.focal[0, 1])}

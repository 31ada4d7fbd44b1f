"""The page as a whole: tabs, looks, and how it is served."""

from __future__ import annotations

import importlib.util
import os
import threading
from typing import Any

import gradio as gr

from vasa_hf.demo.about import build_about_tab
from vasa_hf.demo.avatar import build_avatar_tab
from vasa_hf.demo.compare import build_compare_tab
from vasa_hf.demo.explore import build_explore_tab
from vasa_hf.demo.files import Page
from vasa_hf.demo.gaia import build_gaia_tab
from vasa_hf.demo.handler import RequestHandler
from vasa_hf.demo.jobs import share_one_heap
from vasa_hf.demo.talk import build_talk_tab
from vasa_hf.demo.widgets import session_name

CONSENT = (
    "The people whose face and voice I use are adults who agreed to it, or do not exist. None is a child. "
    "I will not present the result as real."
)
# Fields that an error names (`FieldError.field`) get a border while the error is shown.
_FIELDS = {name: f".{name}" for name in ("portrait", "voice", "driving", "avatar", "pose-video")} | {
    "consent": "#consent"
}
STYLE = """
:root body {--color-accent: var(--primary-600)} :root body.dark {--color-accent: var(--primary-400)}
.status {min-height: 3em; padding: 0 4px}
.status.error, .note:has(p) {color: var(--body-text-color)}
.status.error {border-left: 4px solid var(--error-border-color); padding-left: 8px; font-weight: 600}
.status progress {width: 100%; height: 10px; appearance: none; border: none; border-radius: 5px; overflow: hidden;
  background: var(--border-color-primary)}
.status progress::-webkit-progress-bar {background: var(--border-color-primary)}
.status progress::-webkit-progress-value {background: var(--color-accent)}
.status progress::-moz-progress-bar {background: var(--color-accent)}
.voice :is(time, .controls button, .controls span) {color: var(--body-text-color-subdued) !important}
.icon-button, .download-link {min-width: 24px; min-height: 24px}
""" + "".join(
    f"body:has(.status.error[data-field={name}]) {selector} {{outline: 3px solid var(--error-border-color)}}\n"
    for name, selector in _FIELDS.items()
)
# Not in STYLE: Gradio puts what is in a media query below its content, where neither of these is.
PHONE_STYLE = """<style>@media (max-width: 640px) {
  .gradio-container main {padding: 8px !important}
  footer .divider {display: none !important}
}</style>"""
# What screen readers and keyboards need and Gradio leaves out: names of buttons around images and of empty fields, and
# one target where a button is inside a link.
SCRIPT = """() => {
  const name = () => {
    for (const button of document.querySelectorAll(".block button:not([aria-label]):has(img)"))
      button.ariaLabel = button.closest(".block").querySelector("label")?.textContent.trim() || "Image";
    for (const empty of document.querySelectorAll("[aria-label='Empty value']:not([role])")) empty.role = "img";
    for (const inner of document.querySelectorAll("a.download-link button:not([tabindex])")) inner.tabIndex = -1;
  };
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
  name();
}"""
# Fonts of the device: a page that runs offline must not load others. Colors with a contrast of 4.5 (WCAG AA) and more.
THEME = gr.themes.Default(primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_label_text_color="*neutral_600",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_cancel_background_fill="#b91c1c",
    button_cancel_background_fill_hover="#991b1b",
)


def build(handler: RequestHandler) -> gr.Blocks:
    """Build the page."""
    with Page(title="vasa_hf", delete_cache=(600, 3600), analytics_enabled=False) as page:
        gr.Markdown("# vasa_hf: talking faces from one portrait and one voice")
        consent = gr.Checkbox(not handler.need_consent, label=CONSENT, visible=handler.need_consent, elem_id="consent")
        with gr.Tab("Talk"):
            image, audio = build_talk_tab(handler, consent)
        with gr.Tab("3D") as tab:
            build_avatar_tab(handler, consent, tab)
        with gr.Tab("Compare"):
            build_compare_tab(handler, consent, image)
        with gr.Tab("Explore"):
            build_explore_tab(handler, consent, image, audio)
        if handler.about["gaia"]:
            with gr.Tab("GAIA"):
                build_gaia_tab(handler, consent, image, audio)
        with gr.Tab("About"):
            build_about_tab(handler)

        def leave(request: gr.Request) -> None:
            handler.jobs.forget(session_name(request))

        page.unload(leave)
    page.queue(max_size=24, default_concurrency_limit=2)
    page.stop_with_clients(handler.jobs.stop)
    return page


def check_mcp() -> None:
    """Raise `ImportError` if the package for MCP tools is missing; Gradio would only print a line about it."""
    if importlib.util.find_spec("mcp") is None:
        raise ImportError("Serving MCP tools needs the package mcp: pip install 'vasa-hf[mcp]'")


def serve(
    model: str = "vasa3d-small",
    moda: str = "moda-small",
    gaia: str = "gaia-small",
    device: str | None = None,
    need_consent: bool = True,
    mcp: bool = False,
    **launch: Any,
) -> gr.Blocks:
    """Serve the page; the models load in the background.

    Args:
        model (`str`): As for `Models`.
        moda (`str`): As for `Models`.
        gaia (`str`): As for `Models`.
        device (`str`, *optional*): Defaults to a CUDA device if there is one.
        need_consent (`bool`): Whether to ask for consent.
        mcp (`bool`): Whether to serve the functions as MCP tools, too.
        **launch: Passed to Gradio's `launch`.

    Returns:
        `gradio.Blocks`: The page; `block_thread()` waits for its end.
    """
    if mcp:
        check_mcp()
    share_one_heap()
    handler = RequestHandler(model, need_consent, device, moda, gaia)
    # Not Gradio's default: a folder of all pages of this machine, with files that are not ours to open.
    os.environ.setdefault("GRADIO_TEMP_DIR", str(handler.jobs.root / "uploads"))
    page = build(handler)
    page.launch(
        css=STYLE,
        js=SCRIPT,
        head=PHONE_STYLE,
        theme=THEME,
        footer_links=["api", "settings"],
        ssr_mode=False,
        max_file_size="50mb",
        show_error=True,
        mcp_server=mcp,
        state_session_capacity=100,  # 0.4 MB each, also after people have left; Gradio keeps 10,000
        prevent_thread_lock=True,
        **launch,
    )
    # Some seconds later, if no job asks sooner: reading weights takes the cores that the browser's first view needs.
    later = threading.Timer(4, handler.models.start)
    later.daemon = True
    later.start()
    return page

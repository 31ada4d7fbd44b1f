"""Tab About: consent and misuse, whether a video was generated, and the models' cards."""

from __future__ import annotations

import re
from pathlib import Path

import gradio as gr

from vasa_hf.demo.handler import RequestHandler, explain_error
from vasa_hf.demo.widgets import PRIVATE, add_api

CONSENT = """
### Consent and misuse
Animate only faces and voices of adults who agreed to it, or of people who do not exist. Never animate children. Do not
use this page to impersonate, deceive, harass or defame a person, to make sexual images, or to pass identity checks. In
many countries that is a crime, and synthetic media must be labelled. Uploads and results are kept for this visit only.

### How to tell a generated video
Every video made here says so in its metadata. Its frames carry an invisible mark, which survives ordinary compression
and resizing, and mostly cropping by up to 15 % of a side. Add a video below to look for both. Signs for the eye: teeth
and tongue that change from frame to frame, a background that does not move with the head, hair that moves as one piece,
ears and glasses that bend, and irises that hardly move.
"""


def read_card(folder: Path) -> str:
    """A model's card without its metadata, and without images and links that only its folder has."""
    file = Path(folder) / "README.md"
    if not file.is_file():
        return f"*The card of {Path(folder).name} is not on this machine.*"
    text = re.sub(r"\A---\n.*?\n---\n", "", file.read_text(), flags=re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)", "", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:|#)[^)]*\)", r"\1", text)


def check_video(video: str) -> str:
    """Whether vasa_hf made a video, by its metadata and its mark, in Markdown.

    Args:
        video (`str`): A file.

    Raises:
        ValueError: If it is not a video.
    """
    from vasa_hf.media import MARK_THRESHOLD, detect_mark, read_provenance, read_video

    manifest, score = read_provenance(video), detect_mark(read_video(video))
    found = score > MARK_THRESHOLD
    note = "says that it is synthetic" if manifest else "does not mention vasa_hf"
    mark = f"{'carry' if found else 'do not carry'} the mark (score {score:.1f}, threshold {MARK_THRESHOLD:.1f})"
    end = "**This video was made by vasa_hf.**" if manifest or found else "*Nothing was found. That proves nothing.*"
    return f"The metadata {note}; the frames {mark}. {end}"


def build_about_tab(handler: RequestHandler) -> None:
    """Build the tab."""
    gr.Markdown(CONSENT)
    video = gr.Video(label="Video to check", sources=["upload"], height=320)
    answer = gr.Markdown("No video yet.", elem_classes="note")

    def verdict(video) -> str:
        """Tell whether vasa_hf made a video, by its metadata and its invisible mark."""
        if not video:
            return "No video yet."
        try:
            return check_video(video)
        except ValueError as error:
            return f"This file cannot be checked: {explain_error(error)}"

    video.change(verdict, video, answer, api_name="show_verdict", **PRIVATE)  # not the name of the function below
    add_api(verdict, "verdict", video, answer)
    for folder in handler.about["cards"]:
        with gr.Accordion(f"Model card: {folder.name}", open=False):
            gr.Markdown(read_card(folder))

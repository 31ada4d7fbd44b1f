"""What the page says of itself: cards of the models, and whether a video was generated."""

from __future__ import annotations

import re
from pathlib import Path

CONSENT = """
### Consent and misuse
Animate only faces and voices of people who agreed to it, or of people who do not exist. Do not use this page to
impersonate, deceive, harass or defame, to make sexual pictures, or to get past identity checks. In many countries that
is a crime, and synthetic media must be labelled. Uploads and results are kept for this visit only, and removed after.

### How to tell a generated video
Every video made here says so in its metadata, and bears an invisible mark in the picture that outlives ordinary
compression and resizing, but not cropping. Drop a video below to look for both. By eye: teeth and tongue that change
from frame to frame, a background that stays still though the head moves, hair that moves with the head as one piece,
ears and glasses that bend, irises that hardly move.
"""


def card(folder: Path) -> str:
    """A model's card without its metadata, and without pictures that only its folder has."""
    file = Path(folder) / "README.md"
    if not file.is_file():
        return f"*The card of {Path(folder).name} is not here.*"
    text = re.sub(r"\A---\n.*?\n---\n", "", file.read_text(), flags=re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)", "", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:|#)[^)]*\)", r"\1", text)


def verdict(video: str) -> str:
    """Whether a video says, or shows, that it was made by vasa_hf, in Markdown.

    Args:
        video (`str`): A file.

    Raises:
        ValueError: If it is no video.
    """
    from vasa_hf.media import MARK_THRESHOLD, detect_mark, read_provenance, read_video

    manifest, score = read_provenance(video), detect_mark(read_video(video))
    found = score > MARK_THRESHOLD
    says = "says that it is synthetic" if manifest else "says nothing of vasa_hf in its metadata"
    shows = f"{'bears' if found else 'does not bear'} the mark (score {score:.1f}, threshold {MARK_THRESHOLD:.1f})"
    end = "**This video was made by vasa_hf.**" if manifest or found else "*Nothing was found, which proves nothing.*"
    return f"The file {says}, and the picture {shows}. {end}"


def verdict_or_hint(video: str | None) -> str:
    """Whether a video says, or shows, that vasa_hf made it; or what is wrong with the file."""
    try:
        return verdict(video) if video else "No video yet."
    except ValueError as error:
        from vasa_hf.studio.desk import message

        return f"This file cannot be judged: {message(error)}"

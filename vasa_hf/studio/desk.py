"""Where requests of the page come in: checks them, gives each a job, and hands it to the models."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from vasa_hf.studio import speech
from vasa_hf.studio.faces import FoundFaces
from vasa_hf.studio.jobs import Job, Jobs, Stopped, Update, release_memory
from vasa_hf.studio.models import SYSTEMS, Models, described
from vasa_hf.studio.settings import TalkSettings

MINE = "mine (fitted here)"
VOICE, VIDEO = "a voice", "a driving video"
POSES = ("yaw", "pitch", "roll", "size")
# Kind of work -> the function of this package that does it. Imported when the first one is asked for: the page is there
# before torch is.
_WORK = {
    "talk": "talk.talk",
    "drive": "talk.drive",
    "fit": "avatars.fit",
    "talk3d": "avatars.talk3d",
    "compare": "insight.compare",
    "swaps": "insight.swaps",
    "look": "avatars.look",
    "export": "avatars.export",
    "faces": "faces.find_faces",
    "shape": "insight.shaped",
}


class Desk:
    """Takes requests; `session` names the user.

    Args:
        name (`str`): Model, as for `Models`.
        need_consent (`bool`): Whether a request must say that the people in it agreed.
        device (`str`, *optional*): Defaults to a CUDA device if there is one.
        moda (`str`, defaults to `"moda-small"`): MoDA's model, as for `Models`.

    Attributes:
        about (`dict`): See `described`.
        long_work, short_work (`Callable`): What runs the models; a place that lends GPUs puts its own around them.
    """

    def __init__(
        self,
        name: str = "vasa3d-small",
        need_consent: bool = True,
        device: str | None = None,
        moda: str = "moda-small",
    ):
        self.models, self.jobs, self.need_consent = Models(name, device, moda), Jobs(), need_consent
        self.about = described(name)
        self.long_work: Callable = self.do_long
        self.short_work: Callable = self.do_short

    def do_long(self, kind: str, job: Job, *arguments: Any) -> Iterator[Update]:
        """Yield the updates of a job."""
        yield from _function(kind)(self.models, job, *arguments)

    def do_short(self, kind: str, *arguments: Any) -> Any:
        """Return the result of something quick."""
        return _function(kind)(self.models, *arguments)

    def updates(self, kind: str, session: str, consent: bool, *arguments: Any) -> Iterator[Update]:
        """The updates of a job, whose files go when the iterator ends."""
        check_consent(consent, self.need_consent)
        if not self.models.ready:
            yield Update("Loading the models")
        try:
            with self.jobs.open(session) as job:
                assert self.models.avatars  # waits; here, as another process has not the thread that loads
                yield from self.long_work(kind, job, *arguments)
        except Stopped:
            yield Update("Stopped. Nothing was kept.")
        finally:
            release_memory()

    def talk(
        self,
        session: str,
        consent: bool,
        image: str | None,
        by: str,
        audio: str | None,
        video: str | None,
        face: int | None,
        *values: Any,
    ) -> Iterator[Update]:
        """A portrait that talks, or that does what a video's face does; `values` are those of `TalkSettings`."""
        image, settings = required(image, "a portrait"), TalkSettings(*values)
        if by == VIDEO:
            return self.updates("drive", session, consent, image, required(video, VIDEO), settings, face)
        return self.updates("talk", session, consent, image, required(audio, VOICE), settings, face)

    def talk3d(
        self, session: str, consent: bool, name: str, audio: str | None, camera: str, background: str, *values: Any
    ) -> Iterator[Update]:
        """An avatar that talks."""
        arguments = (self.avatar(session, name), required(audio, VOICE), TalkSettings(*values), camera, background)
        return self.updates("talk3d", session, consent, *arguments)

    def compare(
        self,
        session: str,
        consent: bool,
        name: str,
        audio: str | None,
        camera: str,
        seed: int,
        systems: Sequence[str] = SYSTEMS,
    ) -> Iterator[Update]:
        """Systems beside each other."""
        avatar, settings = self.avatar(session, name), TalkSettings(seed=seed)
        portrait = (Path(avatar) if name == MINE else self.about["folder"] / "avatars" / avatar) / "portrait.png"
        return self.updates(
            "compare", session, consent, avatar, str(portrait), required(audio, VOICE), settings, camera, systems
        )

    def swaps(
        self, session: str, consent: bool, image: str | None, others: Sequence[str] | None, audio: str | None, seed: int
    ) -> Iterator[Update]:
        """Poses and dynamics exchanged, on up to three faces."""
        images = [required(image, "a portrait"), *(others or [])][:3]
        return self.updates("swaps", session, consent, images, required(audio, VOICE), int(seed))

    def fit(self, session: str, consent: bool, image: str | None, minutes: float) -> Iterator[Update]:
        """An avatar of a portrait, which is then `MINE`."""
        target = self.jobs.kept(session) / "avatar"
        return self.updates("fit", session, consent, required(image, "a portrait"), target, minutes)

    def look(self, session: str, name: str, azimuth_deg: float, elevation_deg: float, background: str) -> Image.Image:
        """A picture of an avatar from one side."""
        return self.short_work("look", self.avatar(session, name), azimuth_deg, elevation_deg, 384, background)

    def export(self, session: str, name: str) -> Iterator[Any]:
        """Files of an avatar's Gaussians, which go when the iterator ends."""
        with self.jobs.open(session) as job:
            yield self.short_work("export", self.avatar(session, name), job.folder)

    def faces(self, consent: bool, image: str | None, face: int | None = None) -> FoundFaces | None:
        """Faces of a picture; none before there is one, and consent."""
        return self.short_work("faces", image, face) if image and (consent or not self.need_consent) else None

    def shape(self, consent: bool, image: str | None, *amounts: float) -> Image.Image:
        """A portrait moved along `POSES` and the model's named directions."""
        check_consent(consent, self.need_consent)
        named = dict(zip((*POSES, *self.about["sliders"]), amounts, strict=True))
        return self.short_work("shape", required(image, "a portrait"), named)

    def say(self, session: str, text: str, voice: str) -> str:
        """File of typed text as speech."""
        return str(speech.speak(text, self.jobs.kept(session), voice))

    def avatar(self, session: str, name: str | None) -> str:
        """Name of an embedded avatar, or the folder of the user's own.

        Raises:
            ValueError: If there is none.
        """
        if name in self.about["avatars"]:
            return name
        folder = self.jobs.kept(session) / "avatar"
        if name != MINE or not folder.is_dir():
            raise ValueError("Please fit an avatar first, or choose one that is there.")
        return str(folder)


def check_consent(given: bool, needed: bool) -> None:
    """Raise `ValueError` if consent is asked for here and was not given."""
    if needed and not given:
        raise ValueError("Please confirm first, at the top, that the people whose face and voice you use have agreed.")


def _function(kind: str) -> Callable:
    module, name = _WORK[kind].split(".")
    return getattr(import_module(f"vasa_hf.studio.{module}"), name)


def required(value: Any, what: str) -> Any:
    """Raise `ValueError` for a field that was left empty."""
    if not value:
        raise ValueError(f"Please add {what} first.")
    return value


def message(error: Exception) -> str:
    """An error in words for the page: without folders of this machine."""
    text = re.sub(r"(['\"])(?:(?!\1).)*/([^/'\"]+)\1", r"'\2'", " ".join(str(error).split()))
    return re.sub(r"(?<![\w/])(?:file:)?/(?:[^\s/'\"]+/)+", "", text).replace("`", "")


def status(update: Update) -> str:
    """Stage, part done and time left as HTML, for eyes and for screen readers."""
    bar = f'<progress max="{update.total}" value="{update.done}" aria-label="progress"></progress>'
    text = update.stage + (f": {update.done} of {update.total}" if update.total > 1 else "")
    if update.seconds_left:
        text += f", about {update.seconds_left:.0f} s left"
    shown = (bar if update.total else "") + f"<div>{html.escape(text)}</div>"
    return f'<div class="status" role="status" aria-live="polite">{shown}</div>'

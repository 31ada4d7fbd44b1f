"""Request handler: checks a request, gives it a job and a turn, and runs it with the shared models."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vasa_hf.demo.jobs import Job, Jobs, Line, Stopped, Update, release_memory
from vasa_hf.demo.models import Models, describe

try:  # a Space with ZeroGPU: only such functions have the device
    from spaces import GPU
except ImportError:
    GPU = lambda **_: lambda function: function  # noqa: E731

#: Choices of the page: the user's own avatar.
MINE = "mine (fitted here)"
STOPPED = Update("Stopped. Nothing was kept.")
# Argument of the package -> label of the page's control.
_LABELS = {
    "image": "Portrait",
    "face": "Face to animate",
    "audio": "Voice",
    "driving_video": "Driving video",
    "video": "Video to check",
    "text": "Text",
    "voice": "Speaker",
    "gaze": "Gaze",
    "head_distance": "Head distance",
    "emotion": "Emotion",
    "head_motion": "Head movement",
    "guidance_scale": "Guidance",
    "num_inference_steps": "Denoising steps",
    "fps": "Frames per second",
    "keyframes": "Keyframes",
    "minutes": "Minutes",
    "systems": "Systems",
    "pose": "Head pose",
    "edit_landmarks": "Reference video",
    "seconds": "Length (seconds)",
}
# Not an argument of the functions below: a Space runs them in a forked process.
_models: Models


class FieldError(ValueError):
    """A field of the page has to be changed.

    Args:
        message (`str`): What to do.
        field (`str`): Name of the field, as in `STYLE` of `app.py`.
    """

    def __init__(self, message: str, field: str):
        super().__init__(message)
        self.field = field


@GPU(duration=120)
def run_job(work: Callable[..., Iterator[Update]], job: Job, *arguments: Any) -> Iterator[Update]:
    """Yield the updates of `work(models, job, *arguments)`."""
    yield from work(_models, job, *arguments)


@GPU(duration=20)
def run_short(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of `work(models, *arguments)`."""
    return work(_models, *arguments)


class RequestHandler:
    """Runs requests. `session` names the user.

    Args:
        name (`str`): Model, as for `Models`.
        need_consent (`bool`): Whether a request must confirm the consent of the people in it.
        device (`str`, *optional*): Defaults to a CUDA device if there is one.
        moda (`str`, defaults to `"moda-small"`): MoDA's model, as for `Models`.
        gaia (`str`, defaults to `"gaia-small"`): GAIA's model, likewise.

    Attributes:
        about (`dict`): See `describe`.
    """

    def __init__(
        self,
        name: str = "vasa3d-small",
        need_consent: bool = True,
        device: str | None = None,
        moda: str = "moda-small",
        gaia: str = "gaia-small",
    ):
        global _models
        _models = self.models = Models(name, device, moda, gaia)
        self.jobs, self.line, self.need_consent = Jobs(), Line(), need_consent
        self.about = describe(name, moda, gaia)

    def stream(self, work: Callable, session: str, consent: bool, *arguments: Any) -> Iterator[Update]:
        """Yield the updates of a job, in turn. Its files are removed when the iterator ends.

        Args:
            work (`Callable`): Takes the models, the job and `arguments`; a function of a module.
            session (`str`): The user.
            consent (`bool`): Whether the consent is confirmed.
            *arguments: For `work`.

        Raises:
            ValueError: If the consent is missing, or from `work`.
        """
        self.check_consent(consent)
        try:
            with self.jobs.open(session) as job, self.line.join(job) as turn:
                yield from turn.wait()
                if not self.models.ready:
                    yield Update("Loading the models")
                self.models.wait()  # here: the loading thread is not in the process of `run_job`
                with contextlib.closing(run_job(work, job, *arguments)) as updates:
                    for update in updates:
                        turn.seconds_left = update.seconds_left
                        yield update
        except Stopped:
            yield STOPPED
        finally:
            release_memory()

    def check_consent(self, given: bool) -> None:
        """Raise `FieldError` if the consent is asked for and was not given."""
        if self.need_consent and not given:
            text = "Please tick the consent box at the top first: the people whose face and voice you use have agreed."
            raise FieldError(text, "consent")

    def avatar_path(self, session: str, name: str | None) -> str:
        """Name of an embedded avatar, or the folder of the user's own.

        Raises:
            FieldError: If there is none.
        """
        if name in self.about["avatars"]:
            return name
        folder = self.jobs.kept(session) / "avatar"
        if name != MINE or not folder.is_dir():
            raise FieldError("Please choose an avatar, or fit an avatar first (tab 3D).", "avatar")
        return str(folder)

    def avatar_portrait(self, session: str, name: str) -> str:
        """File of the portrait that an avatar was fitted to."""
        path = self.avatar_path(session, name)
        folder = Path(path) if name == MINE else self.about["folder"] / "avatars" / path
        return str(folder / "portrait.png")


def require(value: Any, what: str, field: str) -> Any:
    """Return the value of a field, or raise `FieldError` if it is empty."""
    if not value:
        raise FieldError(f"Please add {what} first.", field)
    return value


def explain_error(error: Exception, labels: bool = True) -> str:
    """Message of an error without folders of this machine.

    Args:
        error (`Exception`): Unexpected kinds are logged, and not shown.
        labels (`bool`): Whether to write labels of the page in place of names of arguments.
    """
    if not isinstance(error, (ValueError, ImportError)):
        logging.getLogger(__name__).error("A request failed.", exc_info=error)
        return "Something went wrong on the server. The log of the server has the details."
    text = re.sub(r"(['\"])(?:(?!\1).)*/([^/'\"]+)\1", r"'\2'", " ".join(str(error).split()))
    text = re.sub(r"(?<![\w/])(?:file:)?/(?:[^\s/'\"]+/)+", "", text)
    name = (lambda found: f"“{_LABELS[found[1]]}”" if found[1] in _LABELS else found[1]) if labels else r"\1"
    return re.sub(r"`([^`]*)`", name, text)


def report_error(error: Exception) -> Update:
    """An error as the last update of a job."""
    return Update(f"Error: {explain_error(error)}", field=getattr(error, "field", ""))

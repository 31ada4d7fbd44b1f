"""Options of a call: the fields of dataclasses, one for each concern, that a system chooses.

`TalkingHeadPipeline` takes them as `**options`, so that its methods are written once; `show_options` gives the methods
of each system the signature and the docstring that a user of `help(pipe)` expects.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from vasa_hf.checks import check_flags
from vasa_hf.pipelines.inputs import AudioInput, check_choice, check_face


@dataclass(frozen=True)
class FaceView:
    """How a portrait is prepared, and what of it is shown.

    Args:
        face (`int`, *optional*): Which face of the image, 0 is the largest.
        box (`Sequence[float]`, *optional*): x0, y0, x1, y1 of the face in pixels, instead of detecting it.
        output_size (`int`, *optional*): Side of the face's square, one of `output_sizes`.
        paste_back (`bool`, defaults to `False`): Give the whole image, not only the face's square.
    """

    face: int | None = None
    box: Sequence[float] | None = None
    output_size: int | None = None
    paste_back: bool = False

    def check(self, output_sizes: Sequence[int]) -> None:
        """Raise `ValueError` for values out of range."""
        if self.output_size is not None:
            check_choice("output_size", self.output_size, output_sizes)
        check_face(self.face, self.box)


@dataclass(frozen=True)
class Transfer:
    """More options of `animate` and `render`; a system may have some."""

    def check(self) -> None:
        """Raise `ValueError` for values out of range."""


@dataclass(frozen=True)
class DrivingOptions:
    """How a subject follows a driving video.

    Args:
        relative (`bool`, defaults to `True`): Add the driver's change to the subject's own pose and expression. It
            counts from the first frame, or from another in which the face is clearly nearer to rest: mouth closed,
            eyes open, not turned. Otherwise the driving pose and expression are taken as they are.
        driving_face (`int`, *optional*): `face` of the first driving frame with faces.
        driving_box (`Sequence[float]`, *optional*): `box` of the first driving frame.
        fps (`Fraction`, `float` or `str`, *optional*): Defaults to the video's own rate, 25 for frames.
    """

    relative: bool = True
    driving_face: int | None = None
    driving_box: Sequence[float] | None = None
    fps: Fraction | float | str | None = None


@dataclass(frozen=True)
class MotionOptions:
    """How a given motion is shown.

    Args:
        motion_fps (`Fraction`, `float` or `str`, *optional*): Its rate; the file's own, 25 for tensors.
        relative (`bool`, defaults to `False`): Start from the subject's own pose and expression, as `animate` does.
        audio (`str`, `os.PathLike`, `np.ndarray`, `torch.Tensor` or `tuple`, *optional*): Audio of the video.
        sampling_rate (`int`, *optional*, defaults to 16000): Rate of bare samples in Hz.
        fps (`Fraction`, `float` or `str`, defaults to 25): Frames per second of the video.
    """

    motion_fps: Fraction | float | str | None = None
    relative: bool = False
    audio: AudioInput | None = None
    sampling_rate: int | None = None
    fps: Fraction | float | str = 25


def pop_options(options: dict[str, Any], kind: type) -> Any:
    """Take the fields of a dataclass out of the options."""
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: options.pop(name) for name in names if name in options})


def read_options(options: Mapping[str, Any], kinds: Sequence[type], pipeline: str) -> list[Any]:
    """Sort options into dataclasses.

    Args:
        options (`Mapping[str, Any]`): Values by name.
        kinds (`Sequence[type]`): The dataclasses.
        pipeline (`str`): Name of the pipeline's class, for the error.

    Raises:
        ValueError: If no dataclass has a field of some name.
    """
    names = {kind: [field.name for field in dataclasses.fields(kind)] for kind in kinds}
    known = list(itertools.chain.from_iterable(names.values()))
    for name in options:
        if name not in known:
            raise ValueError(f"`{name}` is no option here: {pipeline} knows {known}.")
    read = [kind(**{name: options[name] for name in names[kind] if name in options}) for kind in kinds]
    for one in read:
        check_flags(one)
    return read


def show_options(method: Callable, kinds: Sequence[type], subject_name: str = "image") -> Callable:
    """A method with `**options` whose signature and docstring name the fields of dataclasses instead.

    Args:
        method (`Callable`): The method; its docstring may have an entry `**options:`.
        kinds (`Sequence[type]`): Dataclasses whose docstrings have `Args:`.
        subject_name (`str`, defaults to "image"): Another name of the argument `image`.
    """
    if "__signature__" in vars(method):  # of the parent class, with its own options
        method = inspect.unwrap(method, stop=lambda function: "__signature__" not in vars(function))

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    parameter = functools.partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    shown, entries = [], []
    if subject_name != "image":
        shown.append(parameter(subject_name, default=None, annotation="Any"))
        entries.append(f"{subject_name} (*optional*): Another name of `image`.")
    for field, docs in ((field, _argument_docs(kind)) for kind in kinds for field in dataclasses.fields(kind)):
        shown.append(parameter(field.name, default=field.default, annotation=field.type))
        entries.append(docs[field.name])
    signature = inspect.signature(method)
    given = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    call.__signature__ = signature.replace(parameters=[*given, *shown])  # type: ignore[attr-defined]
    text = "".join(f"    {entry}\n" for entry in entries)
    call.__doc__ = re.sub(r" {4}\*\*options:.*\n(?: {8}.*\n)*", lambda _: text, inspect.getdoc(method) or "")
    return call


def _argument_docs(kind: type) -> dict[str, str]:
    """Entry of each field in the `Args:` of a dataclass and its parents, without the indent of its first line."""
    docs = {field.name: f"{field.name} (`{field.type}`): See `{kind.__name__}`." for field in dataclasses.fields(kind)}
    for parent in reversed(kind.__mro__):
        _, _, section = inspect.cleandoc(parent.__doc__ or "").partition("Args:\n")
        section = re.split(r"\n\n|\n(?! )", section)[0]
        for entry in re.split(r"\n(?= {4}\w)", "\n" + section):
            name = re.match(r"\w+", entry.strip())
            if name and name[0] in docs:
                docs[name[0]] = entry.strip()
    return docs

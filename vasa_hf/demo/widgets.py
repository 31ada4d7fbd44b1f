"""Parts that several tabs use: start and Stop, status, one player from the first second to the file, API functions."""

from __future__ import annotations

import functools
import html
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from vasa_hf.demo.handler import STOPPED, RequestHandler, explain_error, report_error
from vasa_hf.demo.jobs import Update

#: Several changes in a row: the last one must be answered.
LAST = {"show_progress": "minimal", "trigger_mode": "always_last"}
#: Descriptions of fields that several API functions have.
FIELDS = {
    "consent": "Whether the people whose face and voice are used agreed to it, or do not exist.",
    "image": "An image with a face.",
    "audio": "A voice, in any usual format.",
    "face": "Which face of the image; 0 is the largest.",
}
PRIVATE = {"api_visibility": "private"}
# Jobs wait in a line of their own (`jobs.Line`), which shows them their place.
_JOB = {"concurrency_id": "jobs", "concurrency_limit": None, "show_progress": "hidden"}
_READY = Update("Ready.")
# The finished video replaces the live one where that is played: same time, playing or not. NAME is its elem_id.
_CONTINUE = """() => {
  const of = (kind) => document.querySelector("#NAME-" + kind + " video");
  const live = of("live"), time = live ? live.currentTime : 0, plays = live && !live.paused && !live.ended;
  const limit = Date.now() + 5000;
  const go = () => {
    const video = of("video");
    if (!video) return Date.now() < limit ? setTimeout(go, 50) : null;
    const start = () => {
      video.currentTime = time < video.duration - 0.2 ? time : 0;
      if (plays) video.play().catch(() => {});
    };
    video.readyState ? start() : video.addEventListener("loadedmetadata", start, { once: true });
  };
  go();
}"""


def session_name(request: gr.Request) -> str:
    """Name of the user of a request."""
    return request.session_hash or "api"


def show_status(update: Update) -> str:
    """Stage, part done and time left as HTML, for sighted users and for screen readers."""
    text = update.stage + (f": {update.done} of {update.total}" if update.total > 1 else "")
    if update.seconds_left:
        text += f", about {update.seconds_left:.0f} s left"
    bar = f'<progress max="{update.total}" value="{update.done}" aria-label="progress"></progress>'
    shown = (bar if update.total else "") + f"<div>{html.escape(text)}</div>"
    if update.field is not None:
        return f'<div class="status error" role="alert" data-field="{html.escape(update.field)}">{shown}</div>'
    return f'<div class="status" role="status" aria-live="polite">{shown}</div>'


async def stream_segments(value: Any, output_id: str, first_chunk: bool) -> tuple:
    """Send `Segment`s as they are: Gradio would encode their audio again, and needs ffprobe for that."""
    file = {"path": output_id, "is_stream": True, "orig_name": "live.mp4", "meta": {"_type": "gradio.FileData"}}
    if not value:
        return None, file
    data = b"".join(segment.path.read_bytes() for segment in value)
    return {"data": data, "duration": sum(segment.seconds for segment in value), "extension": ".ts"}, file


async def flush_stream(output_id: str) -> None:
    """Nothing is buffered at the end of a stream."""


class JobControls:
    """Start button, Stop button and status line of a job; Stop is shown while it runs.

    Args:
        handler (`RequestHandler`): Stops the job.
        text (`str`): On the start button.
    """

    def __init__(self, handler: RequestHandler, text: str):
        self.handler = handler
        self.start = gr.Button(text, variant="primary", elem_classes="start")
        self.stop = gr.Button("Stop", variant="stop", visible=False)
        self.status = gr.HTML(show_status(_READY))

    def connect(
        self,
        run: Callable[..., Iterator[Update]],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        show: Callable[[Update], Sequence[Any]],
        clear: Callable[[bool], Sequence[Any]],
        api_name: str,
    ) -> Any:
        """Start `run(session, *inputs)` with the button, and end it with Stop.

        Args:
            run (`Callable`): Yields updates. An error becomes the status.
            inputs (`Sequence`): Components.
            outputs (`Sequence`): Components.
            show (`Callable`): Values of `outputs` for an update.
            clear (`Callable`): Empty values of `outputs`; takes whether the job begins.
            api_name (`str`): Name for programs.

        Returns:
            The event, to continue from.
        """
        buttons, all_outputs = [self.start, self.stop], [self.status, *outputs]

        def prepare() -> tuple:
            return show_status(Update("Starting")), *clear(True), gr.update(visible=False), gr.update(visible=True)

        def finish() -> tuple:
            return gr.update(visible=True), gr.update(visible=False)

        def work(request: gr.Request, *arguments: Any) -> Iterator[tuple]:
            try:
                for update in run(session_name(request), *arguments):
                    yield show_status(update), *show(update)
            except Exception as error:
                yield show_status(report_error(error)), *clear(False)

        def end(request: gr.Request) -> tuple:
            self.handler.jobs.stop(session_name(request))
            return show_status(STOPPED), *clear(False), *finish()

        quick = {"queue": False, "show_progress": "hidden", **PRIVATE}
        first = self.start.click(prepare, None, [*all_outputs, *buttons], **quick)
        event = first.then(work, inputs, all_outputs, api_name=api_name, api_visibility="undocumented", **_JOB)
        event.then(finish, None, buttons, **quick)
        self.stop.click(end, None, [*all_outputs, *buttons], cancels=[event], **quick)
        return event


class VideoJob(JobControls):
    """Controls of a job that makes a video: one player, first live, then with the file; and downloads.

    Args:
        handler (`RequestHandler`): As in `JobControls`.
        text (`str`): On the start button.
        label (`str`): Of the video.
        name (`str`): Prefix of the `elem_id`s.
    """

    def __init__(self, handler: RequestHandler, text: str, label: str, name: str):
        super().__init__(handler, text)
        self.name = name
        looks = {"height": 320, "interactive": False, "visible": False}
        # No button: a download of the live stream needs a system ffmpeg.
        self.live = gr.Video(
            streaming=True, autoplay=True, label=f"{label} (live)", buttons=[], elem_id=f"{name}-live", **looks
        )
        self.live.stream_output, self.live.flush_stream_output = stream_segments, flush_stream
        self.video = gr.Video(label=label, elem_id=f"{name}-video", **looks)
        self.files = gr.File(
            label="Download: video and settings", file_count="multiple", interactive=False, visible=False
        )

    def connect_video(self, run: Callable[..., Iterator[Update]], inputs: Sequence[Any], api_name: str) -> Any:
        """As `connect`, with the outputs of a video."""
        outputs = [self.live, self.video, self.files]

        def show(update: Update) -> tuple:
            files = [str(file) for file in update.files.values()]
            if files:
                return gr.skip(), gr.update(value=files[0], visible=True), gr.update(value=files, visible=True)
            if update.segments:
                return update.segments, gr.skip(), gr.skip()
            return (gr.skip(),) * 3

        def clear(begins: bool) -> tuple:
            hidden = gr.update(value=None, visible=False)
            return gr.update(value=None, visible=begins), hidden, hidden

        event = self.connect(run, inputs, outputs, show, clear, api_name)
        event.then(None, None, None, js=_CONTINUE.replace("NAME", self.name))
        event.then(lambda: gr.update(visible=False), None, self.live, queue=False, show_progress="hidden", **PRIVATE)
        return event


def describe_function(function: Callable, name: str, fields: Mapping[str, str] | None = None) -> Callable:
    """Return a function with another name, and with names and descriptions of its `*arguments`.

    Args:
        function (`Callable`): May take `*arguments`.
        name (`str`): Its name.
        fields (`Mapping[str, str]`, *optional*): Name of an argument -> its description. Names that the function does
            not have become the names of its `*arguments`, if it has any.
    """

    @functools.wraps(function)
    def generator(*arguments: Any) -> Any:
        yield from function(*arguments)

    @functools.wraps(function)
    def plain(*arguments: Any) -> Any:
        return function(*arguments)

    result = generator if inspect.isgeneratorfunction(function) else plain
    fields = {re.sub(r"\W", "_", field): about for field, about in (fields or {}).items()}
    parameters = inspect.signature(function).parameters
    names = {one.name: one for one in parameters.values() if one.kind != one.VAR_POSITIONAL}
    if len(names) < len(parameters):
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        names |= {field: inspect.Parameter(field, kind) for field in fields if field not in names}
    result.__signature__ = inspect.Signature(list(names.values()))
    result.__name__ = result.__qualname__ = name
    about = "".join(f"    {field}: {text}\n" for field, text in fields.items() if field in names)
    result.__doc__ = inspect.getdoc(function) + (f"\n\nArgs:\n{about}" if about else "")
    return result


def add_api(
    function: Callable,
    name: str,
    inputs: Sequence[Any],
    outputs: Any,
    fields: Mapping[str, str] | None = None,
    **options: Any,
) -> None:
    """Add a function for programs (`gradio_client`, MCP); errors are raised in words, by names of arguments.

    Args:
        function (`Callable`): Returns, or yields, values of the outputs.
        name (`str`): API name, without the slash.
        inputs (`Sequence`): Components.
        outputs (`Sequence`): Components.
        fields (`Mapping[str, str]`, *optional*): As for `describe_function`.
        **options: Of Gradio's event.
    """

    def explain(error: Exception) -> gr.Error:
        return gr.Error(explain_error(error, labels=False), title="Error", print_exception=False)

    @functools.wraps(function)
    def generator(*arguments: Any) -> Any:
        try:
            yield from function(*arguments)
        except Exception as error:
            raise explain(error) from error

    @functools.wraps(function)
    def plain(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise explain(error) from error

    call = describe_function(generator if inspect.isgeneratorfunction(function) else plain, name, fields)
    gr.Button(visible=False).click(call, inputs, outputs, api_name=name, **options)

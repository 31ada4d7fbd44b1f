"""A face for as long as a conversation lasts: audio goes in as it comes, frames with their audio come out in time.

    push_audio --> speech that waits --> timeline, silence between --> short windows of motion --> frames --> iterator
                                             ^ interrupt, set, a new utterance: motion and frames not yet shown are
                                               made again from here, and continue what was shown

A thread makes a few frames more than were taken. It knows no web framework: `vasa_hf.serve` is one user of it.

# Not in the paper: VASA-1 reports 40 frames a second online and a latency of 170 ms, but no session.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vasa_hf.checks import check_flag, check_number
from vasa_hf.live.listening import Listener, nod
from vasa_hf.live.timeline import Timeline, check_samples
from vasa_hf.media.watermark import embed_mark
from vasa_hf.outputs import to_uint8

MIN_RATE, MAX_RATE = 8_000, 96_000
MAX_LAG_SECONDS = 1.0  # behind its clock: a session then sets it back
PITCH = 1  # channel of the motion
LATE_FRAMES = 3  # a session is late where fewer are ahead of their time
RENDER_BATCH = 4  # frames
SIZES = 5  # windows have multiples of this many frames where they can


@dataclass(frozen=True)
class LiveSettings:
    """How a session works.

    Args:
        window (`int`, defaults to 10): Fewest frames of a window of motion. Windows grow to the model's where the
            audio is known: fewer answer sooner where it comes in real time, and move less like a person.
        lead_frames (`int`, defaults to 16): Frames that are ready before they are shown.
        kept_frames (`int`, defaults to 2): Of them, those that are still shown when something changes.
        fade_frames (`int`, defaults to 3): Frames over which motion goes over to the new one after a change.
        sampling_rate (`int`, defaults to 24000): Rate of the audio of the frames in Hz; a multiple of 25.
        realtime (`bool`, defaults to `True`): Give a frame when its time has come, and leave out late ones. `False`
            gives them as soon as they are made, and waits for the audio of an utterance that has not ended.
        max_waiting_seconds (`float`, defaults to 120): Speech that may wait.
        provenance (`bool`, defaults to `True`): Mark the frames invisibly as synthetic.
        output_type (`str`, defaults to `"np"`): Images as `"np"` or `"pil"`.
    """

    window: int = 10
    lead_frames: int = 16
    kept_frames: int = 2
    fade_frames: int = 3
    sampling_rate: int = 24_000
    realtime: bool = True
    max_waiting_seconds: float = 120.0
    provenance: bool = True
    output_type: str = "np"

    def check(self, fps: int) -> None:
        """Raise `ValueError` for values that cannot be used."""
        for name, low, high in (("window", 2, 50), ("lead_frames", 1, 100), ("kept_frames", 0, 50)):
            check_number(name, getattr(self, name), low, high, whole=True)
        check_number("fade_frames", self.fade_frames, 1, 25, whole=True)
        check_number("sampling_rate", self.sampling_rate, MIN_RATE, MAX_RATE, whole=True)
        if self.sampling_rate % fps:
            raise ValueError(f"`sampling_rate` must be a multiple of {fps}, got {self.sampling_rate}.")
        check_number("max_waiting_seconds", self.max_waiting_seconds, 1.0, 3600.0)
        check_flag("realtime", self.realtime)
        check_flag("provenance", self.provenance)
        if self.output_type not in ("np", "pil"):
            raise ValueError(f"`output_type` must be 'np' or 'pil', got {self.output_type!r}.")


@dataclass(frozen=True)
class LiveFrame:
    """A frame and the audio up to its end.

    Args:
        image (`np.ndarray` of shape `(height, width, 3)`, uint8, or `PIL.Image.Image`): The image.
        audio (`np.ndarray` of shape `(n,)`, float32): Audio from the end of the frame before to the end of this one.
        index (`int`): Frames since the beginning, with those that were left out.
        seconds (`float`): Time of its beginning.
        is_speaking (`bool`): Whether it has speech of `push_audio`.
        late_seconds (`float`): Time since it should have come; 0 where `realtime` is off.
    """

    image: Any
    audio: np.ndarray
    index: int
    seconds: float
    is_speaking: bool
    late_seconds: float = 0.0


@dataclass(frozen=True)
class LiveStats:
    """What a session has done.

    Args:
        frames (`int`): Frames given.
        dropped (`int`): Frames left out because the machine was too slow.
        starved (`int`): Frames of silence within an utterance whose audio came too late.
        stalls (`int`): Times that the session was more than `MAX_LAG_SECONDS` late.
        queued_frames (`int`): Frames that are ready.
        waiting_seconds (`float`): Speech that waits.
    """

    frames: int
    dropped: int
    starved: int
    stalls: int
    queued_frames: int
    waiting_seconds: float


class LiveSession:
    """A talking face that is fed while it is shown; made by `pipe.live(...)`. Iterate it in one thread or task.

    Args:
        pipeline (`TalkingHeadPipeline`): Makes the motion and the frames.
        subject (`Subject`): From its `prepare_subject`.
        controls (`Any`): Of the pipeline's `controls_type`; constant ones.
        view (`Any`): Of its `view_type`.
        sampling (`Sampling`): How motion is sampled.
        settings (`LiveSettings`): How the session works.

    Raises:
        ValueError: If a setting cannot be used, or the system has no live sessions.

    Example:
        ```python
        with pipe.live("portrait.jpg") as session:
            session.push_audio(samples, 24_000)
            session.end_of_speech()
            for frame in session:
                show(frame.image, frame.audio)
        ```
    """

    def __init__(
        self, pipeline: Any, subject: Any, controls: Any, view: Any, sampling: Any, settings: LiveSettings
    ) -> None:
        processor = pipeline.audio_processor
        self.fps = int(processor.fps)
        settings.check(self.fps)
        self.settings, self._pipeline, self._subject, self._view = settings, pipeline, subject, view
        self._generator = pipeline.create_motion_generator()
        self._generator.check(controls)
        self._generator.windows(short=settings.window)  # raises where there are none
        self._controls = controls
        self._restart, self._buffering, self._closed = True, True, False
        self._sampling = replace(sampling, is_interrupted=lambda: self._restart or self._closed)
        self._context, self._lookahead = processor.context_frames, processor.lookahead_frames
        self._timeline = Timeline(processor.sampling_rate, settings.sampling_rate, self.fps)
        self._changed = threading.Condition()
        self._queue: deque[tuple[int, Any]] = deque()
        self._listener, self._nods = Listener(), deque[int](maxlen=4)
        self._made = self._shown = self._given_until = 0  # next frame of motion, of the user; end of the audio given
        self._states: dict[int, tuple[Tensor | None, Tensor | None]] = {0: (None, None)}  # past of windows, by start
        self._past: dict[int, Tensor] = {}  # motion of the last frames
        self._most = max(self._generator.first_window_range)
        self._pending: deque[tuple[int, Tensor]] = deque()  # motion that is not rendered
        self._motions: Iterator[Tensor] = iter(())
        self._plan: Any = None
        self._base = 0  # frame of the plan's position 0
        self._cut: int | None = None  # frame from which on the audio is placed again
        self._motion_seconds = 0.02  # a frame's share of the time that motion takes
        self._skip, self._stride, self._blend = 0, 1, False
        self._fade: tuple[Tensor, int] | None = None
        self._error: BaseException | None = None
        self._start: float | None = None  # time of frame 0
        self._counts = {"frames": 0, "dropped": 0, "starved": 0, "stalls": 0}
        self._thread = threading.Thread(target=self._run, name="vasa_hf live session", daemon=True)
        self._thread.start()

    # --- what a user does ---------------------------------------------------------------------------------------------

    def push_audio(self, samples: Any, sampling_rate: int) -> None:
        """Add speech to what the face says. It is said after what waits, and begins as soon as there is enough.

        Args:
            samples (`np.ndarray` or `torch.Tensor` of shape `(n,)` or `(channels, n)`): int16, or in [-1, 1].
            sampling_rate (`int`): Their rate in Hz; the same within an utterance.

        Raises:
            ValueError: If they cannot be used, or too much speech waits, and the session continues without them; or if
                it is closed.
        """
        mono = self._read(samples, sampling_rate)
        with self._changed:
            self._check_open()
            waiting, most = self._timeline.waiting_seconds, self.settings.max_waiting_seconds
            if waiting + len(mono) / sampling_rate > most:
                raise ValueError(f"`samples` must leave at most {most:g} s of speech to wait, {waiting:.1f} s do now.")
            self._timeline.push(mono, int(sampling_rate))
            self._begin_speech()

    def end_of_speech(self) -> None:
        """End the utterance: its last samples are said without waiting for more."""
        with self._changed:
            self._check_open()
            self._timeline.end()
            self._begin_speech()

    def interrupt(self) -> None:
        """Stop speaking: all speech is dropped, its audio ends within a frame, and the mouth closes."""
        with self._changed:
            self._timeline.clear()
            self._timeline.fade_out(self._shown)
            self._buffering, self._restart, self._cut = True, True, 0
            self._changed.notify_all()

    def set(self, **controls: Any) -> None:
        """Change controls of the motion, such as `gaze`, `emotion` or `head_distance`, from the next frames on.

        Raises:
            ValueError: If the system has no such control, or it cannot have the value.
        """
        known = self._pipeline.control_names()
        for name in controls:
            if name not in known:
                raise ValueError(f"`{name}` must be one of the controls {known}.")
        changed = replace(self._controls, **controls)
        self._generator.check(changed)
        with self._changed:
            self._controls, self._restart = changed, True
            self._changed.notify_all()

    def listen(self, samples: Any, sampling_rate: int) -> None:
        """Hear the other side: the face nods in their pauses. A rule, not a trained model.

        Args:
            samples (`np.ndarray` or `torch.Tensor` of shape `(n,)` or `(channels, n)`): int16, or in [-1, 1].
            sampling_rate (`int`): Their rate in Hz.

        Raises:
            ValueError: If they cannot be used.
        """
        mono = self._read(samples, sampling_rate)
        with self._changed:
            if self._listener.push(mono, int(sampling_rate)):
                self._nods.append(self._shown + len(self._queue))

    def close(self) -> None:
        """End the session; the iterator ends."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def stats(self) -> LiveStats:
        """What the session has done so far."""
        with self._changed:
            return LiveStats(
                **self._counts, queued_frames=len(self._queue), waiting_seconds=self._timeline.waiting_seconds
            )

    def __enter__(self) -> LiveSession:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __iter__(self) -> LiveSession:
        return self

    def __next__(self) -> LiveFrame:
        """The next frame, at its time.

        Raises:
            StopIteration: If the session was closed.
        """
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or self._closed or self._error is not None)
                if self._error is not None:
                    raise self._error
                if self._closed:
                    raise StopIteration
                if self.settings.realtime and (start := self._clock_start()) != self._start:
                    self._counts["stalls"] += self._start is not None
                    self._start = start
                wait = self._until_due(self._queue[0][0]) if self.settings.realtime else 0.0
                if wait <= 0:
                    break
                self._changed.wait(wait)
            index, image = self._queue.popleft()
            audio = self._timeline.output_audio(self._given_until, index + 1)
            self._shown = self._given_until = index + 1
            self._counts["frames"] += 1
            self._forget()
            self._changed.notify_all()
            return LiveFrame(image, audio, index, index / self.fps, self._timeline.is_speech(index), -wait)

    async def __aiter__(self) -> AsyncIterator[LiveFrame]:
        end: Any = object()
        while (frame := await asyncio.to_thread(next, self, end)) is not end:
            yield frame

    # --- audio --------------------------------------------------------------------------------------------------------

    def _read(self, samples: Any, sampling_rate: Any) -> np.ndarray:
        check_number("sampling_rate", sampling_rate, MIN_RATE, MAX_RATE, whole=True)
        return check_samples("samples", samples)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("The session is closed: begin another one by `pipe.live(...)`.")

    def _begin_speech(self) -> None:
        """Place the speech that waits, once it is enough, in place of silence that is not yet shown."""
        timeline, enough = self._timeline, self.settings.window + self._lookahead + self.settings.kept_frames
        if self._buffering and timeline.frames_waiting() >= (enough if timeline.is_open else 1):
            self._buffering = False
            if self._cut is None and timeline.placed > timeline.speech_stop:
                self._restart, self._cut = True, timeline.speech_stop
        self._changed.notify_all()

    def _plan_window(self) -> int | None:
        """Frames of the next window of motion, also those that are there already; `None` while it cannot be made."""
        count = self._count_new()
        if count is None:
            return None
        # A few lengths only: memory grows with each shape that the kernels have seen.
        rounded = (count + self._skip) // SIZES * SIZES
        return min(rounded if rounded >= self._skip + self.settings.window else count + self._skip, self._most)

    def _count_new(self) -> int | None:
        """Frames of motion that can and should be made now."""
        settings, timeline, start = self.settings, self._timeline, self._window_start + self._skip
        if self._pending and (not settings.realtime or len(self._pending) > settings.lead_frames):
            return None
        most = self._most
        if settings.realtime:  # as long as the frames that are there last
            most = min(max(int(self._until_due(start) / self._motion_seconds), settings.window), most)
        if not timeline.is_open:
            return most
        if not settings.realtime and self._buffering:
            return None
        known = timeline.placed - start + (0 if self._buffering else timeline.frames_waiting()) - self._lookahead
        if self._buffering or known >= settings.window:
            return most if self._buffering else min(known, most)
        if not settings.realtime or self._until_due(start) > 2 * settings.kept_frames / self.fps:
            return None
        self._counts["starved"] += settings.window - max(known, 0)
        self._buffering = True
        return settings.window

    def _feed(self, frame: int) -> Iterator[Tensor]:
        """Yield the audio of frames from `frame` on, one at a time; what has no speech is silent."""
        while True:
            with self._changed:
                timeline = self._timeline
                while timeline.placed <= frame:
                    # What is placed while a cut is due is taken back.
                    is_speech = not self._buffering and self._cut is None and timeline.frames_waiting() > 0
                    timeline.place(is_speech)
                    self._buffering |= not timeline.is_open and not timeline.frames_waiting()
                audio = timeline.encoder_audio(frame, frame + 1)
            frame += 1
            yield audio

    # --- motion and frames --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with torch.no_grad():
                while self._make():
                    pass
        except BaseException as error:  # noqa: BLE001 - raised in `__next__`
            self._error = error
        with self._changed:
            self._changed.notify_all()

    def _make(self) -> bool:
        """Make some frames or a window of motion, whatever is needed first; false once the session is closed."""
        with self._changed:
            while True:
                if self._closed:
                    return False
                if self._restart:
                    self._begin_again()
                is_urgent = self._pending and self._ahead() < self.settings.lead_frames / 2
                size = None if is_urgent else self._plan_window()
                if size is not None:
                    break
                if self._pending and self._pending[0][0] - self._shown < self.settings.lead_frames:
                    frames = self._take_frames()
                    break
                self._changed.wait(None if not self.settings.realtime else 0.5 / self.fps)
        if size is None:
            self._render(*zip(*frames, strict=True))
            return True
        self._plan.window = self._plan.first_window = size
        began = time.monotonic()
        motion = next(self._motions)[0]
        self._motion_seconds += 0.3 * ((time.monotonic() - began) / size - self._motion_seconds)
        if self._restart:  # it was broken off
            return True
        motion, self._skip = motion[self._skip :], max(self._skip - len(motion), 0)
        self._pending.extend(self._join(motion) if len(motion) else ())
        return True

    def _ahead(self) -> float:
        """Frames of time until the next frame to render must be there."""
        return self._until_due(self._pending[0][0]) * self.fps if self.settings.realtime else math.inf

    def _take_frames(self) -> list[tuple[int, Tensor]]:
        """The next frames to render; every second or third one while the session is late or nearly so."""
        ahead = self._ahead()
        if ahead < LATE_FRAMES:
            self._stride = 2 if ahead > 0 else 3
        elif ahead > self.settings.lead_frames / 2:
            self._stride = 1
        count = min(RENDER_BATCH * self._stride, len(self._pending))
        frames = [self._pending.popleft() for _ in range(count)]
        kept = frames[self._stride - 1 :: self._stride] or frames[-1:]
        self._counts["dropped"] += len(frames) - len(kept)
        return kept

    @property
    def _window_start(self) -> int:
        """First frame of the next window."""
        return self._base + self._plan.position

    def _first_again(self) -> int:
        """First frame that a restart makes again: after some that are ready, or are late already."""
        kept = self.settings.kept_frames
        ready = [index for index, _ in self._queue][:kept]
        first = ready[-1] + 1 if ready else self._shown + kept
        return min(max(first, self._cut or 0), self._made)

    def _begin_again(self) -> None:
        """Make what is not shown again: from the frames that are kept on, or from where the audio is cut."""
        first = self._first_again()
        self._queue = deque(item for item in self._queue if item[0] < first)
        self._pending = deque(item for item in self._pending if item[0] < first)
        if self._cut is not None:
            self._timeline.truncate(first)
        self._restart, self._cut = False, None
        window = max(start for start in self._states if start <= first)
        self._states = {start: state for start, state in self._states.items() if start <= window}
        self._past = {frame: motion for frame, motion in self._past.items() if frame < first}
        self._made, self._skip, self._fade, self._blend = first, first - window, None, bool(self._past)
        self._motions = self._generate(window)

    def _generate(self, window: int) -> Iterator[Tensor]:
        """Return absolute motion `(1, n, channels)` from the frame `window` on, where a window began, in windows."""
        plan = self._plan = self._generator.windows(short=self.settings.window)
        if window:
            plan.position = self._context
            plan.previous_motion, plan.previous_audio = self._states[window]
        self._base = window - plan.position
        sampling, states = replace(self._sampling, windows=plan), self._states
        windows = self._generator.generate(self._feed(self._base), [self._subject], self._controls, sampling)

        def remember() -> Iterator[Tensor]:
            for part in windows:
                states[self._window_start] = plan.previous_motion, plan.previous_audio
                yield part

        return self._generator.place(remember(), self._subject, self._controls)

    def _join(self, motion: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield frames of motion, each with its index, that continue the motion before without a jump."""
        if not bool(torch.isfinite(motion).all()):
            raise ValueError("The motion has NaN or infinite values: the weights or the audio features are broken.")
        if self._blend:
            last = self._past[self._made - 1]
            before = self._past.get(self._made - 2, last)
            self._fade, self._blend = (last + 0.5 * (last - before) - motion[0], self._made), False
        for row in motion:
            if self._fade is not None:
                step, start = self._fade
                share = min((self._made - start) / self.settings.fade_frames, 1.0)
                row = row + step * (0.5 + 0.5 * math.cos(math.pi * share))
            self._past[self._made] = row
            yield self._made, row
            self._made += 1
        with self._changed:
            self._past = {frame: row for frame, row in self._past.items() if frame >= self._shown - 2}

    def _render(self, frames: tuple[int, ...], rows: tuple[Tensor, ...]) -> None:
        """Render frames and queue them."""
        with self._changed:
            nods = [sum(nod(frame - start) for start in self._nods) for frame in frames]
        motion, indices = torch.stack(rows), iter(frames)
        motion[:, PITCH] += motion.new_tensor(nods)
        for part in self._pipeline.render_frames(self._subject, motion, self._view, frames[0], Fraction(self.fps)):
            for image, index in zip(to_uint8(self._pipeline.postprocess(part, "np")), indices, strict=False):
                marked: Any = embed_mark(image) if self.settings.provenance else image
                if self.settings.output_type == "pil":
                    marked = Image.fromarray(marked)
                with self._changed:
                    if self._closed or (self._restart and len(self._queue) >= self.settings.kept_frames):
                        if self._closed or index >= self._first_again():
                            return
                    self._queue.append((index, marked))
                    self._changed.notify_all()

    def _until_due(self, frame: int) -> float:
        """Seconds until the time of a frame, by a clock that waits where the next one is far behind it."""
        start = self._clock_start()
        return start + frame / self.fps - time.monotonic()

    def _clock_start(self) -> float:
        """Time of frame 0; the next frame is due at once if it is the first, or far behind."""
        now = time.monotonic() - self._shown / self.fps
        return now if self._start is None or now - self._start > MAX_LAG_SECONDS else self._start

    def _forget(self) -> None:
        oldest = max((start for start in self._states if start <= self._shown), default=0)
        for start in [start for start in self._states if start < oldest]:
            del self._states[start]
        self._timeline.forget(min(oldest, self._shown) - self._context - 1)

"""Long audio by sliding windows (VASA-1 §3.2-3.3), the same for whole files and for streams.

Motion is generated in windows of W frames, one after the other. The last K frames of motion and of audio features of a
window condition the next one:

    frames   0 ......... W ......... 2W .... n
    window 1 [-----------]
    window 2         [K->|-----------]
    window 3                     [K->|------]    the last one is shorter: its mask ends at n

A stream uses the same windows as soon as their audio is known, so that it gives the same motion as a whole file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor


class MotionWindows:
    """Plans the windows of one sequence and carries the context from one to the next.

    Args:
        window (`int`): Frames W of a window.
        context (`int`): Frames K carried over, `0 <= K <= first_window`.
        first_window (`int`, *optional*, defaults to `window`):
            Frames of the very first window. A short one lets a stream begin early.
            # Not in the paper: the first window may be shorter.
        seam_frames (`int`, defaults to 4):
            A remaining step between two windows fades out over this many frames; 0 leaves it as generated.
            # Not in the paper: nothing is said about what the carried context leaves at the seams.

    Example:
        ```python
        windows = MotionWindows(window=50, context=10)
        frames = windows.take(num_frames, finished=True)
        motion = [windows.generate(features[:, part], sample_window) for part in frames]
        ```
    """

    def __init__(self, window: int, context: int, first_window: int | None = None, seam_frames: int = 4):
        first_window = window if first_window is None else first_window
        if not 1 <= first_window <= window:
            raise ValueError(f"`first_window` must lie in [1, {window}], got {first_window}.")
        if not 0 <= context <= first_window:
            raise ValueError(f"`context` must lie in [0, {first_window}], got {context}.")
        if seam_frames < 0:
            raise ValueError(f"`seam_frames` must be >= 0, got {seam_frames}.")
        self.window, self.context, self.first_window, self.seam_frames = window, context, first_window, seam_frames
        self.position = 0  # first frame of the next window
        self.previous_motion: Tensor | None = None  # [B, K, M]
        self.previous_audio: Tensor | None = None  # [B, K, A]

    def take(self, available: int, finished: bool) -> Iterator[slice]:
        """Yield the frames of each window that can be generated now.

        Args:
            available (`int`): Frames whose audio features are known, counted from the beginning of the sequence.
            finished (`bool`): Whether no more frames will come, so that a shorter last window may be taken.
        """
        while self.position < available:
            size = self.window if self.position else self.first_window
            stop = self.position + size
            if stop > available:
                if not finished:
                    return
                stop = available
            start, self.position = self.position, stop
            yield slice(start, stop)

    def count(self, num_frames: int) -> int:
        """Number of windows that a whole sequence takes."""
        return 1 + max(0, -(-(num_frames - self.first_window) // self.window))

    def generate(self, audio: Tensor, sample_window: Callable[..., Tensor]) -> Tensor:
        """Generate the motion of one window and remember its end.

        Args:
            audio (`torch.Tensor` of shape `(batch, frames, audio_dim)`): Features of the frames that `take` named.
            sample_window (`Callable`):
                `sample_window(audio, frame_mask, previous_motion, previous_audio) -> motion (batch, window, channels)`,
                with `audio` padded to the whole window, `frame_mask` of shape `(batch, window)` true for real frames,
                and the previous ones `None` in the first window.

        Returns:
            `torch.Tensor` of shape `(batch, frames, channels)`.
        """
        batch, frames, width = audio.shape
        if not 1 <= frames <= self.window:
            raise ValueError(f"`audio` must have 1 to {self.window} frames, got {frames}.")
        padded = torch.cat([audio, audio.new_zeros(batch, self.window - frames, width)], dim=1)
        frame_mask = torch.arange(self.window, device=audio.device).expand(batch, -1) < frames
        motion = sample_window(padded, frame_mask, self.previous_motion, self.previous_audio)[:, :frames]
        if self.previous_motion is not None:
            motion = smooth_seam(self.previous_motion, motion, self.seam_frames)
        if self.context and frames >= self.context:
            self.previous_motion, self.previous_audio = motion[:, -self.context :], audio[:, -self.context :]
        return motion


class ShortWindows(MotionWindows):
    """Windows of a few frames that are not filled up to the model's, for sessions that must answer soon.

    The first one has K frames, so that every other one has a past of K.

    Args:
        window (`int`): Frames of a window.
        context (`int`): Frames K carried over.
    """

    def __init__(self, window: int, context: int):
        super().__init__(max(window, context), context)
        self.window = window

    def generate(self, audio: Tensor, sample_window: Callable[..., Tensor]) -> Tensor:
        """As `MotionWindows.generate`, with all that is remembered in the past of the next window."""
        frame_mask = torch.ones(audio.shape[:2], dtype=torch.bool, device=audio.device)
        motion = sample_window(audio, frame_mask, self.previous_motion, self.previous_audio)
        if self.previous_motion is not None and self.previous_audio is not None:
            motion = smooth_seam(self.previous_motion, motion, self.seam_frames)
            past_motion, past_audio = self.previous_motion, self.previous_audio
            known = torch.cat([past_motion, motion], dim=1), torch.cat([past_audio, audio], dim=1)
        else:
            known = motion, audio
        if self.context:
            self.previous_motion, self.previous_audio = (part[:, -self.context :] for part in known)
        return motion


def smooth_seam(previous: Tensor, motion: Tensor, frames: int) -> Tensor:
    """Fade out the step between two windows.

    The step is the distance of the first new frame from where the previous frames were heading. It is subtracted in
    full from the first frame, and less and less from the following ones (half a cosine). The past does not change: a
    stream may have shown it already.

    Args:
        previous (`torch.Tensor` of shape `(batch, context, channels)`): End of the previous window.
        motion (`torch.Tensor` of shape `(batch, frames, channels)`): New window.
        frames (`int`): Frames over which the step fades out.
    """
    frames = min(frames, motion.shape[1])
    if frames == 0 or previous.shape[1] == 0:
        return motion
    last = previous[:, -1]
    speed = last - previous[:, -2] if previous.shape[1] > 1 else torch.zeros_like(last)
    # Halfway between holding still and continuing at the same speed: a fast lip must not overshoot.
    step = motion[:, 0] - (last + 0.5 * speed)
    # Half of the natural change to the first frame stays; a sharp onset of speech is no error.
    weight = 0.5 + 0.5 * torch.cos(torch.arange(frames, device=motion.device, dtype=torch.float32) * torch.pi / frames)
    fade = 0.5 * weight.to(motion.dtype)[None, :, None] * step[:, None]
    return torch.cat([motion[:, :frames] - fade, motion[:, frames:]], dim=1)


def entry_of_windows(windows: Iterable[Tensor], index: int, num_frames: int, overlap: int = 0) -> Iterator[Tensor]:
    """Yield the windows `(1, frames, channels)` of one entry of a batch, up to its length; they share `overlap`."""
    start = 0
    for window in windows:
        part = window[index : index + 1, : max(num_frames - start, 0)]
        if part.shape[1] > (overlap if start else 0):
            yield part
        start += window.shape[1] - overlap


def hold_last(motions: Sequence[Tensor]) -> Tensor:
    """Join motions `(1, frames, channels)` to a batch; shorter ones hold their last frame."""
    longest = max(motion.shape[1] for motion in motions)
    held = [torch.cat([motion, motion[:, -1:].expand(-1, longest - motion.shape[1], -1)], dim=1) for motion in motions]
    return torch.cat(held)


class OverlappedWindows:
    """Plans windows that overlap, and carries a frame from each to the next. Its methods are those of `MotionWindows`.

        frames   0 ......... W - V ... W .................. n
        window 1 [-------------|------]
        window 2               [------|-------------|------]      V frames are in both; `join_windows` cross-fades them

    # Not in the paper: how windows are joined. MoDA's public code does it like this, with the frame before the overlap
    as condition of a window. Here the first window may be shorter, for an early start.

    Args:
        window (`int`): Frames W of a window.
        overlap (`int`): Frames V that neighbours share, `0 <= V < first_window`.
        first_window (`int`, *optional*, defaults to `window`): Frames of the very first window.
        smoothed (`slice`, *optional*): Channels of which a window's neighbouring frames are averaged, see `smooth`.
    """

    def __init__(self, window: int, overlap: int, first_window: int | None = None, smoothed: slice | None = None):
        first_window = window if first_window is None else first_window
        if not 0 <= overlap < first_window <= window:
            raise ValueError(
                f"`first_window` must lie in [{overlap + 1}, {window}] for `overlap` {overlap}, got {first_window}."
            )
        self.window, self.overlap, self.first_window, self.smoothed = window, overlap, first_window, smoothed
        self.position = 0  # first frame of the next window
        self.previous_motion: Tensor | None = None  # [B, M]
        self.previous_audio: Tensor | None = None  # as in `MotionWindows`; always None

    def take(self, available: int, finished: bool) -> Iterator[slice]:
        """Yield the frames of each window that can be generated now; see `MotionWindows.take`."""
        while self.position == 0 < available or self.position + self.overlap < available:
            start, stop = self.position, self.position + (self.window if self.position else self.first_window)
            if stop > available and not finished:
                return
            self.position = stop - self.overlap
            yield slice(start, min(stop, available))

    def count(self, num_frames: int) -> int:
        """Number of windows that a whole sequence takes."""
        return 1 + max(0, -(-(num_frames - self.first_window) // (self.window - self.overlap)))

    def generate(self, audio: Tensor, sample_window: Callable[..., Tensor]) -> Tensor:
        """Generate the motion of one window and remember the frame that conditions the next.

        Args:
            audio (`torch.Tensor` of shape `(batch, frames, ...)`): Features of the frames that `take` named.
            sample_window (`Callable`):
                As for `MotionWindows.generate`, but `previous_motion` is one frame `(batch, channels)`, and
                `previous_audio` always `None`.

        Returns:
            `torch.Tensor` of shape `(batch, frames, channels)`.
        """
        size = self.first_window if self.previous_motion is None else self.window
        frames = audio.shape[1]
        if not 1 <= frames <= size:
            raise ValueError(f"`audio` must have 1 to {size} frames, got {frames}.")
        padded = torch.cat([audio, audio.new_zeros(len(audio), size - frames, *audio.shape[2:])], dim=1)
        frame_mask = torch.arange(size, device=audio.device).expand(len(audio), -1) < frames
        motion = sample_window(padded, frame_mask, self.previous_motion, None)
        motion = motion if self.smoothed is None else smooth(motion, self.smoothed)
        self.previous_motion = motion[:, size - self.overlap - 1]
        return motion[:, :frames]


def smooth(motion: Tensor, channels: slice) -> Tensor:
    """Average some channels of motion `(batch, frames, channels)` over each frame and its neighbours.

    Source: MoDA's code, on the pose alone: a box of three frames, of two at the ends.
    """
    part = motion[..., channels]
    left, right = torch.cat([part[:, :1], part], 1), torch.cat([part, part[:, -1:]], 1)
    total, count = left[:, :-1] + part + right[:, 1:], torch.full_like(part[:1, :, :1], 3.0)
    total[:, 0] -= part[:, 0]
    total[:, -1] -= part[:, -1]
    count[:, 0] -= 1
    count[:, -1] -= 1
    smoothed = motion.clone()
    smoothed[..., channels] = total / count
    return smoothed


def join_windows(windows: Iterable[Tensor], overlap: int, smoothed: slice | None = None) -> Iterator[Tensor]:
    """Join windows of `OverlappedWindows` to one motion, each frame as soon as it is final.

    The frames that two windows share fade from the old to the new one: the new one's weight is `k / overlap` for frame
    `k`. Then neighbouring frames are averaged, see `smooth`.

    Args:
        windows (`Iterable` of `torch.Tensor` of shape `(batch, frames, channels)`): One after another.
        overlap (`int`): Frames that neighbours share.
        smoothed (`slice`, *optional*): Channels to be averaged over neighbouring frames.

    Yields:
        `torch.Tensor` of shape `(batch, n, channels)` with at least one frame.
    """

    def fade() -> Iterator[Tensor]:
        tail = None
        for window in windows:
            if tail is not None and overlap:
                weight = torch.arange(overlap, device=window.device, dtype=window.dtype)[:, None] / overlap
                window = torch.cat([tail * (1 - weight) + window[:, :overlap] * weight, window[:, overlap:]], dim=1)
            keep = max(window.shape[1] - overlap, 0)
            tail = window[:, keep:]
            yield window[:, :keep]
        if tail is not None:
            yield tail

    if smoothed is None:
        yield from (part for part in fade() if part.shape[1])
        return
    known, given = None, 0  # the last frame that was yielded, if any, and all after it; how many of them were
    for part in fade():
        known = part if known is None else torch.cat([known, part], dim=1)
        if known.shape[1] - given > 1:  # the last frame waits for its neighbour
            yield smooth(known, smoothed)[:, given:-1]
            known, given = known[:, -2:], 1
    if known is not None:
        yield smooth(known, smoothed)[:, given:]


def hold_after(motion: Tensor, lengths: Tensor) -> Tensor:
    """Repeat the last frame of each motion `(batch, frames, channels)` after its own length `(batch,)`."""
    frames = torch.arange(motion.shape[1], device=motion.device)
    index = torch.minimum(frames[None], lengths.to(motion.device)[:, None] - 1)
    return motion.gather(1, index[..., None].expand(-1, -1, motion.shape[-1]))

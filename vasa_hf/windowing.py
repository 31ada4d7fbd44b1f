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
            A remaining step between two windows fades out over so many frames; 0 leaves it as generated.
            # Not in the paper: nothing is said about what the carried context leaves at the seams.

    Example:
        ```python
        windows = MotionWindows(window=50, context=10)
        pieces = windows.take(num_frames, finished=True)
        motion = [windows.generate(features[:, piece], sample_window) for piece in pieces]
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
            piece = slice(self.position, stop)
            self.position = stop
            yield piece

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


def smooth_seam(previous: Tensor, motion: Tensor, frames: int) -> Tensor:
    """Let the step between two windows fade out.

    The step is what the first new frame is away from where the previous frames were heading. It is taken off the first
    frame whole and off the following ones ever less (half a cosine), so that nothing of the past changes: a stream may
    have shown it already.

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
    # Halfway between holding still and going on at the same speed: a fast lip must not overshoot.
    step = motion[:, 0] - (last + 0.5 * speed)
    # Half of the natural change to the first frame stays; a sharp onset of speech is no error.
    weight = 0.5 + 0.5 * torch.cos(torch.arange(frames, device=motion.device, dtype=torch.float32) * torch.pi / frames)
    fade = 0.5 * weight.to(motion.dtype)[None, :, None] * step[:, None]
    return torch.cat([motion[:, :frames] - fade, motion[:, frames:]], dim=1)


def entry_of_windows(windows: Iterable[Tensor], index: int, num_frames: int) -> Iterator[Tensor]:
    """Windows `(1, frames, channels)` of one entry of a batch, up to its own length."""
    start = 0
    for window in windows:
        part = window[index : index + 1, : max(num_frames - start, 0)]
        start += window.shape[1]
        if part.shape[1]:
            yield part


def hold_last(motions: Sequence[Tensor]) -> Tensor:
    """Join motions `(1, frames, channels)` to a batch; shorter ones hold their last frame."""
    longest = max(motion.shape[1] for motion in motions)
    held = [torch.cat([motion, motion[:, -1:].expand(-1, longest - motion.shape[1], -1)], dim=1) for motion in motions]
    return torch.cat(held)

"""Which frames of a video may teach, and the clips they make: the filters of GAIA §A.1 and of VASA-1 §4.

GAIA §A.1 drops frames that are not frontal, in which the face jumps, that show masks, or without speech, and
keeps "video segments with consecutive satisfactory frames longer than three seconds"; VASA-1 §4 discards "clips with
multiple individuals and those of low quality".

# Not in the papers: all thresholds. GAIA names none ("a range", "a pre-defined threshold"), VASA-1 a tool.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vasa_hf.data.tracks import FaceFrames
from vasa_hf.geometry.crops import STANDARD_SCALE, landmark_box, standard_crop, transform_points
from vasa_hf.geometry.landmarks import mouth_openness, rows
from vasa_hf.metrics.motion import loudness, silent_frames

FPS = 25
#: Why frames or clips are dropped, in the order in which they are looked at: the first that holds is named.
REASONS = (
    "no face",
    "several people",
    "small face",
    "cut off",
    "turned away",
    "blurred",
    "starved of bits",
    "mouth covered",
    "jump",
    "still image",
    "silent",
    "lips still",
    "too short",
    "moves too far",
    "lips and audio differ",
)
_LOUD_ENOUGH = 1e-3  # root mean square of a frame, full scale = 1


@dataclass(frozen=True)
class Filters:
    """Thresholds of what is kept.

    `Filters.named("strict")` is for motion from speech, `"loose"` for appearance, which needs no audio (GAIA §A.1: "we
    use a loose threshold for the filtration policies for training the VAE model").

    Attributes:
        min_seconds (`float`): Least length of a clip (GAIA: three seconds).
        max_seconds (`float`): Longer ones are cut evenly (VASA-1 §4: clips of 2 to 10 seconds).
        min_presence (`float`): Least certainty of the analyzer that there is a face.
        min_face (`float`): Least larger side of the landmark box, in pixels of the source.
        max_people (`int`): Most faces of about the same size.
        max_cut_off (`float`): Largest share of landmarks beyond the image.
        frontal_deg (`float`): Range around 180 degrees of the eye-nose angle, see `frontal_deviation`.
        max_jump (`float`): Largest move of landmarks or box between frames, of the box's larger side.
        min_lips (`float`): Least height of the lips' heat maps.
        min_sharpness (`float`): Least `FaceFrames.sharpness`.
        max_blocks (`float`): Largest `FaceFrames.blocks`.
        min_bits (`float`): Least bits that the file spends on a pixel.
        min_change (`float`): Least mean change of the image from frame to frame within a second; a photograph's is 0.
        max_pause (`float`): Longest pause of the speech in seconds; 0 leaves audio and lips alone.
        min_lip_motion (`float`): Least standard deviation of the lip gap within `max_pause`, in outer eye distances.
        min_sync (`float`): Least sync confidence by the expert; 0 does not ask.
        max_offset (`int`): Largest shift of audio against lips, in frames.
    """

    min_seconds: float = 3.0
    max_seconds: float = 10.0
    min_presence: float = 0.6
    min_face: float = 64.0
    max_people: int = 1
    max_cut_off: float = 0.1
    frontal_deg: float = 30.0
    max_jump: float = 0.12
    min_lips: float = 0.08
    min_sharpness: float = 0.012
    max_blocks: float = 1.6
    min_bits: float = 0.012
    min_change: float = 0.001
    max_pause: float = 1.0
    min_lip_motion: float = 0.006
    min_sync: float = 0.06
    max_offset: int = 3

    def __post_init__(self) -> None:
        if not 0.2 <= self.min_seconds:
            raise ValueError(f"`min_seconds` must be at least 0.2, got {self.min_seconds}.")
        if self.max_seconds < 2 * self.min_seconds:
            raise ValueError(f"`max_seconds` must be at least twice {self.min_seconds}, got {self.max_seconds}.")

    @classmethod
    def named(cls, name: str, **changes: Any) -> Filters:
        """A set by its name, `strict` or `loose`, with some values changed.

        Args:
            name (`str`): The set.
            **changes: Attributes and their values.

        Raises:
            ValueError: If the set or an attribute is unknown.
        """
        loose = {"frontal_deg": 60.0, "max_jump": 0.25, "min_lips": 0.06, "max_pause": 0.0, "min_sync": 0.0}
        sets = {"strict": {}, "loose": loose}
        if name not in sets:
            raise ValueError(f"`filters` must be one of {list(sets)}, got {name!r}.")
        if unknown := set(changes) - {item.name for item in fields(cls)}:
            raise ValueError(f"`filters` have no {sorted(unknown)[0]!r}; they have {[i.name for i in fields(cls)]}.")
        whole = {item.name for item in fields(cls) if item.type == "int"}
        return cls(**{k: int(v) if k in whole else v for k, v in {**sets[name], **changes}.items()})

    def asdict(self) -> dict[str, Any]:
        """All values, for the manifest."""
        return asdict(self)


# --- frames -----------------------------------------------------------------------------------------------------------


def frontal_deviation(
    points: Tensor,  # [..., 162, 2]
    roll: Tensor,  # [...]
) -> Tensor:
    """How far the eye-nose angle lies from 180 degrees, in degrees: 0 is frontal, about the yaw otherwise.

    Source: GAIA §A.1, "the clockwise angles formed by the positions of both eye corners in relation to the tip of the
    nose, using the tip of the nose as the horizontal reference line". Read as: the line through the nose tip is
    horizontal; the two outer eye corners lie at clockwise angles from its left half; their sum is 180 when both are
    equally far and high. Deviation: the head's roll, which counts twice in it, is taken out; a tilted head hides
    nothing.

    Args:
        points (`torch.Tensor` of shape `(..., 162, 2)`): Landmarks, any unit.
        roll (`torch.Tensor` of shape `(...)`): Roll of the head in radians.

    Returns:
        `torch.Tensor` of shape `(...)`: positive if the face turns to the image's left.
    """
    left, right, nose = (points[..., row, :] for row in rows(33, 263, 4))
    to_left = torch.atan2(nose[..., 1] - left[..., 1], nose[..., 0] - left[..., 0])
    to_right = torch.atan2(nose[..., 1] - right[..., 1], right[..., 0] - nose[..., 0])
    return torch.rad2deg(to_left - to_right - 2 * roll)


def jumps(faces: FaceFrames) -> Tensor:
    """Largest of the moves of landmarks (mean), of the box's centre and of its size since the last frame, `(frames,)`.

    In larger sides of the box; 0 at the first frame of a shot. Source: GAIA §A.1, "the movement of the key point and
    face rectangle".
    """
    boxes, side = faces.boxes, faces.side
    points = (faces.landmarks[1:] - faces.landmarks[:-1]).norm(dim=-1).mean(1)
    centre = ((boxes[1:] - boxes[:-1]).unflatten(1, (2, 2)).mean(1)).norm(dim=1)
    size = (side[1:] - side[:-1]).abs()
    moved = torch.stack([points, centre, size]).amax(0) / torch.minimum(side[1:], side[:-1])
    moved[faces.shot[1:] != faces.shot[:-1]] = 0.0
    return torch.cat([torch.zeros(1), moved])


def over_time(values: Tensor, width: int, kind: str) -> Tensor:
    """Median or maximum over `width` frames (an odd number) around each frame; the ends are continued."""
    half = width // 2
    padded = torch.cat([values[:1].expand(half), values, values[-1:].expand(half)])
    windows = padded.unfold(0, width, 1)
    return windows.nanmedian(1).values if kind == "median" else windows.amax(1)


def calm(values: Tensor, width: int, kind: str, least: float) -> Tensor:
    """Frames in a stretch of `width` frames (or all, if there are fewer) whose mean or deviation is below `least`."""
    windows = values.unfold(0, min(width, len(values)), 1)
    found = (windows.mean(1) if kind == "mean" else windows.std(1, correction=0)) < least
    out = torch.zeros(len(values), dtype=torch.bool)
    for first in found.nonzero()[:, 0].tolist():
        out[first : first + windows.shape[1]] = True
    return out


def speaking(samples: Tensor | None, num_frames: int) -> Tensor:
    """Frames with speech, `(frames,)` bool: within 30 dB of the loudest, or near such a frame.

    # Not in the papers: loudness alone decides; noise and music count as speech, which the sync expert then judges.

    Args:
        samples (`torch.Tensor` of shape `(n,)`, *optional*): Mono at 16 kHz; without it, there is no speech.
        num_frames (`int`): Frames at 25 per second.
    """
    if samples is None:
        return torch.zeros(num_frames, dtype=torch.bool)
    loud = ~silent_frames(samples, num_frames)
    return loud & (over_time(loudness(samples, num_frames), 9, "max") > _LOUD_ENOUGH)


def frame_reasons(
    faces: FaceFrames,
    speech: Tensor,
    size: tuple[int, int],
    bits: float,
    filters: Filters,
) -> np.ndarray:
    """Why each frame is dropped: `(frames,)` int8, an index of `REASONS`, or -1 for a good frame.

    Args:
        faces (`FaceFrames`): All frames of a video.
        speech (`torch.Tensor` of shape `(frames,)`): See `speaking`.
        size (`tuple` of two `int`): Width and height of the image.
        bits (`float`): Bits that the file spends on a pixel.
        filters (`Filters`): Thresholds.
    """
    x, y = faces.landmarks.unbind(-1)
    outside = ((x < 0) | (x > size[0]) | (y < 0) | (y > size[1])).float().mean(1)
    bad = {
        "no face": ~(faces.presence >= filters.min_presence),
        "several people": faces.people > filters.max_people,
        "small face": faces.side < filters.min_face,
        "cut off": outside > filters.max_cut_off,
        "turned away": frontal_deviation(faces.landmarks, faces.pose[:, 2]).abs() > filters.frontal_deg,
        "jump": jumps(faces) > filters.max_jump,
        "starved of bits": torch.full((len(faces),), bits < filters.min_bits),
        "silent": torch.zeros(len(faces), dtype=torch.bool),
    }
    for shot in faces.shot.unique().tolist():
        part = (faces.shot == shot).nonzero()[:, 0]
        for name, values in _slow_reasons(faces, speech, part, filters).items():
            bad.setdefault(name, torch.zeros(len(faces), dtype=torch.bool))[part] |= values
    codes = np.full(len(faces), -1, np.int8)
    for number in reversed(range(len(REASONS))):
        if REASONS[number] in bad:
            codes[bad[REASONS[number]].numpy()] = number
    return codes


def _slow_reasons(faces: FaceFrames, speech: Tensor, part: Tensor, filters: Filters) -> dict[str, Tensor]:
    """Reasons that are seen over several frames of one shot, whose rows are `part`."""
    reasons = {
        "blurred": over_time(faces.sharpness[part], 9, "median") < filters.min_sharpness,
        "starved of bits": over_time(faces.blocks[part], 9, "median") > filters.max_blocks,
        "mouth covered": over_time(faces.lips_seen[part], 9, "median") < filters.min_lips,
        "still image": calm(faces.change[part], FPS, "mean", filters.min_change),
    }
    if filters.max_pause > 0:
        width = round(filters.max_pause * FPS)
        gap = mouth_openness(faces.landmarks[part])[:, 0].nan_to_num()
        reasons["silent"] = _long_runs(~speech[part], width)
        reasons["lips still"] = calm(gap, width, "std", filters.min_lip_motion)
    return reasons


def runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Longest stretches `[first, stop)` of equal values."""
    edges = np.flatnonzero(np.diff(values)) + 1
    yield from zip([0, *edges.tolist()], [*edges.tolist(), len(values)], strict=True) if len(values) else ()


def _long_runs(values: Tensor, longest: int) -> Tensor:
    """Where `values` are true for more than `longest` frames in a row."""
    out = torch.zeros_like(values)
    for first, stop in runs(values.numpy().astype(np.int8)):
        if values[first] and stop - first > longest:
            out[first:stop] = True
    return out


# --- clips ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A part of a video, frames `[first, stop)`: a clip (`reason` is `None`), or what was dropped and why."""

    first: int
    stop: int
    reason: str | None


def cut_into_pieces(
    faces: FaceFrames, codes: np.ndarray, filters: Filters, scale: float = STANDARD_SCALE
) -> list[Piece]:
    """Cut a video into clips and dropped parts; together they are the whole video.

    A run of good frames of one shot, at least `min_seconds` long, is cut into equal clips of at most `max_seconds`. A
    clip whose face leaves its own static square is cut in two.

    Args:
        faces (`FaceFrames`): All frames.
        codes (`numpy.ndarray` of shape `(frames,)`): See `frame_reasons`.
        filters (`Filters`): Thresholds.
        scale (`float`, defaults to 2.0): Side of the square over the larger side of the landmark box.
    """
    least, most = round(filters.min_seconds * FPS), round(filters.max_seconds * FPS)
    pieces: list[Piece] = []
    for first, stop in runs(codes.astype(np.int64) + len(REASONS) * 2 * faces.shot.numpy()):
        if codes[first] >= 0:
            pieces.append(Piece(first, stop, REASONS[codes[first]]))
        elif stop - first < least:
            pieces.append(Piece(first, stop, "too short"))
        else:
            edges = np.linspace(first, stop, -(-(stop - first) // most) + 1).astype(int).tolist()
            for start, end in zip(edges[:-1], edges[1:], strict=True):
                pieces += _within_square(faces, start, end, least, scale)
    return pieces


def _within_square(faces: FaceFrames, first: int, stop: int, least: int, scale: float) -> list[Piece]:
    part = faces[first:stop]
    inside = transform_points(torch.linalg.inv(clip_square(part, scale)), part.landmarks)
    box = landmark_box(inside.flatten(0, 1))
    if box[:2].min() >= 0.01 and box[2:].max() <= 0.99:
        return [Piece(first, stop, None)]
    if stop - first < 2 * least:
        return [Piece(first, stop, "moves too far")]
    middle = (first + stop) // 2
    return [*_within_square(faces, first, middle, least, scale), *_within_square(faces, middle, stop, least, scale)]


def clip_square(faces: FaceFrames, scale: float = STANDARD_SCALE) -> Tensor:
    """`image_from_crop` `(3, 3)` of a clip: the standard square around the median box of its frames."""
    return standard_crop(faces.boxes.median(0).values, scale)

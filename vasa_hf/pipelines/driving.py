"""The face of a driving video: followed through its frames, and its motion seen from a camera that goes with it.

    frames --find, follow--> the crop: a square around the face --the system's encoder--> motion in the crop
    motion in the crop --place--> motion in the frame: a square of the first one's size --fill--> motion of every frame

The crop follows the face closely, so that the encoder sees it as in the training clips. The frame is the first crop; it
keeps its size, and goes with the face only where that would leave it, as the head would leave the portrait's image.

# Not in the papers, which drive by ready face crops.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vasa_hf.geometry.crops import crop_matrix, cut_crop
from vasa_hf.media.shots import CUT_LEAST, CutFinder, shrunk
from vasa_hf.models.face_analyzer import DetectedFace, FaceAnalyzer, overlap
from vasa_hf.processors.image import FaceImageProcessor, ImageInput

logger = logging.getLogger(__name__)

LEAST_SCORE = 0.5  # of a face
SAME_PLACE = 0.5  # overlap (IoU) of boxes from which on a face is where the last shot's was
LOST_FRAMES = 12  # after this number without the face, another place in the image may be its new one
# How far the face may move in a square, in sides of it, and grow in the crop, as a logarithm, before that follows.
FREE_CROP, FREE_FRAME, FREE_SIZE = 0.03, 0.12, 0.03
PACE = 0.3  # share of the rest that a square makes up for in a frame; more if it lags behind
NEUTRAL_MARGIN = 0.3  # the first frame is the neutral one unless another is better by this, see `neutral_cost`


class DrivingFace:
    """The face of a driving video, frame by frame; iterate over `crops` once, then read the rest.

    Args:
        frames (`Iterable`): Images of one size, as `FaceImageProcessor.load` takes them.
        analyzer (`FaceAnalyzer`): Finds and measures faces.
        processor (`FaceImageProcessor`): Reads frames and knows the standard square.
        face (`int`, *optional*): Which face of the first frame with faces, 0 is the largest.
        box (`Sequence[float]`, *optional*): Its box in the first frame, instead of finding it. If the analyzer sees no
            face there (a drawing), the square stays.
        follow (`bool`, defaults to `True`): Whether the square follows the face; else it stays, as for clips that are
            cropped already.
        on_frame (`Callable`, *optional*): Called after each frame.

    Attributes:
        num_frames (`int`): Frames of the video so far.
        seen (`list[int]`): Frames that show the face.
        costs (`list[float]`): How far the face is from rest in each of them, see `neutral_cost`; empty if the square
            stays.
        cuts (`list[int]`): Frames at which a new shot begins.
    """

    def __init__(
        self,
        frames: Iterable[ImageInput],
        analyzer: FaceAnalyzer,
        processor: FaceImageProcessor,
        face: int | None = None,
        box: Sequence[float] | None = None,
        follow: bool = True,
        on_frame: Callable[[], Any] | None = None,
    ):
        self._frames, self._analyzer, self._processor = frames, analyzer, processor
        self._face, self._box, self._follow, self._on_frame = face, box, follow, on_frame
        self._square: _Square | None = None
        self._last: DetectedFace
        self._small: np.ndarray  # a small copy of this frame, and one of the last frame in `seen`
        self._scene: np.ndarray
        self._cut, self._views, self.num_frames = CutFinder(), list[list[float]](), 0
        self.seen: list[int] = []
        self.costs: list[float] = []
        self.cuts: list[int] = []

    def crops(self, size: int) -> Iterator[Tensor]:
        """Yield the square `(3, size, size)` in [-1, 1] of each frame that shows the face.

        Raises:
            ValueError: If a frame cannot be read, or none shows a face that can drive.
        """
        refusal: tuple[int, ValueError] | None = None
        for index, frame in enumerate(self._frames):
            try:
                image = self._processor.load(frame)
                self._look_for_cut(image, index)
                found = self._find(image, index)
            except _RefusalError as error:  # later frames may be better
                refusal, found = refusal or (index, error), False
            except ValueError as error:
                raise ValueError(f"`driving_video`, frame {index}: {error}") from error
            if found and self._square is not None:
                self.seen.append(index)
                self._scene = self._small
                self._views.append(self._square.view)
                yield cut_crop(image.float(), self._square.matrix.float(), size)
            self.num_frames = index + 1
            if self._on_frame is not None:
                self._on_frame()
        if not self.seen:
            index, cause = refusal or (0, ValueError("it must hold at least one frame"))
            raise ValueError(f"`driving_video`, frame {index}: {cause}") from cause
        self._log_gaps()

    def fill(self, values: Tensor, dim: int = 0) -> Tensor:
        """Give every frame a value of what was measured in those `seen`.

        Frames without the face lie between their neighbours; at the ends, and up to a cut, the last value holds.

        Args:
            values (`torch.Tensor`): As many along `dim` as frames were seen.
            dim (`int`, defaults to 0): Their axis.
        """
        if len(self.seen) == self.num_frames:
            return values
        seen, frames = np.array(self.seen), np.arange(self.num_frames)
        right = np.searchsorted(seen, frames).clip(max=len(seen) - 1)
        left = (np.searchsorted(seen, frames, side="right") - 1).clip(min=0)
        share = (frames - seen[left]) / np.maximum(seen[right] - seen[left], 1)
        for cut in self.cuts:
            share[(seen[left] < cut) & (cut <= seen[right])] = 0.0
            left = np.where((seen[left] < cut) & (cut <= frames), right, left)
        share = np.where(frames < seen[0], 0.0, share.clip(0, 1))
        shape = [1] * values.ndim
        shape[dim] = -1
        ends = [values.index_select(dim, torch.from_numpy(index).to(values.device)) for index in (left, right)]
        return torch.lerp(ends[0], ends[1], torch.from_numpy(share).to(values).view(shape))

    @property
    def view(self) -> tuple[Tensor, Tensor]:
        """The crops in their frames: side `(frames seen, 1)` and centre `(frames seen, 2)` from the frame's, in sides.

        They are 1 and 0 where the crop is the frame.
        """
        zoom, shift = torch.tensor(self._views).split([1, 2], dim=-1)
        return zoom, shift

    def complete(self, motion: Tensor) -> Tensor:
        """Motion of every video frame, as seen in squares of one size.

        Args:
            motion (`torch.Tensor` of shape `(1, frames seen, channels)`): As encoded from `crops`.

        Returns:
            `torch.Tensor` of shape `(1, frames, channels)`.
        """
        zoom, shift = (value.to(motion) for value in self.view)
        place = motion[..., 3:5] + (zoom - 1) * (motion[..., 3:5] - 0.5) + shift
        return self.fill(torch.cat([motion[..., :3], place, motion[..., 5:6] * zoom, motion[..., 6:]], dim=-1), dim=1)

    @property
    def neutral(self) -> int:
        """The frame in which the face is nearest to rest: mouth closed, eyes open, no smile, not turned.

        It is the first one unless another is clearly better, or the square stays.
        """
        if not self.costs:
            return 0
        best = int(np.argmin(self.costs))
        best = 0 if self.costs[0] <= self.costs[best] + NEUTRAL_MARGIN else best
        if best:
            logger.info("Frame %d of the driving video is taken for the face at rest.", self.seen[best])
            return self.seen[best]
        return 0

    def _find(self, image: Tensor, index: int) -> bool:
        """Find the face of a frame and move the square with it."""
        if self._square is None:
            return self._begin(image)
        if not self._follow:
            return True
        begins, lost = bool(self.cuts) and self.cuts[-1] > self.seen[-1], index - self.seen[-1]
        face, faces = self._measure(image, self._last.box), list[DetectedFace]()
        if face is None or (begins and overlap(face.box, self._last.box) < SAME_PLACE):
            faces = self._analyzer.detect(image)
            near = [other for other in faces if _is_near(other, self._last)]
            face = max(near, key=lambda other: other.score, default=None)
        if begins and lost > 1:  # black frames, or a hand before the face, are no other shot
            change = np.abs(self._small - self._scene).mean()
            if change < CUT_LEAST or (face is not None and change < 2 * CUT_LEAST):
                self.cuts, begins = [cut for cut in self.cuts if cut <= self.seen[-1]], False
        stays = face is not None and overlap(face.box, self._last.box) >= SAME_PLACE
        if (begins and not stays) or (face is None and lost > LOST_FRAMES):
            faces = faces or self._analyzer.detect(image)
            if not faces:
                return False
            if not begins:
                self.cuts.append(index)
            face = faces[0]
            self._square.begin(self._processor.find_square(_size(image), face), face)
        elif face is None:
            return False
        self._last = face
        self.costs.append(neutral_cost(face))
        self._square.follow(face)
        return True

    def _look_for_cut(self, image: Tensor, index: int) -> None:
        """Note where shots begin."""
        thumbnail = _thumbnail(image)
        self._small = shrunk(thumbnail)
        if self._cut(thumbnail) and self.seen:
            self.cuts.append(index)

    def _begin(self, image: Tensor) -> bool:
        """Look for the face that drives, from the first frame on."""
        size = _size(image)
        if self._box is not None:
            face = self._measure(image, self._processor.check_box(self._box, size)) if self._follow else None
            if self._follow and face is None:
                logger.info("`driving_box` shows no face that can be followed: its square stays.")
                self._follow = False
        else:
            faces = self._analyzer.detect(image)
            try:
                face = self._processor.choose(faces, size, self._face)
            except ValueError as error:
                if faces and self._face is not None and self._face >= len(faces):
                    raise
                raise _RefusalError(str(error)) from error
        self._square = _Square(self._processor.find_square(size, face, self._box), face)
        if self._follow and face is not None:
            self._last = face
            self.costs.append(neutral_cost(face))
        return True

    def _measure(self, image: Tensor, box: Tensor) -> DetectedFace | None:
        """The face in about this box, if there is one."""
        return next(iter(self._analyzer.measure(image, box[None], passes=1, threshold=LEAST_SCORE)), None)

    def _log_gaps(self) -> None:
        """Log what was missing in the video."""
        missing = sorted(set(range(self.num_frames)) - set(self.seen))
        first, last = self.seen[0], self.seen[-1]
        inside = [index for index in missing if first < index < last]
        if first > 0:
            logger.warning("The driving video shows no face before frame %d: its pose there is held until then.", first)
        if inside:
            logger.warning("No face in frames %s of the driving video: motion continues evenly there.", ranges(inside))
        if last < self.num_frames - 1:
            logger.warning("The driving video shows no face after frame %d: its pose there is held.", last)
        if self.cuts:
            logger.warning(
                "The driving video is cut at frame%s %s: the face after a cut drives as if it were the same.",
                "s" * (len(self.cuts) > 1),
                ranges(self.cuts),
            )


class _RefusalError(ValueError):
    """A frame shows no face that could drive."""


class _Square:
    """The crop, which goes with a face, and the frame it is seen in.

    Attributes:
        matrix (`torch.Tensor` of shape `(3, 3)`): `image_from_crop`, float64.
        view (`list[float]`): Side and centre of the crop in the frame, see `DrivingFace.view`.
    """

    def __init__(self, matrix: Tensor, face: DetectedFace | None):
        self.begin(matrix, face)

    def begin(self, matrix: Tensor, face: DetectedFace | None) -> None:
        """Start with a crop that shows the face as it should be shown; it is the frame as well."""
        self.matrix, self.view = matrix, [1.0, 0.0, 0.0]
        self._angle = torch.atan2(matrix[1, 0], matrix[0, 0])
        self._side = self._frame_side = matrix[:2, 0].norm()
        self._center = self._frame_center = matrix[:2, :2].sum(1) / 2 + matrix[:2, 2]
        if face is not None:
            place, scale = _place(face)
            self._side_of_scale, self._shift = self._side / scale, (self._center - place) / self._side

    def follow(self, face: DetectedFace) -> None:
        """Move and grow as far as the face has left its free space."""
        place, scale = _place(face)
        wanted = self._side_of_scale * scale
        growth = _beyond((wanted / self._side).log(), FREE_SIZE)
        move = _beyond((place + self._shift * wanted - self._center) / self._side, FREE_CROP)
        pull = _beyond((place + self._shift * self._frame_side - self._frame_center) / self._frame_side, FREE_FRAME)
        self._frame_center = self._frame_center + pull * self._frame_side
        if growth != 0 or bool(move.any()):
            self._center, self._side = self._center + move * self._side, self._side * growth.exp()
            self.matrix = crop_matrix(self._center, self._side, self._angle)
        shift = (self._center - self._frame_center) / self._frame_side
        cos, sin = self._angle.cos(), self._angle.sin()
        along = torch.stack([cos * shift[0] + sin * shift[1], cos * shift[1] - sin * shift[0]])
        self.view = [float(self._side / self._frame_side), *along.tolist()]


def _beyond(value: Tensor, free: float) -> Tensor:
    """How far to go after values that have left +-`free`: slowly, against trembling, but not to be left behind."""
    rest = value - value.clamp(-free, free)
    return rest * (rest.abs() / (3 * FREE_CROP)).clamp(PACE, 1)


def _place(face: DetectedFace) -> tuple[Tensor, float]:
    """Origin of the head in pixels, float64, and pixels of a canonical unit: an open mouth changes neither."""
    pose = face.pose_in(torch.eye(3)).double()
    return pose[3:5], float(pose[6])


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _is_near(face: DetectedFace, last: DetectedFace) -> bool:
    centers = [(one.box[:2] + one.box[2:]) / 2 for one in (face, last)]
    return bool((centers[0] - centers[1]).norm() < last.side) and 0.5 < face.side / last.side < 2


def neutral_cost(face: DetectedFace) -> float:
    """How far a face is from rest; 1 is a mouth a little open, a smile, a head turned by 15 degrees, or a blink."""
    yaw, pitch = face.pose[:2].tolist()
    closed = max(0.25 - float(face.eye_open.mean()), 0.0)
    return face.mouth_open / 0.1 + math.hypot(yaw, pitch) / 0.26 + closed / 0.15 + face.expression["happy"]


def smooth(values: Tensor, strength: float, cuts: Sequence[int] = ()) -> Tensor:
    """Smooth what was measured frame by frame, without delay.

    The estimate of a Kalman smoother for a random walk: it minimizes the squared distance from the measures and, times
    `strength`, that of neighbours. A movement of `f` hertz at 25 frames per second keeps
    `1 / (1 + 2 * strength * (1 - cos(2 pi f / 25)))` of its size.

    Source: the public code of LivePortrait (`smooth`), which does so where the source is a video, with a strength of
    0.03. # Not in the paper.

    Args:
        values (`torch.Tensor` of shape `(frames, ...)`): Measures.
        strength (`float`): Variance of a measure over that of a step; 0 leaves them as they are.
        cuts (`Sequence[int]`): Frames that are no neighbours of those before them.
    """
    if not strength or len(values) < 2:
        return values
    link = np.full(len(values) + 1, float(strength))
    link[[0, -1, *cuts]] = 0.0
    measured = values.detach().double().cpu().numpy()
    result, share = measured.copy(), np.zeros(len(values))
    for i in range(len(values)):  # a system of equations with three diagonals
        before = share[i - 1] if i else 0.0
        pivot = 1.0 + link[i] * (1.0 - before) + link[i + 1]
        share[i] = link[i + 1] / pivot
        result[i] = (measured[i] + (link[i] * result[i - 1] if i else 0.0)) / pivot
    for i in range(len(values) - 2, -1, -1):
        result[i] += share[i] * result[i + 1]
    return torch.from_numpy(result).to(values)


def ranges(frames: Sequence[int]) -> str:
    """Frame numbers as text: `3 to 5, 9`."""
    parts: list[list[int]] = []
    for frame in frames:
        if parts and frame == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], frame]
        else:
            parts.append([frame])
    text = [" to ".join(map(str, part)) for part in parts]
    return ", ".join(text[:20]) + (f" and {len(text) - 20} more" if len(text) > 20 else "")


def _thumbnail(image: Tensor) -> np.ndarray:
    """Every few pixels of an image `(3, height, width)` in [-1, 1], uint8 `(height, width, 3)`."""
    height, width = image.shape[-2:]
    small = image[:, :: max(1, height // 128), :: max(1, width // 128)]
    return ((small + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()

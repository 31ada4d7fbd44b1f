"""The face of a video, frame by frame: where shots begin, who is seen, where, and how well.

```
frames 25/s -> small copies -> cuts -> shots
            -> every 8th frame of a shot: all faces are looked for -> the largest is followed, the others are counted
            -> every frame: the followed face, upright at 128² -> landmarks, pose, presence, sharpness, certain lips
```

Frames come one at a time and only eight are kept: memory grows with the video by its numbers only, 2 kB per frame.

# Not in the papers: VASA-1 §4 names a tool of another paper for its data, GAIA §A.1 "an open-source detector".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vasa_hf.geometry.crops import crop_matrix, cut_crop, landmark_box, transform_points
from vasa_hf.geometry.landmarks import GROUPS, NUM_LANDMARKS, fit_pose, transform_pose
from vasa_hf.geometry.rotations import euler_from_matrix, matrix_from_euler
from vasa_hf.media.shots import CutFinder

KEY_STRIDE = 8  # frames between those in which faces are looked for
OTHER_FACE = 0.35  # size of another face over that of the followed one from which on it counts
SAME_FACE = 0.2  # overlap (IoU) of boxes a few frames apart
_LIPS = [*GROUPS["lips_outer"], *GROUPS["lips_inner"]]
_RIGID = list(GROUPS["rigid"])


@dataclass
class FaceFrames:
    """The followed face of each frame. Rows of frames without one are NaN.

    Attributes:
        landmarks (`torch.Tensor` of shape `(frames, 162, 2)`): x, y in pixels.
        pose (`torch.Tensor` of shape `(frames, 7)`): yaw, pitch, roll in radians, tx, ty, tz, scale in pixels.
        presence (`torch.Tensor` of shape `(frames,)`): How sure the analyzer is of the face, 0 without one.
        people (`torch.Tensor` of shape `(frames,)`): Faces of about its size, itself included; int.
        shot (`torch.Tensor` of shape `(frames,)`): Number of the shot; int.
        sharpness (`torch.Tensor` of shape `(frames,)`):
            Variance of the Laplacian over that of the brightness, of the face at 128²: 0 is a plain blur.
        blocks (`torch.Tensor` of shape `(frames,)`):
            Steps at the borders of 8x8 blocks over those elsewhere, in the image's own pixels: 1 without blocks.
        lips_seen (`torch.Tensor` of shape `(frames,)`):
            Mean height of the lips' heat maps: a covered mouth halves it. NaN where the analyzer tells none.
        change (`torch.Tensor` of shape `(frames,)`): Mean difference from the frame before in the face's square.
    """

    landmarks: Tensor
    pose: Tensor
    presence: Tensor
    people: Tensor
    shot: Tensor
    sharpness: Tensor
    blocks: Tensor
    lips_seen: Tensor
    change: Tensor

    def __len__(self) -> int:
        return len(self.landmarks)

    def __getitem__(self, part: slice) -> FaceFrames:
        return FaceFrames(*(getattr(self, item.name)[part] for item in fields(self)))

    @property
    def boxes(self) -> Tensor:
        """Landmark boxes x0, y0, x1, y1 in pixels, `(frames, 4)`."""
        return landmark_box(self.landmarks)

    @property
    def side(self) -> Tensor:
        """Larger side of the landmark box in pixels, `(frames,)`."""
        boxes = self.boxes
        return (boxes[:, 2:] - boxes[:, :2]).amax(1)

    @classmethod
    def join(cls, parts: list[FaceFrames]) -> FaceFrames:
        """Parts of one video, one after another."""
        return cls(*(torch.cat([getattr(part, item.name) for part in parts]) for item in fields(cls)))

    @classmethod
    def empty(cls, shot: int, people: int, frames: int) -> FaceFrames:
        """Frames without a face."""
        nothing = torch.full((frames,), torch.nan)
        whole = [torch.full((frames,), value, dtype=torch.int32) for value in (people, shot)]
        points = torch.full((frames, NUM_LANDMARKS, 2), torch.nan)
        pose = torch.full((frames, 7), torch.nan)
        return cls(points, pose, torch.zeros(frames), *whole, nothing, nothing, nothing, torch.zeros(frames))


# --- faces ------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def follow_faces(analyzer: Any, frames: Iterable[np.ndarray]) -> FaceFrames:
    """Follow the largest face of each shot through a video.

    Args:
        analyzer (`FaceAnalyzer` or another with `detect` and `canonical`): One without `landmarker` is asked for every
            frame, and does not tell `lips_seen`.
        frames (`Iterable` of `numpy.ndarray`): uint8 RGB `(height, width, 3)` at a constant rate.

    Returns:
        `FaceFrames` of all frames.

    Raises:
        ValueError: If there are no frames.
    """
    parts = []
    follow = _Follower(analyzer) if hasattr(analyzer, "landmarker") else _Asker(analyzer)
    for shot, pieces in enumerate(_shots(frames, follow.stride)):
        follow.begin(shot)
        parts += [follow.add(piece, last) for piece, last in pieces]
    if not parts:
        raise ValueError("`frames` must hold at least one frame, got none.")
    return FaceFrames.join(parts)


def _shots(frames: Iterable[np.ndarray], size: int) -> Iterator[Iterator[tuple[list[np.ndarray], bool]]]:
    """Shots as pieces of `size` frames and whether a piece is the shot's last. Pieces must be taken in their order."""
    find, source = CutFinder(), iter(frames)
    ahead = [next(source, None)]
    if ahead[0] is not None:
        find(ahead[0])

    def pieces() -> Iterator[tuple[list[np.ndarray], bool]]:
        piece = []
        while True:
            piece.append(ahead[0])
            ahead[0] = next(source, None)
            over = ahead[0] is None or find(ahead[0])
            if over or len(piece) == size:
                yield piece, over
                piece = []
            if over:
                return

    while ahead[0] is not None:
        yield pieces()


class _Asker:
    """Follows a face by asking the analyzer for every frame."""

    stride = 1

    def __init__(self, analyzer: Any):
        self.analyzer = analyzer

    def begin(self, shot: int) -> None:
        self.shot, self.box, self.before = shot, None, None

    def add(self, piece: list[np.ndarray], last: bool) -> FaceFrames:
        face, people = choose_face(self.analyzer.detect(piece[0]), self.box)
        if face is None:
            self.before = None
            return FaceFrames.empty(self.shot, people, 1)
        self.box = face.box
        square = crop_matrix((face.box[:2] + face.box[2:]) / 2, torch.tensor(face.side * 1.45))
        crop = cut_square(piece[0], square, 128)[None]
        identity = torch.eye(3)
        out = FaceFrames(
            face.landmarks[None],
            face.pose_in(identity)[None],
            torch.tensor([face.score]),
            *(torch.tensor([value], dtype=torch.int32) for value in (people, self.shot)),
            sharpness(crop),
            torch.tensor([blockiness(piece[0], face.box)]),
            torch.tensor([torch.nan]),
            _changes(crop, self.before),
        )
        self.before = crop[-1]
        return out


class _Follower:
    """Follows a face from key frames, in which faces are looked for, through the frames between them."""

    stride = KEY_STRIDE

    def __init__(self, analyzer: Any):
        self.analyzer = analyzer
        self.rigid = analyzer.canonical.float().cpu()[_RIGID]

    def begin(self, shot: int) -> None:
        self.shot, self.box, self.before = shot, None, None
        self.last_square: Tensor | None = None
        self.last_people = 0

    def add(self, piece: list[np.ndarray], last: bool) -> FaceFrames:
        """Measure the frames of a piece; its last frame is the key frame, as is the first one of the shot."""
        if self.box is None and self.last_square is None:
            self.last_square, self.last_people = self._look(piece[0])
        square, people = self._look(piece[-1]) if len(piece) > 1 else (self.last_square, self.last_people)
        ends = [end for end in (self.last_square, square) if end is not None]
        most = max(people, self.last_people)
        self.last_people = people
        if not ends:
            self.before = None
            return FaceFrames.empty(self.shot, most, len(piece))
        share = (torch.arange(len(piece)) + 1.0)[:, None] / len(piece)
        squares = torch.lerp(ends[0].expand(len(piece), 4), ends[-1].expand(len(piece), 4), share)
        if len(ends) == 2 and (ends[0][:2] - ends[1][:2]).norm() > ends[0][2]:  # it leapt: nearest
            squares = torch.stack([ends[0] if value < 0.5 else ends[1] for value in share[:, 0]])
        self.last_square = square
        return self._measure(piece, squares, most)

    def _look(self, frame: np.ndarray) -> tuple[Tensor | None, int]:
        """The followed face's upright square (centre, side, angle) in a key frame, and how many faces there are."""
        face, people = choose_face(self.analyzer.detect(frame), self.box)
        if face is None:
            return None, people
        self.box = face.box
        roll = face.pose[2]
        turn = matrix_from_euler(torch.zeros(()), torch.zeros(()), roll)[:2, :2]
        box = landmark_box(face.landmarks @ turn)
        return torch.cat([turn @ (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).amax()[None], roll[None]]), people

    def _measure(self, piece: list[np.ndarray], squares: Tensor, people: int) -> FaceFrames:
        size, scale = self.analyzer.config.crop_size, self.analyzer.config.crop_scale
        matrices = crop_matrix(squares[:, :2], squares[:, 2] * scale, squares[:, 3])
        crops = torch.stack([cut_square(frame, matrix, size) for frame, matrix in zip(piece, matrices, strict=True)])
        with lip_heights(self.analyzer) as heights:
            seen = self.analyzer((crops * 2 - 1).to(self.analyzer.device))
        points = transform_points(matrices, seen.landmarks.float().cpu())
        pose = torch.cat([euler_from_matrix(seen.rotation), seen.translation, seen.scale[:, None]], 1).float().cpu()
        pose = transform_pose(pose, matrices)
        first = matrix_from_euler(*pose[:, :3].unbind(-1))
        rotation, translation, spread = fit_pose(points[:, _RIGID], self.rigid, first, steps=2)
        pose = torch.cat([euler_from_matrix(rotation), translation[:, :2], pose[:, 5:6], spread[:, None]], 1)
        boxes = landmark_box(points)
        out = FaceFrames(
            points,
            pose,
            seen.presence.float().cpu(),
            *(torch.full((len(piece),), value, dtype=torch.int32) for value in (people, self.shot)),
            sharpness(crops),
            torch.tensor([blockiness(frame, box) for frame, box in zip(piece, boxes, strict=True)]),
            heights[0],
            _changes(crops, self.before),
        )
        self.before = crops[-1]
        return out


def choose_face(faces: list, box: Tensor | None) -> tuple[Any | None, int]:
    """The face that continues from `box`, else the largest; and how many of at least a third of its size there are."""
    if not faces:
        return None, 0
    chosen = faces[0]
    if box is not None:
        overlap = [_overlap(face.box, box) for face in faces]
        best = int(np.argmax(overlap))
        chosen = faces[best] if overlap[best] > SAME_FACE else chosen
    return chosen, sum(face.side >= OTHER_FACE * chosen.side for face in faces)


def _overlap(a: Tensor, b: Tensor) -> float:
    shared = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp_min(0).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared).clamp_min(1e-6))


@contextmanager
def lip_heights(analyzer: Any) -> Iterator[list[Tensor]]:
    """Collect, of each call of the landmarker, the mean peak height `(batch,)` of the lips' heat maps."""
    heights: list[Tensor] = []

    def keep(module: Any, inputs: Any, heat: Tensor) -> None:
        weights = heat[:, _LIPS].float().flatten(2).softmax(-1)
        heights.append(weights.amax(-1).mean(-1).cpu())

    hook = analyzer.landmarker.heat.register_forward_hook(keep)
    try:
        yield heights
    finally:
        hook.remove()


# --- images ---------------------------------------------------------------------------------------------------------


def cut_square(
    frame: np.ndarray,  # [H, W, 3]
    image_from_crop: Tensor,  # [3, 3]
    size: int,
) -> Tensor:
    """`cut_crop` of a uint8 frame of any size, touching no more of it than the square needs; edges are replicated.

    Returns:
        `torch.Tensor` of shape `(3, size, size)`, RGB in [0, 1].
    """
    corners = transform_points(image_from_crop, torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]]))
    x0, y0, x1, y1 = landmark_box(corners).tolist()
    margin = 8 + (x1 - x0) / 8
    height, width = frame.shape[:2]
    left, top = (int(min(max(value - margin, 0), limit - 1)) for value, limit in ((x0, width), (y0, height)))
    right, bottom = (int(min(max(v + margin + 1, lo + 1), hi)) for v, lo, hi in ((x1, left, width), (y1, top, height)))
    part = torch.from_numpy(frame[top:bottom, left:right].copy()).permute(2, 0, 1).float() / 255
    move = torch.eye(3)
    move[0, 2], move[1, 2] = -left, -top
    return cut_crop(part, move @ image_from_crop.float(), size)


def sharpness(crops: Tensor) -> Tensor:
    """Variance of the Laplacian over that of the brightness, of images `(batch, 3, size, size)`: `(batch,)`."""
    grey = crops.mean(1, keepdim=True)
    size = grey.shape[-1]
    grey = grey[..., size // 8 : -size // 8, size // 8 : -size // 8]  # the face without what is around it
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return F.conv2d(grey, kernel).flatten(1).var(1) / grey.flatten(1).var(1).clamp_min(1e-4)


def blockiness(frame: np.ndarray, box: Tensor) -> float:
    """Mean step across the borders of 8x8 blocks over that at other places, within a box; 1 without blocks.

    Only an image that was never scaled after it was coded has its blocks there.
    """
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = (int(v) for v in box.tolist())
    x0, y0, x1, y1 = max(x0, 0) // 8 * 8, max(y0, 0) // 8 * 8, min(x1, width), min(y1, height)
    if x1 - x0 < 32 or y1 - y0 < 32:
        return 1.0
    grey = frame[y0:y1, x0:x1].mean(2, dtype=np.float32)
    ratios = []
    for steps in (np.abs(np.diff(grey, axis=1)).mean(0), np.abs(np.diff(grey, axis=0)).mean(1)):
        border = np.arange(len(steps)) % 8 == 7
        ratios.append(float((steps[border].mean() + 0.1) / (steps[~border].mean() + 0.1)))
    return sum(ratios) / 2


def _changes(crops: Tensor, before: Tensor | None) -> Tensor:
    """Mean difference of each crop `[B, 3, S, S]` from the one before it; 0 for the first one of a shot."""
    earlier = torch.cat([(crops[:1] if before is None else before[None]), crops[:-1]])
    return (crops - earlier).abs().mean((1, 2, 3))

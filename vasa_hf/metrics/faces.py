"""Measurements of the face in every frame of a video, as tensors: the input of the motion metrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vasa_hf.geometry.crops import crop_matrix, landmark_box, sampling_grid, transform_points
from vasa_hf.geometry.landmarks import (
    EXPRESSIONS,
    GROUPS,
    expression_scores,
    eye_openness,
    fit_pose,
    frontal_points,
    gaze_angles,
    mouth_openness,
    transform_pose,
)
from vasa_hf.geometry.rotations import euler_from_matrix, matrix_from_euler
from vasa_hf.motion.streaming import map_ahead

BATCH = 16  # larger batches exceed the CPU's cache
KEY_STRIDE = 8  # frames between key frames, which are measured twice
MIN_PRESENCE = 0.5


@dataclass(eq=False)
class FaceTrack:
    """The face of a video, frame by frame. Lengths are fractions of the square frame, angles radians.

    Attributes:
        landmarks (`torch.Tensor` of shape `(frames, 162, 2)`): x, y.
        pose (`torch.Tensor` of shape `(frames, 7)`): yaw, pitch, roll, tx, ty, tz, scale.
        found (`torch.Tensor` of shape `(frames,)`): Whether a face was found, bool; other rows are invalid.
    """

    landmarks: Tensor
    pose: Tensor
    found: Tensor

    @classmethod
    def of(cls, landmarks: Tensor, pose: Tensor) -> FaceTrack:
        """Make a track with a face in every frame, such as labels."""
        return cls(landmarks, pose, torch.ones(len(landmarks), dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.landmarks)

    def __getitem__(self, part: slice) -> FaceTrack:
        return FaceTrack(self.landmarks[part], self.pose[part], self.found[part])

    def repeat_first(self, count: int) -> FaceTrack:
        """Repeat the first frame `count` times."""
        return FaceTrack.of(self.landmarks[:1].expand(count, -1, -1), self.pose[:1].expand(count, -1))

    @property
    def rotation(self) -> Tensor:
        """Head rotation, `(frames, 3, 3)`."""
        return matrix_from_euler(*self.pose[:, :3].unbind(-1))

    @property
    def scale(self) -> Tensor:
        """Size of the head, `(frames,)`: larger is closer."""
        return self.pose[:, 6]

    @property
    def gaze(self) -> Tensor:
        """Yaw and pitch of the eyes, `(frames, 2)`; (0, 0) looks into the camera."""
        return gaze_angles(self.landmarks, self.pose)

    @property
    def eye_open(self) -> Tensor:
        """Lid gap relative to the eye width, mean of both eyes, `(frames,)`."""
        return eye_openness(self.landmarks).mean(-1)

    @property
    def lip_gap(self) -> Tensor:
        """Gap of the inner lips relative to the distance of the outer eye corners, `(frames,)`."""
        return mouth_openness(self.landmarks)[:, 0]

    @property
    def boxes(self) -> Tensor:
        """Landmark boxes x0, y0, x1, y1, `(frames, 4)`."""
        return landmark_box(self.landmarks)

    def expressions(self, canonical: Tensor) -> Tensor:
        """Scores of `EXPRESSIONS`, `(frames, 6)`, from lips, lids and brows.

        Args:
            canonical (`torch.Tensor` of shape `(162, 3)`): Mean face of the analyzer.
        """
        scores = expression_scores(self.landmarks, self.pose, canonical)
        return torch.stack([scores[name] for name in EXPRESSIONS], -1)

    def transplant(self, source: FaceTrack, canonical: Tensor) -> Tensor:
        """Transfer the motion of this track to the face shape of `source`: landmarks `(frames, 162, 2)`.

        Args:
            source (`FaceTrack`): Track of one frame.
            canonical (`torch.Tensor` of shape `(162, 3)`): Mean face; both faces get its depths.
        """
        change = frontal_points(self.landmarks, self.pose, canonical)
        shape = frontal_points(source.landmarks, source.pose, canonical) + change - change[:1]
        solid = torch.cat([shape, canonical[:, 2:].expand(len(shape), -1, -1)], -1)
        return self.pose[:, None, 6:7] * (solid @ self.rotation.mT)[..., :2] + self.pose[:, None, 3:5]


@torch.no_grad()
def measure_faces(analyzer, frames: Tensor, face_box: Tensor | None = None) -> FaceTrack:
    """Measure landmarks and pose of the (largest) face in every frame of a video.

    The face is detected in the first frame that has one, then tracked: every eighth frame is measured from that box,
    then all frames from interpolated, upright boxes. Tight steady crops give steadier points than a detection in each
    frame.

    Args:
        analyzer (`FaceAnalyzer` or another with `detect` and `canonical`): Without a `landmarker` it detects the face
            in every frame.
        frames (`torch.Tensor` of shape `(frames, 3, size, size)`): RGB in [0, 1].
        face_box (`torch.Tensor` of shape `(4,)`, *optional*): Box of the face in the first frame, fractions.

    Raises:
        ValueError: If no frame shows a face.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.shape[2] != frames.shape[3]:
        raise ValueError(f"`frames` must have shape (frames, 3, size, size), got {tuple(frames.shape)}.")
    if not hasattr(analyzer, "landmarker"):
        return _measure_one_by_one(analyzer, frames)
    size = frames.shape[-1]
    if face_box is None:
        for frame in frames[:: max(1, len(frames) // 8)]:
            if faces := analyzer.detect(frame * 2 - 1):
                face_box = faces[0].box / size
                break
        else:
            raise ValueError(f"`frames` must show a face, found none in {len(frames)} frames.")
    keys = torch.arange(0, len(frames), KEY_STRIDE)
    if keys[-1] != len(frames) - 1:
        keys = torch.cat([keys, torch.tensor([len(frames) - 1])])
    squares = torch.cat([(face_box[:2] + face_box[2:]) / 2, (face_box[2:] - face_box[:2]).amax()[None], torch.zeros(1)])
    track = _measure_squares(analyzer, frames[keys], squares.expand(len(keys), 4))
    squares = _upright_squares(track)
    for index in (~track.found).nonzero().flatten().tolist():  # fast motion, or another scene
        faces = analyzer.detect(frames[keys[index]] * 2 - 1)
        box = faces[0].box / size if faces else face_box
        squares[index] = torch.cat([(box[:2] + box[2:]) / 2, (box[2:] - box[:2]).amax()[None], torch.zeros(1)])
    track = _measure_squares(analyzer, frames, _interpolate_squares(squares, keys, len(frames)))
    if not track.found.any():
        raise ValueError(f"`frames` must show a face, lost it in all {len(frames)} frames.")
    return track


def _interpolate_squares(squares: Tensor, keys: Tensor, count: int) -> Tensor:
    """Interpolate the squares of key frames: linear, or nearest where the face jumps."""
    frames = torch.arange(count)
    right = torch.searchsorted(keys, frames).clamp(max=len(keys) - 1)
    left = (right - 1).clamp_min(0)
    share = (frames - keys[left]) / (keys[right] - keys[left]).clamp_min(1)
    leap = (squares[right, :2] - squares[left, :2]).norm(dim=1) > squares[left, 2]
    share = torch.where(leap, share.round(), share)
    return torch.lerp(squares[left], squares[right], share[:, None])


def _measure_one_by_one(analyzer, frames: Tensor) -> FaceTrack:
    landmarks, poses, found, size = [], [], [], frames.shape[-1]
    for frame in frames:
        faces = analyzer.detect(frame * 2 - 1)
        found.append(bool(faces))
        landmarks.append(faces[0].landmarks / size if faces else torch.full((162, 2), torch.nan))
        poses.append(faces[0].pose_in(torch.eye(3) * frame.new_tensor([1 / size, 1 / size, 1])) if faces else None)
    if not any(found):
        raise ValueError(f"`frames` must show a face, found none in {len(frames)} frames.")
    nothing = torch.full((7,), torch.nan)
    poses = torch.stack([nothing if pose is None else pose for pose in poses])
    return FaceTrack(torch.stack(landmarks), poses, torch.tensor(found))


def _upright_squares(track: FaceTrack) -> Tensor:
    """Centre, side and angle `(frames, 4)` of boxes that are rolled with the head."""
    roll, zero = track.pose[:, 2], torch.zeros(len(track))
    turn = matrix_from_euler(zero, zero, roll)[:, :2, :2]
    box = landmark_box(track.landmarks @ turn)
    center = (turn @ ((box[:, :2] + box[:, 2:]) / 2)[..., None])[..., 0]
    return torch.cat([center, (box[:, 2:] - box[:, :2]).amax(-1, keepdim=True), roll[:, None]], 1)


def _measure_squares(analyzer, frames: Tensor, squares: Tensor) -> FaceTrack:
    """Measure one square of each frame; `squares` `(frames, 4)`: centre, side, angle."""
    size, side = analyzer.config.crop_size, squares[:, 2] * analyzer.config.crop_scale
    matrices = crop_matrix(squares[:, :2], side, squares[:, 3])  # frame fractions from crop fractions
    shrink = float(side.median()) * frames.shape[-1] / size

    @torch.no_grad()
    def measure(batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        part, matrix = batch
        if shrink > 1:  # average first, so that fine patterns do not flicker
            part = F.interpolate(part, round(frames.shape[-1] / shrink), mode="bilinear", antialias=True)
        grid = sampling_grid(matrix, size, (1, 1))
        crops = F.grid_sample(part * 2 - 1, grid, padding_mode="border", align_corners=False)
        return [value.float().cpu() for value in analyzer(crops.to(analyzer.device)).to_tuple()]

    workers = min(torch.get_num_threads(), len(frames))
    count = min(BATCH, -(-len(frames) // workers))
    seen = map_ahead(measure, zip(frames.split(count), matrices.split(count), strict=True), workers)
    points, rotation, translation, scale, presence = (torch.cat(values) for values in zip(*seen, strict=True))
    points = transform_points(matrices, points)
    pose = transform_pose(torch.cat([euler_from_matrix(rotation), translation, scale[:, None]], 1), matrices)
    canonical, rigid = analyzer.canonical.float().cpu(), list(GROUPS["rigid"])
    first = matrix_from_euler(*pose[:, :3].unbind(-1))
    rotation, translation, scale = fit_pose(points[:, rigid], canonical[rigid], first, steps=2)
    pose = torch.cat([euler_from_matrix(rotation), translation[:, :2], pose[:, 5:6], scale[:, None]], 1)
    return FaceTrack(points, pose, presence > MIN_PRESENCE)

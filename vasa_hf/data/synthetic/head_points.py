"""Where a rendered head's landmarks are, for many states at once and without an image.

Not in the paper. `HeadPoints` repeats on the 152 landmark vertices and the eyes what `RenderedHead` does to the whole
mesh, so labels of long tracks cost next to nothing; a test holds the two together.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from vasa_hf.data.landmark_dynamics import FaceLabels, LandmarkDynamics, unposed_landmarks
from vasa_hf.data.synthetic.heads import IRISES, LOWER_LIDS, NECK_CM, SIDES, UPPER_LIDS, HeadState, RenderedHead
from vasa_hf.geometry.landmarks import NUM_LANDMARKS, eye_openness, iris_offset, mouth_openness, rows
from vasa_hf.geometry.rotations import euler_from_matrix, matrix_from_euler
from vasa_hf.head.fit import fit_head
from vasa_hf.head.mesh import NUM_SKIN_LANDMARKS, HeadMesh

# Inner lips that meet, from corner to corner.
_UPPER_LIP = (191, 80, 81, 82, 13, 312, 311, 310, 415)
_LOWER_LIP = (95, 88, 178, 87, 14, 317, 402, 318, 324)
_USUAL_PITCH = 0.063  # of the heads whose irises `iris_mean` is the mean of, radians; they look into the camera


@dataclasses.dataclass
class HeadTrack:
    """What a talker does, frame by frame: `HeadState` as arrays.

    Attributes:
        names (`tuple` of `str`): Shapes of the head.
        weights (`torch.Tensor` of shape `(frames, len(names))`): Their weights 0..1; `eyeBlink_L`, `eyeBlink_R` are
            shares of the lid gap.
        rotation (`torch.Tensor` of shape `(frames, 3)`): yaw, pitch, roll in radians.
        gaze (`torch.Tensor` of shape `(frames, 2)`): Turn of the eyes in the head from the photograph's, radians.
        shift (`torch.Tensor` of shape `(frames, 2)`): Move of the head, fractions of the image.
        zoom (`torch.Tensor` of shape `(frames,)`): Size of the head over that in the photograph.
    """

    names: tuple[str, ...]
    weights: Tensor
    rotation: Tensor
    gaze: Tensor
    shift: Tensor
    zoom: Tensor

    def __len__(self) -> int:
        return len(self.zoom)

    def state(self, frame: int, light: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> HeadState:
        """One frame, to be rendered."""
        return HeadState(
            dict(zip(self.names, self.weights[frame].tolist(), strict=True)),
            self.rotation[frame],
            tuple(self.shift[frame].tolist()),
            float(self.zoom[frame]),
            tuple(self.gaze[frame].tolist()),
            light,
        )


class HeadPoints:
    """The landmarks of one `RenderedHead`.

    Args:
        head (`RenderedHead`): The head that moves.
    """

    def __init__(self, head: RenderedHead):
        mesh, keep = head.mesh, head.mesh.landmarks
        self.names = mesh.expression_names
        self.own, self.pose, self.rotation = head.head.expression, head.pose, head.rotation
        self.rest, self.follow = head.rest[keep], head.follow[keep]
        self.basis = head.unit * mesh.expression[:, keep] @ head.head.rotation.mT  # [E, 152, 3]
        self.blinks = torch.stack([blink[keep] for blink in head.blinks])  # [2, 152, 3]
        self.down = head.head.rotation[:2, 1]
        self.origin = head.origin
        self.pivot = head.origin + head.unit * head.head.rotation @ torch.tensor(NECK_CM)
        self.eyes = head.eyes

    @property
    def own_gap(self) -> float:
        """Lip gap of the photograph over its outer eye distance."""
        return float(mouth_openness(self._still())[0])

    def gap_of_shape(self) -> dict[str, float]:
        """Lip gap that each shape at weight 1 adds, signed, both sides of pairs together."""
        upper, lower = rows(13, 14)
        eye_distance = (self.rest[rows(33)[0], :2] - self.rest[rows(263)[0], :2]).norm()
        gaps = (self.basis[:, lower, :2] - self.basis[:, upper, :2]) @ self.down / eye_distance
        out: dict[str, float] = {}
        for name, gap in zip(self.names, gaps.tolist(), strict=True):
            key = name.removesuffix("_L").removesuffix("_R")
            out[key] = out.get(key, 0.0) + gap
        return out

    def _still(self) -> Tensor:
        points = torch.empty(NUM_LANDMARKS, 2)
        points[:NUM_SKIN_LANDMARKS] = self.rest[:, :2]
        for eye, iris in zip(self.eyes, IRISES, strict=True):
            points[iris] = (eye.iris @ eye.turn.mT * eye.radius + eye.center)[:, :2]
        return points

    def landmarks(self, track: HeadTrack) -> tuple[Tensor, Tensor]:
        """Landmarks `(frames, 162, 2)` and pose `(frames, 7)` of a track."""
        weights, closed = self._weights(track)
        frames = len(track)
        offset = ((weights - self.own) @ self.basis.flatten(1)).unflatten(1, (-1, 3))  # [F, 152, 3]
        moved = self.rest + offset
        for side in range(2):
            moved = moved + closed[:, side, None, None] * self.blinks[side]
            a, b = UPPER_LIDS[side][1:-1], LOWER_LIDS[side][1:-1]
            over = ((moved[:, a, :2] - moved[:, b, :2]) @ self.down).clamp_min(0) * (closed[:, side, None] > 0)
            moved[:, a, :2] -= over[..., None] * self.down / 2
            moved[:, b, :2] += over[..., None] * self.down / 2
        turn = matrix_from_euler(*track.rotation.unbind(1)) @ self.rotation.mT  # [F, 3, 3]
        shift = torch.cat([track.shift, torch.zeros(frames, 1)], 1)[:, None]

        def place(points: Tensor) -> Tensor:
            return (points - self.pivot) @ turn.mT * track.zoom[:, None, None] + self.pivot + shift

        moved = moved + self.follow[:, None] * (place(moved) - moved)
        points = torch.empty(frames, NUM_LANDMARKS, 2)
        points[:, :NUM_SKIN_LANDMARKS] = moved[..., :2]
        roll = matrix_from_euler(*track.gaze.unbind(1), torch.zeros(frames))
        for eye, iris in zip(self.eyes, IRISES, strict=True):
            ball = eye.iris @ (turn @ roll @ eye.turn).mT * (eye.radius * track.zoom[:, None, None])
            points[:, iris] = (ball + place(eye.center[None]))[..., :2]
        pose = self.pose.expand(frames, 7).clone()
        pose[:, :3] = euler_from_matrix(turn @ self.rotation)
        pose[:, 3:6] += place(self.origin[None])[:, 0] - self.origin
        pose[:, 6] *= track.zoom
        return points, pose

    def _weights(self, track: HeadTrack) -> tuple[Tensor, Tensor]:
        """Weights [F, E] of all shapes, and lids' closures [F, 2]."""
        weights, closed = self.own.expand(len(track), -1).clone(), torch.zeros(len(track), 2)
        for column, name in enumerate(track.names):
            if name.startswith("eyeBlink_"):
                closed[:, SIDES.index(name[-1])] = track.weights[:, column]
            else:
                weights[:, self.names.index(name)] = track.weights[:, column]
        for side in SIDES:
            for name, pitch in ((f"eyeLookDown_{side}", track.gaze[:, 1]), (f"eyeLookUp_{side}", -track.gaze[:, 1])):
                if name in self.names and name not in track.names:
                    weights[:, self.names.index(name)] = (pitch / 0.6).clamp(0, 1)
        return weights, closed

    def still(self) -> HeadTrack:
        """One frame of the photograph's own face, looking into the camera from the front."""
        zero = torch.zeros(1, 2)
        return HeadTrack((), torch.zeros(1, 0), torch.zeros(1, 3), zero, zero, torch.ones(1))

    def motion(self, track: HeadTrack, dynamics: LandmarkDynamics) -> tuple[Tensor, FaceLabels]:
        """Motion `(frames, 34)`: yaw, pitch, roll, tx, ty, scale and z_dyn; and labels of the head from the front.

        z_dyn is read from the head as seen from the front, against its own neutral face, so that no turn leaks into it.

        Args:
            track (`HeadTrack`): What the head does.
            dynamics (`LandmarkDynamics`): What z_dyn means.
        """
        frontal = dataclasses.replace(
            track,
            rotation=torch.zeros_like(track.rotation),
            shift=torch.zeros_like(track.shift),
            zoom=torch.ones_like(track.zoom),
        )
        _, pose = self.landmarks(track)
        labels = self.labels(frontal, dynamics)
        neutral = unposed_landmarks(self.labels(self.still(), dynamics))
        return torch.cat([pose[:, :5], pose[:, 6:7], dynamics.encode(labels, neutral=neutral)], 1), labels

    def labels(self, track: HeadTrack, dynamics: LandmarkDynamics) -> FaceLabels:
        """Labels of a track, as a clip has them."""
        points, pose = self.landmarks(track)
        return FaceLabels(
            landmarks=points,
            pose=pose,
            iris_offset=iris_offset(points),
            eye_open=eye_openness(points),
            mouth=mouth_openness(points),
            offsets=np.array([0, len(points)]),
            names=["track"],
            ids=dynamics.ids,
            canonical=dynamics.canonical,
        )


def random_face(
    mesh: HeadMesh, dynamics: LandmarkDynamics, rng: np.random.Generator, strength: float = 0.7
) -> HeadPoints:
    """A synthetic person: the mean face with random identity weights, mouth shut, from the front.

    Args:
        mesh (`HeadMesh`): The head.
        dynamics (`LandmarkDynamics`): Knows the mean neutral face.
        rng (`numpy.random.Generator`): Source of chance.
        strength (`float`, defaults to 0.7): Deviation of the identity weights; 0 is the mean face.
    """
    canonical = dynamics.canonical[torch.from_numpy(dynamics.ids)]
    size = 0.2632  # of the faces in the training crops
    points = (canonical[:, :2] + dynamics.tensors["mean_shape"]) * size + 0.5
    fit = fit_head(mesh, points, torch.eye(3))
    weights = torch.from_numpy(rng.normal(size=len(mesh.identity)) * strength).float()
    shape = torch.tensordot(weights, mesh.identity[:, mesh.landmarks], 1)
    points[:NUM_SKIN_LANDMARKS] += (fit.scale * shape @ fit.rotation.mT)[:, :2]
    # Lips stay shut, and irises where the mean person's are who looks into the camera.
    for a, b in zip(rows(*_UPPER_LIP), rows(*_LOWER_LIP), strict=True):
        over = points[b, 1] - points[a, 1] - 0.002 * size
        points[a, 1] += over / 2
        points[b, 1] -= over / 2
    for side, iris in enumerate(IRISES):
        outer, inner = points[UPPER_LIDS[side][0]], points[UPPER_LIDS[side][-1]]
        width = (outer - inner).norm()
        center = (outer + inner) / 2 + dynamics.tensors["iris_mean"][side] * width
        center[1] += 0.4 * _USUAL_PITCH * width  # 0.4 eye widths from the ball's centre to the iris
        points[iris] += center - points[iris[0]]
    pose = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.5, 0.0, size])
    return HeadPoints(RenderedHead(mesh, torch.full((32, 32, 3), 128, dtype=torch.uint8), points, pose))

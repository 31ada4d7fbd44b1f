"""A linear model of how facial landmarks move, used to teach the dynamics code of the small presets.

# Not in the paper: VASA-1 learns z_dyn from 500K clips without labels. With minutes of video that does not disentangle,
so the small presets' dynamics encoder is taught weakly: landmarks are freed from head pose, each person's own neutral
shape is removed, and what remains is described by principal components of the lips (with jaw and cheeks), eyelids and
brows, plus the positions of the irises. Its 28 numbers have about unit variance and mean the same for everyone.

    landmarks = scale * (canonical + shape + z_dyn @ basis) @ R.T + t        (x and y; z comes from the canonical face)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vasa_hf.geometry.rotations import matrix_from_euler

PARTS = {"lips": 14, "lids": 6, "brows": 4, "gaze": 4}
_LIPS = (
    "0 13 14 17 37 39 40 61 78 80 81 82 84 87 88 91 95 146 178 181 185 191 267 269 270 291 308 310 311 312 314 317 "
    "318 321 324 375 402 405 409 415"
)
_JAW = "58 93 132 136 148 149 150 152 172 176 288 323 361 365 377 378 379 397 400"
_EYES = (
    "7 33 133 144 145 153 154 155 157 158 159 160 161 163 173 246",
    "249 263 362 373 374 380 381 382 384 385 386 387 388 390 398 466",
)
_BROWS = "46 52 53 55 63 65 66 70 105 107 276 282 283 285 293 295 296 300 334 336"
# 68 Multi-PIE points (ICT-FaceKit's landmarks) as MediaPipe points; brows and irises included, nose bridge left out.
_MULTI_PIE = {
    8: 152, 17: 70, 18: 63, 19: 105, 20: 66, 21: 107, 22: 336, 23: 296, 24: 334, 25: 293, 26: 300,
    36: 33, 37: 160, 38: 158, 39: 133, 40: 153, 41: 144, 42: 362, 43: 385, 44: 387, 45: 263, 46: 373, 47: 380,
    48: 61, 49: 39, 50: 37, 51: 0, 52: 267, 53: 269, 54: 291, 55: 405, 56: 314, 57: 17, 58: 84, 59: 181,
    60: 78, 61: 82, 62: 13, 63: 312, 64: 308, 65: 317, 66: 14, 67: 87,
}  # fmt: skip
# FACS-like mixtures of ICT-FaceKit shapes for the emotion offset e.
EMOTION_SHAPES = {
    "angry": {"browDown": 1.0, "eyeSquint": 0.4, "mouthPress": 0.5, "mouthFrown": 0.3, "noseSneer": 0.3},
    "disgusted": {"noseSneer": 1.0, "browDown": 0.5, "mouthUpperUp": 0.5, "mouthFrown": 0.4, "eyeSquint": 0.4},
    "fearful": {"browInnerUp": 1.0, "browOuterUp": 0.4, "eyeWide": 0.8, "mouthStretch": 0.6},
    "happy": {"mouthSmile": 1.0, "cheekSquint": 0.5, "eyeSquint": 0.3, "mouthDimple": 0.2},
    "sad": {"browInnerUp": 0.8, "mouthFrown": 1.0, "eyeSquint": 0.2, "mouthShrugLower": 0.3},
    "surprised": {"browInnerUp": 0.9, "browOuterUp": 0.9, "eyeWide": 0.9, "jawOpen": 0.25},
}
# What weight 1 stands for, as a multiple of the fitted direction of lips, lids and brows (by eye and by the judge of
# `models/emotion_classifier.py`): the decoder of vasa-small smears lips beyond it, and moves brows half as far.
EMOTION_STRENGTH = {
    "angry": (1.0, 1.5, 2.5),
    "disgusted": (0.6, 1.0, 1.5),
    "fearful": (0.7, 0.9, 1.2),
    "happy": (0.65, 0.65, 0.65),
    "sad": (1.0, 0.9, 1.5),
    "surprised": (0.6, 0.9, 1.1),
}
# What a radian of gaze yaw and pitch stands for, as a multiple of the irises' travel in z_dyn: the decoder of
# vasa-small shows 0.49 and 0.22 of what z_dyn says (`metrics/gaze.py`), guidance makes 1.3 of it.
GAZE_STRENGTH = (1.6, 2.75)
# At full strength and without speech the jaw takes part, too (FACS: action unit 26).
FULL_EMOTION_SHAPES = EMOTION_SHAPES | {
    "fearful": {"browInnerUp": 1.0, "browOuterUp": 0.4, "eyeWide": 0.9, "mouthStretch": 0.8, "jawOpen": 0.2},
    "surprised": {"browInnerUp": 1.0, "browOuterUp": 1.0, "eyeWide": 1.0, "jawOpen": 0.5},
}
# In canonical units: how far a person's landmarks may lie from what head shapes say of an emotion.
_EMOTION_NOISE = 0.05
_EMOTION_GAIN = 1.5
_EMOTION_QUANTILE = 0.99


@dataclass
class FaceLabels:
    """Landmark labels of one `.npz` file (`clips.npz` or `portraits.npz`).

    Attributes:
        landmarks (`torch.Tensor` of shape `(frames, 162, 2)`): x, y as fractions of the crop.
        pose (`torch.Tensor` of shape `(frames, 7)`): yaw, pitch, roll in radians, tx, ty, tz, scale.
        iris_offset (`torch.Tensor` of shape `(frames, 2, 2)`): Iris centre minus eye centre, in eye widths.
        eye_open (`torch.Tensor` of shape `(frames, 2)`): Lid gap over eye width.
        mouth (`torch.Tensor` of shape `(frames, 2)`): Lip gap and mouth width over the outer eye distance.
        offsets (`numpy.ndarray`): First frame of each file, and the end.
        names (`list[str]`): File names without suffix.
        ids (`numpy.ndarray`): MediaPipe indices of the landmarks.
        canonical (`torch.Tensor` of shape `(478, 3)`): Mean neutral face, outer eye corners one unit apart.
    """

    landmarks: Tensor
    pose: Tensor
    iris_offset: Tensor
    eye_open: Tensor
    mouth: Tensor
    offsets: np.ndarray
    names: list
    ids: np.ndarray
    canonical: Tensor

    @classmethod
    def load(cls, path: str | Path) -> "FaceLabels":
        """Read a label file.

        Args:
            path (`str` or `Path`): The `.npz` file.
        """
        with np.load(path) as arrays:
            get = lambda key: torch.from_numpy(arrays[key].astype(np.float32))  # noqa: E731
            return cls(
                landmarks=(get("landmarks") - 8192) / 8192,
                pose=get("pose"),
                iris_offset=get("iris_offset"),
                eye_open=get("eye_open"),
                mouth=get("mouth"),
                offsets=arrays["offsets"],
                names=[str(name) for name in arrays["names"]],
                ids=arrays["landmark_ids"].astype(int),
                canonical=get("canonical"),
            )


class UnlabelledDynamics:
    """In place of `LandmarkDynamics` where z_dyn is learned: codes have no numbers, landmarks are only mirrored.

    Args:
        labels (`FaceLabels`): Of the face that tells which landmarks are mirror images of each other.
    """

    dim = 0

    def __init__(self, labels: FaceLabels):
        self.ids = labels.ids
        self.tensors = {"flip": mirror_permutation(labels.canonical, labels.ids), "mirror": torch.zeros(0, 0)}

    def encode(self, labels: FaceLabels, *people: list[str]) -> Tensor:
        """Codes `(frames, 0)`."""
        return labels.pose.new_zeros(len(labels.pose), 0)


def unposed_landmarks(labels: FaceLabels) -> Tensor:
    """Free landmarks from head pose: the displacement from the canonical face in its own plane.

    Args:
        labels (`FaceLabels`): Landmarks and poses.

    Returns:
        `torch.Tensor` of shape `(frames, 162, 2)`, in canonical units.
    """
    rotation = matrix_from_euler(*labels.pose[:, :3].unbind(-1))
    canonical = labels.canonical[torch.from_numpy(labels.ids)]
    scale = labels.pose[:, 6, None, None]
    residual = (labels.landmarks - labels.pose[:, None, 3:5]) / scale - (canonical @ rotation.mT)[..., :2]
    return residual @ torch.linalg.inv(rotation[:, :2, :2]).mT


def person_of_frames(labels: FaceLabels, people: list[str]) -> Tensor:
    """Number of each frame's person, `(frames,)`, from one name per clip."""
    return torch.from_numpy(np.unique(np.repeat(people, np.diff(labels.offsets)), return_inverse=True)[1])


def mirror_permutation(canonical: Tensor, ids: np.ndarray) -> Tensor:
    """Index of each landmark's mirror image, from the symmetry of the canonical face."""
    points = canonical[torch.from_numpy(ids)]
    mirrored = points * points.new_tensor([-1.0, 1.0, 1.0])
    order = torch.cdist(mirrored, points).argmin(1)
    # Points on the midline and the two eyes' rims are near one another: insist on a true involution.
    return torch.where(order[order] == torch.arange(len(order)), order, torch.arange(len(order)))


class LandmarkDynamics:
    """Landmarks <-> 28-number dynamics codes. Fit once on labels, kept as a safetensors file.

    Args:
        tensors (`dict[str, torch.Tensor]`): The fitted arrays, see `fit`.
    """

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors
        self.ids = tensors["ids"].numpy()
        self.canonical = tensors["canonical"]

    @property
    def dim(self) -> int:
        """Number of dynamics channels."""
        return sum(PARTS.values())

    @staticmethod
    def _regions(ids: np.ndarray) -> dict[str, tuple[Tensor, Tensor]]:
        """Landmark rows and weights of each principal-component part."""
        row = {int(number): index for index, number in enumerate(ids)}
        pick = lambda text: [row[int(n)] for n in text.split() if int(n) in row]  # noqa: E731
        lips, jaw = pick(_LIPS), pick(_JAW)
        eyes = pick(_EYES[0]) + pick(_EYES[1])
        brows = pick(_BROWS)
        return {
            "lips": (torch.tensor(lips + jaw), torch.tensor([1.0] * len(lips) + [0.6] * len(jaw))),
            "lids": (torch.tensor(eyes), torch.ones(len(eyes))),
            "brows": (torch.tensor(brows), torch.ones(len(brows))),
        }

    @classmethod
    def fit(cls, labels: FaceLabels, people: list[str], portraits: FaceLabels | None = None) -> "LandmarkDynamics":
        """Fit the model on clips of known people, with portraits to learn how neutral shapes vary.

        Args:
            labels (`FaceLabels`): Labels of the clips.
            people (`list[str]`): One person's name per clip.
            portraits (`FaceLabels`, *optional*): Labels of single images.
        """
        ids, canonical = labels.ids, labels.canonical
        shape = unposed_landmarks(labels)  # [F, 162, 2]
        person = person_of_frames(labels, people)
        neutral = cls._neutral_shapes(shape, labels, person)
        moved = shape - neutral[person]
        moved = moved - _pose_leak(moved, labels.pose)
        flip = mirror_permutation(canonical, ids)
        mirrored = moved[:, flip] * moved.new_tensor([-1.0, 1.0])
        both = torch.cat([moved, mirrored])

        shapes = neutral
        if portraits is not None:
            still = (portraits.mouth[:, 0] < 0.02) & (portraits.pose[:, 0].abs() < 0.5)
            still &= portraits.eye_open.amin(1) > 0.2
            shapes = torch.cat([neutral, unposed_landmarks(portraits)[still]])
        shapes = torch.cat([shapes, shapes[:, flip] * shapes.new_tensor([-1.0, 1.0])])
        tensors = {
            "ids": torch.from_numpy(ids),
            "canonical": canonical,
            "flip": flip,
            "mean_shape": shapes.mean(0),
            "iris_mean": labels.iris_offset.mean((0, 1))[None].expand(2, 2) * torch.tensor([0.0, 1.0]),
            "iris_std": labels.iris_offset.std((0, 1))[None].expand(2, 2).contiguous(),
        }
        for part, (rows, weight) in cls._regions(ids).items():
            data = (both[:, rows] * weight[:, None]).flatten(1)
            values, vectors = torch.linalg.eigh(data.T @ data / len(data))
            width = PARTS[part]
            basis = vectors[:, -width:].flip(1) * values[-width:].flip(0).sqrt()  # [2n, k], z has unit variance
            # The sign of an eigenvector is chance (it changes with the number of threads): fix it.
            basis = basis * basis.pow(3).sum(0).sign()
            identity = ((shapes - tensors["mean_shape"])[:, rows] * weight[:, None]).flatten(1)
            covariance = identity.T @ identity / len(identity)
            covariance += torch.eye(len(covariance)) * values[:-width].mean().clamp_min(1e-7)
            tensors[f"rows_{part}"], tensors[f"weight_{part}"] = rows, weight
            tensors[f"basis_{part}"] = basis
            # Posterior mean of z for an unknown person: shape = mean + identity + basis z, both Gaussian.
            tensors[f"gain_{part}"] = basis.T @ torch.linalg.inv(basis @ basis.T + covariance)
            # A known neutral leaves only the small components as noise.
            noise = torch.eye(len(covariance)) * values[:-width].mean().clamp_min(1e-7)
            tensors[f"gain_known_{part}"] = basis.T @ torch.linalg.inv(basis @ basis.T + noise)
        model = cls(tensors)
        codes = model._encode(shape, labels.iris_offset, neutral[person])
        # What every landmark does when z moves, by ridge regression over all parts together.
        mirrored_codes = model._encode(
            shape[:, flip] * shape.new_tensor([-1.0, 1.0]),
            labels.iris_offset.flip(1) * shape.new_tensor([-1.0, 1.0]),
            neutral[person][:, flip] * shape.new_tensor([-1.0, 1.0]),
        )
        inputs = torch.cat([codes, mirrored_codes])
        targets = both.flatten(1)
        ridge = torch.eye(model.dim) * 0.01 * len(inputs)
        tensors["basis"] = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets)  # [28, 324]
        tensors["mirror"] = torch.linalg.lstsq(codes, mirrored_codes).solution.T.contiguous()  # z of the mirror image
        return model

    @staticmethod
    def _neutral_shapes(shape: Tensor, labels: FaceLabels, person: Tensor) -> Tensor:
        """Each person's shape with the mouth shut, eyes open and brows at rest: [people, 162, 2]."""
        out = []
        for index in range(int(person.max()) + 1):
            mine = (person == index).nonzero()[:, 0]
            gap, eyes = labels.mouth[mine, 0], labels.eye_open[mine].mean(1)
            shut = mine[gap <= torch.maximum(gap.quantile(0.15), gap.new_tensor(0.01))]
            awake = mine[(eyes >= eyes.quantile(0.4)) & (eyes <= eyes.quantile(0.95))]
            mean = shape[mine].mean(0)
            for part, (rows, _) in LandmarkDynamics._regions(labels.ids).items():
                chosen = {"lips": shut, "lids": awake, "brows": mine}[part]
                mean[rows] = shape[chosen][:, rows].median(0).values
            out.append(mean)
        return torch.stack(out)

    def _encode(self, shape: Tensor, iris_offset: Tensor, neutral: Tensor | None) -> Tensor:
        codes = []
        for part in ("lips", "lids", "brows"):
            rows, weight = self.tensors[f"rows_{part}"], self.tensors[f"weight_{part}"]
            reference = self.tensors["mean_shape"] if neutral is None else neutral
            moved = ((shape - reference)[:, rows] * weight[:, None]).flatten(1)
            gain = self.tensors[f"gain_{part}" if neutral is None else f"gain_known_{part}"]
            codes.append(moved @ gain.T)
        gaze = (iris_offset - self.tensors["iris_mean"]) / self.tensors["iris_std"]
        return torch.cat([*codes, gaze.flatten(1)], 1)

    def encode(self, labels: FaceLabels, people: list[str] | None = None, neutral: Tensor | None = None) -> Tensor:
        """Dynamics codes of labelled frames.

        Args:
            labels (`FaceLabels`): Landmarks, poses and irises.
            people (`list[str]`, *optional*): One person's name per clip: codes are then about each person's own neutral
                shape. Without them they are posterior means over neutral shapes.
            neutral (`torch.Tensor` of shape `(frames, 162, 2)`, *optional*): Known shapes, `neutral_shapes`.

        Returns:
            `torch.Tensor` of shape `(frames, 28)`.
        """
        if people is not None:
            neutral = self.neutral_shapes(labels, people)
        return self._encode(unposed_landmarks(labels), labels.iris_offset, neutral)

    def neutral_shapes(self, labels: FaceLabels, people: list[str] | None = None) -> Tensor:
        """Shape of each frame's face at rest: `(frames, 162, 2)`, canonical units.

        Args:
            labels (`FaceLabels`): Landmarks, poses and irises.
            people (`list[str]`, *optional*): One person's name per clip: taken from that person's calm frames. Without
                them, from each frame alone: what is left when the dynamics it seems to have are taken out.
        """
        shape = unposed_landmarks(labels)
        if people is None:
            return shape - (self.encode(labels) @ self.tensors["basis"]).unflatten(1, (-1, 2))
        person = person_of_frames(labels, people)
        return self._neutral_shapes(shape, labels, person)[person]

    def move(self, landmarks: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Where landmarks of one image go when pose and dynamics change.

        Args:
            landmarks (`torch.Tensor` of shape `(batch, 162, 2)`): Source landmarks, fractions of the crop.
            source (`torch.Tensor` of shape `(batch, 34)`): Source motion (pose 6, dynamics 28).
            target (`torch.Tensor` of shape `(batch, 34)`): Target motion.

        Returns:
            `torch.Tensor` of shape `(batch, 162, 2)`.
        """
        canonical = self.canonical[self.tensors["ids"]]
        r_source, r_target = (matrix_from_euler(*m[:, :3].unbind(-1)) for m in (source, target))
        planar = (landmarks - source[:, None, 3:5]) / source[:, 5, None, None] - (canonical @ r_source.mT)[..., :2]
        shape = planar @ torch.linalg.inv(r_source[:, :2, :2]).mT
        shape = shape + ((target - source)[:, 6:] @ self.tensors["basis"]).unflatten(1, (-1, 2))
        moved = torch.cat([canonical[..., :2] + shape, canonical[..., 2:].expand(len(shape), -1, 1)], -1) @ r_target.mT
        return moved[..., :2] * target[:, 5, None, None] + target[:, None, 3:5]

    def gaze_directions(self, yaw_rad_per_width: float = 2.5) -> Tensor:
        """Change of z_dyn per radian of gaze yaw (first row, to the image's right) and pitch (down).

        Args:
            yaw_rad_per_width (`float`): Radians for one eye width of iris travel: irises lie 0.4 eye widths before the
                ball's centre, as `geometry.landmarks.gaze_angles` has it.

        Returns:
            `torch.Tensor` of shape `(2, 28)`.
        """
        out = torch.zeros(2, self.dim)
        std = self.tensors["iris_std"] * yaw_rad_per_width
        out[0, 24], out[0, 26] = 1 / std[0, 0], 1 / std[1, 0]
        out[1, 25], out[1, 27] = 1 / std[0, 1], 1 / std[1, 1]
        return out

    def project_head_shapes(self, head: str | Path) -> dict[str, Tensor]:
        """Dynamics codes of ICT-FaceKit's expression shapes, by their landmarks.

        Args:
            head (`str` or `Path`): The `ict_facekit.npz` file; `landmarks_68` are its vertex indices, see the data's
                README.

        Returns:
            `dict[str, torch.Tensor]`: shape name (without `_L`/`_R`: both sides) -> code of shape `(28,)`.
        """
        basis, shapes = self._head_displacements(head)
        ridge = torch.eye(len(basis)) * 1e-3
        solve = lambda y: torch.linalg.solve(basis @ basis.T + ridge, basis @ y)  # noqa: E731
        return {name: torch.cat([solve(y), y.new_zeros(PARTS["gaze"])]) for name, y in shapes.items()}

    def _head_displacements(self, head: str | Path) -> tuple[Tensor, dict[str, Tensor]]:
        """What z_dyn (irises left out) and what head shapes, both sides together, do to the landmarks they share.

        Returns:
            `tuple[torch.Tensor, dict[str, torch.Tensor]]`: basis of shape `(24, 2n)`, and shape name -> `(2n,)`, in
            canonical units.
        """
        with np.load(head) as arrays:
            names = [str(name) for name in arrays["expression_names"]]
            vertices = np.array(ICT_LANDMARKS_68)[list(_MULTI_PIE)]
            neutral = torch.from_numpy(arrays["neutral"][ICT_LANDMARKS_68].astype(np.float32))
            offsets = torch.from_numpy(arrays["expression"][:, vertices].astype(np.float32))
        unit = (neutral[45] - neutral[36]).norm()
        offsets = offsets[..., :2] * offsets.new_tensor([1.0, -1.0]) / unit  # y down
        row = {int(number): index for index, number in enumerate(self.ids)}
        rows = torch.tensor([row[n] for n in _MULTI_PIE.values()])
        basis = self.tensors["basis"].unflatten(1, (-1, 2))[:, rows].flatten(1)[: -PARTS["gaze"]]
        shapes: dict[str, Tensor] = {}
        for name, offset in zip(names, offsets, strict=True):
            key = name.removesuffix("_L").removesuffix("_R")
            shapes[key] = shapes.get(key, 0) + offset.flatten()
        return basis, shapes

    def expression_offsets(self, codes: Tensor, scores: Tensor, person: Tensor, pose: Tensor) -> Tensor:
        """How z_dyn of real frames differs between each emotion and a neutral face, mirror-symmetric.

        Codes are regressed on the scores of a classifier within each person; yaw and pitch are regressed out.

        Args:
            codes (`torch.Tensor` of shape `(frames, 28)`): z_dyn.
            scores (`torch.Tensor` of shape `(frames, emotions)`): Probabilities of the emotions; what is left to 1 is
                that of a neutral face.
            person (`torch.Tensor` of shape `(frames,)`): Number of each frame's person.
            pose (`torch.Tensor` of shape `(frames, 7)`): Yaw and pitch first, radians.

        Returns:
            `torch.Tensor` of shape `(emotions, 28)`; gaze channels are 0.
        """
        angles = pose[:, :2]
        inputs = about_person(torch.cat([scores, angles, angles.square()], 1), person)
        ridge = torch.zeros(inputs.shape[1])
        ridge[: scores.shape[1]] = 0.0015 * len(codes)  # an emotion that few frames show tells little
        targets = about_person(self._symmetric(codes), person)
        solution = torch.linalg.solve(inputs.T @ inputs + torch.diag(ridge), inputs.T @ targets)
        return solution[: scores.shape[1]]

    def emotion_directions(
        self, head: str | Path, codes: Tensor | None = None, offsets: Tensor | None = None
    ) -> tuple[list[str], Tensor]:
        """Dynamics offset of each emotion at full strength.

        # Not in the paper: posterior mean of z_dyn given the landmarks of FACS-like mixtures of head shapes. Its prior
        has the covariance of real frames and, as its mean, the offset that real frames show. The result is enlarged, as
        people who talk show emotions mildly. Then lips, lids and brows are each held within 99 % of the real frames
        (Mahalanobis norm), as the decoder has seen little beyond, and multiplied by `EMOTION_STRENGTH`.

        Args:
            head (`str` or `Path`): The `ict_facekit.npz` file.
            codes (`torch.Tensor` of shape `(frames, 28)`, *optional*): z_dyn of real frames about each person's mean;
                unit Gaussian if left out.
            offsets (`torch.Tensor` of shape `(6, 28)`, *optional*): As `expression_offsets` gives them; else 0.

        Returns:
            `tuple[list[str], torch.Tensor]`: names and offsets of shape `(6, 28)`.
        """
        basis, shapes = self._head_displacements(head)
        width = len(basis)
        seen = torch.randn(20000, self.dim, generator=torch.Generator().manual_seed(0)) if codes is None else codes
        seen = self._symmetric(seen)[:, :width]
        covariance = torch.cov(seen.T) + 1e-3 * torch.eye(width)
        precision = torch.linalg.inv(covariance)
        landmarks = torch.stack(
            [sum(w * shapes[name] for name, w in mix.items()) for mix in FULL_EMOTION_SHAPES.values()]
        )
        prior = torch.zeros(len(landmarks), width) if offsets is None else offsets[:, :width]
        posterior = precision + basis @ basis.T / _EMOTION_NOISE**2
        directions = torch.linalg.solve(posterior, (prior @ precision + landmarks @ basis.T / _EMOTION_NOISE**2).T).T
        start = 0
        strength = torch.tensor([EMOTION_STRENGTH[name] for name in EMOTION_SHAPES])
        for number, size in enumerate((PARTS["lips"], PARTS["lids"], PARTS["brows"])):
            part = slice(start, start + size)
            limit = mahalanobis_norm(seen[:, part], covariance[part, part]).quantile(_EMOTION_QUANTILE)
            norm = mahalanobis_norm(directions[:, part], covariance[part, part])
            directions[:, part] *= (limit / norm).clamp(max=_EMOTION_GAIN)[:, None] * strength[:, number, None]
            start += size
        return list(EMOTION_SHAPES), torch.cat([directions, torch.zeros(len(directions), self.dim - width)], 1)

    def _symmetric(self, codes: Tensor) -> Tensor:
        """Part of `(frames, 28)` codes that looks the same in a mirror, with gaze set to 0."""
        codes = (codes + codes @ self.tensors["mirror"].T) / 2
        return torch.cat([codes[:, : -PARTS["gaze"]], torch.zeros(len(codes), PARTS["gaze"])], 1)

    def save(self, path: str | Path) -> None:
        """Write the fitted arrays as safetensors."""
        save_file({key: value.contiguous() for key, value in self.tensors.items()}, str(path))

    @classmethod
    def load(cls, path: str | Path) -> "LandmarkDynamics":
        """Read what `save` wrote."""
        return cls(load_file(str(path)))


ICT_LANDMARKS_68 = [
    1225, 1888, 1052, 367, 1719, 1722, 2199, 1447, 966, 3661, 4390, 3927, 3924, 2608, 3272, 4088, 3443, 268, 493, 1914,
    2044, 1401, 3615, 4240, 4114, 2734, 2509, 978, 4527, 4942, 4857, 1140, 2075, 1147, 4269, 3360, 1507, 1542, 1537,
    1528, 1518, 1511, 3742, 3751, 3756, 3721, 3725, 3732, 5708, 5695, 2081, 0, 4275, 6200, 6213, 6346, 6461, 5518, 5957,
    5841, 5702, 5711, 5533, 6216, 6207, 6470, 5517, 5966,
]  # fmt: skip


def mahalanobis_norm(values: Tensor, covariance: Tensor) -> Tensor:
    """Length of `(rows, channels)` in standard deviations of a covariance `(channels, channels)`: `(rows,)`."""
    return ((values @ torch.linalg.inv(covariance)) * values).sum(1).sqrt()


def about_person(values: Tensor, person: Tensor) -> Tensor:
    """`(frames, channels)` less each person's mean."""
    count = person.bincount()[:, None].clamp_min(1)
    sums = torch.zeros(len(count), values.shape[1]).index_add_(0, person, values)
    return values - (sums / count)[person]


def _pose_leak(moved: Tensor, pose: Tensor) -> Tensor:
    """Part of the displacement that a quadratic in yaw and pitch explains: imperfect depth, not expression."""
    yaw, pitch = pose[:, 0], pose[:, 1]
    design = torch.stack([yaw, pitch, yaw * yaw, pitch * pitch, yaw * pitch], 1)
    design = design - design.mean(0)
    return (design @ torch.linalg.lstsq(design, moved.flatten(1)).solution).unflatten(1, moved.shape[1:])

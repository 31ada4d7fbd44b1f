"""Face boxes, dense landmarks, pose, gaze, openness and expression from one small network.

Not in the paper: VASA-1 §4 only says that faces were found and cropped with existing tools, and takes gaze and head
distance from other networks. This network was trained for this project and is small enough to be embedded.

```
image -> letterbox 256² -> detector   -> heat map, size, offset at stride 8 -> boxes
                box -> crop 128² -> landmarker -> 162 heat maps (32²), soft-argmax -> points
                          ^                    -> rotation, translation, scale, presence
                          '---- crop again, upright, from the first points (second pass)
```
"""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from PIL import Image
from torch import Tensor, nn

from vasa_hf.geometry.crops import (
    crop_matrix,
    cut_crop,
    landmark_box,
    standard_crop,
    transform_points,
)
from vasa_hf.geometry.landmarks import (
    GROUPS,
    NUM_LANDMARKS,
    expression_scores,
    eye_openness,
    fit_pose,
    gaze_angles,
    mouth_openness,
    transform_pose,
)
from vasa_hf.geometry.rotations import euler_from_matrix, matrix_from_euler
from vasa_hf.layers.pyramid import PyramidBackbone, heat_weights, mean_position


@dataclasses.dataclass
class DetectedFace:
    """One face of an image. Tensors are float32 on the CPU.

    Attributes:
        box (`torch.Tensor` of shape `(4,)`): x0, y0, x1, y1 of the landmarks (without hair), in image pixels.
        score (`float`): How sure the analyzer is that this is a face, in [0, 1].
        landmarks (`torch.Tensor` of shape `(162, 2)`): x, y in image pixels, order of `LANDMARK_IDS`.
        pose (`torch.Tensor` of shape `(7,)`):
            yaw, pitch, roll in radians, tx, ty, tz, scale in fractions of the standard crop (`standard_crop(box)`).
        gaze (`torch.Tensor` of shape `(2,)`): yaw and pitch of the eyes in radians, (0, 0) looks into the camera.
        eye_open (`torch.Tensor` of shape `(2,)`): Lid gap over eye width, the image's left eye first.
        mouth_open (`float`): Gap of the inner lips over the distance of the outer eye corners.
        expression (`dict` of `str` to `float`): Scores in [0, 1], see `expression_scores` for how far to trust them.
    """

    box: Tensor
    score: float
    landmarks: Tensor
    pose: Tensor
    gaze: Tensor
    eye_open: Tensor
    mouth_open: float
    expression: dict[str, float]

    @property
    def side(self) -> float:
        """Larger side of the box in pixels."""
        return float((self.box[2:] - self.box[:2]).max())

    def pose_in(self, crop_from_image: Tensor) -> Tensor:
        """The pose, `(7,)`, in the fractions of another crop than the standard one."""
        return transform_pose(self.pose, crop_from_image.float() @ standard_crop(self.box))


@dataclasses.dataclass
class FaceAnalyzerOutput(BaseOutput):
    """Output of the landmarker for crops; differentiable, float32 whatever the dtype of the model.

    Attributes:
        landmarks (`torch.Tensor` of shape `(batch, 162, 2)`): Fractions of the crop.
        rotation (`torch.Tensor` of shape `(batch, 3, 3)`): Head rotation.
        translation (`torch.Tensor` of shape `(batch, 3)`): Fractions of the crop.
        scale (`torch.Tensor` of shape `(batch,)`): Size of a canonical unit, fraction of the crop.
        presence (`torch.Tensor` of shape `(batch,)`): Probability that the crop shows a face.
    """

    landmarks: Tensor
    # As in diffusers' outputs: with these defaults, accelerate can move an output to another device.
    rotation: Tensor = None
    translation: Tensor = None
    scale: Tensor = None
    presence: Tensor = None


class FaceDetector(nn.Module):
    """Face centres, sizes and offsets at stride 8 of a letterboxed image."""

    stride = 8

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], pyramid_channels: int):
        super().__init__()
        self.backbone = PyramidBackbone(widths, depths, pyramid_channels, finest=1)
        self.head = nn.Conv2d(pyramid_channels, 5, 1)
        nn.init.constant_(self.head.bias, 0.0)
        with torch.no_grad():
            self.head.bias[0] = -4.0  # faces are rare among the cells

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 5, H / 8, W / 8]: logit, log width, log height, x, y offset in strides."""
        return self.head(self.backbone(image)[0])


class FaceLandmarker(nn.Module):
    """162 points, pose and presence of one face in a 128² crop."""

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], pyramid_channels: int):
        super().__init__()
        self.backbone = PyramidBackbone(widths, depths, pyramid_channels, finest=0)
        self.heat = nn.Conv2d(pyramid_channels, NUM_LANDMARKS, 1)
        # rotation (6: first two columns), translation (3), log scale (1), presence logit (1)
        self.globals = nn.Sequential(nn.Linear(widths[-1], 128), nn.ReLU(), nn.Linear(128, 11))
        with torch.no_grad():
            self.globals[-1].weight.mul_(0.1)
            self.globals[-1].bias.copy_(torch.tensor([1, 0, 0, 0, 1, 0, 0.5, 0.5, 0, -1.0, 0]))

    def forward(self, crop: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Crops [B, 3, 128, 128] in [-1, 1] -> points, rotation, translation, scale, presence logit, peak height.

        Points [B, 162, 2], translation [B, 3] and scale [B] are fractions of the crop; rotation is [B, 3, 3]. The peak
        height [B] is the mean over the heat maps of their largest weight.
        """
        features, deepest = self.backbone(crop)
        weights = heat_weights(self.heat(features))
        points, peak = mean_position(weights), weights.amax(dim=(2, 3)).mean(dim=-1)
        out = self.globals(deepest.mean(dim=(2, 3))).float()
        return points, rotation_from_6d(out[:, :6]), out[:, 6:9], out[:, 9].exp(), out[:, 10], peak


def rotation_from_6d(columns: Tensor) -> Tensor:
    """Gram-Schmidt: two free vectors [B, 6] -> rotation matrices [B, 3, 3] whose first columns they span."""
    a = F.normalize(columns[:, :3], dim=-1)
    b = columns[:, 3:]
    b = F.normalize(b - (a * b).sum(-1, keepdim=True) * a, dim=-1)
    return torch.stack([a, b, torch.linalg.cross(a, b)], dim=-1)


class FaceAnalyzer(ModelMixin, ConfigMixin):
    """Find faces in an image and measure them.

    Args:
        detector_widths (`tuple` of five `int`): Channels of the detector's stem and four stages.
        detector_depths (`tuple` of four `int`): Residual blocks of its stages.
        detector_pyramid_channels (`int`): Channels of its top-down pyramid.
        landmarker_widths, landmarker_depths, landmarker_pyramid_channels: The same of the landmarker.
        detector_size (`int`, *optional*, defaults to 256): Longer side of the detector's input image.
        crop_size (`int`, *optional*, defaults to 128): Side of the landmarker's crop in pixels.
        crop_scale (`float`, *optional*, defaults to 1.45): Side of that crop over the larger side of the landmark box.
        half_certain_peak (`float`, *optional*, defaults to 0.036):
            Height of the heat maps' peaks at which a crop is as likely a face as not. On a face the maps are narrow, on
            anything else they spread; this is more reliable than the presence alone, trained on few kinds of objects.
    """

    @register_to_config
    def __init__(
        self,
        detector_widths: tuple[int, ...] = (16, 32, 64, 96, 128),
        detector_depths: tuple[int, ...] = (1, 2, 2, 1),
        detector_pyramid_channels: int = 48,
        landmarker_widths: tuple[int, ...] = (24, 48, 96, 160, 224),
        landmarker_depths: tuple[int, ...] = (1, 2, 2, 1),
        landmarker_pyramid_channels: int = 64,
        detector_size: int = 256,
        crop_size: int = 128,
        crop_scale: float = 1.45,
        half_certain_peak: float = 0.036,
    ):
        super().__init__()
        self.detector = FaceDetector(detector_widths, detector_depths, detector_pyramid_channels)
        self.landmarker = FaceLandmarker(landmarker_widths, landmarker_depths, landmarker_pyramid_channels)
        self.register_buffer("canonical", torch.zeros(NUM_LANDMARKS, 3))

    def forward(self, crop: Tensor) -> FaceAnalyzerOutput:
        """Measure the face of square crops.

        Args:
            crop (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [-1, 1], best about 1.45 faces wide.

        Returns:
            `FaceAnalyzerOutput`, all in fractions of the crop.
        """
        if crop.ndim != 4 or crop.shape[1] != 3:
            raise ValueError(f"`crop` must be of shape (batch, 3, height, width), but is {tuple(crop.shape)}.")
        return FaceAnalyzerOutput(*self._measure_crop(crop))

    def _measure_crop(self, crop: Tensor) -> tuple[Tensor, ...]:
        """Points, rotation, translation, scale and presence, float32, for crops of any size."""
        size = self.config.crop_size
        if crop.shape[-2:] != (size, size):
            crop = F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True)
        points, rotation, translation, scale, logit, peak = self.landmarker(crop.to(self.dtype))
        certainty = (6 * (peak / self.config.half_certain_peak).log()).sigmoid()
        return points, rotation, translation, scale, logit.sigmoid() * certainty

    @apply_forward_hook
    @torch.no_grad()
    def detect(
        self,
        image: Image.Image | np.ndarray | Tensor,
        threshold: float = 0.5,
        max_faces: int = 16,
    ) -> list[DetectedFace]:
        """Find the faces of an image.

        The image is searched at 256 pixels; only if that finds nothing, again at 512 (small faces) and 128 (a face
        larger than the image).

        Args:
            image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
                RGB: PIL, a uint8 array `(height, width, 3)` or a float tensor `(3, height, width)` in [-1, 1].
            threshold (`float`, *optional*, defaults to 0.5): Least score of a face.
            max_faces (`int`, *optional*, defaults to 16): Maximum number of faces; the largest are kept.

        Returns:
            `list` of `DetectedFace`, largest first; empty if there is none.

        Raises:
            ValueError: If `image` is of another kind or shape.
        """
        picture = to_image_tensor(image)
        size = self.config.detector_size
        for search_size in (size, 2 * size, size // 2):
            faces = self._measure(picture, self._search(picture, search_size), passes=2, least=threshold / 4)
            faces = _remove_duplicates([face for face in faces if face.score >= threshold])
            if faces:
                break
        return sorted(faces, key=lambda face: -face.side)[:max_faces]

    def _search(self, picture: Tensor, size: int, least: float = 0.25, most: int = 24) -> Tensor:
        """Boxes [N, 4] in pixels that the detector proposes, on the image shrunk into `size`²; to be confirmed."""
        height, width = picture.shape[-2:]
        ratio = size / max(height, width)
        shrunk = (max(round(height * ratio), 8), max(round(width * ratio), 8))
        small = F.interpolate(self._on_device(picture[None]), size=shrunk, mode="bilinear", antialias=True)
        step = 32  # the deepest stage's stride
        small = F.pad(small, (0, -shrunk[1] % step, 0, -shrunk[0] % step))
        out = self.detector(small.to(self.dtype))[0].float().cpu()
        heat = out[0].sigmoid()
        peaks = (heat == F.max_pool2d(heat[None], 3, 1, 1)[0]) & (heat > least)
        y, x = peaks.nonzero(as_tuple=True)
        best = heat[y, x].argsort(descending=True)[: 3 * most]
        y, x = y[best], x[best]
        center = torch.stack([x, y]).float() + 0.5 + out[3:5, y, x]
        half = out[1:3, y, x].clamp(-2, 5).exp() / 2
        boxes = torch.cat([center - half, center + half]).T * FaceDetector.stride
        scale = torch.tensor([width / shrunk[1], height / shrunk[0]]).repeat(2)
        return boxes[suppress(boxes, heat[y, x])[:most]] * scale

    @apply_forward_hook
    @torch.no_grad()
    def measure(
        self,
        image: Image.Image | np.ndarray | Tensor,
        boxes: Tensor,  # [N, 4]
        passes: int = 2,
        threshold: float = 0.0,
    ) -> list[DetectedFace]:
        """Measure faces whose boxes are roughly known (marked by a user, or from the frame before).

        Args:
            image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): See `detect`.
            boxes (`torch.Tensor` of shape `(N, 4)`): x0, y0, x1, y1, forehead to chin and cheek to cheek, in pixels.
            passes (`int`, *optional*, defaults to 2): How often each face is cropped again from its landmarks.
            threshold (`float`, *optional*, defaults to 0.0): Minimum score of a face; boxes below it are omitted.

        Returns:
            `list` of `DetectedFace`, in the order of the boxes.
        """
        boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        return self._measure(to_image_tensor(image), boxes, passes, threshold)

    def _measure(self, picture: Tensor, boxes: Tensor, passes: int, least: float = 0.0) -> list[DetectedFace]:
        """Like `measure`; boxes whose score is below `least` in any pass are dropped."""
        # Squares are upright in the head's own frame: (centre, side, angle) for each box.
        squares = [((box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max(), torch.zeros(())) for box in boxes]
        faces: list[DetectedFace] = []
        for index in range(passes):
            matrices = [crop_matrix(center, side * self.config.crop_scale, angle) for center, side, angle in squares]
            if not matrices:
                return []
            crops = torch.stack([cut_crop(picture, matrix, self.config.crop_size) for matrix in matrices])
            results = [value.float().cpu() for value in self._measure_crop(self._on_device(crops))]
            squares = []
            for matrix, crop_points, rotation, translation, scale, score in zip(matrices, *results, strict=True):
                if score < least:
                    continue
                points = transform_points(matrix, crop_points)
                pose = self._pose(points, torch.cat([euler_from_matrix(rotation), translation, scale[None]]), matrix)
                if index == passes - 1:
                    faces.append(describe_face(points, pose, self.canonical.float().cpu(), float(score)))
                turn = matrix_from_euler(torch.zeros(()), torch.zeros(()), pose[2])[:2, :2]
                box = landmark_box(points @ turn)
                squares.append((turn @ (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max(), pose[2]))
        return faces

    def _on_device(self, image: Tensor) -> Tensor:
        """An image where the networks are; if they are offloaded layer by layer, their hooks move it."""
        return image if self.device.type == "meta" else image.to(self.device)

    def _pose(self, points: Tensor, crop_pose: Tensor, image_from_crop: Tensor) -> Tensor:
        """Pose [7] in image pixels: the prediction for the crop, fitted to the visible rigid points."""
        pose = transform_pose(crop_pose, image_from_crop)
        rigid = list(GROUPS["rigid"])
        canonical = self.canonical.float().cpu()[rigid]
        rotation, translation, scale = fit_pose(points[rigid], canonical, matrix_from_euler(*pose[:3]), steps=2)
        return torch.cat([euler_from_matrix(rotation), translation[:2], pose[5:6], scale[None]])


def describe_face(points: Tensor, pose: Tensor, canonical: Tensor, score: float) -> DetectedFace:
    """Everything that follows from landmarks [162, 2] and pose [7], both in image pixels."""
    box = landmark_box(points)
    crop_from_image = torch.linalg.inv(standard_crop(box))
    scores = expression_scores(points, pose, canonical)
    return DetectedFace(
        box=box,
        score=score,
        landmarks=points,
        pose=transform_pose(pose, crop_from_image),
        gaze=gaze_angles(points, pose),
        eye_open=eye_openness(points),
        mouth_open=float(mouth_openness(points)[0]),
        expression={name: float(value) for name, value in scores.items()},
    )


def to_image_tensor(image: Image.Image | np.ndarray | Tensor) -> Tensor:
    """One RGB image as a float tensor [3, H, W] in [-1, 1] on the CPU."""
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(
                f"`image` must be a uint8 array of shape (height, width, 3), but is {image.dtype} {image.shape}."
            )
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1.0
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ValueError(
                "`image` must be a float tensor of shape (3, height, width) in [-1, 1], "
                f"but is {image.dtype} {tuple(image.shape)}."
            )
        return image.detach().float().cpu()
    raise ValueError(f"`image` must be a PIL image, an array or a tensor, but is a {type(image).__name__}.")


def suppress(boxes: Tensor, scores: Tensor, limit: float = 0.4) -> list[int]:
    """Rows of the boxes [N, 4] that stay when of any two with an overlap (IoU) above `limit` the worse one goes."""
    keep: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap(boxes[i], boxes[j]) <= limit for j in keep):
            keep.append(i)
    return keep


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two boxes `(4,)`."""
    shared = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp_min(0).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared).clamp_min(1e-6))


def _remove_duplicates(faces: list[DetectedFace]) -> list[DetectedFace]:
    """Remove the worse of two faces with the same landmarks."""
    if not faces:
        return faces
    return [faces[i] for i in suppress(torch.stack([f.box for f in faces]), torch.tensor([f.score for f in faces]))]

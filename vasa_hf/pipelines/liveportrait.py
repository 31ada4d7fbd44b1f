"""LivePortrait: portraits animated by keypoints that follow a video, a motion, or explicit edits.

    video --M, frame by frame--> motion of its face --relative or absolute, a region or all--> motion of the portrait
    motion of the portrait --(edits)--> keypoints --stitching, retargeting--> W, G --> frames

`ModaTalkingHeadPipeline` and `JoyVasaTalkingHeadPipeline` add motion from speech.

Source: LivePortrait §3.3. # Not in the paper: retargeting leaves what the driver does elsewhere as it is; where the
public code retargets eyes or lips in a relative motion, it ignores the driver.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vasa_hf.checks import check_number
from vasa_hf.geometry.keypoints import (
    EYE_KEYPOINTS,
    LIP_KEYPOINTS,
    REGIONS,
    KeypointMotion,
    absolute_motion,
    expression_friendly_scale,
    relative_motion,
    transform_keypoints,
)
from vasa_hf.geometry.landmarks import rows
from vasa_hf.models.face_analyzer import FaceAnalyzer
from vasa_hf.models.renderer_liveportrait import LivePortraitRenderer
from vasa_hf.pipelines.base import FPS
from vasa_hf.pipelines.driving import DrivingFace, smooth
from vasa_hf.pipelines.expression_edits import Edits, ExpressionControl, parse_expression
from vasa_hf.pipelines.inputs import ImageInput, check_choice, check_components
from vasa_hf.pipelines.keypoint_motion import KEYPOINT_SPEC, KeypointPortrait, apply_edits, keypoints_of, motion_of
from vasa_hf.pipelines.options import FaceView, Transfer
from vasa_hf.pipelines.portrait import PortraitPipeline
from vasa_hf.processors.image import FaceImageProcessor

# Of `smooth`. The motion extractor sees a head turn from frame to frame more than it does, the smaller ones most.
SMOOTH_POSE, SMOOTH_EXPRESSION = 1.0, 0.1
MAX_MULTIPLIER = 3.0
MAX_RATIO = 1.0
_EYES = (((159, 145), (33, 133)), ((386, 374), (263, 362)))  # mesh ids: across the opening, along it; left first
_LIPS = ((13, 14), (61, 291))


@dataclass(frozen=True)
class KeypointView(FaceView):
    """How a motion becomes keypoints, and the fields of `FaceView`.

    Args:
        stitching (`bool`, defaults to `True`): Fit the shoulders to the portrait's.
        driving_multiplier (`float`, defaults to 1.0): Amount of movement away from the portrait's own keypoints.
        friendly_scale (`float`, defaults to 1.0): More of it, see `expression_friendly_scale`.
        eye_ratio (`float`, *optional*): Openness of the eyes (height over width), instead of the motion's.
        lip_ratio (`float`, *optional*): Openness of the lips, likewise.
    """

    stitching: bool = True
    driving_multiplier: float = 1.0
    friendly_scale: float = 1.0
    eye_ratio: float | None = None
    lip_ratio: float | None = None

    def check(self, output_sizes: Sequence[int]) -> None:
        """Raise `ValueError` for values out of range."""
        super().check(output_sizes)
        check_number("driving_multiplier", self.driving_multiplier, 0.0, MAX_MULTIPLIER)
        check_number("friendly_scale", self.friendly_scale, 0.0, float("inf"))
        for name in ("eye_ratio", "lip_ratio"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0.0, MAX_RATIO)


@dataclass(frozen=True)
class KeypointTransfer(Transfer):
    """More options of `animate` and `render`.

    Args:
        region (`str`, defaults to `"all"`): What is driven: `"all"`, `"expression"`, `"pose"`, `"lips"`, `"eyes"`.
        expression (`dict[str, float]` or `[(seconds, edits), ...]`, *optional*):
            Edits that are added, such as `{"smile": 0.5}`: `vasa_hf.pipelines.expression_edits.EDITS`.
        expression_friendly (`bool`, defaults to `False`):
            More movement for a face larger than the driver's; for a driving video only.
    """

    region: str = "all"
    expression: ExpressionControl | None = None
    expression_friendly: bool = False

    def check(self) -> None:
        """Raise `ValueError` for values out of range."""
        check_choice("region", self.region, REGIONS)
        parse_expression(self.expression)


class LivePortraitPipeline(PortraitPipeline):
    """Portraits that follow a video, a motion or edits, after LivePortrait.

    Args:
        face_analyzer (`FaceAnalyzer`): Finds faces.
        image_processor (`FaceImageProcessor`): Loads, crops and pastes back images.
        renderer (`LivePortraitRenderer`): Appearance, keypoints, warping, frames.

    Options of a call are the fields of `KeypointView`, and those of `animate` and `render` also of `KeypointTransfer`.
    With a renderer of official size, `pipe.renderer.optimize_for_inference()` makes it faster on a CPU; it slows small
    ones down.

    Attributes:
        driving_smoothing (`float`): How much the motion of a driving video is smoothed, times `SMOOTH_POSE` and
            `SMOOTH_EXPRESSION`; 0 takes it as it is seen.

    Example:
        ```python
        pipe = LivePortraitPipeline.from_pretrained("my-liveportrait")
        pipe.animate("portrait.jpg", "driving.mp4", region="lips").save("lips.mp4")
        ```
    """

    model_cpu_offload_seq = "face_analyzer->renderer"
    subject_type = KeypointPortrait
    view_type = KeypointView
    transfer_type = KeypointTransfer
    motion_spec = KEYPOINT_SPEC
    driving_smoothing: float = 1.0

    def __init__(
        self, face_analyzer: FaceAnalyzer, image_processor: FaceImageProcessor, renderer: LivePortraitRenderer
    ):
        super().__init__()
        self.register_modules(face_analyzer=face_analyzer, image_processor=image_processor, renderer=renderer)
        check_components({"renderer": (renderer, LivePortraitRenderer)})

    @property
    def output_sizes(self) -> tuple[int, ...]:
        """Sides of the square that the renderer can make."""
        return (self.renderer.output_size,)

    @torch.no_grad()
    def prepare_subject(self, image: ImageInput | KeypointPortrait, view: FaceView) -> KeypointPortrait:
        """Find the face, crop it, and encode appearance and keypoints; a prepared portrait stays as it is."""
        if isinstance(image, KeypointPortrait):
            return image
        size = view.output_size or self.renderer.output_size
        picture = self.image_processor.load(image)
        crop = self.image_processor.crop(picture, **self.find_face(picture, view), size=size, original=image)
        small = self._resize_crop(crop.image)
        keypoints = self.renderer.extract_motion(small).to(torch.float32)
        return KeypointPortrait(self.renderer.encode_appearance(small), keypoints, picture, crop, size)

    def encode_driving(self, driving: DrivingFace) -> KeypointMotion:
        """Keypoint motion of a driving face, float32, a row for each frame, smoothed."""
        motion, cuts = self._measure_keypoints(driving), driving.cuts
        strengths = dict.fromkeys(("scale", "t", "pitch", "yaw", "roll"), SMOOTH_POSE) | {"exp": SMOOTH_EXPRESSION}
        strengths = {name: self.driving_smoothing * strength for name, strength in strengths.items()}
        smoothed = {name: smooth(getattr(motion, name), strength, cuts) for name, strength in strengths.items()}
        return dataclasses.replace(motion, **smoothed)

    @torch.no_grad()
    def _measure_keypoints(self, driving: DrivingFace) -> KeypointMotion:
        """Keypoint motion of a driving face as it is seen frame by frame."""
        crops = driving.crops(self.renderer.config.image_size)
        seen = KeypointMotion.cat(
            [self.renderer.extract_motion(self._resize_crop(crop)).to(torch.float32) for crop in crops]
        )
        zoom, shift = (value.to(seen.t) for value in driving.view)
        place = seen.t * zoom + torch.nn.functional.pad(2 * shift, (0, 1))  # counted from the middle, in half sides
        seen = dataclasses.replace(seen, scale=seen.scale * zoom, t=place)
        return KeypointMotion(*(driving.fill(getattr(seen, field.name)) for field in dataclasses.fields(seen)))

    def encode_keypoints(self, frames: Iterable[ImageInput], **options: Any) -> KeypointMotion:
        """Keypoint motion of the face in a video, float32, a row for each frame; arguments as for `encode_video`."""
        with self._driving_face(frames, **options) as driving:
            return self._measure_keypoints(driving)

    def measure_driving(self, driving: DrivingFace) -> Tensor:
        """Motion `(1, frames, 69)` of a driving face; see `TalkingHeadPipeline.measure_driving`."""
        return motion_of(self._measure_keypoints(driving))[None]

    def transfer_motion(
        self,
        subject: KeypointPortrait,
        driving: KeypointMotion,
        neutral: int | None,
        fps: Fraction,
        transfer: KeypointTransfer,
        view: KeypointView,
    ) -> tuple[Tensor, KeypointView]:
        """Motion `(1, frames, 69)` of a portrait that follows a driving video, and the view to render it with."""
        own, region, rest = subject.keypoints, transfer.region, neutral or 0
        first = dataclasses.replace(driving[rest : rest + 1], t=driving.t[:1], scale=driving.scale[:1])
        if neutral is None:
            motion = absolute_motion(own, driving, region)
        else:
            motion = relative_motion(own, driving, first, region)
        if transfer.expression_friendly:
            scale = expression_friendly_scale(transform_keypoints(own), transform_keypoints(first))
            view = dataclasses.replace(view, friendly_scale=float(scale))
        return apply_edits(motion_of(motion), parse_expression(transfer.expression), 0, fps)[None], view

    def adapt_motion(
        self, subject: KeypointPortrait, motion: Tensor, relative: bool, fps: Fraction, transfer: KeypointTransfer
    ) -> Tensor:
        """A given motion `(1, frames, 69)` as the portrait's own."""
        if transfer.expression_friendly:
            raise ValueError("`expression_friendly` needs a driving video, got a motion.")
        if relative or transfer.region != "all":
            driving, own = keypoints_of(motion[0], subject.keypoints.kp), subject.keypoints
            first = driving[:1] if relative else own
            motion = motion_of(relative_motion(own, driving, first, transfer.region))[None]
        return apply_edits(motion[0], parse_expression(transfer.expression), 0, fps)[None]

    @torch.no_grad()
    def render_frames(
        self,
        subject: KeypointPortrait,
        motion: Tensor,  # [T, 69]
        view: KeypointView | None = None,
        start_frame: int = 0,
        fps: Fraction = Fraction(FPS),
    ) -> Iterator[Tensor]:
        """Render absolute motion to frames, a few at a time; see `TalkingHeadPipeline.render_frames`."""
        renderer, view = self.renderer, view or KeypointView()

        @torch.no_grad()
        def decode(part: Tensor) -> Tensor:
            source, target = self.driving_keypoints(subject, part, view)
            feature = subject.feature_3d.expand(len(part), -1, -1, -1, -1)
            warped, _, _ = renderer.warp(feature, source.to(feature), target.to(feature))
            with self.decoder_precision(renderer):
                frames = renderer.decode(warped)
            frames = frames.float().cpu()
            if view.paste_back:
                frames = self.image_processor.paste_back(subject.picture, frames * 2 - 1, subject.crop) * 0.5 + 0.5
            return frames.clamp_(0, 1)

        yield from self.decode_ahead(decode, motion)

    @torch.no_grad()
    def retarget(
        self,
        image: ImageInput | KeypointPortrait,
        *,
        eyes: float | None = None,
        lips: float | None = None,
        expression: Edits | None = None,
        rotation_deg: Sequence[float] = (0.0, 0.0, 0.0),
        stitching: bool = True,
        face: int | None = None,
        box: Sequence[float] | None = None,
        output_size: int | None = None,
        paste_back: bool = False,
    ) -> Image.Image:
        """One image of a portrait with its eyes, lips, expression and head pose changed explicitly.

        Source: LivePortrait §3.3, "Eyes and lip retargeting".

        Args:
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `KeypointPortrait`): Portrait.
            eyes (`float`, *optional*): Wanted openness of both eyes, height over width: 0 is closed, 0.4 wide open.
            lips (`float`, *optional*): Wanted openness of the lips, height over width.
            expression (`dict[str, float]`, *optional*): Edits such as `{"smile": 0.6, "gaze_yaw": 0.2}`, see
                `vasa_hf.pipelines.expression_edits.EDITS`.
            rotation_deg (three `float`): Yaw, pitch, roll that are added to the head's, degrees.
            stitching (`bool`, defaults to `True`): Fit the shoulders to the portrait's.
            face (`int`, *optional*): Which face of the image, 0 is the largest.
            box (`Sequence[float]`, *optional*): x0, y0, x1, y1 of the face in pixels, instead of detecting it.
            output_size (`int`, *optional*): Side of the face's square, one of `output_sizes`.
            paste_back (`bool`, defaults to `False`): Give the whole image, not only the face's square.

        Raises:
            ValueError: If an argument cannot be used; the message names it.
        """
        view = KeypointView(face, box, output_size, paste_back, stitching, eye_ratio=eyes, lip_ratio=lips)
        self.check_inputs(image, view=view)
        edits = parse_expression(expression)
        if len(rotation_deg) != 3 or any(not isinstance(x, int | float) or abs(x) > 90 for x in rotation_deg):
            raise ValueError(f"`rotation_deg` must be three angles within 90 degrees, got {rotation_deg!r}.")
        portrait = self.prepare_subject(self._one_subject(image), view)
        motion = portrait.motion.clone()
        motion[:, :3] += torch.deg2rad(motion.new_tensor(list(rotation_deg)))
        frames = next(self.render_frames(portrait, apply_edits(motion, edits, 0, FPS), view))
        self.maybe_free_model_hooks()
        return self.postprocess(frames, "pil")[0]

    def driving_keypoints(
        self, portrait: KeypointPortrait, motion: Tensor, view: KeypointView
    ) -> tuple[Tensor, Tensor]:
        """Keypoints `(frames, 21, 3)` of the portrait, and of the frames of a motion.

        Source: LivePortrait Eq. 2, 5 to 9; the order of the steps is that of its code.

        Args:
            portrait (`KeypointPortrait`): A prepared portrait.
            motion (`torch.Tensor` of shape `(frames, 69)`): Absolute motion.
            view (`KeypointView`): Stitching, retargeting and scales.
        """
        own = portrait.keypoints
        driven = keypoints_of(motion.to(own.kp), own.kp)
        exp = driven.exp.clone()
        for ratio, points in ((view.eye_ratio, EYE_KEYPOINTS), (view.lip_ratio, LIP_KEYPOINTS)):
            if ratio is not None:  # the networks move the portrait's own eyes and lips
                exp[:, list(points)] = own.exp[:, list(points)]
        source = transform_keypoints(own).expand(len(motion), -1, -1)
        target = transform_keypoints(dataclasses.replace(driven, exp=exp))
        target = source + (target - source) * view.friendly_scale
        change, dtype = self._retarget(portrait, view, source), self.renderer.dtype
        if view.stitching:  # add the network's change only: in half precision, keypoints themselves would lose digits
            change = change + (self.renderer.stitch(source.to(dtype), target.to(dtype)) - target.to(dtype)).to(target)
        return source, source + (target + change - source) * view.driving_multiplier

    def _retarget(self, portrait: KeypointPortrait, view: KeypointView, source: Tensor) -> Tensor:
        """Compute what the retargeting networks add to the keypoints `(frames, 21, 3)`."""
        added = torch.zeros_like(source)
        if view.eye_ratio is None and view.lip_ratio is None:
            return added
        source = source.to(self.renderer.dtype)
        eyes, lips = (ratio.to(source).expand(len(source), -1) for ratio in self.openness(portrait))
        if view.eye_ratio is not None:
            added += self.renderer.retarget_eyes(source, eyes, torch.full_like(lips, view.eye_ratio)).to(added)
        if view.lip_ratio is not None:
            added += self.renderer.retarget_lips(source, lips, torch.full_like(lips, view.lip_ratio)).to(added)
        return added

    @torch.no_grad()
    def openness(self, portrait: KeypointPortrait) -> tuple[Tensor, Tensor]:
        """Measure the openness of a portrait's eyes `(1, 2)` and lips `(1, 1)`: height over width of the landmarks."""
        crop = portrait.crop.image[None].to(self._execution_device, self.face_analyzer.dtype)
        landmarks = self.face_analyzer(crop).landmarks.float()

        def ratio(across: tuple[int, int], along: tuple[int, int]) -> Tensor:
            height, width = ((landmarks[:, i] - landmarks[:, j]).norm(dim=-1) for i, j in (rows(*across), rows(*along)))
            return height / (width + 1e-6)

        return torch.stack([ratio(*eye) for eye in _EYES], -1), ratio(*_LIPS)[:, None]

    def _resize_crop(self, crop: Tensor) -> Tensor:
        """Resize a square `(3, size, size)` in [-1, 1] to `(1, 3, image_size, image_size)` in [0, 1] on the device."""
        size, image = self.renderer.config.image_size, crop[None].float() * 0.5 + 0.5
        if image.shape[-1] != size:
            image = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)
        return image.clamp(0, 1).to(self._execution_device, self.renderer.dtype)

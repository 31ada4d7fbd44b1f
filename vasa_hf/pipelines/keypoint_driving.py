"""Portraits that are moved by LivePortrait's keypoints: by a video, by a motion, or by hand.

    video --M, frame by frame--> motion of its face --relative or absolute, a region or all--> motion of the portrait
    motion of the portrait --(edits)--> keypoints --stitching, retargeting--> W, G --> pictures

A portrait's motion is a `MotionSpec({"expression": 63})`: angles in radians of `geometry/rotations.py`, place and scale
in fractions of the crop, and the shifts of the 21 keypoints.

Source: LivePortrait §3.3. # Not in the paper: retargeting leaves what the driver does elsewhere as it is; where the
public code retargets eyes or lips in a relative motion, it forgets the driver.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vasa_hf.controls import ControlTrack
from vasa_hf.geometry.keypoints import (
    EYE_KEYPOINTS,
    LIP_KEYPOINTS,
    REGIONS,
    KeypointMotion,
    absolute_motion,
    euler_degrees,
    expression_friendly_scale,
    relative_motion,
    transform_keypoints,
)
from vasa_hf.geometry.landmarks import rows
from vasa_hf.geometry.rotations import euler_from_matrix, matrix_from_euler
from vasa_hf.media.ffmpeg import parse_fps
from vasa_hf.motion import MotionSpec
from vasa_hf.outputs import TalkingFaceOutput
from vasa_hf.pipelines.expression_edits import expression_shift, parse_expression
from vasa_hf.pipelines.inputs import (
    AudioInput,
    ImageInput,
    Performer,
    check_choice,
    check_number,
    only_image,
    open_driving,
    read_motion,
    read_sound,
)
from vasa_hf.processors.image import FaceCrop

KEYPOINT_SPEC = MotionSpec({"expression": 63})
MAX_MULTIPLIER = 3.0
MAX_RATIO = 1.0
_EYES = (((159, 145), (33, 133)), ((386, 374), (263, 362)))  # mesh ids: across the opening, along it; left first
_LIPS = ((13, 14), (61, 291))


@dataclass(frozen=True)
class Drawing:
    """How a motion becomes keypoints.

    Args:
        stitching (`bool`): Let the stitching network fit the shoulders to the portrait's.
        driving_multiplier (`float`): Amount of movement.
        friendly_scale (`float`): More of it, see `expression_friendly_scale`.
        eye_ratio (`float`, *optional*): Openness of the eyes, instead of the motion's.
        lip_ratio (`float`, *optional*): Openness of the lips, likewise.
    """

    stitching: bool = True
    driving_multiplier: float = 1.0
    friendly_scale: float = 1.0
    eye_ratio: float | None = None
    lip_ratio: float | None = None


@dataclass
class KeypointPortrait(Performer):
    """A portrait made ready by `prepare_portrait`; give it as `image` to save that work.

    Attributes:
        feature_3d (`torch.Tensor` of shape `(1, channels, depth, height, width)`): Its appearance.
        keypoints (`KeypointMotion`): Whose face it is, and how it looks; one row.
        picture (`torch.Tensor` of shape `(3, height, width)`): The whole picture in [-1, 1].
        crop (`FaceCrop`): Where the face's square lies in it.
        size (`int`): Side of the pictures that are made of it.
    """

    feature_3d: Tensor
    keypoints: KeypointMotion
    picture: Tensor
    crop: FaceCrop
    size: int

    @property
    def motion(self) -> Tensor:
        """Its own pose and expression, `(1, 69)`, float32."""
        return motion_of(self.keypoints)

    @property
    def output_size(self) -> int:
        """Side of the square picture in pixels."""
        return self.size


def motion_of(keypoints: KeypointMotion) -> Tensor:
    """Keypoint motion as `(frames, 69)`, see `KEYPOINT_SPEC`, float32."""
    angles = euler_from_matrix(keypoints.rotation.float().mT)
    place = (keypoints.t[:, :2].float() + 1) / 2  # from [-1, 1] to fractions of the crop
    return torch.cat([angles, place, keypoints.scale.float() / 2, keypoints.exp.float().flatten(1)], dim=-1)


def keypoints_of(motion: Tensor, kp: Tensor) -> KeypointMotion:
    """Inverse of `motion_of`, for canonical keypoints `(1, 21, 3)`."""
    pitch, yaw, roll = euler_degrees(matrix_from_euler(*motion[:, :3].unbind(-1)).mT)
    place = torch.nn.functional.pad(motion[:, 3:5] * 2 - 1, (0, 1))
    exp = motion[:, 6:].unflatten(1, (-1, 3))
    return KeypointMotion(kp.expand(len(motion), -1, -1), exp, motion[:, 5:6] * 2, place, pitch, yaw, roll)


def edited(motion: Tensor, track: ControlTrack | None, start_frame: int, fps: Fraction | float) -> Tensor:
    """Motion `(frames, 69)` with edits of its expression, see `parse_expression`; they turn with the head."""
    if track is None:
        return motion
    shift = expression_shift(track, start_frame, len(motion), float(fps)).to(motion)
    turned = shift @ matrix_from_euler(*motion[:, :3].unbind(-1)).mT
    return torch.cat([motion[:, :6], motion[:, 6:] + turned.flatten(1)], dim=-1)


class KeypointDrivingMixin:
    """`animate`, `render` and `retarget` for a pipeline with a `LivePortraitRenderer`.

    The pipeline has the steps of `SpeakingMixin`, `prepare_portrait`, and `decode_frames(portrait, motion, paste_back,
    drawing)`.
    """

    @torch.no_grad()
    def animate(
        self,
        image: ImageInput | Performer,
        driving_video: str | os.PathLike | Sequence,
        *,
        relative: bool = True,
        region: str = "all",
        stitching: bool = True,
        driving_multiplier: float = 1.0,
        expression_friendly: bool = False,
        eye_ratio: float | None = None,
        lip_ratio: float | None = None,
        expression: Any = None,
        fps: Fraction | float | str | None = None,
        driving_face: int | None = None,
        driving_box: Sequence[float] | None = None,
        face: int | None = None,
        box: Sequence[float] | None = None,
        output_size: int | None = None,
        paste_back: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> TalkingFaceOutput | tuple:
        """Let a portrait do what the face of a video does.

        Source: LivePortrait §3.3. One square, around the first frame's face, is cut out of all frames.

        The arguments are those of `__call__`, and:

        - `driving_video` (`str`, `os.PathLike` or a sequence of pictures): a video file, or frames of one size.
        - `relative` (`bool`, defaults to `True`): add the change since the first driving frame to the portrait's own
          pose and expression. Otherwise the driving pose and expression are taken as they are.
        - `region` (`str`, defaults to `"all"`): what is driven: `"all"`, `"expression"`, `"pose"`, `"lips"`, `"eyes"`.
        - `stitching` (`bool`, defaults to `True`): fit the shoulders to the portrait's.
        - `driving_multiplier` (`float`, defaults to 1.0): amount of movement away from the portrait's own keypoints.
        - `expression_friendly` (`bool`, defaults to `False`): more movement for a face larger than the driver's.
        - `eye_ratio`, `lip_ratio` (`float`, *optional*): how open eyes and lips are (height over width), instead of the
          driver's.
        - `expression` (`dict[str, float]` or keyframes, *optional*): see `__call__`.
        - `fps` (`Fraction`, `float` or `str`, *optional*): defaults to the video's own rate, 25 for frames.
        - `driving_face` (`int`, *optional*), `driving_box` (`Sequence[float]`, *optional*): `face` and `box` of the
          first driving frame.

        Returns:
            `TalkingFaceOutput` with the driving video's sound, if it has any. Its motion is a template for `render`.

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        self.check_inputs(image, None, None, face, output_size, 25 if fps is None else fps, output_type)
        drawing, edits = (
            check_drawing(stitching, driving_multiplier, eye_ratio, lip_ratio),
            parse_expression(expression),
        )
        check_choice("region", region, REGIONS)
        video, fps, num_frames, sound = open_driving(driving_video, fps)
        portrait = self.prepare_portrait(only_image(image), face, box, output_size)
        driving = self.encode_keypoints(video, driving_face, driving_box, num_frames)
        own, first = portrait.keypoints, driving[:1]
        moved = relative_motion(own, driving, first, region) if relative else absolute_motion(own, driving, region)
        if expression_friendly:
            scale = expression_friendly_scale(transform_keypoints(own), transform_keypoints(first))
            drawing = dataclasses.replace(drawing, friendly_scale=float(scale))
        motion = edited(motion_of(moved), edits, 0, fps)[None]
        options = (paste_back, output_type, return_dict)
        return self.draw_motion(portrait, motion, fps, fps, sound, *options, drawing=drawing)

    @torch.no_grad()
    def encode_keypoints(
        self,
        frames: Iterable[ImageInput],
        face: int | None = None,
        box: Sequence[float] | None = None,
        num_frames: int | None = None,
    ) -> KeypointMotion:
        """Keypoint motion of the face in a video, float32, a row for each frame.

        Args:
            frames (`Iterable`): Pictures of one size, as `FaceImageProcessor.load` takes them.
            face (`int`, *optional*): Which face of the first frame, 0 is the largest.
            box (`Sequence[float]`, *optional*): Its box, instead of looking for it.
            num_frames (`int`, *optional*): Their number for the progress bar, if it is known.
        """
        seen = []
        for crop in self.driving_crops(frames, face, box, num_frames, self.renderer.config.image_size):
            seen.append(self.renderer.extract_motion(self._to_renderer(crop)).to(torch.float32))
        return KeypointMotion.cat(seen)

    def encode_video(
        self,
        frames: Iterable[ImageInput],
        face: int | None = None,
        box: Sequence[float] | None = None,
        num_frames: int | None = None,
    ) -> Tensor:
        """The same as motion `(1, frames, 69)`, absolute; the arguments are those of `encode_keypoints`."""
        return motion_of(self.encode_keypoints(frames, face, box, num_frames))[None]

    @torch.no_grad()
    def render(
        self,
        image: ImageInput | Performer,
        motion: Tensor | str | os.PathLike,
        *,
        motion_fps: Fraction | float | str | None = None,
        relative: bool = False,
        region: str = "all",
        stitching: bool = True,
        driving_multiplier: float = 1.0,
        eye_ratio: float | None = None,
        lip_ratio: float | None = None,
        expression: Any = None,
        fps: Fraction | float | str = 25,
        audio: AudioInput | None = None,
        sampling_rate: int | None = None,
        face: int | None = None,
        box: Sequence[float] | None = None,
        output_size: int | None = None,
        paste_back: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> TalkingFaceOutput | tuple:
        """Render a given motion: edited, a saved template (`output.save("motion.safetensors")`), of another portrait.

        The arguments are those of `__call__` and of `animate`, and:

        - `motion` (`torch.Tensor` of shape `([1,] frames, 69)`, `str` or `os.PathLike`): absolute motion.
        - `motion_fps` (`Fraction`, `float` or `str`, *optional*): its rate; defaults to the file's own, 25 for tensors.
        - `relative` (`bool`, defaults to `False`): whether to start from the portrait's own pose and expression, as
          `animate` does.
        - `audio` (*optional*): sound for the video; the motion does not heed it.

        Returns:
            `TalkingFaceOutput`.

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        self.check_inputs(image, audio, sampling_rate, face, output_size, fps, output_type)
        drawing, edits = (
            check_drawing(stitching, driving_multiplier, eye_ratio, lip_ratio),
            parse_expression(expression),
        )
        check_choice("region", region, REGIONS)
        motion, motion_fps = read_motion(motion, motion_fps, KEYPOINT_SPEC, 25)
        sound = (None, None) if audio is None else read_sound(audio, sampling_rate)
        portrait = self.prepare_portrait(only_image(image), face, box, output_size)
        motion = motion.to(portrait.motion)
        if relative or region != "all":
            driving, own = keypoints_of(motion[0], portrait.keypoints.kp), portrait.keypoints
            first = driving[:1] if relative else own
            motion = motion_of(relative_motion(own, driving, first, region))[None]
        motion = edited(motion[0], edits, 0, motion_fps)[None]
        options = (paste_back, output_type, return_dict)
        return self.draw_motion(portrait, motion, motion_fps, parse_fps(fps), sound, *options, drawing=drawing)

    @torch.no_grad()
    def retarget(
        self,
        image: ImageInput | Performer,
        *,
        eyes: float | None = None,
        lips: float | None = None,
        expression: Any = None,
        rotation_deg: Sequence[float] = (0.0, 0.0, 0.0),
        stitching: bool = True,
        face: int | None = None,
        box: Sequence[float] | None = None,
        output_size: int | None = None,
        paste_back: bool = False,
    ) -> Image.Image:
        """One picture of a portrait with its eyes, lips, expression and head pose changed by hand.

        Source: LivePortrait §3.3, "Eyes and lip retargeting".

        Args:
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `Performer`): The portrait.
            eyes (`float`, *optional*): Wanted openness of both eyes, height over width: 0 is closed, 0.4 wide open.
            lips (`float`, *optional*): Wanted openness of the lips, height over width.
            expression (`dict[str, float]`, *optional*): Edits such as `{"smile": 0.6, "gaze_yaw": 0.2}`, see
                `vasa_hf.pipelines.expression_edits.EDITS`.
            rotation_deg (three `float`): Yaw, pitch, roll that are added to the head's, degrees.
            stitching (`bool`, defaults to `True`): Fit the shoulders to the portrait's.
            face (`int`, *optional*): Which face of the picture, 0 is the largest.
            box (`Sequence[float]`, *optional*): x0, y0, x1, y1 of the face in pixels, instead of looking for it.
            output_size (`int`, *optional*): Side of the face's square, one of `output_sizes`.
            paste_back (`bool`, defaults to `False`): Give the whole picture, not only the face's square.

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        self.check_inputs(image, face=face, output_size=output_size)
        drawing, edits = check_drawing(stitching, 1.0, eyes, lips), parse_expression(expression)
        if len(rotation_deg) != 3 or any(not isinstance(x, int | float) or abs(x) > 90 for x in rotation_deg):
            raise ValueError(f"`rotation_deg` must be three angles within 90 degrees, got {rotation_deg!r}.")
        portrait = self.prepare_portrait(only_image(image), face, box, output_size)
        motion = portrait.motion.clone()
        motion[:, :3] += torch.deg2rad(motion.new_tensor(list(rotation_deg)))
        motion = edited(motion, edits, 0, 25)
        frames = next(self.decode_frames(portrait, motion, paste_back, drawing=drawing))
        self.maybe_free_model_hooks()
        return self.postprocess(frames, "pil")[0]

    # --- from motion to keypoints -------------------------------------------------------------------------------------

    def driving_keypoints(self, portrait: KeypointPortrait, motion: Tensor, drawing: Drawing) -> tuple[Tensor, Tensor]:
        """Keypoints `(frames, 21, 3)` of the portrait, and of the frames of a motion.

        Source: LivePortrait Eq. 2, 5 to 9; the order of the steps is that of its code.

        Args:
            portrait (`KeypointPortrait`): Who.
            motion (`torch.Tensor` of shape `(frames, 69)`): Absolute motion.
            drawing (`Drawing`): How.
        """
        own = portrait.keypoints
        driven = keypoints_of(motion.to(own.kp), own.kp)
        exp = driven.exp.clone()
        for ratio, points in ((drawing.eye_ratio, EYE_KEYPOINTS), (drawing.lip_ratio, LIP_KEYPOINTS)):
            if ratio is not None:  # the networks know how to move the portrait's own eyes and lips
                exp[:, list(points)] = own.exp[:, list(points)]
        source = transform_keypoints(own).expand(len(motion), -1, -1)
        target = transform_keypoints(dataclasses.replace(driven, exp=exp))
        target = source + (target - source) * drawing.friendly_scale
        change, dtype = self._retargeting(portrait, drawing, source), self.renderer.dtype
        if drawing.stitching:  # what the network adds; in half precision, keypoints themselves would lose digits
            change = change + (self.renderer.stitch(source.to(dtype), target.to(dtype)) - target.to(dtype)).to(target)
        return source, source + (target + change - source) * drawing.driving_multiplier

    def _retargeting(self, portrait: KeypointPortrait, drawing: Drawing, source: Tensor) -> Tensor:
        """What the retargeting networks add to the keypoints `(frames, 21, 3)`."""
        added = torch.zeros_like(source)
        if drawing.eye_ratio is None and drawing.lip_ratio is None:
            return added
        source = source.to(self.renderer.dtype)
        eyes, lips = (ratio.to(source).expand(len(source), -1) for ratio in self.openness(portrait))
        if drawing.eye_ratio is not None:
            added += self.renderer.retarget_eyes(source, eyes, torch.full_like(lips, drawing.eye_ratio)).to(added)
        if drawing.lip_ratio is not None:
            added += self.renderer.retarget_lips(source, lips, torch.full_like(lips, drawing.lip_ratio)).to(added)
        return added

    @torch.no_grad()
    def openness(self, portrait: KeypointPortrait) -> tuple[Tensor, Tensor]:
        """How open a portrait's eyes `(1, 2)` and lips `(1, 1)` are: height over width, by the analyzer's landmarks."""
        crop = portrait.crop.image[None].to(self._execution_device, self.face_analyzer.dtype)
        landmarks = self.face_analyzer(crop).landmarks.float()

        def ratio(across: tuple[int, int], along: tuple[int, int]) -> Tensor:
            height, width = ((landmarks[:, i] - landmarks[:, j]).norm(dim=-1) for i, j in map(_rows, (across, along)))
            return height / (width + 1e-6)

        return torch.stack([ratio(*eye) for eye in _EYES], -1), ratio(*_LIPS)[:, None]

    def _to_renderer(self, crop: Tensor) -> Tensor:
        """A square `(3, size, size)` in [-1, 1] as `(1, 3, image_size, image_size)` in [0, 1] on the right device."""
        size, picture = self.renderer.config.image_size, crop[None].float() * 0.5 + 0.5
        if picture.shape[-1] != size:
            picture = torch.nn.functional.interpolate(picture, size, mode="bilinear", antialias=True)
        return picture.clamp(0, 1).to(self._execution_device, self.renderer.dtype)


def check_drawing(stitching: Any, driving_multiplier: Any, eye_ratio: Any = None, lip_ratio: Any = None) -> Drawing:
    """Check how to draw; the names are those of `KeypointDrivingMixin.animate`."""
    check_number("driving_multiplier", driving_multiplier, 0.0, MAX_MULTIPLIER)
    for name, ratio in (("eye_ratio", eye_ratio), ("lip_ratio", lip_ratio)):
        if ratio is not None:
            check_number(name, ratio, 0.0, MAX_RATIO)
    return Drawing(bool(stitching), float(driving_multiplier), 1.0, eye_ratio, lip_ratio)


def _rows(pair: tuple[int, int]) -> list[int]:
    return rows(*pair)

"""Moving a portrait by something else than a voice: a driving video, or a motion that is given.

    video --encode_motion, frame by frame--> motion --onto the portrait's own--> pictures       animate
    motion: edited, saved, or of another portrait -----------------------------> pictures       render

# Not in the paper: VASA-1 only shows such transfer (Fig. A.1).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from vasa_hf.controls import rebase_motion
from vasa_hf.media.ffmpeg import parse_fps
from vasa_hf.outputs import TalkingFaceOutput
from vasa_hf.pipelines.inputs import AudioInput, ImageInput, Performer, only_image, open_driving, read_motion


class FaceDrivingMixin:
    """`animate` and `render` for a pipeline with a face autoencoder.

    The pipeline has the steps of `SpeakingMixin`, and `prepare_portrait` and `decode_frames`.
    """

    @torch.no_grad()
    def animate(
        self,
        image: ImageInput | Performer,
        driving_video: str | os.PathLike | Sequence,
        *,
        relative: bool = True,
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

        One square, around the first frame's face, is cut out of all frames, as the training clips were.

        The arguments are those of `__call__`, and:

        - `driving_video` (`str`, `os.PathLike` or a sequence of pictures): a video file, or frames of one size.
        - `relative` (`bool`, defaults to `True`): add the change since the first driving frame to the portrait's own
          pose and expression. Otherwise the driving pose and expression are taken as they are.
        - `fps` (`Fraction`, `float` or `str`, *optional*): defaults to the video's own rate, 25 for frames.
        - `driving_face` (`int`, *optional*), `driving_box` (`Sequence[float]`, *optional*): `face` and `box` of the
          first driving frame.

        Returns:
            `TalkingFaceOutput` with the driving video's sound, if it has any.

        Raises:
            ValueError: If an argument is unfit; its name is in the message.
        """
        self.check_inputs(image, None, None, face, output_size, 25 if fps is None else fps, output_type)
        video, fps, num_frames, sound = open_driving(driving_video, fps)
        portrait = self.prepare_portrait(only_image(image), face, box, output_size)
        driving = self.encode_video(video, driving_face, driving_box, num_frames)
        motion = rebase_motion(driving, portrait.motion) if relative else driving
        return self.draw_motion(portrait, motion, fps, fps, sound, paste_back, output_type, return_dict)

    @torch.no_grad()
    def encode_video(
        self,
        frames: Iterable[ImageInput],
        face: int | None = None,
        box: Sequence[float] | None = None,
        num_frames: int | None = None,
    ) -> Tensor:
        """Motion `(1, frames, channels)` of the face in a video, float32, absolute.

        Args:
            frames (`Iterable`): Pictures of one size, as `FaceImageProcessor.load` takes them.
            face (`int`, *optional*): Which face of the first frame, 0 is the largest.
            box (`Sequence[float]`, *optional*): Its box, instead of looking for it.
            num_frames (`int`, *optional*): Their number for the progress bar, if it is known.
        """
        model, motions = self.face_autoencoder, []
        for crop in self.driving_crops(frames, face, box, num_frames, model.config.image_size):
            motions.append(model.encode_motion(crop[None].to(self._execution_device, model.dtype)).float())
        return torch.stack(motions, dim=1)

    @torch.no_grad()
    def render(
        self,
        image: ImageInput | Performer,
        motion: Tensor | str | os.PathLike,
        *,
        motion_fps: Fraction | float | str | None = None,
        relative: bool = False,
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
        """Render a given motion: edited, saved by `output.save("motion.safetensors")`, or of another portrait.

        The arguments are those of `__call__`, and:

        - `motion` (`torch.Tensor` of shape `([1,] frames, channels)`, `str` or `os.PathLike`): absolute motion.
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
        spec, own_fps = self.motion_spec, self.audio_processor.fps
        motion, motion_fps = read_motion(motion, motion_fps, spec, own_fps)
        sound = (None, None) if audio is None else self.prepare_audio(audio, sampling_rate)[1:]
        portrait = self.prepare_portrait(only_image(image), face, box, output_size)
        motion = motion.to(portrait.motion)
        motion = rebase_motion(motion, portrait.motion) if relative else motion
        options = (paste_back, output_type, return_dict)
        return self.draw_motion(portrait, motion, motion_fps, parse_fps(fps), sound, *options)

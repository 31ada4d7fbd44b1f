"""The base of systems that animate a portrait: what VASA-1 and LivePortrait do with the square around its face."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from vasa_hf.pipelines.base import TalkingHeadPipeline
from vasa_hf.pipelines.inputs import ImageInput


class PortraitPipeline(TalkingHeadPipeline):
    """A pipeline whose `view_type` is a `FaceView`."""

    def prepare_portrait(
        self,
        image: ImageInput | Any,
        face: int | None = None,
        box: Sequence[float] | None = None,
        output_size: int | None = None,
    ) -> Any:
        """Find the face, crop it and encode it; give the result as `image` to save that work.

        Args:
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `Subject`): One portrait.
            face (`int`, *optional*): Which face of the image, 0 is the largest.
            box (`Sequence[float]`, *optional*): x0, y0, x1, y1 of the face in pixels, instead of detecting it.
            output_size (`int`, *optional*): Side of the face's square, one of `output_sizes`.

        Returns:
            The pipeline's `subject_type`.

        Raises:
            ValueError: If the image cannot be read or shows no face that can be animated.
        """
        return self.prepare_subject(image, self.view_type(face=face, box=box, output_size=output_size))

    def decode_frames(self, portrait: Any, motion: Tensor, paste_back: bool = False) -> Iterator[Tensor]:
        """Render absolute motion `(frames, channels)` to frames, a few at a time; see `render_frames`."""
        return self.render_frames(portrait, motion, self.view_type(paste_back=paste_back))

"""Avatars for the evaluation: rendered from any side, with and without VAS deformation."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vasa_hf.media.video import VideoReader
from vasa_hf.processors.image import open_image

BACKGROUND = (0.9, 0.9, 0.9)  # one of those that avatars are fitted on


@dataclass
class EvalAvatar:
    """One avatar and its portrait.

    Attributes:
        cutout (`PIL.Image.Image`): The portrait's crop, RGBA, with a transparent background.
        background (three `float`): RGB in [0, 1] of all frames.
        show (`Callable`):
            `show(motion, azimuth_deg, deform) -> frames (frames, 3, size, size)` in [0, 1]; azimuth 0 is the portrait's
            camera; without `deform` it renders G'.
        cover (`Callable`, *optional*): `cover(motion) -> alpha (frames, 1, size, size)`, from the portrait's camera.
    """

    cutout: Image.Image
    background: Sequence[float]
    show: Callable[[Tensor, float, bool], Tensor]
    cover: Callable[[Tensor], Tensor] | None = None

    def portrait(self) -> Image.Image:
        """Compose the portrait and the background."""
        plain = Image.new("RGBA", self.cutout.size, tuple(round(255 * value) for value in self.background))
        return Image.alpha_composite(plain, self.cutout.convert("RGBA")).convert("RGB")


def load_eval_avatar(pipe: Any, name: str, folder: str | os.PathLike, size: int) -> EvalAvatar:
    """Load an avatar and its portrait.

    Args:
        pipe (`Vasa3DAvatarPipeline`): Loads and renders it.
        name (`str`): Name of the avatar, or its folder.
        folder (`str` or `os.PathLike`): Folder of its files, with `portrait.png`, the portrait without background.
        size (`int`): Side of the frames.

    Raises:
        ValueError: If the avatar cannot be loaded, or its portrait is missing.
    """
    full, path = pipe.load_avatar(name), Path(folder) / "portrait.png"
    if not path.is_file():
        raise ValueError(f"{path.name} is not in the avatar's folder {str(folder)!r}; `vasa-hf fit` writes it there.")
    cutout = open_image(path)
    cutout.load()
    if cutout.mode != "RGBA" or cutout.width != cutout.height:
        raise ValueError(f"{path.name} must be a square RGBA image, got {cutout.mode} of {cutout.size} pixels.")
    base = copy.deepcopy(full)  # the same without VAS deformation: G' is its G''
    for field in (base.deform_face, base.deform_neck):
        for parameter in field.out.parameters():
            torch.nn.init.zeros_(parameter)

    def render(motion: Tensor, azimuth_deg: float, deform: bool, background: Sequence[float]) -> Tensor:
        camera = [(0.0, float(azimuth_deg), 0.0, 1.0)]
        options = {"camera": camera, "background": background, "output_size": size, "output_type": "pt"}
        return pipe.render(full if deform else base, motion, **options).frames

    def show(motion: Tensor, azimuth_deg: float, deform: bool) -> Tensor:
        return render(motion, azimuth_deg, deform, BACKGROUND)

    def cover(motion: Tensor) -> Tensor:
        white, black = (render(motion, 0.0, True, (grey, grey, grey)) for grey in (1.0, 0.0))
        return 1 - (white - black).mean(1, keepdim=True)

    return EvalAvatar(cutout, BACKGROUND, show, cover)


def fit_clips(
    pipe: Any,
    clips: Sequence[Path],
    output: str | os.PathLike,
    preset: str,
    seed: int = 0,
    **options: Any,
) -> dict[str, Callable[[], EvalAvatar]]:
    """Fit an avatar to a random frame of each clip (VASA-3D, appendix B); those that are there are kept.

    Args:
        pipe (`Vasa3DAvatarPipeline`): Fits and renders.
        clips (`Sequence` of `Path`): Videos; an avatar has the name of its clip.
        output (`str` or `os.PathLike`): Folder for a folder of each avatar.
        preset (`str`): See `pipe.fit`.
        seed (`int`, *optional*, defaults to 0): Of the frames and of the fits.
        **options: As for `pipe.fit`.

    Returns:
        Name -> function that loads the avatar.
    """
    size = pipe.talking_face.output_sizes[0]
    loaders: dict[str, Callable[[], EvalAvatar]] = {}
    for path in clips:
        folder = Path(output) / path.stem
        if not (folder / "config.json").is_file():
            frames = list(VideoReader(path, 25))
            frame = frames[random.Random(f"{seed} {path.stem}").randrange(len(frames))]
            generator = torch.Generator().manual_seed(seed)
            pipe.fit(Image.fromarray(frame), preset, output=folder, generator=generator, **options)
        loaders[path.stem] = partial(load_eval_avatar, pipe, str(folder), folder, size)
    return loaders

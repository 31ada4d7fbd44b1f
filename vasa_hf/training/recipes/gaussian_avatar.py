r"""Fit a VASA-3D avatar to one portrait (§3.2, §3.3).

    vasa-hf train gaussian_avatar --image me.jpg --output avatar --preset fast
    accelerate launch -m vasa_hf.training gaussian_avatar --image me.jpg --output avatar --preset paper \
        --videos clips/*.mp4 --head flame2020.safetensors --from-scratch --lpips lpips \
        --sds stabilityai/stable-diffusion-2-1
    ... --ablation vas_deform --set iterations=20000 batch_size=2

The same command continues an interrupted fit. `vasa-hf fit` does the same in one process.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

import torch

from vasa_hf.models.gaussian_avatar_vasa3d import Vasa3DGaussianAvatar
from vasa_hf.training.avatar.fit import fit_avatar
from vasa_hf.training.avatar.loop import FitProgress
from vasa_hf.training.avatar.presets import ABLATIONS, PRESETS
from vasa_hf.training.options import Options, option


@dataclass
class AvatarOptions(Options):
    """Options of this recipe; every other number is in `AvatarPreset`."""

    image: str = option("", "the portrait")
    output: str = option("outputs/avatar", "folder of the avatar")
    preset: str = option("fast", "settings", PRESETS)
    ablation: str | None = option(None, "a row of the paper's Table 1", ABLATIONS)
    model: str = option("vasa-small", "VASA-1: embedded name, folder or Hub repository")
    device: str | None = option(None, "device of the fit; a GPU if there is one")
    audios: list[str] = option([], "driving voices; the package's own if left out")
    videos: list[str] = option([], "driving clips")
    face: int | None = option(None, "which face, 0 is the largest")
    seed: int | None = option(None, "seed of the fit")
    lpips: str | None = option(None, "converted LPIPS weights")
    head: str | None = option(None, "parametric head: FLAME's (vasa-hf convert flame) or ict_facekit.npz")
    from_scratch: bool = option(False, "the paper's start: no portrait on the mesh, no hair shell, random networks")
    sds: str | None = option(None, "text-to-image model of diffusers: folder or Hub name")
    set: list[str] = option([], "fields of AvatarPreset as NAME=VALUE, values as JSON")


def parse_overrides(options: AvatarOptions) -> dict[str, Any]:
    """Fields of `AvatarPreset` that the options change."""
    names = ("ablation", "lpips", "sds", "head", "from_scratch")
    overrides = {name: getattr(options, name) for name in names if getattr(options, name)}
    for entry in options.set:
        name, _, value = entry.partition("=")
        try:
            overrides[name] = json.loads(value)
        except json.JSONDecodeError:
            overrides[name] = value
    return overrides


def print_progress(progress: FitProgress) -> None:
    """Print a line."""
    values = "".join(f", {name} {value:.4f}" for name, value in progress.logs.items())
    print(f"{progress.stage} {progress.done}/{progress.total}{values}", flush=True)


def run(options: AvatarOptions) -> Vasa3DGaussianAvatar:
    """Fit the avatar and save it in the output folder."""
    from vasa_hf.pipelines.vasa_talking_face import VasaTalkingFacePipeline

    if not options.image:
        raise ValueError("`image` must be given: the portrait.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return fit_avatar(
        VasaTalkingFacePipeline.from_pretrained(options.model).to(device),
        options.image,
        options.preset,
        output=options.output,
        audios=options.audios,
        videos=options.videos,
        face=options.face,
        generator=None if options.seed is None else torch.Generator().manual_seed(options.seed),
        on_progress=print_progress,
        **parse_overrides(options),
    )

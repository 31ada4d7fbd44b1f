"""Fit a VASA-3D avatar to one portrait (§3.2, §3.3): VASA-1 makes the frames, the avatar learns them.

An interrupted fit continues when it is started again with the same arguments. While it runs, `OUTPUT/fit` holds frames,
checkpoints, previews and the log; at the end the avatar appears in `OUTPUT`, and previews and log stay.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast, broadcast_object_list
from PIL import Image

from vasa_hf.checks import check_callable, check_number, check_path, naming, shorten
from vasa_hf.files import temporary_folder
from vasa_hf.head.loading import name_head
from vasa_hf.models.gaussian_avatar_vasa3d import Vasa3DGaussianAvatar
from vasa_hf.training.avatar.frames import AvatarFrames, make_motions, render_anchors, render_frames
from vasa_hf.training.avatar.loop import AvatarFit, FitProgress
from vasa_hf.training.avatar.losses import PerceptualDistance, ScoreDistillation
from vasa_hf.training.avatar.presets import AvatarPreset, choose_preset
from vasa_hf.training.avatar.start import AvatarStart, start_avatar
from vasa_hf.training.loop import checkpoints

logger = logging.getLogger(__name__)

_SETTINGS, _COMPLETE = "settings.json", "complete"
#: The cut-out portrait next to an avatar's weights.
_PORTRAIT = "portrait.png"
#: Fields of the preset that may change between an interruption and its end.
_FREE = {"max_minutes", "frames_share", "checkpoint_every", "preview_every", "log_every", "mixed_precision"}


def fit_avatar(
    talking_face: Any,
    image: Any,
    preset: str | AvatarPreset = "fast",
    *,
    output: str | os.PathLike | None = None,
    audios: Sequence[Any] | None = None,
    videos: Sequence[Any] | None = None,
    face: int | None = None,
    generator: torch.Generator | None = None,
    on_progress: Callable[[FitProgress], None] | None = None,
    **overrides: Any,
) -> Vasa3DGaussianAvatar:
    """Make an avatar of the person in a portrait.

    Args:
        talking_face (`VasaTalkingFacePipeline`): VASA-1. On a CUDA device the fit runs there, else on the CPU.
        image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): The portrait.
        preset (`str` or `AvatarPreset`, *optional*, defaults to "fast"): "paper", "fast-gpu" or "fast".
        output (`str` or `os.PathLike`, *optional*):
            Folder for the avatar, as `save_pretrained` writes it. An interrupted fit continues from there.
        audios (`Sequence`, *optional*): Driving voices, as the pipeline takes them.
        videos (`Sequence`, *optional*): Driving clips: files, or sequences of images.
        face (`int`, *optional*): Which face of the image, 0 is the largest.
        generator (`torch.Generator`, *optional*): Makes the result repeatable, where no clock ends the fit.
        on_progress (`Callable`, *optional*): Takes a `FitProgress` from time to time.
        **overrides: Fields of `AvatarPreset`, such as `iterations=500`, and `ablation`, a row of Table 1.

    Returns:
        `Vasa3DGaussianAvatar`, in evaluation mode.

    Raises:
        ValueError: If an argument is unfit, or `output` holds another interrupted fit.
    """
    is_paper, began = preset == "paper", time.monotonic()
    preset = choose_preset(preset, **overrides)
    if output is not None:
        check_path("output", output)
    check_callable("on_progress", on_progress)
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"`generator` must be a torch.Generator, got {type(generator).__name__}.")
    tell = on_progress or (lambda progress: None)
    accelerator = _accelerator(talking_face, preset)
    if differences := _differences(preset):
        loud = is_paper or (preset.weight_sds and preset.sds is None)
        level = logging.WARNING if loud else logging.INFO
        logger.log(level, "This fit differs from the paper's:\n  %s", "\n  ".join(differences))
    about = _describe(talking_face, image, preset, audios, videos, face)
    distance, sds = _distance(preset), _score_distillation(preset)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(temporary_folder()) if output is None else output) / "fit"
        seed = _seed(folder, about, generator, accelerator)
        if (folder.parent / "config.json").is_file() and (folder / _SETTINGS).is_file():  # killed when it was done
            avatar = Vasa3DGaussianAvatar.from_pretrained(folder.parent)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                _tidy(folder)
            return avatar
        has_frames, found = (folder / "frames" / _COMPLETE).exists(), checkpoints(folder)
        if resumes := has_frames and bool(found):
            avatar = Vasa3DGaussianAvatar.from_pretrained(found[-1] / "avatar")
        else:
            tell(FitProgress("start", 0, 1))
            start = _start(talking_face, image, preset, face, seed)
            avatar = start.avatar
            tell(FitProgress("start", 1, 1))
        if not has_frames and accelerator.is_main_process:
            _save_settings(folder, {**about, "seed": seed})
            _save_portrait(start.picture, folder / _PORTRAIT)
            _make_frames(talking_face, start, preset, audios, videos, folder, seed, began, tell)
        accelerator.wait_for_everyone()
        limit = None if preset.max_minutes is None else preset.max_minutes - (time.monotonic() - began) / 60
        fit = AvatarFit(
            _broadcast_avatar(avatar, accelerator),
            AvatarFrames(folder / "frames", seed),
            preset,
            accelerator,
            folder if output is not None else None,
            seed,
            None if limit is None else max(limit, 0.02),
            distance,
            sds,
            on_progress,
        )
        if resumes:
            fit.load_checkpoint(found[-1])
        avatar = fit.run()
        if output is not None and accelerator.is_main_process:
            _publish(avatar, Path(output), folder)
        accelerator.wait_for_everyone()
    return avatar


def _accelerator(talking_face: Any, preset: AvatarPreset) -> Accelerator:
    # A second fit in one process may use another precision or device.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    patience = InitProcessGroupKwargs(timeout=timedelta(days=2))  # the others wait while one makes the frames
    return Accelerator(
        mixed_precision=preset.mixed_precision, cpu=talking_face.device.type != "cuda", kwargs_handlers=[patience]
    )


def _start(talking_face: Any, image: Any, preset: AvatarPreset, face: int | None, seed: int) -> AvatarStart:
    """The coloured avatar of `start_avatar`, at a size that the face model can make."""
    model = talking_face.face_autoencoder
    config = {"motion_dim": model.motion_dim, "motion_space": model.config.motion_space, **preset.avatar}
    sizes = [size for size in talking_face.output_sizes if size <= preset.size] or [min(talking_face.output_sizes)]
    size = max(sizes)
    config |= {"num_gaussians": preset.num_gaussians, "output_size": size}
    with torch.random.fork_rng(devices=[]):  # networks start at random
        torch.manual_seed(seed)
        own = {"head": preset.head, "from_scratch": preset.from_scratch}
        return start_avatar(talking_face, image, face=face, **own, **config)


def _make_frames(talking_face, start, preset, audios, videos, folder, seed, began, tell) -> None:
    """Motion and frames, until there are enough or their share of the time is over; then a file says so."""
    deadline = None if preset.max_minutes is None else began + 60 * preset.max_minutes * preset.frames_share
    motions = make_motions(
        talking_face,
        start.portraits[0],
        folder / "motion",
        preset.motion_minutes,
        audios,
        videos,
        preset.sweep_share,
        preset.motion_steps,
        seed,
        deadline,
        lambda done, total: tell(FitProgress("motion", done, total)),
        preset.rebase_videos,
    )
    render_frames(
        talking_face,
        start.portraits,
        start.backgrounds,
        motions,
        folder / "frames",
        preset.num_frames,
        seed,
        preset.jpeg_quality,
        deadline,
        lambda done, total: tell(FitProgress("frames", done, total)),
        preset.limit_turn,
    )
    if preset.weight_anchor and not preset.from_scratch:  # a start that knows nothing is not kept
        render_anchors(
            start, AvatarFrames(folder / "frames", seed), folder / "frames" / "anchors.safetensors", seed=seed
        )
    (folder / "frames" / _COMPLETE).touch()


def _differences(preset: AvatarPreset) -> list[str]:
    """What the paper has and this fit lacks, with the option that brings it."""
    with naming("head"):
        head = name_head(preset.head)
    found = []
    if not preset.lpips:
        found.append(
            "perceptual losses use the embedded face_recognizer: `lpips` takes LPIPS-VGG (vasa-hf convert lpips)"
        )
    if preset.sds is None or not preset.weight_sds:
        found.append(
            "L_sds is off, and views from far aside are less clean: `sds` takes a text-to-image model, the paper's is "
            "Stable Diffusion 2.1"
        )
    if not head.startswith("FLAME"):
        found.append(f"the head is {head}: `head` takes FLAME's (vasa-hf convert flame)")
    if not preset.from_scratch:
        found.append("the start is laid on the portrait, with its colours and hair: `from_scratch` begins without")
    return found


def _distance(preset: AvatarPreset) -> PerceptualDistance | None:
    if not (preset.weight_perceptual or preset.weight_consist or preset.sharpen_iterations):
        return None
    return PerceptualDistance(preset.lpips)


def _score_distillation(preset: AvatarPreset) -> ScoreDistillation | None:
    if not preset.weight_sds:
        return None
    if preset.sds is None:
        return None
    return ScoreDistillation(preset.sds, guidance_scale=preset.sds_guidance, gradient_scale=preset.sds_scale)


def _broadcast_avatar(avatar: Vasa3DGaussianAvatar, accelerator: Accelerator) -> Vasa3DGaussianAvatar:
    """The main process's avatar on all processes."""
    avatar = avatar.to(accelerator.device)
    if accelerator.num_processes > 1:
        for tensor in avatar.state_dict().values():
            tensor.copy_(broadcast(tensor))
    return avatar


# --- files of an interrupted fit ----------------------------------------------------------------------------


def _describe(talking_face: Any, image: Any, preset: AvatarPreset, audios: Any, videos: Any, face: int | None) -> dict:
    """What must be the same when a fit continues; missing files raise here, before any work."""
    if face is not None:
        check_number("face", face, 0, 1000, whole=True)
    for kind, sources in (("audios", audios), ("videos", videos)):
        if not isinstance(sources, list | tuple | None):
            raise ValueError(f"`{kind}` must be a list, got {shorten(sources)}.")
        for source in sources or []:
            if kind == "audios" and not isinstance(source, str | os.PathLike | np.ndarray | torch.Tensor | tuple):
                raise ValueError(f"`audios` must be files, samples or (samples, rate), got {shorten(source)}.")
            if isinstance(source, list) and any(isinstance(frame, list | None) for frame in source):
                raise ValueError(f"`{kind}` must be files or sequences of frames, got {shorten(source)}.")
            if isinstance(source, str | os.PathLike) and not os.path.isfile(source):
                raise ValueError(f"`{kind}` must be existing files, got {os.fspath(source)!r}.")
    picture = talking_face.image_processor.load(image)
    fields = {item.name: getattr(preset, item.name) for item in dataclasses.fields(preset) if item.name not in _FREE}
    name = lambda source: os.fspath(source) if isinstance(source, str | os.PathLike) else type(source).__name__  # noqa: E731
    return {
        "picture": hashlib.sha256(picture.float().cpu().numpy().tobytes()).hexdigest(),
        "face": face,
        "motion_space": talking_face.face_autoencoder.config.motion_space,
        "audios": [name(audio) for audio in audios or []],
        "videos": [name(video) for video in videos or []],
        "preset": {key: name(value) if key == "sds" and value is not None else value for key, value in fields.items()},
    }


def _seed(folder: Path, about: dict, generator: torch.Generator | None, accelerator: Accelerator) -> int:
    """Seed of the fit: drawn now, or that of the interrupted fit in the folder, which must be the same one."""
    path = folder / _SETTINGS
    drawn = int(torch.randint(2**31, (), generator=generator)) if generator is not None else None
    if path.is_file():
        found = json.loads(path.read_text())
        seed = found.pop("seed")
        if found != about or drawn not in (None, seed):
            differ = sorted(key for key in about if found.get(key) != about[key]) or ["generator"]
            raise ValueError(
                f"`output` must be a new folder or hold this fit, interrupted; in {str(folder)!r} is one with another "
                f"{', '.join(differ)}: delete that folder, or give the same arguments."
            )
    else:
        seed = int(torch.randint(2**31, ())) if drawn is None else drawn
    return broadcast_object_list([seed])[0] if accelerator.num_processes > 1 else seed


def _save_settings(folder: Path, settings: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "settings.partial"
    partial.write_text(json.dumps(settings, indent=1))
    os.replace(partial, folder / _SETTINGS)


def _save_portrait(picture: torch.Tensor, path: Path) -> None:
    """Keep the cut-out portrait [4, S, S]: what the avatar is judged by (`vasa-hf eval --pipeline vasa3d`)."""
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels).save(path)


def _publish(avatar: Vasa3DGaussianAvatar, output: Path, folder: Path) -> None:
    """Put the avatar into its folder, the configuration last, and drop what only a fit needs."""
    partial = folder / "avatar.partial"
    avatar.save_pretrained(partial)
    shutil.copyfile(folder / _PORTRAIT, partial / _PORTRAIT)
    for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
        os.replace(file, output / file.name)
    _tidy(folder)


def _tidy(folder: Path) -> None:
    """Drop what only a fit needs, the settings last: with them, `fit_avatar` can continue with this, too."""
    for old in (folder / "avatar.partial", folder / "frames", folder / "motion", *checkpoints(folder)):
        shutil.rmtree(old, ignore_errors=True)
    for file in (_PORTRAIT, _SETTINGS):
        (folder / file).unlink(missing_ok=True)

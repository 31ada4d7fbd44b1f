"""LivePortrait's weights (`KwaiVGI/LivePortrait`, MIT) to `LivePortraitRenderer`.

    base_models/{appearance_feature_extractor,motion_extractor,warping_module,spade_generator}.pth
    retargeting_models/stitching_retargeting_module.pth       three networks, names with the prefix `module.`

or the same as safetensors (`Kijai/LivePortrait_safetensors`), where prefixes distinguish the three networks. Sizes are
read from the tensors. The generator's spectral norm is folded: weight = weight_orig / (u W v) with the stored u and v,
as in the public code; another power iteration would change the scale.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vasa_hf.convert.checkpoint import ConversionReport, find, locate, match, read_checkpoint, require, state_dict
from vasa_hf.convert.writing import check_destination, save_pipeline
from vasa_hf.geometry.crops import STANDARD_RAISE
from vasa_hf.models.renderer_liveportrait import LivePortraitRenderer
from vasa_hf.processors.image import FaceImageProcessor

NETWORKS = ("appearance_feature_extractor", "motion_extractor", "warping_module", "spade_generator")
RETARGETING = "stitching_retargeting_module"
# Name in the model -> name in the file, to which the mirror adds `_module.`.
PARTS = {"stitching": "retarget_shoulder", "retargeting_lip": "retarget_mouth", "retargeting_eye": "retarget_eye"}
# Folders of the files in LivePortrait's repository, in JoyVASA's downloads, and in MoDA's copy.
FOLDERS = ("liveportrait", "pretrained_weights/liveportrait", "decode/v1/first_stage", ".")
ANIMALS, _ANIMAL_VERSIONS = "liveportrait_animals", ("base_models_v1.1", "base_models")
_ENDINGS = (".pth", ".safetensors")
_NORMALISED = re.compile(r"(spade_generator\.(?:G_middle_|up_)\d+\.conv_[01s])\.weight")


def list_files(animals: bool = False) -> list[str]:
    """List patterns of the files to download from a repository."""
    networks = [f"{folder}/{name}" for name in NETWORKS for folder in _network_folders(animals)]
    names = networks + [f"{folder}/{RETARGETING}" for folder in _retargeting_folders()]
    return [f"{name.removeprefix('./')}{suffix}" for name in names for suffix in _ENDINGS]


def convert_liveportrait(
    source: str | os.PathLike, destination: str | os.PathLike, animals: bool = False
) -> ConversionReport:
    """Convert LivePortrait's weights to a folder for `LivePortraitPipeline.from_pretrained`.

    Args:
        source (`str` or `os.PathLike`): `KwaiVGI/LivePortrait`, or a folder with the same layout or its mirror's.
        destination (`str` or `os.PathLike`): New folder; only written if every tensor fits.
        animals (`bool`, defaults to `False`): Use the weights for animals; their stitching network is the human one.

    Raises:
        ValueError: If a file is missing or cannot be read safely, or a tensor is missing, unknown or of another shape.
    """
    check_destination(destination)
    renderer, report = read_renderer(locate(source, list_files(animals)), animals)
    report.check("LivePortrait")
    save_pipeline(
        destination, "LivePortraitPipeline", {"renderer": renderer, "image_processor": image_processor(renderer)}
    )
    return report


def locate_renderer(folder: Path, renderer: str | os.PathLike | None) -> Path:
    """Find the renderer for another project's motion generator.

    Args:
        folder (`pathlib.Path`): The generator's folder.
        renderer (`str` or `os.PathLike`, *optional*): Source for `convert_liveportrait`.

    Raises:
        ValueError: If none is given, and none is in the folder.
    """
    if renderer is not None:
        return locate(renderer, list_files())
    if find(folder, list_files()) is None:
        raise ValueError(
            f"`renderer` must be LivePortrait's weights, such as KwaiVGI/LivePortrait: {str(folder)!r} has none."
        )
    return folder


def image_processor(renderer: LivePortraitRenderer) -> FaceImageProcessor:
    """Make a processor with LivePortrait's crops: upright, 2.3 times the landmark box, shifted up by an eighth.

    # Not in the paper: other landmarks than LivePortrait's, which span the same part of a face.
    """
    return FaceImageProcessor(size=renderer.output_size, scale=2.3, shift=(0.0, STANDARD_RAISE - 0.125), upright=True)


def read_renderer(folder: Path, animals: bool = False) -> tuple[LivePortraitRenderer, ConversionReport]:
    """Read the renderer of a folder; the weights are only loaded if the report is complete.

    Args:
        folder (`pathlib.Path`): See `convert_liveportrait`.
        animals (`bool`, defaults to `False`): See `convert_liveportrait`.
    """
    state: dict[str, Tensor] = {}
    for network in NETWORKS:
        file = require(folder, [f"{at}/{network}{end}" for at in _network_folders(animals) for end in _ENDINGS])
        tensors = state_dict(read_checkpoint(file), file.name)
        state |= {f"{network}.{name}": value for name, value in tensors.items()}
    file = require(folder, [f"{at}/{RETARGETING}{end}" for at in _retargeting_folders() for end in _ENDINGS])
    state |= retargeting_networks(read_checkpoint(file))
    model = LivePortraitRenderer(**read_sizes(state)).eval()
    report = match(official_shapes(model), state, may_lack=_counter)
    if report.complete:
        model.load_state_dict(rename_tensors(state, model))
    return model, report


def _network_folders(animals: bool) -> list[str]:
    if animals:
        return [f"{at}{ANIMALS}/{models}" for at in ("", "pretrained_weights/") for models in _ANIMAL_VERSIONS]
    return [inner for folder in FOLDERS for inner in (f"{folder}/base_models", folder)]


def _retargeting_folders() -> list[str]:
    return [inner for folder in FOLDERS for inner in (f"{folder}/retargeting_models", folder)]


def retargeting_networks(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename the tensors of the three small networks by the model's prefixes; unknown names do not change.

    Args:
        content (`Mapping[str, Any]`): A dict of state dicts, or a flat one with prefixes.
    """
    found: dict[str, Tensor] = {}
    for name, value in content.items():
        inner = value if isinstance(value, dict) else {"": value}
        for rest, tensor in inner.items():
            if not torch.is_tensor(tensor):
                raise ValueError(f"`source` must hold only tensors, but {name!r} of {RETARGETING} is something else.")
            found[_own_prefix(name, rest)] = tensor
    return found


def _own_prefix(name: str, rest: str) -> str:
    for own, official in PARTS.items():
        if name == official:
            return f"{own}.{rest.replace('module.', '')}"
        if name.startswith(f"{official}_module."):
            return f"{own}.{name.removeprefix(f'{official}_module.').replace('module.', '')}"
    return f"{RETARGETING}.{name}{'.' if rest else ''}{rest}"


def official_shapes(model: LivePortraitRenderer) -> dict[str, tuple[int, ...]]:
    """Shapes in the files, by `network.name`: the generator's convolutions have their spectral norm."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in model.state_dict().items():
        shape = tuple(value.shape)
        if found := _NORMALISED.fullmatch(name):
            vectors = {"weight_u": shape[:1], "weight_v": (math.prod(shape[1:]),)}
            shapes |= {f"{found[1]}.{part}": size for part, size in {"weight_orig": shape, **vectors}.items()}
        else:
            shapes[name] = shape
    return shapes


def rename_tensors(state: Mapping[str, Tensor], model: LivePortraitRenderer) -> dict[str, Tensor]:
    """Rename tensors for the model and fold the spectral norm; missing counters are zero."""
    tensors = {}
    for name, own in model.state_dict().items():
        if found := _NORMALISED.fullmatch(name):
            tensors[name] = fold_spectral_norm(*(state[f"{found[1]}.weight_{part}"] for part in ("orig", "u", "v")))
        else:
            tensors[name] = state.get(name, torch.zeros_like(own))
    return tensors


def fold_spectral_norm(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Divide a weight `(out, ...)` by its spectral norm, with the stored vectors `(out,)` and `(prod(...),)`."""
    matrix, u, v = weight.flatten(1).double(), u.double(), v.double()
    return (weight.double() / (u @ (matrix @ v))).float()


def _counter(name: str) -> str | None:
    return "not needed" if name.endswith("num_batches_tracked") else None


def read_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the configuration of the renderer from the tensors; the rest is as in the public weights."""

    def side(name: str, dim: int, default: int) -> int:
        return state[name].shape[dim] if name in state and state[name].ndim > dim else default

    def count(prefix: str, default: int) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}) or default

    f, m, w, g = (f"{network}." for network in NETWORKS)
    dense, m = f"{w}dense_motion_network.", f"{m}detector."
    first, halvings = side(f"{f}first.conv.weight", 0, 64), count(f"{f}down_blocks.", 2)
    widest = side(f"{f}down_blocks.{halvings - 1}.conv.weight", 0, 256)
    channels = side(f"{f}resblocks_3d.3dr0.conv1.weight", 0, 32)
    stages = count(f"{m}stages.", 4)
    compress = side(f"{dense}compress.weight", 0, 4)
    keypoints = side(f"{dense}mask.weight", 0, 22)
    blocks = count(f"{dense}hourglass.encoder.down_blocks.", 5)
    expansion = side(f"{dense}hourglass.decoder.conv.weight", 0, 142) - keypoints * (compress + 1)
    deepest = side(f"{dense}hourglass.encoder.down_blocks.{blocks - 1}.conv.weight", 0, 1024)
    last = next((name for name in (f"{g}conv_img.0.weight", f"{g}conv_img.weight") if name in state), "")
    return {
        "block_expansion": first,
        "max_features": widest if widest < first * 2**halvings else max(512, widest),
        "num_down_blocks": halvings,
        "feature_channels": channels,
        "feature_depth": side(f"{f}second.weight", 0, 512) // channels,
        "num_resblocks": count(f"{f}resblocks_3d.", 6),
        "motion_depths": tuple(count(f"{m}stages.{s}.", 9 if s == 2 else 3) for s in range(stages)),
        "motion_dims": tuple(side(f"{m}stages.{s}.0.norm.weight", 0, 96 * 2**s) for s in range(stages)),
        "hourglass_block_expansion": expansion,
        "hourglass_max_features": deepest if deepest < expansion * 2**blocks else max(1024, deepest),
        "hourglass_num_blocks": blocks,
        "compress_channels": compress,
        "mask_kernel_size": side(f"{dense}mask.weight", 2, 7),
        "occlusion_kernel_size": side(f"{dense}occlusion.weight", 2, 7),
        "warped_channels": side(f"{w}fourth.weight", 0, 256),
        "generator_channels": side(f"{g}fc.weight", 0, 512),
        "generator_num_blocks": sum(f"{g}G_middle_{i}.conv_0.bias" in state for i in range(64)) or 6,
        "num_up_blocks": sum(f"{g}up_{i}.conv_0.bias" in state for i in range(16)) or 2,
        "generator_out_channels": side(last, 1, 64),
        "spade_channels": side(f"{g}up_0.norm_0.mlp_shared.0.weight", 0, 128),
        "upscale": math.isqrt(side(last, 0, 12) // 3),
    }

"""Numbers that LivePortrait's modules gave once they agreed with the reference vectors, for where those are absent.

The weights are made from their names, see `hash_weights`. `python -m tests.convert.golden_liveportrait` makes the file
again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.convert.vectors_liveportrait import MODULES, SMALL, SPECTRAL
from tests.testing_utils.hash_weights import fill_with_hash, hash_input
from vasa_hf.models.renderer_liveportrait import LivePortraitRenderer

FILE = Path(__file__).with_suffix(".json")
NUMBERS = 12


def hash_renderer(prefix: str, suffix: str, **config) -> LivePortraitRenderer:
    """A renderer whose weights are those of the reference vectors, prefix `<prefix><module><suffix>/`."""
    renderer = LivePortraitRenderer(**config).eval()
    for theirs, ours in MODULES.items():
        # So that the softmax of the small one is not flat.
        scaled = {"dense_motion_network.mask.weight": 4.0} if suffix and theirs == "warping_module" else {}
        spectral = SPECTRAL if theirs == "spade_generator" else ()
        fill_with_hash(renderer.get_submodule(ours), f"{prefix}{theirs}{suffix}/", spectral, scaled)
    return renderer


def small() -> LivePortraitRenderer:
    """The reduced renderer of the reference vectors."""
    return hash_renderer("", "_small", **SMALL)


def official() -> LivePortraitRenderer:
    """The renderer at official size."""
    return hash_renderer("full/", "")


@torch.no_grad()
def outputs(renderer: LivePortraitRenderer) -> dict[str, Tensor]:
    """What each module gives for hashed inputs, on the smallest image that fits."""
    config, side = renderer.config, renderer.size_multiple
    cells = side // 2**config.num_down_blocks
    image = hash_input("golden/image", (2, 3, side, side)) / 2 + 0.5
    volume = hash_input("golden/volume", (1, config.feature_channels, config.feature_depth, cells, cells))
    source, driving = (0.5 * hash_input(f"golden/{name}", (1, 21, 3)) for name in ("source", "driving"))
    ratios = hash_input("golden/ratios", (1, 3)) / 2 + 0.5
    warped, deformation, occlusion = renderer.warp(volume, source, driving)
    return {
        "feature_3d": renderer.encode_appearance(image),
        "motion": renderer.extract_motion(image).to_vector(),
        "canonical": renderer.extract_motion(image).kp,
        "warped": warped,
        "deformation": deformation,
        "occlusion": occlusion,
        "image": renderer.decode(hash_input("golden/warped", warped.shape)),
        "stitched": renderer.stitch(source, driving),
        "eyes": renderer.retarget_eyes(source, ratios[:, :2], ratios[:, 2:]),
        "lips": renderer.retarget_lips(source, ratios[:, :1], ratios[:, 2:]),
    }


def numbers(value: Tensor) -> list[float]:
    """A few numbers spread over a tensor, its mean and its spread."""
    flat = value.flatten().double()
    picked = flat[torch.linspace(0, len(flat) - 1, NUMBERS).long()]
    return [*picked.tolist(), flat.mean().item(), flat.std().item()]


def signature(module: nn.Module) -> dict[str, int | str]:
    """Number of parameters and of tensors, and a digest of all names and shapes."""
    lines = sorted(f"{name} {list(value.shape)}" for name, value in module.state_dict().items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return {"parameters": sum(p.numel() for p in module.parameters()), "tensors": len(lines), "sha256": digest}


def main() -> None:
    """Write the file."""
    with torch.device("meta"):
        renderer = LivePortraitRenderer()
    golden = {"official_signatures": {name: signature(renderer.get_submodule(name)) for name in MODULES.values()}}
    for name, make in (("small", small), ("official", official)):
        golden[name] = {key: [round(x, 7) for x in numbers(value)] for key, value in outputs(make()).items()}
    parts = []
    for part, rows in golden.items():  # a line for each tensor
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in rows.items())
        parts.append(f" {json.dumps(part)}: {{\n{lines}\n }}")
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    main()

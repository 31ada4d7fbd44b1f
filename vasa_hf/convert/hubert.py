"""HuBERT encoders of public checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import HubertConfig, HubertModel

from vasa_hf.convert.checkpoint import ConversionReport, match, read_checkpoint, require, state_dict

_SPELLINGS = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}


def normalise_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of weight norm as in torch 2.0 and later, and remove prefixes of parallel training."""
    renamed = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        for old, new in _SPELLINGS.items():
            name = name.removesuffix(old) + new if name.endswith(f"pos_conv_embed.conv{old}") else name
        renamed[name] = value
    return renamed


def hubert_config(state: Mapping[str, Tensor], prefix: str = "") -> HubertConfig:
    """Read the configuration of a HuBERT from its tensors; the rest is as in chinese-hubert-base.

    Args:
        state (`Mapping[str, torch.Tensor]`): Tensors by the names of `normalise_names`.
        prefix (`str`, defaults to `""`): Prefix of the encoder's names.
    """
    shapes = {name.removeprefix(prefix): tuple(value.shape) for name, value in state.items() if name.startswith(prefix)}
    names = [f"feature_extractor.conv_layers.{index}.conv.weight" for index in range(7)]
    convolutions = [shapes[name] for name in names if len(shapes.get(name, ())) == 3]
    sides = {"conv_dim": [shape[0] for shape in convolutions], "conv_kernel": [shape[2] for shape in convolutions]}
    positions = shapes.get("encoder.pos_conv_embed.conv.parametrizations.weight.original1", ())
    positions = positions if len(positions) == 3 else (768, 48, 128)
    hidden = shapes.get("feature_projection.projection.weight", (768,))[0]
    return HubertConfig(
        hidden_size=hidden,
        num_hidden_layers=len({name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}) or 12,
        num_attention_heads=max(hidden // 64, 1),
        intermediate_size=shapes.get("encoder.layers.0.feed_forward.intermediate_dense.weight", (4 * hidden,))[0],
        num_conv_pos_embeddings=positions[2],
        num_conv_pos_embedding_groups=positions[0] // positions[1],
        **(sides if len(convolutions) == len(names) else {}),
    )


def read_hubert(folder: Path) -> tuple[HubertModel, ConversionReport]:
    """Read the encoder of a folder in transformers' layout; the weights are only loaded if the report is complete.

    Args:
        folder (`pathlib.Path`): With `config.json`, and `model.safetensors` or `pytorch_model.bin`.

    Raises:
        ValueError: If a file is missing or cannot be read safely.
    """
    file = require(folder, ("model.safetensors", "pytorch_model.bin"))
    state = normalise_names(state_dict(read_checkpoint(file), file.name))
    state = {name.removeprefix("hubert."): value for name, value in state.items()}
    config = require(folder, ("config.json",))
    model = HubertModel(HubertConfig.from_json_file(config)).eval()
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    report = match(expected, state)
    if report.complete:
        model.load_state_dict(state)
    return model, report

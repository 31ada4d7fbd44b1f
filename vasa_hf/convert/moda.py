"""MoDA's weights (`lixinyizju/moda`) to `ModaMotionTransformer`, with its encoder and its copy of the renderer.

    moda/net-200.pth                     the network; names begin with `talking_head_dit.`
    audio/chinese-hubert-base/           HuBERT in transformers' layout
    decode/v1/first_stage/...            LivePortrait's renderer, see `liveportrait.py`
    mean.pt                              {"mean": (1, 70), "std": (1, 70)}; not on the Hub but in MoDA's code, as
                                         src/datasets/mean.pt

MoDA has no licence and says "academic research": do not share the converted weights.

The file contains the null audio feature for guidance only if it was trained on a CPU: otherwise it is a plain tensor in
the public code, which is neither trained nor saved, and random in every run. If it is missing, a fixed random vector is
used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from vasa_hf.convert import liveportrait
from vasa_hf.convert.checkpoint import ConversionReport, find, locate, match, read_checkpoint, require, state_dict
from vasa_hf.convert.hubert import read_hubert
from vasa_hf.convert.writing import check_destination, save_pipeline
from vasa_hf.models.motion_transformer_moda import ModaMotionTransformer
from vasa_hf.processors.audio import VasaAudioProcessor

_FOLDERS = ("", "pretrain_weights/")
NETWORK = [f"{folder}{name}" for folder in _FOLDERS for name in ("moda/net-200.pth", "net-200.pth")]
HUBERT = [f"{folder}audio/chinese-hubert-base" for folder in _FOLDERS] + ["chinese-hubert-base"]
STATISTICS = ("mean.pt", "moda/mean.pt", "src/datasets/mean.pt", "*/src/datasets/mean.pt")
PREFIX, NULL = "talking_head_dit.", "null_audio_feat"
_OWN = ("null_audio", "motion_mean", "motion_std")
# Not in the paper: the seed of MoDA's inference script; the position of the vector in its random stream is unknown.
NULL_SEED = 42


def convert_moda(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    statistics: str | os.PathLike | None = None,
    renderer: str | os.PathLike | None = None,
) -> ConversionReport:
    """Convert MoDA's weights to a folder for `ModaTalkingHeadPipeline.from_pretrained`.

    Args:
        source (`str` or `os.PathLike`): `lixinyizju/moda`, or a folder with the same layout.
        destination (`str` or `os.PathLike`): New folder; only written if every tensor fits.
        statistics (`str` or `os.PathLike`, *optional*): `mean.pt`; by default searched in `source`.
        renderer (`str` or `os.PathLike`, *optional*): Source for `convert_liveportrait`; by default MoDA's copy.

    Raises:
        ValueError: If a file is missing or cannot be read safely, or a tensor is missing, unknown or of another shape.
    """
    check_destination(destination)
    encoder_files = [f"{folder}/{name}" for folder in HUBERT for name in ("config.json", "*.safetensors", "*.bin")]
    folder = locate(source, (*NETWORK, *STATISTICS, *encoder_files, *([] if renderer else liveportrait.list_files())))
    renderer_folder = liveportrait.locate_renderer(folder, renderer)
    numbers = read_statistics(folder, statistics)
    network = require(folder, NETWORK)
    state = state_dict(read_checkpoint(network), network.name)
    hubert = require(folder, [f"{at}/config.json" for at in HUBERT]).parent
    encoder, encoder_report = read_hubert(hubert)
    encoder_report.check("MoDA's audio encoder")

    model = ModaMotionTransformer(**read_sizes(state, encoder.config.hidden_size)).eval()
    report = match(official_shapes(model), state, may_lack=_is_random, may_have=_not_needed)
    report.rows += match({"mean": (1, model.config.motion_dim), "std": (1, model.config.motion_dim)}, numbers).rows
    report.check("MoDA's motion generator")
    report.rows += encoder_report.rows
    own, note = rename_tensors(state, model)
    report.notes.append(note)
    model.load_state_dict(own | {"motion_mean": numbers["mean"][0].float(), "motion_std": numbers["std"][0].float()})

    portrait_renderer, renderer_report = liveportrait.read_renderer(renderer_folder)
    renderer_report.check("LivePortrait")
    report.rows += renderer_report.rows
    report.notes.append("MoDA has no licence: do not share the converted weights")
    components = {"motion_transformer": model, "audio_encoder": encoder, "renderer": portrait_renderer}
    components |= {"audio_processor": audio_processor(hubert), "scheduler": FlowMatchEulerDiscreteScheduler()}
    components |= {"image_processor": liveportrait.image_processor(portrait_renderer)}
    save_pipeline(destination, "ModaTalkingHeadPipeline", components, {"gaze_offset": True})
    return report


def audio_processor(hubert: Path) -> VasaAudioProcessor:
    """Make a processor with MoDA's settings: all layers of the encoder, resampled before the transformer.

    Args:
        hubert (`pathlib.Path`): The encoder's folder; its `preprocessor_config.json` has `do_normalize`.
    """
    file = hubert / "preprocessor_config.json"
    about = json.loads(file.read_text()) if file.is_file() else {}
    return VasaAudioProcessor(
        # With a window of 80 frames they are the chunks of 100 of §3.3.
        context_frames=16,
        lookahead_frames=4,
        do_normalize=bool(about.get("do_normalize", True)),
        padding="reflect",
        layers="all",
        resample_first=True,
        pre_emphasis=0.97,
    )


def read_statistics(folder: Path, path: str | os.PathLike | None) -> dict[str, Tensor]:
    """Read mean and standard deviation of the motion, `(1, 70)` each.

    Args:
        folder (`pathlib.Path`): Folder to search for `mean.pt`.
        path (`str` or `os.PathLike`, *optional*): The file.

    Raises:
        ValueError: If it is missing; the message says where to get it.
    """
    file = find(folder, STATISTICS) if path is None else Path(path)
    if file is None or not file.is_file():
        raise ValueError(
            "`statistics` must be MoDA's mean.pt, which is not on the Hub: get src/datasets/mean.pt of the code at "
            f"https://github.com/lixinyyang/MoDA and put it into {str(folder)!r}, or give its path; got "
            f"{'none' if path is None else repr(os.fspath(path))}."
        )
    found = read_checkpoint(file)
    if not all(torch.is_tensor(value) for value in found.values()):
        raise ValueError(f"`statistics` must hold only tensors, but {file.name!r} does not.")
    return found


def official_shapes(model: ModaMotionTransformer) -> dict[str, tuple[int, ...]]:
    """Shapes by MoDA's names."""
    return {f"{PREFIX}{name}": tuple(value.shape) for name, value in model.state_dict().items() if name not in _OWN} | {
        NULL: (1, 1, 1, 1, model.config.audio_dim)
    }


def rename_tensors(state: Mapping[str, Tensor], model: ModaMotionTransformer) -> tuple[dict[str, Tensor], str]:
    """Rename tensors for the model, without the statistics; and a note on the null audio feature."""
    own = {name: state[f"{PREFIX}{name}"] for name in model.state_dict() if name not in _OWN}
    if NULL in state:
        return own | {"null_audio": state[NULL].flatten()}, f"{NULL}: taken from the file"
    null_audio = torch.randn(model.config.audio_dim, generator=torch.Generator().manual_seed(NULL_SEED))
    note = f"{NULL}: not in the file, because it is random in MoDA; a fixed vector of seed {NULL_SEED} is used"
    return own | {"null_audio": null_audio}, note


def _is_random(name: str) -> str | None:
    return "missing, random" if name == NULL else None


def _not_needed(name: str) -> str | None:
    return "not needed" if name in ("null_motion_feat", "scheduler.sigmas") else None


def read_sizes(state: Mapping[str, Tensor], audio_dim: int) -> dict[str, Any]:
    """Read the configuration of the model from the tensors; the rest is as in the public weights.

    Args:
        state (`Mapping[str, torch.Tensor]`): The network.
        audio_dim (`int`): Channels of the encoder, if the network does not have the null audio feature.
    """

    def side(name: str, dim: int, default: int) -> int:
        value = state.get(f"{PREFIX}{name}")
        return default if value is None or value.ndim <= dim else value.shape[dim]

    def count(part: str, default: int) -> int:
        start = f"{PREFIX}{part}."
        return len({name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)}) or default

    hidden = side("motion_embedder.mlp.0.weight", 0, 768)
    motion_dim = side("final_layer.linear.weight", 0, 70)
    audio_dim = state[NULL].numel() if NULL in state else audio_dim
    return {
        "motion_dim": motion_dim,
        "keypoint_dim": side("identity_embedder.mlp.0.weight", 1, 63),
        "hidden_size": hidden,
        "num_heads": hidden // side("blocks.0.attn1.xs_q_norm.weight", 0, 64),
        "num_four_stream": count("blocks4", 3),
        "num_two_stream": count("blocks2", 6),
        "num_single_stream": count("blocks", 12),
        "ffn_ratio": side("blocks2.0.xs_mlp.fc1.weight", 0, 4 * hidden) // hidden,
        "audio_layers": side("audio_embedder.proj1.weight", 1, 12 * audio_dim) // audio_dim,
        "audio_dim": audio_dim,
        "num_emotions": side("emo_embedder.embedding_table.weight", 0, 9) - 1,
    }

"""MoDA's weights (`lixinyizju/moda`) as `ModaMotionTransformer`, with its encoder and its copy of the renderer.

    moda/net-200.pth                     the network; names begin with `talking_head_dit.`
    audio/chinese-hubert-base/           HuBERT in transformers' layout
    decode/v1/first_stage/...            LivePortrait's renderer, see `liveportrait.py`
    mean.pt                              {"mean": (1, 70), "std": (1, 70)}; not on the Hub but in MoDA's code, as
                                         src/datasets/mean.pt

MoDA states no licence and says "academic research": what is converted must not be passed on.

The null audio feature that guidance needs is in the file only if it was trained on a CPU: elsewhere the public code
makes it a plain tensor, which is neither trained nor saved, and draws it at random in every run. If it is absent, a
fixed random vector takes its place.
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
from vasa_hf.convert.checkpoint import ConversionReport, find, locate, match, need, read_checkpoint, state_dict
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
# Not in the paper: the seed of MoDA's inference script; where in its random stream the vector is drawn is not known.
NULL_SEED = 42


def convert_moda(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    statistics: str | os.PathLike | None = None,
    renderer: str | os.PathLike | None = None,
) -> ConversionReport:
    """Convert MoDA's weights to a folder for `ModaTalkingHeadPipeline.from_pretrained`.

    Args:
        source (`str` or `os.PathLike`): `lixinyizju/moda`, or a folder laid out like it.
        destination (`str` or `os.PathLike`): New folder; nothing is written unless every tensor fits.
        statistics (`str` or `os.PathLike`, *optional*): `mean.pt`; by default it is sought in `source`.
        renderer (`str` or `os.PathLike`, *optional*): What `convert_liveportrait` takes; by default MoDA's own copy.

    Raises:
        ValueError: If a file is absent or cannot be read safely, or a tensor is missing, unknown or of another shape.
    """
    check_destination(destination)
    encoder_files = [f"{folder}/{name}" for folder in HUBERT for name in ("config.json", "*.safetensors", "*.bin")]
    folder = locate(source, (*NETWORK, *STATISTICS, *encoder_files, *([] if renderer else liveportrait.wanted())))
    place = liveportrait.place_of_renderer(folder, renderer)
    numbers = read_statistics(folder, statistics)
    network = need(folder, NETWORK)
    state = state_dict(read_checkpoint(network), network.name)
    hubert = need(folder, [f"{at}/config.json" for at in HUBERT]).parent
    encoder, encoder_report = read_hubert(hubert)
    encoder_report.check("MoDA's audio encoder")

    model = ModaMotionTransformer(**sizes(state, encoder.config.hidden_size)).eval()
    report = match(official_shapes(model), state, may_lack=_drawn, may_have=_not_needed)
    report.rows += match({"mean": (1, model.config.motion_dim), "std": (1, model.config.motion_dim)}, numbers).rows
    report.check("MoDA's motion generator")
    report.rows += encoder_report.rows
    own, note = own_names(state, model)
    report.notes.append(note)
    model.load_state_dict(own | {"motion_mean": numbers["mean"][0].float(), "motion_std": numbers["std"][0].float()})

    drawn, drawn_report = liveportrait.read_renderer(place)
    drawn_report.check("LivePortrait")
    report.rows += drawn_report.rows
    report.notes.append("MoDA states no licence: keep what was converted to yourself")
    components = {"motion_generator": model, "audio_encoder": encoder, "renderer": drawn}
    components |= {"audio_processor": audio_processor(hubert), "scheduler": FlowMatchEulerDiscreteScheduler()}
    components |= {"image_processor": liveportrait.image_processor(drawn)}
    save_pipeline(destination, "ModaTalkingHeadPipeline", components)
    return report


def audio_processor(hubert: Path) -> VasaAudioProcessor:
    """What MoDA does to sound before and in its encoder; all layers are heard, resampled before the transformer.

    Args:
        hubert (`pathlib.Path`): The encoder's folder, whose `preprocessor_config.json` says whether to normalise.
    """
    file = hubert / "preprocessor_config.json"
    about = json.loads(file.read_text()) if file.is_file() else {}
    return VasaAudioProcessor(
        # Together with a window of 80 frames they are the chunks of 100 of §3.3.
        context_frames=16,
        lookahead_frames=4,
        do_normalize=bool(about.get("do_normalize", True)),
        padding="reflect",
        layers="all",
        resample_first=True,
        pre_emphasis=0.97,
    )


def read_statistics(folder: Path, path: str | os.PathLike | None) -> dict[str, Tensor]:
    """Mean and deviation of the motion, `(1, 70)` each.

    Args:
        folder (`pathlib.Path`): Where `mean.pt` is sought.
        path (`str` or `os.PathLike`, *optional*): The file itself.

    Raises:
        ValueError: If there is none; the message says where to get it.
    """
    file = find(folder, STATISTICS) if path is None else Path(path)
    if file is None or not file.is_file():
        raise ValueError(
            "`statistics` must be MoDA's mean.pt, which is not on the Hub: get src/datasets/mean.pt of the code at "
            f"https://github.com/lixinyyang/MoDA and put it into {str(folder)!r}, or name it; got "
            f"{'none' if path is None else repr(os.fspath(path))}."
        )
    found = read_checkpoint(file)
    if not all(torch.is_tensor(value) for value in found.values()):
        raise ValueError(f"`statistics` must hold tensors alone, but {file.name!r} does not.")
    return found


def official_shapes(model: ModaMotionTransformer) -> dict[str, tuple[int, ...]]:
    """Shapes by MoDA's names, without the null audio feature, which may be absent."""
    return {f"{PREFIX}{name}": tuple(value.shape) for name, value in model.state_dict().items() if name not in _OWN} | {
        NULL: (1, 1, 1, 1, model.config.audio_dim)
    }


def own_names(state: Mapping[str, Tensor], model: ModaMotionTransformer) -> tuple[dict[str, Tensor], str]:
    """Tensors by our names, without the statistics; and what became of the null audio feature."""
    own = {name: state[f"{PREFIX}{name}"] for name in model.state_dict() if name not in _OWN}
    if NULL in state:
        return own | {"null_audio": state[NULL].flatten()}, f"{NULL}: taken from the file"
    drawn = torch.randn(model.config.audio_dim, generator=torch.Generator().manual_seed(NULL_SEED))
    note = f"{NULL}: not in the file, as MoDA draws it at random; a fixed vector of seed {NULL_SEED} takes its place"
    return own | {"null_audio": drawn}, note


def _drawn(name: str) -> str | None:
    return "absent, drawn" if name == NULL else None


def _not_needed(name: str) -> str | None:
    return "not needed" if name in ("null_motion_feat", "scheduler.sigmas") else None


def sizes(state: Mapping[str, Tensor], audio_dim: int) -> dict[str, Any]:
    """Configuration of the model from the tensors; what is missing is as in the public weights.

    Args:
        state (`Mapping[str, torch.Tensor]`): The network.
        audio_dim (`int`): Channels of the encoder, unless the network tells.
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

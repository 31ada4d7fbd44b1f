"""JoyVASA's motion generator (`jdh-algo/JoyVASA`, MIT) to `JoyVasaMotionDenoiser`, with its HuBERT.

    motion_generator/*.pt              {"args": Namespace, "model": state dict, "iter": int}
    motion_template/motion_template.pkl  statistics of the training data, numpy arrays

Sizes are read from the tensors. The checkpoint contains a fine-tuned HuBERT, which is converted as well. Tensors that
the model recomputes (tables of sines, mask, noise schedule) are compared with those of the file.

# The public weights were not available: the dates of the code tell their positional encoding (see
# `JoyVasaMotionDenoiser`), and `positional_encoding` selects the other one.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import HubertModel

from vasa_hf.convert import liveportrait
from vasa_hf.convert.checkpoint import (
    ConversionReport,
    Namespace,
    locate,
    match,
    read_checkpoint,
    read_pickle,
    require,
    state_dict,
)
from vasa_hf.convert.hubert import hubert_config, normalise_names
from vasa_hf.convert.writing import check_destination, save_pipeline
from vasa_hf.models.motion_denoiser_joyvasa import JoyVasaMotionDenoiser, joyvasa_scheduler, sinusoids
from vasa_hf.processors.audio import VasaAudioProcessor

_FOLDERS = ("", "JoyVASA/", "pretrained_weights/JoyVASA/")
NETWORK = [
    f"{folder}motion_generator/{name}"
    for folder in _FOLDERS
    for name in ("motion_generator_hubert_chinese.pt", "iter_0020000.pt")
]
TEMPLATE = [f"{folder}motion_template/motion_template.pkl" for folder in _FOLDERS]
STATISTICS = ("expression_mean", "expression_std", "pose_min", "pose_max")
_LAYER, _ATTENTION = "transformer.layers.", "multihead_attn."
_POSE = ("scale", "t", "pitch", "yaw", "roll")


def convert_joyvasa(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    renderer: str | os.PathLike | None = None,
    positional_encoding: str = "single_row",
) -> ConversionReport:
    """Convert JoyVASA's weights to a folder for `JoyVasaTalkingHeadPipeline.from_pretrained`.

    Args:
        source (`str` or `os.PathLike`): `jdh-algo/JoyVASA`, or a folder with the same layout.
        destination (`str` or `os.PathLike`): New folder; only written if every tensor fits.
        renderer (`str` or `os.PathLike`, *optional*):
            Source for `convert_liveportrait`, because JoyVASA has no renderer; by default searched in `source`.
        positional_encoding (`str`, defaults to `"single_row"`): See `JoyVasaMotionDenoiser`.

    Raises:
        ValueError: If a file is missing or cannot be read safely, or a tensor is missing, unknown or of another shape.
    """
    check_destination(destination)
    folder = locate(source, (*NETWORK, *TEMPLATE))
    renderer_folder = liveportrait.locate_renderer(folder, renderer)
    network = require(folder, NETWORK)
    content = read_checkpoint(network)
    state = normalise_names(state_dict(content, network.name))
    template = read_pickle(require(folder, TEMPLATE))
    args = vars(content["args"]) if isinstance(content.get("args"), Namespace) else {}

    model = JoyVasaMotionDenoiser(**read_sizes(state, args), positional_encoding=positional_encoding).eval()
    encoder = HubertModel(hubert_config(state, "audio_encoder.")).eval()
    encoder_shapes = {f"audio_encoder.{name}": tuple(value.shape) for name, value in encoder.state_dict().items()}
    report = match(official_shapes(model) | encoder_shapes, state, may_have=_is_recomputed)
    report.rows += match(template_shapes(model), template, may_have=_statistic).rows
    report.problems += find_differences(state, model, args)
    report.check("JoyVASA's motion generator")
    report.notes.append(
        f"positional encoding: {positional_encoding}; JoyVASA's code had single_row when the weights were published, "
        "per_frame since December 2025"
    )

    model.load_state_dict(rename_tensors(state, model) | statistics(template))
    encoder.load_state_dict({name.removeprefix("audio_encoder."): state[name] for name in encoder_shapes})
    portrait_renderer, renderer_report = liveportrait.read_renderer(renderer_folder)
    renderer_report.check("LivePortrait")
    report.rows += renderer_report.rows
    components = {"motion_transformer": model, "audio_encoder": encoder, "renderer": portrait_renderer}
    components |= {"scheduler": joyvasa_scheduler(model.config.num_train_timesteps)}
    components |= {"image_processor": liveportrait.image_processor(portrait_renderer)}
    # Each window is encoded without context.
    processor = VasaAudioProcessor(context_frames=0, lookahead_frames=0, padding="reflect")
    save_pipeline(destination, "JoyVasaTalkingHeadPipeline", components | {"audio_processor": processor})
    return report


def official_name(name: str) -> str:
    """Return JoyVASA's name of a tensor of the model."""
    if name.startswith(("null_", "start_", "audio_feature_map.")):
        return name
    name = name.replace("audio_value.", f"{_ATTENTION}in_proj_").replace("audio_out.", f"{_ATTENTION}out_proj.")
    return "denoising_net." + name.replace("layers.", _LAYER)


def official_shapes(model: JoyVasaMotionDenoiser) -> dict[str, tuple[int, ...]]:
    """Shapes by JoyVASA's names. Its cross-attention packs queries, keys and values; the model has only values."""
    shapes = {}
    for name, shape in _shapes(model).items():
        if name not in STATISTICS:
            shapes[official_name(name)] = (3 * shape[0], *shape[1:]) if "audio_value" in name else shape
    return shapes


def rename_tensors(state: dict[str, Tensor], model: JoyVasaMotionDenoiser) -> dict[str, Tensor]:
    """Rename tensors for the model, without those of the motion template."""
    found = {name: state[official_name(name)] for name in model.state_dict() if name not in STATISTICS}
    width = model.config.hidden_size
    return {name: value[2 * width :] if "audio_value" in name else value for name, value in found.items()}


def read_sizes(state: dict[str, Tensor], args: dict[str, Any]) -> dict[str, Any]:
    """Read the configuration of the model from the tensors, else from the options.

    # JoyVASA fixes the number of heads, 8, in its code; its `args.n_layers` is not used there.
    """

    def side(name: str, dim: int, default: int) -> int:
        return state[name].shape[dim] if name in state and state[name].ndim > dim else default

    layers = [name.split(".")[3] for name in state if name.startswith(f"denoising_net.{_LAYER}")]
    context = side("start_motion_feat", 1, 25)
    width = side("audio_feature_map.weight", 0, 256)
    ffn = side(f"denoising_net.{_LAYER}0.linear1.weight", 0, 4 * width)
    return {
        "motion_dim": side("denoising_net.feature_proj.weight", 1, 70),
        "audio_dim": side("audio_feature_map.weight", 1, 768),
        "hidden_size": width,
        "num_layers": max((int(layer) + 1 for layer in layers if layer.isdigit()), default=8),
        "ffn_ratio": ffn // width,
        "window": side("denoising_net.alignment_mask", 0, context + int(args.get("n_motions", 100))) - context,
        "context": context,
        "num_train_timesteps": side("diffusion_sched.betas", 0, int(args.get("n_diff_steps", 50)) + 1) - 1,
        "pad_mode": str(args.get("pad_mode", "zero")),
        "fps": float(args.get("fps", 25)),
    }


def _is_recomputed(name: str) -> str | None:
    tables = ("denoising_net.TE.pe", "denoising_net.PE.pe", "denoising_net.alignment_mask")
    return "recomputed" if name in tables or name.startswith("diffusion_sched.") else None


def find_differences(state: dict[str, Tensor], model: JoyVasaMotionDenoiser, args: dict[str, Any]) -> list[str]:
    """List the settings of the file's training that the model does not support."""
    config, problems = model.config, []
    tables = {"betas": joyvasa_scheduler(config.num_train_timesteps).betas}
    tables["alpha_bars"] = torch.cumprod(1 - tables["betas"], 0)
    for name, own in tables.items():
        table = state.get(f"diffusion_sched.{name}")
        if table is not None and not torch.allclose(table[1:], own, atol=1e-4):
            problems.append(f"diffusion_sched.{name}: no cosine schedule of {config.num_train_timesteps} steps")
    mask = state.get("denoising_net.alignment_mask")
    if mask is not None and not torch.equal(mask.bool(), ~torch.eye(len(mask), dtype=torch.bool)):
        problems.append("denoising_net.alignment_mask: attention to the audio of other frames is not supported")
    table = state.get("denoising_net.PE.pe")
    if table is not None and not torch.allclose(
        table[0], sinusoids(torch.arange(table.shape[1]), config.hidden_size), atol=1e-4
    ):
        problems.append("denoising_net.PE.pe: a learned positional encoding is not supported")
    for name, known in {"target": "sample", "diff_schedule": "cosine"}.items():
        if args.get(name, known) != known:
            problems.append(f"args.{name}: expected {known!r}, got {args[name]!r}")
    return problems


# --- the motion template ----------------------------------------------------------------------------------------------


def template_shapes(model: JoyVasaMotionDenoiser) -> dict[str, tuple[int, ...]]:
    """Shapes of the required statistics, by the template's names."""
    expression = (model.config.motion_dim - 7,)
    widths = dict(zip(_POSE, ((1,), (3,), (1,), (1,), (1,)), strict=True))
    limits = {f"{what}_{name}": width for name, width in widths.items() for what in ("min", "max")}
    return {"mean_exp": expression, "std_exp": expression, **limits}


def _statistic(name: str) -> str | None:
    what = name.split("_")
    return "not needed" if len(what) > 1 and what[0] in ("mean", "std", "min", "max", "abs") else None


def statistics(template: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Convert the template to buffers of the model."""
    found = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in template.items()}
    limits = {f"pose_{what}": torch.cat([found[f"{what}_{name}"] for name in _POSE]) for what in ("min", "max")}
    return {"expression_mean": found["mean_exp"], "expression_std": found["std_exp"], **limits}


def _shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}

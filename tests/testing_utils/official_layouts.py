"""Folders laid out as LivePortrait, MoDA and JoyVASA publish their weights, with small random weights in them."""

import argparse
import json
import pathlib
import pickle
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import HubertConfig, HubertModel

from tests.testing_utils.hash_weights import hash_tensor, hash_values
from vasa_hf.convert import joyvasa, liveportrait, moda
from vasa_hf.models.motion_denoiser_joyvasa import JoyVasaMotionDenoiser, joyvasa_scheduler, sinusoids
from vasa_hf.models.motion_transformer_moda import ModaMotionTransformer
from vasa_hf.models.renderer_liveportrait import LivePortraitRenderer

RENDERER = {
    "block_expansion": 4,
    "max_features": 32,
    "feature_channels": 4,
    "feature_depth": 4,
    "num_resblocks": 2,
    "motion_depths": (1, 1, 2, 1),
    "motion_dims": (8, 12, 16, 24),
    "hourglass_block_expansion": 4,
    "hourglass_max_features": 16,
    "compress_channels": 1,
    "mask_kernel_size": 3,
    "occlusion_kernel_size": 3,
    "generator_num_blocks": 2,
    "generator_out_channels": 8,
    "spade_channels": 16,
}
# 64 channels: a head of HuBERT has 64, which no tensor tells.
HUBERT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 32,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
MODA = {"hidden_size": 32, "num_heads": 2, "num_four_stream": 1, "num_two_stream": 1, "num_single_stream": 2}
MODA = {**MODA, "audio_dim": HUBERT["hidden_size"], "audio_layers": HUBERT["num_hidden_layers"]}
JOYVASA = {"audio_dim": HUBERT["hidden_size"], "hidden_size": 32, "num_layers": 2, "window": 20, "context": 5}
JOYVASA = {**JOYVASA, "num_train_timesteps": 6}
RETARGETING = {"retarget_shoulder": "stitching", "retarget_mouth": "retargeting_lip", "retarget_eye": "retargeting_eye"}


def weights(shapes: dict[str, tuple[int, ...]], prefix: str) -> dict[str, Tensor]:
    """Random weights by the reference's rules; vectors of spectral norm are random, too: not those of the weight."""
    state = {}
    for name, shape in shapes.items():
        leaf = name.rpartition(".")[2]
        if leaf in ("weight_u", "weight_v"):
            vector = torch.from_numpy(hash_values(name, shape)).float()
            state[name] = vector / vector.norm()
        elif leaf in ("original0", "original1", "masked_spec_embed"):
            state[name] = torch.from_numpy(hash_values(name, shape)).float().abs() + 0.1
        else:
            state[name] = hash_tensor(name, shape, prefix)
    return state


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a model."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def liveportrait_state(config: dict | None = None) -> dict[str, Tensor]:
    """Tensors of the renderer by `network.name`, spectral norm as it is stored."""
    state = weights(liveportrait.official_shapes(LivePortraitRenderer(**(config or RENDERER))), "test/")
    for name in [name for name in state if name.endswith("weight_u")]:
        matrix, v = state[name[:-1] + "orig"].flatten(1), state[name[:-1] + "v"]
        # A stored u that has not converged: its scale is not the largest singular value.
        state[name] = torch.nn.functional.normalize(matrix @ v + 0.3 * state[name], dim=0)
    return state


def write_liveportrait(folder: Path, state: dict[str, Tensor] | None = None, mirror: bool = False) -> Path:
    """LivePortrait's folder, or that of its safetensors mirror."""
    state = liveportrait_state() if state is None else state
    networks = folder if mirror else folder / "base_models"
    small = folder if mirror else folder / "retargeting_models"
    for path in (networks, small):
        path.mkdir(parents=True, exist_ok=True)
    for network in liveportrait.NETWORKS:
        part = {n.removeprefix(f"{network}."): v for n, v in state.items() if n.startswith(f"{network}.")}
        save_file(part, networks / f"{network}.safetensors") if mirror else torch.save(
            part, networks / f"{network}.pth"
        )
    three = {
        theirs: {n.removeprefix(f"{ours}."): v for n, v in state.items() if n.startswith(f"{ours}.")}
        for theirs, ours in RETARGETING.items()
    }
    name = liveportrait.RETARGETING
    if mirror:
        flat = {f"{theirs}_module.{n}": v for theirs, part in three.items() for n, v in part.items()}
        save_file(flat, small / f"{name}.safetensors")
    else:
        torch.save({t: {f"module.{n}": v for n, v in part.items()} for t, part in three.items()}, small / f"{name}.pth")
    return folder


def write_moda(folder: Path, null: bool = True, statistics: bool = True) -> tuple[Path, dict[str, Tensor]]:
    """MoDA's folder, and the tensors of its network."""
    model = ModaMotionTransformer(**MODA)
    state = weights(moda.official_shapes(model), "test/")
    state["scheduler.sigmas"] = torch.linspace(0, 1, 1000)
    state["null_motion_feat"] = torch.zeros(1, 1, 70)
    if not null:
        del state[moda.NULL], state["null_motion_feat"]
    for path in ("moda", "audio/chinese-hubert-base"):
        (folder / path).mkdir(parents=True)
    torch.save(state, folder / "moda" / "net-200.pth")
    encoder = HubertModel(HubertConfig(**HUBERT))
    encoder.config.save_pretrained(folder / "audio" / "chinese-hubert-base")
    torch.save(weights(shapes(encoder), "test/"), folder / "audio" / "chinese-hubert-base" / "pytorch_model.bin")
    (folder / "audio/chinese-hubert-base/preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    if statistics:
        numbers = {"mean": torch.linspace(-1, 1, 70)[None], "std": torch.linspace(0, 2, 70)[None]}
        torch.save(numbers, folder / "mean.pt")
    write_liveportrait(folder / "decode/v1/first_stage")
    return folder, state


def joyvasa_state(config: dict | None = None) -> dict[str, Tensor]:
    """Tensors of JoyVASA's checkpoint by its names, tables included."""
    model = JoyVasaMotionDenoiser(**(config or JOYVASA))
    state = weights(joyvasa.official_shapes(model), "test/")
    encoder = HubertModel(HubertConfig(**HUBERT))
    state |= {f"audio_encoder.{name}": value for name, value in weights(shapes(encoder), "test/").items()}
    tokens, width = model.config.window + model.config.context, model.config.hidden_size
    state["denoising_net.alignment_mask"] = ~torch.eye(tokens, dtype=torch.bool)
    state["denoising_net.TE.pe"] = sinusoids(torch.arange(501), width)[None]
    state["denoising_net.PE.pe"] = sinusoids(torch.arange(600), width)[None]
    betas = torch.cat([torch.zeros(1), joyvasa_scheduler(model.config.num_train_timesteps).betas])
    state["diffusion_sched.betas"], state["diffusion_sched.alphas"] = betas, 1 - betas
    state["diffusion_sched.alpha_bars"] = torch.cumprod(1 - betas, 0)
    return state


def motion_template() -> dict[str, np.ndarray]:
    """JoyVASA's statistics: numpy arrays, more than are needed."""
    widths = {"exp": 63, "scale": 1, "t": 3, "pitch": 1, "yaw": 1, "roll": 1, "R": 9, "lip": 1, "eyes": 2}
    offsets = {"mean": 0.0, "std": 0.1, "min": -1.0, "max": 1.0, "abs_max": 1.0}
    return {
        f"{what}_{name}": (offset + 0.01 * hash_values(f"{what}_{name}", (width,))).astype(np.float32)
        for name, width in widths.items()
        for what, offset in offsets.items()
    }


def write_joyvasa(folder: Path, state: dict[str, Tensor] | None = None, **args: object) -> Path:
    """JoyVASA's folder; the options hold a path of another system than this one's, as the published ones may."""
    for name in ("motion_generator", "motion_template"):
        (folder / name).mkdir(parents=True)
    options = {"n_motions": 20, "n_prev_motions": 5, "n_diff_steps": 6, "audio_model": "hubert_zh", "pad_mode": "zero"}
    path = pathlib.PurePosixPath("experiments/run/logs")
    namespace = argparse.Namespace(**{**options, "fps": 25, "log_dir": path, **args})
    content = {"args": namespace, "model": joyvasa_state() if state is None else state, "iter": 20000}
    torch.save(content, folder / "motion_generator" / "motion_generator_hubert_chinese.pt")
    (folder / "motion_template/motion_template.pkl").write_bytes(pickle.dumps(motion_template()))
    return folder

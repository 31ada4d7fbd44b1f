"""MoDA's reference vectors: the reduced network, sampling by diffusers' scheduler, windows, what lies around them."""

from __future__ import annotations

import json
from functools import cache, partial
from unittest import mock

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import HubertConfig, HubertModel

from tests.convert.parity import FOLDER, Checks, difference, load
from vasa_hf.geometry.keypoints import LIP_KEYPOINTS, KeypointMotion, head_pose_degrees
from vasa_hf.models import motion_transformer_moda
from vasa_hf.models.motion_transformer_moda import ModaMotionTransformer
from vasa_hf.motion.windows import OverlappedWindows, join_windows, smooth
from vasa_hf.pipelines import motion_moda
from vasa_hf.pipelines.motion_generator import Sampling
from vasa_hf.processors.audio import layer_features

CHECKS = Checks()
MODULE_LIMIT, LOOP_LIMIT, EXACT_LIMIT = 2e-5, 5e-5, 2e-6

vectors = partial(load, "moda")


@cache
def small_transformer() -> ModaMotionTransformer:
    """The reduced network with the reference's weights and the published statistics of motion."""
    weights = load_file(FOLDER / "moda" / "motion_diffusion_small.safetensors")
    prefix = "talking_head_dit."
    state = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    state["null_audio"] = weights["null_audio_feat"].flatten()
    statistics = vectors("normalisation_mean_std")
    state["motion_mean"], state["motion_std"] = statistics["mean"][0], statistics["std"][0]
    model = ModaMotionTransformer(hidden_size=48, num_heads=4, audio_dim=16)
    model.load_state_dict(state)
    return model.eval()


def call_network(data: dict[str, Tensor]) -> Tensor:
    """One call with the inputs of a `dit_small` file, whose motion vectors are previous and noisy motion in one."""
    return small_transformer()(
        data["motion"][..., 70:],
        data["times"],
        audio=data["audio"][:, :, 0],
        emotion=data["emo"],
        keypoints=data["audio_cond"],
        previous_motion=data["motion"][..., :70],
    ).sample


def _as_their_machine_rounds():
    """The machine that made the vectors rounded one of the 128 time frequencies up, by one unit in the last place.

    The exact value lies within 0.03 of such units from the middle between two floats. At t = 1000, and with the weights
    of this small network, that alone is 2.0e-5 of the output.
    """
    frequencies = motion_transformer_moda._time_frequencies(torch.device("cpu"))
    frequencies[13] = torch.nextafter(frequencies[13], torch.tensor(1.0))
    return mock.patch.object(motion_transformer_moda, "_time_frequencies", lambda device: frequencies)


@CHECKS("network", MODULE_LIMIT)
def _network() -> dict[str, float]:
    files = {"80 frames": vectors("dit_small_io"), "13 frames": vectors("dit_small_len13_io")}
    with _as_their_machine_rounds():
        return {name: difference(call_network(data), data["out"]) for name, data in files.items()}


@CHECKS("network, frequencies rounded correctly", 2 * MODULE_LIMIT)
def _network_as_it_is() -> dict[str, float]:
    files = {"80 frames": vectors("dit_small_io"), "13 frames": vectors("dit_small_len13_io")}
    return {name: difference(call_network(data), data["out"]) for name, data in files.items()}


def _keep(seen: dict[str, Tensor], name: str, parts: tuple[str, ...], module: nn.Module) -> RemovableHandle:
    def hook(_, inputs, output) -> None:
        outputs = output if parts else [output]
        names = [f"{name}_{part}" for part in parts] or [name]
        seen.update((key, value[:1]) for key, value in zip(names, outputs, strict=True))

    return module.register_forward_hook(hook)


@CHECKS("network, inside", MODULE_LIMIT)
def _network_inside() -> dict[str, float]:
    reference, model, seen, hooks = vectors("dit_small_intermediates_b0"), small_transformer(), {}, []
    for name in ("motion", "time", "identity", "audio"):
        hooks.append(_keep(seen, f"{name}_embed", (), getattr(model, f"{name}_embedder")))
    for i in (0, 2):
        hooks.append(_keep(seen, f"block4_{i}", ("motion", "audio", "emo", "identity"), model.blocks4[i]))
    for i in (0, 5):
        hooks.append(_keep(seen, f"block2_{i}", ("motion", "cond"), model.blocks2[i]))
    for i in (0, 11):
        hooks.append(_keep(seen, f"block1_{i}", (), model.blocks[i]))
    with _as_their_machine_rounds():
        call_network(vectors("dit_small_io"))
    for hook in hooks:
        hook.remove()
    return {name: difference(seen[name].view_as(value), value) for name, value in reference.items()}


@CHECKS("keys and shapes of the published size", 0.0)
def _keys() -> dict[str, float]:
    entries = json.loads((FOLDER / "moda" / "keys_motion_diffusion.json").read_text())["keys"]
    prefix = "talking_head_dit."
    theirs = {entry["name"].removeprefix(prefix): entry["shape"] for entry in entries if prefix in entry["name"]}
    with torch.device("meta"):
        ours = {name: list(value.shape) for name, value in ModaMotionTransformer().state_dict().items()}
    for name in ("null_audio", "motion_mean", "motion_std"):
        del ours[name]
    return {"keys that differ": float(len(set(ours) ^ set(theirs)) + sum(ours[key] != theirs[key] for key in ours))}


@CHECKS("scheduler", EXACT_LIMIT)
def _scheduler() -> dict[str, float]:
    """diffusers' scheduler as it is, without any setting."""
    data, scheduler = vectors("scheduler_io"), FlowMatchEulerDiscreteScheduler()
    table = scheduler.sigmas.flip(0)
    scheduler.set_timesteps(10)
    steps = [scheduler.step(data["model_output"], t, data["sample"]).prev_sample for t in scheduler.timesteps]
    return {
        "all sigmas": difference(table, data["sigma_table"]),
        "timesteps / 1000": difference(scheduler.timesteps / 1000, data["timesteps"] / 1000),
        "sigmas": difference(scheduler.sigmas[:-1], data["sigmas"]),
        "steps": difference(torch.stack(steps), data["prev_sample"]),
    }


def sample_from(noise: Tensor, guidance: dict[str, float], on_step=None, **arguments) -> Tensor:
    """One window of the pipeline's sampler that starts at given noise."""
    parts = (small_transformer(), FlowMatchEulerDiscreteScheduler(), None, None, torch.device("cpu"))
    return motion_moda.ModaMotionGenerator(*parts).sample_window(
        lengths=[int(arguments["frame_mask"].sum())],
        sampling=Sampling({"audio": 0.0, **guidance}, latents=noise.reshape(1, -1, 70), on_step=on_step),
        **arguments,
    )


def _one_window(scale: float) -> dict[str, float]:
    """The published code drops audio and emotion together: w is a lambda of w - 1 for both as one."""
    data, steps = vectors(f"sample_subclip_small_cfg{scale}_emo3"), []

    def on_step(timestep: Tensor, latents: Tensor, audio: Tensor) -> Tensor:
        steps.append(latents)
        return latents

    latents = sample_from(
        data["init_noise"],
        {"audio+emotion": scale - 1},
        on_step,
        audio=data["audio"][:, :, 0],
        frame_mask=torch.ones(1, 80, dtype=torch.bool),
        previous_motion=data["prev_motion"][:, 0],
        first_motion=data["prev_motion"][:, 0],
        keypoints=data["ref_kp"].flatten(1),
        emotion=data["emo"],
    )
    return {
        "after a step": difference(steps[0], data["first_step_latents"]),
        "after 10 steps": difference(latents, data["final_latents"]),
    }


CHECKS("a window, guidance 1.2", LOOP_LIMIT)(partial(_one_window, 1.2))
CHECKS("a window without guidance", LOOP_LIMIT)(partial(_one_window, 1.0))


def _long_motion(pieces: list[int]) -> dict[str, float]:
    data = vectors("sample_long_small")
    windows, noises = OverlappedWindows(80, 16, smoothed=motion_moda.POSE), iter(data["noises"])
    seen: list[Tensor | None] = []

    def sample_window(audio: Tensor, frame_mask: Tensor, previous: Tensor | None, previous_audio: None) -> Tensor:
        seen.append(previous)
        return sample_from(
            next(noises),
            {"audio+emotion": float(data["cfg_scale"]) - 1},
            audio=audio,
            frame_mask=frame_mask,
            previous_motion=previous,
            first_motion=data["prev_motion"][:, 0],
            keypoints=data["ref_kp"].flatten(1),
            emotion=data["emo"].view(1),
        )

    def generated():
        total = sum(pieces)
        for arrived in torch.tensor(pieces).cumsum(0).tolist():
            for window in windows.take(arrived, finished=arrived == total):
                yield windows.generate(data["audio"][None, window], sample_window)

    motion = torch.cat(list(join_windows(generated(), 16, motion_moda.POSE)), dim=1)[0]
    return {
        "previous motion": difference(torch.stack(seen[1:]), data["segment_prev_motion"][1:, 0]),
        "motion": difference(motion, data["motion"]),
    }


CHECKS("190 frames at once", LOOP_LIMIT)(partial(_long_motion, [190]))
CHECKS("190 frames as a stream", LOOP_LIMIT)(partial(_long_motion, [10] * 19))


@CHECKS("smoothing and fading", EXACT_LIMIT)
def _smooth_and_fade() -> dict[str, float]:
    data = vectors("smooth_fuse_io")
    joined = torch.cat(list(join_windows([data["prev"], data["cur"]], 16)), dim=1)
    return {
        "smoothed": difference(smooth(data["smooth_in"], motion_moda.POSE), data["smooth_out"]),
        "fused": difference(joined[:, :80], data["fused_prev"]),
    }


@CHECKS("normalisation", MODULE_LIMIT)
def _normalisation() -> dict[str, float]:
    """Channels that hardly vary are divided by 1e-5: rounding of their mean counts 10,000 times as much."""
    data, model = vectors("normalisation_mean_std"), small_transformer()
    motion = data["raw_motion"].clone()
    motion[:, 63:67] /= data["rescale_ratio"]
    motion = model.normalize(motion)
    restored = model.denormalize(motion)
    restored[:, 63:67] *= data["rescale_ratio"]
    return {
        "normalised": difference(motion, data["normalised"]),
        "denormalised": difference(restored, data["denormalised"]),
    }


@CHECKS("portrait as previous motion", MODULE_LIMIT)
def _previous_motion() -> dict[str, float]:
    """Relative to the largest number, which is 856 with these weights."""
    data, model = vectors("postprocess_io"), small_transformer()
    points = {name: data[f"src_{name}"].view(1, 21, 3) for name in ("kp", "exp")}
    angles = {name: head_pose_degrees(data[f"src_{name}"]) for name in ("pitch", "yaw", "roll")}
    own, ratio = motion_moda.rescale_to_mean_face(
        KeypointMotion(**points, scale=data["src_scale"], t=data["src_t"], **angles), model
    )
    reference = data["prev_motion"][:, 0]
    return {
        "previous motion": difference(model.normalize(own), reference) / reference.abs().max().item(),
        "ratio": difference(ratio, data["rescale_ratio"]),
    }


def _emphasize_lips(motion: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Lips away from those of a silent face, by at most about five times; a whole sequence, which a stream has not."""
    lips = [3 * point + axis for point in LIP_KEYPOINTS for axis in range(3)]
    away = motion[..., lips] - rest[..., None, lips]
    distance = away.square().sum(-1, keepdim=True)
    weight = (torch.sigmoid(5.0 * distance) - 0.5) / (0.1 * distance.amax(-2, keepdim=True) + 0.05)
    emphasized = motion.clone()
    emphasized[..., lips] = rest[..., None, lips] + away * (1.0 + weight)
    return emphasized


@CHECKS("after sampling", MODULE_LIMIT)
def _after_sampling() -> dict[str, float]:
    data, model = vectors("postprocess_io"), small_transformer()
    lips = _emphasize_lips(data["motion_in"], data["standard_motion"])
    motion = model.denormalize(lips)
    motion[:, 63:67] *= data["rescale_ratio"]
    driving = KeypointMotion.from_vector(motion, torch.zeros(1, 21, 3))
    gaze = data["eye_exp_in"].clone()
    gaze[:, list(motion_moda.GAZE_OFFSETS), 1] += torch.tensor(list(motion_moda.GAZE_OFFSETS.values()))
    return {
        "lips": difference(lips, data["modulate_lip_out"]),
        "expression": difference(driving.exp.flatten(1), data["kp_exp"]),
        "scale": difference(driving.scale, data["kp_scale"][:, 0]),
        "translation": difference(driving.t, data["kp_t"][:, 0]),
        **{name: difference(getattr(driving, name), data[f"kp_{name}"][:, 0]) for name in ("pitch", "yaw", "roll")},
        "gaze": difference(gaze, data["eye_exp_out"]),
    }


@CHECKS("HuBERT, all layers at the frame rate", MODULE_LIMIT)
def _hubert() -> dict[str, float]:
    config = json.loads((FOLDER / "joyvasa" / "hubert_small_config.json").read_text())
    encoder = HubertModel(HubertConfig(**config)).eval()
    theirs = load_file(FOLDER / "joyvasa" / "hubert_small.safetensors")
    convolution = "encoder.pos_conv_embed.conv"
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        theirs[f"{convolution}.parametrizations.weight.{new}"] = theirs.pop(f"{convolution}.{old}")
    encoder.load_state_dict(theirs)
    data = vectors("hubert_small_io")
    return {"features": difference(layer_features(encoder, data["waveform"], 25), data["features_BTlC"])}

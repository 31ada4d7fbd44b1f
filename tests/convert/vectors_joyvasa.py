"""JoyVASA's reference vectors: denoiser, diffusion, encoder, and the windows of complete audio."""

from __future__ import annotations

import json
from functools import cache, partial
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import HubertConfig, HubertModel

from tests.convert.parity import FOLDER, Checks, difference, load
from vasa_hf.convert import joyvasa
from vasa_hf.convert.hubert import normalise_names
from vasa_hf.geometry.keypoints import euler_matrix
from vasa_hf.models.motion_denoiser_joyvasa import JoyVasaMotionDenoiser, joyvasa_scheduler
from vasa_hf.pipelines import motion_joyvasa
from vasa_hf.pipelines.keypoint_motion import HeadControls
from vasa_hf.pipelines.motion_generator import Sampling
from vasa_hf.pipelines.motion_joyvasa import JoyVasaMotionGenerator
from vasa_hf.processors.audio import VasaAudioProcessor, frame_features, pad_by_reflection

CHECKS = Checks()
MODULE_LIMIT, LOOP_LIMIT = 2e-5, 5e-5
# Our name of a positional encoding -> that of the files.
ENCODINGS = {"single_row": "legacy_pe", "per_frame": "fixed_pe"}

vectors = partial(load, "joyvasa")


@cache
def small_state() -> dict[str, Tensor]:
    """The reduced network's weights, by JoyVASA's names."""
    return load_file(FOLDER / "joyvasa" / "dit_talking_head_small.safetensors")


@cache
def small_denoiser(encoding: str = "single_row") -> JoyVasaMotionDenoiser:
    """The reduced network; its motion is neither shifted nor scaled."""
    sizes = joyvasa.read_sizes(small_state(), {})
    model = JoyVasaMotionDenoiser(**sizes, positional_encoding=encoding).eval()
    neutral = {name: value for name, value in model.state_dict().items() if name in joyvasa.STATISTICS}
    model.load_state_dict(joyvasa.rename_tensors(small_state(), model) | neutral)
    return model


@cache
def small_hubert() -> HubertModel:
    """The reduced encoder, whose positional convolution has the older names."""
    config = json.loads((FOLDER / "joyvasa" / "hubert_small_config.json").read_text())
    model = HubertModel(HubertConfig(**config)).eval()
    model.load_state_dict(normalise_names(load_file(FOLDER / "joyvasa" / "hubert_small.safetensors")))
    return model


@CHECKS("denoiser, one step", MODULE_LIMIT)
def _denoiser() -> dict[str, float]:
    differences = {}
    for encoding, file in ENCODINGS.items():
        data, model, seen = vectors(f"denoising_net_small_{file}_io"), small_denoiser(encoding), []
        hooks = [
            layer.register_forward_hook(lambda _, inputs, output, seen=seen: seen.append((inputs[0], output)))
            for layer in model.layers
        ]
        past = {"previous_motion": data["prev_motion"], "previous_audio": data["prev_audio_feat"]}
        sample = model(data["motion"], data["step"] - 1, data["audio_feat"], **past).sample
        for hook in hooks:
            hook.remove()
        differences |= {
            f"{encoding}: layers' input": difference(seen[0][0], data["transformer_in"]),
            f"{encoding}: layer 0": difference(seen[0][1], data["layer0"]),
            f"{encoding}: layer 7": difference(seen[7][1], data["layer7"]),
            f"{encoding}: clean motion": difference(sample, data["out"][:, 5:]),
        }
    return differences


@CHECKS("diffusers' DDPM as its schedule", MODULE_LIMIT)
def _schedule() -> dict[str, float]:
    data, scheduler = vectors("diffusion_schedule_50"), joyvasa_scheduler(50)
    scheduler.set_timesteps(50)
    deviations = torch.stack([scheduler._get_variance(step).sqrt() for step in range(49, 0, -1)]).flip(0)
    return {
        "betas": difference(scheduler.betas, data["betas"][1:]),
        "alphas": difference(scheduler.alphas, data["alphas"][1:]),
        "alpha_bars": difference(scheduler.alphas_cumprod, data["alpha_bars"][1:]),
        "sigmas": difference(deviations, data["sigmas_inflex"][2:]),
    }


def make_generator(model: JoyVasaMotionDenoiser, scheduler, **options) -> JoyVasaMotionGenerator:
    return JoyVasaMotionGenerator(model, scheduler, None, VasaAudioProcessor(), torch.device("cpu"), **options)


def sampled(encoding: str, inputs: list[Tensor], step_noises: Tensor, scale: float) -> tuple[Tensor, list[Tensor]]:
    """One window and what its steps made, with recorded noise instead of the scheduler's own; lambda = scale - 1."""
    noises, seen = iter(step_noises), []

    def look(timestep: Tensor, latents: Tensor, audio: Tensor) -> Tensor:
        seen.append(latents)
        return latents

    with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(noises)):
        sampling = Sampling(guidance_scale={"audio": scale - 1}, on_step=look, num_inference_steps=50)
        generator = make_generator(small_denoiser(encoding), joyvasa_scheduler(50))
        motion = generator.sample_window(*inputs, sampling=sampling)
    assert next(noises, None) is None, "every recorded noise is used once"
    return motion, seen


@CHECKS("sampling, two windows of 50 steps", LOOP_LIMIT)
def _two_windows() -> dict[str, float]:
    differences = {}
    for encoding, file in ENCODINGS.items():
        data, past = vectors(f"sample_two_windows_small_{file}"), []
        for index in range(2):
            audio, noises = data[f"audio_feat_{index}"], data[f"step_noise_window{index}"]
            # Both windows begin with the same noise.
            inputs = [data["init_noise"], audio, *past]
            motion, steps = sampled(encoding, inputs, noises, float(data["cfg_scale"]))
            differences[f"{encoding}: window {index + 1}"] = difference(motion, data[f"motion_window{index}"])
            if index == 0:
                differences[f"{encoding}: after 1 step"] = difference(steps[0], data["x_after_first_step"])
                differences[f"{encoding}: after 10 steps"] = difference(steps[9], data["x_after_ten_steps"])
            past = [motion[:, -5:], audio[:, -5:]]
    return differences


@CHECKS("sampling without guidance", LOOP_LIMIT)
def _unguided() -> dict[str, float]:
    differences = {}
    for encoding, file in ENCODINGS.items():
        data = vectors(f"sample_nocfg_small_{file}")
        motion, _ = sampled(encoding, [data["init_noise"], data["audio_feat_0"]], data["step_noise"], scale=1.0)
        differences[f"{encoding}: motion"] = difference(motion, data["motion"])
    return differences


@CHECKS("encoder", MODULE_LIMIT)
def _encoder() -> dict[str, float]:
    data = vectors("hubert_small_io")
    padded = pad_by_reflection(data["waveform"])
    return {
        "padded sound": difference(padded, data["padded"]),
        "features, 50 Hz": difference(small_hubert()(padded).last_hidden_state, data["hidden_2L"]),
        "features, 25 Hz": difference(
            frame_features(small_hubert(), data["waveform"], 25, padding="reflect"), data["hidden_L"]
        ),
    }


@CHECKS("audio features", MODULE_LIMIT)
def _audio_features() -> dict[str, float]:
    data = vectors("audio_feature_map_small_io")
    pairs = data["encoder_hidden_2L"].unflatten(1, (20, 2)).mean(2)
    return {
        "padded sound": difference(pad_by_reflection(data["waveform"]), data["padded_waveform"]),
        "projected": difference(small_denoiser().project_audio(pairs), data["audio_feat"]),
    }


@CHECKS("windows of complete audio", MODULE_LIMIT)
def _whole_sound() -> dict[str, float]:
    """The network gave recorded numbers there, and does so here; what is around it is compared."""
    differences = {}
    model = JoyVasaMotionDenoiser(audio_dim=8, hidden_size=16, num_layers=1).eval()
    for file, smoothing in (("raw", None), ("ema", motion_joyvasa.SMOOTHING)):
        data = vectors(f"gen_motion_sequence_{file}")
        template = {name.removeprefix("tmpl_"): value for name, value in data.items() if name.startswith("tmpl_")}
        for name, value in joyvasa.statistics({name: value.numpy() for name, value in template.items()}).items():
            getattr(model, name).copy_(value)
        heard, outputs = [], iter(data["network_output"])

        def listen(_, samples: Tensor, frames: int, heard: list = heard, **__) -> Tensor:
            heard.append(samples[0])
            return torch.zeros(1, frames, 8)

        with (
            mock.patch.object(motion_joyvasa, "frame_features", listen),
            mock.patch.object(JoyVasaMotionGenerator, "sample_window", lambda *_, o=outputs, **__: next(o)[None]),
        ):
            generator = make_generator(model, joyvasa_scheduler(), smoothing=smoothing, trim=False)
            pieces = generator.generate([data["waveform"][None]], [], HeadControls(), Sampling())
            motion = torch.cat(list(pieces), 1)[0]
        parts = motion.split([63, 1, 3, 1, 1, 1], dim=-1)
        named = dict(zip(("exp", "scale", "t", "pitch", "yaw", "roll"), parts, strict=True))
        named["exp"] = named["exp"].unflatten(-1, (21, 3))
        named["R"] = euler_matrix(*(named[name][:, 0] for name in ("pitch", "yaw", "roll")))
        differences |= {f"{file}: {name}": difference(value, data[name]) for name, value in named.items()}
        differences[f"{file}: audio of the windows"] = difference(torch.stack(heard), data["audio_windows"])
    return differences

"""What a training costs: parameters, arithmetic and memory a sample, days on given GPUs.

    python -m vasa_hf.training.cost --config paper_face_autoencoder --gpus 4 --teraflops 155 --use 0.3
    python -m vasa_hf.training.cost --config small_face_autoencoder --teraflops 65 --use 0.2 --memory 16   # Colab's T4

The arithmetic is counted by torch while the model runs on tensors without memory; a backward pass is taken as two
forward passes. Sampling and pointwise work are not counted: `--use` must allow for them. The memory is that of the
weights, their gradients, Adam's two moments, averages and a copy in 16 bits (22 bytes a parameter), and of what a
forward pass in 16 bits keeps for its backward pass. The discriminator and the networks of the losses, buffers of
convolutions and the CUDA context are not counted: `--memory` leaves a quarter of the GPU to them.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vasa_hf.models import (
    autoencoder_gaia,
    face_autoencoder_vasa1,
    motion_denoiser_gaia,
    motion_transformer_moda,
    motion_transformer_vasa1,
)
from vasa_hf.models.autoencoder_gaia import GaiaAutoencoder
from vasa_hf.models.face_autoencoder_vasa1 import Vasa1FaceAutoencoder, region_code
from vasa_hf.models.motion_denoiser_gaia import GaiaMotionDenoiser
from vasa_hf.models.motion_transformer_moda import ModaMotionTransformer
from vasa_hf.models.motion_transformer_vasa1 import EMOTIONS, Vasa1MotionTransformer
from vasa_hf.training.options import LoopOptions, configs, parse_options
from vasa_hf.training.recipes.face_autoencoder import FaceAutoencoderOptions
from vasa_hf.training.recipes.gaia_autoencoder import GaiaAutoencoderOptions
from vasa_hf.training.recipes.gaia_motion_denoiser import DenoiserOptions, GaiaDenoiserOptions
from vasa_hf.training.recipes.gaia_text_denoiser import GaiaTextOptions
from vasa_hf.training.recipes.motion_transformer import MotionTransformerOptions
from vasa_hf.training.recipes.motion_transformer_moda import ModaMotionOptions

STATE_BYTES = 22  # of a parameter: weight, gradient, two moments, average, copy in 16 bits
FREE_SHARE = 0.25  # of a GPU's memory that is left to what is not counted


class Cost(NamedTuple):
    """What a training needs.

    Attributes:
        parameters (`int`): Of the trained model.
        flop (`float`): FLOP of a sample, forward and backward.
        sample_bytes (`float`): Memory that a sample takes until its backward pass.
    """

    parameters: int
    flop: float
    sample_bytes: float

    def batch_that_fits(self, memory: float) -> int:
        """Largest batch for a GPU with `memory` GB; 0 if not even the model fits."""
        free = memory * 1e9 * (1 - FREE_SHARE) - self.parameters * STATE_BYTES
        return max(0, int(free // self.sample_bytes))


def face_autoencoder_cost(options: FaceAutoencoderOptions) -> Cost:
    """Cost of a face autoencoder: the frames' motion, a decoded image, up to three more for the losses."""
    config = face_autoencoder_vasa1.PRESETS[options.preset]
    with FakeTensorMode():
        model = Vasa1FaceAutoencoder(**config)
        image = torch.zeros(2, 3, config["image_size"], config["image_size"])
        motion = torch.zeros(2, model.motion_dim)
        encode = _count(lambda count: model(image[:count], motion_only=True), model)
        # Where a refined region is added is known from real numbers alone: their networks are counted by themselves.
        refiners, model.refiners = model.refiners, nn.ModuleDict()
        decode = _count(lambda count: model(image[:count], image[:count], motion[:count], motion[:count]), model)
        code = region_code(torch.zeros(2, model.config.identity_dim), motion, motion)
        for refiner in refiners.values():
            crop = torch.zeros(2, refiner.region.count, 3, *refiner.region.size)

            def refine(count: int, net=refiner, crops=crop) -> object:
                crops = crops[:count].flatten(0, 1)
                return net(crops, net.encode_source(crops), code[:count])

            decode = [total + part for total, part in zip(decode, _count(refine, refiner), strict=True)]
        model.refiners = refiners
    others = bool(options.weight_cross_id or options.weight_contrastive)  # another person drives the source
    decodes = 1 + 2 * bool(options.weight_consist) + others
    encodes = 2 + others + 2 * bool(options.weight_contrastive)
    flop, kept = (
        encodes * of_encode + decodes * of_decode for of_encode, of_decode in zip(encode, decode, strict=True)
    )
    return Cost(_parameters(model), 3 * flop, kept)


def motion_transformer_cost(options: MotionTransformerOptions) -> Cost:
    """Cost of VASA-1's motion generator; a sample is one window with its context."""
    with FakeTensorMode():
        preset = motion_transformer_vasa1.PRESETS[options.preset]
        model = Vasa1MotionTransformer(window=options.window, context=options.context, **preset)
        shapes = {
            "sample": (options.window, model.config.motion_dim),
            "audio": (options.window, model.config.audio_dim),
            "previous_motion": (options.context, model.config.motion_dim),
            "previous_audio": (options.context, model.config.audio_dim),
            "gaze": (2,),
            "head_distance": (1,),
            "emotion": (len(EMOTIONS),),
        }
        return _denoiser_cost(model, shapes)


def moda_cost(options: ModaMotionOptions) -> Cost:
    """Cost of MoDA's motion generator; a sample is one window."""
    with FakeTensorMode():
        preset = motion_transformer_moda.PRESETS[options.preset]
        model = ModaMotionTransformer(window=options.window, fusion=options.fusion, **preset)
        config = model.config
        shapes = {
            "sample": (options.window, config.motion_dim),
            "audio": (options.window, config.audio_layers, config.audio_dim),
            "keypoints": (config.keypoint_dim,),
            "previous_motion": (config.motion_dim,),
        }
        return _denoiser_cost(model, shapes)


def gaia_denoiser_cost(options: DenoiserOptions) -> Cost:
    """Cost of GAIA's motion denoiser; a sample is one window, the longest there is."""
    with FakeTensorMode():
        model = GaiaMotionDenoiser(**motion_denoiser_gaia.PRESETS[options.preset])
        config, window = model.config, getattr(options, "longest", options.window)
        shapes = {
            "sample": (window, config.motion_dim),
            "audio": (window, config.audio_dim),
            "reference": (config.motion_dim,),
            "pose": (window, motion_denoiser_gaia.POSE_DIM),
        }
        return _denoiser_cost(model, shapes)


def gaia_autoencoder_cost(options: GaiaAutoencoderOptions) -> Cost:
    """Cost of GAIA's autoencoder; a sample is a pair of frames."""
    with FakeTensorMode():
        model = GaiaAutoencoder(**autoencoder_gaia.PRESETS[options.preset])
        image = torch.zeros(2, 3, model.config.image_size, model.config.image_size)
        flop, kept = _count(lambda count: model(*[image[:count]] * 3), model)
    return Cost(_parameters(model), 3 * flop, kept)


def _denoiser_cost(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> Cost:
    inputs = {name: torch.zeros(2, *shape) for name, shape in shapes.items()}
    inputs["timestep"] = torch.zeros(2, dtype=torch.long)
    flop, kept = _count(lambda count: model(**{name: value[:count] for name, value in inputs.items()}), model)
    return Cost(_parameters(model), 3 * flop, kept)


_TRAININGS = {
    "face_autoencoder": (FaceAutoencoderOptions, face_autoencoder_cost),
    "motion_transformer": (MotionTransformerOptions, motion_transformer_cost),
    "motion_transformer_moda": (ModaMotionOptions, moda_cost),
    "gaia_autoencoder": (GaiaAutoencoderOptions, gaia_autoencoder_cost),
    "gaia_motion_denoiser": (GaiaDenoiserOptions, gaia_denoiser_cost),
    "gaia_text_denoiser": (GaiaTextOptions, gaia_denoiser_cost),
}


def _count(run: Callable[[int], object], model: nn.Module) -> tuple[float, float]:
    """FLOP of a forward pass of a sample, and bytes that one more sample keeps for the backward pass."""
    with FlopCounterMode(display=False) as counter:
        run(1)
    kept = []
    for batch in (1, 2):  # what both keep, such as weights in 16 bits, is no sample's
        with kept_storages(model) as storages:
            run(batch)
        kept.append(sum(storage.nbytes() for storage in storages.values()))
    return counter.get_total_flops(), kept[1] - kept[0]


@contextlib.contextmanager
def kept_storages(model: nn.Module) -> Iterator[dict[int, torch.UntypedStorage]]:
    """Collect the memory that forward passes in 16 bits keep for a backward pass, without the model's weights."""
    weights = {tensor.untyped_storage()._cdata for tensor in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage  # kept alive, so that no other one gets its number
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16), hooks:
        yield storages


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def days(options: LoopOptions, flop: float, gpus: int, teraflops: float, use: float) -> float:
    """Days that all steps of a training take.

    Args:
        options (`LoopOptions`): Steps and batch.
        flop (`float`): FLOP of a sample.
        gpus (`int`): Number of GPUs.
        teraflops (`float`): TFLOP/s of one by its data sheet.
        use (`float`): Share of that which is reached.
    """
    samples = options.max_steps * options.batch_size * options.gradient_accumulation_steps * gpus
    return samples * flop / (gpus * teraflops * 1e12 * use) / 86_400


def main() -> None:
    """Print what a config of the package costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, choices=sorted(configs()))
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--teraflops", type=float, default=155.0, help="of one GPU in bf16; 155: RTX A6000")
    parser.add_argument("--memory", type=float, help="GB of one GPU: print the largest batch that fits")
    parser.add_argument("--use", type=float, default=0.3, help="share of that which convolutions reach")
    chosen = parser.parse_args()
    options_class, cost = _TRAININGS[chosen.config.split("_", 1)[1]]
    options = parse_options(options_class, ["--config", chosen.config])
    needs = cost(options)
    sizes = f"{needs.parameters / 1e6:.1f}M parameters, {needs.flop / 1e9:.3g} GFLOP"
    print(f"{sizes} and {needs.sample_bytes / 1e6:.0f} MB a sample")
    if chosen.memory:
        batch = needs.batch_that_fits(chosen.memory)
        print(f"{chosen.memory:g} GB hold a batch of {batch}; the config's has {options.batch_size}")
    duration = days(options, needs.flop, chosen.gpus, chosen.teraflops, chosen.use)
    time = f"{duration:.1f} days" if duration >= 1 else f"{24 * duration:.2g} hours"
    print(f"{options.max_steps} steps on {chosen.gpus} GPU(s): {time}")


if __name__ == "__main__":
    main()

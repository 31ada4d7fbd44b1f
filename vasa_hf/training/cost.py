"""What a training costs: parameters, arithmetic a sample, days on given GPUs.

    python -m vasa_hf.training.cost --config paper_face_autoencoder --gpus 4 --teraflops 155 --use 0.3

The arithmetic is counted by torch while the model runs on tensors without memory; a backward pass is taken as two
forward passes. Sampling and pointwise work are not counted: `--use` must allow for them.
"""

import argparse

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vasa_hf.models import face_autoencoder_vasa1, motion_transformer_vasa1
from vasa_hf.models.face_autoencoder_vasa1 import Vasa1FaceAutoencoder, region_code
from vasa_hf.models.motion_transformer_vasa1 import EMOTIONS, Vasa1MotionTransformer
from vasa_hf.training.options import LoopOptions, configs, parse_options
from vasa_hf.training.recipes.face_autoencoder import FaceAutoencoderOptions
from vasa_hf.training.recipes.motion_transformer import MotionTransformerOptions


def face_autoencoder_cost(options: FaceAutoencoderOptions) -> tuple[int, float]:
    """Parameters, and FLOP of a training sample: the frames' motion, a decoded image, three more for the losses."""
    config = face_autoencoder_vasa1.PRESETS[options.preset]
    with FakeTensorMode():
        model = Vasa1FaceAutoencoder(**config).requires_grad_(False)
        image = torch.zeros(1, 3, config["image_size"], config["image_size"])
        motion = torch.zeros(1, model.motion_dim)
        encode = _flop(lambda: model(image, motion_only=True))
        # Where a refined region is added is known from real numbers alone: their networks are counted by themselves.
        refiners, model.refiners = model.refiners, nn.ModuleDict()
        decode = _flop(lambda: model(image, image, motion, motion))
        for refiner in refiners.values():
            crop = torch.zeros(refiner.region.count, 3, *refiner.region.size)
            code = region_code(torch.zeros(1, model.config.identity_dim), motion, motion)
            decode += _flop(lambda net=refiner, crop=crop, code=code: net(crop, net.encode_source(crop), code))
        model.refiners = refiners
    others = bool(options.weight_cross_id or options.weight_contrastive)  # another person drives the source
    decodes = 1 + 2 * bool(options.weight_consist) + others
    encodes = 2 + others + 2 * bool(options.weight_contrastive)
    return _parameters(model), 3 * (encodes * encode + decodes * decode)


def motion_transformer_cost(options: MotionTransformerOptions) -> tuple[int, float]:
    """Parameters, and FLOP of a training sample: one window with its context."""
    with FakeTensorMode():
        preset = motion_transformer_vasa1.PRESETS[options.preset]
        model = Vasa1MotionTransformer(window=options.window, context=options.context, **preset).requires_grad_(False)
        zeros = lambda *shape: torch.zeros(1, *shape)  # noqa: E731
        conditions = {
            "audio": zeros(options.window, model.config.audio_dim),
            "previous_motion": zeros(options.context, model.config.motion_dim),
            "previous_audio": zeros(options.context, model.config.audio_dim),
            "gaze": zeros(2),
            "head_distance": zeros(1),
            "emotion": zeros(len(EMOTIONS)),
        }
        motion = zeros(options.window, model.config.motion_dim)
        forward = _flop(lambda: model(motion, torch.zeros(1, dtype=torch.long), **conditions))
    return _parameters(model), 3 * forward


_TRAININGS = {
    "face_autoencoder": (FaceAutoencoderOptions, face_autoencoder_cost),
    "motion_transformer": (MotionTransformerOptions, motion_transformer_cost),
}


def _flop(run) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


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
    parser.add_argument("--use", type=float, default=0.3, help="share of that which convolutions reach")
    chosen = parser.parse_args()
    options_class, cost = _TRAININGS[chosen.config.split("_", 1)[1]]
    options = parse_options(options_class, ["--config", chosen.config])
    parameters, flop = cost(options)
    print(f"{parameters / 1e6:.1f}M parameters, {flop / 1e9:.3g} GFLOP a sample")
    duration = days(options, flop, chosen.gpus, chosen.teraflops, chosen.use)
    print(f"{options.max_steps} steps on {chosen.gpus} GPU(s): {duration:.2f} days")


if __name__ == "__main__":
    main()

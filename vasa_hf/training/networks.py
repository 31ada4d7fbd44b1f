"""What several recipes do with networks: freeze parts, lay out kernels, load loss networks, train a discriminator."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vasa_hf.hub import resolve
from vasa_hf.models.lpips import FILE_NAME as LPIPS_FILE
from vasa_hf.models.lpips import Lpips
from vasa_hf.models.pretrained_features import pretrained_features
from vasa_hf.training import losses
from vasa_hf.training.loop import Player


def freeze(model: nn.Module, learns: Callable[[str], bool]) -> None:
    """Let only the parameters learn whose name passes."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns(name))


def channels_last(model: nn.Module) -> None:
    """Lay convolution kernels out channels last: about twice as fast on CPUs, and faster with bf16 on GPUs."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)


class PerceptualFeatures(nn.Module):
    """Feature maps of one or more frozen networks, for the perceptual loss.

    Args:
        names (`list[str]`): Converted LPIPS weights (of VGG or AlexNet), or see `pretrained_features`.
    """

    def __init__(self, names: list[str]):
        super().__init__()
        self.networks = nn.ModuleList(
            Lpips.load(name) if _is_lpips(name) else pretrained_features(resolve(name)) for name in names
        )
        self.eval().requires_grad_(False)

    def feature_maps(self, image: Tensor) -> list[Tensor]:
        """Maps of images `(batch, 3, height, width)` in [-1, 1], of all networks one after another."""
        return [
            features
            for network in self.networks
            for features in (
                network.maps(image / 2 + 0.5) if isinstance(network, Lpips) else network.feature_maps(image)
            )
        ]


def _is_lpips(name: str) -> bool:
    return name.endswith(".safetensors") or Path(name, LPIPS_FILE).is_file()


def adversarial_terms(discriminator: nn.Module, batch: dict[str, Tensor], fake: Tensor, real: Tensor) -> Tensor:
    """Adversarial and feature matching losses of decoded images; leaves them in the batch for the discriminator.

    Args:
        discriminator (`torch.nn.Module`): A `MultiScalePatchDiscriminator`.
        batch (`dict`): Gets `fake` and `real`.
        fake (`torch.Tensor` of shape `(batch, 3, height, width)`): Decoded images.
        real (`torch.Tensor` of the same shape): Driving frames.
    """
    scores, fake_features = discriminator(fake)
    _, real_features = discriminator(real)
    batch["fake"], batch["real"] = fake.detach(), real
    return losses.generator_loss(scores) + 10 * losses.feature_matching_loss(real_features, fake_features)


def discriminator_player(learning_rate: float) -> Player:
    """The player of `modules["discriminator"]`."""
    return Player("discriminator", ("discriminator",), _discriminator_loss, learning_rate, (0.5, 0.99))


def _discriminator_loss(modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int):
    """The discriminator's turn on what the generator's turn left in the batch."""
    discriminator = modules["discriminator"]
    loss = losses.discriminator_loss(discriminator(batch["real"])[0], discriminator(batch["fake"])[0])
    return loss, {}

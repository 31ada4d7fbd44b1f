"""Train GAIA's variational autoencoder (§4.2).

    accelerate launch -m vasa_hf.training gaia_autoencoder --data DATA/train --cache CACHE --output RUN

Two frames of one clip: the appearance of the one and the landmark image of the other give the other (Eq. 2).
`--config paper_gaia_autoencoder` has the paper's losses alone: perceptual L1, KL and the discriminator (Eq. 3 and 4).

# Not in the paper: weights of the losses; the discriminator's patches at several scales; portraits and rendered faces;
the losses of image gradients and of the flow at the landmarks, and more weight on mouth and eyes, for small models.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vasa_hf.data.face_pairs import FacePairs
from vasa_hf.geometry.landmark_pictures import draw_landmarks
from vasa_hf.geometry.landmarks import eye_openness
from vasa_hf.hub import resolve
from vasa_hf.models.autoencoder_gaia import MOTION_INPUTS, PRESETS, GaiaAutoencoder
from vasa_hf.models.pretrained_features import pretrained_features
from vasa_hf.training import losses
from vasa_hf.training.face_data import FacePairOptions, augment, open_pairs
from vasa_hf.training.loop import Player, TrainingState
from vasa_hf.training.networks import channels_last
from vasa_hf.training.options import option
from vasa_hf.training.saving import train_and_save
from vasa_hf.training.sheets import save_images

NAME = "autoencoder"


@dataclass
class GaiaAutoencoderOptions(FacePairOptions):
    """Options of this recipe; those of its data are in `FacePairOptions`, those of all recipes in `LoopOptions`."""

    preset: str = option("small", "size of a new model", PRESETS)
    initial: str | None = option(None, "autoencoder folder to start from")
    motion_input: str = option("landmarks", "what E_M sees; frame is the ablation", MOTION_INPUTS)
    source_passthrough: bool = option(True, "presets small and tiny: move the source's pixels as well")
    train_size: int | None = option(None, "train at this image size (default: the model's)")
    weight_decay: float = 0.0  # Adam, as in the paper, whose rate is 4.5e-6
    save_dtype: str = "float16"
    portrait_share: float = 0.15
    rendered_share: float = 0.2
    framing: float = option(1.0, "amount of zoom, shift and roll of both frames alike; 0 keeps every pixel")
    weigh_face: bool = option(True, "more weight on mouth and eyes")
    weight_l1: float = option(1.0, "reconstruction L1")
    weight_perceptual: float = option(0.0, "perceptual loss, needs --perceptual")
    perceptual: str | None = option(None, "face recogniser folder or vision model for the perceptual loss")
    weight_kl: float = option(1e-6, "KL divergence of both latents from a standard normal, summed over their numbers")
    weight_adversarial: float = option(0.0, "adversarial loss")
    adversarial_from: int = option(0, "first step of the adversarial loss")
    weight_pyramid: float = option(2.0, "L1 of gradients at three scales")
    weight_flow: float = option(0.1, "landmark flow (px), with pass-through")


def discriminator_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Negative of L_dis (Eq. 3) for logits of patches, averaged over scales."""
    scores = zip(real, fake, strict=True)
    return sum(F.softplus(-r).mean() + F.softplus(f).mean() for r, f in scores) / len(real)


def generator_loss(fake: list[Tensor]) -> Tensor:
    """-log f(x) for logits of decoded patches. # Not in the paper: instead of log(1 - f(x)), which saturates."""
    return sum(F.softplus(-f).mean() for f in fake) / len(fake)


def landmark_importance(dynamics: Any) -> Tensor:
    """Weight of each landmark in the loss of the flow."""
    importance = torch.ones(len(dynamics.ids))
    importance[dynamics.tensors["rows_lids"]] = 3
    importance[dynamics.tensors["rows_lips"]] = 3
    importance[torch.from_numpy(dynamics.ids >= 468)] = 12  # irises are few and small
    return importance


class AutoencoderLoss:
    """The autoencoder's loss (Eq. 4) on augmented pairs; leaves both frames to the discriminator."""

    def __init__(self, options: GaiaAutoencoderOptions, dynamics: Any, features: Any = None):
        self.options, self.dynamics, self.features = options, dynamics, features
        self.importance = landmark_importance(dynamics)

    def inputs(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Augmented sample, and what the model takes: source, its landmark image, the driving image."""
        size = self.options.train_size
        with torch.autocast(batch["source"].device.type, enabled=False):
            sample = augment(batch, self.dynamics, size, self.options.framing)
            images = [draw_landmarks(sample[f"{name}_landmarks"], size) for name in ("source", "driving")]
        if self.options.motion_input == "frame":
            images[1] = sample["driving"]
        return sample, [sample["source"], *images]

    def __call__(
        self, modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch."""
        options, (sample, inputs) = self.options, self.inputs(batch)
        driving, source = sample["driving"], sample["source"]
        weight = sample["weight"] if options.weigh_face else sample["seen"]
        output = modules[NAME](*inputs, sample_posterior=True)
        prediction = output.sample.float()
        kl = output.motion.kl() + (output.appearance.kl() if options.motion_input == "landmarks" else 0.0)
        terms = {"l1": losses.reconstruction_loss(prediction, driving, weight), "kl": kl.float().mean()}
        if options.weight_pyramid:
            terms["pyramid"] = losses.pyramid_loss(prediction, driving, weight)
        if options.weight_flow and output.flow is not None:
            points = [sample[f"{name}_landmarks"] for name in ("driving", "source")]
            seen = self.importance.to(source.device).repeat(len(source), 1)
            shut = eye_openness(torch.stack(points)).amin((0, 2)) < 0.12  # shut lids hide irises
            seen[:, torch.from_numpy(self.dynamics.ids >= 468).to(seen.device)] *= ~shut[:, None]
            terms["flow"] = losses.landmark_flow_loss(output.flow, *points, seen)
        if options.weight_perceptual:
            terms["perceptual"] = losses.perceptual_loss(self.features.feature_maps, prediction, driving)
        if options.weight_adversarial and step >= options.adversarial_from:
            terms["adversarial"] = generator_loss(modules["discriminator"](prediction)[0])
        batch["fake"], batch["real"] = prediction.detach(), driving
        total = sum(getattr(options, f"weight_{name}") * value for name, value in terms.items())
        with torch.no_grad():
            for name, image in (("psnr", prediction), ("psnr_copy", source)):
                error = (image - driving).square().mean((1, 2, 3)).clamp_min(1e-8) / 4
                real = error[~(batch["is_portrait"] | batch["is_rendered"])]
                if len(real):
                    terms[name] = -10 * real.log10().mean()
        return total, terms


def discriminator_turn(modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict]:
    """The discriminator's turn on what the autoencoder's turn left in the batch."""
    discriminator = modules["discriminator"]
    return discriminator_loss(discriminator(batch["real"])[0], discriminator(batch["fake"])[0]), {}


def sample_sheet(dataset: FacePairs, loss: AutoencoderLoss, rows: int = 6) -> Any:
    """Sheets: source | driving landmarks | driving | decoded | with the landmarks of the row below."""

    @torch.no_grad()
    def write(modules: dict[str, nn.Module], step: int, folder: Path) -> None:
        model = modules[NAME]
        samples = [dataset[10**6 + index] for index in range(rows)]
        batch = {key: torch.stack([s[key] for s in samples]).to(model.device) for key in samples[0]}
        torch.manual_seed(0)
        sample, inputs = loss.inputs(batch)
        own = model(*inputs).sample.float()
        other = model(*inputs[:2], inputs[2].roll(-1, 0)).sample.float()
        sheet = torch.cat([sample["source"], inputs[2], sample["driving"], own, other], 3)
        save_images(torch.cat(list(sheet), 1), folder / f"sheet-{step:07d}.png")

    return write


def make_model(options: GaiaAutoencoderOptions) -> GaiaAutoencoder:
    """The model that the options name."""
    if options.initial:
        return GaiaAutoencoder.from_pretrained(resolve(options.initial), torch_dtype=torch.float32)
    config = {**PRESETS[options.preset], "motion_input": options.motion_input}
    if not options.source_passthrough or options.motion_input == "frame":
        config["source_passthrough"] = False
    return GaiaAutoencoder(**config)


def run(options: GaiaAutoencoderOptions) -> TrainingState:
    """Train, and save `autoencoder/` with averaged weights in the output."""
    if options.weight_perceptual and not options.perceptual:
        raise ValueError("`perceptual` must name a face recogniser folder when `weight_perceptual` is not 0.")
    torch.manual_seed(options.seed)
    model, dataset = make_model(options), open_pairs(options)
    channels_last(model)
    final_size = model.config.image_size
    options = dataclasses.replace(
        options, train_size=options.train_size or final_size, motion_input=model.config.motion_input
    )
    model.register_to_config(image_size=options.train_size)
    modules: dict[str, nn.Module] = {NAME: model}
    if options.perceptual:
        modules["features"] = pretrained_features(resolve(options.perceptual))
    loss = AutoencoderLoss(options, dataset.dynamics, modules.get("features"))
    adam = {"learning_rate": options.learning_rate, "weight_decay": options.weight_decay}
    players = [Player(NAME, (NAME,), loss, **adam)]
    if options.weight_adversarial:
        modules["discriminator"] = losses.MultiScalePatchDiscriminator(32)
        players.append(Player("discriminator", ("discriminator",), discriminator_turn, betas=(0.5, 0.99), **adam))

    def components() -> dict[str, Any]:
        model.register_to_config(image_size=final_size)
        return {NAME: model}

    on_sample = sample_sheet(dataset, loss)
    return train_and_save(options, modules, players, dataset, (NAME,), components, on_sample=on_sample)

"""Train the networks that repaint mouth and eyes of decoded faces (`layers/region_refiner.py`).

    accelerate launch -m vasa_hf.training region_refiners --pipeline vasa-small --data DATA --output RUN

The face autoencoder stays as it is: it decodes pairs of frames once, and crops of mouth and eyes are kept in the cache
(decoded, of the source, true). The refiners learn from these by L1 weighted to the inner lips and the eye openings, by
perceptual features and by a discriminator that sees the source's crop too. OUTPUT/pipeline is a whole pipeline.

# Not in the paper: all of it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from vasa_hf.data.face_pairs import FacePairs
from vasa_hf.data.landmark_dynamics import PARTS
from vasa_hf.geometry.landmarks import eye_openness, rows
from vasa_hf.hub import resolve
from vasa_hf.layers.region_refiner import REGIONS, FaceRegion, RegionRefiner, cut_region, region_transform
from vasa_hf.metrics.sharpness import laplacian
from vasa_hf.models.face_autoencoder_vasa1 import POSE_DIM, SMALL_CONFIG, Vasa1FaceAutoencoder, region_code
from vasa_hf.models.pretrained_features import pretrained_features
from vasa_hf.training import losses
from vasa_hf.training.face_data import FacePairOptions, augment, blob, ellipse, mouth_box
from vasa_hf.training.loop import Player, TrainingState
from vasa_hf.training.networks import channels_last
from vasa_hf.training.options import option
from vasa_hf.training.saving import train_and_save
from vasa_hf.training.sheets import save_images

SEAM = 6.0  # weight of the line between closed lips
INNER = 8.0  # weight from which on a pixel lies between the lips or the lids
EYES = (((33, 133), (159, 145)), ((362, 263), (386, 374)))  # corners from left to right, upper and lower lid
GAZE_SHIFT = (0.06, 0.03)  # deviation of the moved irises, in eye widths; 0.1 is a quarter of a radian
HELD_BACK = 0.04  # share of the crops that is judged by and not learnt from


@dataclass
class RegionRefinerOptions(FacePairOptions):
    """Options of this recipe; those of its data are in `FacePairOptions`, those of all recipes in `LoopOptions`."""

    pipeline: str = option("vasa-small", "pipeline whose face autoencoder decodes; OUTPUT/pipeline gets the refiners")
    data: list[str] = option(["data/train"], "folders with clips and labels, and portraits if there are any; or shards")
    cache: str = option("cache", "folder for decoded frames and crops")
    crops: str | None = option(None, "crops.safetensors of an earlier run, instead of decoding --data")
    num_crops: int = option(12_000, "pairs of frames to decode")
    initial: str | None = option(None, "face autoencoder folder whose refiners to continue from")
    rendered_share: float = 0.15
    portrait_share: float = 0.2
    opening_share: float = option(0.3, "share of the portraits with the mouth closed by a warp as source of their pair")
    closing_share: float = option(0.3, "share of the rest, and of the clips, with an open mouth that closes")
    label_share: float = option(0.5, "share of the pairs whose motion comes from the labels, not from the encoders")
    gaze_share: float = option(0.6, "share of the recorded frames whose irises are moved by a known amount")
    batch_size: int = 16
    learning_rate: float = 2e-4
    save_dtype: str = "float16"
    discriminator_learning_rate: float = option(5e-4, "peak learning rate of the discriminators")
    adversarial_from: int = option(500, "first step of the adversarial loss")
    weight_adversarial: float = option(0.2, "hinge loss of the discriminator")
    weight_matching: float = option(2.0, "feature matching with the discriminator")
    weight_perceptual: float = option(0.0, "perceptual loss; it costs most of a step, and brought little here")
    perceptual: str = option("vasa-small/face_recognizer", "network of the perceptual loss")
    real_only: bool = option(
        False, "draw photographed driving frames and closing mouths alone; the others teach irises, not teeth"
    )
    regions: list[str] = option(["mouth", "eyes"], "which refiners learn", REGIONS)


class RegionCrops(Dataset):
    """Crops of decoded pairs; sample `i` is a pure function of the seed and `i`.

    Args:
        tensors (`dict[str, torch.Tensor]`): Of `decode_crops`.
        seed (`int`): Seed of the draws.
        real_only (`bool`): Draw recorded frames, and mouths that close, alone.
    """

    def __init__(self, tensors: dict[str, Tensor], seed: int = 0, real_only: bool = False):
        self.tensors, self.seed = tensors, seed
        self.learnt = int(len(tensors["motion"]) * (1 - HELD_BACK))
        rows = torch.arange(self.learnt)
        kept = tensors["is_real"] | tensors["is_closing"]
        self.rows = rows[kept[: self.learnt]] if real_only else rows

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Draw sample `index`."""
        row = self.rows[int(np.random.default_rng([self.seed, index]).integers(len(self.rows)))]
        return {name: values[row] for name, values in self.tensors.items()}

    def held_back(self, count: int | None = None) -> dict[str, Tensor]:
        """A batch of the samples that are never drawn."""
        stop = None if count is None else self.learnt + count
        return {name: values[self.learnt : stop] for name, values in self.tensors.items()}


def region_weight(points: Tensor, region: str, size: int) -> Tensor:
    """Importance of pixels of whole images, `(batch, 1, size, size)`.

    At least `INNER` between lips or lids, and `SEAM` where closed lips meet.

    Args:
        points (`torch.Tensor` of shape `(batch, 162, 2)`): Landmarks, fractions of the crop.
        region (`str`): mouth or eyes.
        size (`int`): Side of the images.
    """
    if region == "mouth":
        center, width, gap = mouth_box(points)
        weight = 1 + 3 * blob(size, center, width * 0.5)
        is_open = (gap > 0.008)[:, None, None, None]
        inner, seam = (ellipse(size, center, width * 0.45, half) for half in (gap * 0.5, 0.08 * width))
        return torch.where(is_open, weight + INNER * inner, weight.clamp_min(SEAM * seam))
    weight = 1.0
    for corners, lids in EYES:
        ends, rims = points[:, rows(*corners)], points[:, rows(*lids)]
        width, gap = (ends[:, 0] - ends[:, 1]).norm(dim=1), (rims[:, 0] - rims[:, 1]).norm(dim=1)
        center = rims.mean(1)
        weight = weight + 2 * blob(size, center, width * 0.5)
        weight = (
            weight + INNER * ellipse(size, center, width * 0.5, gap * 0.5) * (gap > 0.1 * width)[:, None, None, None]
        )
    return weight


def move_irises(image: Tensor, points: Tensor, shift: Tensor) -> Tensor:
    """Move the irises of faces by known amounts; lids and corners stay.

    Recorded eyes look into the camera, and landmarks read the little they move with as much noise: a decoder that
    learns from them moves irises half as far as it is asked to.

    Args:
        image (`torch.Tensor` of shape `(batch, 3, size, size)`): Faces.
        points (`torch.Tensor` of shape `(batch, 162, 2)`): Landmarks, fractions of the crop.
        shift (`torch.Tensor` of shape `(batch, 2)`): To the right and down, in eye widths.

    Returns:
        `torch.Tensor` of the shape of `image`.
    """
    size = image.shape[-1]
    y, x = torch.meshgrid(*[(torch.arange(size, device=image.device) + 0.5) / size] * 2, indexing="ij")
    place = torch.stack([x, y], -1).expand(len(image), -1, -1, -1)  # [B, size, size, 2]
    grid = place
    for corners, lids in EYES:
        ends, rims = points[:, rows(*corners)], points[:, rows(*lids)]
        along = ends[:, 1] - ends[:, 0]
        across = torch.stack([-along[:, 1], along[:, 0]], 1)
        square = along.square().sum(1)
        gap = ((rims[:, 1] - rims[:, 0]) * across).sum(1) / square  # of an eye width
        center = torch.stack([ends.mean(1), rims.mean(1)]).mean(0)
        offset = place - center[:, None, None]
        u = (offset @ along[:, None, :, None])[..., 0] * 2 / square[:, None, None]
        v = (offset @ across[:, None, :, None])[..., 0] * 2 / (square * gap.clamp_min(0.02))[:, None, None]
        inside = 1 - ((u.abs() - 0.4) / 0.6).clamp(0, 1).square()
        sideways = inside * (1 - ((v.abs() - 0.7) / 0.5).clamp(0, 1).square())
        upwards = inside * (1 - v.square()).clamp_min(0)
        grid = grid - (sideways * shift[:, 0, None, None])[..., None] * along[:, None, None]
        grid = grid - (upwards * shift[:, 1, None, None])[..., None] * across[:, None, None]
    return F.grid_sample(image, grid * 2 - 1, "bicubic", "border", False).clamp(-1, 1)


@torch.no_grad()
def decode_crops(
    model: Vasa1FaceAutoencoder, datasets: list[FacePairs], options: RegionRefinerOptions, batch_size: int = 8
) -> dict[str, Tensor]:
    """Decode pairs and cut out the crops of each region.

    Args:
        model (`Vasa1FaceAutoencoder`): Without refiners.
        datasets (`list[FacePairs]`): Drawn from in turn.
        options (`RegionRefinerOptions`): Counts and shares.
        batch_size (`int`): Pairs decoded together.

    Returns:
        `dict[str, torch.Tensor]`: `identity`, `source_motion`, `motion`, `is_real` (photographed driving frames, not
        warped or rendered ones), `is_closing` (of a mouth that closes), and for each region `<region>_decoded`,
        `_source` and `_true` uint8 `(pairs, crops, 3, h, w)` and `_weight` uint8 `(pairs, crops, 1, h, w)`.
    """
    size, parts = model.config.image_size, []
    for first in range(0, options.num_crops, batch_size):
        dataset = datasets[(first // batch_size) % len(datasets)]
        samples = [dataset[first + i] for i in range(batch_size)]
        batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
        torch.manual_seed(options.seed * 1_000_003 + first)
        sample = augment(batch, dataset.dynamics, size, framing=0.0)
        source, driving = sample["source"], sample["driving"]
        is_real = ~(batch["is_portrait"] | batch["is_rendered"]) | batch["is_opening"]
        with torch.autocast("cpu", torch.bfloat16):
            if torch.rand(()) < options.label_share:
                motions = [sample["source_motion"], sample["driving_motion"]]
            else:
                motions = [model.encode_motion(image).float() for image in (source, driving)]
        openness = eye_openness(sample["driving_landmarks"]).mean(1)
        moves = is_real & (openness > 0.12) & (torch.rand(batch_size) < options.gaze_share)
        shift = torch.randn(batch_size, 2) * torch.tensor(GAZE_SHIFT)
        limit = torch.stack([torch.full_like(openness, 0.14), 0.25 * openness], 1)
        shift = torch.minimum(torch.maximum(shift, -limit), limit) * moves[:, None]
        driving = torch.where(
            moves[:, None, None, None], move_irises(driving, sample["driving_landmarks"], shift), driving
        )
        gaze = (shift[:, None] / dataset.dynamics.tensors["iris_std"]).flatten(1)
        motions[1] = torch.cat([motions[1][:, : -PARTS["gaze"]], motions[1][:, -PARTS["gaze"] :] + gaze], 1)
        with torch.autocast("cpu", torch.bfloat16):
            appearance = model.encode_appearance(source, motions[0])
            decoded = model.decode(appearance, motions[1])
        part = {
            "identity": appearance.identity.float(),
            "source_motion": motions[0],
            "motion": motions[1],
            "is_real": is_real,
            "is_closing": batch["is_closing"],
        }
        for name in options.regions:
            region = REGIONS[name]
            transforms = [region_transform(motion[:, :POSE_DIM], region) for motion in motions]
            weight = region_weight(sample["driving_landmarks"], name, size) * sample["seen"]
            if name == "mouth":  # rendered teeth are not what teeth look like
                weight = weight * ~batch["is_rendered"][:, None, None, None]
            images = {"source": (source, 0), "decoded": (decoded.float(), 1), "true": (driving, 1)}
            for key, (image, which) in images.items():
                # The true crop keeps more of its detail, which pasting back takes off again.
                crop = cut_region(image, transforms[which], region.size, "bicubic" if key == "true" else "bilinear")
                part[f"{name}_{key}"] = _bytes(crop * 127.5 + 127.5, region, batch_size)
            part[f"{name}_weight"] = _bytes(cut_region(weight, transforms[1], region.size) * 10, region, batch_size)
        parts.append(part)
        if (first // batch_size) % 100 == 99:
            print(f"decoded {first + batch_size} pairs", flush=True)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _bytes(crops: Tensor, region: FaceRegion, batch: int) -> Tensor:
    return crops.round().clamp(0, 255).byte().unflatten(0, (batch, region.count))


def unpack(batch: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decoded, source and true crops in [-1, 1] and the weights, each with the crops of a face one after another."""
    images = [batch[f"{name}_{key}"].flatten(0, 1).float() / 127.5 - 1 for key in ("decoded", "source", "true")]
    return *images, batch[f"{name}_weight"].flatten(0, 1).float() / 10


def refine(refiner: nn.Module, batch: dict[str, Tensor], decoded: Tensor, source: Tensor) -> Tensor:
    """Refined crops `(batch * count, 3, height, width)`."""
    code = region_code(batch["identity"], batch["source_motion"], batch["motion"])
    return decoded + refiner(decoded, source, code)


def discriminator_input(image: Tensor, source: Tensor) -> Tensor:
    """What the discriminator sees, `(batch, 9, height, width)`: a crop, its fine detail enlarged, the source's crop."""
    return torch.cat([image, 4 * (image - F.avg_pool2d(image, 5, 1, 2, count_include_pad=False)), source], 1)


class TrainableRefiner(nn.Module):
    """A refiner whose one forward pass encodes the source too, as wrappers of several processes want it."""

    def __init__(self, refiner: RegionRefiner):
        super().__init__()
        self.refiner = refiner

    def forward(self, decoded: Tensor, source: Tensor, code: Tensor) -> Tensor:
        """Change of colour, see `RegionRefiner.forward`."""
        return self.refiner(decoded, self.refiner.encode_source(source), code)


def refiner_loss(options: RegionRefinerOptions, name: str, features: Any = None):
    """Loss of one region's refiner."""

    def loss(modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        decoded, source, true, weight = unpack(batch, name)
        refined = refine(modules[name], batch, decoded, source)
        terms = {
            "l1": losses.reconstruction_loss(refined, true, weight),
            "pyramid": 2 * losses.pyramid_loss(refined, true, weight, levels=2),
        }
        real = batch["is_real"].repeat_interleave(REGIONS[name].count)
        if real.any():
            if features is not None:
                perceptual = losses.perceptual_loss(features.feature_maps, refined[real], true[real])
                terms["perceptual"] = options.weight_perceptual * perceptual
            if step >= options.adversarial_from and options.weight_adversarial:
                discriminator = modules[f"{name}_discriminator"]
                seen = {key: discriminator_input(x, source)[real] for key, x in (("fake", refined), ("real", true))}
                fake, fake_features = discriminator(seen["fake"])
                with torch.no_grad():
                    _, real_features = discriminator(seen["real"])
                terms["adversarial"] = options.weight_adversarial * losses.generator_loss(fake, weight[real])
                matching = losses.feature_matching_loss(real_features, fake_features)
                terms["matching"] = options.weight_matching * matching
                batch[f"{name}_place"] = weight[real]
                batch |= {f"{name}_{key}": x.detach() for key, x in seen.items()}
        return sum(terms.values()), {f"{name}_{key}": value.detach() for key, value in terms.items()}

    return loss


def discriminator_loss(name: str):
    """The discriminator's turn on what the refiner's turn left in the batch."""

    def loss(modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        discriminator = modules[f"{name}_discriminator"]
        if f"{name}_real" not in batch:  # processes that average gradients must all take part
            return 0.0 * sum(parameter.sum() for parameter in discriminator.parameters()), {}
        scores = [discriminator(batch[f"{name}_{key}"])[0] for key in ("real", "fake")]
        return losses.discriminator_loss(*scores, batch[f"{name}_place"]), {}

    return loss


@torch.no_grad()
def measure(refiner: nn.Module, batch: dict[str, Tensor], name: str) -> dict[str, float]:
    """L1 and sharpness (mean absolute Laplacian over the true one) between lips or lids, decoded and refined."""
    decoded, source, true, weight = unpack(batch, name)
    inside = (weight >= INNER).float()
    refined = refine(refiner, batch, decoded, source)
    out = {}
    for key, image in (("decoded", decoded), ("refined", refined)):
        out[f"l1_{key}"] = losses.reconstruction_loss(image, true, inside).item()
        sharp = [(laplacian(x).abs() * inside[:, 0, 1:-1, 1:-1]).sum().item() for x in (image, true)]
        out[f"sharpness_{key}"] = sharp[0] / max(sharp[1], 1e-6)
    return out


def sample_sheet(dataset: RegionCrops, names: list[str], rows: int = 24):
    """Contact sheets of held-back crops: source | decoded | refined | true; figures are printed."""

    def write(modules: dict[str, nn.Module], step: int, folder: Path) -> None:
        for name in names:
            batch = dataset.held_back(None)
            print(step, name, {k: round(v, 4) for k, v in measure(modules[name], batch, name).items()}, flush=True)
            batch = {key: value[:rows] for key, value in batch.items()}
            decoded, source, true, _ = unpack(batch, name)
            strips = torch.cat([source, decoded, refine(modules[name], batch, decoded, source), true], 3)
            columns = torch.cat([torch.cat(list(part), 1) for part in strips.chunk(2)], 2)
            save_images(columns, folder / f"{name}-{step:07d}.png")

    return write


def run(options: RegionRefinerOptions) -> TrainingState:
    """Train the refiners; save `face_autoencoder/` with them, and `pipeline/`."""
    if not options.regions:
        raise ValueError(f"`regions` must name some of {', '.join(REGIONS)}, got none.")
    torch.manual_seed(options.seed)
    start = Path(resolve(options.pipeline))
    with PartialState(cpu=options.cpu).main_process_first():
        dataset = RegionCrops(prepare_crops(options, start), options.seed, options.real_only)
    folder = resolve(options.initial) if options.initial else start / "face_autoencoder"
    model = Vasa1FaceAutoencoder.from_pretrained(folder, torch_dtype=torch.float32)
    if new := set(options.regions) - set(model.refiners):
        weights, config = model.state_dict(), dict(model.config)
        widths = {name: SMALL_CONFIG["region_refiners"][name] for name in new} | (config["region_refiners"] or {})
        model = Vasa1FaceAutoencoder.from_config(config, region_refiners=widths)
        model.load_state_dict(weights, strict=False)  # the new refiners begin with random weights
    channels_last(model)
    features = pretrained_features(resolve(options.perceptual)) if options.weight_perceptual else None
    modules: dict[str, nn.Module] = {} if features is None else {"features": features}
    players = []
    for name in options.regions:
        modules[name] = TrainableRefiner(model.refiners[name])
        betas = (0.5, 0.99)  # both players: with more momentum they chase each other
        loss = refiner_loss(options, name, features)
        players.append(Player(name, (name,), loss, options.learning_rate, betas))
        if options.weight_adversarial:
            critic = losses.MultiScalePatchDiscriminator(32, in_channels=9)
            modules[f"{name}_discriminator"] = critic
            channels_last(critic)
            turn = discriminator_loss(name)
            speed = options.discriminator_learning_rate
            players.append(Player(f"{name}_discriminator", (f"{name}_discriminator",), turn, speed, betas))
    components = {"face_autoencoder": model}
    sheet = sample_sheet(dataset, options.regions)
    learnt = tuple(options.regions)
    return train_and_save(options, modules, players, dataset, learnt, lambda: components, options.pipeline, sheet)


def prepare_crops(options: RegionRefinerOptions, pipeline: Path) -> dict[str, Tensor]:
    """Crops of an earlier run, or decoded now and kept in the output folder."""
    kept = Path(options.crops) if options.crops else Path(options.output) / "crops.safetensors"
    if not kept.exists():
        datasets = [
            FacePairs(
                folder,
                options.cache,
                options.seed,
                options.portrait_share if (Path(folder) / "portraits.npz").exists() else 0.0,
                dynamics=pipeline / "landmark_dynamics.safetensors",
                rendered=options.rendered if number == 0 else None,
                rendered_share=options.rendered_share * len(options.data),
                opening_share=options.opening_share,
                closing_share=options.closing_share,
            )
            for number, folder in enumerate(options.data)
        ]
        model = Vasa1FaceAutoencoder.from_pretrained(pipeline / "face_autoencoder", torch_dtype=torch.float32).eval()
        model.refiners.clear()  # what they learn to repaint is what there is without them
        channels_last(model)
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file(decode_crops(model, datasets, options), kept)
    return load_file(kept)

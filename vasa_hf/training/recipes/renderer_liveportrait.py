"""Train LivePortrait's renderer (MoDA's disentangled motion-appearance space, paper §3.2.1) from labelled faces.

    accelerate launch -m vasa_hf.training renderer_liveportrait --data DATA/train --cache CACHE --output RUN
    ... --stage motion --motion-from vasa-small    # M from labels
    ... --stage renderer     # F, W and G, driven by labelled keypoints: learns motion in minutes
    ... --stage joint        # everything: keypoints come from M
    ... --stage stitching    # the three small networks: stitching, eyes and lips

# Not in the paper, nor in LivePortrait's: labels anchor the keypoints (`data/keypoint_labels.py`), stages, and losses
without pretrained networks. LivePortrait learns keypoints from 69M frames with landmark guidance, VGG and GAN losses.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from vasa_hf.data.face_pairs import FacePairs
from vasa_hf.data.keypoint_labels import keypoints_from_labels, keypoints_from_motion
from vasa_hf.data.landmark_dynamics import PARTS, LandmarkDynamics
from vasa_hf.geometry.keypoints import (
    DEGREES_PER_BIN,
    EYE_KEYPOINTS,
    LIP_KEYPOINTS,
    POSE_BINS,
    KeypointMotion,
    transform_keypoints,
)
from vasa_hf.geometry.landmarks import eye_openness, rows
from vasa_hf.hub import resolve
from vasa_hf.layers.pyramid import PointDetector
from vasa_hf.models.face_autoencoder_vasa1 import Vasa1FaceAutoencoder
from vasa_hf.models.pretrained_features import pretrained_features
from vasa_hf.models.renderer_liveportrait import PRESETS, LivePortraitRenderer
from vasa_hf.motion import POSE_DIM
from vasa_hf.training import losses
from vasa_hf.training.face_data import FacePairOptions, augment, open_pairs
from vasa_hf.training.loop import Player, TrainingState
from vasa_hf.training.networks import adversarial_terms, channels_last, discriminator_player, freeze
from vasa_hf.training.options import option
from vasa_hf.training.saving import train_and_save
from vasa_hf.training.sheets import save_images

STAGES = {
    "motion": ("motion_extractor",),
    "renderer": ("appearance_feature_extractor", "warping_module", "spade_generator"),
    "joint": ("motion_extractor", "appearance_feature_extractor", "warping_module", "spade_generator"),
    "stitching": ("stitching", "retargeting_lip", "retargeting_eye"),
}


@dataclass
class RendererOptions(FacePairOptions):
    """Options of this recipe; those of its data are in `FacePairOptions`, those of all recipes in `LoopOptions`."""

    stage: str = option("renderer", "what learns", STAGES)
    preset: str = option("small", "size of a new model", PRESETS)
    initial: str | None = option(None, "renderer folder to start from")
    learning_rate: float = 4e-4
    train_size: int = option(256, "side of the images while training")
    save_dtype: str = "float16"
    label_share: float = option(0.3, "stage joint: share of the samples whose keypoints still come from the labels")
    motion_from: str | None = option(None, "stage motion: pipeline whose dynamics encoder M of points starts from")
    solve_samples: int = option(4000, "stage motion: pairs of frames that M's heads are first solved for; 0 for none")
    start_as_copy: bool = option(False, "begin as a network that copies its source; goes with the small preset")
    hold_norms: bool = option(False, "F's and W's 2D norms keep their statistics, as --start-as-copy begins with")
    weight_motion: float = option(1.0, "stage joint: keypoints of M against labels")
    weight_l1: float = option(1.0, "reconstruction L1")
    weight_pyramid: float = option(2.0, "L1 of gradients at three scales")
    weight_flow: float = option(0.1, "landmark flow (px)")
    weight_perceptual: float = option(0.0, "perceptual loss, needs --perceptual")
    perceptual: str | None = option(None, "face recogniser folder, or a vision model of the Hub")
    weight_adversarial: float = option(0.0, "adversarial and feature matching losses")
    weight_stitching: float = option(1.0, "stage stitching: how little stitching may change the keypoints")


def hold_norms(model: LivePortraitRenderer) -> None:
    """Let the norms that appearance passes through keep their statistics: those of few images stain colours."""
    extractor, warping, _ = (model.get_submodule(name) for name in STAGES["renderer"])
    for block in (extractor.first, *extractor.down_blocks, warping.third):
        block.norm.eval()


@torch.no_grad()
def start_as_copy(model: LivePortraitRenderer, images: Tensor) -> None:
    """Let F, W and G begin as a network that gives its source back, as sharp as warped features can be.

    Convolutions begin as orthogonal 1 x 1 ones, norms lift what follows above the bend of their ReLU, G's blocks begin
    as their skips, and G's last layer is solved for the images. # Not in the paper: with thousands of samples in
    place of millions, a decoder from random weights stays a blur.

    Args:
        model (`LivePortraitRenderer`): New, with `unshuffle` and without doublings in G.
        images (`torch.Tensor` of shape `(batch, 3, side, side)`): RGB in [0, 1].
    """

    def orthogonal(conv: nn.Module) -> None:
        conv.weight.mul_(0.1)
        middle = conv.weight.shape[-1] // 2
        conv.weight[:, :, middle, middle] = nn.init.orthogonal_(torch.empty(conv.weight.shape[:2]))
        nn.init.zeros_(conv.bias)

    extractor, warping, generator = (model.get_submodule(name) for name in STAGES["renderer"])
    lifted = [extractor.first, *extractor.down_blocks, warping.third]
    for block in lifted:
        orthogonal(block.conv)
        nn.init.constant_(block.norm.bias, 2.0)
    for conv in (extractor.second, warping.fourth, generator.fc):
        orthogonal(conv)
    for block, _ in generator.blocks:
        nn.init.zeros_(block.conv_1.weight)
        nn.init.zeros_(block.conv_1.bias)
    nn.init.zeros_(warping.dense_motion_network.occlusion.weight)
    nn.init.constant_(warping.dense_motion_network.occlusion.bias, 3.0)

    model.train()
    still = torch.zeros(len(images), 21, 3)
    norms = [block.norm for block in lifted]
    for norm in norms:
        norm.momentum = 1.0  # the statistics of these images
    features = model.warp(model.encode_appearance(images), still, still)[0]
    for norm in norms:
        norm.momentum = 0.1
    hold_norms(model)
    hidden = generator.fc(features)
    generator.fc.bias += 2.0 * hidden.std((0, 2, 3)) - hidden.mean((0, 2, 3))
    hidden = F.leaky_relu(generator.fc(features), 0.2)
    last = generator.conv_img if model.config.upscale == 1 else generator.conv_img[0]
    wanted = torch.logit(F.pixel_unshuffle(images, model.config.upscale), 0.02)
    inputs = F.unfold(hidden, 3, padding=1).mT.flatten(0, 1)
    inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1).double()
    gram = inputs.T @ inputs
    gram.diagonal().add_(1e-2 * gram.diagonal().mean())
    solution = torch.linalg.solve(gram, inputs.T @ wanted.permute(0, 2, 3, 1).flatten(0, 2).double()).float().T
    last.weight.copy_(solution[:, :-1].unflatten(1, (-1, 3, 3)))
    last.bias.copy_(solution[:, -1])


def start_from_dynamics_encoder(detector: PointDetector, pipeline: str) -> None:
    """Let M find and look at the points that VASA-1's dynamics encoder does; what it makes of them stays as it is."""
    model = Vasa1FaceAutoencoder.from_pretrained(
        resolve(pipeline), subfolder="face_autoencoder", torch_dtype=torch.float32
    )
    weights = model.dynamics_encoder.state_dict()
    detector.encoder.load_state_dict({name: weights[name] for name in detector.encoder.state_dict()})


class MotionRegressor(nn.Module):
    """M while it learns: one linear layer in units of the labels' deviations stands for all heads; `fold` makes them.

    # Not in the paper: M's heads speak of thousandths (expressions) and of bins (angles): no step size fits both.

    Args:
        detector (`torch.nn.Module`): M's `detector`; its backbone learns, its heads are written by `fold`.
        labels (`KeypointMotion`): Of some hundred images.
    """

    SIGMA_BINS = 2.0  # of the angles' folded bins

    def __init__(self, detector: nn.Module, labels: KeypointMotion):
        super().__init__()
        rows = self.flat(labels)
        self.detector = detector
        self.norm = nn.BatchNorm1d(detector.fc_kp.in_features, affine=False)
        self.linear = nn.Linear(self.norm.num_features, rows.shape[1])
        self.register_buffer("mean", rows.mean(0))
        self.register_buffer("deviation", rows.std(0).clamp_min(1e-4))
        self.solved = False

    @staticmethod
    def flat(motion: KeypointMotion) -> Tensor:
        """All numbers of each face, `(batch, 133)`: canonical keypoints, then `to_vector`."""
        return torch.cat([motion.kp.flatten(1), motion.to_vector()], 1)

    def forward(self, image: Tensor) -> Tensor:
        """Standardised numbers `(batch, 133)` of images in [0, 1]."""
        return self.linear(self.norm(self.detector.features(image)))

    def motion(self, standardised: Tensor) -> KeypointMotion:
        """The faces that standardised numbers speak of."""
        numbers = standardised * self.deviation + self.mean
        return KeypointMotion.from_vector(numbers[:, 63:], numbers[:, :63].unflatten(1, (21, 3)))

    @torch.no_grad()
    def solve(self, batches: Iterable[tuple[Tensor, KeypointMotion]]) -> None:
        """Begin with what least squares says of images and their labels: gradients take long to find it."""
        self.eval()
        pairs = [(self.detector.features(images), self.flat(labels)) for images, labels in batches]
        inputs, rows = (torch.cat(column).double() for column in zip(*pairs, strict=True))
        self.norm.running_mean.copy_(inputs.mean(0))
        self.norm.running_var.copy_(inputs.var(0))
        inputs, rows = self.norm(inputs.float()).double(), ((rows - self.mean) / self.deviation).double()
        gram = inputs.T @ inputs / len(inputs)
        gram.diagonal().add_(1e-3)
        self.linear.weight.copy_(torch.linalg.solve(gram, inputs.T @ rows / len(inputs)).T)
        self.linear.bias.copy_(rows.mean(0))
        self.solved = True
        self.train()

    def train(self, mode: bool = True) -> MotionRegressor:
        """Solved heads lean on small differences of features that are much alike: statistics of a batch drown them."""
        super().train(mode)
        if self.solved:
            self.norm.eval()
        return self

    @torch.no_grad()
    def fold(self) -> None:
        """Write the heads: linear ones as they are, an angle as a bell over its bins, whose mean is the angle."""
        factor = (self.norm.running_var + self.norm.eps).rsqrt()
        weight = self.deviation[:, None] * self.linear.weight * factor
        bias = self.mean + self.deviation * self.linear.bias - weight @ self.norm.running_mean
        spans = {"kp": (0, 63), "exp": (63, 126), "scale": (126, 127), "t": (127, 130)}
        for name, (first, last) in spans.items():
            head = getattr(self.detector, f"fc_{name}")
            head.weight.copy_(weight[first:last])
            head.bias.copy_(bias[first:last])
        bins = torch.arange(POSE_BINS, device=bias.device) - (POSE_BINS - 1) / 2
        for row, name in zip(range(130, 133), ("pitch", "yaw", "roll"), strict=True):
            head = getattr(self.detector, f"fc_{name}")
            slope = bins / self.SIGMA_BINS**2
            angle = bias[row] / DEGREES_PER_BIN  # the middle bin is 0 degrees
            head.weight.copy_(slope[:, None] * weight[row] / DEGREES_PER_BIN)
            head.bias.copy_(slope * angle - bins**2 / (2 * self.SIGMA_BINS**2))


class MotionLoss:
    """Loss of the stage `motion`: M against labels, each number in its own deviation, and the keypoints that follow.

    Args:
        options (`RendererOptions`): Sizes.
        dynamics (`LandmarkDynamics`): What the labels' motion means.
    """

    def __init__(self, options: RendererOptions, dynamics: LandmarkDynamics):
        self.options, self.dynamics = options, dynamics

    def samples(self, batch: dict[str, Tensor]) -> tuple[Tensor, KeypointMotion]:
        """Images as M sees them, and what it should say of them."""
        sample = augment(batch, self.dynamics, self.options.train_size)
        labels = KeypointMotion.cat(
            [keypoints_from_labels(self.dynamics, *of(sample, name)) for name in ("source", "driving")]
        )
        return torch.cat([sample["source"], sample["driving"]]) / 2 + 0.5, labels

    def __call__(self, modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int):
        """Loss of a batch of `FacePairs`."""
        model = modules["motion"]
        images, wanted = self.samples(batch)
        found = model(images)
        rows = (MotionRegressor.flat(wanted) - model.mean) / model.deviation
        error = F.smooth_l1_loss(found, rows, beta=0.5, reduction="none").mean(0)
        motion = model.motion(found)
        points = transform_keypoints(motion) - transform_keypoints(wanted)
        terms = {"kp": error[:63].mean(), "exp": error[63:126].mean(), "pose": error[126:].mean()}
        terms["points"] = F.smooth_l1_loss(points / 0.05, torch.zeros_like(points), beta=0.5)
        with torch.no_grad():
            off = {
                "px": points[..., :2].norm(dim=-1).mean() * 128,  # of an image of 256
                "yaw_degrees": (motion.yaw - wanted.yaw).abs().mean(),
            }
        return terms["kp"] + 2 * terms["exp"] + 2 * terms["pose"] + 2 * terms["points"], {**terms, **off}


class RendererLoss:
    """Loss of the stages `renderer` and `joint`.

    Args:
        options (`RendererOptions`): Weights.
        dynamics (`LandmarkDynamics`): What the labels' motion means.
        features (`torch.nn.Module`, *optional*): Of the perceptual loss.
    """

    def __init__(self, options: RendererOptions, dynamics: LandmarkDynamics, features: nn.Module | None = None):
        self.options, self.dynamics, self.features = options, dynamics, features
        self.importance = torch.ones(len(dynamics.ids))
        self.importance[dynamics.tensors["rows_lids"]] = 3
        self.importance[dynamics.tensors["rows_lips"]] = 2
        self.irises = torch.from_numpy(dynamics.ids >= 468)
        self.importance[self.irises] = 12

    def __call__(self, modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int):
        """Loss of a batch of `FacePairs`."""
        options, model = self.options, modules["renderer"]
        with torch.autocast(batch["source"].device.type, enabled=False):
            sample = augment(batch, self.dynamics, options.train_size)
            labels = [keypoints_from_labels(self.dynamics, *of(sample, name)) for name in ("source", "driving")]
        source, driving = (sample[name] / 2 + 0.5 for name in ("source", "driving"))
        terms: dict[str, Tensor] = {}
        keypoints = [transform_keypoints(dataclasses.replace(label, kp=labels[0].kp)) for label in labels]
        if options.stage == "joint":
            both = model.extract_motion(torch.cat([source, driving]))
            points = transform_keypoints(both).float() - transform_keypoints(KeypointMotion.cat(labels))
            terms["motion"] = F.smooth_l1_loss(points / 0.05, torch.zeros_like(points), beta=0.5)
            count = len(source)
            read = (both[:count], both[count:])
            own = [transform_keypoints(dataclasses.replace(m, kp=both.kp[:count])) for m in read]
            labelled = torch.rand(len(source), 1, 1, device=source.device) < options.label_share
            keypoints = [torch.where(labelled, a, b.float()) for a, b in zip(keypoints, own, strict=True)]
        if options.hold_norms:
            hold_norms(model)
        features = model.encode_appearance(source)
        # On CPUs, bfloat16 gives weights of 3D convolutions of shallow volumes gradients of 1e30 (torch 2.13).
        with torch.autocast(source.device.type, enabled=source.device.type != "cpu"):
            warped, deformation, _ = model.warp(features.to(model.dtype), *keypoints)
        prediction = model.decode(warped).float() * 2 - 1
        target, weight = sample["driving"], sample["weight"]
        terms["l1"] = losses.reconstruction_loss(prediction, target, weight)
        terms["pyramid"] = losses.pyramid_loss(prediction, target, weight)
        points = torch.stack([sample["source_landmarks"], sample["driving_landmarks"]])
        seen = self.importance.to(source).repeat(len(source), 1)
        seen[:, self.irises] *= (eye_openness(points).amin((0, 2)) > 0.12)[:, None]  # shut lids hide irises
        flow = deformation[..., :2].mean(1)
        terms["flow"] = losses.landmark_flow_loss(flow.float(), points[1], points[0], seen)
        if options.weight_perceptual:
            terms["perceptual"] = losses.perceptual_loss(self.features.feature_maps, prediction, target)
        if options.weight_adversarial:
            terms["adversarial"] = adversarial_terms(modules["discriminator"], batch, prediction, target)
        total = sum(getattr(options, f"weight_{name}") * value for name, value in terms.items())
        with torch.no_grad():
            real = ~batch["is_portrait"]
            for name, picture in (("psnr", prediction), ("psnr_copy", sample["source"])):
                mse = (picture - target).square().mean((1, 2, 3)).clamp_min(1e-8) / 4
                terms[name] = -10 * mse[real].log10().mean() if real.any() else mse.new_tensor(0.0)
        return total, terms


def of(sample: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Landmarks and motion of one frame of an augmented batch."""
    return sample[f"{name}_landmarks"], sample[f"{name}_motion"]


class StitchingLoss:
    """Loss of the stage `stitching`: three small networks on keypoints, the renderer stays as it is.

    Stitching: the rim of the image, where it is pasted back, stays as in the source, and the keypoints move little.
    Retargeting: the source's keypoints with someone else's mouth or lids, given by the opening alone.

    # Not in the paper: LivePortrait (§3.3, §3.4) learns the latter through images; anchored keypoints need none.
    """

    def __init__(self, options: RendererOptions, dynamics: LandmarkDynamics):
        self.options, self.dynamics = options, dynamics

    def __call__(self, modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int):
        """Loss of a batch of `FacePairs`."""
        model, options = modules["renderer"], self.options
        for name in STAGES["renderer"]:  # batch norm stays as it is
            model.get_submodule(name).eval()
        with torch.autocast(batch["source"].device.type, enabled=False):
            sample = augment(batch, self.dynamics, options.train_size)
            motion, other = sample["source_motion"], sample["other_motion"]
            own = keypoints_from_labels(self.dynamics, *of(sample, "source"))
            driven = other.clone()  # someone else's pose and face: what absolute driving brings
            driven[:, 3:POSE_DIM] = motion[:, 3:POSE_DIM] + 0.3 * (other[:, 3:POSE_DIM] - motion[:, 3:POSE_DIM])
            source = transform_keypoints(own)
            target = transform_keypoints(keypoints_from_motion(self.dynamics, own.kp, driven))
        stitched = model.stitch(source, target)
        image = sample["source"] / 2 + 0.5
        with torch.no_grad():
            features = model.encode_appearance(image)
        picture = model.render(features, source, stitched).float()
        rim = F.pad(picture.new_zeros(picture.shape[-2:])[8:-8, 8:-8], (8, 8, 8, 8), value=1.0)
        terms = {
            "rim": ((picture - image).abs() * rim).sum() / (3 * len(picture) * rim.sum()),
            "change": (stitched - target).abs().mean(),
        }
        for name, keypoints in (("lips", LIP_KEYPOINTS), ("lids", EYE_KEYPOINTS)):
            terms[name] = self.retargeting(model, name, list(keypoints), sample, own, source)
        total = terms["rim"] + options.weight_stitching * terms["change"] + 20 * (terms["lips"] + terms["lids"])
        return total, terms

    def retargeting(self, model, name, keypoints, sample, own, source) -> Tensor:
        """Error of the keypoints' change for the opening of a mouth or lids that someone else has."""
        motion, landmarks = sample["source_motion"], sample["source_landmarks"]
        swapped = motion.clone()
        start = POSE_DIM
        for part, width in PARTS.items():
            if part == name:
                swapped[:, start : start + width] = sample["other_motion"][:, start : start + width]
            start += width
        wanted = transform_keypoints(keypoints_from_motion(self.dynamics, own.kp, swapped)) - source
        moved = self.dynamics.move(landmarks, motion, swapped)
        before, after = (opening(points)[name] for points in (landmarks, moved))
        if name == "lips":
            delta = model.retarget_lips(source, before, after)
        else:
            delta = model.retarget_eyes(source, before, after.mean(1, keepdim=True))
        mask = torch.zeros(21, 1, device=delta.device)
        mask[keypoints] = 1
        return (F.smooth_l1_loss(delta, wanted * mask, beta=0.02, reduction="none")).mean()


def opening(points: Tensor) -> dict[str, Tensor]:
    """LivePortrait's ratios: lips `(batch, 1)`, gap over width of the inner rim; lids `(batch, 2)`, gap over width."""
    left, right, top, bottom = points[:, rows(78, 308, 13, 14)].unbind(1)
    lips = (top - bottom).norm(dim=1) / (left - right).norm(dim=1).clamp_min(1e-6)
    return {"lips": lips[:, None], "lids": eye_openness(points)}


def collate(dataset: FacePairs, indices: Iterable[int]) -> dict[str, Tensor]:
    """A batch of some samples."""
    return default_collate([dataset[index] for index in indices])


def sample_sheet(dataset: FacePairs, size: int, count: int = 6):
    """Contact sheets: source | driving | rendered by labels | rendered by M's keypoints | difference."""

    def write(modules: dict[str, nn.Module], step: int, folder: Path) -> None:
        model = modules["renderer"]
        device = next(model.parameters()).device
        batch = {key: value.to(device) for key, value in collate(dataset, range(10**6, 10**6 + count)).items()}
        torch.manual_seed(0)
        sample = augment(batch, dataset.dynamics, size)
        source, driving = (sample[name] / 2 + 0.5 for name in ("source", "driving"))
        labels = [keypoints_from_labels(dataset.dynamics, *of(sample, name)) for name in ("source", "driving")]
        read = [model.extract_motion(image) for image in (source, driving)]
        features = model.encode_appearance(source)
        pictures = []
        for motions in (labels, read):
            keypoints = [transform_keypoints(dataclasses.replace(m, kp=motions[0].kp)) for m in motions]
            pictures.append(model.render(features, *keypoints).float())
        sheet = torch.cat([source, driving, *pictures, (pictures[0] - driving).abs()], 3)
        save_images(torch.cat(list(sheet), 1) * 2 - 1, folder / f"sheet-{step:07d}.png")

    return write


def run(options: RendererOptions) -> TrainingState:
    """Run one stage and save `renderer/`."""
    if options.start_as_copy and (options.initial or options.preset == "paper"):
        raise ValueError("`start_as_copy` goes with new weights of the small or tiny preset, not with `initial`.")
    if options.motion_from and options.stage != "motion":
        raise ValueError(f"`motion_from` goes with the stage 'motion', not with {options.stage!r}.")
    if options.weight_perceptual and not options.perceptual:
        raise ValueError("`perceptual` must name a face recogniser folder when its loss has a weight.")
    torch.manual_seed(options.seed)
    dataset = open_pairs(options)
    if options.initial:
        model = LivePortraitRenderer.from_pretrained(resolve(options.initial), torch_dtype=torch.float32)
    else:
        model = LivePortraitRenderer(**PRESETS[options.preset])
        if options.start_as_copy:
            side = 2 * model.size_multiple
            pictures = torch.stack([dataset[index]["source"] for index in range(48)]).float() / 255
            start_as_copy(model, F.interpolate(pictures, (side, side), mode="area"))
    channels_last(model)
    freeze(model, lambda name: name.startswith(STAGES[options.stage]))
    modules: dict[str, nn.Module] = {"renderer": model}
    if options.perceptual:
        modules["features"] = pretrained_features(resolve(options.perceptual))
    learns = "renderer"
    if options.stage == "stitching":
        loss = StitchingLoss(options, dataset.dynamics)
    elif options.stage == "motion":
        if options.motion_from:
            if not model.config.motion_points:
                raise ValueError("`motion_from` goes with an M of points, as the small preset has, not ConvNeXt V2.")
            start_from_dynamics_encoder(model.motion_extractor.detector, options.motion_from)
        learns, loss = "motion", MotionLoss(options, dataset.dynamics)
        batches = (loss.samples(collate(dataset, range(at, at + 100))) for at in itertools.count(0, 100))
        modules["motion"] = MotionRegressor(model.motion_extractor.detector, next(batches)[1])
        if options.solve_samples:
            modules["motion"].solve(itertools.islice(batches, math.ceil(options.solve_samples / 100)))
        freeze(modules["motion"], lambda name: ".fc_" not in name)
    else:
        loss = RendererLoss(options, dataset.dynamics, modules.get("features"))
    players = [Player("generator", (learns,), loss, options.learning_rate, weight_decay=options.weight_decay)]
    if options.weight_adversarial:
        modules["discriminator"] = losses.MultiScalePatchDiscriminator(32)
        players.append(discriminator_player(options.learning_rate))

    def components() -> dict[str, nn.Module]:
        if options.stage == "motion":
            modules["motion"].fold()
        return {"renderer": model}

    on_sample = None if options.stage == "motion" else sample_sheet(dataset, options.train_size)
    return train_and_save(options, modules, players, dataset, (learns,), components, on_sample=on_sample)

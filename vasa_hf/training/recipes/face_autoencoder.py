"""Train VASA-1's face latent space (paper §3.1).

    accelerate launch -m vasa_hf.training face_autoencoder --data DATA/train --cache CACHE --output RUN
    ... --stage encoders     # pose and dynamics encoders from labels
    ... --stage renderer     # warps and decoder, driven by labelled motion: learns motion in minutes
    ... --stage joint        # everything end to end, with the adversarial, consistency and identity losses

With `--pipeline`, `OUTPUT/pipeline` is a whole pipeline with the new weights.

What z_dyn means is the model's `motion_space`. In `vasa-small` landmark labels define its 28 numbers and supervise it.
In any other, such as the paper's of 512 numbers, z_dyn is learned: labels only give the pose, which the paper's base
[19] takes from a pretrained network, and every stage encodes z_dyn from the frames.

# Not in the paper: the three stages. VASA-1 learns all at once from 500K clips; with little data the labels teach pose,
dynamics and warp first, then pixels refine them. `--stage joint` alone is the paper's setting.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vasa_hf.data.face_pairs import FacePairs
from vasa_hf.data.landmark_dynamics import LandmarkDynamics, UnlabelledDynamics
from vasa_hf.geometry.landmarks import eye_openness, gaze_angles
from vasa_hf.geometry.rotations import euler_from_matrix
from vasa_hf.hub import resolve
from vasa_hf.models.face_analyzer import FaceAnalyzer
from vasa_hf.models.face_autoencoder_vasa1 import POSE_DIM, PRESETS, Vasa1FaceAutoencoder
from vasa_hf.models.pretrained_features import pretrained_features
from vasa_hf.training import losses
from vasa_hf.training.face_data import FacePairOptions, augment, open_pairs
from vasa_hf.training.loop import Player, TrainingState
from vasa_hf.training.networks import (
    PerceptualFeatures,
    adversarial_terms,
    channels_last,
    discriminator_player,
    freeze,
)
from vasa_hf.training.options import option
from vasa_hf.training.saving import train_and_save
from vasa_hf.training.sheets import save_images

NAME = "face_autoencoder"
STAGES = ("encoders", "renderer", "joint")
LABELLED_SPACE = "vasa-small"  # the motion space whose z_dyn landmark labels define


@dataclass
class FaceAutoencoderOptions(FacePairOptions):
    """Options of this recipe; those of its data are in `FacePairOptions`, those of all recipes in `LoopOptions`."""

    stage: str = option("renderer", "what learns", STAGES)
    preset: str = option("small", "size of a new model", PRESETS)
    model: str = option("{}", 'changes of the preset as JSON, such as {"image_size": 256}')
    pipeline: str | None = option(None, "pipeline to start from, such as vasa-small; OUTPUT/pipeline gets the weights")
    initial: str | None = option(None, "face autoencoder folder to start from, instead of that of the pipeline")
    analyzer: str | None = option(None, "face analyzer folder whose landmarker the motion encoders start from")
    only: list[str] = option([], "learn only the parts of these names, such as basis_head")
    learn_backbones: bool = option(True, "stage encoders: also the backbones, not only the heads")
    learning_rate: float = 4e-4
    train_size: int | None = option(None, "train at this image size (default: the model's)")
    save_dtype: str = "float16"
    label_share: float = option(0.0, "stage joint: share of the samples whose motion still comes from the labels")
    weight_flow: float = option(0.1, "landmark flow (px); renderer and joint")
    weight_l1: float = option(1.0, "reconstruction L1")
    weight_pyramid: float = option(2.0, "L1 of gradients at three scales")
    weight_generated: float = option(0.1, "reconstruction L1 of the decoder's own image")
    weight_perceptual: float = option(0.0, "perceptual loss, needs --perceptual")
    perceptual: list[str] = option(
        [], "networks of the perceptual loss: converted VGG-19, VGGFace, ArcFace or LPIPS, face recogniser folders"
    )
    weight_gaze: float = option(0.0, "gaze seen in decoded images, needs --gaze-network")
    gaze_network: str | None = option(None, "face analyzer folder that sees the gaze")
    weight_adversarial: float = option(0.0, "adversarial and feature matching losses")
    weight_motion: float = option(
        1.0, "pose encoder against labels, and the dynamics encoder where labels define z_dyn"
    )
    weight_contrastive: float = option(0.0, "cycle / contrastive loss of z_dyn, with cross-reenactment")
    weight_consist: float = option(0.0, "l_consist: pose and dynamics of two frames of one person, exchanged")
    weight_cross_id: float = option(0.0, "l_cross_id, needs --identity")
    identity: str | None = option(None, "network of l_cross_id: converted ArcFace or face recogniser folder")


def encoders_loss(options: FaceAutoencoderOptions, dynamics: LandmarkDynamics | UnlabelledDynamics):
    """Pose encoder against labels, and the dynamics encoder where they have z_dyn (smooth L1, in units of its own)."""
    visible = visibility(dynamics)

    def loss(modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(batch["source"].device.type, enabled=False):
            sample = augment(batch, dynamics, options.train_size)
        images = torch.cat([sample["source"], sample["driving"]])
        images = images + 0.03 * torch.randn_like(images) * torch.rand(len(images), 1, 1, 1, device=images.device)
        wanted = torch.cat([sample["source_motion"], sample["driving_motion"]])
        motion = modules[NAME](images, motion_only=True).float()
        return motion_error(motion, wanted, visible)

    return loss


def visibility(dynamics: LandmarkDynamics | UnlabelledDynamics) -> Tensor:
    """How much each labelled channel of z_dyn moves the landmarks, about 1 on average: the first ones matter most."""
    if not dynamics.dim:
        return torch.ones(0)
    moved = dynamics.tensors["basis"].norm(dim=1)
    return (moved / moved.mean()).clamp_min(0.2)


def motion_error(motion: Tensor, wanted: Tensor, visible: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Smooth L1 of pose (in units of 0.1 rad and 2 % of the crop) and labelled dynamics (unit variance, by visibility).

    Args:
        motion (`torch.Tensor` of shape `(batch, 6 + dynamics_dim)`): Encoded.
        wanted (`torch.Tensor` of shape `(batch, 6 + labelled)`): Labels; `labelled` is 0 or `dynamics_dim`.
        visible (`torch.Tensor` of shape `(labelled,)`): As `visibility` gives it.
    """
    unit = motion.new_tensor([0.1, 0.1, 0.1, 0.02, 0.02, 0.02])
    pose = F.smooth_l1_loss(motion[:, :POSE_DIM] / unit, wanted[:, :POSE_DIM] / unit, beta=0.3)
    if wanted.shape[1] == POSE_DIM:
        return pose, {"pose": pose}
    error = F.smooth_l1_loss(motion[:, POSE_DIM:], wanted[:, POSE_DIM:], beta=0.3, reduction="none")
    dynamics = (error * visible.to(error)).mean()
    return pose + dynamics, {"pose": pose, "dynamics": dynamics}


def measure_gaze(analyzer: FaceAnalyzer, image: Tensor) -> Tensor:
    """Gaze that the analyzer sees in face crops in [-1, 1]: `(batch, 2)` yaw and pitch in radians, differentiable."""
    size = image.shape[-1]
    low, high = round(0.15 * size), round(0.87 * size)  # standard crops are two faces wide, the face a little low
    face = analyzer(image[..., low:high, (size - high + low) // 2 : (size + high - low) // 2])
    return gaze_angles(face.landmarks, euler_from_matrix(face.rotation))


def use_labels(motion: Tensor, labels: Tensor, chosen: Tensor) -> Tensor:
    """Encoded motion `(batch, 6 + dynamics_dim)` with the labels' channels where `chosen` `(batch, 1)` is true."""
    count = labels.shape[1]
    return torch.cat([torch.where(chosen, labels.to(motion.dtype), motion[:, :count]), motion[:, count:]], 1)


def renderer_loss(
    options: FaceAutoencoderOptions,
    dynamics: LandmarkDynamics | UnlabelledDynamics,
    features: PerceptualFeatures | None = None,
    identity: Callable[[Tensor], Tensor] | None = None,
    analyzer: FaceAnalyzer | None = None,
):
    """All losses on decoded images; in stage `renderer` motion comes from labels, in `joint` from the encoders.

    Args:
        options (`FaceAutoencoderOptions`): Weights.
        dynamics (`LandmarkDynamics` or `UnlabelledDynamics`): What the labels' motion means.
        features (`PerceptualFeatures`, *optional*): Of the perceptual loss.
        identity (`Callable`, *optional*): Images in [-1, 1] to identity features, of l_cross_id.
        analyzer (`FaceAnalyzer`, *optional*): Of the gaze loss.
    """
    joint, encodes = options.stage == "joint", options.stage == "joint" or not dynamics.dim
    visible, importance = visibility(dynamics), torch.ones(len(dynamics.ids))
    irises = torch.from_numpy(dynamics.ids >= 468)
    if dynamics.dim:
        importance[dynamics.tensors["rows_lids"]] = 3
        importance[dynamics.tensors["rows_lips"]] = 2
        importance[irises] = 24  # few and small: gaze lives in them

    def loss(modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        model = modules[NAME]
        with torch.autocast(batch["source"].device.type, enabled=False):
            sample = augment(batch, dynamics, options.train_size)
        names = [name for name in ("source", "driving", "other") if name in sample]
        source, driving, weight = sample["source"], sample["driving"], sample["weight"]
        motions = labels = [sample[f"{name}_motion"] for name in names]
        terms: dict[str, Tensor] = {}
        if encodes:
            encoded = model(torch.cat([sample[name] for name in names]), motion_only=True)
            terms["motion"], _ = motion_error(encoded.float(), torch.cat(labels), visible)
            # Not in the paper: some labels keep the decoder used to clean motion, such as the generator's.
            chosen = torch.rand(len(source), 1, device=source.device) < (options.label_share if joint else 1.0)
            motions = [use_labels(m, label, chosen) for m, label in zip(encoded.chunk(len(names)), labels, strict=True)]
        source_motion, driving_motion = motions[:2]
        output = model(source, driving, source_motion, driving_motion)
        prediction = output.sample.float()
        terms["l1"] = losses.reconstruction_loss(prediction, driving, weight)
        terms["pyramid"] = losses.pyramid_loss(prediction, driving, weight)
        if output.generated is not None:
            terms["generated"] = losses.reconstruction_loss(output.generated, driving, weight)
            points = torch.stack([sample["source_landmarks"], sample["driving_landmarks"]])
            seen = importance.to(source.device).repeat(len(source), 1)
            seen[:, irises] *= (eye_openness(points).amin((0, 2)) > 0.12)[:, None]  # shut lids hide irises
            terms["flow"] = losses.landmark_flow_loss(output.flow, points[1], points[0], seen)
        if options.weight_perceptual:
            terms["perceptual"] = losses.perceptual_loss(features.feature_maps, prediction, driving)
        if options.weight_gaze:
            with torch.no_grad():
                wanted = measure_gaze(analyzer, driving)
            terms["gaze"] = losses.gaze_loss(measure_gaze(analyzer, prediction), wanted)
        if options.weight_adversarial:
            terms["adversarial"] = adversarial_terms(modules["discriminator"], batch, prediction, driving)
        if options.weight_consist:
            mixed = torch.cat([source_motion[:, :POSE_DIM], driving_motion[:, POSE_DIM:]], 1)
            onto_driving = model(driving, source, driving_motion, mixed).sample.float()
            onto_source = model(source, driving, source_motion, mixed).sample.float()
            real = ~batch["is_portrait"]  # a pseudo driver has no background of its own
            if real.any():
                terms["consist"] = losses.consistency_loss(onto_driving[real], onto_source[real])
        if "other" in sample:  # another person's pose and dynamics on the source
            other_motion = motions[2]
            transferred = model(source, sample["other"], source_motion, other_motion).sample.float()
        if options.weight_cross_id:
            terms["cross_id"] = losses.cross_identity_loss(identity, source, transferred)
        if options.weight_contrastive:
            # Both decoded images must show the z_dyn that drove them and not that of the other.
            again = model(torch.cat([prediction, transferred]), motion_only=True)[:, POSE_DIM:].float()
            own = torch.cat([driving_motion, other_motion])[:, POSE_DIM:].float()
            foreign = torch.cat([other_motion, driving_motion])[:, POSE_DIM:].float()
            terms["contrastive"] = losses.motion_contrastive_loss(again, own, foreign[:, None])
        total = sum(getattr(options, f"weight_{name}") * value for name, value in terms.items())
        with torch.no_grad():
            mse = (prediction - driving).square().mean((1, 2, 3)).clamp_min(1e-8) / 4
            copy = (source - driving).square().mean((1, 2, 3)).clamp_min(1e-8) / 4
            real = ~batch["is_portrait"]
            terms["psnr"] = -10 * mse[real].log10().mean() if real.any() else mse.new_tensor(0.0)
            terms["psnr_copy"] = -10 * copy[real].log10().mean() if real.any() else mse.new_tensor(0.0)
        return total, terms

    return loss


def sample_sheet(dataset: FacePairs, size: int, rows: int = 6):
    """Contact sheets: source | driving | decoded | difference, from averaged weights."""

    def write(modules: dict[str, nn.Module], step: int, folder: Path) -> None:
        model = modules[NAME]
        device = next(model.parameters()).device
        samples = [dataset[10**6 + index] for index in range(rows)]
        batch = {key: torch.stack([s[key] for s in samples]).to(device) for key in samples[0]}
        torch.manual_seed(0)
        sample = augment(batch, dataset.dynamics, size)
        motions = [sample[f"{name}_motion"] for name in ("source", "driving")]
        if not dataset.dynamics.dim:
            motions = [model.encode_motion(sample[name]) for name in ("source", "driving")]
        out = model(sample["source"], sample["driving"], *motions).sample
        difference = (out.float() - sample["driving"]).abs() * 2 - 1
        sheet = torch.cat([sample["source"], sample["driving"], out.float(), difference], 3)
        save_images(torch.cat(list(sheet), 1), folder / f"sheet-{step:07d}.png")

    return write


def run(options: FaceAutoencoderOptions) -> TrainingState:
    """Run one stage; save `face_autoencoder/` and `landmark_dynamics.safetensors`, and `pipeline/` with `pipeline`."""
    if options.weight_perceptual and not options.perceptual:
        raise ValueError("`perceptual` must name a network when `weight_perceptual` is not 0.")
    if options.weight_cross_id and not options.identity:
        raise ValueError("`identity` must name a network when `weight_cross_id` is not 0.")
    if options.weight_gaze and not options.gaze_network:
        raise ValueError("`gaze_network` must name a face analyzer folder when `weight_gaze` is not 0.")
    if options.pipeline:
        start = Path(resolve(options.pipeline))
        options.initial = options.initial or str(start / NAME)
        options.dynamics = options.dynamics or str(start / "landmark_dynamics.safetensors")
    torch.manual_seed(options.seed)
    if options.initial:
        model = Vasa1FaceAutoencoder.from_pretrained(resolve(options.initial), torch_dtype=torch.float32)
    else:
        model = Vasa1FaceAutoencoder(**{**PRESETS[options.preset], **json.loads(options.model)})
    channels_last(model)
    final_size = model.config.image_size
    options = dataclasses.replace(options, train_size=options.train_size or final_size)
    model.register_to_config(image_size=options.train_size)
    labelled = model.config.motion_space == LABELLED_SPACE
    dataset = open_pairs(
        options,
        options.train_size,
        labels_dynamics=labelled,
        others=options.stage != "encoders" and bool(options.weight_contrastive or options.weight_cross_id),
    )
    modules: dict[str, nn.Module] = {NAME: model}
    if options.analyzer:
        start_from_landmarker(model, options.analyzer)
    elif not (labelled and options.initial):  # no landmarker has learnt their statistics
        model.pose_encoder.learns_statistics = model.dynamics_encoder.learns_statistics = True
    if options.stage == "encoders":
        parts = ("pose_encoder", "dynamics_encoder") if labelled else ("pose_encoder",)
        if not options.learn_backbones:
            parts = tuple(f"{part}.{head}" for part in parts for head in ("head", "reduce"))
        freeze(model, lambda name: name.startswith(parts))
        loss = encoders_loss(options, dataset.dynamics)
    else:
        fixed = {"joint": (), "renderer": ("pose_encoder", "dynamics_encoder") if labelled else ("pose_encoder",)}
        freeze(model, lambda name: not name.startswith(fixed[options.stage]))
        if options.only:
            freeze(model, lambda name: name.startswith(tuple(options.only)))
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise ValueError(f"`only` must name parts of the face autoencoder, got {options.only}.")
        if options.perceptual:
            modules["features"] = PerceptualFeatures(options.perceptual)
        if options.identity:
            modules["identity"] = pretrained_features(resolve(options.identity))
        if options.gaze_network:
            analyzer = FaceAnalyzer.from_pretrained(resolve(options.gaze_network), torch_dtype=torch.float32)
            modules["analyzer"] = analyzer.eval().requires_grad_(False)
        networks = (modules.get(name) for name in ("features", "identity", "analyzer"))
        loss = renderer_loss(options, dataset.dynamics, *networks)
    players = [Player("generator", (NAME,), loss, options.learning_rate, weight_decay=options.weight_decay)]
    if options.weight_adversarial and options.stage != "encoders":
        modules["discriminator"] = losses.MultiScalePatchDiscriminator(32)
        players.append(discriminator_player(options.learning_rate))

    def components() -> dict[str, Any]:
        model.register_to_config(image_size=final_size)
        made: dict[str, Any] = {NAME: model}
        return made | ({"landmark_dynamics.safetensors": dataset.dynamics} if labelled else {})

    on_sample = sample_sheet(dataset, options.train_size) if options.stage != "encoders" else None
    return train_and_save(options, modules, players, dataset, (NAME,), components, options.pipeline, on_sample)


def start_from_landmarker(model: Vasa1FaceAutoencoder, folder: str) -> None:
    """Give the pose and dynamics encoders the backbone and heat maps of a trained landmarker."""
    landmarker = FaceAnalyzer.from_pretrained(resolve(folder), torch_dtype=torch.float32).landmarker
    for encoder in (model.pose_encoder, model.dynamics_encoder):
        encoder.backbone.load_state_dict(landmarker.backbone.state_dict())
        encoder.heat.load_state_dict(landmarker.heat.state_dict())

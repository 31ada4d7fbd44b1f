"""Train VASA-1's face latent space (paper §3.1).

    accelerate launch -m vasa_hf.training.train_face_autoencoder --data DATA/train --cache CACHE --output RUN
    ... --stage encoders     # pose and dynamics encoders from labels
    ... --stage renderer     # warps and decoder, driven by labelled motion: learns motion in minutes
    ... --stage joint        # everything end to end, with the adversarial, consistency and identity losses

# Not in the paper: the three stages. VASA-1 learns all at once from 500K clips; with little data the labels teach pose,
# dynamics and warp first, then pixels refine them. `--stage joint` alone is the paper's setting.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vasa_hf.data.face_pairs import FacePairs
from vasa_hf.data.landmark_dynamics import PARTS
from vasa_hf.geometry.landmarks import eye_openness, gaze_angles, rows
from vasa_hf.geometry.rotations import euler_from_matrix
from vasa_hf.geometry.thin_plate import warp_by_landmarks
from vasa_hf.hub import resolve
from vasa_hf.models.face_analyzer import FaceAnalyzer
from vasa_hf.models.face_autoencoder_vasa1 import PAPER_CONFIG, POSE_DIM, SMALL_CONFIG, Vasa1FaceAutoencoder
from vasa_hf.models.face_recognizer import pretrained_features
from vasa_hf.training import losses
from vasa_hf.training.loop import LoopOptions, Player, option, parse_options, print_log, train
from vasa_hf.training.saving import save_pipeline

TINY_CONFIG = {
    **SMALL_CONFIG,
    "image_size": 64,
    "encoder_channels": [4, 8, 8, 8],
    "volume_channels": 4,
    "volume_depth": 4,
    "warp_channels": [8, 8],
    "warp_size": 8,
    "decoder_channels": [8, 8, 8, 4],
    "identity_channels": [8, 8, 8, 8],
    "identity_size": 32,
    "motion_widths": [4, 8, 8, 8, 8],
    "motion_depths": [1, 1, 1, 1],
    "motion_pyramid_channels": 8,
    "motion_points": 8,
    "pose_size": 32,
    "dynamics_size": 32,
    "identity_dim": 8,
    "region_refiners": {"mouth": [4, 8, 8], "eyes": [4, 8, 8]},
}
PRESETS = {"paper": PAPER_CONFIG, "small": SMALL_CONFIG, "tiny": TINY_CONFIG}


@dataclass
class FaceAutoencoderOptions(LoopOptions):
    """Options of this stage."""

    data: str = option("data/train", "folder with clips and labels, with portraits if there are any; or shards")
    cache: str = option("cache", "folder for decoded frames")
    stage: str = option("renderer", "encoders, renderer or joint")
    preset: str = option("small", "paper, small or tiny")
    pipeline: str | None = option(None, "pipeline to start from, such as vasa-small; OUTPUT/pipeline gets the weights")
    initial: str | None = option(None, "face autoencoder folder to start from")
    analyzer: str | None = option(None, "face analyzer folder whose landmarker the motion encoders start from")
    save: str | None = option(None, "folder for the averaged weights (default: OUTPUT/face_autoencoder)")
    only: list[str] = option([], "learn only the parts of these names, such as basis_head")
    learn_backbones: bool = option(True, "stage encoders: also the backbones, not only the heads")
    learning_rate: float = option(4e-4, "peak learning rate")
    train_size: int | None = option(None, "train at this picture size (default: the model's)")
    dynamics: str | None = option(None, "landmark dynamics file that defines z_dyn, such as vasa-small's")
    stream: bool = option(False, "decode frames whenever they are drawn, for data too large to keep decoded")
    portrait_share: float = option(0.25, "share of samples that are single portraits")
    rendered: str | None = option(None, "folder of rendered faces, see vasa_hf.data.synthetic.rendered_faces")
    rendered_share: float = option(0.35, "share of samples that are rendered faces")
    label_share: float = option(0.0, "stage joint: share of the samples whose motion still comes from the labels")
    weight_flow: float = option(0.1, "landmark flow (px); renderer and joint")
    weight_l1: float = option(1.0, "reconstruction L1")
    weight_pyramid: float = option(2.0, "L1 of gradients at three scales")
    weight_generated: float = option(0.1, "reconstruction L1 of the decoder's own picture")
    weight_perceptual: float = option(0.0, "perceptual loss, needs --perceptual")
    perceptual: str | None = option(None, "face recogniser folder or vision model for perceptual and identity losses")
    weight_gaze: float = option(0.0, "gaze seen in decoded pictures, needs --gaze-network")
    gaze_network: str | None = option(None, "face analyzer folder that sees the gaze")
    weight_adversarial: float = option(0.0, "adversarial and feature matching losses")
    weight_motion: float = option(1.0, "pose and dynamics encoders against labels")
    weight_contrastive: float = option(0.0, "cycle / contrastive dynamics loss")
    weight_consist: float = option(0.0, "l_consist")
    weight_cross_id: float = option(0.0, "l_cross_id, needs --perceptual")


def augment(batch: dict[str, Tensor], dynamics: Any, size: int, framing: float = 1.0) -> dict[str, Tensor]:
    """Batched augmentation: colours, framing and mirror images alike for both frames; portraits get a pseudo driver.

    Args:
        batch (`dict`): Of `FacePairs`, uint8 pictures.
        dynamics (`LandmarkDynamics`): Moves landmarks; knows mirror images.
        size (`int`): Side of the result.
        framing (`float`, defaults to 1.0): Amount of zoom, shift and roll; 0 keeps every pixel as it is.

    Returns:
        `dict`: `source`, `driving` in [-1, 1], their landmarks and motions, `weight` of pixels, `seen` (0 where what
        the driving frame shows is not known), `other_motion`.
    """
    device, count = batch["source"].device, len(batch["source"])
    uniform = lambda low, high, *shape: torch.empty(count, *shape, device=device).uniform_(low, high)  # noqa: E731
    out = {"other_motion": batch["other_motion"]}
    # One framing for both frames: zoom, shift, roll. Crop point p comes from (A (p - 0.5) + b) + 0.5.
    zoom, roll, shift = (framing * x for x in (uniform(-0.15, 0.15), uniform(-0.12, 0.12), uniform(-0.04, 0.04, 2)))
    zoom = 1 + zoom
    matrix = torch.stack([roll.cos(), -roll.sin(), roll.sin(), roll.cos()], 1).view(-1, 2, 2) / zoom[:, None, None]
    theta = torch.cat([matrix, 2 * shift[:, :, None]], 2)
    grid = F.affine_grid(theta, (count, 3, size, size), align_corners=False)
    inverse = torch.linalg.inv(matrix)
    gain, bias, gamma = uniform(0.85, 1.15, 3, 1, 1), uniform(-0.1, 0.1, 1, 1, 1), uniform(0.8, 1.25, 1, 1, 1)
    flip = uniform(0, 1) < 0.5
    mirror_z = dynamics.tensors["mirror"].to(device)
    mirror_pose = torch.tensor([-1.0, 1, -1, -1, 1, 1], device=device)
    order = dynamics.tensors["flip"].to(device)
    for name in ("source", "driving"):
        image = F.grid_sample(batch[name].float() / 255, grid, padding_mode="border", align_corners=False)
        image = ((image.clamp(0, 1) ** gamma) * gain + bias).clamp(0, 1) * 2 - 1
        points = (batch[f"{name}_landmarks"] - 0.5 - shift[:, None]) @ inverse.mT + 0.5
        motion = batch[f"{name}_motion"].clone()
        center = (motion[:, 3:5] - 0.5 - shift)[:, None] @ inverse.mT + 0.5
        motion[:, 3:5] = center[:, 0]
        motion[:, 2] = motion[:, 2] - roll
        motion[:, 5] = motion[:, 5] * zoom
        mirrored = torch.cat([motion[:, :POSE_DIM] * mirror_pose, motion[:, POSE_DIM:] @ mirror_z.T], 1)
        mirrored[:, 3] += 1
        out[name] = torch.where(flip[:, None, None, None], image.flip(3), image)
        points_mirrored = points[:, order] * points.new_tensor([-1, 1]) + points.new_tensor([1, 0])
        out[f"{name}_landmarks"] = torch.where(flip[:, None, None], points_mirrored, points)
        out[f"{name}_motion"] = torch.where(flip[:, None], mirrored, motion)

    alone = batch["is_portrait"].nonzero()[:, 0]
    void = torch.zeros(count, 1, size, size, device=device)
    if len(alone):
        # A pseudo driver: the portrait moved by a thin-plate spline into another pose with someone else's dynamics.
        source = out["source_motion"][alone]
        target = source.clone()
        noise = torch.randn(len(alone), 6, device=device)
        target[:, :6] += noise * target.new_tensor([0.12, 0.08, 0.06, 0.012, 0.012, 0.0])
        target[:, 5] *= (0.05 * noise[:, 5]).clamp(-0.12, 0.12).exp()
        target[:, POSE_DIM:] = out["other_motion"][alone, POSE_DIM:]
        # Eyes that look elsewhere, alike, which recorded faces seldom do; irises move by about 0.1 eye widths.
        gaze = target.shape[1] - PARTS["gaze"]
        aside = 3 * torch.randn(len(alone), 2, device=device) * (torch.rand(len(alone), 1, device=device) < 0.7)
        target[:, gaze:] += aside.repeat(1, 2)
        landmarks = out["source_landmarks"][alone]
        moved = dynamics.move(landmarks, source, target)
        out["driving"][alone] = warp_by_landmarks(out["source"][alone], landmarks, moved)
        out["driving_landmarks"][alone], out["driving_motion"][alone] = moved, target
        # What a mouth opens onto is not in the portrait: no pixel loss there.
        before, after = (mouth_box(x) for x in (landmarks, moved))
        opened = ((after[2] - before[2]) > 0.004).float()[:, None, None, None]
        void[alone] = ellipse(size, after[0], after[1] * 0.5, after[2] * 0.6 + 0.01) * opened
    points = out["driving_landmarks"]
    center, width, _ = mouth_box(points)
    eyes = [points[:, rows(a, b)].mean(1) for a, b in ((33, 133), (263, 362))]
    weight = 1 + 6 * blob(size, center, width * 0.45) + sum(10 * blob(size, eye, width * 0.25) for eye in eyes)
    out["seen"] = 1 - void
    out["weight"] = weight * out["seen"]
    return out


def mouth_box(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, width and inner gap of mouths, fractions of the crop."""
    left, right, top, bottom = points[:, rows(78, 308, 13, 14)].unbind(1)
    return (left + right + top + bottom) / 4, (left - right).norm(dim=1), (bottom - top).norm(dim=1)


def _offsets(size: int, center: Tensor) -> Tensor:
    axis = (torch.arange(size, device=center.device) + 0.5) / size
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1) - center[:, None, None]


def blob(size: int, center: Tensor, radius: Tensor) -> Tensor:
    """Soft discs, `(batch, 1, size, size)`; centre `(batch, 2)` and radius `(batch,)` in fractions of the crop."""
    return (-(_offsets(size, center).square().sum(-1) / radius.square()[:, None, None])).exp()[:, None]


def ellipse(size: int, center: Tensor, half_width: Tensor, half_height: Tensor) -> Tensor:
    """Hard ellipses, `(batch, 1, size, size)`; sizes in fractions of the crop."""
    scaled = _offsets(size, center) / torch.stack([half_width, half_height], 1)[:, None, None]
    return (scaled.square().sum(-1) < 1).float()[:, None]


def encoders_loss(options: FaceAutoencoderOptions, dynamics: Any):
    """Pose and dynamics encoders against labels (smooth L1, each channel in its own unit)."""
    visible = visibility(dynamics)

    def loss(modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(batch["source"].device.type, enabled=False):
            sample = augment(batch, dynamics, options.train_size)
        images = torch.cat([sample["source"], sample["driving"]])
        images = images + 0.03 * torch.randn_like(images) * torch.rand(len(images), 1, 1, 1, device=images.device)
        wanted = torch.cat([sample["source_motion"], sample["driving_motion"]])
        motion = modules["autoencoder"](images, motion_only=True).float()
        return motion_error(motion, wanted, visible)

    return loss


def visibility(dynamics: Any) -> Tensor:
    """How much each dynamics channel moves the landmarks, about 1 on average: the first ones matter most."""
    moved = dynamics.tensors["basis"].norm(dim=1)
    return (moved / moved.mean()).clamp_min(0.2)


def motion_error(motion: Tensor, wanted: Tensor, visible: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Smooth L1 of pose (in units of 0.1 rad and 2 % of the crop) and dynamics (unit variance, by visibility)."""
    unit = motion.new_tensor([0.1, 0.1, 0.1, 0.02, 0.02, 0.02])
    pose = F.smooth_l1_loss(motion[:, :POSE_DIM] / unit, wanted[:, :POSE_DIM] / unit, beta=0.3)
    error = F.smooth_l1_loss(motion[:, POSE_DIM:], wanted[:, POSE_DIM:], beta=0.3, reduction="none")
    dynamics = (error * visible.to(error)).mean()
    return pose + dynamics, {"pose": pose, "dynamics": dynamics}


def seen_gaze(analyzer: FaceAnalyzer, image: Tensor) -> Tensor:
    """Gaze that the analyzer sees in face crops in [-1, 1]: `(batch, 2)` yaw and pitch in radians, differentiable."""
    size = image.shape[-1]
    low, high = round(0.15 * size), round(0.87 * size)  # standard crops are two faces wide, the face a little low
    face = analyzer(image[..., low:high, (size - high + low) // 2 : (size + high - low) // 2])
    return gaze_angles(face.landmarks, euler_from_matrix(face.rotation))


def renderer_loss(
    options: FaceAutoencoderOptions, dynamics: Any, features: Any = None, analyzer: FaceAnalyzer | None = None
):
    """All losses on decoded pictures; in stage `renderer` motion comes from labels, in `joint` from the encoders."""
    joint = options.stage == "joint"
    visible, importance = visibility(dynamics), torch.ones(len(dynamics.ids))
    importance[dynamics.tensors["rows_lids"]] = 3
    importance[dynamics.tensors["rows_lips"]] = 2
    irises = torch.from_numpy(dynamics.ids >= 468)
    importance[irises] = 24  # few and small: gaze lives in them

    def loss(modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        model = modules["autoencoder"]
        size = options.train_size or PRESETS[options.preset]["image_size"]
        with torch.autocast(batch["source"].device.type, enabled=False):
            sample = augment(batch, dynamics, size)
        source, driving, weight = sample["source"], sample["driving"], sample["weight"]
        source_motion, driving_motion = sample["source_motion"], sample["driving_motion"]
        terms: dict[str, Tensor] = {}
        if joint:
            encoded = model(torch.cat([source, driving]), motion_only=True)
            terms["motion"], _ = motion_error(encoded.float(), torch.cat([source_motion, driving_motion]), visible)
            # Not in the paper: some labels keep the decoder used to clean motion, such as the generator's.
            labelled = torch.rand(len(source), 1, device=source.device) < options.label_share
            source_motion, driving_motion = (
                torch.where(labelled, label.to(own.dtype), own)
                for label, own in zip((source_motion, driving_motion), encoded.chunk(2), strict=True)
            )
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
                wanted = seen_gaze(analyzer, driving)
            terms["gaze"] = losses.gaze_loss(seen_gaze(analyzer, prediction), wanted)
        if options.weight_adversarial:
            fake, fake_features = modules["discriminator"](prediction)
            _, real_features = modules["discriminator"](driving)
            matching = losses.feature_matching_loss(real_features, fake_features)
            terms["adversarial"] = losses.generator_loss(fake) + 10 * matching
            batch["fake"], batch["real"] = prediction.detach(), driving
        if options.weight_contrastive:
            again = model(prediction, motion_only=True)[:, POSE_DIM:]
            others = sample["other_motion"][None, :, POSE_DIM:].expand(len(again), -1, -1)
            wanted = driving_motion[:, POSE_DIM:].detach()
            terms["contrastive"] = losses.motion_contrastive_loss(again, wanted, others)
        if options.weight_consist:
            mixed = torch.cat([source_motion[:, :POSE_DIM], driving_motion[:, POSE_DIM:]], 1)
            onto_driving = model(driving, source, driving_motion, mixed).sample.float()
            onto_source = model(source, driving, source_motion, mixed).sample.float()
            real = ~batch["is_portrait"]  # a pseudo driver has no background of its own
            if real.any():
                terms["consist"] = losses.consistency_loss(onto_driving[real], onto_source[real])
        if options.weight_cross_id:
            foreign = torch.cat([source_motion[:, :POSE_DIM], sample["other_motion"][:, POSE_DIM:]], 1)
            transferred = model(source, driving, source_motion, foreign).sample.float()
            terms["cross_id"] = losses.cross_identity_loss(features, source, transferred)
        total = sum(getattr(options, f"weight_{name}") * value for name, value in terms.items())
        with torch.no_grad():
            mse = (prediction - driving).square().mean((1, 2, 3)).clamp_min(1e-8) / 4
            copy = (source - driving).square().mean((1, 2, 3)).clamp_min(1e-8) / 4
            real = ~batch["is_portrait"]
            terms["psnr"] = -10 * mse[real].log10().mean() if real.any() else mse.new_tensor(0.0)
            terms["psnr_copy"] = -10 * copy[real].log10().mean() if real.any() else mse.new_tensor(0.0)
        return total, terms

    return loss


def discriminator_player(learning_rate: float) -> Player:
    """The player of `modules["discriminator"]`."""
    return Player("discriminator", ("discriminator",), discriminator_player_loss, learning_rate, (0.5, 0.99))


def discriminator_player_loss(modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int):
    """The discriminator's turn on what the generator's turn left in the batch."""
    discriminator = modules["discriminator"]
    loss = losses.discriminator_loss(discriminator(batch["real"])[0], discriminator(batch["fake"])[0])
    return loss, {}


def sample_sheet(dataset: FacePairs, size: int, rows: int = 6):
    """Contact sheets: source | driving | decoded | difference, from averaged weights."""

    def write(modules: dict[str, nn.Module], step: int, folder: Path) -> None:
        model = modules["autoencoder"]
        device = next(model.parameters()).device
        samples = [dataset[10**6 + index] for index in range(rows)]
        batch = {key: torch.stack([s[key] for s in samples]).to(device) for key in samples[0]}
        torch.manual_seed(0)
        sample = augment(batch, dataset.dynamics, size)
        out = model(sample["source"], sample["driving"], sample["source_motion"], sample["driving_motion"]).sample
        difference = (out.float() - sample["driving"]).abs() * 2 - 1
        sheet = torch.cat([sample["source"], sample["driving"], out.float(), difference], 3)
        sheet = torch.cat(list(sheet), 1).clamp(-1, 1)
        pixels = ((sheet.permute(1, 2, 0) + 1) * 127.5).round().byte().cpu().numpy()
        Image.fromarray(pixels).save(folder / f"sheet-{step:07d}.png")

    return write


def main(arguments: list[str] | None = None) -> Vasa1FaceAutoencoder:
    """Run one stage and save the averaged weights.

    Args:
        arguments (`list[str]`, *optional*): Command line, defaults to the process' own.
    """
    options = parse_options(FaceAutoencoderOptions, arguments, __doc__.splitlines()[0])
    if options.stage not in ("encoders", "renderer", "joint"):
        raise ValueError(f"`stage` must be 'encoders', 'renderer' or 'joint', got {options.stage!r}.")
    if (options.weight_perceptual or options.weight_cross_id) and not options.perceptual:
        raise ValueError("`perceptual` must name a face recogniser folder when its losses have a weight.")
    if options.weight_gaze and not options.gaze_network:
        raise ValueError("`gaze_network` must name a face analyzer folder when `weight_gaze` is not 0.")
    if options.pipeline:
        start = Path(resolve(options.pipeline))
        options.initial = options.initial or str(start / "face_autoencoder")
        options.dynamics = options.dynamics or str(start / "landmark_dynamics.safetensors")
    torch.manual_seed(options.seed)
    process, dataset = PartialState(cpu=options.cpu), open_pairs(options)
    if options.initial:
        model = Vasa1FaceAutoencoder.from_pretrained(resolve(options.initial), torch_dtype=torch.float32)
    else:
        model = Vasa1FaceAutoencoder(**PRESETS[options.preset])
    channels_last(model)
    final_size = model.config.image_size
    options = dataclasses.replace(options, train_size=options.train_size or final_size)
    model.register_to_config(image_size=options.train_size)
    modules: dict[str, nn.Module] = {"autoencoder": model}
    if options.analyzer:
        start_from_landmarker(model, options.analyzer)
    if options.stage == "encoders":
        parts = ("pose_encoder", "dynamics_encoder")
        if not options.learn_backbones:
            parts = tuple(f"{part}.{head}" for part in parts for head in ("head", "reduce"))
        freeze(model, lambda name: name.startswith(parts))
        loss = encoders_loss(options, dataset.dynamics)
    else:
        learns_motion = options.stage == "joint"
        freeze(model, lambda name: learns_motion or not name.startswith(("pose_encoder", "dynamics_encoder")))
        if options.only:
            freeze(model, lambda name: name.startswith(tuple(options.only)))
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise ValueError(f"`only` must name parts of the face autoencoder, got {options.only}.")
        if options.perceptual:
            modules["features"] = pretrained_features(resolve(options.perceptual))
        if options.gaze_network:
            analyzer = FaceAnalyzer.from_pretrained(resolve(options.gaze_network), torch_dtype=torch.float32)
            modules["analyzer"] = analyzer.eval().requires_grad_(False)
        loss = renderer_loss(options, dataset.dynamics, modules.get("features"), modules.get("analyzer"))
    players = [Player("generator", ("autoencoder",), loss, options.learning_rate)]
    if options.weight_adversarial:
        modules["discriminator"] = losses.MultiScalePatchDiscriminator(32)
        players.append(discriminator_player(options.learning_rate))
    on_sample = sample_sheet(dataset, options.train_size) if options.stage != "encoders" else None
    state = train(options, modules, players, dataset, ("autoencoder",), print_log, on_sample)
    state.ema["autoencoder"].copy_to(model)
    if not process.is_main_process:
        return model
    model.register_to_config(image_size=final_size)
    model.requires_grad_(True)
    target = Path(options.save or Path(options.output) / "face_autoencoder")
    model.half().save_pretrained(target, max_shard_size="15MB")
    dataset.dynamics.save(Path(options.output) / "landmark_dynamics.safetensors")
    if options.pipeline:
        save_pipeline(options.pipeline, Path(options.output) / "pipeline", face_autoencoder=model)
    return model.float()


def open_pairs(options: Any) -> FacePairs:
    """The pairs of frames that the options describe; the main process decodes them first."""
    with PartialState(cpu=options.cpu).main_process_first():
        return FacePairs(
            options.data,
            options.cache,
            options.seed,
            options.portrait_share,
            dynamics=resolve(options.dynamics) if options.dynamics else None,
            rendered=options.rendered,
            rendered_share=options.rendered_share,
            stream=options.stream,
        )


def freeze(model: nn.Module, learns: Any) -> None:
    """Let only the parameters learn whose name passes."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns(name))


def start_from_landmarker(model: Vasa1FaceAutoencoder, folder: str) -> None:
    """Give the pose and dynamics encoders the backbone and heat maps of a trained landmarker."""
    landmarker = FaceAnalyzer.from_pretrained(resolve(folder), torch_dtype=torch.float32).landmarker
    for encoder in (model.pose_encoder, model.dynamics_encoder):
        encoder.backbone.load_state_dict(landmarker.backbone.state_dict())
        encoder.heat.load_state_dict(landmarker.heat.state_dict())


def channels_last(model: nn.Module) -> None:
    """Lay convolution kernels out channels last: about twice as fast on CPUs, and faster with bf16 on GPUs."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)


if __name__ == "__main__":
    main()

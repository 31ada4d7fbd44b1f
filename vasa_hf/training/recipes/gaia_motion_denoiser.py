"""Train GAIA's diffusion model with its speech encoder and pose predictor (§4.3, Eq. 10).

    accelerate launch -m vasa_hf.training gaia_motion_denoiser --data DIR [DIR ...] --prepared motion_data \
        --autoencoder RUN/autoencoder --output DIR

Landmarks and head pose are those of the labels in `DIR/clips.npz`; speech features of the same frames are those of
`motion_data.safetensors`, which the training of VASA-1's motion transformer keeps (`--labels`). E_M encodes the
landmarks of all frames once. `--predicts landmarks` trains the model of landmark coordinates (appendix D.2).

# Not in the paper: the second term of Eq. 10 counts in deviations of the pose; speech dropped for guidance.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import Dataset

from vasa_hf.data.clip_files import list_clips
from vasa_hf.data.clips import MotionData, data_folders
from vasa_hf.data.landmark_sequences import LandmarkMotion, LandmarkSequences, encode_landmarks, landmark_motion
from vasa_hf.geometry.landmark_pictures import draw_landmarks
from vasa_hf.hub import resolve
from vasa_hf.models.autoencoder_gaia import GaiaAutoencoder
from vasa_hf.models.motion_denoiser_gaia import (
    BACKBONES,
    CONDITIONINGS,
    PREDICTIONS,
    PRESETS,
    GaiaMotionDenoiser,
    gaia_scheduler,
    vp_marginal,
)
from vasa_hf.training.loop import Player, TrainingState
from vasa_hf.training.networks import channels_last
from vasa_hf.training.options import LoopOptions, option
from vasa_hf.training.recipes.motion_transformer import motion_loss
from vasa_hf.training.saving import train_and_save
from vasa_hf.training.sheets import save_images

NAME = "motion_transformer"


@dataclass
class DenoiserOptions(LoopOptions):
    """Options that the trainings of GAIA's diffusion models share."""

    autoencoder: str | None = option(None, "folder of the autoencoder whose E_M makes the latents")
    predicts: str = option("latent", "what is learnt; landmarks are coordinates", PREDICTIONS)
    initial: str | None = option(None, "folder of a denoiser to continue from, instead of random weights")
    preset: str = option("paper", "size of a new model", PRESETS)
    window: int = option(125, "frames of a window that is generated")
    context: int = option(25, "frames that a window shares with the one before")
    backbone: str = option("conformer", "kind of the blocks (Table 9)", BACKBONES)
    speech_condition: str = option("add", "how blocks see speech (Table 9)", CONDITIONINGS)
    reference_condition: str = option("attention", "how they see the reference", CONDITIONINGS)
    diffusion: bool = option(True, "without: the ablation of Table 6")
    dropout: float = option(0.0, "dropout of the blocks")
    learning_rate: float = 1e-4
    weight_decay: float = 0.0  # Adam, as in the paper
    velocity_weight: float = option(0.0, "weight of the error of frame differences")


@dataclass
class GaiaDenoiserOptions(DenoiserOptions):
    """Options of this stage."""

    data: list[str] = option([], "folders with clips.npz, or shards; several are joined")
    prepared: str | None = option(None, "motion_data.safetensors with the speech features of the same frames")
    use_pose: bool = option(True, "head pose as a condition; without: the ablation of Table 6")
    shortest: int = option(125, "fewest frames of a training window")
    longest: int = option(250, "most frames of a training window")
    smoothing: float = option(0.5, "deviation in frames of the Gaussian that takes noise off labels")
    drop_audio: float = option(0.1, "how often a sample has no speech")
    data_share: float = option(1.0, "share of the clips that are used (Table 5)")


class DenoiserLoss:
    """The player's loss: noise at a random time, prediction under the conditions of the batch, Eq. 10."""

    def __init__(self, options: DenoiserOptions, model: GaiaMotionDenoiser):
        self.options, self.model = options, model

    def __call__(self, modules: dict[str, nn.Module], batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch of `LandmarkSequences`."""
        model = self.model
        target = model.normalize(batch["motion"], batch["reference"])
        t = torch.rand(len(target), device=target.device).clamp_min(1e-3)
        mean, deviation = (x[:, None, None] for x in vp_marginal(t))
        noisy = mean * target + deviation * torch.randn_like(target)
        output = modules[NAME](
            noisy,
            1000 * t - 1,
            audio=self.speech(modules, batch),
            reference=batch["reference"],
            pose=batch["pose"] if model.config.use_pose else None,
            frame_mask=batch["frame_mask"],
            drop={"audio": batch["drop_audio"]},
        )
        weight = torch.ones(target.shape[-1], device=target.device)
        loss, logs = motion_loss(output.sample, target, batch["frame_mask"], weight, self.options.velocity_weight)
        if model.config.use_pose:
            heard = (batch["frame_mask"] & ~batch["drop_audio"][:, None])[..., None]
            error = ((output.pose.float() - batch["pose"]) / model.pose_std).square() * heard
            logs["pose"] = error.sum() / (3 * heard.sum()).clamp_min(1)
            loss = loss + logs["pose"]
        return loss, logs

    def speech(self, modules: dict[str, nn.Module], batch: dict) -> Tensor:
        """Features that take the place of speech, `(batch, frames, audio_dim)`."""
        return batch["audio"]


@torch.no_grad()
def fit_statistics(model: GaiaMotionDenoiser, dataset: Dataset, samples: int = 200) -> None:
    """Write mean and deviation of motion and pose into the model.

    Numbers of a latent that hardly change are not blown up to unit variance.
    """
    chosen = [dataset[index] for index in range(samples)]
    own = [sample["reference"] if model.config.residual else torch.zeros(()) for sample in chosen]
    motion = torch.cat([s["motion"][s["frame_mask"]] - o for s, o in zip(chosen, own, strict=True)])
    pose = torch.cat([sample["pose"][sample["frame_mask"]] for sample in chosen])
    spread = motion.std(0)
    model.motion_mean.copy_(motion.mean(0))
    model.motion_std.copy_(spread.clamp_min(0.2 * float(spread.mean())).clamp_min(1e-4))
    model.pose_mean.copy_(pose.mean(0))
    model.pose_std.copy_(pose.std(0).clamp_min(1e-3))


@torch.no_grad()
def sample_motion(
    model: GaiaMotionDenoiser, conditions: dict[str, Tensor | None], frames: int, steps: int = 10
) -> Tensor:
    """Draw motion `(batch, frames, motion_dim)` by the ODE; conditions are arguments of the model."""
    scheduler, reference = gaia_scheduler(), conditions["reference"]
    scheduler.set_timesteps(steps, device=reference.device)
    sample = torch.randn(len(reference), frames, model.config.motion_dim, device=reference.device)
    for timestep in scheduler.timesteps:
        sample = scheduler.step(model(sample, timestep, **conditions).sample, timestep, sample).prev_sample
    return model.denormalize(sample, reference)


@torch.no_grad()
def encode_latents(options: DenoiserOptions, landmarks: np.ndarray) -> np.ndarray:
    """Latents `(frames, motion_dim)` by the E_M of the autoencoder that the options name, float16.

    Of landmarks `(frames, 162, 2)`; without disentanglement (Table 6), of the frames of the clips themselves.

    Raises:
        ValueError: If the frames are encoded, and are not those of the landmarks.
    """
    device = "cuda" if torch.cuda.is_available() and not options.cpu else "cpu"
    model = GaiaAutoencoder.from_pretrained(resolve(options.autoencoder), torch_dtype=torch.float32).to(device).eval()
    channels_last(model)

    def encode(pictures: Tensor) -> Tensor:
        return model.flatten_motion(model.encode_motion(pictures.to(device)).mode())

    size = model.config.image_size
    if model.config.motion_input == "landmarks":
        return encode_landmarks(lambda points: encode(draw_landmarks(points.to(device), size)), landmarks)
    clips = [clip for folder in data_folders(options.data) for clip in list_clips(folder, labelled=True)]
    parts = (encode(images * 2 - 1) for clip in clips for images in clip.read_frames(size))
    latents = np.concatenate([part.float().cpu().numpy().astype(np.float16) for part in parts])
    if len(latents) != len(landmarks):
        raise ValueError(
            "`autoencoder` must encode landmarks, or `data` hold the frames that are learnt: got "
            f"{len(latents)} frames for {len(landmarks)}."
        )
    return latents


def encoded(options: DenoiserOptions, make: Any) -> LandmarkMotion:
    """The data that `make()` gives, with latents where they are learnt; kept in the output folder.

    Raises:
        ValueError: If latents are learnt and there is no autoencoder.
    """
    kept = Path(options.output) / "landmark_motion.safetensors"
    if kept.exists():
        return LandmarkMotion.load(kept)
    if options.predicts == "latent" and not options.autoencoder:
        raise ValueError("`autoencoder` must name a folder to learn latents.")
    data = make()
    if options.predicts == "latent":
        data.latent = encode_latents(options, data.landmarks)
    kept.parent.mkdir(parents=True, exist_ok=True)
    data.save(kept)
    return data


def make_denoiser(options: DenoiserOptions, dataset: Dataset, audio_dim: int, **config: Any) -> GaiaMotionDenoiser:
    """The denoiser that the options name, with the statistics of the dataset."""
    if options.initial:  # with the statistics that its weights are used to
        return GaiaMotionDenoiser.from_pretrained(resolve(options.initial), torch_dtype=torch.float32)
    model = GaiaMotionDenoiser(
        motion_dim=dataset[0]["motion"].shape[-1],
        motion_channels=2 if options.predicts == "landmarks" else 3,
        audio_dim=audio_dim,
        window=options.window,
        context=options.context,
        backbone=options.backbone,
        speech_condition=options.speech_condition,
        reference_condition=options.reference_condition,
        diffusion=options.diffusion,
        predicts=options.predicts,
        dropout=options.dropout,
        **{**PRESETS[options.preset], **config},
    )
    fit_statistics(model, dataset)
    return model


def motion_pictures(motion: Tensor, predicts: str, every: int = 10) -> Tensor:
    """Frames of motion `(frames, motion_dim)` side by side, `(3, 96, width)`: landmarks, or latents as colours."""
    motion = motion[::every].float().cpu()
    if predicts == "landmarks":
        pictures = draw_landmarks(motion.unflatten(1, (-1, 2)), 96)
    else:
        side = int((motion.shape[1] // 3) ** 0.5)
        latent = motion.unflatten(1, (side, side, 3)).permute(0, 3, 1, 2)
        pictures = torch.nn.functional.interpolate(latent, size=(96, 96)) / 3
    return torch.cat(list(pictures), 2).clamp(-1, 1)


def sample_sheet(dataset: Dataset, loss: DenoiserLoss, rows: int = 3) -> Any:
    """Sheets: motion of the data, and below it a motion drawn under its conditions."""

    @torch.no_grad()
    def write(modules: dict[str, nn.Module], step: int, folder: Path) -> None:
        model, strips = modules[NAME], []
        samples = [dataset[10**6 + index] for index in range(rows)]
        batch = {key: torch.stack([s[key] for s in samples]).to(model.device) for key in samples[0]}
        torch.manual_seed(0)
        conditions = {"audio": loss.speech(modules, batch), **{k: batch[k] for k in ("reference", "frame_mask")}}
        drawn = sample_motion(model, conditions, batch["motion"].shape[1])
        for truth, motion, mask in zip(batch["motion"], drawn, batch["frame_mask"], strict=True):
            strips += [motion_pictures(x[mask], model.config.predicts) for x in (truth, motion)]
        width = max(strip.shape[2] for strip in strips)
        sheet = torch.cat([nn.functional.pad(strip, (0, width - strip.shape[2]), value=-1.0) for strip in strips], 1)
        save_images(sheet, folder / f"sheet-{step:07d}.png")

    return write


def run(options: GaiaDenoiserOptions) -> TrainingState:
    """Prepare the data, train, and save `motion_transformer/` and `scheduler/` in the output."""
    if not options.data or not options.prepared:
        raise ValueError("`data` and `prepared` must be given.")
    with PartialState(cpu=options.cpu).main_process_first():
        speech = MotionData.load(options.prepared)
        data = encoded(options, lambda: landmark_motion(options.data, speech, options.smoothing))
    dataset = LandmarkSequences(
        data,
        options.predicts,
        options.shortest,
        options.longest,
        options.seed,
        options.drop_audio,
        options.data_share,
    )
    torch.manual_seed(options.seed)
    model = make_denoiser(options, dataset, data.audio.shape[1], use_pose=options.use_pose)
    loss = DenoiserLoss(options, model)
    player = Player(NAME, (NAME,), loss, options.learning_rate, weight_decay=options.weight_decay)
    components = {NAME: model, "scheduler": gaia_scheduler()}
    on_sample = sample_sheet(dataset, loss)
    return train_and_save(options, {NAME: model}, [player], dataset, (NAME,), lambda: components, on_sample=on_sample)

"""Train the sync expert: lips against audio, contrastively over clips and over shifts.

    accelerate launch -m vasa_hf.training sync_expert --data DIR [DIR ...] --motion-cache MOTION.npy --output DIR
    vasa-hf train sync_expert --study DIR/sync_expert --data EVAL_DIR --motion-cache EVAL_MOTION.npy

`DIR/clips/*.mp4` are clips with audio at 25 frames per second, `DIR/clips.npz` holds their `names` and the `offsets` of
their frames. `MOTION.npy` has the motion of all frames, one folder after another, as the face autoencoder or the
landmark model encodes it; without it the motion comes from the labels in `clips.npz`, by
`data.clips.motion_from_labels`. Spectrograms are computed once and kept in the output folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from vasa_hf.data.clip_files import list_clips
from vasa_hf.data.clips import MotionData, data_folders, motion_from_labels, rows_at, smooth_in_time
from vasa_hf.metrics.sync import MIN_PAIRS, sync_study
from vasa_hf.models.sync_expert import COLUMNS_PER_FRAME, POWER_FLOOR, SyncExpert
from vasa_hf.training.loop import Player, TrainingState
from vasa_hf.training.motion_data import ClipOptions, check_frames, read_motion
from vasa_hf.training.options import LoopOptions, option
from vasa_hf.training.saving import train_and_save

NAME = "sync_expert"


@dataclass
class ExpertOptions(LoopOptions):
    """Options of every training of a sync expert."""

    frames: int = option(25, "frames of a sample")
    hidden_size: int = option(128, "channels inside the model")
    embed_dim: int = option(64, "channels of the vectors")
    dropout: float = option(0.1, "dropout of the model")
    shift_weight: float = option(1.0, "weight of the loss over shifts of one clip, next to that over all clips")
    learning_rate: float = 1e-3
    weight_decay: float = 0.05


@dataclass
class SyncExpertOptions(ExpertOptions, ClipOptions):
    """Options of this recipe; see also `ExpertOptions`, `ClipOptions` and `LoopOptions`."""

    flip: str | None = option(None, "matrix (.npy) that mirrors a motion, m @ flip.T; no mirroring if left out")
    study: str | None = option(None, "folder of a trained expert: no training, only its judgement of the clips")
    lips: list[int] = option([6, 20], "first and one past the last channel of the lips")
    window: int = option(9, "frames of a window of the model")


class SyncSamples(Dataset):
    """Pieces of talking clips, changed at random: `dataset[i]` is a pure function of the seed and `i`.

    A sample has `motion` (frames, M) and `log_mel` (4 * frames, bands). Both are slowed or hurried together. Lips are
    mirrored, scaled, offset, blurred in time, made noisy, and single channels lost, as encoders and generators do;
    the audio gets another level, another vocal tract (bands moved), noise, and lost bands.

    Args:
        data (`MotionData`): Clips; `audio` holds the spectrogram, the columns of a frame side by side.
        lips (`tuple[int, int]`): Channels of the lips.
        frames (`int`): Frames of a sample; shorter clips are not used.
        flip (`numpy.ndarray` of shape `(M, M)`, *optional*): Mirrors a motion.
        augment (`bool`, defaults to `True`): Whether to change anything.
        seed (`int`, defaults to 0): Seed.
    """

    def __init__(
        self,
        data: MotionData,
        lips: tuple[int, int],
        frames: int,
        flip: np.ndarray | None = None,
        augment: bool = True,
        seed: int = 0,
    ):
        self.data, self.lips, self.frames, self.flip, self.augment, self.seed = data, lips, frames, flip, augment, seed
        lengths = np.diff(data.offsets)
        self.clips = np.flatnonzero(data.speaks & (lengths >= frames))
        if not len(self.clips):
            raise ValueError(f"`data` must have a clip with audio and at least {frames} frames, got none.")
        self.share = lengths[self.clips] / lengths[self.clips].sum()
        self.std = data.motion.std(0) + 1e-6

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, index])
        clip = rng.choice(self.clips, p=self.share)
        start, stop = self.data.offsets[clip : clip + 2]
        speed = np.exp(rng.uniform(-0.15, 0.15)) if self.augment else 1.0
        needed = min(int(np.ceil(self.frames * speed)) + 1, stop - start)
        first = int(rng.integers(start, stop - needed + 1))
        motion = self.data.motion[first : first + needed].astype(np.float32)
        mel = self.data.audio[first : first + needed].astype(np.float32).reshape(needed * COLUMNS_PER_FRAME, -1)
        if self.augment:
            speed = min(speed, (needed - 1) / (self.frames - 1))
            motion = rows_at(motion, np.arange(self.frames) * speed)
            # A column's centre is (k + 1/2) / 4 - 1/2 frames after the first frame's centre.
            columns = (np.arange(self.frames * COLUMNS_PER_FRAME) + 0.5) / COLUMNS_PER_FRAME - 0.5
            mel = rows_at(mel, (columns * speed + 0.5) * COLUMNS_PER_FRAME - 0.5)
            motion, mel = self._change_motion(rng, motion), _change_sound(rng, mel)
        else:
            motion, mel = motion[: self.frames], mel[: self.frames * COLUMNS_PER_FRAME]
        return {"motion": torch.from_numpy(motion), "log_mel": torch.from_numpy(mel)}

    def _change_motion(self, rng: np.random.Generator, motion: np.ndarray) -> np.ndarray:
        if self.flip is not None and rng.random() < 0.5:
            motion = (motion @ self.flip.T).astype(np.float32)
        lips = motion[:, self.lips[0] : self.lips[1]]
        std = self.std[self.lips[0] : self.lips[1]]
        lips = smooth_in_time(lips, rng.uniform(0.0, 0.9))
        lips = lips.mean(0) + (lips - lips.mean(0)) * rng.uniform(0.6, 1.4)
        lips = lips + std * rng.normal(0, 0.3, lips.shape[1])
        lips = lips + std * rng.normal(0, 1, lips.shape) * rng.uniform(0.0, 0.15)
        lost = rng.random(lips.shape[1]) < rng.choice([0.0, 0.2])
        motion[:, self.lips[0] : self.lips[1]] = np.where(lost, lips.mean(0), lips)
        return motion


def _change_sound(rng: np.random.Generator, mel: np.ndarray) -> np.ndarray:
    """Another level, vocal tract, noise and lost bands, all in the spectrogram."""
    bands = mel.shape[1]
    mel = rows_at(np.ascontiguousarray(mel.T), np.arange(bands) * np.exp(rng.uniform(-0.12, 0.12))).T
    mel = mel + rng.normal(0, 1.0) * 1.5 + rng.normal(0, 0.5) * np.linspace(-1, 1, bands)
    power = np.maximum(np.exp(mel) - POWER_FLOOR, 0.0)
    if rng.random() < 0.5:
        colour = np.exp(rng.uniform(-3, 1) * np.linspace(0, 1, bands) + rng.normal(0, 0.5, bands))
        noise = colour / colour.mean() * rng.exponential(1.0, mel.shape)
        power = power + noise * power.mean() * 10 ** (-rng.uniform(5, 35) / 10)
    mel = np.log(power + POWER_FLOOR)
    if rng.random() < 0.3:
        width = int(rng.integers(1, max(2, bands // 5)))
        first = int(rng.integers(0, bands - width + 1))
        mel[:, first : first + width] = mel.mean()
    return mel.astype(np.float32)


def contrastive_loss(
    motion_embeds: Tensor,  # [B, N, E], unit length
    audio_embeds: Tensor,  # [B, N, E], unit length
    scale: Tensor,
    shift_weight: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """InfoNCE in both directions: each window against all windows of the batch, and against its own clip's alone.

    Windows one frame off are nearly right; they count neither as right nor as wrong.

    Returns:
        `tuple`: scalar loss and its parts `clips`, `shifts`, and `accuracy` (share of windows that find their own time
        among their clip's).
    """
    batch, windows, _ = motion_embeds.shape
    time = torch.arange(windows, device=motion_embeds.device)
    near = (time[:, None] - time).abs() == 1  # [N, N]
    logits = scale * (motion_embeds.flatten(0, 1) @ audio_embeds.flatten(0, 1).T)  # [BN, BN]
    blocks = logits.view(batch, windows, batch, windows)
    within = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).masked_fill(near, float("-inf"))  # [B, N, N]
    same = torch.eye(batch, dtype=torch.bool, device=near.device)[:, None, :, None]
    logits = blocks.masked_fill(same & near[None, :, None, :], float("-inf")).reshape(logits.shape)
    target = torch.arange(len(logits), device=logits.device)
    clips = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    own = time.repeat(batch)
    shifts = F.cross_entropy(within.flatten(0, 1), own) + F.cross_entropy(within.mT.flatten(0, 1), own)
    accuracy = (within.flatten(0, 1).argmax(1) == own).float().mean()
    return clips + shift_weight * shifts / 2, {"clips": clips, "shifts": shifts / 2, "accuracy": accuracy}


def fit_statistics(model: SyncExpert, data: MotionData) -> None:
    """Write mean and deviation of the lips' channels and of the bands into the model."""
    lips = data.motion[:, model.config.lips[0] : model.config.lips[1]].astype(np.float64)
    mel = data.audio.astype(np.float64).reshape(-1, model.config.num_mels)
    for name, values, least in (("motion", lips, 1e-4), ("mel", mel, 1e-2)):
        getattr(model, f"{name}_mean").copy_(torch.from_numpy(values.mean(0)))
        getattr(model, f"{name}_std").copy_(torch.from_numpy(values.std(0)).clamp_min(least))


class SyncLoss:
    """The player's loss on batches of `SyncSamples`."""

    def __init__(self, options: SyncExpertOptions, model: SyncExpert):
        self.options, self.model = options, model

    def __call__(self, modules: dict[str, nn.Module], batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Contrastive loss of one batch."""
        model = modules[NAME]
        motion_embeds, audio_embeds = model(batch["motion"], log_mel=batch["log_mel"], return_dict=False)
        scale = self.model.log_scale.exp().clamp(max=100.0)
        return contrastive_loss(motion_embeds.float(), audio_embeds.float(), scale, self.options.shift_weight)


def prepare_sync_data(options: SyncExpertOptions) -> MotionData:
    """Motion and spectrograms of all clips, from the prepared file or from the clips."""
    kept = Path(options.output) / "sync_data.safetensors"
    if options.prepared or (kept.exists() and not options.study):
        return MotionData.load(options.prepared or kept)
    if not options.data:
        raise ValueError("`data` must be given unless `prepared` is.")
    folders, model = data_folders(options.data), SyncExpert()
    count = sum(clip.num_frames for folder in folders for clip in list_clips(folder, labelled=True))
    motion = np.load(options.motion_cache) if options.motion_cache else motion_from_labels(folders)[0]
    check_frames(count, motion_cache=motion)

    def spectrum(samples: np.ndarray, frames: int) -> np.ndarray:
        return model.log_mel(torch.from_numpy(samples)[None])[0].numpy().reshape(frames, -1).astype(np.float16)

    data = read_motion(folders, spectrum, motion=motion)
    if not options.study:
        kept.parent.mkdir(parents=True, exist_ok=True)
        data.save(kept)
    return data


@torch.no_grad()
def study(model: SyncExpert, data: MotionData) -> dict:
    """`metrics.sync.sync_study` of all clips that speak."""
    embeds = []
    for clip in np.flatnonzero(data.speaks):
        start, stop = data.offsets[clip : clip + 2]
        if stop - start >= model.config.window + MIN_PAIRS:
            motion = torch.from_numpy(data.motion[start:stop].astype(np.float32))[None]
            mel = torch.from_numpy(data.audio[start:stop].astype(np.float32).reshape(1, -1, model.config.num_mels))
            visual, audio = model(motion.to(model.device), log_mel=mel.to(model.device), return_dict=False)
            embeds.append((visual[0].float().cpu(), audio[0].float().cpu()))
    return {"clips": len(embeds), **sync_study(embeds)}


def run(options: SyncExpertOptions) -> TrainingState | dict:
    """Prepare the data, train, and save `sync_expert/` with averaged weights in the output; or judge one."""
    data = prepare_sync_data(options)
    if options.study:
        model = SyncExpert.from_pretrained(options.study, torch_dtype=torch.float32).eval()
        result = study(model, data)
        print("\n".join(f"{name}: {np.round(value, 4)}" for name, value in result.items()))
        return result
    flip = np.load(options.flip) if options.flip else None
    lips = (options.lips[0], options.lips[1])
    torch.manual_seed(options.seed)
    model = SyncExpert(
        motion_dim=data.motion.shape[-1],
        lips=lips,
        num_mels=data.audio.shape[-1] // COLUMNS_PER_FRAME,
        hidden_size=options.hidden_size,
        embed_dim=options.embed_dim,
        window=options.window,
        dropout=options.dropout,
    )
    fit_statistics(model, data)
    dataset = SyncSamples(data, lips, options.frames, flip, seed=options.seed)
    return train_expert(options, model, SyncLoss(options, model), dataset)


def train_expert(options: ExpertOptions, model: SyncExpert, loss: Callable, dataset: Dataset) -> TrainingState:
    """Train a sync expert by a loss and save `sync_expert/`."""
    player = Player(NAME, (NAME,), loss, options.learning_rate, weight_decay=options.weight_decay)
    return train_and_save(options, {NAME: model}, [player], dataset, (NAME,), lambda: {NAME: model})

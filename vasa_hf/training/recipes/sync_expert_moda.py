"""Train MoDA's lip-sync expert (ALSE, §3.2.4): do these lips' keypoints belong to these audio features?

    accelerate launch -m vasa_hf.training sync_expert_moda OPTIONS --output DIR

OPTIONS name data as for `motion_transformer_moda`. The expert is a `SyncExpert` of the lips' 18 expression
numbers and of the generator's own audio features, trained contrastively over clips and over shifts as the project's
other one. It teaches the generator and must not judge it: it hears with the same ears.

# Not in the paper: its size and its loss (the supplement is not public).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from vasa_hf.models.sync_expert import SyncExpert
from vasa_hf.training.loop import TrainingState
from vasa_hf.training.moda_data import LIP_CHANNELS, ModaDataOptions, as_columns, lips_of, make_dataset
from vasa_hf.training.options import option
from vasa_hf.training.recipes.sync_expert import NAME, ExpertOptions, contrastive_loss, train_expert

_TRIES = 50


@dataclass
class AlseOptions(ExpertOptions, ModaDataOptions):
    """Options of this stage; see also `ExpertOptions`, `ModaDataOptions` and `LoopOptions`."""

    expert_window: int = option(9, "frames of a window of the model")
    motion_noise: float = option(0.1, "deviation of noise on the lips, in deviations of the lips")


class SpeechWindows(Dataset):
    """Windows of speech without padding: `dataset[i]` is a pure function of `i`.

    A sample has `motion` (frames, 18), the lips, and `log_mel` (4 * frames, width), the audio features.

    Args:
        dataset (`torch.utils.data.Dataset`): Of the generator; samples whose `drop_audio` is true have no audio that
            belongs to the lips.
        frames (`int`): Frames of a window.
        seed (`int`, defaults to 0): Seed.
    """

    def __init__(self, dataset: Dataset, frames: int, seed: int = 0):
        self.dataset, self.frames, self.seed = dataset, frames, seed

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Draw sample `index`.

        Raises:
            ValueError: If many samples in a row are too short or without audio.
        """
        rng = np.random.default_rng([self.seed, index, 2])
        for chosen in [index, *rng.integers(2**40, size=_TRIES).tolist()]:
            sample = self.dataset[chosen]
            spare = int(sample["frame_mask"].sum()) - self.frames
            if spare >= 0 and not sample["drop_audio"]:
                rows = slice(first := int(rng.integers(spare + 1)), first + self.frames)
                return {"motion": lips_of(sample["motion"][rows]), "log_mel": as_columns(sample["audio"][rows])}
        raise ValueError(f"`dataset` must have samples with audio and at least {self.frames} frames.")


@torch.no_grad()
def fit_statistics(model: SyncExpert, dataset: Dataset, samples: int = 300) -> None:
    """Write mean and deviation of lips and audio features into the model."""
    chosen = [dataset[index] for index in range(samples)]
    for name, key, least in (("motion", "motion", 1e-6), ("mel", "log_mel", 1e-2)):
        values = torch.cat([sample[key] for sample in chosen]).double()
        getattr(model, f"{name}_mean").copy_(values.mean(0))
        getattr(model, f"{name}_std").copy_(values.std(0).clamp_min(least))


class AlseLoss:
    """The player's loss on batches of `SpeechWindows`."""

    def __init__(self, options: AlseOptions, model: SyncExpert):
        self.options, self.model = options, model

    def __call__(self, modules: dict[str, nn.Module], batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Contrastive loss of one batch; a little noise makes the expert forgive what generators leave of it."""
        motion = batch["motion"]
        motion = motion + self.options.motion_noise * self.model.motion_std * torch.randn_like(motion)
        embeds = modules[NAME](motion, log_mel=batch["log_mel"], return_dict=False)
        scale = self.model.log_scale.exp().clamp(max=100.0)
        return contrastive_loss(*(value.float() for value in embeds), scale, self.options.shift_weight)


def run(options: AlseOptions) -> TrainingState:
    """Prepare the data, train, and save `sync_expert/` with averaged weights in the output."""
    dataset = SpeechWindows(make_dataset(options, drop_audio=0.0), options.frames, options.seed)
    torch.manual_seed(options.seed)
    model = SyncExpert(
        motion_dim=len(LIP_CHANNELS),
        lips=(0, len(LIP_CHANNELS)),
        num_mels=dataset[0]["log_mel"].shape[-1],
        hidden_size=options.hidden_size,
        embed_dim=options.embed_dim,
        window=options.expert_window,
        dropout=options.dropout,
    )
    fit_statistics(model, dataset)
    return train_expert(options, model, AlseLoss(options, model), dataset)

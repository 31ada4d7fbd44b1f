"""Train GAIA's text-instructed diffusion model (appendix E): a text encoder's features take the place of speech.

    accelerate launch -m vasa_hf.training gaia_text_denoiser --data DIR [DIR ...] \
        --autoencoder RUN/autoencoder --text-encoder openai/clip-vit-base-patch32 --output DIR

Pairs of instruction and action are composed on the faces of `DIR/clips.npz` and found in its clips, see
`vasa_hf.data.instructions`. Without `--text-encoder` a small CLIP text model, which reads letters, learns with the
denoiser.

# Not in the paper: which of CLIP's features, here the pooled ones, the same for every frame.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vasa_hf.data.clips import MotionPriors, data_folders, join_labels
from vasa_hf.data.face_pairs import people_of_clips
from vasa_hf.data.instructions import ACTIONS, NAMES, compose_instructions, find_instructions
from vasa_hf.data.landmark_dynamics import FaceLabels, LandmarkDynamics
from vasa_hf.data.landmark_sequences import LandmarkMotion
from vasa_hf.files import temporary_folder
from vasa_hf.hub import resolve
from vasa_hf.models.motion_denoiser_gaia import gaia_scheduler
from vasa_hf.training.loop import Player, TrainingState
from vasa_hf.training.options import option
from vasa_hf.training.recipes.gaia_motion_denoiser import (
    NAME,
    DenoiserLoss,
    DenoiserOptions,
    encoded,
    make_denoiser,
    sample_sheet,
)
from vasa_hf.training.saving import train_and_save

START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass
class GaiaTextOptions(DenoiserOptions):
    """Options of this stage."""

    data: list[str] = option([], "folders with clips.npz, or shards; several are joined")
    dynamics: str = option("vasa-small/landmark_dynamics.safetensors", "landmark dynamics file")
    priors: str = option("vasa-small/motion_priors.safetensors", "safetensors file of known directions in z_dyn")
    text_encoder: str | None = option(None, "folder or Hub name of a CLIP text model; else a small one is trained")
    text_width: int = option(64, "width of that small one")
    composed: int = option(560, "composed clips")
    frames: int = option(75, "frames of a clip")
    window: int = 75
    drop_audio: float = option(0.1, "how often a sample has no instruction")


def byte_tokenizer() -> CLIPTokenizer:
    """A tokenizer of CLIP's kind whose tokens are single bytes: it needs no vocabulary of a download."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # as GPT-2 writes bytes
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    names = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    with temporary_folder() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=48)


def make_text_encoder(options: GaiaTextOptions) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The text encoder that the options name, or a small one, with its tokenizer."""
    if options.text_encoder:
        name = resolve(options.text_encoder)
        return CLIPTokenizer.from_pretrained(name), CLIPTextModel.from_pretrained(name, use_safetensors=True)
    tokenizer, width = byte_tokenizer(), options.text_width
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=max(1, width // 32),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return tokenizer, CLIPTextModel(config)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Tokens `(texts, tokens)`, padded to the tokenizer's length."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]


class InstructionSequences(Dataset):
    """Clips with one of the phrases for what they show: `dataset[i]` is a pure function of the seed and `i`.

    A sample is that of `LandmarkSequences`, with `input_ids` (tokens,) instead of `audio`; the reference is frame 0.

    Args:
        data (`LandmarkMotion`): Clips with an `action`.
        tokens (`dict[int, torch.Tensor]`): Number of the action to tokens `(phrases, tokens)`.
        predicts (`str`): See `LandmarkMotion.motion`.
        seed (`int`): Seed.
        drop_audio (`float`): How often a sample has no instruction.
    """

    def __init__(
        self, data: LandmarkMotion, tokens: dict[int, Tensor], predicts: str, seed: int = 0, drop_audio: float = 0.0
    ):
        self.data, self.tokens, self.seed, self.drop_audio = data, tokens, seed, drop_audio
        self.motion = data.motion(predicts)
        # Actions that are found more often than others are not drawn more often.
        counts = np.bincount(data.action, minlength=len(NAMES))
        self.share = 1.0 / counts[data.action] / np.count_nonzero(counts)

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Draw sample `index`."""
        rng = np.random.default_rng([self.seed, index])
        clip = int(rng.choice(len(self.share), p=self.share))
        rows = slice(*(int(x) for x in self.data.offsets[clip : clip + 2]))
        phrases = self.tokens[int(self.data.action[clip])]
        return {
            "motion": torch.from_numpy(np.array(self.motion[rows], np.float32)),
            "pose": torch.from_numpy(np.array(self.data.pose[rows], np.float32)),
            "reference": torch.from_numpy(np.array(self.motion[rows.start], np.float32)),
            "frame_mask": torch.ones(rows.stop - rows.start, dtype=torch.bool),
            "input_ids": phrases[int(rng.integers(len(phrases)))],
            "drop_audio": torch.tensor(rng.random() < self.drop_audio),
        }


class TextDenoiserLoss(DenoiserLoss):
    """`DenoiserLoss` with the text encoder's features for every frame."""

    def speech(self, modules: dict[str, nn.Module], batch: dict) -> Tensor:
        """Pooled features of the instruction, the same for every frame: `(batch, frames, text_dim)`."""
        pooled = modules["text_encoder"](batch["input_ids"]).pooler_output
        return pooled[:, None].expand(-1, batch["motion"].shape[1], -1)


def make_instructions(options: GaiaTextOptions) -> LandmarkMotion:
    """Composed clips and those found in the data, as one."""
    folders = data_folders(options.data)
    parts = [FaceLabels.load(folder / "clips.npz") for folder in folders]
    people = [
        f"{number} {person}"
        for number, (folder, part) in enumerate(zip(folders, parts, strict=True))
        for person in people_of_clips(folder, part.names)
    ]
    labels = join_labels(parts)
    dynamics = LandmarkDynamics.load(resolve(options.dynamics))
    priors = MotionPriors.load(resolve(options.priors))
    made = compose_instructions(labels, people, dynamics, priors, options.composed, options.frames, options.seed)
    found = find_instructions(labels, options.frames, seed=options.seed)
    if found is None:
        return made
    return LandmarkMotion(
        np.concatenate([made.landmarks, found.landmarks]),
        np.concatenate([made.pose, found.pose]),
        np.concatenate([made.offsets, found.offsets[1:] + made.offsets[-1]]),
        action=np.concatenate([made.action, found.action]),
    )


def run(options: GaiaTextOptions) -> TrainingState:
    """Train, and save `text_denoiser/`, `text_encoder/`, `text_tokenizer/` and `scheduler/` in the output."""
    if not options.data:
        raise ValueError("`data` must be given.")
    torch.manual_seed(options.seed)
    with PartialState(cpu=options.cpu).main_process_first():
        data = encoded(options, lambda: make_instructions(options))
    tokenizer, text_encoder = make_text_encoder(options)
    tokens = {number: tokenize(tokenizer, list(ACTIONS[name].phrases)) for number, name in enumerate(NAMES)}
    dataset = InstructionSequences(data, tokens, options.predicts, options.seed, options.drop_audio)
    model = make_denoiser(options, dataset, text_encoder.config.hidden_size)
    loss, learns = TextDenoiserLoss(options, model), not options.text_encoder
    owned = (NAME, "text_encoder") if learns else (NAME,)
    player = Player(NAME, owned, loss, options.learning_rate, weight_decay=options.weight_decay)
    modules = {NAME: model, "text_encoder": text_encoder}
    components = {
        "text_denoiser": model,
        "text_encoder": text_encoder,
        "text_tokenizer": tokenizer,
        "scheduler": gaia_scheduler(),
    }
    on_sample = sample_sheet(dataset, loss)
    return train_and_save(options, modules, [player], dataset, owned, lambda: components, on_sample=on_sample)

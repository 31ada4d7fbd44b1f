"""Train CAPP (VASA-1 §4.1), or make the paper's two studies of it.

    accelerate launch -m vasa_hf.training capp --pipeline FOLDER --data DIR --preset small --output OUT
    vasa-hf train capp --study OUT/capp --pipeline FOLDER --data EVAL_DIR --output OUT_EVAL

The clips' motion and the features of their audio are made and kept in the output folder as by
`motion_transformer`; its `motion_data.safetensors` can be given as `--prepared`. Windows are cut out of single
clips, never across a cut. Where clips are short, `--talkers FILE` adds those of `vasa_hf.data.synthetic.talkers` and
`--window-seconds 3` makes the small preset's windows as long as the paper's.
"""

from __future__ import annotations

import dataclasses
import math
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset

from vasa_hf.data.clips import MotionData, rows_at, smooth_in_time
from vasa_hf.metrics.capp import PAPER_SCALE, PAPER_SHIFT, Clip, scale_study, shift_study, shuffled_capp
from vasa_hf.models.capp import PRESETS, Capp
from vasa_hf.training.loop import Player, TrainingState
from vasa_hf.training.motion_data import MotionDataOptions, prepare_motion_data
from vasa_hf.training.options import option
from vasa_hf.training.saving import train_and_save

NAME, FPS = "capp", 25


@dataclass
class CappOptions(MotionDataOptions):
    """Options of this recipe; those of its data are in `MotionDataOptions`, those of all recipes in `LoopOptions`."""

    study: str | None = option(None, "folder of a trained CAPP: no training, only the studies on the clips")
    lips: list[int] = option([], "first and one past the last channel of the lips: studies also without them")
    hold_out: list[int] = option([], "numbers of people who are not trained on; with --study, only they are judged")
    preset: str = option("paper", "size of the model", PRESETS)
    window_seconds: float | None = option(None, "length of a window; the preset's if left out (paper: 3 s)")
    dropout: float = option(0.1, "dropout of the transformers")
    audio_noise: float = option(0.2, "noise on the audio features, in their deviations")
    learning_rate: float = 5e-4
    weight_decay: float = 0.05


class CappSamples(Dataset):
    """Windows of talking clips: `dataset[i]` is a pure function of the seed and `i`.

    A sample has `pose` (window, 3) and `audio` (window, A).

    Args:
        data (`MotionData`): Clips.
        window (`int`): Frames of a window; shorter clips are not used.
        augment (`bool`, defaults to `True`): Speed up or slow down both, mirror, blur and slightly shake the poses.
        seed (`int`, defaults to 0): Seed.
    """

    def __init__(self, data: MotionData, window: int, augment: bool = True, seed: int = 0):
        self.data, self.window, self.augment, self.seed = data, window, augment, seed
        lengths = np.diff(data.offsets)
        self.clips = np.flatnonzero(data.speaks & (lengths >= window))
        if not len(self.clips):
            raise ValueError(f"`data` must have a clip with audio and {window} frames, got none.")
        # Several windows fit into a long clip; those that overlap by half count as one more.
        share = 1 + 2 * (lengths[self.clips] - window) / window
        self.share = share / share.sum()

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, index])
        clip = rng.choice(self.clips, p=self.share)
        start, stop = self.data.offsets[clip : clip + 2]
        length = self.window
        speed = np.exp(rng.uniform(-0.12, 0.12)) if self.augment else 1.0
        needed = min(math.ceil((length - 1) * speed) + 1, stop - start)
        first = int(rng.integers(start, stop - needed + 1))
        pose = self.data.motion[first : first + needed, :3].astype(np.float32)
        audio = self.data.audio[first : first + needed].astype(np.float32)
        if self.augment:
            places = np.linspace(0, min((length - 1) * speed, needed - 1), length)
            pose, audio = rows_at(pose, places), rows_at(audio, places)
            if rng.random() < 0.5:
                pose = pose * np.array([-1, 1, -1], np.float32)
            pose = smooth_in_time(pose, rng.uniform(0.3, 1.5))
            pose = pose + rng.normal(0, rng.uniform(0, 0.0006), pose.shape).astype(np.float32)
        return {"pose": torch.from_numpy(pose[:length].copy()), "audio": torch.from_numpy(audio[:length].copy())}


def clip_loss(pose_embeds: Tensor, audio_embeds: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's symmetric cross-entropy over the pairs of a batch.

    Args:
        pose_embeds (`torch.Tensor` of shape `(batch, dim)`): Unit length.
        audio_embeds (`torch.Tensor` of shape `(batch, dim)`): Unit length; audio `i` belongs to pose `i`.
        scale (`torch.Tensor` of shape `()`): Of the logits.

    Returns:
        `tuple`: scalar loss, and the share of poses that find their audio.
    """
    logits = scale * pose_embeds @ audio_embeds.T
    target = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, (logits.argmax(1) == target).float().mean()


class CappLoss:
    """The player's loss on batches of `CappSamples`."""

    def __init__(self, options: CappOptions, model: Capp):
        self.options, self.model = options, model

    def __call__(self, modules: dict[str, nn.Module], batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """CLIP's loss of one batch, with noise on the features."""
        audio = batch["audio"] + self.options.audio_noise * self.model.audio_std * torch.randn_like(batch["audio"])
        # With windows this short, the fused attention's backward pass on a CPU is slower than the plain one.
        with sdpa_kernel(SDPBackend.MATH) if audio.device.type == "cpu" else nullcontext():
            pose_embeds, audio_embeds = modules[NAME](batch["pose"], audio, return_dict=False)
        loss, accuracy = clip_loss(pose_embeds, audio_embeds, self.model.log_scale.exp().clamp(max=100.0))
        return loss, {"accuracy": accuracy}


def fit_statistics(model: Capp, dataset: CappSamples, samples: int = 300) -> None:
    """Write the deviations of pose features and audio features into the model."""
    chosen = [dataset[index] for index in range(samples)]
    poses = model.pose_features(torch.stack([sample["pose"] for sample in chosen])).flatten(0, 1)
    audio = torch.cat([sample["audio"] for sample in chosen])
    model.pose_std.copy_(poses.std(0).clamp_min(1e-5))
    model.audio_mean.copy_(audio.mean(0))
    model.audio_std.copy_(audio.std(0).clamp_min(1e-3))


def talking_clips(data: MotionData, window: int) -> list[Clip]:
    """Pose and audio features of every clip that speaks and is at least a window long."""
    spans = [data.offsets[clip : clip + 2] for clip in np.flatnonzero(data.speaks)]
    return [
        (data.motion[start:stop, :3].astype(np.float32), data.audio[start:stop].astype(np.float32))
        for start, stop in spans
        if stop - start >= window
    ]


def remove_lips(data: MotionData, lips: tuple[int, int]) -> MotionData:
    """The same clips with angles less what the lips explain, linearly and within clips.

    Head poses that are read off landmarks nod a little with the jaw. A network can take that for alignment, so what
    remains of its scores without it must be looked at, too.

    Args:
        data (`MotionData`): Clips.
        lips (`tuple[int, int]`): Channels `[start, stop)` of the lips.
    """
    motion = data.motion.astype(np.float64)
    lengths = np.diff(data.offsets)
    centred = motion - np.repeat(np.add.reduceat(motion, data.offsets[:-1]) / lengths[:, None], lengths, 0)
    used = np.repeat(data.speaks, lengths)
    angles, moving = centred[:, :3], centred[:, lips[0] : lips[1]]
    explained = moving @ np.linalg.lstsq(moving[used], angles[used], rcond=None)[0]
    motion[:, :3] -= explained
    return dataclasses.replace(data, motion=motion.astype(np.float32))


def studies(
    capp: Capp, data: MotionData, lips: tuple[int, int] | None = None, stride: int | None = None
) -> dict[str, dict]:
    """Tables 2 and 3 of the paper on these clips, and what strangers score.

    The shift goes up to 4 frames as in the paper, or as far as the median clip allows; clips that are too short for the
    largest shift are left out of Table 2 and counted.

    Args:
        capp (`Capp`): A trained network.
        data (`MotionData`): Clips.
        lips (`tuple[int, int]`, *optional*): Channels of the lips, to repeat the shifts by `remove_lips`.
        stride (`int`, *optional*): Frames between windows, defaults to half a window.
    """
    window = capp.config.window
    clips = talking_clips(data, window)
    spare = min(4, max(0, int(np.median([len(pose) for pose, _ in clips])) - window) // 2)
    results = {
        "clips": {"all": len(clips), "shift study": sum(len(pose) >= window + 2 * spare for pose, _ in clips)},
        "shift": shift_study(capp, clips, range(spare + 1), stride),
        "scale": scale_study(capp, clips, stride=stride),
        "shuffled": {"mean": shuffled_capp(capp, clips, stride)},
    }
    if lips is not None:
        clips = talking_clips(remove_lips(data, lips), window)
        results["shift without lips"] = shift_study(capp, clips, range(spare + 1), stride)
    return results


def study_table(results: dict[str, dict]) -> str:
    """Results of `studies` as Markdown, the paper's rows next to ours."""
    lines = [f"clips: {results['clips']}, strangers score {results['shuffled']['mean']:.4f}"]
    for name, paper, sign in (("shift", PAPER_SHIFT, "±"), ("scale", PAPER_SCALE, "×")):
        columns = list(results[name])
        rows = {"ours": results[name], "VASA-1": paper}
        if f"{name} without lips" in results:
            rows["ours, angles less what the lips explain"] = results[f"{name} without lips"]
        lines += ["", f"| {name} | " + " | ".join(f"{sign}{key}" for key in columns) + " |"]
        lines.append("| --- " * (len(columns) + 1) + "|")
        for row, values in rows.items():
            digits = 3 if row == "VASA-1" else 4
            lines.append(f"| {row} | " + " | ".join(f"{values[key]:.{digits}f}" for key in columns) + " |")
    return "\n".join(lines)


def run(options: CappOptions) -> TrainingState | dict[str, dict]:
    """Train and save `capp/` with averaged weights in the output; or make the studies of a trained one."""
    data = prepare_motion_data(options)
    data = data.join([MotionData.load(path) for path in options.talkers])
    if options.hold_out:
        held = np.isin(data.person, options.hold_out)
        data.speaks = data.speaks & (held if options.study else ~held)
    if options.study:
        capp = Capp.from_pretrained(options.study, torch_dtype=torch.float32).eval()
        results = studies(capp, data, (options.lips[0], options.lips[1]) if options.lips else None)
        print(study_table(results))
        return results
    window = PRESETS[options.preset]["window"]
    if options.window_seconds is not None:
        window = round(options.window_seconds * FPS)
    dataset = CappSamples(data, window, seed=options.seed)
    torch.manual_seed(options.seed)
    settings = {**PRESETS[options.preset], "audio_dim": data.audio.shape[-1], "window": window}
    model = Capp(**settings, dropout=options.dropout)
    fit_statistics(model, dataset)
    player = Player(NAME, (NAME,), CappLoss(options, model), options.learning_rate, weight_decay=options.weight_decay)
    return train_and_save(options, {NAME: model}, [player], dataset, (NAME,), lambda: {NAME: model})

r"""Train the forgery detector (VASA-1 appendix A).

    python -m vasa_hf.evaluation.forgery_clips --data data/train --output learn --gaia GAIA
    python -m vasa_hf.evaluation.forgery_clips --data data/eval --output judge --gaia GAIA --avatars theo
    vasa-hf train forgery_detector --real learn/real --fake learn/vasa1 learn/moda learn/gaia learn/vasa3d \
        --judge-real judge/real --judge-fake judge/vasa1 judge/moda judge/gaia judge/vasa3d --output detector

`--real` takes folders with `clips/*.mp4` and perhaps `identities.csv`, `--fake` folders of videos of face crops: the
name of a folder is its system, and `PERSON_anything.mp4` names the person. What `--judge-real` and `--judge-fake` name,
a tenth of the people (`--held-out-people`) and whole systems (`--held-out-systems`) are only judged. Each window is
resampled, recompressed and blurred at random, real or not, so that these tell nothing. `OUTPUT/roc.json` has AUC,
accuracy and the curve on what was held out, as it is and recompressed.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from vasa_hf.media.video import VideoReader
from vasa_hf.models.forgery_detector import ForgeryDetector
from vasa_hf.training.loop import Player, TrainingState
from vasa_hf.training.options import LoopOptions, option
from vasa_hf.training.saving import train_and_save

NAME = "forgery_detector"


@dataclass
class ForgeryOptions(LoopOptions):
    """Options of this recipe; those of all recipes are in `LoopOptions`."""

    real: list[str] = option([], "folders with clips/*.mp4 of recorded people")
    fake: list[str] = option([], "folders of synthetic videos of face crops; a folder is a system")
    judge_real: list[str] = option([], "such folders that are only judged")
    judge_fake: list[str] = option([], "such folders that are only judged")
    held_out_systems: list[str] = option([], "systems that are only judged")
    held_out_people: float = option(0.1, "share of the people that are only judged")
    model: str = option("{}", "config of the model as JSON")
    windows_per_video: int = option(8, "windows that are kept of each video")
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    dropout: float = option(0.2, "dropout before the last layer")


@dataclass
class Windows:
    """Windows of videos in memory.

    Attributes:
        frames (`numpy.ndarray` of shape `(n, T, S, S, 3)`): uint8.
        fake (`numpy.ndarray` of shape `(n,)`): bool.
        system (`list[str]`): "real", or the system of each.
        video (`list[str]`): Which video each is of.
        person (`list[str]`): Who is to be seen.
    """

    frames: np.ndarray
    fake: np.ndarray
    system: list[str]
    video: list[str]
    person: list[str]

    def take(self, chosen: np.ndarray) -> Windows:
        """Those of a mask."""
        pick = lambda names: [name for name, kept in zip(names, chosen, strict=True) if kept]  # noqa: E731
        names = (pick(values) for values in (self.system, self.video, self.person))
        return Windows(self.frames[chosen], self.fake[chosen], *names)


def read_windows(options: ForgeryOptions, frames: int, size: int) -> Windows:
    """Read evenly spread windows of all videos.

    Args:
        options (`ForgeryOptions`): Folders.
        frames (`int`): T.
        size (`int`): S.

    Raises:
        ValueError: If there are no real or no synthetic videos.
    """
    found: list[tuple[Path, str, str]] = []
    for folder in map(Path, [*options.real, *options.judge_real]):
        people = _identities(folder)
        found += [(path, "real", people.get(path.stem, path.stem)) for path in sorted(folder.glob("clips/*.mp4"))]
    for folder in map(Path, [*options.fake, *options.judge_fake]):
        found += [(path, folder.name, path.stem.split("_")[0]) for path in sorted(folder.glob("*.mp4"))]
    parts, rows = [], []
    for path, system, person in found:
        images = [_resized(image, size) for image in VideoReader(path, 25)]
        starts = np.linspace(0, len(images) - frames, options.windows_per_video).astype(int) if images else []
        for start in dict.fromkeys(int(start) for start in starts if start >= 0):
            parts.append(np.stack(images[start : start + frames]))
            rows.append((system != "real", system, str(path), person))
    fakes = [row[0] for row in rows]
    for name, there in (("real", not all(fakes)), ("fake", any(fakes))):
        if not rows or not there:
            raise ValueError(f"`{name}` must have videos of at least {frames} frames, found none.")
    fake, system, video, person = map(list, zip(*rows, strict=True))
    return Windows(np.stack(parts), np.array(fake), system, video, person)


def _identities(folder: Path) -> dict[str, str]:
    path = folder / "identities.csv"
    if not path.is_file():
        return {}
    with open(path, newline="") as file:
        return {row["clip"]: row["identity"] for row in csv.DictReader(file)}


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    square = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))


def hold_out(windows: Windows, options: ForgeryOptions) -> np.ndarray:
    """Which windows are only judged, bool `(n,)`: of some folders, of some people, and all of some systems.

    Raises:
        ValueError: If a held-out system has no folder.
    """
    of_judged = judged_only(windows, options)
    people = sorted({person for person, only in zip(windows.person, of_judged, strict=True) if not only})
    rng = np.random.default_rng(options.seed)
    least = 0 if any(of_judged) else 1
    chosen = set(rng.permutation(people)[: max(least, round(options.held_out_people * len(people)))].tolist())
    if unknown := set(options.held_out_systems) - set(windows.system):
        raise ValueError(f"`held_out_systems` must be names of `fake` folders, got {sorted(unknown)}.")
    apart = [
        only or person in chosen or system in options.held_out_systems
        for only, person, system in zip(of_judged, windows.person, windows.system, strict=True)
    ]
    return np.array(apart)


def judged_only(windows: Windows, options: ForgeryOptions) -> list[bool]:
    """Whether each window is of `judge_real` or `judge_fake`."""
    folders = [Path(folder).resolve() for folder in (*options.judge_real, *options.judge_fake)]
    return [any(folder in Path(video).resolve().parents for folder in folders) for video in windows.video]


def recompress(frames: np.ndarray, rng: np.random.Generator, quality: int | None = None) -> np.ndarray:
    """Resample, blur and encode a window `(T, S, S, 3)` as it would be on its way through the web.

    Args:
        frames (`numpy.ndarray` of shape `(T, S, S, 3)`): uint8.
        rng (`numpy.random.Generator`): What is done is the same for all frames.
        quality (`int`, *optional*): Of JPEG; by default 30 to 95 at random.
    """
    size, quality = frames.shape[1], int(rng.integers(30, 96)) if quality is None else quality
    small = int(size * rng.uniform(0.5, 1.0))
    out = []
    for frame in frames:
        image = Image.fromarray(frame).resize((small, small), Image.Resampling.BILINEAR)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)))
    return np.stack(out)


class ForgerySamples(Dataset):
    """As many real as synthetic windows, systems equally often; `dataset[i]` is a pure function of the seed and `i`.

    A sample has `frames` (T, 3, S, S) in [-1, 1] and `fake` () float.

    Args:
        windows (`Windows`): To draw from.
        seed (`int`, *optional*, defaults to 0): Seed.
    """

    def __init__(self, windows: Windows, seed: int = 0):
        self.windows, self.seed = windows, seed
        self.rows = {name: np.flatnonzero(np.array(windows.system) == name) for name in sorted(set(windows.system))}
        self.fakes = [name for name in self.rows if name != "real"]
        if "real" not in self.rows or not self.fakes:
            raise ValueError("`held_out_people` leaves no real or no synthetic videos to train on.")

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, index])
        system = "real" if rng.random() < 0.5 else self.fakes[rng.integers(len(self.fakes))]
        frames = self.windows.frames[rng.choice(self.rows[system])]
        if rng.random() < 0.8:
            frames = recompress(frames, rng)
        if rng.random() < 0.5:
            frames = frames[:, :, ::-1]
        return {"frames": to_tensor(frames), "fake": torch.tensor(float(system != "real"))}


def to_tensor(frames: np.ndarray) -> Tensor:
    """Window `(T, S, S, 3)` of uint8 as `(T, 3, S, S)` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


def detector_loss(modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int):
    """Cross-entropy, and the share that is right."""
    logits = modules[NAME](batch["frames"]).logits.float()
    loss = F.binary_cross_entropy_with_logits(logits, batch["fake"])
    return loss, {"accuracy": ((logits > 0) == (batch["fake"] > 0.5)).float().mean()}


@torch.no_grad()
def score_videos(model: ForgeryDetector, windows: Windows, quality: int | None = None) -> dict[str, float]:
    """Mean logit of each video, by its path; recompressed at a quality if one is given."""
    rng, logits = np.random.default_rng(0), {}
    for frames, video in zip(windows.frames, windows.video, strict=True):
        frames = frames if quality is None else recompress(frames, rng, quality)
        logit = model(to_tensor(frames)[None].to(model.device)).logits
        logits.setdefault(video, []).append(float(logit))
    return {video: float(np.mean(values)) for video, values in logits.items()}


def roc(real: list[float], fake: list[float]) -> dict[str, object]:
    """AUC, accuracy at logit 0 (mean of both kinds), and the curve as false and true positive rates.

    Args:
        real (`list[float]`): Logits of recorded videos.
        fake (`list[float]`): Logits of synthetic ones.
    """
    a, b = np.array(real), np.array(fake)
    auc = float((b[:, None] > a).mean() + 0.5 * (b[:, None] == a).mean())
    limits = np.sort(np.concatenate([a, b, [np.inf]]))[::-1]
    curve = [[float((a >= limit).mean()), float((b >= limit).mean())] for limit in limits]
    return {"auc": auc, "accuracy": float(((a <= 0).mean() + (b > 0).mean()) / 2), "curve": curve}


def calibrate(model: ForgeryDetector, windows: Windows) -> None:
    """Fit temperature and bias so that probabilities on held-out videos are right on average."""
    logits = score_videos(model, windows)
    fake = dict(zip(windows.video, windows.fake.tolist(), strict=True))
    x = torch.tensor([logits[video] for video in logits])
    y = torch.tensor([float(fake[video]) for video in logits])
    if y.min() == y.max():  # one kind alone tells nothing
        return
    scale, bias = torch.zeros((), requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([scale, bias], max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        # A little of a prior: few videos that are all right would make the detector certain.
        loss = F.binary_cross_entropy_with_logits(x * scale.exp() + bias, 0.98 * y + 0.01) + 0.01 * scale**2
        loss.backward()
        return loss

    optimizer.step(closure)
    model.temperature.copy_((-scale.detach()).exp())
    model.bias.copy_(bias.detach())


def evaluate(model: ForgeryDetector, held: Windows) -> dict[str, object]:
    """ROC of held-out people and systems against held-out real people, as they are and recompressed."""
    kinds = {"as it is": None, "JPEG 60, resampled": 60, "JPEG 30, resampled": 30}
    result: dict[str, object] = {}
    for name, quality in kinds.items():
        logits = score_videos(model, held, quality)
        of = {system: [] for system in sorted(set(held.system))}
        for video, system in dict(zip(held.video, held.system, strict=True)).items():
            of[system].append(logits[video])
        fakes = {system: values for system, values in of.items() if system != "real"}
        if not of.get("real") or not fakes:
            continue
        result[name] = {system: roc(of["real"], values) for system, values in fakes.items()}
        result[name]["all"] = roc(of["real"], [value for values in fakes.values() for value in values])
    return result


def run(options: ForgeryOptions) -> TrainingState:
    """Train, calibrate, save `forgery_detector/` and `roc.json`."""
    torch.manual_seed(options.seed)
    model = ForgeryDetector(**{"dropout": options.dropout, **json.loads(options.model)})
    windows = read_windows(options, model.config.frames, model.config.image_size)
    apart = hold_out(windows, options)
    dataset, held = ForgerySamples(windows.take(~apart), options.seed), windows.take(apart)
    people = windows.take(apart & ~np.array(judged_only(windows, options)))  # calibrated on these, judged on others
    player = Player(NAME, (NAME,), detector_loss, options.learning_rate, weight_decay=options.weight_decay)

    def components() -> dict[str, nn.Module]:
        model.cpu().eval()
        calibrate(model, people if people.video else held)
        folder = Path(options.output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "roc.json").write_text(json.dumps(evaluate(model, held), indent=1))
        return {NAME: model}

    return train_and_save(options, {NAME: model}, [player], dataset, (NAME,), components)

"""Train the face recogniser behind the offline identity and perceptual losses.

    accelerate launch -m vasa_hf.training face_recognizer --data DATA/train --cache CACHE --output RUN
    ... --evaluate DATA/eval                                      # and measure it on people never seen
    ... --max-steps 0 --initial FOLDER --evaluate DATA/eval       # measure a trained one, train nothing

`--data` holds `clips/*.mp4 + clips.npz + identities.csv` and `portraits/*.jpg + portraits.npz`. Every person of the
clips is a class, and so is every portrait.

# Not in the paper: all of it; VASA-1 uses recognisers that others have trained on millions of faces.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from vasa_hf.data.face_pairs import decode_frames, people_of_clips
from vasa_hf.data.landmark_dynamics import FaceLabels
from vasa_hf.data.shards import training_folder
from vasa_hf.hub import resolve
from vasa_hf.models.face_recognizer import FaceRecognizer
from vasa_hf.training.loop import Player, TrainingState
from vasa_hf.training.options import LoopOptions, option
from vasa_hf.training.saving import train_and_save

NAME = "face_recognizer"


@dataclass
class FaceRecognizerOptions(LoopOptions):
    """Options of this recipe; those of all recipes are in `LoopOptions`."""

    data: str = option("data/train", "folder with clips, portraits and labels")
    cache: str = option("cache", "folder for decoded frames")
    evaluate: str | None = option(None, "data folder with people never seen; verification is measured on it")
    initial: str | None = option(None, "face recogniser folder to start from")
    model: str = option("{}", "config of a new FaceRecognizer as JSON")
    batch_size: int = 64
    max_steps: int = option(20_000, "optimiser steps; 0 only evaluates")
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    save_dtype: str = "float16"
    sample_every: int = 0
    portrait_share: float = option(0.6, "share of samples that are portraits")
    scale: float = option(24.0, "scale of the cosines in the softmax (CosFace s)")
    margin: float = option(0.3, "margin taken off the right class' cosine (CosFace m)")
    margin_steps: int = option(1000, "steps over which the margin grows from 0")


# --- data -----------------------------------------------------------------------------------------------------------


class FaceClasses(Dataset):
    """Images with the number of the person in them.

    Sample `i` is a function of `i` and the seed: `image` (uint8, `(3, size, size)`), `box` (4,) of the landmarks as
    fractions of the crop, and `label`: first the people of the clips, then the portraits.

    Args:
        data (`str` or `Path`): Folder with clips, portraits and labels.
        cache (`str` or `Path`): Folder for decoded frames.
        seed (`int`): Seed of the draws.
        portrait_share (`float`): Share of samples that are portraits.
    """

    def __init__(self, data: str | Path, cache: str | Path, seed: int = 0, portrait_share: float = 0.6):
        data, cache = training_folder(data), Path(cache)
        self.seed, self.portrait_share = seed, portrait_share
        clips, portraits = FaceLabels.load(data / "clips.npz"), FaceLabels.load(data / "portraits.npz")
        self.frames = decode_frames(data, clips, "clips", cache / f"{data.name}_clips.npy")
        self.pictures = decode_frames(data, portraits, "portraits", cache / f"{data.name}_portraits.npy")
        self.frame_boxes, self.picture_boxes = _boxes(clips.landmarks), _boxes(portraits.landmarks)
        self.people, self.person = np.unique(people_of_clips(data, clips.names), return_inverse=True)
        self.offsets = clips.offsets
        self.clips_of = [np.flatnonzero(self.person == index) for index in range(len(self.people))]
        # People with many clips are seen more often, but not in proportion.
        share = np.sqrt([np.diff(self.offsets)[own].sum() for own in self.clips_of])
        self.share = share / share.sum()
        self.num_classes = len(self.people) + len(self.pictures)

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Draw sample `index`."""
        rng = np.random.default_rng([self.seed, index])
        if rng.random() < self.portrait_share:
            row = int(rng.integers(len(self.pictures)))
            picture, box, label = self.pictures[row], self.picture_boxes[row], len(self.people) + row
        else:
            label = int(rng.choice(len(self.people), p=self.share))
            clip = int(rng.choice(self.clips_of[label]))
            row = int(rng.integers(*self.offsets[clip : clip + 2]))
            picture, box = self.frames[row], self.frame_boxes[row]
        return {"image": _tensor(picture), "box": box, "label": torch.tensor(label)}


def _boxes(landmarks: Tensor) -> Tensor:
    """x0, y0, x1, y1 of points [N, P, 2]."""
    return torch.cat([landmarks.amin(1), landmarks.amax(1)], 1)


def _tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def augment(image: Tensor, box: Tensor, size: int) -> Tensor:
    """Change everything that is not the person: framing, side, light, sharpness, surroundings.

    Args:
        image (`torch.Tensor` of shape `(batch, 3, height, width)`): uint8 images.
        box (`torch.Tensor` of shape `(batch, 4)`): x0, y0, x1, y1 of the landmarks, fractions of the crop.
        size (`int`): Side of the result.

    Returns:
        `torch.Tensor` of shape `(batch, 3, size, size)` in [-1, 1].
    """
    count, device = len(image), image.device
    uniform = lambda low, high, *shape: torch.empty(count, *shape, device=device).uniform_(low, high)  # noqa: E731
    some = lambda probability: uniform(0, 1, 1, 1, 1) < probability  # noqa: E731
    # Framing. Crop point p comes from A (p - 0.5) + b + 0.5; a negative first column mirrors.
    zoom, roll, shift = uniform(0.8, 1.2), uniform(-0.2, 0.2), uniform(-0.06, 0.06, 2)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    matrix = torch.stack([roll.cos() * mirror, -roll.sin(), roll.sin() * mirror, roll.cos()], 1).view(-1, 2, 2)
    matrix = matrix / zoom[:, None, None]
    grid = F.affine_grid(torch.cat([matrix, 2 * shift[:, :, None]], 2), (count, 3, size, size), align_corners=False)
    image = image.float().div_(255)
    if image.shape[-1] > 2 * size:  # bilinear samples alone would alias
        image = F.avg_pool2d(image, image.shape[-1] // size)
    x = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    x = _swap_surroundings(x, box, grid, uniform(1.05, 1.6, 1, 1), uniform(0, 1, 1, 1, 1) < 0.4)
    # Light and colour.
    x = x.clamp(1e-3, 1) ** uniform(0.6, 1.6, 1, 1, 1)
    mean = x.mean((2, 3), keepdim=True)
    x = (x - mean) * uniform(0.6, 1.3, 1, 1, 1) + mean * uniform(0.7, 1.3, 1, 1, 1) * uniform(0.85, 1.15, 3, 1, 1)
    x = torch.where(some(0.2), x.mean(1, keepdim=True), x)
    # Sharpness and noise.
    coarse = F.interpolate(F.avg_pool2d(x, 2), size=(size, size), mode="bilinear")
    x = torch.lerp(x, coarse, uniform(0, 1, 1, 1, 1) * some(0.4))
    x = x + torch.randn_like(x) * uniform(0, 0.06, 1, 1, 1) * some(0.5)
    # A hand, a microphone, a caption: one flat or foreign rectangle.
    axis = (torch.arange(size, device=device) + 0.5) / size
    center, half = uniform(0.1, 0.9, 2, 1), uniform(0.05, 0.18, 2, 1)
    inside = (axis - center).abs() < half  # [B, 2, S]
    hidden = (inside[:, 0, None, :] & inside[:, 1, :, None])[:, None] & some(0.4)
    filling = torch.where(some(0.5), uniform(0, 1, 3, 1, 1), x.roll(1, 0))
    return torch.where(hidden, filling, x).clamp(0, 1) * 2 - 1


def _swap_surroundings(x: Tensor, box: Tensor, grid: Tensor, spread: Tensor, chosen: Tensor) -> Tensor:
    """Outside an ellipse around the face show another sample: hair, clothes and studio are no identity."""
    place = (grid + 1) / 2  # [B, S, S, 2], where in the uncropped image each pixel comes from
    center = ((box[:, :2] + box[:, 2:]) / 2)[:, None, None]
    half = ((box[:, 2:] - box[:, :2]) / 2)[:, None, None]
    distance = ((place - center) / half).square().sum(-1).sqrt() / spread
    mask = ((1.05 - distance) * 10).clamp(0, 1)[:, None]
    return torch.where(chosen, torch.lerp(x.roll(1, 0), x, mask), x)


# --- loss -----------------------------------------------------------------------------------------------------------


class MarginSoftmax(nn.Module):
    """One direction for each class; needed in training alone.

    Args:
        classes (`int`): Number of people.
        dim (`int`): Length of the embedding.
    """

    def __init__(self, classes: int, dim: int):
        super().__init__()
        # Short vectors turn fast under AdamW; only their direction counts.
        self.weight = nn.Parameter(0.05 * torch.randn(classes, dim))

    def forward(self, embedding: Tensor) -> Tensor:
        """Cosines `(batch, classes)` of unit-length embeddings `(batch, dim)`, in float32."""
        with torch.autocast(embedding.device.type, enabled=False):
            return embedding.float() @ F.normalize(self.weight.float(), dim=1).T


def margin_loss(cosine: Tensor, label: Tensor, scale: float, margin: float) -> Tensor:
    """CosFace (Wang et al. 2018, Eq. 4): cross entropy with a margin taken off the right class' cosine.

    Args:
        cosine (`torch.Tensor` of shape `(batch, classes)`): Cosines between embeddings and classes.
        label (`torch.Tensor` of shape `(batch,)`): Right classes.
        scale (`float`): s.
        margin (`float`): m.
    """
    return F.cross_entropy(scale * (cosine - margin * F.one_hot(label, cosine.shape[1])), label)


def recognizer_loss(options: FaceRecognizerOptions, size: int):
    """The player's loss: augment, embed, compare with all classes."""

    def loss(modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(batch["image"].device.type, enabled=False):
            images = augment(batch["image"], batch["box"], size).contiguous(memory_format=torch.channels_last)
        cosine = modules["classes"](modules[NAME](images))
        margin = options.margin * min(1.0, step / max(1, options.margin_steps))
        accuracy = (cosine.argmax(1) == batch["label"]).float().mean()
        return margin_loss(cosine, batch["label"], options.scale, margin), {"accuracy": accuracy}

    return loss


# --- verification ---------------------------------------------------------------------------------------------------


def verification(same: np.ndarray, different: np.ndarray) -> dict[str, float]:
    """Area under the ROC curve and equal error rate of a similarity.

    Args:
        same (`numpy.ndarray` of shape `(pairs,)`): Similarities of pairs that show one person.
        different (`numpy.ndarray` of shape `(pairs,)`): Similarities of pairs that show two.

    Returns:
        `dict`: `auc`, `eer`, the mean similarities `same` and `different`.
    """
    values = np.concatenate([same, different])
    _, rank, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = (np.cumsum(counts) - (counts - 1) / 2)[rank]  # ties share their ranks
    auc = (mean_rank[: len(same)].sum() - len(same) * (len(same) + 1) / 2) / (len(same) * len(different))
    thresholds = np.unique(values)
    misses = np.searchsorted(np.sort(same), thresholds) / len(same)
    alarms = 1 - np.searchsorted(np.sort(different), thresholds) / len(different)
    best = np.abs(misses - alarms).argmin()
    eer = (misses[best] + alarms[best]) / 2
    return {"auc": float(auc), "eer": float(eer), "same": float(same.mean()), "different": float(different.mean())}


def verify_clips(embedding: np.ndarray, person: np.ndarray, clip: np.ndarray) -> dict[str, float]:
    """Verification over all pairs of frames from different clips.

    Args:
        embedding (`numpy.ndarray` of shape `(frames, dim)`): Unit-length vectors.
        person (`numpy.ndarray` of shape `(frames,)`): Who it is.
        clip (`numpy.ndarray` of shape `(frames,)`): Which clip it is from.
    """
    similarity = embedding @ embedding.T
    first, second = np.triu_indices(len(embedding), 1)
    apart = clip[first] != clip[second]
    first, second = first[apart], second[apart]
    alike = person[first] == person[second]
    values = similarity[first, second]
    return verification(values[alike], values[~alike])


def pixel_embedding(image: Tensor) -> Tensor:
    """What a recogniser must beat: the image itself, 16 x 16, light taken off, unit length.

    Args:
        image (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB.
    """
    small = F.interpolate(image, (16, 16), mode="area").flatten(1)
    return F.normalize(small - small.mean(1, keepdim=True), dim=1)


@torch.no_grad()
def evaluate(model: FaceRecognizer, data: str | Path, cache: str | Path) -> dict[str, dict[str, float]]:
    """Verification on people never seen, for the model, for a model with random weights and for plain pixels.

    `clips`: frames of different clips of one person against frames of other people, among those who have several clips.
    `clips, face alone`: the same with everything but the face made grey, so that studio and clothes cannot help.
    `portraits`: each portrait against five augmented views of its own and of all others, with `rank1`, the share of
    views whose nearest portrait is the right one.

    Args:
        model (`FaceRecognizer`): In evaluation mode.
        data (`str` or `Path`): Folder in the layout of the training data.
        cache (`str` or `Path`): Folder for decoded frames.

    Returns:
        `dict` of `dict`: Row name to figures.
    """
    data, cache = Path(data), Path(cache)
    size = model.config.image_size
    labels, portraits = FaceLabels.load(data / "clips.npz"), FaceLabels.load(data / "portraits.npz")
    frames = decode_frames(data, labels, "clips", cache / f"{data.name}_clips.npy")
    pictures = decode_frames(data, portraits, "portraits", cache / f"{data.name}_portraits.npy")
    people = np.array(people_of_clips(data, labels.names))
    several = {name for name in people if (people == name).sum() > 1}
    clips = [index for index, name in enumerate(people) if name in several]
    rows = np.concatenate([np.linspace(*labels.offsets[i : i + 2] - [0, 1], 3).astype(int) for i in clips])
    clip = np.repeat(clips, 3)
    whole = torch.stack([_tensor(frames[row]) for row in rows]).float() / 127.5 - 1
    faces = torch.stack([_tensor(picture) for picture in pictures])
    boxes = _boxes(portraits.landmarks)
    torch.manual_seed(0)
    views = torch.cat([augment(faces, boxes, size) for _ in range(5)])
    owner = np.tile(np.arange(len(faces)), 5)
    random = FaceRecognizer.from_config(model.config).train()
    for part in whole.split(32):  # batch statistics, else random weights give constant maps
        random(part)
    networks = {"model": model, "random weights": random.eval(), "pixels": pixel_embedding}
    results = {}
    for name, network in networks.items():
        embed = lambda images, f=network: torch.cat([f(part) for part in images.split(32)]).float().numpy()  # noqa: E731
        results[f"clips: {name}"] = verify_clips(embed(whole), people[clip], clip)
        alone = _face_alone(whole, _boxes(labels.landmarks)[rows])
        results[f"clips, face alone: {name}"] = verify_clips(embed(alone), people[clip], clip)
        similarity = embed(views) @ embed(faces.float() / 127.5 - 1).T
        right = owner[:, None] == np.arange(len(faces))
        results[f"portraits: {name}"] = {
            **verification(similarity[right], similarity[~right]),
            "rank1": float((similarity.argmax(1) == owner).mean()),
        }
    return results


def _face_alone(image: Tensor, box: Tensor) -> Tensor:
    """Images with grey outside the ellipse of the landmarks."""
    theta = torch.eye(2, 3).expand(len(image), -1, -1)
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    distance = ((grid + 1) / 2 - ((box[:, :2] + box[:, 2:]) / 2)[:, None, None]) * 2
    distance = (distance / (box[:, 2:] - box[:, :2])[:, None, None]).square().sum(-1)
    return image * (distance < 1.1)[:, None]


def run(options: FaceRecognizerOptions) -> FaceRecognizer:
    """Train and save `face_recognizer/`, then measure it if `evaluate` is given."""
    if options.max_steps == 0 and not (options.initial and options.evaluate):
        raise ValueError("`max_steps` 0 only evaluates: it expects `initial` and `evaluate`, got none.")
    torch.manual_seed(options.seed)
    if options.initial:
        model = FaceRecognizer.from_pretrained(resolve(options.initial), torch_dtype=torch.float32)
    else:
        model = FaceRecognizer(**json.loads(options.model))
    model.to(memory_format=torch.channels_last)
    if options.max_steps > 0:
        train_recognizer(options, model)
    model = model.cpu().eval()
    if options.evaluate:
        for name, figures in evaluate(model, options.evaluate, options.cache).items():
            print(f"{name:36s}", "  ".join(f"{key} {value:.3f}" for key, value in figures.items()), flush=True)
    return model


def train_recognizer(options: FaceRecognizerOptions, model: FaceRecognizer) -> TrainingState:
    """Train `model` in place and save it; it ends with the averaged weights.

    Args:
        options (`FaceRecognizerOptions`): See there.
        model (`FaceRecognizer`): Changed in place.
    """
    dataset = FaceClasses(options.data, options.cache, options.seed, options.portrait_share)
    modules = {NAME: model, "classes": MarginSoftmax(dataset.num_classes, model.config.embedding_dim)}
    loss = recognizer_loss(options, model.config.image_size)
    player = Player("recognizer", tuple(modules), loss, options.learning_rate, weight_decay=options.weight_decay)
    return train_and_save(options, modules, [player], dataset, (NAME,), lambda: {NAME: model})

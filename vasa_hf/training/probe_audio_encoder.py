"""What features tell about lips: `python -m vasa_hf.training.probe_audio_encoder --data DATA/train --eval DATA/eval`.

A ridge regression from seven frames of features to lip gap and mouth width is fitted on clips of people who have many,
and judged on people whom neither it nor the encoder has seen: by the correlation with the truth within each clip.

# Not in the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModel

from vasa_hf.data.shards import training_folder
from vasa_hf.data.speech_teacher import load_teacher
from vasa_hf.hub import resolve
from vasa_hf.processors.audio import VasaAudioProcessor
from vasa_hf.training.options import option, parse_options
from vasa_hf.training.recipes.audio_encoder import AudioEncoderOptions, Voice, load_clips, load_sound, split_people

RADIUS = 3  # frames to either side
PRESENTER_CLIPS = {"train": 20, "eval": 5}  # people with this many clips are presenters


@dataclass
class ProbeOptions:
    """Options of the probe."""

    encoder: str = option("vasa-small/audio_encoder", "encoder folder, or name on the Hub")
    teacher: str | None = option(None, "judge a teacher of audio_encoder instead, by its last states")
    do_normalize: bool = option(False, "normalise the audio first, as facebook/wav2vec2-base-960h expects")
    data: str = option("data/train", "folder with clips.npz, clips/ and identities.csv to fit on")
    eval: str = option("data/eval", "such a folder to judge on")
    num_clips: int = option(500, "clips to fit on, drawn from the presenters")
    validation_people: int = option(
        AudioEncoderOptions.validation_people,
        "people of `data` to judge on: those that audio_encoder keeps out",
    )
    ridge: float = option(1.0, "penalty, in units of the variance of standardised features")
    audio_cache: str | None = option(None, "see the recipe audio_encoder")
    seed: int = option(0, "seed of the draw of clips")


Clip = tuple[np.ndarray, np.ndarray]  # features [N, dim], mouth [N, 2]


def stack_frames(features: np.ndarray, radius: int = RADIUS) -> np.ndarray:
    """Features `[N, dim]` with those of `radius` frames to either side, less the mean of the clip."""
    padded = np.pad(features, ((radius, radius), (0, 0)), mode="edge")
    stacked = np.concatenate([padded[i : i + len(features)] for i in range(2 * radius + 1)], 1)
    return stacked - stacked.mean(0)


def fit_ridge(clips: Sequence[Clip], ridge: float = 1.0) -> np.ndarray:
    """Weights `[7 dim, 2]` from stacked features to the deviation of the mouth from the clip's mean."""
    inputs = np.concatenate([stack_frames(features) for features, _ in clips]).astype(np.float64)
    targets = np.concatenate([mouth - mouth.mean(0) for _, mouth in clips])
    scale = inputs.std(0) + 1e-6
    inputs /= scale
    penalty = ridge * len(inputs) * np.eye(inputs.shape[1])
    return np.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ targets) / scale[:, None]


def correlate(weights: np.ndarray, clips: Sequence[Clip]) -> np.ndarray:
    """Correlation of lip gap and mouth width with the truth within each clip, mean over clips `[2]`."""
    scores = []
    for features, mouth in clips:
        guess = stack_frames(features) @ weights
        if mouth.std(0).min() > 1e-4:
            scores.append([np.corrcoef(guess[:, c], mouth[:, c])[0, 1] for c in range(2)])
    return np.mean(scores, 0)


def main(arguments: list[str] | None = None) -> dict[str, np.ndarray]:
    """Print and return the correlations (lip gap, mouth width) of each group of people.

    Args:
        arguments (`list[str]`, *optional*, defaults to the process' own): Command line.
    """
    options = parse_options(ProbeOptions, arguments, __doc__.split("\n")[0])
    if options.teacher:
        teacher = load_teacher(options.teacher)
    else:
        encoder = AutoModel.from_pretrained(resolve(options.encoder), dtype=torch.float32).eval()
        processor = VasaAudioProcessor(do_normalize=options.do_normalize)

    @torch.no_grad()
    def features(voice: Voice) -> np.ndarray:
        if options.teacher:
            return teacher(voice.samples).astype(np.float32).reshape(len(voice), 2, -1).mean(1)
        samples = torch.from_numpy(voice.samples)[None]
        return processor.window_features(encoder, samples, 0, len(voice))[0].numpy()

    people = {}
    with load_sound(options.audio_cache) as sound:
        for name, folder in (("train", options.data), ("eval", options.eval)):
            people[name] = load_clips(training_folder(folder), sound)
    known, unknown = split_people(people["train"], options.validation_people, PRESENTER_CLIPS["train"])
    pool = [clip for own in known.values() if len(own) >= PRESENTER_CLIPS["train"] for clip in own]
    drawn = np.random.default_rng(options.seed).permutation(len(pool))[: options.num_clips]
    groups = {"fit": [pool[i] for i in drawn], "kept out": [clip for own in unknown.values() for clip in own]}
    many = {True: "presenters", False: "others"}
    for own in people["eval"].values():
        groups.setdefault(many[len(own) >= PRESENTER_CLIPS["eval"]], []).extend(own)
    clips = {name: [(features(voice), voice.mouth) for voice in group] for name, group in groups.items() if group}
    weights = fit_ridge(clips["fit"], options.ridge)
    scores = {name: correlate(weights, group) for name, group in clips.items()}
    for name, (gap, width) in scores.items():
        print(f"{name}: {len(clips[name])} clips, lip gap {gap:.3f}, mouth width {width:.3f}", flush=True)
    return scores


if __name__ == "__main__":
    main()

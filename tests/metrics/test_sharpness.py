"""Sharpness: closed forms, a loop, and what must make it fall."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vasa_hf.metrics.image import box_mask
from vasa_hf.metrics.sharpness import laplacian, laplacian_sharpness


def test_a_parabola_has_its_second_derivative():
    x = torch.arange(8.0)
    grey = (0.01 * x[None] ** 2 + 0.02 * x[:, None] ** 2).expand(1, 3, 8, 8)
    assert torch.allclose(laplacian(grey), torch.full((1, 6, 6), 2 * 0.01 + 2 * 0.02), atol=1e-5)


def test_laplacian_against_a_loop():
    picture = torch.rand(3, 5, 6)
    luma = np.tensordot([0.299, 0.587, 0.114], picture.double().numpy(), 1)
    found = laplacian(picture)
    assert found.shape == (3, 4)
    for y in range(1, 4):
        for x in range(1, 5):
            near = luma[y - 1, x] + luma[y + 1, x] + luma[y, x - 1] + luma[y, x + 1]
            assert found[y - 1, x - 1].item() == pytest.approx(near - 4 * luma[y, x], abs=1e-5)


def test_a_mask_sees_only_its_part():
    pictures = torch.full((2, 3, 16, 16), 0.5)
    pictures[1, :, 4:8, 4:12] = torch.rand(3, 4, 8)
    mask = box_mask(torch.tensor([[0.0, 10 / 16, 1.0, 1.0]]), 16)
    assert laplacian_sharpness(pictures, mask).abs().max() < 1e-6
    assert laplacian_sharpness(pictures, 1 - mask)[1] > 0.05
    # Weighted parts add up to the whole.
    share = mask[..., 1:-1, 1:-1].mean()
    parts = laplacian_sharpness(pictures, mask) * share + laplacian_sharpness(pictures, 1 - mask) * (1 - share)
    assert torch.allclose(parts, laplacian_sharpness(pictures), atol=1e-6)
    assert laplacian_sharpness(pictures, torch.zeros(1, 1, 16, 16)).isnan().all()


def test_blur_lowers_it_and_a_shift_in_brightness_does_not():
    sharp = torch.rand(2, 3, 32, 32)
    soft = F.avg_pool2d(sharp, 3, 1, 1, count_include_pad=False)
    half = 0.5 * sharp + 0.5 * soft
    values = [laplacian_sharpness(pictures).mean().item() for pictures in (sharp, half, soft)]
    assert values[2] < 0.5 * values[0] and values[2] < values[1] < values[0]
    assert laplacian_sharpness(0.8 * sharp + 0.1).mean().item() == pytest.approx(0.8 * values[0], rel=1e-4)


@pytest.mark.parametrize(
    ("pictures", "mask", "message"),
    [
        (torch.zeros(3, 8, 8), None, "`images` must have shape"),
        (torch.zeros(1, 1, 8, 8), None, "`images` must have shape"),
        (torch.zeros(1, 3, 2, 8), None, "sides of at least 3"),
        (torch.zeros(2, 3, 8, 8), torch.ones(3, 1, 8, 8), "`mask` must have shape"),
        (torch.zeros(2, 3, 8, 8), torch.ones(2, 8, 8), "`mask` must have shape"),
    ],
)
def test_other_shapes_are_refused(pictures, mask, message):
    with pytest.raises(ValueError, match=message):
        laplacian_sharpness(pictures, mask)

import pytest
import torch

from vasa_hf.processors.matte import cut_out, spread_colours

SIZE = 96


def portrait(softness=2.0):
    """A warm disc before a green and blue ramp, its edge `softness` pixels wide; image, true alpha."""
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    distance = ((x - 48).square() + (y - 54).square()).sqrt()
    alpha = ((30 - distance) / softness + 0.5).clamp(0, 1)
    person = torch.tensor([0.8, 0.5, 0.3])[:, None, None] * (0.8 + 0.2 * x / SIZE)
    behind = torch.stack([0.1 + 0 * x, 0.3 + 0.4 * x / SIZE, 0.3 + 0.5 * y / SIZE])
    noise = 0.02 * torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return (alpha * person + (1 - alpha) * behind + noise).clamp(0, 1), alpha, distance


def test_finds_the_person_and_its_soft_edge():
    picture, alpha, distance = portrait()
    colours, found = cut_out(picture, distance < 10, distance < 40)
    assert (found - alpha).abs().mean() < 0.02
    assert (found[distance < 26] > 0.95).all() and (found[distance > 34] < 0.05).all()
    # At the edge the colours are the person's: no blue of the background.
    edge = (alpha > 0.2) & (alpha < 0.8)
    assert colours[2][edge].mean() < 0.35 < picture[2][edge].mean()


def test_the_hint_alone_would_not_do():
    picture, alpha, distance = portrait()
    hint = (distance < 40).float()
    _, found = cut_out(picture, distance < 10, distance < 40)
    assert (found - alpha).abs().mean() < 0.2 * (hint - alpha).abs().mean()


def test_same_image_same_matte():
    picture, _, distance = portrait()
    assert torch.equal(*(cut_out(picture, distance < 10, distance < 40)[1] for _ in range(2)))


def test_holes_are_filled_and_strangers_left_out():
    picture, _, distance = portrait()
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    picture[:, (x - 48).abs() + (y - 54).abs() < 3] = torch.tensor([0.1, 0.5, 0.6])[:, None]  # a button like the back
    picture[:, 2:14, 2:14] = torch.tensor([0.8, 0.5, 0.3])[:, None, None]  # like the person, but apart
    _, found = cut_out(picture, (distance > 12) & (distance < 20), distance < 40)
    assert found[54, 48] > 0.9 and found[3:12, 3:12].max() < 0.1


def test_bad_input():
    picture, _, distance = portrait()
    with pytest.raises(ValueError, match="`image` must be"):
        cut_out(picture[:, :-1], distance < 10, distance < 40)
    with pytest.raises(ValueError, match="`sure` must contain a pixel"):
        cut_out(picture, distance < 0, distance < 40)
    with pytest.raises(ValueError, match="`sure` must contain a pixel"):
        cut_out(picture, distance < 10, distance < 1000)


def test_colours_spread_to_all_pixels_and_known_ones_stay():
    picture = torch.zeros(3, 40, 40)
    picture[0, :, :5], picture[2, :, 35:] = 1.0, 1.0
    known = picture.sum(0) > 0
    spread = spread_colours(picture, known)
    assert torch.equal(spread[:, known], picture[:, known])
    torch.testing.assert_close(spread.sum(0), torch.ones(40, 40))  # nothing of the black between
    assert spread[0, 20, 8] > 0.9 and spread[2, 20, 32] > 0.9

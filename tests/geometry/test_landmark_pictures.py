import pytest
import torch

from vasa_hf.geometry.landmark_pictures import _segments, draw_landmarks
from vasa_hf.geometry.landmarks import GROUPS, NUM_LANDMARKS

AWAY = torch.full((1, NUM_LANDMARKS, 2), -5.0)  # all points outside, at one place


def square_of_the_inner_lips(left, top, right, bottom):
    """All points of the inner lips along a square."""
    points = AWAY.clone()
    corners = torch.tensor([[left, top], [right, top], [right, bottom], [left, bottom]])
    points[:, list(GROUPS["lips_inner"])] = corners.repeat_interleave(5, 0)
    return points


def ink(picture):
    return (picture + 1) / 2


def test_a_line_is_as_long_as_it_is_and_where_it_is():
    """Each pixel of line leaves one unit of ink, whatever the number of points; the ink's centre is the shape's."""
    picture = ink(draw_landmarks(square_of_the_inner_lips(0.25, 0.3, 0.75, 0.6), 64))[0]
    assert not picture[:2].any()
    # Corners are darker than one unit and cut off there.
    assert picture[2].sum() == pytest.approx(2 * 64 * (0.5 + 0.3), rel=0.02)
    y, x = torch.meshgrid(*[(torch.arange(64) + 0.5) / 64] * 2, indexing="ij")
    assert (picture[2] * x).sum() / picture[2].sum() == pytest.approx(0.5, abs=0.002)
    assert (picture[2] * y).sum() / picture[2].sum() == pytest.approx(0.45, abs=0.002)
    assert picture[2, 24:30, 24:30].sum() == 0  # hollow
    # Lines of a face are shorter than this one: points half a pixel apart look like a line.
    short = [draw_landmarks(square_of_the_inner_lips(0.25, 0.3, 0.75, 0.6), 16, points) for points in (16, 400)]
    assert (short[0] - short[1]).abs().max() < 0.06


def test_a_tenth_of_a_pixel_shows():
    before = draw_landmarks(square_of_the_inner_lips(0.25, 0.3, 0.75, 0.6), 64)
    after = draw_landmarks(square_of_the_inner_lips(0.25, 0.3, 0.75, 0.6 + 0.1 / 64), 64)
    assert (after - before).abs().sum() == pytest.approx(2 * 2 * 0.1 * 32, rel=0.2)


def test_every_landmark_but_the_centres_of_the_irises_is_drawn():
    first, last, _ = _segments()
    undrawn = set(range(NUM_LANDMARKS)) - set(torch.cat([first, last]).tolist())
    assert undrawn == {GROUPS["left_iris"][0], GROUPS["right_iris"][0]}


def test_outside_is_cut_and_shapes_are_checked():
    assert torch.equal(draw_landmarks(AWAY, 32), -torch.ones(1, 3, 32, 32))
    half = draw_landmarks(square_of_the_inner_lips(0.5, 0.25, 1.5, 0.75), 32)
    assert ink(half).sum() == pytest.approx(16 + 2 * 16, rel=0.1)
    with pytest.raises(ValueError, match="`landmarks`"):
        draw_landmarks(torch.zeros(1, 68, 2), 32)

"""Irises are followed by their pixels: exactly as far as they were drawn to move."""

import math

import pytest
import torch

from vasa_hf.geometry.landmarks import rows
from vasa_hf.metrics.faces import FaceTrack
from vasa_hf.metrics.gaze import angle_of_shift, iris_shift

SIZE, WIDTH = 256, 0.12  # an eye's width as a fraction of the image
CENTERS = torch.tensor([[0.38, 0.42], [0.62, 0.42]])


def draw(shift, head=(0.0, 0.0), roll=0.0, lids=0.3):
    """A frame with two eyes whose irises are `shift` eye widths aside, and the landmarks of eyes that look ahead."""
    axis = (torch.arange(SIZE) + 0.5) / SIZE
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    turn = torch.tensor([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])
    place = lambda p: (torch.as_tensor(p) - 0.5) @ turn.T + 0.5 + torch.tensor(head)  # noqa: E731
    frame, landmarks = torch.full((SIZE, SIZE), 0.6), torch.zeros(162, 2)
    for eye, (left, right, upper, lower, iris) in zip(
        CENTERS, ((33, 133, 159, 145, 468), (362, 263, 386, 374, 473)), strict=True
    ):
        own = (grid - place(eye)) @ turn / WIDTH  # in eye widths
        white = (own[..., 0] / 0.5).square() + (own[..., 1] / 0.22).square() < 1
        dark = torch.sigmoid((0.2 - (own - torch.tensor(shift)).norm(dim=-1)) * 40)
        frame = torch.where(white, 0.95 - 0.85 * dark, frame)
        for number, offset in ((left, (-0.5, 0)), (right, (0.5, 0)), (upper, (0, -lids / 2)), (lower, (0, lids / 2))):
            landmarks[rows(number)[0]] = place(eye + WIDTH * torch.tensor(offset))
        landmarks[rows(iris)[0]] = place(eye)
    texture = 0.02 * torch.sin(200 * grid[..., 0]) * torch.cos(170 * grid[..., 1])
    return (frame + texture).expand(3, -1, -1), landmarks


def video(shift, frames=3, **where):
    pictures, points = zip(*(draw(shift, **where) for _ in range(frames)), strict=True)
    return torch.stack(pictures), FaceTrack.of(torch.stack(points), torch.zeros(frames, 7))


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.1, 0.0), (-0.15, 0.0), (0.0, 0.05), (0.08, -0.04)])
def test_irises_move_as_drawn_whatever_the_head_does(shift):
    still, track = video((0.0, 0.0))
    for where in ({}, {"head": (0.03, -0.02)}, {"roll": 0.15}):
        moved, moved_track = video(shift, **where)
        found = iris_shift(still, moved, track, moved_track)
        torch.testing.assert_close(found, torch.tensor(shift), atol=0.012, rtol=0)


def test_angles_are_those_of_a_turning_ball():
    for yaw, pitch in ((0.3, 0.0), (-0.2, 0.1)):
        shift = torch.tensor([-0.4 * math.sin(yaw), 0.4 * math.sin(pitch)])
        torch.testing.assert_close(angle_of_shift(shift), torch.tensor([yaw, pitch]))


def test_frozen_eyes_do_not_move_and_shut_ones_are_not_seen():
    still, track = video((0.05, 0.0))
    assert iris_shift(still, still, track, track).abs().max() < 0.005
    _, shut = video((0.05, 0.0), lids=0.1)
    with pytest.raises(ValueError, match="`moved` must show irises"):
        iris_shift(still, still, track, shut)
    with pytest.raises(ValueError, match="`moved` must have the 3 frames"):
        iris_shift(still, still[:2], track, track[:2])

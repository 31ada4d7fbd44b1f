"""Pieces that rendered heads are painted with: look-ups, filled holes, eyeballs, bent surroundings. Pure tensors.

Places are fractions of a square image, x right and y down; images are float `(channels, side, side)` in [0, 1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vasa_hf.data.synthetic.raster import soft_polygon
from vasa_hf.geometry.rotations import matrix_from_euler

BALL_SIDE = 64  # of an eyeball's texture
_BALL_EDGE = 0.97  # the texture's edge in radii of the ball


def look_up(image: Tensor, places: Tensor) -> Tensor:
    """Colours [C, H, W] of an image [C, S, S] at places [H, W, 2]."""
    return F.grid_sample(image[None], places[None] * 2 - 1, padding_mode="border", align_corners=False)[0]


def centers(side: int) -> Tensor:
    """Places [side, side, 2] of the pixels' centres."""
    ticks = (torch.arange(side) + 0.5) / side
    return torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1)


def outline_mask(outline: Tensor, side: int, softness: float = 1.0) -> Tensor:
    """Mask [1, side, side] of a closed outline [N, 2]."""
    mask = torch.zeros(1, side, side)
    window, cover = soft_polygon(outline * side, side, softness)
    mask[0][window] = cover
    return mask


def grown_eye(outline: Tensor) -> Tensor:
    """An eye's outline [N, 2] with its lashes: blown up about the middle, more in height than in width."""
    middle = outline.mean(0)
    width = outline[:, 0].amax() - outline[:, 0].amin()
    grown = middle + (outline - middle) * 1.3
    grown[:, 1] += torch.sign(outline[:, 1] - middle[1]) * 0.07 * width
    return grown


def paint_over(image: Tensor, mask: Tensor) -> Tensor:
    """The image with what the mask [1, S, S] covers filled smoothly from around it, coarse to fine."""
    known = (mask < 0.02).float()[None]
    levels = [(image[None] * known, known)]
    while levels[-1][1].shape[-1] > 1:
        levels.append(tuple(F.avg_pool2d(part, 2, ceil_mode=True) for part in levels[-1]))
    filled = levels[-1][0] / levels[-1][1].clamp_min(1e-4)
    for colour, weight in reversed(levels[:-1]):
        coarse = F.interpolate(filled, size=colour.shape[-2:], mode="bilinear", align_corners=False)
        filled = coarse + (4 * weight).clamp(0, 1) * (colour / weight.clamp_min(1e-4) - coarse)
    return image + mask * (filled[0] - image)


def inverse_flow(flow: Tensor, steps: int = 8) -> Tensor:
    """Backward displacement [1, 2, N, N] of a smooth forward one, by fixed point: b(p) = -f(p + b(p))."""
    grid, back = centers(flow.shape[-1]), -flow
    for _ in range(steps):
        at = grid + back[0].permute(1, 2, 0)
        back = 0.3 * back - 0.7 * look_up(flow[0], at)[None]
    return back


# --- eyeballs ---------------------------------------------------------------------------------------------------------


def on_ball(points: Tensor, center: Tensor, radius: float) -> Tensor:
    """Unit vectors [N, 3] from a ball's centre to the places on its front that lie at image points [N, 2]."""
    flat = (points - center[:2]) / radius
    flat = flat / flat.norm(dim=-1, keepdim=True).div(0.95).clamp_min(1)
    return torch.cat([flat, -(1 - flat.square().sum(-1, keepdim=True)).sqrt()], -1)


def turn_to(direction: Tensor) -> Tensor:
    """The rotation without roll that takes (0, 0, -1) to a unit vector."""
    yaw, pitch = torch.atan2(-direction[0], -direction[2]), torch.asin(direction[1].clamp(-1, 1))
    return matrix_from_euler(yaw, pitch, torch.zeros(()))


def ball_texture(image: Tensor, center: Tensor, radius: float, turn: Tensor, iris: float, outline: Tensor) -> Tensor:
    """An eyeball as seen along its own axis; what the lids hide is filled in.

    Args:
        image (`torch.Tensor` of shape `(3, S, S)`): The photograph.
        center (`torch.Tensor` of shape `(3,)`): Of the ball, in fractions of the image.
        radius (`float`): Of the ball, in fractions of the image.
        turn (`torch.Tensor` of shape `(3, 3)`): Takes (0, 0, -1) to where the eye looks.
        iris (`float`): Radius of the iris in radii of the ball.
        outline (`torch.Tensor` of shape `(N, 2)`): The lids' margins.

    Returns:
        `torch.Tensor` of shape `(3, 64, 64)`.
    """
    x, y = ((centers(BALL_SIDE) * 2 - 1) * _BALL_EDGE).unbind(-1)
    off_axis = torch.hypot(x, y)
    axis = torch.stack([x, y, -(1 - off_axis.square()).clamp_min(0).sqrt()], -1)
    place = axis @ turn.mT * radius + center
    colour = look_up(image, place[..., :2])
    side = image.shape[-1]
    open_part = -F.max_pool2d(-outline_mask(outline, side)[None], 3, 1, 1)[0]  # its edge shows lashes and lids
    known = (look_up(open_part, place[..., :2])[0] > 0.9) & (place[..., 2] < center[2]) & (off_axis < _BALL_EDGE)
    white = known & (off_axis > 1.15 * iris)
    last = colour[:, white].median(1).values if white.sum() > 8 else torch.tensor([0.62, 0.57, 0.55])
    filled = last[:, None, None] * (1 - 0.3 * off_axis.square())
    # The iris is alike all around, so each ring of it has one colour; from the outside inwards.
    edges = torch.linspace(0, 1.1 * iris, 8)
    ring = torch.bucketize(off_axis, edges)
    for number in range(len(edges) - 1, 0, -1):
        seen = (ring == number) & known
        last = colour[:, seen].median(1).values if seen.sum() > 3 else 0.6 * last if number == len(edges) - 1 else last
        filled[:, ring == number] = last[:, None]
    filled = F.avg_pool2d(filled[None], 3, 1, 1, count_include_pad=False)[0]
    soft = (2 * F.avg_pool2d(known[None, None].float(), 5, 1, 2)[0] - 1).clamp(0, 1) * known
    return filled + soft * (colour - filled)


def draw_ball(places: Tensor, texture: Tensor, center: Tensor, radius: float, turn: Tensor) -> Tensor:
    """Colours [3, H, W] of an eyeball at places [H, W, 2]; beyond its rim the rim's."""
    flat = (places - center[:2]) / radius
    flat = flat / flat.norm(dim=-1, keepdim=True).div(0.995).clamp_min(1)
    front = torch.cat([flat, -(1 - flat.square().sum(-1, keepdim=True)).sqrt()], -1)
    local = front @ turn  # turn.T on the left
    axis = torch.where(local[..., 2:] < 0, local[..., :2], F.normalize(local[..., :2], dim=-1))
    return look_up(texture, (axis / _BALL_EDGE + 1) / 2)


# --- meshes -----------------------------------------------------------------------------------------------------------


def outer_border(faces: Tensor) -> Tensor:
    """Vertices of the longest border of a mesh: around the face, not around the eyes or the mouth."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(1).values
    unique, count = edges.unique(dim=0, return_counts=True)
    border = unique[count == 1]
    if not len(border):
        return border.flatten()
    # Each connected piece gets the number of its smallest vertex, handed on along the edges.
    label = torch.arange(int(faces.max()) + 1)
    for _ in range(len(border)):
        smaller = label.scatter_reduce(0, border.flatten(), label[border].amin(1).repeat_interleave(2), "amin")
        if torch.equal(smaller, label):
            break
        label = smaller
    vertices = border.unique()
    pieces, sizes = label[vertices].unique(return_counts=True)
    return vertices[label[vertices] == pieces[sizes.argmax()]]


def spread_out(points: Tensor, count: int) -> Tensor:
    """Rows of points far from one another: each next one is the farthest from those before."""
    chosen = [0]
    distance = (points - points[0]).norm(dim=1)
    while len(chosen) < min(count, len(points)):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).norm(dim=1))
    return torch.tensor(chosen)

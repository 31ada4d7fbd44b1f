r"""Hair, shoulders and all else of a cut-out portrait that the head's mesh lacks, as a closed shell of Gaussians.

Not in the paper, whose Gaussians find hair by themselves in 200,000 iterations. Here the silhouette is blown up:

```
      camera                    h(p) = height of the shell over the plane in the middle of the head, centimetres
   ......|......
     .--h-->.   front           laplacian(h²) = -c        c = 4 would blow a disc up to a ball
    /  face  \                  h = 0 at the silhouette, h = the mesh where the mesh is trusted: face and neck
   |----------| middle          below the nose the face ends in the air: what is beside it does not begin there
    \        /                  the back is the front's mirror image
     '------'   back
```
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from vasa_hf.gaussians.scene import Gaussians
from vasa_hf.geometry.quaternions import quaternion_from_matrix
from vasa_hf.processors.matte import spread_colours

_HAIR_BULGE, _BODY_BULGE = 3.0, 0.8  # c of the equation above the chin and below
_MOST_CM = 10.0  # the shell's height over the middle, at most (softly)
_OVER_SCALP_CM = 0.3
_STRETCH = 3.0  # a disc that is seen edge-on is longer than wide, at most this many times
_WIDTH = 0.75  # standard deviation of a disc over the distance to its neighbour
_THICKNESS = 0.3
_LEAST_ALPHA = 0.1
_COARSE_BACK = 2  # every second pixel: the back is seldom seen


@dataclasses.dataclass
class PortraitMaps:
    """What is where in a portrait, on a grid; row 0 is the top.

    Attributes:
        colours (`torch.Tensor` of shape `(3, G, G)`): The person's, in [0, 1].
        alpha (`torch.Tensor` of shape `(G, G)`): Of the cut-out.
        height_cm (`torch.Tensor` of shape `(G, G)`): Of the mesh over the middle plane, towards the camera; NaN next to
            it.
        face (`torch.Tensor` of shape `(G, G)`), neck: bool, whether the mesh shows its face, its neck.
        floating_row (`float`): Row from which downwards the face's edge is an edge in the air.
        chin_row (`float`): Row of the chin.
    """

    colours: Tensor
    alpha: Tensor
    height_cm: Tensor
    face: Tensor
    neck: Tensor
    floating_row: float
    chin_row: float


def shell_heights(maps: PortraitMaps, pixel_cm: float, closed: bool = False) -> tuple[Tensor, Tensor]:
    """Where the shell is: heights over the middle plane `(G, G)` in centimetres and the pixels that it fills.

    Args:
        maps (`PortraitMaps`): The portrait.
        pixel_cm (`float`): Size of a pixel at the middle plane.
        closed (`bool`, *optional*, defaults to False): Fill the whole silhouette, as if there were no mesh.
    """
    person = maps.alpha > _LEAST_ALPHA
    known = person & (maps.face | maps.neck) & (not closed)
    free = person & ~known
    size = len(person)
    rows = torch.arange(size)[:, None].expand(size, size) + 0.5
    bulge = torch.where(rows < maps.chin_row, _HAIR_BULGE, _BODY_BULGE)
    square = torch.where(known, maps.height_cm.nan_to_num().clamp_min(0).square(), torch.zeros(()))
    floating = known & maps.face & (rows > maps.floating_row)
    links = [_links(floating, shift, axis) for axis in (0, 1) for shift in (1, -1)]
    free = _anchored(free, links)

    def laplacian(values: Tensor) -> Tensor:
        total = torch.zeros_like(values)
        for link, shift, axis in links:
            total += link * (values - torch.roll(values, shift, axis))
        return total

    source = free * (bulge * pixel_cm**2) - free * laplacian(square)
    found = _conjugate_gradients(lambda values: free * laplacian(values * free), source, steps=600)
    height = found.clamp_min(0).sqrt()
    height = _MOST_CM * torch.tanh(height / _MOST_CM)
    if closed:
        return height, free
    over_scalp = maps.height_cm.nan_to_num(nan=-torch.inf) + _OVER_SCALP_CM
    return torch.where(free, torch.maximum(height, over_scalp), square.sqrt()), free


def _links(floating: Tensor, shift: int, axis: int) -> tuple[Tensor, int, int]:
    """Which pixels [G, G] feel the neighbour that `roll` by `shift` brings; at the image's rim there is none."""
    inside = torch.ones_like(floating)
    inside.select(axis, 0 if shift == 1 else -1).zero_()
    return (inside & ~torch.roll(floating, shift, axis)).float(), shift, axis


def _anchored(free: Tensor, links: list[tuple[Tensor, int, int]]) -> Tensor:
    """The free pixels whose height something decides, through others; not a gap between lips, as in FLAME's mesh."""

    def touch(pixels: Tensor) -> Tensor:
        near = torch.zeros_like(free)
        for link, shift, axis in links:
            near |= (link > 0) & torch.roll(pixels, shift, axis)
        return free & near

    found, before = touch(~free), torch.zeros_like(free)
    while not torch.equal(found, before):
        found, before = found | touch(found), found
    return found


def _conjugate_gradients(product, source: Tensor, steps: int, tolerance: float = 1e-4) -> Tensor:
    """Solve `product(x) = source` for a symmetric, positive `product`."""
    found, rest = torch.zeros_like(source), source.clone()
    along, size = rest.clone(), rest.square().sum()
    enough = tolerance**2 * size
    for _ in range(steps):
        if size <= enough:
            break
        image = product(along)
        step = size / (along * image).sum().clamp_min(1e-12)
        found, rest = found + step * along, rest - step * image
        size, before = rest.square().sum(), size
        along = rest + size / before * along
    return found


def shell_size(maps: PortraitMaps) -> int:
    """How many Gaussians `make_shell` makes, or some more."""
    person = maps.alpha > _LEAST_ALPHA
    return int((person & ~maps.face & ~maps.neck).sum() + (person.sum() + 2 * len(person)) / _COARSE_BACK**2)


def is_hair(maps: PortraitMaps, colours: Tensor) -> Tensor:
    """Which colours are more like the head's rim above the chin than like the face.

    The forehead and ears lie outside of the mesh's face, and must not colour the back of the head.

    Args:
        maps (`PortraitMaps`): The portrait.
        colours (`torch.Tensor` of shape `(3, ...)`): RGB in [0, 1].

    Returns:
        `torch.Tensor` of shape `(...)`: bool; all are, where the portrait shows no rim or no face.
    """
    size, solid = len(maps.alpha), maps.alpha > 0.9
    reach = max(size // 24, 1)
    inner = -F.max_pool2d(-maps.alpha[None], 2 * reach + 1, 1, reach)[0] > 0.9
    above = torch.arange(size)[:, None] + 0.5 < maps.chin_row
    rim = solid & ~inner & ~maps.face & ~maps.neck & above
    face = solid & maps.face
    if not rim.any() or not face.any():
        return torch.ones(colours.shape[1:], dtype=torch.bool)
    hair, skin = (maps.colours[:, mask].median(1).values for mask in (rim, face))
    distances = [(colours.movedim(0, -1) - colour).norm(dim=-1) for colour in (hair, skin)]
    return distances[0] < distances[1]


def make_shell(maps: PortraitMaps, pixel_cm: float) -> tuple[Gaussians, Tensor]:
    """The shell as Gaussians.

    Args:
        maps (`PortraitMaps`): The portrait.
        pixel_cm (`float`): Size of a pixel at the middle plane.

    Returns:
        Gaussians `(n)`: x and y of their means in fractions of the image, z the height over the middle plane, towards
        the camera, in centimetres; scales in centimetres, rotations for axes x right, y down, z away. And whether each
        is hair (above the chin) rather than body, bool `(n,)`.
    """
    size = len(maps.alpha)

    def discs(side: float, every: int, colours: Tensor) -> tuple[Gaussians, Tensor]:
        height, filled = shell_heights(maps, pixel_cm, closed=side < 0)
        slope = torch.stack(torch.gradient(torch.where(maps.alpha > _LEAST_ALPHA, -height, torch.zeros(()))))  # y, x
        slope = side * F.avg_pool2d(slope[None], 3, 1, 1)[0] / pixel_cm  # of z, which points away
        y, x = filled.nonzero(as_tuple=True)
        kept = (y % every == 0) & (x % every == 0)
        y, x = y[kept], x[kept]
        normal = torch.stack([slope[1, y, x], slope[0, y, x], -torch.ones(len(y))], 1)
        steep = normal[:, :2].norm(dim=1)
        normal = F.normalize(normal, dim=1)
        across = torch.stack([-slope[0, y, x], slope[1, y, x] + 1e-6, torch.zeros(len(y))], 1)
        across = F.normalize(across, dim=1)
        rotation = torch.stack([torch.linalg.cross(normal, across), normal, across], -1)
        width = _WIDTH * every * pixel_cm
        long = width * (1 + steep.square()).sqrt().clamp_max(_STRETCH)
        scales = torch.stack([long, torch.full_like(long, _THICKNESS * width), torch.full_like(long, width)], 1)
        at = torch.stack([(x + 0.5) / size, (y + 0.5) / size, side * height[y, x]], 1)
        opacities = 0.95 * maps.alpha[y, x]
        return Gaussians(at, quaternion_from_matrix(rotation), scales, opacities, colours[:, y, x].T), y

    below_chin = torch.arange(size)[:, None] + 0.5 >= maps.chin_row
    outside = (maps.alpha > 0.9) & ~maps.face & ~maps.neck & (below_chin | is_hair(maps, maps.colours))
    front, above = discs(1.0, 1, maps.colours)
    behind, below = discs(-1.0, _COARSE_BACK, spread_colours(maps.colours, outside))
    both = Gaussians(*(torch.cat(pair) for pair in zip(vars(front).values(), vars(behind).values(), strict=True)))
    return both, torch.cat([above, below]) + 0.5 < maps.chin_row

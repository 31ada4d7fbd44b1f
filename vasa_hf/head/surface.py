"""The skin of the built-in whole head: a surface through the mean face's landmarks, and a mesh on it.

Not in the paper. The surface is an analytic skull and neck, deformed to pass through the landmarks. The mesh is a grid
around the head with three windows, in which rings of quads lead to lids and lips:

```
grid   rows from the crown down to the neck's end, columns around the head, finer on the face
eyes   window of 10 x 6 cells (32 corners) -> 2 rings -> lid margin (16 landmarks and 16 between) -> behind the lids
mouth  window of 14 x 6 cells (40 corners) -> 2 rings -> outer lips -> inner lips (20 landmarks, 20 between) -> cavity
```
Centimetres; x right, y down, z away.
"""

import dataclasses
import math

import torch
from torch import Tensor

from vasa_hf.geometry.landmarks import GROUPS
from vasa_hf.head.fit import spread_weights

_EYE_LEVEL, _AXIS_Z = -1.28, 9.2  # y of the origin of the skull, z of its upright axis
_AROUND, _UP = 8.5, 10.0  # centimetres of the chart per radian around and upwards
END_OF_NECK = 17.0  # y
_CROWN = 10.2  # height of the skull above the eye level
_ROUND = 2.3  # exponent of a superellipse; skulls are flatter on top than an ellipse (2)
# Half axes of the head at heights y: side, front, back. Chosen values.
_SECTIONS = (
    (-1.28, 7.6, 8.6, 9.4),
    (2.0, 7.4, 9.0, 9.0),
    (5.0, 6.8, 9.6, 7.4),
    (8.0, 5.6, 9.2, 5.6),
    (10.2, 4.9, 7.4, 4.9),
    (11.6, 4.7, 5.2, 4.7),
    (13.0, 4.7, 4.2, 4.6),
    (17.0, 5.4, 4.4, 5.2),
)
_EAR = (14.6, 2.6, 1.0, 2.4, 1.5)  # position in the chart, half sizes, protrusion


class Surface:
    """The skin as a map from a chart (around, down) to space, through given points.

    Args:
        points (`torch.Tensor` of shape `(N, 3)`): Landmarks.
    """

    def __init__(self, points: Tensor):
        self.table = torch.tensor(_SECTIONS)
        self.known = self.chart(points)
        radius = self._distance(points)
        self.stretch = (radius / self._skull(self.known)).log()

    def chart(self, points: Tensor) -> Tensor:
        """Map points [N, 3] on the skin to the chart [N, 2]."""
        x, y, z = points[:, 0], points[:, 1] - _EYE_LEVEL, points[:, 2] - _AXIS_Z
        up = torch.atan2(-y, torch.hypot(x, z))
        return torch.stack([_AROUND * torch.atan2(x, -z), torch.where(y > 0, y, -_UP * up)], 1)

    def place(self, chart: Tensor) -> Tensor:
        """Map positions [N, 2] in the chart to points [N, 3]."""
        bend = spread_weights(self.known, chart, reach=8.0, softness=0.5, stiffness=1e-4) @ self.stretch
        radius = self._skull(chart) * bend.exp() + self._ear(chart)
        around, up = chart[:, 0] / _AROUND, (-chart[:, 1] / _UP).clamp_min(0)
        y = torch.where(chart[:, 1] > 0, chart[:, 1], -radius * up.sin())
        flat = radius * up.cos()
        return torch.stack([flat * around.sin(), y + _EYE_LEVEL, _AXIS_Z - flat * around.cos()], 1)

    def _distance(self, points: Tensor) -> Tensor:
        y = (points[:, 1] - _EYE_LEVEL).clamp_max(0)
        return (points[:, 0].square() + (points[:, 2] - _AXIS_Z).square() + y.square()).sqrt()

    def _skull(self, chart: Tensor) -> Tensor:
        """Distance [N] of the analytic skull from the axis, above the eye level from its centre."""
        around, up = chart[:, 0] / _AROUND, (-chart[:, 1] / _UP).clamp_min(0)
        side, front, back = self._section(chart[:, 1].clamp_min(0) + _EYE_LEVEL).unbind(1)
        forward = torch.where(around.cos() > 0, front, back)
        across = ((around.sin() / side).square() + (around.cos() / forward).square()).sqrt()
        return ((across * up.cos()) ** _ROUND + (up.sin() / _CROWN) ** _ROUND) ** (-1 / _ROUND)

    def _section(self, y: Tensor) -> Tensor:
        """Half axes [N, 3] at heights [N]: a cubic through the table, level at its upper end."""
        heights, values = self.table[:, 0].contiguous(), self.table[:, 1:]
        slope = torch.zeros_like(values)
        slope[1:-1] = (values[2:] - values[:-2]) / (heights[2:] - heights[:-2])[:, None]
        k = torch.searchsorted(heights, y.contiguous()).clamp(1, len(heights) - 1)
        step = heights[k] - heights[k - 1]
        t = ((y - heights[k - 1]) / step)[:, None]
        a, b, step = values[k - 1], values[k], step[:, None]
        level = a + (b - a) * t * t * (3 - 2 * t)
        return level + step * (slope[k - 1] * t * (1 - t) ** 2 - slope[k] * t * t * (1 - t))

    @staticmethod
    def _ear(chart: Tensor) -> Tensor:
        u, v, width, height, out = _EAR
        across = (chart[:, 0].abs() - u) / width
        along = ((chart[:, 1] - v) / height).abs() ** 3
        rim = torch.exp(-along) * (torch.exp(-across.square()) - 0.45 * torch.exp(-(2 * across + 0.6).square()))
        return out * rim


@dataclasses.dataclass
class Skin:
    """The mesh of the skin and of the cavities behind lids and lips.

    Attributes:
        vertices (`torch.Tensor` of shape `(N, 3)`): Centimetres.
        faces (`torch.Tensor` of shape `(F, 3)`): Anticlockwise from outside.
        chart (`torch.Tensor` of shape `(N, 2)`): Position in the chart; for cavities that of their margin.
        lips (`torch.Tensor` of shape `(N,)`): On the rings -1 for the upper, 1 for the lower lip; 0 elsewhere.
        lids (`torch.Tensor` of shape `(N,)`): The same for the lids.
        rings (`dict` of `str` to a list of `torch.Tensor`): Vertices of "left_eye", "right_eye" and "mouth", ring by
            ring from the window inwards, each from the image's left corner by the lower side.
        margin (`dict` of `str` to `int`): Index of the ring of the lid margin or the inner lip.
    """

    vertices: Tensor
    faces: Tensor
    chart: Tensor
    lips: Tensor
    lids: Tensor
    rings: dict[str, list[Tensor]]
    margin: dict[str, int]


def make_skin(points: Tensor) -> Skin:
    """Make the mesh through landmarks [152, 3], which must be left-right symmetric."""
    surface = Surface(points)
    columns, rows = _columns(), _rows()
    chart = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)  # [R, C, 2]
    number = torch.arange(len(rows) * len(columns)).view(len(rows), len(columns))
    middle = len(columns) // 2 - 1  # the column at 0; the last one, at the back, has no mirror image
    windows = {
        "left_eye": _window(rows, middle - 13, middle - 3, -1.5, 1.5),
        "right_eye": _window(rows, middle + 3, middle + 13, -1.5, 1.5),
        "mouth": _window(rows, middle - 7, middle + 7, 5.1, 9.0),
    }
    builder = _Builder(surface, chart.view(-1, 2))
    kept = torch.ones(len(rows) - 1, len(columns), dtype=torch.bool)
    for top, bottom, left, right in windows.values():
        kept[top:bottom, left:right] = False
    a, b = number, number.roll(-1, 1)
    quads = torch.stack([a[:-1], a[1:], b[1:], b[:-1]], -1)[kept]
    builder.quads(quads)
    builder.crown(number[0])
    for name, window in windows.items():
        edge = _edge(number, *window)
        (builder.mouth if name == "mouth" else builder.eye)(name, edge, points)
    return builder.finish()


def _columns() -> Tensor:
    """Columns around the head, symmetric about the front: fine on the face, coarser behind, the last at the back."""
    steps = [0.4 * min(1.1**i, 2.0) for i in range(31)]
    behind = torch.tensor(steps).cumsum(0)
    behind = 5.2 + behind * (math.pi * _AROUND - 5.2) / behind[-1]
    half = torch.cat([torch.arange(1, 14) * 0.4, behind])
    return torch.cat([-half[:-1].flip(0), torch.zeros(1), half])


def _rows() -> Tensor:
    """Heights in the chart from near the crown down to the end of the neck."""
    end = END_OF_NECK - _EYE_LEVEL
    upper = torch.tensor([0.5 * 1.045**i for i in range(20)]).cumsum(0).flip(0)
    upper = -1.5 - upper * (math.pi / 2 * _UP - 1.5 - 0.9) / upper[0]
    parts = [(-1.5, 1.5, 6), (1.5, 5.1, 7), (5.1, 9.0, 6), (9.0, 12.0, 6), (12.0, end, 8)]
    return torch.cat([upper, *(torch.linspace(a, b, n + 1)[:-1] for a, b, n in parts), torch.tensor([end])])


def _window(rows: Tensor, left: int, right: int, top: float, bottom: float) -> tuple[int, int, int, int]:
    first, last = ((rows - value).abs().argmin() for value in (top, bottom))
    return int(first), int(last), left, right


def _edge(number: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """Vertices around a window, from the middle of its left side downwards."""
    down = number[top:bottom, left]
    half = len(down) // 2
    low, up = number[bottom, left:right], number[top + 1 : bottom + 1, right].flip(0)
    return torch.cat([down[half:], low, up, number[top, left + 1 : right + 1].flip(0), down[:half]])


def add_midpoints(points: Tensor) -> Tensor:
    """Add midpoints to a closed outline [N, C]: [2 N, C]."""
    between = (points + points.roll(-1, 0)) / 2
    return torch.stack([points, between], 1).flatten(0, 1)


def outline(name: str) -> list[int]:
    """Landmark rows from the image's left corner by the lower side."""
    order = list(GROUPS[name])
    return [order[(8 - i) % 16] for i in range(16)] if name == "right_eye" else order


class _Builder:
    def __init__(self, surface: Surface, chart: Tensor):
        self.surface, self.charts, self.vertices = surface, [chart], [surface.place(chart)]
        self.sides = [torch.zeros(len(chart))]
        self.faces: list[Tensor] = []
        self.rings: dict[str, list[Tensor]] = {}
        self.margin: dict[str, int] = {}

    def add(self, vertices: Tensor, chart: Tensor, sides: Tensor) -> Tensor:
        first = sum(map(len, self.vertices))
        self.vertices.append(vertices)
        self.charts.append(chart)
        self.sides.append(sides)
        return first + torch.arange(len(vertices))

    def quads(self, quads: Tensor) -> None:
        """Add quads, each split along its shorter diagonal."""
        corners = torch.cat(self.vertices)[quads]
        first = (corners[:, 0] - corners[:, 2]).norm(dim=1) <= (corners[:, 1] - corners[:, 3]).norm(dim=1)
        order = torch.where(first[:, None], torch.tensor([0, 1, 2, 0, 2, 3]), torch.tensor([0, 1, 3, 1, 2, 3]))
        self.faces.append(quads.gather(1, order).view(-1, 3))

    def crown(self, ring: Tensor) -> None:
        chart = torch.tensor([[0.0, -math.pi / 2 * _UP]])
        (pole,) = self.add(self.surface.place(chart), chart, torch.zeros(1))
        self.faces.append(torch.stack([ring, ring.roll(-1), pole.expand(len(ring))], 1).flip(1)[:, [1, 0, 2]])

    def ring(self, name: str, vertices: Tensor, chart: Tensor) -> None:
        """Add a ring inside the last one and connect them."""
        count = len(vertices)
        sides = torch.ones(count)
        sides[count // 2 + 1 :] = -1
        sides[[0, count // 2]] = 0
        new, last = self.add(vertices, chart, sides), self.rings[name][-1]
        self.quads(torch.stack([last, last.roll(-1), new.roll(-1), new], 1))
        self.rings[name].append(new)

    def between(self, name: str, goal: Tensor, shares: tuple[float, ...], bulge_cm: float = 0.0) -> None:
        """Add rings on the surface between the last ring and positions in the chart."""
        start = torch.cat(self.charts)[self.rings[name][-1]]
        for share in shares:
            chart = start + share * (goal - start)
            vertices = self.surface.place(chart)
            vertices[:, 2] -= 4 * bulge_cm * share * (1 - share)
            self.ring(name, vertices, chart)

    def eye(self, name: str, edge: Tensor, points: Tensor) -> None:
        self.rings[name] = [edge]
        lids = add_midpoints(points[outline(name)])
        chart = self.surface.chart(lids)
        self.between(name, chart, (0.4, 0.75))
        self.ring(name, lids, chart)
        self.margin[name] = len(self.rings[name]) - 1
        center = lids.mean(0)
        for depth, wider in ((0.2, 1.03), (0.9, 1.2)):
            out = (lids - center) * torch.tensor([wider, 1.5 * wider if depth > 0.5 else wider, 1.0]) + center
            self.ring(name, out + torch.tensor([0.0, 0.0, depth]), chart)

    def mouth(self, name: str, edge: Tensor, points: Tensor) -> None:
        self.rings[name] = [edge]
        outer, inner = (add_midpoints(points[list(GROUPS[group])]) for group in ("lips_outer", "lips_inner"))
        outer_chart, inner_chart = self.surface.chart(outer), self.surface.chart(inner)
        self.between(name, outer_chart, (0.4, 0.75))
        self.ring(name, outer, outer_chart)
        self.between(name, inner_chart, (0.35, 0.7), bulge_cm=0.12)
        self.ring(name, inner, inner_chart)
        self.margin[name] = len(self.rings[name]) - 1
        middle = inner.mean(0)
        sides = torch.sin(torch.arange(40) * 2 * math.pi / 40)  # 1 in the middle of the lower lip
        for depth, height, width in ((0.35, 0.15, 0.97), (0.7, 1.9, 0.95), (2.6, 2.1, 1.0), (4.8, 1.6, 0.8)):
            ring = inner * torch.tensor([width, 0.0, 1.0]) + torch.tensor([0.0, 1.0, 0.0]) * middle
            ring[:, 1] += height * sides + (0.2 if depth > 0.5 else 0.0)
            ring[:, 2] += depth + (0.0 if depth < 1 else 0.3) * (1 - sides.abs())
            self.ring(name, ring, inner_chart)
        last = self.rings[name][-1]
        (end,) = self.add(torch.cat(self.vertices)[last].mean(0, keepdim=True), inner_chart[:1], torch.zeros(1))
        self.faces.append(torch.stack([last, last.roll(-1), end.expand(40)], 1))

    def finish(self) -> Skin:
        """Build the mesh without the vertices inside the windows."""
        faces, vertices = torch.cat(self.faces), torch.cat(self.vertices)
        used = torch.zeros(len(vertices), dtype=torch.bool)
        used[faces] = True
        number = used.cumsum(0) - 1
        sides, at_mouth = torch.cat(self.sides), torch.zeros(len(vertices), dtype=torch.bool)
        at_mouth[torch.cat(self.rings["mouth"])] = True
        return Skin(
            vertices=vertices[used],
            faces=number[faces],
            chart=torch.cat(self.charts)[used],
            lips=torch.where(at_mouth, sides, 0.0)[used],
            lids=torch.where(at_mouth, 0.0, sides)[used],
            rings={name: [number[ring] for ring in rings] for name, rings in self.rings.items()},
            margin=self.margin,
        )

"""A small built-in head, computed from the mean face: for rendered talkers without a download.

Not in the paper. A sheet through the landmarks' canonical face, upper and lower teeth, gums, two eye centres, ten
identity shapes and the ARKit-like expressions that talkers use, all as analytic smooth fields. ICT-FaceKit's head has
more detail and the same names: either can be used.

Axes and units as in `mesh`: centimetres, x right, y down, z away. The person's left is the image's right.
"""

import torch
from torch import Tensor

from vasa_hf.geometry.landmarks import GROUPS, LANDMARK_IDS, NUM_LANDMARKS, rows
from vasa_hf.head.fit import spread_weights
from vasa_hf.head.mesh import HeadMesh

CM = 8.9  # between the outer eye corners
_SPACING = 0.3
EYE_RADIUS, _EYE_DEPTH = 1.25, 1.1
_SIDES = {"L": 1.0, "R": -1.0}


def template_head(canonical: Tensor) -> HeadMesh:
    """Make the head.

    Args:
        canonical (`torch.Tensor` of shape `(478, 3)` or `(162, 3)`): Mean face, outer eye corners one unit apart, such
            as that of the embedded `LandmarkDynamics`.

    Raises:
        ValueError: If the shape is wrong.
    """
    if canonical.shape not in ((478, 3), (NUM_LANDMARKS, 3)):
        raise ValueError(f"`canonical` must be of shape (478, 3) or (162, 3), but is {tuple(canonical.shape)}.")
    if len(canonical) == 478:
        canonical = canonical[list(LANDMARK_IDS)]
    face = canonical.float() * CM
    points = face[: NUM_LANDMARKS - 10]
    sheet, skin = _sheet(points)
    inside, mouth, is_tooth, lower = mouth_parts(face)
    eyes = torch.stack([eye_center(face, group) for group in ("left_eye", "right_eye")])
    vertices = torch.cat([points, sheet, inside, eyes])
    first = len(points) + len(sheet)
    fields = Fields(face)
    surface = torch.cat([points, sheet])
    expression = {name: torch.zeros(len(vertices), 3) for name in fields.names}
    for name, offset in fields.expressions(surface).items():
        expression[name][:first] = offset
    jaw = torch.zeros(len(vertices), 3)
    jaw[first : first + len(inside)] = lower[:, None] * torch.tensor([0.0, 2.7, 0.7])
    expression["jawOpen"] += jaw
    for name, sign in (("jawLeft", 1.0), ("jawRight", -1.0)):
        expression[name] += jaw[:, 1:2] / 2.7 * torch.tensor([0.6 * sign, 0.0, 0.0])
    teeth = torch.zeros(len(vertices), dtype=torch.bool)
    teeth[first : first + len(inside)] = is_tooth
    centers = torch.zeros(2, len(vertices))
    centers[0, -2], centers[1, -1] = 1.0, 1.0
    return HeadMesh(
        vertices=vertices,
        identity=identities(vertices, face),
        expression=torch.stack(list(expression.values())),
        expression_names=tuple(expression),
        skin=skin + len(points),
        inside=mouth + first,
        teeth=teeth,
        eye_centers=centers,
        eye_radius_cm=EYE_RADIUS,
        landmarks=torch.arange(len(points)),
        origin_cm=torch.zeros(3),
    )


def _sheet(points: Tensor) -> tuple[Tensor, Tensor]:
    """Make the skin, a grid in the image plane at the depth of the landmarks: vertices [N, 3], triangles."""
    x = torch.arange(-8.4, 8.5, _SPACING)
    y = torch.arange(float(points[:, 1].amin()) - 2.0, float(points[:, 1].amax()) + 3.5, _SPACING)
    place = torch.cartesian_prod(y, x).flip(1)  # [N, 2], row by row
    design = lambda p: torch.stack([torch.ones(len(p)), p[:, 1], p[:, 0] ** 2, p[:, 1] ** 2], 1)  # noqa: E731
    trend = torch.linalg.lstsq(design(points), points[:, 2:]).solution
    rest = points[:, 2:] - design(points) @ trend
    depth = design(place) @ trend + spread_weights(points[:, :2], place, reach=6.0, softness=0.5, stiffness=1e-3) @ rest
    columns = len(x)
    a = (torch.arange(len(y) - 1)[:, None] * columns + torch.arange(columns - 1)).flatten()
    faces = torch.cat([torch.stack([a, a + columns, a + 1], 1), torch.stack([a + 1, a + columns, a + columns + 1], 1)])
    return torch.cat([place, depth], 1), faces


def mouth_parts(face: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make teeth and gums: vertices [M, 3], triangles, mask of teeth [M], weight of the jaw [M]."""
    middle = face[list(GROUPS["lips_inner"])].mean(0)
    angle = torch.linspace(-1.15, 1.15, 25)
    arc = torch.stack([2.4 * angle.sin(), torch.zeros(25), 0.7 + 2.4 * (1 - angle.cos())], 1) + middle
    parts, faces, teeth, lower = [], [], [], []
    # From the line of the lips: edge and root of the teeth, end of the gums. The lower edge is behind the upper one.
    for sign, edge, root, end, back in ((-1.0, -0.42, 0.65, 1.7, 0.0), (1.0, 0.3, 1.1, 1.9, 0.2)):
        for near, far, is_tooth in ((edge, root, True), (root, end, False)):
            first = sum(map(len, parts))
            rows_of = [arc + torch.tensor([0.0, sign * height, back]) for height in (near, far)]
            parts += rows_of
            a = first + torch.arange(24)
            b = a + 25
            strip = torch.cat([torch.stack([a, b, a + 1], 1), torch.stack([a + 1, b, b + 1], 1)])
            faces.append(strip if sign > 0 else strip.flip(1))
            teeth.append(torch.full((50,), is_tooth))
            lower.append(torch.full((50,), float(sign > 0)))
    return torch.cat(parts), torch.cat(faces), torch.cat(teeth), torch.cat(lower)


def eye_center(face: Tensor, group: str) -> Tensor:
    """Centre [3] of an eyeball behind its lids."""
    return face[list(GROUPS[group])].mean(0) + torch.tensor([0.0, 0.0, _EYE_DEPTH])


def identities(vertices: Tensor, face: Tensor) -> Tensor:
    """Make ten identity shapes, [10, V, 3], about one standard deviation at weight 1."""
    x, y, z = vertices.unbind(1)
    mouth, nose = face[list(GROUPS["lips_inner"])].mean(0), face[rows(4)[0]]
    zero, below = torch.zeros_like(x), ((y - mouth[1] + 2) / 5).clamp(0, 1)
    eyes = torch.exp(-(((y - face[rows(33)[0], 1]) / 2.0) ** 2))
    at_mouth = torch.exp(-(((y - mouth[1]) / 1.3) ** 2) - (x / 3.5) ** 2)
    at_nose = torch.exp(-(((y - nose[1]) / 2.0) ** 2) - (x / 1.6) ** 2)
    brows = torch.exp(-(((y - face[rows(105)[0], 1]) / 1.2) ** 2))
    shapes = [
        (0.035 * x, zero, zero),
        (zero, 0.035 * y, zero),
        (zero, zero, 0.06 * z),
        (0.06 * x * below, zero, zero),
        (zero, 0.45 * below, zero),
        (zero, 0.3 * at_nose, -0.25 * at_nose),
        (0.25 * x * at_nose, zero, zero),
        (0.05 * x * eyes, zero, zero),
        (0.1 * x * at_mouth, zero, zero),
        (zero, 0.25 * brows, zero),
    ]
    return torch.stack([torch.stack(shape, 1) for shape in shapes])


class Fields:
    """Displacements of the skin for each expression, as functions of the position on the neutral face."""

    def __init__(self, face: Tensor):
        self.face = face
        self.mouth = face[list(GROUPS["lips_inner"])].mean(0)
        left, right = face[rows(61)[0]], face[rows(291)[0]]
        self.corners = {"R": left, "L": right}
        self.half_width = float(right[0] - left[0]) / 2
        self.names = tuple(self.expressions(face[:4]))

    def _near(self, points: Tensor, center: Tensor, width: float, height: float) -> Tensor:
        return torch.exp(
            -((points[:, 0] - center[0]) / width).square() - ((points[:, 1] - center[1]) / height).square()
        )

    def expressions(self, points: Tensor, lips: Tensor | None = None, lids: Tensor | None = None) -> dict[str, Tensor]:
        """Offsets [N, 3] by name; `lips` and `lids` [N]: -1 for upper, 1 for lower, 0 to decide by position."""
        mouth = {**self._jaw_and_lips(points, lips), **self._sides_of_mouth(points, lips)}
        return {**mouth, **self._eyes_and_brows(points, lids)}

    @staticmethod
    def _lower(down: Tensor, sides: Tensor | None) -> Tensor:
        lower = torch.sigmoid(down / 0.05)
        return lower if sides is None else torch.where(sides == 0, lower, (sides > 0).to(lower))

    def _jaw_and_lips(self, points: Tensor, sides: Tensor | None) -> dict[str, Tensor]:
        x, down = points[:, 0] - self.mouth[0], points[:, 1] - self.mouth[1]
        zero = torch.zeros_like(x)
        lower = self._lower(down, sides)
        upper = 1 - lower
        inner = (1 - (x / self.half_width).square()).clamp_min(0).sqrt()  # lips part most in the middle
        lips = torch.exp(-(down / 1.2).square()) * torch.exp(-((x / (1.5 * self.half_width)) ** 4))
        chin = ((down - 0.2) / 2.5).clamp(0, 1)
        jaw = lower * (inner + (1 - inner) * chin) * torch.exp(-((x / 6.5) ** 4))
        jaw = jaw * torch.exp(-((down - 5.5).clamp_min(0) / 2.0).square())

        def offset(dx: Tensor, dy: Tensor, dz: Tensor) -> Tensor:
            return torch.stack([dx, dy, dz], 1)

        part = lips * inner
        return {
            "jawOpen": offset(-0.12 * x * lips, 3.1 * jaw - 0.1 * upper * part, 0.7 * jaw),
            "jawLeft": offset(0.6 * jaw, zero, zero),
            "jawRight": offset(-0.6 * jaw, zero, zero),
            "mouthClose": offset(zero, -3.5 * lower * part, zero),
            "mouthFunnel": offset(-0.22 * x * lips, (0.75 * lower - 0.5 * upper) * part, -0.5 * lips),
            "mouthPucker": offset(-0.34 * x * lips, zero, -0.6 * lips),
            "mouthLeft": offset(0.8 * lips, zero, zero),
            "mouthRight": offset(-0.8 * lips, zero, zero),
            "mouthRollLower": offset(zero, -0.3 * lower * part, 0.3 * lower * part),
            "mouthRollUpper": offset(zero, 0.2 * upper * part, 0.3 * upper * part),
            "mouthShrugLower": offset(zero, -0.6 * lower * lips, -0.2 * lower * lips),
            "mouthShrugUpper": offset(zero, -0.5 * upper * lips, zero),
        }

    def _sides_of_mouth(self, points: Tensor, sides: Tensor | None) -> dict[str, Tensor]:
        x, down = points[:, 0] - self.mouth[0], points[:, 1] - self.mouth[1]
        lower = self._lower(down, sides)
        lips = torch.exp(-(down / 1.2).square())
        inner = (1 - (x / self.half_width).square()).clamp_min(0).sqrt()
        out = {}
        for side, sign in _SIDES.items():
            corner = self._near(points, self.corners[side], 2.0, 1.6)[:, None]
            half = torch.sigmoid(sign * x / 0.6) * lips * inner
            cheek = self._near(points, self.corners[side] + torch.tensor([sign * 1.2, -3.2, 0.0]), 1.8, 1.4)[:, None]
            wing = self._near(points, self.face[rows(4)[0]] + torch.tensor([sign * 1.2, 0.0, 0.0]), 1.0, 1.3)[:, None]
            for name, where, move in (
                ("mouthSmile", corner, (0.75 * sign, -0.6, 0.25)),
                ("mouthStretch", corner, (0.65 * sign, 0.1, 0.2)),
                ("mouthFrown", corner, (0.1 * sign, 0.6, 0.0)),
                ("mouthDimple", corner, (0.25 * sign, 0.0, 0.3)),
                ("mouthPress", (lower * half)[:, None], (0.0, -0.1, 0.1)),
                ("mouthUpperUp", ((1 - lower) * half)[:, None], (0.0, -0.65, 0.0)),
                ("mouthLowerDown", (lower * half)[:, None], (0.0, 0.6, 0.0)),
                ("cheekSquint", cheek, (0.0, -0.5, -0.1)),
                ("noseSneer", wing, (0.0, -0.5, 0.1)),
            ):
                out[f"{name}_{side}"] = where * torch.tensor(move)
        return out

    def _eyes_and_brows(self, points: Tensor, sides: Tensor | None) -> dict[str, Tensor]:
        out = {}
        for side, sign in _SIDES.items():
            group = "right" if side == "L" else "left"
            lids = self.face[list(GROUPS[f"{group}_eye"])]
            middle, brow = lids.mean(0), self.face[list(GROUPS[f"{group}_brow"])]
            half = float(lids[:, 0].amax() - lids[:, 0].amin()) / 2
            gap = float(lids[:, 1].amax() - lids[:, 1].amin())
            across = (1 - ((points[:, 0] - middle[0]) / half).square()).clamp_min(0)
            below = self._lower(points[:, 1] - middle[1], sides)
            near = torch.exp(-((points[:, 1] - middle[1]) / 0.9).square()) * across
            upper, lower = ((1 - below) * near)[:, None], (below * near)[:, None]
            order = brow[:, 0].abs()
            inner, outer = brow[order.argmin()], brow[order.argmax()]
            at_inner, at_outer = self._near(points, inner, 1.6, 1.5), self._near(points, outer, 2.0, 1.5)
            for name, where, move in (
                ("eyeBlink", upper, (0.0, 0.85 * gap, 0.0)),
                ("eyeSquint", lower, (0.0, -0.25, 0.0)),
                ("eyeWide", upper, (0.0, -0.3, 0.0)),
                ("eyeLookDown", upper, (0.0, 0.4, 0.0)),
                ("eyeLookUp", upper, (0.0, -0.15, 0.0)),
                ("browDown", (at_inner + 0.5 * at_outer)[:, None], (-0.15 * sign, 0.5, 0.0)),
                ("browInnerUp", at_inner[:, None], (0.0, -0.7, 0.0)),
                ("browOuterUp", at_outer[:, None], (0.0, -0.8, 0.0)),
            ):
                out[f"{name}_{side}"] = where * torch.tensor(move)
        return out

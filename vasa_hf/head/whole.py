"""The built-in whole head: skin, neck, ears, eyeballs, teeth, gums and tongue, with joints. No download.

Not in the paper, which uses FLAME's mesh. It is computed from the mean face, so only this project's licence applies:
about 6,200 vertices. Its expressions are those of `template`, with the same names; jaw, neck and eyes rotate by the
same skinning as in FLAME.
"""

import math

import torch
from torch import Tensor

from vasa_hf.geometry.landmarks import GROUPS, LANDMARK_IDS, NUM_LANDMARKS, mirror_permutation, rows
from vasa_hf.head.mean_face import mean_face
from vasa_hf.head.parametric import NAMED, REGIONS, ParametricHead
from vasa_hf.head.rigging import (
    below_skull,
    neighbour_mean,
    regressor,
    skin_regions,
    smooth,
    smoothstep,
    weights_of_joints,
)
from vasa_hf.head.surface import END_OF_NECK, Skin, make_skin, outline
from vasa_hf.head.template import CM, EYE_RADIUS, Fields, eye_center, identities, mouth_parts

_JAW = (0.0, 2.6, 8.2)  # joint of the jaw, relative to the mean face
_JAW_OPEN_RAD = 0.36  # at weight 1 of jawOpen; the lips then open as in the built-in head of the rendered talkers
_JAW_SIDE_RAD = 0.07
_NECK, _ROOT = (0.0, 9.6, 11.0), (0.0, 16.0, 10.0)
_BALL = (12, 16)  # rows and columns of an eyeball


def whole_head(canonical: Tensor | None = None) -> ParametricHead:
    """Make the head.

    Args:
        canonical (`torch.Tensor` of shape `(478, 3)` or `(162, 3)`, *optional*): Mean face, outer eye corners one unit
            apart; `mean_face()` by default.

    Raises:
        ValueError: If the shape is wrong.
    """
    face = _close_lips(_symmetrise(mean_face() if canonical is None else canonical) * CM)
    points = face[: NUM_LANDMARKS - 10]
    skin = make_skin(points)
    inside, mouth, tooth, lower = mouth_parts(face)
    tongue, tongue_faces = _tongue(face)
    centers = [eye_center(face, group) for group in ("right_eye", "left_eye")]  # the person's left one first
    ball, ball_faces = _ball()
    parts = [skin.vertices, inside, tongue, ball + centers[0], ball + centers[1], points]
    first = torch.tensor([0, *map(len, parts)]).cumsum(0).tolist()
    vertices = torch.cat(parts)
    faces = [skin.faces, mouth + first[1], tongue_faces + first[2], ball_faces + first[3], ball_faces + first[4]]
    kinds = ("mouth", "mouth", "left_eye", "right_eye")
    regions = [torch.full((len(f),), REGIONS.index(kind)) for f, kind in zip(faces[1:], kinds, strict=True)]
    regions[0][tooth[mouth].all(1)] = REGIONS.index("teeth")
    owner = torch.repeat_interleave(torch.arange(6), torch.tensor(list(map(len, parts))))

    expression = _expressions(skin, points, face, owner, vertices)
    jaw = _jaw_weights(skin, owner, vertices, face, lower)
    root = below_skull(vertices, face[rows(152)[0]], END_OF_NECK)
    weights = weights_of_joints(torch.where((owner == 0) | (owner == 5), root, 0.0), jaw, owner == 3, owner == 4)
    regress = [regressor(torch.tensor(place), skin.vertices, 400) for place in (_ROOT, _NECK, _JAW)]
    regress = [torch.cat([row, torch.zeros(len(vertices) - len(row))]) for row in regress]
    regress += [(owner == k).float() / len(ball) for k in (3, 4)]
    named = torch.cat([torch.eye(len(NAMED)), torch.zeros(len(NAMED), 3)], 1)
    named[NAMED.index("jawOpen"), -3] = _JAW_OPEN_RAD
    for name, sign in (("jawLeft", 1.0), ("jawRight", -1.0)):
        named[NAMED.index(name), -2] = -sign * _JAW_SIDE_RAD
    return ParametricHead(
        template=vertices,
        shape_basis=torch.cat([identities(vertices, face), _skull_shapes(vertices, face)]),
        expression_basis=expression,
        faces=torch.cat(faces),
        regions=torch.cat([_regions_of_skin(skin, points), *regions]),
        joint_regressor=torch.stack(regress),
        skinning_weights=weights,
        landmarks=first[5] + torch.arange(len(points)),
        named=named,
        eye_radius_cm=EYE_RADIUS,
    )


def _symmetrise(canonical: Tensor) -> Tensor:
    if canonical.shape not in ((478, 3), (NUM_LANDMARKS, 3)):
        raise ValueError(f"`canonical` must be of shape (478, 3) or (162, 3), but is {tuple(canonical.shape)}.")
    face = canonical[list(LANDMARK_IDS)].float() if len(canonical) == 478 else canonical.float()
    return (face + face[mirror_permutation(face)] * torch.tensor([-1.0, 1.0, 1.0])) / 2


def _close_lips(face: Tensor) -> Tensor:
    """Move the inner lips so that they nearly touch."""
    face = face.clone()
    ring = torch.tensor(GROUPS["lips_inner"])
    other = ring[(-torch.arange(20)) % 20]
    gap = torch.zeros(20, 3)
    gap[1:10, 1], gap[11:, 1] = 0.01, -0.01
    face[ring] = (face[ring] + face[other]) / 2 + gap
    return face


# --- parts ------------------------------------------------------------------------------------------------------------


def _ball() -> tuple[Tensor, Tensor]:
    """Make an eyeball [N, 3] around 0 that looks at the viewer, with a slightly protruding cornea; triangles."""
    lines, columns = _BALL
    polar = torch.linspace(0, math.pi, lines + 1)[1:-1, None] * torch.ones(columns)
    around = torch.arange(columns) * 2 * math.pi / columns * torch.ones(lines - 1, 1)
    ring = torch.stack([polar.sin() * around.cos(), -polar.sin() * around.sin(), -polar.cos()], -1).view(-1, 3)
    points = torch.cat([torch.tensor([[0.0, 0.0, -1.0]]), ring, torch.tensor([[0.0, 0.0, 1.0]])])
    points = points * (1 + 0.05 * smoothstep((-points[:, 2:] - 0.85) / 0.15)) * EYE_RADIUS
    faces = []
    for line in range(lines - 2):
        a = 1 + line * columns + torch.arange(columns)
        b = a.roll(-1)
        faces += [torch.stack([a, a + columns, b + columns], 1), torch.stack([a, b + columns, b], 1)]
    top, low = 1 + torch.arange(columns), 1 + (lines - 2) * columns + torch.arange(columns)
    faces.append(torch.stack([torch.zeros_like(top), top, top.roll(-1)], 1))
    faces.append(torch.stack([low, torch.full_like(low, len(points) - 1), low.roll(-1)], 1))
    return points, torch.cat(faces)


def _tongue(face: Tensor) -> tuple[Tensor, Tensor]:
    """Make a flat ellipsoid behind the lower teeth: vertices [N, 3], triangles."""
    ball, faces = _ball()
    shape = ball / EYE_RADIUS * torch.tensor([1.5, 0.45, 1.9])
    shape[:, 1] -= 0.15 * shape[:, 2]  # the tip is lower than the back
    return shape + face[list(GROUPS["lips_inner"])].mean(0) + torch.tensor([0.0, 1.15, 3.2]), faces


def _regions_of_skin(skin: Skin, points: Tensor) -> Tensor:
    region = skin_regions(skin.vertices[skin.faces].mean(1), points[rows(152)[0]], points[rows(10)[0]])
    inner = torch.zeros(len(skin.vertices), dtype=torch.bool)
    for ring in skin.rings["mouth"][skin.margin["mouth"] + 1 :]:
        inner[ring] = True
    region[inner[skin.faces].any(1)] = REGIONS.index("mouth")
    return region


def _skull_shapes(vertices: Tensor, face: Tensor) -> Tensor:
    """Make shapes of the head behind and above the face, [4, V, 3]: crown, back, neck, volume of the hair."""
    x, y, z = vertices.unbind(1)
    zero = torch.zeros_like(x)
    above = smoothstep((face[rows(10)[0], 1] + 2 - y) / 5)
    behind = smoothstep((z - 6) / 6)
    neck = smoothstep((y - face[rows(152)[0], 1]) / 3)
    hair = torch.maximum(above * smoothstep((z + 2) / 6), behind * smoothstep((10 - y) / 6))
    out = torch.nn.functional.normalize(vertices - torch.tensor([0.0, 0.0, 9.0]), dim=1)
    return torch.stack(
        [
            torch.stack([zero, -0.8 * above, zero], 1),
            torch.stack([zero, zero, 0.8 * behind], 1),
            torch.stack([0.07 * x * neck, zero, 0.07 * (z - 9.5) * neck], 1),
            0.9 * hair[:, None] * out,
        ]
    )


# --- motion -----------------------------------------------------------------------------------------------------------


def _expressions(skin: Skin, points: Tensor, face: Tensor, owner: Tensor, vertices: Tensor) -> Tensor:
    """Offsets [46, V, 3] of the named expressions; those of the jaw are zero, because its joint moves it."""
    fields = Fields(face)
    count = len(skin.vertices)
    on_skin = fields.expressions(skin.vertices, skin.lips, skin.lids)
    at_points = fields.expressions(points)
    front = 1 - smoothstep((skin.vertices[:, 2:] - 5) / 4)
    landmarks, corners = _landmarks_on_rings(skin)
    out = torch.zeros(len(NAMED), len(vertices), 3)
    for row, name in enumerate(NAMED):
        if name.startswith("jaw"):
            continue
        offset = on_skin[name] * front
        if name.startswith("eyeBlink"):
            offset = _blink(skin, "right_eye" if name[-1] == "L" else "left_eye", offset)
        for part, rings in skin.rings.items():  # cavities behind lids and lips follow them, less with depth
            margin = rings[skin.margin[part]]
            for depth, ring in enumerate(rings[skin.margin[part] + 1 :]):
                offset[ring] = offset[margin] * (0.9, 0.45, 0.2, 0.0)[depth]
        out[row, :count] = offset
        at_points[name][landmarks] = offset[corners]
        out[row, owner == 5] = at_points[name]
    return out


def _landmarks_on_rings(skin: Skin) -> tuple[Tensor, Tensor]:
    """Landmarks on the rings of lids and lips, and their vertices in the skin."""
    at = {group: skin.rings[group][skin.margin[group]] for group in ("left_eye", "right_eye")}
    at["lips_inner"] = skin.rings["mouth"][skin.margin["mouth"]]
    at["lips_outer"] = skin.rings["mouth"][skin.margin["mouth"] - 3]
    landmarks = [torch.tensor(outline(group)) for group in at]
    return torch.cat(landmarks), torch.cat([ring[::2] for ring in at.values()])


def _blink(skin: Skin, group: str, offset: Tensor) -> Tensor:
    """Offsets [N, 3] that close the lids: mostly by the upper margin; the rings around it follow."""
    rings, at = skin.rings[group], skin.margin[group]
    margin = rings[at]
    points = skin.vertices[margin]
    other = points[(-torch.arange(32)) % 32]  # the opposite point of the other margin
    upper = torch.arange(32) > 16
    meet = torch.where(upper[:, None], other + 0.15 * (points - other), points + 0.15 * (other - points))
    wanted = meet - points
    wanted[:, 2] -= 0.12 * (wanted[:, 1].abs() / wanted[:, 1].abs().amax())  # around the eyeball
    offset = offset.clone()
    near = torch.zeros(len(offset), dtype=torch.bool)
    for share, ring in zip((0.02, 0.18, 0.56, 1.0), rings[: at + 1], strict=True):
        offset[ring] = share * wanted
        near[ring] = True
    offset[~near] = 0.3 * offset[~near]
    return offset


def _jaw_weights(skin: Skin, owner: Tensor, vertices: Tensor, face: Tensor, lower: Tensor) -> Tensor:
    """Weight of the jaw for each vertex, from the downward motion of the analytic jawOpen."""
    fields = Fields(face)

    def share(points: Tensor, lips: Tensor | None) -> Tensor:
        down = fields.expressions(points, lips)["jawOpen"][:, 1]
        return (down / 3.1).clamp(0, 1) * (1 - smoothstep((points[:, 2] - 5.5) / 4))

    on_skin = share(skin.vertices, skin.lips)
    rings, at = skin.rings["mouth"], skin.margin["mouth"]
    for depth, ring in enumerate(rings[at + 1 :]):
        on_skin[ring] = on_skin[rings[at]] * (1.0, 0.95, 0.8, 0.4)[depth]
    weights = torch.zeros(len(vertices))
    weights[: len(skin.vertices)] = smooth(on_skin[:, None], neighbour_mean(skin.faces, len(on_skin)), 3)[:, 0]
    weights[owner == 1] = lower
    weights[owner == 2] = 1.0
    landmarks, corners = _landmarks_on_rings(skin)
    at_points = share(vertices[owner == 5], None)
    at_points[landmarks] = weights[corners]
    weights[owner == 5] = at_points
    return weights

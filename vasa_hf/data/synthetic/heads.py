"""Rendered talkers: a head that wears a photograph and moves, with every label exact.

`python -m vasa_hf.data.synthetic.heads --portraits DIR --head FILE --output sheet.png` writes a preview.

Not in the paper: VASA-1 trains on real videos alone. What is drawn, from back to front:

```
surroundings  the photograph, bent smoothly: hair, neck and shoulders follow the head, less the farther from it
skin          the fitted mesh; each pixel looks up the place of the photograph that the same skin had there
lids          where they close, the photograph with its eyes painted over by the skin around, and a line of lashes
eyes          two balls that wear the photograph's eyes; the part that lids hide is filled in
mouth         teeth, gums and tongue in the photograph's colours where it shows them, else in plain shaded ones
```
Nothing is redrawn where nothing moved: at rest the photograph itself comes out.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vasa_hf.data.landmark_dynamics import FaceLabels
from vasa_hf.data.synthetic.painting import (
    ball_texture,
    centers,
    draw_ball,
    grown_eye,
    inverse_flow,
    look_up,
    on_ball,
    outer_border,
    outline_mask,
    paint_over,
    spread_out,
    turn_to,
)
from vasa_hf.data.synthetic.raster import rasterize, soft_polygon
from vasa_hf.geometry.landmarks import (
    GROUPS,
    NUM_LANDMARKS,
    eye_openness,
    gaze_angles,
    iris_offset,
    mouth_openness,
    rows,
)
from vasa_hf.geometry.rotations import euler_from_matrix, matrix_from_euler
from vasa_hf.head.fit import fit_head, spread_weights
from vasa_hf.head.ict import ict_mesh
from vasa_hf.head.mesh import NUM_SKIN_LANDMARKS, HeadMesh, vertex_normals

# Lid margins from the outer to the inner corner, the image's left eye first.
UPPER_LIDS = (rows(33, 246, 161, 160, 159, 158, 157, 173, 133), rows(263, 466, 388, 387, 386, 385, 384, 398, 362))
LOWER_LIDS = (rows(33, 7, 163, 144, 145, 153, 154, 155, 133), rows(263, 249, 390, 373, 374, 380, 381, 382, 362))
_LIDS = tuple((*upper, *lower[-2:0:-1]) for upper, lower in zip(UPPER_LIDS, LOWER_LIDS, strict=True))
IRISES = (list(GROUPS["left_iris"]), list(GROUPS["right_iris"]))
SIDES = ("R", "L")  # the image's left eye is the person's right one
_LIPS = list(GROUPS["lips_inner"])
_TEETH, _GUMS, _CAVITY = (0.84, 0.80, 0.74), (0.55, 0.24, 0.24), (0.10, 0.04, 0.04)
NECK_CM = (0.0, 4.0, 9.0)  # what heads turn about, from the origin of the landmarks' canonical face
_BEND = 64  # side of the grid on which the surroundings are bent


@dataclasses.dataclass
class HeadState:
    """What a talker does in one frame.

    Attributes:
        expression (`dict` of `str` to `float`):
            Weights 0..1 of the head's shapes; those not named keep the photograph's own. `eyeBlink` is the share of the
            photograph's lid gap that is closed: 0 leaves the lids as they are, 1 shuts them.
        rotation (`torch.Tensor` of shape `(3,)`, *optional*): yaw, pitch, roll in radians; the photograph's if absent.
        shift (`tuple` of two `float`): Move of the head in fractions of the image.
        zoom (`float`): Size of the head over that in the photograph.
        gaze (`tuple` of two `float`): Turn of the eyes in the head from where they look in the photograph, yaw and
            pitch in radians, signs as for the head.
        light (`tuple` of three `float`): Where one more lamp stands (x right, y down, z away), its length how strong;
            negative light is taken from the other side. (0, 0, 0) leaves the photograph's own.
    """

    expression: dict[str, float] = dataclasses.field(default_factory=dict)
    rotation: Tensor | None = None
    shift: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0
    gaze: tuple[float, float] = (0.0, 0.0)
    light: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclasses.dataclass
class HeadFrame:
    """One rendered frame and its labels, in the units of `FaceLabels`.

    Attributes:
        image (`torch.Tensor` of shape `(size, size, 3)`): uint8 RGB.
        landmarks (`torch.Tensor` of shape `(162, 2)`): Fractions of the image.
        pose (`torch.Tensor` of shape `(7,)`): yaw, pitch, roll, tx, ty, tz, scale.
        eye_open (`torch.Tensor` of shape `(2,)`): Lid gap over eye width.
        mouth (`torch.Tensor` of shape `(2,)`): Lip gap and mouth width over the outer eye distance.
        iris_offset (`torch.Tensor` of shape `(2, 2)`): Iris centre minus eye centre, in eye widths.
        gaze (`torch.Tensor` of shape `(2,)`): yaw and pitch in radians, (0, 0) is into the camera.
        expression (`torch.Tensor` of shape `(E,)`): Weights of the head's shapes.
    """

    image: Tensor
    landmarks: Tensor
    pose: Tensor
    eye_open: Tensor
    mouth: Tensor
    iris_offset: Tensor
    gaze: Tensor
    expression: Tensor


@dataclasses.dataclass
class _Eye:
    """An eyeball: centre and radius in fractions of the image, its turn, the iris on it, its texture."""

    center: Tensor
    radius: float
    turn: Tensor
    iris: Tensor
    texture: Tensor


@dataclasses.dataclass
class _Motion:
    """Where a state takes the head."""

    weights: Tensor  # [E]
    closed: list[float]  # share of each eye's gap
    turn: Tensor  # [3, 3] against the photograph
    pivot: Tensor  # [3]
    shift: Tensor  # [3]
    zoom: float

    def place(self, points: Tensor) -> Tensor:
        """Rigid motion of points [N, 3] of the photograph."""
        return (points - self.pivot) @ self.turn.mT * self.zoom + self.pivot + self.shift


class RenderedHead:
    """A photograph put on a parametric head.

    Args:
        mesh (`HeadMesh`): The head.
        portrait (`torch.Tensor` of shape `(S, S, 3)`): uint8 RGB, a square crop with one face.
        landmarks (`torch.Tensor` of shape `(162, 2)`): The face's labelled points, fractions of the image.
        pose (`torch.Tensor` of shape `(7,)`): Its labelled pose: yaw, pitch, roll, tx, ty, tz, scale.

    Raises:
        ValueError: If the shapes are others.
    """

    def __init__(self, mesh: HeadMesh, portrait: Tensor, landmarks: Tensor, pose: Tensor):
        if portrait.ndim != 3 or portrait.shape != (len(portrait), len(portrait), 3) or portrait.dtype != torch.uint8:
            raise ValueError(
                f"`portrait` must be uint8 of shape (side, side, 3), but is {portrait.dtype} {tuple(portrait.shape)}."
            )
        if landmarks.shape != (NUM_LANDMARKS, 2) or pose.shape != (7,):
            raise ValueError(
                f"`landmarks` and `pose` must be of shapes ({NUM_LANDMARKS}, 2) and (7,), "
                f"but are {tuple(landmarks.shape)} and {tuple(pose.shape)}."
            )
        self.mesh, self.landmarks, self.pose = mesh, landmarks.float(), pose.float()
        self.portrait = portrait.permute(2, 0, 1).float() / 255  # [3, S, S]
        self.rotation = matrix_from_euler(*self.pose[:3])
        self.head = fit_head(mesh, self.landmarks, self.rotation)
        self.unit = float(self.head.scale)  # fractions of the image per centimetre
        self.rest = self.head.project(self.head.vertices)  # [V, 3]
        self.origin = self.head.project(mesh.origin_cm[None])[0]
        self.normals = vertex_normals(self.head.vertices, mesh.skin) @ self.head.rotation.mT
        self._prepare_skin()
        self._prepare_lids()
        self._prepare_eyes()
        self._prepare_mouth()

    # --- preparation --------------------------------------------------------------------------------------------------

    def _prepare_skin(self) -> None:
        """How far each vertex follows the head, how far the mesh is trusted, and the bend of the surroundings."""
        mesh, rest = self.mesh, self.rest
        skin = torch.zeros(len(rest), dtype=torch.bool)
        skin[mesh.skin] = True
        # The neck stays on the shoulders: below the chin the head's motion fades.
        below_chin = self.head.vertices[:, 1] - self.head.vertices[mesh.landmarks[rows(152)[0]], 1]
        self.follow = torch.where(skin, 1 - ((below_chin + 0.5) / 7.5).clamp(0, 1).square(), torch.ones(()))
        facing = ((0.15 - self.normals[:, 2]) / 0.3).clamp(0, 1)  # skin seen edge-on may be stretched a little
        border = mesh.vertices[outer_border(mesh.skin)]
        inwards = torch.cdist(mesh.vertices, border).amin(1) / 2.5 if len(border) else torch.ones(len(rest))
        trust = facing * inwards.clamp(0, 1)
        near_points = torch.cdist(mesh.vertices, mesh.vertices[mesh.landmarks]).amin(1) < 1.0
        self.trust = torch.where(near_points & (facing > 0), torch.ones(()), trust * trust * (3 - 2 * trust))
        # The surroundings move with a few well-spread vertices of the skin that the image shows.
        seen = (skin & (self.trust > 0.02) & (self.normals[:, 2] < -0.1)).nonzero()[:, 0]
        self.anchors = seen[spread_out(rest[seen, :2], 110)]
        grid = centers(_BEND).reshape(-1, 2)
        unit = self.unit
        self.surround = spread_weights(
            rest[self.anchors, :2], grid, reach=11 * unit, softness=2.5 * unit, stiffness=0.05
        )

    def _prepare_lids(self) -> None:
        """Blink offsets [V, 3] that shut this person's lids exactly, and the image with its eyes painted over."""
        mesh, side = self.mesh, self.portrait.shape[-1]
        self.blinks = []
        for name, upper, lower in zip(SIDES, UPPER_LIDS, LOWER_LIDS, strict=True):
            above, below = self.landmarks[upper[1:-1]], self.landmarks[lower[1:-1]]
            meet = below + 0.15 * (above - below)  # the upper lid does most of the way
            wanted = torch.cat([meet - above, meet - below])
            margin = mesh.landmarks[[*upper[1:-1], *lower[1:-1]]]
            blink = self.unit * mesh.expression[mesh.index(f"eyeBlink_{name}")] @ self.head.rotation.mT
            # The shape's own motion, corrected near each point of the margins by what it misses there.
            reach = (blink.norm(dim=1) / blink[margin].norm(dim=1).amax().clamp_min(1e-9)).clamp(0, 1).sqrt()
            width = (self.landmarks[upper[0]] - self.landmarks[upper[-1]]).norm()
            near = torch.softmax(-(torch.cdist(self.rest[:, :2], self.rest[margin, :2]) / (0.12 * width)).square(), 1)
            blink[:, :2] += reach[:, None] * (near @ (wanted - blink[margin, :2]))
            blink[margin, :2] = wanted
            self.blinks.append(blink)
        self.eye_mask = torch.stack(
            [outline_mask(grown_eye(self.landmarks[list(lids)]), side, softness=2.0) for lids in _LIDS]
        ).amax(0)
        self.without_eyes = paint_over(self.portrait, self.eye_mask)

    def _prepare_eyes(self) -> None:
        """The eyeballs as the photograph shows them."""
        self.eyes = []
        for weights, lids, iris in zip(self.mesh.eye_centers, _LIDS, IRISES, strict=True):
            center = self.head.project((weights @ self.head.vertices)[None])[0]
            radius = self.mesh.eye_radius_cm * self.unit
            # Keep the ball amid its lids, wherever the fit's last bend took them.
            center[:2] += 0.7 * (self.landmarks[list(lids)].mean(0) - center[:2])
            on_sphere = on_ball(self.landmarks[iris], center, radius)
            turn = turn_to(on_sphere[0])
            size = float((self.landmarks[iris[1:]] - self.landmarks[iris[0]]).norm(dim=1).mean() / radius)
            texture = ball_texture(self.portrait, center, radius, turn, size, self.landmarks[list(lids)])
            self.eyes.append(_Eye(center, radius, turn, on_sphere @ turn, texture))

    def _prepare_mouth(self) -> None:
        """Colours [V, 3] of teeth, gums and tongue: the image's where it shows them."""
        mesh, side = self.mesh, self.portrait.shape[-1]
        skin = look_up(self.portrait, self.landmarks[list(GROUPS["nose"])][:, None])[..., 0].mean(1)
        level = (skin.max() / 0.75).clamp(0.45, 1.1)
        self.cavity = torch.tensor(_CAVITY) * level
        colour = torch.where(mesh.teeth[:, None], torch.tensor(_TEETH), torch.tensor(_GUMS)) * level
        normal = vertex_normals(self.head.vertices, mesh.inside) @ self.head.rotation.mT
        deep_cm = (self.rest[:, 2] - self.rest[mesh.landmarks[_LIPS], 2].mean()) / self.unit - 0.3
        front = torch.where(mesh.teeth, 0.7 - 0.3 * normal[:, 2], -normal[:, 2])  # a row of teeth looks like one
        shade = (0.35 + 0.65 * front.clamp(0, 1)) * torch.exp(-0.35 * deep_cm.clamp_min(0))
        self.inside_colour = colour * shade[:, None]
        if not len(mesh.inside) or mouth_openness(self.landmarks)[0] < 0.04:
            return
        at = self.rest[:, None, :2]
        _, hit, _ = rasterize(self.rest * 256, mesh.inside, 256)
        shown = torch.zeros(len(self.rest))
        shown[mesh.inside[hit]] = 1.0
        shown *= look_up(outline_mask(self.landmarks[_LIPS], side), at)[0, :, 0]
        seen = look_up(self.portrait, at)[..., 0].T
        teeth = mesh.teeth & (shown > 0.9)
        if teeth.sum() > 20:  # the hidden teeth have the colour of those that are seen
            tint = seen[teeth].quantile(0.7, dim=0) / shade[teeth].mean()
            self.inside_colour[mesh.teeth] = (tint * shade[mesh.teeth, None]).clamp(0, 1)
        self.inside_colour = self.inside_colour + shown[:, None] * (seen - self.inside_colour)

    # --- motion -------------------------------------------------------------------------------------------------------

    def _motion(self, state: HeadState) -> _Motion:
        weights, closed = self.head.expression.clone(), [0.0, 0.0]
        for name, value in state.expression.items():
            row = self.mesh.index(name)
            if not 0 <= value <= 1:
                raise ValueError(f"`expression`: {name} must lie in [0, 1], but is {value}.")
            if name.startswith("eyeBlink_"):
                closed[SIDES.index(name[-1])] = value
            else:
                weights[row] = value
        for side in SIDES:  # lids follow the eyes up and down
            for name, pitch in ((f"eyeLookDown_{side}", state.gaze[1]), (f"eyeLookUp_{side}", -state.gaze[1])):
                if name in self.mesh.expression_names and name not in state.expression:
                    weights[self.mesh.index(name)] = min(max(pitch / 0.6, 0.0), 1.0)
        turn = torch.eye(3)
        if state.rotation is not None:
            turn = matrix_from_euler(*torch.as_tensor(state.rotation, dtype=torch.float32)) @ self.rotation.mT
        pivot = self.origin + self.unit * self.head.rotation @ torch.tensor(NECK_CM)
        return _Motion(weights, closed, turn, pivot, torch.tensor([*state.shift, 0.0]), state.zoom)

    def _move(self, motion: _Motion) -> Tensor:
        """Vertices [V, 3] in the image."""
        offset = ((motion.weights - self.head.expression) @ self.mesh.expression.flatten(1)).view(-1, 3)
        moved = self.rest + self.unit * offset @ self.head.rotation.mT
        down = self.head.rotation[:2, 1]
        for share, blink, upper, lower in zip(motion.closed, self.blinks, UPPER_LIDS, LOWER_LIDS, strict=True):
            if share == 0:
                continue
            moved = moved + share * blink
            # Other shapes may have lowered the lids already: margins meet, but do not pass each other.
            a, b = self.mesh.landmarks[upper[1:-1]], self.mesh.landmarks[lower[1:-1]]
            over = ((moved[a, :2] - moved[b, :2]) @ down).clamp_min(0)[:, None] * down / 2
            moved[a, :2] -= over
            moved[b, :2] += over
        return moved + self.follow[:, None] * (motion.place(moved) - moved)

    def _moved_eyes(self, motion: _Motion, gaze: tuple[float, float]) -> list[_Eye]:
        roll = matrix_from_euler(torch.tensor(gaze[0]), torch.tensor(gaze[1]), torch.zeros(()))
        return [
            dataclasses.replace(
                eye,
                center=motion.place(eye.center),
                radius=eye.radius * motion.zoom,
                turn=motion.turn @ roll @ eye.turn,
            )
            for eye in self.eyes
        ]

    @torch.no_grad()
    def render(self, state: HeadState, size: int = 256) -> HeadFrame:
        """Draw one frame.

        Args:
            state (`HeadState`): What the talker does.
            size (`int`, *optional*, defaults to 256): Side of the frame in pixels.

        Returns:
            `HeadFrame`.

        Raises:
            ValueError: If the expression names an unknown shape or a weight outside [0, 1].
        """
        motion = self._motion(state)
        moved, eyes = self._move(motion), self._moved_eyes(motion, state.gaze)
        landmarks = torch.empty_like(self.landmarks)
        landmarks[:NUM_SKIN_LANDMARKS] = moved[self.mesh.landmarks, :2]
        for eye, iris in zip(eyes, IRISES, strict=True):
            landmarks[iris] = (eye.iris @ eye.turn.mT * eye.radius + eye.center)[:, :2]
        canvas, light = self._draw_skin(moved, landmarks, motion, state.light, size)
        for index, eye in enumerate(eyes):
            self._draw_eye(canvas, landmarks, eye, index, motion)
        self._draw_mouth(canvas, landmarks, moved)
        image = ((canvas * light).clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).contiguous()
        pose = self.pose.clone()
        pose[:3] = euler_from_matrix(motion.turn @ self.rotation)
        pose[3:6] += motion.place(self.origin) - self.origin
        pose[6] *= state.zoom
        weights = motion.weights
        for side, share in zip(SIDES, motion.closed, strict=True):
            row = self.mesh.index(f"eyeBlink_{side}")
            weights[row] += share * (1 - weights[row])
        return HeadFrame(
            image=image,
            landmarks=landmarks,
            pose=pose,
            eye_open=eye_openness(landmarks),
            mouth=mouth_openness(landmarks),
            iris_offset=iris_offset(landmarks),
            gaze=gaze_angles(landmarks, pose),
            expression=weights,
        )

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _draw_skin(self, moved, landmarks, motion: _Motion, lamp, size: int) -> tuple[Tensor, Tensor]:
        """Surroundings and skin [3, size, size], and the light on all that will be drawn."""
        flow = (self.surround @ (moved - self.rest)[self.anchors, :2]).T.view(1, 2, _BEND, _BEND)
        back = F.interpolate(inverse_flow(flow), size=(size, size), mode="bilinear", align_corners=False)[0]
        behind = centers(size) + back.permute(1, 2, 0)
        pixels, hit, weights = rasterize(moved * size, self.mesh.skin, size)
        blinking = max(motion.closed) > 0
        lowered = torch.zeros(len(moved), 1)
        if blinking:  # by a quarter of a centimetre or more
            lowered = (sum(blink.norm(dim=1) for blink in self.blinks)[:, None] / self.unit / 0.25).clamp(0, 1)
        values = torch.cat([self.rest[:, :2], self.trust[:, None], lowered, self.normals], 1)[self.mesh.skin[hit]]
        values = (values * weights[..., None]).sum(1)  # [P, 7]

        def picture_of(channels: Tensor) -> Tensor:
            out = torch.zeros(channels.shape[-1], size * size)
            out[:, pixels] = channels.T
            return out.view(-1, size, size)

        lookup = behind.reshape(-1, 2).clone()
        lookup[pixels] += (values[:, :2] - lookup[pixels]) * values[:, 2:3]
        lookup = lookup.view(size, size, 2)
        cover = picture_of(torch.ones(len(pixels), 1))
        for outline in (_LIPS, *_LIDS):
            window, hole = soft_polygon(landmarks[list(outline)] * size, size)
            cover[0][window] = torch.maximum(cover[0][window], (hole > 0.25).float())
        # Smooth where skin ends before something farther away; inside its edge, since beyond there is no colour for it.
        cover = (2 * F.avg_pool2d(cover[None], 3, 1, 1, count_include_pad=False)[0] - 1).clamp(0, 1)
        canvas = look_up(self.portrait, behind)
        canvas += cover * (look_up(self.portrait, lookup) - canvas)
        if blinking:
            lids = F.avg_pool2d(picture_of(values[:, 3:4])[None], 3, 1, 1)[0] * look_up(self.eye_mask, lookup)
            canvas += lids * (look_up(self.without_eyes, lookup) - canvas)
        if not any(lamp):
            return canvas, torch.ones(())
        normal = picture_of(values[:, 4:] @ motion.turn.mT * values[:, 2:3])[None]
        normal = F.avg_pool2d(F.interpolate(normal, size=(size // 4, size // 4), mode="area"), 5, 1, 2)[0]
        light = (1 + torch.einsum("c,chw->hw", torch.tensor(lamp), normal)).clamp(0.3, 1.8)
        return canvas, F.interpolate(light[None, None], size=(size, size), mode="bilinear")[0]

    def _draw_eye(self, canvas: Tensor, landmarks: Tensor, eye: _Eye, index: int, motion: _Motion) -> None:
        """Put an eyeball behind its lids, and lashes on lids that close."""
        size, closed = canvas.shape[-1], motion.closed[index]
        lids, upper, lower = list(_LIDS[index]), UPPER_LIDS[index], LOWER_LIDS[index]
        part = [*lids, *IRISES[index]]
        if (landmarks[part] - self.landmarks[part]).abs().amax() < 1e-5:
            return
        gap = (landmarks[upper[3:6]] - landmarks[lower[3:6]]).norm(dim=1).mean() * size
        window, cover = soft_polygon(landmarks[lids] * size, size, softness=1.2)
        cover = cover * ((gap - 0.6) / 1.2).clamp(0, 1)
        places = centers(size)[window]
        colour = draw_ball(places, eye.texture, eye.center, eye.radius, eye.turn)
        # The upper lid throws a shadow, most when it comes down.
        drop = ((places[..., 1] - landmarks[upper, 1].amin()) * size / gap.clamp_min(1.0)).clamp(0, 1)
        target = canvas[:, window[0], window[1]]
        target += cover * (colour * (1 - 0.3 * closed * (1 - drop)) - target)
        if closed > 0:
            line = landmarks[[*upper, *upper[::-1]]] * size
            thickness = 0.06 * float(self.pose[6]) * motion.zoom * size
            window, cover = soft_polygon(line, size, softness=max(thickness, 1.5))  # half on the line, to both sides
            canvas[:, window[0], window[1]] *= 1 - 1.3 * closed * cover

    def _draw_mouth(self, canvas: Tensor, landmarks: Tensor, moved: Tensor) -> None:
        """Teeth, gums and tongue behind the inner lips."""
        size = canvas.shape[-1]
        outline = landmarks[_LIPS]
        if (outline - self.landmarks[_LIPS]).abs().amax() < 1e-5:
            return
        gap = (landmarks[rows(13)[0]] - landmarks[rows(14)[0]]).norm() * size
        window, cover = soft_polygon(outline * size, size, softness=1.2)
        cover = cover * ((gap - 0.8) / 1.5).clamp(0, 1)
        if not cover.any():
            return
        side = 2 * max(cover.shape)  # teeth are finer than pixels: drawn twice as fine, then averaged
        corner = torch.tensor([window[1].start, window[0].start, 0])
        colour = self.cavity[:, None].expand(3, side * side).clone()
        if len(self.mesh.inside):
            pixels, hit, weights = rasterize(2 * (moved * size - corner), self.mesh.inside, side)
            colour[:, pixels] = (self.inside_colour[self.mesh.inside[hit]] * weights[..., None]).sum(1).T
        colour = F.avg_pool2d(colour.view(1, 3, side, side), 2)[0, :, : cover.shape[0], : cover.shape[1]]
        target = canvas[:, window[0], window[1]]
        target += cover * (colour - target)


# --- preview ----------------------------------------------------------------------------------------------------------


def preview_states(pose: Tensor) -> list[HeadState]:
    """One state for each thing a talker can do, about a photograph's pose [7]."""

    def both(**shapes: float) -> dict[str, float]:
        return {f"{name}_{side}": value for name, value in shapes.items() for side in "LR"}

    def turned(yaw: float, pitch: float, roll: float = 0.0) -> Tensor:
        return pose[:3] + torch.tensor([yaw, pitch, roll])

    return [
        HeadState(gaze=(1e-4, 0.0)),
        HeadState(both(eyeBlink=0.5)),
        HeadState(both(eyeBlink=1.0)),
        HeadState(gaze=(0.4, 0.0)),
        HeadState(gaze=(-0.4, 0.2)),
        HeadState({"jawOpen": 0.6}),
        HeadState({"jawOpen": 0.2, "mouthFunnel": 0.7}),
        HeadState({"jawOpen": 0.15, **both(mouthSmile=0.8, cheekSquint=0.5)}),
        HeadState(rotation=turned(0.4, 0.0)),
        HeadState(rotation=turned(-0.4, 0.0)),
        HeadState(both(eyeBlink=1.0), rotation=turned(0.0, 0.25, 0.15)),
        HeadState(both(browInnerUp=0.8), rotation=turned(0.15, -0.25), light=(0.5, 0.0, 0.0)),
    ]


def main() -> None:
    """Write a sheet of rendered heads: one portrait a row, itself first."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--portraits", type=Path, required=True, help="folder with portraits.npz and portraits/")
    parser.add_argument("--head", type=Path, required=True, help="ict_facekit.npz")
    parser.add_argument("--output", type=Path, required=True, help="the image to write")
    parser.add_argument("--count", type=int, default=6, help="number of portraits")
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    mesh = ict_mesh(options.head)
    labels = FaceLabels.load(options.portraits / "portraits.npz")
    lines, seconds, count = [], 0.0, 0
    for index, name in enumerate(labels.names[: options.count]):
        (path,) = (options.portraits / "portraits").glob(f"{name}.*")
        with Image.open(path) as image:
            portrait = np.array(image.convert("RGB").resize((options.size, options.size), Image.Resampling.LANCZOS))
        head = RenderedHead(mesh, torch.from_numpy(portrait), labels.landmarks[index], labels.pose[index])
        start = time.process_time()
        frames = [head.render(state, options.size).image.numpy() for state in preview_states(labels.pose[index])]
        seconds, count = seconds + time.process_time() - start, count + len(frames)
        lines.append(np.concatenate([portrait, *frames], 1))
    Image.fromarray(np.concatenate(lines)).save(options.output)
    print(f"{count} frames of {options.size} x {options.size}, {count / seconds:.0f} a second of processor time")


if __name__ == "__main__":
    main()

"""Batches of face pairs, for the trainings that learn from two frames of one person: options and augmentation."""

from dataclasses import dataclass

import torch
from accelerate import PartialState
from torch import Tensor
from torch.nn import functional as F

from vasa_hf.data.face_pairs import FacePairs
from vasa_hf.data.landmark_dynamics import PARTS, LandmarkDynamics, UnlabelledDynamics
from vasa_hf.geometry.landmarks import rows
from vasa_hf.geometry.thin_plate import warp_by_landmarks
from vasa_hf.hub import resolve
from vasa_hf.motion import POSE_DIM
from vasa_hf.training.options import LoopOptions, option


@dataclass
class FacePairOptions(LoopOptions):
    """Options of `FacePairs`."""

    data: str = option("data/train", "folder with clips and labels, with portraits if there are any; or shards")
    cache: str = option("cache", "folder for decoded frames")
    stream: bool = option(False, "decode frames whenever they are drawn, for data too large to keep decoded")
    dynamics: str | None = option(None, "landmark dynamics file that defines z_dyn, such as vasa-small's")
    data_share: float = option(1.0, "share of the clips that are used; 0.1 is the paper's experiment with 10 % data")
    portrait_share: float = option(0.25, "share of samples that are single portraits")
    rendered: str | None = option(None, "folder of rendered faces, see vasa_hf.data.synthetic.rendered_faces")
    rendered_share: float = option(0.35, "share of samples that are rendered faces")


def open_pairs(
    options: FacePairOptions, size: int = 256, labels_dynamics: bool = True, others: bool = False
) -> FacePairs:
    """The pairs of frames that the options describe; the main process decodes them first.

    Args:
        options (`FacePairOptions`): See there.
        size (`int`, defaults to 256): Side of the images that are trained on; frames are never smaller than 256.
        labels_dynamics (`bool`, defaults to `True`): See `FacePairs`.
        others (`bool`, defaults to `False`): See `FacePairs`.
    """
    with PartialState(cpu=options.cpu).main_process_first():
        return FacePairs(
            options.data,
            options.cache,
            options.seed,
            options.portrait_share,
            dynamics=resolve(options.dynamics) if options.dynamics else None,
            rendered=options.rendered,
            rendered_share=options.rendered_share,
            stream=options.stream,
            size=max(256, size),
            labels_dynamics=labels_dynamics,
            others=others,
            data_share=options.data_share,
        )


# Outer and inner points of the upper lip, then of the lower, from left to right, without the corners.
LIPS = (
    ((185, 40, 39, 37, 0, 267, 269, 270, 409), (191, 80, 81, 82, 13, 312, 311, 310, 415)),
    ((146, 91, 181, 84, 17, 314, 405, 321, 375), (95, 88, 178, 87, 14, 317, 402, 318, 324)),
)


def augment(
    batch: dict[str, Tensor], dynamics: LandmarkDynamics | UnlabelledDynamics, size: int, framing: float = 1.0
) -> dict[str, Tensor]:
    """Batched augmentation: colours, framing and mirror images alike for both frames; portraits get a pseudo driver.

    Args:
        batch (`dict`): Of `FacePairs`, uint8 images.
        dynamics (`LandmarkDynamics` or `UnlabelledDynamics`): Moves landmarks; knows mirror images.
        size (`int`): Side of the result.
        framing (`float`, defaults to 1.0): Amount of zoom, shift and roll; 0 keeps every pixel as it is.

    Returns:
        `dict`: `source`, `driving` in [-1, 1], their landmarks and motions, `weight` of pixels, `seen` (0 where what
        the driving frame shows is not known), `other_motion`, and `other` where the batch has it.
    """
    device, count = batch["source"].device, len(batch["source"])
    uniform = lambda low, high, *shape: torch.empty(count, *shape, device=device).uniform_(low, high)  # noqa: E731
    out = {"other_motion": batch["other_motion"]}  # replaced below where there is a frame of it
    # One framing for both frames: zoom, shift, roll. Crop point p comes from (A (p - 0.5) + b) + 0.5.
    zoom, roll, shift = (framing * x for x in (uniform(-0.15, 0.15), uniform(-0.12, 0.12), uniform(-0.04, 0.04, 2)))
    zoom = 1 + zoom
    matrix = torch.stack([roll.cos(), -roll.sin(), roll.sin(), roll.cos()], 1).view(-1, 2, 2) / zoom[:, None, None]
    theta = torch.cat([matrix, 2 * shift[:, :, None]], 2)
    grid = F.affine_grid(theta, (count, 3, size, size), align_corners=False)
    inverse = torch.linalg.inv(matrix)
    gain, bias, gamma = uniform(0.85, 1.15, 3, 1, 1), uniform(-0.1, 0.1, 1, 1, 1), uniform(0.8, 1.25, 1, 1, 1)
    flip = uniform(0, 1) < 0.5
    mirror_z = dynamics.tensors["mirror"].to(device)
    mirror_pose = torch.tensor([-1.0, 1, -1, -1, 1, 1], device=device)
    order = dynamics.tensors["flip"].to(device)
    for name in ("source", "driving", "other") if "other" in batch else ("source", "driving"):
        image = F.grid_sample(batch[name].float() / 255, grid, padding_mode="border", align_corners=False)
        image = ((image.clamp(0, 1) ** gamma) * gain + bias).clamp(0, 1) * 2 - 1
        points = (batch[f"{name}_landmarks"] - 0.5 - shift[:, None]) @ inverse.mT + 0.5
        motion = batch[f"{name}_motion"].clone()
        center = (motion[:, 3:5] - 0.5 - shift)[:, None] @ inverse.mT + 0.5
        motion[:, 3:5] = center[:, 0]
        motion[:, 2] = motion[:, 2] - roll
        motion[:, 5] = motion[:, 5] * zoom
        mirrored = torch.cat([motion[:, :POSE_DIM] * mirror_pose, motion[:, POSE_DIM:] @ mirror_z.T], 1)
        mirrored[:, 3] += 1
        out[name] = torch.where(flip[:, None, None, None], image.flip(3), image)
        points_mirrored = points[:, order] * points.new_tensor([-1, 1]) + points.new_tensor([1, 0])
        out[f"{name}_landmarks"] = torch.where(flip[:, None, None], points_mirrored, points)
        out[f"{name}_motion"] = torch.where(flip[:, None], mirrored, motion)

    alone = batch["is_portrait"].nonzero()[:, 0]
    void = torch.zeros(count, 1, size, size, device=device)
    if len(alone):
        # A pseudo driver: the portrait moved by a thin-plate spline into another pose with someone else's dynamics.
        source = out["source_motion"][alone]
        target = source.clone()
        noise = torch.randn(len(alone), 6, device=device)
        target[:, :6] += noise * target.new_tensor([0.12, 0.08, 0.06, 0.012, 0.012, 0.0])
        target[:, 5] *= (0.05 * noise[:, 5]).clamp(-0.12, 0.12).exp()
        target[:, POSE_DIM:] = out["other_motion"][alone, POSE_DIM:]
        # Eyes that look elsewhere, alike, which recorded faces seldom do; irises move by about 0.1 eye widths.
        gaze = target.shape[1] - PARTS["gaze"]
        aside = 3 * torch.randn(len(alone), 2, device=device) * (torch.rand(len(alone), 1, device=device) < 0.7)
        target[:, gaze:] += aside.repeat(1, 2)
        landmarks = out["source_landmarks"][alone]
        moved = dynamics.move(landmarks, source, target)
        closing = batch["is_closing"][alone]
        moved[closing] = close_lips(moved[closing])
        out["driving"][alone] = warp_by_landmarks(out["source"][alone], landmarks, moved)
        if closing.any():
            closed = warp_closed(out["source"][alone][closing], landmarks[closing], moved[closing])
            out["driving"][alone[closing]] = closed
        out["driving_landmarks"][alone], out["driving_motion"][alone] = moved, target
        # A mouth that the warp has closed opens onto the portrait's own teeth when the two change places.
        opening = batch["is_opening"].nonzero()[:, 0]
        for name in ("", "_landmarks", "_motion"):
            source, driving = out[f"source{name}"][opening], out[f"driving{name}"][opening]
            out[f"source{name}"][opening], out[f"driving{name}"][opening] = driving, source
        # What a mouth opens onto is not in the portrait: no pixel loss there.
        before, after = (mouth_box(out[f"{name}_landmarks"][alone]) for name in ("source", "driving"))
        opened = ((after[2] - before[2] > 0.004) & ~batch["is_opening"][alone]).float()[:, None, None, None]
        void[alone] = ellipse(size, after[0], after[1] * 0.5, after[2] * 0.6 + 0.01) * opened
    points = out["driving_landmarks"]
    center, width, _ = mouth_box(points)
    eyes = [points[:, rows(a, b)].mean(1) for a, b in ((33, 133), (263, 362))]
    weight = 1 + 6 * blob(size, center, width * 0.45) + sum(10 * blob(size, eye, width * 0.25) for eye in eyes)
    out["seen"] = 1 - void
    out["weight"] = weight * out["seen"]
    return out


def close_lips(points: Tensor) -> Tensor:
    """Move the lips of landmarks `(batch, 162, 2)` together, half of the gap each; corners stay."""
    upper, lower = (points[:, rows(*ring[1])] for ring in LIPS)
    half = (lower - upper) / 2
    points = points.clone()
    for outer, inner in LIPS:
        for ring in (outer, inner):
            points[:, rows(*ring)] += half
        half = -half
    return points


def warp_closed(image: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Warp faces whose lips meet in `target`: what was between them, teeth too, is gone.

    One spline would keep it as a line. The upper lip and all above it come from a spline that knows nothing of the
    lower lip, the rest from one that knows nothing of the upper lip.

    Args:
        image (`torch.Tensor` of shape `(batch, 3, size, size)`): Faces.
        source (`torch.Tensor` of shape `(batch, 162, 2)`): Their landmarks, fractions of the crop.
        target (`torch.Tensor` of shape `(batch, 162, 2)`): Where they come, from `close_lips`.
    """
    every, size = torch.arange(source.shape[1], device=image.device), image.shape[-1]
    parts = []
    for outer, inner in reversed(LIPS):  # without the lower lip, then without the upper
        left_out = torch.tensor(rows(*outer, *inner), device=image.device)
        kept = every[~torch.isin(every, left_out)]
        parts.append(warp_by_landmarks(image, source[:, kept], target[:, kept]))
    seam = target[:, rows(78, *LIPS[0][1], 308)]
    axis = (torch.arange(size, device=image.device) + 0.5) / size
    right = torch.searchsorted(seam[..., 0].contiguous(), axis.expand(len(seam), -1).contiguous())
    right = right.clamp(1, seam.shape[1] - 1)
    (x0, y0), (x1, y1) = (torch.gather(seam, 1, i[..., None].expand(-1, -1, 2)).unbind(-1) for i in (right - 1, right))
    share = ((axis - x0) / (x1 - x0).clamp_min(1e-4)).clamp(0, 1)
    below = (axis[:, None] - (y0 + share * (y1 - y0))[:, None]) * size  # [B, size, size], pixels
    upper = (0.5 - below).clamp(0, 1)[:, None]
    return upper * parts[0] + (1 - upper) * parts[1]


def mouth_box(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, width and inner gap of mouths, fractions of the crop."""
    left, right, top, bottom = points[:, rows(78, 308, 13, 14)].unbind(1)
    return (left + right + top + bottom) / 4, (left - right).norm(dim=1), (bottom - top).norm(dim=1)


def _offsets(size: int, center: Tensor) -> Tensor:
    axis = (torch.arange(size, device=center.device) + 0.5) / size
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1) - center[:, None, None]


def blob(size: int, center: Tensor, radius: Tensor) -> Tensor:
    """Soft discs, `(batch, 1, size, size)`; centre `(batch, 2)` and radius `(batch,)` in fractions of the crop."""
    return (-(_offsets(size, center).square().sum(-1) / radius.square()[:, None, None])).exp()[:, None]


def ellipse(size: int, center: Tensor, half_width: Tensor, half_height: Tensor) -> Tensor:
    """Hard ellipses, `(batch, 1, size, size)`; sizes in fractions of the crop."""
    scaled = _offsets(size, center) / torch.stack([half_width, half_height], 1)[:, None, None]
    return (scaled.square().sum(-1) < 1).float()[:, None]

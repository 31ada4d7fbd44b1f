"""Square face crops: position, cutting out, pasting back. Pure tensors.

Two coordinate frames, both with x right and y down:

```
image   pixels; (0, 0) is the top-left corner of the top-left pixel, so that pixel's centre is (0.5, 0.5)
crop    fractions of the square; (0, 0) its top-left corner, (1, 1) its bottom-right corner
```
A crop is the 3x3 matrix `crop_from_image` (homogeneous column vectors); its inverse is `image_from_crop`.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: The standard crop: side relative to the larger side of the landmark box, and upward shift relative to the side.
STANDARD_SCALE = 2.0
STANDARD_RAISE = 0.05
#: A face box, in fractions of a square image, whose standard crop is the whole image.
WHOLE_PICTURE_BOX = (0.25, 0.3, 0.75, 0.8)
_BLUR_REACH = 0.02  # distance from the image's edge, relative to the crop's side, at which the blur is full
_OTHER_FEATHER = 0.6  # width of the border to another face, relative to half a face


def crop_matrix(
    center: Tensor,  # [..., 2]
    side: Tensor,  # [...]
    angle_rad: Tensor | float = 0.0,  # [...]
) -> Tensor:
    """`image_from_crop` of a square.

    Args:
        center (`torch.Tensor` of shape `(..., 2)`): Centre of the square in image pixels.
        side (`torch.Tensor` of shape `(...)`): Side in image pixels.
        angle_rad (`torch.Tensor` of shape `(...)` or `float`, *optional*, defaults to 0.0):
            Clockwise turn of the square on the screen; a head rolled by the same angle is upright in the crop.

    Returns:
        `torch.Tensor` of shape `(..., 3, 3)`.
    """
    angle = torch.as_tensor(angle_rad, dtype=center.dtype, device=center.device).expand(side.shape)
    c, s, zero = side * angle.cos(), side * angle.sin(), torch.zeros_like(side)
    tx = center[..., 0] - (c - s) / 2
    ty = center[..., 1] - (s + c) / 2
    rows = [torch.stack(row, dim=-1) for row in ((c, -s, tx), (s, c, ty), (zero, zero, zero + 1))]
    return torch.stack(rows, dim=-2)


def landmark_box(
    points: Tensor,  # [..., N, 2]
) -> Tensor:
    """Smallest upright box around points: `(..., 4)` as x0, y0, x1, y1."""
    return torch.cat([points.amin(dim=-2), points.amax(dim=-2)], dim=-1)


def standard_crop(
    box: Tensor,  # [..., 4]
    scale: float = STANDARD_SCALE,
    shift: tuple[float, float] = (0.0, 0.0),
    angle_rad: Tensor | float = 0.0,
) -> Tensor:
    """`image_from_crop` of the standard square around a landmark box.

    Not in the paper, which gives no crop: this is the crop of the training clips.

    Args:
        box (`torch.Tensor` of shape `(..., 4)`): x0, y0, x1, y1 of the landmarks, in image pixels.
        scale (`float`, *optional*, defaults to 2.0): Side of the square over the larger side of the box.
        shift (`tuple` of two `float`, *optional*, defaults to `(0, 0)`):
            Additional shift of the square, right and down, in fractions of its side, along its own (rotated) axes.
        angle_rad (`torch.Tensor` or `float`, *optional*, defaults to 0.0): Clockwise turn of the square.

    Returns:
        `torch.Tensor` of shape `(..., 3, 3)`.
    """
    side = (box[..., 2:] - box[..., :2]).amax(dim=-1) * scale
    center = (box[..., :2] + box[..., 2:]) / 2
    angle = torch.as_tensor(angle_rad, dtype=box.dtype, device=box.device).expand(side.shape)
    dx, dy = side * shift[0], side * (shift[1] - STANDARD_RAISE)
    move = torch.stack([dx * angle.cos() - dy * angle.sin(), dx * angle.sin() + dy * angle.cos()], dim=-1)
    return crop_matrix(center + move, side, angle)


def transform_points(
    matrix: Tensor,  # [..., 3, 3]
    points: Tensor,  # [..., N, 2]
) -> Tensor:
    """Apply an affine 3x3 matrix to 2D points."""
    return points @ matrix[..., :2, :2].transpose(-1, -2) + matrix[..., None, :2, 2]


def sampling_grid(
    image_from_crop: Tensor,  # [B, 3, 3]
    size: int | tuple[int, int],
    image_size: tuple[int, int],
) -> Tensor:
    """Make a grid for `grid_sample` (`align_corners=False`) that cuts crops of `size` out of images of `image_size`.

    Sizes are one number or (height, width).
    """
    height, width = (size, size) if isinstance(size, int) else size
    device, dtype = image_from_crop.device, image_from_crop.dtype
    x = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
    y = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(1, -1, 2)
    pixels = transform_points(image_from_crop, points.expand(len(image_from_crop), -1, -1))
    scale = pixels.new_tensor([2.0 / image_size[1], 2.0 / image_size[0]])
    return (pixels * scale - 1.0).view(-1, height, width, 2)


def cut_crop(
    image: Tensor,  # [C, H, W]
    image_from_crop: Tensor,  # [3, 3]
    size: int,
) -> Tensor:
    """Cut one square out of an image of any size.

    Outside the image the edge pixels are repeated, with blur that grows with the distance, to avoid visible stripes. If
    the crop is coarser than the image, the image is shrunk with an antialias filter first, so that fine patterns do not
    flicker.

    Args:
        image (`torch.Tensor` of shape `(channels, height, width)`): The image.
        image_from_crop (`torch.Tensor` of shape `(3, 3)`): See `crop_matrix`.
        size (`int`): Side of the result in pixels.

    Returns:
        `torch.Tensor` of shape `(channels, size, size)`.
    """
    image_from_crop = image_from_crop.to(image)
    (left, top, right, bottom), image_from_crop = crop_region(image_from_crop, (image.shape[-2], image.shape[-1]))
    region = image[:, top:bottom, left:right]
    shrink = float(image_from_crop[:2, 0].norm()) / size
    height, width = region.shape[-2:]
    if shrink > 1:
        small = max(round(height / shrink), 1), max(round(width / shrink), 1)
        region = F.interpolate(region[None], size=small, mode="bilinear", antialias=True)[0]
    grid = sampling_grid(image_from_crop[None], size, (height, width))
    beyond = ((grid.abs() - 1).clamp_min(0) * grid.new_tensor([width, height]) / 2).amax(-1)  # pixels of the region
    crop = F.grid_sample(region[None], grid, padding_mode="border", align_corners=False)
    if not beyond.any():
        return crop[0]
    share = (beyond / (min(shrink, 1.0) * size * _BLUR_REACH)).clamp(0, 1)[:, None]
    soft, radius = crop, max(size // 24, 1)
    for _ in range(3):
        padded = F.pad(soft, (radius,) * 4, mode="replicate")
        soft = F.avg_pool2d(padded, 2 * radius + 1, stride=1)
    return (crop + share * (soft - crop))[0]


def crop_region(
    image_from_crop: Tensor,  # [3, 3]
    image_size: tuple[int, int],
) -> tuple[tuple[int, int, int, int], Tensor]:
    """Find the region of an image of `image_size` (height, width) that a crop touches, and the crop's matrix in it.

    The region has a margin for an antialias filter: left, top, right, bottom in whole pixels.
    """
    corners = transform_points(image_from_crop, image_from_crop.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1]]))
    x0, y0, x1, y1 = landmark_box(corners).tolist()
    margin = 4 + (x1 - x0) / 16
    height, width = image_size
    left = min(max(math.floor(x0 - margin), 0), width - 1)
    top = min(max(math.floor(y0 - margin), 0), height - 1)
    right, bottom = max(min(math.ceil(x1 + margin), width), left + 1), max(min(math.ceil(y1 + margin), height), top + 1)
    shift = torch.eye(3, dtype=image_from_crop.dtype, device=image_from_crop.device)
    shift[0, 2], shift[1, 2] = -left, -top
    return (left, top, right, bottom), shift @ image_from_crop


def soft_square(
    points: Tensor,  # [..., 2]
    feather: float = 0.12,
) -> Tensor:
    """Weight of the crop at crop coordinates: 1 inside, 0 at and beyond the border, smooth over `feather`.

    Not in the paper: VASA-1 does not paste back.
    """
    inner = (0.5 - (points - 0.5).abs()).clamp_min(0) / feather
    x, y = (1 - inner.clamp(max=1)).unbind(dim=-1)
    t = 1 - torch.hypot(x, y).clamp(max=1)  # round corners
    return t * t * (3 - 2 * t)


def own_share(
    points: Tensor,  # [..., 2]
    box: Tensor,  # [4]
    others: Tensor,  # [N, 4]
) -> Tensor:
    """Weight of a face at image coordinates against other faces: 1 where it is the nearest, 0 where another one is.

    Distances count from the middle of a face's box in halves of its larger side, so that a small face in the background
    keeps a small place. Not in the paper.

    Args:
        points (`torch.Tensor` of shape `(..., 2)`): In pixels.
        box (`torch.Tensor` of shape `(4,)`): Landmark box x0, y0, x1, y1 of the face.
        others (`torch.Tensor` of shape `(faces, 4)`): Those of other faces.

    Returns:
        `torch.Tensor` of shape `(...)`.
    """
    share = torch.ones(points.shape[:-1])
    boxes = torch.cat([box[None], others])
    centers, radii = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(1) / 2
    own, *rest = ((points - center).norm(dim=-1) / radius for center, radius in zip(centers, radii, strict=True))
    for other in rest:
        t = ((other - own) / _OTHER_FEATHER + 0.5).clamp(0, 1)
        share = torch.minimum(share, t * t * (3 - 2 * t))
    return share


@dataclasses.dataclass(frozen=True)
class PasteWindow:
    """Position and mask of a crop in its image; computed once, used for every frame.

    Attributes:
        top, left (`int`): Corner of the image region that changes.
        grid (`torch.Tensor` of shape `(1, height, width, 2)`): For `grid_sample` from the crop.
        mask (`torch.Tensor` of shape `(1, height, width)`): Weight of the crop in [0, 1].
        pixels_per_crop (`float`): Side of the crop in image pixels.
    """

    top: int
    left: int
    grid: Tensor
    mask: Tensor
    pixels_per_crop: float


def paste_window(
    image_from_crop: Tensor,  # [3, 3]
    image_size: tuple[int, int],
    feather: float = 0.12,
    box: Tensor | None = None,  # [4]
    others: Tensor | None = None,  # [N, 4]
) -> PasteWindow:
    """Prepare `paste` for a crop of images of `image_size` (height, width).

    Args:
        image_from_crop (`torch.Tensor` of shape `(3, 3)`): See `crop_matrix`.
        image_size (`tuple` of two `int`): Height and width of the images.
        feather (`float`, *optional*, defaults to 0.12): See `soft_square`.
        box (`torch.Tensor` of shape `(4,)`, *optional*): The face, where there are `others`.
        others (`torch.Tensor` of shape `(faces, 4)`, *optional*): Other faces, which stay as they are: `own_share`.

    Raises:
        ValueError: If the crop lies wholly outside the image.
    """
    image_from_crop = image_from_crop.float()
    corners = transform_points(image_from_crop, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    x0, y0, x1, y1 = landmark_box(corners).tolist()
    height, width = image_size
    left, top = max(math.floor(x0), 0), max(math.floor(y0), 0)
    right, bottom = min(math.ceil(x1), width), min(math.ceil(y1), height)
    if right <= left or bottom <= top:
        raise ValueError(
            f"`image_from_crop` must overlap the image of {width}x{height} pixels, but lies outside of it."
        )
    x, y = torch.arange(left, right) + 0.5, torch.arange(top, bottom) + 0.5
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    crop_from_image = torch.linalg.inv(image_from_crop.double()).float()
    points = transform_points(crop_from_image, pixels.reshape(-1, 2)).view(pixels.shape)
    side = float(image_from_crop[:2, 0].norm())
    mask = soft_square(points, feather)
    if box is not None and others is not None and len(others):
        mask = mask * own_share(pixels, box.float(), others.float())
    return PasteWindow(top, left, (points * 2 - 1)[None], mask[None], side)


def changed_share(
    crop: Tensor,  # [C, S, S]
    own: Tensor,  # [C, S, S]
) -> Tensor:
    """Mask where a crop differs from the image's own crop: 0 where they are equal, 1 where they clearly differ.

    Not in the paper. The mean difference in cells of 1/64 of the side is used: the mask is 0 up to 4/255 and 1 from
    14/255; it is then dilated by a cell, so that a moving face has no still spots.

    Args:
        crop (`torch.Tensor` of shape `(channels, size, size)`): New content in [-1, 1].
        own (`torch.Tensor` of shape `(channels, size, size)`): The crop of the image, in [-1, 1].

    Returns:
        `torch.Tensor` of shape `(1, size, size)`.
    """
    size = crop.shape[-1]
    difference = F.adaptive_avg_pool2d((crop - own).abs().amax(0)[None], min(size, 64)) * 127.5
    change = F.max_pool2d(((difference - 4) / 10).clamp(0, 1), 3, 1, 1)
    change = F.avg_pool2d(change, 3, 1, 1, count_include_pad=False)
    return F.interpolate(change[None], size, mode="bilinear", align_corners=False)[0]


def paste(
    image: Tensor,  # [C, H, W]
    crop: Tensor,  # [C, S, S]
    window: PasteWindow,
    own: Tensor | None = None,  # [C, S, S]
) -> Tensor:
    """Blend a crop into the image under the soft mask; pixels outside the mask do not change.

    Args:
        image (`torch.Tensor` of shape `(channels, height, width)`): The image.
        crop (`torch.Tensor` of shape `(channels, size, size)`): New content.
        window (`PasteWindow`): See `paste_window`.
        own (`torch.Tensor` of shape `(channels, size, size)`, *optional*): The crop of the image. Where the new content
            equals it, the image's pixels do not change either; where it hardly differs, the difference is added to
            them, which keeps detail that the crop has lost.

    Returns:
        `torch.Tensor` of shape `(channels, height, width)`.
    """
    if own is not None:
        crop = torch.cat([crop, crop - own, changed_share(crop, own)])
    fine = crop.shape[-1] / window.pixels_per_crop
    if fine > 1:
        size = max(round(window.pixels_per_crop), 1)
        crop = F.interpolate(crop[None], size=(size, size), mode="bilinear", antialias=True)[0]
    patch = F.grid_sample(crop[None].float(), window.grid, padding_mode="border", align_corners=False)[0].to(image)
    height, width = window.mask.shape[-2:]
    out = image.clone()
    part = out[:, window.top : window.top + height, window.left : window.left + width]
    change = patch[: len(image)] - part
    if own is not None:
        change = torch.lerp(patch[len(image) : -1], change, patch[-1:])
    part.add_(window.mask * change)
    return out

"""Refine small regions of a decoded face, mouth and eyes, with more detail than the rest of the image.

    image --cut at z_pose--> crop --U-Net(crop, source's crop, code)--> change of colour x soft border --add--> image

A region is a rectangle on the canonical face, so a crop follows the head in position, size and rotation, and the upper
teeth stay at one position of the crop.

# Not in the paper: VASA-1's decoder renders the whole face at once. The small preset blurs teeth and moves irises only
# half way; refining a tenth of the image takes a tenth of the computation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vasa_hf.geometry.rotations import matrix_from_euler
from vasa_hf.layers.blocks import ResBlock


@dataclass(frozen=True)
class FaceRegion:
    """A rectangle on the canonical face (outer eye corners one unit apart, x right, y down, z away).

    Attributes:
        center (`tuple[float, float, float]`): Its centre.
        half_size (`tuple[float, float]`): Half of its width and height.
        size (`tuple[int, int]`): Height and width of the crop in pixels, multiples of 8.
        mirrored (`bool`): Whether a mirrored one is on the other side of the face.
    """

    center: tuple[float, float, float]
    half_size: tuple[float, float]
    size: tuple[int, int]
    mirrored: bool = False

    @property
    def count(self) -> int:
        """Number of crops per face."""
        return 1 + self.mirrored


# They contain the lips and the eye openings of 99 % of labelled frames.
REGIONS = {
    "mouth": FaceRegion((0.0, 0.69, -0.11), (0.45, 0.33), (72, 96)),
    "eyes": FaceRegion((0.345, -0.15, 0.08), (0.24, 0.18), (48, 64), mirrored=True),
}


def region_transform(
    pose: Tensor,  # [B, 6]
    region: FaceRegion,
) -> Tensor:
    """Compute the affine maps from crops to their image.

    Args:
        pose (`torch.Tensor` of shape `(batch, 6)`): z_pose: yaw, pitch, roll, tx, ty, scale.
        region (`FaceRegion`): Region of the face.

    Returns:
        `torch.Tensor` of shape `(batch * region.count, 2, 3)`: from crop to image coordinates, both in [-1, 1] with
        `align_corners=False`; the crops of one face are consecutive.
    """
    pose = pose.float()
    rotation = matrix_from_euler(*pose[:, :3].unbind(1))[:, :2]  # [B, 2, 3]: images of x, y, z of the face
    sides = pose.new_tensor([[1.0], [-1.0]])[: region.count] * pose.new_tensor([1.0, 0.0, 0.0])
    sides = sides + pose.new_tensor([0.0, 1.0, 1.0])  # [N, 3]: signs of x, y, z
    center = (rotation[:, None] @ (sides * pose.new_tensor(region.center))[None, ..., None])[..., 0]  # [B, N, 2]
    axes = rotation[:, None, :, :2] * (sides[:, :2] * pose.new_tensor(region.half_size))[None, :, None]
    scale = pose[:, 5, None, None]
    offset = 2 * (pose[:, None, 3:5] + scale * center) - 1
    return torch.cat([2 * scale[..., None] * axes, offset[..., None]], 3).flatten(0, 1)


def cut_region(
    image: Tensor,  # [B, C, H, W]
    transform: Tensor,  # [B * N, 2, 3]
    size: tuple[int, int],
    mode: str = "bilinear",
) -> Tensor:
    """Cut out the crops of `region_transform`: `(batch * count, channels, *size)`, float32."""
    grid = F.affine_grid(transform, (len(transform), 1, *size), align_corners=False)
    count = len(transform) // len(image)
    if count == 1:
        return F.grid_sample(image.float(), grid, mode, "border", False)
    # One sampling for all crops of a face: [B, C, N * h, w].
    grid = grid.unflatten(0, (len(image), count)).flatten(1, 2)
    crops = F.grid_sample(image.float(), grid, mode, "border", False)
    return crops.unflatten(2, (count, size[0])).transpose(1, 2).flatten(0, 1)


def add_region(
    image: Tensor,  # [B, C, H, W]
    change: Tensor,  # [B * N, C, h, w]
    transform: Tensor,  # [B * N, 2, 3]
) -> Tensor:
    """Add crops to images in [-1, 1] at their positions; bilinear, nothing is added outside of them.

    Returns:
        New `torch.Tensor` of the shape of `image`, float32; clamped to [-1, 1] where something is added.
    """
    image, side = image.float().clone(), image.shape[-1]
    count = len(change) // len(image)
    reach = transform[:, :, :2].abs().sum(2)  # half the bounding box, [B * N, 2] in [-1, 1] units
    low = ((transform[:, :, 2] - reach + 1) * side / 2).floor().long().clamp(0, side)
    high = ((transform[:, :, 2] + reach + 1) * side / 2).ceil().long().clamp(0, side)
    inverse = torch.linalg.inv(transform[:, :, :2])
    for index, ((left, top), (right, bottom)) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        if right <= left or bottom <= top:
            continue
        x = (torch.arange(left, right, device=image.device) + 0.5) * 2 / side - 1 - transform[index, 0, 2]
        y = (torch.arange(top, bottom, device=image.device) + 0.5) * 2 / side - 1 - transform[index, 1, 2]
        a = inverse[index]
        grid = x[None, :, None] * a[:, 0] + y[:, None, None] * a[:, 1]  # [h, w, 2] in the crop
        patch = F.grid_sample(change[index : index + 1].float(), grid[None], align_corners=False)
        place = image[index // count, :, top:bottom, left:right]
        image[index // count, :, top:bottom, left:right] = (place + patch[0]).clamp(-1, 1)
    return image


class RegionRefiner(nn.Module):
    """U-Net that refines one kind of region.

    Args:
        region (`FaceRegion`): The region.
        code_dim (`int`): Width of the conditioning code.
        channels (`list[int]`): Widths at 1/2, 1/4 and 1/8 of the crop's size.
    """

    def __init__(self, region: FaceRegion, code_dim: int, channels: list[int]):
        super().__init__()
        self.region = region
        width = 2 * channels[0]
        self.embed = nn.Sequential(
            nn.Linear(code_dim + region.mirrored, width), nn.SiLU(), nn.Linear(width, width), nn.Tanh()
        )
        pairs = list(zip(channels[:-1], channels[1:], strict=True))

        def encoder(code: int | None) -> nn.ModuleDict:
            return nn.ModuleDict(
                {
                    "stem": nn.Conv2d(12, channels[0], 3, padding=1),
                    "blocks": nn.ModuleList(ResBlock(2, c, c, code) for c in channels),
                    "downs": nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairs),
                }
            )

        self.source, self.target = encoder(None), encoder(width)
        self.joins = nn.ModuleList(nn.Conv2d(2 * c, c, 1) for c in channels)
        self.middle = ResBlock(2, channels[-1], channels[-1], width)
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.blocks = nn.ModuleList(ResBlock(2, a, a, width) for a, _ in pairs)
        self.out = nn.Conv2d(channels[0], 12, 3, padding=1)
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)
        vertical, horizontal = (_ramp(length) for length in region.size)
        self.register_buffer("window", vertical[:, None] * horizontal, persistent=False)

    def encode_source(self, crop: Tensor) -> list[Tensor]:
        """Encode the portrait's crop `(batch * count, 3, *size)` to features, fine to coarse; once per portrait."""
        return self._encode(self.source, crop, None)

    def forward(
        self,
        crop: Tensor,  # [B * N, 3, h, w]
        source_features: list[Tensor],
        code: Tensor,  # [B, code_dim]
    ) -> Tensor:
        """Refine crops.

        Args:
            crop (`torch.Tensor` of shape `(batch * count, 3, height, width)`): Decoded crops in [-1, 1].
            source_features (`list[torch.Tensor]`): From `encode_source`.
            code (`torch.Tensor` of shape `(batch, code_dim)`): Identity and motion.

        Returns:
            `torch.Tensor` of shape `(batch * count, 3, height, width)`: change of colour, 0 at the border, float32.
        """
        if self.region.mirrored:
            side = code.new_tensor([[1.0], [-1.0]]).repeat(len(code), 1)
            code = torch.cat([code.repeat_interleave(2, 0), side], 1)
        code = self.embed(code)
        skips = self._encode(self.target, crop, code, source_features)
        x = self.middle(skips[-1], code)
        for up, block, skip in zip(reversed(self.ups), reversed(self.blocks), reversed(skips[:-1]), strict=True):
            x = F.interpolate(up(x), size=skip.shape[-2:], mode="nearest") + skip
            x = block(x, code)
        return 2 * F.pixel_shuffle(self.out(F.leaky_relu(x, 0.2)), 2).float().tanh() * self.window.float()

    def _encode(self, net: nn.ModuleDict, crop: Tensor, code: Tensor | None, source=None) -> list[Tensor]:
        x = net["stem"](F.pixel_unshuffle(crop, 2).to(net["stem"].weight.dtype))
        features = []
        for level, block in enumerate(net["blocks"]):
            if source is not None:
                x = self.joins[level](torch.cat([x, source[level].to(x.dtype)], 1))
            x = block(x, code)
            features.append(x)
            if level < len(net["downs"]):
                x = net["downs"][level](F.leaky_relu(x, 0.2))
        return features


def _ramp(length: int, share: float = 0.12) -> Tensor:
    """Smooth window over a side of a crop: 0 at both ends, 1 inside."""
    edge = (torch.arange(length) + 0.5).minimum(length - torch.arange(length) - 0.5) / (share * length)
    edge = edge.clamp(0, 1)
    return edge * edge * (3 - 2 * edge)

"""Dense flow of a feature volume from two sets of keypoints, as in face-vid2vid (arXiv 2011.15126).

Each keypoint proposes one flow, a shift of the whole volume; a network gets the volume shifted by each of them and
mixes the proposals per voxel. Because they are shifts, trilinear sampling separates into one small matrix for each
axis, and a Gaussian around a keypoint into one vector for each axis: no gather and no sampling grid is needed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GAUSSIAN_VARIANCE = 0.01


class ConvBlock(nn.Module):
    """Convolution, batch norm and rectifier.

    Args:
        dims (`int`): 2 for images, 3 for volumes.
        in_channels (`int`): Channels in.
        out_channels (`int`): Channels out.
        negative_slope (`float`, defaults to 0.0): Slope of the rectifier.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, negative_slope: float = 0.0):
        super().__init__()
        self.conv = (nn.Conv2d if dims == 2 else nn.Conv3d)(in_channels, out_channels, 3, padding=1)
        self.norm = (nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d)(out_channels)
        self.negative_slope = negative_slope

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map `(batch, in_channels, ...)` to `(batch, out_channels, ...)`, same size."""
        return F.leaky_relu(self.norm(self.conv(hidden_states)), self.negative_slope)


class HourglassEncoder(nn.Module):
    """Halves height and width, never depth, at each block.

    Args:
        in_channels (`int`): Channels in.
        widths (`list[int]`): Channels after each block.
    """

    def __init__(self, in_channels: int, widths: list[int]):
        super().__init__()
        pairs = zip([in_channels, *widths], widths, strict=False)
        self.down_blocks = nn.ModuleList(ConvBlock(3, before, after) for before, after in pairs)

    def forward(self, hidden_states: Tensor) -> list[Tensor]:
        """Return the input and the output of each block."""
        features = [hidden_states]
        for block in self.down_blocks:
            x = block(features[-1])
            features.append(F.avg_pool2d(x.flatten(1, 2), 2).unflatten(1, x.shape[1:3]))
        return features


class HourglassDecoder(nn.Module):
    """Doubles height and width at each block and concatenates the encoder's features of that size.

    Args:
        in_channels (`int`): Channels of the hourglass' input.
        widths (`list[int]`): Channels after each block of the encoder.
        out_width (`int`): Channels of the last block, before the hourglass' input joins.
    """

    def __init__(self, in_channels: int, widths: list[int], out_width: int):
        super().__init__()
        outs = [out_width, *widths[:-1]]
        ins = [(1 if level == len(widths) - 1 else 2) * width for level, width in enumerate(widths)]
        self.up_blocks = nn.ModuleList(ConvBlock(3, *pair) for pair in zip(ins[::-1], outs[::-1], strict=True))
        self.out_channels = out_width + in_channels
        self.conv = nn.Conv3d(self.out_channels, self.out_channels, 3, padding=1)
        self.norm = nn.BatchNorm3d(self.out_channels)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Decode the encoder's features; same size as its input."""
        x = features[-1]
        for block, skip in zip(self.up_blocks, features[-2::-1], strict=True):
            x = torch.cat([block(F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")), skip], 1)
        return F.relu(self.norm(self.conv(x)))


class Hourglass(nn.Module):
    """U-Net over a volume.

    Args:
        in_channels (`int`): Channels in.
        block_expansion (`int`): Channels out, in addition to the input's channels.
        max_channels (`int`): Maximal channels of a block.
        num_blocks (`int`): Blocks of the encoder and of the decoder.
    """

    def __init__(self, in_channels: int, block_expansion: int, max_channels: int, num_blocks: int):
        super().__init__()
        widths = [min(max_channels, block_expansion * 2 ** (level + 1)) for level in range(num_blocks)]
        self.encoder = HourglassEncoder(in_channels, widths)
        self.decoder = HourglassDecoder(in_channels, widths, min(max_channels, block_expansion))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map `(batch, in_channels, depth, height, width)` to `(batch, decoder.out_channels, depth, height, width)`."""
        return self.decoder(self.encoder(hidden_states))


def grid_axis(size: int, device: torch.device) -> Tensor:
    """Coordinates of a grid along one axis, from -1 to 1, `(size,)`."""
    return torch.linspace(-1, 1, size, device=device)


def identity_volume_grid(size: tuple[int, int, int], device: torch.device) -> Tensor:
    """Grid `(depth, height, width, 3)` of coordinates xyz, each from exactly -1 to exactly 1.

    Args:
        size (`tuple[int, int, int]`): Depth, height, width.
        device (`torch.device`): Device of the result.
    """
    z, y, x = torch.meshgrid(*(grid_axis(n, device) for n in size), indexing="ij")
    return torch.stack([x, y, z], -1)


def shift_matrices(shift: Tensor, size: int) -> Tensor:
    """Linear interpolation along one axis, at a grid's coordinates plus a shift.

    Equal to `grid_sample` with `padding_mode="zeros", align_corners=False` on a grid from -1 to 1: the grid is that of
    `align_corners=True`, so that shift 0 resamples slightly, too. The public weights were trained this way.

    Args:
        shift (`torch.Tensor` of shape `(...)`): Shifts, in units of half the axis.
        size (`int`): Voxels along the axis.

    Returns:
        `torch.Tensor` of shape `(..., size, size)`: weights, output by input.
    """
    position = ((grid_axis(size, shift.device) + shift.float()[..., None] + 1) * size - 1) / 2
    voxels = torch.arange(size, device=shift.device, dtype=torch.float32)
    return (1 - (position[..., None] - voxels).abs()).clamp(min=0)


def shift_volumes(volume: Tensor, shifts: Tensor) -> Tensor:
    """Sample a volume at the grid plus each of several shifts; see `shift_matrices`.

    Args:
        volume (`torch.Tensor` of shape `(batch, channels, depth, height, width)`): Features.
        shifts (`torch.Tensor` of shape `(batch, shifts, 3)`): xyz.

    Returns:
        `torch.Tensor` of shape `(batch, shifts, channels, depth, height, width)`.
    """
    size = volume.shape[2:]
    along_x, along_y, along_z = (
        shift_matrices(shift, n)[:, :, None].to(volume.dtype)
        for shift, n in zip(shifts.unbind(-1), size[::-1], strict=True)
    )
    x = volume.flatten(2, 3)[:, None] @ along_x.mT  # [B, K, C, D H, W]
    x = along_y[:, :, :, None] @ x.unflatten(3, size[:2])  # [B, K, C, D, H, W]
    return (along_z @ x.flatten(4)).unflatten(4, size[1:])


def keypoint_heatmaps(keypoints: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Compute Gaussians around keypoints.

    Args:
        keypoints (`torch.Tensor` of shape `(batch, points, 3)`): xyz from -1 to 1.
        size (`tuple[int, int, int]`): Depth, height, width.

    Returns:
        `torch.Tensor` of shape `(batch, points, depth, height, width)`.
    """
    x, y, z = (
        (-0.5 / GAUSSIAN_VARIANCE * (grid_axis(n, keypoints.device) - coordinate.float()[..., None]).square()).exp()
        for coordinate, n in zip(keypoints.unbind(-1), size[::-1], strict=True)
    )
    return z[..., :, None, None] * (y[..., :, None] * x[..., None, :])[..., None, :, :]


class DenseMotionNetwork(nn.Module):
    """Mixes the keypoints' shifts into one flow, and predicts an occlusion map.

    Args:
        num_keypoints (`int`): Keypoints K.
        feature_channels (`int`): Channels of the volume.
        feature_depth (`int`): Depth of the volume.
        compress_channels (`int`): Channels of the volume in the network's input.
        block_expansion (`int`): See `Hourglass`.
        max_channels (`int`): See `Hourglass`.
        num_blocks (`int`): See `Hourglass`.
        mask_kernel_size (`int`): Kernel size of the mask's convolution, odd.
        occlusion_kernel_size (`int`): Kernel size of the occlusion's convolution, odd.
    """

    def __init__(
        self,
        num_keypoints: int,
        feature_channels: int,
        feature_depth: int,
        compress_channels: int,
        block_expansion: int,
        max_channels: int,
        num_blocks: int,
        mask_kernel_size: int,
        occlusion_kernel_size: int,
    ):
        super().__init__()
        in_channels = (num_keypoints + 1) * (compress_channels + 1)
        self.compress = nn.Conv3d(feature_channels, compress_channels, 1)
        self.norm = nn.BatchNorm3d(compress_channels)
        self.hourglass = Hourglass(in_channels, block_expansion, max_channels, num_blocks)
        out_channels = self.hourglass.decoder.out_channels
        self.mask = nn.Conv3d(out_channels, num_keypoints + 1, mask_kernel_size, padding=mask_kernel_size // 2)
        flat = out_channels * feature_depth
        self.occlusion = nn.Conv2d(flat, 1, occlusion_kernel_size, padding=occlusion_kernel_size // 2)

    def proposals(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> Tensor:
        """Compute the input of the hourglass: a heatmap and the shifted volume, for shift 0 and for each keypoint.

        Args:
            feature_3d (`torch.Tensor` of shape `(batch, channels, depth, height, width)`): Feature volume.
            kp_source (`torch.Tensor` of shape `(batch, K, 3)`): Keypoints of the source.
            kp_driving (`torch.Tensor` of shape `(batch, K, 3)`): Driving keypoints.

        Returns:
            `torch.Tensor` of shape `(batch, (K + 1) * (compress_channels + 1), depth, height, width)`.
        """
        compressed = F.relu(self.norm(self.compress(feature_3d)))
        shifts = F.pad(kp_source - kp_driving, (0, 0, 1, 0))  # the first proposal is shift 0
        volumes = shift_volumes(compressed, shifts)
        size = feature_3d.shape[2:]
        heatmaps = keypoint_heatmaps(kp_driving, size) - keypoint_heatmaps(kp_source, size)
        heatmaps = F.pad(heatmaps.to(volumes.dtype), (0, 0, 0, 0, 0, 0, 1, 0))
        return torch.cat([heatmaps[:, :, None], volumes], 2).flatten(1, 2)

    @staticmethod
    def mix(mask: Tensor, kp_source: Tensor, kp_driving: Tensor) -> Tensor:
        """Mix the shifts by the mask: grid plus mean shift, as sampling positions `(batch, D, H, W, 3)`.

        Args:
            mask (`torch.Tensor` of shape `(batch, K + 1, depth, height, width)`): Shares; their sum is 1.
            kp_source (`torch.Tensor` of shape `(batch, K, 3)`): See `proposals`.
            kp_driving (`torch.Tensor` of shape `(batch, K, 3)`): See `proposals`.
        """
        shifts = (kp_source - kp_driving).float()
        flow = torch.einsum("bkdhw,bkx->bdhwx", mask[:, 1:].float(), shifts)
        return flow + identity_volume_grid(mask.shape[2:], mask.device)

    def forward(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute flow, occlusion and mask.

        Args:
            feature_3d (`torch.Tensor` of shape `(batch, channels, depth, height, width)`): Feature volume.
            kp_source (`torch.Tensor` of shape `(batch, K, 3)`): Keypoints of the source.
            kp_driving (`torch.Tensor` of shape `(batch, K, 3)`): Driving keypoints.

        Returns:
            Sampling positions `(batch, depth, height, width, 3)` in float32; visibility from 0 to 1
            `(batch, 1, height, width)`; and the shares of the shifts `(batch, K + 1, depth, height, width)`.
        """
        x = self.hourglass(self.proposals(feature_3d, kp_source, kp_driving))
        mask = self.mask(x).softmax(1)
        occlusion = self.occlusion(x.flatten(1, 2)).sigmoid()
        return self.mix(mask, kp_source, kp_driving), occlusion, mask

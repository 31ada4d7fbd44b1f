"""LivePortrait's W and G rearranged for inference on a CPU: the same images up to rounding, several times as fast.

Changes, in addition to channels being last throughout:

- Batch norms are folded into convolutions, and most 3x3 convolutions use `TiledConv`, the 7x7x7 one Fourier transforms.
- The generator's label is one map for all norms: the first convolutions of all norms of a size are one. Where the norms
  take it enlarged, nine products for each of its cells are enough: collapsed rows of a kernel are sums of the whole
  kernel and its first or last row. Their last convolutions, scale and shift, are one each.
- Norms, modulation and rectifier are done tile by tile while these are in the cache, and features that a block doubles
  are never stored doubled.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vasa_hf.layers.dense_motion import ConvBlock, DenseMotionNetwork
from vasa_hf.layers.spade import Spade, SpadeResBlock
from vasa_hf.models.backends.fast_conv import (
    MAX_OUTS,
    TILE,
    DirectConv,
    SpectralConv3d,
    TiledConv,
    as_tiles,
    fast_conv,
    inside,
    is_tiled,
    pad_scratch,
    scratch,
)

VOLUME = (1, 1)  # margin of volumes; images have one of (0, 1)
LARGE_KERNEL = 5  # from here on, Fourier


def fold_batch_norm(conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Fold the batch norm behind a convolution into its weight and bias.

    Args:
        conv (`torch.nn.Module`): Convolution.
        norm (`torch.nn.Module`): Batch norm with running statistics.
    """
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = conv.weight.double() * scale.view(-1, *[1] * (conv.weight.ndim - 1))
    bias = (conv.bias.double() - norm.running_mean.double()) * scale + norm.bias.double()
    return weight.float(), bias.float()


def enlarge_into(target: Tensor, source: Tensor, factor: int = 2) -> None:
    """Write a map or volume into another that is `factor` times as high and wide, channels last.

    Args:
        target (`torch.Tensor` of shape `(depth, factor * height, factor * width, channels)`): Written.
        source (`torch.Tensor` of shape `(depth, height, width, channels)`): Read.
        factor (`int`): How often each row and column is repeated.
    """
    cells = target.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))  # [D, H, f, W, f, C]
    cells.copy_(source[:, :, None, :, None].expand_as(cells))


class FastVolumeBlock:
    """`ConvBlock` of volumes.

    Args:
        conv (`torch.nn.Module`): Convolution.
        norm (`torch.nn.Module`): Its batch norm.
        side (`int`): Smaller side of the volumes.
    """

    def __init__(self, conv: nn.Module, norm: nn.Module, side: int):
        self.conv = fast_conv(*fold_batch_norm(conv, norm), tiled=side % TILE == 0)

    def __call__(self, buffer: Tensor, name: str) -> Tensor:
        """Map a padded volume to one `(depth, height, width, out)` in the scratch of that name."""
        shape = (buffer.shape[0] - 2, buffer.shape[1] - 2, buffer.shape[2] - 2, self.conv.out_channels)
        return self.conv.into(buffer, scratch(name, *shape)).relu_()


class FastDenseMotion:
    """`DenseMotionNetwork` for one item.

    Args:
        network (`DenseMotionNetwork`): Source of the weights.
        size (`tuple[int, int, int]`): Depth, height and width of the volumes.
    """

    def __init__(self, network: DenseMotionNetwork, size: tuple[int, int, int]):
        self.network, self.size = network, size
        side = min(size[1:])
        encoder, decoder = network.hourglass.encoder, network.hourglass.decoder
        levels = len(encoder.down_blocks)
        self.down = [
            FastVolumeBlock(block.conv, block.norm, side >> level) for level, block in enumerate(encoder.down_blocks)
        ]
        self.up = [
            FastVolumeBlock(block.conv, block.norm, side >> (levels - 1 - level))
            for level, block in enumerate(decoder.up_blocks)
        ]
        self.last = FastVolumeBlock(decoder.conv, decoder.norm, side)
        self.spectral = network.mask.kernel_size[0] >= LARGE_KERNEL
        if self.spectral:
            self.mask = SpectralConv3d(network.mask.weight, network.mask.bias, size[0])
        # One number for each position and tap: channel-major, depth within, as the flattened volume has it.
        taps = network.occlusion.weight[0].unflatten(0, (-1, size[0]))
        self.occlusion_taps = taps.permute(1, 0, 2, 3).flatten(2).float().contiguous()  # [D, C, k k]

    def hourglass(self, proposals: Tensor) -> Tensor:
        """Map `(channels, depth, height, width)` to `(depth, height, width, out)`."""
        x = proposals.permute(1, 2, 3, 0)
        skips = []
        for level, block in enumerate(self.down):
            buffer = pad_scratch(f"skip {level}", *x.shape, VOLUME)
            skips.append(inside(buffer, VOLUME).copy_(x))
            full = block(buffer, "map")
            x = F.avg_pool2d(full.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        for level, block in enumerate(self.up):
            parts = [x] if level == 0 else [x, skips.pop()]
            depth, height, width, _ = x.shape
            widths = [part.shape[-1] for part in parts]
            buffer = pad_scratch("joined", depth, 2 * height, 2 * width, sum(widths), VOLUME)
            for part, target in zip(parts, inside(buffer, VOLUME).split(widths, -1), strict=True):
                enlarge_into(target, part)
            x = block(buffer, "map")
        skip = skips.pop()
        buffer = pad_scratch("joined", *x.shape[:3], x.shape[-1] + skip.shape[-1], VOLUME)
        inside(buffer, VOLUME)[..., : x.shape[-1]] = x
        inside(buffer, VOLUME)[..., x.shape[-1] :] = skip
        return self.last(buffer, "map")

    def occlusion(self, x: Tensor) -> Tensor:
        """What is visible, `(1, 1, height, width)`, of the hourglass' volume."""
        conv = self.network.occlusion
        height, width = x.shape[1:3]
        shares = torch.bmm(x.flatten(1, 2), self.occlusion_taps).sum(0).T  # [k k, H W]
        kernel = conv.kernel_size[0]
        # Each tap's map, put where the tap looks from: the transpose of unfolding.
        margin = kernel - 1
        shares = shares.view(kernel * kernel, height, width).flip(0)
        total = F.fold(shares.flatten(1)[None], (height + margin, width + margin), kernel)
        total = total[..., margin // 2 : margin // 2 + height, margin // 2 : margin // 2 + width]
        return (total + conv.bias.float()).sigmoid()

    def __call__(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> tuple[Tensor, Tensor]:
        """Sampling positions and visibility mask, of a batch of one; see `DenseMotionNetwork`."""
        proposals = self.network.proposals(feature_3d, kp_source, kp_driving)[0]
        x = self.hourglass(proposals)
        mask = self.mask(x) if self.spectral else self.network.mask(x.permute(3, 0, 1, 2)[None])[0]
        flow = self.network.mix(mask.softmax(0)[None], kp_source, kp_driving)
        return flow, self.occlusion(x)


class FastWarping:
    """W for batches of any size, one after the other.

    Args:
        dense_motion (`DenseMotionNetwork`): Makes the flow.
        third (`ConvBlock`): First convolution of the flattened volume.
        fourth (`torch.nn.Conv2d`): Second one, 1x1.
        size (`tuple[int, int, int]`): Depth, height and width of the volumes.
    """

    def __init__(self, dense_motion: DenseMotionNetwork, third: ConvBlock, fourth: nn.Conv2d, size: tuple[int, ...]):
        self.dense_motion = FastDenseMotion(dense_motion, size)
        self.third = fast_conv(*fold_batch_norm(third.conv, third.norm), tiled=min(size[1:]) % TILE == 0)
        self.slope = third.negative_slope
        self.fourth_weight, self.fourth_bias = fourth.weight[:, :, 0, 0].T.float().contiguous(), fourth.bias.float()

    def __call__(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `WarpingModule`."""
        batch = max(len(feature_3d), len(kp_source), len(kp_driving))
        inputs = [value.expand(batch, *value.shape[1:]) for value in (feature_3d, kp_source, kp_driving)]
        items = [self._one(*(value[i : i + 1] for value in inputs)) for i in range(batch)]
        return tuple(torch.cat(parts) for parts in zip(*items, strict=True))

    def _one(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flow, occlusion = self.dense_motion(feature_3d, kp_source, kp_driving)
        warped = F.grid_sample(feature_3d, flow, align_corners=False).flatten(1, 2)  # [1, C D, H, W]
        buffer = pad_scratch("joined", 1, *warped.shape[2:], warped.shape[1])
        inside(buffer).copy_(warped.permute(0, 2, 3, 1))
        x = self.third.into(buffer, scratch("map", 1, *warped.shape[2:], self.third.out_channels))
        x = F.leaky_relu(x, self.slope, inplace=True)
        x = torch.addmm(self.fourth_bias, x.flatten(0, 2), self.fourth_weight).view(x.shape[0], *x.shape[1:3], -1)
        return (x * occlusion[:, 0, :, :, None]).permute(0, 3, 1, 2), flow, occlusion


class SharedLabel:
    """The first convolutions of several norms that take the label at one size, in one.

    Args:
        norms (`list[Spade]`): Norms.
        factor (`int`): How much larger their features are than the label.
    """

    def __init__(self, norms: list[Spade], factor: int):
        convs = [norm.mlp_shared[0] for norm in norms]
        weight = torch.cat([conv.weight for conv in convs])
        self.bias, self.factor = torch.cat([conv.bias for conv in convs]).float(), factor
        if factor == 1:
            self.conv = fast_conv(weight, self.bias)
            return
        # First row, all rows, last row; the same for columns.
        groups = weight.double()
        groups = torch.stack([groups[:, :, 0], groups.sum(2), groups[:, :, 2]], 2)
        groups = torch.stack([groups[..., 0], groups.sum(3), groups[..., 2]], 3)
        self.groups = groups.permute(2, 3, 1, 0).float().contiguous()  # [3, 3, in, out]

    def __call__(self, label: Tensor) -> Tensor:
        """Activations `(1, f height + 2, f width + 2, out)`, pad_scratch, of a padded label `(1, height + 2, ...)`."""
        height, width = label.shape[1] - 2, label.shape[2] - 2
        result = pad_scratch("shared", 1, self.factor * height, self.factor * width, len(self.bias))
        target = inside(result)
        if self.factor == 1:
            for rows, channels, tiles in self.conv.chunks(label):
                as_tiles(target)[:, :, :, rows, :, channels] = tiles.relu_()
            return result
        cells = inside(label)[0].reshape(height * width, -1)
        rows = [
            self._kinds([(cells @ group).view(height, width, -1) for group in groups], 0)
            for groups in self.groups.transpose(0, 1)
        ]  # by column group, then kind of row
        places = (
            [slice(0, 1), slice(1, -1), slice(-1, None)] if self.factor > 2 else [slice(0, 1), None, slice(-1, None)]
        )
        grid = target[0].unflatten(1, (width, self.factor)).unflatten(0, (height, self.factor))  # [H, f, W, f, out]
        for i, y in enumerate(places):
            if y is None:
                continue
            for j, x in enumerate(places):
                if x is not None:
                    kind = self._kinds([column[i] for column in rows], 1)[j]
                    grid[:, y, :, x] = kind.add(self.bias).relu_()[:, None, :, None]
        return result

    @staticmethod
    def _kinds(groups: list[Tensor], axis: int) -> list[Tensor]:
        """What the first, the inner and the last row (axis 0) or column (axis 1) of each cell is."""
        first, whole, last = groups
        before, behind = whole - first, whole - last
        length = whole.shape[axis] - 1
        before.narrow(axis, 1, length).add_(first.narrow(axis, 0, length))
        behind.narrow(axis, 0, length).add_(last.narrow(axis, 1, length))
        return [before, whole, behind]


class FastSpade:
    """A norm's scale and shift, and its use.

    Args:
        norm (`Spade`): Source of the weights.
    """

    def __init__(self, norm: Spade):
        gamma, beta = norm.mlp_gamma, norm.mlp_beta
        self.channels = gamma.out_channels
        # The one of `1 + gamma` is in the bias.
        pairs = ((gamma.weight, beta.weight), (gamma.bias + 1, beta.bias))
        if not is_tiled(gamma.weight):
            self.conv = DirectConv(*(torch.cat(pair) for pair in pairs))
            return
        # Scales and shifts of the same channels side by side, to be made at the same time.
        half = MAX_OUTS // 2
        sides = [zip(*(value.split(half) for value in pair), strict=True) for pair in pairs]
        self.conv = TiledConv(*(torch.cat([part for both in side for part in both]) for side in sides))

    def __call__(
        self, x: Tensor, shared: Tensor, moments: tuple[Tensor, Tensor], doubled: bool, slope: float
    ) -> Tensor:
        """Normalised, modulated, rectified features, padded.

        Args:
            x (`torch.Tensor` of shape `(height, width, channels)`): Features, before doubling.
            shared (`torch.Tensor`): Padded activations of this norm.
            moments (`tuple[torch.Tensor, torch.Tensor]`): Mean and inverse deviation of each channel.
            doubled (`bool`): Whether features are to be doubled.
            slope (`float`): Of the rectifier below zero; 1 for none.
        """
        mean, scale = moments
        height, width = shared.shape[1] - 2, shared.shape[2] - 2
        result = pad_scratch("normed", 1, height, width, self.channels)
        target = as_tiles(inside(result))
        if doubled:  # each tile's four rows and columns are two of the features'
            row, column, channel = x.stride()
            shape = (2, 2, 2, 2, 1, height // TILE, width // TILE, self.channels)
            strides = (row, 0, column, 0, 0, 2 * row, 2 * column, channel)
            source = x.as_strided(shape, strides)
        else:
            source = as_tiles(x[None])
        shift = -mean * scale
        for rows, both, tiles in self.conv.chunks(shared):
            channels = slice(both.start // 2, both.stop // 2)
            gamma, beta = tiles.chunk(2, -1)
            part = scratch("part", *gamma.shape)
            features = source[..., rows, :, channels]
            part.view(features.shape).copy_(features)
            torch.addcmul(shift[channels], part, scale[channels], out=part)
            torch.addcmul(beta, part, gamma, out=part)
            part = part if slope == 1 else F.leaky_relu(part, slope, inplace=True)
            target[:, :, :, rows, :, channels] = part
        return result


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation of each channel of `(height, width, channels)`, as instance norm has them."""
    flat = x.flatten(0, 1)
    mean = flat.mean(0)
    variance = flat.square().mean(0).double() - mean.double().square()
    return mean, (variance.clamp(min=0) + 1e-5).rsqrt().float()


class FastSpadeResBlock:
    """`SpadeResBlock` for one item.

    Args:
        block (`SpadeResBlock`): Source of the weights.
        doubled (`bool`): Whether features are doubled before.
    """

    def __init__(self, block: SpadeResBlock, doubled: bool):
        self.doubled = doubled
        self.norm_0, self.norm_1 = FastSpade(block.norm_0), FastSpade(block.norm_1)
        self.conv_0 = fast_conv(block.conv_0.weight, block.conv_0.bias)
        self.conv_1 = fast_conv(block.conv_1.weight, block.conv_1.bias)
        self.norm_s = None if block.norm_s is None else FastSpade(block.norm_s)
        if self.norm_s is not None:
            self.conv_s = block.conv_s.weight[:, :, 0, 0].T.float().contiguous()

    def __call__(self, x: Tensor, shared: list[Tensor], name: str) -> Tensor:
        """Map features `(height, width, in)`, and the activations of each norm, to `(height', width', out)`.

        Args:
            x (`torch.Tensor`): Features; overwritten where their shape stays.
            shared (`list[torch.Tensor]`): Padded activations of each norm.
            name (`str`): Scratch for features of another shape.
        """
        size = [side - 2 for side in shared[0].shape[1:3]]
        moments = _moments(x)
        buffer = self.norm_0(x, shared[0], moments, self.doubled, 0.2)
        y = self.conv_0.into(buffer, scratch("middle", 1, *size, self.conv_0.out_channels))[0]
        skip = x
        if self.norm_s is not None:
            buffer = inside(self.norm_s(x, shared[2], moments, self.doubled, 1))[0]
            skip = scratch(name, *size, self.conv_1.out_channels)
            for row, above in zip(skip, buffer, strict=True):
                torch.mm(above, self.conv_s, out=row)
        elif self.doubled:
            skip = scratch(name, *size, self.conv_1.out_channels)
            enlarge_into(skip[None], x[None])
        buffer = self.norm_1(y, shared[1], _moments(y), False, 0.2)
        return self.conv_1.into(buffer, skip[None], add=True)[0]


class FastGenerator:
    """G for batches of any size, one after the other.

    Args:
        first (`torch.nn.Conv2d`): From the label to features.
        blocks (`list[tuple[SpadeResBlock, bool]]`): Blocks, and whether features are doubled before each.
        last (`torch.nn.Conv2d`): From features to images.
        upscale (`int`): Of the last layer.
    """

    def __init__(self, first: nn.Conv2d, blocks: list[tuple[SpadeResBlock, bool]], last: nn.Conv2d, upscale: int):
        self.first = fast_conv(first.weight, first.bias)
        self.last = fast_conv(last.weight, last.bias)
        self.upscale = upscale
        self.levels: list[tuple[SharedLabel, list[FastSpadeResBlock]]] = []
        factor = 1
        level: list[SpadeResBlock] = []
        for index, (block, doubled) in enumerate(blocks):
            factor *= 2 if doubled else 1
            level.append(block)
            if index + 1 == len(blocks) or blocks[index + 1][1]:
                norms = [norm for each in level for norm in (each.norm_0, each.norm_1, each.norm_s) if norm is not None]
                fast = [FastSpadeResBlock(each, doubled and each is level[0]) for each in level]
                self.levels.append((SharedLabel(norms, factor), fast))
                level = []

    def __call__(self, feature: Tensor) -> Tensor:
        """As `SpadeGenerator`."""
        return torch.cat([self._one(item) for item in feature.float()])

    def _one(self, feature: Tensor) -> Tensor:
        label = pad_scratch("label", 1, *feature.shape[1:], len(feature))
        inside(label).copy_(feature.permute(1, 2, 0)[None])
        x = self.first.into(label, scratch("features", 1, *feature.shape[1:], self.first.out_channels))[0]
        names = itertools.cycle(("other features", "features"))
        name = next(names)
        for shared_label, blocks in self.levels:
            shared = shared_label(label)
            hidden = shared.shape[-1] // sum(2 if block.norm_s is None else 3 for block in blocks)
            parts = list(shared.split(hidden, -1))
            for block in blocks:
                count = 2 if block.norm_s is None else 3
                y = block(x, parts[:count], name)
                # A block that changes the shape has written next to what it read.
                name = name if y is x or y.data_ptr() == x.data_ptr() else next(names)
                x, parts = y, parts[count:]
        buffer = pad_scratch("normed", 1, *x.shape)
        inside(buffer).copy_(F.leaky_relu(x, 0.2, inplace=True)[None])
        image = self.last.into(buffer, scratch("middle", 1, *x.shape[:2], self.last.out_channels))
        return F.pixel_shuffle(image.permute(0, 3, 1, 2), self.upscale).sigmoid()

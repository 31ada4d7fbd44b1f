"""Convolutions with fewer multiplications, for CPUs: equal to the ordinary ones up to rounding, inference only.

Everything here works on one image or volume with the channels last, `(depth, height, width, channels)`; images have
a depth of 1. Inputs come with their zero padding in place, so that the code that computes them writes straight into
it. Large intermediates lie in memory that is kept from call to call (`scratch`): allocating costs more than computing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

# Minimal filtering F(4, 3) (Winograd; Lavin and Gray, arXiv 1509.09308): 4 outputs of 3 taps by 6 multiplications, from
# the values of polynomials at these points and at infinity. In two dimensions 36 multiplications do the work of 144.
# The usual points 0, 1, -1, 2, -2 round four times as coarsely.
_POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))
TILE, PATCH = 4, 6
# What is worked on at a time, for intermediates to stay in the processor's cache: tiles, and channels out.
MAX_CELLS, MAX_OUTS = 256, 256
MIN_CHANNELS = {
    4: 65,
    5: 33,
}  # of kernels of maps and of volumes: from here on, tiles are faster
LANES = 16  # numbers in a cache line: odd widths slow the library's products down
GROUP = 36  # channels transformed at a time
_MEMORY = threading.local()


def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of the inputs (6, 6), kernels (6, 3) and outputs (4, 6) along one axis: interpolation by Lagrange."""
    points = torch.tensor(_POINTS, dtype=torch.float64)
    inputs, kernels, outputs = (torch.zeros(shape, dtype=torch.float64) for shape in ((6, 6), (6, 3), (4, 6)))
    everything = torch.ones(1, dtype=torch.float64)
    for index, point in enumerate(points):
        others = torch.cat([points[:index], points[index + 1 :]])
        product = torch.ones(1, dtype=torch.float64)
        for other in others:
            product = F.pad(product, (1, 0)) - other * F.pad(product, (0, 1))
        inputs[index, :5] = product
        kernels[index] = point ** torch.arange(3) / (point - others).prod()
        outputs[:, index] = point ** torch.arange(4)
        everything = F.pad(everything, (1, 0)) - point * F.pad(everything, (0, 1))
    inputs[5], kernels[5, 2], outputs[3, 5] = everything, 1, 1
    return inputs, kernels, outputs


_INPUT, _KERNEL, _OUTPUT = (torch.kron(matrix, matrix) for matrix in _transforms())  # along both axes


def scratch(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor with any content, in memory that this thread's next `scratch` of that name uses again.

    Args:
        name (`str`): Its purpose; tensors that are needed at the same time have different names.
        *shape (`int`): Its shape.
        dtype (`torch.dtype`): Its type.
    """
    kept, count = _MEMORY.__dict__, math.prod(shape)
    if name not in kept or kept[name].numel() < count or kept[name].dtype != dtype:
        with torch.inference_mode(False):  # else it could not be used outside that mode any more
            kept[name] = torch.empty(count, dtype=dtype)
    return kept[name][:count].view(shape)


def release_scratch() -> None:
    """Free what `scratch` keeps for this thread."""
    _MEMORY.__dict__.clear()


def pad_scratch(
    name: str, depth: int, height: int, width: int, channels: int, margin: tuple[int, int] = (0, 1)
) -> Tensor:
    """Scratch `(depth + 2 a, height + 2 b, width + 2 b, channels)` for a margin of `(a, b)`, which is zero.

    Args:
        name (`str`): See `scratch`.
        depth (`int`): Without margin.
        height (`int`): Without margin.
        width (`int`): Without margin.
        channels (`int`): Channels.
        margin (`tuple[int, int]`): Of the depth, and of height and width.
    """
    a, b = margin
    buffer = scratch(name, depth + 2 * a, height + 2 * b, width + 2 * b, channels)
    for axis, size in enumerate((a, b, b)):
        buffer.narrow(axis, 0, size).zero_()
        buffer.narrow(axis, buffer.shape[axis] - size, size).zero_()
    return buffer


def inside(buffer: Tensor, margin: tuple[int, int] = (0, 1)) -> Tensor:
    """The map without its padding."""
    a, b = margin
    return buffer[a : len(buffer) - a, b:-b, b:-b]


class TiledConv:
    """3x3 convolution of maps, or 3x3x3 of volumes, by tiles of 4x4 results.

    Args:
        weight (`torch.Tensor` of shape `(out, in, 3, 3)` or `(out, in, 3, 3, 3)`): Kernel.
        bias (`torch.Tensor` of shape `(out,)`): Added to the results.
        max_outs (`int`): Channels out at a time.
    """

    def __init__(self, weight: Tensor, bias: Tensor, max_outs: int = MAX_OUTS):
        self.out_channels = len(weight)
        self.parts = []  # channels, weights [kd, 36, in, out], bias
        for start in range(0, len(weight), max_outs):
            part = weight[start : start + max_outs]
            taps = part.view(*part.shape[:2], -1, 9).double().permute(2, 3, 1, 0)  # [kd, 9, in, out]
            values = torch.einsum("pk,dkio->dpio", _KERNEL, taps).float()
            more = -len(part) % LANES
            channels = slice(start, start + len(part))
            self.parts.append(
                (channels, F.pad(values, (0, more)).contiguous(), F.pad(bias[channels].float(), (0, more)))
            )
        self.transforms = (_INPUT.float(), _OUTPUT.float())

    def chunks(self, buffer: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Results by rows of tiles and by channels, each valid until the next.

        Args:
            buffer (`torch.Tensor` of shape `(depth, height + 2, width + 2, in)`): Padded; volumes have a depth of two
                more than the results, too. Height and width are divisible by 4.

        Yields:
            Rows of tiles, channels, and their results `(4, 4, depth, rows, width / 4, out)`, row and column within a
            tile first.
        """
        taps, points, ins, _ = self.parts[0][1].shape
        depth = len(buffer) - taps + 1
        height, width = (side // TILE for side in buffer.shape[1:3])
        step = -(-height // -(-height * depth * width // MAX_CELLS))  # as even as possible
        plane, row, column = buffer.stride()[:3]
        for start in range(0, height, step):
            rows = min(step, height - start)
            cells = rows * width
            shape = (PATCH, PATCH, len(buffer), rows, width, ins)
            strides = (row, column, plane, TILE * row, TILE * column, 1)
            patches = scratch("patches", *shape)
            patches.copy_(buffer.as_strided(shape, strides, buffer.storage_offset() + start * TILE * row))
            values = scratch("values", points, len(buffer) * cells, ins)
            torch.mm(self.transforms[0], patches.view(points, -1), out=values.view(points, -1))
            for channels, weight, bias in self.parts:
                products = scratch("patches", points, depth * cells, len(bias))  # the patches are no longer needed
                torch.bmm(values[:, : depth * cells], weight[0], out=products)
                for tap in range(1, taps):
                    products.baddbmm_(values[:, tap * cells : (tap + depth) * cells], weight[tap])
                results = scratch("results", TILE, TILE, depth, rows, width, len(bias))
                torch.mm(self.transforms[1], products.view(points, -1), out=results.view(TILE * TILE, -1))
                results = results.add_(bias)[..., : channels.stop - channels.start]
                yield slice(start, start + rows), channels, results

    def into(self, buffer: Tensor, target: Tensor, add: bool = False) -> Tensor:
        """Write the whole map, or add it to what is there.

        Args:
            buffer (`torch.Tensor`): See `chunks`.
            target (`torch.Tensor` of shape `(depth, height, width, out)`): Written and returned.
            add (`bool`): Whether to add.
        """
        for rows, channels, tiles in self.chunks(buffer):
            part = as_tiles(target)[:, :, :, rows, :, channels]
            part.add_(tiles) if add else part.copy_(tiles)
        return target


class DirectConv:
    """What `TiledConv` does, by the library's convolution: better for few channels, and for sides it cannot tile.

    Args:
        weight (`torch.Tensor` of shape `(out, in, ...)`): Kernel, square or cubic.
        bias (`torch.Tensor` of shape `(out,)`): Added to the results.
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        weight = weight.float()
        self.flat = weight.ndim == 4
        layout = torch.channels_last if self.flat else torch.channels_last_3d
        self.weight, self.bias = weight.contiguous(memory_format=layout), bias.float()

        self.out_channels = len(weight)

    def _result(self, buffer: Tensor) -> Tensor:
        x = buffer.permute(3, 0, 1, 2)
        if self.flat:
            return F.conv2d(x.permute(1, 0, 2, 3), self.weight, self.bias).permute(0, 2, 3, 1)
        return F.conv3d(x[None], self.weight, self.bias)[0].permute(1, 2, 3, 0)

    def chunks(self, buffer: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Like `TiledConv.chunks`, but all at once."""
        result = self._result(buffer)
        yield slice(0, result.shape[1] // TILE), slice(0, self.out_channels), as_tiles(result)

    def into(self, buffer: Tensor, target: Tensor, add: bool = False) -> Tensor:
        """Like `TiledConv.into`, for any size."""
        return target.add_(self._result(buffer)) if add else target.copy_(self._result(buffer))


def fast_conv(weight: Tensor, bias: Tensor, tiled: bool = True) -> TiledConv | DirectConv:
    """The better of the two for a kernel.

    Args:
        weight (`torch.Tensor` of shape `(out, in, ...)`): Kernel.
        bias (`torch.Tensor` of shape `(out,)`): Added to the results.
        tiled (`bool`): Whether the sides of the maps are divisible by 4.
    """
    return (TiledConv if tiled and is_tiled(weight) else DirectConv)(weight, bias)


def is_tiled(weight: Tensor) -> bool:
    """Whether tiles are faster, in spite of their transforms, for a kernel `(out, in, ...)`."""
    return weight.shape[2] == 3 and min(weight.shape[:2]) >= MIN_CHANNELS[weight.ndim]


def as_tiles(image: Tensor) -> Tensor:
    """A map `(depth, height, width, channels)` seen as `(4, 4, depth, height / 4, width / 4, channels)`."""
    depth, height, width, channels = image.shape
    plane, row, column, channel = image.stride()
    return image.as_strided(
        (TILE, TILE, depth, height // TILE, width // TILE, channels),
        (row, column, plane, TILE * row, TILE * column, channel),
        image.storage_offset(),
    )


class SpectralConv3d:
    """Convolution of a volume with a large cubic kernel, by products of Fourier transforms of overlapping tiles.

    Args:
        weight (`torch.Tensor` of shape `(out, in, k, k, k)`): Kernel, odd.
        bias (`torch.Tensor` of shape `(out,)`): Added to the results.
        depth (`int`): Depth of the volumes.
        tile (`int`): Side of the tiles that are transformed.
    """

    def __init__(self, weight: Tensor, bias: Tensor, depth: int, tile: int = 24):
        self.kernel, self.bias, self.depth, self.tile = weight.shape[-1], bias.float(), depth, tile
        self.length = depth + self.kernel // 2  # wrapping around is harmless where there are zeros
        self.length += self.length % 2
        spectrum = torch.fft.rfftn(weight.float(), (self.length, tile, tile), dim=(2, 3, 4)).conj_physical()
        self.spectrum = spectrum.flatten(2).permute(2, 1, 0).contiguous()  # [frequencies, in, out]

    def __call__(self, volume: Tensor) -> Tensor:
        """Map `(depth, height, width, in)` to `(out, depth, height, width)`, zero-padded."""
        depth, height, width, ins = volume.shape
        margin, step = self.kernel // 2, self.tile - self.kernel + 1
        rows, columns = (-(-side // step) for side in (height, width))
        size = (self.length, self.tile, self.tile)
        half = (*size[:2], self.tile // 2 + 1)
        products = scratch("products", math.prod(half), rows * columns, len(self.bias), dtype=torch.complex64)
        for start in range(0, ins, GROUP):
            count = min(GROUP, ins - start)
            shape = (count, self.length, rows * step + 2 * margin, columns * step + 2 * margin)
            buffer = scratch("patches", *shape).zero_()
            part = buffer[:, :depth, margin : margin + height, margin : margin + width]
            part.copy_(volume[..., start : start + count].permute(3, 0, 1, 2))
            views = buffer.unfold(2, self.tile, step).unfold(3, self.tile, step).permute(2, 3, 0, 1, 4, 5)
            tiles = scratch("values", *views.shape).copy_(views).flatten(0, 1)  # [tiles, in, D, tile, tile]
            spectrum = torch.fft.rfftn(tiles, dim=(2, 3, 4)).flatten(2).permute(2, 0, 1)
            values = scratch("spectrum", *spectrum.shape, dtype=torch.complex64).copy_(spectrum)
            kernel = self.spectrum[:, start : start + count]
            products.baddbmm_(values, kernel) if start else torch.bmm(values, kernel, out=products)
        results = torch.fft.irfftn(products.permute(1, 2, 0).unflatten(2, half), size, dim=(2, 3, 4))
        results = results.roll(margin, 2)[:, :, :depth, :step, :step]  # [tiles, out, D, step, step]
        grid = results.unflatten(0, (rows, columns)).permute(2, 3, 0, 4, 1, 5)
        image = grid.reshape(-1, depth, rows * step, columns * step)[..., :height, :width]
        return image + self.bias[:, None, None, None]

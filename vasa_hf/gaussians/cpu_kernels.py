"""The loops of the CPU rasterizer, compiled by numba: projection, tile lists, blending, and their gradients.

Each kernel works on a part of the Gaussians or of the tiles and releases the GIL, so that threads can share an image.
All numbers are float32. The maths is that of `reference.py`, with less work:

```
project    Gaussian -> one row of `splats` and its box of pixels        empty box: not in the image
bin_tiles  boxes -> for each 16x16 tile the Gaussians that touch it, nearest first
blend      tile -> pixels; row by row within the box; stops when all pixels are opaque
```
Columns of `splats`, and of their gradients: centre x, y; conic xx, xy, yy; opacity; red, green, blue; depth. Gradients
are summed for each pair of Gaussian and tile, and then in the order of the tiles, independent of the number of threads.
"""

import numpy as np
from numba import njit

from vasa_hf.gaussians import scene

TILE = 16
SPLAT_COLUMNS = 10
CAMERA_NUMBERS = 16  # rotation row by row, translation, focal lengths and centre in pixels

_f32 = np.float32
_ZERO, _ONE, _TWO, _HALF = _f32(0), _f32(1), _f32(2), _f32(0.5)
_LOW_PASS, _MARGIN = _f32(scene.LOW_PASS), _f32(0.5 * scene.FRUSTUM_MARGIN)
_ALPHA_MIN, _ALPHA_MAX = _f32(scene.ALPHA_MIN), _f32(scene.ALPHA_MAX)
_TRANSMITTANCE_MIN, _MAX_EXTENT = _f32(scene.TRANSMITTANCE_MIN), _f32(scene.MAX_EXTENT)
#: Reordering and fusing of sums is allowed; infinities and NaN keep their meaning: culling relies on comparisons.
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


def _compile(function):
    """Compile at the first call, without the GIL, and cache the machine code on disk if possible."""
    try:
        return njit(function, nogil=True, cache=True, fastmath=_FASTMATH, error_model="numpy")
    except RuntimeError:  # neither the package's folder nor the user's cache is writable
        return njit(function, nogil=True, fastmath=_FASTMATH, error_model="numpy")


# --- projection -----------------------------------------------------------------------------------------------------


@_compile
def _rotation(quats, i, out):
    """Rotation matrix of a quaternion, row by row; returns the quaternion's length."""
    w, x, y, z = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
    length = max(np.sqrt(w * w + x * x + y * y + z * z), _f32(1e-12))
    w, x, y, z = w / length, x / length, y / length, z / length
    out[0], out[1], out[2] = _ONE - _TWO * (y * y + z * z), _TWO * (x * y - w * z), _TWO * (x * z + w * y)
    out[3], out[4], out[5] = _TWO * (x * y + w * z), _ONE - _TWO * (x * x + z * z), _TWO * (y * z - w * x)
    out[6], out[7], out[8] = _TWO * (x * z - w * y), _TWO * (y * z + w * x), _ONE - _TWO * (x * x + y * y)
    return length


@_compile
def _linearise(x, z, focal, center, pixels):
    """Slope of the ray at which the camera is linearised, and whether it was clamped at the frustum's margin."""
    slope = x / z
    low = -(center + _MARGIN * pixels) / focal
    high = (pixels - center + _MARGIN * pixels) / focal
    return min(max(slope, low), high), slope < low or slope > high


@_compile
def project(
    first, last, means, quats, scales, opacities, colors, probe, camera, width, height, near, splats, boxes, radii
):
    """Project Gaussians `first` to `last`: fill rows of `splats`, `boxes` (x0, x1, y0, y1) and `radii`."""
    r = np.empty(9, np.float32)
    fx, fy, cx, cy = camera[12], camera[13], camera[14], camera[15]
    columns, rows = _f32(width), _f32(height)
    for i in range(first, last):
        radii[i] = _ZERO
        boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3] = 0, 0, 0, 0
        mx, my, mz = means[i, 0], means[i, 1], means[i, 2]
        z = camera[6] * mx + camera[7] * my + camera[8] * mz + camera[11]
        opacity = opacities[i]
        if not (z >= near and opacity >= _ALPHA_MIN):  # also for NaN
            continue
        x = camera[0] * mx + camera[1] * my + camera[2] * mz + camera[9]
        y = camera[3] * mx + camera[4] * my + camera[5] * mz + camera[10]
        u, v = fx * x / z + cx + probe[i, 0], fy * y / z + cy + probe[i, 1]
        slope_x, _ = _linearise(x, z, fx, cx, columns)
        slope_y, _ = _linearise(y, z, fy, cy, rows)
        _rotation(quats, i, r)
        # Rows of J R, then of J R R(q) S: the covariance is the Gram matrix of the two rows.
        px, py = fx / z, fy / z
        a0, a1, a2 = (
            px * (camera[0] - slope_x * camera[6]),
            px * (camera[1] - slope_x * camera[7]),
            px * (camera[2] - slope_x * camera[8]),
        )
        b0, b1, b2 = (
            py * (camera[3] - slope_y * camera[6]),
            py * (camera[4] - slope_y * camera[7]),
            py * (camera[5] - slope_y * camera[8]),
        )
        s0, s1, s2 = scales[i, 0], scales[i, 1], scales[i, 2]
        p0, q0 = s0 * (a0 * r[0] + a1 * r[3] + a2 * r[6]), s0 * (b0 * r[0] + b1 * r[3] + b2 * r[6])
        p1, q1 = s1 * (a0 * r[1] + a1 * r[4] + a2 * r[7]), s1 * (b0 * r[1] + b1 * r[4] + b2 * r[7])
        p2, q2 = s2 * (a0 * r[2] + a1 * r[5] + a2 * r[8]), s2 * (b0 * r[2] + b1 * r[5] + b2 * r[8])
        xx = p0 * p0 + p1 * p1 + p2 * p2
        yy = q0 * q0 + q1 * q1 + q2 * q2
        xy = p0 * q0 + p1 * q1 + p2 * q2
        # The determinant as squared area (Lagrange's identity) plus the low-pass: no cancellation for thin splats.
        n0, n1, n2 = p1 * q2 - p2 * q1, p2 * q0 - p0 * q2, p0 * q1 - p1 * q0
        det = n0 * n0 + n1 * n1 + n2 * n2 + _LOW_PASS * (xx + yy) + _LOW_PASS * _LOW_PASS
        xx, yy = xx + _LOW_PASS, yy + _LOW_PASS
        if not (det < _f32(np.inf)):
            continue
        extent = min(np.sqrt(_TWO * np.log(opacity / _ALPHA_MIN)), _MAX_EXTENT)
        reach_x, reach_y = extent * np.sqrt(xx), extent * np.sqrt(yy)
        rx, ry = np.ceil(reach_x), np.ceil(reach_y)
        if not (u + rx > _ZERO and u - rx < columns and v + ry > _ZERO and v - ry < rows):
            continue
        radii[i] = max(rx, ry)
        # Pixels whose centres lie within reach.
        boxes[i, 0] = int(min(max(np.ceil(u - reach_x - _HALF), _ZERO), columns))
        boxes[i, 1] = int(min(max(np.floor(u + reach_x + _HALF), _ZERO), columns))
        boxes[i, 2] = int(min(max(np.ceil(v - reach_y - _HALF), _ZERO), rows))
        boxes[i, 3] = int(min(max(np.floor(v + reach_y + _HALF), _ZERO), rows))
        splats[i, 0], splats[i, 1] = u, v
        splats[i, 2], splats[i, 3], splats[i, 4] = yy / det, -xy / det, xx / det
        splats[i, 5] = opacity
        splats[i, 6], splats[i, 7], splats[i, 8] = colors[i, 0], colors[i, 1], colors[i, 2]
        splats[i, 9] = z


# --- tile lists -----------------------------------------------------------------------------------------------------


@_compile
def depth_order(splats, radii):
    """Indices of the visible Gaussians, nearest first, equal ones in their order: a radix sort of the floats' bits."""
    bits = splats[:, 9].copy().view(np.uint32)  # positive floats are ordered like their bits
    count = 0
    for i in range(len(radii)):
        count += radii[i] > _ZERO
    order, other = np.empty(count, np.int32), np.empty(count, np.int32)
    count = 0
    for i in range(len(radii)):
        if radii[i] > _ZERO:
            order[count] = i
            count += 1
    starts = np.empty(2048, np.int64)
    for shift in (0, 11, 22):
        starts[:] = 0
        for k in range(count):
            starts[(bits[order[k]] >> shift) & 2047] += 1
        total = 0
        for digit in range(2048):
            total, starts[digit] = total + starts[digit], total
        for k in range(count):
            digit = (bits[order[k]] >> shift) & 2047
            other[starts[digit]] = order[k]
            starts[digit] += 1
        order, other = other, order
    return order


@_compile
def bin_tiles(order, boxes, tiles_x, tiles_y):
    """Lists of the Gaussians that touch each tile: `ids[starts[tile] : starts[tile + 1]]`, nearest first."""
    starts = np.zeros(tiles_x * tiles_y + 1, np.int64)
    for k in range(len(order)):
        i = order[k]
        if boxes[i, 0] < boxes[i, 1] and boxes[i, 2] < boxes[i, 3]:
            for ty in range(boxes[i, 2] // TILE, (boxes[i, 3] - 1) // TILE + 1):
                for tx in range(boxes[i, 0] // TILE, (boxes[i, 1] - 1) // TILE + 1):
                    starts[ty * tiles_x + tx + 1] += 1
    for tile in range(tiles_x * tiles_y):
        starts[tile + 1] += starts[tile]
    cursors = starts[:-1].copy()
    ids = np.empty(starts[-1], np.int32)
    for k in range(len(order)):
        i = order[k]
        if boxes[i, 0] < boxes[i, 1] and boxes[i, 2] < boxes[i, 3]:
            for ty in range(boxes[i, 2] // TILE, (boxes[i, 3] - 1) // TILE + 1):
                for tx in range(boxes[i, 0] // TILE, (boxes[i, 1] - 1) // TILE + 1):
                    tile = ty * tiles_x + tx
                    ids[cursors[tile]] = i
                    cursors[tile] += 1
    return starts, ids


# --- blending -------------------------------------------------------------------------------------------------------
#
# A row of a tile is 16 numbers, one vector of the CPU: rows are processed whole and without branches, and all data of a
# tile is in one array, plane after plane, so that the compiler knows that nothing overlaps.

_PIXELS = TILE * TILE
#: exp(x) on [-0.7, 0] to 2e-9, by interpolation at Chebyshev's nodes.
_EXP = tuple(
    _f32(c)
    for c in np.polynomial.Chebyshev.interpolate(np.exp, 6, domain=[-0.7, 0]).convert(kind=np.polynomial.Polynomial)
)


@_compile
def _exp_minus(x):
    """exp(-x), for x in [0, 5.6] to a few float32 roundings: the polynomial of x / 8, squared three times."""
    y = min(max(x, _ZERO), _f32(6)) * _f32(-0.125)
    p = _EXP[0] + y * (_EXP[1] + y * (_EXP[2] + y * (_EXP[3] + y * (_EXP[4] + y * (_EXP[5] + y * _EXP[6])))))
    p = p * p
    p = p * p
    return p * p


@_compile
def blend(part, parts, splats, boxes, starts, ids, tiles_x, image, rest, last):
    """Blend every `parts`-th tile from `part` on into `image`: red, green, blue, depth, alpha.

    Saved for the gradients: `rest`, the transmittance behind the last Gaussian of a pixel, and `last`, the index of
    that Gaussian in the list of its tile, -1 if there is none.
    """
    height, width = last.shape
    # Planes: transmittance, whether the pixel is open, red, green, blue, depth, last.
    planes = np.empty(7 * _PIXELS, np.float32)
    for tile in range(part, len(starts) - 1, parts):
        left, top = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
        right, bottom = min(left + TILE, width), min(top + TILE, height)
        planes[:_PIXELS], planes[_PIXELS : 6 * _PIXELS], planes[6 * _PIXELS :] = _ONE, _ZERO, -_ONE
        for row in range(bottom - top):
            for column in range(right - left):
                planes[_PIXELS + row * TILE + column] = _ONE
        for k in range(starts[tile], starts[tile + 1]):
            i, place = ids[k], _f32(k - starts[tile])
            u, v, xx, xy, yy = splats[i, 0] - _f32(left) - _HALF, splats[i, 1], splats[i, 2], splats[i, 3], splats[i, 4]
            opacity, red, green, blue, depth = splats[i, 5], splats[i, 6], splats[i, 7], splats[i, 8], splats[i, 9]
            limit = np.log(opacity / _ALPHA_MIN)  # exponent at which alpha is 1 / 255
            for row in range(max(boxes[i, 2], top), min(boxes[i, 3], bottom)):
                dy = v - _f32(row) - _HALF
                in_row, linear = _HALF * yy * dy * dy, xy * dy
                base = np.uint64((row - top) * TILE)
                for column in range(TILE):
                    pixel = base + np.uint64(column)
                    dx = u - _f32(column)
                    exponent = (_HALF * xx * dx + linear) * dx + in_row
                    alpha = min(_ALPHA_MAX, opacity * _exp_minus(exponent))
                    alpha = alpha if (exponent >= _ZERO) & (exponent <= limit) else _ZERO
                    transmittance, is_open = planes[pixel], planes[pixel + np.uint64(_PIXELS)]
                    is_open = is_open if transmittance * (_ONE - alpha) > _TRANSMITTANCE_MIN else _ZERO
                    weight = alpha * transmittance * is_open
                    planes[pixel] = transmittance - weight
                    planes[pixel + np.uint64(_PIXELS)] = is_open
                    planes[pixel + np.uint64(2 * _PIXELS)] += weight * red
                    planes[pixel + np.uint64(3 * _PIXELS)] += weight * green
                    planes[pixel + np.uint64(4 * _PIXELS)] += weight * blue
                    planes[pixel + np.uint64(5 * _PIXELS)] += weight * depth
                    before = planes[pixel + np.uint64(6 * _PIXELS)]
                    planes[pixel + np.uint64(6 * _PIXELS)] = place if weight > _ZERO else before
            if (k & 15) == 15 and planes[_PIXELS : 2 * _PIXELS].sum() == _ZERO:
                break
        for row in range(top, bottom):
            for column in range(left, right):
                pixel = (row - top) * TILE + column - left
                for plane in range(4):
                    image[plane, row, column] = planes[(2 + plane) * _PIXELS + pixel]
                image[4, row, column] = _ONE - planes[pixel]
                rest[row, column] = planes[pixel]
                last[row, column] = planes[6 * _PIXELS + pixel]


# --- gradients ------------------------------------------------------------------------------------------------------


@_compile
def blend_backward(part, parts, splats, boxes, starts, ids, tiles_x, rest, last, d_image, d_pairs):
    """Gradients with respect to the rows of `splats`, one row of `d_pairs` for each entry of `ids`.

    Source: Kerbl et al. 2023, appendix C, back to front: with q = d color + d depth of a Gaussian and B the
    contribution of later ones to the loss, dL/d alpha = T q - B / (1 - alpha).
    """
    height, width = last.shape
    # Planes: transmittance, B, last, gradients of red, green, blue, depth. Sums over each column: gradients of red,
    # green, blue, depth, and the moments 1, x, y, xx, xy, yy of dL/d exponent over the offsets.
    planes, sums = np.empty(7 * _PIXELS, np.float32), np.empty(10 * TILE, np.float32)
    for tile in range(part, len(starts) - 1, parts):
        left, top = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
        right, bottom = min(left + TILE, width), min(top + TILE, height)
        planes[: 2 * _PIXELS], planes[2 * _PIXELS : 3 * _PIXELS], planes[3 * _PIXELS :] = _ZERO, -_ONE, _ZERO
        final = -1
        for row in range(top, bottom):
            for column in range(left, right):
                pixel = (row - top) * TILE + column - left
                planes[pixel] = rest[row, column]
                planes[_PIXELS + pixel] = -d_image[4, row, column] * rest[row, column]
                planes[2 * _PIXELS + pixel] = last[row, column]
                for plane in range(4):
                    planes[(3 + plane) * _PIXELS + pixel] = d_image[plane, row, column]
                final = max(final, int(last[row, column]))
        final += starts[tile]
        d_pairs[final + 1 : starts[tile + 1]] = _ZERO
        for k in range(final, starts[tile] - 1, -1):
            i, place = ids[k], _f32(k - starts[tile])
            u, v, xx, xy, yy = splats[i, 0] - _f32(left) - _HALF, splats[i, 1], splats[i, 2], splats[i, 3], splats[i, 4]
            opacity, red, green, blue, depth = splats[i, 5], splats[i, 6], splats[i, 7], splats[i, 8], splats[i, 9]
            limit = np.log(opacity / _ALPHA_MIN)
            sums[:] = _ZERO
            for row in range(max(boxes[i, 2], top), min(boxes[i, 3], bottom)):
                dy = v - _f32(row) - _HALF
                in_row, linear = _HALF * yy * dy * dy, xy * dy
                base = np.uint64((row - top) * TILE)
                for column in range(TILE):
                    pixel, total = base + np.uint64(column), np.uint64(column)
                    dx = u - _f32(column)
                    exponent = (_HALF * xx * dx + linear) * dx + in_row
                    unclamped = opacity * _exp_minus(exponent)
                    taken = (
                        (exponent >= _ZERO) & (exponent <= limit) & (place <= planes[pixel + np.uint64(2 * _PIXELS)])
                    )
                    alpha = min(_ALPHA_MAX, unclamped) if taken else _ZERO
                    clear = _ONE / (_ONE - alpha)
                    transmittance, behind = planes[pixel] * clear, planes[pixel + np.uint64(_PIXELS)]
                    weight = alpha * transmittance
                    d_red, d_green = planes[pixel + np.uint64(3 * _PIXELS)], planes[pixel + np.uint64(4 * _PIXELS)]
                    d_blue, d_depth = planes[pixel + np.uint64(5 * _PIXELS)], planes[pixel + np.uint64(6 * _PIXELS)]
                    q = red * d_red + green * d_green + blue * d_blue + depth * d_depth
                    d_alpha = transmittance * q - behind * clear
                    d_exponent = -unclamped * d_alpha if taken & (unclamped <= _ALPHA_MAX) else _ZERO
                    planes[pixel] = transmittance
                    planes[pixel + np.uint64(_PIXELS)] = behind + weight * q
                    sums[total] += weight * d_red
                    sums[total + np.uint64(TILE)] += weight * d_green
                    sums[total + np.uint64(2 * TILE)] += weight * d_blue
                    sums[total + np.uint64(3 * TILE)] += weight * d_depth
                    sums[total + np.uint64(4 * TILE)] += d_exponent
                    sums[total + np.uint64(5 * TILE)] += d_exponent * dx
                    sums[total + np.uint64(6 * TILE)] += d_exponent * dy
                    sums[total + np.uint64(7 * TILE)] += d_exponent * dx * dx
                    sums[total + np.uint64(8 * TILE)] += d_exponent * dx * dy
                    sums[total + np.uint64(9 * TILE)] += d_exponent * dy * dy
            for term in range(10):
                total = _ZERO
                for column in range(TILE):
                    total += sums[term * TILE + column]
                sums[term * TILE] = total
            m, m_x, m_y = sums[4 * TILE], sums[5 * TILE], sums[6 * TILE]
            d_pairs[k, 0], d_pairs[k, 1] = xx * m_x + xy * m_y, xy * m_x + yy * m_y
            d_pairs[k, 2], d_pairs[k, 4] = _HALF * sums[7 * TILE], _HALF * sums[9 * TILE]
            d_pairs[k, 3], d_pairs[k, 5] = sums[8 * TILE], -m / opacity
            for channel in range(4):
                d_pairs[k, 6 + channel] = sums[channel * TILE]


@_compile
def sum_pairs(ids, d_pairs, d_splats):
    """Add the gradients of all tiles to those of the Gaussians."""
    for k in range(len(ids)):
        i = ids[k]
        for column in range(SPLAT_COLUMNS):
            d_splats[i, column] += d_pairs[k, column]


@_compile
def project_backward(
    first, last, means, quats, scales, camera, width, height, splats, radii, d_splats, d_means, d_quats, d_scales
):
    """Propagate gradients of rows of `splats` to the means, quaternions and scales of Gaussians `first` to `last`."""
    r, j, spread = np.empty(9, np.float32), np.empty(6, np.float32), np.empty((2, 3), np.float32)
    d_turned = np.empty((3, 3), np.float32)
    fx, fy, cx, cy = camera[12], camera[13], camera[14], camera[15]
    columns, rows = _f32(width), _f32(height)
    for i in range(first, last):
        if not (radii[i] > _ZERO):
            continue
        mx, my, mz = means[i, 0], means[i, 1], means[i, 2]
        x = camera[0] * mx + camera[1] * my + camera[2] * mz + camera[9]
        y = camera[3] * mx + camera[4] * my + camera[5] * mz + camera[10]
        z = camera[6] * mx + camera[7] * my + camera[8] * mz + camera[11]
        slope_x, held_x = _linearise(x, z, fx, cx, columns)
        slope_y, held_y = _linearise(y, z, fy, cy, rows)
        length = _rotation(quats, i, r)
        px, py = fx / z, fy / z
        for c in range(3):  # rows of J R(camera)
            j[c] = px * (camera[c] - slope_x * camera[6 + c])
            j[3 + c] = py * (camera[3 + c] - slope_y * camera[6 + c])
        for c in range(3):
            spread[0, c] = scales[i, c] * (j[0] * r[c] + j[1] * r[3 + c] + j[2] * r[6 + c])
            spread[1, c] = scales[i, c] * (j[3] * r[c] + j[4] * r[3 + c] + j[5] * r[6 + c])
        # Covariance: d cov = -conic (d conic) conic, with the off-diagonal counted once in `d_splats`.
        xx, xy, yy = splats[i, 2], splats[i, 3], splats[i, 4]
        g_xx, g_xy, g_yy = d_splats[i, 2], _HALF * d_splats[i, 3], d_splats[i, 4]
        l_xx, l_xy = xx * g_xx + xy * g_xy, xx * g_xy + xy * g_yy
        l_yx, l_yy = xy * g_xx + yy * g_xy, xy * g_xy + yy * g_yy
        v_xx, v_xy, v_yy = -(l_xx * xx + l_xy * xy), -(l_xx * xy + l_xy * yy), -(l_yx * xy + l_yy * yy)
        d_px, d_sx, d_py, d_sy = _ZERO, _ZERO, _ZERO, _ZERO
        for c in range(3):
            d_scales[i, c] = _ZERO
        for c in range(3):
            d0 = _TWO * (v_xx * spread[0, c] + v_xy * spread[1, c])
            d1 = _TWO * (v_xy * spread[0, c] + v_yy * spread[1, c])
            scale = scales[i, c]
            for a in range(3):
                d_axis = j[a] * d0 + j[3 + a] * d1  # d (R(q) S)[a, c]
                d_scales[i, c] += d_axis * r[3 * a + c]
                d_turned[a, c] = d_axis * scale
                # d (J R)[0, a] and [1, a], propagated to the entries of J.
                along = scale * r[3 * a + c]
                d_px += d0 * along * (camera[a] - slope_x * camera[6 + a])
                d_sx -= d0 * along * px * camera[6 + a]
                d_py += d1 * along * (camera[3 + a] - slope_y * camera[6 + a])
                d_sy -= d1 * along * py * camera[6 + a]
        _quaternion_backward(quats, i, length, d_turned, d_quats)
        # x, y, z in the camera: through the pixel, through fx / z and fy / z, and through the slopes x / z and y / z.
        d_u, d_v = d_splats[i, 0], d_splats[i, 1]
        d_sx = _ZERO if held_x else d_sx
        d_sy = _ZERO if held_y else d_sy
        d_x, d_y = d_u * px + d_sx / z, d_v * py + d_sy / z
        d_z = d_splats[i, 9] - (x * d_x + y * d_y + d_px * px + d_py * py) / z
        for c in range(3):
            d_means[i, c] = camera[c] * d_x + camera[3 + c] * d_y + camera[6 + c] * d_z


@_compile
def _quaternion_backward(quats, i, length, d, d_quats):
    """Gradient of the unnormalised quaternion from that of its rotation matrix."""
    w, x, y, z = quats[i, 0] / length, quats[i, 1] / length, quats[i, 2] / length, quats[i, 3] / length
    d_w = _TWO * (x * (d[2, 1] - d[1, 2]) + y * (d[0, 2] - d[2, 0]) + z * (d[1, 0] - d[0, 1]))
    d_x = _TWO * (
        y * (d[0, 1] + d[1, 0]) + z * (d[0, 2] + d[2, 0]) + w * (d[2, 1] - d[1, 2]) - _TWO * x * (d[1, 1] + d[2, 2])
    )
    d_y = _TWO * (
        x * (d[0, 1] + d[1, 0]) + z * (d[1, 2] + d[2, 1]) + w * (d[0, 2] - d[2, 0]) - _TWO * y * (d[0, 0] + d[2, 2])
    )
    d_z = _TWO * (
        x * (d[0, 2] + d[2, 0]) + y * (d[1, 2] + d[2, 1]) + w * (d[1, 0] - d[0, 1]) - _TWO * z * (d[0, 0] + d[1, 1])
    )
    radial = w * d_w + x * d_x + y * d_y + z * d_z  # along the quaternion, where only its length changes
    d_quats[i, 0], d_quats[i, 1] = (d_w - radial * w) / length, (d_x - radial * x) / length
    d_quats[i, 2], d_quats[i, 3] = (d_y - radial * y) / length, (d_z - radial * z) / length

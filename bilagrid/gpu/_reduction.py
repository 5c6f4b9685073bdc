"""Adding pixels up into the grid: what `splat` and the grid gradient of `slice_apply` share. No atomics; every sum has one order.

Both are sums over pixels of weight times product, where the product of channel ``o * TERMS + k`` is ``grad[o] * term[k]`` for `slice_apply`
and ``term[k]`` alone for `splat`; the terms are the channels of an image and, where ``ones``, a last term of ones.

Coarse: the pixels of one cell of the xy lattice touch the same four columns of the grid, so a strip of the cell's rows is a small matrix product.
Fine: a program owns nodes of the grid and adds up the pixels of their footprint.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from bilagrid.gpu._geometry import coordinate, luma, pixel_range, tent, tent_z, widen
from bilagrid.gpu._launch import (
    RUNTIME,
    compute_dtype,
    constant,
    lattice_arguments,
    launch,
    needs_int64,
    strides,
    triton_dtype,
)
from bilagrid.gpu._regime import choose, dot_precision, is_amd
from bilagrid.lattice import Lattice
from bilagrid.ops._memory import empty_grid

# One warp on NVIDIA, because the product is so small that more of them would repeat the work; two on AMD, where one spills on gfx1100.
# PIXELS changes the order of a sum, so it is not tuned.
CELL_CONFIGS = [triton.Config({"PIXELS": 64}, num_warps=1, num_stages=1)]
CELL_CONFIGS_AMD = [triton.Config({"PIXELS": 64}, num_warps=2, num_stages=1)]

# A warp reads one partial sum at a time, in order.
COMBINE_CONFIGS = [triton.Config({}, num_warps=1)]

# A node a lane, so that what a pixel shares among planes and channels is computed once. Blocks of other sizes add in the same order.
# On AMD, where a warp may have 64 lanes, Triton 3.7 rejects its own layouts with fewer nodes than lanes or more warps than one.
NODE_CONFIGS = [
    triton.Config({"NODES": 32}, num_warps=1),
    triton.Config({"NODES": 64}, num_warps=2),
    triton.Config({"NODES": 128}, num_warps=4),
]
NODE_CONFIGS_AMD = [triton.Config({"NODES": 64}, num_warps=1)]

# Channels and planes of the grid in a matrix product: more of either spills registers.
_CHANNELS = 16
_PLANES = 16

# Accumulators a lane holds in the fine reduction.
_SUMS = 32

# Programs that keep a large GPU busy: strips of rows are no higher than that leaves.
_PROGRAMS = 2000


@triton.jit
def _term(
    image_ptr, stride_image_c, grad_ptr, stride_grad_c, channel,
    C_IN: tl.constexpr, TERMS: tl.constexpr, CHANNELS: tl.constexpr, PRODUCT: tl.constexpr,
    mask, valid, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What pixels add to a channel, before their weight: 0 where not valid, and for channels that are not there."""
    channel = tl.zeros([], tl.int32) + channel
    k = channel % TERMS
    exists = mask & (channel < CHANNELS)
    value = tl.load(image_ptr + widen(k, WIDE) * stride_image_c, mask=exists & (k < C_IN), other=0.0).to(ACC)
    value = tl.where(k == C_IN, 1.0, value)
    if PRODUCT:
        o = channel // TERMS
        value *= tl.load(grad_ptr + widen(o, WIDE) * stride_grad_c, mask=exists, other=0.0).to(ACC)
    return tl.where(valid & (channel < CHANNELS), value, 0.0)


@triton.jit
def _guide(
    guide_ptr, offset, image_ptr, stride_image_c, LUMA: tl.constexpr, mask, ACC: tl.constexpr, WIDE: tl.constexpr
):
    """The guide of some pixels, or the luma of their image."""
    if LUMA:
        one = widen(1, WIDE)
        red = tl.load(image_ptr, mask=mask, other=0.0).to(ACC)
        green = tl.load(image_ptr + one * stride_image_c, mask=mask, other=0.0).to(ACC)
        blue = tl.load(image_ptr + 2 * one * stride_image_c, mask=mask, other=0.0).to(ACC)
        return luma(red, green, blue)
    else:
        return tl.load(guide_ptr + offset, mask=mask, other=0.0).to(ACC)


@triton.jit(do_not_specialize=RUNTIME)
def _reduce_cells_kernel(
    guide_ptr,
    image_ptr,
    grad_ptr,
    partial_ptr,
    stride_guide_n,
    stride_guide_y,
    stride_guide_x,
    stride_image_n,
    stride_image_c,
    stride_image_y,
    stride_image_x,
    stride_grad_n,
    stride_grad_c,
    stride_grad_y,
    stride_grad_x,
    H,
    W,
    Gh,
    Gw,
    top,
    left,
    scale_z,
    scale_y,
    scale_x,
    anchor_z,
    anchor_y,
    anchor_x,
    per_y,
    per_x,
    slack_y,
    slack_x,
    strips,
    strip_rows,
    C_IN: tl.constexpr,
    TERMS: tl.constexpr,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    PLANES: tl.constexpr,
    DZ: tl.constexpr,
    PRODUCT: tl.constexpr,
    LUMA: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """A program owns strip_rows rows of one cell of the xy lattice, for PLANES planes and 16 channels of the grid.

    For each row, R[x corner and plane, channel] = W[x corner and plane, pixels] . X[pixels, channel] as a matrix product; then
    partial[y corner] += w_y R, for the cell's two y nodes.

    guide (N, H, W), image (N, C_IN, H, W), grad (N, CHANNELS / TERMS, H, W);
    partial (N, y cells, x cells, strips, plane tiles, channel tiles, 2 for y, 2 for x, PLANES, 16).
    """
    ACC: tl.constexpr = tl.float32
    PLANE_TILES: tl.constexpr = (D + PLANES - 1) // PLANES
    CHANNEL_TILES: tl.constexpr = (CHANNELS + 15) // 16
    CORNERS: tl.constexpr = 2 * PLANES
    pid = tl.program_id(0)
    cells_y = tl.maximum(Gh - 1, 1)
    cells_x = tl.maximum(Gw - 1, 1)
    tile = pid % (PLANE_TILES * CHANNEL_TILES)
    cell = pid // (PLANE_TILES * CHANNEL_TILES)
    strip = cell % strips
    cell_x = cell // strips % cells_x
    cell_y = cell // (strips * cells_x) % cells_y
    n = widen(cell // (strips * cells_x * cells_y), WIDE)

    first_plane = tile // CHANNEL_TILES * PLANES
    corner = tl.arange(0, CORNERS)[:, None]
    plane = first_plane + corner % PLANES
    is_right = corner >= PLANES
    if CHANNEL_TILES == 1:
        c: tl.constexpr = 0
    else:
        c = tile % CHANNEL_TILES * 16

    first_row, last_row = pixel_range(cell_y, cell_y + 1, per_y, anchor_y, top, slack_y, Gh, H, ACC)
    first_row += strip * strip_rows
    last_row = tl.minimum(first_row + strip_rows, last_row)
    first_x, last_x = pixel_range(cell_x, cell_x + 1, per_x, anchor_x, left, slack_x, Gw, W, ACC)
    image_ptr += n * stride_image_n
    below = tl.zeros([CORNERS, 16], ACC)
    above = tl.zeros([CORNERS, 16], ACC)
    for row in range(first_row, last_row):
        y, y0, _y1 = coordinate(row + top, scale_y, anchor_y, Gh, ACC)
        i = widen(row, WIDE)
        row_sum = tl.zeros([CORNERS, 16], ACC)
        for start in range(first_x, last_x, PIXELS):
            offs_x = start + tl.arange(0, PIXELS)
            x, x0, _x1 = coordinate(offs_x + left, scale_x, anchor_x, Gw, ACC)
            mask = (offs_x < last_x) & (x0 == cell_x) & (y0 == cell_y)
            j = widen(offs_x, WIDE)
            pixel_ptr = image_ptr + i * stride_image_y + j * stride_image_x
            offset = n * stride_guide_n + i * stride_guide_y + j * stride_guide_x
            guide = _guide(guide_ptr, offset, pixel_ptr, stride_image_c, LUMA, mask, ACC, WIDE)
            valid = mask & (guide == guide)
            z, z0, _z1 = coordinate(guide, scale_z, anchor_z, D, ACC)

            weight_x = x - x0
            weight = tl.where(is_right, weight_x[None, :], 1.0 - weight_x[None, :])
            weight = tl.where(valid[None, :], weight, 0.0) * tent_z(z[None, :], z0[None, :], plane, D, DZ)
            g = grad_ptr
            if PRODUCT:
                g += n * stride_grad_n + i * stride_grad_y + j * stride_grad_x
            low = _terms8(pixel_ptr, stride_image_c, g, stride_grad_c, c, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
            high = _terms8(pixel_ptr, stride_image_c, g, stride_grad_c, c + 1, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
            terms = tl.reshape(tl.join(low, high), [PIXELS, 16])
            row_sum = tl.dot(weight, terms, row_sum, input_precision=PRECISION)
        weight_y = y - y0
        below = tl.fma(row_sum, 1.0 - weight_y, below)
        above = tl.fma(row_sum, weight_y, above)
    offs = corner * 16 + tl.arange(0, 16)[None, :]
    partial_ptr += pid.to(tl.int64) * (2 * CORNERS * 16)
    tl.store(partial_ptr + offs, below)
    tl.store(partial_ptr + CORNERS * 16 + offs, above)


@triton.jit
def _terms8(
    image_ptr, stride_image_c, grad_ptr, stride_grad_c, c,
    C_IN: tl.constexpr, TERMS: tl.constexpr, CHANNELS: tl.constexpr, PRODUCT: tl.constexpr,
    mask, valid, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Channels c, c + 2, ..., c + 14 of some pixels: [P, 2, 2, 2], the first of them slowest."""
    a0 = _term(image_ptr, stride_image_c, grad_ptr, stride_grad_c, c, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
    a1 = _term(image_ptr, stride_image_c, grad_ptr, stride_grad_c, c + 2, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
    a2 = _term(image_ptr, stride_image_c, grad_ptr, stride_grad_c, c + 4, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
    a3 = _term(image_ptr, stride_image_c, grad_ptr, stride_grad_c, c + 6, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
    a4 = _term(image_ptr, stride_image_c, grad_ptr, stride_grad_c, c + 8, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
    a5 = _term(image_ptr, stride_image_c, grad_ptr, stride_grad_c, c + 10, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
    a6 = _term(image_ptr, stride_image_c, grad_ptr, stride_grad_c, c + 12, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
    a7 = _term(image_ptr, stride_image_c, grad_ptr, stride_grad_c, c + 14, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
    even = tl.join(tl.join(a0, a4), tl.join(a2, a6))
    odd = tl.join(tl.join(a1, a5), tl.join(a3, a7))
    return tl.join(even, odd)


@triton.jit(do_not_specialize=RUNTIME)
def _combine_cells_kernel(
    partial_ptr,
    out_ptr,
    stride_out_n,
    stride_out_c,
    stride_out_d,
    stride_out_y,
    stride_out_x,
    Gh,
    Gw,
    strips,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    PLANES: tl.constexpr,
):
    """A program owns a node of the xy lattice, for PLANES planes and 16 channels: it adds up the partial sums of the node's up to four cells, strip by strip.

    partial as `_reduce_cells_kernel` leaves it, out (N, CHANNELS, D, Gh, Gw).
    """
    PLANE_TILES: tl.constexpr = (D + PLANES - 1) // PLANES
    CHANNEL_TILES: tl.constexpr = (CHANNELS + 15) // 16
    TILES: tl.constexpr = PLANE_TILES * CHANNEL_TILES
    SIZE: tl.constexpr = PLANES * 16
    pid = tl.program_id(0)
    cells_y = tl.maximum(Gh - 1, 1)
    cells_x = tl.maximum(Gw - 1, 1)
    node_x = pid % Gw
    node_y = pid // Gw % Gh
    tile = pid // (Gw * Gh) % TILES
    n = (pid // (Gw * Gh * TILES)).to(tl.int64)
    offs_z = tl.arange(0, PLANES)[:, None]
    offs_c = tl.arange(0, 16)[None, :]
    acc = tl.zeros([PLANES, 16], tl.float32)
    for corner in range(4):
        cell_y = node_y - corner // 2
        cell_x = node_x - corner % 2
        exists = (cell_y >= 0) & (cell_y < cells_y) & (cell_x >= 0) & (cell_x < cells_x)
        first = ((n * cells_y + cell_y) * cells_x + cell_x) * strips
        for strip in range(tl.where(exists, strips, 0)):
            offs = ((first + strip) * TILES + tile) * (4 * SIZE) + corner * SIZE + offs_z * 16 + offs_c
            acc += tl.load(partial_ptr + offs)
    z = tile // CHANNEL_TILES * PLANES + offs_z
    c = tile % CHANNEL_TILES * 16 + offs_c
    out_ptr += n * stride_out_n + node_y.to(tl.int64) * stride_out_y + node_x.to(tl.int64) * stride_out_x
    out_ptr += z.to(tl.int64) * stride_out_d + c.to(tl.int64) * stride_out_c
    tl.store(out_ptr, acc, mask=(z < D) & (c < CHANNELS))


@triton.jit(do_not_specialize=RUNTIME)
def _reduce_nodes_kernel(
    guide_ptr,
    image_ptr,
    grad_ptr,
    out_ptr,
    stride_guide_n,
    stride_guide_y,
    stride_guide_x,
    stride_image_n,
    stride_image_c,
    stride_image_y,
    stride_image_x,
    stride_grad_n,
    stride_grad_c,
    stride_grad_y,
    stride_grad_x,
    stride_out_n,
    stride_out_c,
    stride_out_d,
    stride_out_y,
    stride_out_x,
    H,
    W,
    Gh,
    Gw,
    top,
    left,
    scale_z,
    scale_y,
    scale_x,
    anchor_z,
    anchor_y,
    anchor_x,
    per_y,
    per_x,
    slack_y,
    slack_x,
    C_IN: tl.constexpr,
    TERMS: tl.constexpr,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    PLANES: tl.constexpr,
    TILE_C: tl.constexpr,
    DZ: tl.constexpr,
    PRODUCT: tl.constexpr,
    LUMA: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    NODES: tl.constexpr,
):
    """A program owns NODES nodes along a row of the grid, for PLANES planes and TILE_C channels: out = sum over pixels w_x w_y w_z product.

    A lane walks its node's footprint, the pixels less than a node away, row by row; footprints overlap, and what is read twice comes from the cache.

    guide (N, H, W), image (N, C_IN, H, W), grad (N, CHANNELS / TERMS, H, W), out (N, CHANNELS, D, Gh, Gw).
    Where out is INTERLEAVED, sums are turned before they are stored, so that lanes write what lies together.
    """
    pid = tl.program_id(0)
    blocks_x = tl.cdiv(Gw, NODES)
    tiles_c = tl.cdiv(CHANNELS, TILE_C)
    tiles_z = tl.cdiv(D, PLANES)
    block_x = pid % blocks_x
    tile_c = pid // blocks_x % tiles_c
    tile_z = pid // (blocks_x * tiles_c) % tiles_z
    node_y = pid // (blocks_x * tiles_c * tiles_z) % Gh
    n = widen(pid // (blocks_x * tiles_c * tiles_z * Gh), WIDE)

    node_x = block_x * NODES + tl.arange(0, NODES)
    plane = (tile_z * PLANES + tl.arange(0, PLANES))[:, None]
    channel = (tile_c * TILE_C + tl.arange(0, TILE_C))[:, None]
    term = channel % TERMS
    mask_c = channel < CHANNELS
    first_row, last_row = pixel_range(node_y - 1, node_y + 1, per_y, anchor_y, top, slack_y, Gh, H, ACC)
    first_x, last_x = pixel_range(node_x - 1, node_x + 1, per_x, anchor_x, left, slack_x, Gw, W, ACC)
    last_x = tl.where(node_x < Gw, last_x, first_x)
    longest = tl.max(last_x - first_x, axis=0)
    image_ptr += n * stride_image_n
    acc = tl.zeros([TILE_C, PLANES, NODES], ACC)
    for row in range(first_row, last_row):
        y, _y0, _y1 = coordinate(row + top, scale_y, anchor_y, Gh, ACC)
        weight_y = tent(y, node_y)
        i = widen(row, WIDE)
        for step in range(longest):
            offs_x = first_x + step
            mask = offs_x < last_x
            j = widen(offs_x, WIDE)
            pixel_ptr = image_ptr + i * stride_image_y + j * stride_image_x
            offset = n * stride_guide_n + i * stride_guide_y + j * stride_guide_x
            guide = _guide(guide_ptr, offset, pixel_ptr, stride_image_c, LUMA, mask, ACC, WIDE)
            x, _x0, _x1 = coordinate(offs_x + left, scale_x, anchor_x, Gw, ACC)
            z, z0, _z1 = coordinate(guide, scale_z, anchor_z, D, ACC)
            weight = tent(x, node_x) * weight_y
            valid = mask & (guide == guide) & (weight > 0)

            exists = mask[None, :] & mask_c
            pointers = pixel_ptr[None, :] + widen(term, WIDE) * stride_image_c
            value = tl.load(pointers, mask=exists & (term < C_IN), other=0.0).to(ACC)
            value = tl.where(term == C_IN, 1.0, value)
            if PRODUCT:
                offset_g = n * stride_grad_n + i * stride_grad_y + j * stride_grad_x
                pointers_g = grad_ptr + offset_g[None, :] + widen(channel // TERMS, WIDE) * stride_grad_c
                value *= tl.load(pointers_g, mask=exists, other=0.0).to(ACC)
            value = tl.where(valid[None, :], value * weight[None, :], 0.0)
            weight_z = tent_z(z[None, :], z0[None, :], plane, D, DZ)
            acc = tl.fma(value[:, None, :], weight_z[None, :, :], acc)
    c = channel[:, :, None]
    z = plane[None, :, :]
    x = node_x[None, None, :]
    if INTERLEAVED:
        acc = tl.permute(acc, (2, 1, 0))
        c = tl.permute(c, (2, 1, 0))
        z = tl.permute(z, (2, 1, 0))
        x = tl.permute(x, (2, 1, 0))
    out_ptr += n * stride_out_n + widen(node_y, WIDE) * stride_out_y + widen(x, WIDE) * stride_out_x
    out_ptr += widen(z, WIDE) * stride_out_d + widen(c, WIDE) * stride_out_c
    tl.store(out_ptr, acc, mask=(c < CHANNELS) & (z < D) & (x < Gw))


def reduce_products(
    guide: torch.Tensor | None,
    image: torch.Tensor,
    grad: torch.Tensor | None,
    lattice: Lattice,
    *,
    ones: bool,
    dz: bool,
    interleaved: bool,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """The sum over pixels of weight times ``grad[o] * term[k]``, or ``term[k]`` without ``grad``: (N, C, D, Gh, Gw), as `empty_grid` lays it out.

    The guide is luma where None. A pixel whose guide is NaN is left out.
    """
    depth, rows, columns = lattice.size
    batch, c_in, height, width = image.shape
    terms = c_in + ones
    channels = terms * (1 if grad is None else grad.shape[1])
    dtype = compute_dtype(guide, image, grad)
    out = empty_grid(image, channels, lattice.size, out_dtype, interleaved=interleaved)
    per_y, slack_y = _pixels_a_node(lattice.scale[1], height + lattice.origin[0])
    per_x, slack_x = _pixels_a_node(lattice.scale[2], width + lattice.origin[1])
    shared = dict(
        guide_ptr=guide,
        image_ptr=image,
        grad_ptr=grad,
        **strides("guide", guide, "nyx"),
        **strides("image", image, "ncyx"),
        **strides("grad", grad, "ncyx"),
        **lattice_arguments(lattice, dtype),
        H=height,
        W=width,
        Gh=rows,
        Gw=columns,
        per_y=constant(per_y, dtype),
        per_x=constant(per_x, dtype),
        slack_y=slack_y,
        slack_x=slack_x,
        C_IN=c_in,
        TERMS=terms,
        CHANNELS=channels,
        D=depth,
        DZ=dz,
        PRODUCT=grad is not None,
        LUMA=guide is None,
        WIDE=needs_int64(guide, image, grad, out),
    )
    if dtype == torch.float64 or choose(channels, lattice.size, width) == "fine":
        planes = min(triton.next_power_of_2(depth), _PLANES)
        tile_c = min(triton.next_power_of_2(channels), max(_SUMS // planes, 1))

        def programs(meta: dict[str, int]) -> int:
            blocks = triton.cdiv(columns, meta["NODES"]) * rows
            return batch * blocks * triton.cdiv(depth, planes) * triton.cdiv(channels, tile_c)

        launch(
            _reduce_nodes_kernel,
            programs,
            NODE_CONFIGS_AMD if is_amd(image.device) else NODE_CONFIGS,
            image,
            out_ptr=out,
            **strides("out", out, "ncdyx"),
            **shared,
            PLANES=planes,
            TILE_C=tile_c,
            INTERLEAVED=interleaved,
            ACC=triton_dtype(dtype),
        )
        return out

    planes = min(max(triton.next_power_of_2(depth), 8), _PLANES)
    tiles = triton.cdiv(depth, planes) * triton.cdiv(channels, _CHANNELS)
    cells = max(rows - 1, 1) * max(columns - 1, 1)
    cell_rows = _longest_cell(lattice.scale[1], lattice.anchor[1], lattice.origin[0], slack_y, rows, height)
    strip_rows = _strip_rows(cells * tiles, cell_rows)
    strips = triton.cdiv(cell_rows, strip_rows)
    partial = torch.empty((batch * cells * strips * tiles, 4 * planes * _CHANNELS), device=image.device)
    launch(
        _reduce_cells_kernel,
        batch * cells * strips * tiles,
        CELL_CONFIGS_AMD if is_amd(image.device) else CELL_CONFIGS,
        image,
        partial_ptr=partial,
        **shared,
        strips=strips,
        strip_rows=strip_rows,
        PLANES=planes,
        PRECISION=dot_precision(image.device, *(t.dtype for t in (guide, image, grad) if t is not None)),
    )
    launch(
        _combine_cells_kernel,
        batch * tiles * rows * columns,
        COMBINE_CONFIGS,
        image,
        partial_ptr=partial,
        out_ptr=out,
        **strides("out", out, "ncdyx"),
        Gh=rows,
        Gw=columns,
        strips=strips,
        CHANNELS=channels,
        D=depth,
        PLANES=planes,
    )
    return out


def _pixels_a_node(scale: float, extent: int) -> tuple[float, int]:
    """Pixels a node, and how many more than one pixel the float32 coordinates of ``extent`` pixels can be off: all of them where the map is no good."""
    if not scale > 0 or not math.isfinite(1 / scale):
        return 0.0, extent
    return 1 / scale, extent >> 21


def _longest_cell(scale: float, anchor: float, origin: int, slack: int, nodes: int, size: int) -> int:
    """Rows, at most, in a cell's `pixel_range`."""
    if nodes <= 2 or not scale > 0:
        return size
    inner = 1 / scale + 4 + 2 * slack
    first = (1 - anchor) / scale - origin + 3 + slack
    last = size - ((nodes - 2 - anchor) / scale - origin) + 2 + slack
    return max(1, min(size, math.ceil(max(inner, first, last))))


def _strip_rows(programs: int, cell_rows: int) -> int:
    """Rows a strip: as many as leave ``_PROGRAMS`` programs to an image, from 4 to 32. The batch has no say: it must not change a sum's order."""
    rows = 32
    while rows > 4 and programs * triton.cdiv(cell_rows, rows) < _PROGRAMS:
        rows //= 2
    return rows

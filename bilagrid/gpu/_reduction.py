"""Adding pixels up into the grid: what `splat` and the grid gradient of `slice_apply` share. No atomics; every sum has one order.

Both are sums over pixels of weight times product, where the product of channel ``o * TERMS + k`` is ``grad[o] * term[k]`` for `slice_apply`
and ``term[k]`` alone for `splat`; the terms are the channels of an image and, where ``ones``, a last term of ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton

from bilagrid.gpu._combine import COMBINE_CONFIGS, _combine_kernel
from bilagrid.gpu._gaussian import taps
from bilagrid.gpu._launch import (
    cdiv,
    constant,
    lattice_arguments,
    launch,
    needs_int64,
    strides,
    triton_dtype,
)
from bilagrid.gpu._reduce_cells import CELL_CONFIGS, _reduce_cells_kernel
from bilagrid.gpu._reduce_columns import COLUMN_CONFIGS, _reduce_columns_kernel
from bilagrid.gpu._reduce_nodes import NODE_CONFIGS, NODE_CONFIGS_WIDE, _reduce_nodes_kernel
from bilagrid.gpu._regime import choose_reduction, is_wide, rounds_to_tf32, schedulers
from bilagrid.lattice import Lattice
from bilagrid.ops._dtypes import compute_type

# Channels and planes of the grid in a matrix product: more of either spills registers.
_CHANNELS = 16
_PLANES = 16

# Channels that a lane of the columns adds up, and planes times channels: more leave fewer than 12 warps to a multiprocessor.
_COLUMN_CHANNELS = 12
_COLUMN_SUMS = 48

# Rows of a strip of columns, at least where there are so many and at most: what comes after them takes as long as six rows.
_COLUMN_ROWS = (8, 128)

# Channels that a lane of the fine reduction adds up: addresses of more spill scalar registers of AMD's.
_NODE_CHANNELS = 4

# Planes times channels of its four sums, a row's left and right and the nodes above and below: more spill registers.
_SUMS = {torch.float32: 32, torch.float64: 8}

# Programs that keep a large GPU busy: strips of rows are no higher than that leaves.
_PROGRAMS = 2000


def reduce_products(
    guide: torch.Tensor | None,
    image: torch.Tensor,
    grad: torch.Tensor | None,
    lattice: Lattice,
    out: torch.Tensor,
    *,
    ones: bool = False,
    dz: bool = False,
    sigma_z: float = 0.0,
) -> torch.Tensor:
    """``out``, (N, C, D, Gh, Gw) as `empty_grid` lays it out, filled with the sum over pixels of weight times ``grad[o] * term[k]``, or ``term[k]``
    without ``grad``; blurred along z by ``sigma_z`` nodes where a program `holds_all_planes`.

    The guide is luma where None. A pixel whose guide is NaN is left out.
    """
    depth, rows, columns = lattice.size
    batch, c_in, height, width = image.shape
    terms = c_in + int(ones)
    channels = out.shape[1]
    dtype = compute_type(guide, image, grad)
    per_y, slack_y = _pixels_a_node(lattice.scale[1], height + lattice.origin[0])
    per_x, slack_x = _pixels_a_node(lattice.scale[2], width + lattice.origin[1])
    along_x = {"per_x": constant(per_x, dtype), "slack_x": slack_x}
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
        slack_y=slack_y,
        C_IN=c_in,
        TERMS=terms,
        CHANNELS=channels,
        D=depth,
        DZ=dz,
        PRODUCT=grad is not None,
        LUMA=guide is None,
        WIDE=needs_int64(guide, image, grad, out),
    )
    if _is_fine(channels, lattice, width, dtype):
        planes = _planes_of_node(depth, dtype)
        tile_c = min(triton.next_power_of_2(channels), _SUMS[dtype] // planes, _NODE_CHANNELS)
        configs = NODE_CONFIGS_WIDE if is_wide(image.device) else NODE_CONFIGS
        strips = batch * cdiv(columns, configs[0].kwargs["CELLS"] - 1) * cdiv(depth, planes) * cdiv(channels, tile_c)
        strip_rows = _rows_of_nodes(strips, rows, schedulers(image.device))
        along_z = taps(sigma_z, depth, dtype)
        radius = along_z.pop("radius")
        launch(
            _reduce_nodes_kernel,
            strips * cdiv(rows, strip_rows),
            configs,
            image,
            out_ptr=out,
            **shared,
            **along_x,
            RADIUS=radius if sigma_z > 0 else None,
            **along_z,
            strip_rows=strip_rows,
            PLANES=planes,
            TILE_C=tile_c,
            INTERLEAVED=out.stride(1) < out.stride(4),
            ACC=triton_dtype(dtype),
        )
        return out

    inner, longest = _cell_rows(lattice, slack_y, height)
    if rounds_to_tf32(image.device, *(t.dtype for t in (guide, image, grad) if t is not None)):
        deal = _deal_cells(lattice.size, channels, longest)
        kernel, configs, more = _reduce_cells_kernel, CELL_CONFIGS, along_x
    else:
        deal, warps = _deal_columns(lattice, width, channels, terms, inner)
        # A wide warp does the work of two.
        warps = max(warps // 2, 1) if is_wide(image.device) else warps
        kernel, configs = _reduce_columns_kernel, COLUMN_CONFIGS[warps]
        more = {"slots": deal.slots, "TILE_C": deal.tile_c}
    strips = cdiv(longest, deal.strip_rows)
    tiles = cdiv(depth, deal.planes) * cdiv(channels, deal.tile_c)
    programs = batch * max(rows - 1, 1) * strips * deal.blocks * tiles
    sums = (programs * deal.slots, cdiv(deal.tile_c, 4) * deal.planes * 16)
    partial = torch.empty(sums, dtype=dtype, device=image.device)
    strip = {"strips": strips, "strip_rows": deal.strip_rows, "PLANES": deal.planes}
    launch(kernel, programs, configs, image, partial_ptr=partial, **shared, **strip, **more)
    launch(
        _combine_kernel,
        batch * tiles * rows * columns,
        COMBINE_CONFIGS,
        image,
        partial_ptr=partial,
        out_ptr=out,
        **strides("out", out, "ncdyx"),
        **lattice_arguments(lattice, dtype, "yx"),
        **along_x,
        **strip,
        **{name: shared[name] for name in ("H", "W", "Gh", "Gw", "per_y", "slack_y", "CHANNELS", "D")},
        slots=deal.slots,
        TILE_C=deal.tile_c,
        COLUMNS=deal.columns,
    )
    return out


def holds_all_planes(guide: torch.Tensor, image: torch.Tensor, lattice: Lattice, out: torch.Tensor) -> bool:
    """Whether a program of `reduce_products` holds all planes of its nodes, so that it can blur along them."""
    dtype, depth = compute_type(guide, image), lattice.size[0]
    return _is_fine(out.shape[1], lattice, image.shape[3], dtype) and depth <= _planes_of_node(depth, dtype)


def _is_fine(channels: int, lattice: Lattice, width: int, dtype: torch.dtype) -> bool:
    return dtype == torch.float64 or choose_reduction(cdiv(channels, _CHANNELS), lattice.size, width) == "fine"


def _planes_of_node(depth: int, dtype: torch.dtype) -> int:
    """How many planes a lane of the fine reduction adds up."""
    return min(triton.next_power_of_2(depth), _PLANES, _SUMS[dtype])


def _rows_of_nodes(strips: int, rows: int, schedulers: int) -> int:
    """Rows of nodes a strip, of ``rows`` in all: as many as take the least time, and of those the most. They are in no sum's order.

    A warp owns a strip and begins it a row of cells early. A scheduler issues from one warp at a time, and waits for memory if it has not two.
    """

    def turns(each: int) -> int:
        return (each + 1) * max(cdiv(strips * cdiv(rows, each), schedulers), 2)

    # More strips than twice the schedulers only begin more rows early; fewer heights to try keep the first call of a tall image short.
    counts = range(1, min(rows, 2 * schedulers) + 1)
    return min((cdiv(rows, count) for count in counts), key=turns)


@dataclass(frozen=True)
class _Deal:
    """How a coarse reduction deals out an image, alike for every batch and device: tiles of the grid's planes and channels, and of each row of cells strips of
    so many rows and blocks of so many columns, with partial sums for so many cells each. No columns: blocks are cells."""

    planes: int
    tile_c: int
    strip_rows: int
    blocks: int
    slots: int = 1
    columns: int = 0


def _deal_cells(size: tuple[int, int, int], channels: int, longest: int) -> _Deal:
    """For `_reduce_cells_kernel`; ``longest`` is the rows of a row of cells, at most."""
    depth, rows, columns = size
    planes = min(max(triton.next_power_of_2(depth), 8), _PLANES)
    blocks = max(columns - 1, 1)
    programs = max(rows - 1, 1) * blocks * cdiv(depth, planes) * cdiv(channels, _CHANNELS)
    return _Deal(planes, _CHANNELS, _strip_rows(programs, longest), blocks)


def _deal_columns(lattice: Lattice, width: int, channels: int, terms: int, inner: int) -> tuple[_Deal, int]:
    """For `_reduce_columns_kernel`, and how many warps of 32 lanes it takes; ``inner`` is the rows of an inner row of cells."""
    depth, rows, cells = lattice.size
    whole = terms if terms <= _COLUMN_CHANNELS else 1  # outputs of an affine map stay whole
    groups = channels // whole
    tile_c = whole * cdiv(groups, cdiv(groups, _COLUMN_CHANNELS // whole))
    a_lane = 1 << (_COLUMN_SUMS // tile_c).bit_length() - 1
    planes = min(triton.next_power_of_2(depth), 4 * a_lane)
    columns = COLUMN_CONFIGS[1][0].kwargs["COLUMNS"]
    blocks = cdiv(width, columns)
    slots = min(math.floor((columns - 1) * lattice.scale[2] + 0.5) + 2, max(cells - 1, 1))
    warps = cdiv(planes, a_lane)
    all_warps = warps * max(rows - 1, 1) * blocks * cdiv(depth, planes) * cdiv(channels, tile_c)
    least, most = _COLUMN_ROWS
    parts = cdiv(inner, most)
    while all_warps * parts < _PROGRAMS and cdiv(inner, parts + 1) >= least:
        parts += 1
    return _Deal(planes, tile_c, cdiv(inner, parts), blocks, slots, columns), warps


def _pixels_a_node(scale: float, extent: int) -> tuple[float, int]:
    """Pixels a node, and how many more than one pixel the float32 coordinates of ``extent`` pixels can be off: all of them where the map is no good."""
    if not scale > 0 or not math.isfinite(1 / scale):
        return 0.0, extent
    return 1 / scale, extent >> 21


def _cell_rows(lattice: Lattice, slack: int, size: int) -> tuple[int, int]:
    """Rows, at most, in an inner row of cells, and in any."""
    scale, anchor, origin, nodes = lattice.scale[1], lattice.anchor[1], lattice.origin[0], lattice.size[1]
    if nodes <= 2 or not scale > 0:
        return size, size
    inner = 1 / scale + 3 + 2 * slack
    first = (1 - anchor) / scale - origin + 2 + slack
    last = size - ((nodes - 2 - anchor) / scale - origin) + 2 + slack
    return _rows(inner, size), _rows(max(inner, first, last), size)


def _rows(count: float, size: int) -> int:
    return max(1, min(size, math.ceil(count)))


def _strip_rows(programs: int, count: int) -> int:
    """Rows a strip, of the ``count`` rows of a cell: as many as leave ``_PROGRAMS`` programs to an image, from 4 to 32.

    The batch has no say: it must not change a sum's order.
    """
    rows = 32
    while rows > 4 and programs * cdiv(count, rows) < _PROGRAMS:
        rows //= 2
    return rows

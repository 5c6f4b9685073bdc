"""Adding pixels up into the grid: what `splat` and the grid gradient of `slice_apply` share. No atomics; every sum has one order.

Both are sums over pixels of weight times product, where the product of channel ``o * TERMS + k`` is ``grad[o] * term[k]`` for `slice_apply`
and ``term[k]`` alone for `splat`; the terms are the channels of an image and, where ``ones``, a last term of ones.
"""

from __future__ import annotations

import math

import torch
import triton

from bilagrid.gpu._launch import (
    cdiv,
    compute_dtype,
    constant,
    lattice_arguments,
    launch,
    needs_int64,
    strides,
    triton_dtype,
)
from bilagrid.gpu._reduce_cells import (
    CELL_CONFIGS,
    CELL_CONFIGS_AMD,
    COMBINE_CONFIGS,
    _combine_cells_kernel,
    _reduce_cells_kernel,
)
from bilagrid.gpu._reduce_nodes import NODE_CONFIGS, NODE_CONFIGS_WIDE, _reduce_nodes_kernel
from bilagrid.gpu._regime import choose, dot_precision, is_amd, is_wide
from bilagrid.lattice import Lattice
from bilagrid.ops._memory import empty_grid

# Channels and planes of the grid in a matrix product: more of either spills registers.
_CHANNELS = 16
_PLANES = 16

# Planes times channels that a lane of the fine reduction adds up at each of a cell's four nodes: more spill registers.
_SUMS = {torch.float32: 32, torch.float64: 8}

# Programs that keep a large GPU busy: strips of rows are no higher than that leaves.
_PROGRAMS = 2000


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
    terms = c_in + int(ones)
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
        planes = min(triton.next_power_of_2(depth), _PLANES, _SUMS[dtype])
        tile_c = min(triton.next_power_of_2(channels), _SUMS[dtype] // planes)

        configs = NODE_CONFIGS_WIDE if is_wide(image.device) else NODE_CONFIGS
        blocks = cdiv(columns, configs[0].kwargs["CELLS"] - 1) * cdiv(depth, planes) * cdiv(channels, tile_c)
        strip_rows = _strip_rows(blocks, rows)
        launch(
            _reduce_nodes_kernel,
            batch * blocks * cdiv(rows, strip_rows),
            configs,
            image,
            out_ptr=out,
            **shared,
            strip_rows=strip_rows,
            PLANES=planes,
            TILE_C=tile_c,
            INTERLEAVED=interleaved,
            ACC=triton_dtype(dtype),
        )
        return out

    planes = min(max(triton.next_power_of_2(depth), 8), _PLANES)
    tiles = cdiv(depth, planes) * cdiv(channels, _CHANNELS)
    cells = max(rows - 1, 1) * max(columns - 1, 1)
    cell_rows = _longest_cell(lattice.scale[1], lattice.anchor[1], lattice.origin[0], slack_y, rows, height)
    strip_rows = _strip_rows(cells * tiles, cell_rows)
    strips = cdiv(cell_rows, strip_rows)
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


def _strip_rows(programs: int, count: int) -> int:
    """Rows a strip, of the ``count`` rows of a cell or of nodes: as many as leave ``_PROGRAMS`` programs to an image, from 4 to 32.

    The batch has no say: it must not change a sum's order.
    """
    rows = 32
    while rows > 4 and programs * cdiv(count, rows) < _PROGRAMS:
        rows //= 2
    return rows

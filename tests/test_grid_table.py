"""Tables of the grid that pixels read: `row_table` for coarse grids, `node_table` for fine ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from bilagrid.gpu import _grid_table
from bilagrid.lattice import Lattice
from tests.helpers import interpreted, uniform


@given(
    kind=st.sampled_from(["cell_centered", "half_pixel", "corner_aligned"]),
    nodes=st.integers(1, 3000000),
    pixels=st.integers(1, 20000000),
    data=st.data(),
)
def test_the_nodes_of_a_table_are_those_that_its_pixels_read(
    kind: str, nodes: int, pixels: int, data: st.DataObject
) -> None:
    """In the kernels' float32, at the ends of a tile; and few more than these."""
    origin = data.draw(st.integers(0, pixels - 1), "origin")
    count = data.draw(st.integers(1, pixels - origin), "count")
    lattice = getattr(Lattice, kind)((1, 1, nodes), (1, pixels))
    scale, anchor = np.float32(lattice.scale[2]), np.float32(lattice.anchor[2])
    ends = np.array([origin, origin + count - 1], np.float32) * scale + anchor
    lower, upper = np.minimum(np.floor(np.clip(ends, 0, nodes - 1)), max(nodes - 2, 0))
    first, many = _grid_table._nodes(origin, count, lattice.scale[2], lattice.anchor[2], nodes)
    assert 0 <= first <= lower
    assert upper + 2 <= first + many <= max(nodes, 2)
    assert many <= count * scale + 8 + nodes // 2**19


@interpreted
def test_the_row_table_is_the_same_whatever_the_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips within a cell and strips of many; planes and columns that fill no warp, terms that fill no quad."""
    lattice = Lattice.cell_centered((3, 7, 6), (37, 50))
    grid = uniform(2, 25, 3, 7, 6)
    found = []
    for rows in (1, 5, 32):
        monkeypatch.setattr(_grid_table, "_STRIP_ROWS", (rows, rows))
        found.append(_grid_table.row_table(grid, lattice, 37, 5, 5, torch.float32, None))
    y = (torch.arange(37) * lattice.scale[1] + lattice.offset[1]).clamp(0, 6)
    tent = (1 - (y[:, None] - torch.arange(7)).abs()).clamp(min=0)
    wanted = torch.einsum("iy,nokdyx->nixdok", tent, grid.unflatten(1, (5, 5)))
    torch.testing.assert_close(found[0], torch.nn.functional.pad(wanted, (0, 3)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


@interpreted
@pytest.mark.parametrize(
    ("size", "origin", "rows", "columns"),
    [
        ((3, 17, 18), (0, 0), (0, 17), (0, 18)),
        ((3, 17, 18), (8, 6), (1, 15), (1, 11)),
        ((1, 1, 1), (0, 0), (0, 1), (0, 1)),
    ],
    ids=["whole", "tile", "one node"],
)
def test_the_node_table_holds_what_the_image_reads(
    size: tuple[int, int, int], origin: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    """The grids of an index, bit for bit, with what is not finite; planes and columns that fill no warp, terms that fill no quad."""
    lattice = Lattice.half_pixel(size, (48, 54)).crop(*origin)
    bank = uniform(3, 10, *size).half()
    bank[1, 3, 0, 0, 0], bank[1, 4, 0, 0, 0] = float("inf"), float("nan")
    height, width = (48, 54) if origin == (0, 0) else (30, 20)
    index = torch.tensor([1, 3, 0])
    table, top, left = _grid_table.node_table(bank, lattice, (height, width), 2, 5, torch.float32, index)
    assert (top, left) == (rows[0], columns[0])
    chosen = bank[[1, 0, 0], :, :, rows[0] : rows[1], columns[0] : columns[1]].float()
    wanted = torch.nn.functional.pad(chosen.unflatten(1, (2, 5)).permute(0, 4, 5, 3, 1, 2), (0, 3))
    wanted[1] = float("nan")
    twice = [max(extent, 2) for extent in wanted.shape[1:4]]
    torch.testing.assert_close(table, wanted.expand(3, *twice, 2, 8), rtol=0, atol=0, equal_nan=True)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("depth", [1, 4, 8, 16])
def test_columns_of_the_node_table_start_in_different_banks(depth: int, dtype: torch.dtype) -> None:
    lattice = Lattice.cell_centered((depth, 3, 4), (24, 32))
    grid = uniform(1, 12, *lattice.size)
    table, _top, _left = _grid_table.node_table(grid, lattice, (24, 32), 3, 4, dtype, None)
    assert table.stride(2) * dtype.itemsize % 128
    assert table.stride(2) - table[0, 0, 0].numel() in (0, 4)

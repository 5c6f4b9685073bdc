"""Rows of measurements that nobody made, for the tests of `perf`."""

from __future__ import annotations

from dataclasses import replace

from perf import cases, costs, rows, timing
from perf.cases import Case

MACHINE = rows.Machine("a CPU", "3", "2", "", "0", "numba", 10e9, 100e9)


def a_row(**changes: object) -> rows.Row:
    case = Case("slice_apply", "forward", "random", "float32", (1080, 1920), "16x16x8")
    sizes = costs.Sizes(pixels=1080 * 1920, channels=3, item=4, nodes=2048, grid_item=4)
    problem = cases.Problem({}, lambda t: t["none"], lambda t: t["none"], sizes, (8, 16, 16))
    row = rows.row_of(case, problem, MACHINE, rows.OURS, timing.Times(0.02, 0.019, 0.022, 5))
    return replace(row, **changes)

"""Every kernel compiles for every architecture served, without spills and within its shared memory. No GPU is needed.

An interpreted kernel cannot be compiled in the same process, so the compiler runs in another one, which never saw ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.processes import ROOT, python

pytest.importorskip("triton")

TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx1100")

# One architecture without tf32 and one for the other compiler; the others follow in the slow test.
QUICK = ("sm_75", "gfx1100")
# In these all tilings are compiled too, beside the chosen configurations.
TILED = ("sm_90", "sm_80", "gfx942")


def compile_for(target: str, *options: str) -> list[dict[str, Any]]:
    return json.loads(python("-m", "perf.static", "--json", "--target", target, *options))


def assert_fits(rows: list[dict[str, Any]]) -> None:
    assert rows, "nothing was compiled"
    spilled = [row for row in rows if row["spills"]]
    assert not spilled, f"registers spill: {spilled}"
    too_large = [row for row in rows if row["shared_bytes"] > row["shared_limit"]]
    assert not too_large, f"more shared memory than there is: {too_large}"
    atomic = [row for row in rows if row["atomics"]]
    assert not atomic, f"atomics: {atomic}"
    forgotten = [row for row in rows if row["forgotten"]]
    assert not forgotten, f"loops forget what they carry: {forgotten}"


@pytest.fixture(scope="module")
def sm_90() -> list[dict[str, Any]]:
    return compile_for("sm_90")


def test_every_configuration_fits_sm_90(sm_90: list[dict[str, Any]]) -> None:
    assert_fits(sm_90)
    kernels = {row["kernel"] for row in sm_90}
    written = {
        line.split()[1].partition("(")[0]
        for file in (ROOT / "bilagrid" / "gpu").glob("*.py")
        for line in file.read_text().splitlines()
        if line.startswith("def ") and line.split()[1].partition("(")[0].endswith("_kernel")
    }
    assert kernels == written, "perf.static must compile every kernel there is"


@pytest.mark.parametrize(
    ("use", "kernel", "precision", "most", "load_bits"),
    [
        ("guide", "_slice_apply_kernel", "highest", 190, 128),
        ("guide", "_slice_apply_bwd_pixels_kernel", "highest", 300, 128),
        ("guide", "_reduce_columns_kernel", "highest", 380, 32),
        ("guide", "_reduce_cells_kernel", "high", 190, 32),
        ("fine", "_slice_apply_kernel", "highest", 270, 128),
        ("fine", "_slice_apply_bwd_pixels_kernel", "highest", 380, 128),
    ],
)
def test_instructions_a_pixel_stay_within_budget(
    sm_90: list[dict[str, Any]], use: str, kernel: str, precision: str, most: float, load_bits: int
) -> None:
    """`slice_apply` and its gradients in float32, a guide given, on a grid of 16 x 16 x 8 x 12, and on one of cells of 8 pixels."""
    wanted = {"case": f"slice_apply, 3x4, {use}", "dtype": "float32", "kernel": kernel, "precision": precision}
    rows = [row for row in sm_90 if wanted.items() <= row.items()]
    assert rows
    for row in rows:
        assert row["unit"] == "pixel"
        assert row["instructions_per_pixel"] <= most
        assert row["load_bits"] == load_bits
        assert row["spills"] == 0


def test_a_gray_filter_stays_within_its_budget(sm_90: list[dict[str, Any]]) -> None:
    """Sigma 8 and 0.1, in float32: whatever its splat does for a pixel, strips, rows and idle lanes included; its blur, for a node; its slice."""
    most = {"_reduce_nodes_kernel": 240, "_blur_pair_kernel": 80, "_slice_direct_kernel": 115}
    found = {
        row["kernel"]: row["instructions_per_pixel"]
        for row in sm_90
        if row["case"] == "filter, C=2 homogeneous, D=16" and row["dtype"] == "float32" and row["kernel"] in most
    }
    assert found.keys() == most.keys()
    assert all(found[kernel] <= most[kernel] for kernel in most)


@pytest.mark.parametrize("target", QUICK)
def test_chosen_configurations_fit(target: str) -> None:
    # AMD's compiler gives machine code as text, which is read along here; NVIDIA's is taken apart for sm_90 alone.
    assert_fits(compile_for(target, "--chosen", *(["--fits"] if target.startswith("sm") else [])))


@pytest.mark.slow
@pytest.mark.parametrize("target", [name for name in TARGETS if name not in (*QUICK, *TILED, "sm_90")])
def test_chosen_configurations_fit_elsewhere(target: str) -> None:
    assert_fits(compile_for(target, "--chosen", "--fits"))


@pytest.mark.slow
@pytest.mark.parametrize("target", TILED)
def test_products_stay_in_registers_for_any_planes_and_channels(target: str) -> None:
    rows = compile_for(target, "--chosen", "--tiles", "--fits")
    assert_fits(rows)
    assert {row["case"] for row in rows} >= {f"splat and slice, C={c}, D={d}, coarse" for c in (1, 32) for d in (4, 64)}

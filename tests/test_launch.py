"""How the Triton launchers choose and launch: addressing, regimes, precision, and configurations. No GPU is needed."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

import bilagrid
from bilagrid.gpu import (
    _configs,
    _gather,
    _grid_table,
    _launch,
    _points,
    _points_reduction,
    _reduction,
    _regime,
    blur,
    curves,
    slice,
    slice_apply,
    slice_points,
    splat,
    total_variation,
)
from bilagrid.lattice import Lattice
from bilagrid.ops import _backend
from perf.uses import USES as USES_OF_PERF
from tests.helpers import COARSE, COARSE_TILES, FINE_BLOCKS, Problem, interpreted, uniform


def meta(*shape: int, stride: tuple[int, ...] | None = None) -> torch.Tensor:
    if stride is not None:
        return torch.empty_strided(shape, stride, device="meta")
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize(
    ("tensor", "wide"),
    [
        (meta(1, 3, 20000, 20000), False),
        (meta(2, 3, 20000, 20000), True),
        (meta(1, 3, 4, 4, stride=(0, 2**30, 4, 1)), True),
        (meta(2**33, 1, 1, 1).expand(2**33, 1, 1, 1)[:1], False),
        (meta(1, 1, 1, 1).expand(2**40, 1, 1, 1), False),
        (meta(0, 2**20, 2**20, 2), False),
    ],
)
def test_int64_addressing_where_an_offset_needs_it(tensor: torch.Tensor, wide: bool) -> None:
    assert _launch.needs_int64(None, tensor) is wide


def test_the_last_offset_decides_less_a_block() -> None:
    assert not _launch.needs_int64(meta(2**31 - _launch.LARGEST_BLOCK))
    assert _launch.needs_int64(meta(2**31 - _launch.LARGEST_BLOCK + 1))


def test_large_images_are_addressed_with_int64() -> None:
    lattice = Lattice.cell_centered((8, 16, 16), (40000, 40000))
    image, guide = meta(1, 3, 40000, 40000), meta(1, 40000, 40000)
    with _launch.record() as launches:
        slice_apply.slice_apply(meta(1, 12, 8, 16, 16), guide, image, lattice, offset=True)
        slice_apply.slice_apply_bwd_grid(guide, image, image, lattice, offset=True)
    wide = {launch.kernel.__name__ for launch in launches if launch.arguments.get("WIDE")}
    assert wide >= {"_slice_apply_kernel", "_reduce_columns_kernel"}


def test_the_regime_changes_where_a_row_of_the_grid_outgrows_two_rows_of_theuniform() -> None:
    assert _regime.choose(3, 4, (8, 16, 16), 768) == "coarse"
    assert _regime.choose(3, 4, (8, 16, 16), 767) == "fine"
    assert _regime.choose(1, 64, (8, 16, 16), 768) == "coarse"
    assert _regime.choose(64, 65, (8, 16, 16), 1920) == "fine"
    with _regime.override(regime="fine"):
        assert _regime.choose(1, 1, (1, 1, 1), 4096) == "fine"
    assert _regime.choose(1, 1, (1, 1, 1), 4096) == "coarse"


def test_reductions_are_coarse_where_cells_are_wide_and_partial_sums_few() -> None:
    assert _regime.choose_reduction(1, (8, 16, 16), 384) == "coarse"
    assert _regime.choose_reduction(1, (8, 16, 16), 383) == "fine"
    assert _regime.choose_reduction(4, (16, 16, 16), 1024) == "coarse"
    assert _regime.choose_reduction(4, (16, 16, 16), 1023) == "fine"
    with _regime.override(regime="fine"):
        assert _regime.choose_reduction(1, (1, 1, 1), 4096) == "fine"


@pytest.mark.parametrize(
    ("problem", "regime", "channels"),
    [(COARSE, "coarse", 12), (COARSE_TILES, "coarse", 17), (FINE_BLOCKS, "fine", 1)],
    ids=["coarse", "coarse tiles", "fine blocks"],
)
def test_the_examples_take_the_way_they_are_named_for(problem: Problem, regime: str, channels: int) -> None:
    assert _regime.choose(1, channels, problem.size, problem.image_size[1]) == regime
    assert _regime.choose_reduction(-(-channels // 16), problem.size, problem.image_size[1]) == regime


@pytest.mark.parametrize(
    ("channels", "kernels"), [(4, ["_slice_direct_kernel"]), (5, ["_copy_nodes_kernel", "_slice_kernel"])]
)
def test_fine_grids_of_few_channels_are_read_as_they_lie(channels: int, kernels: list[str]) -> None:
    lattice = Lattice.cell_centered((8, 135, 240), (1080, 1920))
    with _launch.record() as launches:
        slice.slice(meta(1, channels, *lattice.size), meta(1, 1080, 1920), lattice)
    assert [launch.kernel.__name__ for launch in launches] == kernels


@pytest.mark.parametrize(("size", "free"), [((8, 16, 16), set()), ((16, 135, 240), {"strip_rows"})])
def test_the_batch_changes_only_the_number_of_programs(size: tuple[int, int, int], free: set[str]) -> None:
    """And in the fine reduction the rows of a strip, which have no say in the order of a sum."""
    lattice = Lattice.cell_centered(size, (1080, 1920))

    def launched(batch: int) -> list[_launch.Launch]:
        with _launch.record() as launches:
            splat.splat(meta(batch, 3, 1080, 1920), meta(batch, 1080, 1920), lattice)
        return launches

    assert launched(1)
    for one, many in zip(launched(1), launched(64), strict=True):
        assert one.kernel is many.kernel
        assert one.programs < many.programs <= 64 * one.programs < 2**31
        assert free or many.programs == 64 * one.programs
        different = {
            name
            for name, value in one.arguments.items()
            if not isinstance(value, torch.Tensor) and value != many.arguments[name]
        }
        assert different <= {"WIDE"} | free


@pytest.mark.parametrize(("size", "launches"), [((8, 16, 32), 1), ((8, 16, 33), 2), ((1, 1, 4097), 3)])
def test_blur_takes_one_launch_where_a_channel_fits_a_program(size: tuple[int, int, int], launches: int) -> None:
    with _launch.record() as recorded:
        blur.blur(meta(2, 12, *size), (1.0, 1.0, 1.0))
    assert len(recorded) == launches


def test_a_gray_filter_reads_its_image_twice_and_moves_its_grid_four_times() -> None:
    """In three launches, of which the splat blurs along z before it writes."""
    image = meta(1, 1, 2160, 3840)
    with _backend.rehearsal(), _launch.record() as launches:
        bilagrid.bilateral_filter(image, sigma_space=8, sigma_color=0.1, guide_range=(0, 1))
    moved = [
        {t.untyped_storage()._cdata: t.nbytes for t in launch.arguments.values() if isinstance(t, torch.Tensor)}
        for launch in launches
    ]
    grid = max(moved[1].values())
    assert [sum(sizes.values()) for sizes in moved] == [image.nbytes + grid, 2 * grid, 2 * image.nbytes + grid]
    assert sum(sum(sizes.values()) for sizes in moved) / image.numel() < 22


@pytest.mark.parametrize(
    ("architecture", "has_tf32"), [("sm_75", False), ("sm_80", True), ("sm_120", True), ("gfx942", False)]
)
def test_precision_obeys_torch(architecture: str, has_tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    with _regime.override(architecture=architecture):
        monkeypatch.setattr(_regime, "_allows_tf32", lambda: False)
        assert not _regime.rounds_to_tf32(device, torch.float32, torch.float16)
        assert _regime.rounds_to_tf32(device, torch.float16, torch.bfloat16) is has_tf32
        monkeypatch.setattr(_regime, "_allows_tf32", lambda: True)
        assert _regime.rounds_to_tf32(device, torch.float32) is has_tf32


@pytest.mark.parametrize(("rounded", "kernel"), [(False, "_reduce_columns_kernel"), (True, "_reduce_cells_kernel")])
def test_the_coarse_reduction_is_a_product_where_tf32_will_do(
    rounded: bool, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_regime, "_allows_tf32", lambda: rounded)
    with _regime.override(architecture="sm_90"), _launch.record() as launches:
        splat.splat(meta(1, 3, 1080, 1920), meta(1, 1080, 1920), Lattice.cell_centered((8, 16, 16), (1080, 1920)))
    assert [launch.kernel.__name__ for launch in launches] == [kernel, "_combine_kernel"]


@pytest.mark.parametrize(("channels", "depth"), [(1, 64), (3, 16), (12, 8), (32, 4)])
def test_the_columns_are_dealt_out_alike_on_every_architecture(channels: int, depth: int) -> None:
    """But for the number of warps, which changes no sum's order."""
    lattice = Lattice.cell_centered((depth, 16, 16), (1080, 1920))
    dealt = []
    for architecture in ("sm_75", "sm_90", "gfx942", "gfx1100"):
        with _regime.override(architecture=architecture, regime="coarse"), _launch.record() as launches:
            splat.splat(meta(1, channels, 1080, 1920), meta(1, 1080, 1920), lattice)
        columns, _ = launches
        assert columns.kernel.__name__ == "_reduce_columns_kernel"
        constants = {name: value for name, value in columns.arguments.items() if not isinstance(value, torch.Tensor)}
        dealt.append((constants, columns.config.kwargs, columns.programs))
    assert all(each == dealt[0] for each in dealt)


def test_tf32_follows_the_older_setting() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert not _regime._allows_tf32()
        torch.set_float32_matmul_precision("high")
        assert _regime._allows_tf32()
    finally:
        torch.set_float32_matmul_precision(before)


# Rows of more pixels and of more nodes than the shortest block has.
LATTICE = Lattice.cell_centered((3, 2, 40), (2, 140))
AFFINE = (uniform(1, 12, 3, 2, 40), uniform(1, 2, 140), uniform(1, 3, 2, 140))
CURVES = tuple(uniform(*shape) for shape in ((2, 3), (2,), (2, 4), (2, 4), (2,), ()))
POINTS = 3 * uniform(1, 2, 150, 3)
USES: dict[str, tuple[list, str, Callable[[], torch.Tensor]]] = {
    "slice coarse": (slice.PIXEL_CONFIGS, "coarse", lambda: slice.slice(AFFINE[0], AFFINE[1], LATTICE)),
    "slice fine": (slice.PIXEL_CONFIGS, "fine", lambda: slice.slice(AFFINE[0], AFFINE[1], LATTICE)),
    "slice as it lies": (
        slice.PIXEL_CONFIGS,
        "fine",
        lambda: slice.slice(AFFINE[0][:, :3], AFFINE[1], LATTICE),
    ),
    "slice_apply": (
        slice_apply.APPLY_CONFIGS,
        "coarse",
        lambda: slice_apply.slice_apply(*AFFINE, LATTICE, offset=True),
    ),
    "slice_apply fine": (
        slice_apply.APPLY_CONFIGS,
        "fine",
        lambda: slice_apply.slice_apply(*AFFINE, LATTICE, offset=True),
    ),
    "slice_apply gradient": (
        slice_apply.BWD_PIXELS_CONFIGS,
        "coarse",
        lambda: torch.cat(
            [t.flatten() for t in slice_apply.slice_apply_bwd_pixels(*AFFINE, AFFINE[2], LATTICE, offset=True)]
        ),
    ),
    "curves": (curves.CURVES_CONFIGS, "fine", lambda: curves.curves(AFFINE[2], *CURVES)),
    "slice_points": (_points.POINT_CONFIGS, "fine", lambda: slice_points.slice_points(AFFINE[0], POINTS, None, 0)),
    "slice_points gradient": (
        _points.POINT_CONFIGS,
        "fine",
        lambda: slice_points.slice_points_bwd_points(AFFINE[0], POINTS, None, uniform(1, 2, 150, 12), 0),
    ),
    "blur": (blur.VOLUME_CONFIGS, "fine", lambda: blur.blur(uniform(1, 1, 2, 10, 70), (1.0, 0.5, 1.0))),
    "blur of a pair": (blur.PAIR_CONFIGS, "fine", lambda: blur.blur(uniform(1, 1, 70, 3, 70), (1.0, 0.5, 0.0))),
    "blur by axes": (blur.AXIS_CONFIGS, "fine", lambda: blur.blur(uniform(1, 1, 2, 30, 70), (0.0, 3.0, 1.0))),
    "total_variation gradient": (
        total_variation.GRADIENT_CONFIGS,
        "fine",
        lambda: total_variation.total_variation_bwd(AFFINE[0]),
    ),
}


SAFE, OTHER = slice.PIXEL_CONFIGS[0], slice.PIXEL_CONFIGS[2]


def _chosen(architecture: str, dtype: torch.dtype, programs: int) -> object:
    return _configs.choose_config("_kernel", [SAFE, OTHER], architecture, dtype, programs)


def test_the_table_decides_by_architecture_dtype_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_configs.CHOSEN, ("sm_90", "_kernel", "half", "many"), _configs.label(OTHER))
    assert _chosen("sm_90", torch.bfloat16, 1 << 20) is OTHER
    assert _chosen("sm_90", torch.float16, 1 << 20) is OTHER
    assert _chosen("sm_90", torch.float32, 1 << 20) is SAFE
    assert _chosen("sm_90", torch.float16, 1) is SAFE
    assert _chosen("sm_9000", torch.float16, 1 << 20) is SAFE
    monkeypatch.setitem(_configs.CHOSEN, ("sm_90", "_kernel", "half", "many"), "BLOCK=3 warps=1 stages=1")
    assert _chosen("sm_90", torch.float16, 1 << 20) is SAFE


def test_launches_take_the_configuration_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    key = ("sm_90", "_total_variation_bwd_kernel", "float32", "many")
    monkeypatch.setitem(_configs.CHOSEN, key, _configs.label(total_variation.GRADIENT_CONFIGS[1]))
    with _regime.override(architecture="sm_90"), _launch.record() as launches:
        total_variation.total_variation_bwd(meta(1, 12, 8, 256, 256))
    assert [launch.config for launch in launches] == [total_variation.GRADIENT_CONFIGS[1]]


def test_every_entry_of_the_table_is_a_configuration_of_its_kernel() -> None:
    offered: dict[tuple[str, str], set[str]] = {}
    for architecture in {key[0] for key in _configs.CHOSEN}:
        for use in USES_OF_PERF:
            for launch in use.launches(architecture):
                labels = offered.setdefault((architecture, launch.kernel.__name__), set())
                labels |= {_configs.label(config) for config in launch.configs}
    wrong = {key: name for key, name in _configs.CHOSEN.items() if name not in offered.get(key[:2], ())}
    assert not wrong


@interpreted
@pytest.mark.parametrize("use", USES)
def test_every_configuration_gives_the_same_bits(use: str) -> None:
    configs, regime, run = USES[use]
    every = list(configs)
    assert len(every) > 1
    with _regime.override(regime=regime), _launch.record() as launches:
        run()
    assert any(launch.configs is configs for launch in launches)
    try:
        results = []
        for config in every:
            configs[:] = [config]
            with _regime.override(regime=regime):
                results.append(run())
    finally:
        configs[:] = every
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


@interpreted
def test_the_fine_reduction_gives_the_same_bits_whatever_the_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    """70 nodes a row, so that lanes of several programs meet; strips of one row, of some, and of all."""
    lattice = Lattice.half_pixel((3, 7, 70), (15, 140))
    values, guide = uniform(2, 2, 15, 140), uniform(2, 15, 140)
    found = []
    for rows in (1, 3, 32):
        monkeypatch.setattr(_reduction, "_rows_of_nodes", lambda *_, rows=rows: rows)
        with _regime.override(regime="fine"):
            found.append(splat.splat_blurred(values, guide, (1.0, 0.0, 0.0), lattice))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


@pytest.mark.parametrize("schedulers", [4, 528])
@pytest.mark.parametrize("strips", [1, 9, 300, 5000])
def test_strips_of_nodes_are_as_high_as_takes_the_least_time(strips: int, schedulers: int) -> None:
    """As found by going through every height, and by two rounds of programs at least."""

    def turns(each: int) -> int:
        return (each + 1) * max(-(-strips * -(-rows // each) // schedulers), 2)

    for rows in (1, 2, 7, 270, 1999):
        found = _reduction._rows_of_nodes(strips, rows, schedulers)
        assert found == min(range(rows, 0, -1), key=turns)


def test_strips_of_a_tall_image_are_found_at_once() -> None:
    with mock.patch.object(_reduction, "cdiv", wraps=_reduction.cdiv) as divisions:
        _reduction._rows_of_nodes(1, 60_000, 528)
    assert divisions.call_count < 5_000


@interpreted
def test_wide_addressing_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[torch.Tensor]:
        results = []
        for regime in ("coarse", "fine"):
            with _regime.override(regime=regime):
                results.append(slice_apply.slice_apply(*AFFINE, LATTICE, offset=True))
                results.extend(slice_apply.slice_apply_bwd_pixels(*AFFINE, AFFINE[2], LATTICE, offset=True))
                results.append(slice_apply.slice_apply_bwd_grid(AFFINE[1], AFFINE[2], AFFINE[2], LATTICE, offset=True))
                for channels in (3, 12):
                    results.append(slice.slice(AFFINE[0][:, :channels], AFFINE[1], LATTICE))
                results.append(slice.slice_bwd_guide(AFFINE[0][:, :3], AFFINE[1], AFFINE[2], LATTICE))
        with _regime.override(regime="coarse", architecture="sm_90"), monkeypatch.context() as patch:
            patch.setattr(_regime, "_allows_tf32", lambda: True)
            guide, image = AFFINE[1][..., :20], AFFINE[2][..., :20]
            small = Lattice.cell_centered((3, 2, 3), (2, 20))
            results.append(slice_apply.slice_apply_bwd_grid(guide, image, image, small, offset=True))
        results.append(curves.curves(AFFINE[2], *CURVES))
        results.extend(curves.curves_bwd(AFFINE[2], *CURVES, AFFINE[1], True))
        index = torch.arange(2).view(1, 2, 1).expand(1, 2, 150)
        results.append(slice_points.slice_points(AFFINE[0].expand(2, -1, -1, -1, -1), POINTS, index, 0))
        results.append(slice_points.slice_points_bwd_grid(POINTS, POINTS, index, [2, 1, 1, 2], 0))
        results.append(blur.blur(AFFINE[0], (1.0, 0.0, 1.0)))
        results.append(blur.blur(uniform(1, 1, 2, 30, 70), (0.5, 1.0, 0.0)))
        results.append(blur.blur(uniform(1, 1, 2, 30, 70), (0.0, 3.0, 1.0)))
        return results

    narrow = run()
    for module in (_gather, _grid_table, _points, _points_reduction, _reduction, blur, curves, slice, slice_apply):
        monkeypatch.setattr(module, "needs_int64", lambda *tensors: True)
    with _launch.record() as launches:
        run()
    assert all(launch.arguments["WIDE"] for launch in launches if "WIDE" in launch.arguments)
    assert sum("WIDE" in launch.arguments for launch in launches) >= 8
    for wide, expected in zip(run(), narrow, strict=True):
        torch.testing.assert_close(wide, expected, rtol=0, atol=0)

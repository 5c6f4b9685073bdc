"""The properties that define the operators, one by one, and the bits that must never change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import bilagrid
from bilagrid import Lattice
from bilagrid.compat.hdrnet import bilateral_slice_apply
from bilagrid.compat.kornia import joint_bilateral_blur
from tests.helpers import CONSTRUCTORS, TOLERANCE, Problem, assert_near, device_of, problems

KINDS = st.sampled_from(sorted(CONSTRUCTORS))
FLOAT64 = problems(dtypes=(torch.float64,))


@given(problem=FLOAT64)
def test_slice_and_splat_are_adjoint(backend_in_depth: str, problem: Problem) -> None:
    problem = problem.on(backend_in_depth)
    grid, guide, values = problem.tensors()
    splatted = bilagrid.splat(values, guide, problem.size, lattice=problem.lattice)
    sliced = bilagrid.slice(grid, guide, lattice=problem.lattice)
    assert_near((splatted * grid).sum(), (values * sliced).sum())


@given(problem=problems(dtypes=(torch.float32, torch.float64)))
def test_a_constant_grid_gives_a_constant(backend_in_depth: str, problem: Problem) -> None:
    problem = problem.on(backend_in_depth)
    grid, guide, _ = problem.tensors()
    out = bilagrid.slice(torch.full_like(grid, 2.5), guide, lattice=problem.lattice)
    assert_near(out, torch.full_like(out, 2.5))


@given(problem=FLOAT64)
def test_splat_of_ones_sums_to_the_number_of_pixels(backend_in_depth: str, problem: Problem) -> None:
    problem = problem.on(backend_in_depth)
    _, guide, values = problem.tensors()
    grid = bilagrid.splat(torch.ones_like(values), guide, problem.size, lattice=problem.lattice)
    pixels = problem.image_size[0] * problem.image_size[1]
    assert_near(grid.sum((2, 3, 4)), torch.full_like(grid[..., 0, 0, 0], pixels))


@given(problem=FLOAT64)
def test_an_affine_grid_is_reproduced(backend_in_depth: str, problem: Problem) -> None:
    """A grid affine in (x, y, z) is read as that function of the pixel's place, saturated at the border."""
    problem = problem.on(backend_in_depth)
    _, guide, _ = problem.tensors()
    (depth, rows, columns), (height, width) = problem.size, problem.image_size
    nodes = [torch.arange(n, dtype=torch.float64, device=guide.device) for n in problem.size]
    grid = 0.3 + 2.0 * nodes[0][:, None, None] - 0.7 * nodes[1][:, None] + 1.1 * nodes[2]
    grid = grid.expand(guide.shape[0], 1, *problem.size)
    (scale_z, scale_y, scale_x), (offset_z, offset_y, offset_x) = problem.reference.scale, problem.reference.offset
    z = (guide * scale_z + offset_z).clamp(0, depth - 1)
    y = (torch.arange(height, dtype=torch.float64, device=guide.device) * scale_y + offset_y).clamp(0, rows - 1)
    x = (torch.arange(width, dtype=torch.float64, device=guide.device) * scale_x + offset_x).clamp(0, columns - 1)
    expected = (0.3 + 2.0 * z - 0.7 * y[:, None] + 1.1 * x)[:, None]
    assert_near(bilagrid.slice(grid, guide, lattice=problem.lattice), expected)


@given(problem=FLOAT64, a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_linear(backend_in_depth: str, problem: Problem, a: float, b: float) -> None:
    problem = problem.on(backend_in_depth)
    grid, guide, values = problem.tensors()
    other_grid, other_values = torch.randn_like(grid), torch.randn_like(values)

    def sliced(g: Tensor) -> Tensor:
        return bilagrid.slice(g, guide, lattice=problem.lattice)

    def splatted(v: Tensor) -> Tensor:
        return bilagrid.splat(v, guide, problem.size, lattice=problem.lattice)

    assert_near(sliced(a * grid + b * other_grid), a * sliced(grid) + b * sliced(other_grid))
    assert_near(splatted(a * values + b * other_values), a * splatted(values) + b * splatted(other_values))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("with_luma", [True, False])
def test_identity_coefficients_leave_the_image_as_it_is(backend: str, dtype: torch.dtype, with_luma: bool) -> None:
    image = torch.rand(2, 3, 7, 9).to(device_of(backend), dtype)
    grid = torch.eye(3, 4).reshape(1, 12, 1, 1, 1).expand(2, 12, 4, 3, 2).to(image)
    out = bilagrid.slice_apply(grid, None if with_luma else image[:, 0], image)
    assert_near(out, image)


@given(kind=KINDS, axis=st.sampled_from([1, 2]))
def test_flips(backend: str, kind: str, axis: int) -> None:
    """A mirrored image reads a mirrored grid; every lattice but that of filters is symmetric."""
    device = device_of(backend)
    grid = torch.randn(1, 2, 4, 3, 5, dtype=torch.float64, device=device)
    guide = torch.rand(1, 7, 9, dtype=torch.float64, device=device)
    lattice = CONSTRUCTORS[kind]((4, 3, 5), (7, 9))
    mirrored = bilagrid.slice(grid.flip(axis + 2), guide.flip(axis), lattice=lattice)
    assert_near(mirrored.flip(axis + 1), bilagrid.slice(grid, guide, lattice=lattice))


def test_a_flipped_guide_reads_a_flipped_grid(backend: str) -> None:
    device = device_of(backend)
    grid = torch.randn(1, 2, 4, 3, 5, dtype=torch.float64, device=device)
    guide = torch.rand(1, 7, 9, dtype=torch.float64, device=device)
    assert_near(bilagrid.slice(grid.flip(2), 1 - guide), bilagrid.slice(grid, guide))


def test_a_shift_by_one_cell(backend: str) -> None:
    """An image moved by as many pixels as a cell has gives the grid moved by one node; away from the border, where nothing saturates."""
    device = device_of(backend)
    lattice, size = Lattice.from_sigma(2, 0.5, (7, 13))
    values = torch.zeros(1, 2, 7, 13, dtype=torch.float64, device=device)
    guide = torch.full((1, 7, 13), 0.4, dtype=torch.float64, device=device)
    values[..., 2:4, 2:6] = torch.randn(1, 2, 2, 4, dtype=torch.float64, device=device)
    guide[:, 2:4, 2:6] = torch.rand(1, 2, 4, dtype=torch.float64, device=device)
    here = bilagrid.splat(values, guide, size, lattice=lattice)
    there = bilagrid.splat(values.roll((2, 4), (2, 3)), guide.roll((2, 4), (1, 2)), size, lattice=lattice)
    assert here.count_nonzero() > 0
    assert_near(there, here.roll((1, 2), (3, 4)))
    assert_near(
        bilagrid.slice(here.roll((1, 2), (3, 4)), guide.roll((2, 4), (1, 2)), lattice=lattice)[..., 2:, 4:],
        bilagrid.slice(here, guide, lattice=lattice)[..., :-2, :-4],
    )


def _everything(grid: Tensor, guide: Tensor, image: Tensor) -> list[Tensor]:
    """Values and gradients, one a batch element."""
    leaves = [t.clone().requires_grad_() for t in (grid, guide, image)]
    applied = bilagrid.slice_apply(*leaves)
    splatted = bilagrid.splat(leaves[2], leaves[1], tuple(grid.shape[2:]))
    sliced = bilagrid.slice(bilagrid.blur(leaves[0], 0.8), leaves[1])
    loss = applied.square().sum() + splatted.square().sum() + sliced.square().sum()
    return [applied, splatted, sliced, *torch.autograd.grad(loss, leaves)]


# Grid and image of which all operators take the coarse kernels, or the fine ones: as small as the interpreter wants them, and large enough for threads.
SMALL = {"coarse": ((2, 2, 2), (6, 49)), "fine": ((3, 2, 3), (2, 5))}
LARGE = {"coarse": ((8, 6, 5), (91, 253)), "fine": ((8, 30, 50), (91, 253))}


def _problem(backend: str, regime: str, batch: int = 1) -> list[Tensor]:
    """Grid, guide and image."""
    size, image_size = (SMALL if backend == "interpreter" else LARGE)[regime]
    generator = torch.Generator().manual_seed(3)
    grid = torch.randn(batch, 12, *size, generator=generator)
    guide = torch.rand(batch, *image_size, generator=generator)
    image = torch.rand(batch, 3, *image_size, generator=generator)
    return [t.to(device_of(backend)) for t in (grid, guide, image)]


@pytest.mark.parametrize("regime", ["coarse", "fine"])
def test_the_batch_does_not_change_a_bit(backend: str, regime: str) -> None:
    given = _problem(backend, regime, 2)
    together = _everything(*given)
    swapped = _everything(*(t.flip(0) for t in given))
    for whole, other in zip(together, swapped, strict=True):
        torch.testing.assert_close(other, whole.flip(0), rtol=0, atol=0)
    one = _everything(*(t[1:] for t in given))
    for alone, whole in zip(one, together, strict=True):
        torch.testing.assert_close(alone, whole[1:], rtol=0, atol=0)


@pytest.mark.parametrize("regime", ["coarse", "fine"])
def test_every_run_gives_the_same_bits(backend: str, regime: str) -> None:
    given = _problem(backend, regime)
    for first, second in zip(_everything(*given), _everything(*given), strict=True):
        torch.testing.assert_close(second, first, rtol=0, atol=0)


@pytest.mark.parametrize("kind", sorted(CONSTRUCTORS))
def test_tiles_equal_the_whole(backend: str, kind: str) -> None:
    device = device_of(backend)
    size, (height, width) = (3, 2, 3), (5, 8)
    lattice = CONSTRUCTORS[kind](size, (height, width))
    grid, guide = torch.randn(1, 4, *size, device=device), torch.rand(1, height, width, device=device)
    image = torch.rand(1, 3, height, width, device=device)
    whole = bilagrid.slice_apply(grid, guide, image, lattice=lattice)
    splatted = bilagrid.splat(image, guide, size, lattice=lattice)
    total = torch.zeros_like(splatted)
    for top, bottom in ((0, 3), (3, height)):
        for left, right in ((0, 3), (3, width)):
            place = (slice(None), slice(top, bottom), slice(left, right))
            inside = (slice(None), *place)
            tile = lattice.crop(top, left)
            out = bilagrid.slice_apply(grid, guide[place], image[inside], lattice=tile)
            torch.testing.assert_close(out, whole[inside], rtol=0, atol=0)
            total += bilagrid.splat(image[inside], guide[place], size, lattice=tile)
    assert_near(total, splatted)


@pytest.mark.parametrize("natural", ["coarse", "fine"])
def test_both_regimes_agree(triton_backend: str, natural: str) -> None:
    """The kernels of either regime serve the problems of both."""
    from bilagrid.gpu import _regime

    given = _problem(triton_backend, natural)
    size, width = tuple(given[0].shape[2:]), given[1].shape[2]
    assert _regime.choose(3, 4, size, width) == natural
    assert _regime.choose_reduction(1, size, width) == natural
    results = []
    for regime in ("coarse", "fine"):
        with _regime.override(regime=regime):
            results.append(_everything(*given))
    for coarse, fine in zip(*results, strict=True):
        assert_near(coarse, fine)


def test_expanded_inputs(backend: str) -> None:
    device = device_of(backend)
    grid = torch.randn(1, 12, 1, 1, 1, device=device).expand(2, 12, 3, 2, 2)
    guide = torch.rand(1, 3, 1, device=device).expand(2, 3, 5)
    image = torch.rand(1, 1, 3, 5, device=device).expand(2, 3, 3, 5)
    dense = _everything(grid.contiguous(), guide.contiguous(), image.contiguous())
    for found, wanted in zip(_everything(grid, guide, image), dense, strict=True):
        assert_near(found, wanted)


IMAGE, GUIDE, GRID = torch.ones(2, 3, 4, 6), torch.ones(2, 4, 6), torch.ones(2, 12, 3, 2, 2)
REFUSED = {
    "rank of the grid": (lambda: bilagrid.slice(GRID[0], GUIDE), ValueError, r"grid must have shape \(N, C, D, Gh, Gw\), got \(12, 3, 2, 2\)"),
    "guide of other size": (lambda: bilagrid.splat(IMAGE, GUIDE.mT, (3, 2, 2)), ValueError, r"guide must have shape \(N, H, W\) = \(2, 4, 6\) to match values, got \(2, 6, 4\)"),
    "guide of other batch": (lambda: bilagrid.slice(GRID, GUIDE[:1]), ValueError, r"guide must have shape .* to match grid, got \(1, 4, 6\)"),
    "grid of other batch": (lambda: bilagrid.slice_apply(GRID[:1], GUIDE, IMAGE), ValueError, "grid must have the batch size of image, 2, got 1"),
    "channels": (lambda: bilagrid.slice_apply(GRID[:, :10], GUIDE, IMAGE), ValueError, "a multiple of 4 .* got 10"),
    "channels without offset": (lambda: bilagrid.slice_apply(GRID[:, :10], GUIDE, IMAGE, offset=False), ValueError, "a multiple of 3 .* got 10"),
    "luma of two channels": (lambda: bilagrid.slice_apply(GRID, None, IMAGE[:, :2]), ValueError, "image must have 3 channels .* got 2"),
    "integers": (lambda: bilagrid.slice(GRID.int(), GUIDE), TypeError, "grid must be float16.* got torch.int32"),
    "an array": (lambda: bilagrid.slice(GRID.numpy(), GUIDE), TypeError, "grid must be a torch.Tensor, got ndarray"),
    "nothing for a grid": (lambda: bilagrid.slice(None, GUIDE), TypeError, "grid must be a torch.Tensor, got NoneType"),
    "nothing for a guide": (lambda: bilagrid.splat(IMAGE, None, (3, 2, 2)), TypeError, "guide must be a torch.Tensor, got NoneType"),
    "nothing for an image": (lambda: bilagrid.slice_apply(GRID, GUIDE, None), TypeError, "image must be a torch.Tensor, got NoneType"),
    "an offset that is a number": (lambda: bilagrid.slice_apply(GRID, GUIDE, IMAGE, offset=-1), TypeError, "offset must be True or False, got -1"),
    "a size in floats": (lambda: bilagrid.splat(IMAGE, GUIDE, (4.0, 2, 2)), TypeError, "size must be in whole numbers, got 4.0"),
    "one number for a size": (lambda: bilagrid.splat(IMAGE, GUIDE, 8), TypeError, "size must be .* 3 integers, got 8"),
    "a text for a sigma": (lambda: bilagrid.blur(GRID, "1"), TypeError, "sigma must be a number, got '1'"),
    "sparse": (lambda: bilagrid.slice(GRID, GUIDE.to_sparse()), TypeError, "guide must be a dense"),
    "two devices": (lambda: bilagrid.slice(GRID, GUIDE.to("meta")), ValueError, "guide must be on cpu as grid is, got meta"),
    "an empty image": (lambda: bilagrid.splat(IMAGE[..., :0], GUIDE[..., :0], (3, 2, 2)), ValueError, "all but N at least 1"),
    "lattice of other grid": (lambda: bilagrid.slice(GRID, GUIDE, lattice=Lattice.half_pixel((3, 2, 3), (4, 6))), ValueError, "lattice is for a grid"),
    "lattice of other image": (lambda: bilagrid.slice(GRID, GUIDE, lattice=Lattice.half_pixel((3, 2, 2), (4, 5))), ValueError, "lattice is for an image"),
    "not a lattice": (lambda: bilagrid.slice(GRID, GUIDE, lattice=(3, 2, 2)), TypeError, "lattice must be a bilagrid.Lattice, got tuple"),
    "size of nothing": (lambda: bilagrid.splat(IMAGE, GUIDE, (0, 2, 2)), ValueError, "size must be"),
    "negative sigma": (lambda: bilagrid.blur(GRID, -1.0), ValueError, "sigma must be .* got -1.0"),
    "two sigmas": (lambda: bilagrid.blur(GRID, (1.0, 1.0)), TypeError, "sigma must be"),
    "NaN sigma": (lambda: bilagrid.blur(GRID, float("nan")), ValueError, "sigma must be .* got nan"),
    "rank of a variation": (lambda: bilagrid.total_variation(GRID[0]), ValueError, "grid must have shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_argument(case: str) -> None:
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call()


# Operators of torch that on a GPU, or whose gradients there, add in another order each time: torch.use_deterministic_algorithms lists them. Some it
# replaces instead of refusing, so they are looked for by name.
UNORDERED = (
    "upsample", "grid_sampler", "index_add", "index_put", "index_copy", "scatter_add", "scatter_reduce", "cumsum", "reflection_pad",
    "replication_pad", "adaptive_avg_pool", "adaptive_max_pool", "avg_pool3d", "max_pool3d", "fractional_max_pool", "max_unpool", "bincount", "histc",
    "kthvalue", "median", "put", "embedding_bag", "embedding_dense_backward",
)  # fmt: skip


class Seen(TorchDispatchMode):
    """The operators that ran under it, and of these such as have no order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.name())
        return function(*args, **kwargs or {})

    @property
    def unordered(self) -> set[str]:
        return {name for name in self.names if name.partition("::")[2].lstrip("_").startswith(UNORDERED)}


def _joint(low: Tensor, guide_low: Tensor, guide_high: Tensor) -> Tensor:
    return bilagrid.joint_bilateral_upsample(low, guide_low, guide_high, sigma_space=1, sigma_color=0.2)


COMPOSED: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "bilateral_filter": (lambda x, g: bilagrid.bilateral_filter(x, g, sigma_space=2, sigma_color=0.2), ((1, 2, 8, 9), (1, 8, 9))),
    "joint_bilateral_upsample": (_joint, ((1, 2, 4, 5), (1, 4, 5), (1, 8, 9))),
    "tonemap": (bilagrid.tonemap, ((1, 3, 8, 9),)),
    "fit": (lambda x, y, w: bilagrid.fit(x, y, size=(3, 2, 2), weight=w, method="global"), ((1, 3, 8, 9), (1, 3, 8, 9), (1, 8, 9))),
    "guided_upsample": (bilagrid.guided_upsample, ((1, 3, 16, 18), (1, 3, 8, 9), (1, 3, 8, 9))),
    "curves": (bilagrid.curves, ((1, 3, 8, 9), (2, 3), (2,), (2, 4), (2, 4), (2,), ())),
    "slice_apply": (lambda grid, image: bilagrid.slice_apply(grid, None, image), ((1, 12, 3, 2, 2), (1, 3, 8, 9))),
    "equalize_histogram": (lambda x: bilagrid.equalize_histogram(x, bins=16, clip_limit=2), ((1, 3, 8, 9),)),
    "colorize": (bilagrid.colorize, ((1, 1, 8, 9), (1, 3, 8, 9), (1, 8, 9))),
    "merge_flash": (lambda a, b: bilagrid.merge_flash(a, b, exposure=1), ((1, 3, 8, 9), (1, 3, 8, 9))),
    "hdrnet with eps": (lambda *t: bilateral_slice_apply(*t, eps=1e-2), ((1, 2, 2, 3, 12), (1, 8, 9), (1, 8, 9, 3))),
    **{
        f"kornia {border}": (lambda x, g, border=border: joint_bilateral_blur(x, g, 5, 0.2, (1, 1), border), ((1, 2, 8, 9), (1, 1, 8, 9)))
        for border in ("constant", "reflect", "replicate", "circular")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSED)
def test_no_operator_without_an_order_takes_part(name: str) -> None:
    function, shapes = COMPOSED[name]
    given = [torch.rand(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    with Seen() as seen:
        first = torch.autograd.grad(function(*given).square().sum(), given, create_graph=True)
        torch.autograd.grad(sum(grad.square().sum() for grad in first), given, allow_unused=True)
    assert any(one.startswith("bilagrid::") for one in seen.names)
    assert not seen.unordered


def test_an_operator_without_an_order_is_noticed() -> None:
    low = torch.rand(1, 2, 4, 5, requires_grad=True)
    with Seen() as seen:
        torch.nn.functional.interpolate(low, size=(8, 9), mode="bilinear").sum().backward()
    assert seen.unordered

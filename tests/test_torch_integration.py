"""opcheck, torch.compile, export, torch.func, and the refusal of forward mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx

import bilagrid
from bilagrid import Lattice
from bilagrid.ops._register import pack, raw
from tests.helpers import assert_near, off_nodes

SIZE, IMAGE = (3, 2, 2), (4, 5)
INDEX = torch.tensor([1, 0])
PLACE = raw(pack(Lattice.cell_centered(SIZE, IMAGE)))


def _grid(channels: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, *SIZE)


def _pixels(channels: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, channels, *IMAGE)


def _guide(batch: int = 2) -> Tensor:
    return torch.rand(batch, *IMAGE)


def _parameters() -> tuple[Tensor, ...]:
    """Two curves for an image of three channels, of as many knots as no image here has rows, which one graph would take for the same number."""
    return (
        torch.rand(2, 3) / 3,
        0.1 * torch.rand(2),
        torch.rand(2, 10),
        0.3 * torch.randn(2, 10),
        torch.ones(2) / 2,
        torch.tensor(0.3),
    )


RAW: dict[str, list[Callable[[], tuple[Any, ...]]]] = {
    "splat": [
        lambda: (_pixels(3), _guide(), *PLACE, False),
        lambda: (_pixels(2).mT.contiguous().mT, _guide().double(), *PLACE, True),
    ],
    "splat_blurred": [
        lambda: (_pixels(2).half(), _guide(), (0.8, 0.0, 1.2), *PLACE),
        lambda: (_pixels(1).double(), _guide(), (0.0, 0.0, 0.0), *PLACE),
    ],
    "slice": [
        lambda: (_grid(3), _guide(), *PLACE, False, None),
        lambda: (_grid(3).half(), _guide(), *PLACE, True, None),
        lambda: (_grid(3, 5), _guide(), *PLACE, False, INDEX),
    ],
    "slice_normalized": [lambda: (1 + _grid(3).square(), _guide(), *PLACE)],
    "slice_bwd_guide": [
        lambda: (_grid(3), _guide(), _pixels(3), *PLACE, False, None),
        lambda: (_grid(3, 5), _guide(), _pixels(3), *PLACE, False, INDEX),
        lambda: (_grid(4), _guide().half(), _pixels(3), *PLACE, True, None),
    ],
    "blur": [lambda: (_grid(3), (0.8, 0.0, 1.2))],
    "slice_apply": [
        lambda: (_grid(12), _guide(), _pixels(3), *PLACE, True, None),
        lambda: (_grid(12, 5), _guide(), _pixels(3), *PLACE, True, INDEX),
        lambda: (_grid(15), None, _pixels(3).to(memory_format=torch.channels_last), *PLACE, False, None),
    ],
    "slice_apply_bwd_pixels": [
        lambda: (_grid(12), _guide(), _pixels(3), _pixels(3), *PLACE, True, None),
        lambda: (_grid(12, 5), _guide(), _pixels(3), _pixels(3), *PLACE, True, INDEX),
        lambda: (_grid(12), None, _pixels(3).to(memory_format=torch.channels_last), _pixels(3), *PLACE, True, None),
    ],
    "slice_apply_bwd_grid": [
        lambda: (_guide(), _pixels(3), _pixels(2), *PLACE, True),
        lambda: (None, _pixels(3).half(), _pixels(2), *PLACE, False),
    ],
    "curves": [
        lambda: (_pixels(3), *_parameters()),
        lambda: (_pixels(3).half().to(memory_format=torch.channels_last), *_parameters()),
    ],
    "curves_bwd": [
        lambda: (_pixels(3), *_parameters(), _guide(), False),
        lambda: (_pixels(3).to(memory_format=torch.channels_last), *_parameters(), _guide().double(), True),
    ],
    "slice_points": [
        lambda: (_grid(3), 2 * torch.rand(2, 3, 4, 3), None, 0),
        lambda: (_grid(3).half(), 2 * torch.rand(1, 3, 4, 3), torch.randint(2, (1, 3, 4)), 5),
    ],
    "slice_points_bwd_points": [
        lambda: (_grid(3), 2 * torch.rand(2, 3, 4, 3), None, torch.rand(2, 3, 4, 3), 0),
        lambda: (_grid(2), 2 * torch.rand(1, 3, 4, 3).half(), torch.randint(2, (1, 3, 4)), torch.rand(1, 3, 4, 2), 2),
    ],
    "slice_points_bwd_grid": [
        lambda: (torch.rand(2, 3, 4, 3), 2 * torch.rand(2, 3, 4, 3), None, (2, *SIZE), 0),
        lambda: (torch.rand(1, 3, 4, 3).half(), torch.rand(1, 3, 4, 3), torch.randint(7, (1, 3, 4)), (7, *SIZE), 1),
    ],
    "total_variation": [lambda: (_grid(3), None), lambda: (_grid(3), INDEX)],
    "total_variation_bwd": [lambda: (_grid(3), None), lambda: (_grid(3), INDEX)],
    "collect": [lambda: (_grid(3), INDEX, 5)],
}


# Whose outputs have no size.
SCALARS = ("total_variation",)


def test_every_raw_operator_is_checked() -> None:
    registered = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("bilagrid::")
    }
    assert registered == set(RAW)


@pytest.mark.parametrize(("name", "case"), [(name, k) for name in RAW for k in range(len(RAW[name]))])
def test_opcheck(name: str, case: int) -> None:
    """Autograd lies above the raw operators, so their own registration of it is not asked for."""
    operator = getattr(torch.ops.bilagrid, name).default
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(operator, RAW[name][case](), test_utils=checks)


@pytest.fixture
def sizes_are_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 cannot add a bool to a symbolic size, which later ones can."""
    for name in ("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__"):
        right = getattr(torch.SymInt, name)

        def refusing(self: torch.SymInt, other: Any, right: Callable[..., Any] = right) -> Any:
            assert not isinstance(other, (bool, torch.SymBool)), f"{self} meets the bool {other}"
            return right(self, other)

        monkeypatch.setattr(torch.SymInt, name, refusing)


@pytest.mark.usefixtures("sizes_are_no_flags")
@pytest.mark.parametrize(("name", "case"), [(name, k) for name in RAW for k in range(len(RAW[name]))])
def test_fakes_of_symbolic_sizes(name: str, case: int) -> None:
    operator, given = getattr(torch.ops.bilagrid, name).default, RAW[name][case]()
    tensors = [value for value in given if isinstance(value, Tensor)]

    def run(*traced: Tensor) -> Any:
        following = iter(traced)
        return operator(*(next(following) if isinstance(value, Tensor) else value for value in given))

    traced = make_fx(run, tracing_mode="symbolic")(*tensors)
    found, expected = traced(*tensors), run(*tensors)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    (node,) = (node for node in traced.graph.nodes if node.target is operator)
    fakes = node.meta["val"] if isinstance(expected, list) else [node.meta["val"]]
    assert any(isinstance(extent, torch.SymInt) for fake in fakes for extent in fake.shape) or name in SCALARS


@pytest.mark.usefixtures("sizes_are_no_flags")
@pytest.mark.parametrize("offset", [True, False])
def test_slice_apply_of_symbolic_sizes(offset: bool) -> None:
    given = torch.rand(2, 12, *SIZE), torch.rand(2, *IMAGE), torch.rand(2, 3, *IMAGE)
    run = lambda *tensors: bilagrid.slice_apply(*tensors, offset=offset)  # noqa: E731
    assert_near(make_fx(run, tracing_mode="symbolic")(*given)(*given), run(*given))


CURVES = _parameters()


def chain(grid: Tensor, guide: Tensor, image: Tensor) -> Tensor:
    """Every operator, once."""
    applied = bilagrid.slice_apply(grid, guide, image)
    guide = bilagrid.curves(image, *CURVES) + guide
    splatted = bilagrid.splat(applied, guide, (3, 2, 2))
    smooth = bilagrid.slice(bilagrid.blur(splatted, 0.7), guide)
    return smooth.square().sum() + bilagrid.slice_apply(grid, None, image).sum() + bilagrid.total_variation(grid)


def leaves(height: int = 4, width: int = 5, batch: int = 2) -> tuple[Tensor, ...]:
    grid, guide, image = _grid(12, batch), torch.rand(batch, height, width), torch.rand(batch, 3, height, width)
    return tuple(t.requires_grad_() for t in (grid, guide, image))


def assert_same_with_gradients(
    found: Callable[..., Tensor], wanted: Callable[..., Tensor], given: tuple[Tensor, ...]
) -> None:
    a, b = found(*given), wanted(*given)
    assert_near(a, b)
    for x, y in zip(torch.autograd.grad(a, given), torch.autograd.grad(b, given), strict=True):
        assert_near(x, y)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def test_compile_without_a_graph_break() -> None:
    assert_same_with_gradients(torch.compile(chain, fullgraph=True, backend="aot_eager"), chain, leaves())


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    assert_same_with_gradients(torch.compile(chain, fullgraph=True), chain, leaves())


@pytest.mark.parametrize("name", ["cell_centered", "half_pixel", "corner_aligned"])
def test_one_graph_for_every_image_size(name: str) -> None:
    graphs = 0

    def count(module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return module.forward

    def run(grid: Tensor, guide: Tensor, image: Tensor) -> Tensor:
        lattice = getattr(Lattice, name)((3, 2, 2), (image.shape[2], image.shape[3]))
        return bilagrid.slice_apply(grid, guide, image, lattice=lattice)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=count)
    for height, width in ((4, 5), (7, 6), (9, 31), (16, 8)):
        given = [t.detach() for t in leaves(height, width)]
        assert_near(compiled(*given), run(*given))
    assert graphs == 1


def test_one_graph_for_every_image_size_with_gradients() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(chain, fullgraph=True, dynamic=True, backend=counter)
    assert_same_with_gradients(compiled, chain, leaves(4, 5))
    first = counter.frame_count  # Dynamo may start over within the first call, to fix Python floats
    for height, width in ((7, 6), (9, 31)):
        assert_same_with_gradients(compiled, chain, leaves(height, width))
    assert counter.frame_count == first


def test_export_with_dynamic_height_and_width() -> None:
    class Apply(torch.nn.Module):
        def forward(self, grid: Tensor, guide: Tensor, image: Tensor) -> Tensor:
            guide = guide + bilagrid.curves(image, *CURVES)
            return bilagrid.slice_apply(grid, guide, image) + bilagrid.slice(grid[:, :3], guide)

    height, width = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    shapes = {"grid": None, "guide": {1: height, 2: width}, "image": {2: height, 3: width}}
    program = torch.export.export(Apply(), tuple(t.detach() for t in leaves()), dynamic_shapes=shapes)
    for size in ((4, 5), (11, 8)):
        given = tuple(t.detach() for t in leaves(*size))
        assert_near(program.module()(*given), Apply()(*given))


def smooth(image: Tensor) -> Tensor:
    return bilagrid.bilateral_filter(image, sigma_space=3.0, sigma_color=0.2, guide_range=(0.0, 1.0))


def upsampled(low: Tensor, guide_low: Tensor, guide_high: Tensor) -> Tensor:
    options = {"sigma_space": 1.0, "sigma_color": 0.2, "guide_range": (0.0, 1.0)}
    return bilagrid.joint_bilateral_upsample(low, guide_low, guide_high, **options)


def toned(image: Tensor) -> Tensor:
    return bilagrid.tonemap(image, sigma_space=3.0)


@pytest.mark.parametrize("filtered", [smooth, toned])
def test_one_graph_of_a_filter_for_every_image_size(filtered: Callable[[Tensor], Tensor]) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(filtered, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for height, width in ((8, 9), (12, 13), (20, 31), (9, 40)):
        assert_same_with_gradients(
            lambda x: compiled(x).sum(),
            lambda x: filtered(x).sum(),
            (torch.rand(1, 1, height, width, requires_grad=True),),
        )
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 4


def test_one_graph_of_upsampling_for_every_image_size() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(upsampled, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for height, width, step in ((8, 9, 3), (12, 13, 2), (7, 31, 4), (9, 40, 2)):
        given = (
            torch.rand(2, 2, height, width),
            torch.rand(2, height, width),
            torch.rand(2, step * height, 2 * width + 1),
        )
        assert_near(compiled(*given), upsampled(*given))
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 4


class Smooth(torch.nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return smooth(image)


class Upsampled(torch.nn.Module):
    def forward(self, low: Tensor, guide_low: Tensor, guide_high: Tensor) -> Tensor:
        return upsampled(low, guide_low, guide_high)


def test_export_of_filters_with_dynamic_sizes() -> None:
    size = {name: torch.export.Dim(name, min=2, max=4096) for name in ("h", "w", "H", "W")}
    program = torch.export.export(
        Smooth(), (torch.rand(1, 1, 16, 18),), dynamic_shapes={"image": {2: size["H"], 3: size["W"]}}
    )
    for height, width in ((16, 18), (33, 40)):
        image = torch.rand(1, 1, height, width)
        assert_near(program.module()(image), smooth(image))
    shapes = {
        "low": {2: size["h"], 3: size["w"]},
        "guide_low": {1: size["h"], 2: size["w"]},
        "guide_high": {1: size["H"], 2: size["W"]},
    }
    given = torch.rand(1, 2, 6, 7), torch.rand(1, 6, 7), torch.rand(1, 16, 18)
    program = torch.export.export(Upsampled(), given, dynamic_shapes=shapes)
    for height, width, tall, wide in ((6, 7, 16, 18), (9, 11, 30, 20)):
        given = torch.rand(1, 2, height, width), torch.rand(1, height, width), torch.rand(1, tall, wide)
        assert_near(program.module()(*given), upsampled(*given))


def test_func_grad_and_grad_of_grad() -> None:
    grid, guide, image = (t.detach().double() for t in leaves(batch=1))
    guide = off_nodes(guide.shape, SIZE[0])

    def loss(guide: Tensor) -> Tensor:
        return bilagrid.slice_apply(grid, guide, image).square().sum()

    leaf = guide.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    assert_near(torch.func.grad(loss)(guide), expected)
    (second,) = torch.autograd.grad(expected.sum(), leaf)
    found = torch.func.grad(lambda g: torch.func.grad(loss)(g).sum())(guide)
    assert second.abs().max() > 0
    assert_near(found, second)


def test_jacrev_of_a_linear_operator_is_its_matrix() -> None:
    guide = torch.rand(1, 2, 3, dtype=torch.float64)
    grid = torch.randn(1, 1, *SIZE, dtype=torch.float64)
    matrix = torch.func.jacrev(lambda g: bilagrid.slice(g, guide))(grid).reshape(6, -1)
    assert_near(matrix @ grid.flatten(), bilagrid.slice(grid, guide).flatten())
    values = torch.randn(1, 1, 2, 3, dtype=torch.float64)
    adjoint = torch.func.jacrev(lambda v: bilagrid.splat(v, guide, SIZE))(values).reshape(-1, 6)
    assert_near(adjoint, matrix.mT)


@pytest.mark.parametrize("mapped", [(0, 0, 0), (0, None, 0), (None, 0, 0), (1, 0, 0), (0, None, None)])
def test_vmap_equals_a_loop(mapped: tuple[int | None, ...]) -> None:
    draw = (lambda: _grid(12), lambda: _guide(), lambda: _pixels(3))
    given = [
        one() if dim is None else torch.stack([one() for _ in range(3)], dim)
        for one, dim in zip(draw, mapped, strict=True)
    ]

    def run(grid: Tensor, guide: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        splatted = bilagrid.splat(image, guide, SIZE)
        return bilagrid.slice_apply(grid, guide, image), bilagrid.blur(splatted, 0.8), bilagrid.total_variation(grid)

    for method in (run, torch.func.grad(lambda *a: sum(t.sum() for t in run(*a)), argnums=(0, 1, 2))):
        found = torch.vmap(method, in_dims=mapped)(*given)
        for k in range(3):
            wanted = method(*(t if d is None else t.select(d, k) for t, d in zip(given, mapped, strict=True)))
            for a, b in zip(found, wanted, strict=True):
                assert_near(a[k], b)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
        lambda f, x: torch.func.jacfwd(f)(x),
        lambda f, x: torch.func.hessian(f)(x),
    ],
    ids=["jvp", "jacfwd", "hessian"],
)
def test_forward_mode_is_refused_by_name(transform: Callable[..., Any]) -> None:
    guide = _guide(1)
    with pytest.raises(NotImplementedError, match=r"jacrev\(torch.func.jacrev\(f\)\)"):
        transform(lambda g: bilagrid.slice(g, guide).sum(), _grid(1, 1))
    hessian = torch.func.jacrev(torch.func.jacrev(lambda g: bilagrid.slice(g, guide).square().sum()))(_grid(1, 1))
    assert hessian.isfinite().all()

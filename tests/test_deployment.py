"""How the operators leave the notebook: export, packages, autocast, functional transforms, several processes; and the errors of what they cannot do."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import bilagrid
from bilagrid import nn as modules
from bilagrid.compat import hdrnet
from tests.conftest import HAS_CUDA
from tests.distributed_worker import Enhance, train
from tests.helpers import assert_near
from tests.processes import attempt, python

H, W, LOW_H, LOW_W = (torch.export.Dim(name, min=8, max=4096) for name in ("H", "W", "h", "w"))
BATCH, DEPTH, ROWS, COLUMNS = (torch.export.Dim(name, min=1, max=256) for name in ("N", "D", "Gh", "Gw"))
IMAGE, GUIDE, LOW, LOW_GUIDE = {2: H, 3: W}, {1: H, 2: W}, {2: LOW_H, 3: LOW_W}, {1: LOW_H, 2: LOW_W}
FILTER = {"sigma_space": 2.0, "sigma_color": 0.2, "guide_range": (0.0, 1.0)}


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def _rand(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


def _pixels(height: int, width: int) -> tuple[Tensor, Tensor]:
    return _rand(1, 3, height, width), _rand(1, height, width)


def _grid() -> Tensor:
    return torch.randn(1, 12, 4, 3, 5, generator=torch.Generator().manual_seed(0))


class Whole(nn.Module):
    """A function as a module, which is what torch.export takes."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Tensor) -> Tensor:
        return self.function(*given)


# Each: a module, which sizes of its arguments are dynamic, and its arguments for images of two sizes.
EXPORTED: dict[str, tuple[nn.Module, tuple[object, ...], Callable[[int, int], tuple[Tensor, ...]]]] = {
    "enhance": (Enhance(), (IMAGE,), lambda h, w: _pixels(h, w)[:1]),
    "batch and grid": (
        modules.SliceApply(),
        ({0: BATCH, 2: DEPTH, 3: ROWS, 4: COLUMNS}, {0: BATCH, 1: H, 2: W}, {0: BATCH, 2: H, 3: W}),
        lambda h, w: (
            (_rand(2, 12, 4, 3, 5), _rand(2, h, w), _rand(2, 3, h, w))
            if h == 30
            else (_rand(3, 12, 8, 6, 2), _rand(3, h, w), _rand(3, 3, h, w))
        ),
    ),
    "slice": (modules.Slice(lattice="half_pixel"), (None, GUIDE), lambda h, w: (_grid(), _pixels(h, w)[1])),
    "splat": (modules.Splat((4, 3, 5)), (IMAGE, GUIDE), _pixels),
    "bilateral_filter": (modules.BilateralFilter(**FILTER), (IMAGE, GUIDE), _pixels),
    "joint_bilateral_upsample": (
        modules.JointBilateralUpsample(**FILTER),
        (LOW, LOW_GUIDE, GUIDE),
        lambda h, w: (*_pixels(h // 3, w // 2), _pixels(h, w)[1]),
    ),
    "tonemap": (modules.Tonemap(sigma_space=2), (IMAGE,), lambda h, w: _pixels(h, w)[:1]),
    "equalize_histogram": (modules.EqualizeHistogram(sigma_space=3), (IMAGE,), lambda h, w: _pixels(h, w)[:1]),
    "merge_flash": (
        modules.MergeFlash(sigma_space=2, exposure=0.2),
        (IMAGE, IMAGE),
        lambda h, w: (_pixels(h, w)[0], _pixels(h, w)[0].flip(3)),
    ),
    "fit": (modules.Fit((4, 3, 5)), (IMAGE, IMAGE), lambda h, w: (_pixels(h, w)[0], _pixels(h, w)[0].sqrt())),
    "guided_upsample": (
        modules.GuidedUpsample(size=(4, 3, 5)),
        (IMAGE, LOW, LOW),
        lambda h, w: (_pixels(h, w)[0], _pixels(h // 3, w // 2)[0], _pixels(h // 3, w // 2)[0].sqrt()),
    ),
    "hdrnet": (
        Whole(lambda grid, guide, image: hdrnet.bilateral_slice_apply(grid, guide, image, eps=1e-8)),
        ((None, {1: H, 2: W}, {1: H, 2: W}),),
        lambda h, w: (_rand(1, 3, 5, 4, 12), _pixels(h, w)[1], _pixels(h, w)[0].movedim(1, 3)),
    ),
}
QUICK = ("enhance", "bilateral_filter", "batch and grid")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EXPORTED]


@pytest.mark.parametrize("name", NAMES)
def test_export_with_dynamic_sizes_to_a_file_and_back(name: str) -> None:
    module, sizes, draw = EXPORTED[name]
    module.eval()
    program = torch.export.export(module, draw(30, 37), dynamic_shapes=sizes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for size in ((30, 37), (27, 52)):
        given = draw(*size)
        torch.testing.assert_close(loaded(*given), module(*given))


@pytest.mark.slow
def test_a_file_is_read_where_the_package_is_imported(tmp_path: Path) -> None:
    """The operators are known by name: without the import it is torch that says so."""
    module, sizes, draw = EXPORTED["slice"]
    torch.export.save(torch.export.export(module, draw(30, 37), dynamic_shapes=sizes), tmp_path / "slice.pt2")
    program = "import torch{}; print(tuple(torch.export.load({!r}).module()(torch.rand(1, 12, 4, 3, 5), torch.rand(1, 9, 11)).shape))"
    for more, found in ((", bilagrid", "(1, 12, 9, 11)"), ("", "")):
        done = attempt("-c", program.format(more, str(tmp_path / "slice.pt2")))
        assert done.stdout.strip() == found
        assert found or "bilagrid" in done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["enhance", "bilateral_filter"])
def test_aot_inductor_packages(name: str, tmp_path: Path) -> None:
    module, sizes, draw = EXPORTED[name]
    program = torch.export.export(module.eval(), draw(30, 37), dynamic_shapes=sizes)
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "packed.pt2"))
        packed = torch._inductor.aoti_load_package(path)
        for size in ((30, 37), (27, 52)):
            given = draw(*size)
            torch.testing.assert_close(packed(*given), module(*given))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_compile_with_inductor(mode: str) -> None:
    module, image = Enhance(), torch.rand(2, 3, 24, 30)
    compiled = torch.compile(module, fullgraph=True, mode=mode, dynamic=True)
    for size in ((24, 30), (17, 40)):
        image = torch.rand(2, 3, *size)
        found = torch.autograd.grad(compiled(image).square().sum(), tuple(module.parameters()))
        wanted = torch.autograd.grad(module(image).square().sum(), tuple(module.parameters()))
        for one, other in zip(found, wanted, strict=True):
            assert_near(one, other)


# What breaks a graph, and goes on in the next: of an image (1, 3, H, W).
BREAKING: dict[str, Callable[[Tensor], Tensor]] = {
    "a measured range": lambda image: bilagrid.bilateral_filter(image, sigma_space=2, sigma_color=0.2),
    "colorize": lambda image: bilagrid.colorize(image, image.flip(1), image[:, 0] > 0.5),
    "a global fit": lambda image: bilagrid.fit(image, image.detach().sqrt(), size=(4, 3, 5), method="global"),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", BREAKING)
def test_what_breaks_a_graph_goes_on(name: str) -> None:
    image = _pixels(20, 26)[0].requires_grad_()
    run = BREAKING[name]
    (wanted,) = torch.autograd.grad(run(image).square().sum(), image)
    compiled = torch.compile(run, dynamic=True, backend="eager")
    (found,) = torch.autograd.grad(compiled(image).square().sum(), image)
    assert_near(found, wanted)
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        torch.compile(run, fullgraph=True, backend="eager")(image)


# What cannot be done, by whom it is refused, and with which words: README's table says the same.
IMPOSSIBLE: dict[str, tuple[Callable[[], object], str]] = {
    "a global fit in torch.export": (
        lambda: torch.export.export(modules.Fit((4, 3, 5), method="global"), (_rand(1, 3, 30, 37),) * 2),
        "Could not guard on data-dependent expression",
    ),
    "colorize in torch.export": (
        lambda: torch.export.export(modules.Colorize(), (*_pixels(30, 37)[:1], *_pixels(30, 37))),
        "Could not guard on data-dependent expression",
    ),
    "equalize_histogram's own sigma in torch.export": (
        lambda: torch.export.export(
            modules.EqualizeHistogram(), (_rand(1, 3, 30, 37),), dynamic_shapes=(IMAGE,)
        ).module()(_rand(1, 3, 60, 90)),
        "Guard failed|Constraints violated",
    ),
    "merge_flash's own sigma in torch.export": (
        lambda: torch.export.export(
            modules.MergeFlash(), (_rand(1, 3, 90, 111), _rand(1, 3, 90, 111)), dynamic_shapes=(IMAGE, IMAGE)
        ).module()(_rand(1, 3, 160, 190), _rand(1, 3, 160, 190)),
        "Guard failed|Constraints violated",
    ),
    "a filter that measures its range in torch.export": (
        lambda: torch.export.export(modules.BilateralFilter(2, 0.2), (_rand(1, 1, 30, 37),)),
        "guide_range must be given|data-dependent",
    ),
    "tonemap's own sigma in torch.export": (
        lambda: torch.export.export(modules.Tonemap(), (_rand(1, 3, 30, 37),), dynamic_shapes=(IMAGE,)).module()(
            _rand(1, 3, 60, 90)
        ),
        "Guard failed|Constraints violated",
    ),
    "tonemap's own choice of pixels in torch.export": (
        lambda: torch.export.export(
            modules.Tonemap(sigma_space=2), (_rand(1, 3, 30, 37),), dynamic_shapes=(IMAGE,)
        ).module()(_rand(1, 3, 1030, 1020)),
        "Guard failed|Constraints violated",
    ),
    "guided_upsample's own size in torch.export": (
        lambda: torch.export.export(
            modules.GuidedUpsample(), EXPORTED["guided_upsample"][2](90, 111), dynamic_shapes=(IMAGE, LOW, LOW)
        ),
        "Constraints violated|Guard failed",
    ),
    "TorchScript by tracing": (
        lambda: torch.jit.trace(modules.Slice(), (_grid(), _rand(1, 9, 11))),
        "INTERNAL ASSERT FAILED|Tracer",
    ),
    "TorchScript by scripting": (lambda: torch.jit.script(modules.Slice()), "NotSupported|Unknown type|[Cc]ompil"),
    "forward mode": (
        lambda: torch.func.jvp(lambda guide: bilagrid.slice(_grid(), guide), (_rand(1, 9, 11),), (_rand(1, 9, 11),)),
        r"use reverse mode",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "own" in name else name for name in IMPOSSIBLE]
)
def test_what_cannot_be_done_says_so(name: str) -> None:
    call, message = IMPOSSIBLE[name]
    with pytest.raises(Exception, match=message):
        call()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_has_no_such_operators() -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(torch.onnx.OnnxExporterError, match="bilagrid"):
        torch.onnx.export(modules.Slice(), (_grid(), _rand(1, 9, 11)), dynamo=True)


def _all_of(grid: Tensor, guide: Tensor, image: Tensor) -> list[Tensor]:
    curves = modules.Curves(3).requires_grad_(False)
    with torch.no_grad():
        curves.matrix.copy_(torch.eye(3))
    return [
        bilagrid.slice(grid, guide),
        bilagrid.slice_apply(grid, guide, image),
        bilagrid.slice_apply(grid, None, image),
        bilagrid.splat(image, guide, (4, 3, 5)),
        bilagrid.blur(grid, 0.8),
        bilagrid.total_variation(grid),
        curves(image),
        bilagrid.bilateral_filter(image, guide, **FILTER),
        bilagrid.joint_bilateral_upsample(image, guide, guide.repeat_interleave(2, 1), **FILTER),
        bilagrid.tonemap(image),
        bilagrid.fit(image, image.sqrt(), guide, size=(4, 3, 5)),
    ]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(half: torch.dtype) -> None:
    """Nothing is cast: float32 grids, images and parameters stay so, with the same bits, and so do gradients of both orders."""
    grid, (image, guide) = _grid(), _pixels(20, 26)
    wanted = _all_of(grid, guide, image)
    with torch.autocast("cpu", dtype=half):
        found = _all_of(grid, guide, image)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=0)

    module = modules.Curves(3, knots=4)

    def both(run: Callable[[Tensor], Tensor], *others: Tensor) -> tuple[Tensor, ...]:
        leaf = image.clone().requires_grad_()
        (first,) = torch.autograd.grad(run(leaf).square().sum(), leaf, create_graph=True)
        return first, *torch.autograd.grad(first.square().sum(), (leaf, *others), allow_unused=True)

    for given in (
        (module, *module.parameters()),
        (lambda image: bilagrid.fit(image, image.square(), size=(2, 2, 3)),),
        (lambda image: bilagrid.fit(image, image.square(), size=(2, 2, 3), method="global"),),
    ):
        wanted = both(*given)
        with torch.autocast("cpu", dtype=half):
            found = both(*given)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_training_under_autocast(half: torch.dtype) -> None:
    """A convolution that autocast runs in half gives the guide; grid, sums and gradients are float32."""
    torch.manual_seed(0)
    mixed, grid = nn.Conv2d(3, 1, 1), nn.Parameter(_grid())
    image = _pixels(20, 26)[0].to(half)
    with torch.autocast("cpu", dtype=half):
        guide = mixed(image)[:, 0]
        assert guide.dtype == half
        out = bilagrid.slice_apply(grid, guide, image)
        assert out.dtype == half
        loss = out.float().square().mean()
    loss.backward()
    assert grid.grad is not None
    assert grid.grad.dtype == mixed.weight.grad.dtype == torch.float32
    leaf = grid.detach().clone().requires_grad_()
    bilagrid.slice_apply(leaf, guide.detach().float(), image.float()).square().mean().backward()
    torch.testing.assert_close(grid.grad, leaf.grad, rtol=0, atol=float(0.05 * leaf.grad.abs().max()))
    # A half grid is accumulated in float32: many small terms are not lost beside a large sum.
    ones = torch.ones(1, 1, 100, 100, dtype=half)
    summed = bilagrid.splat(ones, ones[:, 0], (1, 1, 1))
    assert (summed.dtype, summed.item()) == (torch.float32, 10000)


def test_functional_calls_and_ensembles() -> None:
    """Gradients of each image of a batch, and of several models at once."""
    module, images = Enhance(), _rand(3, 3, 12, 14)
    state = dict(module.named_parameters())

    def loss(state: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(module, state, (image[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(state, images)
    for n in range(3):
        wanted = torch.autograd.grad(loss(state, images[n]), tuple(state.values()))
        for name, gradient in zip(state, wanted, strict=True):
            assert_near(each[name][n], gradient)
    models = [Enhance() for _ in range(2)]
    stacked, _ = torch.func.stack_module_state(models)  # type: ignore[arg-type]
    found = torch.func.vmap(lambda state: torch.func.functional_call(module, state, (images,)))(stacked)
    for n, model in enumerate(models):
        assert_near(found[n], model(images))


def test_checkpointing_and_inference() -> None:
    module, image = Enhance(), _pixels(12, 14)[0].requires_grad_()
    wanted = torch.autograd.grad(module(image).square().sum(), (image, module.grid))
    found = torch.autograd.grad(checkpoint(module, image, use_reentrant=False).square().sum(), (image, module.grid))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    with torch.inference_mode():
        assert_near(module(image.detach()), module(image))


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    python(*torchrun, "tests.distributed_worker", tmp_path / "state.pt", OMP_NUM_THREADS="1")
    found, wanted = torch.load(tmp_path / "state.pt", weights_only=True), train()
    assert found.keys() == wanted.keys()
    for name in wanted:
        # Halves of a mean, averaged.
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(wanted["grid"], Enhance().grid.detach())


@pytest.mark.skipif(not HAS_CUDA, reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("name", ["enhance", "bilateral_filter"])
def test_cuda_graphs(name: str) -> None:
    module, _, draw = EXPORTED[name]
    module = module.cuda()
    given = tuple(tensor.cuda().requires_grad_() for tensor in draw(30, 37))
    graphed = torch.cuda.make_graphed_callables(module, given)
    other = tuple(torch.rand_like(tensor).requires_grad_() for tensor in given)
    for one, wanted in zip(
        torch.autograd.grad(graphed(*other).square().sum(), other),
        torch.autograd.grad(EXPORTED[name][0](*other).square().sum(), other),
        strict=True,
    ):
        torch.testing.assert_close(one, wanted)

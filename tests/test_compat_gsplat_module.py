"""`bilagrid.compat.gsplat` among torch's own machinery: the dictionary that it returns, modules that wrap its own, compilation, export, transforms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from bilagrid.compat import gsplat, pixel_grid
from tests.helpers import assert_near
from tests.test_compat_gsplat import module


class TestResult:
    """What `slice` returns is a dictionary whose maps are computed on demand."""

    def sliced(self) -> tuple[gsplat.BilateralGrid, dict[str, Tensor]]:
        grids = module(1, (2, 3, 3), torch.float32)
        return grids, gsplat.slice(grids, pixel_grid(4, 5), torch.rand(1, 4, 5, 3), 0)

    def test_is_a_dictionary(self) -> None:
        out = self.sliced()[1]
        assert isinstance(out, dict)
        assert list(out) == list(out.keys()) == ["rgb", "rgb_affine_mats"]
        assert len(out) == 2
        assert "rgb_affine_mats" in out
        assert "depth" not in out
        assert out.get("depth") is None
        with torch.no_grad():
            copied = copy.deepcopy(self.sliced()[1])
        for made in (dict(out), {**out}, out.copy(), copied, dict(out.items())):
            assert made["rgb_affine_mats"].shape == (1, 4, 5, 3, 4)
        assert out.pop("rgb_affine_mats").shape == (1, 4, 5, 3, 4)
        assert list(out) == ["rgb"]
        with pytest.raises(KeyError):
            out["rgb_affine_mats"]

    def test_can_be_written_to(self) -> None:
        out = self.sliced()[1]
        out["rgb_affine_mats"] = torch.zeros(1)
        assert out["rgb_affine_mats"].numel() == 1
        out = self.sliced()[1]
        del out["rgb_affine_mats"]
        assert list(out) == ["rgb"]
        out = self.sliced()[1]
        out.update(depth=torch.ones(1))
        assert sorted(out) == ["depth", "rgb", "rgb_affine_mats"]
        assert "depth" in repr(out)

    def test_maps_are_those_of_the_call(self) -> None:
        grids, out = self.sliced()
        with torch.no_grad():
            assert out["rgb_affine_mats"].requires_grad
        grids, out = self.sliced()
        with torch.no_grad():
            grids.grids += 1
        with pytest.raises(RuntimeError, match="must be read before the grids, xy or rgb are changed"):
            out["rgb_affine_mats"]

    def test_maps_of_a_functional_call(self) -> None:
        grids = module(1, (2, 3, 3), torch.float32)
        other = torch.zeros_like(grids.grids)
        out = torch.func.functional_call(_Trainer(grids), {"grids.grids": other}, (torch.rand(1, 4, 5, 3),))
        assert not out["rgb_affine_mats"].any()


class _Trainer(torch.nn.Module):
    def __init__(self, grids: torch.nn.Module) -> None:
        super().__init__()
        self.grids = grids

    def forward(self, rgb: Tensor) -> dict[str, Tensor]:
        return gsplat.slice(self.grids, pixel_grid(*rgb.shape[1:3]), rgb, 0)


class _Wrapper(torch.nn.Module):
    """As ``DistributedDataParallel`` does: hands on the call."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *arguments, **keywords) -> Tensor:
        self.calls += 1
        return self.module(*arguments, **keywords)


def test_a_wrapped_module_is_called() -> None:
    grids = module(2, (2, 3, 3))
    wrapped, rgb = _Wrapper(grids), torch.rand(1, 4, 5, 3).double()
    out = gsplat.slice(wrapped, pixel_grid(4, 5), rgb, 1)
    assert torch.equal(out["rgb"], gsplat.slice(grids, pixel_grid(4, 5), rgb, 1)["rgb"])
    assert wrapped.calls == 1


def test_compiled_and_exported() -> None:
    grids = module(2, (2, 3, 3), torch.float32)
    trainer = _Trainer(grids)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(trainer, fullgraph=True, dynamic=True, backend=keep)
    for image in ((4, 5), (6, 7), (9, 5)):
        rgb = torch.rand(1, *image, 3)
        torch.testing.assert_close(compiled(rgb)["rgb"], trainer(rgb)["rgb"])
    assert len(graphs) == 1
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        trainer, (torch.rand(1, 4, 5, 3),), dynamic_shapes=({1: dynamic, 2: dynamic},)
    ).module()
    rgb = torch.rand(1, 11, 8, 3)
    for name, wanted in trainer(rgb).items():
        torch.testing.assert_close(program(rgb)[name], wanted)


def test_compiled_where_sizes_are_those_of_channels() -> None:
    """Images of 2 and 3 rows beside the 2 and 3 numbers of a place and a colour, which a compiler takes for the same symbol."""
    grids = module(3, (2, 3, 3), torch.float32)

    def run(xy: Tensor, rgb: Tensor, index: Tensor) -> Tensor:
        return gsplat.slice(grids, xy, rgb, index)["rgb"]

    given = torch.rand(2, 3, 3, 2), torch.rand(2, 3, 3, 3), torch.tensor([[1], [2]])
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(*given), run(*given))


def test_transforms() -> None:
    grids, xy = module(3, (2, 3, 3)), pixel_grid(4, 5, dtype=torch.float64)
    rgb, places, index = torch.rand(6, 2, 4, 5, 3).double(), torch.rand(6, 2, 4, 5, 2).double(), torch.arange(6) % 3

    def lattice(rgb: Tensor, index: Tensor) -> Tensor:
        return gsplat.slice(grids, xy, rgb, index)["rgb"]

    def points(rgb: Tensor, places: Tensor, index: Tensor) -> Tensor:
        return gsplat.slice(grids, places, rgb, index)["rgb"]

    for function, arguments in ((lattice, (rgb, index)), (points, (rgb, places, index))):
        each = torch.stack([function(*one) for one in zip(*arguments, strict=True)])
        assert_near(torch.func.vmap(function)(*arguments), each)
        first = [argument[0] for argument in arguments]
        slope = torch.func.grad(lambda rgb, *rest: function(rgb, *rest).square().sum())(*first)  # noqa: B023
        leaf = first[0].clone().requires_grad_()
        assert_near(slope, torch.autograd.grad(function(leaf, *first[1:]).square().sum(), leaf)[0])


def test_a_transform_may_return_the_dictionary() -> None:
    grids, xy, rgb = module(1, (2, 3, 3), torch.float32), pixel_grid(4, 5), torch.rand(3, 1, 4, 5, 3)
    mapped = torch.func.vmap(lambda rgb: gsplat.slice(grids, xy, rgb, 0))(rgb)

    def loss(rgb: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out = gsplat.slice(grids, xy, rgb, 0)
        return out["rgb"].sum(), out

    beside = torch.func.grad(loss, has_aux=True)(rgb[0])[1]
    for name, wanted in gsplat.slice(grids, xy, rgb[0], 0).items():
        assert_near(mapped[name][0], wanted)
        assert_near(beside[name], wanted)


def test_a_default_device_has_no_say() -> None:
    grids, xy, rgb = module(2, (2, 3, 3), torch.float32, gauge=True), pixel_grid(4, 5), torch.rand(1, 4, 5, 3)
    wanted = gsplat.slice(grids, xy, rgb, 1)["rgb"]
    with torch.device("meta"):
        grids.load_state_dict(grids.state_dict())
        found = gsplat.slice(grids, xy, rgb, 1)["rgb"]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_nothing_to_slice() -> None:
    grids = module(3, (2, 3, 3), torch.float32)
    for lead in ((0,), (0, 4), (0, 4, 5)):
        for index in (torch.zeros(0, 1).long(), torch.tensor(1)):
            out = gsplat.slice(grids, torch.rand(*lead, 2), torch.rand(*lead, 3), index)
            assert out["rgb"].shape == (*lead, 3)
    assert gsplat.slice(grids, pixel_grid(4, 5), torch.rand(0, 4, 5, 3), 1)["rgb"].shape == (0, 4, 5, 3)

"""`bilagrid.compat.pixel_grid`: the numbers that trainers compute, and what is recognised as a lattice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bilagrid import Lattice
from bilagrid.compat import pixel_grid
from bilagrid.compat._places import lattice_of
from tests.splatting import corners, half_pixels

SIZE = (8, 16, 12)
HALF = Lattice.half_pixel(SIZE, (6, 9))


@pytest.mark.parametrize("image", [(1, 1), (1, 7), (6, 1), (45, 78), (420, 648)])
def test_holds_the_trainers_numbers(image: tuple[int, int]) -> None:
    assert torch.equal(pixel_grid(*image), half_pixels(*image))
    assert torch.equal(pixel_grid(*image, kind="corner_aligned"), corners(*image))
    assert pixel_grid(*image, dtype=torch.float64).dtype == torch.float64


def test_is_recognised_with_its_views() -> None:
    xy = pixel_grid(6, 9)
    assert lattice_of(xy, SIZE) == HALF
    assert lattice_of(pixel_grid(6, 9, kind="corner_aligned"), SIZE) == Lattice.corner_aligned(SIZE, (6, 9))
    for view in (xy[0], xy.expand(4, -1, -1, -1), xy.view(1, 1, 6, 9, 2), xy.squeeze(0).unsqueeze(0), xy[:1]):
        assert lattice_of(view, SIZE) == HALF
    assert lattice_of(xy[:, 2:5, 3:], SIZE) == HALF.crop(2, 3)
    assert lattice_of(xy[:, 2:5][:, 1:, 4:8].expand(3, -1, -1, -1), SIZE) == HALF.crop(3, 4)
    assert lattice_of(xy[0, 5:, 8:], SIZE) == HALF.crop(5, 8)


@pytest.mark.parametrize(
    "other",
    [
        lambda xy: xy.clone(),
        lambda xy: xy + 0,
        lambda xy: xy[:, ::2],
        lambda xy: xy[:, :, ::2],
        lambda xy: xy.flip(1),
        lambda xy: xy.transpose(1, 2),
        lambda xy: xy.flip(-1),
        lambda xy: xy.reshape(-1, 2),
        lambda xy: xy.reshape(1, 9, 6, 2),
        lambda xy: xy.unfold(1, 2, 1).movedim(-1, 1),
        lambda xy: xy.double(),
        lambda xy: xy.view(torch.int32),
        lambda xy: xy[..., 1:],
        lambda xy: xy.as_strided((1, 5, 9, 2), (0, 18, 2, 1), 1),
        lambda xy: xy.as_strided((2, 3, 9, 2), (54, 18, 2, 1)),
        lambda xy: xy.clone().requires_grad_(),
        lambda xy: xy.requires_grad_(),
        lambda xy: xy[:, 1:].requires_grad_(),
        lambda xy: half_pixels(6, 9),
    ],
)
def test_anything_else_is_not(other) -> None:
    assert lattice_of(other(pixel_grid(6, 9)), SIZE) is None


def test_a_change_in_place_is_noticed() -> None:
    xy = pixel_grid(6, 9)
    kept = xy.expand(2, -1, -1, -1)
    xy[0, 0, 0, 0] += 0.1
    assert lattice_of(xy, SIZE) is None
    assert lattice_of(kept, SIZE) is None
    through_view = pixel_grid(6, 9)
    through_view[:, 2:].mul_(2)
    assert lattice_of(through_view, SIZE) is None


def test_in_inference_mode() -> None:
    with torch.inference_mode():
        xy = pixel_grid(6, 9)
        assert lattice_of(xy.expand(2, -1, -1, -1), SIZE) == HALF
        xy.mul_(2)
        assert lattice_of(xy, SIZE) is None
    assert lattice_of(pixel_grid(6, 9), SIZE) == HALF


def test_is_recognised_under_compile() -> None:
    graphs = 0

    def count(graph, inputs):
        nonlocal graphs
        graphs += 1
        return graph

    @torch.compile(fullgraph=True, dynamic=True, backend=count)
    def per_row(xy: Tensor, rgb: Tensor) -> Tensor:
        lattice = lattice_of(xy, SIZE)
        return -rgb if lattice is None else rgb * lattice.scale[1]

    one = torch.ones(3)
    for height in (6, 7, 9):
        assert per_row(pixel_grid(height, 8), one)[0].item() == pytest.approx(15 / height)
    assert graphs == 1
    assert per_row(pixel_grid(5, 8, kind="corner_aligned"), one)[0].item() == pytest.approx(15 / 4)
    assert per_row(pixel_grid(5, 8).expand(2, -1, -1, -1), one)[0].item() == pytest.approx(15 / 5)
    assert per_row(half_pixels(6, 9), one)[0].item() == -1
    assert per_row(pixel_grid(5, 8)[:, 1:], one)[0].item() == -1

    @torch.compile(fullgraph=True, backend="eager")
    def made_inside(rgb: Tensor) -> Tensor:
        return per_row(pixel_grid(*rgb.shape[1:3]), rgb)

    assert made_inside(torch.ones(1, 6, 9, 3))[0, 0, 0, 0].item() == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 4), ValueError, "height must be at least 1 pixel, got 0"),
        ((4, -1), ValueError, "width must be at least 1 pixel, got -1"),
        ((4.0, 4), TypeError, "height must be a whole number of pixels, got 4.0"),
        ((4, torch.tensor(4.0)), TypeError, r"width must be a whole number of pixels, got tensor\(4.\)"),
        ((4, 4, "cell_centered"), ValueError, "kind must be 'half_pixel' or 'corner_aligned', got 'cell_centered'"),
    ],
)
def test_wrong_arguments(arguments, error, message) -> None:
    kind = arguments[2] if len(arguments) > 2 else "half_pixel"
    with pytest.raises(error, match=message):
        pixel_grid(*arguments[:2], kind=kind)

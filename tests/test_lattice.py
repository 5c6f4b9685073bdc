"""The geometry's published tables, crops and refusals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bilagrid
from bilagrid import Lattice
from tests.helpers import CONSTRUCTORS
from tests.reference import lattice as reference

SIZE, IMAGE = (8, 16, 12), (90, 160)
TABLE = {
    "cell_centered": ((8, 16 / 90, 12 / 160), (-0.5, 16 / 180 - 0.5, 12 / 320 - 0.5)),
    "half_pixel": ((7, 15 / 90, 11 / 160), (0, 15 / 180, 11 / 320)),
    "corner_aligned": ((7, 15 / 89, 11 / 159), (0, 0, 0)),
}


@pytest.mark.parametrize("kind", sorted(TABLE))
def test_table(kind: str) -> None:
    lattice = CONSTRUCTORS[kind](SIZE, IMAGE)
    scale, offset = TABLE[kind]
    assert lattice.scale == pytest.approx(scale)
    assert lattice.offset == pytest.approx(offset)


def test_corner_aligned_image_of_one_pixel() -> None:
    assert Lattice.corner_aligned(SIZE, (1, 1)).scale == (7, 0, 0)


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
IMAGES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


def assert_same(lattice: Lattice, wanted: reference.Lattice) -> None:
    assert lattice.size == wanted.size
    assert lattice.scale == pytest.approx(wanted.scale, rel=1e-14)
    # Offsets are differences of numbers near 1, or of as many nodes as a crop has gone past.
    assert lattice.offset == pytest.approx(wanted.offset, rel=1e-14, abs=1e-13)


@given(
    kind=st.sampled_from(sorted(TABLE)),
    size=SIZES,
    image_size=IMAGES,
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_equals_reference(
    kind: str, size: tuple[int, int, int], image_size: tuple[int, int], place: tuple[float, float]
) -> None:
    lattice, wanted = CONSTRUCTORS[kind](size, image_size), getattr(reference, kind)(size, image_size)
    assert_same(lattice, wanted)
    top, left = (int(part * (extent - 1)) for part, extent in zip(place, image_size, strict=True))
    assert_same(lattice.crop(top, left), wanted.crop(top, left))


@given(
    sigmas=st.tuples(st.floats(0.5, 64), st.floats(0.01, 1)),
    image_size=IMAGES,
    guide_range=st.tuples(st.floats(-2, 0), st.floats(0, 3)),
    nodes_per_sigma=st.tuples(*[st.sampled_from([0.75, 1.0, 1.25])] * 3),
)
def test_from_sigma_equals_reference(sigmas, image_size, guide_range, nodes_per_sigma) -> None:
    options = {"guide_range": guide_range, "nodes_per_sigma": nodes_per_sigma}
    lattice, size = Lattice.from_sigma(*sigmas, image_size, **options)
    wanted = reference.from_sigma(*sigmas, image_size, **options)
    assert lattice.size == size
    assert_same(lattice, wanted)
    top, left = image_size[0] // 2, image_size[1] // 3
    assert_same(lattice.crop(top, left), wanted.crop(top, left))


@given(space=st.floats(1, 40), color=st.floats(0.02, 1), low=st.floats(-2, 0), high=st.floats(0, 3))
def test_from_sigma_keeps_the_guide_off_the_border(space: float, color: float, low: float, high: float) -> None:
    lattice, size = Lattice.from_sigma(space, color, IMAGE, guide_range=(low, high))
    scale_z, offset_z = lattice.scale[0], lattice.offset[0]
    assert low * scale_z + offset_z > 0.5
    assert high * scale_z + offset_z < size[0] - 1.5
    assert (IMAGE[0] - 1) * lattice.scale[1] <= size[1] - 1
    assert (IMAGE[1] - 1) * lattice.scale[2] <= size[2] - 1


@given(kind=st.sampled_from(sorted(TABLE)), top=st.integers(0, 20), left=st.integers(0, 20), seed=st.integers(0, 99))
def test_a_tile_equals_the_whole_bit_for_bit(kind: str, top: int, left: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    size, image_size = (4, 5, 3), (31, 27)
    lattice = CONSTRUCTORS[kind](size, image_size)
    grid, guide = torch.randn(1, 2, *size, generator=generator), torch.rand(1, *image_size, generator=generator)
    whole = bilagrid.slice(grid, guide, lattice=lattice)
    tile = bilagrid.slice(grid, guide[:, top:, left:], lattice=lattice.crop(top, left))
    torch.testing.assert_close(tile, whole[..., top:, left:], rtol=0, atol=0)


@pytest.mark.parametrize("sized", [(180, 320), (33, 41), (90, 160)])
def test_a_resized_lattice_covers_the_same_area(sized: tuple[int, int]) -> None:
    """A place in the picture, told as a share of its height and width, keeps its place in the grid."""
    lattice, _ = Lattice.from_sigma(8, 0.1, IMAGE)
    resized = lattice.resize(sized)
    for share in (0.0, 0.3, 1.0):
        for axis in (1, 2):
            before = (share * IMAGE[axis - 1] - 0.5) * lattice.scale[axis] + lattice.offset[axis]
            after = (share * sized[axis - 1] - 0.5) * resized.scale[axis] + resized.offset[axis]
            assert after == pytest.approx(before)
    assert resized.scale[0] == lattice.scale[0]
    assert lattice.resize(sized).resize(IMAGE) == lattice
    assert Lattice.half_pixel(SIZE, IMAGE).resize(sized) == Lattice.half_pixel(SIZE, sized)


def test_crops_add_up() -> None:
    lattice = Lattice.half_pixel(SIZE, IMAGE)
    assert lattice.crop(3, 4).crop(5, 6) == lattice.crop(8, 10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Lattice.half_pixel((0, 1, 1), IMAGE), r"size must be \(D, Gh, Gw\)"),
        (lambda: Lattice.half_pixel(SIZE, (0, 4)), r"image_size must be \(H, W\)"),
        (lambda: Lattice.half_pixel(SIZE, IMAGE).crop(-1, 0), "crop must start within"),
        (lambda: Lattice.half_pixel(SIZE, IMAGE).crop(1, 0).resize((5, 5)), "resize takes a lattice of a whole image"),
        (lambda: Lattice("bogus", SIZE, IMAGE), "kind must be one of cell_centered"),
        (lambda: Lattice("sigma", SIZE, IMAGE), "build one with Lattice.from_sigma"),
        (lambda: Lattice.half_pixel((2**31, 2, 2), IMAGE), "each from 1 to"),
        (lambda: Lattice.half_pixel(SIZE, IMAGE).crop(90, 0), "crop must start within"),
        (lambda: Lattice.from_sigma(0, 0.1, IMAGE), "sigma_space must be"),
        (lambda: Lattice.from_sigma(8, float("nan"), IMAGE), "sigma_color must be"),
        (lambda: Lattice.from_sigma(8, 0.1, IMAGE, guide_range=(1.0, 0.0)), "guide_range must be"),
        (lambda: Lattice.from_sigma(8, 0.1, IMAGE, nodes_per_sigma=(1.0, 1.0, 0.0)), "nodes_per_sigma must be"),
        (lambda: Lattice.from_sigma(1e-320, 1e-320, IMAGE), "without bound"),
    ],
)
def test_refusals(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Lattice.half_pixel((4.5, 2, 2), IMAGE), "size must be in whole numbers, got 4.5"),
        (lambda: Lattice.half_pixel(8, IMAGE), r"size must be \(D, Gh, Gw\), 3 integers, got 8"),
        (lambda: Lattice.half_pixel(SIZE, 6), r"image_size must be \(H, W\), 2 integers, got 6"),
        (lambda: Lattice.from_sigma(8, 0.1, (6.5, 7)), "image_size must be in whole numbers, got 6.5"),
        (lambda: Lattice.half_pixel(SIZE, IMAGE).crop(1.5, 0), "top must be in whole numbers, got 1.5"),
        (lambda: Lattice.half_pixel(SIZE, IMAGE).crop(1, None), "left must be in whole numbers, got None"),
        (
            lambda: Lattice.half_pixel(SIZE, IMAGE).crop(torch.tensor(1.0), 0),
            r"top must be in whole numbers, got tensor\(1.\)",
        ),
        (lambda: Lattice.half_pixel((4, np.ones(2), 2), IMAGE), "size must be in whole numbers, got array"),
        (lambda: Lattice.from_sigma("8", 0.1, IMAGE), "sigma_space must be a number, got '8'"),
        (lambda: Lattice.from_sigma(8, None, IMAGE), "sigma_color must be a number, got None"),
        (lambda: Lattice.from_sigma(8, torch.tensor(0.1), IMAGE), "sigma_color must be a number, got tensor"),
        (
            lambda: Lattice.from_sigma(8, 0.1, IMAGE, guide_range=1),
            r"guide_range must be \(least, greatest\), 2 numbers, got 1",
        ),
        (
            lambda: Lattice.from_sigma(8, 0.1, IMAGE, nodes_per_sigma=(1, 1)),
            r"nodes_per_sigma must be \(z, y, x\), 3 numbers, got \(1, 1\)",
        ),
    ],
)
def test_what_is_not_a_number_is_refused(call: Callable[[], Lattice], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def test_whole_numbers_of_others_are_taken_as_pythons() -> None:
    given = Lattice.half_pixel((np.int64(4), torch.tensor(2), 3), IMAGE).crop(np.int32(1), torch.tensor(2))
    assert given == Lattice.half_pixel((4, 2, 3), IMAGE).crop(1, 2)
    assert all(type(number) is int for number in (*given.size, *given.origin))

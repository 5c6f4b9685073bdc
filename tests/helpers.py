"""What the tests share: drawn problems, tolerances, and a comparison that raises."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from bilagrid import Lattice
from tests.reference import lattice as reference

# Relative to the largest magnitude of the expected values. float32 sums a few thousand terms; half types round the inputs' products once, at the end.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

CONSTRUCTORS = {
    "cell_centered": Lattice.cell_centered,
    "half_pixel": Lattice.half_pixel,
    "corner_aligned": Lattice.corner_aligned,
}


def assert_near(actual: Tensor, expected: np.ndarray | Tensor, dtype: torch.dtype | None = None) -> None:
    """``actual`` has the shape of ``expected`` and equals it to the tolerance of ``dtype`` (its own by default), NaN where it is NaN."""
    if isinstance(expected, Tensor):
        expected = expected.detach().cpu().double().numpy()
    found = actual.detach().cpu().double().numpy()
    # NumPy would compare a scalar with anything.
    assert found.shape == np.shape(expected)
    finite = np.abs(expected[np.isfinite(expected)])
    scale = max(1.0, finite.max()) if finite.size else 1.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=scale * TOLERANCE[dtype or actual.dtype])


interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


def uniform(*shape: int) -> Tensor:
    """The same numbers between 0 and 1 at every call."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def numpy64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def strided(tensor: Tensor, how: str) -> Tensor:
    """The same values, lying differently in memory."""
    if how == "interleaved":
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
    if how == "sparse":
        wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1, dtype=tensor.dtype, device=tensor.device)
        wide[..., 1::2] = tensor
        return wide[..., 1::2]
    return tensor


STRIDES = ("contiguous", "interleaved", "sparse")


@dataclass(frozen=True)
class Problem:
    """One drawn case: sizes, lattice, types and how the tensors lie."""

    batch: int
    channels: int
    size: tuple[int, int, int]
    image_size: tuple[int, int]
    kind: str
    dtype: torch.dtype
    strides: str
    seed: int

    origin: tuple[int, int] = (0, 0)
    regime: str | None = None
    backend: str = "numba"

    def on(self, backend: str) -> Problem:
        """The problem for a backend, cut down for the interpreter: there a pixel of a node's footprint costs milliseconds.

        An explicit example is as large as it is for a reason: it says which backend it is for, and is not cut.
        """
        if backend != "interpreter" or self.backend == "any":
            return replace(self, backend=backend)
        depth, rows, columns = self.size
        height, width = self.image_size
        return replace(
            self,
            size=(min(depth, 4), min(rows, 3), min(columns, 3)),
            image_size=(min(height, 3), min(width, 7)),
            backend=backend,
        )

    @property
    def _whole(self) -> tuple[int, int]:
        """The image that this one is a tile of, from `origin`."""
        (top, left), (height, width) = self.origin, self.image_size
        return (top + height + 1, left + width + 2) if top or left else (height, width)

    @property
    def lattice(self) -> Lattice:
        return CONSTRUCTORS[self.kind](self.size, self._whole).crop(*self.origin)

    @property
    def reference(self) -> reference.Lattice:
        """The same lattice, from the tests' own tables."""
        return getattr(reference, self.kind)(self.size, self._whole).crop(*self.origin)

    @contextlib.contextmanager
    def kernels(self) -> Iterator[None]:
        """Within it, Triton's kernels of `regime` serve the problem, or those that it would get by itself where None."""
        if self.backend == "numba":
            yield
        else:
            from bilagrid.gpu import _regime

            with _regime.override(regime=self.regime):
                yield

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Grid, guide and values; the guide reaches below 0 and above 1, and in half types some of it lies on nodes."""
        generator = torch.Generator().manual_seed(self.seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        grid = draw(self.batch, self.channels, *self.size)
        guide = 1.4 * torch.rand(self.batch, *self.image_size, generator=generator, dtype=torch.float64) - 0.2
        values = draw(self.batch, self.channels, *self.image_size)
        placed = (strided(t.to(device_of(self.backend), self.dtype), self.strides) for t in (grid, guide, values))
        return tuple(placed)  # type: ignore[return-value]


@st.composite
def problems(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = tuple(TOLERANCE)) -> Problem:
    """Small problems: partial tiles, images smaller than the grid, extents of 1, empty batches, odd channel counts, tiles of a larger image."""
    extent = st.sampled_from([1, 2, 3, 5])
    return Problem(
        batch=draw(st.sampled_from([1, 2, 0])),
        channels=draw(st.sampled_from([1, 2, 3, 5, 12])),
        size=(draw(st.sampled_from([1, 2, 4, 9])), draw(extent), draw(extent)),
        image_size=(draw(st.sampled_from([1, 2, 7, 12])), draw(st.sampled_from([1, 3, 9, 33]))),
        kind=draw(st.sampled_from(sorted(CONSTRUCTORS))),
        dtype=draw(st.sampled_from(dtypes)),
        strides=draw(st.sampled_from(STRIDES)),
        seed=draw(st.integers(0, 2**16)),
        origin=draw(st.sampled_from([(0, 0), (0, 0), (4, 3)])),
        regime=draw(st.sampled_from([None, "coarse", "fine"])),
    )


# Of a blur along (z, y, x), for `given`.
SIGMAS = st.sampled_from([(0.0, 0.0, 0.0), (0.8, 0.8, 0.8), (1.1, 0.0, 0.6), (0.0, 2.5, 0.1), (3.0, 1.0, 0.0)])

# Shapes of images that a filter takes, for `given`.
IMAGES = {
    "height": st.sampled_from([1, 2, 9, 31]),
    "width": st.sampled_from([1, 3, 16, 40]),
    "channels": st.sampled_from([1, 3]),
    "batch": st.sampled_from([0, 1, 3]),
}


def rounded_to(problem: Problem) -> torch.dtype | None:
    """Whose tolerance a float32 grid has for `assert_near`: on a GPU, products of half types may be rounded to tf32, which has the digits of a float16."""
    half = problem.dtype in (torch.float16, torch.bfloat16)
    return torch.float16 if half and problem.backend == "cuda" else None


def device_of(backend: str) -> str:
    return "cuda" if backend == "cuda" else "cpu"


def example(channels: int, size: tuple[int, int, int], image_size: tuple[int, int], kind: str, **more: Any) -> Problem:
    """A float32 problem for every backend, as it is."""
    given = {"batch": 1, "dtype": torch.float32, "strides": "contiguous", "seed": 0} | more
    return Problem(channels=channels, size=size, image_size=image_size, kind=kind, backend="any", **given)


# For the coarse kernels: rows of two blocks, each of more pixels than a product takes at once.
COARSE = example(3, (4, 2, 2), (6, 130), "half_pixel", strides="interleaved")
# More planes and channels than one product has.
COARSE_TILES = example(17, (18, 1, 2), (2, 310), "cell_centered")
# For the coarse reduction by columns: blocks that hold several cells, a cell of two strips.
COARSE_STRIPS = example(1, (3, 2, 6), (17, 40), "corner_aligned", regime="coarse")
# For the fine kernels: rows of two blocks of nodes and of two blocks of pixels.
FINE_BLOCKS = example(2, (3, 2, 130), (2, 131), "corner_aligned")
# For the fine reduction: as many planes of a node as a lane adds up, and one more; channels in tiles.
FINE_PLANES = example(4, (16, 2, 3), (3, 5), "half_pixel")
FINE_TILES = example(4, (17, 2, 3), (3, 5), "half_pixel")


def off_nodes(shape: tuple[int, ...], depth: int, generator: torch.Generator | None = None) -> Tensor:
    """Guides in float64 whose z, on the cell-centred lattice, keeps a tenth of a cell away from every kink."""
    cells = torch.randint(-1, depth, shape, generator=generator)
    inside = 0.1 + 0.8 * torch.rand(shape, generator=generator, dtype=torch.float64)
    return (cells + inside + 0.5) / depth


def psnr(actual: Tensor, expected: np.ndarray) -> float:
    return -10 * math.log10(float(np.mean((numpy64(actual) - expected) ** 2)))

"""What is measured: every operator on every size, type, grid and guide. `perf.problems` makes the inputs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from bilagrid import Lattice
from bilagrid.filters import filter_lattice
from perf import costs
from perf.inputs import Draw

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
RESOLUTIONS = {
    "256": (256, 256),
    "512": (512, 512),
    "1080p": (1080, 1920),
    "4k": (2160, 3840),
    "8k": (4320, 7680),
}
DIRECTIONS = ("forward", "backward")
# The two in one step, as peers are timed too; no plot shows it.
BOTH = "forward and backward"

CELL_CENTERED = "cell-centered"
_LATTICES = {
    CELL_CENTERED: Lattice.cell_centered,
    "half-pixel": Lattice.half_pixel,
    "corner-aligned": Lattice.corner_aligned,
}

SIGMA_COLOR = 0.1
# The nodes of as many grids as a scene of 3-D Gaussian splatting has photographs: 256 of 16x16x8.
SCENE_NODES = 256 * 16 * 16 * 8
# The name of the grid of a case that has none, or leaves it to the function.
NO_GRID = "1x1x1"
# What gradients of a mean are multiplied by, as losses are where float16 would lose them.
_LOSS_SCALE = 2.0**12
LOW = 4  # pixels of the large image to one of the small, along each axis

# What an operator's inputs, results, gradients and the graph's tensors come to, in channels of float32 images and of grids.
_PLANES, _GRIDS = 64, 48


@dataclass(frozen=True)
class GridSpec:
    """A grid by name: ``16x16x8`` is Gw x Gh x D whatever the image, ``sigma8`` is that of a filter of 8 pixels.

    ``kind`` names the constructor of `Lattice` that lays a fixed grid on the image.
    """

    name: str
    fixed: tuple[int, int, int] | None = None
    sigma: float = 0.0
    kind: str = CELL_CENTERED

    @classmethod
    def parse(cls, name: str) -> GridSpec:
        """The grid of a name; raises ValueError if it is neither of the two."""
        if match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", name):
            columns, rows, depth = map(int, match.groups())
            return cls(name, (depth, rows, columns))
        if match := re.fullmatch(r"sigma(\d+(?:\.\d+)?)", name):
            sigma = float(match[1])
            if sigma < 1:
                raise ValueError(f"sigma must be 1 pixel or more, got {name}")
            return cls(name, None, sigma)
        raise ValueError(f"a grid is GWxGHxD, such as 16x16x8, or a filter's, such as sigma8; got {name}")

    def lattice(self, image: tuple[int, int]) -> Lattice:
        if self.fixed is not None:
            return _LATTICES[self.kind](self.fixed, image)
        return self._filter(image)[0]

    @property
    def blur(self) -> tuple[float, float, float]:
        """A filter's Gaussian in its grid, in nodes."""
        return self._filter((1, 1))[1]

    def _filter(self, image: tuple[int, int]) -> tuple[Lattice, tuple[float, float, float]]:
        guide = torch.empty((1, *image), device="meta")
        return filter_lattice(guide, self.sigma, SIGMA_COLOR, guide_range=(0.0, 1.0))

    @property
    def channels(self) -> int:
        """Of the grid itself: the coefficients of a colour map, or in a filter's grid a value and its weight."""
        return 12 if self.fixed is not None else 2


@dataclass(frozen=True)
class Case:
    """One row: an operator in one direction on one input. ``image`` is (H, W), or (0, 0) where there is none; ``guide`` is ``"none"`` where none is read."""

    operator: str
    direction: str
    guide: str
    dtype: str
    image: tuple[int, int]
    grid: str

    def __str__(self) -> str:
        size = f"{self.image[0]}x{self.image[1]}" if self.image[0] else "no image"
        guide = "" if self.guide == "none" else f", {self.guide}"
        return f"{self.operator} {self.direction}, {size}, {self.grid}, {self.dtype}{guide}"


Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """A case's tensors, and what is done with them: by us, and by the reference in float64. Solving equations may have ``magnified`` the rounding."""

    tensors: Tensors
    run: Callable[[Tensors], Tensor]
    reference: Callable[[Tensors], Tensor]
    sizes: costs.Sizes
    grid_size: tuple[int, int, int]
    magnified: float = 1.0

    def leaves(self) -> Tensors:
        """The same tensors, to be differentiated by."""
        return {name: tensor.detach().requires_grad_() for name, tensor in self.tensors.items()}


# What is composed of the operators.
EDITS = ("fit", "guided_upsample", "tonemap", "equalize_histogram", "merge_flash", "colorize")
OPERATORS = (
    "splat",
    "blur",
    "slice",
    "slice_points",
    "slice_apply",
    "slice_apply_luma",
    "slice_apply_bank",
    "curves",
    "total_variation",
    "bilateral_filter_gray",
    "bilateral_filter_colour",
    "joint_bilateral_upsample",
    *EDITS,
)
# Those that take as many steps as their values ask for, which nobody knows beforehand.
SOLVED = ("colorize",)
# Those that run on grids of 12 coefficients alone, those on a filter's, and those that need none or choose it themselves.
_MAPS = ("slice_apply", "slice_apply_luma", "slice_apply_bank", "slice_points", "total_variation", *EDITS[:2])
_FILTERS = ("blur", "bilateral_filter_gray", "bilateral_filter_colour", "joint_bilateral_upsample")
_OWN_GRID = ("curves", *EDITS[2:])


def cost(case: Case, sizes: costs.Sizes) -> costs.Cost:
    """The least that the case has to do."""
    operator = case.operator.removesuffix("_gray").removesuffix("_colour")
    parts = [costs.cost(operator, each, sizes) for each in DIRECTIONS if case.direction in (each, BOTH)]
    return costs.Cost(sum(part.bytes for part in parts), sum(part.flops for part in parts))


def memory(case: Case) -> int:
    """An upper estimate of the bytes that the case's tensors take while it is timed."""
    pixels = math.prod(case.image)
    nodes = math.prod(GridSpec.parse(case.grid).lattice(case.image if pixels else (1, 1)).size)
    return 4 * (_PLANES * pixels + _GRIDS * max(nodes, SCENE_NODES))


def cases(
    operators: Sequence[str],
    directions: Sequence[str],
    resolutions: Sequence[tuple[int, int]],
    dtypes: Sequence[str],
    grids: Sequence[GridSpec],
    guides: Sequence[str],
) -> list[Case]:
    """All combinations that make sense, small images first."""
    found: dict[Case, None] = {}
    images = sorted(resolutions, key=math.prod)
    for image, dtype, operator, spec, guide, direction in product(images, dtypes, operators, grids, guides, directions):
        if case := _sensible(Case(operator, direction, guide, dtype, image, spec.name), spec):
            found[case] = None
    return list(found)


def _sensible(case: Case, spec: GridSpec) -> Case | None:
    """The case, without what its operator does not read; None where nobody would use the operator with such a grid."""
    if case.operator in _OWN_GRID:
        return replace(case, grid=NO_GRID)
    if (spec.fixed is None and case.operator in _MAPS) or (spec.fixed and case.operator in _FILTERS):
        return None
    if case.operator == "blur":
        return replace(case, guide="none")
    if case.operator == "total_variation":
        return replace(case, guide="none", image=(0, 0))
    return case


def incoming(out: Tensor) -> Tensor:
    """An incoming gradient, laid out in memory as the output is."""
    grad = Draw.on(out.device).normal(*out.shape)
    return torch.empty_like(out).copy_(grad if out.ndim else grad * _LOSS_SCALE)


def work(case: Case, problem: Problem) -> Callable[[], object]:
    """What is timed, and may be repeated: the operator, or its gradients by all tensors."""
    if case.direction == "forward":
        return lambda: problem.run(problem.tensors)
    leaves = problem.leaves()
    out = problem.run(leaves)
    grad = incoming(out)
    return lambda: torch.autograd.grad(out, list(leaves.values()), grad, retain_graph=True)


def step(problem: Problem) -> Callable[[], object]:
    """What is timed, and may be repeated, where forward and backward are taken together."""
    leaves = problem.leaves()
    grad = incoming(problem.run(leaves))
    return lambda: torch.autograd.grad(problem.run(leaves), list(leaves.values()), grad)

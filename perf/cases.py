"""What is measured: every operator on every size, type, grid and guide, its inputs, and what it should come to by `perf.references`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import interpolate

import bilagrid
from bilagrid import Lattice
from bilagrid.filters import filter_lattice
from perf import costs, references
from perf.inputs import Draw, picture

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
# Total variation runs over as many grids as a scene of 3-D Gaussian splatting has photographs: 256 of 16x16x8.
_SCENE_NODES = 256 * 16 * 16 * 8
# The image's grid in a bank.
_CHOSEN = 3
# What a case is called that has none, or one that the function chooses.
NO_GRID = "1x1x1"
# What gradients of a mean are multiplied by, as losses are where float16 would lose them.
_LOSS_SCALE = 2.0**12
_LOW = 4  # pixels of the large image to one of the small, an axis

# Channels of float32 images, and of grids, that an operator's inputs, results, gradients and what the graph keeps come to.
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
        """Raises ValueError where the name is neither."""
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
    """A case's tensors, and what is done with them: by us, and by the reference in float64. What solves equations has rounding ``magnified``."""

    tensors: Tensors
    run: Callable[[Tensors], Tensor]
    reference: Callable[[Tensors], Tensor]
    sizes: costs.Sizes
    grid_size: tuple[int, int, int]
    magnified: float = 1.0

    def leaves(self) -> Tensors:
        """The same tensors, to be differentiated by."""
        return {name: tensor.detach().requires_grad_() for name, tensor in self.tensors.items()}


def problem(case: Case, device: torch.device, *, kind: str = CELL_CENTERED) -> Problem:
    """The case's inputs on ``device``, a fixed grid on a lattice of some ``kind``."""
    from perf import edits  # which builds on this module

    draw, dtype, spec = Draw.on(device), DTYPES[case.dtype], replace(GridSpec.parse(case.grid), kind=kind)
    return (_BUILDERS | edits.BUILDERS)[case.operator](case, spec, draw, dtype)


def _pixels(case: Case, spec: GridSpec, draw: Draw) -> tuple[Tensor, Tensor, Lattice]:
    """Image and guide in float32, and the lattice."""
    image = picture(case.guide, *case.image, draw.device)
    guide = draw.uniform(1, *case.image) if case.guide == "random" else references.luma(image)
    return image, guide, spec.lattice(case.image)


def _sizes(
    lattice: Lattice, tensors: Tensors, *, image: str | None, grid: int, channels: int, **more: int
) -> costs.Sizes:
    pixels = 0 if image is None else tensors[image].shape[-1] * tensors[image].shape[-2]
    item = next(iter(tensors.values())).element_size() if image is None else tensors[image].element_size()
    nodes = math.prod(lattice.size) * (tensors["grid"].shape[0] if "grid" in tensors else 1)
    return costs.Sizes(pixels, channels, item, nodes, grid, **more)


def _splat(case: Case, spec: GridSpec, draw: Draw, dtype: torch.dtype) -> Problem:
    _, guide, lattice = _pixels(case, spec, draw)
    tensors = {"values": draw.normal(1, spec.channels, *case.image).to(dtype), "guide": guide.to(dtype)}
    return Problem(
        tensors,
        lambda t: bilagrid.splat(t["values"], t["guide"], lattice.size, lattice=lattice),
        lambda t: references.splat(t["values"], t["guide"], lattice),
        _sizes(lattice, tensors, image="guide", grid=4, channels=spec.channels),
        lattice.size,
    )


def _slice(case: Case, spec: GridSpec, draw: Draw, dtype: torch.dtype) -> Problem:
    _, guide, lattice = _pixels(case, spec, draw)
    tensors = {"grid": draw.normal(1, spec.channels, *lattice.size).to(dtype), "guide": guide.to(dtype)}
    return Problem(
        tensors,
        lambda t: bilagrid.slice(t["grid"], t["guide"], lattice=lattice),
        lambda t: references.slice(t["grid"], t["guide"], lattice),
        _sizes(lattice, tensors, image="guide", grid=dtype.itemsize, channels=spec.channels),
        lattice.size,
    )


def _slice_points(case: Case, spec: GridSpec, draw: Draw, dtype: torch.dtype) -> Problem:
    """One grid at as many points as the image has pixels, which lie where the pixels do, in no order; points in float32 whatever the grid."""
    _, guide, lattice = _pixels(case, spec, draw)
    (scale_z, scale_y, scale_x), (offset_z, offset_y, offset_x) = lattice.scale, lattice.offset
    rows = torch.arange(case.image[0], device=draw.device)[:, None].expand(case.image)
    columns = torch.arange(case.image[1], device=draw.device).expand(case.image)
    placed = [columns * scale_x + offset_x, rows * scale_y + offset_y, guide[0] * scale_z + offset_z]
    points = torch.stack(placed, -1).flatten(0, 1)
    points = points[draw.uniform(len(points)).argsort()]
    tensors = {"grid": draw.normal(1, spec.channels, *lattice.size).to(dtype), "points": points}
    return Problem(
        tensors,
        lambda t: bilagrid.slice_points(t["grid"], t["points"]),
        lambda t: references.slice_points(t["grid"], t["points"]),
        costs.Sizes(len(points), spec.channels, dtype.itemsize, math.prod(lattice.size), dtype.itemsize),
        lattice.size,
    )


def _slice_apply(case: Case, spec: GridSpec, draw: Draw, dtype: torch.dtype) -> Problem:
    """The grid in float32 beside a half image, as networks and splatting have it; of a bank as large as a scene's, the image reads one."""
    image, guide, lattice = _pixels(case, spec, draw)
    fused, bank = case.operator.endswith("luma"), case.operator.endswith("bank")
    grids = max(_SCENE_NODES // math.prod(lattice.size), _CHOSEN + 1) if bank else 1
    index = torch.full((1,), _CHOSEN, device=draw.device) if bank else None
    tensors = {"grid": draw.normal(grids, 12, *lattice.size), "image": image.to(dtype)}
    if not fused:
        tensors["guide"] = guide.to(dtype)
    return Problem(
        tensors,
        lambda t: bilagrid.slice_apply(t["grid"], t.get("guide"), t["image"], lattice=lattice, index=index),
        lambda t: references.slice_apply(
            t["grid"][_CHOSEN : _CHOSEN + 1] if bank else t["grid"],
            references.luma(t["image"]) if fused else t["guide"],
            t["image"],
            lattice,
        ),
        replace(_sizes(lattice, tensors, image="image", grid=4, channels=3), grids=grids),
        lattice.size,
    )


def _curves(case: Case, spec: GridSpec, draw: Draw, dtype: torch.dtype) -> Problem:
    """As HDRNet begins, with noise on every parameter; they are float32 beside a half image, as networks have them."""
    image, _, lattice = _pixels(case, spec, draw)
    knots = torch.arange(16, device=draw.device) / 16
    slopes = torch.zeros(3, 16, device=draw.device)
    slopes[:, 0] = 1
    tensors = {
        "image": image.to(dtype),
        "matrix": torch.eye(3, device=draw.device) + 0.05 * draw.normal(3, 3),
        "bias": 0.02 * draw.normal(3),
        "shifts": knots + 0.01 * draw.normal(3, 16),
        "slopes": slopes + 0.1 * draw.normal(3, 16),
        "mix": 1 / 3 + 0.05 * draw.normal(3),
        "mix_bias": 0.02 * draw.normal(1),
    }
    return Problem(
        tensors,
        lambda t: bilagrid.curves(**t),
        lambda t: references.curves(**t),
        _sizes(lattice, tensors, image="image", grid=4, channels=3),
        lattice.size,
    )


def _grid_alone(case: Case, spec: GridSpec, draw: Draw, dtype: torch.dtype) -> Problem:
    """`blur` and `total_variation`."""
    lattice = spec.lattice(case.image if case.image[0] else (1, 1))
    batch = 1 if case.image[0] else max(_SCENE_NODES // math.prod(lattice.size), 1)
    tensors = {"grid": draw.normal(batch, spec.channels, *lattice.size).to(dtype)}
    blurred = case.operator == "blur"
    sigma = spec.blur if blurred else (0.0, 0.0, 0.0)
    return Problem(
        tensors,
        lambda t: bilagrid.blur(t["grid"], sigma) if blurred else bilagrid.total_variation(t["grid"]),
        lambda t: references.blur(t["grid"], sigma) if blurred else references.total_variation(t["grid"]),
        _sizes(lattice, tensors, image=None, grid=dtype.itemsize, channels=spec.channels, taps=costs.taps(sigma)),
        lattice.size,
    )


def _bilateral_filter(case: Case, spec: GridSpec, draw: Draw, dtype: torch.dtype) -> Problem:
    image, _, lattice = _pixels(case, spec, draw)
    colour = case.operator.endswith("colour")
    tensors = {"image": (image if colour else image[:, :1]).to(dtype)}

    def reference(t: Tensors) -> Tensor:
        guide = references.luma(t["image"]) if colour else t["image"][:, 0]
        return references.bilateral_filter(t["image"], guide, lattice, spec.blur)

    return Problem(
        tensors,
        lambda t: bilagrid.bilateral_filter(
            t["image"], sigma_space=spec.sigma, sigma_color=SIGMA_COLOR, guide_range=(0.0, 1.0)
        ),
        reference,
        _sizes(lattice, tensors, image="image", grid=4, channels=3 if colour else 1, taps=costs.taps(spec.blur)),
        lattice.size,
    )


def _joint_bilateral_upsample(case: Case, spec: GridSpec, draw: Draw, dtype: torch.dtype) -> Problem:
    image, guide, _ = _pixels(case, spec, draw)
    small = (max(case.image[0] // _LOW, 1), max(case.image[1] // _LOW, 1))
    lattice = spec.lattice(small)
    tensors = {
        "low": interpolate(image, size=small, mode="area").to(dtype),
        "guide_low": interpolate(guide[:, None], size=small, mode="area")[:, 0].to(dtype),
        "guide_high": guide.to(dtype),
    }
    return Problem(
        tensors,
        lambda t: bilagrid.joint_bilateral_upsample(
            t["low"],
            t["guide_low"],
            t["guide_high"],
            sigma_space=spec.sigma,
            sigma_color=SIGMA_COLOR,
            guide_range=(0.0, 1.0),
        ),
        lambda t: references.joint_bilateral_upsample(t["low"], t["guide_low"], t["guide_high"], lattice, spec.blur),
        replace(
            _sizes(lattice, tensors, image="guide_high", grid=4, channels=3, taps=costs.taps(spec.blur)),
            low_pixels=math.prod(small),
        ),
        lattice.size,
    )


_Builder = Callable[[Case, GridSpec, Draw, torch.dtype], Problem]

_BUILDERS: dict[str, _Builder] = {
    "splat": _splat,
    "blur": _grid_alone,
    "slice": _slice,
    "slice_points": _slice_points,
    "slice_apply": _slice_apply,
    "slice_apply_luma": _slice_apply,
    "slice_apply_bank": _slice_apply,
    "curves": _curves,
    "total_variation": _grid_alone,
    "bilateral_filter_gray": _bilateral_filter,
    "bilateral_filter_colour": _bilateral_filter,
    "joint_bilateral_upsample": _joint_bilateral_upsample,
}
# What is composed of them, in `perf.edits`.
EDITS = ("fit", "guided_upsample", "tonemap", "equalize_histogram", "merge_flash")
OPERATORS = (*_BUILDERS, *EDITS)
# Those that run on grids of 12 coefficients alone, those on a filter's, and those that need none or choose it themselves.
_MAPS = ("slice_apply", "slice_apply_luma", "slice_apply_bank", "slice_points", "total_variation", *EDITS[:2])
_FILTERS = ("blur", "bilateral_filter_gray", "bilateral_filter_colour", "joint_bilateral_upsample")
_OWN_GRID = ("curves", "tonemap", "equalize_histogram", "merge_flash")


def cost(case: Case, sizes: costs.Sizes) -> costs.Cost:
    """What the case has to do at the least."""
    operator = case.operator.removesuffix("_gray").removesuffix("_colour")
    parts = [costs.cost(operator, each, sizes) for each in DIRECTIONS if case.direction in (each, BOTH)]
    return costs.Cost(sum(part.bytes for part in parts), sum(part.flops for part in parts))


def memory(case: Case) -> int:
    """Bytes, rather too many than too few, that the case's tensors take while it is timed."""
    pixels = math.prod(case.image)
    nodes = math.prod(GridSpec.parse(case.grid).lattice(case.image if pixels else (1, 1)).size)
    return 4 * (_PLANES * pixels + _GRIDS * max(nodes, _SCENE_NODES))


def cases(
    operators: Sequence[str],
    directions: Sequence[str],
    resolutions: Sequence[tuple[int, int]],
    dtypes: Sequence[str],
    grids: Sequence[GridSpec],
    guides: Sequence[str],
) -> list[Case]:
    """All combinations that mean something, small images first."""
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
    """A gradient to begin with, which lies in memory as the output does."""
    grad = Draw.on(out.device).normal(*out.shape)
    return torch.empty_like(out).copy_(grad if out.ndim else grad * _LOSS_SCALE)


def work(case: Case, problem: Problem) -> Callable[[], object]:
    """What is timed: the operator, or its gradients by all tensors, any number of times."""
    if case.direction == "forward":
        return lambda: problem.run(problem.tensors)
    leaves = problem.leaves()
    out = problem.run(leaves)
    grad = incoming(out)
    return lambda: torch.autograd.grad(out, list(leaves.values()), grad, retain_graph=True)


def step(problem: Problem) -> Callable[[], object]:
    """What is timed where forward and backward are taken together, any number of times."""
    leaves = problem.leaves()
    grad = incoming(problem.run(leaves))
    return lambda: torch.autograd.grad(problem.run(leaves), list(leaves.values()), grad)

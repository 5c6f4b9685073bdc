"""The inputs of each case, what it does with them, and what it should come to by `perf.references`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

import bilagrid
from bilagrid import Lattice
from perf import costs, edits, references
from perf.cases import CELL_CENTERED, DTYPES, LOW, SCENE_NODES, SIGMA_COLOR, Case, GridSpec, Problem, Tensors
from perf.inputs import Draw, picture

# The image's grid in a bank.
_CHOSEN = 3


def problem(case: Case, device: torch.device, *, kind: str = CELL_CENTERED) -> Problem:
    """The case's inputs on ``device``, a fixed grid on a lattice of some ``kind``."""
    draw, dtype, spec = Draw.on(device), DTYPES[case.dtype], replace(GridSpec.parse(case.grid), kind=kind)
    return _BUILDERS[case.operator](case, spec, draw, dtype)


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
    """One grid at as many points as the image has pixels: the places of the pixels, shuffled. Points are float32 whatever the grid."""
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
    """The grid is float32 beside a half image, as in networks and splatting. Of a bank as large as a scene's the image reads one grid."""
    image, guide, lattice = _pixels(case, spec, draw)
    fused, bank = case.operator.endswith("luma"), case.operator.endswith("bank")
    grids = max(SCENE_NODES // math.prod(lattice.size), _CHOSEN + 1) if bank else 1
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
    """The parameters that HDRNet starts with, plus noise; float32 beside a half image, as in networks."""
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
    batch = 1 if case.image[0] else max(SCENE_NODES // math.prod(lattice.size), 1)
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
    small = (max(case.image[0] // LOW, 1), max(case.image[1] // LOW, 1))
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


_BUILDERS: dict[str, Callable[[Case, GridSpec, Draw, torch.dtype], Problem]] = {
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
} | edits.BUILDERS

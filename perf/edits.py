"""Problems of what is composed of the operators: fits, upsampling by them, tone mapping and edits, each with its inputs and its reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

import bilagrid
from bilagrid import Lattice
from bilagrid.filters import filter_lattice
from perf import costs, edit_references, references
from perf.cases import LOW, Case, GridSpec, Problem, Tensors
from perf.inputs import Draw, picture

_DECADES = 4  # of the scene that is tone mapped
_STROKES = 0.03  # of the pixels, coloured by hand
_COLOUR_NODES = 48  # of `colorize`, along the longer side


def _edited(image: Tensor) -> Tensor:
    """An edit that the maps of a grid can follow in part: a curve, and another white."""
    tints = torch.tensor([1.1, 1.0, 0.8], device=image.device)[:, None, None]
    return image.sqrt() * tints


def _sizes(image: Tensor, lattice: Lattice, sigma: tuple[float, float, float] | None = None) -> costs.Sizes:
    nodes, taps = math.prod(lattice.size), costs.taps(sigma) if sigma else costs.FIT_TAPS
    return costs.Sizes(image[0, 0].numel(), image.shape[1], image.element_size(), nodes, 4, taps=taps)


def _fit(case: Case, spec: GridSpec, draw: Draw, dtype: torch.dtype) -> Problem:
    image = picture(case.guide, *case.image, draw.device)
    lattice = spec.lattice(case.image)
    tensors = {"image": image.to(dtype), "target": _edited(image).to(dtype)}
    return Problem(
        tensors,
        lambda t: bilagrid.fit(t["image"], t["target"], size=lattice.size, lattice=lattice),
        lambda t: edit_references.fit(t["image"], t["target"], lattice),
        _sizes(tensors["image"], lattice),
        lattice.size,
        magnified=10,
    )


def _guided_upsample(case: Case, spec: GridSpec, draw: Draw, dtype: torch.dtype) -> Problem:
    image = picture(case.guide, *case.image, draw.device)
    small = (max(case.image[0] // LOW, 1), max(case.image[1] // LOW, 1))
    low, lattice = interpolate(image, size=small, mode="area"), spec.lattice(small)
    given = {"image_high": image, "image_low": low, "target_low": _edited(low)}
    tensors = {name: tensor.to(dtype) for name, tensor in given.items()}
    return Problem(
        tensors,
        lambda t: bilagrid.guided_upsample(t["image_high"], t["image_low"], t["target_low"], size=lattice.size),
        lambda t: edit_references.guided_upsample(t["image_high"], t["image_low"], t["target_low"], lattice),
        replace(_sizes(tensors["image_high"], lattice), low_pixels=math.prod(small)),
        lattice.size,
    )


def _alone(
    make: Callable[[Tensor, Draw], Tensors],
    run: Callable[[Tensors], Tensor],
    reference: Callable[[Tensors, Lattice, tuple[float, float, float]], Tensor],
    sigma_share: float,
    **lattice: object,
) -> Callable[[Case, GridSpec, Draw, torch.dtype], Problem]:
    """The builder of an edit whose window is by default a share of the image's longer side."""

    def build(case: Case, spec: GridSpec, draw: Draw, dtype: torch.dtype) -> Problem:
        image = picture(case.guide, *case.image, draw.device)
        tensors = {name: tensor.to(dtype) for name, tensor in make(image, draw).items()}
        window = max(sigma_share * max(case.image), 1.0)
        found, sigma = filter_lattice(torch.empty((1, *case.image), device="meta"), window, **lattice)  # type: ignore[arg-type]
        return Problem(
            tensors,
            run,
            lambda t: reference(t, found, sigma),
            _sizes(next(iter(tensors.values())), found, sigma),
            found.size,
        )

    return build


_tonemap = _alone(
    lambda image, draw: {"radiance": 10 ** (_DECADES * (image - 0.5))},
    lambda t: bilagrid.tonemap(t["radiance"]),
    lambda t, lattice, sigma: edit_references.tonemap(t["radiance"], lattice, sigma),
    0.02,
    sigma_color=0.4,
    guide_range=(-8.0, 4.0),
)

_equalize_histogram = _alone(
    lambda image, draw: {"image": 0.3 + 0.4 * image},
    lambda t: bilagrid.equalize_histogram(t["image"]),
    lambda t, lattice, sigma: edit_references.equalize_histogram(t["image"], lattice, (0.0, *sigma[1:])),
    1 / 16,
    sigma_color=1 / 256,
    guide_range=(0.0, 1.0),
    nodes_per_sigma=(1.0, 1.25, 1.25),
)

_merge_flash = _alone(
    lambda image, draw: {"flash": image, "no_flash": 0.4 * image + 0.03 * draw.normal(*image.shape)},
    lambda t: bilagrid.merge_flash(t["flash"], t["no_flash"]),
    lambda t, lattice, sigma: edit_references.merge_flash(t["flash"], t["no_flash"], lattice, sigma),
    0.01,
    sigma_color=0.1,
    guide_range=(0.0, 1.0),
)


def _colorize(case: Case, spec: GridSpec, draw: Draw, dtype: torch.dtype) -> Problem:
    image = picture(case.guide, *case.image, draw.device)
    mask = draw.uniform(1, *case.image) < _STROKES
    mask[:, 0, 0] = True
    tensors = {"image": references.luma(image)[:, None].to(dtype), "scribbles": image.to(dtype)}
    window = max(max(case.image) / _COLOUR_NODES, 1.0)
    lattice, _ = Lattice.from_sigma(window, 0.05, case.image, nodes_per_sigma=(1.0, 1.0, 1.0))
    return Problem(
        tensors,
        lambda t: bilagrid.colorize(t["image"], t["scribbles"], mask),
        lambda t: edit_references.colorize(t["image"], t["scribbles"], mask, lattice),
        _sizes(tensors["image"], lattice),
        lattice.size,
        magnified=10,
    )


BUILDERS: dict[str, Callable[[Case, GridSpec, Draw, torch.dtype], Problem]] = {
    "fit": _fit,
    "guided_upsample": _guided_upsample,
    "tonemap": _tonemap,
    "equalize_histogram": _equalize_histogram,
    "merge_flash": _merge_flash,
    "colorize": _colorize,
}

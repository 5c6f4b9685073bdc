"""Fits, upsampling, tone mapping and edits once more, in plain torch on `perf.references`, by the formulas that the functions state."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bilagrid import Lattice
from perf.references import bilateral_filter, blur, homogeneous, luma, slice, slice_apply, splat

# Of `fit`: weight and sigma of the Gaussians that cells read their neighbours by; its prior, in pixels, and in roundings of float32 a pixel and term.
_TAIL = ((1.0, 0.35), (1e-2, 1.0), (1e-3, 2.0))
_PRIOR, _ROUNDING = 0.1, 32 * 2.0**-23

# Of `tonemap`: the share of pixels left out at each end, how many are looked at, and the decades about white.
_EXTREME, _SAMPLES, _DECADES = 0.001, 2**18, (-8.0, 4.0)
_LUMINANCE = (0.2126, 0.7152, 0.0722)


def fit(image: Tensor, target: Tensor, lattice: Lattice) -> Tensor:
    """The fast fit of three channels to three: the normal equations of each cell, blurred, with their prior of a gain, solved alone."""
    terms = homogeneous(image)
    guide, count, channels = luma(image), terms.shape[1], image.shape[1]

    def moments(left: Tensor) -> Tensor:
        products = splat((left.unsqueeze(2) * terms.unsqueeze(1)).flatten(1, 2), guide, lattice)
        near = [share * blur(products, (sigma, sigma, sigma)) for share, sigma in _TAIL]
        return torch.stack(near).sum(0).unflatten(1, (-1, count)).permute(0, 3, 4, 5, 1, 2)

    gram, right = moments(terms), moments(target)
    power = terms.square().mean((0, 2, 3))
    identity = torch.eye(channels, count, dtype=image.dtype, device=image.device)
    along = (right * identity).sum((-1, -2))
    across = (gram * (identity.T @ identity)).sum((-1, -2))
    trust = _PRIOR * power[:-1].mean()
    gain = (along + trust * along.sum() / across.sum()) / (across + trust)
    prior = power * (_PRIOR + _ROUNDING * count * gram[..., -1:, -1])
    maps = torch.linalg.solve(
        gram + torch.diag_embed(prior), (right + prior.unsqueeze(-2) * gain[..., None, None] * identity).mT
    )
    return maps.mT.permute(0, 4, 5, 1, 2, 3).flatten(1, 2)


def guided_upsample(image: Tensor, low: Tensor, target: Tensor, lattice: Lattice) -> Tensor:
    """The maps of the small pair on the large image, and what they leave of the small one, bilinearly."""
    grid = fit(low, target, lattice)
    left = target - slice_apply(grid, luma(low), low, lattice)
    height, width = image.shape[2:]
    mapped = slice_apply(grid, luma(image), image, lattice.resize((height, width)))
    return mapped + interpolate(left, size=(height, width), mode="bilinear")


def _ends(values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest value of those that count, but for a thousandth at each end, of every so many-th row and column."""
    step = max(math.isqrt(values[0].numel() // _SAMPLES), 1)
    ordered = values[:, ::step, ::step][counted[:, ::step, ::step]].sort().values
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (_EXTREME, 1 - _EXTREME))
    return low, high


def tonemap(radiance: Tensor, lattice: Lattice, sigma: tuple[float, float, float]) -> Tensor:
    """Base and detail by a filter of the logarithm; the base compressed to a contrast of 5, then a gamma of 2.2."""
    weights = torch.tensor(_LUMINANCE, dtype=radiance.dtype, device=radiance.device)[:, None, None]

    def luminance(values: Tensor) -> Tensor:
        return (weights * values).sum(1)

    first = luminance(radiance)
    values = (radiance / _ends(first, first > 0)[1]).clamp(max=10 ** _DECADES[1])
    bright = luminance(values)
    log = bright.clamp(min=10 ** _DECADES[0]).log10()
    base = bilateral_filter(log[:, None], log, lattice, sigma)[:, 0]
    darkest, brightest = _ends(base, bright > 0)
    factor = (math.log10(5) / (brightest - darkest).clamp(min=1e-6)).clamp(max=1)
    linear = values * 10 ** (factor * (base - brightest) - base)[:, None]
    return linear.clamp(max=1) ** (1 / 2.2)


def equalize_histogram(image: Tensor, lattice: Lattice, sigma: tuple[float, float, float]) -> Tensor:
    """The share of a neighbourhood that is darker, and colours that follow their luma as far as there is room."""
    guide = luma(image)
    histograms = blur(splat(torch.ones_like(guide)[:, None], guide, lattice), sigma)
    darker = histograms.cumsum(2) - histograms / 2
    everything = histograms.sum(2, keepdim=True).expand_as(histograms)
    after = (slice(darker, guide, lattice) / slice(everything, guide, lattice))[:, 0]
    chroma = (after / guide.clamp(min=1e-3))[:, None] * (image - guide[:, None])
    return _within_room(after[:, None], chroma)


def _within_room(value: Tensor, chroma: Tensor) -> Tensor:
    """Colours of a luma, their chroma as far as there is room within [0, 1]."""
    room = torch.where(chroma > 0, 1 - value, value).clamp(min=1e-19)
    return value + chroma / (chroma.abs() / room).amax(1, keepdim=True).clamp(min=1)


# Of `colorize`: how strongly neighbours along z, y and x are joined, the share of a full cell that each node has more, and the smoothness.
_JOINED, _LEAK, _SMOOTHNESS = (0.1, 1.0, 1.0), 0.01, 0.01


def colorize(image: Tensor, scribbles: Tensor, mask: Tensor, lattice: Lattice) -> Tensor:
    """The chroma of the strokes, where ``mask`` is true, at the nodes, spread to their neighbours by one solve, added to the gray of one image as far as there is room."""
    guide, weight = image[:, 0], mask[:, None].to(image.dtype)
    chroma = (scribbles - luma(scribbles)[:, None])[:, ::2]
    given = splat(torch.cat([weight * chroma, weight], 1), guide, lattice)[0]
    pixels = splat(torch.ones_like(weight), guide, lattice)[0, 0] + _LEAK / (lattice.scale[1] * lattice.scale[2])
    links = []
    for axis, share in enumerate(_JOINED):
        one, next_ = (pixels.narrow(axis, first, pixels.shape[axis] - 1) for first in (0, 1))
        links.append(_SMOOTHNESS * share * 2 * one * next_ / (one + next_))
    red, blue = slice(_spread(given[:2], given[2], links)[None], guide, lattice).unbind(1)
    green = -(0.299 * red + 0.114 * blue) / 0.587
    return _within_room(guide[:, None], torch.stack([red, green, blue], 1))


def _spread(right: Tensor, mass: Tensor, links: list[Tensor]) -> Tensor:
    """x of ``(diag(mass) + L) x = right`` for ``right`` (C, D, Gh, Gw), L of the squared differences that ``links`` weigh: by blocks, each a column of the grid."""
    depth, rows, columns = mass.shape
    nodes = torch.arange(depth * rows, device=mass.device).view(depth, rows)
    diagonal = mass
    for axis, link in enumerate(links):
        for before in (0, 1):
            diagonal = diagonal + torch.nn.functional.pad(link, [0, 0] * (2 - axis) + [before, 1 - before])
    blocks = torch.diag_embed(diagonal.flatten(0, 1).mT)
    for link, one, next_ in ((links[0], nodes[:-1], nodes[1:]), (links[1], nodes[:, :-1], nodes[:, 1:])):
        beside = torch.zeros_like(blocks)
        beside[:, one.flatten(), next_.flatten()] = -link.flatten(0, 1).mT
        blocks = blocks + beside + beside.mT
    across, columns_of = links[2].flatten(0, 1).mT, right.flatten(1, 2).permute(2, 1, 0)
    # Each column without the one before it: its block, and its right side.
    matrix, side = [blocks[0]], [columns_of[0]]
    for column in range(1, columns):
        link = across[column - 1]
        solved = torch.linalg.solve(matrix[-1], torch.cat([link.diag(), side[-1]], 1))
        matrix.append(blocks[column] - link[:, None] * solved[:, : len(link)])
        side.append(columns_of[column] + link[:, None] * solved[:, len(link) :])
    found = [torch.linalg.solve(matrix[-1], side[-1])]
    for column in range(columns - 2, -1, -1):
        found.append(torch.linalg.solve(matrix[column], side[column] + across[column][:, None] * found[-1]))
    return torch.stack(found[::-1]).permute(2, 1, 0).unflatten(1, (depth, rows))


def merge_flash(flash: Tensor, dark: Tensor, lattice: Lattice, sigma: tuple[float, float, float]) -> Tensor:
    """The dark photograph filtered by the bright one's edges, times the bright one's detail, and by its own where that is white."""
    guide = luma(flash)
    lit_base, dark_base = (bilateral_filter(each, guide, lattice, sigma) for each in (flash, dark))
    own = bilateral_filter(dark, luma(dark), lattice, sigma)
    t = ((guide - 0.92) / 0.06).clamp(0, 1)[:, None]
    mask = t * t * (3 - 2 * t)
    return (1 - mask) * dark_base * (flash.clamp(min=0) + 0.02) / (lit_base + 0.02) + mask * own

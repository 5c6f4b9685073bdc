"""Colours from a few strokes: scattered-data interpolation on the grid."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bilagrid._numbers import number
from bilagrid.editing import refuse_other_scales, within_range
from bilagrid.filters import can_be_looked_at, refuse_too_large
from bilagrid.lattice import Lattice
from bilagrid.ops import _checks
from bilagrid.ops._dtypes import promoted, widened
from bilagrid.ops._function import Function
from bilagrid.ops._luma import LUMA, luma, own_guide
from bilagrid.ops.slice import slice_
from bilagrid.ops.splat import splat_
from bilagrid.solver import conjugate_gradients

# Nodes along the longer side, by default.
_NODES = 48

# Two nodes are joined by the harmonic mean of the pixels at each, so that colour flows where the photograph has pixels. Each counts this share of a full cell
# more, so that colour reaches what is cut off. Along z, which is across edges, they are joined a tenth as strongly.
_LEAK = 1e-2
_ACROSS = 0.1

_MOST_STEPS = 1000
_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def colorize(
    image: Tensor,
    scribbles: Tensor,
    mask: Tensor,
    *,
    sigma_space: float | None = None,
    sigma_color: float = 0.05,
    smoothness: float = 0.01,
) -> Tensor:
    """Colours a gray photograph from strokes of colour, which spread up to its edges::

        chroma = argmin sum_k m_k (f_k - s_k)² + smoothness sum_kl c_kl (f_k - f_l)²,   out(p) = luma(p) + slice(chroma)(p)

    over the nodes k of a grid and their neighbours l. m_k and s_k are the weight and the mean chroma of the strokes that splat puts at a node; c_kl is the
    harmonic mean of the numbers of pixels at the two nodes, each with a hundredth of a full cell more, and a tenth of that along z. So colours spread through
    nodes where the photograph has pixels, in its plane and along its gradients, and hardly across an edge.

    Args:
        image: ``(N, 1 or 3, H, W)`` in [0, 1], any floating type and strides; of an image in colour the luma is taken.
        scribbles: ``(N, 3, H, W)`` in [0, 1], the strokes. Only their chroma counts: what they differ by from their own luma.
        mask: ``(N, H, W)``, which pixels are strokes (bool), or how much each counts, at least 0. Where it is not above 0, ``scribbles`` is not read and may
            hold anything, NaN included.
        sigma_space: pixels from node to node, above 0; by default a 48th of the longer side, at least 1. Strokes closer than that, in regions of similar
            luma, mix.
        sigma_color: luma from node to node, above 0: a smaller one makes weaker edges hold.
        smoothness: above 0. A small one keeps strokes as they are, a large one averages those that contradict each other.

    Returns:
        ``(N, 3, H, W)`` in the image's dtype, with the image's luma: colours that would leave [0, 1] lose saturation until they fit. An image with a
        stroke that is not finite becomes NaN.

    Raises:
        TypeError: a dtype that is not floating (or bool, of the mask), or an argument of another kind.
        ValueError: shapes that do not fit, numbers out of range, an image or strokes whose values are far from [0, 1] (checked on the CPU alone), an image
            without any stroke (not checked under vmap or torch.compile), or sigmas so small that the grid would not fit in memory.

    Gradients: to image, scribbles and mask, of any order in reverse mode, by solving with the same matrix once more. Deterministic. The solver, conjugate
    gradients, stops when the residual has fallen by a factor of 1e-6 (1e-12 in float64), or after 1000 steps. Every 8 steps the host looks whether all
    images are done: it waits for a GPU there, and ``torch.compile`` breaks its graph.

    Source: Chen, Paris and Durand, "Real-time edge-aware image processing with the bilateral grid", SIGGRAPH 2007, section 5 (scattered-data interpolation);
    Levin, Lischinski and Weiss, "Colorization using optimization", SIGGRAPH 2004.

    Example:
        >>> photo = torch.where(torch.arange(64) > 31, 0.7, 0.3).expand(1, 1, 48, 64)
        >>> strokes, mask = torch.zeros(1, 3, 48, 64), torch.zeros(1, 48, 64, dtype=torch.bool)
        >>> strokes[..., 10], strokes[..., 50] = torch.tensor([0.4, 0.3, 0.2])[:, None], torch.tensor([0.6, 0.7, 0.8])[:, None]
        >>> mask[..., 10] = mask[..., 50] = True
        >>> colours = colorize(photo, strokes, mask)
        >>> [(round(red.item(), 1), round(blue.item(), 1)) for red, _, blue in colours[0, :, 5, [0, 31, 32, 63]].mT]
        [(0.4, 0.2), (0.4, 0.2), (0.6, 0.8), (0.6, 0.8)]
    """
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        mask = mask.float()
    _checks.tensors(image=image, scribbles=scribbles, mask=mask)
    _checks.rank("image", image, "(N, C, H, W)")
    batch, _, height, width = image.shape
    _checks.same("scribbles", scribbles, "(N, 3, H, W)", (batch, 3, height, width), "image")
    _checks.same("mask", mask, "(N, H, W)", (batch, height, width), "image")
    if not 0 < number("smoothness", smoothness) < math.inf:
        raise ValueError(f"smoothness must be a finite number above 0, got {smoothness}")
    refuse_other_scales(image=image)
    if sigma_space is None:
        sigma_space = max(max(height, width) / _NODES, 1.0)
    sigma_space, sigma_color = number("sigma_space", sigma_space), number("sigma_color", sigma_color)
    dtype = promoted(widened(image), widened(scribbles), widened(mask))
    guide = own_guide("image", image).to(dtype)
    lattice, _ = Lattice.from_sigma(sigma_space, sigma_color, (height, width), nodes_per_sigma=(1.0, 1.0, 1.0))
    refuse_too_large(lattice, scribbles)

    known = mask > 0
    if image.numel() and not torch.compiler.is_compiling() and can_be_looked_at(known):
        _refuse_unmarked(known)
    # Chosen, not multiplied: 0 times NaN is NaN.
    weight = torch.where(known, mask.to(dtype), 0)[:, None]
    strokes = torch.where(known[:, None], scribbles.to(dtype), 0)
    refuse_other_scales(scribbles=strokes)
    # Red and blue beyond luma; green follows.
    chroma = strokes[:, ::2] - luma(strokes)[:, None]
    given = splat_(torch.cat([weight * chroma, weight], 1), guide, lattice)
    links = _links(splat_(torch.ones_like(weight), guide, lattice), smoothness, lattice)
    spread = slice_(_Solve.apply(given[:, :2], given[:, 2:], *links), guide, lattice)
    red, blue = spread.unbind(1)
    green = -(LUMA[0] * red + LUMA[2] * blue) / LUMA[1]
    return within_range(guide, torch.stack([red, green, blue], 1)).to(image.dtype)


def _refuse_unmarked(known: Tensor) -> None:
    unmarked = (~known.flatten(1).any(1)).nonzero().flatten().tolist()
    if unmarked:
        raise ValueError(f"mask must mark a stroke in every image, got none in image {unmarked[0]} of the batch")


def _links(pixels: Tensor, smoothness: float, lattice: Lattice) -> list[Tensor]:
    """How strongly each node is joined to the next along z, y and x: ``(N, 1, D - 1, Gh, Gw)`` and so on, of the pixels at each, ``(N, 1, D, Gh, Gw)``."""
    cell = 1 / (lattice.scale[1] * lattice.scale[2])
    pixels = pixels + _LEAK * cell
    links = []
    for axis, share in ((2, _ACROSS), (3, 1.0), (4, 1.0)):
        these, next_ = _ends(pixels, axis)
        links.append(smoothness * share * 2 * these * next_ / (these + next_))
    return links


def _ends(grid: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """All nodes but the last, and all but the first."""
    extent = grid.shape[axis] - 1
    return grid.narrow(axis, 0, extent), grid.narrow(axis, 1, extent)


class _Solve(Function):
    """Solves ``(diag(mass) + L) x = right`` for all nodes, L the matrix of the squared differences that ``along_z``, ``along_y`` and ``along_x`` weigh.

    The matrix is symmetric, so the gradient by ``right`` is another solve, ``λ``, and those by what the matrix is made of are those of ``-<λ, (diag(mass) + L) x>``.
    """

    @staticmethod
    def forward(right: Tensor, mass: Tensor, along_z: Tensor, along_y: Tensor, along_x: Tensor) -> Tensor:
        links = [(2, along_z), (3, along_y), (4, along_x)]
        diagonal = mass
        for axis, link in links:
            diagonal = diagonal + _padded(link, axis, before=0) + _padded(link, axis, before=1)

        def times(x: Tensor) -> Tensor:
            product = mass * x
            for axis, link in links:
                flow = link * torch.diff(x, 1, axis)
                product = product + _padded(flow, axis, before=1) - _padded(flow, axis, before=0)
            return product

        return conjugate_gradients(
            right,
            times,
            lambda residual: residual / diagonal,
            tolerance=_TOLERANCE[right.dtype],
            most_steps=_MOST_STEPS,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        mass, *links, x = ctx.saved_tensors
        by_right = _Solve.apply(grad, mass, *links)
        by_mass = -(by_right * x).sum(1, keepdim=True)
        by_links = [
            -(torch.diff(by_right, 1, axis) * torch.diff(x, 1, axis)).sum(1, keepdim=True) for axis in (2, 3, 4)
        ]
        return by_right, by_mass, *by_links


def _padded(grid: Tensor, axis: int, *, before: int) -> Tensor:
    """One node of 0 more along the axis, before or after."""
    return torch.nn.functional.pad(grid, [0, 0] * (4 - axis) + [before, 1 - before])

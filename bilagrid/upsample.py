"""Bilateral guided upsampling: affine colour maps fitted in a grid to a small pair of images, and applied at full size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilagrid.lattice import Lattice
from bilagrid.ops import _checks
from bilagrid.ops._bilinear import bilinear_
from bilagrid.ops._dtypes import compute_type, widened, without_autocast
from bilagrid.ops._function import Function
from bilagrid.ops._luma import own_guide
from bilagrid.ops._register import Packed, pack, unpack
from bilagrid.ops._same_bits import spread, summed
from bilagrid.ops.blur import blur
from bilagrid.ops.slice_apply import slice_apply, slice_apply_bwd_grid_, slice_apply_bwd_pixels_
from bilagrid.ops.splat import splat_
from bilagrid.solver import conjugate_gradients, solve_blocks

_METHODS = ("fast", "global")

# Weight and sigma, in nodes, of the Gaussians by which a cell reads its neighbours. One with pixels of its own hardly reads them, since splat and slice smooth
# already; one without reads far, by a tail as long as a membrane's.
_TAIL = ((1.0, 0.35), (1e-2, 1.0), (1e-3, 2.0))

# The prior weighs as much as this many pixels of the image's mean power. Sums are not divided by the mass of their cell, so it counts for more in sparse cells.
_PRIOR = 0.1
# On top of that, as many roundings of a sum as keep the Gram matrix of linearly dependent channels positive definite, whatever the mass.
_ROUNDINGS = 32

# The published smoothness of the global solve, as weights of the differences that are squared.
_SMOOTH_XY = 1.0
_SMOOTH_Z = 4e-7
# The fast fit weighs as much as this many pixels in the global one: it decides where a cell has no pixels, or all their colours lie on a line.
_TRUST = 1e-2

_MOST_STEPS = 200
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}

# Makes 0 / 0 one, and vanishes beside a single pixel.
_TINY = 1e-12


def fit(
    image: Tensor,
    target: Tensor,
    guide: Tensor | None = None,
    *,
    size: tuple[int, int, int],
    lattice: Lattice | None = None,
    weight: Tensor | None = None,
    noise: Tensor | None = None,
    method: str = "fast",
) -> Tensor:
    """Fits the grid of affine colour maps A that turn one image into another::

        A = argmin sum_p weight(p) |slice(A, guide)(p) [image(p); 1] - target(p)|² + a prior

    so that ``slice_apply(fit(image, target, guide, size=size), guide, image)`` is near ``target``. Applied to a larger version of the image, the maps come near the
    same edit of that.

    ``"fast"`` solves in each cell alone, with t = [image; 1] and w_k the weights of `splat`::

        A_k (G_k + λ_k) = R_k + λ_k g_k E,   G_k = sum_p w_k weight t tᵀ,   R_k = sum_p w_k weight target tᵀ,   λ_k = diag(power) (0.1 + rounding mass_k)

    where G and R are splatted, then blurred by a narrow Gaussian with a long tail. The prior is g E: a gain times the identity E, or times the mean over the image's
    channels if their number is not the target's. g_k is the least-squares gain of the cell, and goes over to that of the whole image as the cell's mass goes to
    0. The prior weighs as much as a tenth of a pixel of the image's mean power: most in sparse cells, and alone in empty ones.

    ``"global"`` solves for all cells at once, starting from the fast fit, by conjugate gradients whose matrix is slice and splat. It minimises::

        sum_p weight |..|² + (bx bz / by)² |Δy A|² + (by bz / bx)² |Δx A|² + (4e-7 bx by / bz²)² |Δz² A|² + 0.01 power |A - fast|²

    where the first term is a sum over pixels, the b are pixels or guide units per node, and Δ takes differences of neighbours; all but the last term is as
    published. It comes nearer to the target and is many times slower.

    Args:
        image: ``(N, C_in, H, W)``, any floating type, strides and number of channels. The smoothness of the global fit is meant for values from 0 to 1;
            all else scales with the image.
        target: ``(N, C_out, H, W)``, the edited image.
        guide: ``(N, H, W)``, by default the image itself where C_in is 1, its BT.601 luma where C_in is 3.
        size: nodes ``(D, Gh, Gw)`` of the grid; 8 planes and a node every 16 pixels are as published.
        lattice: where pixels land; `Lattice.cell_centered` by default, as in every operator.
        weight: ``(N, H, W)``, how much each pixel counts, or a mask (bool) of those that do. Where it is not above 0 no other tensor is read, and they may hold
            anything there, NaN included.
        noise: ``(N, C_in, H, W)``, not negative: the variance that each channel will have where the maps are applied, but does not have in ``image``, such as
            noise that shrinking removed. The sum to be minimised becomes ``sum_p weight (|..|² + sum_i noise_i |A_i|²)``, so that the maps rely on the
            channels with little of it. For ``"fast"`` alone.
        method: ``"fast"`` or ``"global"``.

    Returns:
        ``(N, C_out * (C_in + 1), D, Gh, Gw)``, channel ``o * (C_in + 1) + i``, as `slice_apply` takes it: float64 where an argument is, else float32.

    Raises:
        TypeError: a dtype that is not floating, or an argument of another kind.
        ValueError: shapes, devices or a lattice that do not fit, another method, noise for the global one, or no guide for an image of 2 or more than 3
            channels.

    Gradients: to image, target, guide, weight and noise, of any order in reverse mode; those of the global fit by solving with the same matrix once more.
    Deterministic. In the global fit each output channel of each image stops by itself when its residual has fallen by a factor of 1e-4 (1e-12 in float64), or
    after 200 steps. Every 8 steps the host looks whether all have stopped: it waits for a GPU there, and ``torch.compile`` breaks its graph.

    Source: Chen, Adams, Wadhwa and Hasinoff, "Bilateral guided upsampling", SIGGRAPH Asia 2016, sections 3 and 4; the constant prior is Halide's.

    Example:
        >>> image = torch.rand(1, 3, 48, 64)
        >>> grid = fit(image, 0.5 * image.flip(1) + 0.2, size=(8, 3, 4), method="global")
        >>> grid.shape, bool((slice_apply(grid, None, image) - 0.5 * image.flip(1) - 0.2).abs().max() < 0.01)
        (torch.Size([1, 12, 8, 3, 4]), True)
    """
    if isinstance(weight, Tensor) and weight.dtype == torch.bool:
        weight = weight.float()
    given = {"weight": weight, "noise": noise}
    named = {"image": image, "target": target} | {name: tensor for name, tensor in given.items() if tensor is not None}
    _checks.tensors(**named, optional=guide)
    _checks.rank("image", image, "(N, C_in, H, W)")
    _checks.rank("target", target, "(N, C_out, H, W)")
    batch, _, height, width = image.shape
    _checks.same("target", target, "(N, C_out, H, W)", (batch, target.shape[1], height, width), "image")
    for name, tensor in (("guide", guide), ("weight", weight)):
        if tensor is not None:
            _checks.same(name, tensor, "(N, H, W)", (batch, height, width), "image")
    if noise is not None:
        _checks.same("noise", noise, "(N, C_in, H, W)", tuple(image.shape), "image")
    check_method(method)
    if noise is not None and method == "global":
        raise ValueError('noise is taken by method="fast" alone, got method="global"')
    lattice = _checks.lattice_for(lattice, size, image, what="size")
    return _fit(image, target, guide, weight, noise, lattice, method)


def guided_upsample(
    image_high: Tensor,
    image_low: Tensor,
    target_low: Tensor,
    *,
    guide_high: Tensor | None = None,
    guide_low: Tensor | None = None,
    size: tuple[int, int, int] | None = None,
    method: str = "fast",
) -> Tensor:
    """Repeats on an image an edit that was made on a small version of it::

        out = A(guide_high) [image_high; 1] + upsampled(target_low - A(guide_low) [image_low; 1]),   A = fit(image_low, target_low, guide_low)

    The maps A of a grid carry the edit over with all the detail of ``image_high``. What no map explains, such as a vignette steeper than the grid's cells, is
    enlarged bilinearly. Without that second term, as published, it is ``slice_apply(fit(image_low, target_low, size=size), None, image_high)``.

    Args:
        image_high: ``(N, C_in, H, W)``, any floating type and number of channels.
        image_low: ``(N, C_in, h, w)``, the same image at another size, both covering the same area.
        target_low: ``(N, C_out, h, w)``, the edited ``image_low``.
        guide_high, guide_low: ``(N, H, W)`` and ``(N, h, w)``, both or neither; by default the images themselves where C_in is 1, their BT.601 luma where C_in
            is 3.
        size: nodes ``(D, Gh, Gw)``; by default 8 planes and a node every 16 pixels of ``image_low``.
        method: ``"fast"``, each cell of the grid by itself, or ``"global"``, all at once: nearer to the edit and slower, see `fit`.

    Returns:
        ``(N, C_out, H, W)`` in the dtype of ``image_high``. It is not clamped: it may leave the range of ``target_low`` a little.

    Raises:
        TypeError: a dtype that is not floating, or an argument of another kind.
        ValueError: shapes, devices or a size that do not fit, images whose channels differ in number, another method, one guide without the other, or none
            for images of 2 or more than 3 channels.

    Gradients: to all tensors, of any order in reverse mode. Deterministic. The ``"global"`` fit synchronises, as `fit` says.

    Source: Chen, Adams, Wadhwa and Hasinoff, "Bilateral guided upsampling", SIGGRAPH Asia 2016; the second term is ours.

    Example:
        >>> photo = torch.rand(1, 3, 192, 256)
        >>> small = torch.nn.functional.interpolate(photo, size=(48, 64), mode="area")
        >>> guided_upsample(photo, small, small.sqrt()).shape
        torch.Size([1, 3, 192, 256])
    """
    guides = {"guide_low": guide_low, "guide_high": guide_high}
    given = {name: guide for name, guide in guides.items() if guide is not None}
    _checks.tensors(image_high=image_high, image_low=image_low, target_low=target_low, **given)
    _checks.rank("image_high", image_high, "(N, C_in, H, W)")
    batch, channels, *extents = image_high.shape
    _checks.rank("image_low", image_low, "(N, C_in, h, w)")
    height, width = image_low.shape[2:]
    _checks.same("image_low", image_low, "(N, C_in, h, w)", (batch, channels, height, width), "image_high")
    _checks.rank("target_low", target_low, "(N, C_out, h, w)")
    outputs = target_low.shape[1]
    _checks.same("target_low", target_low, "(N, C_out, h, w)", (batch, outputs, height, width), "image_low")
    if len(given) == 1:
        raise ValueError(f"guide_low and guide_high must be given both or neither, got {next(iter(given))} alone")
    if guide_low is not None and guide_high is not None:
        _checks.same("guide_low", guide_low, "(N, h, w)", (batch, height, width), "image_low")
        _checks.same("guide_high", guide_high, "(N, H, W)", (batch, *extents), "image_high")
    else:
        guide_low = own_guide("image_low", image_low)
        # Luma is computed in the kernel.
        guide_high = None if channels == 3 else own_guide("image_high", image_high)
    check_method(method)
    if size is None:
        size = 8, _nodes(height), _nodes(width)
    lattice = Lattice.cell_centered(size, (height, width))
    grid = _fit(image_low, target_low, guide_low, None, None, lattice, method)
    left = widened(target_low) - slice_apply(grid, guide_low, widened(image_low), lattice=lattice)
    at_full_size = (extents[0], extents[1])
    upsampled = slice_apply(grid, guide_high, image_high, lattice=lattice.resize(at_full_size))
    return (upsampled + bilinear_(left, image_high[:, 0])).to(image_high.dtype)


def _nodes(pixels: int) -> int:
    """``max(1, round(pixels / 16))`` in whole numbers, since a compiler does not know every rounding of a symbolic size."""
    return max(1, (pixels + 7 + pixels // 16 % 2) // 16)


def check_method(method: Any) -> None:
    if method not in _METHODS:
        raise ValueError(f'method must be "fast" or "global", got {method!r}')


def _fit(
    image: Tensor,
    target: Tensor,
    guide: Tensor | None,
    weight: Tensor | None,
    noise: Tensor | None,
    lattice: Lattice,
    method: str,
) -> Tensor:
    """`fit` of checked arguments."""
    dtype = compute_type(image, target, guide, weight, noise)
    image, target = image.to(dtype), target.to(dtype)
    if weight is None:
        weight = torch.ones_like(image[:, 0])
    else:
        # Chosen, not multiplied: 0 times NaN is NaN.
        known = weight > 0
        weight = torch.where(known, weight.to(dtype), 0)
        image, target = torch.where(known[:, None], image, 0), torch.where(known[:, None], target, 0)
        guide = None if guide is None else torch.where(known, guide, 0)
        noise = None if noise is None else torch.where(known[:, None], noise, 0)
    guide = own_guide("image", image) if guide is None else guide.to(dtype)

    gram, right = _moments(image, target, guide, weight, lattice)
    if noise is not None:
        met = splat_(weight.unsqueeze(1) * noise.to(dtype), guide, lattice)
        # The offset meets none.
        gram = gram + torch.diag_embed(torch.nn.functional.pad(met, (0,) * 7 + (1,)).movedim(1, -1)).movedim(
            (-2, -1), (1, 2)
        )
    total = gram.diagonal(dim1=1, dim2=2).sum((1, 2, 3))
    power = (total + _TINY) / (total[:, -1:] + _TINY)
    fast = _solve_cells(gram, right, power)
    if method == "fast":
        return fast
    # The fast fit is where the solve starts and what its ridge leads to, so the ridge has no part in the residual.
    residual = right.flatten(1, 2) - _fitted(fast, image, guide, weight, lattice) - _roughness(fast, lattice)
    ridge = _TRUST * power
    inverse = _inverse_blocks(gram.detach(), ridge.detach(), power.detach(), lattice)
    return fast + _Solve.apply(residual, image, guide, weight, ridge, inverse, pack(lattice))


def _moments(image: Tensor, target: Tensor, guide: Tensor, weight: Tensor, lattice: Lattice) -> tuple[Tensor, Tensor]:
    """``G = splat(weight t tᵀ)``, ``(N, n, n, D, Gh, Gw)``, and ``R = splat(weight target tᵀ)``, ``(N, C_out, n, D, Gh, Gw)``, with t = [image; 1].

    The adjoint of slice_apply forms these products in its kernel, all but G's last row, which is its last column.
    """
    scale = weight.unsqueeze(1)
    terms = image.shape[1] + 1
    rows = slice_apply_bwd_grid_(guide, image, scale * image, lattice).unflatten(1, (-1, terms))
    last = torch.cat([rows[:, :, -1], splat_(scale, guide, lattice)], 1)
    right = slice_apply_bwd_grid_(guide, image, scale * target, lattice).unflatten(1, (-1, terms))
    return torch.cat([rows, last.unsqueeze(1)], 1), right


def _solve_cells(gram: Tensor, right: Tensor, power: Tensor) -> Tensor:
    """The fast fit of the moments, each cell by its own Cholesky; ``power`` is ``(N, n)``."""
    outputs, terms = right.shape[1:3]
    sums = torch.cat([gram, right], 1).flatten(1, 2)
    sums = torch.stack([share * blur(sums, sigma) for share, sigma in _TAIL]).sum(0).unflatten(1, (-1, terms))
    gram, right = sums[:, :terms], sums[:, terms:]

    identity = torch.eye(outputs, terms, dtype=gram.dtype, device=gram.device)
    if outputs != terms - 1:
        identity = torch.full_like(identity, 1 / (terms - 1))
        identity[:, -1] = 0
    # The gain g that minimises sum |target - g E t|², in each cell and in the whole image. Not by einsum, whose sums depend on the batch.
    at_cells = (..., None, None, None)
    along = (right * identity[at_cells]).sum((1, 2))
    with without_autocast(gram):
        squared = identity.mT @ identity
    across = (gram * squared[at_cells]).sum((1, 2))
    everywhere = (summed(along, 1) + _TINY) / (summed(across, 1) + _TINY)
    trust = _PRIOR * power[:, :-1].mean(1)[at_cells]
    gain = (along + spread(trust * everywhere, along)) / (across + spread(trust, across))

    prior = power[at_cells] * (_PRIOR + _rounding(gram) * gram[:, -1:, -1])
    right = right + prior.unsqueeze(1) * gain[:, None, None] * identity[at_cells]
    blocks = gram.permute(0, 3, 4, 5, 1, 2) + torch.diag_embed(prior.movedim(1, -1))
    maps = solve_blocks(blocks, right.permute(0, 3, 4, 5, 2, 1))
    return maps.permute(0, 5, 4, 1, 2, 3).flatten(1, 2)


def _rounding(gram: Tensor) -> float:
    return _ROUNDINGS * gram.shape[1] * torch.finfo(gram.dtype).eps


def _fitted(grid: Tensor, image: Tensor, guide: Tensor, weight: Tensor, lattice: Lattice) -> Tensor:
    """The data term's matrix times ``grid``: half the gradient of ``sum_p weight |slice_apply(grid, guide, image)|²``."""
    applied = slice_apply(grid, guide, image, lattice=lattice)
    return slice_apply_bwd_grid_(guide, image, weight.unsqueeze(1) * applied, lattice)


def _smoothness(lattice: Lattice) -> list[tuple[int, int, float]]:
    """The smoothness terms: an axis of the grid, the order of the difference along it, and its squared weight. Axes too short for a difference have none."""
    (depth, rows, columns), (height, width) = lattice.size, lattice.image_size
    bz, by, bx = 1 / (lattice.scale[0] or 1), height / rows, width / columns
    weights = (
        (2, 2, depth, _SMOOTH_Z * bx * by / bz**2),
        (3, 1, rows, _SMOOTH_XY * bx * bz / by),
        (4, 1, columns, _SMOOTH_XY * by * bz / bx),
    )
    return [(axis, order, weight**2) for axis, order, extent, weight in weights if extent > order]


def _roughness(grid: Tensor, lattice: Lattice) -> Tensor:
    """The smoothness terms' matrix times ``grid``: each difference followed by its adjoint."""
    rough = torch.zeros_like(grid)
    for axis, order, weight in _smoothness(lattice):
        ends = [0, 0] * (4 - axis) + [order, order]
        differences = torch.nn.functional.pad(torch.diff(grid, order, axis), ends)
        rough = rough + (-1) ** order * weight * torch.diff(differences, order, axis)
    return rough


def _inverse_blocks(gram: Tensor, ridge: Tensor, power: Tensor, lattice: Lattice) -> Tensor:
    """The preconditioner of the conjugate gradients, ``(N, 1, n, n, D, Gh, Gw)``: the inverse of each cell's own block, its neighbours' tents added in."""
    # A first difference, squared, has 2 on its diagonal, a second 6.
    smooth = sum({1: 2, 2: 6}[order] * weight for _, order, weight in _smoothness(lattice))
    mass = gram[:, -1:, -1]
    diagonal = (ridge + smooth)[:, :, None, None, None] + _rounding(gram) * power[:, :, None, None, None] * mass
    blocks = gram.permute(0, 3, 4, 5, 1, 2) + torch.diag_embed(diagonal.movedim(1, -1))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(blocks).L)
    return inverse.permute(0, 4, 5, 1, 2, 3).unsqueeze(1).contiguous()


class _Solve(Function):
    """Solves ``(S + ridge) x = right`` for all cells, S the matrix of `_fitted` and `_roughness`.

    S is symmetric, so the gradient by ``right`` is another solve, ``λ``, and the gradients by what S is made of are those of ``-<λ, S x>``, a product of two
    `slice_apply`. All are differentiable in turn.
    """

    @staticmethod
    def forward(
        right: Tensor, image: Tensor, guide: Tensor, weight: Tensor, ridge: Tensor, inverse: Tensor, lattice: Packed
    ) -> Tensor:
        return _conjugate_gradients(right, image, guide, weight, ridge, inverse, unpack(lattice, right))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.lattice = inputs
        ctx.save_for_backward(*tensors[1:], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        image, guide, weight, ridge, inverse, x = ctx.saved_tensors
        lattice = unpack(ctx.lattice, x)
        by_right = _Solve.apply(grad, image, guide, weight, ridge, inverse, ctx.lattice)
        applied, incoming = (slice_apply(grid, guide, image, lattice=lattice) for grid in (x, by_right))
        scale = weight.unsqueeze(1)
        first = slice_apply_bwd_pixels_(x, guide, image, -scale * incoming, lattice)
        second = slice_apply_bwd_pixels_(by_right, guide, image, -scale * applied, lattice)
        by_ridge = -(x * by_right).unflatten(1, (-1, ridge.shape[1])).sum((1, 3, 4, 5))
        by_weight = -(applied * incoming).sum(1)
        return by_right, first[0] + second[0], first[1] + second[1], by_weight, by_ridge, None, None


def _conjugate_gradients(
    right: Tensor, image: Tensor, guide: Tensor, weight: Tensor, ridge: Tensor, inverse: Tensor, lattice: Lattice
) -> Tensor:
    """Every image and output channel is a system of its own, ``(N, C_out, n, D, Gh, Gw)``."""
    terms = ridge.shape[1]
    damping = ridge[:, None, :, None, None, None]

    def times(x: Tensor) -> Tensor:
        grid = x.flatten(1, 2)
        product = _fitted(grid, image, guide, weight, lattice) + _roughness(grid, lattice)
        return product.unflatten(1, (-1, terms)) + damping * x

    x = conjugate_gradients(
        right.unflatten(1, (-1, terms)),
        times,
        lambda residual: (inverse * residual.unsqueeze(2)).sum(3),
        tolerance=_TOLERANCE[right.dtype],
        most_steps=_MOST_STEPS,
    )
    return x.flatten(1, 2)

"""Blur: a Gaussian in the grid."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bilagrid._numbers import number, numbers
from bilagrid.ops import _checks
from bilagrid.ops._function import Function
from bilagrid.ops._memory import empty_grid_as
from bilagrid.ops._register import raw_operator

# A wider Gaussian has more taps than any grid has nodes: it is a slip, or wants a coarser grid.
_LARGEST_SIGMA = 1024.0


def blur(grid: Tensor, sigma: float | tuple[float, float, float]) -> Tensor:
    """Convolves the grid with a Gaussian along z, y and x; outside the grid is zero. Along each axis::

        out[i] = sum_k t_k grid[i + k] / sum_k t_k,   t_k = exp(-k² / 2 sigma²),   |k| <= ceil(3 sigma)

    Args:
        grid: ``(N, C, D, Gh, Gw)``, any floating type and strides.
        sigma: standard deviation in nodes, one number or ``(z, y, x)``; 0 leaves an axis alone.

    Returns:
        A grid of the same shape and dtype, accumulated in float32 (float64 for float64). Its channels lie innermost in memory if the grid's do, else it is
        contiguous.

    Raises:
        TypeError: a dtype that is not floating, or a sigma that is not a number.
        ValueError: a sigma below 0 or above 1024, or a grid of another rank.

    Gradients: to grid, of any order in reverse mode, by the same blur: its taps are symmetric, so blur is its own adjoint. Deterministic.

    Source: the Gaussian between splat and slice of Paris and Durand, "A fast approximation of the bilateral filter using a signal processing approach", ECCV
    2006.

    Example:
        >>> grid = torch.zeros(1, 1, 1, 1, 7)
        >>> grid[..., 3] = 1
        >>> blur(grid, (0, 0, 1))[0, 0, 0, 0]
        tensor([0.0044, 0.0540, 0.2420, 0.3991, 0.2420, 0.0540, 0.0044])
    """
    _checks.tensors(grid=grid)
    _checks.rank("grid", grid, "(N, C, D, Gh, Gw)")
    every = sigma if isinstance(sigma, (tuple, list)) else (number("sigma", sigma),) * 3
    sigmas = numbers("sigma", "(z, y, x)", every)
    if not all(0 <= s <= _LARGEST_SIGMA for s in sigmas):
        raise ValueError(f"sigma must be between 0 and {_LARGEST_SIGMA:.0f} nodes, got {sigma!r}")
    along_z, along_y, along_x = map(float, sigmas)
    return blur_(grid, (along_z, along_y, along_x))


def blur_(grid: Tensor, sigma: tuple[float, float, float]) -> Tensor:
    """`blur` of checked arguments."""
    return _Blur.apply(grid, sigma)


def _fake_blur(grid: Tensor, sigma: list[float]) -> Tensor:
    return empty_grid_as(grid)


_raw_blur = raw_operator("blur", "blur(Tensor grid, float[] sigma) -> Tensor", _fake_blur)


class _Blur(Function):
    @staticmethod
    def forward(grid: Tensor, sigma: tuple[float, float, float]) -> Tensor:
        return _raw_blur(grid, sigma)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.sigma = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return blur_(grad, ctx.sigma), None

"""Solves for what is fitted on a lattice: conjugate gradients over a whole grid, and a small block of its own for each cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bilagrid.filters import can_be_looked_at
from bilagrid.ops._backend import has_values
from bilagrid.ops._function import Function
from bilagrid.ops._same_bits import summed

_STEPS_BETWEEN_LOOKS = 8


def conjugate_gradients(
    right: Tensor,
    times: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    *,
    tolerance: float,
    most_steps: int,
) -> Tensor:
    """Solves ``times(x) = right``, from 0 on, for a symmetric and positive definite ``times``.

    Each image and channel of ``right``, ``(N, C, ...)``, is a system of its own. It stops by itself when its residual, in the norm of the preconditioner, has
    fallen by a factor of ``tolerance``, or after ``most_steps``; one that is not finite gives NaN. Every 8 steps the host looks, where it can, whether all have
    stopped.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return summed(a * b, 2)

    residual = right
    direction = preconditioned = precondition(residual)
    error = dot(residual, preconditioned)
    enough = tolerance**2 * error
    # A system that is not finite has no solution, and would take no step.
    x = torch.where(error.isfinite(), torch.zeros_like(residual), torch.nan)
    # Under vmap the host cannot look: all steps are taken, and a system that has stopped stays as it is. Without values one step launches what each would.
    can_look = can_be_looked_at(error)
    for step in range(most_steps if has_values(right) else 1):
        open_ = error > enough
        if step % _STEPS_BETWEEN_LOOKS == 0 and can_look and not bool(open_.any()):
            break
        image_of = times(direction)
        length = torch.where(open_, error / dot(direction, image_of), 0)
        x = x + length * direction
        residual = residual - length * image_of
        preconditioned = precondition(residual)
        before, error = error, dot(residual, preconditioned)
        direction = preconditioned + torch.where(open_, error / before, 0) * direction
    return x


def solve_blocks(blocks: Tensor, right: Tensor) -> Tensor:
    """``x = A⁻¹ B``, ``(..., n, m)``, by Cholesky, for blocks A ``(..., n, n)``, symmetric and positive definite, and ``right`` B ``(..., n, m)``."""
    return _SolveBlocks.apply(blocks, right)


class _SolveBlocks(Function):
    """The gradient by B is another solve, ``λ``, and that by A is ``-λ xᵀ``. Torch's own takes matrix products, which autocast rounds to half types."""

    @staticmethod
    def forward(blocks: Tensor, right: Tensor) -> Tensor:
        return torch.cholesky_solve(right, torch.linalg.cholesky_ex(blocks).L)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        blocks, x = ctx.saved_tensors
        by_right = _SolveBlocks.apply(blocks, grad)
        return -(by_right.unsqueeze(-2) * x.unsqueeze(-3)).sum(-1), by_right

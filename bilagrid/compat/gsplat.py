"""gsplat's calls (and bilarf's, and nerfstudio's): its ``examples/lib_bilagrid.py`` and ``gsplat.color_correct``.

Arguments, layouts, defaults and ``state_dict`` are theirs; so are values and gradients, to rounding. To be on the fast path, replace your own ``xy`` by
`bilagrid.compat.pixel_grid`, as README shows under "Drop-in replacements".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bilagrid.compat._bank import GridBank, total_variation_loss
from bilagrid.compat._color_correct import color_correct, color_correct_affine, color_correct_quadratic
from bilagrid.compat._low_rank import BilateralGridCP4D, slice4d
from bilagrid.compat._maps import affine_maps, color_affine_transform, row_index, transformed
from bilagrid.compat._places import pixel_grid
from bilagrid.compat._sliced import Sliced
from bilagrid.ops import _checks
from bilagrid.ops._luma import LUMA

__all__ = [
    "BilateralGrid",
    "BilateralGridCP4D",
    "bilateral_grid_tv_loss",
    "color_affine_transform",
    "color_correct",
    "color_correct_affine",
    "color_correct_quadratic",
    "pixel_grid",
    "slice",
    "slice4d",
    "total_variation_loss",
]


class BilateralGrid(GridBank):
    """Colour grids of ``num`` photographs, each the identity at first.

    Args:
        num: photographs.
        grid_X: nodes along x.
        grid_Y: nodes along y.
        grid_W: nodes along luma.
        gauge: keeps the mean of the grids at the identity. Without it the colours of the scene drift, since a scene twice as bright fits the photographs as
            well through grids half as bright. It acts in every step, which costs a pass over all grids; `center_` does the same when it is called.
        sparse: gives the grids a sparse gradient, of those that a step read, for ``torch.optim.SparseAdam``: with many photographs, dense gradients and
            Adam cost as much as slicing does. At places that are not regular the host waits for a GPU to know which were read.

    Attributes:
        grids: the parameter, ``(num, 12, grid_W, grid_Y, grid_X)``: a 3x4 colour map, row by row, in each node. ``grids.requires_grad_(False)`` freezes it; the
            colours still get their gradients.
        rgb2gray_weight: ``(1, 3)``, the luma, BT.601; a ``state_dict`` with another one is refused.

    Example:
        >>> grids = BilateralGrid(200)
        >>> xy = pixel_grid(48, 64)                                 # once for each size of image
        >>> rendered = torch.rand(1, 48, 64, 3)
        >>> photograph = torch.tensor([[17]])
        >>> seen = slice(grids, xy, rendered, photograph)["rgb"]
        >>> loss = (seen - rendered).abs().mean() + 10 * grids.tv_loss(photograph)
    """

    rgb2gray_weight: Tensor

    def __init__(
        self,
        num: int,
        grid_X: int = 16,
        grid_Y: int = 16,
        grid_W: int = 8,
        *,
        gauge: bool = False,
        sparse: bool = False,
    ) -> None:
        super().__init__(num, grid_X, grid_Y, grid_W, gauge=gauge, sparse=sparse)
        self.register_buffer("rgb2gray_weight", torch.tensor([LUMA]))

    def rgb2gray(self, rgb: Tensor) -> Tensor:
        """Luma ``(..., 1)`` of colours ``(..., 3)``, from -1 for black to 1 for white."""
        return rgb @ self.rgb2gray_weight.T.to(rgb.dtype) * 2 - 1

    def forward(
        self, grid_xy: Tensor, rgb: Tensor, idx: Tensor | int | None = None, *, transform: bool = False
    ) -> Tensor:
        """The colour maps at places ``grid_xy`` and the luma of ``rgb``.

        Args:
            grid_xy: ``(..., 2)`` in [0, 1], x first; of 2 to 5 dimensions.
            rgb: ``(..., 3)``, in [0, 1].
            idx: the grid of each leading row, ``(N,)``, or one for all; without it, row n has grid n.
            transform: return the colours under the maps in place of the maps, which are not stored where the places are regular.

        Returns:
            ``(..., 3, 4)``; with ``transform`` ``(..., 3)``.

        Raises:
            TypeError, ValueError: dtypes, shapes or devices that do not fit.
            IndexError: an index out of range, on the CPU.
        """
        if not isinstance(grid_xy, Tensor):
            raise TypeError(
                f"grid_xy must be a torch.Tensor, got {type(grid_xy).__name__}; bilagrid.compat.pixel_grid makes one"
            )
        _checks.flag("transform", transform)
        index = None if idx is None else row_index("idx", idx, rgb)
        return self._read(transformed if transform else affine_maps, self.grids, grid_xy, rgb, index)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weights = state_dict.get(prefix + "rgb2gray_weight")
        if weights is not None and not torch.allclose(weights.float().cpu(), torch.tensor([LUMA], device="cpu")):
            raise ValueError(
                f"{prefix}rgb2gray_weight must be BT.601's {LUMA}, which the kernels compute, got {weights.tolist()}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def slice(bil_grids: BilateralGrid, xy: Tensor, rgb: Tensor, grid_idx: Tensor | int) -> dict[str, Tensor]:
    """Slices each photograph's grid at its pixels and applies the colour maps::

        rgb_out_o = sum_i A_oi rgb_i + A_o3,   A = grid[index] at (x (Gw - 1), y (Gh - 1), luma(rgb) (D - 1))

    Args:
        bil_grids: a `BilateralGrid`, or a module that calls one (such as ``DistributedDataParallel``).
        xy: ``(..., 2)``, x and y in [0, 1]. One of `pixel_grid`, or a view of it, is known to be regular and takes the fast path; one serves a whole batch.
        rgb: ``(..., 3)``, of 2 to 4 dimensions, in [0, 1]: rays ``(N, 3)``, images ``(N, H, W, 3)``. Any floating type and strides.
        grid_idx: the grid of each leading row of rgb, ``(N, 1)``, ``(N, 1, 1)`` or ``(N, 1, 1, 1)``, or one index for all, of any shape. If it has an index for
            each pixel, the first of each row counts.

    Returns:
        ``{"rgb": (..., 3), "rgb_affine_mats": (..., 3, 4)}``. The maps are computed when they are read, or at once within a transform of `torch.func`
        or a compiled graph; reading them after the optimizer's next step is an error.

    Raises:
        TypeError, ValueError: dtypes, shapes or devices that do not fit.
        IndexError: an index out of range, on the CPU. On a GPU, where a check would make the host wait, those colours are NaN.

    Gradients: to the grids, to rgb (through luma too) and, where xy requires them, to xy; of any order in reverse mode. Deterministic. By a coordinate outside the
    grid, or on its border, the derivative is 0. No call waits for a GPU.

    Source: Wang et al., "Bilateral guided radiance field processing", SIGGRAPH 2024.

    Example:
        >>> grids = BilateralGrid(3)
        >>> rays, places = torch.rand(100, 3), torch.rand(100, 2)
        >>> out = slice(grids, places, rays, torch.randint(3, (100, 1)))
        >>> torch.testing.assert_close(out["rgb"], rays)
        >>> out["rgb_affine_mats"].shape
        torch.Size([100, 3, 4])
    """
    if not isinstance(rgb, Tensor) or not 2 <= rgb.ndim <= 4:
        found = tuple(rgb.shape) if isinstance(rgb, Tensor) else type(rgb).__name__
        raise ValueError(f"rgb must be a tensor (..., 3) of 2 to 4 dimensions, got {found}")
    if not isinstance(xy, Tensor):
        raise TypeError(f"xy must be a torch.Tensor, got {type(xy).__name__}; bilagrid.compat.pixel_grid makes one")
    index = row_index("grid_idx", grid_idx, rgb)
    module = (
        next((m for m in bil_grids.modules() if isinstance(m, BilateralGrid)), None)
        if isinstance(bil_grids, nn.Module)
        else None
    )
    if module is None:
        raise TypeError(
            f"bil_grids must be a bilagrid.compat.gsplat.BilateralGrid or hold one, got {type(bil_grids).__name__}"
        )
    # The parameter as it is now: torch.func.functional_call may have put another there for this call alone.
    grids = module.grids

    def maps() -> Tensor:
        return module._read(affine_maps, grids, xy, rgb, index)

    colors = bil_grids(xy, rgb, index, transform=True)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        # A graph does not compute what it does not use, and a transform ends before maps would be read.
        return {"rgb": colors, "rgb_affine_mats": maps()}
    sliced: Any = Sliced(colors, maps, (xy, rgb, grids))
    return sliced


def bilateral_grid_tv_loss(model: Any, config: Any) -> Tensor:
    """``config.bilgrid_tv_loss_mult`` times the total variation of every module in ``model.bil_grids``, summed.

    Example:
        >>> from types import SimpleNamespace
        >>> model = SimpleNamespace(bil_grids=[BilateralGrid(2), BilateralGrid(3)])
        >>> bilateral_grid_tv_loss(model, SimpleNamespace(bilgrid_tv_loss_mult=10)).item()
        0.0
    """
    return sum(config.bilgrid_tv_loss_mult * grids.tv_loss() for grids in model.bil_grids)

"""fused-bilagrid's calls, on any device. They return colours, not maps; ``xy=None`` stands for the pixels of a whole image, and patches of larger images are
given by their offsets.

``compute_coords_grad=False``, the default there too, leaves out the gradient to xy. Two things differ. A colour that is NaN stays NaN, where that package writes
0.5. And where luma lies exactly on a node, the derivative is that of the cell above, as everywhere here, where some of its kernels take 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bilagrid._numbers import integer
from bilagrid.compat._bank import GridBank, total_variation_loss
from bilagrid.compat._color_correct import color_correct
from bilagrid.compat._maps import row_index, transformed
from bilagrid.compat._places import pixel_grid
from bilagrid.ops import _checks
from bilagrid.ops._dtypes import widened

__all__ = ["BilateralGrid", "color_correct", "fused_bilagrid_sample", "pixel_grid", "slice", "total_variation_loss"]


class BilateralGrid(GridBank):
    """Colour grids of ``num`` photographs, each the identity at first; `bilagrid.compat.gsplat.BilateralGrid` says what the arguments mean.

    Its ``state_dict`` has ``grids`` alone, as that of fused-bilagrid.

    Example:
        >>> grids = BilateralGrid(200)
        >>> rendered = torch.rand(1, 48, 64, 3)
        >>> seen = slice(grids, None, rendered, torch.tensor([[17]]))["rgb"]
    """

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

    def forward(
        self,
        grid_xy: Tensor | None,
        rgb: Tensor,
        idx: Tensor | int | None = None,
        compute_coords_grad: bool = False,
        actual_height: int | None = None,
        actual_width: int | None = None,
        patch_offsets: Tensor | None = None,
    ) -> Tensor:
        """The colours under their maps, of the shape of ``rgb``. The arguments are those of `slice`; without ``idx``, row n has grid n."""
        index = None if idx is None else row_index("idx", idx, rgb)
        places, rgb = _places(grid_xy, rgb, compute_coords_grad, actual_height, actual_width, patch_offsets)
        return self._read(transformed, self.grids, places, rgb, index)


def slice(
    bil_grids: BilateralGrid,
    xy: Tensor | None,
    rgb: Tensor,
    grid_idx: Tensor | int,
    compute_coords_grad: bool = False,
    actual_height: int | None = None,
    actual_width: int | None = None,
    patch_offsets: Tensor | None = None,
) -> dict[str, Tensor]:
    """Slices each photograph's grid at its pixels and applies the colour maps, as `bilagrid.compat.gsplat.slice` does.

    Args:
        bil_grids: a `BilateralGrid`, or a module that calls one.
        xy: ``(..., 2)``, x and y in [0, 1]; None stands for the pixels of whole images, corner-aligned. None and an xy of `pixel_grid` take the fast path.
        rgb: ``(..., 3)``, of 2 to 4 dimensions, in [0, 1]; half types are computed and returned in float32.
        grid_idx: the grid of each leading row of rgb, or one for all.
        compute_coords_grad: whether xy gets its gradient.
        actual_height, actual_width: of the images that patches were cut from. With these and ``patch_offsets`` xy is ignored, and rgb is ``(m, h, w, 3)``: m
            patches of one photograph, or one patch from each of m.
        patch_offsets: integers ``(m, 2)``, ``(1, m, 2)`` or ``(m, 1, 2)``, the first pixel of each patch as (x, y).

    Returns:
        ``{"rgb": (..., 3)}``.

    Raises:
        TypeError, ValueError: dtypes, shapes or devices that do not fit; on the CPU also patches that reach beyond their image.
        IndexError: an index out of range, on the CPU. On a GPU, where a check would make the host wait, those colours are NaN.

    Gradients: to the grids, to rgb and, with ``compute_coords_grad``, to xy; of any order in reverse mode. Deterministic, without atomics. No call waits for a GPU.

    Source: the calls of harry7557558/fused-bilagrid.

    Example:
        >>> grids = BilateralGrid(3)
        >>> patches = torch.rand(2, 8, 8, 3)
        >>> out = slice(grids, None, patches, 1, actual_height=48, actual_width=64, patch_offsets=torch.tensor([[0, 0], [56, 40]]))
        >>> out["rgb"].shape
        torch.Size([2, 8, 8, 3])
    """
    if not isinstance(rgb, Tensor) or not 2 <= rgb.ndim <= 4:
        found = tuple(rgb.shape) if isinstance(rgb, Tensor) else type(rgb).__name__
        raise ValueError(f"rgb must be a tensor (..., 3) of 2 to 4 dimensions, got {found}")
    if not isinstance(bil_grids, nn.Module):
        raise TypeError(
            f"bil_grids must be a bilagrid.compat.fused_bilagrid.BilateralGrid or a module that calls one, got {type(bil_grids).__name__}"
        )
    index = row_index("grid_idx", grid_idx, rgb)
    rest = compute_coords_grad, actual_height, actual_width, patch_offsets
    return {"rgb": bil_grids(xy, rgb, index, *rest)}


def fused_bilagrid_sample(
    bilagrid: Tensor,
    coords: Tensor | None,
    rgb: Tensor,
    compute_coords_grad: bool = False,
    actual_height: int | None = None,
    actual_width: int | None = None,
    patch_offsets: Tensor | None = None,
) -> Tensor:
    """The colours under the maps of grids ``(N, 12, D, Gh, Gw)``: row n of ``rgb`` ``(N, m, h, w, 3)`` has grid n. The other arguments are those of `slice`.

    Example:
        >>> identity = torch.eye(3, 4).view(1, 12, 1, 1, 1).expand(2, 12, 8, 16, 16)
        >>> rgb = torch.rand(2, 1, 30, 40, 3)
        >>> torch.testing.assert_close(fused_bilagrid_sample(identity, None, rgb), rgb)
    """
    given = {"bilagrid": bilagrid, "rgb": rgb} | ({} if coords is None else {"coords": coords})
    _checks.tensors(**given)
    places, rgb = _places(coords, rgb, compute_coords_grad, actual_height, actual_width, patch_offsets)
    return transformed(bilagrid, places, rgb, None)


def _places(
    xy: Tensor | None,
    rgb: Tensor,
    compute_coords_grad: bool,
    height: int | None,
    width: int | None,
    offsets: Tensor | None,
) -> tuple[Tensor | None, Tensor]:
    """The places of the pixels, None for those of whole images, and the colours in the type that is computed in."""
    _checks.tensors(rgb=rgb, **({} if xy is None else {"xy": xy}))
    given = (height is not None, width is not None, offsets is not None)
    if any(given) and not all(given):
        raise ValueError("actual_height, actual_width and patch_offsets must be given together, or none of them")
    rgb = widened(rgb)
    if height is not None and width is not None and offsets is not None:
        return _of_patches(rgb, height, width, offsets), rgb
    if xy is not None and xy.requires_grad and not compute_coords_grad:
        xy = xy.detach()
    return xy, rgb


def _of_patches(rgb: Tensor, height: int, width: int, offsets: Tensor) -> Tensor:
    """The places of the pixels of patches ``(..., h, w, 3)`` in their images of ``height`` and ``width``, corner-aligned."""
    if not isinstance(offsets, Tensor) or offsets.is_floating_point() or offsets.dtype == torch.bool:
        found = offsets.dtype if isinstance(offsets, Tensor) else type(offsets).__name__
        raise TypeError(f"patch_offsets must be a tensor of integers such as int32, got {found}")
    for name, extent in (("actual_height", height), ("actual_width", width)):
        if integer(name, extent, "a whole number of pixels") < 1:
            raise ValueError(f"{name} must be at least 1 pixel, got {extent}")
    if rgb.ndim < 3:
        raise ValueError(f"rgb must have shape (..., h, w, 3) for patches, got {tuple(rgb.shape)}")
    lead, (rows, columns) = rgb.shape[:-3], rgb.shape[-3:-1]
    if offsets.shape[-1:] != (2,) or offsets.numel() != 2 * lead.numel():
        raise ValueError(
            f"patch_offsets must have shape (..., 2) = {(*lead, 2)}, an (x, y) for each patch, got {tuple(offsets.shape)}"
        )
    if offsets.device != rgb.device:
        raise ValueError(f"patch_offsets must be on {rgb.device} as rgb is, got {offsets.device}")
    if offsets.device.type == "cpu" and not torch.compiler.is_compiling() and offsets.numel():
        last = torch.tensor([width - columns, height - rows], device=offsets.device)
        if bool((offsets < 0).any() | (offsets > last).any()):
            raise ValueError(
                f"patch_offsets must keep patches of (h, w) = {(rows, columns)} within (actual_height, actual_width) = {(height, width)}, "
                f"got (x, y) from {tuple(offsets.reshape(-1, 2).amin(0).tolist())} to {tuple(offsets.reshape(-1, 2).amax(0).tolist())}"
            )
    first = offsets.reshape(*lead, 1, 1, 2).to(rgb.dtype)
    x = (first[..., 0] + torch.arange(columns, device=rgb.device)) / max(width - 1, 1)
    y = (first[..., 1] + torch.arange(rows, device=rgb.device)[:, None]) / max(height - 1, 1)
    return torch.stack(torch.broadcast_tensors(x, y), -1)

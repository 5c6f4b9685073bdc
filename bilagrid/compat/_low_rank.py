"""The low-rank 4-D grid of bilarf: colour maps that depend on a point in space and its brightness, as a sum of products of four curves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bilagrid._numbers import number
from bilagrid.compat._bank import total_variation_loss
from bilagrid.compat._maps import color_affine_transform
from bilagrid.ops import _checks
from bilagrid.ops._luma import LUMA
from bilagrid.ops.slice_points import slice_points

_AXES = 4


class BilateralGridCP4D(nn.Module):
    """A grid over space and brightness, ``(x, y, z, gray)``, of low rank: edits of a whole scene in bilarf::

        A = sum_r M_r f1_r(x) f2_r(y) f3_r(z) f4_r(gray)

    with 3x4 matrices ``M_r`` and curves ``f`` interpolated linearly between nodes. At first A is the identity, up to ``init_noise_scale``.

    Args:
        grid_X, grid_Y, grid_Z, grid_W: numbers of nodes. As in the original module the curve over x has grid_W, over y grid_Z, over z grid_Y, over gray grid_X.
        rank: number of terms of the sum.
        learn_gray: whether a small network computes gray from the colour; else it is BT.601's luma, from -1 to 1.
        gray_mlp_width, gray_mlp_depth: of that network.
        init_noise_scale: standard deviation of the noise that the matrices start with; the first is the identity plus noise.
        bound: coordinates reach from -bound to bound.

    The ``state_dict`` is the original's: ``fac_0.weight`` ``(12, rank)``, and for i of 1 to 4 ``fac_{i}`` (what was learned) and ``fac_{i}_init``, both
    ``(1, rank, nodes, 1)``.

    Source: Wang et al., "Bilateral guided radiance field processing", SIGGRAPH 2024, section 3.4.

    Example:
        >>> grid = BilateralGridCP4D()
        >>> points, colors = torch.rand(100, 3), torch.rand(100, 3)
        >>> torch.testing.assert_close(slice4d(grid, points, colors)["rgb"], colors, atol=1e-4, rtol=0)
    """

    rgb2gray_weight: Tensor

    def __init__(
        self,
        grid_X: int = 16,
        grid_Y: int = 16,
        grid_Z: int = 16,
        grid_W: int = 8,
        rank: int = 5,
        learn_gray: bool = True,
        gray_mlp_width: int = 8,
        gray_mlp_depth: int = 2,
        init_noise_scale: float = 1e-6,
        bound: float = 2.0,
    ) -> None:
        super().__init__()
        counts = {"grid_X": grid_X, "grid_Y": grid_Y, "grid_Z": grid_Z, "grid_W": grid_W, "rank": rank}
        counts |= {"gray_mlp_width": gray_mlp_width, "gray_mlp_depth": gray_mlp_depth}
        for name, count in counts.items():
            if not hasattr(count, "__index__") or count < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {count!r}")
            setattr(self, name, count)
        _checks.flag("learn_gray", learn_gray)
        if learn_gray and gray_mlp_depth < 2:
            raise ValueError(
                f"gray_mlp_depth must be at least 2, of which the last layer gives the gray, got {gray_mlp_depth}"
            )
        if not number("bound", bound) > 0:
            raise ValueError(f"bound must be above 0, got {bound!r}")
        if not number("init_noise_scale", init_noise_scale) >= 0:
            raise ValueError(f"init_noise_scale must be at least 0, got {init_noise_scale!r}")
        self.learn_gray, self.init_noise_scale, self.bound = learn_gray, init_noise_scale, bound
        self.num_facs = _AXES + 1
        self.fac_0 = nn.Linear(rank, 12, bias=False)
        with torch.no_grad():
            self.fac_0.weight.normal_(0, init_noise_scale)
            self.fac_0.weight[:, 0] += torch.eye(3, 4).flatten()
        for axis, nodes in enumerate((grid_W, grid_Z, grid_Y, grid_X), start=1):
            # The curves of the identity's term are 1 everywhere; the others need not be small, since their matrices are.
            start = 2 * torch.rand(1, rank, nodes, 1) - 1
            start[:, 0] = 1
            self.register_buffer(f"fac_{axis}_init", start)
            self.register_parameter(f"fac_{axis}", nn.Parameter(torch.zeros_like(start)))
        if learn_gray:
            self.rgb2gray = _gray_network(gray_mlp_width, gray_mlp_depth)
        else:
            self.register_buffer("rgb2gray_weight", torch.tensor([LUMA]))

    def tv_loss(self) -> Tensor:
        """Total variation of what the four curves learned, summed."""
        losses = (total_variation_loss(self.get_parameter(f"fac_{axis}")) for axis in range(1, self.num_facs))
        return sum(losses, start=self.fac_0.weight.new_zeros(()))

    def forward(self, xyz: Tensor, rgb: Tensor) -> Tensor:
        """The colour maps ``(..., 3, 4)`` at points ``xyz`` ``(..., 3)``, within ``bound``, of colours ``rgb`` ``(..., 3)``.

        Gradients: to the factors, the network, xyz and rgb, of any order in reverse mode. Deterministic.
        """
        _checks.tensors(xyz=xyz, rgb=rgb)
        for name, tensor in (("xyz", xyz), ("rgb", rgb)):
            if tensor.ndim < 1 or tensor.shape[-1] != 3:
                raise ValueError(f"{name} must have shape (..., 3), got {tuple(tensor.shape)}")
        if xyz.shape != rgb.shape:
            raise ValueError(f"rgb must have the shape of xyz, {tuple(xyz.shape)}, got {tuple(rgb.shape)}")
        colors = rgb.reshape(-1, 3)
        places = torch.cat([xyz.reshape(-1, 3) / self.bound, self._gray(colors)], 1)
        product = torch.ones((), dtype=places.dtype, device=places.device)
        for axis, place in enumerate(places.unbind(1), start=1):
            curves = self.get_parameter(f"fac_{axis}") + self.get_buffer(f"fac_{axis}_init")
            product = product * _read(curves, place)
        return self.fac_0(product).reshape(*xyz.shape[:-1], 3, 4)

    def _gray(self, colors: Tensor) -> Tensor:
        return self.rgb2gray(colors) if self.learn_gray else colors @ self.rgb2gray_weight.T * 2 - 1


def slice4d(bil_grid4d: BilateralGridCP4D, xyz: Tensor, rgb: Tensor) -> dict[str, Tensor]:
    """The colours ``rgb`` of points ``xyz`` under the maps of a `BilateralGridCP4D`.

    Args:
        bil_grid4d: the grid.
        xyz: ``(..., 3)``, within the grid's bound.
        rgb: of the same shape.

    Returns:
        ``{"rgb": (..., 3), "rgb_affine_mats": (..., 3, 4)}``.

    Example:
        >>> slice4d(BilateralGridCP4D(), torch.zeros(5, 3), torch.rand(5, 3))["rgb_affine_mats"].shape
        torch.Size([5, 3, 4])
    """
    if not isinstance(bil_grid4d, nn.Module):
        raise TypeError(f"bil_grid4d must be a BilateralGridCP4D, got {type(bil_grid4d).__name__}")
    maps = bil_grid4d(xyz, rgb)
    return {"rgb": color_affine_transform(maps, rgb), "rgb_affine_mats": maps}


def _read(curves: Tensor, places: Tensor) -> Tensor:
    """Curves ``(1, rank, nodes, 1)`` at places ``(P,)`` from -1 to 1, ``(P, rank)``."""
    nodes = curves.shape[2]
    x = (places + 1) / 2 * (nodes - 1)
    points = torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], -1)
    return slice_points(curves.reshape(1, -1, 1, 1, nodes), points)


class _ScaledTanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(2 * x)


def _gray_network(width: int, depth: int) -> nn.Sequential:
    """From a colour to a gray between -1 and 1."""
    layers: list[nn.Module] = [nn.Linear(3, width)]
    for layer in range(1, depth):
        layers += [nn.ReLU(), nn.Linear(width, width if layer < depth - 1 else 1)]
    return nn.Sequential(*layers, _ScaledTanh())

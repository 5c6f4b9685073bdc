"""A deghosting network at reduced resolution, whose result affine maps in a bilateral grid carry to full size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilagrid
from nets.deghost.model import DeghostNet, check
from nets.deghost.radiance import compressed, expanded, linearised
from nets.weights import Network

_LUMA = (0.299, 0.587, 0.114)


class BilateralDeghost(Network):
    """Runs a network on exposures shrunk by ``reduce``, and carries its radiance to full size by maps fitted to what it did::

        T(H) = A(guide) [I_1; T(H_1); I_2; T(H_2); I_3; T(H_3); 1] + upsampled rest,   A = fit(the same of the shrunk exposures, T(H_low), guide_low)

    The maps find each pixel's radiance in its exposures, so that detail comes from the exposures themselves; the rest is what no map of the grid explains.
    T is the μ-law, as the loss sees radiance. The guide is a learned mixture of the same 18 channels, and starts as the mean luma of the T(H_i).

    Args:
        net: the network, or the arguments of a `DeghostNet`.
        reduce: by how much each side is shrunk for it.
        luma_bins: depth of the grid.
        cell: pixels of the shrunk exposures for each node of the grid, along each side.

    Raises:
        ValueError: numbers that are not whole or less than 1.

    Gradients: to the network and the guide, through the fit.

    Source: Chen, Adams, Wadhwa and Hasinoff, "Bilateral guided upsampling", SIGGRAPH Asia 2016, for an operator of three images.

    Example:
        >>> net = BilateralDeghost(DeghostNet(width=4)).eval()
        >>> net(torch.rand(1, 3, 3, 90, 130), torch.tensor([[-2.0, 0.0, 2.0]])).shape
        torch.Size([1, 3, 90, 130])
    """

    def __init__(
        self, net: DeghostNet | dict[str, Any], *, reduce: int = 4, luma_bins: int = 8, cell: int = 32
    ) -> None:
        super().__init__()
        for name, value in (("reduce", reduce), ("luma_bins", luma_bins), ("cell", cell)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        self.net = DeghostNet(**net) if isinstance(net, dict) else net
        self.config = {"net": self.net.config, "reduce": reduce, "luma_bins": luma_bins, "cell": cell}
        self.guide = nn.Conv2d(18, 1, 1)
        with torch.no_grad():
            self.guide.bias.zero_()  # type: ignore[union-attr]
            self.guide.weight.zero_()
            for exposure in range(3):
                for channel, weight in enumerate(_LUMA):
                    self.guide.weight[0, 6 * exposure + 3 + channel] = weight / 3

    def forward(self, ldr: Tensor, ev: Tensor) -> Tensor:
        """As `DeghostNet`'s."""
        check(ldr, ev)
        extent = ldr.shape[-2:]
        small = [-(-side // self.config["reduce"]) for side in extent]
        low = F.interpolate(ldr.flatten(1, 2), size=small, mode="bilinear", antialias=True).unflatten(1, (3, 3))
        target = compressed(self.net(low, ev))
        with torch.autocast(ldr.device.type, enabled=False):
            image_low, image = _channels(low, ev), _channels(ldr, ev)
            guide_low, guide = self.guide(image_low)[:, 0], self.guide(image)[:, 0]
            size = (self.config["luma_bins"], *(max(1, round(side / self.config["cell"])) for side in small))
            grid = bilagrid.fit(image_low, target, guide_low, size=size)
            rest = target - bilagrid.slice_apply(grid, guide_low, image_low)
            carried = bilagrid.slice_apply(grid, guide, image)
            return expanded(carried + F.interpolate(rest, size=extent, mode="bilinear"))


def _channels(ldr: Tensor, ev: Tensor) -> Tensor:
    """``(N, 18, H, W)``: each exposure and what is seen of its radiance."""
    return torch.cat([ldr, compressed(linearised(ldr, ev))], 2).flatten(1, 2)

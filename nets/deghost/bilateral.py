"""A deghosting network at reduced resolution, whose result affine maps in a bilateral grid carry to full size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilagrid
from bilagrid import Lattice
from nets.deghost.model import DeghostNet, check
from nets.deghost.radiance import GAMMA, MU, compressed, expanded, linearised
from nets.luma import LUMA
from nets.weights import Network, check_counts

# The shares of the exposures in the guide before it is trained: most of the middle one, and some of the others for where that is black or white.
_GUIDE = (0.2, 0.6, 0.2)
# How much of each exposure's detail is taken for noise or misalignment: that of the outer two may be either.
_DOUBT = (1.0, 0.3, 1.0)
_REST = 0.1

# Pixels of a strip: enough to keep threads busy, few enough to need little memory.
_STRIP_PIXELS = 2**18


class BilateralDeghost(Network):
    """Runs a network on exposures shrunk by ``reduce``, and carries its radiance to full size by affine maps fitted to that::

        T(H) = A(guide) [I_1; T(H_1); I_2; T(H_2); I_3; T(H_3); 1] + b upsampled(T(H_low) - A(guide_low) [the same of the shrunk exposures]),
        A = fit(the same of the shrunk exposures, T(H_low), guide_low, noise = d (what shrinking took from each channel)²)

    The maps make each pixel's radiance of its exposures, so that detail comes from the exposures themselves. Where detail is noise, or of something that moved,
    it comes from the exposure with the least of that, since the fit knows what each exposure lost in shrinking. What no map of the grid explains is added in
    part. T is the μ-law, by which the loss sees radiance. The guide is a learned mixture of the same 18 channels; it starts as the luma of the T(H_i), mostly
    that of the middle exposure. The shares b and d are learned too.

    Without gradients, and outside of ``torch.compile`` and ``torch.export``, the full size is computed in strips. Then the memory needed beside the exposures and
    the result is about what the network needs for the shrunk exposures.

    Args:
        net: the network, or the arguments of a `DeghostNet`.
        reduce: by how much each side of the exposures is shrunk for it.
        luma_bins: depth of the grid.
        cell: pixels of the shrunk exposures for each node of the grid, along each side.

    Raises:
        ValueError: numbers that are not whole or less than 1.

    Gradients: to the network, the guide and the shares, through the fit. Deterministic; strips give what the whole gives but for rounding.

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
        check_counts(reduce=reduce, luma_bins=luma_bins, cell=cell)
        self.net = DeghostNet(**net) if isinstance(net, dict) else net
        self.config = {"net": self.net.config, "reduce": reduce, "luma_bins": luma_bins, "cell": cell}
        self.guide = nn.Conv2d(18, 1, 1)
        self.log_doubt = nn.Parameter(torch.tensor(_DOUBT).log().repeat_interleave(6))
        self.rest = nn.Parameter(torch.tensor(_REST))
        with torch.no_grad():
            self.guide.bias.zero_()  # type: ignore[union-attr]
            self.guide.weight.zero_()
            for exposure, share in enumerate(_GUIDE):
                for channel, weight in enumerate(LUMA):
                    self.guide.weight[0, 6 * exposure + 3 + channel] = share * weight

    def forward(self, ldr: Tensor, ev: Tensor) -> Tensor:
        """As `DeghostNet`'s."""
        check(ldr, ev)
        extent = (ldr.shape[-2], ldr.shape[-1])
        low = self.shrunk(ldr)
        target = compressed(self.net(low, ev))
        with torch.autocast(ldr.device.type, enabled=False):
            image, target = _channels(low, ev), target.float()
            guide = self._guided(image)
            lost = _channels(self._samples(ldr), ev) - image
            noise = self.log_doubt.exp()[:, None, None] * lost.square()
            height, width = image.shape[-2:]
            cell = self.config["cell"]
            size = (self.config["luma_bins"], *(max(1, (side + cell // 2) // cell) for side in (height, width)))
            grid = bilagrid.fit(image, target, guide, size=size, noise=noise)
            rest = self.rest * (target - bilagrid.slice_apply(grid, guide, image))
            lattices = Lattice.cell_centered(size, extent), Lattice.cell_centered((1, height, width), extent)
            if torch.is_grad_enabled() or torch.compiler.is_compiling():
                return self._carried(grid, rest, ldr, ev, lattices)
            result = ldr.new_empty((ldr.shape[0], 3, *extent), dtype=torch.float32)
            rows = max(1, _STRIP_PIXELS // extent[1])
            for top in range(0, extent[0], rows):
                strip = slice(top, top + rows)
                result[..., strip, :] = self._carried(
                    grid, rest, ldr[..., strip, :], ev, [lattice.crop(top, 0) for lattice in lattices]
                )
            return result

    def _carried(self, grid: Tensor, rest: Tensor, ldr: Tensor, ev: Tensor, lattices: Sequence[Lattice]) -> Tensor:
        """The radiance of a tile, from the grid of maps and the image of the rest, each with its lattice."""
        image = _channels(ldr, ev)
        guide = self._guided(image)
        carried = bilagrid.slice_apply(grid, guide, image, lattice=lattices[0])
        # An image is a grid of one plane, and slicing that is bilinear interpolation.
        return expanded(carried + bilagrid.slice(rest.unsqueeze(2), guide.detach(), lattice=lattices[1]))

    def _guided(self, image: Tensor) -> Tensor:
        """The guide ``(N, H, W)``, by a product of matrices: the convolution takes five times as long on a CPU."""
        mixed = self.guide.weight.flatten(1) @ image.flatten(2) + self.guide.bias  # type: ignore[operator]
        return mixed.view(image.shape[0], *image.shape[2:])

    def shrunk(self, ldr: Tensor) -> Tensor:
        """The exposures as the network sees them."""
        step = self.config["reduce"]
        size = [(side + step - 1) // step for side in ldr.shape[-2:]]
        return F.interpolate(ldr.float().flatten(1, 2), size=size, mode="bilinear", antialias=True).unflatten(1, (3, 3))

    def _samples(self, ldr: Tensor) -> Tensor:
        """For each pixel of `shrunk` the one at its middle, as it is."""
        step = self.config["reduce"]
        rows, columns = (
            (torch.arange(0, side, step, device=ldr.device) + step // 2).clamp(max=side - 1) for side in ldr.shape[-2:]
        )
        return ldr.index_select(-2, rows).index_select(-1, columns)


def reduced(net: DeghostNet | BilateralDeghost, reduce: int) -> DeghostNet | BilateralDeghost:
    """A network with the same weights for exposures shrunk by ``reduce``, or at full size if that is 1. It shares its modules with ``net``."""
    whole = net if isinstance(net, DeghostNet) else net.net
    if reduce == 1:
        return whole
    if isinstance(net, DeghostNet):
        carried = BilateralDeghost(whole, reduce=reduce)
    else:
        carried = BilateralDeghost(**{**net.config, "net": whole, "reduce": reduce})
        carried.load_state_dict(net.state_dict())
    return carried.to(next(whole.parameters()).device).train(net.training)


def _channels(ldr: Tensor, ev: Tensor) -> Tensor:
    """``(N, 18, H, W)``: each exposure, and T of its radiance."""
    ldr = ldr.float()
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.cat([ldr, compressed(linearised(ldr, ev))], 2).flatten(1, 2)
    # The same in place, in a third of the time.
    gain = MU * torch.exp2(ev.amin(1, keepdim=True) - ev)[:, :, None, None, None]
    seen = ldr.clamp(min=0).pow_(GAMMA).mul_(gain).log1p_().mul_(1 / math.log1p(MU))
    return torch.cat([ldr, seen], 2).flatten(1, 2)

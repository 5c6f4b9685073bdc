"""HDRNet: a small network looks at a small copy of the image and predicts a grid of affine colour maps; the full-size image is sliced through it."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilagrid
from nets.hdrnet.guides import GUIDES
from nets.weights import Network, check_counts

# The global path goes down to this many bins a side before its fully connected layers.
_COARSEST = 4

_HALF = (torch.float16, torch.bfloat16)


class HDRNet(Network):
    """Deep bilateral learning, Table 1 of the paper: ``out(p) = A(p) [image(p); 1]``, A sliced at a learned guide from a grid that a network predicts.

    Args:
        channel_multiplier: width of every layer but the last, relative to the published one.
        luma_bins: depth D of the grid.
        spatial_bins: rows and columns of the grid: a power of two, at least 4.
        input_size: side of the small copy that the network looks at: a power of two times ``spatial_bins``.
        batch_norm: whether the layers but S1, L2, G5 and A are normalised. The published models have no normalisation.
        in_channels, out_channels: of the image and of the result; the map of a pixel is ``out_channels x (in_channels + 1)``.
        guide: ``"curves"`` (16 knots a channel), ``"pointwise"`` (a network of 1x1 convolutions) or ``"luma"``.
        levels: 1, or 3 for the Gaussian-pyramid variant: a guide and a grid for each level, whose results are summed as they are upsampled.

    Raises:
        ValueError: sizes that do not fit each other.

    Input in [0, 1], ``(N, in_channels, H, W)`` of any H and W; the result ``(N, out_channels, H, W)`` is not clipped. Starts near the identity.

    Source: Gharbi, Chen, Barron, Hasinoff and Durand, "Deep bilateral learning for real-time image enhancement", SIGGRAPH 2017.

    Example:
        >>> net = HDRNet()
        >>> image = torch.rand(1, 3, 300, 400)
        >>> grid = net.coefficients(net.shrink(image))
        >>> grid.shape
        torch.Size([1, 12, 8, 16, 16])
        >>> bool((net.render(image, grid) == net(image)).all())
        True
    """

    def __init__(
        self,
        *,
        channel_multiplier: int = 1,
        luma_bins: int = 8,
        spatial_bins: int = 16,
        input_size: int = 256,
        batch_norm: bool = False,
        in_channels: int = 3,
        out_channels: int = 3,
        guide: str = "curves",
        levels: int = 1,
    ) -> None:
        super().__init__()
        self.config = {
            "channel_multiplier": channel_multiplier,
            "luma_bins": luma_bins,
            "spatial_bins": spatial_bins,
            "input_size": input_size,
            "batch_norm": batch_norm,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "guide": guide,
            "levels": levels,
        }
        _check(self.config)
        halvings = int(math.log2(input_size // spatial_bins))
        width = channel_multiplier * luma_bins
        features = 8 * width

        channels = in_channels
        self.splat = nn.Sequential()
        for i in range(halvings):
            self.splat.add_module(f"S{i + 1}", _conv(channels, width << i, 2, batch_norm=batch_norm and i > 0))
            channels = width << i
        self.local = nn.Sequential(
            OrderedDict(
                L1=_conv(channels, features, batch_norm=batch_norm),
                L2=nn.Conv2d(features, features, 3, padding=1, bias=False),
            )
        )
        self.global_ = nn.Sequential()
        reductions = int(math.log2(spatial_bins // _COARSEST))
        for i in range(reductions):
            name = f"G{i + 1}"
            self.global_.add_module(name, _conv(features if i else channels, features, 2, batch_norm=batch_norm))
        channels = _COARSEST**2 * (features if reductions else channels)
        self.global_.add_module("flatten", _FlattenRowsFirst())
        for i, count in enumerate((32 * width, 16 * width, 8 * width)):
            last = count == features
            name = f"G{reductions + i + 1}"
            self.global_.add_module(name, _linear(channels, count, batch_norm=batch_norm and not last, activate=not last))  # fmt: skip
            channels = count
        self.head = nn.Conv2d(features, levels * luma_bins * out_channels * (in_channels + 1), 1)
        guides = [GUIDES[guide](in_channels) for _ in range(levels)]
        # Of the finest level first.
        self.guide = guides[0] if levels == 1 else nn.ModuleList(guides)
        self._initialise()

    def forward(self, image: Tensor) -> Tensor:
        """The enhanced image: `render` of the `coefficients` of the `shrink` image."""
        return self.render(image, self.coefficients(self.shrink(image)))

    def shrink(self, image: Tensor) -> Tensor:
        """The small copy ``(N, in_channels, input_size, input_size)`` that the network looks at: bilinear, with antialiasing."""
        side = self.config["input_size"]
        # On the CPU torch has no antialiasing of half types.
        wide = image.float() if image.device.type == "cpu" and image.dtype in _HALF else image
        return F.interpolate(wide, size=(side, side), mode="bilinear", antialias=True).to(image.dtype)

    def coefficients(self, low: Tensor) -> Tensor:
        """The grid of affine maps that the network predicts from a `shrink` image: ``(N, levels * C, D, Gh, Gw)``, as `bilagrid.slice_apply` takes it.

        It serves the image at any size, and all of its tiles; for a video it may be computed for some frames only.
        """
        config = self.config
        side = config["input_size"]
        if tuple(low.shape[1:]) != (config["in_channels"], side, side):
            expected = f"(N, {config['in_channels']}, {side}, {side})"
            raise ValueError(f"low must have shape {expected}, as shrink gives it, got {tuple(low.shape)}")
        splat = self.splat(low)
        fused = torch.relu(self.local(splat) + self.global_(splat)[:, :, None, None])
        packed = self.head(fused)
        # Published order of channels: level, term of the affine map, output channel, luma bin.
        shape = (config["levels"], config["in_channels"] + 1, config["out_channels"], config["luma_bins"])
        return packed.unflatten(1, shape).transpose(2, 3).flatten(1, 3)

    def guide_of(self, level: int) -> nn.Module:
        """The guide of a level, 0 the image at full size."""
        return self.guide[level] if isinstance(self.guide, nn.ModuleList) else self.guide

    def render(self, image: Tensor, grid: Tensor, *, lattice: bilagrid.Lattice | None = None) -> Tensor:
        """Applies to each pixel the map that the guide finds in the grid.

        Args:
            image: ``(N, in_channels, H, W)`` in [0, 1], whole or a tile.
            grid: what `coefficients` gave.
            lattice: for a tile, ``Lattice.cell_centered(grid.shape[2:], (H, W)).crop(top, left)`` with the whole image's H and W. With 3 levels, ``top`` and
                ``left`` must be multiples of 4, and 8 pixels along a tile's inner borders differ from those of the whole image.

        Returns:
            ``(N, out_channels, H, W)`` in the image's dtype. Guides are computed without autocast, whose half types would move pixels between cells.
        """
        if lattice is None:
            lattice = bilagrid.Lattice.cell_centered(tuple(grid.shape[2:]), (image.shape[2], image.shape[3]))  # type: ignore[arg-type]
        with torch.autocast(image.device.type, enabled=False):
            if self.config["levels"] == 1:
                return bilagrid.slice_apply(grid, self.guide(image), image, lattice=lattice)
            return self._render_pyramid(image, grid, lattice)

    def _render_pyramid(self, image: Tensor, grid: Tensor, lattice: bilagrid.Lattice) -> Tensor:
        levels = self.config["levels"]
        images = [image]
        for _ in range(levels - 1):
            # The last pixel of an odd side is repeated, so that its mean is itself. Not by ceil_mode, which keeps torch.export from taking any size.
            images.append(F.avg_pool2d(F.pad(images[-1], (0, 1, 0, 1), mode="replicate"), 2))
        # As published, the first set of coefficients is that of the coarsest level.
        grids = grid.chunk(levels, 1)
        out: Tensor | None = None
        for level, coefficients in zip(reversed(range(levels)), grids, strict=True):
            image = images[level]
            term = bilagrid.slice_apply(
                coefficients, self.guide_of(level)(image), image, lattice=_at_level(lattice, level)
            )
            if out is not None:
                term = term + _doubled(out, image)
            out = term
        assert out is not None
        return out

    def _initialise(self) -> None:
        """He's initialisation and zero biases. The head's weights are small, so that at first its bias, the identity, decides."""
        config = self.config
        for module in [*self.splat.modules(), *self.local.modules(), *self.global_.modules(), self.head]:
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        identity = torch.zeros(config["levels"], config["in_channels"] + 1, config["out_channels"], config["luma_bins"])
        for out in range(config["out_channels"]):
            identity[-1, min(out, config["in_channels"] - 1), out] = 1
        with torch.no_grad():
            self.head.weight.mul_(0.01)
            self.head.bias.copy_(identity.flatten())  # type: ignore[union-attr]


class _FlattenRowsFirst(nn.Module):
    """``(N, C, H, W)`` to ``(N, H * W * C)``, the order of the published weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


def _conv(inputs: int, outputs: int, stride: int = 1, *, batch_norm: bool) -> nn.Sequential:
    """A 3x3 convolution and ReLU; with stride 2 it is padded below and on the right only, as TensorFlow pads."""
    layers = OrderedDict[str, nn.Module]()
    if stride == 2:
        layers["pad"] = nn.ZeroPad2d((0, 1, 0, 1))
    layers["conv"] = nn.Conv2d(inputs, outputs, 3, stride, padding=0 if stride == 2 else 1, bias=not batch_norm)
    if batch_norm:
        layers["norm"] = nn.BatchNorm2d(outputs)
    layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def _linear(inputs: int, outputs: int, *, batch_norm: bool, activate: bool) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module](fc=nn.Linear(inputs, outputs, bias=not batch_norm))
    if batch_norm:
        layers["norm"] = nn.BatchNorm1d(outputs)
    if activate:
        layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def _doubled(image: Tensor, like: Tensor) -> Tensor:
    """The image at twice its size, bilinearly, as far as ``like`` reaches: an image is a grid of one plane, and what guides its slicing does not matter."""
    reach = like.shape[2], like.shape[3]
    # Half a node per pixel, from a quarter of a node before the first on. From the two sizes instead, torch.export would have to compare them.
    steps = 1.0, 0.5, 0.5, 0.0, -0.25, -0.25
    plane = bilagrid.Lattice("sigma", (1, image.shape[2], image.shape[3]), reach, (0, 0), steps, reach)
    return bilagrid.slice(image.unsqueeze(2), like[:, 0].detach(), lattice=plane)


def _at_level(lattice: bilagrid.Lattice, level: int) -> bilagrid.Lattice:
    """The lattice of an image of which each side was halved ``level`` times."""
    (height, width), (top, left) = lattice.image_size, lattice.origin
    step = 1 << level
    if top % step or left % step:
        raise ValueError(f"a tile of a pyramid must start at multiples of {step}, got (top, left) = {(top, left)}")
    # Rounded up in the words of pooling: torch.export compares them.
    smaller = bilagrid.Lattice.cell_centered(lattice.size, ((height - 1) // step + 1, (width - 1) // step + 1))
    return smaller.crop(top // step, left // step)


def _check(config: dict[str, Any]) -> None:
    """Refuses sizes that are not whole or do not fit each other."""
    counts = ("channel_multiplier", "luma_bins", "spatial_bins", "input_size", "in_channels", "out_channels")
    check_counts(**{name: config[name] for name in counts})
    spatial_bins, input_size = config["spatial_bins"], config["input_size"]
    if spatial_bins < _COARSEST or spatial_bins & (spatial_bins - 1):
        raise ValueError(f"spatial_bins must be a power of two of at least {_COARSEST}, got {spatial_bins}")
    ratio = input_size // spatial_bins
    if input_size % spatial_bins or ratio < 2 or ratio & (ratio - 1):
        raise ValueError(
            f"input_size must be a power of two times spatial_bins = {spatial_bins}, and larger, got {input_size}"
        )
    if not isinstance(config["batch_norm"], bool):
        raise ValueError(f"batch_norm must be True or False, got {config['batch_norm']!r}")
    if config["guide"] not in tuple(GUIDES):
        raise ValueError(f"guide must be one of {', '.join(GUIDES)}, got {config['guide']!r}")
    if type(config["levels"]) is not int or config["levels"] not in (1, 3):
        raise ValueError(f"levels must be 1, or 3 for the Gaussian pyramid, got {config['levels']!r}")

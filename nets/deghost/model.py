"""DeghostNet: from three exposures of a scene that moves to the radiance of the middle one, by convolutions alone."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets.deghost.radiance import linearised
from nets.weights import Network, check_counts

VARIANTS = ("resnet", "unet")

_RESIDUAL_BLOCKS = 9
# By stride, before and after: as TensorFlow's "SAME" pads an even extent.
_PADDING = {1: (2, 2), 2: (1, 2)}
# Sides must be a multiple of the first, for the network's halvings, and at least the second, for its reflected borders.
_MULTIPLE = {"resnet": 8, "unet": 16}
_LEAST = {"resnet": 16, "unet": 64}


class DeghostNet(Network):
    """Three encoders, a merger, and a decoder that sees each encoder's layers again::

        H = (1 + tanh(decoder(merger(encoder_1 [I_1; H_1], encoder_2 [I_2; H_2], encoder_3 [I_3; H_3])))) / 2,   H_i = I_i^γ / 2^(ev_i - min ev)

    The ``"resnet"`` is the published network, layer by layer. Its convolutions reflect their input's border, more of it below and on the right; all but the first
    of each encoder and the very last are normalised. Of the ``"unet"`` only the outline is published (5x5 layers, 64 to 512 channels, mirrored skips, about 66
    MB); this one has 16.6 million weights.

    Args:
        variant: ``"resnet"`` or ``"unet"``.
        width: channels of the first layer, of which the other layers have multiples; 64 as published.

    Raises:
        ValueError: another variant, a width that is not a whole number of at least 1.

    Source: Wu, Xu, Tai and Tang, "Deep high dynamic range imaging with large foreground motions", ECCV 2018.

    Example:
        >>> net = DeghostNet(width=4).eval()
        >>> net(torch.rand(1, 3, 3, 50, 70), torch.tensor([[-2.0, 0.0, 2.0]])).shape
        torch.Size([1, 3, 50, 70])
    """

    def __init__(self, *, variant: str = "resnet", width: int = 64) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        check_counts(width=width)
        self.config = {"variant": variant, "width": width}
        self.encoders = nn.ModuleList(_Encoder(width) for _ in range(3))
        self.merger: nn.Module = _ResidualMerger(width) if variant == "resnet" else _DeeperMerger(width)
        merged = 8 * width if variant == "resnet" else 12 * width
        self.decoder = nn.ModuleDict(
            OrderedDict(
                d1=_Up(merged, 2 * width),
                d2=_Up(8 * width, width),
                d3=_Up(4 * width, width),
                out=_conv(width, 3, stride=1),
            )
        )
        self.apply(_initialise)

    def forward(self, ldr: Tensor, ev: Tensor) -> Tensor:
        """The radiance of the middle exposure.

        Args:
            ldr: ``(N, 3, 3, H, W)`` in [0, 1], the exposures from the shortest to the longest, aligned to the middle one; any H and W.
            ev: ``(N, 3)``, their exposures in stops, from any zero.

        Returns:
            ``(N, 3, H, W)`` float32 in [0, 1], where 1 is white in the shortest exposure.

        Raises:
            ValueError: other shapes.
        """
        check(ldr, ev)
        height, width = ldr.shape[-2:]
        six = torch.cat([ldr, linearised(ldr, ev)], 2) * 2 - 1
        firsts, seconds = zip(*(net(self._padded(x)) for net, x in zip(self.encoders, six.unbind(1), strict=True)), strict=True)  # fmt: skip
        x = self.decoder["d1"](self.merger(torch.cat(seconds, 1)))
        x = self.decoder["d2"](torch.cat([x, *seconds], 1))
        x = self.decoder["d3"](torch.cat([x, *firsts], 1))
        with torch.autocast(x.device.type, enabled=False):
            # Equal to (1 + tanh) / 2, and exact in the dark, where half types and 1 - 1 are not.
            radiance = torch.sigmoid(2 * self.decoder["out"](torch.relu(x.float())))
        return radiance[..., :height, :width]

    def _padded(self, x: Tensor) -> Tensor:
        """The image, its last row and column repeated until both sides are ones that the network halves exactly."""
        multiple, least = _MULTIPLE[self.config["variant"]], _LEAST[self.config["variant"]]
        height, width = x.shape[-2:]
        # Written as multiples, so that an export with any height and width sees that they are.
        wanted_height = least if height < least else (height + multiple - 1) // multiple * multiple
        wanted_width = least if width < least else (width + multiple - 1) // multiple * multiple
        return F.pad(x, (0, wanted_width - width, 0, wanted_height - height), mode="replicate")


class _Encoder(nn.Module):
    """Takes one exposure down to a half and a quarter of its size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.e1 = _conv(6, width)
        self.e2 = _Down(width, 2 * width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.e1(x)
        return first, self.e2(first)


class _ResidualMerger(nn.Module):
    """Nine residual blocks at an eighth of the size; gives their output and their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.e3 = _Down(6 * width, 4 * width)
        self.blocks = nn.Sequential(*(_Residual(4 * width) for _ in range(_RESIDUAL_BLOCKS)))

    def forward(self, x: Tensor) -> Tensor:
        third = self.e3(x)
        return torch.cat([self.blocks(third), third], 1)


class _DeeperMerger(nn.Module):
    """One more layer down and up again; gives its output and its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.e3 = _Down(6 * width, 4 * width)
        self.e4 = _Down(4 * width, 8 * width)
        self.d0 = _Up(8 * width, 8 * width)

    def forward(self, x: Tensor) -> Tensor:
        third = self.e3(x)
        return torch.cat([self.d0(self.e4(third)), third], 1)


class _Residual(nn.Module):
    """``x = ReLU(in); out = x + norm(conv(ReLU(norm(conv(x)))))``: the skip connection is rectified too, as published."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.c1, self.n1, self.c2, self.n2 = (
            layer
            for _ in range(2)
            for layer in (nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        y = torch.relu(self.n1(self.c1(x)))
        return x + self.n2(self.c2(y))


class _Down(nn.Sequential):
    """Leaky ReLU, 5x5 convolution to half the size, normalisation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(OrderedDict(relu=nn.LeakyReLU(0.2), conv=_conv(inputs, outputs), norm=nn.BatchNorm2d(outputs)))


class _Up(nn.Module):
    """ReLU, 5x5 transposed convolution to twice the size, normalisation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # With padding 1, and without the last row and column, it is the transpose of a convolution padded by (1, 2).
        self.conv = nn.ConvTranspose2d(inputs, outputs, 5, 2, padding=1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(torch.relu(x))[..., :-1, :-1])


def _conv(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
    before, after = _PADDING[stride]
    return nn.Sequential(
        OrderedDict(pad=nn.ReflectionPad2d((before, after, before, after)), conv=nn.Conv2d(inputs, outputs, 5, stride))
    )


def _initialise(module: nn.Module) -> None:
    """Weights from N(0, 0.02), those of convolutions cut off at two sigmas; biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
    elif isinstance(module, nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def check(ldr: Tensor, ev: Tensor) -> None:
    """Refuses shapes that are not three exposures of three channels, and an ev for each."""
    if ldr.ndim != 5 or ldr.shape[1] != 3 or ldr.shape[2] != 3 or ldr.shape[3] < 1 or ldr.shape[4] < 1:
        raise ValueError(f"ldr must have shape (N, 3, 3, H, W), exposures before channels, got {tuple(ldr.shape)}")
    if ev.ndim != 2 or ev.shape[0] != ldr.shape[0] or ev.shape[1] != 3:
        raise ValueError(f"ev must have shape (N, 3) = ({ldr.shape[0]}, 3) to match ldr, got {tuple(ev.shape)}")

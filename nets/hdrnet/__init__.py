"""HDRNet: learn a photographic look from pairs, apply it at any size. ``python -m nets.hdrnet --help`` shows the command line."""

from nets.hdrnet.model import HDRNet
from nets.hdrnet.shipped import SHIPPED, load

__all__ = ["SHIPPED", "HDRNet", "load"]

"""Merging photographs of several exposures into one of high dynamic range. ``python -m nets.deghost --help`` shows the command line."""

from nets.deghost.bilateral import BilateralDeghost
from nets.deghost.model import DeghostNet
from nets.deghost.shipped import SHIPPED, load

__all__ = ["SHIPPED", "BilateralDeghost", "DeghostNet", "load"]

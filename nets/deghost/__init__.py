"""Merging photographs of several exposures into one of high dynamic range. ``python -m nets.deghost --help`` shows the command line."""

from nets.deghost.bilateral import BilateralDeghost, load
from nets.deghost.model import DeghostNet

__all__ = ["BilateralDeghost", "DeghostNet", "load"]

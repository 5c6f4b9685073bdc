"""The functions as `torch.nn.Module`, for ``Sequential``, configuration files and export: one thin module for each, with its options in the constructor.

Each ``forward`` calls the function of that name with the module's options; the function's help says what it promises of gradients, determinism and errors. Only
`Curves` has parameters: a grid is what a network predicts, or a parameter of your own.
"""

from bilagrid.nn.editing import Colorize, EqualizeHistogram, MergeFlash
from bilagrid.nn.filters import BilateralFilter, Fit, GuidedUpsample, JointBilateralUpsample, Tonemap
from bilagrid.nn.operators import Blur, Curves, Slice, SliceApply, SlicePoints, Splat, TotalVariation

__all__ = [
    "BilateralFilter",
    "Blur",
    "Colorize",
    "Curves",
    "EqualizeHistogram",
    "Fit",
    "GuidedUpsample",
    "JointBilateralUpsample",
    "MergeFlash",
    "Slice",
    "SliceApply",
    "SlicePoints",
    "Splat",
    "Tonemap",
    "TotalVariation",
]

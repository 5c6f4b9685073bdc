"""Bilateral-grid operators for PyTorch: splat, blur, slice and the fused slice-and-apply, with every gradient, on CPU and GPU.

Images and values are ``(N, C, H, W)``, guides ``(N, H, W)``, grids ``(N, C, D, Gh, Gw)``; a `Lattice` says where pixels land in a grid. `bilagrid.nn` has the
functions as modules, `bilagrid.compat` the interfaces of other libraries.
"""

from bilagrid import commands

# Only where `python -m` runs a command of ours, before torch: that takes seconds to import, and Ctrl-C should end them without a traceback.
if commands.starting():
    commands.end_on_interrupt()
    commands.end_on_missing()

from bilagrid.colorization import colorize
from bilagrid.editing import equalize_histogram, merge_flash
from bilagrid.filters import bilateral_filter, joint_bilateral_upsample, tonemap
from bilagrid.lattice import Lattice
from bilagrid.ops.blur import blur
from bilagrid.ops.curves import curves
from bilagrid.ops.slice import slice
from bilagrid.ops.slice_apply import slice_apply
from bilagrid.ops.slice_points import slice_points
from bilagrid.ops.splat import splat
from bilagrid.ops.total_variation import total_variation
from bilagrid.upsample import fit, guided_upsample
from bilagrid.warmup import warmup

__version__ = "0.1.0"

__all__ = [
    "Lattice",
    "bilateral_filter",
    "blur",
    "colorize",
    "curves",
    "equalize_histogram",
    "fit",
    "guided_upsample",
    "joint_bilateral_upsample",
    "merge_flash",
    "slice",
    "slice_apply",
    "slice_points",
    "splat",
    "tonemap",
    "total_variation",
    "warmup",
]

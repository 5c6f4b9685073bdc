"""The least and the greatest value of a guide."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bilagrid.cpu._geometry import array, compute_type, load_line
from bilagrid.cpu._lanes import extremes
from bilagrid.cpu._run import Kernel


def _extent_kernel(start, stop, guide, least, greatest):
    """``least[item]`` and ``greatest[item]`` of a row ``(n, i)``, NaN where a number is not finite."""
    height, width = guide.shape[1:]
    scratch = np.empty(width, guide.dtype)
    for item in range(start, stop):
        line = load_line(guide[item // height, item % height], scratch)
        low, high, fault = extremes(line, width)
        least[item], greatest[item] = low + fault, high + fault


_extent = Kernel(_extent_kernel)


def extent(guide: Tensor) -> tuple[float, float]:
    """Least and greatest; NaN where a value is not finite."""
    values = array(guide, compute_type(guide))
    found = np.empty((2, guide.shape[0] * guide.shape[1]), values.dtype)
    _extent(found.shape[1], values.size, values, *found)
    return float(found[0].min()), float(found[1].max())

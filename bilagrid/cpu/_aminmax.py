"""The least and the greatest value of a guide."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bilagrid.cpu._geometry import array, load_line
from bilagrid.cpu._lanes import extremes
from bilagrid.cpu._run import Kernel
from bilagrid.ops._dtypes import compute_type


def _aminmax_kernel(start, stop, guide, least, greatest):
    """``least[item]`` and ``greatest[item]``, NaN where a value is not finite. An item is a row ``(n, i)``."""
    height, width = guide.shape[1:]
    scratch = np.empty(width, guide.dtype)
    for item in range(start, stop):
        line = load_line(guide[item // height, item % height], scratch)
        low, high, fault = extremes(line, width)
        least[item], greatest[item] = low + fault, high + fault


_aminmax = Kernel(_aminmax_kernel)


def aminmax(guide: Tensor) -> tuple[float, float]:
    """The least and the greatest value; both NaN where any is not finite."""
    values = array(guide, compute_type(guide))
    found = np.empty((2, guide.shape[0] * guide.shape[1]), values.dtype)
    _aminmax(found.shape[1], values.size, values, *found)
    return float(found[0].min()), float(found[1].max())

"""The Gaussian of `blur`: its taps, and the convolution with them along one axis."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from bilagrid.gpu._geometry import constant as constant_of
from bilagrid.gpu._geometry import widen
from bilagrid.gpu._launch import constant
from bilagrid.ops import _taps


def taps(sigma: float, nodes: int, dtype: torch.dtype) -> dict[str, Any]:
    """The Gaussian of an axis, as the kernels take it: taps farther than the axis is long meet only zeros, but count in the sum that makes them 1."""
    radius = _taps.radius(sigma)
    exponent = -0.5 / max(sigma, _taps.NARROWEST) ** 2
    total = math.fsum(math.exp(exponent * k * k) for k in range(-radius, radius + 1))
    return {
        "radius": min(radius, nodes - 1),
        "taps_exponent": constant(exponent, dtype),
        "taps_scale": constant(1 / total, dtype),
    }


@triton.jit
def tap(distance, taps_exponent, taps_scale, ACC: tl.constexpr):
    """The Gaussian's weight at a distance in nodes."""
    distance = distance.to(ACC)
    return constant_of(taps_scale, ACC) * tl.exp(constant_of(taps_exponent, ACC) * (distance * distance))


@triton.jit
def tuple_of_taps(RADIUS: tl.constexpr, taps_exponent, taps_scale, ACC: tl.constexpr):
    """The weights at -RADIUS to RADIUS, each computed once."""
    weights = ()
    for distance in tl.static_range(-RADIUS, RADIUS + 1):
        weights = weights + (tap(tl.full([], distance, tl.int32), taps_exponent, taps_scale, ACC),)  # type: ignore[assignment]
    return weights


@triton.jit
def convolve(node_ptr, stride, k, nodes, radius, taps_exponent, taps_scale, mask, ACC: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """sum_t taps_scale exp(taps_exponent t²) node[k + t] over |t| <= radius and 0 <= k + t < nodes, with node k at ``node_ptr``; 0 where not mask."""
    k = tl.where(mask, k, -nodes).to(tl.int32)
    acc = tl.zeros(mask.shape, ACC)
    for step in range(2 * radius + 1):
        t = step - radius
        inside = (k + t).to(tl.uint32) < nodes.to(tl.uint32)
        value = tl.load(node_ptr + widen(t, WIDE) * stride, mask=inside, other=0.0).to(ACC)
        acc = tl.fma(value, tap(t, taps_exponent, taps_scale, ACC), acc)
    return acc


@triton.jit
def convolve_planes(values, taps_exponent, taps_scale, RADIUS: tl.constexpr, ACC: tl.constexpr):
    """``values`` (C, PLANES, X) convolved along their planes, of which a lane holds all, with taps at up to RADIUS; zero outside."""
    PLANES: tl.constexpr = values.shape[1]
    plane = tl.arange(0, PLANES)[None, :, None]
    acc = tl.zeros(values.shape, ACC)
    for p in tl.static_range(PLANES):
        # Planes are known when this is compiled, and to add minus zero is to add nothing: picking one costs no instruction.
        of_plane = tl.sum(tl.where(plane == p, values, -0.0), axis=1)[:, None, :]
        distance = tl.abs(plane - p)
        weight = tap(distance, taps_exponent, taps_scale, ACC)
        acc = tl.where(distance <= RADIUS, tl.fma(of_plane, weight, acc), acc)
    return acc

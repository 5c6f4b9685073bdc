from __future__ import annotations

import math

import numpy as np


def blur(grid: np.ndarray, sigma: tuple[float, float, float]) -> np.ndarray:
    """Gaussian taps ``exp(-k²/2σ²)``, ``|k| <= ceil(3σ)``, summing to 1, along z, y and x; zero outside."""
    for axis, s in zip((2, 3, 4), sigma, strict=True):
        if s == 0:
            continue
        reach = math.ceil(3 * s)
        taps = {k: math.exp(-(k**2) / (2 * s**2)) for k in range(-reach, reach + 1)}
        total = sum(taps.values())
        out = np.zeros_like(grid)
        nodes = grid.shape[axis]
        for here in range(nodes):
            for k, tap in taps.items():
                if 0 <= here + k < nodes:
                    target = [np.s_[:]] * 5
                    source = [np.s_[:]] * 5
                    target[axis], source[axis] = here, here + k
                    out[tuple(target)] += tap / total * grid[tuple(source)]
        grid = out
    return grid

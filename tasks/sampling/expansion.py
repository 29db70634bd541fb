"""The numbers in a Taylor step of an exponential integrator: remainders, relaxations, difference weights."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fewstep.search_spaces.schedule.formula import Derivative

Array = npt.NDArray[np.float64]


def exponential_remainder(z: float, k: int) -> float:
    """e^z - sum_{j<=k} z^j / j! = z^{k+1} phi_{k+1}(z), accurate for small |z| too."""
    if k == 0:
        return math.expm1(z)
    if abs(z) < 1.5:
        term, total, j = z ** (k + 1) / math.factorial(k + 1), 0.0, k + 1
        while abs(term) > 1e-18 * abs(total) or j < k + 6:
            total += term
            j += 1
            term *= z / j
            if j > 60:
                break
        return total
    return math.exp(z) - math.fsum(z**j / math.factorial(j) for j in range(k + 1))


def relaxation_factor(derivative: Derivative, h: float, z: float) -> float:
    """The factor on F^(k): 1, 1 + c h, c, or UniPC's B(h) over the exact Taylor term."""
    c = derivative.coefficient
    match derivative.relaxation:
        case "none":
            return 1.0
        case "linear":
            return 1.0 + c * h
        case "scale":
            return c
        case "bh1":
            return 0.5 * z * z / exponential_remainder(z, 1)
        case "bh2":
            return 0.5 * z * math.expm1(z) / exponential_remainder(z, 1)


def difference_weights(offsets: Array, k: int) -> Array:
    """Weights a_j with F^(k) = sum_j a_j (F_j - F_s), from D_j (m,): sum_j a_j D_j^i / i! = [i == k], i = 1..m."""
    m = len(offsets)
    scale = float(np.max(np.abs(offsets)))
    orders = np.arange(1, m + 1)
    matrix = (offsets / scale)[None, :] ** orders[:, None]
    target = np.where(orders == k, math.factorial(k) / scale**k, 0.0)
    return np.asarray(np.linalg.solve(matrix, target), np.float64)

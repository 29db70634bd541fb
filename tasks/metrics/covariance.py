"""What makes a matrix (D, D) a covariance, up to the rounding of whoever computed it.

Covariances that were computed and stored in float32 are symmetric to 1e-6 of their largest entry. Their negative
eigenvalues, which rounding leaves where there are fewer images than features, add up to less than 3e-6 of the trace;
in float64 to 1e-15. The trace has the units of the squared distance, so that 1e-5 of it does not matter there. What is
beyond is no covariance: half of one, another matrix, or one of too few images stored with three digits.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

TOLERANCE = 1e-5


def asymmetry(C: NDArray[np.float64]) -> str:
    """How far a finite matrix is from symmetric, in words; empty within rounding."""
    if np.array_equal(C, C.T):
        return ""
    largest = float(np.abs(C).max())
    with np.errstate(over="ignore"):
        apart = np.abs(C - C.T)
    i, j = divmod(int(apart.argmax()), len(C))
    if apart[i, j] <= TOLERANCE * largest:
        return ""
    return f"is not symmetric: entry ({i}, {j}) is {C[i, j]:.6g}, entry ({j}, {i}) is {C[j, i]:.6g}"


def indefiniteness(eigenvalues: NDArray[np.float64]) -> str:
    """How far below zero ascending eigenvalues of a symmetric matrix lie, in words; empty within rounding."""
    if not np.isfinite(eigenvalues).all():
        return "has values that are too large"
    # In units of the largest, as a sum of squares of finite numbers need not be finite.
    scale = max(float(np.abs(eigenvalues).max(initial=0.0)), np.finfo(np.float64).tiny)
    relative = eigenvalues / scale
    if -relative[relative < 0].sum() <= TOLERANCE * relative.sum():
        return ""
    return f"has eigenvalues down to {eigenvalues[0]:.6g}, the largest is {eigenvalues[-1]:.6g}"


def flaw(C: NDArray[np.float64]) -> str:
    """Why a finite matrix (D, D) is no covariance, in words; empty where it is one. O(D^3)."""
    if found := asymmetry(C):
        return found
    with np.errstate(over="ignore", invalid="ignore"):
        symmetric = C / 2 + C.T / 2
        return indefiniteness(scipy.linalg.eigvalsh(symmetric, check_finite=False))

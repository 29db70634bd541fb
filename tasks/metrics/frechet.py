"""Frechet distance between Gaussians, with everything that depends on the reference alone done once.

    d^2 = |mu - mu_r|^2 + tr C + tr C_r - 2 tr (C C_r)^(1/2)

With C_r = R^T R, the eigenvalues of C C_r are those of the symmetric R C R^T. R is the triangular factor
of the symmetric square root of C_r: it exists for a singular C_r too, and LAPACK's `sygst` multiplies by it
from both sides in a third of the time of two dense products.

Shapes: means (D,), covariances (D, D). The distance is squared, as everyone reports FID.
Source: Dowson and Landau 1982; Heusel et al. 2017, section 2. Same value as pytorch-fid's
`calculate_frechet_distance`, which takes a matrix square root of C C_r instead.
"""

from __future__ import annotations

from typing import overload

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.tasks.metrics.covariance import asymmetry, flaw, indefiniteness
from fewstep.tasks.metrics.moments import Array, Moments, ReferenceMoments

# Of the sum of all positive terms: by so much a distance may lie below zero, or depend on roots of noise.
NOISE = 1e-2


class FrechetReference:
    """A reference Gaussian whose square root is computed once, in O(D^3), and used by each distance.

    `count` is the number of images behind the reference, where known: it bounds the rank of the covariance.
    Raises ConfigurationError where the shapes do not fit, EvaluationError where a value is not finite or the matrix is
    no covariance.
    """

    def __init__(self, mean: ArrayLike, covariance: ArrayLike, count: int | None = None) -> None:
        self.mean, self.covariance = _checked(mean, covariance, "reference")
        self.dim = len(self.mean)
        self.rank = _rank_bound(self.dim, count)
        w, V = scipy.linalg.eigh(self.covariance, check_finite=False)
        if found := indefiniteness(w):
            raise EvaluationError(f"the reference covariance {found}: it is none, make the reference again")
        # Rounding leaves tiny eigenvalues of either sign where the covariance is singular.
        half = np.sqrt(np.clip(w, 0.0, None))[:, None] * V.T
        self._root: Array = scipy.linalg.qr(half, mode="r", overwrite_a=True, check_finite=False)[0]
        self._trace = float(np.trace(self.covariance))

    @classmethod
    def of(cls, moments: Moments | ReferenceMoments) -> FrechetReference:
        """The reference with these moments."""
        return cls(moments.mean, moments.covariance, moments.count)

    @overload
    def distance(self, mean: Moments) -> float: ...

    @overload
    def distance(self, mean: ArrayLike, covariance: ArrayLike, count: int | None = None) -> float: ...

    def distance(
        self, mean: Moments | ArrayLike, covariance: ArrayLike | None = None, count: int | None = None
    ) -> float:
        """Squared Frechet distance to a Gaussian, given as `Moments` or as mean (D,) and covariance (D, D).

        With fewer images than features the covariance is singular and the eigenvalues beyond its rank are
        rounding noise, whose square roots would add up; a known `count` leaves them out.

        Raises ConfigurationError where the number of features differs from the reference's,
        EvaluationError where a value is not finite, a matrix is no covariance or there are fewer than 2 images.
        """
        if isinstance(mean, Moments):
            return self.distance(mean.mean, mean.covariance, mean.count)
        if covariance is None:
            raise ConfigurationError("a distance needs a covariance beside the mean, or Moments")
        mu, C = _checked(mean, covariance, "candidate")
        if len(mu) != self.dim:
            raise ConfigurationError(
                f"the candidate has {len(mu)} features and the reference {self.dim}: use one feature space"
            )
        rank = min(self.rank, _rank_bound(self.dim, count))
        with np.errstate(over="ignore"):
            diff = mu - self.mean
            total = float(diff @ diff + np.trace(C)) + self._trace
        if not np.isfinite(total):
            raise EvaluationError("the moments are too large for a distance: the sampled images diverged")
        value = total - 2.0 * self._trace_of_root(C, rank, NOISE * total)
        if value < -NOISE * total:
            raise EvaluationError(f"the distance comes out as {value:.6g}: the candidate covariance is none")
        # A distance to itself may come out as -1e-14.
        return max(0.0, value)

    def _trace_of_root(self, C: Array, rank: int, noise: float) -> float:
        """tr (C C_r)^(1/2): the square roots of the `rank` largest eigenvalues of R C R^T, summed.

        EvaluationError where negative eigenvalues, whose roots count as zero, could matter by more than `noise`.
        """
        # C is symmetric, so its transpose is the same matrix in the column order that LAPACK wants.
        with np.errstate(over="ignore", invalid="ignore"):
            product, _ = scipy.linalg.lapack.dsygst(C.T, self._root, itype=2, lower=0)
        if not np.isfinite(product).all():
            raise EvaluationError("the covariances are too large to multiply: the sampled images diverged")
        eigenvalues = scipy.linalg.eigh(
            product, lower=False, eigvals_only=True, driver="evd", overwrite_a=True, check_finite=False
        )
        eigenvalues = eigenvalues[self.dim - rank :]
        below = eigenvalues[eigenvalues < 0]
        if 2.0 * np.sqrt(-below).sum() > noise:
            raise EvaluationError(
                f"the covariances' product has eigenvalues down to {below[0]:.6g}: the candidate covariance is none"
            )
        return float(np.sqrt(np.clip(eigenvalues, 0.0, None)).sum())


def frechet_distance(mu1: ArrayLike, sigma1: ArrayLike, mu2: ArrayLike, sigma2: ArrayLike) -> float:
    """Squared Frechet distance between two Gaussians, argument for argument as in pytorch-fid.

    For many candidates against one reference keep a `FrechetReference`. Raises as it does; `sigma1` is checked as
    strictly as `sigma2`.
    """
    reference = FrechetReference(mu2, sigma2)
    mu, C = _checked(mu1, sigma1, "candidate")
    if found := flaw(C):
        raise EvaluationError(f"the candidate covariance {found}: it is none")
    return reference.distance(mu, C)


def _checked(mean: ArrayLike, covariance: ArrayLike, owner: str) -> tuple[Array, Array]:
    if np.iscomplexobj(mean) or np.iscomplexobj(covariance):
        raise ConfigurationError(f"the {owner} is of complex numbers: a mean and a covariance are real")
    mu, C = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if mu.ndim != 1 or mu.size == 0 or C.shape != 2 * mu.shape:
        raise ConfigurationError(f"the {owner} needs a mean (D,) and a covariance (D, D); got {mu.shape} and {C.shape}")
    for name, array in (("mean", mu), ("covariance", C)):
        if not np.isfinite(array).all():
            raise EvaluationError(
                f"the {owner} {name} has {int((~np.isfinite(array)).sum())} values that are not finite"
            )
    if found := asymmetry(C):
        raise EvaluationError(f"the {owner} covariance {found}: it is none")
    # Only the upper triangle is read below: what rounding left of the other half must count too.
    return mu, C if np.array_equal(C, C.T) else (C + C.T) / 2


def _rank_bound(dim: int, count: int | None) -> int:
    """A covariance of `count` images has rank count - 1 at most."""
    return dim if count is None else min(dim, count - 1)

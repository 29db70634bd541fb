"""Latents of Gaussian mixtures: the flow's velocity, its Lipschitz constant and perturbations of it in closed form.

Notation: q = sum_k w_k N(m_k, S), S = diag(s^2) common to all components; a = 1 - t; V = a^2 S + t^2 the variance of
p_t within a component; c = (t - a S) / V; pi_k(x) the posterior of the component at x_t = x.

Since z1 - z0 = (x_t - z0) / t, v = (x - E[z0 | x]) / t = sum_k pi_k (c (x - a m_k) - m_k), and its Jacobian is the
symmetric matrix J = diag(c) - a t V^-1 Cov_pi(m) V^-1. A covariance of weights on points has no eigenvalue above a
quarter of their greatest squared distance (Popoviciu), so all eigenvalues of J at all x lie in
[min c - a t max_jk |V^-1 (m_j - m_k)|^2 / 4, max c]. For one component, and for two with S = s^2 I, no bound is less.

Shapes: x and velocities (N, D), means (K, D), weights (K,), stds (D,), all float64.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, logsumexp

from fewstep.errors import ConfigurationError

Array = npt.NDArray[np.float64]


class LatentMixture:
    """A Gaussian mixture whose components differ in their means only."""

    def __init__(self, weights: npt.ArrayLike, means: npt.ArrayLike, stds: npt.ArrayLike) -> None:
        self.weights, self.means, self.stds = (np.array(v, np.float64) for v in (weights, means, stds))
        K, D = self.means.shape if self.means.ndim == 2 else (-1, -1)
        if self.weights.shape != (K,) or self.stds.shape != (D,):
            raise ConfigurationError(
                f"shapes of weights {self.weights.shape}, means {self.means.shape}, stds {self.stds.shape}: "
                "need (K,), (K, D), (D,)"
            )
        if not (self.weights > 0).all() or not (self.stds > 0).all():
            raise ConfigurationError("weights and stds of a mixture must be positive")
        self.weights = self.weights / self.weights.sum()

    @property
    def dim(self) -> int:
        """D."""
        return int(self.means.shape[1])

    def variance(self, t: Array | float) -> Array:
        """V (..., D) at t (...)."""
        t = np.asarray(t, np.float64)[..., None]
        return np.asarray(((1 - t) * self.stds) ** 2 + t * t, np.float64)

    def slope(self, t: float) -> Array:
        """c (D,) at t."""
        return np.asarray((t - (1 - t) * self.stds**2) / self.variance(t), np.float64)

    def velocity(self, x: Array, t: float) -> Array:
        """v(x, t), finite at both ends."""
        a, V = 1 - t, self.variance(t)
        r = x[:, None] - a * self.means
        logits = np.log(self.weights) - 0.5 * np.sum(r * r / V, -1)
        shares = np.exp(logits - logsumexp(logits, 1, keepdims=True))
        # c (x - a m_k) - m_k, summed over k
        mean = shares @ self.means
        return np.asarray(self.slope(t) * (x - a * mean) - mean, np.float64)

    def first_two_moments(self, t: float) -> tuple[Array, Array]:
        """E x (D,) and E x x^T (D, D) under p_t."""
        a = 1 - t
        outer = (self.weights[:, None] * self.means).T @ self.means
        return a * self.weights @ self.means, a * a * outer + np.diag(self.variance(t))

    def mean_cosine(self, omega: Array, phase: float, t: float) -> float:
        """E cos(omega x + phase) under p_t, by the characteristic function."""
        angles = (1 - t) * self.means @ omega + phase
        return float(self.weights @ np.cos(angles) * np.exp(-0.5 * np.sum(omega**2 * self.variance(t))))

    def jacobian_range(self, cells: int) -> tuple[Array, Array]:
        """Bounds (cells,) of the smallest and greatest eigenvalue of J over all x and over each equal cell of [0, 1].

        By interval arithmetic within a cell: c's numerator rises with t, and V is a parabola in t.
        """
        edges = np.linspace(0.0, 1.0, cells + 1)
        t0, t1 = edges[:-1, None], edges[1:, None]
        S = self.stds**2
        lowest, highest = t0 - (1 - t0) * S, t1 - (1 - t1) * S
        vertex = np.clip(S / (1 + S), t0, t1)
        V = (1 - vertex) ** 2 * S + vertex**2
        V_max = np.maximum(self.variance(edges[:-1]), self.variance(edges[1:]))
        upper = np.maximum(highest / V, highest / V_max).max(1)
        least = np.minimum(lowest / V, lowest / V_max).min(1)
        half = np.clip(0.5, edges[:-1], edges[1:])
        pairs = self.means[:, None] - self.means
        spread = np.max(np.sum((pairs / V[:, None, None]) ** 2, -1), axis=(1, 2)) / 4
        return least - half * (1 - half) * spread, upper

    def quantiles(self, z: Array) -> Array:
        """F^-1(Phi(z)) (N,) of a one-dimensional mixture at normal quantiles z (N,), by bisection in the near tail."""
        if self.dim != 1:
            raise ConfigurationError(f"quantiles need one dimension, the mixture has {self.dim}")
        m, s, sign = self.means[:, 0], self.stds[0], np.where(z > 0, -1.0, 1.0)
        target = log_ndtr(sign * z)
        low, high = np.full_like(z, m.min() - s * 40), np.full_like(z, m.max() + s * 40)
        for _ in range(80):
            x = 0.5 * (low + high)
            tail = logsumexp(log_ndtr(sign[:, None] * (x[:, None] - m) / s), 1, b=self.weights)
            left = (tail < target) == (sign > 0)  # x lies left of the quantile
            low, high = np.where(left, x, low), np.where(left, high, x)
        return np.asarray(0.5 * (low + high), np.float64)


class Perturbation(Protocol):
    """What is added to the velocity: e(x), the same at all t."""

    def __call__(self, x: Array) -> Array:
        """e at x (N, D)."""

    @property
    def lipschitz(self) -> float:
        """An upper bound of its Lipschitz constant."""

    def mean_square(self, latents: LatentMixture, t: float) -> float:
        """E|e(x)|^2 under p_t, exactly."""


class Affine:
    """e(x) = A x + b."""

    def __init__(self, A: npt.ArrayLike, b: npt.ArrayLike) -> None:
        self.A, self.b = np.array(A, np.float64), np.array(b, np.float64)

    def __call__(self, x: Array) -> Array:
        return np.asarray(x @ self.A.T + self.b, np.float64)

    @property
    def lipschitz(self) -> float:
        """The spectral norm of A."""
        return float(np.linalg.norm(self.A, 2))

    def mean_square(self, latents: LatentMixture, t: float) -> float:
        """tr(A E[x x^T] A^T) + 2 b A E[x] + |b|^2."""
        mean, second = latents.first_two_moments(t)
        return float(np.sum((self.A @ second) * self.A) + 2 * self.b @ self.A @ mean + self.b @ self.b)


class Wave:
    """e(x) = d sin(omega x + phase)."""

    def __init__(self, d: npt.ArrayLike, omega: npt.ArrayLike, phase: float) -> None:
        self.d, self.omega, self.phase = np.array(d, np.float64), np.array(omega, np.float64), phase

    def __call__(self, x: Array) -> Array:
        return np.asarray(np.sin(x @ self.omega + self.phase)[:, None] * self.d, np.float64)

    @property
    def lipschitz(self) -> float:
        """|d| |omega|."""
        return float(np.linalg.norm(self.d) * np.linalg.norm(self.omega))

    def mean_square(self, latents: LatentMixture, t: float) -> float:
        """|d|^2 (1 - E cos(2 omega x + 2 phase)) / 2."""
        return float(self.d @ self.d) * 0.5 * (1 - latents.mean_cosine(2 * self.omega, 2 * self.phase, t))

"""The bound beside the truth, where both are known: mixture latents, a linear decoder, a perturbed velocity.

Data x = W z + r with z of the mixture and r independent of it, centred, with covariance R and R W = 0. The encoder
W^+ x returns z; the decoder W z + o misses r and is off by o, so E|x - D(E(x))|^2 = tr R + |o|^2.

The truth comes by other ways than the bound: a Gaussian under an affine error stays Gaussian, its two moments follow
a linear ODE and the distance is Bures' (Olkin & Pukelsheim 1982); in one latent dimension the flow is monotone, so
that samples have the quantiles of the noise they start from and W2 is the distance of quantile functions. In more
dimensions a mixture whose means differ along the first, with an error and a decoder that keep that one apart from
the others, is a product of the two, and so are its samples: squared distances of products in orthogonal spaces add.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import numpy.typing as npt
from scipy.integrate import solve_ivp

from fewstep.errors import ConfigurationError
from fewstep.tasks.flow.bound import W2Bound, profile_latent
from fewstep.tasks.flow.mixture import Affine, LatentMixture, Perturbation

Array = npt.NDArray[np.float64]
CELLS = 1000
TOLERANCE = 1e-9


@dataclass(frozen=True)
class LinearDecoder:
    """W (n, D), offset o (n,) and the covariance R (n, n) of what the encoder loses."""

    W: Array
    o: Array
    R: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def __post_init__(self) -> None:
        n = len(self.W)
        if self.R.size == 0:
            object.__setattr__(self, "R", np.zeros((n, n)))
        if self.W.ndim != 2 or self.o.shape != (n,) or self.R.shape != (n, n):
            raise ConfigurationError(
                f"shapes of W {self.W.shape}, o {self.o.shape}, R {self.R.shape}: need (n, D), (n,), (n, n)"
            )
        if np.linalg.matrix_rank(self.W) < self.W.shape[1] or not np.allclose(self.R @ self.W, 0, atol=1e-10):
            raise ConfigurationError("the decoder needs full column rank, and R W = 0: the encoder must return z")

    @property
    def reconstruction(self) -> float:
        """sqrt(E|x - D(E(x))|^2)."""
        return float(np.sqrt(np.trace(self.R) + self.o @ self.o))

    @property
    def lipschitz(self) -> float:
        """The spectral norm of W."""
        return float(np.linalg.norm(self.W, 2))


@dataclass(frozen=True)
class LinearCase:
    """Latents, decoder, and what is wrong with the velocity: v_hat = v + error."""

    latents: LatentMixture
    decoder: LinearDecoder
    error: Perturbation

    def bound(self) -> W2Bound:
        """All terms exactly, but for L: the certified constant of v plus the error's."""
        lower, upper = self.latents.jacobian_range(CELLS)
        L = float(np.maximum(np.abs(lower), np.abs(upper)).max()) + self.error.lipschitz
        nodes, weights = np.polynomial.legendre.leggauss(64)
        squares = [self.error.mean_square(self.latents, 0.5 + 0.5 * u) for u in nodes]
        integral = max(0.0, 0.5 * float(weights @ squares))
        return W2Bound(self.decoder.reconstruction, self.decoder.lipschitz, L, integral)

    def profile_bound(self) -> float:
        """The bound with the one-sided constant and the error at each t instead of the greatest and the mean."""
        lower, _ = self.latents.jacobian_range(CELLS)
        middles = (np.arange(CELLS) + 0.5) / CELLS
        squares = np.array([max(0.0, self.error.mean_square(self.latents, t)) for t in middles])
        latent = profile_latent(self.error.lipschitz - lower, squares)
        return self.decoder.reconstruction + self.decoder.lipschitz * latent

    def learned(self, x: Array, t: float) -> Array:
        """v_hat at x (N, D)."""
        return self.latents.velocity(x, t) + self.error(x)

    def true_w2(self) -> float:
        """W2(data, decoded samples); ConfigurationError where no closed form is known."""
        if len(self.latents.means) == 1 and isinstance(self.error, Affine):
            return self.by_moments()
        if self.latents.dim == 1:
            return self.by_quantiles()
        if self.separates:
            return self.by_parts()
        raise ConfigurationError(
            "the true distance is known for one Gaussian with an affine error, in 1-D latents, or where the first "
            "latent stands apart from the others"
        )

    @property
    def separates(self) -> bool:
        """Whether mixture, affine error and decoder keep the first latent apart from the others."""
        means, W, error = self.latents.means, self.decoder.W, self.error
        if not isinstance(error, Affine) or self.latents.dim < 2:
            return False
        mixed = [*error.A[0, 1:], *error.A[1:, 0], *(W[:, 0] @ W[:, 1:]), *np.ptp(means[:, 1:], axis=0)]
        return bool(np.allclose(mixed, 0, atol=1e-12))

    def by_parts(self) -> float:
        """The root of the sum of the squares: the first latent by quantiles, the others by moments."""
        z, error, W, o = self.latents, cast(Affine, self.error), self.decoder.W, self.decoder.o
        first = W[:, :1]
        along = first[:, 0] * float(first[:, 0] @ o / (first[:, 0] @ first[:, 0]))
        line = LinearCase(
            LatentMixture(z.weights, z.means[:, :1], z.stds[:1]),
            LinearDecoder(first, along),
            Affine(error.A[:1, :1], error.b[:1]),
        )
        others = LinearCase(
            LatentMixture([1.0], z.means[:1, 1:], z.stds[1:]),
            LinearDecoder(W[:, 1:], o - along, self.decoder.R),
            Affine(error.A[1:, 1:], error.b[1:]),
        )
        return float(np.hypot(line.by_quantiles(), others.by_moments()))

    def by_moments(self) -> float:
        """Bures' distance of the Gaussians of data and decoded samples."""
        error = cast(Affine, self.error)
        D, m, W = self.latents.dim, self.latents.means[0], self.decoder.W

        def change(t: float, flat: Array) -> Array:
            # z(t) = F z1 + u of the linear ODE dz = (C z + n) dt
            F, u = flat[: D * D].reshape(D, D), flat[D * D :]
            c = self.latents.slope(t)
            C = np.diag(c) + error.A
            return np.concatenate([(C @ F).ravel(), C @ u - c * (1 - t) * m - m + error.b])

        begun = np.concatenate([np.eye(D).ravel(), np.zeros(D)])
        end = _solved(change, begun)
        F, u = end[: D * D].reshape(D, D), end[D * D :]
        data = W * self.latents.stds**2 @ W.T + self.decoder.R
        shift = W @ (u - m) + self.decoder.o
        return float(np.sqrt(shift @ shift + _bures_squared(data, W @ F @ F.T @ W.T)))

    def by_quantiles(self, points: int = 1001) -> float:
        """Distance of quantile functions along W, and what lies across it."""
        z = np.linspace(-8.0, 8.0, points)

        def change(t: float, x: Array) -> Array:
            return self.learned(x[:, None], t)[:, 0]

        w, o = self.decoder.W[:, 0], self.decoder.o
        along = float(w @ o / (w @ w))
        difference = _solved(change, z) + along - self.latents.quantiles(z)
        density = np.exp(-0.5 * z * z)
        latent = float(density @ difference**2 / density.sum())
        across = o - along * w
        return float(np.sqrt((w @ w) * latent + np.trace(self.decoder.R) + across @ across))


def _solved(change: object, begun: Array) -> Array:
    """The end at t = 0 of the ODE from `begun` at t = 1."""
    solution = solve_ivp(change, (1.0, 0.0), begun, method="DOP853", rtol=TOLERANCE, atol=TOLERANCE)
    return np.asarray(solution.y[:, -1], np.float64)


def _bures_squared(first: Array, second: Array) -> float:
    """tr(A + B - 2 (A^1/2 B A^1/2)^1/2) of two covariances."""
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return max(0.0, float(np.trace(first) + np.trace(second) - 2 * cross))

"""How tight the bound is on random cases: the table behind a plot of truth against bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fewstep.tasks.flow.linear_case import LinearCase, LinearDecoder
from fewstep.tasks.flow.mixture import Affine, LatentMixture, Perturbation, Wave


@dataclass(frozen=True)
class Tightness:
    """One case: the true W2, the bound, the one without Young's inequality, the one by profiles in t, and the terms.

    `dimensions` are the latents', `components` the mixture's; `reconstruction`, `decoder`, `velocity` and `error` are
    r, L_D, L and the root of the integral of e(t).
    """

    case: int
    dimensions: int
    components: int
    truth: float
    bound: float
    sharp: float
    profile: float
    reconstruction: float
    decoder: float
    velocity: float
    error: float

    @property
    def holds(self) -> bool:
        """Whether no bound is below the truth; the solvers of the truth are accurate to 1e-6."""
        return self.truth <= min(self.bound, self.sharp, self.profile) * (1 + 1e-6)


def random_case(seed: int) -> LinearCase:
    """Mixtures of 2 to 4 components: even seeds in 2 to 4 dimensions, of which the first is mixed; odd seeds in one.

    Standard deviations 0.3 to 1.2, errors of size 0.003 to 0.3, in up to two more data dimensions than latent ones.
    """
    rng = np.random.default_rng([seed, 7])
    D = 1 if seed % 2 else int(rng.integers(2, 5))
    K = int(rng.integers(2, 5))
    weights = rng.dirichlet(np.full(K, 3.0)) + 0.02
    means = np.repeat(rng.uniform(-1.2, 1.2, (1, D)), K, 0)
    means[:, 0] = rng.uniform(-1.2, 1.2, K)
    latents = LatentMixture(weights, means, rng.uniform(0.3, 1.2, D))
    size = 10 ** rng.uniform(-2.5, -0.5)
    error: Perturbation
    if D == 1 and rng.random() < 0.5:
        error = Wave(size * rng.standard_normal(1), rng.uniform(0.5, 4.0, 1), rng.uniform(0, 2 * np.pi))
    else:
        A = size * rng.standard_normal((D, D))
        A[0, 1:] = A[1:, 0] = 0.0
        error = Affine(A, size * rng.standard_normal(D))
    n = D + int(rng.integers(0, 3))
    W = rng.standard_normal((n, D)) / np.sqrt(D)
    W[:, 1:] -= np.outer(W[:, 0], W[:, 0] @ W[:, 1:]) / (W[:, 0] @ W[:, 0])
    left = np.eye(n) - W @ np.linalg.pinv(W)
    spread = 10 ** rng.uniform(-3, -0.5)
    decoder = LinearDecoder(W, spread * rng.standard_normal(n), spread**2 * left)
    return LinearCase(latents, decoder, error)


def tightness(count: int, seed: int = 0) -> list[Tightness]:
    """The random cases seed .. seed + count - 1."""
    rows = []
    for number in range(seed, seed + count):
        case = random_case(number)
        bound = case.bound()
        values = case.true_w2(), bound.value, bound.sharp, case.profile_bound()
        terms = bound.reconstruction, bound.decoder, bound.velocity, math.sqrt(bound.error)
        rows.append(Tightness(number, case.latents.dim, len(case.latents.weights), *values, *terms))
    return rows

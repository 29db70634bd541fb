"""How tight the bound is on random cases: the table behind a plot of truth against bound."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fewstep.tasks.flow.linear_case import LinearCase, LinearDecoder
from fewstep.tasks.flow.mixture import Affine, LatentMixture, Perturbation, Wave


class Tightness(NamedTuple):
    """One case: the true W2, the bound, the one without Young's inequality, the one by profiles in t.

    `kind` is gaussian (1 to 4 latent dimensions, affine error) or mixture (one dimension, any error); `velocity` is L.
    """

    kind: str
    truth: float
    bound: float
    sharp: float
    profile: float
    velocity: float


def random_case(seed: int) -> LinearCase:
    """Even seeds: a Gaussian in 1 to 4 dimensions; odd seeds: a mixture of 2 to 4 components in one.

    Standard deviations 0.3 to 1.2, errors of size 0.003 to 0.3, in up to two more data dimensions than latent ones.
    """
    rng = np.random.default_rng([seed, 7])
    mixed = seed % 2 == 1
    D = 1 if mixed else int(rng.integers(1, 5))
    K = int(rng.integers(2, 5)) if mixed else 1
    weights = rng.dirichlet(np.full(K, 3.0)) + 0.02
    latents = LatentMixture(weights, rng.uniform(-1.2, 1.2, (K, D)), rng.uniform(0.3, 1.2, D))
    size = 10 ** rng.uniform(-2.5, -0.5)
    error: Perturbation
    if mixed and rng.random() < 0.5:
        error = Wave(size * rng.standard_normal(1), rng.uniform(0.5, 4.0, 1), rng.uniform(0, 2 * np.pi))
    else:
        error = Affine(size * rng.standard_normal((D, D)), size * rng.standard_normal(D))
    n = D + int(rng.integers(0, 3))
    W = rng.standard_normal((n, D)) / np.sqrt(D)
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
        kind = "mixture" if number % 2 else "gaussian"
        rows.append(Tightness(kind, case.true_w2(), bound.value, bound.sharp, case.profile_bound(), bound.velocity))
    return rows

"""The Wasserstein-2 bound of latent flow matching: from reconstruction and velocity errors to data and samples.

Source: "Flow Matching in Latent Space" (2307.08698), the theorem on W2; derived here in the form that holds.

Notation: data x, encoder E, decoder D with Lipschitz constant L_D; q the law of the latents E(x) that the flow is
trained on; p_t the law of (1 - t) z0 + t z1 with z0 of q and z1 standard normal; v(., t) its marginal velocity
E[z1 - z0 | x_t], v_hat the learned one, which is L-Lipschitz in its first argument at every t; q_hat the law at
t = 0 of the ODE dz = v_hat dt from z1 at t = 1; D#q the law of D(z) for z of q.

1. Triangle: W2(data, D#q_hat) <= W2(data, D#q) + W2(D#q, D#q_hat). The pair (x, D(E(x))) is a coupling, so the first
   is at most r = sqrt(E|x - D(E(x))|^2). A random encoder counts with its noise: E(x) is then what it draws.
2. D stretches a coupling's distances at most L_D times: W2(D#q, D#q_hat) <= L_D W2(q, q_hat).
3. Let z and z_hat follow v and v_hat from the same z1, so that z(t) is of p_t and z(0) of q, and w = |z - z_hat|^2.
   Backwards in t, -dw/dt = -2 <z - z_hat, v(z) - v_hat(z)> - 2 <z - z_hat, v_hat(z) - v_hat(z_hat)>
   <= w + |v(z) - v_hat(z)|^2 + 2 L w. Groenwall's inequality and expectations, with e(t) = E_{p_t}|v - v_hat|^2, give
   W2(q, q_hat)^2 <= E w(0) <= int_0^1 exp((1 + 2 L) t) e(t) dt <= exp(1 + 2 L) int_0^1 e(t) dt.

Together: W2(data, D#q_hat) <= r + L_D sqrt(exp(1 + 2 L) int_0^1 e(t) dt).

What is easily got wrong:
- The Lipschitz constant is the learned field's, because the error is averaged over p_t, the path of the data, where
  it can be estimated. With the error averaged over the path of the samples, the true field's constant takes its place.
- The sum of squares, W2^2 <= r^2 + L_D^2 exp(1 + 2 L) int e, is no bound: the triangle adds distances. Squared it
  needs a factor of 2 before both. A decoder that is off by a constant in the direction of the velocity's error
  breaks it (tests/tasks/flow/test_bound.py).
- Not spending Young's inequality on the cross term in 3 is better at no cost: -d sqrt(E w)/dt <= l(t) sqrt(E w) +
  sqrt(e), with l(t) <= L the one-sided constant sup -<a - b, v_hat(a) - v_hat(b)> / |a - b|^2, so that
  W2(q, q_hat) <= int_0^1 exp(int_0^t l) sqrt(e(t)) dt <= sqrt((exp(2 L) - 1) / (2 L) int_0^1 e(t) dt).
- Not covered: the ODE solver's own error, and a path that ends at z0 + s z1 instead of z0 (LFM trains with s = 1e-5).
  The latter adds L_D s sqrt(d) for latents of d numbers, `smoothing`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.errors import ConfigurationError

Array = npt.NDArray[np.float64]
_LARGEST = math.log(np.finfo(np.float64).max)


@dataclass(frozen=True)
class W2Bound:
    """The terms and what they bound; distances in the units of the data.

    `reconstruction` is r, `decoder` L_D, `velocity` L, `error` the integral of e(t), `smoothing` the distance s sqrt(d)
    in latents. Where the Lipschitz constants are lower estimates the values are estimates too.
    """

    reconstruction: float
    decoder: float
    velocity: float
    error: float
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise ConfigurationError(f"{name} = {value}: a term of the bound is not negative")

    @property
    def latent(self) -> float:
        """Bound of W2(q, q_hat): sqrt(exp(1 + 2 L) error), infinite where that is no double."""
        return _times(0.5 + self.velocity, math.sqrt(self.error))

    @property
    def value(self) -> float:
        """The bound of W2(data, D#q_hat), with the theorem's factor exp(1 + 2 L)."""
        return self._decoded(self.latent)

    @property
    def sharp_latent(self) -> float:
        """Bound of W2(q, q_hat) without Young's inequality: sqrt((exp(2 L) - 1) / (2 L) error)."""
        L = self.velocity
        # (exp(2 L) - 1) / (2 L) = exp(2 L) (1 - exp(-2 L)) / (2 L)
        return _times(L, math.sqrt(self.error * (-math.expm1(-2 * L) / (2 * L) if L else 1.0)))

    @property
    def sharp(self) -> float:
        """The smaller bound of W2(data, D#q_hat) that `sharp_latent` gives."""
        return self._decoded(self.sharp_latent)

    @property
    def root_of_squares(self) -> float:
        """sqrt(r^2 + L_D^2 exp(1 + 2 L) error): the form with squares, which is no bound."""
        return math.hypot(self.reconstruction, self._decoded(self.latent) - self.reconstruction)

    @property
    def log10(self) -> float:
        """log10 of `value`, finite where the value itself is not."""
        shift = (0.5 + self.velocity) / math.log(10)
        rest = self.decoder * math.sqrt(self.error)
        if not math.isinf(self.value):
            return math.log10(self.value) if self.value else -math.inf
        return shift + math.log10(rest) if rest and not math.isinf(rest) else math.inf

    def _decoded(self, latent: float) -> float:
        through = 0.0 if self.decoder == 0 else self.decoder * (latent + self.smoothing)
        return self.reconstruction + through


def profile_latent(rates: Array, errors: Array) -> float:
    """int_0^1 exp(int_0^t l) sqrt(e(t)) dt, bounded from above on N equal cells of [0, 1], the first beside t = 0.

    rates (N,) bound l(t) on each cell from above; errors (N,) are e(t) at the cells' midpoints.
    """
    dt = 1.0 / len(rates)
    before = np.concatenate([[0.0], np.cumsum(rates)[:-1]]) * dt
    exponents = before + np.maximum(rates, 0.0) * dt
    if exponents.max() > _LARGEST - 1:
        return math.inf if np.any(errors > 0) else 0.0
    return float(np.sum(np.exp(exponents) * np.sqrt(errors)) * dt)


def _times(exponent: float, factor: float) -> float:
    """exp(exponent) factor; 0 for no factor, infinite where it is no double."""
    if factor == 0:
        return 0.0
    total = exponent + math.log(factor)
    return math.exp(total) if total < _LARGEST else math.inf

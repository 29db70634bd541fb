"""Compile a schedule into linear tables: x_{k+1} = sum_j P[k, j] x_j + Q[k, j] eps_j.

Every decision of a schedule is linear in the points the denoiser was called at (x_j, the nodes) and in
its outputs (eps_j), so the whole sampler reduces to two lower triangular matrices, computed once in
float64. Corrected points never need a tensor of their own: they are rows that later rows absorb.

Notation (USF, section 3 and appendix): h = lambda_t - lambda_s; F = eps or x0; z = h for noise and -h
for data prediction; D_j = lambda_j - lambda_s. A `vector` holds the coefficients of one tensor over
the basis (x_0 .. x_{K-1}, eps_0 .. eps_{K-1}), shape (2K,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.errors import ScheduleError
from fewstep.search_spaces.schedule import Derivative, Formula, Prediction, SolverSchedule
from fewstep.tasks.models.noise_schedule import NoiseSchedule

Array = npt.NDArray[np.float64]
LARGEST_COEFFICIENT = 1e6


@dataclass(frozen=True)
class SolverTables:
    """P and Q (K, K) lower triangular; `times` (K,) told to the denoiser; `called` (K,) whether it is called.

    Row k makes node k + 1 from nodes 0..k; the last row makes the sample.
    """

    P: Array
    Q: Array
    times: tuple[float, ...]
    called: tuple[bool, ...]

    @property
    def nfe(self) -> int:
        """Number of denoiser calls for one image."""
        return sum(self.called)


@dataclass
class _Point:
    lambda_: float
    alpha: float
    sigma: float
    state: Array
    node: Array
    eps: Array

    def output(self, prediction: Prediction) -> Array:
        """F at this point: eps, or x0 = (x - sigma eps) / alpha with x as the denoiser saw it."""
        return self.eps if prediction == "noise" else (self.node - self.sigma * self.eps) / self.alpha


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


def _advance(
    formula: Formula, prediction: Prediction, points: list[_Point], lambda_: float, at: tuple[float, float]
) -> Array:
    """The Taylor step of `formula` from its start to (lambda, alpha, sigma), as a vector."""
    alpha, sigma = at
    start = points[formula.start]
    h = lambda_ - start.lambda_
    data = prediction == "data"
    z = -h if data else h
    sign = -1.0 if data else 1.0
    outer = alpha if data else -sigma
    out = (sigma / start.sigma if data else alpha / start.alpha) * start.state
    f_start = start.output(prediction)
    # h^{k+1} phi_{k+1}(z) = sign^{k+1} z^{k+1} phi_{k+1}(z)
    out = out + outer * sign * exponential_remainder(z, 0) * f_start
    for k, derivative in enumerate(formula.derivatives, 1):
        active = [points[j] for j in derivative.points]
        offsets = np.array([p.lambda_ - start.lambda_ for p in active])
        weight = outer * sign ** (k + 1) * exponential_remainder(z, k) * relaxation_factor(derivative, h, z)
        for a, point in zip(difference_weights(offsets, k), active, strict=True):
            out = out + weight * a * (point.output(prediction) - f_start)
    return out


def compile_schedule(schedule: SolverSchedule, noise: NoiseSchedule) -> SolverTables:
    """Compile `schedule` for a model's noise schedule.

    Raises ScheduleError where the schedule leaves the model's range or its coefficients explode.
    """
    K = len(schedule.steps)
    basis = np.eye(2 * K)
    rows: list[Array] = []
    times: list[float] = []
    points: list[_Point] = []

    def add_point(i: int, state: Array) -> None:
        lambda_ = schedule.lambdas[i]
        analytic = i == 0 and schedule.first_call == "zero_x0"
        eps = basis[0] / noise.prior_scale if analytic else basis[K + i]
        points.append(_Point(lambda_, *noise.alpha_sigma(lambda_), state, basis[i], eps))
        times.append(noise.time(lambda_))

    if abs(schedule.lambdas[0] - noise.lambda_start) > 0.05:
        raise ScheduleError(
            f"the schedule starts at lambda = {schedule.lambdas[0]:.6g}, this model's noise at "
            f"{noise.lambda_start:.6g}: fit the schedule to this model's range first"
        )
    add_point(0, basis[0])
    for i, step in enumerate(schedule.steps):
        lambda_ = schedule.lambdas[i + 1]
        at = noise.alpha_sigma(lambda_)
        rows.append(_advance(step.predictor, step.prediction, points, lambda_, at))
        if i + 1 < K:
            add_point(i + 1, basis[i + 1])
            if step.corrector is not None:
                corrected = _advance(step.corrector, step.prediction, points, lambda_, at)
                # The predicted point is row i itself: counted from there, the older history cancels, so that
                # rows stay short and old tensors can go. Equal in exact arithmetic.
                points[-1].state = corrected - rows[-1] + basis[i + 1]
    table = np.array(rows)
    if not np.all(np.isfinite(table)) or np.max(np.abs(table)) > LARGEST_COEFFICIENT:
        raise ScheduleError(
            f"the coefficients of schedule {schedule.hash} reach {np.max(np.abs(table)):.3g}: "
            "its times are too close together for its orders"
        )
    called = tuple(i > 0 or schedule.first_call == "model" for i in range(K))
    return SolverTables(table[:, :K], table[:, K:], tuple(times), called)

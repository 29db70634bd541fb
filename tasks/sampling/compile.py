"""Compile a schedule into linear tables: x_{k+1} = sum_j P[k, j] x_j + Q[k, j] o_j + bias[k].

Every decision of a schedule is linear in the points the denoiser was called at (x_j, the nodes) and in the
network's raw outputs (o_j), so the whole sampler reduces to two lower triangular matrices, computed once in
float64. Corrected points never need a tensor of their own: they are rows that later rows absorb. Only the
model's statistics make coefficients per pixel, and the mean image a constant term.

Notation (USF, section 3 and appendix): h = lambda_t - lambda_s; F = eps or x0; z = h for noise and -h
for data prediction; D_j = lambda_j - lambda_s. A `vector` holds the coefficients of one tensor over
the basis (x_0 .. x_{K-1}, o_0 .. o_{K-1}, mean image, 1), shape (2K + 2,), or (2K + 2, C, H, W) per pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.errors import ScheduleError
from fewstep.search_spaces.schedule import Prediction, SolverSchedule, Step, Threshold
from fewstep.search_spaces.schedule.formula import Formula
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.models.statistics import EmpiricalStatistics, ModelStatistics
from fewstep.tasks.sampling.expansion import difference_weights, exponential_remainder, relaxation_factor

Array = npt.NDArray[np.float64]
LARGEST_COEFFICIENT = 1e6
# How far after the model's own start a schedule may begin: the noise left out is then still nearly all noise.
START_RANGE = 1.0


@dataclass(frozen=True)
class SolverTables:
    """P and Q (K, K) lower triangular, (K, K, C, H, W) with empirical statistics; `bias` (K, C, H, W) or None.

    For each node: the `times` told to the denoiser, whether it is `called`, what its input is multiplied by
    (`input_scales`), and x0 = x0_x x + x0_o o (`clean`). Row k makes node k + 1 from nodes 0..k; the last row
    makes the sample. Node 0 is standard normal noise times `prior_scale`. `filters` (K, 2, K, S, S) or None: kernels
    under which row k adds nodes (at 0) and outputs (at 1) once more, see `Corrections`.
    """

    P: Array
    Q: Array
    times: tuple[float, ...]
    called: tuple[bool, ...]
    prior_scale: float = 1.0
    input_scales: tuple[float, ...] = ()
    clean: tuple[tuple[float, float], ...] = ()
    bias: Array | None = None
    threshold: Threshold | None = None
    filters: Array | None = None

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
    x0: Array
    eps: Array


def _residual(point: _Point, e: EmpiricalStatistics) -> Array:
    """f = (sigma eps - l x) / alpha, with x as the denoiser saw it (DPM-Solver-v3, eq. 5)."""
    return np.asarray((point.sigma * point.eps - e.l[e.nearest(point.lambda_)] * point.node) / point.alpha, np.float64)


class Compiler:
    """Walks a schedule once and writes down each step as a row; parts of it may be overridden, as by editing."""

    def __init__(
        self, schedule: SolverSchedule, noise: NoiseSchedule, output: str, statistics: ModelStatistics | None
    ) -> None:
        self.schedule, self.noise, self.output = schedule, noise, output
        self.mean = statistics.mean if statistics else None
        self.empirical = statistics.empirical if statistics else None
        per_pixel = any(step.prediction == "ems" for step in schedule.steps)
        if per_pixel and self.empirical is None:
            raise ScheduleError("the schedule uses empirical model statistics: give the model's --statistics")
        if schedule.first_call == "mean_x0" and self.mean is None:
            raise ScheduleError("the schedule starts from the mean training image: give the model's --statistics")
        self.K = schedule.nodes
        size = 2 * self.K + 2
        self.pixels = self.empirical.shape if per_pixel and self.empirical else ()
        self.basis = np.eye(size).reshape(size, size, *(1,) * len(self.pixels))
        self.rows: list[Array] = []
        self.points: list[_Point] = []
        self.times: list[float] = []
        self.called: list[bool] = []
        self.scales: list[float] = []
        self.clean: list[tuple[float, float]] = []
        self.units: list[float] = []
        self.nodes: list[_Point] = []

    def point(self, lambda_: float) -> _Point:
        """A new node at `lambda_`, where the denoiser is called (but at an analytic first call)."""
        n = len(self.called)
        node = self.basis[n]
        alpha, sigma = self.noise.alpha_sigma(lambda_)
        analytic = n == 0 and self.schedule.first_call != "model"
        if not analytic:
            means = self.noise.output_map(self.output, lambda_)
            x0 = means.x0_x * node + means.x0_o * self.basis[self.K + n]
            eps = means.eps_x * node + means.eps_o * self.basis[self.K + n]
        elif self.schedule.first_call == "mean_x0":
            x0 = self.basis[-2]
            eps = (node - alpha * x0) / sigma
        else:
            # eps := x where the prior has unit variance, x / sigma (so that x0 = 0) where it has sigma's.
            scale = self.noise.prior_scale(lambda_)
            eps = node / scale
            x0 = (1 - sigma / scale) / alpha * node if scale != sigma else 0.0 * node
        self.times.append(self.told(n, lambda_))
        self.scales.append(self.noise.input_scale(lambda_))
        self.called.append(not analytic)
        self.clean.append((0.0, 1.0) if analytic else (means.x0_x, means.x0_o))
        # A score is as much smaller than eps as sigma is large: coefficients are judged as if of eps.
        self.units.append(1.0 if analytic else max(1.0, abs(means.eps_o)))
        self.nodes.append(_Point(lambda_, alpha, sigma, node, node, x0, eps))
        return self.nodes[-1]

    def told(self, n: int, lambda_: float) -> float:
        """The time that call n is told: that of `lambda_`, or of the shifted one, never before the start."""
        shifts = self.schedule.corrections.shifts if self.schedule.corrections else ()
        shift = shifts[n] if shifts else 0.0
        if not shift:
            return self.noise.time(lambda_)
        return self.noise.time(max(lambda_ + shift, min(lambda_, self.noise.lambda_start)))

    def run(self) -> SolverTables:
        lambdas, steps = self.schedule.lambdas, self.schedule.steps
        self.points.append(self.point(lambdas[0]))
        for i, step in enumerate(steps):
            lambda_ = lambdas[i + 1]
            self.rows.append(self.advance(step.predictor, step.prediction, lambda_))
            if i + 1 < len(steps) or step.corrector is not None:
                self.points.append(self.point(lambda_))
            if step.corrector is not None:
                self.correct(step, lambda_, last=i + 1 == len(steps))
        return self.tables()

    def correct(self, step: Step, lambda_: float, last: bool) -> None:
        assert step.corrector is not None
        corrected = self.advance(step.corrector, step.prediction, lambda_)
        if last:
            self.rows.append(corrected)
        elif step.implicit:
            self.rows.append(corrected)
            self.points[-1] = self.point(lambda_)
        else:
            # The predicted point is the newest row itself: counted from there, the older history cancels, so
            # that rows stay short and old tensors can go. Equal in exact arithmetic.
            self.points[-1].state = corrected - self.rows[-1] + self.points[-1].node

    def advance(self, formula: Formula, prediction: Prediction, lambda_: float) -> Array:
        """The step of `formula` from its start to `lambda_`, as a vector."""
        start = self.points[formula.start]
        if prediction == "ems":
            return self._advance_empirical(formula, start, lambda_)
        alpha, sigma = self.noise.alpha_sigma(lambda_)
        data = prediction == "data"
        outputs = [p.x0 if data else p.eps for p in self.points]
        f_start = outputs[formula.start]
        if formula.blend is not None:
            pairs = zip(formula.blend.points, formula.blend.weights, strict=True)
            f_start = sum((w * outputs[j] for j, w in pairs), np.zeros_like(f_start))
        h = lambda_ - start.lambda_
        if not data and math.isinf(h):
            return np.asarray(alpha / start.alpha * (start.state - start.sigma * f_start), np.float64)
        z = -h if data else h
        sign = -1.0 if data else 1.0
        outer = alpha if data else -sigma
        out = (sigma / start.sigma if data else alpha / start.alpha) * start.state
        # h^{k+1} phi_{k+1}(z) = sign^{k+1} z^{k+1} phi_{k+1}(z)
        out = out + outer * sign * exponential_remainder(z, 0) * f_start
        for k, derivative in enumerate(formula.derivatives, 1):
            weight = outer * sign ** (k + 1) * exponential_remainder(z, k) * relaxation_factor(derivative, h, z)
            out = out + weight * self.derivative(k, derivative.points, formula.start, outputs)
        return np.asarray(out, np.float64)

    def derivative(self, k: int, active: tuple[int, ...], start: int, outputs: list[Array]) -> Array:
        """F^(k) at the start, from finite differences in lambda.

        A point at lambda = -inf is infinitely far away and drops out; with too few left the derivative is 0,
        which is the limit.
        """
        origin = self.points[start].lambda_
        finite = [j for j in active if math.isfinite(self.points[j].lambda_)]
        out = np.zeros_like(outputs[start])
        if len(finite) < k:
            return out
        offsets = np.array([self.points[j].lambda_ - origin for j in finite])
        for a, j in zip(difference_weights(offsets, k), finite, strict=True):
            out = out + a * (outputs[j] - outputs[start])
        return out

    def _advance_empirical(self, formula: Formula, start: _Point, lambda_: float) -> Array:
        """A step with DPM-Solver-v3's coefficients, all read at the nearest grid point."""
        e = self.empirical
        assert e is not None
        s, t = e.nearest(start.lambda_), e.nearest(lambda_)
        alpha, _ = self.noise.alpha_sigma(lambda_)

        def g(point: _Point) -> Array:
            j = e.nearest(point.lambda_)
            constant = np.exp(e.S[s]) * (e.B[j] - e.B[s]) * self.basis[-1]
            return np.asarray(np.exp(e.S[s] - e.S[j]) * _residual(point, e) - constant, np.float64)

        outputs = [g(p) for p in self.points]
        g_start = outputs[formula.start]
        if formula.blend is not None:
            pairs = zip(formula.blend.points, formula.blend.weights, strict=True)
            g_start = sum((w * outputs[j] for j, w in pairs), np.zeros_like(g_start))
        out = (alpha / start.alpha) * np.exp(e.L[s] - e.L[t]) * start.state
        out = out - alpha * np.exp(-e.L[t] - e.S[s]) * (e.W[t] - e.W[s]) * g_start
        constant = alpha * np.exp(-e.L[t]) * (e.C[t] - e.C[s] - e.B[s] * (e.W[t] - e.W[s]))
        out = out - constant * self.basis[-1]
        h = lambda_ - start.lambda_
        for k, derivative in enumerate(formula.derivatives, 1):
            factor = relaxation_factor(derivative, h, -h)
            weight = alpha * np.exp(e.L[s] - e.L[t]) * e.moment(s, t, k) * factor
            out = out - weight * self.derivative(k, derivative.points, formula.start, outputs)
        return np.asarray(out, np.float64)

    def radius(self, k: int) -> float:
        """What a correction of row k is in units of: that of the point which the row makes."""
        end = self.nodes[k + 1].lambda_ if k + 1 < self.K else self.schedule.lambdas[-1]
        return math.hypot(*self.noise.alpha_sigma(end))

    def corrected(self, k: int) -> Array:
        """Row k with what the schedule's corrections add to it."""
        row, more = self.rows[k], self.schedule.corrections
        if more is None:
            return row
        radius = self.radius(k)
        for j, point in enumerate(self.nodes[: k + 1]):
            if more.points and more.points[k][j]:
                row = row + more.points[k][j] * radius / math.hypot(point.alpha, point.sigma) * point.node
            if more.outputs and more.outputs[k][j]:
                row = row + more.outputs[k][j] * radius * point.eps
        return row

    def filters(self) -> tuple[Array, Array] | None:
        """Kernels of each row (K, 2, K, S, S), and those (K, S, S) under which it adds the mean image."""
        more = self.schedule.corrections
        if more is None or not more.filter_side:
            return None
        side = more.filter_side
        found = np.zeros((self.K, 2 * self.K + 2, side, side))
        for k in range(self.K):
            here, terms = self.nodes[k], list[tuple[Array, tuple[float, ...]]]()
            if more.output_filters:
                terms += [(p.eps, kernel) for p, kernel in zip(self.nodes, more.output_filters[k], strict=False)]
            if more.point_filters:
                terms.append((here.node / math.hypot(here.alpha, here.sigma), more.point_filters[k]))
            for vector, kernel in terms:
                found[k] += np.multiply.outer(self.radius(k) * np.ravel(vector), np.reshape(kernel, (side, side)))
        split = np.stack([found[:, : self.K], found[:, self.K : 2 * self.K]], axis=1)
        return split, found[:, -2]

    def tables(self) -> SolverTables:
        shape = (2 * self.K + 2, *self.pixels)
        self.rows = [self.corrected(k) for k in range(self.K)]
        table = np.stack([np.broadcast_to(row, shape) for row in self.rows])
        linear = table[:, :-1].copy()
        linear[:, self.K : 2 * self.K] /= np.reshape(self.units, (-1, *(1,) * len(self.pixels)))
        if not np.all(np.isfinite(table)) or np.max(np.abs(linear)) > LARGEST_COEFFICIENT:
            raise ScheduleError(
                f"the coefficients of schedule {self.schedule.hash} reach {np.max(np.abs(linear)):.3g}: "
                "its times are too close together for its orders"
            )
        filters = self.filters()
        if filters is not None and not np.max(np.abs(filters[0])) < LARGEST_COEFFICIENT:
            raise ScheduleError(f"the filters of schedule {self.schedule.hash} reach {np.max(np.abs(filters[0])):.3g}")
        return SolverTables(
            table[:, : self.K],
            table[:, self.K : 2 * self.K],
            tuple(self.times),
            tuple(self.called),
            self.noise.prior_scale(self.schedule.lambdas[0]),
            tuple(self.scales),
            tuple(self.clean),
            self.bias(table, None if filters is None else filters[1]),
            self.schedule.threshold or self.noise.threshold,
            None if filters is None else filters[0],
        )

    def bias(self, table: Array, kernels: Array | None) -> Array | None:
        if not self.pixels and self.mean is None:
            return None
        shape = self.pixels or np.asarray(self.mean).shape
        scalar = (len(table), *(1,) * (0 if self.pixels else len(shape)))
        mean = np.zeros(shape) if self.mean is None else np.broadcast_to(self.mean, shape)
        bias = table[:, -2].reshape(*scalar, *self.pixels) * mean + table[:, -1].reshape(*scalar, *self.pixels)
        if kernels is not None and np.any(kernels):
            # Start-up does without it, and few schedules need it.
            from scipy.ndimage import correlate

            flat = kernels.reshape(len(kernels), *(1,) * (mean.ndim - 2), *kernels.shape[1:])
            bias = bias + np.stack([correlate(mean, kernel, mode="constant") for kernel in flat])
        return bias if np.any(bias) else None


def _is_before(lambda_: float, noise: NoiseSchedule) -> bool:
    """Whether the model knows no time that noisy."""
    try:
        noise.time(lambda_)
    except ScheduleError:
        return True
    return False


def is_late(schedule: SolverSchedule, noise: NoiseSchedule) -> bool:
    """Whether a schedule begins where a model's noise is no longer all that there is."""
    return schedule.lambdas[0] > noise.lambda_start + START_RANGE


def compile_schedule(
    schedule: SolverSchedule,
    noise: NoiseSchedule,
    output: str = "epsilon",
    statistics: ModelStatistics | None = None,
) -> SolverTables:
    """Compile `schedule` for a model's noise schedule and prediction type.

    Raises ScheduleError where the schedule leaves the model's range, its coefficients explode, or it needs
    statistics that are not given.
    """
    first = schedule.lambdas[0]
    if is_late(schedule, noise) or _is_before(first, noise):
        raise ScheduleError(
            f"the schedule starts at lambda = {first:.6g}, this model's noise at "
            f"{noise.lambda_start:.6g}: fit the schedule to this model's range first"
        )
    return Compiler(schedule, noise, output, statistics).run()

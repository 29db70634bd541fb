"""Measure a model's statistics in one streaming pass over its own trajectories: l, s, b and the mean image.

Notation (DPM-Solver-v3, 2310.13268, section 3): lambda half the log signal-to-noise ratio, eps the noise
prediction, eps' its total derivative in lambda along the sampling ODE, and

    l = E[diag(sigma d eps / d x)]                                    (argmin E |sigma d eps / d x - diag(l)|^2)
    f = (sigma eps - l x) / alpha,    f' = e^-lambda (eps' + (l - 1) eps) - l' x / alpha
    s = Cov(f, f') / Var(f),  b = E f' - s E f                        (argmin E |f' - s f - b|^2)

all per pixel, over the model's own trajectories at one lambda. Since f and f' are linear in (x, eps, eps')
with coefficients that depend on l alone, the first and second moments of these three are enough: one pass
gives everything, and no trajectory is kept. Shapes: x, eps (B, C, H, W); moments (G, C, H, W) in float64.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.models.statistics import EmpiricalStatistics, ModelStatistics
from fewstep.tasks.sampling.moment_sums import MomentSums
from fewstep.tasks.sampling.noise import image_noise, starting_noise

Array = npt.NDArray[np.float64]
Call = Callable[[Tensor, float], Tensor]
OnBatch = Callable[[int, int], None]
# The stream of an image's random numbers that its probe comes from; 0 is its starting noise.
PROBE_STREAM = 1
# Where f varies less than this share of the terms it is a difference of, it is constant but for rounding.
CONSTANT = 1e-9


@dataclass(frozen=True)
class MeasurePlan:
    """How much to measure: a grid of `points` lambdas, each `trajectories` times, `batch` at once.

    `steps` solver steps lead from one point to the next. `mean_only` leaves l, s and b out. Images
    0 .. trajectories - 1 under `seed` are sampled. ConfigurationError where a number is too small.
    """

    points: int = 64
    trajectories: int = 256
    steps: int = 4
    seed: int = 0
    batch: int = 32
    mean_only: bool = False

    def __post_init__(self) -> None:
        least = {"points": 3, "trajectories": 1 if self.mean_only else 16, "steps": 1, "seed": 0, "batch": 1}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ConfigurationError(f"{name} is {getattr(self, name)}: it must be at least {minimum}")

    @property
    def calls(self) -> int:
        """Denoiser calls in all; one in `steps` of them is differentiated as well."""
        return self.trajectories * ((self.points - 1) * self.steps + 1)

    def fingerprint(self, identity: str) -> str:
        """Names the plan and what it measures: 16 hex digits."""
        text = json.dumps([asdict(self), identity], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Subject:
    """What is measured: `on(indices)` gives the denoiser of those images, as `Denoiser.on` does.

    `shape` is (C, H, W) of what it denoises, `output` its prediction type. `identity` names model and conditions.
    """

    on: Callable[[Sequence[int]], Call]
    noise: NoiseSchedule
    output: str
    shape: tuple[int, ...]
    device: str = "cpu"
    identity: str = ""


def measure(
    subject: Subject, plan: MeasurePlan, partial: Path | None = None, on_batch: OnBatch | None = None
) -> ModelStatistics:
    """Statistics of a model on a uniform grid of lambdas over its range.

    The mean image is that of the model's own samples (x0 at the last lambda, not clipped), which stands for
    the mean training image. With `partial` the sums are written there after every batch, and a later call
    goes on from them to the very same result, bit for bit where the network itself is repeatable. `on_batch` is
    told trajectories done and in all.

    Raises ConfigurationError where `partial` belongs to another measurement, DataError where it is damaged,
    EvaluationError where the model returns values that are not finite.
    """
    lambdas = np.linspace(subject.noise.lambda_start, subject.noise.lambda_end, plan.points)
    key = plan.fingerprint(subject.identity)
    sums = MomentSums.resume(partial, key) if partial is not None else None
    if sums is None:
        sums = MomentSums.empty(0 if plan.mean_only else plan.points, subject.shape)
    while sums.done < plan.trajectories:
        count = min(plan.batch, plan.trajectories - sums.done)
        _add_batch(sums, subject, plan, range(sums.done, sums.done + count))
        sums.done += count
        if partial is not None:
            sums.save(partial, key)
        if on_batch is not None:
            on_batch(sums.done, plan.trajectories)
    empirical = None if plan.mean_only else statistics_of(sums, lambdas, subject.noise)
    return ModelStatistics(sums.mean("x0")[0], empirical)


def statistics_of(sums: MomentSums, lambdas: Array, noise: NoiseSchedule) -> EmpiricalStatistics:
    """l, s and b from moments (G, C, H, W) at G lambdas. Where f is constant, s is 0 and b is all of f'."""

    def column(values: Sequence[float]) -> Array:
        return np.asarray(values, np.float64).reshape(-1, *(1,) * (sums.totals["x"].ndim - 1))

    def covariance(a: str, b: str) -> Array:
        return sums.mean(a + b) - sums.mean(a) * sums.mean(b)

    scales = [noise.alpha_sigma(float(v)) for v in lambdas]
    alpha, sigma = column([a for a, _ in scales]), column([s for _, s in scales])
    ratio = sigma / alpha
    l = sums.mean("j")
    slope = np.gradient(l, float(lambdas[1] - lambdas[0]), axis=0, edge_order=2)
    # f = ratio e + p x and f' = ratio d + u e + w x.
    p, u, w = -l / alpha, ratio * (l - 1), -slope / alpha
    f = ratio * sums.mean("e") + p * sums.mean("x")
    f1 = ratio * sums.mean("d") + u * sums.mean("e") + w * sums.mean("x")
    ee, xe, xx = covariance("e", "e"), covariance("x", "e"), covariance("x", "x")
    variance = ratio**2 * ee + 2 * ratio * p * xe + p**2 * xx
    both = ratio * (ratio * covariance("e", "d") + u * ee + w * xe)
    both += p * (ratio * covariance("x", "d") + u * xe + w * xx)
    varies = variance > CONSTANT * (ratio**2 * ee + p**2 * xx)
    s = np.where(varies, both, 0.0) / np.where(varies, variance, 1.0)
    return EmpiricalStatistics(lambdas, l, s, f1 - s * f, rounded=False)


def _add_batch(sums: MomentSums, subject: Subject, plan: MeasurePlan, indices: range) -> None:
    """Walk the trajectories of `indices` once, adding what each grid point sees."""
    size = (plan.points - 1) * plan.steps
    lambdas = np.linspace(subject.noise.lambda_start, subject.noise.lambda_end, size + 1)
    gap = float(lambdas[1] - lambdas[0])
    probe = None if plan.mean_only else _probe(plan.seed, indices, subject.shape, subject.device)
    recent: list[_Visit] = []

    def add(visit: _Visit, derivative: Tensor) -> None:
        if visit.k % plan.steps == 0 and visit.diagonal is not None:
            sums.add(visit.k // plan.steps, {"x": visit.x, "e": visit.eps, "d": derivative, "j": visit.diagonal})

    for visit in _walk(subject, lambdas, plan, indices, probe):
        if visit.k == size:
            if not bool(torch.isfinite(visit.x0).all()):
                raise EvaluationError("the model's samples are not finite: check its weights and prediction type")
            sums.add(0, {"x0": visit.x0})
        if probe is None:
            continue
        recent = [*recent[-2:], visit]
        if len(recent) == 3:
            a, b, c = (v.eps for v in recent)
            # Second order in the gap everywhere: central inside, one-sided at both ends.
            if visit.k == 2:
                add(recent[0], (-3 * a + 4 * b - c) / (2 * gap))
            add(recent[1], (c - a) / (2 * gap))
            if visit.k == size:
                add(visit, (a - 4 * b + 3 * c) / (2 * gap))


@dataclass
class _Visit:
    """A trajectory at fine step `k`: x, eps, x0 and, at a grid point, an estimate of diag(sigma d eps / d x)."""

    k: int
    x: Tensor
    eps: Tensor
    x0: Tensor
    diagonal: Tensor | None


def _walk(
    subject: Subject, lambdas: Array, plan: MeasurePlan, indices: range, probe: Tensor | None
) -> Iterator[_Visit]:
    """DPM-Solver++ 2M on uniform lambdas, from the images' starting noise; one call a point, the last included.

    It calls the denoiser on the trajectory itself (nothing is corrected afterwards), so that differences of
    successive eps are derivatives along it.
    """
    noise, call = subject.noise, subject.on(indices)
    first = float(lambdas[0])
    x = starting_noise(plan.seed, indices.start, len(indices), subject.shape, subject.device)
    x = x * noise.prior_scale(first)
    shrink = math.exp(-float(lambdas[1] - lambdas[0]))
    before: Tensor | None = None
    for k, value in enumerate(float(v) for v in lambdas):
        means, (_, sigma) = noise.output_map(subject.output, value), noise.alpha_sigma(value)
        wanted = probe is not None and k % plan.steps == 0
        with torch.enable_grad() if wanted else torch.no_grad():
            x = x.detach().requires_grad_(wanted)
            output = call(x * noise.input_scale(value), noise.time(value))
            eps = means.eps_x * x + means.eps_o * output
            diagonal = _diagonal(sigma * eps, x, probe) if wanted and probe is not None else None
        x, eps, output = x.detach(), eps.detach(), output.detach()
        x0 = means.x0_x * x + means.x0_o * output
        yield _Visit(k, x, eps, x0, diagonal)
        if k + 1 < len(lambdas):
            alpha, after = noise.alpha_sigma(float(lambdas[k + 1]))
            slanted = x0 if before is None else 1.5 * x0 - 0.5 * before
            x = (after / sigma) * x + alpha * (1 - shrink) * slanted
            before = x0


def _diagonal(y: Tensor, x: Tensor, probe: Tensor) -> Tensor:
    """Hutchinson's estimate of diag(dy / dx): z (J^T z) with z = +-1, so that z_i^2 adds no noise."""
    (gradient,) = torch.autograd.grad((y * probe).sum(), x)
    return probe * gradient


def _probe(seed: int, indices: range, shape: tuple[int, ...], device: str) -> Tensor:
    """Signs (B, C, H, W), by image index. One probe serves all of an image's grid points: what it gets wrong then
    changes slowly with lambda, and hardly shows in l'."""
    signs = [np.where(image_noise(seed, i, shape, PROBE_STREAM) < 0, -1.0, 1.0) for i in indices]
    return torch.from_numpy(np.stack(signs).astype(np.float32)).to(device)

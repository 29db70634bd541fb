"""Noise schedules: what alpha, sigma, the denoiser's time and its output mean at lambda = log(alpha / sigma).

All arithmetic is float64. A family says how x_t = alpha x_0 + sigma eps is scaled; for the variance-
preserving one alpha and sigma follow from lambda alone and only the told time depends on the betas.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fewstep.errors import ModelError, ScheduleError
from fewstep.search_spaces.schedule import Threshold

if TYPE_CHECKING:
    from fewstep.tasks.models.stock_times import StockTimes

Array = npt.NDArray[np.float64]
TOLERANCE = 1e-6
# What diffusers puts in the place of an alphas_cumprod of exactly zero.
SMALLEST_ALPHA = 2.0**-24


class OutputMap(NamedTuple):
    """What a network's output o says at a point x: x0 = x0_x x + x0_o o and eps = eps_x x + eps_o o."""

    x0_x: float
    x0_o: float
    eps_x: float
    eps_o: float


class NoiseSchedule(Protocol):
    """What compiling a schedule needs to know about a model's noise.

    `threshold` keeps x0 in range where the model's scheduler does; a schedule's own goes before it. `stock` is the
    diffusers scheduler that it was read from, None where there was none.
    """

    threshold: Threshold | None
    stock: StockTimes | None

    @property
    def lambda_start(self) -> float:
        """Finite lambda of the starting noise (t = T)."""

    @property
    def lambda_end(self) -> float:
        """Lambda of the least noisy time the model was trained on."""

    def alpha_sigma(self, lambda_: float) -> tuple[float, float]:
        """Signal and noise scale at `lambda_`; (1, 0) at inf."""

    def prior_scale(self, lambda_: float) -> float:
        """Standard deviation of the noise a sampler starts from at `lambda_`."""

    def input_scale(self, lambda_: float) -> float:
        """What the network's input is multiplied by."""

    def time(self, lambda_: float) -> float:
        """The time told to the denoiser at `lambda_`. ScheduleError before the model's start."""

    def lambda_at(self, time: float) -> float:
        """Inverse of `time`."""

    def output_map(self, output: str, lambda_: float) -> OutputMap:
        """What the network's output means, by its prediction type. ModelError for one the family has not."""


def standard_output_map(output: str, alpha: float, sigma: float) -> OutputMap:
    """Prediction types that mean the same in every family: epsilon, sample and v = alpha eps - sigma x0."""
    if output == "epsilon":
        if alpha == 0:
            raise ScheduleError("a noise prediction says nothing about x0 at lambda = -inf: start at a finite lambda")
        return OutputMap(1 / alpha, -sigma / alpha, 0.0, 1.0)
    if output == "sample":
        if sigma == 0:
            raise ScheduleError("a call at sigma = 0 has no noise to predict")
        return OutputMap(0.0, 1.0, 1 / sigma, -alpha / sigma)
    if output == "v_prediction":
        square = alpha * alpha + sigma * sigma
        return OutputMap(alpha / square, -sigma / square, sigma / square, alpha / square)
    raise ModelError(f"prediction type {output!r} is not known for this noise schedule")


class VariancePreserving:
    """alpha^2 + sigma^2 = 1, input and prior unscaled."""

    threshold: Threshold | None = None
    stock: StockTimes | None = None

    def alpha_sigma(self, lambda_: float) -> tuple[float, float]:
        """sqrt(sigmoid(2 lambda)) and sqrt(sigmoid(-2 lambda))."""
        return float(np.exp(-0.5 * np.logaddexp(0, -2 * lambda_))), float(np.exp(-0.5 * np.logaddexp(0, 2 * lambda_)))

    def prior_scale(self, lambda_: float) -> float:
        """1."""
        return 1.0

    def input_scale(self, lambda_: float) -> float:
        """1."""
        return 1.0

    def output_map(self, output: str, lambda_: float) -> OutputMap:
        """epsilon, sample or v_prediction."""
        return standard_output_map(output, *self.alpha_sigma(lambda_))


class DiscreteVP(VariancePreserving):
    """A discrete variance-preserving schedule from its cumulative alphas, log alpha linear between steps.

    A last value of zero (rescaled zero terminal SNR) is read as 2^-24, as diffusers does, or as half of the value
    before it where that is less; with it, or with `zero_snr`, a noise prediction means nothing. Samplers start no
    noisier than lambda = `start`, diffusers' `lambda_min_clipped`.
    """

    def __init__(self, alphas_cumprod: npt.ArrayLike, start: float = -math.inf, zero_snr: bool = False) -> None:
        values = np.array(alphas_cumprod, np.float64)
        self.zero_snr = zero_snr or (values.ndim == 1 and values.size > 0 and values[-1] == 0)
        if values.ndim == 1 and values.size > 1 and values[-1] <= SMALLEST_ALPHA:
            # diffusers' own replacement may be larger than the value before it.
            values[-1] = min(values[-1] or SMALLEST_ALPHA, 0.5 * values[-2])
        falls = bool(np.all(np.diff(values) < 0)) if values.ndim == 1 and values.size > 1 else False
        if not falls or not (values[-1] > 0 and values[0] < 1):
            raise ModelError("alphas_cumprod must fall strictly within (0, 1): check the scheduler's betas")
        self.log_alphas = 0.5 * np.log(values)
        self._lambdas = 0.5 * (np.log(values) - np.log1p(-values))
        if not start < self.lambda_end:
            raise ModelError(f"a start clipped at lambda = {start:g} leaves nothing before {self.lambda_end:g}")
        self._start, self.strength = start, 1.0

    @property
    def lambda_start(self) -> float:
        """Lambda at the last training step, or where samplers are to start."""
        return max(float(self._lambdas[-1]), self._start)

    def start_at(self, lambda_: float, strength: float) -> None:
        """Have samplers start no noisier than there, which is where noise of that strength is put on an image."""
        self._start, self.strength = lambda_, strength

    @property
    def lambda_end(self) -> float:
        """Lambda at training step 0."""
        return float(self._lambdas[0])

    def time(self, lambda_: float) -> float:
        """Training step in [0, N - 1], a fraction between two of them; 0 for anything cleaner than step 0."""
        check_start(lambda_, self.lambda_start)
        log_alpha = -0.5 * np.logaddexp(0, -2 * lambda_)
        steps = np.arange(len(self.log_alphas) - 1, -1, -1, dtype=np.float64)
        return float(np.interp(log_alpha, self.log_alphas[::-1], steps))

    def lambda_at(self, time: float) -> float:
        """Lambda at a training step, fractions allowed."""
        last = len(self.log_alphas) - 1
        check_time(time, 0, last)
        log_alpha = float(np.interp(time, np.arange(last + 1), self.log_alphas))
        return log_alpha - 0.5 * float(np.log(-np.expm1(2 * log_alpha)))

    def output_map(self, output: str, lambda_: float) -> OutputMap:
        """epsilon (unless the signal ends at zero), sample or v_prediction."""
        if output == "epsilon" and self.zero_snr:
            raise ModelError(
                "a noise prediction says nothing about the image where the signal is zero (zero terminal SNR): use "
                "v_prediction or sample if the network was trained so, or set rescale_betas_zero_snr to false"
            )
        return super().output_map(output, lambda_)


class ContinuousVP(VariancePreserving):
    """log alpha_t = -(beta_1 - beta_0) t^2 / 4 - beta_0 t / 2 on t in [end, 1]; the denoiser is told `scale` t.

    Source: "Score-Based Generative Modeling through SDEs" (2011.13456), the VP SDE.
    """

    def __init__(self, beta_0: float = 0.1, beta_1: float = 20.0, end: float = 1e-3, scale: float = 1.0) -> None:
        if not (0 < beta_0 < beta_1 and 0 < end < 1 and scale > 0):
            raise ModelError(
                f"beta_0 = {beta_0}, beta_1 = {beta_1}, end = {end}: need 0 < beta_0 < beta_1, 0 < end < 1"
            )
        self.beta_0, self.beta_1, self.end, self.scale = beta_0, beta_1, end, scale

    @property
    def lambda_start(self) -> float:
        """Lambda at t = 1."""
        return self.lambda_at(self.scale)

    @property
    def lambda_end(self) -> float:
        """Lambda at t = `end`."""
        return self.lambda_at(self.end * self.scale)

    def time(self, lambda_: float) -> float:
        """`scale` t, t the root of the quadratic; `end` for anything cleaner."""
        check_start(lambda_, self.lambda_start)
        minus_log_alpha = 0.5 * float(np.logaddexp(0, -2 * lambda_))
        slope = self.beta_1 - self.beta_0
        t = 2 * minus_log_alpha / (math.sqrt(self.beta_0**2 / 4 + slope * minus_log_alpha) + self.beta_0 / 2)
        return self.scale * min(1.0, max(self.end, t))

    def lambda_at(self, time: float) -> float:
        """Lambda at `scale` t."""
        check_time(time, 0, self.scale)
        t = time / self.scale
        log_alpha = -(self.beta_1 - self.beta_0) * t * t / 4 - self.beta_0 * t / 2
        return log_alpha - 0.5 * float(np.log(-np.expm1(2 * log_alpha))) if t else math.inf


def check_start(lambda_: float, start: float) -> None:
    """ScheduleError where `lambda_` is noisier than the model's start."""
    if not lambda_ >= start - TOLERANCE:
        raise ScheduleError(
            f"lambda = {lambda_:.6g} is noisier than the model's start {start:.6g}: "
            "fit the schedule to this model's range"
        )


def check_time(time: float, first: float, last: float) -> None:
    """ScheduleError where `time` is outside the model's range."""
    if not first <= time <= last + TOLERANCE:
        raise ScheduleError(f"time {time} is outside the model's range {first:g} to {last:g}")

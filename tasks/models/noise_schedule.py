"""Noise schedules: what alpha, sigma and the denoiser's time are at a given lambda = log(alpha / sigma).

All arithmetic is float64. For the variance-preserving family alpha^2 + sigma^2 = 1, so alpha and sigma
follow from lambda alone and only the told time depends on the betas.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fewstep.errors import ModelError, ScheduleError

Array = npt.NDArray[np.float64]
TOLERANCE = 1e-6


class NoiseSchedule(Protocol):
    """What compiling a schedule needs to know about a model's noise."""

    @property
    def lambda_start(self) -> float:
        """Lambda of the starting noise (t = T)."""

    @property
    def lambda_end(self) -> float:
        """Lambda of the least noisy time the model was trained on."""

    @property
    def prior_scale(self) -> float:
        """Standard deviation of the starting noise."""

    def alpha_sigma(self, lambda_: float) -> tuple[float, float]:
        """Signal and noise scale at `lambda_`; (1, 0) at inf for the families that end clean."""

    def time(self, lambda_: float) -> float:
        """The time told to the denoiser at `lambda_`. ScheduleError before `lambda_start`."""

    def lambda_at(self, time: float) -> float:
        """Inverse of `time`."""


class DiscreteVP:
    """A discrete variance-preserving schedule from its cumulative alphas, log alpha linear between steps."""

    prior_scale = 1.0

    def __init__(self, alphas_cumprod: npt.ArrayLike) -> None:
        values = np.asarray(alphas_cumprod, np.float64)
        falls = bool(np.all(np.diff(values) < 0)) if values.ndim == 1 and values.size > 1 else False
        if not falls or not (values[-1] > 0 and values[0] < 1):
            raise ModelError("alphas_cumprod must fall strictly within (0, 1): check the scheduler's betas")
        self.log_alphas = 0.5 * np.log(values)
        self._lambdas = 0.5 * (np.log(values) - np.log1p(-values))

    @property
    def lambda_start(self) -> float:
        """Lambda at the last training step."""
        return float(self._lambdas[-1])

    @property
    def lambda_end(self) -> float:
        """Lambda at training step 0."""
        return float(self._lambdas[0])

    def alpha_sigma(self, lambda_: float) -> tuple[float, float]:
        """sqrt(sigmoid(2 lambda)) and sqrt(sigmoid(-2 lambda))."""
        return float(np.exp(-0.5 * np.logaddexp(0, -2 * lambda_))), float(np.exp(-0.5 * np.logaddexp(0, 2 * lambda_)))

    def time(self, lambda_: float) -> float:
        """Training step in [0, N - 1], a fraction between two of them; 0 for anything cleaner than step 0."""
        if not lambda_ >= self.lambda_start - TOLERANCE:
            raise ScheduleError(
                f"lambda = {lambda_:.6g} is noisier than the model's start {self.lambda_start:.6g}: "
                "fit the schedule to this model's range"
            )
        log_alpha = -0.5 * np.logaddexp(0, -2 * lambda_)
        steps = np.arange(len(self.log_alphas) - 1, -1, -1, dtype=np.float64)
        return float(np.interp(log_alpha, self.log_alphas[::-1], steps))

    def lambda_at(self, time: float) -> float:
        """Lambda at a training step, fractions allowed."""
        last = len(self.log_alphas) - 1
        if not 0 <= time <= last:
            raise ScheduleError(f"time {time} is outside the model's range 0 to {last}")
        log_alpha = float(np.interp(time, np.arange(last + 1), self.log_alphas))
        return log_alpha - 0.5 * float(np.log(-np.expm1(2 * log_alpha)))


def from_diffusers(scheduler: Any) -> DiscreteVP:
    """The noise schedule of a diffusers scheduler object that has `alphas_cumprod`."""
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if alphas_cumprod is None:
        raise ModelError(
            f"{type(scheduler).__name__} has no alphas_cumprod: only discrete variance-preserving schedulers "
            "(DDPM, DDIM, DPM-Solver, UniPC, ...) can be read"
        )
    return DiscreteVP(np.asarray(alphas_cumprod, np.float64))

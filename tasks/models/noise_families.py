"""Noise schedules that do not preserve the variance: EDM, score-based VE, and flow matching."""

from __future__ import annotations

import math

from fewstep.errors import ModelError
from fewstep.search_spaces.schedule import Threshold
from fewstep.tasks.models.noise_schedule import OutputMap, check_start, check_time, standard_output_map


class VarianceExploding:
    """alpha = 1, sigma from `sigma_max` down to `sigma_min`; the denoiser is told sigma (2011.13456, the VE SDE)."""

    threshold: Threshold | None = None

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ModelError(f"sigma_min = {sigma_min}, sigma_max = {sigma_max}: need 0 < sigma_min < sigma_max < inf")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    @property
    def lambda_start(self) -> float:
        """-log sigma_max."""
        return -math.log(self.sigma_max)

    @property
    def lambda_end(self) -> float:
        """-log sigma_min."""
        return -math.log(self.sigma_min)

    def alpha_sigma(self, lambda_: float) -> tuple[float, float]:
        """1 and e^-lambda."""
        return 1.0, math.exp(-lambda_)

    def prior_scale(self, lambda_: float) -> float:
        """sigma: the data are drowned by the noise."""
        return math.exp(-lambda_)

    def input_scale(self, lambda_: float) -> float:
        """1."""
        return 1.0

    def time(self, lambda_: float) -> float:
        """sigma, at least sigma_min."""
        check_start(lambda_, self.lambda_start)
        return max(math.exp(-lambda_), self.sigma_min)

    def lambda_at(self, time: float) -> float:
        """-log sigma."""
        check_time(time, self.sigma_min, self.sigma_max)
        return -math.log(time)

    def output_map(self, output: str, lambda_: float) -> OutputMap:
        """`score` = -eps / sigma, epsilon or sample."""
        sigma = math.exp(-lambda_)
        if output == "score":
            return OutputMap(1.0, sigma * sigma, 0.0, -sigma)
        return standard_output_map(output, 1.0, sigma)


class EDM(VarianceExploding):
    """EDM preconditioning: x0 = c_skip x + c_out F(c_in x, log(sigma) / 4) (2206.00364, section 5).

    In diffusers' terms `epsilon` is c_out as published and `v_prediction` its negative.
    """

    def __init__(self, sigma_min: float, sigma_max: float, sigma_data: float) -> None:
        super().__init__(sigma_min, sigma_max)
        if not 0 < sigma_data < math.inf:
            raise ModelError(f"sigma_data = {sigma_data}: it must be positive")
        self.sigma_data = sigma_data

    def input_scale(self, lambda_: float) -> float:
        """c_in = 1 / sqrt(sigma^2 + sigma_data^2)."""
        return 1.0 / math.hypot(math.exp(-lambda_), self.sigma_data)

    def time(self, lambda_: float) -> float:
        """c_noise = log(sigma) / 4, at least that of sigma_min."""
        return 0.25 * math.log(super().time(lambda_))

    def lambda_at(self, time: float) -> float:
        """-4 c_noise."""
        check_time(time, 0.25 * math.log(self.sigma_min) - 1e-6, 0.25 * math.log(self.sigma_max))
        return -4.0 * time

    def output_map(self, output: str, lambda_: float) -> OutputMap:
        """The network's F, by the sign of c_out."""
        if output not in ("epsilon", "v_prediction"):
            raise ModelError(f"prediction type {output!r} is not one of EDM's: epsilon or v_prediction")
        sigma, data = math.exp(-lambda_), self.sigma_data
        square = sigma * sigma + data * data
        c_skip = data * data / square
        c_out = (1 if output == "epsilon" else -1) * sigma * data / math.sqrt(square)
        # eps = (x - x0) / sigma with the cancellation done by hand.
        return OutputMap(c_skip, c_out, sigma / square, -c_out / sigma)


class FlowMatching:
    """x_t = (1 - t) x0 + t eps: alpha = 1 - t, sigma = t, lambda = log((1 - t) / t); the denoiser is told `scale` t.

    `shift` bends the time grids towards the noise as diffusers' flow schedulers do: t' = shift t / (1 + (shift - 1) t).
    Searches start at t = 0.999; a schedule may start at lambda = -inf (t = 1), where first-order steps are finite.
    """

    start_time, end_time = 0.999, 1e-3
    threshold: Threshold | None = None

    def __init__(self, scale: float = 1.0, shift: float = 1.0) -> None:
        if not (0 < scale < math.inf and 0 < shift < math.inf):
            raise ModelError(f"scale = {scale}, shift = {shift}: both must be positive and finite")
        self.scale, self.shift = scale, shift

    @property
    def lambda_start(self) -> float:
        """Lambda at t = 0.999."""
        return self.lambda_at(self.start_time * self.scale)

    @property
    def lambda_end(self) -> float:
        """Lambda at t = 0.001."""
        return self.lambda_at(self.end_time * self.scale)

    def start_at(self, lambda_: float) -> None:
        """Have samplers start no noisier than there."""
        self.start_time = min(self.start_time, self.time(lambda_) / self.scale)

    def shifted(self, time: float) -> float:
        """The told time at that place of a grid which is uniform before the shift (both 0 to `scale`)."""
        return self.scale * self.shift * time / (self.scale + (self.shift - 1) * time)

    def unshifted(self, time: float) -> float:
        """Inverse of `shifted`."""
        return self.scale * time / (self.scale * self.shift - (self.shift - 1) * time)

    def alpha_sigma(self, lambda_: float) -> tuple[float, float]:
        """sigmoid(lambda) and sigmoid(-lambda)."""
        return _sigmoid(lambda_), _sigmoid(-lambda_)

    def prior_scale(self, lambda_: float) -> float:
        """t: the data's share at the start is neglected, and is nothing at t = 1."""
        return _sigmoid(-lambda_)

    def input_scale(self, lambda_: float) -> float:
        """1."""
        return 1.0

    def time(self, lambda_: float) -> float:
        """`scale` t."""
        return self.scale * _sigmoid(-lambda_)

    def lambda_at(self, time: float) -> float:
        """Lambda at `scale` t; -inf at t = 1, inf at t = 0."""
        check_time(time, 0, self.scale)
        t = min(1.0, time / self.scale)
        return math.inf if t == 0 else -math.inf if t == 1 else math.log1p(-t) - math.log(t)

    def output_map(self, output: str, lambda_: float) -> OutputMap:
        """`flow_prediction`, the velocity v = eps - x0; epsilon or sample."""
        alpha, sigma = self.alpha_sigma(lambda_)
        if output == "flow_prediction":
            return OutputMap(1.0, -sigma, 1.0, alpha)
        if output == "v_prediction":
            raise ModelError("a flow's velocity is called flow_prediction: set prediction_type")
        return standard_output_map(output, alpha, sigma)


def _sigmoid(value: float) -> float:
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    return math.exp(value) / (1.0 + math.exp(value))

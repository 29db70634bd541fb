"""Noise schedules that do not preserve the variance: EDM, score-based VE, and flow matching."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fewstep.errors import ModelError
from fewstep.search_spaces.schedule import Threshold
from fewstep.tasks.models.noise_schedule import (
    DiscreteVP,
    NoiseSchedule,
    OutputMap,
    check_start,
    check_time,
    standard_output_map,
)

if TYPE_CHECKING:
    from fewstep.tasks.models.stock_times import StockTimes


class VarianceExploding:
    """alpha = 1, sigma from `sigma_max` down to `sigma_min`; the denoiser is told sigma (2011.13456, the VE SDE)."""

    threshold: Threshold | None = None
    stock: StockTimes | None = None

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

    Two settings of diffusers' flow schedulers say where a model's samplers call it. `shift` bends times towards the
    noise: t' = shift t / (1 + (shift - 1) t); None where it depends on an image size that is not known, and then
    ModelError for who asks for it. `terminal` is where the last call is to be: times are stretched from t = 1 until
    it is. `smallest` is the t that shaped grids (Karras', ...) begin to bend their last call at, by default that which
    t = 0.001 is shifted to: diffusers' schedulers with a fixed shift bend it twice.
    Samplers may start at t = 1 (lambda = -inf), where first-order steps are finite; what is searched, and has to have
    finite lambdas, starts at t = 0.999.
    """

    start_time, end_time = 0.999, 1e-3
    # Where grids begin.
    first_time, strength = 1.0, 1.0
    threshold: Threshold | None = None
    stock: StockTimes | None = None

    def __init__(
        self,
        scale: float = 1.0,
        shift: float | None = 1.0,
        terminal: float | None = None,
        smallest: float | None = None,
    ) -> None:
        if not (0 < scale < math.inf and (shift is None or 0 < shift < math.inf)):
            raise ModelError(f"scale = {scale}, shift = {shift}: both must be positive and finite")
        if terminal is not None and not 0 < terminal < 1:
            raise ModelError(f"shift_terminal = {terminal}: the last call's time must be between 0 and 1")
        self.scale, self._shift, self.terminal = scale, shift, terminal
        self._smallest = smallest

    @property
    def lambda_start(self) -> float:
        """Lambda at t = 0.999."""
        return self.lambda_at(self.start_time * self.scale)

    @property
    def lambda_end(self) -> float:
        """Lambda at t = 0.001."""
        return self.lambda_at(self.end_time * self.scale)

    def start_at(self, lambda_: float, strength: float) -> None:
        """Have samplers start no noisier than there, which is where noise of that strength is put on an image."""
        self.first_time, self.strength = self.time(lambda_) / self.scale, strength
        self.start_time = min(self.start_time, self.time(lambda_) / self.scale)

    @property
    def shift(self) -> float:
        """The shift; ModelError where it depends on an image size that is not known."""
        if self._shift is None:
            from fewstep.tasks.models.stock_times import SIZE_NEEDED

            raise ModelError(SIZE_NEEDED)
        return self._shift

    @property
    def shaped_ends(self) -> tuple[float, float]:
        """First and last t of the calls of shaped grids, bent: 1 or the start, and what becomes of the smallest."""
        default = self.shifted(self.end_time * self.scale) / self.scale
        return self.first_time, self.bent([1.0, default if self._smallest is None else self._smallest])[-1]

    def bent(self, times: Sequence[float]) -> list[float]:
        """t of calls that are at these falling `times` before the shift, the stretch to `terminal` included."""
        moved = [self.shifted(self.scale * t) / self.scale for t in times]
        if self.terminal is None or moved[-1] == 1:
            return moved
        factor = (1 - self.terminal) / (1 - moved[-1])
        return [1 - (1 - t) * factor for t in moved]

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


def lambda_of_strength(noise: NoiseSchedule, strength: float) -> float:
    """Where a pipeline begins that puts noise of a `strength` (0 to 1) on an image: at that part of the times.

    ModelError for noise that no such pipeline has.
    """
    if isinstance(noise, FlowMatching):
        return noise.lambda_at(noise.shifted(strength * noise.scale))
    if isinstance(noise, DiscreteVP):
        return noise.lambda_at(strength * noise.time(noise.lambda_start))
    raise ModelError(f"strength {strength:g} is not known for the noise of a {type(noise).__name__}")


def _sigmoid(value: float) -> float:
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    return math.exp(value) / (1.0 + math.exp(value))

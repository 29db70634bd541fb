"""Sample any model with ODE solvers: the many-step teacher, and baselines that owe nothing to our tables.

The solvers are torchdiffeq's, but for dopri5 with steps of each image's own: that one is `dopri5.py`.

Every model is integrated as a flow y_t = (1 - t) x0 + t eps from t = 1 to 0 along v = E[eps - x0 | y_t]. A state x
of another family maps to y = x / (alpha + sigma) at t = sigma / (alpha + sigma), where lambda is the same, so its
network says v as well (Lipman et al., 2210.02747; Dao et al., "Flow Matching in Latent Space", 2307.08698).

Ends. A network that predicts a flow's velocity is called on all of [0, 1]. Others start at their own noisiest time
and are never called at t = 0, where their output may say nothing: the last step to 0 is Euler's, to the predicted x0.

Shapes: noise and samples (B, ...), the noise standard normal. The state is float64 and the network gets the noise's
type, so that neither times nor error estimates are rounded to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.search_spaces.ode import ADAPTIVE, FIXED_CALLS, OdeSettings
from fewstep.tasks.flow.dopri5 import RowVelocity, integrate_each
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.noise_families import FlowMatching
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.sampling.compile import START_RANGE

__all__ = ["OdeSampler", "OdeSamples", "OdeSettings"]

Velocity = Callable[[Tensor, float], Tensor]
# The denoiser of a list of image indices. For dopri5 with control `image` it is told a time for each image, (B,).
On = Callable[[Sequence[int]], Callable[[Tensor, float | Tensor], Tensor]]
TORCHDIFFEQ = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2"}


@dataclass(frozen=True)
class OdeSamples:
    """Samples x, shaped as the noise, and the denoiser calls that each image took."""

    x: Tensor
    nfe: tuple[int, ...]


def lambda_of(t: float) -> float:
    """Half log-SNR of the flow at t: log((1 - t) / t), infinite at the ends."""
    return math.inf if t <= 0 else -math.inf if t >= 1 else math.log1p(-t) - math.log(t)


def flow_time(noise: NoiseSchedule, lambda_: float) -> float:
    """Where the noise schedule's lambda lies on the flow: t = sigma / (alpha + sigma)."""
    alpha, sigma = noise.alpha_sigma(lambda_)
    return sigma / (alpha + sigma)


def model_velocity(
    denoiser: Callable[[Tensor, float | Tensor], Tensor] | Callable[[Tensor, float], Tensor],
    noise: NoiseSchedule,
    output: str,
    dtype: torch.dtype | None = None,
) -> Velocity:
    """v(y, t) of a denoiser with raw outputs of the type `output`, which is called in `dtype` (y's own)."""

    def v(y: Tensor, t: float) -> Tensor:
        lambda_ = lambda_of(t)
        x = sum(noise.alpha_sigma(lambda_)) * y
        means = noise.output_map(output, lambda_)
        raw = denoiser((x * noise.input_scale(lambda_)).to(dtype or y.dtype), noise.time(lambda_))
        return (means.eps_x - means.x0_x) * x + (means.eps_o - means.x0_o) * raw.to(y.dtype)

    return v


def velocity_of_each(
    on: On, indices: Sequence[int], noise: NoiseSchedule, output: str, dtype: torch.dtype
) -> RowVelocity:
    """The same where every image has a time of its own; `indices` are those of the whole batch."""
    held: tuple[list[int], Callable[[Tensor, float | Tensor], Tensor]] | None = None

    def v(y: Tensor, t: Tensor, rows: list[int]) -> Tensor:
        nonlocal held
        if held is None or held[0] != rows:
            held = list(rows), on([indices[row] for row in rows])
        facts = []
        for lambda_ in map(lambda_of, t.tolist()):
            means = noise.output_map(output, lambda_)
            weights = means.eps_x - means.x0_x, means.eps_o - means.x0_o
            facts.append((sum(noise.alpha_sigma(lambda_)), noise.input_scale(lambda_), *weights, noise.time(lambda_)))
        table = torch.tensor(facts, dtype=torch.float64, device=y.device)
        scale, given, of_x, of_raw = (table[:, i].reshape(-1, *(1,) * (y.ndim - 1)) for i in range(4))
        x = scale * y
        return of_x * x + of_raw * held[1]((given * x).to(dtype), table[:, 4]).to(y.dtype)

    return v


def ends(noise: NoiseSchedule, output: str) -> tuple[float, float]:
    """First and last flow time at which the network is called."""
    if isinstance(noise, FlowMatching) and output == "flow_prediction":
        return 1.0, 0.0
    return flow_time(noise, noise.lambda_start), flow_time(noise, noise.lambda_end)


def fixed_times(noise: NoiseSchedule, output: str, steps: int) -> tuple[float, ...]:
    """`steps + 1` falling flow times from the model's start to 0: equal steps, then a flow's shift."""
    start, _ = ends(noise, output)
    shift = noise.shift if isinstance(noise, FlowMatching) else 1.0
    first = start / (shift - (shift - 1) * start)
    even = [first * (1 - i / steps) for i in range(steps + 1)]
    return (start, *(shift * u / (1 + (shift - 1) * u) for u in even[1:]))


def integrate(velocity: Velocity, y: Tensor, times: Sequence[float], settings: OdeSettings) -> tuple[Tensor, int]:
    """y at times[-1] from y at times[0], and the number of velocity calls; dopri5 looks at the two ends only.

    The velocity is never called outside the ends: the adaptive solver steps onto the last one instead of past it
    and back by interpolation. Raises EvaluationError where the solver gives up.
    """
    from torchdiffeq import odeint

    first, last = times[0], times[-1]
    calls = 0

    def func(t: Tensor, state: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return velocity(state, min(max(float(t), last), first))

    def of_images(error: Tensor) -> Tensor:
        return error.abs().square().flatten(1).mean(1).max().sqrt()

    grid = torch.tensor(list(times), dtype=torch.float64, device=y.device)
    two = grid[[0, -1]]
    try:
        if settings.method == ADAPTIVE:
            options = {"norm": of_images, "step_t": two[1:], "max_num_steps": settings.max_steps}
            solution = odeint(func, y, two, atol=settings.atol, rtol=settings.rtol, method=ADAPTIVE, options=options)
        else:
            # Only the two ends are kept, whatever the number of steps.
            options = {"grid_constructor": lambda *_: grid}
            solution = odeint(func, y, two, method=TORCHDIFFEQ[settings.method], options=options)
    except AssertionError as error:  # torchdiffeq's only way to say so
        raise EvaluationError(f"{settings.method} gave up between t = {first:g} and {last:g}: {error}") from error
    out: Tensor = solution[-1]
    return out, calls


class OdeSampler:
    """A model's samples by an ODE solver: `on` gives the denoiser of a list of image indices."""

    def __init__(self, on: On, noise: NoiseSchedule, output: str, settings: OdeSettings) -> None:
        self.on, self.noise, self.output, self.settings = on, noise, output, settings
        start, end = ends(noise, output)
        adaptive = (start, end) if end == 0 else (start, end, 0.0)
        fixed = settings.times or (fixed_times(noise, output, settings.steps) if settings.steps else ())
        self.times = adaptive if settings.method == ADAPTIVE else fixed
        if lambda_of(self.times[0]) > noise.lambda_start + START_RANGE:
            raise ConfigurationError(
                f"times start at {self.times[0]:g}, too far after the model's start {start:g} for pure noise"
            )
        if self.times[0] > start + 1e-9:
            raise ConfigurationError(f"times start at {self.times[0]:g}, noisier than the model's start {start:g}")
        # The part that the solver runs; where one more time follows, Euler's step leads there.
        self._solved = self.times[:-1] if self.times[-1] == 0 and end > 0 else self.times

    @classmethod
    def of(cls, denoiser: Denoiser, settings: OdeSettings, guidance: float | None = None) -> OdeSampler:
        """The sampler of a loaded model; `guidance` goes before the scale of the model's conditions."""
        files = denoiser.files
        return cls(lambda indices: denoiser.on(indices, guidance), files.noise, files.prediction_type, settings)

    @property
    def nfe(self) -> int | None:
        """Denoiser calls an image, None where the solver decides."""
        if self.settings.method == ADAPTIVE:
            return None
        return FIXED_CALLS[self.settings.method] * (len(self._solved) - 1) + len(self.times) - len(self._solved)

    @torch.inference_mode()
    def __call__(self, noise: Tensor, indices: Sequence[int] | None = None) -> OdeSamples:
        """Samples of the images `indices` (0 .. B - 1) from standard normal noise (B, ...), in its type.

        Raises EvaluationError where the solver gives up or samples are not finite.
        """
        indices = range(len(noise)) if indices is None else indices
        if len(indices) != len(noise):
            raise ConfigurationError(f"{len(noise)} noises for {len(indices)} image indices: give one of each an image")
        if not len(noise):
            return OdeSamples(noise, ())
        first = lambda_of(self.times[0])
        y = noise.double() * (self.noise.prior_scale(first) / sum(self.noise.alpha_sigma(first)))
        nfe = [0] * len(noise)
        each = velocity_of_each(self.on, indices, self.noise, self.output, noise.dtype)
        together = model_velocity(self.on(indices), self.noise, self.output, noise.dtype)
        s = self.settings
        if s.method == ADAPTIVE and s.control == "image":
            y, nfe = integrate_each(each, y, self._solved[0], self._solved[-1], s.atol, s.rtol, s.max_steps)
        elif len(self._solved) > 1:
            y, calls = integrate(together, y, self._solved, s)
            nfe = [calls] * len(noise)
        if len(self._solved) < len(self.times):
            t = self._solved[-1]
            y, nfe = y - t * together(y, t), [calls + 1 for calls in nfe]
        if not bool(torch.isfinite(y).all()):
            raise EvaluationError(f"{s.method} made values that are not finite: its steps explode")
        x = (sum(self.noise.alpha_sigma(lambda_of(self.times[-1]))) * y).to(noise.dtype)
        return OdeSamples(x, tuple(nfe))

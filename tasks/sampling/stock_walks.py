"""How each of diffusers' schedulers steps, in the formulas of schedules: which point, which order, which derivatives.

One class a kind of scheduler, made with its configuration. Sigmas and alphas are the scheduler's own float32 numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.schedule import Prediction, Step, Threshold
from fewstep.search_spaces.schedule.formula import Formula, Relaxation, blended, pseudo_corrector, taylor
from fewstep.search_spaces.schedule.presets import (
    ADAMS_BASHFORTH,
    LONG,
    SINGLESTEP,
    SINGLESTEP_HEUN,
    THIRD,
    heun,
    heun_flow,
    plain_step,
)
from fewstep.tasks.models.noise_families import FlowMatching
from fewstep.tasks.models.noise_schedule import NoiseSchedule

Config = Mapping[str, Any]


def refuse(name: str, setting: str, why: str) -> ConfigurationError:
    """The error of a setting that makes a sampler no schedule."""
    return ConfigurationError(f"{name} with {setting} is no schedule: {why}")


class Walk:
    """A scheduler with a list of sigmas, one call a step; Euler's steps unless a kind says otherwise."""

    possible = "at least 1"

    def __init__(self, config: Config) -> None:
        self.config = config

    def steps(self, nfe: int) -> int | None:
        """How many steps make `nfe` calls; None where none do."""
        return nfe if nfe >= 1 else None

    @classmethod
    def ends(cls, scheduler: Any, noise: NoiseSchedule) -> list[float]:
        """Lambda where each of the scheduler's steps starts, and where the last one ends."""
        return [lambda_of(float(sigma), noise) for sigma in scheduler.sigmas.double()]

    def lambdas(self, scheduler: Any, noise: NoiseSchedule) -> list[float]:
        """Lambda of every point, where a run of steps ends last: more points than ends where steps call in between."""
        return self.ends(scheduler, noise)

    def formulas(self, scheduler: Any, lambdas: Sequence[float]) -> Sequence[Step]:
        """A step from each lambda to the next."""
        return [Step()] * (len(lambdas) - 1)

    def threshold(self, own: Threshold | None) -> Threshold | None:
        """How x0 is kept in range, its noise following, where the model has a threshold of its `own`."""
        return own


def lambda_of(sigma: float, noise: NoiseSchedule) -> float:
    """Lambda where sigma is the noise's share of a flow, or its ratio to the signal."""
    if sigma <= 0:
        return math.inf
    if isinstance(noise, FlowMatching):
        return -math.inf if sigma >= 1 else math.log1p(-sigma) - math.log(sigma)
    return -math.log(sigma)


class Euler(Walk):
    """EulerDiscreteScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.get("stochastic_sampling"):
            raise refuse("FlowMatchEulerDiscreteScheduler", "stochastic_sampling", "only deterministic sampling is one")

    def threshold(self, own: Threshold | None) -> Threshold | None:
        """None: these do not threshold."""
        return None


class Heun(Euler):
    """HeunDiscreteScheduler and FlowMatchHeunDiscreteScheduler: two calls a step but the last."""

    possible = "an odd number"

    def steps(self, nfe: int) -> int | None:
        """See Walk."""
        return (nfe + 1) // 2 if nfe % 2 else None

    @classmethod
    def ends(cls, scheduler: Any, noise: NoiseSchedule) -> list[float]:
        """Every sigma but the first and the last stands there twice."""
        found = super().ends(scheduler, noise)
        return [*found[:1], *found[1:-1:2], found[-1]]

    def formulas(self, scheduler: Any, lambdas: Sequence[float]) -> Sequence[Step]:
        """See Walk."""
        flow = type(scheduler).__name__.startswith("Flow")
        return (heun_flow if flow else heun)(lambdas).steps

    def threshold(self, own: Threshold | None) -> Threshold | None:
        """Clipped x0, which the derivative is taken of."""
        if not self.config.get("clip_sample"):
            return None
        return Threshold(kind="static", limit=self.config["clip_sample_range"])


class Midpoint(Heun):
    """KDPM2DiscreteScheduler: the whole step by the slope at its middle in log sigma."""

    @classmethod
    def ends(cls, scheduler: Any, noise: NoiseSchedule) -> list[float]:
        """Every sigma but the first stands there twice, and the last once more."""
        found = Walk.ends(scheduler, noise)
        return [*found[:1], *found[1:-1:2]]

    def lambdas(self, scheduler: Any, noise: NoiseSchedule) -> list[float]:
        """Ends and middles by turns; the last step has no middle."""
        ends, middles = self.ends(scheduler, noise), scheduler.sigmas_interpol.double()
        inner = [lambda_of(float(sigma), noise) for sigma in middles[1:-1:2]][: len(ends) - 2]
        return [*(v for pair in zip(ends, inner, strict=False) for v in pair), *ends[-2:]]

    def formulas(self, scheduler: Any, lambdas: Sequence[float]) -> Sequence[Step]:
        """See Walk."""
        whole = Step(prediction="noise", predictor=blended((1.0,), start=-2))
        return [whole if i % 2 else Step() for i in range(len(lambdas) - 1)]

    def threshold(self, own: Threshold | None) -> Threshold | None:
        """None: it does not threshold."""
        return None


class LinearMultistep(Euler):
    """LMSDiscreteScheduler: polynomials in sigma through the last four slopes."""

    ORDER = 4

    def formulas(self, scheduler: Any, lambdas: Sequence[float]) -> Sequence[Step]:
        """See Walk."""
        sigmas = scheduler.sigmas.double()
        made = []
        for i in range(len(lambdas) - 1):
            order, length = min(i + 1, self.ORDER), float(sigmas[i + 1] - sigmas[i])
            weights = [float(scheduler.get_lms_coefficient(order, i, k)) / length for k in range(order)]
            made.append(Step(prediction="noise", predictor=blended([w / sum(weights) for w in weights])))
        return made


class Ddim(Walk):
    """DDIMScheduler and its kin, which step on alphas from one whole timestep to the next."""

    # CogVideoX has the setting and does not heed it.
    clips_nothing = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        clips = config.get("thresholding") or config.get("clip_sample")
        if clips and not self.clips_nothing:
            raise refuse("DDIM", "clip_sample or thresholding", "it keeps the noise as it was where x0 is clipped")

    def threshold(self, own: Threshold | None) -> Threshold | None:
        """None: with one it is refused, or heeds none."""
        return None

    @classmethod
    def ends(cls, scheduler: Any, noise: NoiseSchedule) -> list[float]:
        """Timesteps, and the last alpha."""
        times = dict.fromkeys(float(t) for t in scheduler.timesteps)
        last = getattr(scheduler, "final_alpha_cumprod", None)
        return [*(noise.lambda_at(t) for t in times), math.inf if last is None else _of_alpha(float(last))]

    def lambdas(self, scheduler: Any, noise: NoiseSchedule) -> list[float]:
        """Timesteps, and where the last step goes."""
        alphas = scheduler.alphas_cumprod.double()
        stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        times = list(dict.fromkeys(int(t) for t in scheduler.timesteps))
        ends = [t - stride for t in times]
        if ends[:-1] != times[1:]:
            raise refuse(type(scheduler).__name__, "these timesteps", f"steps from {times} end at {ends}")
        last = float(alphas[ends[-1]] if ends[-1] >= 0 else scheduler.final_alpha_cumprod)
        return [noise.lambda_at(float(t)) for t in times] + [_of_alpha(last)]


class CogVideoX(Ddim):
    """CogVideoXDDIMScheduler."""

    clips_nothing = True


def _of_alpha(alpha_cumprod: float) -> float:
    if alpha_cumprod >= 1:
        return math.inf
    return 0.5 * (math.log(alpha_cumprod) - math.log1p(-alpha_cumprod))


class Pndm(Ddim):
    """PNDMScheduler without its Runge-Kutta start: Adams and Bashforth's weights after one step by Heun's."""

    possible = "1, or at least 3"
    clips_nothing = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not config.get("skip_prk_steps"):
            raise refuse("PNDMScheduler", "skip_prk_steps false", "its first steps are Runge-Kutta's of order 4")
        if config.get("prediction_type") != "epsilon":
            raise refuse("PNDMScheduler", "v_prediction", "it mixes outputs of different times as if they meant one")

    def steps(self, nfe: int) -> int | None:
        """The first step makes two calls where there is a second."""
        return 1 if nfe == 1 else nfe - 1 if nfe >= 3 else None

    def formulas(self, scheduler: Any, lambdas: Sequence[float]) -> Sequence[Step]:
        """See Walk."""
        rest = [
            Step(prediction="noise", predictor=blended(ADAMS_BASHFORTH[min(i + 1, 4)]))
            for i in range(1, len(lambdas) - 1)
        ]
        first = Step(prediction="noise", corrector=blended((0.5, 0.5), start=-2), implicit=True) if rest else Step()
        return [first, *rest]


class DpmMultistep(Walk):
    """DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler and DEISMultistepScheduler."""

    def formulas(self, scheduler: Any, lambdas: Sequence[float]) -> Sequence[Step]:
        """See Walk."""
        config, n = scheduler.config, len(lambdas) - 1
        kind, short = str(config["algorithm_type"]), bool(config["lower_order_final"]) and n < LONG
        if kind.startswith("sde"):
            raise refuse(type(scheduler).__name__, f"algorithm_type {kind}", "it draws noise on its way")
        first = bool(config.get("euler_at_final")) or short or config.get("final_sigmas_type") == "zero"
        made = []
        for i in range(n):
            order = min(int(config["solver_order"]), i + 1)
            order = 1 if i == n - 1 and first else min(order, 2) if i == n - 2 and short else order
            made.append(plain_step("data" if kind == "dpmsolver++" else "noise", self.formula(order), i, lambdas))
        return made

    def formula(self, order: int) -> Formula:
        """A step of that order; diffusers' third order is one formula for both types of the second."""
        midpoint = self.config["solver_type"] == "midpoint"
        return THIRD if order == 3 else taylor(order, relaxation="bh2" if midpoint else "none")


class Deis(DpmMultistep):
    """DEISMultistepScheduler in log-rho."""

    def formula(self, order: int) -> Formula:
        """See DpmMultistep."""
        return taylor(order)


class DpmSinglestep(Walk):
    """DPMSolverSinglestepScheduler: groups of up to three calls, each from its group's start."""

    def formulas(self, scheduler: Any, lambdas: Sequence[float]) -> Sequence[Step]:
        """See Walk."""
        config, n = scheduler.config, len(lambdas) - 1
        if str(config["algorithm_type"]).startswith("sde"):
            raise refuse("DPMSolverSinglestepScheduler", config["algorithm_type"], "it draws noise on its way")
        if len(scheduler.order_list) < n:
            raise refuse("DPMSolverSinglestepScheduler", f"{n} steps", "diffusers plans fewer")
        prediction: Prediction = "data" if config["algorithm_type"] == "dpmsolver++" else "noise"
        which = SINGLESTEP if config["solver_type"] == "midpoint" else SINGLESTEP_HEUN
        return [
            plain_step(prediction, which[min(order, i + 1)], i, lambdas)
            for i, order in enumerate(scheduler.order_list[:n])
        ]


class UniPc(Walk):
    """UniPCMultistepScheduler."""

    def threshold(self, own: Threshold | None) -> Threshold | None:
        """None for the variant on the noise, which does not threshold."""
        return own if self.config["predict_x0"] else None

    def formulas(self, scheduler: Any, lambdas: Sequence[float]) -> Sequence[Step]:
        """See Walk."""
        config, n = scheduler.config, len(lambdas) - 1
        if config.get("solver_p") is not None:
            raise refuse("UniPCMultistepScheduler", "solver_p", "its predictor is another scheduler")
        variant: Relaxation = config["solver_type"]
        off = set(config["disable_corrector"])
        made = []
        for i in range(n):
            order = min(int(config["solver_order"]), i + 1, n - i if config["lower_order_final"] else n)
            corrected = i + 1 < n and i not in off
            made.append(
                Step(
                    prediction="data" if config["predict_x0"] else "noise",
                    predictor=taylor(order, relaxation=variant if order == 2 else "none"),
                    corrector=pseudo_corrector(order, i + 1, variant) if corrected else None,
                )
            )
        return made


WALKS: dict[str, type[Walk]] = {
    "CogVideoXDDIMScheduler": CogVideoX,
    "DDIMParallelScheduler": Ddim,
    "DDIMScheduler": Ddim,
    "DEISMultistepScheduler": Deis,
    "DPMSolverMultistepScheduler": DpmMultistep,
    "DPMSolverSinglestepScheduler": DpmSinglestep,
    "EDMDPMSolverMultistepScheduler": DpmMultistep,
    "EDMEulerScheduler": Euler,
    "EulerDiscreteScheduler": Euler,
    "FlowMatchEulerDiscreteScheduler": Euler,
    "FlowMatchHeunDiscreteScheduler": Heun,
    "HeunDiscreteScheduler": Heun,
    "KDPM2DiscreteScheduler": Midpoint,
    "LMSDiscreteScheduler": LinearMultistep,
    "PNDMScheduler": Pndm,
    "UniPCMultistepScheduler": UniPc,
}

"""Well-known solvers as schedules: functions from a grid of lambdas (n + 1,) to a `SolverSchedule`.

The lower-order start and end follow what diffusers' schedulers do. Sources: DDIM (2010.02502), DPM-Solver
(2206.00927), DPM-Solver++ (2211.01095), UniPC (2302.04867), DEIS (2204.13902), iPNDM (DEIS, section 4),
Heun ("Elucidating the Design Space", 2206.00364, algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.schedule import Prediction, SolverSchedule, Step
from fewstep.search_spaces.schedule.formula import Derivative, Formula, Relaxation, blended, pseudo_corrector, taylor

Preset = Callable[[Sequence[float]], SolverSchedule]
# diffusers brings the order down at the end of schedules shorter than this.
LONG = 15
# Derivatives from two older points; the published third-order formulas halve the second one.
THIRD = Formula(
    derivatives=(
        Derivative(points=(-3, -2)),
        Derivative(points=(-3, -2), relaxation="scale", coefficient=0.5),
    )
)
# One step from the start of a group of two or three calls over its whole length.
SINGLESTEP = {
    1: Formula(),
    2: Formula(start=-2, derivatives=(Derivative(points=(-1,), relaxation="bh2"),)),
    3: Formula(start=-3, derivatives=(Derivative(points=(-1,)),)),
}
# The same with both older points of a group, which diffusers calls Heun's.
SINGLESTEP_HEUN = {
    1: Formula(),
    2: Formula(start=-2, derivatives=(Derivative(points=(-1,)),)),
    3: Formula(start=-3, derivatives=(Derivative(points=(-2, -1)), Derivative(points=(-2, -1)))),
}
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def _multistep_order(i: int, steps: int, order: int) -> int:
    """Order at step i: warm up from 1, and come down to 1 at the end."""
    return min(order, i + 1, steps - i)


def _long_order(i: int, lambdas: Sequence[float], order: int) -> int:
    """The same, but coming down only below LONG steps, or for a last step to sigma = 0."""
    steps = len(lambdas) - 1
    if steps < LONG:
        return _multistep_order(i, steps, order)
    return 1 if _to_zero(i, lambdas) else min(order, i + 1)


def _to_zero(i: int, lambdas: Sequence[float]) -> bool:
    return i + 2 == len(lambdas) and math.isinf(lambdas[-1])


def _built(name: str, lambdas: Sequence[float], steps: Sequence[Step]) -> SolverSchedule:
    return SolverSchedule.build(lambdas=tuple(lambdas), steps=tuple(steps), name=name)


def plain_step(prediction: Prediction, formula: Formula, i: int, lambdas: Sequence[float]) -> Step:
    """A step without corrector. First-order steps are the same for both predictions; data reach the infinities."""
    if math.isinf(lambdas[i]) or (_to_zero(i, lambdas) and not formula.blend):
        return Step()
    return Step(prediction=prediction, predictor=formula)


def ddim(lambdas: Sequence[float]) -> SolverSchedule:
    """DDIM, which is the first-order step of every solver here, and Euler's in sigma / alpha."""
    return _built("ddim", lambdas, (Step(),) * (len(lambdas) - 1))


def dpm_multistep(order: int, prediction: Prediction, name: str, lambdas: Sequence[float]) -> SolverSchedule:
    """DPM-Solver (noise) and DPM-Solver++ (data) of order 2 or 3, multistep; the midpoint variant at order 2."""
    orders = [_long_order(i, lambdas, order) for i in range(len(lambdas) - 1)]
    formulas = [THIRD if p == 3 else taylor(p, relaxation="bh2") for p in orders]
    return _built(name, lambdas, [plain_step(prediction, f, i, lambdas) for i, f in enumerate(formulas)])


def dpm_singlestep(order: int, prediction: Prediction, name: str, lambdas: Sequence[float]) -> SolverSchedule:
    """DPM-Solver-2 and -3 and DPM-Solver++ 2S: groups of `order` calls, each step of a group from its start.

    The end comes down to order 1, or to the second call of a group where that fits the number of calls and the
    grid does not end at sigma = 0, as in diffusers' DPMSolverSinglestepScheduler (midpoint).
    """
    # No group can start at lambda = -inf: one first-order step leads away from there.
    lead = [1] if math.isinf(lambdas[0]) and len(lambdas) > 2 else []
    n = len(lambdas) - 1 - len(lead)
    group = list(range(1, order + 1))
    cut = n % order if order == 3 and n % 3 == 2 and not math.isinf(lambdas[-1]) else 1
    whole, rest = divmod(n - cut, order)
    orders = [*lead, *group * whole, *group[:rest], *group[:cut]]
    return _built(name, lambdas, [plain_step(prediction, SINGLESTEP[p], i, lambdas) for i, p in enumerate(orders)])


def unipc(order: int, variant: Relaxation, lambdas: Sequence[float]) -> SolverSchedule:
    """UniPC of that order with B(h) `bh1` or `bh2`, data prediction, corrected at every step but the last.

    A first step from lambda = -inf has no finite length to be corrected over.
    """
    n = len(lambdas) - 1
    steps = []
    for i in range(n):
        p = _multistep_order(i, n, order)
        predictor = taylor(p, relaxation=variant if p == 2 else "none")
        corrected = i + 1 < n and math.isfinite(lambdas[i])
        corrector = pseudo_corrector(p, i + 1, variant) if corrected else None
        steps.append(Step(predictor=predictor, corrector=corrector))
    return _built(f"unipc-{order}-{variant}", lambdas, steps)


def deis(order: int, lambdas: Sequence[float]) -> SolverSchedule:
    """DEIS in log-rho: the noise's interpolation polynomial in lambda, integrated exactly."""
    formulas = [taylor(_long_order(i, lambdas, order)) for i in range(len(lambdas) - 1)]
    return _built(f"deis-{order}", lambdas, [plain_step("noise", f, i, lambdas) for i, f in enumerate(formulas)])


def ipndm(order: int, lambdas: Sequence[float]) -> SolverSchedule:
    """iPNDM: DDIM's step on the noise that Adams and Bashforth's weights for equal steps extrapolate."""
    formulas = [blended(ADAMS_BASHFORTH[min(order, i + 1)]) for i in range(len(lambdas) - 1)]
    return _built(f"ipndm-{order}", lambdas, [plain_step("noise", f, i, lambdas) for i, f in enumerate(formulas)])


def ipndm_v(order: int, lambdas: Sequence[float]) -> SolverSchedule:
    """iPNDM for uneven steps: the noise's interpolation polynomial in rho = sigma / alpha, integrated exactly.

    That is DEIS on rho (rho-AB). Points where rho is infinite are left out.
    """
    finite = sum(math.isinf(value) and value < 0 for value in lambdas)
    steps = []
    for i in range(len(lambdas) - 1):
        count = min(order, i + 1 - finite)
        newest = lambdas[i + 1 - count : i + 1][::-1]
        weights = adams_bashforth(newest, lambdas[i + 1]) if count > 0 else (1.0,)
        steps.append(plain_step("noise", blended(weights), i, lambdas))
    return _built(f"ipndm-v-{order}", lambdas, steps)


def adams_bashforth(lambdas: Sequence[float], end: float) -> tuple[float, ...]:
    """Weights of the noises at `lambdas`, newest first, that give their polynomial's mean over rho up to `end`."""
    rho, last = np.exp(-np.array(lambdas)), math.exp(-end)
    places = (rho - rho[0]) / (last - rho[0])
    powers = np.arange(len(lambdas))
    return tuple(np.linalg.solve(places[None, :] ** powers[:, None], 1.0 / (powers + 1)).tolist())


def heun(lambdas: Sequence[float]) -> SolverSchedule:
    """Heun's method in sigma / alpha: two calls a step, and Euler's step to sigma = 0."""
    if math.isinf(lambdas[0]):
        raise ConfigurationError("heun cannot start at lambda = -inf, where sigma / alpha is infinite: use heun-flow")
    steps = [
        Step()
        if _to_zero(i, lambdas)
        else Step(prediction="noise", corrector=blended((0.5, 0.5), start=-2), implicit=i + 2 < len(lambdas))
        for i in range(len(lambdas) - 1)
    ]
    return _built("heun", lambdas, steps)


def heun_flow(lambdas: Sequence[float]) -> SolverSchedule:
    """Heun's method in a flow's time t = 1 / (1 + e^lambda): the mean velocity of both ends, Euler's step to t = 0.

    From s to t that mean is the data step on x0 at t with the weight s / (2 t) and x0 at s with the rest.
    """
    steps = []
    for i in range(len(lambdas) - 1):
        if _to_zero(i, lambdas):
            steps.append(Step())
            continue
        weight = 0.5 * (1 + math.exp(lambdas[i + 1])) / (1 + math.exp(lambdas[i]))
        corrector = blended((weight, 1 - weight), start=-2)
        steps.append(Step(corrector=corrector, implicit=i + 2 < len(lambdas)))
    return _built("heun-flow", lambdas, steps)


PRESETS: dict[str, Preset] = {
    "ddim": ddim,
    **{f"dpm-solver-{p}m": partial(dpm_multistep, p, "noise", f"dpm-solver-{p}m") for p in (2, 3)},
    **{f"dpm-solver-{p}s": partial(dpm_singlestep, p, "noise", f"dpm-solver-{p}s") for p in (2, 3)},
    **{f"dpmpp-{p}m": partial(dpm_multistep, p, "data", f"dpmpp-{p}m") for p in (2, 3)},
    **{f"dpmpp-{p}s": partial(dpm_singlestep, p, "data", f"dpmpp-{p}s") for p in (2, 3)},
    "unipc-1-bh1": partial(unipc, 1, "bh1"),
    "unipc-1-bh2": partial(unipc, 1, "bh2"),
    "unipc-2-bh1": partial(unipc, 2, "bh1"),
    "unipc-2-bh2": partial(unipc, 2, "bh2"),
    "unipc-3-bh1": partial(unipc, 3, "bh1"),
    "unipc-3-bh2": partial(unipc, 3, "bh2"),
    "unipc-4-bh1": partial(unipc, 4, "bh1"),
    "unipc-4-bh2": partial(unipc, 4, "bh2"),
    "deis-2": partial(deis, 2),
    "deis-3": partial(deis, 3),
    **{f"ipndm-{p}": partial(ipndm, p) for p in (2, 3, 4)},
    **{f"ipndm-v-{p}": partial(ipndm_v, p) for p in (2, 3, 4)},
    "heun": heun,
    "heun-flow": heun_flow,
}
# Order of convergence. UniPC's corrector adds one; the published third-order multistep formulas have two, because
# they halve the second derivative; iPNDM has its order where steps of sigma / alpha are equal.
ORDERS = {
    "ddim": 1,
    "heun": 2,
    "heun-flow": 2,
    **{f"{name}-2{kind}": 2 for name in ("dpm-solver", "dpmpp") for kind in "ms"},
    **{f"{name}-3m": 2 for name in ("dpm-solver", "dpmpp")},
    **{f"{name}-3s": 3 for name in ("dpm-solver", "dpmpp")},
    **{f"unipc-{p}-{variant}": p + 1 for p in (1, 2, 3, 4) for variant in ("bh1", "bh2")},
    **{f"deis-{p}": p for p in (2, 3)},
    **{f"ipndm-{v}{p}": p for v in ("", "v-") for p in (2, 3, 4)},
}
# Other names of the same steps.
ALIASES = {"euler": "ddim", "dpm-solver-1": "ddim", "ipndm": "ipndm-4"}
# What a search starts from and is compared with; the others are there to be asked for.
SEARCH_PRESETS = ("ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2-bh1", "unipc-2-bh2", "unipc-3-bh1", "unipc-3-bh2")


def preset(name: str, lambdas: Sequence[float]) -> SolverSchedule:
    """The named preset on a grid; ConfigurationError names the valid ones."""
    return _known(name)(lambdas)


def intervals(name: str, nfe: int, to_zero: bool) -> int:
    """How many steps the preset needs for `nfe` calls; ConfigurationError where no number of steps gives that."""
    _known(name)
    if not name.startswith("heun"):
        return nfe
    if nfe % 2 != to_zero:
        kind = "an odd" if to_zero else "an even"
        raise ConfigurationError(
            f"{name} makes two calls a step{' and one at the end' if to_zero else ''}: {nfe} calls are not possible, "
            f"give {kind} number"
        )
    return (nfe + 1) // 2


def _known(name: str) -> Preset:
    found = PRESETS.get(ALIASES.get(name, name))
    if found is None:
        raise ConfigurationError(f"unknown preset {name!r}: choose one of {', '.join([*PRESETS, *ALIASES])}")
    return found

"""Every preset beside the diffusers scheduler that it claims to be: the largest relative difference.

    python -m benchmarks.diffusers_parity [--markdown]

One Gaussian mixture in four dimensions is the model, its exact noise prediction turned into what each
scheduler's network returns. Both sides get the same starting noise and the scheduler's own timesteps, its tables
computed again in float64 from its float32 betas or sigmas. Each line ends with the differences at 3, 5, 10 and 20
denoiser calls (Heun: 3, 5, 11, 21). Exits with 1 where one exceeds 1e-6.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

from benchmarks._line import machine
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.presets import preset
from fewstep.tasks.models.from_diffusers import from_diffusers, prediction_type
from fewstep.tasks.models.noise_schedule import DiscreteVP, NoiseSchedule, VariancePreserving
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import sample

LIMIT = 1e-6
CALLS = (3, 5, 10, 20)
ODD_CALLS = (3, 5, 11, 21)
MEANS = torch.tensor([[0.8, -0.3, 0.2, 0.5], [-0.6, 0.4, -0.9, 0.1]], dtype=torch.float64)
STDS = torch.tensor([0.5, 0.35], dtype=torch.float64)
WEIGHTS = torch.tensor([0.4, 0.6], dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A preset, the scheduler that it claims to be, and how the scheduler is run."""

    preset: str
    scheduler: str
    settings: dict[str, Any]
    run: Callable[[Case, int], float]
    calls: tuple[int, ...] = CALLS

    def make(self) -> Any:
        """A fresh scheduler."""
        return getattr(diffusers, self.scheduler)(**self.settings)


def clean(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x0 | x] of the mixture for x (B, 4)."""
    difference = x[:, None] - alpha * MEANS
    variance = (alpha * STDS) ** 2 + sigma**2
    logits = WEIGHTS.log() - 0.5 * (difference**2).sum(-1) / variance - 2 * variance.log()
    posterior = MEANS + (alpha * STDS**2 / variance)[:, None] * difference
    return (torch.softmax(logits, 1)[..., None] * posterior).sum(1)


def answer(kind: str, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """What a network of that prediction type returns at x (B, 4)."""
    x0 = clean(x, alpha, sigma)
    if kind == "sample":
        return x0
    eps = (x - alpha * x0) / sigma
    if kind == "v_prediction":
        return alpha * eps - sigma * x0
    return eps - x0 if kind == "flow_prediction" else eps


def noise_of(case: Case, count: int = 8) -> Tensor:
    """Starting noise (count, 4)."""
    return torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Relative difference in the Euclidean norm."""
    return float((ours - theirs).norm() / theirs.norm())


def ours(schedule: SolverSchedule, noise: NoiseSchedule, kind: str, x: Tensor, model: Any) -> Tensor:
    """Our sampler's result from standard normal noise."""
    tables = compile_schedule(schedule, noise, kind)
    return sample(tables, model, x * tables.prior_scale)


# -- variance preserving, discrete times -----------------------------------------------------------------


def vp(case: Case, calls: int) -> float:
    """Schedulers whose sample is alpha x0 + sigma eps, on whole timesteps."""
    scheduler, x = case.make(), noise_of(case)
    heun = case.preset == "heun"
    scheduler.set_timesteps((calls + 1) // 2 if heun else calls)
    times = [int(t) for t in scheduler.timesteps]
    alphas = scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    _tables_in_double(scheduler, times)
    grid = list(dict.fromkeys(times))
    # The scheduler's first timestep is the noise's start: they do not all begin at the model's own.
    noise, whole = DiscreteVP(alphas.numpy()[: grid[0] + 1]), DiscreteVP(alphas.numpy())
    to_zero = _ends_at_zero(scheduler)
    kind = prediction_type({"_class_name": case.scheduler, **scheduler.config})
    lambdas = [*(whole.lambda_at(float(t)) for t in grid), math.inf if to_zero else whole.lambda_end]
    schedule = preset(case.preset, lambdas)
    assert schedule.nfe == len(times) == calls

    def model(x: Tensor, time: float) -> Tensor:
        assert abs(time - round(time)) < 1e-6
        a = float(alphas[round(time)])
        return answer(kind, x, math.sqrt(a), math.sqrt(1 - a))

    def theirs() -> Tensor:
        # Euler's and Heun's samples are x / alpha, and the network is given alpha times that.
        scaled = hasattr(scheduler, "scale_model_input") and case.scheduler.startswith(("Euler", "Heun"))
        y = x / math.sqrt(float(alphas[grid[0]])) if scaled else x
        for t in scheduler.timesteps:
            y = scheduler.step(model(scheduler.scale_model_input(y, t), float(t)), t, y, return_dict=False)[0]
        return y

    return relative(ours(schedule, noise, kind, x, model), theirs())


def _ends_at_zero(scheduler: Any) -> bool:
    default = "sigma_min" if isinstance(scheduler, diffusers.DEISMultistepScheduler) else "zero"
    return bool(scheduler.config.get("final_sigmas_type", default) == "zero")


def _tables_in_double(scheduler: Any, times: list[int]) -> None:
    alphas = scheduler.alphas_cumprod
    if isinstance(scheduler, diffusers.DDIMScheduler):
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
        return
    sigmas = (1 / alphas - 1).sqrt()
    if not _ends_at_zero(scheduler):
        last = sigmas[:1]
    else:
        # UniPC's bh1 multiplies B(h) = -inf by 0 at sigma = 0 and returns NaN; its limit is what is meant.
        last = torch.full_like(sigmas[:1], 1e-12 if scheduler.config.get("solver_type") == "bh1" else 0.0)
    scheduler.sigmas = torch.cat([sigmas[times], last])


# -- other families -----------------------------------------------------------------------------------------


def edm(case: Case, calls: int) -> float:
    """EDM schedulers on their own sigmas."""
    scheduler, x = case.make(), noise_of(case)
    scheduler.set_timesteps(calls)
    scheduler.sigmas = scheduler.sigmas.double()
    scheduler.timesteps = scheduler.precondition_noise(scheduler.sigmas[:-1])
    noise = from_diffusers(scheduler)
    sigma_data = scheduler.config.sigma_data
    lambdas = [*(-math.log(float(s)) for s in scheduler.sigmas[:-1]), math.inf]

    def model(scaled: Tensor, time: Any) -> Tensor:
        sigma = math.exp(4 * float(time))
        total = math.hypot(sigma, sigma_data)
        x = scaled * total
        return (clean(x, 1.0, sigma) - (sigma_data / total) ** 2 * x) * total / (sigma * sigma_data)

    y = x * float(scheduler.sigmas[0])
    for t in scheduler.timesteps:
        y = scheduler.step(model(scheduler.scale_model_input(y, t), t), t, y, return_dict=False)[0]
    schedule = preset(case.preset, lambdas)
    tables = compile_schedule(schedule, noise, "epsilon")
    return relative(sample(tables, model, x * float(scheduler.sigmas[0])), y)


def flow(case: Case, calls: int) -> float:
    """Flow-matching schedulers on their own sigmas; the first may be 1, where nothing but noise is left."""
    scheduler, x = case.make(), noise_of(case)
    scheduler.set_timesteps((calls + 1) // 2 if case.preset == "heun-flow" else calls)
    scheduler.sigmas = scheduler.sigmas.double()
    noise = from_diffusers(scheduler)
    sigmas = list(dict.fromkeys(float(s) for s in scheduler.sigmas))  # Heun's inner ones stand there twice
    scheduler.timesteps = scheduler.sigmas[:-1] * 1000
    lambdas = [-math.inf if s == 1 else math.log((1 - s) / s) for s in sigmas[:-1]]

    def model(x: Tensor, time: Any) -> Tensor:
        sigma = float(time) / 1000
        return answer("flow_prediction", x, 1 - sigma, sigma)

    y = x
    for t in scheduler.timesteps:
        y = scheduler.step(model(y, t), t, y, return_dict=False)[0]
    tables = compile_schedule(preset(case.preset, [*lambdas, math.inf]), noise, "flow_prediction")
    return relative(sample(tables, model, x), y)


class _ByLambda(VariancePreserving):
    def __init__(self, start: float) -> None:
        self.lambda_start, self.lambda_end = start, 20.0

    def time(self, lambda_: float) -> float:
        return lambda_

    def lambda_at(self, time: float) -> float:
        return time


def ipndm(case: Case, calls: int) -> float:
    """IPNDMScheduler on its own grid: its first call is multiplied by alpha = 0, ours is analytic instead."""
    scheduler, x = case.make(), noise_of(case)
    scheduler.set_timesteps(calls + 1)
    share = torch.linspace(1, 0, calls + 2, dtype=torch.float64)
    scheduler.betas = torch.sin(share * math.pi / 2) ** 2
    scheduler.alphas = (1 - scheduler.betas**2).clamp_min(0).sqrt()
    called = list(zip(scheduler.alphas.tolist(), scheduler.betas.tolist(), strict=True))[:-1]
    lambdas = [math.log(max(alpha, 1e-8) / sigma) for alpha, sigma in called]
    noise = _ByLambda(lambdas[0])
    schedule = preset(case.preset, [*lambdas, math.inf]).model_copy(update={"first_call": "zero_x0"})
    assert schedule.nfe == calls
    y = x
    for t, (alpha, sigma) in zip(scheduler.timesteps, called, strict=True):
        output = answer("v_prediction", y, max(alpha, 1e-8), sigma)
        y = scheduler.step(output, t, y, return_dict=False)[0]
    return relative(
        ours(schedule, noise, "v_prediction", x, lambda x, t: answer("v_prediction", x, *noise.alpha_sigma(t))), y
    )


def cases() -> Iterator[Case]:
    """Every claim."""
    for kind in ("epsilon", "v_prediction", "sample"):
        yield Case("ddim", "DDIMScheduler", {"prediction_type": kind, "clip_sample": False}, vp)
        for p in (2, 3):
            for name, algorithm, final in (
                (f"dpm-solver-{p}", "dpmsolver", "sigma_min"),
                (f"dpmpp-{p}", "dpmsolver++", "zero"),
                (f"dpmpp-{p}", "dpmsolver++", "sigma_min"),
            ):
                settings = {
                    "prediction_type": kind,
                    "solver_order": p,
                    "algorithm_type": algorithm,
                    "final_sigmas_type": final,
                }
                yield Case(f"{name}m", "DPMSolverMultistepScheduler", settings, vp)
                settings = {**settings, "lower_order_final": True}
                yield Case(f"{name}s", "DPMSolverSinglestepScheduler", settings, vp)
    for p in (1, 2, 3, 4):
        for variant in ("bh1", "bh2"):
            settings = {"solver_order": p, "solver_type": variant, "final_sigmas_type": "zero"}
            yield Case(f"unipc-{p}-{variant}", "UniPCMultistepScheduler", settings, vp)
    for p in (2, 3):
        yield Case(f"deis-{p}", "DEISMultistepScheduler", {"solver_order": p}, vp)
    leading = {"timestep_spacing": "leading", "steps_offset": 1}
    yield Case("euler", "EulerDiscreteScheduler", leading, vp)
    yield Case("heun", "HeunDiscreteScheduler", leading, vp, ODD_CALLS)
    yield Case("ipndm-4", "IPNDMScheduler", {}, ipndm)
    yield Case("euler", "EDMEulerScheduler", {}, edm)
    for p in (2, 3):
        yield Case(f"dpmpp-{p}m", "EDMDPMSolverMultistepScheduler", {"solver_order": p}, edm)
    for shift in (1.0, 3.0):
        yield Case("euler", "FlowMatchEulerDiscreteScheduler", {"shift": shift}, flow)
        yield Case("heun-flow", "FlowMatchHeunDiscreteScheduler", {"shift": shift}, flow, ODD_CALLS)
    flows = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    yield Case("dpmpp-2m", "DPMSolverMultistepScheduler", {**flows, "solver_order": 2}, flow)
    yield Case("unipc-2-bh2", "UniPCMultistepScheduler", flows, flow)


def main() -> int:
    """Run every case, print the line and say whether all claims held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--markdown", action="store_true", help="print a table before the line")
    options = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    rows = [(case, [case.run(case, calls) for calls in case.calls]) for case in cases()]
    if options.markdown:
        print(
            "| preset | diffusers scheduler | settings | calls | largest relative difference |\n|---|---|---|---|---|"
        )
        for case, found in rows:
            settings = ", ".join(f"{k}={v}" for k, v in case.settings.items())
            numbers = ", ".join(f"{v:.0e}" for v in found)
            print(f"| {case.preset} | {case.scheduler} | {settings} | {case.calls} | {numbers} |")
    worst = max(v for _, found in rows for v in found)
    line = {
        "name": "diffusers_parity",
        "cases": sum(len(found) for _, found in rows),
        "max_relative_difference": worst,
        "limit": LIMIT,
        "rows": [[c.preset, c.scheduler, c.settings, list(c.calls), found] for c, found in rows],
        "conditions": machine(),
    }
    print(json.dumps(line))
    return int(not worst <= LIMIT)


if __name__ == "__main__":
    sys.exit(main())

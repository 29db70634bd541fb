"""Every preset on a named grid beside the diffusers scheduler that it claims to be: the largest relative difference.

    python -m benchmarks.diffusers_parity [--markdown]

One Gaussian mixture in four dimensions is the model, its exact noise prediction turned into what each scheduler's
network returns. No times are handed over: the scheduler makes its own of a number of steps (`set_timesteps`), ours are
those of PRESET/GRID on the noise schedule that is read off it. Both start from the same point and step in float64, the
scheduler on its own float32 numbers. Its network answers for the sigma that it steps from, which it is told rounded.
Each line ends with the differences at 3, 5, 10 and 20 denoiser calls (Heun: 3, 5, 11, 21). Exits with 1 where one
exceeds 1e-5.
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
import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from benchmarks._line import machine
from fewstep.search_spaces.schedule.presets import preset
from fewstep.tasks.models.from_diffusers import from_diffusers, prediction_type
from fewstep.tasks.models.noise_families import EDM, FlowMatching
from fewstep.tasks.models.noise_schedule import NoiseSchedule, VariancePreserving
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import sample
from fewstep.tasks.sampling.grids import preset_on_grid

LIMIT = 1e-5
CALLS = (3, 5, 10, 20)
ODD_CALLS = (3, 5, 11, 21)
MEANS = torch.tensor([[0.8, -0.3, 0.2, 0.5], [-0.6, 0.4, -0.9, 0.1]], dtype=torch.float64)
STDS = torch.tensor([0.5, 0.35], dtype=torch.float64)
WEIGHTS = torch.tensor([0.4, 0.6], dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A preset on a grid, and the scheduler that makes the same; `given` is what a pipeline gives it besides."""

    preset: str
    grid: str
    scheduler: str
    settings: dict[str, Any]
    calls: tuple[int, ...] = CALLS
    tokens: int | None = None

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


def start(count: int = 8) -> Tensor:
    """Starting noise (count, 4)."""
    return torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Relative difference in the Euclidean norm."""
    return float((ours - theirs).norm() / theirs.norm())


def network(kind: str, noise: NoiseSchedule) -> Callable[[Tensor, float, float], Tensor]:
    """What the network returns for its input (B, 4), where the noise has the scales alpha and sigma."""

    def call(given: Tensor, alpha: float, sigma: float) -> Tensor:
        if not isinstance(noise, EDM):
            return answer(kind, given, alpha, sigma)
        total = math.hypot(sigma, noise.sigma_data)
        x = given * total
        return (clean(x, 1.0, sigma) - (noise.sigma_data / total) ** 2 * x) * total / (sigma * noise.sigma_data)

    return call


def difference(case: Case, calls: int) -> float:
    """Relative difference of the two samples at that many denoiser calls."""
    if case.scheduler == "IPNDMScheduler":
        return ipndm(case, calls)
    noise = from_diffusers(case.make(), case.tokens)
    kind = prediction_type({"_class_name": case.scheduler, **case.make().config})
    call, schedule = network(kind, noise), preset_on_grid(f"{case.preset}/{case.grid}", noise, calls)
    tables = compile_schedule(schedule, noise, kind)
    x = start() * tables.prior_scale
    ours = sample(tables, lambda given, time: call(given, *noise.alpha_sigma(noise.lambda_at(time))), x)
    return relative(ours, theirs(case, noise, call, x, calls))


def theirs(case: Case, noise: NoiseSchedule, call: Callable[..., Tensor], x: Tensor, calls: int) -> Tensor:
    """The stock scheduler's loop, from the same point x as ours."""
    scheduler = case.make()
    steps = (calls + 1) // 2 if case.preset.startswith("heun") else calls
    if case.tokens is None:
        scheduler.set_timesteps(steps)
    elif case.scheduler.startswith("FlowMatch"):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=calculate_shift(case.tokens))
    else:
        scheduler.set_timesteps(steps, mu=calculate_shift(case.tokens))
    assert len(scheduler.timesteps) == calls
    for table in ("alphas_cumprod", "final_alpha_cumprod", "sigmas"):
        if isinstance(getattr(scheduler, table, None), Tensor):
            setattr(scheduler, table, getattr(scheduler, table).double())
    if scheduler.config.get("solver_type") == "bh1":
        # UniPC's bh1 multiplies B(h) = -inf by 0 at sigma = 0 and returns NaN; its limit is what is meant.
        scheduler.sigmas[-1] = scheduler.sigmas[-1].clamp_min(1e-12)
    scales = [_scales(scheduler, noise, i) for i in range(calls)]
    # Euler's and Heun's samples are x / alpha, and the network is given alpha times that.
    y = x / scales[0][0] if case.scheduler.startswith(("Euler", "Heun")) else x
    for t, (alpha, sigma) in zip(scheduler.timesteps, scales, strict=True):
        given = scheduler.scale_model_input(y, t).double() if hasattr(scheduler, "scale_model_input") else y
        y = scheduler.step(call(given, alpha, sigma), t, y, return_dict=False)[0]
    return y


def _scales(scheduler: Any, noise: NoiseSchedule, i: int) -> tuple[float, float]:
    """alpha and sigma where the stock scheduler calls its network for the i-th time."""
    if isinstance(scheduler, diffusers.DDIMScheduler):
        a = float(scheduler.alphas_cumprod[int(scheduler.timesteps[i])])
        return math.sqrt(a), math.sqrt(1 - a)
    sigma = float(scheduler.sigmas[i])
    return (1 - sigma, sigma) if isinstance(noise, FlowMatching) else noise.alpha_sigma(-math.log(sigma))


class _ByLambda(VariancePreserving):
    def __init__(self, start: float) -> None:
        self.lambda_start, self.lambda_end = start, 20.0

    def time(self, lambda_: float) -> float:
        return lambda_

    def lambda_at(self, time: float) -> float:
        return time


def ipndm(case: Case, calls: int) -> float:
    """IPNDMScheduler on the grid of its own process: its first call is multiplied by alpha = 0, ours is analytic."""
    scheduler, x = case.make(), start()
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
    tables = compile_schedule(schedule, noise, "v_prediction")
    return relative(sample(tables, lambda x, t: answer("v_prediction", x, *noise.alpha_sigma(t)), x), y)


SHAPES = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}
SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def cases() -> Iterator[Case]:
    """Every claim."""
    yield from betas()
    yield from named_grids()
    yield Case("ipndm-4", "its own", "IPNDMScheduler", {})
    for schedule in ("karras", "exponential"):
        settings = {"sigma_schedule": schedule}
        yield Case("euler", f"{schedule}-zero", "EDMEulerScheduler", settings)
        for p in (2, 3):
            yield Case(
                f"dpmpp-{p}m", f"{schedule}-zero", "EDMDPMSolverMultistepScheduler", settings | {"solver_order": p}
            )
    yield from flows()


def betas() -> Iterator[Case]:
    """Solvers of models with betas, on the times that each scheduler makes by default."""
    for kind in ("epsilon", "v_prediction", "sample"):
        yield Case("ddim", "own", "DDIMScheduler", {"prediction_type": kind, "clip_sample": False})
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
                yield Case(f"{name}m", "own", "DPMSolverMultistepScheduler", settings)
                settings = {**settings, "lower_order_final": True}
                yield Case(f"{name}s", "own", "DPMSolverSinglestepScheduler", settings)
    for p in (1, 2, 3, 4):
        for variant in ("bh1", "bh2"):
            settings = {"solver_order": p, "solver_type": variant, "final_sigmas_type": "zero"}
            yield Case(f"unipc-{p}-{variant}", "own", "UniPCMultistepScheduler", settings)
    for p in (2, 3):
        yield Case(f"deis-{p}", "own", "DEISMultistepScheduler", {"solver_order": p})


def named_grids() -> Iterator[Case]:
    """Grids by name of models with betas."""
    for spacing in ("leading", "linspace", "trailing"):
        settings = {**SDXL, "timestep_spacing": spacing}
        yield Case("euler", spacing, "EulerDiscreteScheduler", settings)
        yield Case("heun", spacing, "HeunDiscreteScheduler", settings, ODD_CALLS)
        yield Case("dpmpp-2m", spacing, "DPMSolverMultistepScheduler", settings)
    for shape, flag in SHAPES.items():
        yield Case("euler", f"{shape}-zero", "EulerDiscreteScheduler", {flag: True})
        yield Case("dpmpp-2m", f"{shape}-zero", "DPMSolverMultistepScheduler", {flag: True})
        yield Case("unipc-2-bh2", f"{shape}-zero", "UniPCMultistepScheduler", {flag: True})


def flows() -> Iterator[Case]:
    """Flow models: fixed and dynamic shifts."""
    name = "FlowMatchEulerDiscreteScheduler"
    for shift in (1.0, 3.0):
        yield Case("euler", "own", name, {"shift": shift})
        yield Case("heun-flow", "own", "FlowMatchHeunDiscreteScheduler", {"shift": shift}, ODD_CALLS)
    for shape, flag in SHAPES.items():
        yield Case("euler", f"{shape}-zero", name, {"shift": 3.0, flag: True})
    yield Case("euler", "karras-zero", name, {"shift": 3.0, "shift_terminal": 0.1, "use_karras_sigmas": True})
    for kind in ("exponential", "linear"):
        settings = {"use_dynamic_shifting": True, "time_shift_type": kind}
        yield Case("euler", "uniform-t-zero", name, settings, tokens=1024)
        yield Case("euler", "uniform-t-zero", name, {**settings, "shift_terminal": 0.1}, tokens=1024)
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    for shifted, tokens in (({"flow_shift": 3.0}, None), ({"use_dynamic_shifting": True}, 1024)):
        yield Case(
            "dpmpp-2m", "own", "DPMSolverMultistepScheduler", {**flow, **shifted, "solver_order": 2}, tokens=tokens
        )
        yield Case("unipc-2-bh2", "own", "UniPCMultistepScheduler", {**flow, **shifted}, tokens=tokens)


def main() -> int:
    """Run every case, print the line and say whether all claims held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--markdown", action="store_true", help="print a table before the line")
    options = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    rows = [(case, [difference(case, calls) for calls in case.calls]) for case in cases()]
    if options.markdown:
        print(
            "| preset | grid | diffusers scheduler | settings | calls | largest relative difference |\n"
            "|---|---|---|---|---|---|"
        )
        for case, found in rows:
            settings = ", ".join(f"{k}={v}" for k, v in case.settings.items())
            numbers = ", ".join(f"{v:.0e}" for v in found)
            print(f"| {case.preset} | {case.grid} | {case.scheduler} | {settings} | {case.calls} | {numbers} |")
    worst = max(v for _, found in rows for v in found)
    line = {
        "name": "diffusers_parity",
        "cases": sum(len(found) for _, found in rows),
        "max_relative_difference": worst,
        "limit": LIMIT,
        "rows": [[c.preset, c.grid, c.scheduler, c.settings, list(c.calls), found] for c, found in rows],
        "conditions": machine(),
    }
    print(json.dumps(line))
    return int(not worst <= LIMIT)


if __name__ == "__main__":
    sys.exit(main())

"""Random scheduler configurations of every class of diffusers: our schedule beside the stock scheduler's own steps.

    python -m benchmarks.diffusers_differential [--configurations 200] [--seed 0] [--classes A,B]

Both sides get the same network, a function of the point and of the time that it is told (the exact answer of a Gaussian
mixture), and the same starting noise; the scheduler's float32 tables are taken to float64. Configurations that
diffusers itself cannot build or run are drawn again. Each other one is equal (relative difference below 1e-4), refused
with a reason, or different. Exits with 1 where one is different. A line for each class counts them and gives reasons.
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import math
import re
import sys
import warnings
from collections import Counter
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from benchmarks._line import machine
from benchmarks.diffusers_parity import answer, relative
from fewstep.errors import ConfigurationError
from fewstep.tasks.models.from_diffusers import config_of, from_config, prediction_type
from fewstep.tasks.models.noise_families import EDM
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.models.scheduler_settings import CLASSES, build_scheduler, scheduler_class
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import sample
from fewstep.tasks.sampling.stock import stock_schedule
from fewstep.tasks.sampling.stock_walks import WALKS

LIMIT = 1e-4
# Draws a configuration that diffusers can run; classes that need more than this are not run at all.
MOST_DRAWS = 60
# Values beside a setting's default that are worth trying.
VALUES: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver++", "dpmsolver++", "dpmsolver", "sde-dpmsolver++", "deis", "data_prediction"),
    "base_shift": (0.5, 0.25),
    "beta_end": (0.02, 0.012),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "clip_sample": (False, False, False, True),
    "disable_corrector": ([], [0], [1, 2]),
    "final_sigmas_type": ("zero", "sigma_min"),
    "flow_shift": (1.0, 3.0),
    "interpolation_type": ("linear", "log_linear"),
    "invert_sigmas": (False, False, True),
    "lambda_min_clipped": (-math.inf, -math.inf, -5.1),
    "max_shift": (1.15, 2.05),
    "num_train_timesteps": (1000, 1000, 400),
    "prediction_type": ("epsilon", "epsilon", "v_prediction", "sample", "flow_prediction"),
    "predict_x0": (True, True, False),
    "rho": (7.0, 5.0),
    "shift": (1.0, 3.0),
    "shift_terminal": (None, None, 0.1),
    "sigma_data": (0.5, 1.0),
    "sigma_max": (None,) * 7 + (80.0,),
    "sigma_min": (None,) * 7 + (0.01,),
    "sigma_schedule": ("karras", "exponential"),
    "skip_prk_steps": (True, True, False),
    "solver_order": (1, 2, 3),
    "solver_type": ("midpoint", "heun", "bh1", "bh2", "logrho"),
    "steps_offset": (0, 1),
    "stochastic_sampling": (False, False, True),
    "time_shift_type": ("exponential", "exponential", "linear"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "timestep_type": ("discrete", "discrete", "continuous"),
    "trained_betas": (None, None, [1e-4 + 0.02 * i / 300 for i in range(300)]),
    "use_dynamic_shifting": (False, False, True),
    "use_flow_sigmas": (False, False, True),
}
RARE_SWITCH = 0.15
# Of the image whose size a shift may depend on.
TOKENS = 1024
KINDS = ("equal", "refused", "different", "not run by diffusers")


def random_config(kind: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Settings of a class that differ from its defaults in about half of the places that are worth it."""
    signature = {k: v for k, v in _parameters(kind).items() if k in VALUES or isinstance(v, bool)}
    made: dict[str, Any] = {}
    for name, default in signature.items():
        if name in VALUES:
            made[name] = VALUES[name][int(rng.integers(len(VALUES[name])))]
        elif rng.random() < RARE_SWITCH:
            made[name] = not default
    if made.get("trained_betas") and rng.random() < 0.9:
        made["num_train_timesteps"] = len(made["trained_betas"])
    if isinstance(_parameters(kind).get("sigma_min"), float):
        made |= {"sigma_min": 0.002, "sigma_max": float(rng.choice([20.0, 80.0]))}
    if made.get("use_flow_sigmas") and rng.random() < 0.7:
        made["prediction_type"] = "flow_prediction"
    elif made.get("prediction_type") == "flow_prediction" and not made.get("use_flow_sigmas"):
        made["prediction_type"] = "epsilon"
    return made


def _parameters(kind: Any) -> dict[str, Any]:
    return {k: p.default for k, p in inspect.signature(kind.__init__).parameters.items() if k not in ("self", "kwargs")}


def network(noise: NoiseSchedule, kind: str) -> Any:
    """The mixture's exact answer at the noise level that the told time means."""

    def call(x: Tensor, time: float) -> Tensor:
        lambda_ = noise.lambda_at(min(max(time, 0.0), _last(noise)) if not isinstance(noise, EDM) else time)
        alpha, sigma = noise.alpha_sigma(lambda_)
        sigma = max(sigma, 1e-6)
        if isinstance(noise, EDM):
            total = math.hypot(sigma, noise.sigma_data)
            point = x * total
            c_skip = (noise.sigma_data / total) ** 2
            sign = 1 if kind == "epsilon" else -1
            return sign * (answer("sample", point, 1.0, sigma) - c_skip * point) * total / (sigma * noise.sigma_data)
        return answer(kind, x, max(alpha, 1e-6), sigma)

    return call


def _last(noise: NoiseSchedule) -> float:
    scale = getattr(noise, "scale", None)
    return float(scale) if scale else float(len(noise.log_alphas) - 1)  # type: ignore[attr-defined]


def difference(config: dict[str, Any], nfe: int) -> float:
    """Relative difference of the two samples; ConfigurationError where ours is refused."""
    noise = from_config(config, image_seq_len=TOKENS)
    schedule = stock_schedule(config, nfe, noise)
    kind = prediction_type(config_of(build_scheduler(config)))
    tables = compile_schedule(schedule, noise, kind)
    model = network(noise, kind)
    x = torch.randn(6, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).flatten(1)
    shape = (6, 1, 2, 2)

    def as_images(v: Tensor, time: float) -> Tensor:
        return model(v.flatten(1), time).view(shape)

    start = (x * tables.prior_scale).view(shape)
    first = schedule.lambdas[schedule.first_call != "model"]
    theirs = _theirs(config, noise, first, as_images, start, nfe)
    return relative(sample(tables, as_images, start), theirs)


def runs(config: dict[str, Any], nfe: int) -> bool:
    """Whether diffusers builds the scheduler and takes its `nfe` steps, on numbers that mean nothing."""
    try:
        scheduler = scheduler_class(config["_class_name"]).from_config(dict(config))
        set_times(scheduler, _steps(config, nfe))
        y = torch.zeros(1, 1, 2, 2)
        if len(scheduler.timesteps) != nfe:
            return False
        for time in scheduler.timesteps:
            y = _step(scheduler, torch.full((1, 1, 2, 2), 0.1), time, y)
    except Exception:  # Whatever it raises, there is nothing to compare with.
        return False
    return bool(torch.isfinite(y).all())


def set_times(scheduler: Any, steps: int) -> None:
    """As the pipelines of FLUX and Stable Diffusion 3 do where the shift is dynamic, by the number of steps else."""
    said = scheduler.config
    if not said.get("use_dynamic_shifting"):
        scheduler.set_timesteps(steps)
        return
    mu = calculate_shift(TOKENS, base_shift=said.get("base_shift", 0.5), max_shift=said.get("max_shift", 1.15))
    if said.get("use_flow_sigmas"):
        scheduler.set_timesteps(steps, mu=mu)
    else:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)


def _theirs(config: dict[str, Any], noise: NoiseSchedule, first: float, model: Any, x: Tensor, nfe: int) -> Tensor:
    """The stock scheduler's own loop, its sample scaled as it keeps it."""
    scheduler = build_scheduler(config)
    set_times(scheduler, _steps(config, nfe))
    for table in ("alphas_cumprod", "final_alpha_cumprod", "sigmas", "sigmas_interpol"):
        if isinstance(getattr(scheduler, table, None), Tensor):
            setattr(scheduler, table, getattr(scheduler, table).double())
    name = config["_class_name"]
    ratio = name.startswith(("Euler", "Heun", "KDPM2", "LMS")) and not isinstance(noise, EDM)
    y = x / noise.alpha_sigma(first)[0] if ratio else x
    if hasattr(scheduler, "is_scale_input_called"):
        scheduler.is_scale_input_called = True
    for time in scheduler.timesteps:
        seen = scheduler.scale_model_input(y, time) if hasattr(scheduler, "scale_model_input") else y
        output = model(seen.double(), float(time))
        y = _step(scheduler, output, time, y)
    return y.double()


def _step(scheduler: Any, output: Tensor, time: Tensor, y: Tensor) -> Tensor:
    return scheduler.step(output, time, y, return_dict=False)[0]  # type: ignore[no-any-return]


def _steps(config: dict[str, Any], nfe: int) -> int:
    """Steps that make `nfe` calls; whether they do is seen by who asks."""
    name = config["_class_name"]
    twice = name in ("FlowMatchHeunDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler")
    return (nfe + 1) // 2 if twice else nfe - 1 if name == "PNDMScheduler" and nfe > 1 else nfe


def compare(name: str, count: int, seed: int) -> dict[str, Any]:
    """Counts of equal, refused and different configurations of a class, reasons, and the largest difference."""
    rng = np.random.default_rng([seed, sum(name.encode())])
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    worst, apart = 0.0, []
    for _ in range(count):
        drawn = _draw(name, rng)
        if drawn is None:
            counts["not run by diffusers"] += 1
            continue
        config, nfe = drawn
        try:
            found = difference(config, nfe)
        except ConfigurationError as error:
            counts["refused"] += 1
            reasons[_general(str(error))] += 1
            continue
        if found <= LIMIT:
            counts["equal"] += 1
            worst = max(worst, found)
        else:
            counts["different"] += 1
            apart.append({"difference": found, "nfe": nfe, **config})
    listed = [f"{reason} ({n})" for reason, n in reasons.most_common()]
    return {
        "name": "diffusers_differential",
        "class": name,
        **{kind: counts[kind] for kind in KINDS},
        "largest_of_equal": worst,
        "reasons": listed,
        "different_ones": apart,
        "conditions": {"configurations": count, "seed": seed, "limit": LIMIT, **machine()},
    }


def _draw(name: str, rng: np.random.Generator) -> tuple[dict[str, Any], int] | None:
    """A configuration that diffusers runs and a number of calls; None where none is found."""
    if name not in CLASSES:
        return {"_class_name": name}, 4
    for _ in range(MOST_DRAWS):
        config, nfe = {"_class_name": name, **random_config(scheduler_class(name), rng)}, int(rng.integers(2, 22))
        if name not in WALKS or runs(config, nfe):
            return config, nfe
    return None


def _general(reason: str) -> str:
    """A reason without its numbers, so that equal ones count together."""
    return re.sub(
        r"-?\d[\d.e+-]*",
        "N",
        re.sub(r"\[[^\]]*\]", "[...]", reason.split(": diffusers says")[0].split(": use a sch")[0]),
    )


def main() -> int:
    """Print a JSON line for each class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configurations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--classes", default="")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    every = sorted(CLASSES | {n for n in dir(diffusers) if n.endswith("Scheduler") and n != "KarrasVeScheduler"})
    different = 0
    for name in asked.classes.split(",") if asked.classes else every:
        row = compare(name, asked.configurations, asked.seed)
        different += row["different"]
        print(json.dumps(row), flush=True)
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())

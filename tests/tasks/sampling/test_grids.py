"""Grids and presets by name, on every family of models."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.schedulers import AysSchedules

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.search_spaces.schedule.genome import to_genome
from fewstep.search_spaces.schedule.presets import ALIASES as PRESET_ALIASES
from fewstep.search_spaces.schedule.presets import PRESETS
from fewstep.tasks.models.from_diffusers import from_diffusers
from fewstep.tasks.models.noise_families import EDM, FlowMatching, VarianceExploding
from fewstep.tasks.models.noise_schedule import ContinuousVP, NoiseSchedule
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.grids import ALIASES, GRIDS, SEARCH_GRIDS, all_presets, grid, preset_on_grid
from fewstep.tasks.sampling.stock_grids import STOCK_GRIDS

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VP = from_diffusers(EulerDiscreteScheduler(**STABLE_DIFFUSION))
FAMILIES = {
    "vp": VP,
    "continuous": ContinuousVP(0.1, 20.0),
    "ve": VarianceExploding(0.01, 50.0),
    "edm": EDM(0.002, 80.0, 0.5),
    "flow": FlowMatching(1000.0, 3.0),
}


def _starts_at_pure_noise(family: str, name: str) -> bool:
    """What is even in lambda cannot start at -inf."""
    return family == "flow" and not name.startswith("uniform-lambda")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [name for name in GRIDS if name not in STOCK_GRIDS])
@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_grids_rise_from_the_models_start_to_its_end(family: str, name: str, steps: int) -> None:
    noise = FAMILIES[family]
    if name.startswith("ays") and family != "vp":
        with pytest.raises(ConfigurationError, match="1000 discrete times"):
            grid(name, noise, steps)
        return
    lambdas = grid(name, noise, steps)
    assert len(lambdas) == steps + 1
    start = -math.inf if _starts_at_pure_noise(family, name) else noise.lambda_start
    assert lambdas[0] == start or math.isclose(lambdas[0], start, rel_tol=1e-9)
    assert all(a < b for a, b in pairwise(lambdas))
    if name.endswith("-zero"):
        assert lambdas[-1] == math.inf
    else:
        assert math.isclose(lambdas[-1], noise.lambda_end, rel_tol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("solver", [*PRESETS, *PRESET_ALIASES])
@pytest.mark.parametrize("where", ["karras-zero", "uniform-lambda"])
def test_presets_make_exactly_the_calls_asked_for_or_say_which_they_can(family: str, solver: str, where: str) -> None:
    noise = FAMILIES[family]
    output = "flow_prediction" if family == "flow" else "epsilon"
    for nfe in (1, 2, 3, 4, 5, 8, 10):
        if solver == "heun" and _starts_at_pure_noise(family, where):
            with pytest.raises(ConfigurationError, match=r"use heun-flow|calls are not possible"):
                preset_on_grid(f"{solver}/{where}", noise, nfe)
            continue
        if solver.startswith("heun") and nfe % 2 != where.endswith("-zero"):
            with pytest.raises(ConfigurationError, match=f"{nfe} calls are not possible, give an"):
                preset_on_grid(f"{solver}/{where}", noise, nfe)
            continue
        schedule = preset_on_grid(f"{solver}/{where}", noise, nfe)
        assert compile_schedule(schedule, noise, output).nfe == schedule.nfe == nfe


def _theirs(steps: int, **settings: Any) -> list[float]:
    scheduler = EulerDiscreteScheduler(**STABLE_DIFFUSION, **settings)
    scheduler.set_timesteps(steps)
    return [-math.log(float(s)) for s in scheduler.sigmas[:-1]]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("karras-zero", {"use_karras_sigmas": True}),
        ("exponential-zero", {"use_exponential_sigmas": True}),
        ("beta-zero", {"use_beta_sigmas": True}),
    ],
)
@pytest.mark.parametrize("steps", [3, 10])
def test_grids_are_diffusers_own(name: str, settings: dict[str, Any], steps: int) -> None:
    np.testing.assert_allclose(grid(name, VP, steps)[:-1], _theirs(steps, **settings), atol=2e-5)


def test_exponential_is_uniform_in_lambda() -> None:
    assert grid("exponential", VP, 7) == grid("uniform-lambda", VP, 7)
    assert set(ALIASES.values()) <= set(GRIDS)


def test_align_your_steps_are_the_published_times() -> None:
    times = [VP.time(v) for v in grid("ays-sd-zero", VP, 10)[:-1]]
    np.testing.assert_allclose(times, AysSchedules["StableDiffusionTimesteps"], atol=1e-6)
    scheduler = DPMSolverMultistepScheduler(**STABLE_DIFFUSION)
    scheduler.set_timesteps(timesteps=AysSchedules["StableDiffusionTimesteps"])
    theirs = [-math.log(float(s)) for s in scheduler.sigmas[:-1]]
    np.testing.assert_allclose(grid("ays-sd-zero", VP, 10)[:-1], theirs, atol=1e-4)


def test_a_flows_shift_has_an_inverse() -> None:
    noise = FlowMatching(1000.0, 3.0)
    for t in (1.0, 400.0, 1000.0):
        assert math.isclose(noise.shifted(t), 3 * t / (1 + 2 * t / 1000), rel_tol=1e-12)
        assert math.isclose(noise.unshifted(noise.shifted(t)), t, rel_tol=1e-12)


def test_a_search_starts_from_few_presets() -> None:
    named = all_presets(VP, 4)
    assert len(named) == 7 * len(SEARCH_GRIDS) == 63
    assert all(schedule.nfe == 4 for schedule in named.values())


def test_a_search_of_a_flow_starts_where_lambda_is_finite() -> None:
    noise = FlowMatching(1000.0, 12.0)
    for nfe in (1, 4, 100):
        for schedule in all_presets(noise, nfe).values():
            assert all(math.isfinite(value) for value in schedule.lambdas[:-1])
            assert to_genome(schedule).nfe == nfe
            assert noise.time(schedule.lambdas[0]) >= 999.0 - 1e-9
    with pytest.raises(ScheduleError, match="lambda = -inf"):
        to_genome(preset_on_grid("ddim/karras-zero", noise, 4))


@pytest.mark.parametrize(("name", "words"), [("plms/karras", "unknown preset 'plms'"), ("ddim/cubic", "unknown grid")])
def test_unknown_names_are_answered_with_the_known(name: str, words: str) -> None:
    noise: NoiseSchedule = VP
    with pytest.raises(ConfigurationError, match=words):
        preset_on_grid(name, noise, 4)

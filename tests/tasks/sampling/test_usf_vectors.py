"""Replay of runs of the published USF sampler: the same decisions from the same noise give the same images."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.search_spaces.schedule import SolverSchedule, Step
from fewstep.search_spaces.schedule.formula import Derivative, Formula
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import sample

FILE = json.loads((Path(__file__).parents[2] / "data" / "usf_vectors.json").read_text())
RELAXATIONS = {None: "none", "linear": "linear", "bh1": "bh1", "bh2": "bh2", "dpmsolver-2": "bh2"}
FIRST_CALLS = {"no_afs": "model", "zero_x0": "zero_x0"}


def discrete_lambda(t: float) -> float:
    """1000 betas, log alpha linear in t with t_i = (i + 1) / 1000, extended below the first."""
    log_alphas = 0.5 * np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))
    times = np.arange(1, 1001) / 1000
    if t < times[0]:
        log_alpha = log_alphas[0] + (t - times[0]) * (log_alphas[1] - log_alphas[0]) / (times[1] - times[0])
    else:
        log_alpha = float(np.interp(t, times, log_alphas))
    return float(log_alpha - 0.5 * math.log(-math.expm1(2 * log_alpha)))


def derivatives(entries: list[dict[str, Any]]) -> tuple[Derivative, ...]:
    return tuple(
        Derivative(
            points=entry["active_points"],
            relaxation=RELAXATIONS[entry["relaxation"]],
            coefficient=entry.get("relaxation_coefficient") or 0.0,
        )
        for entry in entries
    )


def read(decisions: dict[str, Any], lambdas: list[float]) -> SolverSchedule:
    """The schedule that the published keys describe."""
    n = len(decisions["orders"])
    steps = []
    for i in range(n):
        corrector = decisions["corrector_types"][i]
        pseudo = corrector["type"] == "pseudo" and i + 1 < n
        steps.append(
            Step(
                prediction=decisions["prediction_types"][i].removesuffix("_prediction"),
                predictor=Formula(
                    start=decisions["start_points"][i],
                    derivatives=derivatives(decisions["derivative_types"][i]),
                ),
                corrector=Formula(start=corrector["start_point"], derivatives=derivatives(corrector["derivative_type"]))
                if pseudo
                else None,
            )
        )
    first_call = FIRST_CALLS[decisions["afs"]]
    return SolverSchedule.build(lambdas=tuple(lambdas), steps=tuple(steps), first_call=first_call)


@pytest.mark.parametrize("case", FILE["cases"], ids=lambda c: f"{c['decisions']['afs']}-{c['noise_schedule']['kind']}")
def test_published_runs_are_reproduced(case: dict[str, Any], starting_at: Any, linear_vp: Any, mixture: Any) -> None:
    to_lambda = linear_vp.at if case["noise_schedule"]["kind"] == "linear" else discrete_lambda
    lambdas = [to_lambda(t) for t in case["decisions"]["timesteps"]]
    # Denoiser and tables need lambda alone, so the told time is lambda.
    noise = starting_at(start=lambdas[0])
    schedule = read(case["decisions"], lambdas)
    assert [step.predictor.order for step in schedule.steps] == case["decisions"]["orders"]
    denoiser = mixture(**case["gmm"]).denoiser(noise.alpha_sigma)
    x, expected = (torch.tensor(case[name], dtype=torch.float64) for name in ("x_T", "x_0"))
    out = sample(compile_schedule(schedule, noise), denoiser, x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-9)


def test_the_cases_cover_the_decisions() -> None:
    assert "published USF sampler" in FILE["origin"]
    decisions = [case["decisions"] for case in FILE["cases"]]
    assert {d["afs"] for d in decisions} == set(FIRST_CALLS)
    assert {case["noise_schedule"]["kind"] for case in FILE["cases"]} == {"linear", "discrete"}
    assert {p for d in decisions for p in d["prediction_types"]} == {"noise_prediction", "data_prediction"}
    assert {c["type"] for d in decisions for c in d["corrector_types"]} == {"no_corrector", "pseudo"}
    assert {order for d in decisions for order in d["orders"]} == {1, 2, 3}
    relaxations = {e["relaxation"] for d in decisions for step in d["derivative_types"] for e in step}
    assert relaxations == {None, "linear"}

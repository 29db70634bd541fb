"""Plain lists of sigmas and timesteps: what is pasted makes the images that were measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from fewstep.errors import ConfigurationError
from fewstep.pipeline.plain import Plain, plain_lists
from fewstep.search_spaces.schedule import SolverSchedule, Step
from fewstep.tasks.models.from_diffusers import from_diffusers
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.sampling.scheduler import FewStepScheduler
from fewstep.tasks.sampling.walk import sigma_of

Run = Callable[..., Any]

# Exactly the list, and the told times that diffusers finds for it by another interpolation.
NEAR = {"sd": 2e-3, "sdxl": 2e-3, "sd3": 1e-5, "flux": 1e-5}


def _pasted(plain: Plain, pipe: Any, call: Callable[..., Any]) -> Any:
    """What the two lines do in a pipeline, `...` standing for the rest of the call."""
    set_scheduler, run = plain.python
    names = {"pipe": pipe, "diffusers": diffusers}
    exec(set_scheduler, names)
    return eval(run.replace("pipe(..., ", "call("), {"call": call})


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("name", sorted(NEAR))
def test_the_pasted_lines_run_the_measured_schedule(name: str, families: Any) -> None:
    family, pipe = families.FAMILIES[name], families.build(name)
    base, noise = pipe.scheduler, from_diffusers(pipe.scheduler)
    flow = name in ("sd3", "flux")
    lambdas = (-math.inf if flow else noise.lambda_start, -1.5, -0.2, 0.9, math.inf)
    schedule = SolverSchedule.build(lambdas=lambdas, steps=(Step(),) * 4)
    runnable = [plain for plain in plain_lists(schedule, noise) if plain.python]
    assert [plain.sampler for plain in runnable] == (["euler"] if flow else ["euler", "dpmpp_2m"])
    for plain in runnable:
        pipe.scheduler = FewStepScheduler.from_schedules(plain.schedule, base)
        expected = families.run(family, pipe, 4)
        pipe.scheduler = base
        made = _pasted(plain, pipe, partial(families.run, family, pipe, 4))
        np.testing.assert_allclose(made, expected, atol=NEAR[name])


def test_a_list_keeps_the_calls_times() -> None:
    for base in (diffusers.DDIMScheduler(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)):
        noise = from_diffusers(base)
        schedule = preset_on_grid("unipc-3-bh2/uniform-t", noise, 5)
        for first in ("model", "zero_x0"):
            found = plain_lists(schedule.model_copy(update={"first_call": first}), noise)
            lambdas = schedule.lambdas[first != "model" : -1]
            for plain in found:
                assert plain.sigmas[-1] == 0
                assert plain.schedule.nfe == len(plain.timesteps) == len(lambdas)
                if not plain.rounded:
                    assert plain.sigmas[:-1] == pytest.approx([sigma_of(v, noise) for v in lambdas], rel=1e-5)
                    assert plain.timesteps == pytest.approx([noise.time(v) for v in lambdas], rel=1e-5)
    with pytest.raises(ConfigurationError, match="once at each of a falling list"):
        plain_lists(preset_on_grid("heun-flow/uniform-t-zero", noise, 5), noise)


def test_guidance_goes_along() -> None:
    noise = from_diffusers(diffusers.DDIMScheduler())
    schedule = preset_on_grid("ddim/karras", noise, 3).model_copy(update={"guidance": 4.0})
    assert {plain.schedule.guidance for plain in plain_lists(schedule, noise)} == {4.0}


def test_the_loss_is_measured(run: Run, toy: Path, tmp_path: Path) -> None:
    noise = from_diffusers(diffusers.DDPMScheduler())
    for name in ("ddim", "unipc-3-bh2"):
        (tmp_path / f"{name}.json").write_text(preset_on_grid(f"{name}/karras-zero", noise, 4).to_json())
    losses = {}
    for name in ("ddim", "unipc-3-bh2"):
        call = ("export", "--model", toy, "--schedule", f"{name}.json", "--out", name, "--sigmas")
        (row,) = run(*call, "--json").json["sigmas"]
        assert json.loads((tmp_path / name / "sigmas.json").read_text()) == [row]
        assert "loss" not in row
        losses[name] = row["distance"]
        assert row["unrelated"] > 0
    # Of a first-order schedule nothing is lost but digits.
    assert losses["ddim"] < 1e-3 < losses["unipc-3-bh2"] < row["unrelated"]
    asked = (
        "export",
        "--model",
        toy,
        "--schedule",
        "ddim.json",
        "--out",
        "more",
        "--sigmas",
        "--features",
        "auto",
    )
    answer = run(*asked, "--images", 750)
    assert answer.code == 0, answer.err
    assert "sigmas 157.4" in answer.out
    (row,) = json.loads((tmp_path / "more" / "sigmas.json").read_text())
    assert abs(row["loss"]["loss"]) < 0.01

"""`fewstep export`: a scheduler for diffusers, and the stock one that comes nearest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

import fewstep
from fewstep.errors import ConfigurationError
from fewstep.pipeline.projection import projections
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.noise_schedule import DiscreteVP
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.sampling.noise import starting_noise

Run = Callable[..., Any]


def _written(toy: Path, folder: Path, *names: str) -> list[Path]:
    noise = find_model(str(toy)).noise
    paths = []
    for name in names:
        solver, calls = name.split("@")
        path = folder / f"{calls}.json"
        path.write_text(preset_on_grid(solver, noise, int(calls)).to_json())
        paths.append(path)
    return paths


def test_every_stock_projection_is_the_schedule_that_measures_it(toy: Path) -> None:
    """The stock scheduler, called with the projected timesteps, makes the images of the equivalent schedule."""
    files = find_model(str(toy))
    schedule = preset_on_grid("unipc-3-bh2/quadratic-zero", files.noise, 5)
    options = projections(schedule, files)
    assert {option.config["solver_order"] for option in options} == {1, 2, 3}
    assert isinstance(files.noise, DiscreteVP)

    def eps(x: torch.Tensor, t: float) -> torch.Tensor:
        return torch.tanh(1.3 * x) * (0.5 + t / 2000.0)

    x = starting_noise(0, 0, 3, files.shape, "cpu").double()
    for option in options:
        stock = DPMSolverMultistepScheduler.from_config(files.scheduler_config, **option.config)
        stock.set_timesteps(timesteps=list(option.timesteps))
        theirs = x
        for t in stock.timesteps:
            theirs = stock.step(eps(theirs, float(t)), t, theirs).prev_sample
        program = Program(compile_schedule(option.schedule, files.noise))
        ours = program(eps, x)
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_flow_and_edm_models_have_no_projection() -> None:
    files = find_model("digits-edm")
    schedule = preset_on_grid("dpmpp-2m/karras-zero", files.noise, 4)
    with pytest.raises(ConfigurationError, match="FewStepScheduler"):
        projections(schedule, files)


def test_calls_at_one_time_twice_have_no_projection(toy: Path) -> None:
    files = find_model(str(toy))
    schedule = preset_on_grid("heun/uniform-t-zero", files.noise, 5)
    with pytest.raises(ConfigurationError, match="no projection"):
        projections(schedule, files)


def test_the_folder_is_a_scheduler_and_the_loss_is_measured(run: Run, toy: Path, tmp_path: Path) -> None:
    three, four = _written(toy, tmp_path, "unipc-2-bh2/uniform-t-zero@3", "dpmpp-2m/quadratic-zero@4")
    call = ("export", "--model", toy, "--schedule", three, "--schedule", four, "--out", "made")
    answer = run(*call, "--stock", "--images", 750, "--json").json
    assert answer["nfes"] == [3, 4]
    made = fewstep.FewStepScheduler.from_pretrained(str(tmp_path / "made"))
    for path in (three, four):
        schedule = SolverSchedule.from_json(path.read_text())
        assert made.schedules[schedule.nfe].hash == schedule.hash
    rows = json.loads((tmp_path / "made" / "stock.json").read_text())
    for row in rows:
        assert row["loss"] == pytest.approx(row["stock"]["value"] / row["fewstep"]["value"] - 1)
        assert len(row["timesteps"]) == row["nfe"]
        assert row["seed"] == 1_000_003


def test_what_cannot_be_exported_is_refused(run: Run, toy: Path, tmp_path: Path) -> None:
    (path,) = _written(toy, tmp_path, "ddim/uniform-t-zero@3")
    run("export", "--out", "made").refused("--study", "--schedule")
    run("export", "--schedule", path, "--out", "made").refused("--model")
    run("export", "--study", "nowhere", "--out", "made").refused("nowhere")

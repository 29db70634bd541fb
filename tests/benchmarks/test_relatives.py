"""A schedule is another one with corrections, whatever it decides."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import pytest
import torch

from benchmarks.siblings.relatives import Relatives
from fewstep.errors import ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule, Threshold
from fewstep.search_spaces.schedule.corrections import Corrections
from fewstep.search_spaces.schedule.genome import to_schedule
from fewstep.search_spaces.schedule.space import ScheduleSpace
from fewstep.tasks.metrics.metric import Setting
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import ModelFiles, find_model
from fewstep.tasks.refinement.execute import Cost
from fewstep.tasks.refinement.features import Judge
from fewstep.tasks.refinement.moment_descent import MomentDescent
from fewstep.tasks.refinement.moment_plan import AT_ONCE, MomentPlan
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import sample
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.sampling.noise import starting_noise
from fewstep.tasks.work import Subject

FILES = find_model("digits-ddpm")
START = preset_on_grid("dpmpp-2m/karras-zero", FILES.noise, 3)


def _descent(files: ModelFiles, schedule: SolverSchedule, images: int, cost: Cost | None = None) -> MomentDescent:
    denoiser = Denoiser(files)
    judge = Judge(Setting(Subject(files.name), files), denoiser)
    plan = MomentPlan(images=images, look=AT_ONCE, limit=1, seed=1)
    return MomentDescent(schedule, denoiser, plan, judge, cost=cost)


def _sampled(files: ModelFiles, schedule: SolverSchedule) -> torch.Tensor:
    tables = compile_schedule(schedule, files.noise, files.prediction_type)
    noise = starting_noise(0, 0, 8, files.shape) * tables.prior_scale
    return sample(tables, Denoiser(files), noise)


@pytest.mark.parametrize("model", ["digits-ddpm", "digits-edm"])
def test_with_its_corrections_an_elite_samples_as_its_child(
    model: str, corrections: Callable[..., Corrections]
) -> None:
    """Also where the network's input is scaled by the time, and where both are corrected already."""
    files, rng = find_model(model), Random(3)
    space = ScheduleSpace(files.noise.lambda_start, files.noise.lambda_end, (4,))
    reached = 0
    for seed in range(4):
        genome = space.random(4, rng)
        elite, child = to_schedule(genome), to_schedule(space.mutate(genome, rng, 0.25))
        if seed == 0:
            elite = elite.model_copy(update={"corrections": corrections(elite, 0.02)})
        if seed == 1:
            child = child.model_copy(update={"corrections": corrections(child, 0.02)})
        try:
            found = Relatives(elite, files.noise, files.prediction_type).corrections(child)
        except ScheduleError:
            assert child.nodes != elite.nodes or child.first_call != elite.first_call
            continue
        reached += 1
        made = _descent(files, elite, AT_ONCE).schedule_at(found)
        wanted = _sampled(files, child)
        torch.testing.assert_close(_sampled(files, made), wanted, rtol=1e-3, atol=1e-3)
        assert float((_sampled(files, elite) - wanted).abs().max()) > 1e-2
    assert reached >= 2


def test_the_elite_itself_needs_none() -> None:
    found = Relatives(START, FILES.noise).corrections(START)
    np.testing.assert_allclose(found, 0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"first_call": "zero_x0"}, "nodes"),
        ({"guidance": 2.0}, "guidance"),
        ({"skips": (0.9,)}, "skips"),
        ({"threshold": Threshold(kind="static")}, "threshold"),
        ({"lambdas": (START.lambdas[0] + 0.1, *START.lambdas[1:])}, "start"),
        ({"corrections": Corrections(shifts=(0.0, 9.0, 0.0))}, "tells call 1"),
    ],
)
def test_what_no_corrections_make_is_refused_by_name(change: dict[str, object], named: str) -> None:
    other = START.model_copy(update=change)
    with pytest.raises(ScheduleError, match=named):
        Relatives(START, FILES.noise).corrections(other)

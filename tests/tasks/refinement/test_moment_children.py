"""A schedule is another one with corrections, whatever it decides; a ranking by moments costs what its plan says."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from fewstep.errors import ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule, Threshold
from fewstep.search_spaces.schedule.corrections import Corrections
from fewstep.search_spaces.schedule.genome import to_genome, to_schedule
from fewstep.search_spaces.schedule.space import ScheduleSpace
from fewstep.tasks.metrics.metric import Setting
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import ModelFiles, find_model
from fewstep.tasks.refinement.brood_plan import BroodPlan
from fewstep.tasks.refinement.execute import Cost
from fewstep.tasks.refinement.features import Judge
from fewstep.tasks.refinement.moment_children import Relatives
from fewstep.tasks.refinement.moment_descent import MomentDescent
from fewstep.tasks.refinement.moment_plan import AT_ONCE, MomentPlan
from fewstep.tasks.refinement.moment_ranking import MomentRanking
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


@pytest.fixture(scope="module")
def ranked() -> tuple[MomentRanking, Cost]:
    cost = Cost()
    descent = _descent(FILES, START, 2 * AT_ONCE, cost)
    return MomentRanking(descent, Relatives(START, FILES.noise), AT_ONCE), cost


def test_a_ranking_costs_what_its_plan_says(ranked: tuple[MomentRanking, Cost]) -> None:
    assert ranked[1].calls == BroodPlan().calls(START) == BroodPlan().least(START.nfe)


def test_near_children_are_ordered_as_their_own_images_order_them(ranked: tuple[MomentRanking, Cost]) -> None:
    ranking, _ = ranked
    space = ScheduleSpace(FILES.noise.lambda_start, FILES.noise.lambda_end, (3,))
    genome, rng = to_genome(START), Random(0)
    vector = space.to_vector(genome)
    near = [space.at_vector(genome, vector + np.array([rng.gauss(0, 0.03) for _ in vector])) for _ in range(8)]
    children = [to_schedule(child) for child in near]
    told = [ranking.predicted(child) for child in children]
    own = [_descent(FILES, child, 2 * AT_ONCE).begin().value for child in children]
    assert kendalltau(told, own).statistic > 0.8
    np.testing.assert_allclose(told, own, rtol=0.1)


def test_the_elite_and_strangers_come_last(ranked: tuple[MomentRanking, Cost]) -> None:
    assert ranked[0].predicted(START) == math.inf
    assert ranked[0].predicted(START.model_copy(update={"first_call": "zero_x0"})) == math.inf


def test_a_brood_is_a_function_of_the_elite_and_the_seed() -> None:
    plan = BroodPlan(children=50)
    first = plan.brood(START, FILES.noise)
    assert first == plan.brood(START, FILES.noise)
    assert len(set(first)) == 50
    assert to_genome(START) not in first
    assert first != BroodPlan(children=50, seed=1).brood(START, FILES.noise)

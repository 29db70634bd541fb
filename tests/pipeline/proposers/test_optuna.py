"""Proposals are new and valid whatever the sampler does, and seeds come before everything else."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from optuna.samplers import RandomSampler

from fewstep.pipeline.problems.schedules import ScheduleProblem, analytic_first_steps
from fewstep.pipeline.proposers.base import ANALYTIC, Proposer
from fewstep.pipeline.settings import SearchSettings
from fewstep.search_spaces.point import as_point
from fewstep.search_spaces.schedule.space import ScheduleSpace
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.noise_schedule import DiscreteVP
from fewstep.tasks.sampling.compile import compile_schedule


def _proposer(**changes: object) -> Proposer:
    return ScheduleProblem(SearchSettings.build(model="digits-ddpm", **changes)).search().proposer


@pytest.fixture
def noise() -> DiscreteVP:
    return find_model("digits-ddpm").noise


def test_a_sampler_that_repeats_itself_does_not_end_the_search(
    noise: DiscreteVP, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposer = _proposer(nfes=(3,), sampler="random")
    monkeypatch.setattr(proposer, "_sampler", lambda number: RandomSampler(seed=0))
    seen: set[str] = set()
    origins = []
    for _ in range(4):
        candidate = proposer.ask(3, seen, {})
        assert candidate is not None
        assert candidate.schedule.hash not in seen
        compile_schedule(candidate.schedule, noise)
        seen.add(candidate.schedule.hash)
        origins.append(candidate.origin)
    assert set(origins[1:]) == {"random"}


@pytest.mark.parametrize("nfe", [2, 3, 5, 10])
def test_seeds_have_the_wanted_calls_and_compile(noise: DiscreteVP, nfe: int) -> None:
    seeds = analytic_first_steps(noise, nfe)
    assert len(seeds) >= 4
    for schedule in seeds.values():
        assert schedule.nfe == nfe == compile_schedule(schedule, noise).nfe
        assert schedule.first_call == "zero_x0"


def test_one_call_leaves_nothing_to_save(noise: DiscreteVP) -> None:
    assert analytic_first_steps(noise, 1) == {}


def test_presets_that_were_entered_do_not_stand_for_random_members(
    noise: DiscreteVP, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposer = _proposer(nfes=(4,), random_trials=3)
    presets = list(analytic_first_steps(noise, 4).items())[:5]
    seen = {proposer.enlist(as_point(schedule), f"{ANALYTIC}{name}", {}).hash for name, schedule in presets}
    drawn: list[int] = []
    draw = ScheduleSpace.random

    def counted(space: ScheduleSpace, nfe: int, rng: Random) -> Any:
        drawn.append(nfe)
        return draw(space, nfe, rng)

    monkeypatch.setattr(ScheduleSpace, "random", counted)
    at_random = []
    for _ in range(4):
        before = len(drawn)
        candidate = proposer.ask(4, seen, {})
        assert candidate is not None
        seen.add(candidate.hash)
        at_random.append(len(drawn) > before)
    assert at_random == [True, True, True, False]

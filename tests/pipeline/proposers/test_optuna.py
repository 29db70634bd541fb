"""Proposals are new and valid whatever the sampler does, and seeds come before everything else."""

from __future__ import annotations

import pytest
from optuna.samplers import RandomSampler

from fewstep.pipeline.problems.schedules import ScheduleProblem, analytic_first_steps
from fewstep.pipeline.proposers.optuna import OptunaProposer
from fewstep.pipeline.settings import SearchSettings
from fewstep.search_spaces.point import schedule_of
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.noise_schedule import DiscreteVP
from fewstep.tasks.sampling.compile import compile_schedule


def _proposer(**changes: object) -> OptunaProposer:
    proposer = ScheduleProblem(SearchSettings.build(model="digits-ddpm", **changes)).search().proposer
    assert isinstance(proposer, OptunaProposer)
    return proposer


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
    for seed in seeds:
        schedule = schedule_of(seed)
        assert schedule is not None
        assert schedule.nfe == nfe == compile_schedule(schedule, noise).nfe
        assert schedule.first_call == "zero_x0"


def test_one_call_leaves_nothing_to_save(noise: DiscreteVP) -> None:
    assert analytic_first_steps(noise, 1) == []


def test_s3_offers_every_seed_once_before_anything_random(noise: DiscreteVP) -> None:
    proposer = _proposer(nfes=(4,))
    seen: set[str] = set()
    seeds = analytic_first_steps(noise, 4)
    for _ in seeds:
        candidate = proposer.ask(4, seen, {})
        assert candidate is not None
        assert candidate.schedule.first_call == "zero_x0"
        seen.add(candidate.hash)
    assert len(seen) == len(seeds)

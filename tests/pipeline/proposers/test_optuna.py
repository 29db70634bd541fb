"""Proposals are new and valid whatever the sampler does, and seeds come before everything else."""

from __future__ import annotations

import pytest
from optuna.samplers import RandomSampler

from fewstep.pipeline.proposers.optuna import Proposer, analytic_first_steps
from fewstep.pipeline.scope import Scope
from fewstep.pipeline.settings import SearchSettings
from fewstep.search_spaces.genome import to_schedule
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.noise_schedule import DiscreteVP
from fewstep.tasks.sampling.compile import compile_schedule


@pytest.fixture
def noise() -> DiscreteVP:
    return find_model("digits-ddpm").noise


def test_a_sampler_that_repeats_itself_does_not_end_the_search(
    noise: DiscreteVP, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SearchSettings.build(model="digits-ddpm", nfes=(3,), sampler="random")
    proposer = Proposer(settings, Scope.of(settings, find_model("digits-ddpm")))
    monkeypatch.setattr(proposer, "_sampler", lambda number: RandomSampler(seed=0))
    seen: set[str] = set()
    origins = []
    for _ in range(4):
        candidate = proposer.propose(3, seen)
        assert candidate.schedule.hash not in seen
        compile_schedule(candidate.schedule, noise)
        seen.add(candidate.schedule.hash)
        origins.append(candidate.origin)
    assert set(origins[1:]) == {"random"}


@pytest.mark.parametrize("nfe", [2, 3, 5, 10])
def test_seeds_have_the_wanted_calls_and_compile(noise: DiscreteVP, nfe: int) -> None:
    genomes = analytic_first_steps(noise, nfe)
    assert len(genomes) >= 4
    for genome in genomes:
        schedule = to_schedule(genome)
        assert schedule.nfe == nfe == compile_schedule(schedule, noise).nfe
        assert schedule.first_call == "zero_x0"


def test_one_call_leaves_nothing_to_save(noise: DiscreteVP) -> None:
    assert analytic_first_steps(noise, 1) == []


def test_s3_offers_every_seed_once_before_anything_random(noise: DiscreteVP) -> None:
    settings = SearchSettings.build(model="digits-ddpm", nfes=(4,))
    proposer = Proposer(settings, Scope.of(settings, find_model("digits-ddpm")))
    seen: set[str] = set()
    seeds = analytic_first_steps(noise, 4)
    for _ in seeds:
        schedule = proposer.propose(4, seen).schedule
        assert schedule.first_call == "zero_x0"
        seen.add(schedule.hash)
    assert len(seen) == len(seeds)

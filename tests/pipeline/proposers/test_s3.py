"""S^3 as an Optuna sampler: in a plain study, without the rest of the house."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import optuna
import pytest
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState

from fewstep.pipeline.proposers.options import (
    CANDIDATE_ATTR,
    ORIGIN_ATTR,
    POINT_ATTR,
    S3Options,
    distributions,
    milestone,
)
from fewstep.pipeline.proposers.s3 import S3Sampler
from fewstep.search_spaces.point import as_point
from fewstep.search_spaces.schedule.genome import Genome, to_schedule
from fewstep.search_spaces.schedule.space import ScheduleSpace

SPACE = ScheduleSpace(-5.0, 4.6, (3, 4))
QUICK = S3Options(random_trials=8, children=24, generations=3, first_fit=30, growth=1.5, surrogate="encoder")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _badness(genome: Genome) -> float:
    """A cheap stand-in for a distance: even steps in lambda, data prediction of second order and no corrector."""
    gaps = [b - a for a, b in pairwise(genome.lambdas)]
    uneven = sum((gap - sum(gaps) / len(gaps)) ** 2 for gap in gaps) / len(gaps)
    decisions = sum((g.prediction == "noise") + abs(g.order - 2) / 2 + 0.3 * g.corrector for g in genome.genes)
    return 0.05 + math.sqrt(uneven) + decisions / len(genome.genes) + 0.2 * abs(genome.lambdas[-1] - SPACE.lambda_end)


def _ask_and_tell(sampler: BaseSampler, trials: int, nfe: int | None = None) -> tuple[optuna.Study, list[Genome]]:
    study = optuna.create_study(sampler=sampler)
    genomes = []
    for _ in range(trials):
        if nfe is not None:
            study.enqueue_trial({"nfe": nfe})
        trial = study.ask()
        genome = SPACE.suggest(trial)
        schedule = to_schedule(genome)
        trial.set_user_attr(POINT_ATTR, as_point(schedule).to_json())
        trial.set_user_attr(CANDIDATE_ATTR, schedule.hash)
        trial.set_user_attr(ORIGIN_ATTR, "s3")
        trial.report(_badness(genome), 0)
        study.tell(trial, _badness(genome))
        genomes.append(genome)
    return study, genomes


def test_proposals_are_valid_new_and_guided_by_a_surrogate_that_is_refitted() -> None:
    refits: list[tuple[int, float | None, float]] = []
    sampler = S3Sampler(SPACE, SPACE.nfes, seed=3, options=QUICK, on_refit=lambda *told: refits.append(told))
    study, genomes = _ask_and_tell(sampler, 75)
    assert all(t.state == TrialState.COMPLETE for t in study.trials)
    hashes = [to_schedule(g).hash for g in genomes]  # building them checks them
    # Genomes that differ can be one schedule, so a few repeat; the search asks again.
    assert len(set(hashes)) >= 0.9 * len(hashes)
    assert {g.nfe for g in genomes} == {3, 4}
    assert [n for n, *_ in refits] == [30, 45, 68]
    assert refits[0][1] is None
    assert all(tau is not None and -1 <= tau <= 1 for _, tau, _ in refits[1:])
    assert all(seconds > 0 for *_, seconds in refits)


def test_the_nfe_that_was_fixed_is_kept() -> None:
    _, genomes = _ask_and_tell(S3Sampler(SPACE, SPACE.nfes, options=QUICK), 20, nfe=4)
    assert {g.nfe for g in genomes} == {4}


def test_proposals_are_a_function_of_the_seed() -> None:
    runs = [_ask_and_tell(S3Sampler(SPACE, SPACE.nfes, seed=seed, options=QUICK), 34)[1] for seed in (5, 5, 6)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_parameter_from_outside_the_space_is_drawn_too() -> None:
    study = optuna.create_study(sampler=S3Sampler(SPACE, SPACE.nfes, options=QUICK))
    first = study.ask()
    SPACE.suggest(first)
    assert 0 <= first.suggest_float("threshold", 0, 1) <= 1


def test_the_distributions_hold_every_parameter_of_every_member() -> None:
    known = distributions(SPACE)
    _, genomes = _ask_and_tell(S3Sampler(SPACE, SPACE.nfes, options=QUICK), 25)
    for genome in genomes:
        for name, value in SPACE.parameters(genome).items():
            assert known[name]._contains(known[name].to_internal_repr(value))


def test_milestones_rise_and_never_lie_in_the_future() -> None:
    options = S3Options()
    found = [milestone(number, options) for number in range(1000)]
    assert found == sorted(found)
    assert all(at <= number for number, at in enumerate(found))
    assert found[options.first_fit - 1] == 0
    assert found[options.first_fit] == options.first_fit
    steps = sorted(set(found))[1:]
    assert all(b >= a * options.growth for a, b in pairwise(steps))
    assert 4 < len(steps) < 16


@pytest.mark.slow
def test_it_beats_random_search_and_its_surrogate_helps_it() -> None:
    trials, seeds = 60, range(3)
    best: dict[str, list[float]] = {"random": [], "evolution": [], "s3": []}
    for seed in seeds:
        samplers: dict[str, BaseSampler] = {
            "random": RandomSampler(seed=seed),
            "evolution": S3Sampler(
                SPACE, SPACE.nfes, seed=seed, options=replace(QUICK, surrogate="none", across=0.0, local=0.0)
            ),
            "s3": S3Sampler(SPACE, SPACE.nfes, seed=seed, options=QUICK),
        }
        for name, sampler in samplers.items():
            best[name].append(min(map(_badness, _ask_and_tell(sampler, trials, nfe=4)[1])))
    assert sum(a < b for a, b in zip(best["s3"], best["random"], strict=True)) >= 2, best
    assert sum(best["s3"]) < sum(best["evolution"]) < sum(best["random"]), best

"""S^3 by itself: its proposals are new, valid, guided, and a function of what is known in whatever order it came."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from optuna.trial import TrialState

from fewstep.pipeline.proposers.options import S3Options, distributions, milestone
from fewstep.pipeline.proposers.s3 import S3Proposer
from fewstep.pipeline.trial import Candidate, Trial
from fewstep.search_spaces.point import Point
from fewstep.search_spaces.schedule.genome import Genome
from fewstep.search_spaces.schedule.space import ScheduleSpace

SPACE = ScheduleSpace(-5.0, 4.6, (3, 4))
QUICK = S3Options(random_trials=8, children=24, generations=3, first_fit=30, growth=1.5, surrogate="encoder")
PLAIN = replace(QUICK, surrogate="none")
RUNGS = ("screen", "frechet")


def _fits(point: Point) -> None:
    """Everything does."""


def _proposer(seed: int = 0, options: S3Options = QUICK, **others: Any) -> S3Proposer:
    return S3Proposer(SPACE, SPACE.nfes, _fits, RUNGS, seed, options, **others)


def _badness(genome: Genome) -> float:
    """A cheap stand-in for a distance: even steps in lambda, data prediction of second order and no corrector."""
    gaps = [b - a for a, b in pairwise(genome.lambdas)]
    uneven = sum((gap - sum(gaps) / len(gaps)) ** 2 for gap in gaps) / len(gaps)
    decisions = sum((g.prediction == "noise") + abs(g.order - 2) / 2 + 0.3 * g.corrector for g in genome.genes)
    return 0.05 + math.sqrt(uneven) + decisions / len(genome.genes) + 0.2 * abs(genome.lambdas[-1] - SPACE.lambda_end)


def _search(proposer: S3Proposer, trials: int, nfe: int | None = None) -> list[Genome]:
    """Genomes of so many trials, each judged before the next is asked for; NFEs take turns if not told."""
    known: dict[int, Trial] = {}
    seen: set[str] = set()
    for i in range(trials):
        candidate = proposer.ask(nfe or SPACE.nfes[i % 2], seen, known)
        assert candidate is not None
        assert candidate.hash not in seen
        seen.add(candidate.hash)
        trial = known[candidate.trial] = Trial(candidate, state=TrialState.COMPLETE)
        proposer.report(trial, _badness(SPACE.genome(candidate.point)), 0)
        proposer.tell(trial, None)
    return [SPACE.genome(trial.candidate.point) for trial in known.values()]


def test_proposals_are_valid_new_and_guided_by_a_surrogate_that_is_refitted() -> None:
    refits: list[tuple[int, float | None, float]] = []
    genomes = _search(_proposer(3, on_refit=lambda *told: refits.append(told)), 75)
    assert {g.nfe for g in genomes} == {3, 4}
    # A number whose proposals were all known has no example.
    assert [28 <= n <= 30 or 42 <= n <= 45 for n, *_ in refits][:2] == [True, True]
    assert refits[0][1] is None
    assert all(tau is not None and -1 <= tau <= 1 for _, tau, _ in refits[1:])
    assert all(seconds > 0 for *_, seconds in refits)


def test_the_nfe_that_was_asked_for_is_kept() -> None:
    assert {g.nfe for g in _search(_proposer(), 20, nfe=4)} == {4}


def test_proposals_are_a_function_of_the_seed() -> None:
    runs = [_search(_proposer(seed), 34) for seed in (5, 5, 6)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_the_distributions_hold_every_parameter_of_every_member() -> None:
    known = distributions(SPACE)
    for genome in _search(_proposer(options=PLAIN), 25):
        for name, value in SPACE.parameters(genome).items():
            assert known[name]._contains(known[name].to_internal_repr(value))


class _Record:
    """What a proposer reads of a record."""

    def __init__(self, value: float) -> None:
        self.value = value


@pytest.mark.parametrize("seed", [0, 1])
def test_in_whatever_order_values_come_in_a_restored_proposer_goes_on_alike(seed: int) -> None:
    """Eight in flight at a time, some of which climb, some of which fail."""
    rng, proposer = Random(seed), _proposer(seed, PLAIN)
    trials: dict[int, Trial] = {}
    seen: set[str] = set()
    waiting: list[tuple[Trial, int]] = []
    for _ in range(260):
        while len(waiting) < 8:
            candidate = proposer.ask(rng.choice(SPACE.nfes), seen, trials)
            assert candidate is not None
            seen.add(candidate.hash)
            trials[candidate.trial] = Trial(candidate)
            waiting.append((trials[candidate.trial], 0))
        trial, step = waiting.pop(rng.randrange(len(waiting)))
        if rng.random() < 0.1:
            trial.state = TrialState.FAIL
            proposer.tell(trial, None)
            continue
        value = _badness(SPACE.genome(trial.candidate.point)) + step
        trial.records[RUNGS[step]] = _Record(value)  # type: ignore[assignment]
        proposer.report(trial, value, step)
        if step == 0 and rng.random() < 0.4:
            waiting.append((trial, 1))
    again = _proposer(seed, PLAIN)
    again.restore(trials, lambda trial: None)
    for nfe in (3, 4, 3, 4, 3, 4):
        first, second = (p.ask(nfe, seen, trials) for p in (proposer, again))
        assert first == second is not None
        seen.add(second.hash)


def test_a_proposal_takes_no_longer_however_many_there_were() -> None:
    """In calls of functions, which are the same on every machine."""
    proposer, known = _proposer(options=PLAIN), dict[int, Trial]()
    calls = [0]

    def counted(frame: object, event: str, argument: object) -> None:
        calls[0] += event in ("call", "c_call")

    def cost(count: int) -> float:
        before = calls[0]
        for _ in range(count):
            candidate = proposer.ask(4, set(), known)
            assert isinstance(candidate, Candidate)
            trial = known[candidate.trial] = Trial(candidate, state=TrialState.COMPLETE)
            proposer.report(trial, Random(candidate.hash).random(), 0)
        return (calls[0] - before) / count

    cost(100)
    sys.setprofile(counted)
    try:
        early = cost(100)
        sys.setprofile(None)
        cost(900)
        sys.setprofile(counted)
        late = cost(100)
    finally:
        sys.setprofile(None)
    assert late < 1.2 * early


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
    kinds = {
        "random": replace(PLAIN, random_trials=10**6),
        "evolution": replace(PLAIN, across=0.0, local=0.0),
        "s3": QUICK,
    }
    best = {
        name: [min(map(_badness, _search(_proposer(seed, options), 60, nfe=4))) for seed in range(3)]
        for name, options in kinds.items()
    }
    assert sum(a < b for a, b in zip(best["s3"], best["random"], strict=True)) >= 2, best
    assert sum(best["s3"]) < sum(best["evolution"]) < sum(best["random"]), best

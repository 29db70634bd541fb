"""Every sampler on every space: proposals are new and valid, and a restored proposer goes on as the first one would."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from optuna.trial import TrialState

from fewstep.errors import ConfigurationError
from fewstep.pipeline.proposers.base import Proposer
from fewstep.pipeline.proposers.evolution import ParetoEvolution
from fewstep.pipeline.proposers.optuna import OptunaProposer
from fewstep.pipeline.proposers.pareto import ordered
from fewstep.pipeline.proposers.samplers import OWN, SAMPLERS, stock_sampler
from fewstep.pipeline.trial import Candidate, Trial, candidate_of
from fewstep.search_spaces.edit import BoundaryConfig, EditConfig
from fewstep.search_spaces.edit.space import EditSpace
from fewstep.search_spaces.point import Point, parse_point
from fewstep.search_spaces.quantization.space import QuantizationSpace
from fewstep.search_spaces.space import Space
from fewstep.storage.records import EvaluationRecord

EDIT = EditConfig(step=-1.0, boundary=BoundaryConfig(images=100))
SPACES: dict[str, Space[Any]] = {
    "quantization": QuantizationSpace(4, 100),
    "edit": EditSpace((-2.0, -1.0, 0.0), 100, EDIT),
}
SCREEN, POPULATION = "screen", 6
# With children of children, and past the first fit of a surrogate.
TRIALS = {"gp": 12, "s3": 36}


def share(*parts: object) -> float:
    """A number in [0, 1) that the parts decide."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big") / 2**48


def objectives(trial: Trial) -> tuple[float, ...] | None:
    """Made-up values; one only where the sampler can do no more."""
    record = trial.records.get(SCREEN)
    if record is None or record.value is None:
        return None
    return record.value, *record.metrics.values()


def standing(trials: Mapping[int, Trial], nfe: int | None) -> Sequence[Trial]:
    having = [(t, values) for _, t in sorted(trials.items()) if (values := objectives(t)) is not None]
    return [having[i][0] for i in ordered([values for _, values in having])] if having else []


def refuses(point: Point) -> None:
    """A model that one point in twenty does not fit."""
    if share("refused", point.hash) < 0.05:
        raise ConfigurationError("it does not fit")


def make(sampler: str, space: Space[Any]) -> Proposer:
    if sampler in OWN:
        surrogate = "trees" if sampler == "s3" else "none"
        return ParetoEvolution(space, 3, refuses, standing, objectives, surrogate)
    count = 1 if sampler == "cmaes" else 2
    made = stock_sampler(sampler, 3, count, space.flat, POPULATION)
    return OptunaProposer(space, made, sampler, 3, refuses, [SCREEN], count, by_nfe=False)


def evaluated(candidate: Candidate, sampler: str) -> EvaluationRecord:
    failed = share("fails", candidate.hash) < 0.1
    return EvaluationRecord(
        study="made-up",
        order=candidate.trial,
        trial=candidate.trial,
        key=candidate.hash,
        candidate=candidate.hash,
        candidate_json=candidate.point.to_json(),
        nfe=candidate.nfe,
        rung=SCREEN,
        origin=candidate.origin,
        model="",
        model_hash="",
        features="",
        reference="",
        seed=0,
        images=1,
        metric="made-up",
        value=None if failed else share("value", candidate.hash),
        low=None,
        high=None,
        denoiser_calls=0,
        seconds=0.0,
        device="cpu",
        finished_at=datetime.now(UTC),
        status="failed" if failed else "complete",
        parameters=candidate.parameters,
        metrics={} if failed or sampler == "cmaes" else {"other": share("other", candidate.hash)},
    )


def enter(proposer: Proposer, trials: dict[int, Trial], sampler: str) -> Candidate:
    """Ask, judge and tell once."""
    candidate = proposer.ask(0, {t.candidate.hash for t in trials.values()}, trials)
    assert candidate is not None
    record = evaluated(candidate, sampler)
    trial = Trial(candidate, {SCREEN: record}, TrialState.COMPLETE if record.value is not None else TrialState.FAIL)
    trials[candidate.trial] = trial
    if record.value is not None:
        proposer.report(trial, record.value, 0)
    proposer.tell(trial, objectives(trial))
    return candidate


def told(candidate: Candidate | None) -> object:
    assert candidate is not None
    return candidate.trial, candidate.point.to_json(), candidate.origin, sorted(candidate.parameters.items(), key=repr)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_proposals_are_new_valid_and_the_same_after_a_restart(sampler: str, name: str) -> None:
    space = SPACES[name]
    proposer, trials = make(sampler, space), dict[int, Trial]()
    for _ in range(TRIALS.get(sampler, 30)):
        known = {t.candidate.hash for t in trials.values()}
        candidate = enter(proposer, trials, sampler)
        assert candidate.hash not in known
        refuses(candidate.point)
        assert parse_point(candidate.point.to_json()) == candidate.point
        genome = space.genome(candidate.point)
        assert space.member(genome) == genome
        drawn = {k: v for k, v in candidate.parameters.items() if k in space.parameters(genome)}
        assert space.point(space.from_parameters(drawn | space.parameters(genome))).hash == candidate.hash
    assert {t.candidate.origin for t in trials.values()} >= ({"evolution"} if sampler in OWN else {sampler})
    for count in (0, 1, len(trials) // 2, len(trials)):
        first = dict(sorted(trials.items())[:count])
        # What is read back from the disk, not what was held.
        stored = {n: replace(t, candidate=candidate_of(t.records[SCREEN])) for n, t in first.items()}
        restored = make(sampler, space)
        assert restored.restore(stored, objectives) == []
        seen = {t.candidate.hash for t in stored.values()}
        following = sorted(trials.items())[count : count + 1]
        if following:
            assert told(restored.ask(0, seen, stored)) == told(following[0][1].candidate)
        else:
            assert told(restored.ask(0, seen, stored)) == told(proposer.ask(0, seen, trials))


def test_a_sampler_that_is_not_there_or_cannot_do_it_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'magic'.*tpe"):
        stock_sampler("magic", 0, 1, flat=True)
    with pytest.raises(ConfigurationError, match="cmaes"):
        stock_sampler("cmaes", 0, 2, flat=True)

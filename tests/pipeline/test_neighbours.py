"""Local moves about the best edit."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from fewstep.pipeline.editing.settings import EditSettings
from fewstep.pipeline.policies.edit import EditPolicy
from fewstep.pipeline.problems.edits import EditProblem
from fewstep.pipeline.search import Search
from fewstep.pipeline.stages.neighbours import REROUTED, ROUNDS, TWIN, Neighbours, twin
from fewstep.pipeline.trial import Candidate, Work
from fewstep.search_spaces.edit import BoundaryConfig, EditConfig
from fewstep.search_spaces.point import EditPoint
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.models.files import ZOO, find_model


@pytest.fixture
def problem(toy: Path) -> EditProblem:
    noise = find_model(str(toy)).noise
    judge = str(ZOO / "digits-ddpm" / "classifier")
    subject = EditSubject.build(
        model=str(toy), data="digits", attribute="nine", judge=judge, fit_way="ddim/uniform-t@3", examples=8
    )
    # One step of calls from the published 40 + 40.
    base = EditConfig(
        step=noise.lambda_at(500.0),
        strength_z=2.0,
        inversion="ddim/uniform-t@28",
        generation="ddim/uniform-t@40",
        boundary=BoundaryConfig(images=8),
    )
    return EditProblem(
        EditSettings.build(study="s", subject=subject, steps=(base.step,), base=base, sampler="evolution", budget=1)
    )


def judged(search: Search, edit: EditConfig) -> None:
    """Make an edit a trial that has been in the finals."""
    candidate = search.proposer.admit(EditPoint(edit=edit), "seed", search.trials)
    search.adopt(candidate)
    trial = search.trials[candidate.trial]
    trial.records[search.ladder.finals.name] = record(candidate, search.ladder.finals.name)


def record(candidate: Candidate, rung: str) -> EvaluationRecord:
    return EvaluationRecord(
        study="s",
        order=0,
        trial=candidate.trial,
        key=candidate.hash,
        candidate=candidate.hash,
        candidate_json=candidate.point.to_json(),
        nfe=candidate.nfe,
        rung=rung,
        origin=candidate.origin,
        model="",
        model_hash="",
        features="",
        reference="",
        seed=0,
        images=4,
        metric="imbalance",
        value=0.5,
        low=None,
        high=None,
        denoiser_calls=0,
        seconds=0.0,
        device="cpu",
        finished_at=datetime.now(UTC),
        metrics={"success": 0.5, "identity": 0.5, "nfe": float(candidate.nfe)},
    )


def queued(search: Search, problem: EditProblem, round_: int) -> list[Work]:
    """What a round wants evaluated."""
    assert isinstance(search.policy, EditPolicy)
    Neighbours(problem.space, search.policy, round_).queue(search)
    work: list[Work] = []
    while (following := search.next_work()) is not None and following[1] == search.ladder.finals:
        work.append(following)
    return work


def test_two_moves_that_come_to_the_same_edit_are_queued_once(problem: EditProblem) -> None:
    search = problem.search()
    judged(search, problem.settings.base)
    work = queued(search, problem, ROUNDS[TWIN])
    hashes = [candidate.hash for candidate, _ in work]
    assert len(set(hashes)) == len(hashes) > 2
    # 28 + 40 calls with two places more on the first way are the published 40 + 40: its twin, once and as that.
    (same,) = [c for c, _ in work if c.hash == EditPoint(edit=twin(problem.settings.base)).hash]
    assert same.origin == TWIN
    assert {c.origin for c, _ in work} == {TWIN, REROUTED}
    assert len({c.trial for c, _ in work}) == len(work)
    # Nothing of it is queued again, by this round or a later one about the same edit.
    for candidate, rung in work:
        search.trials[candidate.trial].records[rung.name] = record(candidate, rung.name)
    assert queued(search, problem, ROUNDS[TWIN]) == []


def test_what_was_judged_is_no_move(problem: EditProblem) -> None:
    search = problem.search()
    judged(search, problem.settings.base)
    judged(search, twin(problem.settings.base))
    work = queued(search, problem, ROUNDS[TWIN])
    assert TWIN not in {c.origin for c, _ in work}
    assert EditPoint(edit=twin(problem.settings.base)).hash not in {c.hash for c, _ in work}

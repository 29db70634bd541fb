"""From candidates to records: growth by new images only, independence of how the work is cut, bad results."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fewstep.pipeline import evaluator as evaluation
from fewstep.pipeline.evaluator import Evaluator
from fewstep.pipeline.trial import Candidate, Rung
from fewstep.search_spaces.point import as_point
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord, MomentsRecord
from fewstep.storage.store import Store
from fewstep.tasks.faults import may_succeed
from fewstep.tasks.metrics.metric import Score
from fewstep.tasks.models.files import ModelFiles, find_model
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import Subject, Task, TaskResult, WorkerSettings
from fewstep.tasks.worker import Worker


@pytest.fixture(scope="module")
def files(toy: Path) -> ModelFiles:
    return find_model(str(toy))


@pytest.fixture(scope="module")
def subject(toy: Path) -> Subject:
    return Subject(str(toy))


@pytest.fixture(scope="module")
def worker(toy: Path) -> Worker:
    return Worker(WorkerSettings(Subject(str(toy))))


@pytest.fixture(scope="module")
def candidate(files: ModelFiles) -> Candidate:
    return Candidate(0, as_point(preset_on_grid("dpmpp-2m/karras", files.noise, 2)), "test", {"nfe": 2})


@pytest.fixture(scope="module")
def teacher(files: ModelFiles) -> SolverSchedule:
    return preset_on_grid("ddim/uniform-t-zero", files.noise, 6)


def _rung(images: int) -> Rung:
    return Rung("frechet", "frechet", images, 5)


def _finish(evaluator: Evaluator, results: Sequence[TaskResult]) -> tuple[EvaluationRecord, list[MomentsRecord]]:
    """Absorb them all; only the last completes the evaluation. What is new is stored, as the driver does."""
    answers = [evaluator.absorb(result, order=0) for result in results]
    assert [record for record, _ in answers[:-1]] == [None] * (len(answers) - 1)
    moments = [row for _, rows in answers for row in rows]
    evaluator.store.moments.append(moments)
    record = answers[-1][0]
    assert record is not None
    return record, moments


def _evaluate(evaluator: Evaluator, candidate: Candidate, images: int, worker: Worker) -> EvaluationRecord:
    return _finish(evaluator, [worker.run(t) for t in evaluator.plan(candidate, _rung(images))])[0]


def _numbers(record: EvaluationRecord) -> tuple[object, ...]:
    return record.key, record.value, record.low, record.high, record.images


def test_growth_computes_the_new_images_only_and_equals_one_evaluation(
    subject: Subject, worker: Worker, candidate: Candidate, tmp_path: Path
) -> None:
    at_once = _evaluate(Evaluator("s", subject, Store(tmp_path / "a")), candidate, 1000, worker)
    assert at_once.status == "complete"
    assert at_once.denoiser_calls == 2 * 1000
    assert at_once.low is not None
    assert at_once.value is not None
    assert at_once.high is not None
    assert at_once.low < at_once.value < at_once.high
    store = Store(tmp_path / "b")
    growing = Evaluator("s", subject, store)
    half = _evaluate(growing, candidate, 500, worker)
    grown = _evaluate(growing, candidate, 1000, worker)
    assert (half.denoiser_calls, grown.denoiser_calls) == (2 * 500, 2 * 500)
    assert _numbers(grown) == _numbers(at_once)
    assert half.key != grown.key
    assert sorted(m.start for m in store.moments.records()) == [0, 250, 500, 750]
    # A process that starts anew finds the moments on disk.
    reopened = Evaluator("s", subject, Store(tmp_path / "b"))
    more = _evaluate(reopened, candidate, 1250, worker)
    assert more.denoiser_calls == 2 * 250


def test_a_short_last_group_is_replaced_when_the_evaluation_grows(
    subject: Subject, worker: Worker, candidate: Candidate, tmp_path: Path
) -> None:
    at_once = _evaluate(Evaluator("s", subject, Store(tmp_path / "a")), candidate, 500, worker)
    growing = Evaluator("s", subject, Store(tmp_path / "b"))
    assert _evaluate(growing, candidate, 300, worker).images == 300
    assert [m.count for m in growing.store.moments.records()] == [250]
    grown = _evaluate(growing, candidate, 500, worker)
    assert grown.denoiser_calls == 2 * 250
    assert _numbers(grown) == _numbers(at_once)
    # And back: the first 300 again, from one full group and one short one.
    again = _evaluate(growing, candidate, 300, worker)
    assert _numbers(again) == _numbers(
        _evaluate(Evaluator("s", subject, Store(tmp_path / "c")), candidate, 300, worker)
    )


def test_the_result_does_not_depend_on_how_the_images_are_cut_into_tasks(
    subject: Subject, worker: Worker, candidate: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = []
    for size in (250, 500, 1000):
        monkeypatch.setattr(evaluation, "IMAGES_PER_TASK", size)
        evaluator = Evaluator("s", subject, Store(tmp_path / str(size)))
        tasks = evaluator.plan(candidate, _rung(1000))
        assert [(t.start, t.count) for t in tasks] == [(i, size) for i in range(0, 1000, size)]
        # They arrive in any order.
        records.append(_finish(evaluator, [worker.run(t) for t in reversed(tasks)])[0])
    assert _numbers(records[0]) == _numbers(records[1]) == _numbers(records[2])


def test_other_noise_other_count_and_another_schedule_have_other_keys(
    subject: Subject, candidate: Candidate, teacher: SolverSchedule, tmp_path: Path
) -> None:
    evaluator = Evaluator("s", subject, Store(tmp_path), teacher=teacher)
    schedule = candidate.schedule
    rungs = [_rung(500), _rung(1000), Rung("report", "frechet", 500, 6), Rung("distance", "distance", 500, 5)]
    keys = [evaluator.key(candidate.point, rung) for rung in rungs]
    keys.append(evaluator.key(as_point(teacher), _rung(500)))
    keys.append(Evaluator("s", subject, Store(tmp_path), teacher=schedule).key(candidate.point, rungs[3]))
    assert len(set(keys)) == len(keys)
    # The name and the past of a schedule are not part of what is computed, nor is the study.
    renamed = schedule.model_copy(update={"name": "x", "provenance": {"by": "me"}})
    assert Evaluator("t", subject, Store(tmp_path)).key(as_point(renamed), rungs[0]) == keys[0]


def test_results_that_come_twice_or_from_nowhere_change_nothing(
    subject: Subject, worker: Worker, candidate: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "IMAGES_PER_TASK", 250)
    evaluator = Evaluator("s", subject, Store(tmp_path))
    first, second = (worker.run(t) for t in evaluator.plan(candidate, _rung(500)))
    stranger = TaskResult(Task("nobody", "frechet", "", 5, 0, 250), parts=first.parts)
    elsewhere = dataclasses.replace(first, task=dataclasses.replace(first.task, start=5000))
    poison = dataclasses.replace(first, error="late news of a worker that died", parts=())
    assert evaluator.absorb(stranger, 0) == (None, [])
    record, moments = evaluator.absorb(first, 0)
    assert (record, [m.start for m in moments]) == (None, [0])
    for late in (first, elsewhere, poison, stranger):
        assert evaluator.absorb(late, 0) == (None, [])
    record, moments = evaluator.absorb(second, 3)
    assert record is not None
    assert (record.status, record.order, record.denoiser_calls) == ("complete", 3, 2 * 500)
    assert [m.start for m in moments] == [250]
    for late in (first, second, poison, stranger):
        assert evaluator.absorb(late, 0) == (None, [])


def test_an_evaluation_that_is_cut_short_goes_on_where_it_was(
    subject: Subject, worker: Worker, candidate: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "IMAGES_PER_TASK", 250)
    killed = Evaluator("s", subject, Store(tmp_path))
    tasks = killed.plan(candidate, _rung(1000))
    for task in (tasks[0], tasks[2]):
        record, moments = killed.absorb(worker.run(task), 0)
        assert record is None
        killed.store.moments.append(moments)
    goes_on = Evaluator("s", subject, Store(tmp_path))
    left = goes_on.plan(candidate, _rung(1000))
    assert [(t.start, t.count) for t in left] == [(250, 250), (750, 250)]
    done = _finish(goes_on, [worker.run(t) for t in left])[0]
    at_once = _evaluate(Evaluator("s", subject, Store(tmp_path / "other")), candidate, 1000, worker)
    assert _numbers(done) == _numbers(at_once)


def test_an_evaluation_whose_images_are_all_known_still_ends(
    subject: Subject, worker: Worker, candidate: Candidate, tmp_path: Path
) -> None:
    """The driver died between writing the moments and writing the record."""
    evaluator = Evaluator("s", subject, Store(tmp_path))
    whole = _evaluate(evaluator, candidate, 500, worker)
    reopened = Evaluator("s", subject, Store(tmp_path))
    again = _evaluate(reopened, candidate, 500, worker)
    assert again.denoiser_calls == 2 * 250
    assert _numbers(again) == _numbers(whole)
    assert reopened.store.moments.row_count() == 2


class _Nothing:
    """A denoiser whose answer is not a number."""

    calls, files = 0, SimpleNamespace(quantized=None)

    def on(self, *arguments):  # type: ignore[no-untyped-def]
        return lambda x, time: x * float("nan")

    def fitted(self, schedule):  # type: ignore[no-untyped-def]
        return schedule

    def begin(self, noise, indices, lambda_):  # type: ignore[no-untyped-def]
        return noise

    def finish(self, images, indices):  # type: ignore[no-untyped-def]
        return images


@pytest.mark.parametrize("metric", ["frechet", "distance"])
def test_a_candidate_that_explodes_becomes_a_failed_record_with_the_reason(
    metric: str, subject: Subject, toy: Path, candidate: Candidate, teacher: SolverSchedule, tmp_path: Path
) -> None:
    evaluator = Evaluator("s", subject, Store(tmp_path), teacher=teacher)
    sick = Worker(WorkerSettings(Subject(str(toy))))
    sick._default = _Nothing()  # type: ignore[assignment]
    rung = Rung("distance", "distance", 16, 5) if metric == "distance" else _rung(500)
    record, moments = _finish(evaluator, [sick.run(t) for t in evaluator.plan(candidate, rung)])
    assert (record.status, record.value, record.low, record.high, moments) == ("failed", None, None, None, [])
    assert "not finite" in record.error
    evaluator.store.evaluations.append([record])
    assert evaluator.store.evaluations.records()[0].error == record.error


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (float("nan"), "is nan, which is no figure"),
        (float("inf"), "is inf"),
        (ZeroDivisionError("a\nb"), "ZeroDivisionError: a b"),
    ],
)
def test_a_figure_that_cannot_be_worked_out_is_a_failed_record(
    subject: Subject,
    worker: Worker,
    candidate: Candidate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: object,
    words: str,
) -> None:
    evaluator = Evaluator("s", subject, Store(tmp_path))

    def score(*arguments: object) -> Score:
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, float)
        return Score(answer)

    monkeypatch.setattr(evaluator.metric("frechet"), "score", score)
    record, _ = _finish(evaluator, [worker.run(t) for t in evaluator.plan(candidate, _rung(250))])
    assert (record.status, record.value) == ("failed", None)
    assert words in record.error
    assert "\n" not in record.error


def test_what_the_machine_failed_at_is_no_failure_for_good(
    subject: Subject, candidate: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever ran it, and beside whatever else; but what the candidate did itself is."""
    monkeypatch.setattr(evaluation, "IMAGES_PER_TASK", 250)
    own = [("ValueError: its own", False), ("MemoryError", True)]
    for errors, again in (([("MemoryError", True)] * 2, True), (own, False), (own[::-1], False)):
        evaluator = Evaluator("s", subject, Store(tmp_path))
        tasks = evaluator.plan(candidate, _rung(500))
        results = [TaskResult(t, error=e, transient=w) for t, (e, w) in zip(tasks, errors, strict=True)]
        assert may_succeed(_finish(evaluator, results)[0].error) is again


def test_the_screen_scores_the_distance_to_the_teacher(
    subject: Subject, worker: Worker, candidate: Candidate, teacher: SolverSchedule, tmp_path: Path
) -> None:
    evaluator = Evaluator("s", subject, Store(tmp_path), teacher=teacher)
    rung = Rung("distance", "distance", 32, 5)
    record, moments = _finish(evaluator, [worker.run(t) for t in evaluator.plan(candidate, rung)])
    assert moments == []
    assert record.metric == "teacher-distance"
    assert record.value == record.metrics["feature_distance"] > 0
    itself = Candidate(1, as_point(teacher), "test")
    nothing, _ = _finish(evaluator, [worker.run(t) for t in evaluator.plan(itself, rung)])
    assert nothing.value == 0.0
    assert nothing.denoiser_calls == 6 * 32  # the teacher's samples were there already
    assert np.isfinite(record.value)

"""Evaluate single schedules outside a search; what was computed before is read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline.evaluator import Evaluator, candidate_from
from fewstep.pipeline.executors.base import ExecutionSettings, make_executor
from fewstep.pipeline.ladder import Rung
from fewstep.pipeline.loop import Driver, OnRecord, evaluate_all
from fewstep.pipeline.reports.rows import Row, row_of
from fewstep.search_spaces.ode import Sampler
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.lease import Lease
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.tasks.metrics.interval import MIN_GROUPS, paired_difference
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import find_model
from fewstep.tasks.worker import GROUP, WorkerSettings

STUDY = "evaluations"


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model, its features and reference, what it is asked for.

    `quantized` is the folder of a quantised network that takes the place of the model's own, `runtime` how it runs;
    `judge` the classifier that says whether images show their labels, or empty.
    """

    model: str
    features: str = "auto"
    reference: str = "auto"
    conditions: Conditions = field(default_factory=Conditions)
    statistics: str = ""
    quantized: str = ""
    runtime: Literal["reference", "integer"] = "reference"
    judge: str = ""

    def evaluator(self, study: str, store: Store, teacher: SolverSchedule | None = None) -> Evaluator:
        """Plans evaluations of it and reads them from the store."""
        return Evaluator(
            study,
            find_model(self.model, self.quantized),
            store,
            self.features,
            self.reference,
            teacher,
            conditions=self.conditions,
            statistics=self.statistics,
            runtime=self.runtime,
            judge=self.judge,
        )

    def worker(self, device: str) -> WorkerSettings:
        """What a worker needs to evaluate it."""
        return WorkerSettings(
            self.model,
            self.features,
            device,
            conditions=self.conditions,
            statistics=self.statistics,
            quantized=self.quantized,
            runtime=self.runtime,
            judge=self.judge,
        )


def evaluate(
    subject: Subject,
    schedules: list[Sampler],
    images: int,
    seed: int,
    root: Path,
    execution: ExecutionSettings,
) -> list[EvaluationRecord]:
    """Frechet distances of the schedules, in their order; EvaluationError where one cannot be evaluated."""
    rung = Rung("report", "moments", images, seed)
    records = evaluate_missing(subject, [(s, "evaluate") for s in schedules], rung, root, execution)
    for record in records:
        if record.status != "complete" or record.value is None:
            raise EvaluationError(record.error)
    return records


def evaluate_missing(
    subject: Subject,
    schedules: Sequence[tuple[Sampler, str]],
    rung: Rung,
    root: Path,
    execution: ExecutionSettings,
    study: str = STUDY,
    on_record: OnRecord | None = None,
    teacher: SolverSchedule | None = None,
) -> list[EvaluationRecord]:
    """Records of (schedule, origin) at a rung, in their order; workers are set up only for what is missing.

    Distances are to the `teacher`'s samples.
    Failed evaluations come back as failed records, and are tried again the next time.
    """
    files, store = find_model(subject.model, subject.quantized), Store(root)
    subject.conditions.check(files.null_label, files.text, files.shown)
    with Lease(root):
        evaluator = subject.evaluator(study, store, teacher)
        past = store.evaluations.records(where={"study": study})
        known = {r.key: r for r in past if r.status == "complete"}
        missing = {evaluator.key(s, rung): (s, origin) for s, origin in schedules}
        work = [
            (candidate_from(len(past) + i, s, origin), rung)
            for i, (key, (s, origin)) in enumerate(missing.items())
            if key not in known
        ]
        if work:
            executor = make_executor(execution, subject.worker(execution.device))
            try:
                events = max((e.order for e in store.events.records({"study": study})), default=-1) + 1
                driver = Driver(evaluator, executor, store, len(past), events, on_record)
                known |= {r.key: r for r in evaluate_all(work, driver)}
            finally:
                executor.close()
        return [known[evaluator.key(s, rung)] for s, _ in schedules]


def evaluated_already(
    subject: Subject, samplers: Sequence[Sampler], rung: Rung, root: Path, study: str = STUDY
) -> list[EvaluationRecord | None]:
    """Complete records of samplers at a rung, in their order, None where there is none; nothing is computed."""
    store = Store(root)
    evaluator = subject.evaluator(study, store)
    known = {r.key: r for r in store.evaluations.records(where={"study": study}) if r.status == "complete"}
    return [known.get(evaluator.key(sampler, rung)) for sampler in samplers]


def check_groups(images: int) -> None:
    """ConfigurationError unless the images fill at least three groups of GROUP, which paired intervals need."""
    if images % GROUP or images < MIN_GROUPS * GROUP:
        raise ConfigurationError(
            f"{images} images do not make at least {MIN_GROUPS} groups of {GROUP}: give 1000, 5000"
        )


def pairs_by_nfe(
    first: Sequence[SolverSchedule], second: Sequence[SolverSchedule]
) -> list[tuple[SolverSchedule, SolverSchedule]]:
    """One and one are a pair; of more, those of equal NFE are, in rising order.

    ConfigurationError where no NFE is on both sides, or where one side has an NFE twice.
    """
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    sides = [sorted(side, key=lambda s: s.nfe) for side in (first, second)]
    calls = [[s.nfe for s in side] for side in sides]
    for found in calls:
        if len(set(found)) < len(found):
            raise ConfigurationError(f"schedules of {found} denoiser calls: give one for each number of calls")
    by_nfe = {s.nfe: s for s in sides[1]}
    pairs = [(s, by_nfe[s.nfe]) for s in sides[0] if s.nfe in by_nfe]
    if not pairs:
        raise ConfigurationError(
            f"no schedules of equal denoiser calls: {calls[0]} on one side, {calls[1]} on the other"
        )
    return pairs


def compare(
    subject: Subject,
    pair: tuple[Sampler, Sampler],
    images: int,
    seed: int,
    root: Path,
    execution: ExecutionSettings,
) -> list[Row]:
    """Rows `first`, `second` and `difference` (first minus second, paired over the noise).

    ConfigurationError unless the images fill at least three groups of GROUP, which the interval needs.
    """
    check_groups(images)
    records = evaluate(subject, list(pair), images, seed, root, execution)
    rung = Rung("report", "moments", images, seed)
    evaluator = subject.evaluator(STUDY, Store(root))
    first, second = (evaluator.groups(schedule, rung) for schedule in pair)
    found = paired_difference(evaluator.reference, first, second)
    assert found is not None
    names = [schedule.name or schedule.hash for schedule in pair]
    rows = [row_of(r, method, name) for r, method, name in zip(records, ("first", "second"), names, strict=True)]
    ends = (found.value, found.low, found.high, images, f"{names[0]} - {names[1]}")
    return [*rows, Row(evaluator.files.name, "difference", rows[0].nfe, rows[0].metric, *ends)]

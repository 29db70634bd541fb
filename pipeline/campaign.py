"""A fixed list of evaluations, each done once, in any order, resumable: reports, comparisons, grids, tables.

What was computed before is read back, also what a search computed in the same folder under the same name; failed
evaluations are tried again each time they are asked for.
"""

from __future__ import annotations

import platform
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from pydantic import BaseModel

from fewstep import __version__
from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline.dependencies import check_folder, dependencies
from fewstep.pipeline.evaluator import Evaluator
from fewstep.pipeline.executors.base import ExecutionSettings, make_executor
from fewstep.pipeline.known import Known
from fewstep.pipeline.loop import Driver, OnRecord, evaluate_all
from fewstep.pipeline.reports.rows import Row, row_of
from fewstep.pipeline.trial import Candidate, Rung, Work
from fewstep.search_spaces.ode import Sampler
from fewstep.search_spaces.point import Point, as_point
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.lease import Lease
from fewstep.storage.records import EvaluationRecord, StudyRecord
from fewstep.storage.store import Store
from fewstep.tasks.metrics.interval import MIN_GROUPS
from fewstep.tasks.metrics.metric import metric_class
from fewstep.tasks.work import GROUP, Subject, WorkerSettings

STUDY = "evaluations"
LIBRARIES = ("torch", "diffusers", "optuna", "ray", "scikit-learn")

Cell = tuple[Point | Sampler, str, Rung]


def opened(
    evaluator: Evaluator, execution: ExecutionSettings, cache: str = "", on_record: OnRecord | None = None
) -> Driver:
    """A driver that goes on after what a study has, its workers set up; close its executor in the end."""
    worker = WorkerSettings(evaluator.subject, execution.device, cache=cache, metrics=evaluator.metrics)
    where = {"study": evaluator.study}
    events = max((e.order for e in evaluator.store.events.records(where)), default=-1) + 1
    known = Known(evaluator.store, evaluator.study, execution.known) if execution.known else None
    order = _next(evaluator, "order")
    return Driver(evaluator, make_executor(execution, worker), evaluator.store, order, events, on_record, known)


def _next(evaluator: Evaluator, column: str) -> int:
    """The number behind those that a study has in a column."""
    numbers = evaluator.store.evaluations.read([column], {"study": evaluator.study}).column(column)
    return (pc.max(numbers).as_py() + 1) if len(numbers) else 0


def completed(evaluator: Evaluator) -> dict[str, EvaluationRecord]:
    """The complete records of an evaluator's study, by key."""
    records = evaluator.store.evaluations.records({"study": evaluator.study})
    return {r.key: r for r in records if r.status == "complete"}


def missing(evaluator: Evaluator, work: Iterable[Work]) -> list[Work]:
    """What of it has no complete record, each evaluation once."""
    known, distinct = completed(evaluator), dict[str, Work]()
    for candidate, rung in work:
        if (key := evaluator.key(candidate.point, rung)) not in known:
            distinct.setdefault(key, (candidate, rung))
    return list(distinct.values())


def register(
    root: Path, study: str, settings: BaseModel, model: str, model_hash: str, hashes: Mapping[str, str] | None = None
) -> None:
    """Write a study's row where its settings are new; ConfigurationError where the folder holds another study.

    `hashes` are of what its values depend on, see `dependencies`: where they changed, that is refused too.
    """
    store, hashes = Store(root), hashes or {}
    check_folder(store, hashes)
    past = store.studies.records()
    others = [r.study for r in past if r.study != study]
    if others:
        raise ConfigurationError(
            f"{root} holds the study {others[-1]!r}: choose another --out, and --known {root} takes what it has"
        )
    text = settings.model_dump_json()
    known = past[-1].hashes if past else {}
    if past and past[-1].settings_json == text:
        if not hashes.items() <= known.items():
            store.studies.append([replace(past[-1], hashes={**known, **hashes})])
        return
    versions = {"fewstep": __version__, "python": platform.python_version(), **{n: version(n) for n in LIBRARIES}}
    known_as = past[-1].id if past else uuid.uuid4().hex
    row = StudyRecord(study, datetime.now(UTC), text, model, model_hash, versions, {**known, **hashes}, known_as)
    store.studies.append([row])


@dataclass(frozen=True)
class Campaign:
    """Evaluations of one subject, kept in `root` under the name `study`.

    Distances are to the `teacher`'s samples; `cache` is the folder of what workers make and keep. With `parts`, an
    evaluation whose stored parts were lost is not taken for done. `elsewhere` is what others have evaluated, by
    default beneath the folders that `execution` names.
    """

    subject: Subject
    root: Path
    execution: ExecutionSettings
    study: str = STUDY
    teacher: SolverSchedule | None = None
    cache: str = ""
    on_record: OnRecord | None = None
    parts: bool = False
    elsewhere: Known | None = None
    loaded: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def evaluator(self) -> Evaluator:
        """Plans evaluations and reads them from the store; ConfigurationError where the subject cannot be asked so."""
        evaluator = Evaluator(self.study, self.subject, Store(self.root), self.teacher, self.loaded)
        files = evaluator.files
        self.subject.conditions.check(files)
        return evaluator

    def run(self, cells: Sequence[Cell]) -> list[EvaluationRecord]:
        """Records in the order of the cells; workers are set up only for what is missing, failures come as records."""
        with Lease(self.root):
            evaluator = self.evaluator()
            self.check(evaluator, [rung.metric for *_, rung in cells])
            work = self._work(evaluator, cells)
            failed: dict[str, EvaluationRecord] = {}
            todo = self._taken(evaluator, missing(evaluator, work))
            if self.parts:
                todo += [
                    (c, rung) for c, rung in work if (c, rung) not in todo and not evaluator.has_parts(c.point, rung)
                ]
            if todo:
                with _driver(evaluator, self.execution, self.cache, self.on_record) as driver:
                    failed = {r.key: r for r in evaluate_all(todo, driver)}
            known = failed | completed(evaluator)
            return [known[evaluator.key(candidate.point, rung)] for candidate, rung in work]

    def take(self, cells: Sequence[Cell]) -> None:
        """Copy what is known elsewhere of the cells into the own tables; nothing is computed."""
        with Lease(self.root):
            evaluator = self.evaluator()
            self._taken(evaluator, missing(evaluator, self._work(evaluator, cells)))

    def _taken(self, evaluator: Evaluator, todo: list[Work]) -> list[Work]:
        """What is left to evaluate when what is known from elsewhere is in the own tables."""
        known = self.elsewhere or Known(evaluator.store, self.study, self.execution.known)
        records, left = known.take(evaluator, todo)
        order = _next(evaluator, "order")
        evaluator.store.evaluations.append([replace(r, order=order + i) for i, r in enumerate(records)])
        return left

    def check(self, evaluator: Evaluator, metrics: Iterable[str]) -> dict[str, str]:
        """What values of these metrics depend on; refused where they cannot be measured, or the folder's are of others.

        See `dependencies`.
        """
        for metric in dict.fromkeys(metrics):
            evaluator.metric(metric).check()
        found = dependencies(evaluator, metrics)
        check_folder(evaluator.store, found)
        return found

    def known(self, cells: Sequence[Cell]) -> list[EvaluationRecord | None]:
        """Complete records in the order of the cells, None where there is none; nothing is computed."""
        evaluator = self.evaluator()
        records = completed(evaluator)
        return [records.get(evaluator.key(as_point(what), rung)) for what, _, rung in cells]

    @staticmethod
    def _work(evaluator: Evaluator, cells: Sequence[Cell]) -> list[Work]:
        first = _next(evaluator, "trial")
        return [(Candidate(first + i, as_point(what), origin), rung) for i, (what, origin, rung) in enumerate(cells)]


@contextmanager
def _driver(
    evaluator: Evaluator, execution: ExecutionSettings, cache: str, on_record: OnRecord | None
) -> Iterator[Driver]:
    driver = opened(evaluator, execution, cache, on_record)
    try:
        yield driver
    finally:
        driver.executor.close()


def evaluate_missing(
    subject: Subject,
    points: Sequence[tuple[Point | Sampler, str]],
    rung: Rung,
    root: Path,
    execution: ExecutionSettings,
    study: str = STUDY,
    on_record: OnRecord | None = None,
    teacher: SolverSchedule | None = None,
    parts: bool = False,
) -> list[EvaluationRecord]:
    """Records of (point, origin) at one rung, in their order, see `Campaign.run`."""
    campaign = Campaign(subject, root, execution, study, teacher, on_record=on_record, parts=parts)
    return campaign.run([(point, origin, rung) for point, origin in points])


def evaluate(
    subject: Subject,
    points: Sequence[Point | Sampler],
    images: int,
    seed: int,
    root: Path,
    execution: ExecutionSettings,
    metric: str = "frechet",
    parts: bool = False,
    teacher: SolverSchedule | None = None,
) -> list[EvaluationRecord]:
    """Records of a metric, in the order of the points; EvaluationError where one cannot be evaluated."""
    return evaluate_by(subject, points, images, seed, root, execution, (metric,), parts, teacher)


def evaluate_by(
    subject: Subject,
    points: Sequence[Point | Sampler],
    images: int,
    seed: int,
    root: Path,
    execution: ExecutionSettings,
    metrics: Sequence[str],
    parts: bool = False,
    teacher: SolverSchedule | None = None,
) -> list[EvaluationRecord]:
    """The same by several metrics, one after the other."""
    rungs = [Rung("report", metric, images, seed) for metric in metrics]
    records = Campaign(subject, root, execution, teacher=teacher, parts=parts).run(
        [(point, "evaluate", rung) for rung in rungs for point in points]
    )
    for record in records:
        if record.status != "complete" or record.value is None:
            raise EvaluationError(record.error)
    return records


# -- comparisons --------------------------------------------------------------------------------------


def check_groups(images: int) -> None:
    """ConfigurationError unless the images fill at least three groups of GROUP, which paired intervals need."""
    if images % GROUP or images < MIN_GROUPS * GROUP:
        raise ConfigurationError(
            f"{images} images do not make at least {MIN_GROUPS} groups of {GROUP}: give 1000, 5000"
        )


def check_paired(metric: str) -> None:
    """ConfigurationError for a metric whose parts are not kept, so that nothing is paired."""
    if not metric_class(metric).grows:
        raise ConfigurationError(
            f"{metric} is of all images together and has no paired difference: compare by another metric, or evaluate "
            "each by it"
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
    metric: str = "frechet",
    teacher: SolverSchedule | None = None,
) -> list[Row]:
    """Rows `first`, `second` and `difference` (first minus second, paired over the noise).

    ConfigurationError unless the images fill at least three groups of GROUP, which the interval needs, and for a metric
    that has no paired difference.
    """
    check_groups(images)
    check_paired(metric)
    records = evaluate(subject, list(pair), images, seed, root, execution, metric, True, teacher)
    rung = Rung("report", metric, images, seed)
    evaluator = Campaign(subject, root, execution, teacher=teacher).evaluator()
    first, second = (evaluator.parts(as_point(sampler), rung) for sampler in pair)
    found = evaluator.metric(metric).paired(first, second)
    assert found is not None
    names = _told_apart([as_point(sampler) for sampler in pair])
    rows = [row_of(r, method, name) for r, method, name in zip(records, ("first", "second"), names, strict=True)]
    ends = (found.value, found.low, found.high, images, f"{names[0]} - {names[1]}")
    return [*rows, Row(evaluator.files.name, "difference", rows[0].nfe, rows[0].metric, *ends)]


def _told_apart(points: Sequence[Point]) -> list[str]:
    """Names of two points; where those are equal with their hashes, or with their places where the points are equal."""
    names, hashes = ([getattr(point, what) for point in points] for what in ("name", "hash"))
    if len(set(names)) == len(names):
        return names
    ends = [f" {key}" for key in hashes] if len(set(hashes)) == len(hashes) else [" (first)", " (second)"]
    return [name + end for name, end in zip(names, ends, strict=True)]

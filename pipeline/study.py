"""A study on disk, from settings to results, whatever is searched: open or resume, search, report, publish."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fewstep import __version__
from fewstep.errors import ConfigurationError, EvaluationError, FewstepError, StorageError
from fewstep.files import write_text
from fewstep.pipeline.campaign import missing, opened, register
from fewstep.pipeline.dependencies import check_folder, check_studies, check_values, dependencies
from fewstep.pipeline.editing.settings import EditSettings
from fewstep.pipeline.evaluator import Evaluator
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.garbage import without_collection
from fewstep.pipeline.loop import Driver, OnRecord, evaluate_all, search
from fewstep.pipeline.meanings import check_names
from fewstep.pipeline.measured import NOTES as MEASURED_NOTES
from fewstep.pipeline.measured import MeasuredRow, measured_rows, measured_rungs
from fewstep.pipeline.problems.base import Problem, Publication
from fewstep.pipeline.problems.edits import EditProblem
from fewstep.pipeline.problems.model import ModelProblem
from fewstep.pipeline.problems.networks import NetworkProblem
from fewstep.pipeline.problems.schedule_report import ScheduleReport
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.reports.csv import results_csv
from fewstep.pipeline.reports.rows import Row, is_measured
from fewstep.pipeline.search import Search
from fewstep.pipeline.settings import STORED, SearchSettings
from fewstep.pipeline.trial import Rung
from fewstep.search_spaces.point import Point
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.lease import Lease
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.storage.verdicts import VERDICT, told_verdicts
from fewstep.tasks.metrics.interval import Interval
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.work import WorkerSettings

Settings = SearchSettings | EditSettings


def problem_of(settings: Settings) -> Problem:
    """The problem; ConfigurationError where the model does not fit it."""
    if isinstance(settings, EditSettings):
        return EditProblem(settings)
    return ScheduleProblem(settings) if settings.space == "schedule" else NetworkProblem(settings)


def read_settings(text: str) -> Settings:
    """Settings as a study stored them; StorageError where they are no search's."""
    try:
        fields: dict[str, Any] = json.loads(text)
        kind = EditSettings if "subject" in fields else SearchSettings
        return kind.model_validate(fields, context={STORED: True})
    except (ValidationError, ValueError, TypeError) as error:
        raise StorageError(f"no search that this version can read ({' '.join(str(error).split())[:200]})") from None


@dataclass
class Outcome:
    """What a finished search leaves: the table, files by name, calls of the whole study, seconds of this run.

    `verdicts` say what was found beyond what is stock, a line each; `measured` are the report's lines by other metrics.
    """

    rows: Sequence[Row]
    files: dict[str, Path]
    schedules: dict[int, Path]
    calls: int
    seconds: float
    own_share: float
    verdicts: Sequence[str] = ()
    measured: Sequence[MeasuredRow] = ()


class Study:
    """One study in one directory. Opening it writes nothing.

    `cache` is where workers keep what they make, by content: calibrated networks, or inversions of edits.
    """

    def __init__(self, root: Path, settings: Settings, cache: Path | None = None) -> None:
        self.root, self.settings = root, settings
        self.store = Store(root)
        self.problem: Problem = problem_of(settings)
        self._cache = cache
        self._hashes: dict[str, str] = {}

    @classmethod
    def load(cls, root: Path, cache: Path | None = None) -> Study:
        """The study that a directory holds; StorageError where it holds none."""
        store = Store(root)
        records = store.studies.records()
        if not records:
            check_studies(store)
            raise StorageError(f"{root} holds no study: start one with `fewstep search --out {root}`")
        try:
            settings = read_settings(records[-1].settings_json)
        except StorageError as error:
            raise StorageError(
                f"{root} holds {records[-1].study!r} and {error}: give the --out of a `fewstep search` (a baseline is "
                "shown by `fewstep baseline --partial`)"
            ) from None
        return cls(root, settings, cache)

    # -- what it is about -----------------------------------------------------------------------------

    @property
    def files(self) -> ModelFiles:
        """The model's."""
        return self.problem.files

    @property
    def teacher(self) -> SolverSchedule:
        """The many-step sampler; not for edits, which have none."""
        assert self.problem.teacher is not None
        return self.problem.teacher

    @property
    def exists(self) -> bool:
        """Whether the directory holds a study already."""
        return bool(self.store.studies.records())

    @property
    def resumes(self) -> str:
        """The command that goes on with it, but for its folder."""
        return f"fewstep {'edit search' if self.settings.space == 'edit' else 'search'} --resume"

    @property
    def cache(self) -> Path:
        """The folder of what workers keep."""
        return self._cache or self.root / ("edits" if self.settings.space == "edit" else "quantized")

    def records(self) -> list[EvaluationRecord]:
        """What was evaluated, in order."""
        found = self.store.evaluations.backed({"study": self.settings.study})
        return sorted(found, key=lambda r: r.order)

    def state(self, driver: Driver | None = None) -> Search:
        """What the records say, replayed."""

        def refitted(examples: int, tau: float | None, seconds: float) -> None:
            if driver is not None:
                data: dict[str, object] = {"evaluations": examples, "tau": tau, "seconds": seconds}
                driver.event("refit", f"surrogate fitted to {examples} candidates", data)

        with without_collection():
            # As written: a study's numbers rise, and a replay must not depend on a sort.
            records = self.store.evaluations.backed({"study": self.settings.study})
            self.store.warn_of_damage()
            return self.problem.search(refitted).replay(records)

    # -- running it -----------------------------------------------------------------------------------

    def evaluator(self) -> Evaluator:
        """Plans evaluations; what cannot be measured is refused here, before any worker is set up."""
        evaluator = Evaluator(self.settings.study, self.problem.subject, self.store, self.problem.teacher)
        for rung in self._rungs:
            evaluator.metric(rung.metric).check()
        return evaluator

    @property
    def measured_rungs(self) -> list[Rung]:
        """What is measured of the report besides."""
        if not isinstance(self.problem, ModelProblem):
            return []
        others = (*self.problem.settings.metric[1:], *self.problem.ladder.report.also)
        return measured_rungs(tuple(dict.fromkeys(others)), self.problem.ladder.report)

    @property
    def _rungs(self) -> list[Rung]:
        return [*self.problem.ladder, *self.measured_rungs]

    def worker_settings(self, device: str, threads: int = 0) -> WorkerSettings:
        """What a worker of this study holds."""
        # Actors have a working directory of their own.
        keeps = self.problem.subject.calibration or self.problem.subject.edits
        return WorkerSettings(self.problem.subject, device, threads, str(self.cache.resolve()) if keeps else "")

    @contextmanager
    def driver(self, execution: ExecutionSettings, on_record: OnRecord | None = None) -> Iterator[Driver]:
        """Hold the lease, workers and writer for as long as the block lasts."""
        with Lease(self.root):
            # What cannot be searched is refused here too, before any worker is set up.
            self.problem.search()
            if isinstance(self.problem, ModelProblem) and not self.exists:
                self.problem.check_budget()
            if isinstance(self.problem, EditProblem) and not self.exists:
                self.problem.check_new()
            evaluator = self.evaluator()
            self._hashes = self._checked(evaluator)
            cache = self.worker_settings(execution.device).cache
            driver = opened(evaluator, execution, cache, on_record)
            try:
                yield driver
            finally:
                driver.executor.close()

    def find(self, execution: ExecutionSettings, on_record: OnRecord | None = None) -> Search:
        """Search (or go on searching) without a report; what is known then."""
        with self.driver(execution, on_record) as driver:
            return self._searched(driver)

    def _searched(self, driver: Driver) -> Search:
        # Only now: a search that cannot start must leave nothing that looks like a study.
        self._register(self._hashes)
        state = self.state(driver)
        search(state, driver)
        return state

    def _checked(self, evaluator: Evaluator) -> dict[str, str]:
        """What its values depend on; refused where the folder holds values that were made of something else."""
        found = dependencies(evaluator, [rung.metric for rung in self._rungs])
        check_folder(self.store, found)
        check_values(self.store, self.settings.study, self.files.hash)
        if isinstance(self.problem, ModelProblem) and self.settings.space == "schedule":
            check_names(self.problem, evaluator)
        return found

    def _register(self, hashes: Mapping[str, str]) -> None:
        """Write the study's row, or what a row of before there were hashes lacks."""
        s = self.settings
        rows = [row for row in self.store.studies.records() if row.study == s.study]
        if not rows:
            register(self.root, s.study, s, s.model, self.files.hash, hashes)
        elif not hashes.items() <= rows[-1].hashes.items():
            self.store.studies.append([replace(rows[-1], hashes={**rows[-1].hashes, **hashes})])

    def run(self, execution: ExecutionSettings, command: str, on_record: OnRecord | None = None) -> Outcome:
        """Search (or go on searching) and report; `command` is named in the results' header."""
        begun = time.perf_counter()
        with self.driver(execution, on_record) as driver:
            state = self._searched(driver)
            self._announce(driver)
            work = self.problem.report_work(state)
            work += [(candidate, rung) for rung in self.measured_rungs for candidate, _ in work]
            made = evaluate_all(missing(driver.evaluator, work), driver)
            if failed := [r for r in made if r.status != "complete"]:
                self._warn(
                    driver,
                    f"{len(failed)} rows of the report failed, the last so: {failed[-1].error}; --resume "
                    "tries them again",
                )
            rows = self.problem.report_rows(state, self.reported())
            told = self._judge(state, driver)
            measured = self.measured(state, driver.evaluator)
            files = self._publish(state, driver, rows, told, command) | self._publish_measured(measured, command)
        spent = self.store.evaluations.read(["denoiser_calls"], {"study": self.settings.study})
        calls = sum(spent.column("denoiser_calls").to_pylist())
        seconds = time.perf_counter() - begun
        return Outcome(rows, files, self.schedules(), calls, seconds, driver.clock.own_share, told, measured)

    def reported(self) -> list[EvaluationRecord]:
        """The complete records of the report."""
        where = {"study": self.settings.study, "rung": self.problem.ladder.report.name, "status": "complete"}
        return sorted(self.store.evaluations.records(where), key=lambda r: r.order)

    def measure(self, metrics: Sequence[str], execution: ExecutionSettings) -> list[MeasuredRow]:
        """The lines of a finished report by further metrics, each measured once and kept.

        ConfigurationError where there is no report yet, or where a metric cannot measure the subject.
        """
        if not isinstance(self.problem, ModelProblem):
            raise ConfigurationError(f"{self.root} holds a search of edits, whose report has figures of its own")
        if not self.reported():
            raise ConfigurationError(f"{self.root} has no report yet: go on with `{self.resumes} --out {self.root}`")
        rungs, evaluator, state = measured_rungs(metrics, self.problem.ladder.report), self.evaluator(), self.state()
        for rung in rungs:
            evaluator.metric(rung.metric).check()
        check_folder(self.store, dependencies(evaluator, metrics))
        work = [(candidate, rung) for rung in rungs for candidate, _ in self.problem.report_work(state)]
        if missing(evaluator, work):
            with self.driver(execution) as driver:
                made = evaluate_all(missing(driver.evaluator, work), driver)
            if failed := [r for r in made if r.status != "complete"]:
                raise EvaluationError(f"{len(failed)} of {len(made)} could not be measured: {failed[-1].error}")
            evaluator = self.evaluator()
        return self.measured(state, evaluator, rungs)

    def measured(
        self, state: Search, evaluator: Evaluator | None = None, rungs: Sequence[Rung] = ()
    ) -> list[MeasuredRow]:
        """The report's lines by the other metrics, or at `rungs`, as far as they are there."""
        rungs, problem = rungs or self.measured_rungs, self.problem
        records = [r for r in self.records() if is_measured(r) and r.status == "complete"]
        if not rungs or not records:
            return []
        points = problem.points(state) if isinstance(problem, ScheduleReport) else {}
        if evaluator is None:
            try:
                evaluator = self.evaluator()
            except FewstepError:
                # What it was measured by is gone since.
                evaluator = None

        def difference(first: Point, second: Point, rung: Rung) -> Interval | None:
            return _paired(evaluator, rung, first, second)

        return measured_rows(
            records, rungs, problem.ladder.report, lambda found: problem.report_rows(state, found), points, difference
        )

    def verdicts(self, state: Search) -> list[str]:
        """What was found beyond what is stock, in a line an NFE: as it was said when the report was made, if it was.

        To work it out again takes long where there are many features.
        """
        if not isinstance(self.problem, ScheduleReport) or not self.reported():
            return []
        known = self._told()
        if not set(self.problem.settings.nfes) <= set(known):
            try:
                known = self._judged(self.problem, state, self.evaluator())
            except FewstepError:
                # What the report was measured by is gone since.
                known = self._judged(self.problem, state, None)
        return [known[nfe] for nfe in sorted(self.problem.settings.nfes)]

    def shared_evaluations(self, state: Search) -> list[tuple[int, str, str]]:
        """(NFE, hash, origin) of the report's lines, as several may share an evaluation that names one of them."""
        if not isinstance(self.problem, ScheduleReport):
            return []
        listed = [(nfe, c) for nfe in self.problem.settings.nfes for c in self.problem.contenders(state, nfe)]
        return [(nfe, c.candidate.hash, c.candidate.origin) for nfe, c in listed if not c.found]

    def _announce(self, driver: Driver) -> None:
        """What the report shows otherwise than it was asked for is an event too."""
        notes = self.problem.notes if isinstance(self.problem, ScheduleReport) else {}
        driver.tell(list(notes.items()), aloud=False)

    def _told(self) -> dict[int, str]:
        return told_verdicts(self.store.events.records({"study": self.settings.study}))

    def _judge(self, state: Search, driver: Driver) -> list[str]:
        """The verdicts of a report that was just made, kept as events."""
        if not isinstance(self.problem, ScheduleReport):
            return []
        before, now = self._told(), self._judged(self.problem, state, driver.evaluator)
        for nfe, line in sorted(now.items()):
            if before.get(nfe) != line:
                driver.event(VERDICT, line, {"nfe": nfe})
        return [now[nfe] for nfe in sorted(now)]

    def _judged(self, problem: ScheduleReport, state: Search, evaluator: Evaluator | None) -> dict[int, str]:
        """The verdicts by NFE. Where the report's images are too few for paired differences, or not kept: without."""
        rung = problem.ladder.report

        def difference(first: Point, second: Point) -> Interval | None:
            return _paired(evaluator, rung, first, second)

        def guarded(first: Point, second: Point) -> Interval | None:
            return _paired(evaluator, replace(rung, metric=problem.guard, also=()), first, second)

        return problem.verdicts(state, problem.report_rows(state, self.reported()), difference, guarded)

    # -- files ----------------------------------------------------------------------------------------

    def schedules(self) -> dict[int, Path]:
        """Files of the found schedules by NFE, those that are written."""
        nfes = getattr(self.settings, "nfes", ())
        return {nfe: path for nfe in nfes if (path := self.root / "schedules" / f"nfe{nfe}.json").is_file()}

    def images_path(self, nfe: int) -> Path:
        """Where the image grid of the found schedule for `nfe` is written."""
        return self.root / "schedules" / f"nfe{nfe}.png"

    def _publish(
        self, state: Search, driver: Driver, rows: Sequence[Row], told: Sequence[str], command: str
    ) -> dict[str, Path]:
        """The table as CSV, and what the problem publishes: all can be made again from the records."""

        problem = self.problem
        kinds = {"value": driver.evaluator.metric(problem.ladder.report.metric).interval}
        text = results_csv(rows, command, problem.seeds, problem.notes, self.reported(), kinds, told)
        files = {"results.csv": write_text(self.root / "results.csv", text)}
        to = Publication(
            self.root, self._identity(), command, driver.executor, lambda message: self._warn(driver, message)
        )
        return files | problem.publish(state, rows, to)

    def _publish_measured(self, rows: Sequence[MeasuredRow], command: str) -> dict[str, Path]:
        """The table by the other metrics, where there are any."""
        if not rows:
            return {}
        records = [r for r in self.records() if is_measured(r) and r.status == "complete"]
        text = results_csv(rows, command, self.problem.seeds, MEASURED_NOTES, records)
        return {"metrics.csv": write_text(self.root / "metrics.csv", text)}

    @staticmethod
    def _warn(driver: Driver, message: str) -> None:
        driver.event("not_published", message)
        print(f"warning: {message}", file=sys.stderr)

    def _identity(self) -> dict[str, object]:
        return {
            "model": self.files.name,
            "model_hash": self.files.hash,
            "study": self.settings.study,
            **{f"{name}_seed": seed for name, seed in self.problem.seeds.items()},
            "fewstep": __version__,
        }


def _paired(evaluator: Evaluator | None, rung: Rung, first: Point, second: Point) -> Interval | None:
    """The paired difference of two points at a rung; None where it cannot be worked out, or parts are not kept."""
    if evaluator is None:
        return None
    try:
        return evaluator.metric(rung.metric).paired(*(evaluator.parts(p, rung) for p in (first, second)))
    except (FewstepError, KeyError):
        return None

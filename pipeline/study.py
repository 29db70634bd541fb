"""A study on disk, from settings to results: open or resume, search, judge on fresh noise, publish."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from fewstep import __version__
from fewstep.errors import ConfigurationError, DamagedFileError, StorageError
from fewstep.files import write_text
from fewstep.pipeline.climb import Climb
from fewstep.pipeline.evaluator import Evaluator
from fewstep.pipeline.executors.base import ExecutionSettings, Executor, make_executor
from fewstep.pipeline.final import contenders, report_rows, report_work, winner
from fewstep.pipeline.loop import Driver, OnRecord, evaluate_all, search
from fewstep.pipeline.proposers.surrogate.encoder import warm_up
from fewstep.pipeline.quantization_report import NOTES, publish_front
from fewstep.pipeline.quantization_state import QuantizationState
from fewstep.pipeline.reports.csv import results_csv
from fewstep.pipeline.reports.pictures import COLUMNS, sample_images, write_grid
from fewstep.pipeline.reports.rows import FOUND, Row
from fewstep.pipeline.scope import Scope
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.state import SearchState
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.lease import Lease
from fewstep.storage.records import EvaluationRecord, StudyRecord
from fewstep.storage.store import Store
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import parse_schedule
from fewstep.tasks.worker import WorkerSettings


@dataclass
class Outcome:
    """What a finished search leaves: the table, files by name, and where the driver's time went."""

    rows: list[Row]
    files: dict[str, Path]
    schedules: dict[int, Path]
    calls: int
    seconds: float
    own_share: float


class Study:
    """One study in one directory. Opening it writes nothing."""

    def __init__(self, root: Path, settings: SearchSettings) -> None:
        self.root, self.settings = root, settings
        self.store = Store(root)
        self.files = find_model(settings.model, settings.quantized)
        self.teacher = parse_schedule(settings.teacher, self.files.noise)
        settings.conditions.check(self.files.null_label, self.files.text, self.files.shown)
        warm = [SolverSchedule.from_json(text).nfe for text in settings.warm_start]
        if warm and not set(warm) & set(settings.nfes):
            raise ConfigurationError(
                f"the schedules to start from have NFE {sorted(set(warm))}, the search NFE {list(settings.nfes)}: "
                "give one of the same number of calls"
            )
        self.scope = replace(Scope.of(settings, self.files), teacher_nfe=self.teacher.nfe)

    @classmethod
    def load(cls, root: Path) -> Study:
        """The study that a directory holds; StorageError where it holds none."""
        store = Store(root)
        records = store.studies.records()
        if not records and (damaged := store.studies.damaged()):
            raise DamagedFileError(
                f"{damaged[0][0]} is damaged ({damaged[0][1]}): the study's settings are lost with it"
            )
        if not records:
            raise StorageError(f"{root} holds no study: start one with `fewstep search --out {root}`")
        try:
            return cls(root, SearchSettings.model_validate_json(records[-1].settings_json))
        except ValidationError:
            raise StorageError(
                f"{root} holds {records[-1].study!r} and no search that this version can read: give the --out of a "
                "`fewstep search` (a baseline is shown by `fewstep baseline --partial`)"
            ) from None

    @property
    def exists(self) -> bool:
        """Whether the directory holds a study already."""
        return bool(self.store.studies.records())

    def state(self, driver: Driver | None = None) -> Climb:
        """What the records say, replayed."""

        def refitted(examples: int, tau: float | None, seconds: float) -> None:
            if driver is not None:
                data: dict[str, object] = {"evaluations": examples, "tau": tau, "seconds": seconds}
                driver.event("refit", f"surrogate fitted to {examples} schedules", data)

        records = self.store.evaluations.records(where={"study": self.settings.study})
        if self.settings.space != "schedule":
            return QuantizationState.replay(self.settings, self.scope, records)
        return SearchState.replay(self.settings, self.scope, records, refitted)

    def create(self) -> None:
        """Write the study's row."""
        libraries = {name: version(name) for name in ("torch", "diffusers", "optuna", "ray")}
        versions = {"fewstep": __version__, "python": platform.python_version(), **libraries}
        s = self.settings
        row = StudyRecord(s.study, datetime.now(UTC), s.model_dump_json(), s.model, self.files.hash, versions)
        self.store.studies.append([row])

    @property
    def _calibration(self) -> str:
        """The schedule (JSON) that configs are calibrated under, empty where none is searched."""
        return self.scope.calibration.to_json() if self.scope.calibration else ""

    def worker_settings(self, device: str, threads: int = 0) -> WorkerSettings:
        """What a worker of this study holds."""
        s = self.settings
        return WorkerSettings(
            s.model,
            s.features,
            device,
            threads,
            conditions=s.conditions,
            statistics=s.statistics,
            quantized=s.quantized,
            calibration=self._calibration,
            # Actors have a working directory of their own.
            cache=str(self.cache.resolve()) if self._calibration else "",
        )

    @contextmanager
    def driver(self, execution: ExecutionSettings, on_record: OnRecord | None = None) -> Iterator[Driver]:
        """Hold the lease, workers and writer for as long as the block lasts."""
        s = self.settings
        with Lease(self.root):
            evaluator = Evaluator(
                s.study,
                self.files,
                self.store,
                s.features,
                s.reference,
                self.teacher,
                s.conditions,
                s.statistics,
                self._calibration,
            )
            executor = make_executor(execution, self.worker_settings(execution.device))
            try:
                where = {"study": s.study}
                order = max((r.order for r in self.store.evaluations.records(where)), default=-1) + 1
                events = max((e.order for e in self.store.events.records(where)), default=-1) + 1
                yield Driver(evaluator, executor, self.store, order, events, on_record)
            finally:
                executor.close()

    def find(self, execution: ExecutionSettings, on_record: OnRecord | None = None) -> Climb:
        """Search (or go on searching) without a report; what is known then."""
        with self.driver(execution, on_record) as driver:
            return self._searched(driver)

    def _searched(self, driver: Driver) -> Climb:
        # Only now: a search that cannot start must leave nothing that looks like a study.
        if not self.exists:
            self.create()
        state = self.state(driver)
        search(state, driver)
        return state

    def run(self, execution: ExecutionSettings, command: str, on_record: OnRecord | None = None) -> Outcome:
        """Search (or go on searching) and report; `command` is named in the results' header."""
        if self.settings.sampler == "s3" and self.settings.space == "schedule":
            warm_up()
        with self.driver(execution, on_record) as driver:
            state = self._searched(driver)
            known = self._report_records()
            work = [
                w
                for w in report_work(state)
                if driver.evaluator.key(w[0].schedule, w[1], w[0].quantization) not in known
            ]
            evaluate_all(work, driver)
            rows = report_rows(state, list(self._report_records().values()))
            files = self._publish(state, driver.executor, rows, command)
        calls = sum(r.denoiser_calls for r in self.store.evaluations.records({"study": self.settings.study}))
        return Outcome(rows, files, self.schedules(), calls, driver.clock.total, driver.clock.own_share)

    def _report_records(self) -> dict[str, EvaluationRecord]:
        records = self.store.evaluations.records({"study": self.settings.study})
        return {r.key: r for r in records if r.rung == "report"}

    def network_path(self, config: QuantizationConfig) -> Path:
        """Where the network lies that this study calibrated for a config, if it did so on this machine."""
        from fewstep.tasks.quantization.build import Recipe

        assert self.scope.calibration is not None
        recipe = Recipe(config, self.scope.calibration, self.settings.conditions, self.scope.statistics)
        return self.cache / recipe.key(self.files)

    @property
    def cache(self) -> Path:
        """The folder of calibrated networks."""
        return self.root / "quantized"

    def schedules(self) -> dict[int, Path]:
        """Files of the found schedules by NFE, those that are written."""
        return {nfe: path for nfe in self.settings.nfes if (path := self.schedule_path(nfe)).is_file()}

    def schedule_path(self, nfe: int) -> Path:
        """Where the found schedule for `nfe` is written."""
        return self.root / "schedules" / f"nfe{nfe}.json"

    def _publish(self, state: Climb, executor: Executor, rows: Sequence[Row], command: str) -> dict[str, Path]:
        """Schedules as JSON, the table as CSV, the image grid: all can be made again from the records."""
        seeds = {"search": self.settings.noise_seed, "report": self.settings.report_seed}
        notes = NOTES if isinstance(state, QuantizationState) else {}
        files = {"results.csv": write_text(self.root / "results.csv", results_csv(rows, command, seeds, notes))}
        if isinstance(state, QuantizationState):
            model = self._identity()
            return files | publish_front(state, executor, self.root, model, self.teacher, self.network_path)
        assert isinstance(state, SearchState)
        pictures: list[tuple[str, SolverSchedule]] = []
        teacher = (f"teacher, {self.teacher.nfe}", self.teacher)
        for nfe in self.settings.nfes:
            found = winner(state, nfe)
            if found is None:
                continue
            schedule = found.candidate.schedule.model_copy(
                update={"name": f"fewstep-{self.files.name}-nfe{nfe}", "provenance": self._provenance(nfe, rows)}
            )
            write_text(self.schedule_path(nfe), schedule.to_json(indent=2) + "\n")
            pair = [(f"found, {nfe} calls", schedule)]
            methods = {r.method: r.value for r in rows if r.nfe == nfe and r.method != FOUND}
            if methods:
                best = min(methods, key=lambda m: methods[m])
                pair.append((f"{best}, {nfe}", contenders(state, nfe)[best].candidate.schedule))
            self._grid(executor, [*pair, teacher], self.images_path(nfe))
            pictures += pair
        files["images.png"] = self._grid(executor, [*pictures, teacher], self.root / "images.png")
        return files

    def _grid(self, executor: Executor, pictures: list[tuple[str, SolverSchedule]], path: Path) -> Path:
        seed = self.settings.report_seed
        return write_grid([(label, sample_images(executor, s, seed, COLUMNS)) for label, s in pictures], path)

    def images_path(self, nfe: int) -> Path:
        """Where the image grid of the found schedule for `nfe` is written."""
        return self.root / "schedules" / f"nfe{nfe}.png"

    def _provenance(self, nfe: int, rows: Sequence[Row]) -> dict[str, object]:
        own = next((r for r in rows if r.nfe == nfe and r.method == "fewstep"), None)
        figures = (
            {}
            if own is None
            else {
                "metric": own.metric,
                "value": own.value,
                "low": own.low,
                "high": own.high,
                "images": own.images,
            }
        )
        return self._identity() | figures

    def _identity(self) -> dict[str, object]:
        return {
            "model": self.files.name,
            "model_hash": self.files.hash,
            "study": self.settings.study,
            "search_seed": self.settings.noise_seed,
            "report_seed": self.settings.report_seed,
            "fewstep": __version__,
        }

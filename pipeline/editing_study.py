"""A search of edits on disk: open or resume, search, measure what was found on images that nothing else has seen."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from fewstep import __version__
from fewstep.errors import ConfigurationError, EvaluationError, StorageError
from fewstep.files import write_text
from fewstep.pipeline.editing_evaluation import EditCandidate, EditEvaluator, balance, edit_candidate
from fewstep.pipeline.editing_settings import EditSettings
from fewstep.pipeline.editing_state import FINALS, SCREEN, EditState
from fewstep.pipeline.executors.base import ExecutionSettings, make_executor
from fewstep.pipeline.ladder import Rung
from fewstep.pipeline.loop import Driver, OnRecord, evaluate_all, search
from fewstep.pipeline.reports.csv import results_csv
from fewstep.search_spaces.edit import EditConfig
from fewstep.search_spaces.edit_space import EditSpace
from fewstep.storage.lease import Lease
from fewstep.storage.records import EvaluationRecord, StudyRecord
from fewstep.storage.store import Store
from fewstep.tasks.models.files import find_model
from fewstep.tasks.worker import WorkerSettings

LATENT_CACHE = "edits"


@dataclass(frozen=True)
class FrontRow:
    """One member of the front, on the finals' images."""

    trial: int
    success: float
    identity: float
    balance: float
    nfe: int
    images: int
    time: float
    latent: str
    strength_z: float
    strength_h: float
    inversion: str
    generation: str
    eta: float
    rescale: bool
    C: float
    standardise: bool
    examples: int


def way_name(way: object) -> str:
    """A way as a table shows it."""
    return way if isinstance(way, str) else str(getattr(way, "name", "") or getattr(way, "hash", ""))


class EditStudy:
    """One search in one directory. Opening it writes nothing."""

    def __init__(self, root: Path, settings: EditSettings, cache: Path | None = None) -> None:
        self.root, self.settings = root, settings
        self.cache = (cache or root / LATENT_CACHE).absolute()
        self.store, self.files = Store(root), find_model(settings.subject.model)
        s = settings
        self.space = EditSpace(s.steps, s.subject.examples, s.base, s.schedules, s.kept)

    @classmethod
    def load(cls, root: Path, cache: Path | None = None) -> EditStudy:
        """The study that a directory holds; StorageError where it holds none of edits."""
        records = Store(root).studies.records()
        if not records:
            raise StorageError(f"{root} holds no search of edits: start one with `fewstep edit search --out {root}`")
        try:
            return cls(root, EditSettings.model_validate_json(records[-1].settings_json), cache)
        except ValidationError:
            raise StorageError(f"{root} holds {records[-1].study!r}, which is no search of edits") from None

    @property
    def exists(self) -> bool:
        """Whether the directory holds a study already."""
        return bool(self.store.studies.records())

    def records(self) -> list[EvaluationRecord]:
        """What was evaluated, in order."""
        return sorted(self.store.evaluations.records({"study": self.settings.study}), key=lambda r: r.order)

    def state(self) -> EditState:
        """What the records say, replayed."""
        return EditState.replay(self.settings, self.space, self.files, [r for r in self.records() if r.rung in RUNGS])

    def create(self) -> None:
        """Write the study's row."""
        libraries = {name: version(name) for name in ("torch", "diffusers", "optuna", "scikit-learn")}
        versions = {"fewstep": __version__, "python": platform.python_version(), **libraries}
        s = self.settings
        now = datetime.now(UTC)
        row = StudyRecord(s.study, now, s.model_dump_json(), s.subject.model, self.files.hash, versions)
        self.store.studies.append([row])

    @contextmanager
    def driver(self, execution: ExecutionSettings, on_record: OnRecord | None = None) -> Iterator[Driver]:
        """Hold the lease, workers and writer for as long as the block lasts."""
        s = self.settings
        with Lease(self.root):
            worker = WorkerSettings(
                s.subject.model,
                s.subject.features,
                execution.device,
                cache=str(self.cache),
                edits=s.subject.model_dump_json(),
            )
            executor = make_executor(execution, worker)
            try:
                evaluator = EditEvaluator(s.study, s.subject, self.files)
                order = max((r.order for r in self.records()), default=-1) + 1
                events = max((e.order for e in self.store.events.records({"study": s.study})), default=-1) + 1
                yield Driver(evaluator, executor, self.store, order, events, on_record)
            finally:
                executor.close()

    def run(self, execution: ExecutionSettings, on_record: OnRecord | None = None) -> EditState:
        """Search, or go on searching, to the end of the finals."""
        with self.driver(execution, on_record) as driver:
            if not self.exists:
                self.create()
            state = self.state()
            search(state, driver)
            return state

    def measure(
        self,
        configs: Sequence[tuple[str, EditConfig]],
        rung: Rung,
        execution: ExecutionSettings,
        on_record: OnRecord | None = None,
    ) -> list[EvaluationRecord]:
        """Records of named configs at a rung, in their order; only what is not known yet is computed.

        EvaluationError where one cannot be made.
        """
        evaluator = EditEvaluator(self.settings.study, self.settings.subject, self.files)
        past = self.records()
        known = {r.key: r for r in past if r.status == "complete"}
        trial = max((r.trial for r in past), default=-1) + 1
        work: dict[str, tuple[EditCandidate, Rung]] = {}
        keys = []
        for i, (name, config) in enumerate(configs):
            candidate = edit_candidate(trial + i, config, name, {}, self.files)
            keys.append(evaluator.key(candidate, rung))
            if keys[-1] not in known:
                work.setdefault(keys[-1], (candidate, rung))
        if work:
            with self.driver(execution, on_record) as driver:
                if not self.exists:
                    self.create()
                known |= {r.key: r for r in evaluate_all(work.values(), driver)}
        for key in keys:
            if known[key].status != "complete":
                raise EvaluationError(known[key].error)
        return [known[key] for key in keys]

    def front_rows(self, state: EditState) -> list[FrontRow]:
        """The front of the finals, fewest calls first."""
        rows = []
        for trial in state.front(FINALS):
            figures, c = trial.records[FINALS].metrics, trial.candidate.config
            rows.append(
                FrontRow(
                    trial.candidate.trial,
                    figures["success"],
                    figures["identity"],
                    balance(figures["success"], figures["identity"]),
                    int(figures["nfe"]),
                    int(figures["images"]),
                    self.files.noise.time(c.step),
                    c.latent,
                    c.strength_z,
                    c.strength_h,
                    way_name(c.inversion),
                    way_name(c.generation),
                    c.eta,
                    c.rescale,
                    c.boundary.C,
                    c.boundary.standardise,
                    c.boundary.images,
                )
            )
        return sorted(rows, key=lambda r: (r.nfe, -r.balance))

    def publish(self, state: EditState, command: str) -> dict[str, Path]:
        """The front as CSV, and what was chosen as JSON; ConfigurationError where nothing was found."""
        found = state.chosen()
        if found is None:
            bound = f" of at most {self.settings.most_calls} calls" if self.settings.most_calls else ""
            raise ConfigurationError(f"the search found no edit{bound}: give it a larger --budget")
        seeds = {"search": self.settings.subject.seed}
        text = results_csv(self.front_rows(state), command, seeds)
        chosen = found.candidate.config.model_dump_json(indent=2) + "\n"
        return {
            "front.csv": write_text(self.root / "front.csv", text),
            "edit.json": write_text(self.root / "edit.json", chosen),
        }


RUNGS = (SCREEN, FINALS)

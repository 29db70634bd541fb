"""What every table does: settings -> evaluations, each made once -> rows -> CSV that says how it was made; pictures.

A table is a `Table`: settings whose defaults made the published files, and `make`, which yields sheets and pictures as
they come to be. What an evaluation found lies under the table's folder: killed, the same command goes on, and with more
images only the new ones are computed. All that tables need of the pipeline is here.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, NonNegativeInt

from fewstep.dashboards.drawings import save_front
from fewstep.dashboards.lines import Level
from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.files import write_text, write_whole
from fewstep.pipeline.baseline_settings import GRIDS_TO_ZERO, known_names
from fewstep.pipeline.campaign import Campaign
from fewstep.pipeline.executors.base import ExecutionSettings, make_executor
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.proposers.base import is_known, is_refined
from fewstep.pipeline.refinement import refine, select
from fewstep.pipeline.reports.provenance import provenance
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.pipeline.trial import Rung, figure_name
from fewstep.search_spaces.checked import Checked
from fewstep.search_spaces.ode import Sampler
from fewstep.search_spaces.point import Point, as_point, content_key, parse_point, schedule_of
from fewstep.search_spaces.schedule import SolverSchedule, load_schedule
from fewstep.search_spaces.schedule.presets import ALIASES, PRESETS
from fewstep.storage.lease import Lease
from fewstep.storage.records import EvaluationRecord, MomentsRecord
from fewstep.storage.store import Store
from fewstep.tasks.measured_settings import REPORT_SEED_OFFSET
from fewstep.tasks.metrics.moments import Moments
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.refinement.moment_plan import MomentPlan
from fewstep.tasks.refinement.plan import RefinePlan
from fewstep.tasks.sampling import grids
from fewstep.tasks.sampling.grids import GRIDS, preset_on_grid
from fewstep.tasks.work import CALLS, GROUP, Subject, Task, WorkerSettings

__all__ = [
    "CALLS", "GRIDS", "GRIDS_TO_ZERO", "GROUP", "Conditions", "EvaluationRecord", "ExecutionSettings", "Rung",
    "Subject", "figure_name", "known_names",
]  # fmt: skip

Row = dict[str, Any]
Work = Sequence[tuple[Point | Sampler, str]]
Tell = Callable[[str], None]
# Moments and further sums of one group of images.
Group = tuple[Moments, Mapping[str, float]]
Presets = Annotated[tuple[str, ...], AfterValidator(lambda names: known_names(names, "preset", [*PRESETS, *ALIASES]))]
Grids = Annotated[tuple[str, ...], AfterValidator(lambda names: known_names(names, "grid", [*GRIDS, *grids.ALIASES]))]


@dataclass(frozen=True)
class Sheet:
    """A CSV file: rows with the first one's columns; `notes` explain columns, or replace what the header says."""

    name: str
    rows: Sequence[Row]
    seeds: Mapping[str, int]
    notes: Mapping[str, str] = field(default_factory=dict)

    def csv(self, command: str) -> str:
        """The rows under `#` lines that say how they were made."""
        out = io.StringIO()
        head = provenance(command, dict(self.seeds)) | dict(self.notes)
        out.writelines(f"# {name}: {value}\n" for name, value in head.items())
        writer = csv.DictWriter(out, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in self.rows)
        return out.getvalue()


@dataclass(frozen=True)
class Picture:
    """A PNG file, drawn to the path that it is given."""

    name: str
    draw: Callable[[Path], object]


class Table(Checked):
    """Settings of a table, and how it is made from them. `study` names its evaluations on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    study: ClassVar[str]

    seed: NonNegativeInt = 0

    def make(self, engine: Engine) -> Iterator[Sheet | Picture]:
        """What the table consists of, as soon as it is there; of a name that comes again the last one stays."""
        raise NotImplementedError

    def changed(self, texts: Iterable[str]) -> Self:
        """With fields set as `name=value`, lists by commas, records as JSON, those of a table within by `table.name`.

        ConfigurationError where it cannot be.
        """
        fields: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        for text in texts:
            name, equals, value = text.partition("=")
            within, dot, _ = name.partition(".")
            if dot and isinstance(fields.get(within), Table):
                fields[within] = fields[within].changed([text.removeprefix(f"{within}.")])
                continue
            if not equals or name not in fields:
                raise ConfigurationError(f"{text!r} sets nothing: give FIELD=VALUE, FIELD one of {', '.join(fields)}")
            parts = [part.strip() for part in value.split(",") if part.strip()]
            nested = isinstance(fields[name], BaseModel)
            fields[name] = parts if isinstance(fields[name], tuple) else _json(text, value) if nested else value
        return self.build(**fields)

    def chosen_on(self, name: str, images: int) -> Rung:
        """A rung that chooses, on the noise of searches."""
        return Rung(name, "frechet", images, self.seed)

    def reported_on(self, images: int) -> Rung:
        """The rung of what is shown, on noise that chose nothing."""
        return Rung("report", "frechet", images, self.seed + REPORT_SEED_OFFSET)


def _json(text: str, value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        raise ConfigurationError(f'{text!r}: give JSON, as {{"iterations": 100}}') from None


def make(
    name: str,
    table: Table,
    root: Path,
    execution: ExecutionSettings,
    copies: Path | None = None,
    command: str = "",
    tell: Tell | None = None,
) -> list[Path]:
    """Make a table; its files under `root`, and copies of them in a folder."""
    files: dict[Path, None] = {}
    for part in table.make(Engine(name, table.study, root, execution, command, tell)):
        if isinstance(part, Sheet):
            path = write_text(root / f"{part.name}.csv", part.csv(command))
        else:
            path = root / f"{part.name}.png"
            part.draw(path)
        files[path] = None
    if copies is not None:
        return [write_whole(copies / path.name, path.read_bytes()) for path in files]
    return list(files)


def measured(record: EvaluationRecord, what: str, others: Sequence[str] = ()) -> Row:
    """Feature space, distance and interval of a complete record, and what its rung's other metrics say.

    EvaluationError, naming `what`, of a failed one.
    """
    if record.status != "complete" or record.value is None:
        raise EvaluationError(f"{what} has no value at rung {record.rung}: {record.error}")
    row: Row = {"metric": record.features, "value": record.value, "low": record.low, "high": record.high}
    for name in (figure_name(metric) for metric in others):
        # By a metric that chose nothing, of the same images.
        row |= {end: record.metrics.get(end, math.nan) for end in (name, f"{name}-low", f"{name}-high")}
    return row


def on_grids(files: ModelFiles, presets: Sequence[str], on: Sequence[str], nfe: int) -> dict[str, SolverSchedule]:
    """Presets on grids by PRESET/GRID; what cannot be, such as Heun in 4 calls to zero, is left out."""
    found = {}
    for name in (f"{preset}/{grid}" for preset in presets for grid in on):
        try:
            found[name] = preset_on_grid(name, files.noise, nfe)
        except ConfigurationError:
            continue
    return found


def draw_front(rows: Sequence[Row], level: Row, path: Path) -> None:
    """Distance against whole NFEs from rows with method and interval, with one row as a level across."""
    table = pd.DataFrame(rows)[["method", "value", "low", "high"]].astype({"low": float, "high": float})
    table = table.assign(nfe=[round(r["nfe"]) for r in rows], grid=[r["schedule"].partition("/")[2] for r in rows])
    table = table.assign(metric="Frechet distance", features=rows[0]["metric"], reference="", order=range(len(rows)))
    label = f"{level['method']}, {level['nfe']:.0f} calls"
    save_front(table, path, Level(label, level["value"], level["low"], level["high"]))


@dataclass(frozen=True)
class Searched:
    """A search of schedules on disk."""

    study: Study

    @classmethod
    def load(cls, root: str) -> Searched:
        """ConfigurationError where the folder holds a search of something else."""
        study = Study.load(Path(root))
        if study.settings.space != "schedule":
            raise ConfigurationError(f"{root} searched {study.settings.space}: give a search of schedules")
        return cls(study)

    @property
    def nfes(self) -> tuple[int, ...]:
        """The numbers of calls that were searched."""
        return tuple(getattr(self.study.settings, "nfes", ()))

    @property
    def subject(self) -> Subject:
        """What was searched on."""
        return self.study.problem.subject

    @property
    def seeds(self) -> dict[str, int]:
        """Those of the search's noise and of its report's."""
        return self.study.problem.seeds

    @property
    def records(self) -> list[EvaluationRecord]:
        """What the search evaluated."""
        return self.study.records()

    @property
    def found(self) -> list[SolverSchedule]:
        """What it found; ConfigurationError where that is nothing yet."""
        paths = self.study.schedules().values()
        if not paths:
            raise ConfigurationError(f"{self.study.root} holds no schedules/*.json: give a finished search")
        return [load_schedule(path) for path in paths]

    def judged(self, nfe: int) -> list[SolverSchedule]:
        """The schedules of an NFE that were judged, the best first, each once."""
        asked = [(r.value, r.candidate_json) for r in self.records if r.rung == "frechet" and r.nfe == nfe and r.value]
        ranked = [schedule for _, text in sorted(asked) if (schedule := schedule_of(parse_point(text)))]
        return list({s.hash: s for s in reversed(ranked)}.values())[::-1]

    def calls(self, nfe: int) -> int:
        """Denoiser calls at an NFE, the report's apart."""
        return sum(r.denoiser_calls for r in self.records if r.nfe == nfe and r.rung != "report")


class Found(NamedTuple):
    """What a search found at one NFE, its calls there, its proposals of its own, and all that it evaluated."""

    schedule: SolverSchedule
    calls: int
    own: int
    records: Sequence[EvaluationRecord]


class Engine:
    """What a table in the making is given: evaluations that are made once and kept under `root`."""

    def __init__(
        self, name: str, study: str, root: Path, execution: ExecutionSettings, command: str, tell: Tell | None
    ) -> None:
        self.name, self.study, self.root, self.execution, self.command = name, study, root, execution, command
        self.tell: Tell = tell or (lambda text: None)

    def below(self, folder: str) -> Engine:
        """The same for what lies in a folder of its own."""
        return Engine(self.name, self.study, self.root / folder, self.execution, self.command, self.tell)

    def records(
        self, subject: Subject, work: Work, rung: Rung, teacher: SolverSchedule | None = None
    ) -> list[EvaluationRecord]:
        """Records of (point, origin) at a rung, in their order; failed ones among them."""
        campaign = Campaign(subject, self.root, self.execution, self.study, teacher, on_record=self.told)
        return campaign.run([(point, origin, rung) for point, origin in work])

    def told(self, record: EvaluationRecord) -> None:
        """One line about a finished evaluation."""
        value = record.error or "failed" if record.value is None else f"{record.value:.4f}"
        self.tell(f"{record.rung:12} NFE {record.nfe:<3} {record.origin:40} {value}")

    def refined(
        self,
        subject: Subject,
        start: SolverSchedule,
        teacher: SolverSchedule,
        plan: RefinePlan | MomentPlan,
        images: int,
        seed: int,
    ) -> tuple[SolverSchedule, float, int]:
        """What refinement gives (the start itself where that is better), its distance on `images`, and its calls."""
        tuned = refine(subject, start, teacher, plan, self.root, self.execution.device)
        judged = select(subject, tuned, images, seed, self.root, self.execution, self.study, self.told)
        value = min(r.value for r in judged.records if r.value is not None)
        return judged.chosen, value, tuned.cost.calls + judged.selection_calls

    def searched(self, name: str, nfe: int, nfes: Sequence[int], **settings: Any) -> Found:
        """The best at one NFE of a search at several. Calls at none of them, as a teacher's, are shared.

        ConfigurationError where another search has the folder.
        """
        label = name if len(nfes) > 1 else f"{name}-{nfe}"
        asked = SearchSettings.build(study=f"{self.study}-{label}", nfes=tuple(nfes), **settings)
        study = Study(self.root / "searches" / label, asked)
        if study.exists and Study.load(study.root).settings != asked:
            raise ConfigurationError(f"{study.root} holds a search with other settings: choose another --out")
        state, problem = study.find(self.execution, self.told), study.problem
        assert isinstance(problem, ScheduleProblem)
        best = problem.winner(state, nfe)
        if best is None:
            raise ConfigurationError(f"the search {name} found nothing at NFE {nfe}: give it a larger budget")
        records = Searched(study).records
        own = {r.candidate for r in records if r.nfe == nfe and not (is_known(r.origin) or is_refined(r.origin))}
        shared = sum(r.denoiser_calls for r in records if r.nfe not in nfes) // len(nfes)
        calls = shared + sum(r.denoiser_calls for r in records if r.nfe == nfe)
        return Found(best.candidate.schedule, calls, len(own), records)

    def sampled(
        self, subject: Subject, sampler: Sampler, seed: int, starts: Sequence[int], count: int = GROUP
    ) -> Iterator[tuple[int, npt.NDArray[np.float32], int]]:
        """Start, images and denoiser calls of runs of images, in the order in which they finish."""
        waiting, point = list(starts)[::-1], as_point(sampler).to_json()
        if not waiting:
            return
        executor = make_executor(self.execution, WorkerSettings(subject, self.execution.device))
        try:
            while waiting or executor.in_flight:
                while waiting and executor.in_flight < executor.capacity:
                    start = waiting.pop()
                    executor.submit(Task(f"{self.study}-{start}", "images", point, seed, start, count))
                result = executor.next()
                if result.images is None:
                    raise EvaluationError(f"{subject.model} could not be sampled: {result.error}")
                yield result.task.start, result.images, result.denoiser_calls
        finally:
            executor.close()

    def kept(self, folder: str, **parts: object) -> Path:
        """Where something lies that these parts decide about."""
        return self.root / folder / content_key(**parts)

    def groups(
        self, key: Mapping[str, object], images: int, make: Callable[[list[int]], Iterable[tuple[int, Group]]]
    ) -> list[Group]:
        """Moments and sums of whole groups of images, by `make` from the starts of those that are not kept yet."""
        base, table = content_key(**key), Store(self.root).moments
        with Lease(self.root):
            known = {r.start: r for r in table.records(where={"base": base})}
            starts = range(0, images, GROUP)
            for start, (moments, sums) in make([start for start in starts if start not in known]):
                mean, scatter = moments.to_bytes()
                known[start] = MomentsRecord(base, start, moments.count, moments.dim, mean, scatter, dict(sums))
                table.append([known[start]])
        kept = [known[start] for start in starts]
        return [(Moments.from_bytes(r.mean, r.scatter, r.count, r.dim), r.sums) for r in kept]

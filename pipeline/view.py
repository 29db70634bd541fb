"""What a finished study or evaluation looks like from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import ConfigurationError, StorageError
from fewstep.pipeline.settings import SearchSettings
from fewstep.search_spaces.schedule import SolverSchedule, load_schedule

if TYPE_CHECKING:
    import pandas as pd

    from fewstep.pipeline.study import Settings, Study
    from fewstep.storage.records import EvaluationRecord
    from fewstep.tasks.sampling.scheduler import FewStepScheduler

FRONT = ["nfe", "origin", "value", "low", "high", "images", "metric"]


@dataclass(frozen=True)
class Evaluation:
    """A figure `value` of `schedule` by `metric`, such as a Frechet distance, with its 95% interval `low` to `high`.

    `nfe` is a mean where it varies. `accuracy`, with its interval, is the share of images in which a judge sees their
    label, where one was asked. `figures` are what the metric tells besides, by name; `others` are by further metrics.
    """

    model: str
    schedule: str
    nfe: float
    metric: str
    value: float
    low: float | None
    high: float | None
    images: int
    seed: int
    denoiser_calls: int
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    others: tuple[Evaluation, ...] = ()

    def plain(self) -> dict[str, Any]:
        """The fields, without `figures` and `others` where there are none."""
        return {name: value for name, value in asdict(self).items() if name not in ("figures", "others") or value}

    def row(self) -> pd.DataFrame:
        """The same as a table, one row a metric."""
        import pandas as pd

        rows = [{n: v for n, v in asdict(e).items() if n not in ("figures", "others")} for e in (self, *self.others)]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        return str(self.row().to_html(index=False))


@dataclass(frozen=True)
class Found:
    """What a study found for one number of denoiser calls, as the report judged it."""

    study: StudyView
    nfe: int
    origin: str
    value: float
    low: float | None
    high: float | None
    images: int
    metric: str
    schedule: SolverSchedule

    def scheduler(self, model_scheduler: Any = None) -> FewStepScheduler:
        """A scheduler for a diffusers pipeline of this model: `pipe.scheduler = found.scheduler(pipe.scheduler)`.

        `model_scheduler` says which noise the model was trained with [default: the scheduler in the model's folder].
        """
        return self.study._scheduler([self.schedule], model_scheduler)


class StudyView:
    """A study on disk, read-only: what was asked, tried and found."""

    def __init__(self, study: Study) -> None:
        self._study = study

    @property
    def path(self) -> Path:
        """The study's folder."""
        return self._study.root

    @property
    def settings(self) -> Settings:
        """What the search was asked for."""
        return self._study.settings

    def front(self) -> pd.DataFrame:
        """What was found, as the report judged it on fresh noise: one row each NFE, of quantised networks one a member.

        Columns: nfe, origin (in words, how it came to be), value with its 95% interval low to high, images, metric.
        StorageError where there is no report yet.
        """
        import pandas as pd

        rows = [self._figures(record) for record in self._found]
        return pd.DataFrame(rows, columns=FRONT)

    def report(self) -> pd.DataFrame:
        """Every row of the report: what was found, and the presets or named configs that it is compared with."""
        import pandas as pd

        rows = self._study.problem.report_rows(self._study.state(), self._study.reported())
        return pd.DataFrame([vars(row) for row in rows])

    def trials(self) -> pd.DataFrame:
        """Every evaluation, one row each, in the order in which they finished; `rung` says on how many images."""
        from fewstep.storage.queries import load_evaluations

        table = load_evaluations(self._study.store)
        return table[table["study"] == self.settings.study].sort_values("order").reset_index(drop=True)

    def leaderboard(self, top: int = 10) -> pd.DataFrame:
        """The `top` candidates of each NFE as the search judged them, with all that is recorded of them.

        On the cluster that this process has joined, where there is one and the table is large.
        """
        from fewstep.pipeline.executors.dask_on_ray import dask_scheduler
        from fewstep.storage.queries import leaderboard

        rung, name = self._study.problem.ladder.main.name, self.settings.study
        found = leaderboard(self._study.store, name, rung, top=top, each_nfe=True, scheduler=dask_scheduler())
        return found.sort_values("nfe", kind="stable").reset_index(drop=True)

    def rank_correlations(self, *rungs: str) -> pd.DataFrame:
        """How alike rungs order the same candidates, by NFE [default: the screen and the main rung].

        See `fewstep.storage.comparisons.rank_correlations`.
        """
        from fewstep.pipeline.executors.dask_on_ray import dask_scheduler
        from fewstep.storage.comparisons import rank_correlations

        ladder = self._study.problem.ladder
        named = rungs or (ladder.screen.name, ladder.main.name)
        return rank_correlations(self._study.store, named, self.settings.study, scheduler=dask_scheduler())

    def query(self, sql: str) -> pd.DataFrame:
        """What a SELECT from evaluations, moments, studies and events says; see `fewstep query`."""
        from fewstep.storage.sql import query

        found: pd.DataFrame = query(self._study.store, sql).to_pandas()
        return found

    def best(self, nfe: int | None = None) -> Found:
        """The best that was found for a number of denoiser calls [default: the best of all].

        ConfigurationError for an NFE that was not searched, StorageError where there is no report yet.
        """
        found = [record for record in self._found if nfe is None or record.nfe == nfe]
        if not found:
            there = ", ".join(str(n) for n in sorted({record.nfe for record in self._found}))
            raise ConfigurationError(f"nothing was found for nfe={nfe}: this study has {there}")
        record = min(found, key=lambda r: (r.value is None, r.value))
        return Found(self, schedule=self._schedule(record.nfe), **self._figures(record))

    def scheduler(self, model_scheduler: Any = None) -> FewStepScheduler:
        """One scheduler with what was found for every NFE; `num_inference_steps` of a pipeline chooses."""
        return self._scheduler([self._schedule(n) for n in sorted({r.nfe for r in self._found})], model_scheduler)

    @cached_property
    def _found(self) -> list[EvaluationRecord]:
        complete = [r for r in self._study.reported() if r.origin.startswith("found:") and r.value is not None]
        if not complete:
            raise StorageError(f"{self.path} has no report yet: go on with `fewstep search --resume --out {self.path}`")
        if self.settings.space == "schedule":
            complete = list({r.nfe: r for r in complete}.values())
        return sorted(complete, key=lambda r: (r.nfe, r.value))

    @cached_property
    def _origins(self) -> dict[str, str]:
        """Origin by hash: of several candidates the first."""
        searched = [r for r in self._study.records() if r.rung != self._study.problem.ladder.report.name]
        return {r.candidate: r.origin for r in reversed(searched)}

    def _figures(self, r: EvaluationRecord) -> dict[str, Any]:
        from fewstep.pipeline.reports.rows import metric_name
        from fewstep.storage.origins import told_origin

        values = (r.nfe, told_origin(r.origin, self._origins), r.value, r.low, r.high, r.images, metric_name(r))
        return dict(zip(FRONT, values, strict=True))

    def _schedule(self, nfe: int) -> SolverSchedule:
        settings = self.settings
        if not isinstance(settings, SearchSettings):
            raise ConfigurationError(f"{self.path} holds a search of edits, which has no schedule: see edit.json in it")
        if not settings.moves_schedule:
            return SolverSchedule.from_json(settings.base_schedule)
        return load_schedule(self._study.schedules()[nfe])

    def _scheduler(self, schedules: list[SolverSchedule], model_scheduler: Any) -> FewStepScheduler:
        from fewstep.tasks.models.statistics import ModelStatistics
        from fewstep.tasks.sampling.scheduler import FewStepScheduler

        files, path = self._study.files, self._study.problem.subject.statistics
        learned = ModelStatistics.load_for(Path(path), files) if path else None
        base = files.scheduler_config if model_scheduler is None else model_scheduler
        made: FewStepScheduler = FewStepScheduler.from_schedules(schedules, base, learned)
        return made

    def __repr__(self) -> str:
        return f"<study {self.settings.study!r} of {self._study.files.name} in {self.path}>"

    def _repr_html_(self) -> str:
        import html

        try:
            table = self.front().to_html(index=False)
        except StorageError as error:
            table = f"<p>{html.escape(str(error))}</p>"
        return f"<p>{html.escape(repr(self))}</p>{table}"

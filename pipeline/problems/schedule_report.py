"""What is reported and published of a search of schedules: what was found beside what is stock."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from fewstep.files import write_text
from fewstep.pipeline.problems.base import Publication, each_once, found
from fewstep.pipeline.problems.model import ModelProblem
from fewstep.pipeline.reports.pictures import COLUMNS, Picture, write_pictures
from fewstep.pipeline.reports.rows import FOUND, Row, row_of
from fewstep.pipeline.search import Search
from fewstep.pipeline.trial import Trial, Work
from fewstep.search_spaces.point import SchedulePoint, as_point
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.presets import SEARCH_PRESETS
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.sampling.grids import all_presets


class ScheduleReport(ModelProblem):
    """The half of a search of schedules that reads what was found."""

    @cached_property
    def presets(self) -> dict[int, dict[str, SolverSchedule]]:
        """Presets by NFE and name."""
        s = self.settings
        return {nfe: all_presets(self.files.noise, nfe, s.grids) for nfe in s.nfes}

    def winner(self, search: Search, nfe: int) -> Trial | None:
        """The trial that did best in the finals, or at the dearest rung where no final was held."""
        for rung in (search.ladder.finals, search.ladder.main, search.ladder.screen):
            best = search.best(nfe, rung)
            if best:
                return best[0]
        return None

    def contenders(self, search: Search, nfe: int) -> dict[str, Trial]:
        """By method: the winner, and (unless the report leaves them out) every preset on the grid that did best."""
        methods: dict[str, Trial] = {}
        best = self.winner(search, nfe)
        if best is not None:
            methods[FOUND] = best
        # The first trial of a schedule: a refinement that failed still stands for its start.
        by_hash = {t.candidate.hash: t for t in reversed(search.trials.values())}
        for solver in SEARCH_PRESETS if self.settings.report_presets else ():
            grids = [s.hash for name, s in self.presets[nfe].items() if name.startswith(f"{solver}/")]
            trials = [by_hash[h] for h in grids if h in by_hash]
            values = [(t.value(search.ladder.main), t.number, t) for t in trials]
            judged = sorted((v, number, t) for v, number, t in values if v is not None)
            if judged:
                methods[solver] = judged[0][2]
        return methods

    def report_work(self, search: Search) -> list[Work]:
        """What the report has to evaluate, each schedule once, the found ones first."""
        work = []
        for nfe in self.settings.nfes:
            for method, trial in self.contenders(search, nfe).items():
                candidate = found(trial.candidate) if method == FOUND else trial.candidate
                work.append((candidate, search.ladder.report))
        return sorted(each_once(work), key=lambda w: not w[0].origin.startswith("found:"))

    def report_rows(self, search: Search, records: Sequence[EvaluationRecord]) -> list[Row]:
        """The final table. Presets that coincide at an NFE share their evaluation."""
        by_hash = {r.candidate: r for r in records if r.rung == search.ladder.report.name and r.value is not None}
        rows = []
        for nfe in self.settings.nfes:
            for method, trial in self.contenders(search, nfe).items():
                record = by_hash.get(trial.candidate.hash)
                if record is not None:
                    rows.append(row_of(record, method, trial.candidate.point.name))
        return rows

    @property
    def notes(self) -> dict[str, str]:
        """None."""
        return {}

    def schedule_path(self, root: Path, nfe: int) -> Path:
        """Where the found schedule for `nfe` is written."""
        return root / "schedules" / f"nfe{nfe}.json"

    def images_path(self, root: Path, nfe: int) -> Path:
        """Where the image grid of the found schedule for `nfe` is written."""
        return root / "schedules" / f"nfe{nfe}.png"

    def publish(self, search: Search, rows: Sequence[Row], to: Publication) -> dict[str, Path]:
        """Schedules as JSON, and the same noise under what was found, the best preset and the teacher."""
        pictures: list[Picture] = []
        teacher = Picture(f"teacher, {self.teacher.nfe}", as_point(self.teacher))
        seed = self.settings.report_seed
        for nfe in self.settings.nfes:
            best = self.winner(search, nfe)
            if best is None:
                continue
            schedule = best.candidate.schedule.model_copy(
                update={
                    "name": f"fewstep-{self.files.name}-nfe{nfe}",
                    "provenance": to.identity | _figures(nfe, rows),
                }
            )
            write_text(self.schedule_path(to.root, nfe), schedule.to_json(indent=2) + "\n")
            pair = [Picture(f"found, {nfe} calls", SchedulePoint(schedule=schedule))]
            methods = {r.method: r.value for r in rows if r.nfe == nfe and r.method != FOUND}
            if methods:
                other = min(methods, key=lambda m: methods[m])
                pair.append(Picture(f"{other}, {nfe}", self.contenders(search, nfe)[other].candidate.point))
            write_pictures(to.executor, [*pair, teacher], seed, COLUMNS, self.images_path(to.root, nfe), to.warn)
            pictures += pair
        grid = write_pictures(to.executor, [*pictures, teacher], seed, COLUMNS, to.root / "images.png", to.warn)
        return {"images.png": grid} if grid else {}


def _figures(nfe: int, rows: Sequence[Row]) -> dict[str, object]:
    own = next((r for r in rows if r.nfe == nfe and r.method == FOUND), None)
    if own is None:
        return {}
    return {"metric": own.metric, "value": own.value, "low": own.low, "high": own.high, "images": own.images}

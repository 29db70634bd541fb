"""What is reported and published of a search of schedules: what was found beside what is stock."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fewstep.files import write_text
from fewstep.pipeline.problems.base import Publication, each_once, found
from fewstep.pipeline.problems.model import ModelProblem
from fewstep.pipeline.proposers.base import is_known
from fewstep.pipeline.reports.pictures import COLUMNS, Picture, write_pictures
from fewstep.pipeline.reports.rows import FOUND, Row, SearchedRow, row_of
from fewstep.pipeline.reports.verdict import best_stock, guard_words, verdict
from fewstep.pipeline.search import Search
from fewstep.pipeline.trial import Candidate, Trial, Work, figure_name
from fewstep.search_spaces.point import Point, as_point
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.presets import SEARCH_PRESETS
from fewstep.storage.origins import PRESET, stock_name, told_origin
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.measured_settings import FRECHET
from fewstep.tasks.metrics.interval import Interval
from fewstep.tasks.sampling.grids import all_presets
from fewstep.tasks.sampling.own_schedule import OwnScheduler, own_schedule

# Origins of a preset with an analytic first call, and of the model's own scheduler.
ANALYTIC, OWN = "analytic:", "own:"
# The first point's figure less the second's on the report's images; None where it cannot be worked out.
Difference = Callable[[Point, Point], Interval | None]


@dataclass(frozen=True)
class Contender:
    """A line of the report before it is measured; `origin` in words."""

    method: str
    candidate: Candidate
    origin: str
    found: bool = False


class ScheduleReport(ModelProblem):
    """The half of a search of schedules that reads what was found."""

    @cached_property
    def presets(self) -> dict[int, dict[str, SolverSchedule]]:
        """Presets by NFE and name."""
        s = self.settings
        return {nfe: all_presets(self.files.noise, nfe, s.grids) for nfe in s.nfes}

    @cached_property
    def own(self) -> dict[int, OwnScheduler]:
        """The model's own scheduler at each NFE."""
        return {nfe: own_schedule(self.files, nfe) for nfe in self.settings.nfes}

    def winner(self, search: Search, nfe: int) -> Trial | None:
        """The trial that did best in the finals, or at the dearest rung where no final was held.

        Where the finals are guarded, it must be better than the best preset there by the guard too, or the preset wins.
        """
        finals = search.best(nfe, search.ladder.finals)
        return next((t for t in finals if not self._contested(search, finals, t)), None) or _best(search, nfe)

    def _contested(self, search: Search, finals: Sequence[Trial], trial: Trial) -> bool:
        """Whether the guard does not say that it is better than the best preset of the finals."""
        rung, known = search.ladder.finals, next((t for t in finals if is_known(t.candidate.origin)), None)
        if not rung.also or known is None or trial is known:
            return False
        name = figure_name(rung.also[0])
        own, preset = (t.records[rung.name].metrics.get(name, math.inf) for t in (trial, known))
        return not own < preset

    def contenders(self, search: Search, nfe: int) -> list[Contender]:
        """The winner first; then, unless the report leaves them out, what is stock or nearly so.

        That is the best preset and the best one with an analytic first call, as the search judged them, and the
        model's own scheduler.
        """
        best = self.winner(search, nfe)
        if best is None:
            return []
        trials = {best.number: best}
        if self.settings.report_presets:
            others = (_best(search, nfe, origin) for origin in (PRESET, ANALYTIC))
            trials |= {trial.number: trial for trial in others if trial is not None}
        origins = _origins(search)
        listed = [
            Contender(
                _method(trial.candidate.origin, trial is best),
                trial.candidate,
                told_origin(trial.candidate.origin, origins),
                trial is best,
            )
            for trial in trials.values()
        ]
        own = self.own[nfe] if self.settings.report_presets else None
        if own is not None and own.schedule is not None:
            name = f"{OWN}{own.name}"
            listed.append(Contender(name, Candidate(best.number, as_point(own.schedule), name), name))
        return listed

    def points(self, search: Search) -> dict[tuple[int, str], Point]:
        """What the report's lines are about, by NFE and method."""
        return {(nfe, c.method): c.candidate.point for nfe in self.settings.nfes for c in self.lines(search, nfe)}

    def report_work(self, search: Search) -> list[Work]:
        """What the report has to evaluate, each schedule once, the found ones first."""
        listed = [c for nfe in self.settings.nfes for c in self.contenders(search, nfe)]
        work = [(found(c.candidate) if c.found else c.candidate, search.ladder.report) for c in listed]
        return sorted(each_once(work), key=lambda w: not w[0].origin.startswith("found:"))

    def report_rows(self, search: Search, records: Sequence[EvaluationRecord]) -> list[SearchedRow]:
        """The final table. What coincides at an NFE shares its evaluation."""
        by_hash = {r.candidate: r for r in records if r.rung == search.ladder.report.name and r.value is not None}
        rows = []
        for nfe in self.settings.nfes:
            for c in self.lines(search, nfe):
                record = by_hash.get(c.candidate.hash)
                if record is not None:
                    rows.append(SearchedRow.of(row_of(record, c.method, c.candidate.point.name), c.found, c.origin))
        return rows

    def lines(self, search: Search, nfe: int) -> list[Contender]:
        """The contenders, and the other presets: one that was reported once has its row, whoever asked for it."""
        listed = self.contenders(search, nfe)
        methods = {c.method for c in listed}
        listed += [c for c in self._judged_presets(search, nfe) if c.method not in methods]
        return sorted(listed, key=lambda c: (not c.found, [*SEARCH_PRESETS, c.method].index(c.method)))

    def _judged_presets(self, search: Search, nfe: int) -> list[Contender]:
        """Every solver's preset on the grid that did best."""
        if not self.settings.report_presets:
            return []
        # The first trial of a schedule: a refinement that failed still stands for its start.
        by_hash = {t.candidate.hash: t for t in reversed(search.trials.values())}
        listed = []
        for solver in SEARCH_PRESETS:
            grids = {s.hash: name for name, s in self.presets[nfe].items() if name.startswith(f"{solver}/")}
            trials = [by_hash[h] for h in grids if h in by_hash]
            values = [(t.value(search.ladder.main), t.number, t) for t in trials]
            judged = sorted((v, number, t) for v, number, t in values if v is not None)
            if judged:
                best = judged[0][2].candidate
                listed.append(Contender(solver, best, f"{PRESET}{grids[best.hash]}"))
        return listed

    def verdicts(
        self,
        search: Search,
        rows: Sequence[SearchedRow],
        difference: Difference,
        guarded: Difference = lambda first, second: None,
    ) -> dict[int, str]:
        """What the search found beyond what is stock, in one line an NFE, and whether the guard sees it too."""
        told = {}
        for nfe in self.settings.nfes:
            own = [row for row in rows if row.nfe == nfe]
            winner, stock = next((row for row in own if row.found), None), best_stock(own)
            if winner is None and self.winner(search, nfe) is not None:
                told[nfe] = f"NFE {nfe}: the report of what was found failed, --resume tries it again"
                continue
            paired = seen = None
            if winner is not None and stock is not None and winner is not stock:
                points = {c.method: c.candidate.point for c in self.lines(search, nfe)}
                pair = points[winner.method], points[stock.method]
                paired, seen = difference(*pair), guarded(*pair) if self.guard else None
            told[nfe] = verdict(nfe, self.settings.budget, winner, stock, paired)
            told[nfe] += guard_words(figure_name(self.guard), seen) + self._refused(search, nfe)
        return told

    def _refused(self, search: Search, nfe: int) -> str:
        """What did better in the finals, and was not confirmed."""
        finals, winner = search.best(nfe, search.ladder.finals), self.winner(search, nfe)
        if winner not in finals[1:]:
            return ""
        told = told_origin(finals[0].candidate.origin, _origins(search))
        return f". {told} did better in the finals, and {figure_name(self.guard)} does not confirm it"

    @property
    def notes(self) -> dict[str, str]:
        """What is shown of the model's own scheduler, where it is not it as it is; and why nothing is tuned."""
        tuning = {}
        if self.asked.refine is None and self.settings.objective != FRECHET:
            told = f"off: it descends the Frechet distance, and candidates are compared by {self.settings.objective}"
            tuning = {"tuning": told}
        return tuning | self._own_notes

    @property
    def _own_notes(self) -> dict[str, str]:
        if not self.settings.report_presets:
            return {}
        notes = {nfe: own.note for nfe, own in self.own.items() if own.note}
        said: dict[str, list[str]] = {}
        for nfe, note in notes.items():
            said.setdefault(note, []).append(str(nfe))
        told = [
            note if len(calls) == len(self.own) else f"at NFE {', '.join(calls)}: {note}"
            for note, calls in said.items()
        ]
        return {"own-scheduler": "; ".join(told)} if told else {}

    def schedule_path(self, root: Path, nfe: int) -> Path:
        """Where the found schedule for `nfe` is written."""
        return root / "schedules" / f"nfe{nfe}.json"

    def images_path(self, root: Path, nfe: int) -> Path:
        """Where the image grid of the found schedule for `nfe` is written."""
        return root / "schedules" / f"nfe{nfe}.png"

    def publish(self, search: Search, rows: Sequence[Row], to: Publication) -> dict[str, Path]:
        """Schedules as JSON, and the same noise under what was found, the best of the others and the teacher."""
        pictures: list[Picture] = []
        teacher = Picture(f"teacher, {self.teacher.nfe}", as_point(self.teacher))
        seed = self.settings.report_seed
        for nfe in self.settings.nfes:
            listed = self.contenders(search, nfe)
            if not listed:
                continue
            best, values = listed[0], {row.method: row for row in rows if row.nfe == nfe}
            write_text(
                self.schedule_path(to.root, nfe), self._published(best, values, to.identity).to_json(indent=2) + "\n"
            )
            label = "found" if best.method == FOUND else best.method
            pair = [Picture(f"{label}, {nfe} calls", best.candidate.point)]
            others = [c for c in listed[1:] if c.method in values]
            if others:
                other = min(others, key=lambda c: values[c.method].value)
                pair.append(Picture(f"{other.method}, {nfe}", other.candidate.point))
            write_pictures(to.executor, [*pair, teacher], seed, COLUMNS, self.images_path(to.root, nfe), to.warn)
            pictures += pair
        grid = write_pictures(to.executor, [*pictures, teacher], seed, COLUMNS, to.root / "images.png", to.warn)
        return {"images.png": grid} if grid else {}

    def _published(self, best: Contender, rows: Mapping[str, Row], identity: Mapping[str, object]) -> SolverSchedule:
        """The schedule that was found, under a name, with how it came to be and what it reached."""
        schedule, figures, row = best.candidate.schedule, {}, rows.get(best.method)
        if row is not None:
            figures = {"metric": row.metric, "value": row.value, "low": row.low, "high": row.high, "images": row.images}
        name = schedule.name if stock_name(best.candidate.origin) else f"fewstep-{self.files.name}-nfe{schedule.nfe}"
        provenance = {**identity, "origin": best.origin, **figures}
        return schedule.model_copy(update={"name": name, "provenance": provenance})


def _best(search: Search, nfe: int, origin: str = "") -> Trial | None:
    """The best at the dearest rung that any of that origin was at."""
    for rung in (search.ladder.finals, search.ladder.main, search.ladder.screen):
        best = [trial for trial in search.best(nfe, rung) if trial.candidate.origin.startswith(origin)]
        if best:
            return best[0]
    return None


def _origins(search: Search) -> dict[str, str]:
    """Origin by hash: of several trials the first, as a refinement that changes nothing stands for its start."""
    return {t.candidate.hash: t.candidate.origin for t in reversed(search.trials.values())}


def _method(origin: str, is_winner: bool) -> str:
    """A preset goes by its solver, what is found beyond presets by `fewstep`."""
    if stock_name(origin):
        return stock_name(origin).partition("/")[0]
    return FOUND if is_winner else origin.partition("/")[0]

"""One objective: successive halving by a cheap screen, presets by their best grids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from optuna.trial import TrialState

from fewstep.pipeline.proposers.base import WARM_REFINED
from fewstep.pipeline.search import Search, Seed
from fewstep.pipeline.settings import BASELINE_GRID, SearchSettings
from fewstep.pipeline.trial import Candidate, Trial, promoted
from fewstep.search_spaces.point import Point
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord

BASELINE = f"ddim/{BASELINE_GRID}"
PRESET, WARM = "preset:", "warm-start"


class HalvingPolicy:
    """Promotes the best share of the screen as values come in, presets once all of their NFE are screened.

    `presets` are schedules by name and NFE; `warm` what a user starts from.
    """

    seeds_are_free = True

    def __init__(
        self, settings: SearchSettings, presets: Mapping[int, Mapping[str, SolverSchedule]], seeds: Sequence[Seed]
    ) -> None:
        self._settings, self.presets, self.seeds = settings, presets, seeds
        self._screened: dict[int, list[float]] = {nfe: [] for nfe in settings.nfes}

    def fits(self, point: Point) -> None:
        """Presets were made for the model."""

    def account(self, point: Point) -> int:
        """Its NFE."""
        return point.nfe

    def cost(self, search: Search, candidate: Candidate) -> int:
        """The screen."""
        return candidate.nfe * search.ladder.screen.images

    def decide(self, search: Search, trial: Trial, record: EvaluationRecord) -> None:
        """See Policy."""
        complete = record.status == "complete" and record.value is not None
        if record.rung == search.ladder.main.name:
            search.finish(trial, TrialState.COMPLETE if complete else TrialState.FAIL)
        elif record.rung == search.ladder.screen.name:
            if record.value is not None:
                self._screened[record.nfe].append(record.value)
            if not complete:
                search.finish(trial, TrialState.FAIL)
            if record.origin.startswith(PRESET):
                self._promote_presets(search, record)
            elif record.origin in (WARM, WARM_REFINED) and complete:
                search.promote(trial)
            elif record.value is not None and complete:
                if promoted(record.value, self._screened[record.nfe], self._settings.keep):
                    search.promote(trial)
                else:
                    search.finish(trial, TrialState.PRUNED)

    @property
    def warm(self) -> list[Seed]:
        """The seeds that a user starts from: they always climb."""
        return [(origin, point) for origin, point in self.seeds if origin in (WARM, WARM_REFINED)]

    def presets_promoted_at_most(self, nfe: int) -> int:
        """How many presets of an NFE climb: the baseline, and `preset_grids` of each solver, of twins once."""
        grids: dict[str, dict[str, str]] = {}
        for name, schedule in self.presets[nfe].items():
            solver, _, grid = name.partition("/")
            grids.setdefault(solver, {})[grid] = schedule.hash
        solvers = {tuple(sorted(own.items())) for own in grids.values()}
        each = self._settings.preset_grids
        chosen = 1 + (sum(min(each, len(own)) for own in solvers) if each else 1)
        return min(chosen, len({s.hash for s in self.presets[nfe].values()}))

    def _promote_presets(self, search: Search, record: EvaluationRecord) -> None:
        """Once every preset of an NFE is screened, the best grids of each go on, and the baseline."""
        table, by_hash = self.presets[record.nfe], search.by_hash
        trials = {name: search.trials[by_hash[s.hash]] for name, s in table.items() if s.hash in by_hash}
        if len(trials) < len(table) or any(not t.records for t in trials.values()):
            return
        chosen = {BASELINE}
        screen = search.ladder.screen
        known = {name: value for name, trial in trials.items() if (value := trial.value(screen)) is not None}
        each = self._settings.preset_grids
        solvers = sorted({f"{name.partition('/')[0]}/" for name in table}) if each else [""]
        for solver in solvers:
            names = sorted((n for n in known if n.startswith(solver)), key=lambda name: (known[name], name))
            chosen |= set(names[: max(1, each)])
        numbers = {trials[name].number for name in chosen}
        for trial in {t.number: t for t in trials.values()}.values():
            if trial.state == TrialState.RUNNING and trial.number in numbers:
                search.promote(trial)
            elif trial.state == TrialState.RUNNING:
                search.finish(trial, TrialState.PRUNED)

    def objectives(self, search: Search, trial: Trial) -> tuple[float] | None:
        """Log of the value over the baseline's at the same NFE; None as long as either is not known.

        Raw distances differ by orders of magnitude between NFEs, and would tell a sampler little else. Of a metric that
        is not positive for the baseline, as an unbiased one may be, the difference takes the place of the ratio.
        """
        number = search.by_hash.get(self.presets[trial.candidate.nfe][BASELINE].hash)
        baseline = search.trials[number].value(search.ladder.main) if number is not None else None
        value = trial.value(search.ladder.main)
        if value is None or baseline is None:
            return None
        return (math.log(max(value, 1e-12) / baseline) if baseline > 0 else value - baseline,)

    def finalists(self, search: Search) -> list[Trial]:
        """The best of the main rung at each NFE."""
        best = (search.best(nfe, search.ladder.main)[: self._settings.finalists] for nfe in self._settings.nfes)
        return [trial for trials in best for trial in trials]

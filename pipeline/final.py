"""The end of a search: found schedules against every preset, on noise that the search never saw."""

from __future__ import annotations

from collections.abc import Sequence

from fewstep.pipeline.climb import Climb
from fewstep.pipeline.evaluator import Candidate
from fewstep.pipeline.quantization_state import QuantizationState
from fewstep.pipeline.reports.rows import FOUND, Row, row_of
from fewstep.pipeline.state import SearchState, Trial, Work
from fewstep.search_spaces.presets import SEARCH_PRESETS
from fewstep.storage.records import EvaluationRecord


def winner(state: SearchState, nfe: int) -> Trial | None:
    """The trial that did best in the finals, or at the judging rung where no final was held."""
    for rung in (state.finals, state.judge, state.screen):
        best = state.best(nfe, rung)
        if best:
            return best[0]
    return None


def contenders(state: SearchState, nfe: int) -> dict[str, Trial]:
    """By method name: the winner, and (unless the report leaves them out) every preset on its grid that judged best."""
    methods: dict[str, Trial] = {}
    found = winner(state, nfe)
    if found is not None:
        methods[FOUND] = found
    # The first trial of a schedule: a refinement that failed still stands for its start.
    by_hash = {t.candidate.schedule.hash: t for t in reversed(state.trials.values())}
    for solver in SEARCH_PRESETS if state.settings.report_presets else ():
        grids = [s.hash for name, s in state.presets[nfe].items() if name.startswith(f"{solver}/")]
        trials = [by_hash[h] for h in grids if h in by_hash]
        values = [(t.value(state.judge), t.candidate.trial, t) for t in trials]
        judged = sorted((v, number, t) for v, number, t in values if v is not None)
        if judged:
            methods[solver] = judged[0][2]
    return methods


def report_work(state: Climb) -> list[Work]:
    """What the report has to evaluate, each candidate once, the found ones first."""
    if isinstance(state, QuantizationState):
        # That report is made of this module's rows, and so cannot be imported before them.
        from fewstep.pipeline.quantization_report import quantization_work

        return quantization_work(state)
    assert isinstance(state, SearchState)
    work: dict[str, Work] = {}
    for nfe in state.settings.nfes:
        for method, trial in contenders(state, nfe).items():
            candidate = trial.candidate
            origin = f"found:{candidate.origin}" if method == FOUND else candidate.origin
            entry = Candidate(candidate.trial, candidate.schedule, origin, candidate.parameters)
            work.setdefault(candidate.schedule.hash, (entry, state.report))
    return sorted(work.values(), key=lambda w: not w[0].origin.startswith("found:"))


def report_rows(state: Climb, records: Sequence[EvaluationRecord]) -> list[Row]:
    """The final table from the report's records. Presets that coincide at an NFE share their evaluation."""
    if isinstance(state, QuantizationState):
        from fewstep.pipeline.quantization_report import quantization_rows

        return quantization_rows(state, records)
    assert isinstance(state, SearchState)
    by_hash = {r.candidate: r for r in records if r.rung == state.report.name and r.value is not None}
    rows = []
    for nfe in state.settings.nfes:
        for method, trial in contenders(state, nfe).items():
            record = by_hash.get(trial.candidate.schedule.hash)
            if record is not None:
                schedule = trial.candidate.schedule
                rows.append(row_of(record, method, schedule.name or schedule.hash))
    return rows

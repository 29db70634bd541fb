"""The end of a search: found schedules against every preset, on noise that the search never saw."""

from __future__ import annotations

import csv
import io
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline.climb import Climb
from fewstep.pipeline.evaluation import Candidate
from fewstep.pipeline.quantization_state import QuantizationState
from fewstep.pipeline.state import SearchState, Trial, Work
from fewstep.search_spaces.presets import SEARCH_PRESETS
from fewstep.storage.records import EvaluationRecord

FOUND = "fewstep"


@dataclass(frozen=True)
class Row:
    """One line of the final table; `low` and `high` bound the 95% interval of `value`."""

    model: str
    method: str
    nfe: int
    metric: str
    value: float
    low: float | None
    high: float | None
    images: int
    schedule: str


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


def results_csv(
    rows: Sequence[Any], command: str, seeds: dict[str, int], notes: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Rows, dataclasses of one kind, as CSV under `#` lines that say how they were made; `notes` explain columns."""
    out = io.StringIO()
    out.writelines(f"# {name}: {value}\n" for name, value in (provenance(command, seeds) | dict(notes)).items())
    writer = csv.writer(out, lineterminator="\n")
    columns = [f.name for f in fields(rows[0] if rows else Row)]
    writer.writerow(columns)
    writer.writerows([_cell(getattr(row, name)) for name in columns] for row in rows)
    return out.getvalue()


def _cell(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def provenance(command: str, seeds: dict[str, int]) -> dict[str, str]:
    """How a table was made: command, date, seeds, machine class and interval."""
    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "seeds": ", ".join(f"{name} {seed}" for name, seed in seeds.items()),
        "machine": machine_class(),
        "interval": "95%, delete-a-group jackknife over the images",
    }


def footnote(command: str, seeds: dict[str, int], notes: Mapping[str, str] | None = None) -> str:
    """The same in one line, with notes, for the foot of a table."""
    return "; ".join(f"{name}: {value}" for name, value in (provenance(command, seeds) | dict(notes or {})).items())


def row_of(record: EvaluationRecord, method: str, schedule: str) -> Row:
    """A table's line from a complete record; EvaluationError from a failed one."""
    if record.value is None:
        raise EvaluationError(f"{schedule} at NFE {record.nfe} has no value: {record.error}")
    ends = record.low, record.high
    return Row(record.model, method, record.nfe, record.features, record.value, *ends, record.images, schedule)


def results_markdown(rows: Sequence[Row], note: str) -> str:
    """The table for a README: a row a method, a column an NFE, best value of each column in bold.

    A star marks what was judged on fewer images than the best.
    """
    most = max(r.images for r in rows)
    nfes = sorted({r.nfe for r in rows})
    methods = sorted({r.method for r in rows}, key=lambda m: (m != FOUND, m))
    cells = {(r.method, r.nfe): r for r in rows}
    best = {n: min((r for r in rows if r.nfe == n), key=lambda r: (-r.images, r.value)).method for n in nfes}
    lines = ["| method | " + " | ".join(f"NFE {n}" for n in nfes) + " |", "|---" * (len(nfes) + 1) + "|"]
    for method in methods:
        texts = []
        for n in nfes:
            row = cells.get((method, n))
            text = "" if row is None else f"{row.value:.2f}" + "*" * (row.images < most)
            if row is not None and row.low is not None and row.high is not None:
                text += f" ({row.low:.2f} to {row.high:.2f})"
            texts.append(f"**{text}**" if row is not None and best[n] == method else text)
        lines.append(f"| {method} | " + " | ".join(texts) + " |")
    return "\n".join([*lines, "", note])


def insert_between_markers(path: Path, text: str, name: str = "results") -> None:
    """Replace what stands between the markers called `name` in a Markdown file; ConfigurationError without them."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = path.read_text()
    if old.count(begin) != 1 or old.count(end) != 1:
        raise ConfigurationError(f"{path} needs the lines {begin} and {end} once each, where the table goes")
    head, tail = old.partition(begin)[0], old.partition(end)[2]
    write_text(path, f"{head}{begin}\n{text}\n{end}{tail}")


def machine_class() -> str:
    """Cores and architecture, without anything that names the machine."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def write_text(path: Path, text: str) -> Path:
    """Write aside, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text)
    os.replace(aside, path)
    return path

"""Rows as CSV under lines that say how they were made."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fewstep.pipeline.reports.provenance import made_by, provenance
from fewstep.pipeline.reports.rows import Row
from fewstep.storage.records import EvaluationRecord

if TYPE_CHECKING:
    import pandas as pd


def results_csv(
    rows: Sequence[Any],
    command: str,
    seeds: Mapping[str, int],
    notes: Mapping[str, str] = MappingProxyType({}),
    records: Sequence[EvaluationRecord] | None = None,
    intervals: Mapping[str, str] | None = None,
    verdicts: Sequence[str] = (),
) -> str:
    """Rows, dataclasses of one kind, as CSV under `#` lines that say how they were made; `notes` explain columns.

    `verdicts` are lines that go before all others.

    With the `records` that the rows are made of, the lines tell of them (see `made_by`, also for `intervals`); without,
    of this process.
    """
    made = provenance(command, seeds) if records is None else made_by(records, command, seeds, intervals)
    out = io.StringIO()
    out.writelines(f"# {' '.join(line.split())}\n" for line in verdicts)
    out.writelines(f"# {name}: {' '.join(value.split())}\n" for name, value in (made | dict(notes)).items())
    writer = csv.writer(out, lineterminator="\n")
    columns = [f.name for f in fields(rows[0] if rows else Row)]
    writer.writerow(columns)
    writer.writerows([_cell(getattr(row, name)) for name in columns] for row in rows)
    return out.getvalue()


def frame_csv(table: pd.DataFrame, head: Mapping[str, str]) -> str:
    """A table as CSV under the same kind of lines."""
    lines = "".join(f"# {name}: {' '.join(value.split())}\n" for name, value in head.items())
    return lines + str(table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def _cell(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value

"""One line of a table of results, and how it comes from a record."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.errors import EvaluationError
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


def row_of(record: EvaluationRecord, method: str, schedule: str) -> Row:
    """A table's line from a complete record; EvaluationError from a failed one."""
    if record.value is None:
        raise EvaluationError(f"{schedule} at NFE {record.nfe} has no value: {record.error}")
    ends = record.low, record.high
    return Row(record.model, method, record.nfe, record.features, record.value, *ends, record.images, schedule)

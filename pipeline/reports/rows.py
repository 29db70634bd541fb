"""One line of a table of results, and how it comes from a record."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from fewstep.errors import EvaluationError
from fewstep.storage import names
from fewstep.storage.records import MEASURED, EvaluationRecord

FOUND = "fewstep"


def is_measured(record: EvaluationRecord) -> bool:
    """Whether a record is by a further metric of the report."""
    return record.rung.startswith(MEASURED)


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


@dataclass(frozen=True)
class SearchedRow(Row):
    """A line of a search's report: whether it is what the search found, and in words how it came to be."""

    found: bool = False
    origin: str = ""

    @classmethod
    def of(cls, row: Row, found: bool, origin: str) -> SearchedRow:
        """The line with both."""
        return cls(**asdict(row), found=found, origin=origin)


def row_of(record: EvaluationRecord, method: str, schedule: str) -> Row:
    """A table's line from a complete record; EvaluationError from a failed one."""
    if record.value is None:
        raise EvaluationError(f"{schedule} at NFE {record.nfe} has no value: {record.error}")
    ends, name = (record.low, record.high), metric_name(record)
    return Row(record.model, method, record.nfe, name, record.value, *ends, record.images, schedule)


def is_found(row: Row) -> bool:
    """Whether it is what a search found, be that its own or a stock preset."""
    return row.found if isinstance(row, SearchedRow) else row.method.startswith(FOUND)


def metric_name(record: EvaluationRecord) -> str:
    """A metric as tables call it: a Frechet distance by its feature space, as `fid-digits`, others likewise."""
    return names.metric_name(record.metric, record.features)


def figure_text(value: float, beside: float | None = None) -> str:
    """Three decimals, or three digits of what is small; as many as `beside` takes, a value of the same line."""
    size = abs(value) if beside is None else abs(beside)
    return f"{value:.3f}" if size >= 0.1 or size == 0 else f"{value:.3g}"

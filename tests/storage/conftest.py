"""Records to store, and filesystems to store them on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from fewstep.storage.records import EvaluationRecord, EventRecord
from fewstep.storage.tables import Table

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.fixture(scope="session")
def evaluation(make_evaluation: Callable[..., EvaluationRecord]) -> Callable[..., EvaluationRecord]:
    """Makes the evaluation of a given order, with some fields changed."""
    return make_evaluation


@pytest.fixture(scope="session")
def event() -> Callable[..., EventRecord]:
    """Makes a small record: the event of a given order."""

    def make(order: int, message: str = "") -> EventRecord:
        return EventRecord("digits", order, "note", message, START + timedelta(seconds=order))

    return make


@pytest.fixture(params=["local", "memory"])
def new_table(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Table[Any]]:
    """Opens a table of a record type; every call of one test opens the same place anew."""
    if request.param == "local":
        return lambda record, **options: Table(record, tmp_path / "table", **options)
    memory = pafs._MockFileSystem()
    return lambda record, **options: Table(record, "table", memory, **options)

"""Records to store, and filesystems to store them on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from fewstep.storage.records import EvaluationRecord, EventRecord
from fewstep.storage.tables import Table

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def _evaluation(order: int, **changes: Any) -> EvaluationRecord:
    record = EvaluationRecord(
        study="digits",
        order=order,
        trial=order,
        key=f"key-{order}",
        candidate=f"{order:08x}cafe",
        candidate_json=f'{{"order": {order}}}',
        nfe=3 + order % 3,
        rung="frechet",
        origin="random",
        model="digits-ddpm",
        model_hash="model-1",
        features="fid-digits",
        reference="train",
        seed=0,
        images=1000,
        metric="frechet",
        value=float((order * 7919) % 101),
        low=None,
        high=None,
        denoiser_calls=1000 * (3 + order % 3),
        seconds=0.5,
        device="cpu",
        finished_at=START + timedelta(seconds=order),
        metrics={"distance": 0.5},
        versions={"torch": "2.14"},
    )
    return replace(record, **changes)


@pytest.fixture(scope="session")
def evaluation() -> Callable[..., EvaluationRecord]:
    """Makes the evaluation of a given order, with some fields changed."""
    return _evaluation


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

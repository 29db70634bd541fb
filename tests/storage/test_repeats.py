"""Which rows count is told alike for keys of every form, in one piece or in several, as text or as dictionaries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.storage import tables
from fewstep.storage.records import EvaluationRecord, EventRecord, MomentsRecord, StudyRecord
from fewstep.storage.repeats import counting
from fewstep.storage.tables import Table

# Few letters, so that keys are there twice; of one length as content addresses are, or of any.
_KEYS = st.one_of(
    st.lists(st.text("ab", min_size=8, max_size=8), min_size=1, max_size=12),
    st.lists(st.text("aé", min_size=16, max_size=16), min_size=1, max_size=12),
    st.lists(st.text("ab", max_size=9), min_size=1, max_size=12),
)


@settings(max_examples=60, deadline=None)
@given(keys=_KEYS, cut=st.integers(0, 12), at=st.integers(0, 3), coded=st.booleans())
def test_the_first_row_of_each_key_counts(keys: list[str], cut: int, at: int, coded: bool) -> None:
    texts = pa.array(["x" * 8] * at + keys).slice(at)
    pieces = [texts.slice(0, cut), texts.slice(cut)]
    columns: dict[str, Any] = {
        "study": pa.chunked_array([pa.array(["s"] * len(keys))]),
        "key": pa.chunked_array(pieces),
        "status": pa.chunked_array([pa.array(["complete"] * len(keys))]),
        "finished_at": pa.chunked_array([pa.array(range(len(keys)), pa.timestamp("us", "UTC"))]),
    }
    rows = pa.table(columns)
    if coded:
        rows = pa.table({n: c.dictionary_encode() if pa.types.is_string(c.type) else c for n, c in columns.items()})
    expected = [key not in keys[:i] for i, key in enumerate(keys)]
    assert counting(rows, EvaluationRecord).tolist() == expected


@pytest.mark.parametrize("small", [0, 2**18])
def test_a_scan_in_codes_holds_what_a_read_does_and_takes_up_where_one_before_ended(
    new_table: Any, evaluation: Any, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    """Also of files whose rows are repeated by later ones, and once files were merged."""
    monkeypatch.setattr(tables, "_SMALL_BYTES", small)
    table = new_table(EvaluationRecord)
    wanted, before = ["rung", "origin", "order", "value"], []
    loaded: list[str] = []
    load = Table.load
    monkeypatch.setattr(Table, "load", lambda self, part, *a: (loaded.append(part.name), load(self, part, *a))[1])
    failed = {"status": "failed", "value": None, "error": "it explodes"}
    for step in range(4):
        if step == 3:
            table.compact()
        else:
            table.append([evaluation(step, **failed), evaluation(step + 1, rung=f"r{step}"), evaluation(9)])
        known = {scanned.part.name for scanned in before}
        loaded.clear()
        before = table.scan(wanted, ("study", "rung", "origin", "status"), before)
        assert not known & set(loaded)
        assert all(pa.types.is_dictionary(scanned.rows["rung"].type) for scanned in before)
        kept = [scanned.rows.filter(pa.array(scanned.keep)).select(wanted).to_pylist() for scanned in before]
        assert [row for rows in kept for row in rows] == table.read(wanted).to_pylist()


@pytest.mark.parametrize("record", [EvaluationRecord, StudyRecord, EventRecord, MomentsRecord])
def test_of_no_rows_none_counts(record: Any) -> None:
    empty = record.schema.empty_table().select(list(record.deciding()))
    assert np.array_equal(counting(empty, record), np.zeros(0, dtype=np.bool_))

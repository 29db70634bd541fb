"""Records whose bulk is read later are equal to those that hold it, and small."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from dataclasses import replace

import pyarrow as pa
import pytest

from fewstep.errors import StorageError
from fewstep.storage.backing import backed, packed
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.tables import Table

DRAWN = {f"gap.{i}": 0.1 * i for i in range(30)}


@pytest.fixture
def records(evaluation):
    return [
        evaluation(0),
        evaluation(1, status="failed", error="it broke", value=None, low=None, high=None),
        evaluation(2, parameters=DRAWN, metrics={"low": 1.0}, versions={"python": "3.11"}, candidate_json='{"a": "ä"}'),
    ]


def test_whatever_way_a_record_is_kept_it_is_the_same(records, tmp_path):
    table = Table(EvaluationRecord, tmp_path)
    table.append(records)
    for kept in (table.backed(), [packed(record) for record in records], [packed(r) for r in table.backed()]):
        assert kept == records
        assert [pickle.loads(pickle.dumps(record)) for record in kept] == records
        assert [copy.copy(record).to_row() for record in kept] == [record.to_row() for record in records]
        assert [replace(record, order=7) for record in kept] == [replace(record, order=7) for record in records]
        assert [record.begins("parameters", "{}") for record in kept] == [True, True, False]
        assert [record.begins("candidate_json", '{"a"') for record in kept] == [False, False, True]
        with pytest.raises(AttributeError, match="no other"):
            _ = kept[0].other


def test_a_damaged_json_column_is_named_when_it_is_read(records):
    rows = [record.to_row() | {"metrics": "{"} for record in records]
    kept = backed(EvaluationRecord, pa.Table.from_pylist(rows, schema=EvaluationRecord.schema))
    assert [record.value for record in kept] == [record.value for record in records]
    with pytest.raises(StorageError, match=r"column metrics .* not JSON"):
        _ = kept[0].metrics


def test_a_packed_record_takes_little(evaluation):
    def made(i):
        drawn = {name: value + i for name, value in DRAWN.items()}
        return evaluation(i, parameters=drawn, metrics={"low": 0.1 * i}, candidate_json=f'{{"of": {[i] * 400}}}')

    tracemalloc.start()
    kept = [packed(made(i)) for i in range(200)]
    now, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert now / len(kept) < 2000

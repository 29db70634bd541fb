"""SQL reads what every other reader does, and nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fewstep.errors import ConfigurationError
from fewstep.storage import sql
from fewstep.storage.sql import query
from fewstep.storage.store import Store

pytest.importorskip("duckdb")
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "study")


def test_it_counts_each_evaluation_once_whatever_was_delivered(store, evaluation):
    first = [evaluation(i, value=float(i)) for i in range(5)]
    failed = replace(first[2], status="failed", value=None, error="lost", finished_at=first[2].finished_at)
    late = replace(first[3], value=77.0, finished_at=first[3].finished_at + timedelta(hours=1))
    for rows in ([failed], first, [first[0]], [late]):
        store.evaluations.append(rows)
    (path,) = (Path(store.evaluations.directory.path) / p.name for p in store.evaluations.directory.list()[2:3])
    path.write_bytes(path.read_bytes()[:50])
    answer = query(store, "select key, status, value from evaluations order by value")
    told = store.evaluations.read(["key", "status", "value"]).sort_by("value")
    assert answer.to_pylist() == told.to_pylist()
    assert answer.num_rows == 5
    assert query(store, "select count(*) c from events").to_pylist() == [{"c": 0}]


def test_a_table_is_gone_through_for_repeats_once_and_again_when_it_changed(store, evaluation, monkeypatch):
    seen, find = [], sql._are_distinct
    monkeypatch.setattr(sql, "_are_distinct", lambda *a: seen.append(find(*a)) or seen[-1])

    def rows() -> int:
        return query(Store(store.root), "select count(*) c from evaluations").to_pylist()[0]["c"]

    store.evaluations.append([evaluation(i) for i in range(3)])
    assert [rows(), rows(), rows()] == [3, 3, 3]
    assert seen == [True]
    store.evaluations.append([evaluation(2)])
    # What holds rows twice is never taken for one that does not.
    assert [rows(), rows()] == [3, 3]
    assert seen == [True, False, False]
    store.evaluations.compact()
    assert [rows(), rows()] == [3, 3]
    assert seen == [True, False, False, True]
    (part,) = store.evaluations.directory.list()
    file = Path(store.evaluations.directory.file(part))
    # A name without checksums says nothing of what is in the file.
    file.rename(file.with_name("part-000000000009-0123abcd.parquet"))
    assert [rows(), rows()] == [3, 3]
    assert seen[4:] == [True, True]


def test_tables_of_older_versions_are_read_in_todays_terms(tmp_path):
    for number, path in enumerate(sorted(GOLDEN.rglob("*.parquet"))):
        to = tmp_path / "tables" / path.parts[-3]
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to / path.name.replace("part-000000000000", f"part-{number:012d}"))
    store = Store(tmp_path)
    assert store.evaluations.row_count()
    for table in store.tables:
        rows = query(store, f"select * from {table.record.table}")
        assert rows.num_rows == table.read().num_rows
        assert rows.column_names == table.record.schema.names


@pytest.mark.parametrize(
    ("sql", "word"),
    [
        ("drop table evaluations", "SELECT"),
        ("select 1; select 2", "2 statements"),
        ("copy (select 1) to 'x.csv'", "SELECT"),
        ("selct 1", "not SQL"),
        ("select nothing from evaluations", "nothing"),
        ("select * from read_csv('/etc/passwd')", "fails"),
        ("select * from '/etc/passwd'", "fails|read"),
    ],
)
def test_what_is_no_question_to_the_tables_is_refused_in_one_line(store, evaluation, sql, word):
    store.evaluations.append([evaluation(0)])
    with pytest.raises(ConfigurationError, match=word) as caught:
        query(store, sql)
    assert "\n" not in str(caught.value)


def test_json_columns_are_open_to_it(store, evaluation):
    store.evaluations.append([replace(evaluation(0), metrics={"size_bytes": 12.0})])
    (row,) = query(store, "select metrics->>'size_bytes' size from evaluations").to_pylist()
    assert json.loads(row["size"]) == 12.0

"""Of rows of one identity a complete one beats failed ones, whatever the order and whatever happened to the files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.storage.parts import VERSION_KEY
from fewstep.storage.queries import front, leaderboard, load_evaluations
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.storage.tables import Table

# What happens to a table: rows are appended (key, complete?), it is compacted whole, or dies in it and keeps
# some of the inputs (by number), or the tidying after an append merges some files.
rows = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=4)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), rows),
        st.tuples(st.just("compact"), st.just(())),
        st.tuples(st.just("die"), st.sets(st.integers(0, 7))),
    ),
    min_size=1,
    max_size=10,
)


def expected(written):
    """The rows that count, in the order of writing, by the rule itself."""
    winners = {}
    for place, record in enumerate(written):
        known = winners.get(record.key)
        failed_before = known is not None and known[1].status == "failed"
        if known is None or failed_before:
            winners[record.key] = (place, record)
    return [record for _, record in sorted(winners.values(), key=lambda entry: entry[0])]


def play(table, steps, make):
    """Do what the steps say; all rows in the order of writing."""
    written = []
    for step, what in steps:
        if step == "append":
            batch = [make(len(written) + i, key, complete) for i, (key, complete) in enumerate(what)]
            table.append(batch)
            written += batch
            continue
        paths = [Path(table.directory.file(part)) for part in table.directory.list()]
        kept = {path: path.read_bytes() for number, path in enumerate(paths) if step == "die" and number in what}
        table.compact()
        for path, content in kept.items():
            path.write_bytes(content)
    return written


def maker(evaluation):
    def make(number, key, complete):
        status = {"status": "complete"} if complete else {"status": "failed", "value": None, "error": f"try {number}"}
        return evaluation(number, key=f"key-{key}", trial=key, nfe=4, **status)

    return make


@settings(max_examples=60, deadline=None)
@given(steps, st.sampled_from([2, 64]))
def test_reads_hold_the_same_rows_in_the_same_order_whatever_became_of_the_files(
    tmp_path_factory, evaluation, steps, small
):
    root = tmp_path_factory.mktemp("table")
    written = play(Table(EvaluationRecord, root, small_parts=small), steps, maker(evaluation))
    table = Table(EvaluationRecord, root)
    for _ in range(2):
        assert table.records() == expected(written)
        assert table.read(["error"]).column("error").to_pylist() == [r.error for r in expected(written)]
        for key in {record.key for record in written}:
            assert table.records({"study": "digits", "key": key}) == expected([r for r in written if r.key == key])
        kept = [(p.part.name, n) for p in table.scan() for n in p.keep.nonzero()[0]]
        assert len(kept) == len(expected(written))
        table.compact()


@settings(max_examples=15, deadline=None)
@given(steps)
def test_queries_rank_what_is_complete_on_either_engine(tmp_path_factory, evaluation, steps):
    store = Store(tmp_path_factory.mktemp("store"))
    written = expected(play(store.evaluations, steps, maker(evaluation)))
    complete = {record.key: record for record in written if record.status == "complete"}
    for engine in ("pandas", "dask"):
        loaded = load_evaluations(store, engine)
        assert list(zip(loaded["key"], loaded["status"], strict=True)) == [(r.key, r.status) for r in written]
        best = leaderboard(store, engine=engine)
        assert dict(zip(best["key"], best["order"], strict=True)) == {k: r.order for k, r in complete.items()}
        lowest = [min(r.value for r in complete.values())] if complete else []
        assert front(store, engine=engine)["value"].tolist() == lowest
    pd.testing.assert_frame_equal(leaderboard(store, engine="pandas"), leaderboard(store, engine="dask"))


def test_rows_of_files_without_a_status_are_complete(tmp_path, evaluation):
    make = maker(evaluation)
    table = Table(EvaluationRecord, tmp_path)
    table.append([make(0, 1, complete=True)])
    (path,) = tmp_path.iterdir()
    older = pq.read_table(path, partitioning=None).drop_columns(["status", "error"])
    path.unlink()
    pq.write_table(older.replace_schema_metadata({VERSION_KEY: "2"}), tmp_path / "part-000000000000-0123abcd.parquet")
    table = Table(EvaluationRecord, tmp_path)
    for complete in (False, True):
        table.append([make(5, 1, complete)])
    for _ in range(2):
        assert [record.order for record in table.records()] == [0]
        table.compact()


def test_two_failures_of_which_the_first_is_read_first_show_the_later(tmp_path, evaluation):
    make = maker(evaluation)
    table = Table(EvaluationRecord, tmp_path)
    table.append([make(0, 1, complete=False), make(1, 2, complete=True), make(2, 1, complete=False)])
    assert [(record.key, record.error) for record in table.records()] == [("key-2", ""), ("key-1", "try 2")]

"""Leaderboard and front: right, equal on both engines, quick at 100,000 rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import ConfigurationError
from fewstep.storage import queries
from fewstep.storage.queries import front, leaderboard, load_evaluations
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def assert_engines_agree(store):
    questions = [
        load_evaluations,
        leaderboard,
        front,
        lambda store, engine: leaderboard(store, study="two", nfe=4, top=2, engine=engine),
        lambda store, engine: leaderboard(store, rung="report", engine=engine),
        lambda store, engine: front(store, study="nobody", engine=engine),
    ]
    for ask in questions:
        pd.testing.assert_frame_equal(ask(store, engine="pandas"), ask(store, engine="dask"))


def test_the_leaderboard_ranks_complete_finite_values_of_one_rung(store, evaluation):
    values = [3.0, 1.0, float("nan"), None, 2.0, 0.5, 0.1]
    rows = [evaluation(order, value=value) for order, value in enumerate(values)]
    rows[5] = replace(rows[5], status="failed", error="out of memory")
    rows[6] = replace(rows[6], rung="distance")
    store.evaluations.append(rows)
    best = leaderboard(store)
    assert best["value"].tolist() == [1.0, 2.0, 3.0]
    assert list(best.columns) == EvaluationRecord.schema.names
    assert best["candidate_json"].tolist() == ['{"order": 1}', '{"order": 4}', '{"order": 0}']
    assert leaderboard(store, top=1)["order"].tolist() == [1]
    assert leaderboard(store, nfe=3)["order"].tolist() == [0]
    assert leaderboard(store, rung="distance")["order"].tolist() == [6]


def test_the_front_holds_the_best_row_of_each_nfe_and_ties_go_to_the_first(store, evaluation):
    rows = [(5, 2.0), (3, 9.0), (5, 1.0), (3, 9.0), (4, 4.0)]
    store.evaluations.append([evaluation(i, nfe=nfe, value=value) for i, (nfe, value) in enumerate(rows)])
    best = front(store)
    assert best["nfe"].tolist() == [3, 4, 5]
    assert best["order"].tolist() == [1, 4, 2]


def test_feature_spaces_are_never_ranked_against_each_other(store, evaluation):
    store.evaluations.append(
        [evaluation(i, nfe=4, features=("fid-a", "fid-b")[i % 2], value=float(i)) for i in range(6)]
    )
    assert front(store)["order"].tolist() == [0, 1]
    assert leaderboard(store, top=2)["order"].tolist() == [0, 2, 1, 3]


def test_an_evaluation_that_two_studies_share_is_shown_once(store, evaluation):
    store.evaluations.append([evaluation(1, study=study) for study in ("one", "two")])
    assert leaderboard(store)["study"].tolist() == ["one"]
    assert leaderboard(store, study="two")["study"].tolist() == ["two"]


def test_an_empty_store_has_empty_answers(store):
    assert_engines_agree(store)
    assert len(front(store)) == 0
    assert list(leaderboard(store).columns) == EvaluationRecord.schema.names


def test_an_unknown_engine_is_refused_with_the_valid_ones(store):
    with pytest.raises(ConfigurationError, match="'polars': choose auto, pandas or dask"):
        leaderboard(store, engine="polars")


rows = st.fixed_dictionaries(
    {
        "order": st.integers(0, 8),
        "study": st.sampled_from(["one", "two"]),
        "nfe": st.integers(3, 5),
        "value": st.none() | st.sampled_from([1.0, 2.0, float("nan"), float("inf")]),
        "low": st.none() | st.just(0.5),
        "rung": st.sampled_from(["frechet", "report"]),
        "status": st.sampled_from(["complete", "complete", "failed"]),
        "features": st.sampled_from(["fid-a", "fid-b"]),
    }
)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.lists(rows, min_size=1, max_size=6), max_size=5))
def test_both_engines_give_the_same_answers(evaluation, files):
    store = Store("store", pafs._MockFileSystem())
    for file in files:
        store.evaluations.append([evaluation(**row) for row in file])
    assert_engines_agree(store)


def test_a_torn_file_costs_its_own_rows_on_either_engine(store, tmp_path, evaluation):
    for order in range(4):
        store.evaluations.append([evaluation(order, value=float(order), nfe=4)])
    torn = sorted((tmp_path / "tables" / "evaluations").iterdir())[0]
    torn.write_bytes(torn.read_bytes()[:1000])
    for engine in ("pandas", "dask"):
        fresh = Store(tmp_path)
        assert leaderboard(fresh, engine=engine)["order"].tolist() == [1, 2, 3]
        assert front(fresh, engine=engine)["order"].tolist() == [1]
        assert [path for path, _ in fresh.damaged()] == [str(torn)]
    assert_engines_agree(store)


def test_damage_that_only_the_winner_shows_costs_the_whole_file(store, tmp_path, evaluation):
    store.evaluations.append([evaluation(0, value=0.0, candidate_json="a text to be found")])
    store.evaluations.append([evaluation(1, value=1.0)])
    path = min((tmp_path / "tables" / "evaluations").iterdir())
    content = path.read_bytes()
    assert b"a text to be found" in content
    path.write_bytes(content.replace(b"a text to be found", b"a text to be lost!", 1))
    for engine in ("pandas", "dask"):
        assert leaderboard(Store(tmp_path), engine=engine)["order"].tolist() == [1]


def test_large_tables_go_to_dask(store, evaluation, monkeypatch):
    used = []
    monkeypatch.setattr(queries, "DASK_ROWS", 3)
    monkeypatch.setattr("dask.compute", lambda *tasks, **_: used.append(len(tasks)) or [])
    for order in range(4):
        store.evaluations.append([evaluation(order)])
        leaderboard(store)
    assert used == [4]


def test_the_best_of_many_parts_are_the_lowest_values_of_all(store, evaluation):
    number = np.random.default_rng(0)
    store.evaluations.append([evaluation(0, value=2.0, candidate_json="x" * 600)])
    row, values = store.evaluations.read(), number.random((5, 1_000))
    for start, drawn in enumerate(values):
        rows = row.take(pa.array(np.zeros(len(drawn), dtype=np.int64)))
        for name, column in {"key": [number.bytes(32).hex() for _ in drawn], "value": drawn}.items():
            rows = rows.set_column(rows.schema.get_field_index(name), row.schema.field(name), pa.array(column))
        store.evaluations.directory.publish(rows, start + 1)
    for engine in ("pandas", "dask"):
        best = leaderboard(Store(store.root), engine=engine)["value"].tolist()
        assert best == sorted(values.flatten())[: len(best)]
        assert len(best) == 10

"""Paired comparisons and rank correlations: right, and equal on both engines."""

from __future__ import annotations

import pandas as pd
import pytest
from scipy.stats import kendalltau, spearmanr

from fewstep.errors import ConfigurationError
from fewstep.storage.comparisons import mean_differences, paired, rank_correlations
from fewstep.storage.store import Store

ENGINES = ("pandas", "dask")


@pytest.fixture
def store(tmp_path, evaluation):
    """Two studies of seven seeds at two NFEs, of which the second lacks one; and three rungs of one."""
    store = Store(tmp_path)
    rows = [
        evaluation(100 * nfe + seed, study=study, key=f"{study}{nfe}{seed}", nfe=nfe, seed=seed, value=value)
        for nfe in (3, 4)
        for seed in range(7)
        for study, value in (("one", 10.0 * nfe + seed), ("two", 10.0 * nfe + 1 + seed % 3))
        if (study, seed) != ("two", 6)
    ]
    for rung, order in (("look", (3, 1, 2, 0, 4)), ("frechet", (3, 1, 0, 2, 4)), ("report", (0, 1, 2, 3, 4))):
        rows += [
            evaluation(1000 + i, study="rungs", key=f"{rung}{i}", candidate=f"c{i}", nfe=5, rung=rung, value=float(v))
            for i, v in enumerate(order)
        ]
    for start in range(0, len(rows), 6):
        store.evaluations.append(rows[start : start + 6])
    return store


def test_pairs_share_their_noise_and_both_engines_find_the_same(store):
    found = [paired(store, "study", "one", "two", engine=engine) for engine in ENGINES]
    pd.testing.assert_frame_equal(*found, check_dtype=False)
    table = found[0]
    assert list(zip(table["nfe"], table["seed"], strict=True)) == [(n, s) for n in (3, 4) for s in range(6)]
    assert table["difference"].tolist() == [s - 1.0 - s % 3 for s in range(6)] * 2
    told = mean_differences(table)
    assert told["pairs"].tolist() == [6, 6]
    assert told["lower"].tolist() == [3, 3]
    assert (told["low"] < told["mean"]).all()
    assert (told["mean"] < told["high"]).all()
    assert paired(store, "study", "one", "nobody").empty


def test_rank_correlations_are_those_of_scipy_on_either_engine(store):
    found = [rank_correlations(store, ("look", "frechet", "report"), "rungs", engine=engine) for engine in ENGINES]
    pd.testing.assert_frame_equal(*found, check_dtype=False)
    first = found[0].iloc[0]
    assert (first["nfe"], first["first"], first["second"], first["candidates"]) == (5, "look", "frechet", 5)
    assert first["kendall"] == pytest.approx(kendalltau((3, 1, 2, 0, 4), (3, 1, 0, 2, 4)).statistic)
    assert first["spearman"] == pytest.approx(spearmanr((3, 1, 2, 0, 4), (3, 1, 0, 2, 4)).statistic)
    assert len(found[0]) == 3
    assert rank_correlations(store, ("look", "nothing"), "rungs")["kendall"].isna().all()


def test_what_cannot_be_compared_is_refused(store):
    with pytest.raises(ConfigurationError, match="no column 'colour'"):
        paired(store, "colour", "red", "blue")
    with pytest.raises(ConfigurationError, match="1 rungs"):
        rank_correlations(store, ("look", "look"))

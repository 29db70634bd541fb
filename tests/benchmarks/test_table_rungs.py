"""The table of rungs: what tau says, which schedules are taken, and that nothing is computed twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.tables.engine import Searched
from benchmarks.tables.rungs import Rungs, candidates, tau_interval
from fewstep.errors import ConfigurationError
from fewstep.storage.store import Store

MakeTable = Callable[..., dict[str, list[dict[str, str]]]]


def test_tau_is_that_of_its_definition_and_its_interval_shrinks_with_the_candidates() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=40)
    assert tau_interval(a, np.exp(a)) == pytest.approx((1.0, 1.0, 1.0))
    assert tau_interval(a, -a)[0] == pytest.approx(-1.0)
    b = a + rng.normal(size=40)
    pairs = [(i, j) for i in range(40) for j in range(i)]
    expected = np.mean([np.sign((a[i] - a[j]) * (b[i] - b[j])) for i, j in pairs])
    tau, low, high = tau_interval(a, b)
    assert tau == pytest.approx(expected)
    assert low < tau < high
    few = tau_interval(a[:10], b[:10])
    assert few[2] - few[1] > high - low


def test_candidates_go_evenly_from_the_best_judged_to_the_worst(searched: Searched) -> None:
    judged = {r.candidate: r.value for r in searched.records if r.rung == "frechet" and r.value is not None}
    values = [judged[s.hash] for s in candidates(searched, 3, 6)]
    assert len(values) == 6
    assert values == sorted(values)
    assert (values[0], values[-1]) == (min(judged.values()), max(judged.values()))
    assert len(candidates(searched, 3, 10_000)) == len(judged)
    with pytest.raises(ConfigurationError, match="NFE 9"):
        candidates(searched, 9, 6)


def test_rungs_are_asked_about_the_same_candidates_and_computed_once(
    searched: Searched, tmp_path: Path, make_table: MakeTable, published: Callable[[str], list[str]]
) -> None:
    asked = Rungs(
        search=str(searched.study.root),
        candidates=6,
        distance_images=(8,),
        frechet_images=(250, 500),
        report_images=500,
    )
    rows = make_table(asked, tmp_path)["t"]
    assert list(rows[0]) == published("digits_rungs") == published("fashion_rungs")
    assert [(r["rung"], r["images"]) for r in rows] == [
        ("feature distance", "8"), ("pixel distance", "8"), ("frechet", "250"), ("frechet", "500")
    ]  # fmt: skip
    for row in rows:
        assert -1 <= float(row["low"]) <= float(row["tau"]) <= float(row["high"]) <= 1
        assert 1 <= int(row["chosen"]) <= int(row["candidates"]) == 6
        assert int(row["calls"]) == 3 * int(row["images"])
    records = Store(tmp_path).evaluations.records()
    assert {r.seed for r in records} == {0, 1_000_003}
    assert make_table(asked, tmp_path)["t"] == rows
    assert len(Store(tmp_path).evaluations.records()) == len(records)

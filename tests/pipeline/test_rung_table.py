"""`fewstep rungs`: what tau says, which schedules are taken, and that nothing is computed twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.errors import ConfigurationError
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.rung_table import candidates, tau_interval
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.storage.store import Store


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


@pytest.fixture(scope="module")
def searched(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    settings = SearchSettings.build(
        model=str(toy),
        nfes=(3,),
        budget=16_000,
        screen="frechet",
        look_images=100,
        frechet_images=250,
        finalist_images=500,
        finalists=1,
        keep=0.5,
        grids=("uniform-t-zero",),
        report_images=250,
        teacher="dpmpp-2m/uniform-t-zero@6",
    )
    study = Study(tmp_path_factory.mktemp("rungs") / "search", settings)
    study.run(ExecutionSettings(executor="in-process"), "test")
    return study


def test_candidates_go_evenly_from_the_best_judged_to_the_worst(searched: Study) -> None:
    records = searched.store.evaluations.records()
    judged = {r.candidate: r.value for r in records if r.rung == "frechet" and r.value is not None}
    values = [judged[s.hash] for s in candidates(searched, 3, 6)]
    assert len(values) == 6
    assert values == sorted(values)
    assert (values[0], values[-1]) == (min(judged.values()), max(judged.values()))
    assert len(candidates(searched, 3, 10_000)) == len(judged)
    with pytest.raises(ConfigurationError, match="NFE 9"):
        candidates(searched, 9, 6)


def test_a_table_of_rungs_agrees_with_itself_and_is_computed_once(searched: Study, run: Callable[..., Any]) -> None:
    asked = ("rungs", searched.root, "--candidates", 6, "--distance-images", "8", "--frechet-images", "250,500")
    rows = run(*asked, "--report-images", 500, "--out", "r", "--csv", "t.csv", "--json").json["rows"]
    assert [(r["rung"], r["images"]) for r in rows] == [
        ("feature distance", 8),
        ("pixel distance", 8),
        ("frechet", 250),
        ("frechet", 500),
    ]
    for row in rows:
        assert -1 <= row["low"] <= row["tau"] <= row["high"] <= 1
        assert 1 <= row["chosen"] <= row["candidates"] == 6
        assert row["calls"] == 3 * row["images"]
    records = Store(Path("r")).evaluations.records()
    assert {r.seed for r in records} == {0, 1_000_003}
    assert run(*asked, "--report-images", 500, "--out", "r", "--json").json["rows"] == rows
    assert len(Store(Path("r")).evaluations.records()) == len(records)
    run("rungs", searched.root, "--frechet-images", "many").refused("many", "250,1000")

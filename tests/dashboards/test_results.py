"""The final table and the way there, from made-up records."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from fewstep.dashboards.results import FOUND, convergence, feature_spaces, headline, methods, report_table
from fewstep.errors import ConfigurationError
from fewstep.search_spaces.point import QuantizationPoint, as_point, joint
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.search_spaces.schedule.presets import preset
from fewstep.storage.records import EvaluationRecord

COLUMNS = ("nfe", "method", "grid", "value", "low", "high", "images", "features", "candidate")


def _preset_record(order, name, changes, nfe=8) -> EvaluationRecord:
    schedule = preset(name, (*np.linspace(-5, 2, nfe), math.inf))
    row = EvaluationRecord(
        study="digits",
        order=order,
        trial=order,
        key=f"key-{order}",
        candidate=schedule.hash,
        candidate_json=as_point(schedule).to_json(),
        nfe=nfe,
        rung="report",
        origin=f"preset:{name}/karras",
        model="m",
        model_hash="h",
        features="fid-digits",
        reference="train",
        seed=1,
        images=10,
        metric="frechet",
        value=2.0,
        low=None,
        high=None,
        denoiser_calls=10 * nfe,
        seconds=1.0,
        device="cpu",
        finished_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return replace(row, **changes)


def test_the_table_holds_found_and_presets_by_nfe_and_value(store):
    table = report_table(store, "digits")
    assert set(COLUMNS) <= set(table.columns)
    assert table[["nfe", "value"]].apply(tuple, axis=1).is_monotonic_increasing
    first = table.iloc[0]
    assert (first["nfe"], first["method"], first["grid"], first["images"]) == (3, FOUND, "", 10_000)
    assert (first["value"], first["low"]) == (pytest.approx(21.37 / 2), pytest.approx(0.95 * 21.37 / 2))
    ddim = table[table["method"] == "ddim"]
    assert ddim["grid"].tolist() == ["karras"] * 3
    assert methods(table)[0] == FOUND


def test_presets_that_are_the_same_solver_share_an_evaluation(make_store):
    # Three steps with a last one to sigma = 0 leave no room for a third order.
    table = report_table(make_store([_preset_record(0, "dpmpp-2m", {}, nfe=3)]), "digits")
    assert table["method"].tolist() == ["dpmpp-2m", "dpmpp-3m"]
    assert table["value"].nunique() == 1
    assert table["candidate"].nunique() == 1


def test_a_preset_that_won_the_search_goes_by_its_name(make_store):
    row = _preset_record(0, "ddim", {"origin": "found:preset:ddim/karras"})
    table = report_table(make_store([row]), "digits")
    assert table[["method", "grid"]].values.tolist() == [["ddim", "karras"]]


def test_failed_unfinished_and_other_rows_are_no_results(make_store):
    rows = [
        _preset_record(0, "ddim", {"status": "failed", "value": None, "error": "x"}),
        _preset_record(1, "ddim", {"value": float("nan")}),
        _preset_record(2, "ddim", {"rung": "frechet"}),
        _preset_record(3, "ddim", {"study": "another"}),
    ]
    store = make_store(rows)
    table = report_table(store, "digits")
    assert table.empty
    assert set(COLUMNS) <= set(table.columns)
    assert len(report_table(store, "another")) == 1
    assert convergence(store, "digits")[["calls", "best"]].values.tolist() == [[80, 2]]


def test_a_candidate_of_another_kind_is_a_row_too(make_store):
    row = _preset_record(0, "ddim", {"candidate_json": '{"bits": 4}'})
    assert report_table(make_store([row]), "digits")["method"].tolist() == ["ddim"]


def test_a_quantised_preset_is_not_that_preset(make_store):
    """Presets that coincide share an evaluation in full precision, not that of another network."""
    row = _preset_record(0, "dpmpp-2m", {}, nfe=3)
    schedule = preset("dpmpp-2m", (*np.linspace(-5, 2, 3), math.inf))
    point = joint(as_point(schedule), QuantizationPoint(config=QuantizationConfig()))
    row = replace(row, candidate=point.hash, candidate_json=point.to_json())
    assert report_table(make_store([row]), "digits")["method"].tolist() == ["dpmpp-2m"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_of_several_finds_at_one_nfe_the_headline_is_what_the_search_held_best(make_store, order):
    """A front has several members an NFE. What its search held best is told by its own rungs, not by the report."""
    # The report of each, the search's own value at the dear rung and at the finals, where there is one.
    front = [(2.0, 5.0, 4.0), (1.5, 3.0, 4.5), (1.0, 2.0, None)]
    rows = []
    for i in order:
        report, judged, final = front[i]
        candidate = {"candidate": f"member-{i}", "origin": "evolution"}
        for rung, value in (("frechet", judged), ("finals", final), ("report", report)):
            if value is not None:
                origin = "found:evolution" if rung == "report" else "evolution"
                changes = {**candidate, "origin": origin, "rung": rung, "value": value, "seed": 0}
                rows.append(_preset_record(len(rows), "ddim", changes))
    table = report_table(make_store(rows), "digits")
    assert len(table) == 3
    assert headline(table)["candidate"].tolist() == ["member-0"]


def test_the_headline_takes_the_best_grid_but_the_latest_find(make_store):
    rows = [
        _preset_record(0, "ddim", {"value": 3.0}),
        _preset_record(1, "ddim", {"value": 2.0, "origin": "preset:ddim/quadratic"}),
        _preset_record(2, "dpmpp-3m", {"value": 1.0, "origin": "found:random"}),
        _preset_record(3, "dpmpp-3m", {"value": 1.5, "origin": "found:surrogate"}),
    ]
    table = report_table(make_store(rows), "digits")
    assert len(table) == 4
    chosen = headline(table).set_index("method")["value"].to_dict()
    assert chosen == {"ddim": 2.0, FOUND: 1.5}


def test_values_of_different_feature_spaces_are_never_put_together(make_store):
    rows = [_preset_record(0, "ddim", {}), _preset_record(1, "ddim", {"features": "fid-inception"})]
    table = report_table(make_store(rows), "digits")
    assert [part["features"].iloc[0] for part in feature_spaces(table)] == ["fid-digits", "fid-inception"]
    with pytest.raises(ConfigurationError, match=r"mixes features fid-digits, fid-inception.*feature_spaces"):
        headline(table)


def test_convergence_counts_every_rung_but_the_report(make_store):
    changes = [
        {"rung": "distance", "value": 0.1},
        {"rung": "frechet", "value": 5.0},
        {"rung": "frechet", "status": "failed", "value": None},
        {"rung": "report", "value": 1.0},
        {"rung": "frechet", "value": 7.0},
        {"rung": "frechet", "value": 4.0},
    ]
    rows = [_preset_record(i, "ddim", change) for i, change in enumerate(changes)]
    df = convergence(make_store(rows[::-1]), "digits")
    assert df["calls"].tolist() == [160, 320, 400]
    assert df["value"].tolist() == [5.0, 7.0, 4.0]
    assert df["best"].tolist() == [5.0, 5.0, 4.0]

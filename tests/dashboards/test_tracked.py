"""What MLflow shows of a study at a glance is what its report says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from fewstep.dashboards.results import FOUND, headline, report_table
from fewstep.dashboards.tracked import LONGEST, summary
from fewstep.storage.store import Store
from fewstep.storage.tracking import OWN_RUN

STORED = Path(__file__).parent.parent / "fixtures" / "studies"


@pytest.mark.parametrize("name", ["schedule", "schedule-evolved"])
def test_figures_are_those_of_the_report(name: str) -> None:
    store = Store(STORED / name)
    told, table = summary(store, name), headline(report_table(store, name))
    rows = store.evaluations.read(["rung", "denoiser_calls", "seconds", "nfe"], {"study": name}).to_pandas()
    for nfe, own in table.groupby("nfe"):
        found = own[own["method"] == FOUND].iloc[0]
        stock = own[own["method"] != FOUND]["value"].tolist()
        key = f"fid-digits/nfe{nfe}"
        ends = {"_low": found["low"], "_high": found["high"]}
        expected = {"": found["value"]} | {end: value for end, value in ends.items() if math.isfinite(value)}
        if stock:
            expected |= {"_stock": stock[0], "_gain": 1 - found["value"] / stock[0]}
        own_figures = {name.removeprefix(key): value for name, value in told.figures.items() if name.startswith(key)}
        assert {end: own_figures[end] for end in expected} == pytest.approx(expected)
        assert ("_gain" in own_figures) == bool(stock)
        assert told.figures[f"cost/nfe{nfe}_calls"] == rows[rows["nfe"] == nfe]["denoiser_calls"].sum()
        assert {f"{key}{end}" for end in expected} - {f"{key}_low", f"{key}_high"} <= set(told.columns)
        assert f"{found['value']:.4g}" in told.description
    report = rows["rung"] == "report"
    assert told.figures["cost/search_calls"] == rows[~report]["denoiser_calls"].sum()
    assert told.figures["cost/report_calls"] == rows[report]["denoiser_calls"].sum()


def test_a_second_judge_has_figures_of_its_own(store: Store) -> None:
    report = [row for row in store.evaluations.records() if row.rung == "report"]
    judged = [
        replace(
            row,
            order=1000 + row.order,
            key=f"judge-{row.key}",
            rung="measured-frechet-judge",
            features="fid-digits-judge",
            value=2.0 if row.origin.startswith("found") else 8.0,
        )
        for row in report
    ]
    store.evaluations.append(judged)
    told = summary(store, "digits")
    assert told.figures["fid-digits-judge/nfe4"] == 2.0
    assert told.figures["fid-digits-judge/nfe4_stock"] == 8.0
    assert told.figures["fid-digits-judge/nfe4_gain"] == 0.75
    assert told.figures["fid-digits/nfe4"] != 2.0
    assert told.description.count("fid-digits-judge") == 3


def test_a_description_has_the_picture_the_command_and_no_markup_of_others(store: Store) -> None:
    told = summary(store, "digits", [], ["NFE 3: <b>found</b> [x](y)"], "fewstep  search\n--nfe 3", ["front.png"])
    assert f"](get-artifact?path=front.png&run_uuid={OWN_RUN})" in told.description
    assert "\n    fewstep search --nfe 3\n" in told.description
    assert "<b>" not in told.description.replace("\\<b", "")
    assert "[x](" not in told.description.replace("\\[x\\](", "")
    assert len(summary(store, "digits", [], ["v" * 500] * 40).description) <= LONGEST


def test_before_the_report_there_is_cost_and_nothing_held_out(store: Store, tmp_path: Path) -> None:
    early = Store(tmp_path / "early")
    early.evaluations.append([row for row in store.evaluations.records() if not row.of_report])
    told = summary(early, "digits")
    assert not told.columns
    assert all(name.startswith("cost/") for name in told.figures)
    assert "no report yet" in told.description

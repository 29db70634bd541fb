"""Of more candidates than a picture holds the fronts are drawn whole."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fewstep.dashboards.web import tradeoff as module
from fewstep.dashboards.web.columns import Columns
from fewstep.dashboards.web.places import Places
from fewstep.dashboards.web.tradeoff import PAIRS, tradeoff
from fewstep.storage.store import Store

STORED = Path(__file__).parent.parent / "fixtures" / "studies"
HIGHER = ("success", "identity")


@pytest.mark.parametrize("name", ["joint", "edit-nsgaii"])
def test_what_no_other_candidate_beats_is_drawn(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(shutil.copytree(STORED / name, tmp_path / name))
    (entry,) = Places([tmp_path / name]).find()[0]
    first = next(r for r in store.evaluations.records() if r.status == "complete" and r.rung != "report")
    draw = np.random.default_rng(3)
    rows = []
    for k, (a, b, c) in enumerate(draw.uniform(0.1, 1.0, (60, 3)).tolist()):
        figures = {"size_bytes": 1e6 * a, "bit_operations_a_call": 1e9 * b, "success": a, "identity": b}
        rows.append(
            replace(
                first,
                order=1000 + k,
                key=f"k{k}",
                candidate=f"c{k}",
                rung="finals",
                value=c,
                metrics=figures,
                origin=f"o{k}",
            )
        )
    store.evaluations.append([*rows, replace(rows[0], key="none", candidate="none", metrics={}, order=2000)])
    monkeypatch.setattr(module, "REPORT", "none")
    every = tradeoff(Columns(), entry)
    monkeypatch.setattr(module, "MOST", 40)
    some = tradeoff(Columns(), entry)
    assert every is not None
    assert some is not None
    total = sum(row.rung == "finals" and row.status == "complete" for row in store.evaluations.records())
    assert (every.left_out, some.left_out) == (0, total - 40)
    assert {row.candidate for row in rows} <= set(every.points["candidate"])
    drawn = set(some.points["candidate"])
    for pair in PAIRS[entry.space]:
        signs = [-1.0 if name in HIGHER else 1.0 for name in pair]
        for _, own in every.points.groupby("nfe"):
            places = own[list(pair)].to_numpy(dtype=np.float64) * signs
            beaten = [((places <= one).all(axis=1) & (places < one).any(axis=1)).any() for one in places]
            assert set(own["candidate"][~np.array(beaten)]) <= drawn

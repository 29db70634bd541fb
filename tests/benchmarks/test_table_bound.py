"""Tables of the bound: it holds where the truth is known, and where it does not that is told; a model's terms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.tables.bound import Mixtures, Trained
from fewstep.errors import EvaluationError
from fewstep.tasks.flow import tightness

MakeTable = Callable[..., dict[str, list[dict[str, str]]]]
Published = Callable[[str], list[str]]


def test_it_holds_where_the_truth_is_known(tmp_path: Path, make_table: MakeTable, published: Published) -> None:
    rows = make_table(Mixtures(cases=8), tmp_path, "flow_bound")["flow_bound"]
    assert list(rows[0]) == published("flow_bound")
    assert [int(row["case"]) for row in rows] == list(range(8))
    for row in rows:
        assert float(row["truth"]) <= float(row["bound"])
        assert float(row["bound"]) >= float(row["reconstruction"])
    assert (tmp_path / "flow_bound.png").is_file()


def test_a_bound_below_the_truth_is_told(
    tmp_path: Path, make_table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tightness.LinearCase, "true_w2", lambda self: 2 * self.bound().value)
    with pytest.raises(EvaluationError, match="held in 0 of 3"):
        make_table(Mixtures(cases=3), tmp_path)
    assert (tmp_path / "t.csv").is_file()


def test_a_model_has_a_row_a_term(tmp_path: Path, make_table: MakeTable, published: Published) -> None:
    asked = Trained(model="digits-ddpm", labels="none", images=8, points=8, times=4, iterations=2)
    rows = make_table(asked, tmp_path)["t"]
    assert list(rows[0]) == published("flow_bound_fashion")
    assert ("reconstruction error", "training") in {(row["term"], row["law"]) for row in rows}
    assert "# note 1: " in (tmp_path / "t.csv").read_text()

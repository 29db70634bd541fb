"""`fewstep query`, and `report --top`: questions to the tables, for which nothing is replayed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fewstep
from fewstep.pipeline.search import Search

pytest.importorskip("duckdb")
Run = Callable[..., Any]
STUDY = Path(__file__).parents[1] / "fixtures" / "studies" / "schedule"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stored study that must not be replayed."""

    def refuse(*_: object) -> None:
        raise AssertionError("the search is replayed")

    monkeypatch.setattr(Search, "replay", refuse)
    shutil.copytree(STUDY / "tables", tmp_path / "tables")
    return tmp_path


def test_a_question_is_answered_as_a_table_as_json_and_as_csv(run: Run, root: Path, tmp_path: Path) -> None:
    sql = "select nfe, count(*) n from evaluations group by nfe order by nfe"
    told = run("query", "--out", root, sql, "--json").json
    rows = fewstep.load_study(root).query(sql).to_dict("records")
    assert told == {"columns": ["nfe", "n"], "rows": rows}
    assert run("query", "--out", root, sql).out.count("\n") > len(rows)
    run("query", "--out", root, sql, "--csv", tmp_path / "n.csv")
    assert (tmp_path / "n.csv").read_text().splitlines()[0] == "nfe,n"


def test_candidates_are_listed_best_first_at_each_nfe(run: Run, root: Path) -> None:
    listed = run("report", "--out", root, "--top", 2, "--json").json["leaderboard"]
    view = fewstep.load_study(root)
    assert [r["candidate"] for r in listed] == view.leaderboard(2)["candidate"].tolist()
    trials = view.trials()
    for nfe in view.settings.nfes:
        values = [r["value"] for r in listed if r["nfe"] == nfe]
        judged = trials[(trials["nfe"] == nfe) & (trials["rung"] == "frechet") & (trials["status"] == "complete")]
        assert values == sorted(judged.drop_duplicates("key")["value"])[:2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("query", "delete from evaluations"), "SELECT"),
        (("query", "select 1", "--out", "nowhere"), "holds no tables"),
        (("report", "--top", 2, "--sync"), "does nothing else"),
    ],
)
def test_what_is_no_question_is_refused(run: Run, root: Path, arguments: tuple[object, ...], words: str) -> None:
    out = () if "--out" in arguments else ("--out", root)
    run(*arguments, *out).refused(words)

"""Progress is shown where a search runs: in a terminal, in a notebook, as lines elsewhere."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fewstep.pipeline import display
from fewstep.pipeline.progress import SearchProgress, duration
from fewstep.pipeline.settings import SearchSettings

SETTINGS = SearchSettings(model="m", nfes=(3, 4), budget=1000)


def _record(trial: int = 0, **changes: Any) -> Any:
    known = {
        "trial": trial,
        "candidate": f"hash-{trial}",
        "nfe": 3,
        "rung": "frechet",
        "value": 1.5,
        "denoiser_calls": 100,
        "origin": "s3",
        "status": "complete",
    }
    said = known | changes
    return SimpleNamespace(of_report=str(said["rung"]).startswith("report"), **said)


def test_a_notebook_shows_one_output_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, page: str) -> None:
            shown.append(page)

    def show(page: str, display_id: bool) -> Handle:
        assert display_id
        shown.append(page)
        return Handle()

    notebook = ModuleType("IPython.display")
    vars(notebook).update(HTML=str, display=show)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    monkeypatch.setattr(display, "Console", lambda **given: Console(**({"force_jupyter": True} | given)))
    monkeypatch.setattr(display, "NOTEBOOK_SECONDS", 0.0)
    with display.SearchDisplay(SETTINGS) as progress:
        progress.on_record(_record())
        progress.on_record(_record(nfe=4, value=0.25, origin="preset:<ddim>"))
    assert len(shown) >= 4
    assert all(page.startswith("<pre") for page in shown)
    assert "0.250" in shown[-1]
    assert "&lt;ddim&gt;" in shown[-1]


def test_without_a_terminal_nothing_is_drawn_and_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with display.SearchDisplay(SETTINGS) as progress:
        progress._printed -= 60
        progress.on_record(_record())
    assert "NFE 3: 1.500 (S^3 proposal)" in capsys.readouterr().out
    with display.SearchDisplay(SETTINGS, quiet=True) as progress:
        progress._printed -= 60
        progress.on_record(_record())
    assert capsys.readouterr().out == ""


RECORDS = [
    _record(0, origin="preset:ddim/karras", rung="distance", value=9.0),
    _record(0, origin="preset:ddim/karras"),
    _record(1, origin="analytic:ddim/karras", rung="distance", value=8.0),
    _record(2, origin="warm-start", value=3.0),
    _record(3, rung="distance", value=5.0),
    _record(4, rung="distance", value=None, status="failed"),
    _record(5, origin="refine:hash-0", rung="refine", value=1.0),
    _record(5, origin="refine:hash-0", value=1.25),
    _record(6, origin="refine:hash-2", rung="refine", value=None, status="failed"),
]
FACTS = ("2 presets", "1 warm starts", "2 own proposals", "1 tuned", "1 not tuned for an error", "3 judged")
CALLS = "900 of 1,000 calls spent, 100 left"


def test_a_terminal_and_lines_tell_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for terminal in (True, False):
        monkeypatch.setattr(
            display, "Console", lambda forced=terminal, **given: Console(force_terminal=forced, width=200, **given)
        )
        with display.SearchDisplay(SETTINGS) as progress:
            for record in RECORDS:
                progress._printed -= 60
                progress.on_record(record)
        shown = capsys.readouterr().out
        for fact in (*FACTS, CALLS, "of search left", "1.250", "tuned from preset:ddim/karras"):
            assert fact in shown, (terminal, fact)


def test_a_warning_stands_above_what_is_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(display, "Console", lambda **given: Console(force_terminal=True, width=200, **given))
    with display.SearchDisplay(SETTINGS) as progress:
        progress.on_record(_record())
        print("warning: tuning failed: its 12,000 calls go back to the search", file=sys.stderr)
        progress.on_record(_record(1))
    captured = capsys.readouterr()
    assert "warning: tuning failed: its 12,000 calls go back to the search" in captured.out + captured.err


def test_what_is_gone_on_with_counts_but_its_calls_took_no_time() -> None:
    whole = SearchProgress(1000)
    for record in RECORDS:
        whole.add(record)
    resumed = SearchProgress(1000, RECORDS)
    assert (resumed.counts(), resumed.calls()) == (whole.counts(), whole.calls())
    assert whole.left(90.0) == "about 10 s of search left"
    assert resumed.left(90.0) == "90 s so far"
    resumed.add(_record(7, denoiser_calls=20))
    assert resumed.left(5.0) == "about 20 s of search left"


def test_the_report_is_no_part_of_the_budget() -> None:
    progress = SearchProgress(1000, RECORDS)
    progress.add(_record(5, origin="found:refine:hash-0", rung="report", denoiser_calls=40_000))
    assert progress.phase == "report"
    assert progress.calls() == CALLS + ", 40,000 on 1 rows of the report"
    assert [duration(s) for s in (12, 600, 7_500)] == ["12 s", "10 min", "2 h 5 min"]

"""Progress is shown where a search runs: in a terminal, in a notebook, as lines elsewhere."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fewstep.pipeline import display
from fewstep.pipeline.settings import SearchSettings

SETTINGS = SearchSettings(model="m", nfes=(3, 4), budget=1000)


def _record(**changes: Any) -> Any:
    known = {"nfe": 3, "rung": "frechet", "value": 1.5, "denoiser_calls": 100, "origin": "s3"}
    return SimpleNamespace(**(known | changes))


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
    assert "NFE 3: 1.500" in capsys.readouterr().out
    with display.SearchDisplay(SETTINGS, quiet=True) as progress:
        progress._printed -= 60
        progress.on_record(_record())
    assert capsys.readouterr().out == ""

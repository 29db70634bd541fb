"""A password that was typed is in nothing that a command prints or keeps."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fewstep.pipeline import api, publishing
from fewstep.pipeline.commands import baseline, edit, options
from fewstep.pipeline.display import mlflow_command
from fewstep.pipeline.reports.csv import results_csv
from fewstep.storage import tracking

ADDRESSES = [
    "mysql+pymysql://user:SECRET word@host/db",
    "postgresql://host/db?user=u&password=SECRET%21word",
    "https://SECRETtoken@host",
    "https://user:SECRET@host:5000",
]


def _nothing(*_: Any, **__: Any) -> str:
    return ""


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("form", ["--tracking-uri {}", "--tracking-uri={}"])
def test_the_command_that_tables_name_is_without_it(address: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    option, mark, _ = form.partition("{}")[0].partition("=")
    typed = [f"{option}={address}"] if mark else [option.strip(), address]
    monkeypatch.setattr(sys, "argv", ["fewstep", "search", *typed, "--out", "runs/x"])
    command = options.typed()
    assert "SECRET" not in command
    assert command.endswith("--out runs/x")
    assert "SECRET" not in results_csv([], command, {}, records=[])


@pytest.mark.parametrize("address", ADDRESSES)
def test_where_a_study_is_browsed_is_told_without_it(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "sync", _nothing)
    monkeypatch.setattr(publishing, "log", _nothing)
    shown = [
        str(baseline._track(tmp_path, {}, address)),
        edit._track(SimpleNamespace(root=tmp_path), address),
        mlflow_command(address),
    ]

    def refuse(*_: Any) -> None:
        raise api.TrackingError("refused")

    monkeypatch.setattr(publishing, "log", refuse)
    monkeypatch.setattr(publishing, "draw", _nothing)
    study: Any = SimpleNamespace(root=tmp_path, run=lambda *_: SimpleNamespace(files={}))
    api.run_study(study, api.ExecutionSettings(), "test", address)
    captured = capsys.readouterr()
    assert "host" in captured.err
    for text in (*shown, captured.out, captured.err):
        assert "SECRET" not in text
        assert "host" in text or not text

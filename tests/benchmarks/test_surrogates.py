"""The benchmark of surrogates refuses what it cannot measure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import surrogates

STUDY = Path(__file__).parents[1] / "fixtures" / "studies" / "schedule"


def test_a_study_without_a_refit_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = surrogates.examples_of(surrogates.Study.load(STUDY))
    for kept in ([], trials[:5]):
        monkeypatch.setattr(surrogates, "examples_of", lambda study, kept=kept: kept)
        monkeypatch.setattr(sys, "argv", ["surrogates", str(STUDY)])
        with pytest.raises(SystemExit) as refused:
            surrogates.main()
        assert refused.value.code == 2
        assert f"{STUDY} has {len(kept)} trials" in capsys.readouterr().err

"""The loop: what it says where a search ends otherwise than by its budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.executors.in_process import InProcessExecutor
from fewstep.pipeline.proposers.optuna import OptunaProposer
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.storage.records import EvaluationRecord

HERE = ExecutionSettings(executor="in-process")


def _study(toy: Path, root: Path, budget: int, **changes: object) -> Study:
    small: dict[str, object] = {
        "preset_images": 2,
        "look_images": 4,
        "distance_images": 2,
        "frechet_images": 3,
        "report_images": 3,
    }
    settings = SearchSettings.build(
        model=str(toy),
        nfes=(1,),
        sampler="random",
        teacher="ddim@2",
        budget=budget,
        screen="distance",
        refine=0.0,
        **(small | changes),
    )
    return Study(root, settings)


def test_a_space_with_no_candidate_left_is_said_once(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(OptunaProposer, "ask", lambda *arguments: None)
    study = _study(toy, tmp_path / "left", 1_000, finalist_images=50)
    state = study.find(HERE)
    assert state.spent < 1_000
    (event,) = [e for e in study.store.events.records() if e.kind == "exhausted"]
    assert "at NFE 1" in event.message
    assert capsys.readouterr().err == f"warning: {event.message}\n"
    study.find(HERE)
    assert capsys.readouterr().err == ""


def test_a_budget_that_is_spent_says_nothing(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = _study(toy, tmp_path / "spent", 400, finals=0.5)
    assert 0.98 * 400 <= study.find(HERE).spent <= 400
    assert study.store.events.records() == []
    assert capsys.readouterr().err == ""


def test_results_that_are_there_together_are_written_together_and_learned_from_in_that_order(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InProcessExecutor, "capacity", 5)
    monkeypatch.setattr(InProcessExecutor, "ready", property(lambda self: self.in_flight), raising=False)
    study, written = _study(toy, tmp_path / "together", 150), list[int]()
    append = study.store.evaluations.append

    def noted(records: Sequence[EvaluationRecord]) -> None:
        written.append(len(records))
        append(records)

    monkeypatch.setattr(study.store.evaluations, "append", noted)
    state = study.find(HERE)
    records = study.records()
    assert [r.order for r in records] == list(range(len(records)))
    assert sum(written) == len(records)
    assert max(written) > 1
    again = study.state()
    known = {n: (t.candidate.hash, list(t.records)) for n, t in state.trials.items()}
    assert {n: (t.candidate.hash, list(t.records)) for n, t in again.trials.items()} == known

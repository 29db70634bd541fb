"""What a search of schedules reports: what was found, and what is stock beside it, each by its own name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.problems.schedule_report import ScheduleReport
from fewstep.pipeline.proposers.optuna import OptunaProposer
from fewstep.pipeline.reports.rows import SearchedRow
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.sizes import rows_at_most
from fewstep.pipeline.study import Outcome, Study
from fewstep.search_spaces.schedule import load_schedule

HERE = ExecutionSettings(executor="in-process")
STORED = Path(__file__).parents[1] / "fixtures" / "studies"


def _settings(toy: Path, **changes: Any) -> SearchSettings:
    return SearchSettings.build(
        model=str(toy),
        sampler="random",
        nfes=(2,),
        frechet_images=250,
        report_images=750,
        teacher="dpmpp-2m/uniform-t-zero@6",
        **changes,
    )


@pytest.fixture(scope="module")
def stock(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Outcome]:
    """A study that found nothing but presets."""
    root = tmp_path_factory.mktemp("searches") / "stock"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(OptunaProposer, "ask", lambda *arguments: None)
        study = Study(root, _settings(toy, budget=12_000, refine=0.0))
        return study, study.run(HERE, "test")


def test_a_preset_that_won_goes_by_its_name(stock: tuple[Study, Outcome]) -> None:
    study, outcome = stock
    best, *others = outcome.rows
    assert isinstance(best, SearchedRow)
    assert best.found
    assert best.origin == f"preset:{best.schedule}"
    assert best.method == best.schedule.partition("/")[0]
    assert not any(row.method == "fewstep" or (isinstance(row, SearchedRow) and row.found) for row in others)
    (line,) = outcome.verdicts
    assert line.startswith(f"NFE 2: no schedule better than {best.schedule} (")
    published = load_schedule(outcome.schedules[2])
    assert published.provenance["origin"] == best.origin
    assert "fewstep" not in published.name
    evaluated = {r.candidate for r in study.reported()}
    assert len(evaluated) <= rows_at_most(study.settings) if isinstance(study.settings, SearchSettings) else False


def test_the_model_s_own_scheduler_has_a_line_and_a_note(stock: tuple[Study, Outcome]) -> None:
    study, outcome = stock
    (own,) = [row for row in outcome.rows if row.method.startswith("own:")]
    assert own.method == "own:DDPMScheduler by DDIM"
    assert own.nfe == 2
    note = "DDPMScheduler is stochastic: its own sampling is no schedule; DDIM on its timesteps is shown instead"
    assert study.problem.notes == {"own-scheduler": note}
    told = [e.message for e in study.store.events.records() if e.kind == "own-scheduler"]
    assert told == [note]
    # It is no candidate of the search.
    assert {r.rung for r in study.records() if r.origin.startswith("own:")} == {"report"}


def test_the_verdict_comes_first_wherever_the_study_is_shown(
    stock: tuple[Study, Outcome], run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, outcome = stock
    (line,) = outcome.verdicts
    assert (study.root / "results.csv").read_text().splitlines()[0] == f"# {line}"
    root = Path(shutil.copytree(study.root, tmp_path / "copy"))
    # What was said is read back: nothing is worked out again.
    monkeypatch.setattr(ScheduleReport, "verdicts", lambda *_: pytest.fail("worked out again"))
    page = tmp_path / "report.html"
    shown = run("report", "--out", root, "--html", page)
    assert shown.code == 0, shown.err
    assert shown.out.splitlines()[0] == line
    assert "own-scheduler: DDPMScheduler is stochastic" in shown.out
    assert run("report", "--out", root, "--json").json["verdicts"] == [line]
    text = page.read_text()
    assert text.index(line.partition(" (")[0]) < text.index("<table")
    assert "own:DDPMScheduler by DDIM" in text


def test_a_study_that_said_nothing_is_judged_when_it_is_read(stock: tuple[Study, Outcome], tmp_path: Path) -> None:
    study, outcome = stock
    root = Path(shutil.copytree(study.root, tmp_path / "copy"))
    for path in (root / "tables" / "events").rglob("*.parquet"):
        path.unlink()
    again = Study.load(root)
    assert again.verdicts(again.state()) == list(outcome.verdicts)


def test_what_shares_an_evaluation_has_a_line_of_its_own(stock: tuple[Study, Outcome]) -> None:
    from fewstep.dashboards.results import report_table

    study, outcome = stock
    best = outcome.rows[0]
    (record,) = [r for r in study.reported() if r.origin.startswith("found:")]
    shared = [(2, record.candidate, "own:EulerDiscreteScheduler"), (2, record.candidate, record.origin)]
    before, table = (report_table(study.store, study.settings.study, given) for given in ((), shared))
    assert len(table) == len(before) + 1
    (line,) = table[table["method"] == "own:EulerDiscreteScheduler"].to_dict("records")
    assert (line["value"], line["candidate"]) == (best.value, record.candidate)


@pytest.mark.parametrize("name", ["schedule-evolved", "schedule-tpe"])
def test_the_origin_of_what_was_tuned_is_that_of_its_start(name: str, tmp_path: Path) -> None:
    root = tmp_path / name
    shutil.copytree(STORED / name / "tables", root / "tables")
    study = Study.load(root)
    rows = [row for row in study.problem.report_rows(study.state(), study.reported()) if isinstance(row, SearchedRow)]
    found = [row for row in rows if row.found]
    records = {r.candidate: r for r in reversed(study.records()) if r.rung != "report"}
    assert found
    for row in found:
        (record,) = [r for r in study.reported() if r.nfe == row.nfe and r.origin.startswith("found:refine:")]
        start = records[record.origin.removeprefix("found:refine:")]
        assert start.origin in ("evolution", "tpe")
        assert row.origin.startswith("tuned from ")
        assert start.origin in row.origin
    page = Study.load(root)
    lines = page.verdicts(page.state())
    assert all(row.origin in line for row, line in zip(found, lines, strict=True))

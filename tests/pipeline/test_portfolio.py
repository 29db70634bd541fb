"""What was found on other models is looked at beside the presets, and studies are collected for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fewstep.errors import ConfigurationError, DataError
from fewstep.pipeline.collected import collected
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.proposers.base import PORTFOLIO, is_known, is_refined
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.stages.preset_order import design
from fewstep.pipeline.study import Study
from fewstep.search_spaces.schedule import load_schedule
from fewstep.search_spaces.schedule.portfolio import load_portfolio
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid


def _settings(**changes: object) -> SearchSettings:
    return SearchSettings.build(**({"model": "digits-ddpm", "nfes": (3, 4), "budget": 60_000} | changes))


def _of_portfolio(problem: ScheduleProblem, nfe: int) -> list[str]:
    return [k.origin.removeprefix(PORTFOLIO) for k in problem.known(nfe) if k.origin.startswith(PORTFOLIO)]


def test_there_is_none_unless_it_is_given() -> None:
    problem = ScheduleProblem(_settings())
    assert _of_portfolio(problem, 3) == []
    assert problem.known(3)


@pytest.fixture(scope="module")
def searched(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of the toy."""
    from fewstep.pipeline.executors.base import ExecutionSettings

    root = tmp_path_factory.mktemp("searches") / "toy"
    settings = SearchSettings.build(
        model=str(toy),
        nfes=(3,),
        budget=16_000,
        frechet_images=250,
        report_images=500,
        refine=0.2,
        teacher="dpmpp-2m/uniform-t-zero@6",
    )
    Study(root, settings).run(ExecutionSettings(executor="in-process"), "test")
    return root


def test_a_study_gives_the_best_of_its_own_proposals(searched: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    from fewstep.pipeline.cli import app

    told = CliRunner().invoke(app, ["schedule", "collect", str(searched), "--out", str(out), "--each", "1"])
    assert told.exit_code == 0, told.output
    (entry,) = load_portfolio(out).entries
    study = Study.load(searched)
    search = study.state()
    own = [
        trial
        for trial in search.best(3, search.ladder.main)
        if not is_known(trial.candidate.origin) and not is_refined(trial.candidate.origin)
    ]
    assert own
    assert entry.schedule.lambdas == own[0].candidate.point.schedule.lambdas
    assert entry.model_hash == study.files.hash
    # Another model begins with it, among its first looks; that one does not.
    problem = ScheduleProblem(_settings(portfolio=str(out)))
    names = {f"{PORTFOLIO}{name}" for name in _of_portfolio(problem, 3)}
    assert problem.named(3).keys() >= names
    assert set(design(problem.known(3))[: 2 * len(names)]) >= names
    assert {name.partition("/")[0] for name in _of_portfolio(problem, 3)} == {entry.name}
    assert _of_portfolio(problem, 4) == []
    assert _of_portfolio(ScheduleProblem(study.settings.model_copy(update={"portfolio": str(out)})), 3) == []


def test_an_exported_schedule_says_itself_where_it_was_found(searched: Path, tmp_path: Path) -> None:
    published, path = load_schedule(searched / "schedules" / "nfe3.json"), tmp_path / "exported.json"
    path.write_text(published.model_copy(update={"provenance": {"model": "digits-edm"}}).to_json())
    (entry,) = collected([path]).entries
    assert entry.schedule.corrections is None
    assert entry.schedule.lambdas == published.lambdas
    assert entry.model == "digits-edm"
    for provenance, said in (({}, "does not say which model"), ({"model": "nowhere"}, "was found on 'nowhere'")):
        path.write_text(published.model_copy(update={"provenance": provenance}).to_json())
        with pytest.raises(ConfigurationError, match=rf"exported\.json {said}.*study's folder"):
            collected([path])


def test_what_is_no_portfolio_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read portfolio"):
        ScheduleProblem(_settings(portfolio=str(tmp_path / "none.json"))).search()
    kept = preset_on_grid("ddim/karras", find_model("digits-ddpm").noise, 3).to_json()
    with pytest.raises(ConfigurationError, match="portfolio"):
        SearchSettings.build(
            model="digits-ddpm", space="quantization", base_schedule=kept, nfes=(3,), portfolio="mine.json"
        )

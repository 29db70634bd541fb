"""Optuna's study is a projection of the tables: the same wherever it is kept, and made again from them."""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from fewstep.errors import TrackingError
from fewstep.pipeline.optuna_study import TRIAL, default_storage, sync_optuna
from fewstep.pipeline.study import Study

FIXTURES = Path(__file__).parents[1] / "fixtures" / "studies"


@pytest.fixture
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Study:
    """A stored study."""
    shutil.copytree(FIXTURES / request.param / "tables", tmp_path / "tables")
    return Study.load(tmp_path)


def _told(trials: list[FrozenTrial]) -> list[tuple[object, ...]]:
    return [(t.number, t.state, t.values, t.params, t.intermediate_values, t.user_attrs) for t in trials]


@pytest.mark.parametrize("study", ["schedule", "joint", "edit-tpe"], indirect=True)
def test_it_holds_the_candidates_of_the_space_wherever_it_is_kept(study: Study, tmp_path: Path) -> None:
    name, (screen, main, *_) = study.settings.study, study.problem.ladder
    address = sync_optuna(study)
    assert address == default_storage(tmp_path)
    loaded = optuna.load_study(study_name=name, storage=address)
    told, state = _told(loaded.trials), study.state()
    assert told
    for trial in loaded.trials:
        own = state.trials[trial.user_attrs[TRIAL]]
        assert trial.user_attrs["candidate"] == own.candidate.hash
        assert trial.params.items() <= own.candidate.parameters.items()
        value = own.value(main if main.name in own.records else screen)
        assert trial.state == TrialState.FAIL or study.settings.space == "edit" or trial.values[0] == value
    # The same again changes nothing; a journal file holds the same; so does what is made anew when it was lost.
    sync_optuna(study)
    assert _told(optuna.load_study(study_name=name, storage=address).trials) == told
    journal = tmp_path / "optuna.log"
    sync_optuna(study, str(journal))
    kept = optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(journal))))
    assert _told(kept.trials) == told
    (tmp_path / "optuna.db").unlink()
    sync_optuna(study)
    assert _told(optuna.load_study(study_name=name, storage=address).trials) == told


@pytest.mark.parametrize("study", ["schedule"], indirect=True)
def test_what_changed_since_is_brought_up_to_date_and_optunas_plots_open_it(study: Study, tmp_path: Path) -> None:
    whole = sync_optuna(study)
    name, records = study.settings.study, study.records()
    told = _told(optuna.load_study(study_name=name, storage=whole).trials)
    some = Study(tmp_path / "some", study.settings)
    some.store.evaluations.append([r for r in records if r.rung == some.problem.ladder.screen.name])
    address = sync_optuna(some)
    before = _told(optuna.load_study(study_name=name, storage=address).trials)
    some.store.evaluations.append([r for r in records if r.rung != some.problem.ladder.screen.name])
    sync_optuna(some)
    loaded = optuna.load_study(study_name=name, storage=address)
    assert before != _told(loaded.trials) == told
    assert optuna.visualization.plot_optimization_history(loaded).data
    assert optuna.visualization.plot_intermediate_values(loaded).data


@pytest.mark.parametrize("study", ["schedule"], indirect=True)
def test_a_database_that_cannot_be_written_is_one_line_without_its_password(study: Study) -> None:
    with pytest.raises(TrackingError) as caught:
        sync_optuna(study, "postgresql://me:hunter22@nowhere.invalid/trials")
    assert "hunter22" not in str(caught.value)
    assert "\n" not in str(caught.value)

"""The search of edits: it goes on as if it had not been killed, and its choice keeps to what was asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.errors import ConfigurationError, EvaluationError, StorageError
from fewstep.pipeline.editing_evaluation import EditEvaluator, balance, edit_candidate, objectives
from fewstep.pipeline.editing_local import TWIN, merit, shortfall, twin
from fewstep.pipeline.editing_settings import EditSettings
from fewstep.pipeline.editing_state import FINALS, SCREEN, EditTrial, round_of
from fewstep.pipeline.editing_study import EditStudy
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.trial import Rung
from fewstep.search_spaces.edit import BoundaryConfig, EditConfig
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.models.files import ZOO, find_model

HERE = ExecutionSettings(executor="in-process")
# Far fewer calls than a search would make, on a network that has learned nothing.
CLOSE = {"inversion": "ddim/uniform-t@3", "generation": "ddim/uniform-t@3"}


class KilledError(Exception):
    """The driver's end, from within."""


def settings(toy: Path, sampler: str = "tpe", **changes: object) -> EditSettings:
    noise = find_model(str(toy)).noise
    steps = tuple(noise.lambda_at(t) for t in (250.0, 500.0, 750.0))
    subject = EditSubject.build(
        model=str(toy),
        data="digits",
        attribute="nine",
        judge=str(ZOO / "digits-ddpm" / "classifier"),
        fit_way="ddim/uniform-t@3",
        examples=8,
    )
    base = EditConfig(step=steps[1], boundary=BoundaryConfig(images=8), **CLOSE)
    fields = {"study": "edit-nine", "subject": subject, "steps": steps, "base": base, "sampler": sampler}
    fields["kept"] = ("inversion", "generation")
    small = {"budget": 2500, "screen_images": 4, "final_images": 6, "report_images": 6, "finalists": 3, "population": 4}
    return EditSettings.build(**fields | small | changes)


def balance_of(trial: EditTrial) -> float:
    figures = trial.records[FINALS].metrics
    return balance(figures["success"], figures["identity"])


def told(records: list[EvaluationRecord]) -> list[tuple[object, ...]]:
    return [(r.trial, r.rung, r.candidate, r.value, r.origin, sorted(r.parameters.items(), key=str)) for r in records]


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii"])
def test_a_killed_search_goes_on_as_if_nothing_had_happened(toy: Path, tmp_path: Path, sampler: str) -> None:
    asked = settings(toy, sampler, budget=700)
    whole = EditStudy(tmp_path / "whole", asked, tmp_path / "cache")
    whole.run(HERE)
    expected = told(whole.records())
    assert len(expected) > 20
    assert len({candidate for _, rung, candidate, *_ in expected if rung == SCREEN}) == len(
        [1 for _, rung, *_ in expected if rung == SCREEN]
    )
    for stop in (3, 18):
        root, left = tmp_path / f"killed-{stop}", [stop]

        def kill(_: EvaluationRecord, left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                raise KilledError

        with pytest.raises(KilledError):
            EditStudy(root, asked, tmp_path / "cache").run(HERE, kill)
        EditStudy.load(root, tmp_path / "cache").run(HERE)
        assert told(EditStudy.load(root).records()) == expected


def test_the_choice_is_the_best_balanced_finalist_within_the_bound(toy: Path, tmp_path: Path) -> None:
    kept = ("step", "eta", "rescale", "boundary")
    study = EditStudy(tmp_path / "s", settings(toy, kept=kept, budget=2500, most_calls=30), tmp_path / "cache")
    state = study.run(HERE)
    judged = [t for t in state.trials.values() if FINALS in t.records]
    twins = [t for t in judged if t.candidate.origin == TWIN]
    finals = [t for t in judged if t.candidate.origin != TWIN]
    assert {round_of(t) for t in finals} >= {0, 1, 2}
    assert all(t.records[FINALS].metrics["nfe"] <= 30 for t in finals)
    found = state.chosen()
    assert found is not None
    # One twin, of the best balanced edit; what is chosen is that edit by some ways, and lacks least of the twin.
    (reference,) = twins
    family = [t for t in finals if twin(t.candidate.config) == reference.candidate.config]
    first = [t for t in finals if round_of(t) < 2]
    assert max(first, key=lambda t: (balance_of(t), -t.candidate.trial)) in family
    assert found in family
    merits = [merit(t.records[FINALS], reference.records[FINALS]) for t in family]
    assert merit(found.records[FINALS], reference.records[FINALS]) == max(merits)
    # Its calls are moved on only as long as it does less than the twin.
    rounds = sorted({round_of(t) for t in finals} - {0, 1, 2})
    for last in rounds:
        before = [t for t in family if round_of(t) < last]
        best = max(before, key=lambda t: (merit(t.records[FINALS], reference.records[FINALS]), -t.candidate.trial))
        assert shortfall(best.records[FINALS], reference.records[FINALS]) > 0
        assert all(twin(t.candidate.config) == reference.candidate.config for t in finals if round_of(t) == last)
    assert rounds or not shortfall(found.records[FINALS], reference.records[FINALS])
    front = state.front(SCREEN)
    values = [t.objectives(SCREEN) for t in state.trials.values()]
    for member in front:
        own = member.objectives(SCREEN)
        assert own is not None
        assert not any(v is not None and v != own and all(a <= b for a, b in zip(v, own, strict=True)) for v in values)
    files = study.publish(state, "fewstep edit search")
    assert EditConfig.from_json(files["edit.json"].read_text()) == found.candidate.config
    assert files["front.csv"].read_text().startswith("# command: fewstep edit search")
    assert state.chosen(most_calls=1) is None


def test_measures_are_computed_once_and_failures_are_told(toy: Path, tmp_path: Path) -> None:
    study = EditStudy(tmp_path / "s", settings(toy), tmp_path / "cache")
    rung = Rung("report", "edit", 5, 0)
    base = study.settings.base.model_copy(update={"strength_z": 2.0})
    seen: list[EvaluationRecord] = []
    first = study.measure([("a", base), ("same", base)], rung, HERE, seen.append)
    again = study.measure([("b", base)], rung, HERE, seen.append)
    assert len(seen) == 1
    assert first[0].key == first[1].key == again[0].key
    assert {"success", "identity", "frechet", "difference"} <= set(first[0].metrics)
    greedy = base.model_copy(update={"boundary": BoundaryConfig(images=9)})
    with pytest.raises(EvaluationError, match="give --examples"):
        study.measure([("c", greedy)], rung, HERE)


@pytest.mark.slow
def test_ray_workers_give_the_same_figures(toy: Path, tmp_path: Path) -> None:
    study = EditStudy(tmp_path / "s", settings(toy), tmp_path / "cache")
    far = EditStudy(tmp_path / "ray", settings(toy), tmp_path / "cache-ray")
    asked = [(str(s), study.settings.base.model_copy(update={"strength_z": s})) for s in (0.0, 3.0)]
    rung = Rung("report", "edit", 5, 0)
    near = study.measure(asked, rung, HERE)
    away = far.measure(asked, rung, ExecutionSettings(executor="ray", workers=2))
    assert [r.key for r in near] == [r.key for r in away]
    for a, b in zip(near, away, strict=True):
        assert a.metrics == pytest.approx(b.metrics, rel=1e-5, abs=1e-6)


def test_a_result_nobody_waits_for_is_ignored_and_keys_name_what_decides(toy: Path) -> None:
    asked, files = settings(toy), find_model(str(toy))
    evaluator = EditEvaluator("s", asked.subject, files)
    candidate = edit_candidate(0, asked.base, "x", {}, files)
    keys = {evaluator.key(candidate, Rung(name, "edit", n, 0)) for name in (SCREEN, "report") for n in (4, 5)}
    assert len(keys) == 4
    assert evaluator.key(candidate, Rung(SCREEN, "edit", 4, 0)) == evaluator.key(candidate, Rung(FINALS, "edit", 4, 0))
    assert objectives(None) is None
    assert balance(0.5, -1.0) == 0.0
    assert balance(0.5, 0.5) == 0.5


def test_what_is_no_search_of_edits_is_refused(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="start one with"):
        EditStudy.load(tmp_path)
    assert not Store(tmp_path).studies.records()
    with pytest.raises(ConfigurationError, match="steps"):
        settings(toy, steps=())

"""The search of edits: it goes on as if it had not been killed, and its choice keeps to what was asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.errors import ConfigurationError, StorageError
from fewstep.pipeline.campaign import Campaign
from fewstep.pipeline.editing.settings import EditSettings
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.policies.edit import EditPolicy, edit_objectives
from fewstep.pipeline.problems.edits import EditProblem
from fewstep.pipeline.stages.neighbours import TWIN, merit, round_of, shortfall, twin
from fewstep.pipeline.study import Study
from fewstep.pipeline.trial import Rung, Trial
from fewstep.search_spaces.edit import BoundaryConfig, EditConfig
from fewstep.search_spaces.point import EditPoint, edit_of
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.tasks.editing.measures import balance
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.models.files import ZOO, find_model

SCREEN, FINALS = "screen", "finals"
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


def config(trial: Trial) -> EditConfig:
    edit = edit_of(trial.candidate.point)
    assert edit is not None
    return edit


def campaign(study: Study, where: ExecutionSettings = HERE, seen: list[EvaluationRecord] | None = None) -> Campaign:
    """Evaluations of a study's subject in its folder and under its name."""
    told = None if seen is None else seen.append
    return Campaign(study.problem.subject, study.root, where, study.settings.study, None, str(study.cache), told)


def balance_of(trial: Trial) -> float:
    figures = trial.records[FINALS].metrics
    return balance(figures["success"], figures["identity"])


def told(records: list[EvaluationRecord]) -> list[tuple[object, ...]]:
    return [(r.trial, r.rung, r.candidate, r.value, r.origin, sorted(r.parameters.items(), key=str)) for r in records]


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii"])
def test_a_killed_search_goes_on_as_if_nothing_had_happened(toy: Path, tmp_path: Path, sampler: str) -> None:
    asked = settings(toy, sampler, budget=700)
    whole = Study(tmp_path / "whole", asked, tmp_path / "cache")
    whole.run(HERE, "test")
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
            Study(root, asked, tmp_path / "cache").run(HERE, "test", kill)
        Study.load(root, tmp_path / "cache").run(HERE, "test")
        assert told(Study.load(root).records()) == expected


def test_the_choice_is_the_best_balanced_finalist_within_the_bound(toy: Path, tmp_path: Path) -> None:
    kept = ("step", "eta", "rescale", "boundary")
    study = Study(tmp_path / "s", settings(toy, kept=kept, budget=2500, most_calls=30), tmp_path / "cache")
    state, problem = study.find(HERE), study.problem
    assert isinstance(problem, EditProblem)
    assert isinstance(state.policy, EditPolicy)
    judged = [t for t in state.trials.values() if FINALS in t.records]
    twins = [t for t in judged if t.candidate.origin == TWIN]
    finals = [t for t in judged if t.candidate.origin != TWIN]
    assert {round_of(t) for t in finals} >= {0, 1, 2}
    assert all(t.records[FINALS].metrics["nfe"] <= 30 for t in finals)
    found = problem.chosen(state)
    assert found is not None
    # One twin, of the best balanced edit; what is chosen is that edit by some ways, and lacks least of the twin.
    (reference,) = twins
    family = [t for t in finals if twin(config(t)) == config(reference)]
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
        assert all(twin(config(t)) == config(reference) for t in finals if round_of(t) == last)
    assert rounds or not shortfall(found.records[FINALS], reference.records[FINALS])
    policy, screen = state.policy, problem.ladder.screen
    front = policy.front(state, screen)
    values = [policy.objectives_at(t, screen) for t in state.trials.values()]
    for member in front:
        own = policy.objectives_at(member, screen)
        assert own is not None
        assert not any(v is not None and v != own and all(a <= b for a, b in zip(v, own, strict=True)) for v in values)
    outcome = study.run(HERE, "fewstep edit search")
    assert [row.schedule for row in outcome.rows] == [found.candidate.hash]
    files = outcome.files
    assert EditConfig.from_json(files["edit.json"].read_text()) == config(found)
    assert files["front.csv"].read_text().startswith("# command: fewstep edit search")
    assert problem.chosen(state, most_calls=1) is None


def test_measures_are_computed_once_and_failures_are_told(toy: Path, tmp_path: Path) -> None:
    study = Study(tmp_path / "s", settings(toy), tmp_path / "cache")
    rung = Rung("report", "edit", 5, 0, {"part": "report"})
    base = settings(toy).base.model_copy(update={"strength_z": 2.0})
    seen: list[EvaluationRecord] = []
    point = EditPoint(edit=base)
    first = campaign(study, seen=seen).run([(point, "a", rung), (point, "same", rung)])
    again = campaign(study, seen=seen).run([(point, "b", rung)])
    assert len(seen) == 1
    assert first[0].key == first[1].key == again[0].key
    assert {"success", "identity", "frechet", "difference"} <= set(first[0].metrics)
    greedy = base.model_copy(update={"boundary": BoundaryConfig(images=9)})
    (refused,) = campaign(study).run([(EditPoint(edit=greedy), "c", rung)])
    assert (refused.status, refused.value) == ("failed", None)
    assert "give --examples" in refused.error


@pytest.mark.slow
def test_ray_workers_give_the_same_figures(toy: Path, tmp_path: Path) -> None:
    study = Study(tmp_path / "s", settings(toy), tmp_path / "cache")
    far = Study(tmp_path / "ray", settings(toy), tmp_path / "cache-ray")
    rung, base = Rung("report", "edit", 5, 0, {"part": "report"}), settings(toy).base
    asked = [(EditPoint(edit=base.model_copy(update={"strength_z": s})), str(s), rung) for s in (0.0, 3.0)]
    near = campaign(study).run(asked)
    away = campaign(far, ExecutionSettings(executor="ray", workers=2)).run(asked)
    assert [r.key for r in near] == [r.key for r in away]
    for a, b in zip(near, away, strict=True):
        assert a.metrics == pytest.approx(b.metrics, rel=1e-5, abs=1e-6)


def test_keys_name_what_decides(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = settings(toy)
    study = Study(tmp_path / "s", asked)
    evaluator, point = study.evaluator(), EditPoint(edit=asked.base)

    def key(name: str, part: str, images: int) -> str:
        return evaluator.key(point, Rung(name, "edit", images, 0, {"part": part}))

    keys = {key(name, part, n) for name, part in ((SCREEN, "search"), ("report", "report")) for n in (4, 5)}
    assert len(keys) == 4
    assert key(SCREEN, "search", 4) == key(FINALS, "search", 4)
    # A judge and a measure of identity count by what they are, not by their names.
    for text in ("x.mean(dim=(1, 2, 3))", "x.amax(dim=(1, 2, 3))"):
        (tmp_path / text).mkdir()
        monkeypatch.chdir(tmp_path / text)
        Path("mine.py").write_text(f"def own():\n    return lambda x: {text}[:, None]\n")
        for fields in ({"judge": "mine.py:own"}, {"identity": "perceptual:mine.py:own"}):
            other = asked.model_copy(update={"subject": asked.subject.model_copy(update=fields)})
            evaluator = Study(tmp_path / "s", other).evaluator()
            keys.add(key(SCREEN, "search", 4))
    assert len(keys) == 8
    assert edit_objectives(None) is None
    assert balance(0.5, -1.0) == 0.0
    assert balance(0.5, 0.5) == 0.5


def test_what_is_no_search_of_edits_is_refused(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="start one with"):
        Study.load(tmp_path)
    assert not Store(tmp_path).studies.records()
    with pytest.raises(ConfigurationError, match="steps"):
        settings(toy, steps=())

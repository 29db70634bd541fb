"""Studies that earlier versions wrote: what is read from their tables stays what it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from fewstep.errors import ConfigurationError
from fewstep.pipeline.api import open_study
from fewstep.pipeline.campaign import Campaign
from fewstep.pipeline.evaluator import Evaluator
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.problems.edits import EditProblem
from fewstep.pipeline.problems.networks import NetworkProblem
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.search import Search
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.pipeline.trial import Candidate, Rung, candidate_of
from fewstep.search_spaces.point import parse_point, quantization_of
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.storage.tracking_plan import ID_TAG, RunPlan, plan_study
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.work import GROUP, Subject

FIXTURES = Path(__file__).parent / "fixtures" / "studies"
HERE = ExecutionSettings(executor="in-process")
LOOKS_AHEAD = 3

# -- what the tests know of the project's insides: nothing below the next line of this kind does ---------


@dataclass
class Stored:
    """An opened study: its records in order, those of its search apart, and what replays them."""

    study: Study
    records: list[EvaluationRecord]
    searched: list[EvaluationRecord]

    def state(self, count: int | None = None) -> Search:
        """The state after the first `count` records of the search, after all of them if not told."""
        return self.study.problem.search().replay(self.searched[:count])


def load(space: str, root: Path) -> Stored:
    """The study in a folder."""
    study = Study.load(root)
    records = study.store.evaluations.records({"study": study.settings.study})
    return Stored(study, records, [r for r in records if r.rung != "report"])


def keys(stored: Stored) -> list[list[Any]]:
    """Trial, rung and key of every record, the key worked out anew from the record's candidate."""
    study = stored.study
    evaluator = study.evaluator()
    found = []
    for record in stored.records:
        if record.rung == "refine":
            # Its record is about what came of it; what it was asked for, only the search before it knew.
            key = record.key
        elif isinstance(study.problem, EditProblem):
            rung = study.problem.ladder.report if record.rung == "report" else study.problem.ladder.screen
            key = evaluator.key(parse_point(record.candidate_json), replace(rung, images=record.images))
        else:
            key = _key(evaluator, record)
        found.append([record.trial, record.rung, key])
    return found


def _key(evaluator: Evaluator, record: EvaluationRecord) -> str:
    """The key of a record's evaluation, worked out anew; its moments must be stored under the base worked out anew."""
    point = parse_point(record.candidate_json)
    metric = "distance" if record.rung == "distance" else "frechet"
    rung = Rung(record.rung, metric, record.images, record.seed)
    if metric == "frechet" and record.status == "complete":
        base = evaluator.base(point, rung)
        starts = {m.start for m in evaluator.store.moments.records({"base": base})}
        assert starts >= set(range(0, record.images - GROUP + 1, GROUP)), f"{record.origin} at {record.rung}"
    return evaluator.key(point, rung)


def proposals(stored: Stored, counts: Sequence[int]) -> list[dict[str, Any]]:
    """After the first so many records: the calls spent, and the next works with nothing in flight.

    A None ends the works where none is left before more results come in.
    """
    found = []
    for count in counts:
        state = stored.state(count)
        entry: dict[str, Any] = {"after": count, "spent": state.spent, "next": []}
        while len(entry["next"]) < LOOKS_AHEAD and None not in entry["next"]:
            work = state.next_work()
            if work is None and not entry["next"] and state.enter_finals():
                work = state.next_work()
            entry["next"].append(_told(stored, *work) if work else None)
        found.append(entry)
    return found


def _told(stored: Stored, candidate: Candidate, rung: Rung) -> dict[str, Any]:
    problem = stored.study.problem
    nfe = candidate.nfe
    if isinstance(problem, EditProblem):
        nfe = problem.ways(candidate.point)[1].nfe
    return {
        "trial": candidate.trial,
        "candidate": candidate.hash,
        "nfe": nfe,
        "origin": candidate.origin,
        "rung": rung.name,
        "images": rung.images,
        "seed": rung.seed,
    }


def winners(stored: Stored) -> dict[str, Any]:
    """What was found, as (candidate, trial): winners and peers by NFE, or fronts."""

    def named(trial: Any) -> list[Any]:
        return [trial.candidate.hash, trial.candidate.trial]

    state, problem = stored.state(), stored.study.problem
    policy: Any = state.policy
    if isinstance(problem, EditProblem):
        return {
            "chosen": named(problem.chosen(state)),
            "front": [named(t) for t in policy.front(state, state.ladder.finals)],
            "screened": [named(t) for t in policy.front(state, state.ladder.screen)],
            "finalists": [named(t) for t in policy.finalists(state)],
        }
    if isinstance(problem, NetworkProblem):
        return {
            "front": [named(t) for t in problem.front(state)],
            "members": [[m.method, m.stem, *named(m.trial)] for m in problem.members(state)],
            "contenders": [[method, c.hash, c.trial] for method, c in problem.contenders(state)],
        }
    assert isinstance(problem, ScheduleProblem)
    nfes = problem.settings.nfes
    return {
        "winners": {str(nfe): named(problem.winner(state, nfe)) for nfe in nfes},
        "contenders": {
            str(nfe): {
                c.method: [c.candidate.hash, c.candidate.trial]
                for c in problem.lines(state, nfe)
                if not c.origin.startswith("own:")
            }
            for nfe in nfes
        },
    }


def report(stored: Stored) -> list[dict[str, Any]]:
    """The rows of the report, those of an edit with what was measured of the choice; nothing is computed for it."""
    state, reported, problem = stored.state(), stored.study.reported(), stored.study.problem
    if isinstance(problem, EditProblem):
        rows = [asdict(row) for row in problem.front_rows(state)]
        (work,) = problem.report_work(state)
        campaign = Campaign(problem.subject, stored.study.root, HERE, problem.settings.study)
        again = replace(campaign, on_record=_nothing_is_computed)
        (record,) = again.run([(work[0].point, "found", work[1])])
        return [*rows, record.metrics]
    # Whether a row was found, and how, its method and the records say too.
    told = [asdict(row) for row in problem.report_rows(state, reported)]
    return [{name: row[name] for name in row if name not in ("found", "origin")} for row in told]


def _nothing_is_computed(record: EvaluationRecord) -> None:
    raise AssertionError(f"computed anew: {record.origin} at {record.rung}")


def mlflow(stored: Stored) -> dict[str, Any]:
    """What MLflow is to show, with the rungs that the commands name."""
    study = stored.study
    shown = ("screen", "finals") if isinstance(study.problem, EditProblem) else ("frechet", "report")
    plan = plan_study(study.store, study.settings.study, *shown)
    # Until figures had their feature space before their name, and nested runs that of their study, they were these.
    members = {name: _run(m) | {"name": f"nfe {m.params['nfe']} {name[:8]}"} for name, m in plan.members.items()}
    return {"parent": _run(plan.parent), "members": members}


def _run(plan: RunPlan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "tags": dict(plan.tags),
        "params": dict(plan.params),
        "points": [asdict(point) | {"metric": point.metric.rpartition("/")[2]} for point in plan.points],
        "texts": dict(plan.texts),
        "start": plan.start,
        "end": plan.end,
    }


def values(record: EvaluationRecord) -> dict[str, Any]:
    """What a record says that was measured."""
    names = ("candidate", "nfe", "value", "low", "high", "metrics", "denoiser_calls")
    config = quantization_of(parse_point(record.candidate_json))
    told = {name: getattr(record, name) for name in names}
    return told | {"quantization": config.model_dump_json() if config else ""}


@dataclass
class Evaluations:
    """A folder of evaluations outside a search, and what was asked for, as the fixture says it."""

    root: Path
    asked: dict[str, Any]
    records: list[EvaluationRecord] = field(init=False)

    def __post_init__(self) -> None:
        self.records = Store(self.root).evaluations.records()

    def keys(self) -> list[list[Any]]:
        """Origin, rung and key of every record, the key worked out anew."""
        store, study = Store(self.root), self.records[0].study
        if "table" not in self.asked:
            evaluator = Evaluator(study, self._subject, store)
            return [[r.origin, r.rung, _key(evaluator, r)] for r in self.records]
        s = self.asked["table"]
        schedule = SolverSchedule.model_validate(s["schedule"])
        subject = Subject(s["model"], calibration=schedule.to_json())
        by_runtime = {
            False: Evaluator(study, subject, store, schedule),
            True: Evaluator(study, replace(subject, runtime="integer"), store, schedule),
        }
        return [[r.origin, r.rung, _key(by_runtime[r.origin.endswith("@int8")], r)] for r in self.records]

    def again(self) -> list[EvaluationRecord]:
        """The same evaluations asked for once more, of a subject; nothing is computed for it."""
        first = self.records[0]
        rung = Rung(first.rung, "frechet", first.images, first.seed)
        campaign = Campaign(self._subject, self.root, HERE, first.study, on_record=_nothing_is_computed)
        return campaign.run([(candidate_of(r).point, r.origin, rung) for r in self.records])

    @property
    def _subject(self) -> Subject:
        asked = self.asked["subject"]
        return Subject(**(asked | {"conditions": Conditions(**asked.get("conditions", {}))}))


# -- what must be true ----------------------------------------------------------------------------------

SPACES = sorted(path.parent.name for path in FIXTURES.glob("*/expected.json"))
SEARCHES = [name for name in SPACES if not name.startswith("evaluations")]
FOLDERS = sorted(set(SPACES) - set(SEARCHES))


def expected(space: str) -> dict[str, Any]:
    """What must come out of a fixture."""
    found: dict[str, Any] = json.loads((FIXTURES / space / "expected.json").read_text())
    return found


def plain(found: object) -> Any:
    """The same as JSON has it, floats exact."""
    return json.loads(json.dumps(found))


@pytest.fixture
def root(space: str, tmp_path: Path) -> Path:
    """A copy of a fixture's tables."""
    shutil.copytree(FIXTURES / space / "tables", tmp_path / space / "tables")
    return tmp_path / space


@pytest.mark.parametrize("space", SEARCHES)
def test_every_evaluation_of_a_stored_study_is_found_by_its_key(space: str, root: Path) -> None:
    stored, told = load(space, root), expected(space)["keys"]
    assert [[r.trial, r.rung, r.key] for r in stored.records] == told
    assert keys(stored) == told


@pytest.mark.parametrize("space", SEARCHES)
def test_a_stored_study_goes_on_from_what_it_holds(space: str, root: Path) -> None:
    """Searches of schedules and networks by today's rules of a budget; nothing that is held is asked for again."""
    stored, told = load(space, root), expected(space)["proposals"]
    edits = isinstance(stored.study.problem, EditProblem)
    for entry in told:
        (found,) = plain(proposals(stored, [entry["after"]]))
        held = stored.searched[: entry["after"]]
        known = {r.trial: r.candidate for r in held if r.rung != "refine"}
        trials = stored.state(entry["after"]).trials
        refined = {r.trial for r in held if r.rung == "refine"}
        assert all(trials[n].candidate.hash == h for n, h in known.items() if n not in refined)
        asked = {(work["candidate"], work["rung"]) for work in found["next"] if work}
        assert not asked & {(r.candidate, r.rung) for r in held if r.status == "complete"}
        # Where the budget ends, the last edit that it does not pay is no longer begun.
        if edits and entry["spent"] < 0.99 * stored.study.settings.budget:
            assert found == entry


@pytest.mark.parametrize("space", SEARCHES)
def test_a_stored_study_found_what_it_found(space: str, root: Path) -> None:
    assert plain(winners(load(space, root))) == expected(space)["winners"]


@pytest.mark.parametrize("space", SEARCHES)
def test_a_stored_study_is_reported_from_its_tables(space: str, root: Path) -> None:
    assert plain(report(load(space, root))) == expected(space)["report"]


@pytest.mark.parametrize("space", SEARCHES)
def test_a_stored_study_is_shown_by_mlflow_as_it_was(space: str, root: Path) -> None:
    found = plain(mlflow(load(space, root)))
    runs = [found["parent"], *found["members"].values()]
    # All belong to one study, whose id follows from what it holds.
    assert len({run["tags"].pop(ID_TAG) for run in runs}) == 1
    assert found == expected(space)["mlflow"]


@pytest.mark.parametrize("space", FOLDERS)
def test_stored_evaluations_are_found_by_their_keys(space: str, root: Path) -> None:
    told = expected(space)
    folder = Evaluations(root, told["asked"])
    assert [[r.origin, r.rung, r.key] for r in folder.records] == told["keys"]
    assert folder.keys() == told["keys"]
    assert plain([values(r) for r in folder.records]) == told["values"]
    if "subject" in told["asked"]:
        assert [r.key for r in folder.again()] == [key for *_, key in told["keys"]]


@pytest.mark.parametrize("space", SPACES)
def test_stored_tables_are_whole_and_name_no_machine(space: str, root: Path) -> None:
    store = Store(root)
    assert store.damaged() == []
    texts = [r.settings_json for r in store.studies.records()]
    texts += [f"{r.device} {r.error} {r.parameters} {r.candidate_json}" for r in store.evaluations.records()]
    texts += [f"{e.message} {e.data_json}" for e in store.events.records()]
    assert not [text for text in texts for word in ("file:", "/home", "/tmp", "/root") if word in text]


def test_the_settings_that_a_study_knows_open_it_again(tmp_path: Path) -> None:
    """What came since is not asked for; what is asked for otherwise is refused."""
    root = Path(shutil.copytree(FIXTURES / "schedule", tmp_path / "copy"))
    known = json.loads(Study.load(root).store.studies.records()[-1].settings_json)
    known.pop("preset_grids", None)
    asked = SearchSettings.build(**known)
    assert asked != Study.load(root).settings, "the fixture is older than a setting with another default"
    assert open_study(root, asked).settings == Study.load(root).settings
    younger = SearchSettings.build(**known, paired_images=48)
    with pytest.raises(ConfigurationError, match="holds a study with paired_images = 0, not 48"):
        open_study(root, younger)

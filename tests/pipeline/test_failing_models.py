"""A model that fails: each row says why, what the machine failed at is tried again, and a hopeless search stops."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline import failures
from fewstep.pipeline.executors import in_process
from fewstep.pipeline.executors.base import MAX_TRIES, ExecutionSettings
from fewstep.pipeline.executors.in_process import InProcessExecutor
from fewstep.pipeline.failures import MOST, MOST_LATER, FailureWatch
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.search_spaces.point import as_point
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.tasks.faults import given_up, is_machines, may_succeed
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import Subject, Task, WorkerSettings

HERE = ExecutionSettings(executor="in-process")
OWN: dict[str, Callable[[], BaseException]] = {
    "IndexError": lambda: IndexError("index 7 is out of range"),
    "AssertionError": lambda: AssertionError("shapes\ndiffer"),
    "TypeError": lambda: TypeError("no such argument"),
    "RuntimeError": lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
    "RecursionError": lambda: RecursionError("maximum recursion depth exceeded"),
    "StopIteration": lambda: StopIteration(),
    "FileNotFoundError": lambda: FileNotFoundError(errno.ENOENT, "No such file or directory"),
}
MACHINES: dict[str, Callable[[], BaseException]] = {
    "MemoryError": lambda: MemoryError(),
    "OutOfMemoryError": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "RuntimeError": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    "OSError": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "BrokenPipeError": lambda: BrokenPipeError(errno.EPIPE, "Broken pipe"),
    "ConnectionResetError": lambda: ConnectionResetError(errno.ECONNRESET, "reset"),
}
# Where these come, fewer images at a time are made first.
MEMORY = ("MemoryError", "OutOfMemoryError", "RuntimeError")


@dataclasses.dataclass
class Broken:
    """A network that answers `whole` calls and raises at the next `times`."""

    error: Callable[[], BaseException]
    whole: int = 0
    times: float = float("inf")

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        forward = UNet2DModel.forward

        def broken(network: Any, *arguments: Any, **named: Any) -> Any:
            if self.whole > 0:
                self.whole -= 1
                return forward(network, *arguments, **named)
            if self.times > 0:
                self.times -= 1
                raise self.error()
            return forward(network, *arguments, **named)

        monkeypatch.setattr(UNet2DModel, "forward", broken)


@pytest.fixture(scope="module")
def executor(toy: Path) -> InProcessExecutor:
    return InProcessExecutor(WorkerSettings(Subject(str(toy))))


def _settings(toy: Path, **changes: Any) -> SearchSettings:
    fields: dict[str, Any] = {
        "model": str(toy),
        "sampler": "random",
        "nfes": (2,),
        "budget": 3_000,
        "screen": "distance",
        "refine": 0.0,
        "preset_images": 8,
        "distance_images": 8,
        "frechet_images": 250,
        "finalist_images": 500,
        "finalists": 1,
        "report_images": 250,
        "report_presets": False,
        "teacher": "dpmpp-2m/uniform-t-zero@6",
    }
    return SearchSettings.build(**(fields | changes))


def _task(toy: Path) -> Task:
    point = as_point(preset_on_grid("ddim/karras-zero", find_model(str(toy)).noise, 2))
    return Task("key", "frechet", point.to_json(), 0, 0, 250)


# -- one task --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(OWN))
def test_whatever_a_network_raises_is_the_tasks_error_on_one_line(
    executor: InProcessExecutor, toy: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    Broken(OWN[name]).install(monkeypatch)
    executor.submit(_task(toy))
    error = executor.next().error
    assert error.startswith(name)
    assert "\n" not in error
    assert not may_succeed(error)
    assert executor.events() == []


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_what_the_machine_failed_at_is_tried_again(
    executor: InProcessExecutor, toy: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    executor.events()
    with monkeypatch.context() as patch:
        Broken(MACHINES[name], times=MAX_TRIES - 1).install(patch)
        executor.submit(_task(toy))
        result = executor.next()
    assert (result.error, len(result.parts)) == ("", 1)
    tries = 0 if name in MEMORY else MAX_TRIES - 1
    assert [e.kind for e in executor.events()] == ["task_failed"] * tries
    Broken(MACHINES[name]).install(monkeypatch)
    executor.submit(_task(toy))
    error = executor.next().error
    assert error.startswith(f"gave up: the machine failed {MAX_TRIES} times at this task ({name}")
    assert may_succeed(error)
    *failed, given_up = executor.events()
    assert [e.kind for e in failed] == ["task_failed"] * MAX_TRIES
    assert (given_up.kind, given_up.message, given_up.data["tries"]) == ("quarantined", error, MAX_TRIES)
    assert str(given_up.data["traceback"]).splitlines()[-1].startswith(name)


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_process_is_nobodys_failure(
    executor: InProcessExecutor, toy: Path, monkeypatch: pytest.MonkeyPatch, end: type[BaseException]
) -> None:
    Broken(end).install(monkeypatch)
    executor.submit(_task(toy))
    with pytest.raises(end):
        executor.next()


def test_a_worker_that_cannot_be_set_up_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(settings: WorkerSettings) -> None:
        raise IndexError("no such\nlayer")

    monkeypatch.setattr(in_process, "Worker", refuse)
    with pytest.raises(ConfigurationError, match="could not start: IndexError: no such layer"):
        InProcessExecutor(WorkerSettings(Subject("none")))


def test_a_failure_is_the_machines_also_where_another_came_of_it() -> None:
    def chained(first: BaseException) -> BaseException:
        try:
            try:
                raise first
            except BaseException:
                raise ValueError("could not write") from None
        except ValueError as error:
            return error

    assert all(is_machines(chained(make())) for make in MACHINES.values())
    assert not any(is_machines(chained(make())) for make in OWN.values())


# -- whole searches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OWN["IndexError"], "the first 8 evaluations failed.*IndexError: index 7"),
        (OWN["AssertionError"], "the first 8 evaluations failed.*AssertionError: shapes differ"),
        (MACHINES["MemoryError"], "the machine failed at 8 evaluations in a row.*MemoryError"),
    ],
)
def test_a_search_of_which_nothing_succeeds_stops_and_can_go_on(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], BaseException], words: str
) -> None:
    with monkeypatch.context() as patch:
        Broken(error).install(patch)
        for _ in range(2):
            with pytest.raises(EvaluationError, match=rf"{words}.*--resume"):
                Study(tmp_path, _settings(toy)).find(HERE)
    failed = Store(tmp_path).evaluations.records()
    assert MOST <= len(failed) <= 2 * MOST
    assert {r.status for r in failed} == {"failed"}
    Study.load(tmp_path).find(HERE)
    assert {r.rung for r in Store(tmp_path).evaluations.records() if r.status == "complete"} >= {"finals"}
    left = {r.key for r in Store(tmp_path).evaluations.records() if r.status == "failed"}
    assert left == (set() if may_succeed(failed[0].error) else {r.key for r in failed})


def test_a_network_of_values_that_are_none_stops_the_search(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = UNet2DModel.forward

    def nothing(network: Any, *arguments: Any, **named: Any) -> Any:
        made = forward(network, *arguments, **named)
        made.sample = made.sample * float("nan")
        return made

    monkeypatch.setattr(UNet2DModel, "forward", nothing)
    with pytest.raises(EvaluationError, match=r"the first 8 evaluations failed.*not finite"):
        Study(tmp_path, _settings(toy)).find(HERE)
    assert len(Store(tmp_path).evaluations.records()) == MOST


def test_a_search_that_ends_with_nothing_says_so(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MOST", 1000)
    Broken(OWN["IndexError"]).install(monkeypatch)
    monkeypatch.setattr(failures, "MOST_LATER", 1000)
    with pytest.raises(EvaluationError, match=r"every evaluation failed, the last one so: IndexError"):
        Study(tmp_path, _settings(toy, budget=2_100)).find(HERE)


def test_finals_and_report_that_failed_are_made_when_the_study_goes_on(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though they failed of the candidate's own doing; the rest is left as it is."""
    calm, root = tmp_path / "calm", tmp_path / "broken"
    Study(calm, _settings(toy)).run(HERE, "test")
    expected = {r.key: r.value for r in Store(calm).evaluations.records()}
    last = [r for r in Store(calm).evaluations.records() if r.rung in ("finals", "report")]
    assert {r.rung for r in last} == {"finals", "report"}
    with monkeypatch.context() as patch:
        _break_rungs(patch, {r.key for r in last}, OWN["IndexError"])
        Study(root, _settings(toy)).run(HERE, "test")
    assert "rows of the report failed" in capsys.readouterr().err
    failed = [r for r in Store(root).evaluations.records() if r.status == "failed"]
    assert {r.key for r in failed} == {r.key for r in last}
    Study.load(root).run(HERE, "test")
    assert {r.key: r.value for r in Store(root).evaluations.records()} == expected


def _break_rungs(patch: pytest.MonkeyPatch, keys: set[str], error: Callable[[], BaseException]) -> None:
    run = in_process.Worker.run

    def broken(worker: Any, task: Task) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            if task.key in keys:
                Broken(error).install(inner)
            return run(worker, task)

    patch.setattr(in_process.Worker, "run", broken)


# -- the state alone -------------------------------------------------------------------------------------


def _record(trial: int, status: str = "complete", error: str = "", **changes: Any) -> Any:
    made = _DUMMY | {"trial": trial, "key": f"k{trial}", "status": status, "error": error} | changes
    return EvaluationRecord(**made)


def _records(problem: ScheduleProblem, count: int) -> Iterator[EvaluationRecord]:
    from datetime import UTC, datetime

    state = problem.search()
    for order in range(count):
        work = state.next_work()
        assert work is not None
        candidate, rung = work
        record = EvaluationRecord(
            **(
                _DUMMY
                | {
                    "order": order,
                    "trial": candidate.trial,
                    "key": f"{candidate.hash}-{rung.name}",
                    "candidate": candidate.hash,
                    "candidate_json": candidate.point.to_json(),
                    "nfe": candidate.nfe,
                    "rung": rung.name,
                    "origin": candidate.origin,
                    "images": rung.images,
                    "value": 1.0 + order,
                    "parameters": candidate.parameters,
                    "finished_at": datetime.now(UTC),
                }
            )
        )
        state.learn(record)
        yield record


_DUMMY: dict[str, Any] = {
    **dict.fromkeys(("study", "candidate", "candidate_json", "rung", "origin", "model", "model_hash", "error"), ""),
    **dict.fromkeys(("features", "reference", "metric", "device"), ""),
    **dict.fromkeys(("order", "nfe", "seed", "images", "denoiser_calls"), 0),
    **dict.fromkeys(("value", "low", "high", "finished_at"), None),
    "seconds": 0.0,
}


def test_a_candidate_that_the_machine_failed_at_is_asked_for_again_and_no_other() -> None:
    problem = ScheduleProblem(_settings(Path("digits-ddpm"), budget=9_000))
    records = list(_records(problem, 140))
    for kind in ("presets", "distance", "frechet"):
        (index, *_) = [i for i, r in enumerate(records) if r.rung == kind]
        bad = dataclasses.replace(records[index], status="failed", value=None)
        lost = [*records[:index], bad, *(r for r in records[index + 1 :] if r.trial != bad.trial)]
        for error, again in ((given_up("worker died", 3, "ActorDiedError"), True), ("ValueError: its own", False)):
            history = [dataclasses.replace(r, error=error) if r.status == "failed" else r for r in lost]
            state, asked = problem.search().replay(history), set()
            # A preset's first look is taken again as a trial of its own, whatever else is by then.
            while (work := state.next_work()) is not None and work[0].trial <= records[-1].trial + 1:
                asked.add((work[0].hash, work[1].name))
            assert ((bad.candidate, kind) in asked) is again
            assert not asked & {(r.candidate, r.rung) for r in history if r.status == "complete"}


def test_one_success_or_other_reasons_are_no_cause_to_stop() -> None:
    def watch(*errors: str, before: bool = False) -> None:
        watcher = FailureWatch(lambda: before)
        for i, error in enumerate(errors):
            watcher.note(_record(i, "failed" if error else "complete", error))
        watcher.end()

    own, other, machine = "ValueError: a 1", "IndexError: b", given_up("worker died", 3, "ActorDiedError")
    watch(*([own] * (MOST - 1)), "")
    watch("", *([own] * (MOST_LATER - 1)))
    watch(*([own] * (MOST_LATER - 1)), before=True)
    watch(*([machine] * (MOST - 1)), "", *([machine] * (MOST - 1)))
    watch(*([own, other] * MOST_LATER), before=True)
    for errors in ([f"ValueError: a {i}" for i in range(MOST)], [own, *[machine] * MOST], ["", *[own] * MOST_LATER]):
        with pytest.raises(EvaluationError, match=r"evaluations (in a row )?failed|failed at 8 evaluations"):
            watch(*errors)

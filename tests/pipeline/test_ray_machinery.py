"""Whatever happens to Ray: no task is lost, none is given up for what another did. On a Ray that is played."""

from __future__ import annotations

import errno
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import exceptions

from fewstep.errors import ConfigurationError, EvaluationError, FewstepError
from fewstep.pipeline.executors import ray as on_ray
from fewstep.pipeline.executors import ray_cluster, ray_errors, ray_metrics, ray_pool
from fewstep.pipeline.executors.base import MAX_TRIES, ExecutionSettings
from fewstep.pipeline.executors.pace import LEAST, MANY, UNKNOWN, Pace
from fewstep.pipeline.executors.ray import DEPTH, RayExecutor
from fewstep.pipeline.executors.ray_cluster import Need
from fewstep.pipeline.executors.ray_pool import GIVE_UP_SECONDS, LOST_SECONDS, START_SECONDS, START_TRIES, Pool
from fewstep.search_spaces.ode import parse_ode
from fewstep.search_spaces.point import QuantizationPoint, as_point, joint
from fewstep.search_spaces.quantization import named
from fewstep.tasks.actors import own_device
from fewstep.tasks.faults import may_succeed
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import Subject, Task, TaskResult, WorkerSettings

MACHINERY: dict[str, Callable[[], exceptions.RayError]] = {
    "ActorDiedError": exceptions.ActorDiedError,
    "ActorUnavailableError": lambda: exceptions.ActorUnavailableError("gone", None),
    "OutOfMemoryError": lambda: exceptions.OutOfMemoryError("the node is low on memory"),
    "LocalRayletDiedError": exceptions.LocalRayletDiedError,
    "WorkerCrashedError": exceptions.WorkerCrashedError,
    "NodeDiedError": lambda: exceptions.NodeDiedError("node"),
    "ObjectReconstructionFailedError": lambda: exceptions.ObjectReconstructionFailedError("0" * 56),
    "ObjectLostError": lambda: exceptions.ObjectLostError("0" * 56, None, ""),
    "OutOfDiskError": lambda: exceptions.OutOfDiskError("full"),
    "ObjectStoreFullError": lambda: exceptions.ObjectStoreFullError("full"),
    "RuntimeEnvSetupError": lambda: exceptions.RuntimeEnvSetupError("no"),
    "RaySystemError": lambda: exceptions.RaySystemError(OSError("the raylet is gone")),
    "TaskCancelledError": exceptions.TaskCancelledError,
}
# What a task raises, and still is not the candidate's.
OF_THE_MACHINE: dict[str, Callable[[], BaseException]] = {
    "MemoryError": MemoryError,
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "CUDA error": lambda: RuntimeError("CUDA error: an illegal memory access was encountered"),
    "allocator": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    "disk": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "handles": lambda: OSError(errno.EMFILE, "Too many open files"),
    "pipe": lambda: BrokenPipeError(errno.EPIPE, "Broken pipe"),
    "threads": lambda: RuntimeError("can't start new thread"),
    "interrupt": KeyboardInterrupt,
    "wrapped": lambda: caused(ValueError("bad"), MemoryError()),
    "ray's own": lambda: exceptions.RaySystemError(OSError("gone")),
}
OF_THE_CANDIDATE: dict[str, Callable[[], BaseException]] = {
    "LookupError": LookupError,
    "AssertionError": AssertionError,
    "IndexError": lambda: IndexError("index 7 is out of bounds"),
    "missing file": lambda: FileNotFoundError(errno.ENOENT, "No such file"),
    "arithmetic": lambda: ZeroDivisionError("division by zero"),
    "ours": lambda: EvaluationError("it explodes"),
    "cannot be sent": lambda: exceptions.RayError("Exception mine.Own isn't serializable"),
}


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def own_error(cause: BaseException | None = None) -> exceptions.RayError:
    cause = cause or LookupError("what the task raised")
    return exceptions.RayTaskError("run", f"Traceback\n{type(cause).__name__}: {cause}", cause)


@dataclass(eq=False)
class Reference:
    task: Task | None = None
    value: Any = None

    @property
    def hangs(self) -> bool:
        return self.task is not None and self.task.key.startswith("hangs")


@dataclass(eq=False)
class Actor:
    """Runs what it is given in order; a poison task ends it, and takes an answer on its way along.

    One that is `late` never comes up, one that is `unreachable` refuses what is sent to it.
    """

    number: int
    stillborn: Callable[[], exceptions.RayError] | None = None
    dead: bool = False
    late: bool = False
    stopped: bool = False
    stopped_until: float = 0.0
    unreachable: Callable[[], exceptions.RayError] | None = None
    queue: list[Reference] = field(default_factory=list)

    def end(self, error: Callable[[], exceptions.RayError]) -> None:
        self.dead = True
        for reference in self.queue:
            reference.value = error()
        self.queue.clear()

    @property
    def pid(self) -> Any:
        def remote() -> Reference:
            if self.late or self.stopped:
                return Reference()
            dead = exceptions.ActorDiedError() if self.dead else None
            return Reference(value=self.stillborn() if self.stillborn else dead or self.number + 1)

        return SimpleNamespace(remote=remote)

    @property
    def run(self) -> Any:
        def remote(task: Task) -> Reference:
            if self.unreachable:
                raise self.unreachable()
            reference = Reference(task)
            if self.dead:
                reference.value = exceptions.ActorDiedError()
            else:
                self.queue.append(reference)
            return reference

        return SimpleNamespace(remote=remote)


class PlayedRay:
    """As much of Ray as the executor calls. Time passes in `wait`, a second a step."""

    exceptions = exceptions

    def __init__(self, seed: int = 0, kill: float = 0.0, cpus: tuple[int, ...] = (4,), gpus: tuple[int, ...] = ()):
        self.random, self.kill_rate = random.Random(seed), kill
        self.cpus, self.gpus = cpus, gpus or (0,) * len(cpus)
        self.actors: list[Actor] = []
        self.stillborn: list[Callable[[], exceptions.RayError] | None] = []
        self.beside: Counter[str] = Counter()
        self.late: list[int] = []
        self.own_node = True
        self.scales = False
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def make(self) -> Actor:
        number = len(self.actors)
        self.actors.append(Actor(number, self.stillborn.pop(0) if self.stillborn else None, late=number in self.late))
        return self.actors[-1]

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        sizes = zip(self.cpus, self.gpus, strict=True)
        resources = [{"CPU": float(c)} | ({"GPU": float(g)} if g else {}) for c, g in sizes]
        alive = [{"NodeID": f"node {i}", "Alive": True, "Resources": r} for i, r in enumerate(resources)]
        gone = {"NodeID": "gone", "Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
        return [*alive, gone, {"NodeID": "own", "Alive": self.own_node, "Resources": {}}]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "own")

    def get(self, reference: Reference, timeout: float | None = None) -> Any:
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    def wait(
        self, references: list[Reference], num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Reference], list[Reference]]:
        end = self.now + (float("inf") if timeout is None else timeout)
        while True:
            done = [r for r in references if r.value is not None]
            if done or self.now >= end:
                return self.random.sample(done, min(num_returns, len(done))), []
            self.step()

    def step(self) -> None:
        self.now += 1.0
        busy = [
            a for a in self.actors if a.queue and not a.queue[0].hangs and not a.stopped and self.now >= a.stopped_until
        ]
        if not busy:
            return
        actor = self.random.choice(busy)
        if self.random.random() < self.kill_rate:
            actor.end(MACHINERY[self.random.choice(sorted(MACHINERY))])
            return
        # The worker goes on before its answer is out.
        for reference in actor.queue:
            task = reference.task
            assert task is not None
            if task.key.startswith("poison"):
                self.beside[task.key] += len(actor.queue) == 1
                actor.end(MACHINERY[task.arguments["how"]])
                return
            if reference.hangs or self.random.random() < 0.5:
                break
        reference = actor.queue.pop(0)
        assert reference.task is not None
        reference.value = self.answer(reference.task)

    def answer(self, task: Task) -> Any:
        how = task.arguments["how"]
        if task.key.startswith("raises"):
            return own_error(OF_THE_CANDIDATE[how]() if how in OF_THE_CANDIDATE else None)
        if task.key.startswith("meets"):
            return own_error(OF_THE_MACHINE[how]())
        if task.key.startswith("comes back"):
            return TaskResult(task, error="OutOfMemoryError: CUDA", transient=True, trace="worker.py:3 in run")
        return TaskResult(task, seconds=1.0)

    def kill(self, actor: Actor) -> None:
        actor.end(exceptions.ActorDiedError)

    def shutdown(self) -> None:
        raise AssertionError("the executor did not start it")


class Inline:
    """A thread that runs where it is started."""

    def __init__(self, target: Callable[[], None], daemon: bool) -> None:
        self.start = target

    def join(self, seconds: float) -> None:
        pass


def play(monkeypatch: pytest.MonkeyPatch, ray: PlayedRay) -> None:
    for module in (on_ray, ray_pool, ray_cluster, ray_errors):
        monkeypatch.setattr(module, "ray", ray)
    for module in (on_ray, ray_pool):
        monkeypatch.setattr(module, "time", ray)
    monkeypatch.setattr(ray_cluster, "Thread", Inline)
    monkeypatch.setattr(ray_cluster, "_has_autoscaler", lambda: ray.scales)
    monkeypatch.setattr(ray_cluster.atexit, "register", lambda function: None)
    monkeypatch.setattr(Pool, "new_actor", lambda self: ray.make())


def make(workers: int = 1, device: str = "cpu", timeout: float = 0.0) -> RayExecutor:
    execution = ExecutionSettings(executor="ray", workers=workers, timeout=timeout)
    return RayExecutor(WorkerSettings(Subject("none"), device), execution)


def task(key: str, how: str = "") -> Task:
    return Task(key, "frechet", "", 0, 0, 1, {"how": how})


def drain(executor: RayExecutor, tasks: list[Task], before: int = 0) -> dict[str, str]:
    """Errors by key, the tasks submitted as a search does: no more at a time than keep the actors busy.

    `before` are in flight already.
    """
    waiting, errors = list(reversed(tasks)), {}
    while waiting or executor.in_flight:
        while waiting and executor.in_flight < executor.capacity:
            executor.submit(waiting.pop())
        result = executor.next()
        assert result.task.key not in errors
        errors[result.task.key] = result.error
    assert len(errors) == len(tasks) + before
    assert errors.keys() >= {t.key for t in tasks}
    return errors


kinds = st.lists(
    st.sampled_from(["good", "good", "good", "raises", "poison", "hangs", "comes back"]), min_size=1, max_size=14
)


@settings(max_examples=100, deadline=None)
@given(kinds, st.integers(1, 3), st.integers(0, 10**6), st.sampled_from(sorted(MACHINERY)))
def test_only_the_task_that_ends_its_workers_is_given_up(kinds: list[str], workers: int, seed: int, how: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        ray = PlayedRay(seed)
        play(patch, ray)
        errors = drain(make(workers), [task(f"{kind} {i}", how) for i, kind in enumerate(kinds)])
    for key, error in errors.items():
        if key.startswith("good"):
            assert error == ""
        elif key.startswith("raises"):
            assert "what the task raised" in error
        elif key.startswith("hangs"):
            assert re.fullmatch(r"gave up: the worker hung 3 times at this task \(no answer within \d+ s\)", error)
        elif key.startswith("comes back"):
            assert error == "gave up: the machine failed 3 times at this task (OutOfMemoryError: CUDA)"
        else:
            found = re.fullmatch(rf"gave up: the worker died (\d+) times at this task \({how}\)", error)
            assert found is not None
            assert MAX_TRIES <= int(found[1]) <= ray.beside[key]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(0, 10**6))
def test_workers_that_are_killed_at_random_cost_no_task(workers: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        play(patch, PlayedRay(seed, kill=0.15))
        # So many kills that some task may meet more of them than a poison task is allowed.
        patch.setattr(on_ray, "MAX_TRIES", 100)
        executor = make(workers)
        errors = drain(executor, [task(f"good {i}") for i in range(30)])
    assert set(errors.values()) == {""}
    worked = executor.busy()
    assert sum(worked.values()) >= 30
    assert set(worked) <= {str(index) for index in range(workers)}
    assert not any(executor.busy().values())
    assert all(e.kind in ("actor_died", "actor_failed", "issued_again") for e in executor.events())
    assert len(executor.pids) == workers


@pytest.mark.parametrize("how", sorted(MACHINERY))
def test_an_error_of_the_machinery_is_told_and_is_no_failure(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    ray = PlayedRay()
    play(monkeypatch, ray)
    executor = make()
    executor.submit(task("good"))
    ray.actors[0].end(MACHINERY[how])
    assert executor.next().error == ""
    (event,) = executor.events()
    assert event.kind in ("actor_died", "actor_failed")
    assert how in event.message
    assert ray.actors[0].dead


@pytest.mark.parametrize("how", sorted(MACHINERY))
@pytest.mark.parametrize("ends", range(START_TRIES))
def test_a_worker_that_ends_while_it_starts_is_started_again(
    monkeypatch: pytest.MonkeyPatch, how: str, ends: int
) -> None:
    ray = PlayedRay()
    ray.stillborn = [MACHINERY[how]] * ends
    play(monkeypatch, ray)
    executor = make()
    assert drain(executor, [task("good")]) == {"good": ""}
    assert [e.kind for e in executor.events()] == ["actor_start_failed"] * ends


def test_a_worker_that_never_starts_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = PlayedRay()
    ray.stillborn = [MACHINERY["OutOfMemoryError"]] * 1000
    play(monkeypatch, ray)
    with pytest.raises(ConfigurationError, match=r"OutOfMemoryError.*lower --workers.*--resume"):
        make()
    assert START_TRIES <= len(ray.actors) < 100
    assert GIVE_UP_SECONDS < ray.now < GIVE_UP_SECONDS + 60


def test_a_worker_whose_own_code_refuses_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = PlayedRay()
    ray.stillborn = [lambda: exceptions.ActorDiedError(own_error())]
    play(monkeypatch, ray)
    with pytest.raises(ConfigurationError, match="could not start: LookupError: what the task raised"):
        make()
    assert len(ray.actors) == 1


def test_where_no_worker_takes_the_place_of_one_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = PlayedRay()
    play(monkeypatch, ray)
    executor = make(2)
    for i in range(4):
        executor.submit(task(f"good {i}"))
    ray.stillborn = [MACHINERY["NodeDiedError"]] * (START_TRIES + 2)
    ray.actors[0].end(MACHINERY["NodeDiedError"])
    assert drain(executor, [task(f"more {i}") for i in range(60)], 4).keys() >= {f"good {i}" for i in range(4)}
    kinds = [e.kind for e in executor.events()]
    assert kinds == ["actor_failed"] + ["actor_start_failed"] * kinds.count("actor_start_failed")
    assert kinds.count("actor_start_failed") >= START_TRIES
    # Where it can come up again, it does.
    assert drain(executor, [task(f"last {i}") for i in range(200)])
    assert 0 not in executor.pids


def test_a_worker_that_is_not_there_yet_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = PlayedRay()
    ray.late = [1]
    play(monkeypatch, ray)
    executor = make(2)
    began = ray.now
    assert set(drain(executor, [task(f"good {i}") for i in range(6)]).values()) == {""}
    assert ray.now - began < 60
    assert executor.capacity == 2 * DEPTH


@pytest.mark.parametrize(
    ("cpus", "words", "within"), [((), "no node left", LOST_SECONDS), ((4,), "300 s", START_SECONDS)]
)
def test_a_search_without_any_worker_ends_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, cpus: tuple[int, ...], words: str, within: float
) -> None:
    ray = PlayedRay()
    play(monkeypatch, ray)
    executor = make(2)
    ray.late, ray.cpus, ray.gpus = list(range(100)), cpus, (0,) * len(cpus)
    executor.submit(task("good"))
    for actor in ray.actors:
        actor.end(MACHINERY["NodeDiedError"])
    began = ray.now
    with pytest.raises(FewstepError, match=rf"{words}.*--resume"):
        drain(executor, [task("other")], 1)
    assert within < ray.now - began < within + 60


def test_a_search_whose_head_is_silent_ends_before_ray_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = PlayedRay()
    play(monkeypatch, ray)
    executor = make(2)

    def wait(seconds: float) -> None:
        ray.now += seconds

    monkeypatch.setattr(ray_cluster.RayCluster, "trouble", lambda self, seconds: wait(seconds))
    began = ray.now
    with pytest.raises(FewstepError, match=r"head is gone.*--resume"):
        drain(executor, [task(f"good {i}") for i in range(100)])
    assert ray.now - began < 40
    monkeypatch.setattr(ray, "kill", None)
    executor.close()


def test_a_search_that_lost_its_own_node_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers may go on for a while, and then their answers reach nobody."""
    ray = PlayedRay()
    play(monkeypatch, ray)
    executor = make(2)
    ray.own_node = False
    with pytest.raises(FewstepError, match=r"lost the node that this process is on.*--resume"):
        drain(executor, [task(f"good {i}") for i in range(100)])


# -- what a task meets, and tasks without end -------------------------------------------------------------


@pytest.mark.parametrize("how", sorted(OF_THE_MACHINE))
def test_what_a_task_meets_of_the_machine_is_tried_again(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    ray = PlayedRay()
    play(monkeypatch, ray)
    executor = make()
    errors = drain(executor, [task("good 0"), task("meets it", how), task("good 1")])
    assert errors["good 0"] == errors["good 1"] == ""
    assert errors["meets it"].startswith("gave up: the machine failed 3 times at this task (")
    assert may_succeed(errors["meets it"])
    assert {e.kind for e in executor.events()} == {"actor_failed", "quarantined"}


@pytest.mark.parametrize("how", sorted(OF_THE_CANDIDATE))
def test_what_a_candidate_raises_is_its_own(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    ray = PlayedRay()
    play(monkeypatch, ray)
    executor = make()
    error = drain(executor, [task("raises it", how)])["raises it"]
    assert error
    assert "\n" not in error
    assert not may_succeed(error)
    assert executor.events() == []
    assert len(ray.actors) == 1


@pytest.mark.parametrize("how", sorted(MACHINERY))
def test_a_task_that_cannot_be_sent_goes_to_another_worker(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    ray = PlayedRay()
    play(monkeypatch, ray)
    executor = make(2)
    ray.actors[0].unreachable = ray.actors[1].unreachable = MACHINERY[how]
    assert set(drain(executor, [task(f"good {i}") for i in range(5)]).values()) == {""}
    assert len(executor.events()) == 2


def test_workers_that_die_with_nothing_to_do_count_against_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is a task that finds each of them dead."""
    ray = PlayedRay()
    play(monkeypatch, ray)
    executor = make()
    for i in range(4 * MAX_TRIES):
        ray.actors[-1].end(MACHINERY["ActorDiedError"])
        assert drain(executor, [task("good")]) == {"good": ""}, i


def test_a_stopped_worker_is_replaced_and_no_task_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = PlayedRay()
    play(monkeypatch, ray)
    executor = make(2)
    assert set(drain(executor, [task(f"good {i}") for i in range(8)]).values()) == {""}
    ray.actors[0].stopped = True
    began = ray.now
    assert set(drain(executor, [task(f"more {i}") for i in range(8)]).values()) == {""}
    # What it held went to the other worker.
    assert ray.now - began < LEAST
    ray.now += LEAST
    assert set(drain(executor, [task(f"last {i}") for i in range(8)]).values()) == {""}
    kinds = [e.kind for e in executor.events()]
    assert kinds[-1] == "actor_hung"
    assert set(kinds[:-1]) == {"issued_again"}
    assert ray.actors[0].dead


def test_a_worker_that_is_stopped_for_a_while_is_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = PlayedRay()
    play(monkeypatch, ray)
    executor = make()
    assert drain(executor, [task("good")]) == {"good": ""}
    ray.actors[0].stopped_until = ray.now + LEAST - 5
    assert drain(executor, [task("more")]) == {"more": ""}
    assert executor.events() == []


@pytest.mark.parametrize(("known", "least"), [(True, LEAST), (False, UNKNOWN)])
def test_how_long_a_task_may_take_is_told_by_those_before(
    monkeypatch: pytest.MonkeyPatch, known: bool, least: float
) -> None:
    ray = PlayedRay()
    play(monkeypatch, ray)
    executor = make()
    if known:
        drain(executor, [task(f"good {i}") for i in range(3)])
    began = ray.now
    assert "hung 3 times" in drain(executor, [task("hangs")])["hangs"]
    # Once in its turn, then alone; nothing that is known of the first says how long the second may take.
    assert 4 * least < ray.now - began < 5 * least


def test_a_limit_that_was_asked_for_holds_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = PlayedRay()
    play(monkeypatch, ray)
    executor = make(timeout=5)
    assert "no answer within 5 s" in drain(executor, [task("hangs")])["hangs"]
    assert ray.now < 60


def test_the_cost_of_a_task_is_part_of_its_limit() -> None:
    noise = find_model("digits-ddpm").noise

    def asked(nfe: int, count: int, metric: str = "frechet") -> Task:
        return Task("k", metric, preset_on_grid("ddim/karras-zero", noise, nfe).to_json(), 0, 0, count)

    pace = Pace()
    assert pace.limit(asked(3, 100)) == UNKNOWN
    pace.note(asked(3, 100), 30.0)
    assert pace.limit(asked(3, 100)) == MANY * 30
    assert pace.limit(asked(6, 500)) == MANY * 30 * 10
    assert pace.limit(asked(1, 1)) == MANY * 30
    assert pace.limit(asked(3, 100, "distance")) == UNKNOWN
    adaptive = Task("k", "frechet", as_point(parse_ode("dopri5")).to_json(), 0, 0, 100)
    network = joint(
        as_point(preset_on_grid("ddim/karras-zero", noise, 3)), QuantizationPoint(config=named("w4a8-naive-paper"))
    )
    for unsaid in (adaptive, Task("k", "frechet", network.to_json(), 0, 0, 100)):
        assert pace.limit(unsaid) >= UNKNOWN


# -- how many workers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cpus", "gpus", "cpu_places", "gpu_places"), [((3,), (), 3, 0), ((4, 2, 1), (1, 4, 0), 7, 3)])
def test_by_default_there_are_as_many_workers_as_the_cluster_has_room_for(
    monkeypatch: pytest.MonkeyPatch, cpus: tuple[int, ...], gpus: tuple[int, ...], cpu_places: int, gpu_places: int
) -> None:
    play(monkeypatch, PlayedRay(cpus=cpus, gpus=gpus))
    for device, places in (("cpu", cpu_places), ("cuda", gpu_places), ("cuda:1", gpu_places)):
        if not places:
            with pytest.raises(ConfigurationError, match=r"1 workers need .* cluster has 0: lower"):
                make(0, device)
            continue
        assert (
            len(make(0, device).pids) == len(make(places, device).pids) == len(make(places + 1, device).pids) == places
        )
        assert len(make(1, device).pids) == 1


@pytest.mark.parametrize(
    ("cpus", "gpus", "resources", "places"),
    [
        (1, 0.0, {"CPU": 5.0}, 5),
        (2, 0.0, {"CPU": 5.0}, 2),
        (6, 0.0, {"CPU": 5.0}, 0),
        (1, 0.0, {}, 0),
        (1, 1.0, {"CPU": 5.0, "GPU": 2.0}, 2),
        (1, 0.5, {"CPU": 5.0, "GPU": 2.0}, 4),
        (1, 0.3, {"CPU": 64.0, "GPU": 2.0}, 6),  # a tenth of each is left over
        (4, 0.25, {"CPU": 8.0, "GPU": 2.0}, 2),
        (1, 0.1, {"CPU": 64.0, "GPU": 1.0}, 10),
        (1, 0.5, {"CPU": 5.0}, 0),
    ],
)
def test_a_node_has_room_by_its_cores_and_shares_of_its_gpus(
    cpus: int, gpus: float, resources: dict[str, float], places: int
) -> None:
    assert Need(cpus, gpus).places(resources) == places


def test_the_pool_follows_nodes_that_join_and_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = PlayedRay(cpus=(2,))
    play(monkeypatch, ray)
    executor = make(0)
    assert len(executor.pids) == 2
    ray.cpus, ray.gpus = (2, 3), (0, 0)
    drain(executor, [task(f"good {i}") for i in range(40)])
    assert len(executor.pids) == 5
    assert 0 not in executor.pids
    assert executor.capacity == 5 * DEPTH
    for i in range(10):
        executor.submit(task(f"held {i}"))
    ray.cpus, ray.gpus = (2,), (0,)
    ray.stillborn = [MACHINERY["NodeDiedError"]] * 100
    for actor in ray.actors[2:]:
        actor.end(MACHINERY["NodeDiedError"])
    assert set(drain(executor, [task(f"more {i}") for i in range(40)], 10).values()) == {""}
    assert len(executor.pids) == 2
    kinds = [e.kind for e in executor.events()]
    assert kinds.count("pool_grew") == 1
    assert "pool_shrank" in kinds


def test_workers_that_are_asked_for_come_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = PlayedRay(cpus=(2,))
    play(monkeypatch, ray)
    executor = make(4)
    assert len(executor.pids) == 2
    ray.cpus, ray.gpus = (2, 8), (0, 0)
    drain(executor, [task(f"good {i}") for i in range(40)])
    assert len(executor.pids) == 4


def test_a_search_without_a_node_waits_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = PlayedRay(cpus=(1,))
    play(monkeypatch, ray)
    executor = make(0)
    executor.submit(task("good"))
    ray.cpus = ray.gpus = ()
    ray.late = list(range(1, 100))
    ray.actors[0].end(MACHINERY["NodeDiedError"])
    began = ray.now
    while ray.now - began < LOST_SECONDS / 2:
        executor._step()
        assert executor.capacity > 0
        assert executor.in_flight == 1
    assert executor.pids == []
    ray.cpus, ray.gpus, ray.late = (3,), (0,), []
    assert drain(executor, [], 1) == {"good": ""}
    assert "pool_empty" in [e.kind for e in executor.events()]


def test_an_autoscaler_is_asked_for_as_much_again_as_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """By actors that wait, for which the search neither waits nor queues tasks."""
    ray = PlayedRay(cpus=(2,))
    ray.scales, ray.late = True, list(range(2, 100))
    play(monkeypatch, ray)
    executor = make(0)
    drain(executor, [task(f"good {i}") for i in range(20)])
    assert executor.pids == [1, 2, 0, 0]
    assert executor.capacity == 2 * DEPTH
    ray.now += 2 * START_SECONDS
    drain(executor, [task(f"more {i}") for i in range(20)])
    assert len(ray.actors) == 4
    assert {e.kind for e in executor.events()} == {"pool_grew"}
    empty = PlayedRay(cpus=())
    empty.scales = True
    play(monkeypatch, empty)
    assert len(make(3).pids) == 3


@pytest.mark.parametrize(
    ("kinds", "config", "scales"),
    [
        (None, None, False),
        ({}, None, False),
        ({"aa": "node_aa", "bb": "node_bb"}, None, False),  # as Ray reports a cluster that nothing scales
        ({"aa": "head"}, None, True),
        ({"aa": "node_aa", "bb": "gpu"}, None, True),
        (None, "groups", True),
    ],
)
def test_an_autoscaler_is_known_by_the_kinds_of_nodes_it_has(
    monkeypatch: pytest.MonkeyPatch, kinds: dict[str, str] | None, config: str | None, scales: bool
) -> None:
    status = json.dumps({"autoscaler_report": {"node_type_mapping": kinds}}).encode() if kinds is not None else None
    asked = SimpleNamespace(_internal_kv_get=lambda key: status)
    monkeypatch.setattr(ray_cluster, "internal_kv", asked)
    monkeypatch.setattr(
        ray_cluster, "ray_state", SimpleNamespace(state=SimpleNamespace(get_cluster_config=lambda: config))
    )
    assert ray_cluster._has_autoscaler() is scales


# -- tasks that are slow, and tasks that are given up -----------------------------------------------------


def test_what_a_slow_worker_holds_is_given_to_one_that_is_idle_and_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = PlayedRay()
    play(monkeypatch, ray)
    executor = make(2)
    drain(executor, [task(f"good {i}") for i in range(6)])
    for i in range(4):
        executor.submit(task(f"held {i}"))
    ray.actors[0].stopped_until = began = ray.now + LEAST - 20
    got = [executor.next().task.key for _ in range(4)]
    assert sorted(got) == [f"held {i}" for i in range(4)]
    assert ray.now < began
    assert executor.in_flight == 0
    assert {e.kind for e in executor.events()} == {"issued_again"}
    # The late answers change nothing, and the worker goes on.
    assert set(drain(executor, [task(f"more {i}") for i in range(60)]).values()) == {""}
    assert ray.now > began
    assert executor.pids == [1, 2]
    assert executor.events() == []


@pytest.mark.parametrize("kind", ["poison", "hangs", "comes back"])
def test_a_task_that_is_given_up_is_quarantined_with_what_it_met(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    play(monkeypatch, PlayedRay())
    executor = make(2)
    errors = drain(executor, [task("good 1"), task(f"{kind} 1", "WorkerCrashedError"), task("good 2")])
    assert errors["good 1"] == errors["good 2"] == ""
    (event,) = [e for e in executor.events() if e.kind == "quarantined"]
    assert event.message == errors[f"{kind} 1"]
    assert event.data["key"] == f"{kind} 1"
    assert event.data["tries"] == MAX_TRIES
    wanted = {"poison": "worker", "hangs": "no answer", "comes back": "worker.py:3 in run"}[kind]
    assert wanted in str(event.data["traceback"])


def test_on_this_machine_there_are_no_more_workers_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = PlayedRay()
    play(monkeypatch, ray)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(ConfigurationError, match="'cuda' is not there"):
        make(1, "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(ray_cluster.local_ray, "start", lambda cpus, gpus, **_: asked.append((cpus, gpus)))
    with pytest.raises(ConfigurationError, match="3 workers need as many GPUs, this machine has 2"):
        make(3, "cuda")
    make(0, "cuda:1").close()
    assert asked == [(2, 2)]


def test_a_worker_that_was_given_a_gpu_uses_that_one() -> None:
    assert [own_device(name, ["0"]) for name in ("cuda", "cuda:0", "cuda:3")] == ["cuda"] * 3
    assert own_device("cpu", ["0"]) == "cpu"
    assert own_device("cuda:1", []) == "cuda:1"


# -- what is measured ------------------------------------------------------------------------------------


class Number:
    """A metric of Ray's that keeps what it was told."""

    def __init__(self, name: str, told: str) -> None:
        self.value = 0.0

    def inc(self, value: float = 1.0) -> None:
        self.value += value

    def set(self, value: float) -> None:
        self.value = value


def test_an_evaluation_counts_once_whatever_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Counter", "Gauge"):
        monkeypatch.setattr(ray_metrics, name, Number)
    play(monkeypatch, PlayedRay())
    executor = make(2)
    tasks = [Task(key, "frechet", "", 0, start, 1, {"how": ""}) for key in ("good 1", "raises 2") for start in range(3)]
    for each in [*tasks, task("good 3")]:
        executor.submit(each)
    while executor.in_flight:
        executor.next()
    metrics = executor._metrics
    numbers = {name: metric.value for name, metric in (*metrics._counters.items(), *metrics._gauges.items())}
    assert numbers["fewstep_evaluations"] == 3
    assert numbers["fewstep_failed_evaluations"] == 1
    assert numbers["fewstep_queue_length"] == 0
    assert numbers["fewstep_workers"] == 2
    assert 0 <= numbers["fewstep_busy_share"] <= 1

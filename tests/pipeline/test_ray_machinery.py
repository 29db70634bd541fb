"""Whatever happens to Ray: no task is lost, none is given up for what another did. On a Ray that is played."""

from __future__ import annotations

import random
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

from fewstep.errors import ConfigurationError
from fewstep.pipeline.executors import ray as on_ray
from fewstep.pipeline.executors.base import MAX_TRIES, ExecutionSettings
from fewstep.pipeline.executors.ray import DEPTH, START_TRIES, RayExecutor
from fewstep.tasks.actors import own_device
from fewstep.tasks.work import Subject, Task, TaskResult, WorkerSettings

MACHINERY: dict[str, Callable[[], exceptions.RayError]] = {
    "ActorDiedError": exceptions.ActorDiedError,
    "ActorUnavailableError": lambda: exceptions.ActorUnavailableError("gone", None),
    "OutOfMemoryError": lambda: exceptions.OutOfMemoryError("the node is low on memory"),
    "LocalRayletDiedError": exceptions.LocalRayletDiedError,
    "WorkerCrashedError": exceptions.WorkerCrashedError,
    "NodeDiedError": lambda: exceptions.NodeDiedError("node"),
    "ObjectReconstructionFailedError": lambda: exceptions.ObjectReconstructionFailedError("0" * 56),
    "OutOfDiskError": lambda: exceptions.OutOfDiskError("full"),
}


def own_error() -> exceptions.RayError:
    return exceptions.RayTaskError("run", "Traceback\nLookupError: what the task raised", LookupError())


@dataclass(eq=False)
class Reference:
    task: Task | None = None
    value: Any = None


@dataclass(eq=False)
class Actor:
    """Runs what it is given in order; a poison task ends it, and takes an answer on its way along."""

    number: int
    stillborn: Callable[[], exceptions.RayError] | None = None
    dead: bool = False
    queue: list[Reference] = field(default_factory=list)

    def end(self, error: Callable[[], exceptions.RayError]) -> None:
        self.dead = True
        for reference in self.queue:
            reference.value = error()
        self.queue.clear()

    @property
    def pid(self) -> Any:
        made = self.stillborn() if self.stillborn else self.number
        return SimpleNamespace(remote=lambda: Reference(value=made))

    @property
    def run(self) -> Any:
        def remote(task: Task) -> Reference:
            reference = Reference(task)
            if self.dead:
                reference.value = exceptions.ActorDiedError()
            else:
                self.queue.append(reference)
            return reference

        return SimpleNamespace(remote=remote)


class PlayedRay:
    """As much of Ray as the executor calls. Time passes in `wait`."""

    exceptions = exceptions

    def __init__(self, seed: int = 0, kill: float = 0.0, cpus: tuple[int, ...] = (4,), gpus: tuple[int, ...] = ()):
        self.random, self.kill_rate = random.Random(seed), kill
        self.cpus, self.gpus = cpus, gpus or (0,) * len(cpus)
        self.actors: list[Actor] = []
        self.stillborn: list[Callable[[], exceptions.RayError] | None] = []
        self.beside: Counter[str] = Counter()

    def make(self) -> Actor:
        self.actors.append(Actor(len(self.actors), self.stillborn.pop(0) if self.stillborn else None))
        return self.actors[-1]

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        sizes = zip(self.cpus, self.gpus, strict=True)
        alive = [{"Alive": True, "Resources": {"CPU": float(c)} | ({"GPU": float(g)} if g else {})} for c, g in sizes]
        return [*alive, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]

    def get(self, reference: Reference, timeout: float | None = None) -> Any:
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    def wait(
        self, references: list[Reference], num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Reference], list[Reference]]:
        while True:
            done = [r for r in references if r.value is not None]
            if done or timeout == 0:
                return self.random.sample(done, min(num_returns, len(done))), []
            self.step()

    def step(self) -> None:
        actor = self.random.choice([a for a in self.actors if a.queue])
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
            if self.random.random() < 0.5:
                break
        reference = actor.queue.pop(0)
        assert reference.task is not None
        raises = reference.task.key.startswith("raises")
        reference.value = own_error() if raises else TaskResult(reference.task, seconds=1.0)

    def kill(self, actor: Actor) -> None:
        actor.end(exceptions.ActorDiedError)

    def shutdown(self) -> None:
        raise AssertionError("the executor did not start it")


def play(monkeypatch: pytest.MonkeyPatch, ray: PlayedRay) -> None:
    monkeypatch.setattr(on_ray, "ray", ray)
    monkeypatch.setattr(RayExecutor, "_new_actor", lambda self: ray.make())


def make(workers: int = 1, device: str = "cpu") -> RayExecutor:
    return RayExecutor(WorkerSettings(Subject("none"), device), ExecutionSettings(executor="ray", workers=workers))


def task(key: str, how: str = "") -> Task:
    return Task(key, "frechet", "", 0, 0, 1, {"how": how})


def drain(executor: RayExecutor, tasks: list[Task]) -> dict[str, str]:
    """Errors by key, the tasks submitted as a search does: no more at a time than keep the actors busy."""
    waiting, errors = list(reversed(tasks)), {}
    while waiting or executor.in_flight:
        while waiting and executor.in_flight < executor.capacity:
            executor.submit(waiting.pop())
        result = executor.next()
        assert result.task.key not in errors
        errors[result.task.key] = result.error
    assert errors.keys() == {t.key for t in tasks}
    return errors


kinds = st.lists(st.sampled_from(["good", "good", "good", "raises", "poison"]), min_size=1, max_size=14)


@settings(max_examples=150, deadline=None)
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
        else:
            assert error == f"gave up: the worker died {MAX_TRIES} times at this task ({how})"
            assert ray.beside[key] >= MAX_TRIES


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
    assert all(e.kind in ("actor_died", "actor_failed") for e in executor.events())
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
    ray.stillborn = [MACHINERY["OutOfMemoryError"]] * START_TRIES
    play(monkeypatch, ray)
    with pytest.raises(ConfigurationError, match=r"OutOfMemoryError.*lower --workers"):
        make()
    assert len(ray.actors) == START_TRIES


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
    ray.stillborn = [MACHINERY["NodeDiedError"]] * START_TRIES
    ray.actors[0].end(MACHINERY["NodeDiedError"])
    errors = {r.task.key: r.error for r in [executor.next() for _ in range(4)]}
    assert errors == {f"good {i}": "" for i in range(4)}
    assert executor.capacity == DEPTH
    assert [e.kind for e in executor.events()] == ["actor_start_failed"] * START_TRIES + ["actor_lost"]


# -- how many workers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cpus", "gpus", "cpu_places", "gpu_places"), [((3,), (), 3, 0), ((4, 2, 1), (1, 4, 0), 7, 3)])
def test_by_default_there_are_as_many_workers_as_the_cluster_has_room_for(
    monkeypatch: pytest.MonkeyPatch, cpus: tuple[int, ...], gpus: tuple[int, ...], cpu_places: int, gpu_places: int
) -> None:
    play(monkeypatch, PlayedRay(cpus=cpus, gpus=gpus))
    for device, places in (("cpu", cpu_places), ("cuda", gpu_places), ("cuda:1", gpu_places)):
        if places:
            assert len(make(0, device).pids) == places
            assert len(make(places, device).pids) == places
        with pytest.raises(ConfigurationError, match=rf"{places + 1} workers need .* cluster has {places}: lower"):
            make(places + 1, device)


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
    monkeypatch.setattr(on_ray.local_ray, "start", lambda cpus, gpus, **_: asked.append((cpus, gpus)))
    with pytest.raises(ConfigurationError, match="3 workers need as many GPUs, this machine has 2"):
        make(3, "cuda")
    make(0, "cuda:1").close()
    assert asked == [(2, 2)]


def test_a_worker_that_was_given_a_gpu_uses_that_one() -> None:
    assert [own_device(name, ["0"]) for name in ("cuda", "cuda:0", "cuda:3")] == ["cuda"] * 3
    assert own_device("cpu", ["0"]) == "cpu"
    assert own_device("cuda:1", []) == "cuda:1"

"""Run tasks on Ray actors that hold the model, replacing actors that die and redoing their work.

What a task's own code raises is the candidate's failure. Whatever else Ray reports is the machinery's: the actor is
replaced and its tasks are run again. A task is given up only when actors died of it that had nothing else to do.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from fewstep.errors import ConfigurationError
from fewstep.pipeline import stopping
from fewstep.pipeline.executors import local_ray
from fewstep.pipeline.executors.base import MAX_TRIES, ExecutionSettings, ExecutorEvent
from fewstep.tasks.actors import WorkerActor
from fewstep.tasks.work import Task, TaskResult, WorkerSettings
from fewstep.tasks.worker import check_device

# Two tasks an actor: the next one is already there when a result is on its way back.
DEPTH = 2
START_SECONDS = 300
START_TRIES = 3


@dataclass
class _Slot:
    """One actor and what it was given, oldest first; `alone` while it runs a suspect, and must get nothing else."""

    index: int
    actor: Any
    pid: int
    tasks: list[tuple[Any, Task]] = field(default_factory=list)
    alone: bool = False


def _load(slot: _Slot) -> int:
    return len(slot.tasks)


def default_workers(device: str) -> int:
    """One actor a GPU where the device is one, else one a core that this process may use."""
    if device.startswith("cuda"):
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class RayExecutor:
    """A fixed number of actors on this machine (`address` None) or on a running cluster."""

    def __init__(self, settings: WorkerSettings, execution: ExecutionSettings) -> None:
        self._settings = replace(settings, threads=settings.threads or 1)
        self._gpu = settings.device.startswith("cuda")
        self._owns_ray = not ray.is_initialized()
        self._folder: Path | None = None
        self._events: list[ExecutorEvent] = []
        self._deaths: dict[tuple[str, int], int] = {}
        self._ready: list[TaskResult] = []
        self._waiting: deque[Task] = deque()
        self._suspects: deque[Task] = deque()
        self._slots: list[_Slot] = []
        try:
            count = self._connect(execution)
            # Ray took SIGTERM: its own handler prints a trace of C++.
            stopping.watch()
            actors = [self._new_actor() for _ in range(count)]
            for index, first in enumerate(actors):
                self._slots.append(_Slot(index, *self._start(index, first)))
        except BaseException:
            self.close()
            raise

    def _connect(self, execution: ExecutionSettings) -> int:
        """Start or join Ray; the number of workers to start."""
        workers, address, device = execution.workers, execution.address, self._settings.device
        if address is None:
            # The actors own this machine's cores: a driver with threads of its own would only wait for them.
            torch.set_num_threads(1)
        if not self._owns_ray and address not in (None, "auto"):
            raise ConfigurationError(f"Ray is already initialised in this process, cannot join {address!r}")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._owns_ray and address is None:
            check_device(device)
            here = default_workers(device)
            if self._gpu and workers > here:
                raise ConfigurationError(_too_many(workers, here, "GPUs", "this machine"))
            count = workers or here
            with _explained("cannot start Ray on this machine"):
                self._folder = local_ray.start(count, count if self._gpu else 0, **quiet)
            return count
        if self._owns_ray:
            with _explained(f"cannot reach a Ray cluster at {address!r}"):
                ray.init(address=address, **quiet)
        places = self._places()
        kind = "CPUs with a GPU" if self._gpu else "CPUs"
        if workers > places or not places:
            raise ConfigurationError(_too_many(max(workers, 1), places, kind, "the Ray cluster"))
        return workers or places

    def _places(self) -> int:
        """How many workers the cluster's nodes have room for, whether or not others use them now."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        needed = ("CPU", "GPU") if self._gpu else ("CPU",)
        return sum(int(min(resources.get(name, 0) for name in needed)) for resources in nodes)

    def _new_actor(self) -> Any:
        resources: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1} if self._gpu else {"num_cpus": 1}
        return WorkerActor.options(**resources).remote(self._settings)  # type: ignore[attr-defined]

    def _start(self, index: int, actor: Any = None) -> tuple[Any, int]:
        """An actor (`actor`, or another where it does not come up) and its process id."""
        for tries in range(1, START_TRIES + 1):
            actor = actor or self._new_actor()
            try:
                return actor, int(ray.get(actor.pid.remote(), timeout=START_SECONDS))
            except GetTimeoutError:
                _end(actor)
                raise ConfigurationError(
                    f"no Ray actor started within {START_SECONDS} s: the cluster has too few free CPUs or GPUs; "
                    "lower --workers"
                ) from None
            except RayError as error:
                if isinstance(error, RayTaskError) or (isinstance(error, RayActorError) and error.actor_init_failed):
                    # Its own code refused, and would again.
                    raise ConfigurationError(f"an actor could not start: {_last_line(error)}") from None
                _end(actor)
                actor, reason = None, f"{type(error).__name__}: {_last_line(error)}"
                message = f"actor {index} ended while it started (try {tries} of {START_TRIES}): {reason}"
                self._events.append(ExecutorEvent("actor_start_failed", message))
        raise ConfigurationError(
            f"no Ray actor came up in {START_TRIES} tries ({reason}): free memory or lower --workers, then go on "
            "with --resume"
        )

    @property
    def capacity(self) -> int:
        """Tasks that keep every actor busy."""
        return DEPTH * len(self._slots)

    @property
    def in_flight(self) -> int:
        """Tasks submitted whose results have not been delivered."""
        given = sum(len(slot.tasks) for slot in self._slots)
        return given + len(self._ready) + len(self._waiting) + len(self._suspects)

    @property
    def pids(self) -> list[int]:
        """Process ids of the actors, in slot order."""
        return [slot.pid for slot in self._slots]

    def submit(self, task: Task) -> None:
        """Give the task to the actor with the least to do, or keep it until one has less."""
        self._waiting.append(task)
        self._hand_out()

    def _hand_out(self) -> None:
        for slot in self._slots:
            if self._suspects and not slot.tasks:
                slot.alone = True
                self._give(slot, self._suspects.popleft())
        takers = [slot for slot in self._slots if not slot.alone]
        if self._suspects and len(takers) == len(self._slots):
            # One gets nothing new until it is free for a suspect.
            takers.remove(min(takers, key=_load))
        while self._waiting and takers:
            slot = min(takers, key=_load)
            if len(slot.tasks) >= DEPTH:
                return
            self._give(slot, self._waiting.popleft())

    @staticmethod
    def _give(slot: _Slot, task: Task) -> None:
        slot.tasks.append((slot.actor.run.remote(task), task))

    def next(self) -> TaskResult:
        """Wait for the first result of any actor; an actor that dies is replaced on the way."""
        while not self._ready:
            references = {ref: slot for slot in self._slots for ref, _ in slot.tasks}
            done, _ = ray.wait(list(references), num_returns=1)
            self._collect(references[done[0]], done[0])
        return self._ready.pop(0)

    def _collect(self, slot: _Slot, reference: Any) -> None:
        task = next(task for ref, task in slot.tasks if ref == reference)
        try:
            result = _outcome(reference, task)
        except RayError as error:
            self._replace(slot, error)
        else:
            slot.tasks = [(ref, t) for ref, t in slot.tasks if ref != reference]
            slot.alone = slot.alone and bool(slot.tasks)
            self._ready.append(result)
        self._hand_out()

    def _replace(self, slot: _Slot, error: RayError) -> None:
        """Another actor in the slot's place; what the old one did not finish is run again, each task alone.

        Which of two tasks an actor died of cannot be told: the answer to the first may have died with it.
        """
        _end(slot.actor)
        lost, alone = [], len(slot.tasks) == 1
        for reference, task in slot.tasks:
            try:
                if ray.wait([reference], timeout=0)[0]:
                    self._ready.append(_outcome(reference, task))
                    continue
            except RayError:
                pass
            lost.append(task)
        slot.tasks, slot.alone = [], False
        reason = type(error).__name__
        if alone and lost and self._condemned(lost[0], reason):
            lost = []
        self._suspects.extend(lost)
        died = isinstance(error, RayActorError | OutOfMemoryError)
        message = (
            f"actor {slot.index} (pid {slot.pid}) {'died' if died else 'failed'}: {reason}; {len(lost)} tasks redone"
        )
        try:
            slot.actor, slot.pid = self._start(slot.index)
        except ConfigurationError as problem:
            if len(self._slots) == 1:
                raise
            self._slots.remove(slot)
            self._events.append(ExecutorEvent("actor_lost", f"{message}, none in its place: {problem}"))
            return
        self._events.append(ExecutorEvent("actor_died" if died else "actor_failed", f"{message} by pid {slot.pid}"))

    def _condemned(self, task: Task, reason: str) -> bool:
        """Count the end of an actor that had only this task; whether it is given up for it, with its result ready."""
        identity = (task.key, task.start)
        self._deaths[identity] = deaths = self._deaths.get(identity, 0) + 1
        if deaths < MAX_TRIES:
            return False
        error = f"gave up: the worker died {deaths} times at this task ({reason})"
        self._ready.append(TaskResult(task, error=error))
        return True

    def events(self) -> list[ExecutorEvent]:
        """What happened to actors since the last call."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Stop the actors, and Ray where this executor started it."""
        for slot in self._slots:
            _end(slot.actor)
        if self._owns_ray:
            ray.shutdown()
        local_ray.remove(self._folder)


def _outcome(reference: Any, task: Task) -> TaskResult:
    """What came of a task that is done; whatever of RayError is not its own doing."""
    try:
        result: TaskResult = ray.get(reference)
    except RayTaskError as error:
        return TaskResult(task, error=f"{type(error).__name__}: {_last_line(error)}")
    return result


def _end(actor: Any) -> None:
    # It may be gone already, and Ray with it.
    with suppress(RayError, RuntimeError, ValueError):
        ray.kill(actor)


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[-1].strip()


def _too_many(workers: int, places: int, kind: str, where: str) -> str:
    return f"{workers} workers need as many {kind}, {where} has {places}: lower --workers or add machines"


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise ConfigurationError(f"{what}: {(str(error).strip().splitlines() or [''])[0]}") from None

"""Run tasks on Ray actors that hold the model, replacing actors that die and redoing their work."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from fewstep.errors import ConfigurationError
from fewstep.pipeline.executors.base import MAX_TRIES, ExecutionSettings, ExecutorEvent
from fewstep.tasks.actors import WorkerActor
from fewstep.tasks.work import Task, TaskResult, WorkerSettings

# Two tasks an actor: the next one is already there when a result is on its way back.
DEPTH = 2
START_SECONDS = 300


@dataclass
class _Slot:
    """One actor and what it was given, oldest first."""

    index: int
    actor: Any
    pid: int
    tasks: list[tuple[Any, Task]] = field(default_factory=list)


def default_workers(device: str) -> int:
    """One actor a GPU where there are GPUs and the device is one, else one a core."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.device_count()
    import os

    return os.cpu_count() or 1


class RayExecutor:
    """A fixed number of actors on this machine (`address` None) or on a running cluster."""

    def __init__(self, settings: WorkerSettings, execution: ExecutionSettings) -> None:
        workers, address = execution.workers, execution.address
        self._settings = replace(settings, threads=settings.threads or 1)
        self._gpu = settings.device.startswith("cuda")
        count = workers or default_workers(settings.device)
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _connect(address, count, self._gpu)
        elif address not in (None, "auto"):
            raise ConfigurationError(f"Ray is already initialised in this process, cannot join {address!r}")
        if address is None:
            # The actors own this machine's cores: a driver with threads of its own would only wait for them.
            torch.set_num_threads(1)
        self._events: list[ExecutorEvent] = []
        self._tries: dict[tuple[str, int], int] = {}
        self._ready: list[TaskResult] = []
        self._waiting: list[Task] = []
        actors = [self._new_actor() for _ in range(count)]
        self._slots = [_Slot(i, actor, self._pid(actor)) for i, actor in enumerate(actors)]

    def _new_actor(self) -> Any:
        resources: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1} if self._gpu else {"num_cpus": 1}
        return WorkerActor.options(**resources).remote(self._settings)  # type: ignore[attr-defined]

    def _pid(self, actor: Any) -> int:
        try:
            return int(ray.get(actor.pid.remote(), timeout=START_SECONDS))
        except GetTimeoutError:
            raise ConfigurationError(
                f"no Ray actor started within {START_SECONDS} s: the cluster has too few free CPUs or GPUs; "
                "lower --workers"
            ) from None
        except RayActorError as error:
            cause = getattr(error, "cause", None) or error
            raise ConfigurationError(f"an actor could not start: {str(cause).strip().splitlines()[-1]}") from None

    @property
    def capacity(self) -> int:
        """Tasks that keep every actor busy."""
        return DEPTH * len(self._slots)

    @property
    def in_flight(self) -> int:
        """Tasks submitted whose results have not been delivered."""
        return sum(len(slot.tasks) for slot in self._slots) + len(self._ready) + len(self._waiting)

    @property
    def pids(self) -> list[int]:
        """Process ids of the actors, in slot order."""
        return [slot.pid for slot in self._slots]

    def submit(self, task: Task) -> None:
        """Give the task to the actor with the least to do."""
        slot = min(self._slots, key=lambda s: len(s.tasks))
        slot.tasks.append((slot.actor.run.remote(task), task))

    def next(self) -> TaskResult:
        """Wait for the first result of any actor; a dead actor is replaced on the way."""
        while not self._ready:
            references = {ref: slot for slot in self._slots for ref, _ in slot.tasks}
            done, _ = ray.wait(list(references), num_returns=1)
            self._collect(references[done[0]], done[0])
        return self._ready.pop(0)

    def _collect(self, slot: _Slot, reference: Any) -> None:
        task = next(task for ref, task in slot.tasks if ref == reference)
        try:
            result: TaskResult = ray.get(reference)
        except RayActorError:
            self._replace(slot)
            return
        except RayError as error:
            result = TaskResult(task, error=f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")
        slot.tasks = [(ref, t) for ref, t in slot.tasks if ref != reference]
        self._ready.append(result)

    def _replace(self, slot: _Slot) -> None:
        # Only the oldest task was running: it alone may be the cause, and is given up after MAX_TRIES deaths.
        lost = [task for _, task in slot.tasks]
        suspect = lost[0]
        identity = (suspect.key, suspect.start)
        self._tries[identity] = self._tries.get(identity, 0) + 1
        message = f"actor {slot.index} (pid {slot.pid}) died; {len(lost)} tasks redone"
        if self._tries[identity] >= MAX_TRIES:
            lost = lost[1:]
            self._ready.append(TaskResult(suspect, error=f"gave up: the worker died {MAX_TRIES} times at this task"))
        slot.tasks = []
        slot.actor = self._new_actor()
        slot.pid = self._pid(slot.actor)
        slot.tasks = [(slot.actor.run.remote(task), task) for task in lost]
        self._events.append(ExecutorEvent("actor_died", f"{message} by pid {slot.pid}"))

    def events(self) -> list[ExecutorEvent]:
        """Actors that died since the last call."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Stop the actors, and Ray where this executor started it."""
        for slot in self._slots:
            ray.kill(slot.actor)
        if self._owns_ray:
            ray.shutdown()


def _connect(address: str | None, count: int, gpu: bool) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            local = {"num_gpus": count} if gpu else {}
            # Without an address Ray would join whatever cluster it finds, and refuse its size.
            ray.init("local", num_cpus=max(count, 1), include_dashboard=False, **local, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigurationError(f"cannot reach a Ray cluster at {address!r}: {reason}") from None

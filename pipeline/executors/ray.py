"""Run tasks on Ray actors that hold the model, replacing actors that die or hang and redoing their work.

What a task's own code raises is the candidate's failure, unless it is one of the machine's (`tasks/faults.py`).
Whatever else Ray reports is the machine's: the actor is replaced and its tasks are run again, each alone. A task is
given up only when actors died of it that were seen alive just before and had nothing else to do.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline import stopping
from fewstep.pipeline.executors.base import MAX_TRIES, ExecutionSettings, ExecutorEvent
from fewstep.pipeline.executors.pace import LEAST, Pace
from fewstep.pipeline.executors.ray_cluster import RayCluster
from fewstep.pipeline.executors.ray_errors import (
    HungError,
    MachineError,
    ending,
    last_line,
    outcome,
    outcome_if_there,
    reason,
    refusal,
)
from fewstep.tasks.actors import WorkerActor
from fewstep.tasks.faults import given_up
from fewstep.tasks.work import Task, TaskResult, WorkerSettings

# Two tasks an actor: the next one is already there when a result is on its way back.
DEPTH = 2
# Actors that may end while they start, one after the other in every place, and the seconds that this must have lasted
# before a search that never had any gives up; one that had waits for START_SECONDS.
START_TRIES, GIVE_UP_SECONDS = 5, 120.0
# Seconds: for an actor to come up; for the others once one is up; without any node that has room.
START_SECONDS, GRACE_SECONDS, LOST_SECONDS = 300.0, 20.0, 30.0
# Between two looks at the actors, two at the cluster, and two starts in one place once START_TRIES have failed.
# Ray ends a process whose cluster's head is silent for 60 s: that is to be seen before.
LOOK_SECONDS, ASK_SECONDS, PAUSE_SECONDS = 2.0, 10.0, 10.0


@dataclass
class _Slot:
    """A place for an actor. Without one it waits until `due`; `sign` is a sign of life that is waited for.

    `tasks` is what the actor was given, oldest first. `alone`: it gets one suspect, once its sign of life is there, and
    nothing else. `since` is when what it does now began, `limit` how many seconds that may take.
    """

    index: int
    actor: Any = None
    pid: int = 0
    sign: Any = None
    tasks: list[tuple[Any, Task]] = field(default_factory=list)
    suspect: Task | None = None
    alone: bool = False
    since: float = 0.0
    limit: float = 0.0
    due: float = 0.0
    failed_starts: int = 0

    @property
    def free(self) -> bool:
        return self.pid > 0 and not self.alone

    @property
    def references(self) -> list[Any]:
        return [ref for ref, _ in self.tasks] if self.sign is None else [self.sign]


def _load(slot: _Slot) -> int:
    return len(slot.tasks)


class RayExecutor:
    """A fixed number of actors on this machine (`address` None) or on a running cluster."""

    def __init__(self, settings: WorkerSettings, execution: ExecutionSettings) -> None:
        self._settings = replace(settings, threads=settings.threads or 1)
        self._cluster = RayCluster(gpu=settings.device.startswith("cuda"))
        self._pace = Pace(execution.timeout)
        self._events: list[ExecutorEvent] = []
        self._tries: dict[tuple[str, int], int] = {}
        # Ends of actors that no task explains, in all and when a suspect was first run alone.
        self._strays = 0
        self._strays_before: dict[tuple[str, int], int] = {}
        self._ready: deque[TaskResult] = deque()
        self._waiting: deque[Task] = deque()
        self._suspects: deque[Task] = deque()
        self._slots: list[_Slot] = []
        # When an actor was last up, when the cluster last answered, and how often it has not since.
        self._alive_at = self._asked_at = time.monotonic()
        self._silent = 0
        self._had_any = False
        try:
            self._cluster.connect(execution, settings.device)
            # Ray took SIGTERM: its own handler prints a trace of C++.
            stopping.watch()
            self._slots += [_Slot(index) for index in range(self._cluster.workers)]
            self._await_first()
        except BaseException:
            self.close()
            raise

    def _new_actor(self) -> Any:
        resources: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1} if self._cluster.gpu else {"num_cpus": 1}
        return WorkerActor.options(**resources).remote(self._settings)  # type: ignore[attr-defined]

    # -- actors come up -------------------------------------------------------------------------------

    def _await_first(self) -> None:
        """Wait until an actor is up, and a little for the others, which come up beside the work where they are late."""
        first = None
        while not all(slot.pid for slot in self._slots):
            if first is None and self._up:
                first = time.monotonic()
            if first is not None and time.monotonic() - first > GRACE_SECONDS:
                return
            self._step()

    @property
    def _up(self) -> list[_Slot]:
        return [slot for slot in self._slots if slot.pid]

    def _begin(self, slot: _Slot) -> None:
        """Start an actor; when it is up, `_came_up`."""
        slot.since, slot.limit = time.monotonic(), START_SECONDS
        try:
            slot.actor = self._new_actor()
            slot.sign = slot.actor.pid.remote()
        except RayError as error:
            self._stillborn(slot, error)

    def _came_up(self, slot: _Slot, pid: int) -> None:
        slot.sign, slot.pid, slot.failed_starts = None, pid, 0
        self._had_any = True

    def _stillborn(self, slot: _Slot, error: RayError) -> None:
        """An actor ended while it started: another, at once at first, and later now and then where others are up."""
        refused = refusal(error)
        self._bury(slot)
        if refused:
            problem = f"an actor could not start: {refused}"
            if not self._up:
                raise ConfigurationError(problem)
            self._slots.remove(slot)
            self._events.append(ExecutorEvent("actor_lost", f"{problem}; none in the place of actor {slot.index}"))
            return
        self._strays += 1
        slot.failed_starts += 1
        why = f"{type(error).__name__}: {last_line(error)}"
        message = f"actor {slot.index} ended while it started (try {slot.failed_starts}): {why}"
        self._events.append(ExecutorEvent("actor_start_failed", message))
        if slot.failed_starts < START_TRIES:
            return
        slot.due = time.monotonic() + PAUSE_SECONDS
        failing = all(other.failed_starts >= START_TRIES for other in self._slots)
        patience = START_SECONDS if self._had_any else GIVE_UP_SECONDS
        if failing and time.monotonic() - self._alive_at > patience:
            raise ConfigurationError(
                f"no Ray actor came up in {slot.failed_starts} tries ({why}): free memory or lower --workers, then "
                "go on with --resume"
            )

    def _bury(self, slot: _Slot) -> None:
        if slot.actor is not None:
            _end(slot.actor)
        slot.actor, slot.sign, slot.pid, slot.alone, slot.suspect = None, None, 0, False, None

    def _look(self) -> None:
        """EvaluationError where the cluster is lost, or no actor comes up."""
        now = time.monotonic()
        if self._up:
            self._alive_at = now
        idle = now - self._alive_at
        if idle > LOST_SECONDS or now - self._asked_at > ASK_SECONDS:
            trouble = self._cluster.trouble(5 * LOOK_SECONDS, idle > LOST_SECONDS)
            if trouble is None:
                self._silent += 1
            else:
                self._asked_at, self._silent = now, 0
            if trouble or self._silent > 1:
                self._cluster.leave()
                raise EvaluationError(
                    f"the Ray cluster {trouble or 'does not answer: its head is gone'}; what is finished is on disk: "
                    "when it is there again, go on with --resume"
                )
        if idle > START_SECONDS:
            raise EvaluationError(
                f"no Ray actor started within {START_SECONDS:.0f} s: the cluster has too few free CPUs or GPUs; free "
                "them or lower --workers, then go on with --resume"
            )

    # -- tasks ----------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Tasks that keep every actor busy."""
        return DEPTH * len(self._slots)

    @property
    def in_flight(self) -> int:
        """Tasks submitted whose results have not been delivered."""
        given = sum(len(slot.tasks) + (slot.suspect is not None) for slot in self._slots)
        return len(self._ready) + len(self._waiting) + len(self._suspects) + given

    @property
    def pids(self) -> list[int]:
        """Process ids of the actors, 0 for one that is starting."""
        return [slot.pid for slot in self._slots]

    def submit(self, task: Task) -> None:
        """Give a task to the least busy actor, or keep it until one has room."""
        self._waiting.append(task)
        self._hand_out()

    def _hand_out(self) -> None:
        for slot in list(self._slots):
            if self._suspects and slot.free and not slot.tasks:
                self._ask(slot, self._suspects.popleft())
        while self._waiting:
            takers = [slot for slot in self._slots if slot.free]
            if self._suspects and len(takers) == len(self._up) and takers:
                # One gets nothing new until it is free for a suspect.
                takers.remove(min(takers, key=_load))
            takers = [slot for slot in takers if len(slot.tasks) < DEPTH]
            if not takers:
                return
            self._give(min(takers, key=_load), self._waiting.popleft())

    def _ask(self, slot: _Slot, suspect: Task) -> None:
        """Ask for a sign of life before a suspect is run: an actor that died before it did not die of it."""
        slot.alone, slot.suspect = True, suspect
        slot.since, slot.limit = time.monotonic(), LEAST
        try:
            slot.sign = slot.actor.pid.remote()
        except RayError as error:
            self._replace(slot, error)

    def _give(self, slot: _Slot, task: Task) -> None:
        if not slot.tasks:
            self._clock(slot, task)
        slot.tasks.append((None, task))
        try:
            slot.tasks[-1] = (slot.actor.run.remote(task), task)
        except RayError as error:
            self._replace(slot, error)

    def _clock(self, slot: _Slot, task: Task) -> None:
        slot.since, slot.limit = time.monotonic(), self._pace.limit(task)

    def next(self) -> TaskResult:
        """Wait for the first result of any actor; an actor that dies or hangs is replaced on the way."""
        while not self._ready:
            self._step()
        return self._ready.popleft()

    def _step(self) -> None:
        """Start what is due, hand out what waits, and take in what comes within LOOK_SECONDS."""
        now = time.monotonic()
        for slot in list(self._slots):
            if slot.actor is None and slot.due <= now:
                self._begin(slot)
        self._hand_out()
        owners = {ref: slot for slot in self._slots for ref in slot.references}
        if owners:
            done, _ = ray.wait(list(owners), num_returns=1, timeout=LOOK_SECONDS)
            for reference in done:
                self._collect(owners[reference], reference)
        else:
            time.sleep(min(LOOK_SECONDS, 0.1))
        self._end_hung()
        self._look()
        self._hand_out()

    def _collect(self, slot: _Slot, reference: Any) -> None:
        if reference == slot.sign:
            self._signed(slot)
            return
        task = next(task for ref, task in slot.tasks if ref == reference)
        try:
            result = outcome(reference, task)
        except RayError as error:
            self._replace(slot, error)
            return
        slot.tasks = [(ref, t) for ref, t in slot.tasks if ref != reference]
        slot.alone = slot.alone and bool(slot.tasks)
        if slot.tasks:
            self._clock(slot, slot.tasks[0][1])
        self._deliver(result)

    def _deliver(self, result: TaskResult) -> None:
        self._pace.note(result.task, result.seconds)
        self._ready.append(result)

    def _signed(self, slot: _Slot) -> None:
        """A sign of life came, or that there is none."""
        try:
            pid = int(ray.get(slot.sign))
        except RayError as error:
            if slot.pid:
                self._replace(slot, error)
            else:
                self._stillborn(slot, error)
            return
        if not slot.pid:
            self._came_up(slot, pid)
            return
        slot.sign, suspect, slot.suspect = None, slot.suspect, None
        assert suspect is not None
        self._strays_before.setdefault(_identity(suspect), self._strays)
        self._give(slot, suspect)

    def _end_hung(self) -> None:
        """End actors that have been at one thing for longer than it may take, unless its end is there already."""
        now = time.monotonic()
        for slot in list(self._slots):
            if not slot.references or now - slot.since <= slot.limit:
                continue
            if ray.wait(slot.references[:1], timeout=0)[0]:
                continue
            if slot.pid:
                self._replace(slot, HungError(f"no answer within {slot.limit:.0f} s"))
            elif self._up:
                # Where no other is up, `_look` says so.
                self._bury(slot)
                message = f"actor {slot.index} did not start within {START_SECONDS:.0f} s: another is waited for"
                self._events.append(ExecutorEvent("actor_start_failed", message))

    def _replace(self, slot: _Slot, error: RayError) -> None:
        """Another actor in the slot's place; what the old one did not finish is run again, each task alone.

        Which of two tasks an actor died of cannot be told: the answer to the first may have died with it.
        """
        lost = [slot.suspect] if slot.suspect is not None else []
        tried = slot.tasks[0][1] if slot.alone and slot.tasks else None
        for reference, task in slot.tasks:
            result = outcome_if_there(reference, task)
            if result is not None:
                self._deliver(result)
            else:
                lost.append(task)
        if tried is None or tried not in lost:
            self._strays += not isinstance(error, MachineError)
        elif self._condemned(tried, error):
            lost.remove(tried)
        self._suspects.extend(lost)
        kind, _, verb = ending(error)
        what = f"{verb}: {reason(error)}; {len(lost)} tasks redone"
        self._events.append(ExecutorEvent(kind, f"actor {slot.index} (pid {slot.pid}) {what}"))
        slot.tasks = []
        self._bury(slot)
        self._begin(slot)

    def _condemned(self, task: Task, error: RayError) -> bool:
        """Count the end of an actor that had only this task; whether it is given up for it, with its result ready.

        Where actors die that no task explains, something else kills them, and a suspect gets as many tries more.
        """
        identity = _identity(task)
        self._tries[identity] = tries = self._tries.get(identity, 0) + 1
        excused = 0 if isinstance(error, MachineError) else self._strays - self._strays_before[identity]
        if tries < MAX_TRIES + min(excused, 2 * MAX_TRIES):
            return False
        _, subject, verb = ending(error)
        self._ready.append(TaskResult(task, error=given_up(f"{subject} {verb}", tries, reason(error))))
        return True

    def events(self) -> list[ExecutorEvent]:
        """What happened to actors since the last call."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Stop the actors, and Ray where this executor started it."""
        for slot in self._slots:
            if slot.actor is not None and not self._cluster.lost:
                _end(slot.actor)
        self._cluster.close()


def _identity(task: Task) -> tuple[str, int]:
    return task.key, task.start


def _end(actor: Any) -> None:
    # It may be gone already, and Ray with it.
    with suppress(RayError, RuntimeError, ValueError):
        ray.kill(actor)

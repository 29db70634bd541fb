"""Run tasks on Ray actors that hold the model, replacing actors that die or hang and redoing their work.

What a task's own code raises is the candidate's failure, unless it is one of the machine's (`tasks/faults.py`).
Whatever else Ray reports is the machine's: the actor is replaced and its tasks are run again, each alone. A task is
given up only when actors died of it that were seen alive just before and had nothing else to do. A task that is slow
for its kind is given to a second actor where one has nothing to do; the first result counts, the other is dropped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from fewstep.pipeline import stopping
from fewstep.pipeline.executors.base import MAX_TRIES, ExecutionSettings, ExecutorEvent, quarantined
from fewstep.pipeline.executors.broadcast import broadcast
from fewstep.pipeline.executors.pace import LEAST, Pace
from fewstep.pipeline.executors.ray_cluster import Need, RayCluster
from fewstep.pipeline.executors.ray_errors import (
    HungError,
    MachineError,
    ending,
    outcome,
    outcome_if_there,
    reason,
)
from fewstep.pipeline.executors.ray_metrics import RayMetrics
from fewstep.pipeline.executors.ray_pool import GRACE_SECONDS, LOOK_SECONDS, Given, Pool, Slot
from fewstep.pipeline.executors.ray_traces import last_words
from fewstep.tasks.faults import given_up
from fewstep.tasks.work import Task, TaskResult, WorkerSettings

# Two tasks an actor: the next one is already there when a result is on its way back.
DEPTH = 2


def _load(slot: Slot) -> int:
    return len(slot.tasks)


class RayExecutor:
    """Actors on this machine (`address` None) or on a running cluster, as many as it has room for."""

    def __init__(self, settings: WorkerSettings, execution: ExecutionSettings) -> None:
        settings = replace(settings, threads=settings.threads or execution.cpus)
        self._cluster = RayCluster(Need.of(execution, settings.device))
        self._pace = Pace(execution.timeout)
        self._tries: dict[tuple[str, int], int] = {}
        # Ends of actors that no task explained when a suspect was first run alone.
        self._strays_before: dict[tuple[str, int], int] = {}
        self._issued_again: set[tuple[str, int]] = set()
        self._ready: deque[TaskResult] = deque()
        self._waiting: deque[Task] = deque()
        self._suspects: deque[Task] = deque()
        self._seconds: dict[int, float] = {}
        self._pool: Pool | None = None
        try:
            self._cluster.connect(execution, settings.device)
            # Ray took SIGTERM: its own handler prints a trace of C++.
            stopping.watch()
            given = settings if execution.address is None else broadcast(settings)
            self._pool = Pool(given, self._cluster, execution)
            self._metrics = RayMetrics()
            self._await_first()
        except BaseException:
            self.close()
            raise

    @property
    def pool(self) -> Pool:
        """The actors."""
        assert self._pool is not None
        return self._pool

    @property
    def _slots(self) -> list[Slot]:
        return self.pool.slots

    def _await_first(self) -> None:
        """Wait until an actor is up, and a little for the others, which come up beside the work where they are late."""
        first = None
        while first is None or len(self.pool.up) < min(len(self._slots), max(1, self._cluster.room)):
            if first is None and self.pool.up:
                first = time.monotonic()
            if first is not None and time.monotonic() - first > GRACE_SECONDS:
                return
            self._step()

    # -- tasks ----------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Tasks that keep every actor busy; those whose actor is only hoped for do not count, but one always does."""
        return DEPTH * max(1, min(len(self._slots), max(self._cluster.room, len(self.pool.up))))

    @property
    def in_flight(self) -> int:
        """Tasks submitted whose results have not been delivered."""
        suspects = sum(slot.suspect is not None for slot in self._slots)
        given = len({id(each.task) for _, each in self._running()})
        return len(self._ready) + len(self._waiting) + len(self._suspects) + suspects + given

    def _running(self) -> Iterator[tuple[Slot, Given]]:
        """What actors have been given and is waited for, a task that two have twice."""
        return ((slot, given) for slot in self._slots for given in slot.tasks if not given.stale)

    @property
    def pids(self) -> list[int]:
        """Process ids of the actors, 0 for one that is starting."""
        return [slot.pid for slot in self._slots]

    def submit(self, task: Task) -> None:
        """Give a task to the least busy actor, or keep it until one has room."""
        self._metrics.submitted(task)
        self._waiting.append(task)
        self._hand_out()

    def _hand_out(self) -> None:
        for slot in list(self._slots):
            if self._suspects and slot.free and not slot.tasks:
                self._ask(slot, self._suspects.popleft())
        while self._waiting:
            takers = [slot for slot in self._slots if slot.free]
            if self._suspects and len(takers) == len(self.pool.up) and takers:
                # One gets nothing new until it is free for a suspect.
                takers.remove(min(takers, key=_load))
            takers = [slot for slot in takers if len(slot.tasks) < DEPTH]
            # Behind a task that is slow another would only wait.
            takers = [slot for slot in takers if not self._is_slow(slot)] or takers
            if not takers:
                return
            self._give(min(takers, key=_load), self._waiting.popleft())
        self._issue_again()

    def _issue_again(self) -> None:
        """Give actors without work what slow ones hold, once each; what waits behind a slow task has not begun."""
        idle = [slot for slot in self._slots if slot.free and not slot.tasks]
        if not idle or self._suspects:
            return
        behind = {id(slot) for slot in self._slots if self._is_slow(slot)}
        if not behind:
            return
        slow = [
            (slot, given)
            for slot, given in self._running()
            if id(slot) in behind and _identity(given.task) not in self._issued_again
        ]
        slow.sort(key=lambda pair: pair[0].since)
        for taker, (slot, given) in zip(idle, slow, strict=False):
            seconds = time.monotonic() - slot.since
            message = f"actor {slot.index} has been at a task for {seconds:.0f} s: actor {taker.index} tries it too"
            self.pool.events.append(ExecutorEvent("issued_again", message))
            self._issued_again.add(_identity(given.task))
            self._give(taker, given.task)

    def _is_slow(self, slot: Slot) -> bool:
        # A suspect that is run alone stays alone.
        return (
            slot.free
            and bool(slot.tasks)
            and time.monotonic() - slot.since > self._pace.slow(slot.tasks[0].task)
            and not ray.wait(slot.references[:1], timeout=0)[0]
        )

    def _ask(self, slot: Slot, suspect: Task) -> None:
        """Ask for a sign of life before a suspect is run: an actor that died before it did not die of it."""
        slot.alone, slot.suspect = True, suspect
        slot.since, slot.limit = time.monotonic(), LEAST
        try:
            slot.sign = slot.actor.pid.remote()
        except RayError as error:
            self._replace(slot, error)

    def _give(self, slot: Slot, task: Task) -> None:
        if not slot.tasks:
            self._clock(slot, task)
        given = Given(None, task)
        slot.tasks.append(given)
        try:
            given.reference = slot.actor.run.remote(task)
        except RayError as error:
            self._replace(slot, error)

    def _clock(self, slot: Slot, task: Task) -> None:
        slot.since, slot.limit = time.monotonic(), self._pace.limit(task)

    @property
    def ready(self) -> int:
        """Results that `next` gives without waiting."""
        return len(self._ready)

    def next(self) -> TaskResult:
        """Wait for the first result of any actor; an actor that dies or hangs is replaced on the way."""
        while not self._ready:
            self._step()
        result = self._ready.popleft()
        busy = sum(bool(slot.tasks) for slot in self._slots)
        self._metrics.delivered(result, len(self._waiting) + len(self._suspects), busy, len(self.pool.up))
        return result

    def _step(self) -> None:
        """Start what is due, hand out what waits, and take in what comes within LOOK_SECONDS."""
        self.pool.begin_due()
        self._hand_out()
        owners = {ref: slot for slot in self._slots for ref in slot.references}
        if owners:
            done, _ = ray.wait(list(owners), num_returns=1, timeout=LOOK_SECONDS)
            if done and len(owners) > 1:
                done, _ = ray.wait(list(owners), num_returns=len(owners), timeout=0)
            for reference in done:
                # What an actor's end took along is seen to.
                if reference in owners[reference].references:
                    self._collect(owners[reference], reference)
        else:
            time.sleep(min(LOOK_SECONDS, 0.1))
        self._end_hung()
        self.pool.look()
        self._hand_out()

    def _collect(self, slot: Slot, reference: Any) -> None:
        if reference == slot.sign:
            self._signed(slot)
            return
        given = next(given for given in slot.tasks if given.reference == reference)
        try:
            result = outcome(reference, given.task)
        except RayError as error:
            self._replace(slot, error)
            return
        slot.tasks.remove(given)
        self._seconds[slot.index] = self._seconds.get(slot.index, 0.0) + result.seconds
        slot.alone = slot.alone and bool(slot.tasks)
        if slot.tasks:
            self._clock(slot, slot.tasks[0].task)
        if not given.stale:
            self._deliver(given.task, result)

    def _deliver(self, task: Task, result: TaskResult) -> None:
        """Once: what another actor makes of the same task is dropped."""
        self._pace.note(task, result.seconds)
        self._issued_again.discard(_identity(task))
        for _, given in self._running():
            given.stale = given.task is task
        self._ready.append(result)

    def _signed(self, slot: Slot) -> None:
        """A sign of life came, or that there is none."""
        try:
            pid = int(ray.get(slot.sign))
        except RayError as error:
            if slot.pid:
                self._replace(slot, error)
            else:
                self.pool.stillborn(slot, error)
            return
        if not slot.pid:
            self.pool.came_up(slot, pid)
            return
        slot.sign, suspect, slot.suspect = None, slot.suspect, None
        assert suspect is not None
        self._strays_before.setdefault(_identity(suspect), self.pool.strays)
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
            else:
                self.pool.late_to_start(slot)

    def _replace(self, slot: Slot, error: RayError) -> None:
        """Another actor in the slot's place; what the old one did not finish is run again, each task alone.

        Which of two tasks an actor died of cannot be told: the answer to the first may have died with it.
        """
        lost = [slot.suspect] if slot.suspect is not None else []
        tried = slot.tasks[0].task if slot.alone and slot.tasks else None
        ended, slot.tasks = slot.tasks, []
        for given in ended:
            result = None if given.stale else outcome_if_there(given.reference, given.task)
            if result is not None:
                self._seconds[slot.index] = self._seconds.get(slot.index, 0.0) + result.seconds
                self._deliver(given.task, result)
            elif not given.stale and not any(given.task is other.task for _, other in self._running()):
                lost.append(given.task)
        if tried is None or tried not in lost:
            self.pool.strays += not isinstance(error, MachineError)
        elif self._condemned(slot, tried, error):
            lost.remove(tried)
        self._suspects.extend(lost)
        kind, _, verb = ending(error)
        what = f"{verb}: {reason(error)}; {len(lost)} tasks redone"
        self.pool.events.append(ExecutorEvent(kind, f"actor {slot.index} (pid {slot.pid}) {what}"))
        self.pool.bury(slot)
        self.pool.begin(slot)

    def _condemned(self, slot: Slot, task: Task, error: RayError) -> bool:
        """Count the end of an actor that had only this task; whether it is given up for it, with its result ready.

        Where actors die that no task explains, something else kills them, and a suspect gets as many tries more.
        """
        identity = _identity(task)
        self._tries[identity] = tries = self._tries.get(identity, 0) + 1
        excused = 0 if isinstance(error, MachineError) else self.pool.strays - self._strays_before[identity]
        if tries < MAX_TRIES + min(excused, 2 * MAX_TRIES):
            return False
        _, subject, verb = ending(error)
        result = TaskResult(task, error=given_up(f"{subject} {verb}", tries, reason(error)))
        self.pool.events.append(quarantined(result, tries, last_words(slot.actor, slot.pid, error)))
        self._ready.append(result)
        return True

    def busy(self) -> dict[str, float]:
        """Seconds that each actor has worked since the last call, by its number, those that had nothing to do too."""
        told = {slot.index: 0.0 for slot in self.pool.up} | self._seconds
        self._seconds = {}
        return {str(index): told[index] for index in sorted(told)}

    def events(self) -> list[ExecutorEvent]:
        """What happened to actors since the last call."""
        events, self.pool.events = self.pool.events, []
        return events

    def close(self) -> None:
        """Stop the actors, and Ray where this executor started it."""
        if self._pool is None:
            self._cluster.close()
        else:
            self._pool.close()


def _identity(task: Task) -> tuple[str, int]:
    return task.key, task.start

"""The actors of a search: as many as the cluster has room for as it grows and shrinks; new ones for those that end."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline.executors.base import ExecutionSettings, ExecutorEvent
from fewstep.pipeline.executors.ray_cluster import RayCluster
from fewstep.pipeline.executors.ray_errors import last_line, refusal
from fewstep.tasks.actors import WorkerActor
from fewstep.tasks.work import Task

# Actors that may end while they start, one after the other in every place, and the seconds that this must have lasted
# before a search that never had any gives up; one that had waits for START_SECONDS.
START_TRIES, GIVE_UP_SECONDS = 5, 120.0
# Seconds: for an actor to come up; for the others once one is up; without any node that has room, which one may join,
# and which an autoscaler may be asked for.
START_SECONDS, GRACE_SECONDS, LOST_SECONDS, SCALING_SECONDS = 300.0, 20.0, 300.0, 1200.0
# Between two looks at the actors, two at the cluster, and two starts in one place once START_TRIES have failed.
# Ray ends a process whose cluster's head is silent for 60 s: that is to be seen before.
LOOK_SECONDS, ASK_SECONDS, PAUSE_SECONDS = 2.0, 5.0, 10.0


@dataclass
class Given:
    """A task that an actor was given. `stale`: its result came from elsewhere, this one is dropped."""

    reference: Any
    task: Task
    stale: bool = False


@dataclass
class Slot:
    """A place for an actor. Without one it waits until `due`; `sign` is a sign of life that is waited for.

    `tasks` is what the actor was given, oldest first. `alone`: it gets one suspect, once its sign of life is there, and
    nothing else. `since` is when what it does now began, `limit` how many seconds that may take.
    """

    index: int
    actor: Any = None
    pid: int = 0
    sign: Any = None
    tasks: list[Given] = field(default_factory=list)
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
        return [given.reference for given in self.tasks] if self.sign is None else [self.sign]


class Pool:
    """Places for actors that are all set up alike; what happens to them is told to `events`."""

    def __init__(self, given: Any, cluster: RayCluster, execution: ExecutionSettings) -> None:
        self.cluster, self.events = cluster, list[ExecutorEvent]()
        self._given, self._asked = given, execution.workers
        self.slots: list[Slot] = []
        self._made = 0
        # Ends of actors that no task explains.
        self.strays = 0
        # When an actor was last up, when the cluster last answered, and how often it has not since.
        self._alive_at = self._asked_at = time.monotonic()
        self._silent = 0
        self._had_any = self._told_empty = False
        self.follow()
        self.events.clear()

    @property
    def up(self) -> list[Slot]:
        """Places whose actor can work."""
        return [slot for slot in self.slots if slot.pid]

    def new_actor(self) -> Any:
        """An actor where there is room for it, now or later."""
        need = self.cluster.need
        resources = {"num_cpus": need.cpus, **({"num_gpus": need.gpus} if need.gpus else {})}
        return WorkerActor.options(**resources).remote(self._given)  # type: ignore[attr-defined]

    # -- as many as there is room for -----------------------------------------------------------------

    def _wanted(self) -> int:
        """Where an autoscaler listens, actors that wait for room are how more is asked for: as many as are up."""
        room = self.cluster.room
        if not self.cluster.scales:
            return min(room, self._asked or room)
        return self._asked or room + max(1, len(self.up))

    def follow(self) -> None:
        """Places for room that has come; none any more for room that has gone, once their actors have."""
        wanted, before = self._wanted(), len(self.slots)
        while len(self.slots) < wanted:
            self.slots.append(Slot(self._made))
            self._made += 1
        for slot in reversed(list(self.slots)):
            if len(self.slots) > wanted and not slot.pid and slot.suspect is None and not slot.tasks:
                self.bury(slot)
                self.slots.remove(slot)
        if len(self.slots) != before:
            room = f"room for {self.cluster.room} workers now, {len(self.slots)} are up or on their way"
            self._tell("pool_grew" if len(self.slots) > before else "pool_shrank", room)

    # -- actors come up -------------------------------------------------------------------------------

    def begin_due(self) -> None:
        """Start the actors whose time has come."""
        now = time.monotonic()
        for slot in list(self.slots):
            if slot.actor is None and slot.due <= now:
                self.begin(slot)

    def begin(self, slot: Slot) -> None:
        """Start an actor; when it is up, `came_up`."""
        slot.since, slot.limit = time.monotonic(), START_SECONDS
        try:
            slot.actor = self.new_actor()
            slot.sign = slot.actor.pid.remote()
        except RayError as error:
            self.stillborn(slot, error)

    def came_up(self, slot: Slot, pid: int) -> None:
        """An actor can work."""
        slot.sign, slot.pid, slot.failed_starts = None, pid, 0
        self._had_any, self._told_empty = True, False

    def stillborn(self, slot: Slot, error: RayError) -> None:
        """An actor ended while it started: another, at once at first, and later now and then where others are up."""
        refused = refusal(error)
        self.bury(slot)
        if refused:
            problem = f"an actor could not start: {refused}"
            if not self.up:
                raise ConfigurationError(problem)
            self.slots.remove(slot)
            self._tell("actor_lost", f"{problem}; none in the place of actor {slot.index}")
            return
        self.strays += 1
        slot.failed_starts += 1
        why = f"{type(error).__name__}: {last_line(error)}"
        self._tell("actor_start_failed", f"actor {slot.index} ended while it started (try {slot.failed_starts}): {why}")
        if slot.failed_starts < START_TRIES:
            return
        slot.due = time.monotonic() + PAUSE_SECONDS
        failing = all(other.failed_starts >= START_TRIES for other in self.slots)
        patience = START_SECONDS if self._had_any else GIVE_UP_SECONDS
        if failing and time.monotonic() - self._alive_at > patience:
            raise ConfigurationError(
                f"no Ray actor came up in {slot.failed_starts} tries ({why}): free memory or lower --workers, then "
                "go on with --resume"
            )

    def late_to_start(self, slot: Slot) -> None:
        """An actor did not come up in time: another is waited for, where any other is up."""
        if self.up and not self._waits_for_room(slot):
            # Where no other is up, `look` says so.
            self.bury(slot)
            self._tell(
                "actor_start_failed",
                f"actor {slot.index} did not start within {START_SECONDS:.0f} s: another is waited for",
            )

    def _waits_for_room(self, slot: Slot) -> bool:
        return self.cluster.scales and len(self.up) >= self.cluster.room and slot.actor is not None

    def bury(self, slot: Slot) -> None:
        """End a place's actor, if it has one."""
        if slot.actor is not None:
            _end(slot.actor)
        slot.actor, slot.sign, slot.pid, slot.alone, slot.suspect = None, None, 0, False, None

    # -- the cluster ----------------------------------------------------------------------------------

    def look(self) -> None:
        """Follow the cluster; EvaluationError where it is lost, or no actor comes up for too long."""
        now = time.monotonic()
        if self.up:
            self._alive_at = now
        idle = now - self._alive_at
        if now - self._asked_at > ASK_SECONDS:
            trouble = self.cluster.trouble(5 * LOOK_SECONDS)
            if trouble is None:
                self._silent += 1
            else:
                self._asked_at, self._silent = now, 0
            if trouble or self._silent > 1:
                self._lost(trouble or "does not answer: its head is gone")
            if not self._silent:
                self.follow()
        patience = SCALING_SECONDS if self.cluster.scales else LOST_SECONDS
        if not self.cluster.room and not self._told_empty and idle > ASK_SECONDS:
            self._told_empty = True
            self._tell("pool_empty", f"no node is left that holds a worker: one is waited for, {patience:.0f} s")
        if idle > patience and not self.cluster.room:
            self._lost("has no node left that holds a worker")
        longest = max(START_SECONDS, patience)
        if idle > longest:
            raise EvaluationError(
                f"no Ray actor started within {longest:.0f} s: the cluster has too few free CPUs or GPUs; free "
                "them or lower --workers, then go on with --resume"
            )

    def _lost(self, trouble: str) -> None:
        self.cluster.leave()
        raise EvaluationError(
            f"the Ray cluster {trouble}; what is finished is on disk: when it is there again, go on with --resume"
        )

    def _tell(self, kind: str, message: str) -> None:
        self.events.append(ExecutorEvent(kind, message))

    def close(self) -> None:
        """Stop the actors, and Ray where it was started here."""
        for slot in self.slots:
            if slot.actor is not None and not self.cluster.lost:
                _end(slot.actor)
        self.cluster.close()


def _end(actor: Any) -> None:
    # It may be gone already, and Ray with it.
    with suppress(RayError, RuntimeError, ValueError):
        ray.kill(actor)

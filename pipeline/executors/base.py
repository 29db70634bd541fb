"""The one interface through which the search runs tasks, wherever they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fewstep.tasks.worker import Task, TaskResult

MAX_TRIES = 3


@dataclass(frozen=True)
class ExecutorEvent:
    """Something that happened to the machinery and belongs in the record, such as an actor's death."""

    kind: str
    message: str


class Executor(Protocol):
    """Takes tasks, gives back results in the order in which they finish.

    A task may run more than once (a worker died); its result is delivered once.
    """

    @property
    def capacity(self) -> int:
        """How many tasks to keep in flight so that no worker waits."""

    @property
    def in_flight(self) -> int:
        """Tasks submitted whose results have not been delivered."""

    def submit(self, task: Task) -> None:
        """Queue a task."""

    def next(self) -> TaskResult:
        """Wait for the next result. Must not be called with nothing in flight."""

    def events(self) -> list[ExecutorEvent]:
        """What happened since the last call."""

    def close(self) -> None:
        """Release workers."""

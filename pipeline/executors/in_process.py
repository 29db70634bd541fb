"""Run tasks in this process, one at a time and in order: deterministic, and needs no cluster."""

from __future__ import annotations

from collections import deque

from fewstep.pipeline.executors.base import ExecutionSettings, ExecutorEvent
from fewstep.tasks.work import Task, TaskResult, WorkerSettings
from fewstep.tasks.worker import Worker


class InProcessExecutor:
    """One worker in the driver's own process."""

    capacity = 1

    def __init__(self, settings: WorkerSettings, execution: ExecutionSettings | None = None) -> None:
        self._worker = Worker(settings)
        self._queue: deque[Task] = deque()

    @property
    def in_flight(self) -> int:
        """Tasks waiting to run."""
        return len(self._queue)

    def submit(self, task: Task) -> None:
        """Queue a task; it runs when its result is asked for."""
        self._queue.append(task)

    def next(self) -> TaskResult:
        """Run the oldest task."""
        return self._worker.run(self._queue.popleft())

    def events(self) -> list[ExecutorEvent]:
        """Nothing happens to a process that is this one."""
        return []

    def close(self) -> None:
        """Nothing to release."""

"""Run tasks in this process, one at a time and in order: deterministic, and needs no cluster."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from fewstep.errors import ConfigurationError, FewstepError
from fewstep.pipeline.executors.base import MAX_TRIES, ExecutionSettings, ExecutorEvent, quarantined
from fewstep.tasks.faults import given_up, told
from fewstep.tasks.work import Task, TaskResult, WorkerSettings
from fewstep.tasks.worker import Worker


class InProcessExecutor:
    """One worker in the driver's own process."""

    capacity = 1

    def __init__(self, settings: WorkerSettings, execution: ExecutionSettings | None = None) -> None:
        try:
            self._worker = Worker(settings)
        except FewstepError:
            raise
        except Exception as error:
            raise ConfigurationError(f"the worker could not start: {told(error)}") from error
        self._queue: deque[Task] = deque()
        self._events: list[ExecutorEvent] = []

    @property
    def in_flight(self) -> int:
        """Tasks waiting to run."""
        return len(self._queue)

    def submit(self, task: Task) -> None:
        """Queue a task; it runs when its result is asked for."""
        self._queue.append(task)

    def next(self) -> TaskResult:
        """Run the oldest task, again where the machine failed at it, MAX_TRIES times at most."""
        task = self._queue.popleft()
        for tries in range(1, MAX_TRIES + 1):
            result = self._worker.run(task)
            if not result.transient:
                break
            self._events.append(ExecutorEvent("task_failed", f"{result.error} (try {tries} of {MAX_TRIES})"))
        else:
            given = replace(result, error=given_up("machine failed", MAX_TRIES, result.error))
            self._events.append(quarantined(given, MAX_TRIES, result.trace))
            return given
        return result

    def events(self) -> list[ExecutorEvent]:
        """What the machine failed at since the last call."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Nothing to release."""

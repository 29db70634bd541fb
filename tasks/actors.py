"""The one file that knows Ray: an actor that holds a worker."""

from __future__ import annotations

import os

import ray

from fewstep.tasks.work import Task, TaskResult, WorkerSettings
from fewstep.tasks.worker import Worker


@ray.remote(max_restarts=0, max_task_retries=0)
class WorkerActor:
    """A `Worker` in a process of its own. Restarts are the driver's business: it must see and record them."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._worker = Worker(settings)

    def run(self, task: Task) -> TaskResult:
        """Run a task."""
        return self._worker.run(task)

    def pid(self) -> int:
        """Process id, for the record of events."""
        return os.getpid()

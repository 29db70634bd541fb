"""An executor: a pool of processes on this machine, without a cluster."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context

from fewstep.pipeline.executors.base import ExecutionSettings, ExecutorEvent
from fewstep.tasks.work import Task, TaskResult, WorkerSettings
from fewstep.tasks.worker import Worker

_worker: list[Worker] = []


def _start(settings: WorkerSettings) -> None:
    """Set up this process's worker."""
    _worker.append(Worker(settings))


def _run(task: Task) -> TaskResult:
    return _worker[0].run(task)


class ProcessExecutor:
    """What `Executor` asks for; results come in the order in which they finish."""

    def __init__(self, settings: WorkerSettings, execution: ExecutionSettings) -> None:
        self._workers = execution.workers or 2
        # Spawned: a fork of a process that has used torch's threads may hang.
        self._pool = ProcessPoolExecutor(self._workers, get_context("spawn"), _start, (settings,))
        self._running: set[Future[TaskResult]] = set()
        self._done: list[TaskResult] = []

    @property
    def capacity(self) -> int:
        """One task a worker, and one that waits."""
        return 2 * self._workers

    @property
    def in_flight(self) -> int:
        """Submitted, and not yet delivered."""
        return len(self._running) + len(self._done)

    def submit(self, task: Task) -> None:
        """Queue a task."""
        self._running.add(self._pool.submit(_run, task))

    def next(self) -> TaskResult:
        """Wait for the next result."""
        if not self._done:
            done, self._running = wait(self._running, return_when=FIRST_COMPLETED)
            self._done += [future.result() for future in done]
        return self._done.pop(0)

    def events(self) -> list[ExecutorEvent]:
        """A process that dies ends the pool: nothing to tell."""
        return []

    def close(self) -> None:
        """Stop the pool."""
        self._pool.shutdown(cancel_futures=True)

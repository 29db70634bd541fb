"""Run tasks on workers of Dask: processes of this machine, or those of a cluster (`--address tcp://HOST:8786`).

No more tasks are handed to Dask than there are workers, so that a worker that dies is blamed on what it did alone. The
task is handed in again, as is one that the machine failed at, MAX_TRIES times in all. Workers read the model's files
themselves: a cluster needs a disk that all its machines see.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from dataclasses import replace
from itertools import count
from queue import Empty, Queue
from threading import Lock
from typing import Any, cast

from fewstep.errors import ConfigurationError, EvaluationError, FewstepError
from fewstep.pipeline.executors.base import MAX_TRIES, ExecutionSettings, ExecutorEvent, quarantined
from fewstep.tasks.faults import given_up, told
from fewstep.tasks.work import Task, TaskResult, WorkerSettings
from fewstep.tasks.worker import Worker

try:
    import dask
    import distributed
    from distributed.scheduler import KilledWorker
except ImportError:
    raise ConfigurationError("workers of Dask need: pip install 'fewstep[dask]'") from None

# A task a worker, and one that waits here.
DEPTH = 2
# Seconds: for a scheduler to answer, for a worker to come up, without any, and between two looks at the cluster.
CONNECT_SECONDS, START_SECONDS, LOST_SECONDS, LOOK_SECONDS = 30.0, 300.0, 300.0, 2.0
# Of schedulers that are this executor's own.
CONFIG = {
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.memory.pause": False,
}

_alone, _workers = Lock(), dict[WorkerSettings, Worker]()


def set_up(settings: WorkerSettings) -> Worker:
    """This process's worker for these settings, made when it is first asked for."""
    with _alone:
        if settings not in _workers:
            _workers.clear()
            worker = Worker(settings)
            worker.warm_up()
            _workers[settings] = worker
        return _workers[settings]


def run(settings: WorkerSettings, task: Task) -> tuple[str, TaskResult]:
    """A task's result, and whose it is; one at a time, whatever Dask's worker has of threads."""
    worker = set_up(settings)
    with _alone:
        return str(distributed.get_worker().name), worker.run(task)


def dask_setup(worker: Any) -> None:
    """What Dask calls in its workers of this machine: Ctrl-C is meant for the search, which ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def process(settings: WorkerSettings) -> int:
    """A worker's process, once it can work."""
    set_up(settings)
    return os.getpid()


class DaskExecutor:
    """Workers of Dask, however many there are; `--workers` is how many tasks run at once on a cluster's."""

    def __init__(self, settings: WorkerSettings, execution: ExecutionSettings) -> None:
        self._settings = replace(settings, threads=settings.threads or execution.cpus)
        self._most = execution.workers if execution.address is not None else 0
        self._numbers, self._done = count(), Queue[Any]()
        # By Dask's key: what waits for a result, and how often it was handed in.
        self._waiting: deque[tuple[Task, int]] = deque()
        self._tasks: dict[str, tuple[Task, int]] = {}
        self._futures: dict[str, Any] = {}
        self._events: list[ExecutorEvent] = []
        self._seconds: dict[str, float] = {}
        self._names: set[str] = set()
        self._looked = self._alive = time.monotonic()
        self._cluster: Any = None
        self._client: Any = None
        try:
            with dask.config.set(CONFIG):
                self._cluster = self.cluster(execution)
                self._client = self._connected(execution.address)
            self._await_first()
        except BaseException:
            self.close()
            raise

    def cluster(self, execution: ExecutionSettings) -> Any:
        """A cluster of this executor's own; None where one is there."""
        if execution.address is not None:
            return None
        if execution.device.startswith("cuda"):
            raise ConfigurationError(
                f"--device {execution.device}: Dask's workers of one machine would share its GPUs: start a cluster "
                "with dask-cuda and give its --address, or --executor ray"
            )
        workers = execution.workers or max(1, len(os.sched_getaffinity(0)) // execution.cpus)
        made: Any = distributed.LocalCluster  # untyped
        return made(
            n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0",
            memory_limit=None, silence_logs="CRITICAL", preload=__name__,
        )  # fmt: skip

    def _connected(self, address: str | None) -> Any:
        where = self._cluster if address is None else address
        try:
            made: Any = distributed.Client  # untyped
            return made(where, set_as_default=False, timeout=CONNECT_SECONDS)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"no scheduler of Dask at {address}: {told(error)}") from None

    def _await_first(self) -> None:
        """Wait until a worker can work; ConfigurationError where one cannot be set up."""
        first = self._client.submit(process, self._settings, pure=False)
        end = time.monotonic() + START_SECONDS
        while not first.done():
            self.look()
            if time.monotonic() > end:
                raise ConfigurationError(f"no worker of Dask came up within {START_SECONDS:.0f} s: start some")
            time.sleep(0.05)
        error = first.exception()
        if isinstance(error, FewstepError):
            raise error
        if error is not None:
            raise ConfigurationError(f"a worker of Dask could not start: {told(error)}") from error

    # -- tasks ----------------------------------------------------------------------------------------

    @property
    def workers(self) -> int:
        """How many there are, as far as they may be used."""
        return min(len(self._names), self._most or len(self._names))

    @property
    def capacity(self) -> int:
        """Tasks that keep every worker busy; one, where there is none."""
        return DEPTH * max(1, self.workers)

    @property
    def in_flight(self) -> int:
        """Tasks submitted whose results have not been delivered."""
        return len(self._waiting) + len(self._tasks)

    @property
    def ready(self) -> int:
        """Results that have come, and ends of workers."""
        return self._done.qsize()

    def submit(self, task: Task) -> None:
        """Hand a task to the cluster, or keep it until a worker is free."""
        self._waiting.append((task, 1))
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and len(self._tasks) < max(1, self.workers):
            task, tries = self._waiting.popleft()
            key = f"fewstep-{task.key}-{task.start}-{next(self._numbers)}"
            self._tasks[key] = task, tries
            self._futures[key] = future = self._client.submit(run, self._settings, task, key=key, pure=False)
            future.add_done_callback(self._done.put)

    def next(self) -> TaskResult:
        """Wait for the first result."""
        while True:
            self.look()
            self._hand_out()
            try:
                future = self._done.get(timeout=LOOK_SECONDS)
            except Empty:
                continue
            result = self._result(future)
            self._hand_out()
            if result is not None:
                return result

    def _result(self, future: Any) -> TaskResult | None:
        """What a task gave; None where it is handed in again."""
        task, tries = self._tasks.pop(future.key)
        del self._futures[future.key]
        if future.status == "finished":
            name, result = cast(tuple[str, TaskResult], future.result())
            self._seconds[name] = self._seconds.get(name, 0.0) + result.seconds
            if not result.transient:
                return result
            subject, why, trace = "machine failed", result.error, result.trace
        else:
            error = None if future.status == "cancelled" else future.exception()
            self._check()
            dead = isinstance(error, KilledWorker)
            subject = "worker died" if dead else "machine failed"
            why = type(error).__name__ if dead else "Dask lost it" if error is None else told(error)
            trace = ""
        self._events.append(ExecutorEvent("task_failed", f"{subject}: {why} (try {tries} of {MAX_TRIES})"))
        if tries < MAX_TRIES:
            self._waiting.append((task, tries + 1))
            return None
        given = TaskResult(task, error=given_up(subject, tries, why))
        self._events.append(quarantined(given, tries, trace))
        return given

    # -- the cluster ----------------------------------------------------------------------------------

    def look(self) -> None:
        """Follow the cluster, now and then; EvaluationError where it is lost, or has no worker for too long."""
        now = time.monotonic()
        if self._names and now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        self._check()
        try:
            there = self._client.scheduler_info(n_workers=-1).get("workers")
        except (OSError, RuntimeError):
            there = None
        if there is None:
            # The scheduler does not answer: the client tries for a while, and ends where it does not come back.
            self._check()
            return
        names = {str(worker["name"]) for worker in there.values()}
        for kind, changed in (("worker_joined", names - self._names), ("worker_left", self._names - names)):
            if changed:
                what = f"{', '.join(sorted(changed)[:8])}; {len(names)} workers now"
                self._events.append(ExecutorEvent(kind, what))
        self._names = names
        self.follow()
        if names:
            self._alive = now
        elif now - self._alive > LOST_SECONDS:
            raise EvaluationError(f"no worker of Dask for {LOST_SECONDS:.0f} s: start some, then go on with --resume")

    def follow(self) -> None:
        """What else is to be seen to, each time that the cluster is looked at."""

    def _check(self) -> None:
        if self._client.status not in ("running", "connecting"):
            raise EvaluationError(
                "the Dask cluster is lost; what is finished is on disk: when it is there again, go on with --resume"
            )

    def busy(self) -> dict[str, float]:
        """Seconds that each worker has worked since the last call."""
        told_of = dict.fromkeys(self._names, 0.0) | self._seconds
        self._seconds = {}
        return dict(sorted(told_of.items()))

    def events(self) -> list[ExecutorEvent]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Leave the cluster; end it where it is this executor's own."""
        for each in (self._client, self._cluster):
            if each is not None:
                each.close()

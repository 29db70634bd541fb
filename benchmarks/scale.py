"""How many workers one driver keeps busy: evaluations are timed sleeps, everything else is real.

    python -m benchmarks.scale [--workers 10 50 200] [--seconds 2.0] >> docs/results/scale.jsonl

The executor, Ray's calls, the results (moments of 250 images, as a worker made them once), the evaluator and the
durable writes are those of a search; workers are coroutines of a few processes, since 200 processes do not fit a small
machine. One line a number of workers: `ours` is evaluations a second, `theirs` what so many sleepers could do with a
driver that costs nothing. `gpus_at_most` is the projection: how many workers whose evaluations take `of_seconds` the
driver feeds before its one thread is busy all the time, by its CPU time a record here.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
import time
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import psutil
import ray

from benchmarks._line import emit
from benchmarks.reliability import IMAGES, MODEL
from fewstep.pipeline.evaluator import Evaluator
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.executors.ray import RayExecutor
from fewstep.pipeline.executors.ray_pool import Pool
from fewstep.pipeline.loop import Driver, evaluate_all
from fewstep.pipeline.trial import Candidate, Rung
from fewstep.search_spaces.point import as_point
from fewstep.search_spaces.schedule.space import ScheduleSpace
from fewstep.storage.store import Store
from fewstep.tasks.models.files import find_model
from fewstep.tasks.work import Subject, Task, TaskResult, WorkerSettings
from fewstep.tasks.worker import Worker

HOSTS, ROUNDS, MOST = 2, 15, 2000
OF_SECONDS = (1, 5, 20, 60)


@ray.remote(num_cpus=0, max_restarts=0, max_concurrency=1000)
class Sleepers:
    """Workers that answer with the same result after so many seconds; each does one task at a time."""

    def __init__(self, answer: TaskResult, seconds: float) -> None:
        self.answer, self.seconds = answer, seconds
        self.turns: dict[int, asyncio.Lock] = {}

    async def run(self, worker: int, task: Task) -> TaskResult:
        """A task of one of them."""
        async with self.turns.setdefault(worker, asyncio.Lock()):
            await asyncio.sleep(self.seconds)
        return replace(self.answer, task=task, seconds=self.seconds)

    async def pid(self) -> int:
        """Process id."""
        return os.getpid()


def sleeper(host: Any, number: int) -> Any:
    """One worker of a host, as the executor calls an actor."""
    run = SimpleNamespace(remote=lambda task: host.run.remote(number, task))
    return SimpleNamespace(run=run, pid=host.pid)


def measure(workers: int, seconds: float, answer: TaskResult, candidates: list[Candidate]) -> dict[str, float]:
    """Evaluations a second of so many sleepers, and the driver's CPU seconds, between the first and the last result."""
    hosts = [Sleepers.remote(answer, seconds) for _ in range(HOSTS)]  # type: ignore[attr-defined]
    numbers = count()
    Pool.new_actor = lambda self: sleeper(hosts[(n := next(numbers)) % HOSTS], n)  # type: ignore[method-assign]
    rung, times, spent = Rung("report", "frechet", IMAGES, 0), list[float](), list[float]()

    def note(record: Any) -> None:
        times.append(time.perf_counter())
        spent.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        executor = RayExecutor(WorkerSettings(Subject(MODEL)), ExecutionSettings(executor="ray", workers=workers))
        driver = Driver(Evaluator("scale", Subject(MODEL), store), executor, store, on_record=note)
        before = psutil.Process().memory_info().rss
        records = evaluate_all([(candidate, rung) for candidate in candidates], driver)
        grown = psutil.Process().memory_info().rss - before
        executor.close()
    for host in hosts:
        ray.kill(host)
    assert len({record.key for record in records}) == len(candidates)
    assert {record.status for record in records} == {"complete"}
    # The first round begins together; in the last one the workers run dry.
    first, last = workers, len(times) - workers
    wall, cpu = times[last] - times[first], spent[last] - spent[first]
    return {"rate": (last - first) / wall, "cpu_a_record": cpu / (last - first), "share": cpu / wall, "grown": grown}


def main() -> None:
    """One line for each number of workers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[10, 50, 200])
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    files, rng = find_model(MODEL), random.Random(0)
    space = ScheduleSpace(files.noise.lambda_start, files.noise.lambda_end, (5,))
    most = min(MOST, ROUNDS * max(given.workers))
    candidates = [Candidate(i, as_point(space.point(space.random(5, rng))), "random") for i in range(most)]
    task = Task("k", "frechet", candidates[0].point.to_json(), 0, 0, IMAGES)
    answer = Worker(WorkerSettings(Subject(MODEL))).run(task)
    assert not answer.error
    ray.init("local", num_cpus=max(given.workers), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for workers in given.workers:
        found = measure(workers, given.seconds, answer, candidates[: min(most, ROUNDS * workers)])
        conditions = {
            "workers": workers,
            "evaluation_seconds": given.seconds,
            "evaluations": min(most, ROUNDS * workers),
            "driver_cpu_share": round(found["share"], 4),
            "driver_cpu_ms_a_record": round(1000 * found["cpu_a_record"], 2),
            "driver_memory_grown_mb": round(found["grown"] / 1e6, 1),
            "gpus_at_most": {f"{s} s": int(s / found["cpu_a_record"]) for s in OF_SECONDS},
            "share_of_1000_gpus": {f"{s} s": round(1000 * found["cpu_a_record"] / s, 3) for s in OF_SECONDS},
        }
        emit(
            "scale", "a driver that costs nothing", "evaluations/s", found["rate"], workers / given.seconds, conditions
        )
    ray.shutdown()


if __name__ == "__main__":
    main()

"""What the driver itself costs: searches whose evaluations take no time, or a set time, and no model.

    python -m benchmarks.driver [--records 100000] [--sampler s3] [--space schedule] [--at 200,1000,10000,100000]
    python -m benchmarks.driver --count              # in function calls a record, whatever else the machine does
    python -m benchmarks.driver --workers 10,50,200 [--seconds 1.0] [--records 5000]

The first form runs one search of --records records; everything is the real thing (proposals, rungs, scores, tables on
disk) but the executor, which answers at once with moments that follow from the point. Its line says the CPU time a
record, as a mean over the records about each number of --at: `ratio` is the last over the first. What is
left behind is then replayed. The second form sets evaluations of --seconds, and says how many results a second so many
workers make, against so many workers' worth, and the driver's share of its core. Memory is resident, in MiB.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import resource
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from benchmarks._line import emit
from fewstep.pipeline.evaluator import Evaluator
from fewstep.pipeline.executors.base import ExecutorEvent
from fewstep.pipeline.loop import Driver, search
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.metrics.metric import Setting
from fewstep.tasks.metrics.moments import Moments
from fewstep.tasks.work import GROUP, Part, Subject, Task, TaskResult

MODEL = "digits-ddpm"
# Records over which function calls are counted.
WINDOW = 200


class SimulatedExecutor:
    """Evaluations of a set length, on any number of workers: nothing is sampled, values follow from the point."""

    def __init__(self, subject: Subject, workers: int = 1, seconds: float = 0.0) -> None:
        reference, _ = Setting(subject, subject.files).reference
        self._mean, self._covariance = reference.mean, reference.covariance
        self._spread = np.sqrt(np.diag(self._covariance))
        self.capacity = workers + workers // 2 if seconds else 1
        self._workers, self._seconds = workers, seconds
        self._free = [0.0] * workers
        self._due: list[tuple[float, int, Task]] = []
        self._count = 0

    @property
    def in_flight(self) -> int:
        """Tasks whose results were not asked for."""
        return len(self._due)

    def submit(self, task: Task) -> None:
        """A task goes to the worker that is free first."""
        begins = max(heapq.heappop(self._free), time.perf_counter() if self._seconds else 0.0)
        ends = begins + self._seconds
        heapq.heappush(self._free, ends)
        self._count += 1
        heapq.heappush(self._due, (ends, self._count, task))

    def next(self) -> TaskResult:
        """The result of the task that ends first."""
        ends, _, task = heapq.heappop(self._due)
        if self._seconds:
            time.sleep(max(0.0, ends - time.perf_counter()))
        digest = hashlib.sha256(task.point.encode()).digest()
        away, size, cost = (int.from_bytes(digest[i : i + 4], "big") / 2**32 for i in (0, 4, 8))
        parts = [
            self._part(task, start, min(GROUP, task.start + task.count - start), 0.1 + away)
            for start in range(task.start, task.start + task.count, GROUP)
        ]
        figures = {"size_bytes": 1e5 * (1 + size), "bit_operations_a_call": 1e8 * (1 + cost)}
        return TaskResult(task, tuple(parts), figures, denoiser_calls=task.count, seconds=self._seconds)

    def _part(self, task: Task, start: int, count: int, away: float) -> Part:
        if task.metric == "distance":
            return Part(start, count, values=dict.fromkeys(("pixel", "feature"), np.full(count, away)))
        scatter = self._covariance * (count - 1) * (1 + 0.01 * away)
        return Part(start, count, Moments(count, self._mean + away * self._spread, scatter))

    def events(self) -> list[ExecutorEvent]:
        """Nothing happens to it."""
        return []

    def close(self) -> None:
        """Nothing to release."""


class Enough(Exception):  # noqa: N818
    """So many records were asked for."""


class Meter:
    """CPU seconds and MiB as records come in."""

    def __init__(self, most: int, counted_at: tuple[int, ...] = ()) -> None:
        self.most, self.cpu, self.memory = most, [time.process_time()], [resident()]
        self._counted_at, self._calls = counted_at, 0
        self.calls: dict[int, float] = {}

    def __call__(self, record: EvaluationRecord) -> None:
        """Note a record; Enough where it is the last one."""
        self.cpu.append(time.process_time())
        count = len(self.cpu) - 1
        if count + WINDOW in self._counted_at:
            self._calls = 0
            sys.setprofile(self._count)
        if count in self._counted_at:
            sys.setprofile(None)
            self.calls[count] = round(self._calls / WINDOW, 1)
        if count % 100 == 0:
            self.memory.append(resident())
        if count >= self.most:
            raise Enough

    def _count(self, frame: object, event: str, argument: object) -> None:
        self._calls += event in ("call", "c_call")

    def milliseconds(self, at: int, window: int) -> float:
        """CPU time a record, a mean over `window` records about the number `at`."""
        last = min(len(self.cpu) - 1, at + window // 2)
        first = max(0, last - window)
        return 1e3 * (self.cpu[last] - self.cpu[first]) / (last - first)


def resident() -> float:
    """Memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def settings(a: argparse.Namespace) -> SearchSettings:
    """A search with a budget that its records never spend."""
    space = {} if a.space == "schedule" else {"space": a.space}
    screen = {"screen": "frechet"} if a.space == "schedule" else {}
    return SearchSettings.build(
        model=MODEL,
        study="driver",
        nfes=(4, 5, 6),
        sampler=a.sampler,
        surrogate=a.surrogate,
        budget=10**9,
        refine=0.0,
        # Few presets: what is measured is the search after them.
        grids=("karras",),
        random_trials=8,
        paired_images=0,
        look_images=GROUP,
        frechet_images=4 * GROUP,
        **screen,
        **space,
    )


def run(a: argparse.Namespace, root: Path, workers: int = 1, seconds: float = 0.0) -> tuple[Meter, Driver, float]:
    """One search of so many records in a folder: its meter, its driver and the seconds that it took."""
    study = Study(root, settings(a))
    evaluator: Evaluator = study.evaluator()
    meter = Meter(a.records, tuple(map(int, a.at.split(","))) if a.count else ())
    driver = Driver(evaluator, SimulatedExecutor(study.problem.subject, workers, seconds), study.store, on_record=meter)
    begun = time.perf_counter()
    state = study.state(driver)
    with suppress(Enough):
        search(state, driver)
    return meter, driver, time.perf_counter() - begun


def measure_cost(a: argparse.Namespace) -> None:
    """CPU time a record as a search grows, its memory, and what replaying it takes."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        meter = run(a, root)[0]
        at = [n for n in map(int, a.at.split(",")) if n <= len(meter.cpu) - 1]
        each = {n: meter.milliseconds(n, max(100, min(n // 5, 2000))) for n in at}
        whole = {n: 1e3 * (meter.cpu[n] - meter.cpu[0]) / n for n in at}
        begun, wall = time.process_time(), time.perf_counter()
        study = Study(root, settings(a))
        replayed = study.state()
        cpu, seconds = time.process_time() - begun, time.perf_counter() - wall
        files = {table: len(list((root / "tables" / table).glob("*.parquet"))) for table in ("evaluations", "moments")}
    conditions = {
        "records": len(meter.cpu) - 1,
        "trials": len(replayed.trials),
        "sampler": a.sampler,
        "surrogate": a.surrogate,
        "space": a.space,
        "cpu_ms_a_record": {n: round(v, 3) for n, v in each.items()},
        "cpu_ms_a_record_until": {n: round(v, 3) for n, v in whole.items()},
        "calls_a_record": meter.calls,
        "replay_seconds": round(seconds, 2),
        "replay_cpu_seconds": round(cpu, 2),
        "memory_mib": {100 * i: round(m, 1) for i, m in enumerate(meter.memory) if 100 * i in (0, 1000, *at)},
        "files": files,
    }
    if a.count:
        emit(
            "driver/calls",
            f"itself at {at[0]} records",
            "calls/record",
            *(meter.calls[n] for n in (at[-1], at[0])),
            conditions,
        )
        return
    emit("driver", f"itself at {at[0]} records", "CPU ms/record", each[at[-1]], each[at[0]], conditions)


def measure_workers(a: argparse.Namespace) -> None:
    """Results a second of so many workers, and the driver's share of a core."""
    for workers in map(int, a.workers.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            meter, _, seconds = run(a, Path(folder), workers, a.seconds)
        count = len(meter.cpu) - 1
        conditions = {
            "workers": workers,
            "seconds_an_evaluation": a.seconds,
            "records": count,
            "sampler": a.sampler,
            "cpu_share": round((meter.cpu[-1] - meter.cpu[0]) / seconds, 3),
            "cpu_ms_a_record": round(1e3 * (meter.cpu[-1] - meter.cpu[0]) / count, 3),
        }
        emit("driver/workers", "no driver", "evaluations/s", count / seconds, workers / a.seconds, conditions)


def main() -> None:
    """One line of costs, or one a number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--at", default="200,1000,10000,100000")
    parser.add_argument("--count", action="store_true", help="count function calls, which no load changes")
    parser.add_argument("--sampler", default="s3")
    parser.add_argument("--surrogate", default="none")
    parser.add_argument("--space", default="schedule")
    parser.add_argument("--schedule", default="")
    parser.add_argument("--workers", default="")
    parser.add_argument("--seconds", type=float, default=1.0)
    a = parser.parse_args()
    if a.workers:
        measure_workers(a)
    else:
        measure_cost(a)


if __name__ == "__main__":
    main()

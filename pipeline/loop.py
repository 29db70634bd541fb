"""The search, in one page: propose -> evaluate -> record -> refit."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from fewstep.pipeline import stopping
from fewstep.pipeline.evaluator import Evaluator
from fewstep.pipeline.executors.base import Executor
from fewstep.pipeline.failures import FailureWatch
from fewstep.pipeline.garbage import settled
from fewstep.pipeline.known import Known
from fewstep.pipeline.search import Search
from fewstep.pipeline.trial import Candidate, Rung
from fewstep.storage.records import BUSY, MEASURED, EvaluationRecord, EventRecord, MomentsRecord
from fewstep.storage.store import Store
from fewstep.tasks.work import TaskResult

# Seconds between two records of what each worker was busy with.
BUSY_EVERY = 60.0
# Kinds of events that are no warnings.
NOTES = ("screen",)
# Results that are written at once, where so many are there, and bytes of their moments.
MOST_AT_ONCE, MOST_BYTES = 64, 32 * 2**20
OnRecord = Callable[[EvaluationRecord], None]


@dataclass
class Clock:
    """Where the driver's wall time went, in seconds."""

    waiting: float = 0.0
    total: float = 0.0

    @property
    def own_share(self) -> float:
        """Share of the wall time that the driver spent on anything but waiting for results."""
        return 1.0 - self.waiting / self.total if self.total else 0.0


class Driver:
    """Feeds an executor, writes what comes back. The one writer of a study."""

    def __init__(
        self,
        evaluator: Evaluator,
        executor: Executor,
        store: Store,
        order: int = 0,
        event_order: int = 0,
        on_record: OnRecord | None = None,
        known: Known | None = None,
    ) -> None:
        self._known, self._taken = known, deque[EvaluationRecord]()
        # On disk, and not given yet.
        self._written = deque[EvaluationRecord]()
        self.evaluator, self.executor, self.store = evaluator, executor, store
        self.order, self.event_order, self.clock = order, event_order, Clock()
        self._on_record = on_record
        self._busy_since = datetime.now(UTC)
        self.failures = FailureWatch(lambda: "complete" in self._statuses())

    def _statuses(self) -> list[str]:
        found = self.store.evaluations.read(["status"], {"study": self.evaluator.study}).column("status")
        statuses: list[str] = found.to_pylist()
        return statuses

    @property
    def in_flight(self) -> int:
        """What `next_record` has still to wait for, or to give."""
        return self.executor.in_flight + len(self._taken) + len(self._written)

    def submit(self, candidate: Candidate, rung: Rung) -> None:
        """Start an evaluation: its tasks go to the executor, unless it is known from elsewhere."""
        taken = self._known.take(self.evaluator, [(candidate, rung)])[0] if self._known else []
        if not taken and rung.name.startswith(MEASURED):
            # The report may have measured it of the same images.
            taken = [r for r in (self.evaluator.scored(candidate, rung, self.order),) if r is not None]
        self._taken.extend(taken)
        if taken:
            return
        for task in self.evaluator.plan(candidate, rung):
            self.executor.submit(task)

    def next_record(self) -> EvaluationRecord | None:
        """Wait for one task, whose moments are kept. Where it completes an evaluation, the record is on disk first.

        What other tasks have left by then is written with it, and given next. EvaluationError where so many failed that
        the others would.
        """
        if not self._written:
            # What is learned follows what is written: a replay is then the same.
            self._write([replace(self._taken.popleft(), order=self.order)] if self._taken else self._come())
        if not self._written:
            return None
        record = self._written.popleft()
        if self._on_record:
            self._on_record(record)
        self.failures.note(record)
        return record

    def _come(self) -> list[EvaluationRecord]:
        """The records of the next result, waited for, and of those that are there besides; their moments are on disk.

        Moments first, and at once: a record whose moments are lost could never grow, and a long evaluation that is
        killed goes on where it was.
        """
        records: list[EvaluationRecord] = []
        moments: list[MomentsRecord] = []
        for _ in range(MOST_AT_ONCE):
            record, new = self.evaluator.absorb(self._result(), self.order + len(records))
            moments += new
            records += [] if record is None else [record]
            size = sum(len(row.mean) + len(row.scatter) for row in moments)
            # Executors of others may not tell.
            if not getattr(self.executor, "ready", 0) or size > MOST_BYTES:
                break
        if moments:
            self.store.moments.append(moments)
        return records

    def _result(self) -> TaskResult:
        stopping.check()
        begun = time.perf_counter()
        try:
            return self.executor.next()
        finally:
            self.clock.waiting += time.perf_counter() - begun
            for event in self.executor.events():
                self.event(event.kind, event.message, dict(event.data))
            self.tell_busy(BUSY_EVERY)

    def _write(self, records: list[EvaluationRecord]) -> None:
        if records:
            self.store.evaluations.append(records)
            self.order += len(records)
            self._written.extend(records)

    def tell(self, news: list[tuple[str, str]], aloud: bool = True) -> None:
        """Record what there is to say and say it on stderr, what is recorded already not again; none is left."""
        told = {(e.kind, e.message) for e in self.store.events.records({"study": self.evaluator.study})} if news else ()
        for kind, message in news:
            if (kind, message) not in told:
                self.event(kind, message)
            if aloud and (kind, message) not in told:
                print(f"{'note' if kind in NOTES else 'warning'}: {message}", file=sys.stderr)
        news.clear()

    def tell_busy(self, every: float = 0.0) -> None:
        """Record how many seconds each worker was busy since the last time, if that was `every` seconds ago.

        Of an executor that tells workers apart: of one worker the evaluations' own seconds say it.
        """
        now = datetime.now(UTC)
        if (now - self._busy_since).total_seconds() < every:
            return
        seconds: dict[str, float] = getattr(self.executor, "busy", dict)()
        if any(seconds.values()):
            told = f"{len(seconds)} workers were busy for {sum(seconds.values()):.1f} s together"
            rounded = {name: round(value, 3) for name, value in seconds.items()}
            self.event(BUSY, told, {"since": self._busy_since.isoformat(), "seconds": rounded})
        self._busy_since = now

    def event(self, kind: str, message: str, data: dict[str, object] | None = None) -> None:
        """Record that something happened."""
        row = EventRecord(
            self.evaluator.study, self.event_order, kind, message, datetime.now(UTC), json.dumps(data or {})
        )
        self.store.events.append([row])
        self.event_order += 1


def search(state: Search, driver: Driver) -> None:
    """Run a search to its end: until the budget is spent and the finals are over."""
    begun = time.perf_counter()
    executor = driver.executor
    with settled() as settle:
        while True:
            while driver.in_flight < executor.capacity and (work := state.next_work()):
                driver.submit(*work)
            if not driver.in_flight:
                driver.tell(state.news)
                if not state.enter_finals():
                    break
                continue
            record = driver.next_record()
            if record is not None:
                state.learn(record)
                driver.tell(state.news)
                settle()
    driver.tell(state.news)
    driver.tell_busy()
    driver.failures.end()
    driver.clock.total += time.perf_counter() - begun


def evaluate_all(work: Iterable[tuple[Candidate, Rung]], driver: Driver) -> list[EvaluationRecord]:
    """Evaluate a fixed list, such as the report; records in the order in which they finish."""
    begun = time.perf_counter()
    waiting = list(work)[::-1]
    records = []
    with settled() as settle:
        while waiting or driver.in_flight:
            while waiting and driver.in_flight < driver.executor.capacity:
                driver.submit(*waiting.pop())
            record = driver.next_record()
            if record is not None:
                records.append(record)
                settle()
    driver.tell_busy()
    driver.clock.total += time.perf_counter() - begun
    return records

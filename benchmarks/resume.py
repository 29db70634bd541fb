"""How long a large study takes to open: until the next proposal of its search is there, and after it.

    python -m benchmarks.resume [--records 100000] [--more 300]

The study is made at once, in whole columns: a real search of SEEDS records whose values are drawn, then variations of
its candidates (other times, other values, other keys) at the rungs that their models reached. Then it is opened as
`fewstep search --resume` does: what it depends on and its names are checked, its records replayed, a candidate
proposed. `more` records are then added to it, and the CPU time a record is held against that of a study of SEEDS
records which goes on as long. `ours` and `theirs` are seconds, of it and of the SEEDS records' study.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from benchmarks._line import afresh, emit
from benchmarks.driver import MODEL, Enough, Meter, SimulatedExecutor, resident, settings
from benchmarks.driver import run as searched
from fewstep.pipeline import campaign
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.loop import search
from fewstep.pipeline.study import Study
from fewstep.storage.compaction import SEALED_ROWS
from fewstep.storage.records import EvaluationRecord, MomentsRecord
from fewstep.storage.store import Store
from fewstep.storage.tables import VERSION_KEY

SEEDS = 1500


def varied(record: EvaluationRecord, trial: int, order: int, change: float) -> EvaluationRecord:
    """The record of another candidate: inner times moved by a share of the smallest gap, and what follows from that."""
    point = json.loads(record.candidate_json)
    lambdas = point["schedule"]["lambdas"]
    finite = len(lambdas) - (lambdas[-1] == "inf")
    smallest = min(b - a for a, b in pairwise(lambdas[:finite]))
    lambdas[1 : finite - 1] = [value + change * smallest for value in lambdas[1 : finite - 1]]
    text = json.dumps(point, separators=(",", ":"))
    name = hashlib.sha256(text.encode()).hexdigest()
    return replace(
        record,
        order=order,
        trial=trial,
        key=hashlib.sha256(f"{record.rung}{text}".encode()).hexdigest()[:32],
        candidate=name[:16],
        candidate_json=text,
        value=None if record.value is None else record.value * (1 + change),
        finished_at=record.finished_at + timedelta(seconds=order),
    )


def enlarge(root: Path, study: str, count: int) -> None:
    """Add variations to a study until it has so many records, in files as compaction leaves them."""
    store, rng = Store(root), Random(0)
    records = store.evaluations.records({"study": study})
    of_trial: dict[int, list[EvaluationRecord]] = {}
    for record in records:
        of_trial.setdefault(record.trial, []).append(record)
    models = [own for own in of_trial.values() if own[0].origin == "s3" and own[0].nfe > 2]
    trial, made = max(of_trial) + 1, list[EvaluationRecord]()
    while len(records) + len(made) < count:
        change = rng.uniform(-0.2, 0.2)
        made += [varied(r, trial, len(records) + len(made) + i, change) for i, r in enumerate(rng.choice(models))]
        trial += 1
    empty = {"start": 0, "count": 250, "dim": 0, "mean": b"", "scatter": b"", "sums": {}}
    for first in range(0, len(made), SEALED_ROWS):
        rows = made[first : first + SEALED_ROWS]
        parts = [MomentsRecord(base=record.key, **empty) for record in rows]
        for table, whole in ((store.evaluations, rows), (store.moments, parts)):
            kind = table.record
            schema = kind.schema.with_metadata({VERSION_KEY: str(kind.schema_version)})
            content = pa.Table.from_pylist([row.to_row() for row in whole], schema=schema)
            table.directory.publish(content, 10**9 + first)


@contextmanager
def simulated(study: Study) -> Iterator[None]:
    """Whoever asks for an executor gets one that answers at once."""
    real = campaign.make_executor
    campaign.make_executor = lambda *_: SimulatedExecutor(study.problem.subject)  # type: ignore[assignment,return-value]
    try:
        yield
    finally:
        campaign.make_executor = real


def opened(root: Path, more: int) -> dict[str, Any]:
    """Open a study as `--resume` does and go on with it for so many records: seconds, and MiB."""
    meter = Meter(more)
    before, cpu, wall = resident(), time.process_time(), time.perf_counter()
    study = Study.load(root)
    with simulated(study), study.driver(ExecutionSettings(executor="in-process"), meter) as driver:
        state = study.state(driver)
        replayed = time.process_time() - cpu
        # The second result is learned from, and what comes after it proposed: nothing is left to be read.
        meter.most = 2
        with suppress(Enough):
            search(state, driver)
        found = {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "until_replayed_cpu_seconds": replayed,
            "memory_mib": resident() - before,
            "trials": len(state.trials),
        }
        meter.most = 2 + more
        meter.cpu = [time.process_time()]
        with suppress(Enough):
            search(state, driver)
        # What is read when it is first asked for counts with the proposal that asks.
        found["more_cpu_ms_a_record"] = 1e3 * (meter.cpu[-1] - meter.cpu[0]) / (len(meter.cpu) - 1)
        found["more_memory_mib"] = resident() - before - found["memory_mib"]
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    """One line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--more", type=int, default=300)
    parser.add_argument("--keep", type=Path, help="make the study there, or open the one that is there")
    a = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = a.keep or Path(folder)
        small: dict[str, Any] = {}
        if not (root / "tables").exists():
            options = Namespace(
                records=SEEDS, at="", count=False, sampler="s3", surrogate="none", space="schedule", schedule=""
            )
            study = Study(root, settings(options))
            study._register(study._checked(study.evaluator()))
            searched(options, root)
            small = afresh(opened, root, a.more)
            enlarge(root, settings(options).study, a.records)
        made = time.perf_counter() - begun
        large = afresh(opened, root, a.more)
    conditions = {
        "model": MODEL,
        "records": a.records,
        "opened": large,
        f"opened_of_{SEEDS}": small,
        "seconds_to_make": round(made, 1),
    }
    emit("resume", f"a study of {SEEDS} records", "seconds", large["seconds"], small.get("seconds", 1.0), conditions)


if __name__ == "__main__":
    main()

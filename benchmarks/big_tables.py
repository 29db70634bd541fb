"""Tables of millions of rows: the leaderboard and the front by every engine, and compaction of many small files.

    python -m benchmarks.big_tables [--rows 10000000] [--engines duckdb,dask,pandas] [--runs 500] [--files 10000]
        [--ray] [--root DIR]

Generates --rows evaluations in files as compaction leaves them, and asks each engine in a process of its own for the
ten best rows of each NFE and for the front: seconds, and the most memory that the process took (MiB). `theirs` is
MLflow's `search_runs` for as many runs as --runs (logged before, which is not counted), `ratio` compares the time a
row. Candidates are drawn from 1,000 schedules, so the files are smaller than those of a search. Last, --files files of
one row each are merged. With --ray, Dask's tasks run on a local Ray cluster.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks._line import emit
from fewstep.search_spaces.schedule.space import ScheduleSpace
from fewstep.storage.compaction import SEALED_ROWS
from fewstep.storage.queries import front, leaderboard
from fewstep.storage.records import EvaluationRecord, EventRecord
from fewstep.storage.sql import query
from fewstep.storage.store import Store

NFES = (3, 4, 5, 6, 8, 10)
START = np.datetime64("2026-01-01T00:00:00", "us")
BEST = (
    "SELECT * FROM evaluations WHERE rung = 'frechet' AND status = 'complete' AND isfinite(value) "
    "QUALIFY row_number() OVER (PARTITION BY model_hash, features, reference, metric, nfe ORDER BY value) <= {top}"
)


def generate(store: Store, rows: int, drawn: bool = False) -> None:
    """So many evaluations, in files of SEALED_ROWS; where `drawn`, as of a search of networks with their schedules."""
    space, rng, draw = ScheduleSpace(-5.0, 4.6, NFES), Random(0), np.random.default_rng(0)
    members = [space.random(rng.choice(NFES), rng) for _ in range(1000)]
    points = [space.point(member) for member in members]
    parameters = pa.array([json.dumps(space.parameters(member) if drawn else {}) for member in members])
    texts, hashes = pa.array([p.to_json() for p in points]), pa.array([p.hash for p in points])
    nfes = np.array([p.nfe for p in points])
    table = store.evaluations
    for number, first in enumerate(range(0, rows, SEALED_ROWS)):
        count = min(SEALED_ROWS, rows - first)
        which, order = draw.integers(0, len(points), count), np.arange(first, first + count)
        words = draw.integers(0, 2**63, (count, 2))
        constant = {"study": "big", "model": "digits-ddpm", "model_hash": "m", "features": "fid-digits", "seed": 0}
        constant |= {"reference": "r", "metric": "frechet", "images": 1000, "device": "cpu", "status": "complete"}
        constant |= {"error": "", "versions": "{}", "origin": "s3", "seconds": 1.0}
        value = nfes[which] + draw.lognormal(0.0, 1.0, count)
        sizes = draw.uniform(1e5, 1e6, (count if drawn else 0, 2)).tolist()
        metrics = [json.dumps({"bit_operations_a_call": 1000 * a, "size_bytes": b}) for a, b in sizes]
        varied = {
            "order": order,
            "trial": order,
            "key": pa.array([f"{a:016x}{b:016x}" for a, b in words.tolist()]),
            "candidate": pa.array([f"{b:016x}{a:016x}" for a, b in words.tolist()])
            if drawn
            else hashes.take(pa.array(which)),
            "candidate_json": texts.take(pa.array(which)),
            "parameters": parameters.take(pa.array(which)),
            "metrics": pa.array(metrics or ["{}"] * count),
            "nfe": nfes[which],
            "rung": pa.array(np.where(draw.random(count) < 0.3, "frechet", "look").tolist()),
            "value": value,
            "low": value * 0.9,
            "high": value * 1.1,
            "denoiser_calls": nfes[which] * 1000,
            "finished_at": pa.array(START + order.astype("timedelta64[s]"), pa.timestamp("us", "UTC")),
        }
        columns = []
        for field in EvaluationRecord.schema:
            found = varied.get(field.name, constant.get(field.name))
            made = pa.repeat(pa.scalar(found, field.type), count) if field.name in constant else pa.array(found)
            columns.append(made.cast(field.type))
        table.directory.publish(pa.Table.from_arrays(columns, schema=table._schema), number)


def ask(root: str, engine: str, on_ray: bool) -> None:
    """One engine's answers, in this process; a JSON line of what they took."""
    store, seconds, scheduler = Store(root), {}, "threads"
    if on_ray:
        import ray

        from fewstep.pipeline.executors.dask_on_ray import dask_scheduler

        ray.init(num_cpus=2, log_to_driver=False, logging_level="error", include_dashboard=False)
        scheduler = dask_scheduler()
    for name, top in (("leaderboard", 10), ("front", 1)):
        begun = time.perf_counter()
        if engine == "duckdb":
            found = query(store, BEST.format(top=top)).num_rows
        elif name == "front":
            found = len(front(store, engine=engine, scheduler=scheduler))  # type: ignore[arg-type]
        else:
            found = len(leaderboard(store, top=top, each_nfe=True, engine=engine, scheduler=scheduler))  # type: ignore[arg-type]
        seconds[name] = round(time.perf_counter() - begun, 2)
        assert found == top * len(NFES), f"{name} by {engine}: {found} rows"
    print(json.dumps({"seconds": seconds, "mib": round(peak_mib()), "cpu": round(time.process_time(), 1)}))


def peak_mib() -> float:
    """The most memory that this process has held, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def search_runs(runs: int) -> float:
    """Seconds that MLflow takes to list so many runs."""
    import mlflow
    from mlflow.tracking import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        client = MlflowClient(uri)
        experiment = client.create_experiment("big", f"file://{folder}/artifacts")
        for i in range(runs):
            run = client.create_run(experiment, tags={"nfe": str(NFES[i % len(NFES)])})
            client.log_batch(run.info.run_id, [mlflow.entities.Metric("value", float(i), 0, 0)])
        begun, token, count = time.perf_counter(), None, 0
        while token or not count:
            page = client.search_runs([experiment], order_by=["metrics.value ASC"], page_token=token)
            count, token = count + len(page), page.token
        assert count == runs
        return time.perf_counter() - begun


def compact(files: int) -> dict[str, Any]:
    """Seconds for so many files of one row, memory of the merge (MiB), files left, and what reads take around it."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for order in range(files):
            row = EventRecord("big", order, "note", "", datetime(2026, 1, 1, tzinfo=UTC)).to_row()
            store.events.directory.publish(pa.Table.from_pylist([row], schema=store.events._schema), order)
        # The most it takes from here on.
        Path("/proc/self/clear_refs").write_text("5")
        held, times = peak_mib(), {}
        for name, what in (("read_before", store.events.read), ("compact", store.events.compact)):
            begun = time.perf_counter()
            what()
            times[name] = round(time.perf_counter() - begun, 2)
        begun = time.perf_counter()
        assert store.events.read().num_rows == files
        return {
            **times,
            "mib": round(peak_mib() - held),
            "read_after": round(time.perf_counter() - begun, 2),
            "left": len(store.events.directory.list()),
        }


def main() -> None:
    """One line an engine, and one of the compaction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--engines", default="duckdb,dask,pandas")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--root", default="")
    parser.add_argument("--ask", default="", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.ask:
        ask(a.root, a.ask, a.ray)
        return
    with tempfile.TemporaryDirectory() as made:
        root = a.root or made
        store = Store(root)
        if store.empty and a.rows:
            generate(store, a.rows)
        rows, files = store.evaluations.row_count(), len(store.evaluations.directory.list())
        size = sum(part.size for part in store.evaluations.directory.list()) / 2**20
        listed = search_runs(a.runs) if a.runs else float("nan")
        for engine in a.engines.split(",") if rows else ():
            command = [sys.executable, "-m", "benchmarks.big_tables", "--root", str(root), "--ask", engine]
            told = subprocess.run(command + ["--ray"] * a.ray, capture_output=True, text=True, check=True).stdout
            found = json.loads(told.splitlines()[-1])
            conditions = {"engine": engine, "rows": rows, "files": files, "mib_on_disk": round(size), **found}
            conditions |= {"mlflow_runs": a.runs, "on_ray": a.ray}
            each = found["seconds"]["leaderboard"] / rows
            emit("big_tables", "MLflow search_runs", "s/row", each, listed / max(1, a.runs), conditions)
        if a.files:
            told = compact(a.files)
            conditions = {"files": a.files, **told}
            emit("big_tables/compaction", "before", "s a read", told["read_after"], told["read_before"], conditions)


if __name__ == "__main__":
    main()

"""Faults injected for real, and the table that is left held against that of a calm run in one process.

    python -m benchmarks.reliability [--seed 0] [--only FAULT ...] >> docs/results/reliability.jsonl
    python -m benchmarks.reliability --table docs/results/reliability.jsonl

A fixed list of evaluations (random schedules, digits-ddpm) runs on two Ray actors while the fault strikes; every row's
key, value and interval is compared, bit for bit. Where the driver is killed, a whole search in one process is killed at
records chosen by the seed and gone on with, and compared with the search that nobody killed. One line a fault: `ours`
are the rows that are the same, `theirs` the calm run's, beside rows lost, stored twice, and failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import ray

from benchmarks._line import emit
from fewstep.pipeline.campaign import Campaign, Cell
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.trial import Rung
from fewstep.search_spaces.point import as_point
from fewstep.search_spaces.schedule.space import ScheduleSpace
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.tasks.models.files import find_model
from fewstep.tasks.work import Subject

MODEL = "digits-ddpm"
IMAGES, EVALUATIONS, WORKERS = 250, 60, 2
WORKER_KILLS, DRIVER_KILLS, RAY_DRIVER_KILLS, START_KILLS = 50, 10, 10, 5
PATIENCE = 4000
HUNG_AFTER, PATIENT, STORM_SECONDS = 8.0, 30.0, 900.0
ROOT = Path(__file__).resolve().parents[1]
KILLED_SEARCH = ROOT / "tests" / "pipeline" / "killed_search.py"
HERE = ExecutionSettings(executor="in-process")
ON_RAY = ExecutionSettings(executor="ray", workers=WORKERS)

# Ray brings it, and makes it importable.
assert ray.__version__
psutil: Any = import_module("psutil")

Table = dict[str, tuple[Any, ...]]


def cells(seed: int, count: int = EVALUATIONS) -> list[Cell]:
    """The fixed list."""
    files, rng, rung = find_model(MODEL), Random(seed), Rung("report", "frechet", IMAGES, seed)
    space = ScheduleSpace(files.noise.lambda_start, files.noise.lambda_end, (3, 5))
    points = [space.point(space.random(nfe, rng)) for nfe in rng.choices((3, 5), k=count)]
    return [(as_point(point), "random", rung) for point in points]


def campaign(
    root: Path,
    seed: int,
    where: ExecutionSettings,
    on_record: Callable[[Any], None] | None = None,
    count: int = EVALUATIONS,
) -> None:
    """Evaluate what of the list is missing in a folder."""
    Campaign(Subject(MODEL), root, where, on_record=on_record).run(cells(seed, count))


# -- what is left ---------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What of all tables under a fault is not as in the calm ones."""

    rows: int = 0
    same: int = 0
    lost: int = 0
    twice: int = 0
    failed: int = 0
    events: Counter[str] = field(default_factory=Counter)

    def count(self, calm: Table, root: Path) -> None:
        """Add one folder's."""
        store = Store(root)
        records = store.evaluations.records()
        found = table(records)
        self.rows += len(calm)
        self.same += sum(found.get(key) == row for key, row in calm.items())
        self.lost += len(calm.keys() - found.keys())
        self.twice += store.evaluations.row_count() - len(records)
        known = {key for key, row in calm.items() if row[0] == "complete"}
        self.failed += sum(r.status != "complete" and r.key in known for r in records)
        self.events += Counter(e.kind for e in store.events.records())


def table(records: list[EvaluationRecord]) -> Table:
    """What is compared of rows, by key: no times, no costs."""

    def bits(value: float | None) -> str | None:
        return None if value is None else value.hex()

    return {r.key: (r.status, r.candidate, r.images, *map(bits, (r.value, r.low, r.high))) for r in records}


# -- faults ---------------------------------------------------------------------------------------------


def worker_pids() -> list[int]:
    """Ray's worker processes beneath this one, those that start among them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        # Not the node's agents, which it shares its fate with.
        names = ("ray::IDLE", "ray::WorkerActor")
        if line and (line[0].startswith(names) or any(part.endswith("default_worker.py") for part in line)):
            found.append(process.pid)
    return found


def strike(pid: int, how: signal.Signals = signal.SIGKILL) -> bool:
    """Send a signal; whether the process was there."""
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def beside(act: Callable[[threading.Event], None]) -> Iterator[None]:
    """Something that goes on while the block runs, until it is told that it is over."""
    over = threading.Event()
    thread = threading.Thread(target=act, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclass
class Storm:
    """Where a fault strikes: its seed, a scratch folder and the calm table."""

    seed: int
    scratch: Path
    calm: Table
    tally: Tally = field(default_factory=Tally)

    def run(self, name: str, where: ExecutionSettings = ON_RAY, on_record: Callable[[Any], None] | None = None) -> None:
        """The list, in a folder of its own, whose rows are counted."""
        root = self.scratch / name
        campaign(root, self.seed, where, on_record)
        self.tally.count(self.calm, root)

    def worker_kills(self) -> dict[str, Any]:
        """kill -9 of any actor, those that start included, until all have struck; the list is begun again meanwhile.

        Between two kills a row is finished, or PATIENT seconds pass: where starts are slow, none would ever come up.
        What has not struck within STORM_SECONDS does not.
        """
        rng, kills, rounds, began = Random(self.seed), 0, 0, time.monotonic()
        where = ON_RAY.model_copy(update={"workers": 2 * WORKERS})
        finished: list[Any] = []

        def kill(over: threading.Event) -> None:
            nonlocal kills
            while goes_on() and not over.wait(rng.uniform(0.0, 2.0)):
                if pids := self._actors():
                    kills += strike(rng.choice(pids))
                    rows, until = len(finished), time.monotonic() + PATIENT
                    while len(finished) == rows and time.monotonic() < until and not over.wait(0.05):
                        pass

        def goes_on() -> bool:
            return kills < WORKER_KILLS and time.monotonic() - began < STORM_SECONDS

        while goes_on():
            rounds += 1
            with beside(kill):
                self.run(f"kills-{rounds}", where, finished.append)
        return {"struck": kills, "rounds": rounds}

    def first_starts(self) -> dict[str, Any]:
        """kill -9 of the first workers, each soon after it was started."""
        rng, struck = Random(self.seed), set[int]()

        def kill(over: threading.Event) -> None:
            while len(struck) < START_KILLS and not over.wait(rng.uniform(0.2, 1.2)):
                if pids := [pid for pid in worker_pids() if pid not in struck]:
                    struck.update(pid for pid in pids[:1] if strike(pid))

        with beside(kill):
            self.run("starts")
        return {"struck": len(struck)}

    def driver_kills_on_ray(self) -> dict[str, Any]:
        """kill -9 of the driver with its cluster; the list is gone on with, and begun again where it is done."""
        rng, kills, rounds = Random(self.seed), 0, 0
        while kills < RAY_DRIVER_KILLS:
            rounds += 1
            root = self.scratch / f"drivers-{rounds}"
            code = [sys.executable, "-m", "benchmarks.reliability", "--go-on", str(root), "--seed", str(self.seed)]
            store, before, done = Store(root), 0, False
            while kills < RAY_DRIVER_KILLS and not done:
                child = subprocess.Popen(code, cwd=ROOT)
                while child.poll() is None and len(store.evaluations.records()) <= before:
                    time.sleep(0.2)
                time.sleep(rng.uniform(0.0, 3.0))
                done = child.poll() is not None
                kills += not done
                child.kill()
                child.wait()
                before = len(store.evaluations.records())
            subprocess.run(code, cwd=ROOT, check=True)
            self.tally.count(self.calm, root)
        return {"struck": kills, "rounds": rounds}

    def memory_monitor(self) -> dict[str, Any]:
        """Ray's memory monitor kills a worker, when this process takes more than the machine may use."""
        memory = psutil.virtual_memory()
        room = 2_000_000_000
        share = (memory.total - memory.available + room) / memory.total
        hog: list[Any] = []
        settings = {"RAY_memory_usage_threshold": f"{share:.4f}", "RAY_memory_monitor_refresh_ms": "50"}

        def take(over: threading.Event) -> None:
            began, before = time.monotonic(), set(seen)
            while not seen and not over.wait(0.2):
                pass
            over.wait(2.0)
            before = set(worker_pids())
            while before <= set(worker_pids()) and time.monotonic() - began < 120 and not over.wait(0.02):
                if len(hog) < 60:
                    hog.append(np.ones(100_000_000, np.uint8))
            hog.clear()

        seen: list[Any] = []
        os.environ.update(settings)
        try:
            with beside(take):
                self.run("memory", on_record=seen.append)
        finally:
            for name in settings:
                del os.environ[name]
        errors = [e.message for e in Store(self.scratch / "memory").events.records()]
        return {"struck": sum("OutOfMemoryError" in message for message in errors), "threshold": round(share, 3)}

    def raylet_kill(self) -> dict[str, Any]:
        """kill -9 of the raylet of one of two nodes."""
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        seen: list[Any] = []
        try:
            node = cluster.add_node(num_cpus=1)

            def kill(record: Any) -> None:
                seen.append(record)
                if len(seen) == EVALUATIONS // 4:
                    node.kill_raylet()

            self.run("raylet", ON_RAY.model_copy(update={"address": cluster.address}), kill)
        finally:
            cluster.shutdown()
        return {"struck": 1, "nodes": 2}

    def hang(self) -> dict[str, Any]:
        """A worker is stopped for good, beside a task or with none."""
        where, stopped = ON_RAY.model_copy(update={"timeout": HUNG_AFTER}), list[int]()

        def stop(record: Any) -> None:
            if not stopped:
                stopped.extend(pid for pid in self._actors()[:1] if strike(pid, signal.SIGSTOP))

        self.run("hang", where, stop)
        return {"struck": len(stopped), "timeout": HUNG_AFTER}

    def pause(self) -> dict[str, Any]:
        """All workers are stopped for a while, three times, and go on."""
        return self._paused("pause", 3, 3.0)

    def pause_of_a_minute(self) -> dict[str, Any]:
        """All workers are stopped for a minute, and go on."""
        return self._paused("minute", 1, 60.0)

    def _paused(self, name: str, times: int, seconds: float) -> dict[str, Any]:
        paused = 0

        def pause(over: threading.Event) -> None:
            nonlocal paused
            while paused < times and not over.wait(2.0):
                if pids := self._actors():
                    for pid in pids:
                        strike(pid, signal.SIGSTOP)
                    over.wait(seconds)
                    for pid in pids:
                        strike(pid, signal.SIGCONT)
                    paused += 1

        with beside(pause):
            self.run(name)
        return {"struck": paused, "seconds_each": seconds}

    def ctrl_c(self) -> dict[str, Any]:
        """Ctrl-C in the terminal of a search on Ray, which is then gone on with; what it says, leaves, and how soon."""
        root, store = self.scratch / "ctrl-c", Store(self.scratch / "ctrl-c")
        program = [sys.executable, "-m", "fewstep.pipeline.cli", "search", "--out", str(root), "--executor", "ray"]
        what = [
            "--model",
            MODEL,
            "--nfe",
            "3",
            "--budget",
            "40000",
            "--report-images",
            "500",
            "--workers",
            str(WORKERS),
        ]
        # A group of its own, as a shell gives every command: the terminal's signal reaches all of it.
        search = subprocess.Popen(
            [*program, *what],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while len(store.evaluations.records()) < 20 and search.poll() is None:
            time.sleep(0.3)
        beneath = psutil.Process(search.pid).children(recursive=True)
        told, before = time.monotonic(), {r.key for r in store.evaluations.records()}
        os.killpg(search.pid, signal.SIGINT)
        _, said = search.communicate(timeout=120)
        seconds = time.monotonic() - told
        _, left = psutil.wait_procs(beneath, timeout=10)
        again = subprocess.run([*program, "--resume", "--json"], cwd=ROOT, capture_output=True, check=False)
        records = store.evaluations.records()
        self.tally = Tally(rows=len(before), same=len(before & {r.key for r in records}))
        self.tally.lost, self.tally.twice = (
            self.tally.rows - self.tally.same,
            store.evaluations.row_count() - len(records),
        )
        line = said.strip().splitlines()[-1] if said.strip() else ""
        return {
            "struck": 1,
            "seconds_to_end": round(seconds, 1),
            "exit_code": search.returncode,
            "says_how_to_resume": line.startswith("stopped, resume with: fewstep search"),
            "processes_left": len(left),
            "exit_code_of_the_resumed": again.returncode,
            "rows_in_the_end": len(records),
        }

    @staticmethod
    def _actors() -> list[int]:
        def name(pid: int) -> str:
            try:
                return psutil.Process(pid).cmdline()[0]
            except (psutil.Error, IndexError):
                return ""

        return [pid for pid in worker_pids() if name(pid).startswith("ray::WorkerActor")]

    def driver_kills(self) -> dict[str, Any]:
        """kill -9 of the driver of a search in one process."""
        return self._killed_search("search", 0)

    def driver_kills_with_patience(self) -> dict[str, Any]:
        """The same of a search that ends when its front stands still."""
        return self._killed_search("patience", PATIENCE)

    def _killed_search(self, name: str, patience: int) -> dict[str, Any]:
        settings = SearchSettings.build(
            model=MODEL,
            sampler="evolution",
            nfes=(3,),
            budget=40_000,
            patience=patience,
            distance_images=16,
            frechet_images=250,
            finalist_images=500,
            report_images=500,
            seed=self.seed,
            teacher="dpmpp-2m/uniform-t-zero@8",
        )
        whole, killed = self.scratch / f"{name}-whole", self.scratch / f"{name}-killed"
        _lives(whole, settings, ())
        calm = Store(whole).evaluations.records()
        rng = Random(self.seed)
        ends = sorted(rng.sample(range(len(calm) - 1), DRIVER_KILLS))
        rules = [f"{rng.choice(('after', 'between'))}:{calm[i].rung}:{calm[i].trial}" for i in ends]
        codes = _lives(killed, settings, rules)
        self.tally.count(table(calm), killed)
        orders = [[(r.key, r.trial, r.rung) for r in Store(root).evaluations.records()] for root in (whole, killed)]
        csv = [(root / "results.csv").read_text().splitlines()[0] for root in (whole, killed)]
        spent = sum(r.images * r.nfe for r in calm if r.rung in ("distance", "frechet"))
        equal = {"same_order": orders[0] == orders[1], "same_csv_header": csv[0] == csv[1]}
        return {"struck": codes.count("-9"), "patience": patience, "calls": spent, "budget": 40_000, **equal}


def _lives(root: Path, settings: SearchSettings, rules: Any) -> list[str]:
    """The exit codes of a search's lives, the last of which ends well."""
    job = json.dumps([(str(root), settings.model_dump(), list(rules))])
    done = subprocess.run([sys.executable, "-P", str(KILLED_SEARCH)], input=job, capture_output=True, text=True)
    if done.returncode or not done.stdout.split() or done.stdout.split()[-1] != "0":
        raise SystemExit(f"the search did not end well: {done.stdout} {done.stderr[-2000:]}")
    return done.stdout.split()


FAULTS: Mapping[str, Callable[[Storm], dict[str, Any]]] = {
    "worker_kills": Storm.worker_kills,
    "first_starts": Storm.first_starts,
    "driver_kills": Storm.driver_kills,
    "driver_kills_with_patience": Storm.driver_kills_with_patience,
    "driver_kills_on_ray": Storm.driver_kills_on_ray,
    "memory_monitor": Storm.memory_monitor,
    "raylet_kill": Storm.raylet_kill,
    "hang": Storm.hang,
    "pause": Storm.pause,
    "pause_of_a_minute": Storm.pause_of_a_minute,
    "ctrl_c": Storm.ctrl_c,
}


def main() -> None:
    """The whole storm, or some of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=sorted(FAULTS), default=list(FAULTS))
    parser.add_argument("--go-on", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.go_on:
        campaign(given.go_on, given.seed, ON_RAY)
        return
    with tempfile.TemporaryDirectory() as folder:
        calm = Path(folder) / "calm"
        campaign(calm, given.seed, HERE)
        rows = table(Store(calm).evaluations.records())
        for name in given.only:
            storm, began = Storm(given.seed, Path(folder) / name, rows), time.monotonic()
            found = FAULTS[name](storm)
            tally = storm.tally
            emit(
                f"reliability_{name}",
                "a calm run in one process",
                "rows that are the same",
                tally.same,
                tally.rows,
                {
                    **found,
                    "lost": tally.lost,
                    "twice": tally.twice,
                    "innocent_failed": tally.failed,
                    "events": dict(tally.events),
                    "seconds": round(time.monotonic() - began, 1),
                    "seed": given.seed,
                    "model": MODEL,
                },
            )


if __name__ == "__main__":
    main()
